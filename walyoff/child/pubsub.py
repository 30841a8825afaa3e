"""One poller for all pubsub subscriptions of the child.

Kubo has no blocking receive, so messages are asked for. While they flow the poller asks
every millisecond; when it has been quiet for a second it slows down to fifty times a
second, and after some seconds to a third of that: each look wakes Go's scheduler, which
costs half a millisecond, and fifty of them would be 2.7 % of a core. A native queue holds
32 messages and drops the rest in silence: what is read here is handed on at once and never
waits for a slow consumer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from walyoff.child.kubo import Kubo
from walyoff.errors import WalyoffError

_log = logging.getLogger(__name__)

#: Seconds between looks while messages flow, when they pause, and when all is quiet.
FAST_INTERVAL = 0.001
SLOW_INTERVAL = 0.020
QUIET_INTERVAL = 0.060
#: How long after the last message or publish the first two intervals are kept, in seconds.
FAST_FOR = 1.0
SLOW_FOR = 5.0
#: Messages taken from one subscription before the next has its turn.
MAX_BURST = 256

Callback = Callable[[str, bytes], None]


class Subscription:
    """A consumer of a topic; `close` ends it and is idempotent."""

    def __init__(self, hub: PubsubHub, topic: str, callback: Callback) -> None:
        self._hub = hub
        self.topic = topic
        self.callback = callback

    def close(self) -> None:
        """Stop the callbacks; one that runs already may still finish."""
        self._hub._remove(self)


class PubsubHub:
    """Shares one native subscription per topic, and one thread, among all consumers.

    Callbacks get (sender's peer id, data), run on the poller's thread, and must be quick:
    everybody's messages wait for them, and are lost when they take long. What they raise
    is logged.
    """

    def __init__(self, kubo: Kubo) -> None:
        self._kubo = kubo
        self._lock = threading.Lock()
        self._topics: dict[str, tuple[int, list[Subscription]]] = {}
        self._wake = threading.Event()
        self._stopped = False
        self._busy_until = 0.0
        #: Called on the poller's thread after each round that brought messages.
        self.after_round: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="pubsub", daemon=True)
        self._thread.start()

    def subscribe(self, topic: str, callback: Callback) -> Subscription:
        """Call back for each message on a topic, own ones included. Raises KuboError."""
        subscription = Subscription(self, topic, callback)
        with self._lock:
            known = self._topics.get(topic)
            if known is None:
                self._topics[topic] = (self._kubo.subscribe(topic), [subscription])
            else:
                # A new list, because the poller walks the old one without the lock.
                self._topics[topic] = (known[0], [*known[1], subscription])
        self.wake()
        return subscription

    def publish(self, topic: str, data: bytes) -> None:
        """Publish once, and look out for answers at full speed."""
        self._kubo.publish(topic, data)
        self.wake()

    def wake(self) -> None:
        """Look at once, and at full speed for a while."""
        self._busy_until = time.monotonic() + FAST_FOR
        self._wake.set()

    def close(self) -> None:
        """Stop the poller; bounded to a second."""
        self._stopped = True
        self._wake.set()
        self._thread.join(1.0)

    def _remove(self, subscription: Subscription) -> None:
        with self._lock:
            sub, consumers = self._topics.get(subscription.topic, (0, []))
            if subscription not in consumers:
                return
            left = [other for other in consumers if other is not subscription]
            if left:
                self._topics[subscription.topic] = (sub, left)
                return
            del self._topics[subscription.topic]
            self._kubo.unsubscribe(sub)

    def _run(self) -> None:
        interval = SLOW_INTERVAL
        while not self._stopped:
            self._wake.wait(interval if self._topics else None)
            self._wake.clear()
            if self._stopped:
                return
            try:
                found = self._round()
            except WalyoffError:
                # The node is being stopped.
                found = False
            now = time.monotonic()
            if found:
                self._busy_until = now + FAST_FOR
            if now < self._busy_until:
                interval = FAST_INTERVAL
            elif now < self._busy_until + SLOW_FOR:
                interval = min(interval * 2, SLOW_INTERVAL)
            else:
                interval = QUIET_INTERVAL

    def _round(self) -> bool:
        with self._lock:
            topics = list(self._topics.values())
        found = False
        for sub, consumers in topics:
            for _ in range(MAX_BURST):
                message = self._kubo.next_message(sub)
                if message is None:
                    break
                found = True
                for consumer in consumers:
                    try:
                        consumer.callback(*message)
                    except Exception:
                        _log.exception("a pubsub callback failed")
        if found:
            for hook in self.after_round:
                hook()
        return found
