"""Random identities, and what members, former members and their puppets write into them.

The history is honest: who acts may do so as the chain stands, and writes on all tips under the
newest keys. What comes then knows no rules: any act, any parents, any keys.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.test_founding import OTHER, REGISTER, birth
from tests.test_reader import K0
from tests.test_reader_rules import TOPICS, A, Group
from walyoff.child.outcome import MemberState

DIDS = [f"did:{letter}" for letter in "abcdef"]
#: Whom nobody ever let in.
PUPPETS = ["did:x", "did:y"]
_ACTS = ["join", "join", "renew", "renew", "admin", "segment", "rules"]


class History:
    """An identity, and who was removed from it, by whom and when."""

    def __init__(self, rng: random.Random, rule: str) -> None:
        self.rule = rule
        self.group = Group(rule, rng.randrange(1 << 30), birth(rule, register=REGISTER))
        self.group.own(A, "segment", REGISTER)
        #: By who was removed: who did it, and how many blocks there were.
        self.removals: dict[str, list[tuple[str, int]]] = {}
        #: Who has let whom in, ever.
        self.invited: dict[str, set[str]] = {}
        self._newer: set[str] = set()
        self._rng = rng
        self._keys = [K0]
        for _ in range(rng.randrange(6, 13)):
            self._step()

    def current(self) -> dict[str, MemberState]:
        return {m.did: m for m in self.group.read().members.values() if m.current}

    def out(self) -> list[str]:
        return [did for did in self.removals if did not in self.current()]

    def with_newer_keys(self) -> list[str]:
        """Members who have shown newer keys of their own."""
        shown = self.group.read().shown
        return [did for did in self.current() if shown.get(did, 1) > 1]

    def _step(self) -> None:
        rng, current = self._rng, self.current()
        entitled = [d for d, m in current.items() if self.rule == "any" or m.admin]
        anybody = rng.choice(list(current))
        what = rng.random()
        if what < 0.65 and not entitled:
            return
        if what < 0.45:
            by = rng.choice(entitled)
            subject = rng.choice(DIDS)
            if subject not in current:
                self._do(by, "join", subject)
                self.invited.setdefault(by, set()).add(subject)
        elif what < 0.65:
            by, subject = rng.choice(entitled), anybody
            if len(current) > 2 and subject != by:
                self._remove(by, subject)
                if rng.random() < 0.8:
                    self._renew(by)
        elif what < 0.75:
            self._renew(anybody)
        elif what < 0.8:
            if self.rule == "admins" and entitled:
                by, key = rng.choice(entitled), self._keys[-1]
                self.group.own(by, "admin", anybody, key=key, signer=self._signer(by))
        elif what < 0.95:
            # Its next act shows that its own keys are newer.
            self._newer.add(anybody)
            self._renew(anybody)
        elif len(current) > 2:
            self._remove(anybody, anybody)
            self._renew(rng.choice([did for did in current if did != anybody]))

    def _signer(self, did: str) -> str:
        return f"{did} 2" if did in self._newer else did

    def _do(self, by: str, act: str, subject: str) -> None:
        self.group.do(by, act, subject, key=self._keys[-1], signer=self._signer(by))

    def _remove(self, by: str, subject: str) -> None:
        self.removals.setdefault(subject, []).append((by, len(self.group.blocks)))
        self._do(by, "leave", subject)

    def _renew(self, by: str) -> None:
        new = f"|key r{len(self._keys)}"
        self.group.key(self._keys[-1], new, by=by, signer=self._signer(by))
        self._keys.append(new)

    # -------------------------------------------------------------------- attackers

    def attack(
        self, by: Sequence[str], *, leavings: bool = True, old: bool = False
    ) -> list[tuple[str, str, str]]:
        """Some acts of these and their puppets: (who, what, about whom)."""
        rng, group, honest = self._rng, self.group, len(self.group.blocks)
        written = []
        for _ in range(rng.randrange(1, 8)):
            who = rng.choice([*by, *by, *by, *PUPPETS])
            act = rng.choice([*_ACTS, "leave", "leave", "leave"] if leavings else _ACTS)
            subject = rng.choice([*DIDS, *PUPPETS, who])
            removals = self.removals.get(who)
            if act == "leave" and removals and rng.random() < 0.6:
                subject = rng.choice(removals)[0]
            where = rng.random()
            if where < 0.3 and removals:
                # Just before it was removed.
                place = rng.choice(removals)[1] - rng.randrange(1, 4)
                parents = [group.blocks[max(1, place)].ref]
            elif where < 0.5:
                parents = [group.blocks[rng.randrange(honest)].ref]
            elif where < 0.75:
                parents = [group.blocks[rng.randrange(honest - 1, len(group.blocks))].ref]
            elif where < 0.9:
                parents = list({rng.choice(group.blocks).ref for _ in range(2)})
            else:
                parents = group.tips()
            keys = [*self._keys, "|key e1", "|key e2"]
            key = K0 if act == "leave" else rng.choice(keys[:3] + keys)
            signer = who if old or rng.random() < 0.7 else f"{who} 2"
            if act == "renew":
                replaced, new = (
                    rng.choice(self._keys),
                    rng.choice([*self._keys, *keys[-2:]][1:]),
                )
                group.key(replaced, new, by=who, parents=parents, signer=signer)
            elif act in TOPICS:
                group.do(who, act, subject, key=key, parents=parents, signer=signer)
            else:
                rule = rng.choice(["any", "admins"]) if act == "rules" else ""
                about = OTHER if act == "segment" else "" if act == "rules" else subject
                group.own(who, act, about, rule=rule, key=key, parents=parents, signer=signer)
            written.append((who, act, subject))
        return written
