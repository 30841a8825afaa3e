"""forget: ask, answer, show."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import anyio
import click

from walyoff.channel import Channel
from walyoff.cli.choosing import choose, others
from walyoff.cli.console import Console
from walyoff.cli.naming import FULL_ID, the_one, wanted_id
from walyoff.cli.output import clock, escape_line, short, short_id
from walyoff.engine.consent import Agreement, State
from walyoff.forgetting import ForgetRequest, ForgetStatus
from walyoff.node import Device

#: Devices of a channel that run find each other well within this.
NOBODY_S = 3.0


async def forget(
    console: Console,
    device: Device,
    *,
    arguments: tuple[str, ...],
    reason: str,
    act: str | None,
    policy: str | None,
    wait: float,
) -> None:
    """Carry out the command."""
    channel, text = _sort_out(device, arguments)
    if policy is not None:
        await channel.set_forget_policy(policy)
        value = {"channel": channel.did, "policy": policy}
        console.result(value, f"requests on this device: {policy}")
        if text is None:
            return
    if text is None:
        if act not in (None, "status") or reason:
            raise click.UsageError("say which message: walyoff forget [CHANNEL] ID")
        await _list(console, channel, wait)
        return
    if wait and act == "status":
        await _meet(console, channel, wait)
    message_id = await _find(channel, text)
    if act == "approve":
        await channel.approve(message_id)
    elif act == "refuse":
        await channel.refuse(message_id)
    elif act == "withdraw":
        await channel.withdraw(message_id)
    elif act is None:
        await channel.forget(message_id, reason=reason)
    if wait and act in (None, "approve"):
        with console.step("waiting for the others"), anyio.move_on_after(wait):
            await _settled(channel, message_id)
    status = await channel.forget_status(message_id)
    console.result(status_json(channel, status), _status_text(channel, status))


def _sort_out(device: Device, arguments: tuple[str, ...]) -> tuple[Channel, str | None]:
    """Which of the arguments is the channel and which is the message."""
    if len(arguments) == 2:
        return choose(device, arguments[0]), arguments[1]
    if not arguments:
        return choose(device, None), None
    only = arguments[0]
    if any(only in (channel.name, channel.did) for channel in device.channels()):
        return choose(device, only), None
    return choose(device, None), only


async def _find(channel: Channel, text: str) -> bytes:
    """The message whose id begins so. Raises Failure."""
    wanted = wanted_id(text)
    if len(wanted) == FULL_ID:
        # It may be one that is not here yet.
        return bytes.fromhex(wanted)
    return the_one(await channel.find(wanted), wanted, "message").id


async def _meet(console: Console, channel: Channel, wait: float) -> None:
    """Hear what others said meanwhile, if any of them is there."""
    if others(channel):
        with console.step("asking the others"), anyio.move_on_after(min(wait, NOBODY_S)):
            await channel.wait_peer()
            await anyio.sleep(0.5)


async def _settled(channel: Channel, message_id: bytes) -> None:
    while True:
        status = await channel.forget_status(message_id)
        if status.state is State.FORGOTTEN and status.erased_here and not status.not_yet:
            return
        with anyio.move_on_after(0.5):
            await channel.changed()


async def _list(console: Console, channel: Channel, wait: float) -> None:
    if wait:
        await _meet(console, channel, wait)
    waiting = await channel.forget_waiting()
    for request in waiting:
        console.result(request_json(channel, request), _request_text(channel, request))
    if not waiting:
        console.note("nobody waits for your answer")


def _words(words: Sequence[Agreement]) -> list[dict[str, Any]]:
    return [
        {
            "member": word.voice,
            "device": word.device,
            "time": datetime.fromtimestamp(word.time_ms / 1000, UTC).isoformat(),
        }
        for word in words
    ]


def request_json(channel: Channel, request: ForgetRequest) -> dict[str, Any]:
    """A request for machines."""
    return {
        "id": request.id.hex(),
        "channel": channel.did,
        "author": request.author,
        "proposed": _words(request.proposed),
        "reason": request.reason,
    }


def status_json(channel: Channel, status: ForgetStatus) -> dict[str, Any]:
    """A status for machines."""
    return {
        "id": status.id.hex(),
        "channel": channel.did,
        "state": status.state.value,
        "reason": status.reason,
        "proposed": _words(status.proposed),
        "agreed": _words(status.agreed),
        "refused": _words(status.refused),
        "waiting": list(status.waiting),
        "erased_here": status.erased_here,
        "erased": _words(status.erased),
        "not_yet": list(status.not_yet),
        "cannot_be_forced": list(status.cannot_be_forced),
        "expires": None if status.expires is None else status.expires.isoformat(),
    }


def _request_text(channel: Channel, request: ForgetRequest) -> str:
    who = ", ".join(_who(channel, word.voice) for word in request.proposed) or "others"
    reason = f": {escape_line(request.reason)}" if request.reason else ""
    author = _who(channel, request.author)
    return f"{short_id(request.id)}  by {author}; asked by {who}{reason}"


def _who(channel: Channel, did: str) -> str:
    return "you" if did == channel.me else short(did)


def _status_text(channel: Channel, status: ForgetStatus) -> str:
    lines = [f"{short_id(status.id)}: {_SAID[status.state]}"]
    if status.reason:
        lines.append(f"  reason: {escape_line(status.reason)}")
    for title, words in (("agreed", status.agreed), ("refused", status.refused)):
        lines += [
            f"  {title}: {_who(channel, word.voice)}, "
            f"{clock(datetime.fromtimestamp(word.time_ms / 1000, UTC))}"
            for word in words
        ]
    names = (
        ("waits for", status.waiting),
        ("destroyed, as they say, by", tuple(word.device for word in status.erased)),
        ("not said yet by", status.not_yet),
        ("no members any more, asked but not to be forced:", status.cannot_be_forced),
    )
    for title, dids in names:
        if dids:
            lines.append(f"  {title} {', '.join(_who(channel, did) for did in dids)}")
    if status.expires is not None:
        lines.append(f"  sent to be forgotten at {clock(status.expires)}")
    lines.append(f"  this device's copy is {'destroyed' if status.erased_here else 'kept'}")
    return "\n".join(lines)


_SAID = {
    State.NONE: "nobody asks to forget it",
    State.OPEN: "not all have agreed to forget it",
    State.REFUSED: "somebody does not agree to forget it",
    State.FORGOTTEN: "all agreed, it is forgotten",
    State.EXPIRED: "its time was over, it is forgotten",
}
