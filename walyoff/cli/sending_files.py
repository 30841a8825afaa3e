"""send --file: store a file as an attachment, then see how far others have it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import anyio

from walyoff.channel import Channel
from walyoff.cli.attachments import bar
from walyoff.cli.choosing import others
from walyoff.cli.console import Console
from walyoff.cli.output import escape_line
from walyoff.cli.sizes import size_text


async def send_file(
    console: Console,
    channel: Channel,
    caption: str,
    *,
    file: Path,
    topics: Sequence[str],
    wait: float,
    forget_after: timedelta | None = None,
) -> None:
    """Send one file, and stay while others fetch it."""
    size = (await anyio.Path(file).stat()).st_size
    name = escape_line(file.name)

    def stored(count: int) -> None:
        console.detail = bar(count, size)

    with console.step(f"storing {name}"):
        receipt = await channel.send_file(
            file,
            caption=os.fsencode(caption),
            topics=topics,
            progress=stored,
            forget_after=forget_after,
        )
    expected = others(channel)
    held: dict[str, int] = {}
    if wait and expected:
        with console.step(f"sending {name}"):
            await _watch(console, channel, receipt.id, size=size, wait=wait, held=held)
    whole = sorted(did for did in expected if held.get(did) == size)
    value = {
        "id": receipt.id.hex(),
        "channel": channel.did,
        "seq": receipt.seq,
        "topics": list(topics),
        "name": file.name,
        "size": size,
        "stored": True,
        "others": len(expected),
        "received_by": whole,
        "anchored": receipt.anchored,
    }
    text = f"stored {name} ({size_text(size)})"
    if whole:
        text += f"; {len(whole)} of {len(expected)} devices have all of it"
    elif expected:
        text += "; no other device has all of it yet: it goes on when they run with this one"
    console.result(value, text)


async def _watch(
    console: Console,
    channel: Channel,
    message_id: bytes,
    *,
    size: int,
    wait: float,
    held: dict[str, int],
) -> None:
    """Until all who are connected have it, or nothing moved for `wait` seconds."""
    with anyio.CancelScope() as scope:
        scope.deadline = anyio.current_time() + wait
        async with aclosing(channel.sharing(message_id)) as sharing:
            async for table in sharing:
                if table != held:
                    scope.deadline = anyio.current_time() + wait
                held.update(table)
                console.detail = _detail(table, size)
                peers = channel.peers()
                if peers and all(table.get(did) == size for did in peers):
                    return


def _detail(table: dict[str, int], size: int) -> str:
    whole = sum(1 for count in table.values() if count == size)
    busy = [count for count in table.values() if 0 < count < size]
    text = bar(min(busy), size) if busy else bar(size if whole else 0, size)
    return f"{text}  {whole} of {len(table)} devices" if len(table) > 1 else text
