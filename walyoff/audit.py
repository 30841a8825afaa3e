"""The audit of one channel on this device: everything that was ever written, checked again.

It reads the home as it lies on disk, before the device's own code opens (and repairs) it:
every block of the identity's chain and of all segments from the first; every anchor, link,
batch and signature; the hash chain of each author; the commitment of each content that is
held. It changes nothing, and needs the home for itself.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread

from walyoff.abc import Store
from walyoff.audit_chains import (
    BLOCK_MISSING,
    CHAIN_MISSING,
    Finding,
    RawChain,
    Verify,
    count_blocks,
    read_segments,
)
from walyoff.audit_readings import RawReadings
from walyoff.audit_records import RecordAudit
from walyoff.audit_report import NO_SEGMENT, STORE_DAMAGED, Meter, Progress, Report
from walyoff.channel_state import ChannelState, load_epochs
from walyoff.child.family import State, flatten
from walyoff.child.reader import Reading, pin_of
from walyoff.epochs import anchor_key
from walyoff.errors import LocalProtocolError, RemoteProtocolError, StoreError
from walyoff.stores import open_store
from walyoff.walytis.process import Child, open_child


async def find_channel(store: Store, name: str | None) -> ChannelState:
    """The channel of a name or a DID; without one, the only one.

    Raises LocalProtocolError when there is none, or it is not clear which.
    """
    states = []
    for key in await store.keys("channel/"):
        if value := await store.get(key):
            states.append(ChannelState.decode(value))
    found = [s for s in states if name is None or name in (s.name, s.did)]
    if len(found) != 1:
        have = ", ".join(sorted(s.name for s in states)) or "none"
        raise LocalProtocolError(f"say which channel (channels: {have})")
    return found[0]


async def audit(
    home: Path,
    name: str | None = None,
    *,
    passphrase: str | None = None,
    progress: Progress = lambda _done, _of: None,
    contents: bool = True,
) -> Report:
    """Check everything that a home holds of a channel. The home must not be in use.

    Without `contents` only the chains are read.

    Raises:
        HomeInUseError: a device is running on it.
        StoreError: the home cannot be opened at all.
        LocalProtocolError: it is not clear which channel is meant.
    """
    async with open_store(home, passphrase=passphrase) as store:
        state = await find_channel(store, name)
        # Signatures of control keys are checked in the child, where upstream's code is. It
        # opens no chain unless it is told to, and needs nothing of the home.
        folder = await anyio.to_thread.run_sync(tempfile.mkdtemp, None, "walyoff-audit-")
        try:
            async with open_child(Path(folder)) as child:
                return await audit_with(child, home, store, state, progress, contents=contents)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(shutil.rmtree, folder, True)


async def audit_with(
    child: Child,
    home: Path,
    store: Store,
    state: ChannelState,
    progress: Progress = lambda _done, _of: None,
    *,
    contents: bool = True,
) -> Report:
    """The same with what is open already; the child may be any, as no chain is opened."""
    return await _Audit(home, store, state, child, progress).run(contents=contents)


class _Audit:
    def __init__(
        self, home: Path, store: Store, state: ChannelState, child: Child, progress: Progress
    ) -> None:
        self._home = home
        self._store = store
        self._state = state
        self._child = child
        self._tell = progress
        self._report = Report(channel=state.did, name=state.name)
        self._keys_of: dict[str, list[str]] = {}

    async def run(self, *, contents: bool) -> Report:
        report, channel = self._report, self._store.channel(self._state.did)
        try:
            heads = await channel.heads() if contents else []
        except StoreError as error:
            report.add(STORE_DAMAGED, self._state.did, str(error))
            heads = []
        # Those of other channels as well: which chains are this one's is seen as it goes.
        chains = [path.name for path in (self._home / "walytis").glob("Qm*")]
        total = sum(count_blocks(self._home, chain) for chain in chains)
        total += sum(head.seq for head in heads)
        meter = Meter(total, self._tell)

        def verify(keys: str, signature: bytes, data: bytes) -> bool:
            return anyio.from_thread.run(self._verify, keys, signature, data)

        raw_readings = RawReadings(self._home, verify, meter.tick)
        raw, reading = await anyio.to_thread.run_sync(self._read_identity, raw_readings)
        self._take(raw)
        report.refused = dict(reading.refused)
        await anyio.to_thread.run_sync(self._read_members, reading, raw_readings)
        await self._read_segments(reading, meter, verify)
        if contents:
            records = RecordAudit(report, self._store, self._child, self._keys_of)
            await records.load_certificates()
            anchored = await records.check_anchors()
            for head in heads:
                await records.check_author(channel, head, anchored, meter)
        return report

    async def _verify(self, keys: str, signature: bytes, data: bytes) -> bool:
        args = {"key_group_id": keys, "signature": signature, "data": data}
        return await self._child.call("did.check", args) is True

    def _take(self, raw: RawChain) -> None:
        self._report.counts["blocks"] += len(raw.blocks)
        for finding in raw.findings:
            self._report.add(finding.kind, finding.where, finding.detail)

    # ---------------------------------------------------------------------- chains

    def _read_identity(self, chains: RawReadings) -> tuple[RawChain, Reading]:
        did, pin = self._state.did, self._state.pin
        return chains.raw(did), chains.read(did, pin)

    def _read_members(self, reading: Reading, chains: RawReadings) -> None:
        """The chains of all who stand under the identity: whose keys certify devices."""
        found: dict[tuple[str, bytes], Reading] = {}

        def members(did: str, pin: bytes) -> Mapping[str, State]:
            if did == self._state.did:
                return reading.members
            if (did, pin) not in found:
                try:
                    own = chains.read(did, pin or None)
                except RemoteProtocolError:
                    # What somebody called a member is no DID.
                    return {}
                self._take(chains.raw(did))
                found[did, pin] = own
            return found[did, pin].members

        for did, pin in flatten(self._state.did, members, chains.committed).pins.items():
            keys = found[did, pin].keys if (did, pin) in found else []
            if keys and (not pin or pin_of(keys[0]) == pin):
                self._keys_of[did] = list(keys)

    async def _read_segments(self, reading: Reading, meter: Meter, verify: Verify) -> None:
        if reading.segment is None:
            self._report.add(NO_SEGMENT, self._state.did, "the chain names no register")
            return
        epochs = await load_epochs(self._store, self._state.did)
        read = functools.partial(
            read_segments,
            self._home,
            reading.segment,
            group=self._state.did,
            keys={epoch.epoch_id: anchor_key(epoch) for epoch in epochs},
            control_keys=[*reading.keys, *reading.void_keys],
            verify=verify,
            tick=meter.tick,
        )
        self._report.segments = await anyio.to_thread.run_sync(read)
        for segment in self._report.segments:
            self._take(segment.raw)
            self._report.counts["segments"] += 1
            self._report.counts["anchors"] += len(segment.anchors)


__all__ = [
    "BLOCK_MISSING",
    "CHAIN_MISSING",
    "Finding",
    "Report",
    "audit",
    "audit_with",
    "find_channel",
]
