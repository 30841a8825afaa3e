"""attachments, fetch, save, gc: files that came with messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio

from walyoff.attachments import Attachment, AttachmentState
from walyoff.channel import Channel
from walyoff.cli.choosing import choose
from walyoff.cli.console import Console
from walyoff.cli.naming import the_one, wanted_id
from walyoff.cli.output import clock, counted, escape_line, name_of, short_id
from walyoff.cli.runtime import Failure
from walyoff.cli.sizes import size_text
from walyoff.engine.policy import AttachmentPolicy, Fetching
from walyoff.message import Message
from walyoff.node import Device

_BAR = 24


def attachment_json(attachment: Attachment) -> dict[str, Any]:
    """An attachment for machines."""
    return {
        "name": attachment.name,
        "media_type": attachment.media_type,
        "size": attachment.size,
        "held": attachment.held,
        "state": str(attachment.state),
    }


async def attachments(
    console: Console,
    device: Device,
    *,
    name: str | None,
    last: int,
    fetch: str | None,
    small: int | None,
    quota: int | None,
) -> None:
    """List the attachments of a channel; change its policy first, if asked to."""
    channel = choose(device, name)
    policy = channel.attachment_policy
    changed = AttachmentPolicy(
        fetch=policy.fetch if fetch is None else Fetching(fetch),
        small=policy.small if small is None else small,
        # Zero bytes would be no attachments at all: it means no limit.
        quota=policy.quota if quota is None else quota or None,
    )
    if changed != policy:
        await channel.set_attachment_policy(changed)
    for message in await channel.attachments(last=last):
        assert message.attachment is not None
        value = {
            "id": message.id.hex(),
            "author": message.author,
            "time": message.time.isoformat(),
            **attachment_json(message.attachment),
        }
        console.result(value, _line(message, message.attachment, channel.me))
    console.note(_policy_text(channel))


def _line(message: Message, attachment: Attachment, me: str) -> str:
    state = str(attachment.state)
    if attachment.state != AttachmentState.HELD and attachment.held:
        state += f" {100 * attachment.held // attachment.size}%"
    return (
        f"{short_id(message.id)}  {clock(message.time)}  "
        f"{name_of(message.path, me)}  {size_text(attachment.size):>9}  {state:<13}  "
        f"{escape_line(attachment.name)}"
    )


def _policy_text(channel: Channel) -> str:
    policy = channel.attachment_policy
    used = channel.status()["attachments"]["bytes"]
    fetched = {
        Fetching.ALL: "all are fetched",
        Fetching.SMALL: f"up to {size_text(policy.small)} are fetched",
        Fetching.NONE: "none are fetched before they are asked for",
    }[policy.fetch]
    limit = "no quota" if policy.quota is None else f"a quota of {size_text(policy.quota)}"
    return f"{size_text(used)} here; {fetched}; {limit}"


async def find(
    console: Console, channel: Channel, wanted: str, timeout: float
) -> tuple[Message, Attachment]:
    """The attachment whose message id begins so; it may be on its way. Raises Failure."""
    wanted = wanted_id(wanted)
    with console.step("waiting for the message"), anyio.move_on_after(timeout):
        while not await _matching(channel, wanted):
            await channel.changed()
    message = the_one(await _matching(channel, wanted), wanted, "message with a file")
    assert message.attachment is not None
    return message, message.attachment


async def _matching(channel: Channel, wanted: str) -> list[Message]:
    found = await channel.attachments(last=1_000_000)
    return [message for message in found if message.id.hex().startswith(wanted)]


async def fetch(
    console: Console, device: Device, *, name: str | None, wanted: str, timeout: float
) -> None:
    """Get all of an attachment."""
    channel = choose(device, name)
    message, attachment = await find(console, channel, wanted, timeout)
    await _fetch(console, attachment, timeout)
    value = {"id": message.id.hex(), **attachment_json(attachment)}
    console.result(value, f"{escape_line(attachment.name)} is here, all of it")


async def save(
    console: Console,
    device: Device,
    *,
    name: str | None,
    wanted: str,
    path: Path,
    force: bool,
    timeout: float,
) -> None:
    """Get all of an attachment, and write it to a file."""
    channel = choose(device, name)
    message, attachment = await find(console, channel, wanted, timeout)
    await _fetch(console, attachment, timeout)
    with console.step(f"writing {escape_line(attachment.name)}"):
        target = await attachment.save(path, overwrite=force)
    value = {"id": message.id.hex(), **attachment_json(attachment), "path": str(target)}
    console.result(value, f"saved as {escape_line(str(target))}")


async def _fetch(console: Console, attachment: Attachment, timeout: float) -> None:
    """Wait for it, and show how far it is. Raises Failure when nothing came for too long."""
    if attachment.held == attachment.size:
        return
    with console.step(f"fetching {escape_line(attachment.name)}"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_show, console, attachment)
            await _wait(attachment, timeout)
            tasks.cancel_scope.cancel()
    state = attachment.state
    if state != AttachmentState.HELD:
        why = {
            AttachmentState.NO_SPACE: "this device has no space for it",
            AttachmentState.OVER_QUOTA: "the channel's quota does not allow it: raise it, or "
            "use walyoff gc",
        }.get(state, "nobody who has it is here")
        raise Failure(
            f"{attachment.held} of {attachment.size} bytes are here: {why}; the same command "
            "goes on later"
        )


async def _wait(attachment: Attachment, timeout: float) -> None:
    """Until it is here, or nothing came for `timeout` seconds."""
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            held = -1
            while attachment.held > held:
                held = attachment.held
                await anyio.sleep(timeout)
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        await attachment.fetch()
        tasks.cancel_scope.cancel()


async def _show(console: Console, attachment: Attachment) -> None:
    async for progress in attachment.progress():
        parts = [bar(progress.held, progress.size)]
        if progress.rate >= 1:
            parts.append(f"{size_text(progress.rate)}/s")
        if progress.peers:
            parts.append(f"from {counted(len(progress.peers), 'device')}")
        elif progress.state != AttachmentState.HELD:
            parts.append(str(progress.state))
        console.detail = "  ".join(parts)


def bar(done: int, size: int) -> str:
    """How far something is, for a terminal or a line."""
    full = _BAR * done // size if size else _BAR
    percent = 100 * done // size if size else 100
    return f"[{'#' * full}{'.' * (_BAR - full)}] {percent:3}% of {size_text(size)}"


async def collect(
    console: Console, device: Device, *, name: str | None, keep: int | None
) -> None:
    """Remove what nothing needs; with `keep`, drop the oldest attachments of others too."""
    channels = device.channels() if name is None else [choose(device, name)]
    for channel in channels:
        limit = channel.attachment_policy.quota if keep is None else keep
        freed = await channel.free_space(keep=limit)
        left = channel.status()["attachments"]["bytes"]
        console.result(
            {"channel": channel.did, "freed": freed, "bytes": left},
            f"{escape_line(channel.name)}: {size_text(freed)} freed, {size_text(left)} here",
        )


__all__ = ["attachments", "bar", "collect", "fetch", "find", "save"]
