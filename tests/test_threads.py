"""Short work in threads: values, errors, cancellation, bounds, and the end of a loop."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from tests.waiting import HANGS_AFTER
from walyoff import threads
from walyoff.threads import MAX_THREADS, Attempts, run_in_thread

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_values_and_errors_come_back() -> None:
    assert await run_in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(divmod, 7, 0)
    assert await run_in_thread(threading.get_ident) != threading.get_ident()


async def test_a_cancelled_call_has_ended_when_its_task_has() -> None:
    ended = []

    def slow() -> None:
        time.sleep(0.05)
        ended.append(True)

    with anyio.move_on_after(0.01):
        await run_in_thread(slow)
    assert ended == [True]
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_in_thread(ended.append, False)
    assert ended == [True], "a call of a cancelled task is not begun"


async def test_many_calls_share_few_threads_and_all_are_done() -> None:
    used: set[int] = set()
    running = 0
    most = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            used.add(threading.get_ident())
        time.sleep(0.002)
        with lock:
            running -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(run_in_thread, work)
    assert running == 0
    assert 1 < most <= MAX_THREADS
    assert len(used) <= MAX_THREADS


async def test_one_call_after_another_uses_one_thread() -> None:
    assert len({await run_in_thread(threading.get_ident) for _ in range(50)}) == 1


async def test_threads_end_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "IDLE_S", 0.05)
    thread = await run_in_thread(threading.current_thread)
    with anyio.fail_after(HANGS_AFTER):
        while thread.is_alive():  # noqa: ASYNC110  (a thread tells nobody that it ends)
            await anyio.sleep(0.01)
    assert await run_in_thread(lambda: 5) == 5, "another one is made when it is needed"


def test_a_loop_that_ended_is_no_trouble_for_its_threads() -> None:
    begun, release = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        release.wait(HANGS_AFTER)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_thread, wait)
            while not begun.is_set():  # noqa: ASYNC110  (it is set in a thread)
                await anyio.sleep(0.005)
            release.set()

    anyio.run(main)
    anyio.run(main)


async def test_the_attempt_that_ends_first_counts() -> None:
    began, first = threading.Event(), threading.Event()
    begun: list[int] = []

    def try_luck() -> int:
        number = len(begun)
        begun.append(number)
        began.set()
        if number == 0:
            first.wait(HANGS_AFTER)
        return number

    attempts = Attempts(try_luck)
    assert await run_in_thread(began.wait, HANGS_AFTER)
    assert attempts.again()
    assert not attempts.again(), "two are enough"
    with anyio.fail_after(HANGS_AFTER):
        assert await attempts.value() == 1
    first.set()
    assert await Attempts(divmod, 7, 2).value() == (3, 1)


async def test_what_has_ended_is_not_tried_again() -> None:
    attempts = Attempts(divmod, 7, 2)
    assert await attempts.value() == (3, 1)
    assert not attempts.again()
    with pytest.raises(ZeroDivisionError):
        await Attempts(divmod, 7, 0).value()
