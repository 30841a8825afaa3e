"""SqliteStore keeps the contract of a store, on both event loops."""

from __future__ import annotations

import tempfile
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.waiting import HANGS_AFTER
from walyoff.abc import ChannelStore, Store, StoredContent
from walyoff.errors import StoreError
from walyoff.stores import open_store
from walyoff.testing.store_base import ALICE, CHANNEL, make_batch, make_content
from walyoff.testing.stores import StoreConformance


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestSqliteStore(StoreConformance):
    def open_store(self, home: Path) -> AbstractAsyncContextManager[Store]:
        return open_store(home)


@pytest.mark.anyio
async def test_it_is_a_store_for_the_type_checker(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home") as store:
        as_store: Store = store
        as_channel: ChannelStore = as_store.channel(CHANNEL)
        assert await as_channel.top() == 0


@pytest.mark.anyio
async def test_concurrent_writes_share_commits(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home") as store:
        async with anyio.create_task_group() as group:
            for number in range(200):
                value: dict[str, bytes | None] = {f"key{number}": b"value"}
                group.start_soon(store.put, value)
        counts = store.statistics()
        assert counts.writes == 200
        assert counts.commits < 100
        assert len(await store.keys("key")) == 200


@pytest.mark.anyio
async def test_an_erased_channel_leaves_nothing_and_positions_go_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with open_store(home) as store:
        other = store.channel("other")
        kept = make_batch(ALICE, 1, [make_content()])
        await other.write(batches=[kept], deliver=kept.record_ids)
        channel = store.channel(CHANNEL)
        batch = make_batch(ALICE, 1, [make_content(), make_content(bytes(200_000))])
        assert await channel.write(batches=[batch], deliver=batch.record_ids) == 2
        await channel.set_cursor("app", 2)
        assert len([path for path in home.rglob("chunks/*/*") if path.is_file()]) == 1
        await store.erase(CHANNEL)
        assert await channel.heads() == []
        assert await channel.log(after=0, limit=9) == []
        assert await channel.batch(batch.batch_id) is None
        assert await channel.missing(9) == []
        assert [path for path in home.rglob("chunks/*/*") if path.is_file()] == []
        # It comes again, and a reader that had read it all sees it as new.
        await channel.write(batches=[batch], deliver=batch.record_ids)
        entries = await channel.log(after=await channel.get_cursor("app"), limit=9)
        assert [entry.record_id for entry in entries] == list(batch.record_ids)
        assert [entry.record_id for entry in await other.log(after=0, limit=9)] == list(
            kept.record_ids
        )
        await store.erase("never there")


@pytest.mark.anyio
async def test_reading_does_not_wait_for_a_commit(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home") as store:
        await store.put({"key": b"value"})
        gate = threading.Event()
        from walyoff.stores.threads import Job

        async with anyio.create_task_group() as group:
            group.start_soon(store.write, Job(lambda _: gate.wait(HANGS_AFTER)))
            later: dict[str, bytes | None] = {"key": b"later"}
            group.start_soon(store.put, later)
            await anyio.sleep(0.05)
            with anyio.fail_after(HANGS_AFTER):
                assert await store.get("key") == b"value"
            gate.set()
        assert await store.get("key") == b"later"


@pytest.mark.anyio
async def test_a_write_that_was_queued_is_done_though_its_caller_left(tmp_path: Path) -> None:
    gate = threading.Event()
    from walyoff.stores.threads import Job

    async with open_store(tmp_path / "home") as store, anyio.create_task_group() as group:
        group.start_soon(store.write, Job(lambda _: gate.wait(HANGS_AFTER)))
        await anyio.sleep(0.05)
        with anyio.move_on_after(0.05) as scope:
            await store.put({"key": b"value"})
        assert scope.cancelled_caught
        gate.set()
    async with open_store(tmp_path / "home") as store:
        assert await store.get("key") == b"value"


@pytest.mark.anyio
async def test_a_scope_cancelled_before_the_call_writes_nothing(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home") as store:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.put({"key": b"value"})
        await store.put({"other": b"value"})
        assert await store.keys("") == ["other"]


@pytest.mark.anyio
async def test_leaving_while_cancelled_still_releases_the_home(tmp_path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with open_store(tmp_path / "home") as store:
            await store.put({"key": b"value"})
            scope.cancel()
            await anyio.sleep(1)
    async with open_store(tmp_path / "home") as store:
        assert await store.get("key") == b"value"


def test_an_event_loop_that_ends_with_calls_on_their_way_leaves_no_thread(
    tmp_path: Path, anyio_backend: str
) -> None:
    async def main() -> None:
        async with open_store(tmp_path / "home") as store:
            for _ in range(50):
                with anyio.move_on_after(0):
                    await store.put({"key": bytes(1000)})

    anyio.run(main, backend=anyio_backend)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("walyoff")]


@pytest.mark.anyio
async def test_repr_shows_the_path_and_counts_and_no_secret(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with open_store(home) as store:
        await store.put({"secret-key": b"secret-value"})
        channel = store.channel(CHANNEL)
        await channel.top()
        text = repr(store)
        assert text == f"<SqliteStore {home} [1 writes in 1 commits, 1 reads]>"
        assert CHANNEL not in repr(channel)


contents = st.builds(
    StoredContent,
    salt=st.binary(max_size=255),
    data=st.binary(max_size=200)
    | st.builds(lambda n, b: bytes([b]) * n, st.integers(65_000, 70_000), st.integers(0, 255)),
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    author=names,
    channel_id=names,
    held=st.lists(contents | st.none(), min_size=1, max_size=12),
    values=st.dictionaries(names, st.binary(max_size=300), max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_what_is_written_comes_back(
    author: str,
    channel_id: str,
    held: list[StoredContent | None],
    values: dict[str, bytes | None],
    order: object,
) -> None:
    import random

    assert isinstance(order, random.Random)
    batch = make_batch(author, 1, held)
    delivery = list(batch.record_ids)
    order.shuffle(delivery)

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with open_store(Path(folder)) as store:
                channel = store.channel(channel_id)
                await channel.write(batches=[batch], deliver=delivery)
                await store.put(values)
            async with open_store(Path(folder)) as store:
                channel = store.channel(channel_id)
                assert await channel.contents(batch.record_ids) == held
                entries = await channel.log(after=0, limit=100)
                assert [entry.record_id for entry in entries] == delivery
                assert {entry.author for entry in entries} == {author}
                assert await store.keys("") == sorted(values)
                for key, value in values.items():
                    assert await store.get(key) == value

    anyio.run(main)


@pytest.mark.anyio
async def test_content_of_one_record_is_not_accepted_for_another(tmp_path: Path) -> None:
    batch = make_batch(ALICE, 1, [make_content(b"one"), make_content(b"two")])
    from walyoff.stores.threads import Job

    async with open_store(tmp_path / "home") as store:
        channel = store.channel(CHANNEL)
        await channel.write(batches=[batch])
        await store.write(
            Job(
                lambda connection: (
                    connection.execute(
                        "UPDATE contents SET (key, data) = (SELECT key, data FROM contents"
                        " WHERE record = 1) WHERE record = 2"
                    ).rowcount
                )
            )
        )
        assert await channel.contents(batch.record_ids[:1]) == [batch.contents[0]]
        with pytest.raises(StoreError, match=batch.record_ids[1][:8].hex()):
            await channel.contents(batch.record_ids)
