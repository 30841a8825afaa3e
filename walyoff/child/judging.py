"""Who may write to which chain: what a block's content must prove before it is admitted.

Decided here: whether a block's content authenticates. Never decided here: whether the block
is well-formed (`blocks`) or fits the chain (`chainfiles`), nor what it means (`reader`, the
engine).

A verdict must not depend on the order in which blocks arrive, or devices would hold different
chains for good. So it depends on the block, on its ancestors and on secrets that members
share, and on nothing else. But for repeats (`copies`): who holds one that others do not is made
equal by the next block that a member builds on it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from walyoff.child.acts import (
    RENEW,
    TOPICS,
    Act,
    Approval,
    IdentityBlock,
    pin_of,
    read_act,
)
from walyoff.child.births import Birth, read_birth
from walyoff.child.blocks import BlockFile, decode_block
from walyoff.child.chainfiles import GENESIS, ChainFiles, content_of, parent_ids
from walyoff.child.copies import Approves, IdentityLook, Late, Look, name_of, promised_next
from walyoff.child.proofs import (
    KEY_SIZE,
    TOPIC_ANCHOR,
    TOPIC_LINK,
    Link,
    UnknownEpochError,
    check_anchor,
    check_proof,
    open_link,
    payload_epoch,
    unwrap,
)
from walyoff.child.reader import (
    BAD_SIGNATURE,
    NOT_PINNED,
)
from walyoff.child.renewals import signed_renewal
from walyoff.epochs import EPOCH_ID_SIZE
from walyoff.errors import LocalProtocolError, RemoteProtocolError

#: Epochs of one channel: one each day for centuries.
MAX_EPOCHS = 65_536
#: Blocks that are fetched although the first of them is signed by keys that are not known
#: here: the renewals that a device has missed, and what was written between them.
MAX_UNPROVEN = 64
#: Blocks by keys that were replaced, of each renewal, unless members build on them: by those
#: who did not know of it yet. A former member can sign any number; each has 16 KB.
MAX_LATE = 512

Verify = Callable[[str, bytes, bytes], bool]


class Judge(Protocol):
    """The rules of one chain. Safe to use from many threads."""

    def plausible(self, topics: tuple[str, ...]) -> bool:
        """Whether a block with such topics can be admitted at all: asked before a fetch."""

    def form(self, block: BlockFile) -> bool:
        """What can be told before the ancestors are known: True if all of it.

        Raises RemoteProtocolError if the block will never be admitted.
        """

    def place(self, files: ChainFiles, block: BlockFile) -> None:
        """Raise RemoteProtocolError unless a block whose ancestors are known counts."""

    def look(self, files: ChainFiles) -> Look | None:
        """To find repeats (see `copies`); None where every block says its place."""


class EpochKeys:
    """The anchor keys of a channel's epochs, as far as the parent has told them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[bytes, bytes] = {}
        #: The epoch that the last keys told began with: for this device's own links.
        self._newest: bytes | None = None

    def __repr__(self) -> str:
        return f"<EpochKeys [{len(self._keys)}]>"

    def add(self, keys: Iterable[tuple[bytes, bytes]]) -> int:
        """Take (epoch id, anchor key), newest last; returns how many were new.

        Raises LocalProtocolError when they have not the right form.
        """
        added = 0
        checked = list(keys)
        for epoch_id, key in checked:
            if not isinstance(epoch_id, bytes) or not isinstance(key, bytes):
                raise LocalProtocolError("epoch ids and keys are bytes")
            if len(epoch_id) != EPOCH_ID_SIZE or len(key) != KEY_SIZE:
                raise LocalProtocolError("an epoch id or key has the wrong size")
        with self._lock:
            for epoch_id, key in checked:
                if epoch_id not in self._keys:
                    if len(self._keys) >= MAX_EPOCHS:
                        raise LocalProtocolError(f"more than {MAX_EPOCHS} epochs")
                    added += 1
                self._keys[epoch_id] = key
                self._newest = epoch_id
        return added

    def get(self, epoch_id: bytes) -> bytes:
        """An epoch's anchor key. Raises UnknownEpochError."""
        key = self._keys.get(epoch_id)
        if key is None:
            raise UnknownEpochError(epoch_id)
        return key

    def newest(self) -> tuple[bytes, bytes] | None:
        """(epoch id, key) of the newest epoch, if there is any."""
        with self._lock:
            return None if self._newest is None else (self._newest, self._keys[self._newest])


class SegmentJudge:
    """A segment: anchors that open under a known epoch, and links that members signed."""

    def __init__(
        self,
        chain: str,
        group: str,
        keys: EpochKeys,
        control_keys: Callable[[], list[str]],
        verify: Verify,
    ) -> None:
        self._chain = chain
        self._group = group
        self._keys = keys
        self._control_keys = control_keys
        self._verify = verify

    def plausible(self, topics: tuple[str, ...]) -> bool:
        """See `Judge.plausible`."""
        return self._chain in topics and (TOPIC_ANCHOR in topics) != (TOPIC_LINK in topics)

    def form(self, block: BlockFile) -> bool:
        """See `Judge.form`; the proof covers the parents, so nothing is left for later."""
        if not self.plausible(block.topics):
            raise RemoteProtocolError("neither anchor nor link", reason="bad-topics")
        payload, proof = unwrap(block.content)
        is_link = TOPIC_LINK in block.topics
        key = self._keys.get(payload_epoch(payload, link=is_link))
        # The cheap check first: what others copied ends here.
        check_proof(payload, proof, key, self._chain, parent_ids(block))
        if is_link:
            self.check_link(open_link(key, payload))
        else:
            check_anchor(key, payload)
        return True

    def place(self, files: ChainFiles, block: BlockFile) -> None:
        """See `Judge.place`."""
        self.form(block)

    def look(self, files: ChainFiles) -> Look | None:
        """See `Judge.look`."""
        return None

    def check_link(self, link: Link) -> None:
        """Raise RemoteProtocolError unless a member named a next segment of this one."""
        if link.group != self._group or link.previous != self._chain:
            raise RemoteProtocolError("link of another place", reason="bad-link")
        if decode_block(link.birth[0]).cid != link.chain:
            raise RemoteProtocolError("link with another chain's birth", reason="bad-link")
        body = link.body()
        if not any(self._verify(key, link.signature, body) for key in self._control_keys()):
            raise RemoteProtocolError("link is not signed", reason=BAD_SIGNATURE)

    def link(self, content: bytes) -> Link:
        """The link in an admitted block. Raises RemoteProtocolError."""
        payload, _ = unwrap(content)
        return open_link(self._keys.get(payload_epoch(payload, link=True)), payload)


class IdentityJudge:
    """An identity's chain: blocks that its control keys signed, as the block's past has them.

    The reader is stricter, as it knows the order of the whole chain: a renewal may be stale,
    a joining a repetition. What passes here cost a signature of the identity's own keys.
    """

    def __init__(
        self,
        group: str,
        pin: bytes,
        verify: Verify,
        approves: Approves = lambda _: False,
        *,
        counting: Callable[[str, bytes], Sequence[str]] = lambda *_: (),
        is_members: Callable[[str, bytes, Approval], bool] = lambda *_: False,
    ) -> None:
        """`counting` says which control keys of a DID and pin count, the newest last.

        Not those that are kept here: whoever wrote a renewal that does not count has its keys.
        `is_members` says whether a present member signed an act by its newest keys.
        """
        self._group = group
        self._pin = pin
        self._verify = verify
        self._approves = approves
        self._lock = threading.Lock()
        #: Valid control key blocks: block name -> the keys it brought in.
        self._introduced: dict[str, str] = {}
        self._replaced: dict[str, str] = {}
        self._looked_at: set[str] = set()
        #: Of the signatures on the chain.
        self._names: set[bytes] = set()
        self._counting = counting
        self._is_members = is_members
        #: Room for late blocks that build on the newest renewal, see `Late`.
        self._above: tuple[str, Iterator[int]] = "", iter(())
        #: The fingerprints of renewal keys that the chain commits to, as far as it is here.
        self._promised: set[bytes] = set()

    def plausible(self, topics: tuple[str, ...]) -> bool:
        """See `Judge.plausible`."""
        return len(TOPICS.intersection(topics)) == 1

    def form(self, block: BlockFile) -> bool:
        """See `Judge.form`."""
        act = self.act(block)
        if _is_first(act) and pin_of(act.new) != self._pin:
            raise RemoteProtocolError("another's first keys", reason=NOT_PINNED)
        with self._lock:
            known = [act.old] if act.kind == RENEW else list(self._introduced.values())
        return any(self._verify(key, act.signature, act.signed) for key in known)

    def place(self, files: ChainFiles, block: BlockFile) -> None:
        """See `Judge.place`."""
        self._learn(files)
        act = self.act(block)
        if _is_first(act):
            if pin_of(act.new) != self._pin:
                raise RemoteProtocolError("another's first keys", reason=NOT_PINNED)
            keys = [act.new]
        else:
            keys = self._keys_before(files, block.parents)
            if act.kind == RENEW:
                keys = [key for key in keys if key == act.old]
        if not any(self._verify(key, act.signature, act.signed) for key in keys):
            raise RemoteProtocolError("block is not signed", reason=BAD_SIGNATURE)
        # Else anybody could write a device's renewal again, with any end.
        signed_renewal(self._group, act, self._verify)

    def look(self, files: ChainFiles, others: Iterable[IdentityJudge] = ()) -> IdentityLook:
        """See `Judge.look`; with the keys that other judges of the chain know, too."""
        self._learn(files)
        judges = [self, *others]
        for judge in others:
            judge._learn(files)
        with self._lock:
            names = frozenset(self._names)
        return IdentityLook(
            self._group,
            files,
            pins={judge._pin for judge in judges},
            names=names,
            keys=dict.fromkeys(k for j in judges for k in list(j._introduced.values())),
            promised=frozenset(self._promised),
            late=self._late_on(files),
            verify=self._verify,
            approves=self._approves,
        )

    def _late_on(self, files: ChainFiles) -> Late | None:
        introduced = list(self._introduced.items())
        named = {key for _, key in introduced}
        counting = self._counting(self._group, self._pin)
        newest = next((key for key in reversed(counting) if key in named), "")
        if not newest or newest == introduced[0][1]:
            # Keys that were never replaced.
            return None
        renewals = [cid for cid, key in introduced if key == newest]
        current = {newest}
        # Parents before children, so each pair is looked at after the one before.
        for cid, new in introduced:
            if self._replaced.get(cid) in current:
                current.add(new)
        with self._lock:
            if self._above[0] != newest:
                self._above = newest, iter(range(MAX_LATE))
            above = self._above[1]
        beside = MAX_LATE - files.beside(renewals)
        is_members = functools.partial(self._is_members, self._group, self._pin)
        return Late(current, renewals, beside, above, is_members)

    def act(self, block: BlockFile) -> Act:
        """What a block claims. Raises RemoteProtocolError."""
        return self._act(block.cid, block.topics, block.parents, block.content)

    def _act(
        self, cid: str, topics: tuple[str, ...], parents: Sequence[str], content: bytes
    ) -> Act:
        block = IdentityBlock(ref=cid, topics=topics, parents=tuple(parents), content=content)
        act = read_act(self._group, block)
        if act is None:
            raise RemoteProtocolError("not an identity block", reason="not-identity")
        return act

    def _learn(self, files: ChainFiles) -> None:
        """Take note of blocks that were admitted meanwhile."""
        with files.lock, self._lock:
            new = [e for e in files.entries() if e.cid not in self._looked_at]
            # Parents before children: a renewal is signed by the keys before it.
            for entry in sorted(new, key=lambda e: e.height):
                self._looked_at.add(entry.cid)
                if entry.cid == files.chain:
                    self._learn_birth(read_birth(content_of(files.read(entry.cid))))
                if not self.plausible(entry.topics):
                    continue
                try:
                    content = content_of(files.read(entry.cid))
                    act = self._act(entry.cid, entry.topics, entry.parents, content)
                except RemoteProtocolError:
                    continue
                self._names.add(name_of(act))
                if act.kind != RENEW:
                    continue
                if _is_first(act):
                    fits = pin_of(act.new) == self._pin
                else:
                    fits = act.old in self._before(files, entry.parents)
                if fits and self._verify(act.old, act.signature, act.signed):
                    self._introduced[entry.cid] = act.new
                    self._replaced[entry.cid] = act.old
                    following = promised_next(self._group, act, self._promised, self._verify)
                    self._promised.update([following] if following else [])

    def _learn_birth(self, birth: Birth | None) -> None:
        if birth is not None:
            # Other first keys count for nobody, whatever members say of the DID.
            self._pin = birth.pin
            self._promised.add(birth.next)

    def _keys_before(self, files: ChainFiles, parents: Iterable[str]) -> list[str]:
        with files.lock, self._lock:
            return self._before(files, parents)

    def _before(self, files: ChainFiles, parents: Iterable[str]) -> list[str]:
        past = files.in_past(parents, self._introduced)
        return [self._introduced[cid] for cid in past]


def _is_first(act: Act) -> bool:
    return act.kind == RENEW and act.old == act.new


def refuse_genesis(block: BlockFile) -> None:
    """Raise RemoteProtocolError for a block of a chain's birth: it comes with the chain."""
    if GENESIS in block.topics:
        raise RemoteProtocolError("genesis block after the birth", reason="genesis")


Judges = Mapping[str, Judge]
