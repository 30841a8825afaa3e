"""Records move along the table of their states, and the documentation shows that table."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings
from hypothesis.stateful import invariant

from tests.reconciler_model import ReconcilerMachine
from walyoff.engine.states import TRANSITIONS, RecordState, diagram, reachable

DESIGN = Path(__file__).parent.parent / "docs" / "design.md"


class StatesMachine(ReconcilerMachine):
    """The model, watching every record."""

    def __init__(self) -> None:
        self.before: dict[bytes, RecordState] = {}
        super().__init__()

    def state_of(self, record_id: bytes) -> RecordState:
        if record_id in self.store.delivered:
            return RecordState.DELIVERED
        if record_id in self.store.held:
            return RecordState.HELD
        return self.reconciler.state(record_id) or RecordState.UNKNOWN

    @invariant()
    def every_record_moves_along_the_table(self) -> None:
        for entries in self.truth.values():
            for entry in entries:
                for record_id in entry.batch.record_ids:
                    before = self.before.get(record_id, RecordState.UNKNOWN)
                    after = self.state_of(record_id)
                    assert reachable(before, after), f"{before} became {after}"
                    self.before[record_id] = after


TestStates = StatesMachine.TestCase
TestStates.settings = settings(max_examples=60, stateful_step_count=40)


def test_no_record_comes_back_from_where_it_is_settled() -> None:
    for state in (RecordState.HELD, RecordState.DELIVERED):
        assert not reachable(state, RecordState.WANTED)
    assert not reachable(RecordState.DELIVERED, RecordState.HELD)
    assert all(reachable(RecordState.UNKNOWN, state) for state in RecordState)
    assert len({(before, after) for before, after, _ in TRANSITIONS}) == len(TRANSITIONS)


def test_the_diagram_in_the_documentation_is_drawn_from_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in DESIGN.read_text()
