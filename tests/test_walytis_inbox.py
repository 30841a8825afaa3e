"""The guard's queue: senders take turns, and a hanging one waits for itself."""

from __future__ import annotations

import queue
import threading

from tests.waiting import HANGS_AFTER
from walyoff.child.inbox import MAX_SENDERS, MAX_WAITING, THREADS, Inbox


def test_sender_whose_items_hang_delays_nobody_else_and_order_is_kept() -> None:
    release = threading.Event()
    done: queue.Queue[tuple[str, bytes]] = queue.Queue()

    def work(sender: str, item: bytes) -> None:
        if sender.startswith("bad"):
            release.wait(HANGS_AFTER)
        done.put((sender, item))

    inbox = Inbox("test", work)
    for number in range(THREADS - 1):
        for _ in range(5):
            inbox.put(f"bad{number}", b"x")
    for number in range(20):
        inbox.put("good", b"%d" % number)
    got = [done.get(timeout=HANGS_AFTER) for _ in range(20)]
    assert got == [("good", b"%d" % number) for number in range(20)]
    release.set()
    for _ in range(5 * (THREADS - 1)):
        done.get(timeout=HANGS_AFTER)
    inbox.close()
    inbox.close()
    inbox.put("good", b"late")
    assert done.empty()


def test_what_waits_is_bounded() -> None:
    release = threading.Event()

    def work(_sender: str, _item: bytes) -> None:
        release.wait(HANGS_AFTER)

    inbox = Inbox("test", work)
    for _ in range(MAX_WAITING + 10):
        inbox.put("one", b"x")
    # One may be in work already.
    assert 9 <= inbox.dropped <= 10
    for number in range(MAX_SENDERS + THREADS + 5):
        inbox.put(f"s{number}", b"x")
    assert inbox.dropped > 10
    inbox.close()
    release.set()
