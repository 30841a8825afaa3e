"""One poller for all pubsub subscriptions of the child.

Kubo has no blocking receive, so messages are asked for: the longer it has been quiet the more
rarely, every millisecond while messages flow, four times a second after 2.5 quiet seconds.
Each look wakes Go's scheduler, which then looks about for itself some ten times, or fifty if it
has more than one processor (see `walyoff.walytis.spawning`). A native
queue holds 32 messages and drops the rest in silence: what is read here is handed on at once
and never waits for a slow consumer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from walyoff.child.kubo import Kubo
from walyoff.errors import WalyoffError

_log = logging.getLogger(__name__)

#: Seconds between looks: this part of how long it has been quiet, within these bounds. So a
#: message that comes after a silence waits for a twentieth of it in the mean. A quiet device
#: hears presences and leaves every few seconds, each of which begins this anew: half of this
#: part is twice the looks.
QUIET_PART = 0.1
SHORTEST = 0.001
LONGEST = 0.25
#: Messages taken from one subscription before the next has its turn.
MAX_BURST = 256

Callback = Callable[[str, bytes], None]


def pause_after(quiet: float) -> float:
    """Seconds until the next look, after so many seconds without a message."""
    return min(max(quiet * QUIET_PART, SHORTEST), LONGEST)


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
        #: When something was sent or came in last.
        self._last = 0.0
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
        """Publish once, and look out for answers."""
        self._kubo.publish(topic, data)
        self.wake()

    def wake(self) -> None:
        """Look at once, and often for a while."""
        self._last = time.monotonic()
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
        interval = SHORTEST
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
                self._last = now
            interval = pause_after(now - self._last)

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
