"""The shipped suite for stores notices stores that are wrong in one thing each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from walyoff.abc import Store
from walyoff.errors import StoreError
from walyoff.stores import SqliteChannelStore, open_store
from walyoff.testing.stores import StoreConformance


class Reversing(SqliteChannelStore):
    """Delivers in another order than it was told."""

    async def write(self, **arguments: Any) -> int:
        arguments["deliver"] = list(arguments.get("deliver", ()))[::-1]
        return await super().write(**arguments)


class Tearing(SqliteChannelStore):
    """Writes batches and the rest in two transactions."""

    async def write(self, **arguments: Any) -> int:
        await super().write(batches=arguments.pop("batches", ()))
        return await super().write(**arguments)


class Lenient(SqliteChannelStore):
    """Takes what it cannot write for written."""

    async def write(self, **arguments: Any) -> int:
        try:
            return await super().write(**arguments)
        except StoreError:
            return await self.top()


class Forgetful(SqliteChannelStore):
    """Does not keep signatures that come later."""

    async def write(self, **arguments: Any) -> int:
        arguments.pop("signatures", None)
        return await super().write(**arguments)


class Sliding(SqliteChannelStore):
    """Lets a cursor move back."""

    async def get_cursor(self, name: str) -> int:
        return min(await super().get_cursor(name), 3)


class Mixing(SqliteChannelStore):
    """Has one log for all channels."""

    def __init__(self, store: Any, _channel_id: str) -> None:
        super().__init__(store, "the only one")


class Short(SqliteChannelStore):
    """Leaves out what it does not hold."""

    async def contents(self, record_ids: Any) -> Any:
        return [content for content in await super().contents(record_ids) if content]


CASES: list[tuple[type[SqliteChannelStore], str]] = [
    (Reversing, "test_positions_follow_the_given_order"),
    (Tearing, "test_a_refused_write_leaves_nothing"),
    (Lenient, "test_heads_advance_with_contiguous_batches_only"),
    (Lenient, "test_a_failing_write_does_not_spoil_its_neighbours"),
    (Lenient, "test_a_record_belongs_to_one_batch"),
    (Forgetful, "test_first_content_signature_and_anchor_stay"),
    (Sliding, "test_cursors_never_move_back"),
    (Mixing, "test_channels_are_apart"),
    (Short, "test_contents_come_in_the_order_asked_for"),
]


@pytest.mark.parametrize(("broken", "check"), CASES)
def test_a_wrong_store_fails(
    broken: type[SqliteChannelStore],
    check: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Suite(StoreConformance):
        def open_store(self, home: Path) -> AbstractAsyncContextManager[Store]:
            @asynccontextmanager
            async def opened() -> AsyncIterator[Store]:
                async with open_store(home) as store:
                    monkeypatch.setattr(store, "channel", lambda name: broken(store, name))
                    yield store

            return opened()

    run: Callable[[Path], Awaitable[None]] = getattr(Suite(), check)
    outcome: BaseException | None = None
    try:
        anyio.run(run, tmp_path)
    except (Exception, pytest.fail.Exception) as error:
        outcome = error
    # Failed by the check itself, and not by a mistake in the broken store.
    assert isinstance(outcome, AssertionError | StoreError | pytest.fail.Exception), outcome
