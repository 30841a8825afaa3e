"""Whole devices in a simulated world: identities and ledgers in memory, crashes, restarts.

`SimWorld(seed, link)` holds a network, the chains and the disks; `world.device(name)` runs
the very `open_device` that applications use, in virtual time if the event loop is.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import weakref
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
from anyio.abc import ObjectReceiveStream
from blake3 import blake3

from walyoff.abc import Block, IpfsNode, Membership
from walyoff.errors import (
    LocalProtocolError,
    NotAMemberError,
    PayloadTooLargeError,
    RemoteProtocolError,
)
from walyoff.node import Device
from walyoff.opening import open_device
from walyoff.platform import Foundation, Platform
from walyoff.tasks import background_tasks
from walyoff.testing.governing import SimGovernance
from walyoff.testing.kin import SimFamily
from walyoff.testing.memory import MemoryDisk, MemoryStore, open_memory_store
from walyoff.testing.network import LAN, Link, SimNetwork
from walyoff.testing.virtual import SimRuntime
from walyoff.wire import expect_array, expect_bytes, expect_str, pack, unpack

MAX_FILE = 1 << 21
MAX_PAYLOAD = 1_000_000
_WAITING = 64
#: How the DIDs of identities begin; those of devices are their names.
GROUP = "did:sim:group-"


class SimChain:
    """One device's copy of a chain: blocks with parents, admitted parents first."""

    def __init__(self, world: SimWorld, device: str, name: str) -> None:
        self._world = world
        self._device = device
        self.name = name
        self.blocks: dict[str, tuple[tuple[str, ...], bytes]] = {}
        self.order: list[str] = []
        self.children: set[str] = set()
        self.changed = anyio.Event()
        #: Whether announcements reach it: chains of others' devices are only compared.
        self.followed = False

    def append(self, payload: bytes) -> str:
        """Write a block on top of all that is known, and gossip it as Walytis does."""
        parents = tuple(sorted(set(self.blocks) - self.children))
        nonce = self._world.random.randbytes(8)
        ref = blake3(pack([list(parents), payload, nonce])).hexdigest(16)
        self._admit(ref, parents, payload)
        self._world.gossip(self._device, self.name, pack([ref, list(parents), payload]))
        return ref

    def _admit(self, ref: str, parents: tuple[str, ...], payload: bytes) -> None:
        self.blocks[ref] = (parents, payload)
        self.order.append(ref)
        self.children.update(parents)
        self._world.grew(self._device, self.name)
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def common_order(self) -> list[bytes]:
        """The payloads, parents first, in the order that all who hold them agree on."""
        depth: dict[str, int] = {}
        for ref in self.order:
            depth[ref] = 1 + max((depth[p] for p in self.blocks[ref][0]), default=0)
        return [self.blocks[ref][1] for ref in sorted(self.order, key=lambda r: (depth[r], r))]

    async def leaves(self) -> tuple[list[str], int]:
        """See `walyoff.engine.chain_serving.Chain`."""
        await anyio.lowlevel.checkpoint()
        return sorted(set(self.blocks) - self.children), len(self.blocks)

    async def wanted(self, theirs: Sequence[str]) -> list[str] | None:
        """See `walyoff.engine.chain_serving.Chain`."""
        own, _ = await self.leaves()
        return own if set(theirs) - set(own) else None

    async def export(self, known: Sequence[str]) -> AsyncGenerator[list[bytes], None]:
        """See `walyoff.engine.chain_serving.Chain`."""
        await anyio.lowlevel.checkpoint()
        yield self.missing(known)

    def missing(self, known: Sequence[str]) -> list[bytes]:
        """The files of blocks that are not ancestors of the known ones."""
        held: set[str] = set()
        stack = [ref for ref in known if ref in self.blocks]
        while stack:
            ref = stack.pop()
            if ref not in held:
                held.add(ref)
                stack.extend(self.blocks[ref][0])
        return [
            pack([ref, list(self.blocks[ref][0]), self.blocks[ref][1]])
            for ref in self.order
            if ref not in held
        ]

    async def take(self, files: Sequence[bytes]) -> int:
        """See `walyoff.engine.chain_serving.Chain`."""
        await anyio.lowlevel.checkpoint()
        before = len(self.blocks)
        for file in files:
            ref, parents, payload = expect_array(unpack(file, MAX_FILE), 3, "block")
            name = expect_str(ref, "ref", limit=64)
            if name in self.blocks or not set(parents) <= set(self.blocks):
                continue
            self._admit(name, tuple(parents), expect_bytes(payload, "payload", limit=MAX_FILE))
        return len(self.blocks) - before


class SimLedger:
    """A `Ledger` on a `SimChain`. `delay_s` is what an append costs."""

    def __init__(self, chain: SimChain, delay_s: float) -> None:
        self._chain = chain
        self._delay_s = delay_s

    @property
    def max_payload(self) -> int:
        """The largest payload."""
        return MAX_PAYLOAD

    async def append(self, payload: bytes) -> Block:
        """See `walyoff.abc.Ledger`."""
        if not payload:
            raise LocalProtocolError("a block's payload is not empty")
        if len(payload) > MAX_PAYLOAD:
            raise PayloadTooLargeError(len(payload), MAX_PAYLOAD, "block payload")
        await anyio.sleep(self._delay_s)
        ref = self._chain.append(payload)
        return Block(ref=ref, position=len(self._chain.order), payload=payload)

    @asynccontextmanager
    async def blocks(self, after: int = 0) -> AsyncIterator[ObjectReceiveStream[Block]]:
        """See `walyoff.abc.Ledger`."""
        send, receive = anyio.create_memory_object_stream[Block](_WAITING)

        async def follow() -> None:
            position = after
            # A reader that closes its stream early wants no more.
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                while True:
                    while position < len(self._chain.order):
                        ref = self._chain.order[position]
                        position += 1
                        payload = self._chain.blocks[ref][1]
                        await send.send(Block(ref=ref, position=position, payload=payload))
                    await self._chain.changed.wait()

        with send, receive:
            async with background_tasks() as tasks:
                tasks.start_soon(follow)
                yield receive


class SimIdentity(SimGovernance):
    """An `Identity` whose chain is a `SimChain` of joinings and leavings."""

    def __init__(
        self, world: SimWorld, device: str, did: str, member_did: str, family: SimFamily
    ) -> None:
        self._world = world
        self._device = device
        self._did = did
        self._member_did = member_did
        self._family = family
        self._read: tuple[Membership, int, Membership] | None = None

    @property
    def did(self) -> str:
        """See `walyoff.abc.Identity`."""
        return self._did

    @property
    def member_did(self) -> str:
        """See `walyoff.abc.Identity`."""
        return self._member_did

    @property
    def membership(self) -> Membership:
        """See `walyoff.abc.Identity`."""
        base = self._family.membership()
        # What it holds grows without news on the chain.
        if (
            self._read is None
            or self._read[0] is not base
            or self._read[1] != len(self._held())
        ):
            governed = replace(base, governance=self.govern(base.current()))
            self._read = base, len(self._held()), governed
        return self._read[2]

    @property
    def _chain(self) -> SimChain:
        return self._world.chain(self._device, f"{self._did}/identity")

    async def refresh(self) -> Membership:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        return self.membership

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[ObjectReceiveStream[Membership]]:
        """See `walyoff.abc.Identity`."""
        send, receive = anyio.create_memory_object_stream[Membership](1)
        async with anyio.create_task_group() as tasks:
            last = self.membership

            async def follow() -> None:
                nonlocal last
                while True:
                    if self.membership != last:
                        last = self.membership
                        await send.send(last)
                    else:
                        await self._world.growth(self._device)

            with send, receive:
                tasks.start_soon(follow)
                yield receive
                tasks.cancel_scope.cancel()

    async def certify(self, body: bytes) -> bytes:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        return self._world.sign(self._member_did, body)

    async def verify(self, did: str, body: bytes, signature: bytes) -> int:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        if did not in self.membership.kin:
            raise NotAMemberError(f"{did} was never a member")
        for generation in range(self._world.generations[did], 0, -1):
            if self._world.sign(did, body, generation) == signature:
                return generation
        raise RemoteProtocolError("the signature does not hold", reason="wrong-signature")

    async def control_keys(self) -> str:
        """See `walyoff.abc.Identity`: there are none."""
        await anyio.lowlevel.checkpoint()
        return ""

    async def add_member(
        self,
        did: str,
        chain: Sequence[bytes],
        *,
        family: Mapping[str, Sequence[bytes]] | None = None,
        purpose: str = "any",
        proof: tuple[bytes, bytes] | None = None,
    ) -> None:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        if proof is not None and self._world.sign(did, proof[0]) != proof[1]:
            raise RemoteProtocolError("the signature does not hold", reason="wrong-signature")
        if did.startswith(GROUP):
            await self._world.chain(self._device, f"{did}/identity").take(chain)
            await SimFamily(self._world, self._device, did).take_all(family or {})
        elif list(chain) != [did.encode()]:
            raise RemoteProtocolError("not the chain of this DID")
        kind = "identity" if did.startswith(GROUP) else "device"
        if purpose not in ("any", kind):
            raise LocalProtocolError(f"what joins is a {kind}: invite it as one")
        self._family.check_new(did)
        if did not in self.membership.direct:
            self._world.chain(self._device, f"{self._did}/identity").append(pack(["join", did]))

    async def remove_member(self, did: str) -> None:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        if did in self.membership.direct:
            chain = self._world.chain(self._device, f"{self._did}/identity")
            chain.append(pack(["leave", did]))


class SimPlatform:
    """A `Platform` in a `SimWorld`."""

    def __init__(self, world: SimWorld, device: str) -> None:
        self._world = world
        self._device = device

    @property
    def ipfs(self) -> IpfsNode | None:
        """There is none."""
        return None

    async def create_device(self) -> str:
        """A new DID."""
        await anyio.lowlevel.checkpoint()
        return f"did:sim:{self._device}"

    async def device_files(self, did: str) -> list[bytes]:
        """The chain of a DID; that of a device is its name."""
        await anyio.lowlevel.checkpoint()
        if did.startswith(GROUP):
            return self._world.chain(self._device, f"{did}/identity").missing([])
        return [did.encode()]

    async def family_files(self, did: str) -> dict[str, list[bytes]]:
        """The chains below an identity."""
        return await SimFamily(self._world, self._device, did).export_all()

    async def certify(self, did: str, body: bytes) -> bytes:
        """Sign for a DID."""
        await anyio.lowlevel.checkpoint()
        return self._world.sign(did, body)

    async def renew_device(self, did: str) -> None:
        """New control keys, which everybody in this world knows of at once."""
        await anyio.lowlevel.checkpoint()
        self._world.generations[did] += 1

    async def forget(self, did: str) -> None:
        """Delete the control keys of an identity."""
        await anyio.lowlevel.checkpoint()
        self._world.control_keys.pop((await self.create_device(), did), None)

    @asynccontextmanager
    async def create(
        self, device: str, first: str | None = None, *, rule: str = "any"
    ) -> AsyncIterator[Foundation]:
        """A new identity; rules are not simulated."""
        did = f"{GROUP}{self._world.random.randbytes(8).hex()}"
        chain = self._world.chain(self._device, f"{did}/identity")
        chain.append(pack(["join", first or device]))
        yield self._found(did, device)

    @asynccontextmanager
    async def open(self, did: str, *, pin: bytes, device: str) -> AsyncIterator[Foundation]:
        """An identity of this device."""
        yield self._found(did, device)

    @asynccontextmanager
    async def adopt(self, grant: bytes, *, device: str) -> AsyncIterator[Foundation]:
        """An identity that was granted."""
        did, identity, ledger, family = expect_array(unpack(grant, 1 << 26), 4, "grant")
        await self._world.chain(self._device, f"{did}/identity").take(identity)
        await self._world.chain(self._device, f"{did}/ledger").take(ledger)
        await SimFamily(self._world, self._device, did).take_all(family)
        found = self._found(did, device)
        if not any(m.did == device for m in found.identity.membership.current()):
            raise RemoteProtocolError("this device is not a member", reason="not-a-member")
        yield found

    async def grant(self, did: str) -> bytes:
        """The chains."""
        identity = self._world.chain(self._device, f"{did}/identity").missing([])
        ledger = self._world.chain(self._device, f"{did}/ledger").missing([])
        return pack([did, identity, ledger, await self.family_files(did)])

    def _found(self, did: str, member: str) -> Foundation:
        chain = self._world.chain(self._device, f"{did}/identity")
        ledger = self._world.chain(self._device, f"{did}/ledger")
        chain.followed = ledger.followed = True
        family = SimFamily(self._world, self._device, did)
        return Foundation(
            identity=SimIdentity(self._world, self._device, did, member, family),
            ledger=SimLedger(ledger, self._world.append_s),
            pin=bytes(32),
            chains={"identity": family, "ledger": ledger},
        )


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


__all__ = [
    "SimChain",
    "SimIdentity",
    "SimLedger",
    "SimPlatform",
    "SimWorld",
]
