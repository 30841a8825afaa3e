"""What an application holds: it says what its record says, and nobody changes it."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import pytest

from walyoff.message import Message
from walyoff.messages import Receipt
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld

SECRET = b"meet me at nine"
ATTRIBUTES = (
    "id", "channel", "author", "path", "seq", "time", "topics", "size", "content", "forgotten",
    "position", "attachment", "anchored",
)  # fmt: skip


def sent_and_read() -> tuple[Receipt, list[Message], int]:
    """Two messages of one batch, each of them read twice, and when they were sent."""
    found: list[Message] = []
    receipts: list[Receipt] = []
    times: list[int] = []

    async def main() -> None:
        world = SimWorld(1)
        async with world.device("a") as device:
            channel = await device.create_channel("family")
            times.append(device.runtime.wall_ms())
            receipts.extend(await channel.send_many([SECRET, b"two"], topics=["a", "b"]))
            for _ in range(2):
                found.extend([message async for message in channel.history()])

    anyio.run(main, backend_options={"loop_factory": VirtualTimeLoop})
    return receipts[0], found, times[0]


def test_a_message_says_what_its_record_says() -> None:
    receipt, (first, second, again, _), sent_ms = sent_and_read()
    assert (first.id, first.seq) == (receipt.id, receipt.seq)
    assert first.path == (first.author, first.channel)
    assert (first.topics, first.size, first.content) == (("a", "b"), len(SECRET), SECRET)
    assert (first.forgotten, first.attachment) == (None, None)
    assert (second.seq, second.position) == (first.seq + 1, first.position + 1)
    assert first.time.tzinfo is UTC
    assert first.time >= datetime.fromtimestamp(sent_ms / 1000, UTC)
    assert first == again
    assert hash(first) == hash(again)
    assert first not in (second, first.id)


def test_nobody_can_change_a_message_or_a_receipt() -> None:
    receipt, (message, *_), _ = sent_and_read()
    for name in ATTRIBUTES:
        with pytest.raises(AttributeError):
            setattr(message, name, getattr(message, name))
    for name in ("id", "seq", "anchored"):
        with pytest.raises(AttributeError):
            setattr(receipt, name, getattr(receipt, name))
    for held in (message, receipt):
        with pytest.raises(AttributeError):
            held.more = 1  # type: ignore[union-attr]


def test_neither_shows_what_was_said() -> None:
    receipt, (message, *_), _ = sent_and_read()
    assert SECRET.decode() not in repr(message) + repr(receipt)
    assert message.id[:8].hex() in repr(message)
    assert repr(receipt) == f"<Receipt {receipt.id[:8].hex()} [{receipt.seq}]>"
