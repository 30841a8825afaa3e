"""Whole devices in a simulated world: identities and ledgers in memory, crashes, restarts.

`SimWorld(seed, link)` holds a network, the chains and the disks; `world.device(name)` runs
the very `open_device` that applications use, in virtual time if the event loop is.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import weakref
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
from blake3 import blake3

from walyoff.node import Device
from walyoff.opening import open_device
from walyoff.platform import Platform
from walyoff.testing.chains import SimChain
from walyoff.testing.memory import MemoryDisk, MemoryStore, open_memory_store
from walyoff.testing.network import LAN, Link, SimNetwork
from walyoff.testing.platform import SimPlatform
from walyoff.testing.virtual import SimRuntime
from walyoff.wire import pack


class SimWorld:
    """The network, the chains and the disks of a simulation."""

    def __init__(
        self,
        seed: int = 0,
        link: Link = LAN,
        *,
        append_s: float = 0.05,
        sync_s: float = 0.001,
        others: Sequence[SimNetwork] = (),
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeatable, that is the point
        self.network = SimNetwork(seed, link)
        #: All networks that devices are on, the best first; each has a name of its own.
        self.networks = (self.network, *others)
        self.append_s = append_s
        self._sync_s = sync_s
        # Transports get folders, though these devices keep nothing there.
        folder = tempfile.mkdtemp(prefix="walyoff-sim-")
        self._folder = Path(folder)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._disks: dict[str, MemoryDisk] = {}
        self.chains: dict[tuple[str, str], SimChain] = {}
        self._starts: dict[str, int] = {}
        #: Fingerprints of the control keys that devices hold, by device and identity.
        self.control_keys: dict[tuple[str, str], set[bytes]] = {}
        self._running: dict[str, anyio.abc.TaskGroup] = {}
        #: How often each device's identity chains have grown, and who waits for it.
        self._versions: Counter[str] = Counter()
        self._growth: dict[str, anyio.Event] = {}
        self._seed = seed
        #: How often each DID has had new control keys, and once more.
        self.generations: defaultdict[str, int] = defaultdict(lambda: 1)
        #: Seconds by which each device's clock is wrong.
        self.skew_s: dict[str, float] = {}

    def sign(self, did: str, body: bytes, generation: int | None = None) -> bytes:
        """What a DID's control keys would sign; nobody else in the world can call it.

        Those of now, or those of before, which it had first, second and so on.
        """
        generation = generation or self.generations[did]
        secret = f"{self._seed} {did}" + f" {generation}" * (generation > 1)
        return blake3(body, key=blake3(secret.encode()).digest()).digest()

    def chain(self, device: str, name: str) -> SimChain:
        """A device's copy of a chain; it survives crashes."""
        key = (device, name)
        if key not in self.chains:
            self.chains[key] = SimChain(self, device, name)
        return self.chains[key]

    def held(self, device: str, name: str) -> SimChain | None:
        """The same, if it has any block of it."""
        chain = self.chains.get((device, name))
        return chain if chain is not None and chain.order else None

    def grew(self, device: str, name: str) -> None:
        """A chain of a device has a new block."""
        if name.endswith("/identity"):
            self._versions[device] += 1
            if (waiting := self._growth.pop(device, None)) is not None:
                waiting.set()

    def version(self, device: str) -> int:
        """Changes whenever an identity's chain grows on a device."""
        return self._versions[device]

    async def growth(self, device: str) -> None:
        """Wait until one does."""
        await self._growth.setdefault(device, anyio.Event()).wait()

    def gossip(self, source: str, name: str, file: bytes) -> None:
        """Give a block to the devices that are there, as Walytis' announcements do."""
        for target, tasks in list(self._running.items()):
            network = self.network
            chain = self.chains.get((target, name))
            if target == source or chain is None or not chain.followed:
                continue
            if network.is_apart(source, target) or network.is_held(source, target):
                continue
            link = network.link(source, target)
            if network.random.random() >= link.loss:
                tasks.start_soon(self._deliver, target, name, file, link.latency)

    def broadcast_leaves(self, name: str) -> None:
        """Announce what each running device holds of a chain, as Walytis does now and then."""
        for source in list(self._running):
            if (source, name) in self.chains:
                chain = self.chains[source, name]
                for ref in chain.order:
                    parents, payload = chain.blocks[ref]
                    self.gossip(source, name, pack([ref, list(parents), payload]))

    async def _deliver(self, target: str, name: str, file: bytes, delay: float) -> None:
        await anyio.sleep(delay)
        await self.chains[target, name].take([file])

    def disk(self, device: str) -> MemoryDisk:
        """What survives of a device."""
        return self._disks.setdefault(device, MemoryDisk(sync_s=self._sync_s))

    @asynccontextmanager
    async def device(self, name: str, *, suite: str = "classic-1") -> AsyncIterator[Device]:
        """Run a device while the context is open; enter it again to restart it.

        Cancelling the context is a crash: what was not synced is lost.
        """
        start = self._starts[name] = self._starts.get(name, 0) + 1
        digest = blake3(f"{self._seed} {name} {start}".encode()).digest(8)
        runtime = SimRuntime(int.from_bytes(digest, "big"), skew_s=self.skew_s.get(name, 0.0))

        @asynccontextmanager
        async def platform(home: Path) -> AsyncIterator[Platform]:
            yield SimPlatform(self, name)

        def store(
            home: Path, passphrase: str | None
        ) -> AbstractAsyncContextManager[MemoryStore]:
            return open_memory_store(self.disk(name))

        async with anyio.create_task_group() as tasks:
            self._running[name] = tasks
            try:
                async with open_device(
                    self._folder / name,
                    transports={net.name: net.factory(name) for net in self.networks},
                    suite=suite,
                    platform=platform,
                    store=store,
                    runtime=runtime,
                ) as device:
                    yield device
            finally:
                del self._running[name]
                tasks.cancel_scope.cancel()


__all__ = ["SimWorld"]
