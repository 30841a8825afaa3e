"""What was sent for a time is taken from nobody when that time is over.

A peer may hold it still: its clock is behind, or it does not care.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import anyio

from tests.sim.virtual import Group, group, in_virtual_time
from tests.test_sim_forgetting import holds, until
from walyoff.abc import StoredContent
from walyoff.engine.facts import Reason
from walyoff.testing.virtual import SimRuntime

SECRET = b"for half a minute"
LIFETIME = timedelta(seconds=30)


def behind(g: Group, device: int) -> None:
    """From now on a device's clock stands an hour before the others'."""
    runtime = g.channels[device].engine.runtime
    assert isinstance(runtime, SimRuntime)
    runtime._skew_ms = -3_600_000


@contextmanager
def written(g: Group, device: int) -> Iterator[list[bytes]]:
    """The contents that a device gives to its store, also those that it destroys at once."""
    store = g.channels[device].engine.store
    write = store.write
    found: list[bytes] = []

    async def note(
        *, batches: Sequence[Any] = (), contents: Sequence[Any] = (), **rest: Any
    ) -> int:
        pairs = [c for b in batches for c in b.contents] + [c for _, c in contents]
        found.extend(c.data for c in pairs if c is not None)
        return await write(batches=batches, contents=contents, **rest)

    with mock.patch.object(store, "write", note):
        yield found


@in_virtual_time
async def test_contents_that_come_with_their_batch_are_not_taken_after_their_time() -> None:
    async with group(2) as g:
        a, b = g.channels
        g.world.network.partition("a", "b")
        late = (await b.send(SECRET, forget_after=LIFETIME)).id
        behind(g, 1)
        stays = (await b.send(b"stays")).id
        await anyio.sleep(LIFETIME.total_seconds() + 1)
        with written(g, 0) as found:
            g.world.network.repair()
            await until(lambda: holds(g, "a", stays))
            await anyio.sleep(5)
        assert holds(g, "b", late)
        assert found == [b"stays"]
        (shown,) = await a.find(late.hex())
        assert shown.content is None
        assert shown.forgotten is not None
        assert shown.forgotten.expired
        # Nobody is blamed for a clock.
        assert a.reports() == []
        assert not {Reason.WRONG_CONTENT, Reason.GONE} & set(a.status()["faults"])


@in_virtual_time
async def test_contents_that_were_asked_for_are_not_taken_after_their_time() -> None:
    """Also if what destroys them has not run yet."""
    async with group(2) as g:
        a, b = g.channels
        given = b.engine.contents
        kept: list[bytes] = []

        async def nothing(record_ids: Sequence[bytes]) -> list[StoredContent | None]:
            kept.extend(record_ids)
            return [None] * len(record_ids)

        async def later() -> list[bytes]:
            await anyio.sleep(3600)
            return []

        with (
            mock.patch.object(b.engine, "contents", nothing),
            mock.patch.object(a.engine.forgetting, "_expired", later),
            written(g, 0) as found,
        ):
            # Larger than what goes with a batch, so it is asked for.
            large = (await b.send(SECRET * 10_000, forget_after=LIFETIME)).id
            behind(g, 1)
            await until(lambda: large in kept)
            await anyio.sleep(LIFETIME.total_seconds() + 1)
            assert large in a.engine.reconciler.open
            (content,) = await given([large])
            assert content is not None
            a.engine.inbox.contents([(large, content.salt, content.data)], b.me)
            await anyio.sleep(1)
        assert found == []
        assert not holds(g, "a", large)
        assert a.reports() == []
