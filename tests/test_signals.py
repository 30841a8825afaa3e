"""News and work: nobody sleeps through them, and what was told before wakes nobody later."""

from __future__ import annotations

import anyio
import pytest

from tests.waiting import HANGS_AFTER
from walyoff.signals import News, Work

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_news_wake_all_who_wait_and_nobody_later() -> None:
    news, woken = News(), []

    async def wait(name: str) -> None:
        await news.wait()
        woken.append(name)

    news.tell()
    async with anyio.create_task_group() as tasks:
        for name in "ab":
            tasks.start_soon(wait, name)
        await anyio.wait_all_tasks_blocked()
        assert woken == [], "what was told before is no news"
        news.tell()
        tasks.start_soon(wait, "c")
        await anyio.wait_all_tasks_blocked()
        assert sorted(woken) == ["a", "b"]
        news.tell()
    assert sorted(woken) == ["a", "b", "c"]


async def test_work_is_not_missed_and_taken_once() -> None:
    work = Work()
    work.set()
    work.set()
    with anyio.fail_after(HANGS_AFTER):
        await work.wait()
    with anyio.move_on_after(0.01) as scope:
        await work.wait()
    assert scope.cancelled_caught, "it was taken"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work.wait)
        await anyio.wait_all_tasks_blocked()
        work.set()
    with anyio.CancelScope() as cancelled:
        cancelled.cancel()
        await work.wait()
    work.set()
    with anyio.fail_after(HANGS_AFTER):
        await work.wait()
