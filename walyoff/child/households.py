"""The families of the identities that are open here: whose chains are held, guarded, handed on.

Decided here: which chains belong to an identity besides its own, who may become a member
without closing a circle, and whose news concern which identity. Who is a device of it, and
through whom, is decided in `family`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from walyoff.child.births import Birth
from walyoff.child.blocks import BlockFile
from walyoff.child.chainfiles import ChainFiles
from walyoff.child.chains import Chains
from walyoff.child.copies import Approves, Look
from walyoff.child.family import MAX_DEPTH, Family, Kin, State, flatten
from walyoff.child.judging import IdentityJudge, Verify
from walyoff.child.reader import SECOND_FIRST_KEY, Reading, chain_of, pin_of
from walyoff.errors import LocalProtocolError, RemoteProtocolError

#: Chains of a family that one hand-over may bring.
MAX_CHAINS = 4_096
#: Pins of one DID that identities here may name.
MAX_PINS = 8

#: read(DID, pin): what a chain that is held here says; None takes its first keys as they are.
ReadChain = Callable[[str, bytes | None], Reading]


class KinJudge:
    """A chain that is held for others' sake: blocks that are signed under one of its pins.

    There are several when identities that do not know each other disagree about the first
    keys of a DID; each believes its own, so none may keep out what another one needs.
    """

    def __init__(self) -> None:
        self._judges: dict[bytes, IdentityJudge] = {}

    def add(self, pin: bytes, judge: IdentityJudge) -> None:
        """One more pin, unless it is known or there are many."""
        if len(self._judges) < MAX_PINS:
            self._judges.setdefault(pin, judge)

    def plausible(self, topics: tuple[str, ...]) -> bool:
        """See `walyoff.child.judging.Judge`."""
        return any(judge.plausible(topics) for judge in self._judges.values())

    def form(self, block: BlockFile) -> bool:
        """See `walyoff.child.judging.Judge`."""
        return self._any(lambda judge: judge.form(block))

    def place(self, files: ChainFiles, block: BlockFile) -> None:
        """See `walyoff.child.judging.Judge`."""

        def placed(judge: IdentityJudge) -> bool:
            judge.place(files, block)
            return True

        self._any(placed)

    def look(self, files: ChainFiles) -> Look | None:
        """See `walyoff.child.judging.Judge`."""
        judges = list(self._judges.values())
        return judges[0].look(files, judges[1:]) if judges else None

    def _any(self, ask: Callable[[IdentityJudge], bool]) -> bool:
        refusal: RemoteProtocolError | None = None
        answers = []
        for judge in list(self._judges.values()):
            try:
                answers.append(ask(judge))
            except RemoteProtocolError as error:
                refusal = error
        if not answers and refusal is not None:
            raise refusal
        return any(answers)


class Households:
    """The families of open identities. Safe to use from many threads."""

    def __init__(
        self,
        chains: Chains,
        read: ReadChain,
        birth: Callable[[str], Birth | None],
        verify: Verify,
        pin_of_open: Callable[[str], bytes],
        *,
        approves: Approves = lambda _: False,
    ) -> None:
        self._chains = chains
        self._read = read
        self._birth = birth
        self._verify = verify
        self._pin_of_open = pin_of_open
        self._approves = approves
        self._lock = threading.Lock()
        #: Open identities: DID -> the DIDs of its family when it was looked at last.
        self._kin: dict[str, frozenset[str]] = {}

    # ------------------------------------------------------------------ reading

    def family(self, did: str, pin: bytes) -> Family:
        """The family of an identity, as the chains that are held here say."""

        def members(kin: str, kin_pin: bytes) -> Mapping[str, State] | None:
            return self._members(kin, pin if kin == did else kin_pin)

        return flatten(did, members, self._committed)

    def look(self, did: str, pin: bytes) -> Family:
        """The same of an identity that is open here; from now on its chains are guarded."""
        found = self.family(did, pin)
        for kin, kin_pin in found.pins.items():
            if kin_pin and self.holds(kin):
                self._guard(chain_of(kin), kin, kin_pin)
        with self._lock:
            self._kin[did] = frozenset((did, *found.pins))
        return found

    def concerned(self, did: str) -> list[str]:
        """The open identities to whose families a DID belongs, itself included."""
        with self._lock:
            return [group for group, kin in self._kin.items() if did in kin]

    def device(self, group: str, pin: bytes, did: str) -> Kin | None:
        """A device of a family, past or present."""
        return next((k for k in self.family(group, pin).devices if k.did == did), None)

    def pin(self, group: str, pin: bytes, did: str) -> bytes | None:
        """The pin of a DID of a family; None if it is none, empty if its keys are in doubt."""
        found = self.family(group, pin).pins.get(did)
        return found if found is None else found or self.chain_pin(did) or b""

    def holds(self, did: str) -> bool:
        """Whether a DID's chain is held here. What is no DID is not."""
        try:
            return self._chains.has(chain_of(did))
        except RemoteProtocolError:
            return False

    def chain_pin(self, did: str) -> bytes | None:
        """The pin of a stock member: its chain's first keys, unless they are in doubt."""
        if not self.holds(did):
            return None
        reading = self._read(did, None)
        if not reading.keys or reading.refused[SECOND_FIRST_KEY]:
            return None
        return pin_of(reading.keys[0])

    def _committed(self, did: str) -> bytes | None:
        birth = self._birth(did) if self.holds(did) else None
        return None if birth is None else birth.pin

    def _members(self, did: str, pin: bytes) -> Mapping[str, State] | None:
        known = pin or self.chain_pin(did)
        if not known or not self.holds(did):
            return None
        return self._read(did, known).members

    def _guard(self, chain: str, did: str, pin: bytes) -> None:
        judge = self._chains.judge_of(chain)
        if judge is None:
            judge = KinJudge()
            self._chains.guard(chain, judge)
        # An identity that is open here has a judge of its own.
        if isinstance(judge, KinJudge):
            judge.add(pin, IdentityJudge(did, pin, self._verify, self._approves))

    # ------------------------------------------------------------------ joining

    def check_new(self, did: str, member: str, pin: bytes) -> None:
        """Raise LocalProtocolError if a DID cannot become a member without breaking a bound."""
        found = self.family(member, pin)
        height = found.height if found.devices or found.identities else 0
        for group in self.concerned(did):
            if group == member or group in found.pins or did == member or did in found.pins:
                raise LocalProtocolError(
                    f"{member} cannot be a member: {group} stands under it already, and "
                    "identities must not control themselves in a circle"
                )
            above = self._depth_of(group, did)
            if above + 1 + height > MAX_DEPTH:
                raise LocalProtocolError(
                    f"{member} cannot be a member: its devices would stand "
                    f"{above + 1 + height} levels under {group}, and at most {MAX_DEPTH} count"
                )

    def _depth_of(self, group: str, did: str) -> int:
        """Links from an open identity down to another one below it, or to itself."""
        if group == did:
            return 0
        devices = self.family(group, self._pin_of_open(group)).devices
        paths = [k.path for k in devices if did in k.path]
        return max((len(path) - path.index(did) for path in paths), default=1)

    # ---------------------------------------------------------------- hand-over

    def export(self, dids: Iterable[str]) -> dict[str, list[bytes]]:
        """The chains of DIDs, as far as they are held here."""
        return {did: self._chains.export(chain_of(did))[0] for did in dids if self.holds(did)}

    def take(self, group: str, pin: bytes, files: Mapping[str, Sequence[bytes]]) -> Family:
        """Keep the chains that belong to a family, from its top down; the others are dropped.

        Raises RemoteProtocolError when there are too many.
        """
        if len(files) > MAX_CHAINS:
            raise RemoteProtocolError("hand-over of too many chains", reason="too-large")
        left = {did: given for did, given in files.items() if given and did != group}
        found = self.family(group, pin)
        # Who was invited by whom is told by the chains of those who invited.
        while now := [did for did in found.pins if did in left]:
            for did in now:
                self._take_one(did, found.pins[did], left.pop(did))
            found = self.family(group, pin)
        return found

    def take_newer(self, did: str, pin: bytes, files: Mapping[str, Sequence[bytes]]) -> None:
        """Keep what others hold of the chains of a family, as far as it counts there."""
        if not files:
            return
        for kin, kin_pin in {did: pin, **self.family(did, pin).pins}.items():
            if kin in files and kin_pin and self.holds(kin):
                self._take_one(kin, kin_pin, files[kin])

    def newer(self, known: Mapping[str, Sequence[str]], limit: int) -> dict[str, list[bytes]]:
        """Block files beyond known blocks, of chains of the identities that are open here.

        About so many bytes at most.
        """
        found: dict[str, list[bytes]] = {}
        for did, refs in known.items():
            if limit > 0 and refs and self.concerned(did) and self.holds(did):
                files, _ = self._chains.export(chain_of(did), list(refs), limit)
                limit -= sum(map(len, files))
                if files:
                    found[did] = files
        return found

    def _take_one(self, did: str, pin: bytes, files: Sequence[bytes]) -> None:
        chain = chain_of(did)
        if pin:
            self._guard(chain, did, pin)
        self._chains.import_files(chain, files)


def snapshot(found: Family) -> list[Any]:
    """What an identity's membership is compared by, and told as."""
    return [
        [[k.did, k.pin, k.current, k.joined_at, k.path, k.links] for k in found.devices],
        [[e.link, e.joined_at, e.identity] for e in found.ended],
        list(found.pins),
        dict(Counter({f"family-{reason}": n for reason, n in found.refused.items()})),
    ]
