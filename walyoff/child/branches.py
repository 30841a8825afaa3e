"""Control keys that some act was signed by, though their renewal does not count.

Decided here: under which of them acts count. A renewal can turn out void after others have
gone on from it: its author is put out by a leaving with older parents, or another renewal of
the same keys comes first in the common order. Whoever wrote under the keys that it brought in
could not know, and counts by its own signature. So keys are good where nothing is newer in
the act's own past but void renewals, one after the other, from the newest keys that count.

Nobody gains by it: who writes such an act has to be a member, and with older parents it could
have used the keys before.

Pure.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from walyoff.child.acts import RENEW
from walyoff.child.placing import Node


class Branches:
    """All renewals of a chain, whether they count or not."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._renewals: dict[str, list[Node]] = {}
        for node in nodes:
            if node.act.kind == RENEW and node.act.old != node.act.new:
                self._renewals.setdefault(node.act.new, []).append(node)

    def follow(self, key: str, newest: str, counting: Container[str], past: int) -> bool:
        """Whether keys follow on the newest that count, by void renewals in a past."""
        seen, todo = {key}, [key]
        while todo:
            key = todo.pop()
            if key in counting:
                continue
            for renewal in self._renewals.get(key, ()):
                old = renewal.act.old
                if not renewal.bit & past or old in seen:
                    continue
                if old == newest:
                    return True
                seen.add(old)
                todo.append(old)
        return False

    def others(self, counting: Iterable[str]) -> list[str]:
        """The keys whose renewals do not count, in the common order."""
        known = set(counting)
        return [key for key in self._renewals if key not in known]
