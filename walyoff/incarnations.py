"""Which of the copies of a device is the device.

A device that is moved to another machine, or restored from a backup, is the same member with
the same control keys; a copy that still runs elsewhere would contradict it. So each beginning
raises the device's *incarnation*, a number that its certificates carry, signed by the control
keys. Members serve the highest that they know, and show its certificate to any other, which
stops. Decided here: what a home remembers of it, and when it refuses to open. Who is served is
decided in `trust` and `connections`, what is written first in `engine.resuming`.

Numbers are times in milliseconds, so that of two copies the one that was begun later counts,
also if both were made from one file; a number never goes back.
"""

from __future__ import annotations

from datetime import UTC, datetime

from walyoff.abc import Store
from walyoff.errors import LocalProtocolError, SupersededError
from walyoff.records import MAX_TIME_MS

#: An incarnation that lies further ahead of now counts nowhere: clocks may differ by a day.
AHEAD_MS = 24 * 3600 * 1000
#: A clock that shows less is wrong: 1 January 2026.
EARLIEST_MS = 1_767_225_600_000

_INCARNATION = "incarnation"
#: The incarnation that took over, once it is known.
_SUPERSEDED = "superseded"
#: There if that copy has newer control keys of the device, which this home does not have.
_OUTKEYED = "superseded-keys"
#: When this home was exported.
_EXPORTED = "exported"


async def load_incarnation(store: Store) -> int:
    """The incarnation of a home's device; 0 until it was first moved or restored."""
    return _number(await store.get(_INCARNATION))


async def begin_incarnation(store: Store, now_ms: int, *, alone: bool = False) -> int:
    """Make this home the device, from now on, before it is opened. Returns the incarnation.

    What it writes waits in each channel until a member has said what the device wrote before;
    `alone` does without: only who knows that nothing is missing may say so.

    Raises:
        LocalProtocolError: `alone` is said where records of the device are missing.
        SupersededError: another copy has replaced the control keys: this one can never be
            the device again.
    """
    me = await _me(store)
    if await store.get(_OUTKEYED) is not None:
        await check_current(store)
    taken = _number(await store.get(_SUPERSEDED))
    number = max(now_ms, await load_incarnation(store) + 1, taken + 1)
    if EARLIEST_MS < now_ms < number - 2 * AHEAD_MS:
        # Those numbers are no times: others do not believe them either. (Twice, because what
        # others believed by their clocks must be beaten.)
        number = now_ms
    values: dict[str, bytes | None] = {
        _INCARNATION: _bytes(min(number, MAX_TIME_MS)),
        _SUPERSEDED: None,
        _EXPORTED: None,
    }
    for key in await store.keys("channel/"):
        did = key.partition("/")[2]
        mark = resume_key(did)
        known = _number(await store.get(mark))
        held, written = await _held(store, did, me), _number(await store.get(_written(did)))
        if alone and written > held:
            raise LocalProtocolError(
                "this home has not all that the device wrote: it cannot write on without asking"
            )
        values[mark] = None if alone else _bytes(max(known, held, written))
    await store.put(values)
    return number


async def note_written(store: Store) -> None:
    """Keep how far the device has written, for a copy of the home without its log."""
    me = await _me(store)
    channels = [key.partition("/")[2] for key in await store.keys("channel/")]
    await store.put({_written(did): _bytes(await _held(store, did, me)) for did in channels})


async def _me(store: Store) -> str:
    return ((await store.get("device")) or b"").decode()


async def _held(store: Store, channel: str, me: str) -> int:
    heads = await store.channel(channel).heads()
    return max((head.seq for head in heads if head.author == me), default=0)


def _written(channel: str) -> str:
    return f"written/{channel}"


def resume_key(channel: str) -> str:
    """The setting that says up to which number the device wrote before, at least."""
    return f"resume/{channel}"


async def load_resume(store: Store, channel: str) -> int | None:
    """Up to which own record, at least, must be held before one is written; None: at once."""
    value = await store.get(resume_key(channel))
    return None if value is None else _number(value)


async def note_exported(store: Store, now_ms: int) -> None:
    """This home's device goes elsewhere."""
    await store.put({_EXPORTED: _bytes(now_ms)})


async def undo_export(store: Store) -> bool:
    """It stays after all. False if it was not exported.

    If it was imported meanwhile this home will be told so, and stop.
    """
    if await store.get(_EXPORTED) is None:
        return False
    await store.put({_EXPORTED: None})
    return True


async def note_superseded(
    store: Store, incarnation: int, *, outkeyed: bool = False
) -> SupersededError:
    """Another copy is the device now; returns what to raise.

    `outkeyed` if it is so by newer control keys, which are not here.
    """
    await store.put({_SUPERSEDED: _bytes(incarnation), _OUTKEYED: b"\1" if outkeyed else None})
    return _superseded(incarnation, outkeyed=outkeyed)


async def check_current(store: Store) -> None:
    """Raises SupersededError if this home is not the device any more."""
    if (value := await store.get(_SUPERSEDED)) is not None:
        outkeyed = await store.get(_OUTKEYED) is not None
        raise _superseded(_number(value), outkeyed=outkeyed)
    if (value := await store.get(_EXPORTED)) is not None:
        raise SupersededError(
            f"this device was exported at {_time(_number(value))}: import the file where it is "
            "to live; if that was not done, `walyoff export --undo` brings it back to life here"
        )


def _superseded(incarnation: int, *, outkeyed: bool) -> SupersededError:
    since = f", since {_time(incarnation)} by its clock" if incarnation else ""
    if outkeyed:
        return SupersededError(
            f"another copy of this device is at work{since}, and has replaced the device's "
            "control keys: use that one; without the new keys this one can never be the device "
            "again; if that one is lost, have a member remove the device, and join with a new "
            "home (`walyoff --home NEW join`)"
        )
    return SupersededError(
        f"another copy of this device is at work{since}: use that one; if it is lost, "
        "`walyoff takeover` makes this one the device again"
    )


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _number(value: bytes | None) -> int:
    return min(int.from_bytes(value or b"", "big"), MAX_TIME_MS)


def _bytes(number: int) -> bytes:
    return number.to_bytes(8, "big")
