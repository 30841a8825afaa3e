"""The audit of one channel on this device: everything that was ever written, checked again.

It reads the home as it lies on disk, before the device's own code opens (and repairs) it:
every block of the identity's chain and of all segments from the first; every anchor, link,
batch and signature; the hash chain of each author; the commitment of each content that is
held. It changes nothing, and needs the home for itself.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from walyoff import certificates, plugins
from walyoff.abc import ChannelStore, Head, Store, StoredBatch, StoredContent
from walyoff.audit_chains import (
    BLOCK_MISSING,
    CHAIN_MISSING,
    Finding,
    RawChain,
    RawSegment,
    Verify,
    count_blocks,
    read_chain,
    read_segments,
)
from walyoff.channel_state import ChannelState, load_epochs
from walyoff.child.acts import expand
from walyoff.child.family import State, flatten
from walyoff.child.reader import (
    IdentityBlock,
    Reading,
    chain_of,
    pin_of,
    read_identity,
)
from walyoff.epochs import anchor_key
from walyoff.errors import CipherError, LocalProtocolError, RemoteProtocolError, StoreError
from walyoff.records import Batch, chain_start, commit, decode_batch, signed_message
from walyoff.stores import open_store
from walyoff.walytis.process import Child, open_child

BATCH_MISSING = "batch-missing"
BATCH_DAMAGED = "batch-damaged"
BATCH_FORGED = "batch-forged"
CHAIN_BROKEN = "hash-chain-broken"
FORK = "fork"
ANCHOR_FALSE = "anchor-false"
CONTENT_DAMAGED = "content-damaged"
CONTENT_WRONG = "content-wrong"
NO_CERTIFICATE = "certificate-missing"
NO_SEGMENT = "register-missing"
STORE_DAMAGED = "store-damaged"
#: Contents read at once.
_PAGE = 64
#: Findings of one audit; more say nothing more.
MAX_FINDINGS = 10_000

#: progress(done, of about)
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Report:
    """What an audit found."""

    channel: str
    name: str
    #: How much was checked, by kind.
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    segments: list[RawSegment] = field(default_factory=list)
    #: Blocks of the identity's chain that are well-formed and do not count, by reason.
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings

    def add(self, kind: str, where: str, detail: str) -> None:
        """One more finding."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind=kind, where=where, detail=detail))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "channel": self.channel,
            "name": self.name,
            "sound": self.sound,
            "checked": dict(self.counts),
            "refused": self.refused,
            "findings": [asdict(finding) for finding in self.findings],
        }


class _Progress:
    """Counts what is done, from any thread."""

    def __init__(self, total: int, tell: Progress) -> None:
        self._done = 0
        self._total = total
        self._tell = tell

    def tick(self) -> None:
        self._done += 1
        self._tell(self._done, max(self._total, self._done))


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
        # opens no chain unless it is told to.
        async with open_child(home) as child:
            return await audit_with(child, home, store, state, progress, contents=contents)


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
        #: Certificates that hold, by id, and what they verify with.
        self._trusted: dict[bytes, certificates.Certificate] = {}
        self._keys_of: dict[str, list[str]] = {}
        #: Control keys of those who acted on the identity's chain, by DID and pin.
        self._actors: dict[tuple[str, bytes], list[str]] = {}
        #: (batch id, signature) that was verified.
        self._verified: set[tuple[bytes, bytes]] = set()

    async def run(self, *, contents: bool) -> Report:
        report, channel = self._report, self._store.channel(self._state.did)
        try:
            heads = await channel.heads() if contents else []
        except StoreError as error:
            report.add(STORE_DAMAGED, self._state.did, str(error))
            heads = []
        total = count_blocks(self._home, chain_of(self._state.did)) + sum(h.seq for h in heads)
        listed = self._home / "walytis"
        total += sum(count_blocks(self._home, path.name) for path in listed.glob("Qm*"))
        meter = _Progress(total, self._tell)

        def verify(keys: str, signature: bytes, data: bytes) -> bool:
            return anyio.from_thread.run(self._verify, keys, signature, data)

        raw, reading = await anyio.to_thread.run_sync(self._read_identity, meter, verify)
        self._take(raw)
        report.refused = dict(reading.refused)
        await anyio.to_thread.run_sync(self._read_members, reading, meter, verify)
        await self._read_segments(reading, meter, verify)
        if contents:
            await self._load_certificates()
            anchored = await self._check_anchors()
            for head in heads:
                await self._check_author(channel, head, anchored, meter)
        return report

    async def _verify(self, keys: str, signature: bytes, data: bytes) -> bool:
        args = {"key_group_id": keys, "signature": signature, "data": data}
        return await self._child.call("did.check", args) is True

    def _take(self, raw: RawChain) -> None:
        self._report.counts["blocks"] += len(raw.blocks)
        for finding in raw.findings:
            self._report.add(finding.kind, finding.where, finding.detail)

    # ---------------------------------------------------------------------- chains

    def _read(
        self, did: str, pin: bytes | None, meter: _Progress, verify: Verify
    ) -> tuple[RawChain, Reading]:
        raw = read_chain(self._home, chain_of(did), meter.tick)
        blocks = [
            IdentityBlock(
                ref=block.cid,
                topics=block.topics,
                parents=block.parents,
                content=block.content,
            )
            for block in raw.blocks
        ]
        approved = functools.partial(self._approved, verify)
        return raw, read_identity(did, pin, blocks, verify, approved)

    def _approved(
        self, verify: Verify, did: str, pin: bytes, signature: bytes, body: bytes
    ) -> int:
        """Which of a member's own keys signed an act."""
        try:
            if (did, pin) not in self._actors:
                # Who stands above itself has no say.
                self._actors[did, pin] = []
                idle = _Progress(0, lambda *_: None)
                self._actors[did, pin] = self._read(did, pin or None, idle, verify)[1].keys
            stock = expand(signature)
        except RemoteProtocolError:
            return 0
        keys = list(enumerate(self._actors[did, pin], 1))
        return next((n for n, key in reversed(keys) if verify(key, stock, body)), 0)

    def _read_identity(self, meter: _Progress, verify: Verify) -> tuple[RawChain, Reading]:
        return self._read(self._state.did, self._state.pin, meter, verify)

    def _read_members(self, reading: Reading, meter: _Progress, verify: Verify) -> None:
        """The chains of all who stand under the identity: whose keys certify devices."""
        found: dict[tuple[str, bytes], Reading] = {}

        def members(did: str, pin: bytes) -> Mapping[str, State]:
            if did == self._state.did:
                return reading.members
            if (did, pin) not in found:
                try:
                    raw, own = self._read(did, pin or None, meter, verify)
                except RemoteProtocolError:
                    # What somebody called a member is no DID.
                    return {}
                self._take(raw)
                found[did, pin] = own
            return found[did, pin].members

        for did, pin in flatten(self._state.did, members).pins.items():
            keys = found[did, pin].keys if (did, pin) in found else []
            if keys and (not pin or pin_of(keys[0]) == pin):
                self._keys_of[did] = list(keys)

    async def _read_segments(self, reading: Reading, meter: _Progress, verify: Verify) -> None:
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
            control_keys=list(reading.keys),
            verify=verify,
            tick=meter.tick,
        )
        self._report.segments = await anyio.to_thread.run_sync(read)
        for segment in self._report.segments:
            self._take(segment.raw)
            self._report.counts["segments"] += 1
            self._report.counts["anchors"] += len(segment.anchors)

    # --------------------------------------------------------------------- batches

    async def _load_certificates(self) -> None:
        for key in await self._store.keys(f"certificate/{self._state.did}/"):
            if value := await self._store.get(key):
                await self._trust(value)
        for segment in self._report.segments:
            for anchor in segment.anchors.values():
                for encoded in anchor.certificates:
                    await self._trust(encoded)

    async def _trust(self, encoded: bytes) -> None:
        try:
            signed = certificates.decode(encoded)
        except RemoteProtocolError as error:
            self._report.add(NO_CERTIFICATE, self._state.did, str(error))
            return
        certificate = signed.certificate
        if certificate.certificate_id in self._trusted:
            return
        self._report.counts["certificates"] += 1
        for keys in reversed(self._keys_of.get(certificate.member, [])):
            args = {
                "key_group_id": keys,
                "signature": signed.signature,
                "data": certificate.body(),
            }
            if await self._child.call("did.check_compact", args) is True:
                self._trusted[certificate.certificate_id] = certificate
                return
        self._report.add(
            NO_CERTIFICATE, certificate.member, "a certificate is not signed by its member"
        )

    async def _check_batch(
        self, body: bytes, signature: bytes | None, where: str
    ) -> Batch | None:
        """A batch whose form and signature hold."""
        try:
            batch = decode_batch(body)
        except RemoteProtocolError as error:
            self._report.add(BATCH_DAMAGED, where, str(error))
            return None
        if batch.channel != self._state.did:
            self._report.add(BATCH_FORGED, where, "of another channel")
            return None
        if signature is None or (batch.batch_id, signature) in self._verified:
            return batch
        certificate = self._trusted.get(batch.certificate_id)
        if certificate is None or certificate.member != batch.author:
            self._report.add(NO_CERTIFICATE, where, f"of a batch of {batch.author}")
            return None
        cipher = plugins.suite(certificate.suite)
        message = signed_message(batch.batch_id)
        try:
            await anyio.to_thread.run_sync(
                cipher.verify, certificate.sign_public, message, signature
            )
        except CipherError:
            self._report.add(BATCH_FORGED, where, f"not signed by {batch.author}")
            return None
        self._verified.add((batch.batch_id, signature))
        return batch

    async def _check_anchors(self) -> dict[str, set[bytes]]:
        """Every anchored batch; the batch ids of each block."""
        anchored: dict[str, set[bytes]] = {}
        firsts: dict[tuple[str, int], bytes] = {}
        for segment in self._report.segments:
            for ref, anchor in segment.anchors.items():
                for body, signature in anchor.batches:
                    where = f"{segment.chain}/{ref}"
                    batch = await self._check_batch(body, signature, where)
                    if batch is None:
                        continue
                    self._report.counts["anchored batches"] += 1
                    anchored.setdefault(ref, set()).add(batch.batch_id)
                    place = batch.author, batch.first_seq
                    if firsts.setdefault(place, batch.batch_id) != batch.batch_id:
                        self._report.add(FORK, where, f"a second batch of {batch.author}")
        return anchored

    # --------------------------------------------------------------------- authors

    async def _check_author(
        self,
        channel: ChannelStore,
        head: Head,
        anchored: dict[str, set[bytes]],
        meter: _Progress,
    ) -> None:
        author = head.author
        seq, before = 1, chain_start(self._state.did, author)
        while seq <= head.seq:
            where = f"{author} #{seq}"
            try:
                page = await channel.batches(author, seq, head.seq)
            except StoreError as error:
                self._report.add(STORE_DAMAGED, where, str(error))
                return
            if not page or page[0].first_seq > seq:
                self._report.add(BATCH_MISSING, where, "no batch holds it")
                if not page:
                    return
                seq = page[0].first_seq
                before = b""
            stored = page[0]
            batch = await self._check_batch(stored.body, stored.signature, where)
            if batch is None:
                return
            self._report.counts["batches"] += 1
            follows = not before or batch.prev == before
            if (batch.author, batch.first_seq) != (author, seq) or not follows:
                self._report.add(CHAIN_BROKEN, where, "it does not follow on what is before")
                return
            self._check_anchor(stored, batch, anchored, where)
            await self._check_contents(channel, batch, meter)
            seq, before = batch.last_seq + 1, batch.record_ids[-1]

    def _check_anchor(
        self,
        stored: StoredBatch,
        batch: Batch,
        anchored: dict[str, set[bytes]],
        where: str,
    ) -> None:
        if stored.batch_id != batch.batch_id:
            self._report.add(BATCH_DAMAGED, where, "kept under another name")
        if stored.anchor is None:
            self._report.counts["batches without anchor"] += 1
        elif stored.anchor not in anchored:
            self._report.add(ANCHOR_FALSE, where, f"no block {stored.anchor} anchors anything")
        elif batch.batch_id not in anchored[stored.anchor]:
            self._report.add(ANCHOR_FALSE, where, f"block {stored.anchor} anchors others")

    async def _check_contents(
        self, channel: ChannelStore, batch: Batch, meter: _Progress
    ) -> None:
        for start in range(0, len(batch.records), _PAGE):
            ids = batch.record_ids[start : start + _PAGE]
            try:
                page = await channel.contents(ids)
            except StoreError:
                # One by one, so that a damaged one hides no other.
                page = [
                    await self._content(channel, record_id, f"{batch.author} #{seq}")
                    for seq, record_id in enumerate(ids, batch.first_seq + start)
                ]
            for offset, content in enumerate(page, start):
                meter.tick()
                record = batch.records[offset]
                self._report.counts["records"] += 1
                if content is None:
                    self._report.counts["contents not held"] += 1
                    continue
                self._report.counts["contents"] += 1
                right = len(content.data) == record.size
                if not right or commit(content.salt, content.data) != record.commitment:
                    where = f"{batch.author} #{batch.first_seq + offset}"
                    self._report.add(CONTENT_WRONG, where, "another content than was signed")

    async def _content(
        self, channel: ChannelStore, record_id: bytes, where: str
    ) -> StoredContent | None:
        try:
            return (await channel.contents([record_id]))[0]
        except StoreError as error:
            self._report.add(CONTENT_DAMAGED, where, str(error))
            return None


__all__ = [
    "BLOCK_MISSING",
    "CHAIN_MISSING",
    "Finding",
    "Report",
    "audit",
    "audit_with",
    "find_channel",
]
