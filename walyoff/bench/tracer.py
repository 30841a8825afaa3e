"""Where the time of one message goes: moments at which it passes from one stage to the next.

The tracer wraps functions of ours in its own process, where a stage begins or ends, and
notes the monotonic time, which all processes share. It costs some microseconds a message,
so figures that count are taken without it. `stages` puts the moments of two processes
together; it is only right when messages are far apart, each alone on its way.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

_STORE = "walyoff.stores.channel"
#: (module, class, function, stage when it begins, stage when it ends; "" is not noted)
_SENDER = (
    ("walyoff.channel", "Channel", "send", "send is called", "send returns"),
    ("walyoff.engine.outbox", "Outbox", "_make", "the outbox wakes", "the batch is made"),
    (
        _STORE,
        "SqliteChannelStore",
        "write",
        "write is called",
        "write returns",
    ),
    ("walyoff.stores.writing", "Writing", "apply", "the writer begins", "rows are written"),
    ("walyoff.stores.committing", "Committer", "run", "", "committed"),
    ("walyoff.engine.outbox", "Outbox", "_push", "the push begins", "pushed"),
    ("walyoff.session.peer", "Session", "_write_some", "the session wakes", ""),
    ("walyoff.sockets", "SocketStream", "send", "sealed", "sent"),
)
_RECEIVER = (
    ("walyoff.sockets", "SocketStream", "receive", "", "received"),
    ("walyoff.engine.inbox", "Inbox", "offer", "decrypted and decoded", ""),
    ("walyoff.engine.inbox", "Inbox", "_verify", "", "verified"),
    (_STORE, "SqliteChannelStore", "write", "write is called", "write returns"),
    ("walyoff.stores.writing", "Writing", "apply", "the writer begins", "rows are written"),
    ("walyoff.stores.committing", "Committer", "run", "", "committed"),
    ("walyoff.messages", "MessageStream", "__anext__", "", "delivered"),
)
#: Stages of the key that signs, of whatever suite.
_SIGNING = ("signing begins", "signed")

Event = tuple[str, int]


class Tracer:
    """Notes moments in this process."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def install(self) -> None:
        """Wrap what the stages are made of. For the life of the process."""
        seen: set[tuple[str, str, str]] = set()
        for module, name, function, begins, ends in (*_SENDER, *_RECEIVER):
            place = (module, name, function)
            if place not in seen:
                seen.add(place)
                self._wrap(
                    getattr(importlib.import_module(module), name), function, begins, ends
                )
        self._wrap_signing()

    def _wrap_signing(self) -> None:
        """A signature is made by a key of the suite, in whatever thread."""
        from walyoff import plugins  # noqa: PLC0415

        for name in plugins.installed_suites():
            self._wrap(type(plugins.suite(name).new_sign_key()), "sign", *_SIGNING)

    def take(self) -> list[Event]:
        """What was noted since it was taken the last time."""
        events, self._events = self._events, []
        return events

    def _wrap(self, owner: type, name: str, begins: str, ends: str) -> None:
        original: Callable[..., Any] | None = getattr(owner, name, None)
        if original is None:
            return
        clock = time.monotonic_ns

        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                if begins:
                    self._events.append((begins, clock()))
                result = await original(*args, **kwargs)
                if ends:
                    self._events.append((ends, clock()))
                return result

        else:

            @functools.wraps(original)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if begins:
                    self._events.append((begins, clock()))
                result = original(*args, **kwargs)
                if ends:
                    self._events.append((ends, clock()))
                return result

        setattr(owner, name, wrapped)


def stages(
    sender: Sequence[Event], receiver: Sequence[Event]
) -> list[tuple[str, str, float, float]]:
    """(side, stage, milliseconds since `send` was called, and since the stage before).

    Medians over all messages, in the order of time within each side.
    """
    begins = [at for stage, at in sender if stage == _SENDER[0][3]]
    rows: list[tuple[str, str, float, float]] = []
    for side, events, plan, start in (
        ("sender", sender, _SENDER, 0),
        ("receiver", receiver, _RECEIVER, 0),
    ):
        names = [name for entry in plan for name in entry[3:] if name]
        names += _SIGNING if side == "sender" else ()
        found: dict[str, list[float]] = {name: [] for name in names}
        for at, until in zip(begins, [*begins[1:], begins[-1] + 10**9], strict=True):
            window = _between(events, at, until)
            for name, offset in _first(window, names, side, at).items():
                found[name].append(offset)
        medians = {name: median(values) for name, values in found.items() if values}
        before = float(start)
        for name in sorted(medians, key=lambda name: medians[name]):
            rows.append((side, name, medians[name], medians[name] - before))
            before = medians[name]
    return rows


def _between(events: Sequence[Event], begin: int, end: int) -> list[Event]:
    moments = [at for _, at in events]
    return list(events[bisect_left(moments, begin) : bisect_left(moments, end)])


def _first(
    window: Sequence[Event], names: Sequence[str], side: str, begin: int
) -> dict[str, float]:
    """The first moment of each stage; on the receiver, from the arrival of the batch on."""
    found: dict[str, float] = {}
    started = side == "sender"
    held: float | None = None
    for name, at in window:
        offset = (at - begin) / 1e6
        if not started:
            # Other frames come in as well: what counts is the last arrival before the batch.
            if name == "received":
                held = offset
            elif name == "decrypted and decoded":
                started = True
                if held is not None:
                    found["received"] = held
        if started and name in names and name not in found:
            found[name] = offset
    return found
