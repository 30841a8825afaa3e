"""Homes that older versions of walyoff wrote open with this one, and go on.

The archives are made by `tests/fixtures/make_homes.py`, once for each format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

import walyoff
from tests.fixtures.make_homes import (
    ARCHIVE,
    CHANNEL,
    CONTENTS,
    FOLDER,
    LARGE,
    MESSAGES,
    PASSPHRASES,
    open_home,
    unpack,
)
from walyoff.runtime import Runtime


class Years(Runtime):
    """A clock that is years ahead: homes lie about, and their keys have run out."""

    def wall_ms(self) -> int:
        """Later than any certificate in an archive."""
        return super().wall_ms() + 3 * 365 * 86_400_000


FORMATS = sorted(path.name for path in FOLDER.iterdir())
TIMEOUT_S = 60.0

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("form", FORMATS)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop is enough here: nothing in it depends on the loop."""
    return "asyncio"


@pytest.fixture
def old(home: Path, form: str) -> tuple[Path, dict[str, Any]]:
    """The unpacked homes of a format, and what is in them."""
    unpack(FOLDER / form / ARCHIVE, home)
    return home, json.loads((FOLDER / form / CONTENTS).read_text())


async def test_old_homes_open_are_read_and_talk(old: tuple[Path, dict[str, Any]]) -> None:
    root, about = old
    with anyio.fail_after(TIMEOUT_S):
        # Alone first: all that bob needs is in its home.
        async with open_home(root, "bob", Years()) as bob:
            channel = bob.channel(CHANNEL)
            assert (channel.did, channel.me) == (about["channel"], about["devices"]["bob"])
            assert {m.did for m in channel.members()} == set(about["devices"].values())
            assert await _read(channel, len(MESSAGES)) == _expected(about, MESSAGES)
            assert [m.anchored async for m in channel.history()] == [True] * len(MESSAGES)
            async with open_home(root, "ada", Years()) as ada:
                both = {"ada": ada.channel(CHANNEL), "bob": channel}
                held = await _read(both["ada"], len(MESSAGES) - 1)
                assert held == _expected(about, MESSAGES[:-1])
                # What bob said while ada was away comes now.
                assert (await _read(both["ada"], len(MESSAGES)))[-1][1] == LARGE
                new = [("ada", b"from ada today", ["new"]), ("bob", b"from bob today", [])]
                for author, content, topics in new:
                    receipt = await both[author].send(content, topics=topics)
                    await receipt.wait_received()
                    await receipt.wait_anchored()
                # A device that has committed to no keys begins to, and goes on.
                for _ in range(2):
                    await ada.renew_keys()
                    receipt = await both["ada"].send(b"by new keys")
                    await receipt.wait_received()
                    await receipt.wait_anchored()
                    new.append(("ada", b"by new keys", []))
                assert [path.suffix for path in (root / "ada" / "keys").glob("*.next")]
                for one in both.values():
                    told = await _read(one, len(MESSAGES) + len(new))
                    assert told[-len(new) :] == _expected(about, new)
                    assert not one.status()["forked"]
                    assert not one.status()["faults"]
        # And what today's version wrote, it opens again.
        async with open_home(root, "ada", Years()) as ada:
            again = await _read(ada.channel(CHANNEL), len(MESSAGES) + len(new))
            assert sorted(again) == sorted(_expected(about, MESSAGES + new))


async def test_an_old_passphrase_is_needed(old: tuple[Path, dict[str, Any]]) -> None:
    root, _ = old
    for name, wrong in (("ada", None), ("ada", "not it"), ("bob", "none was set")):
        assert wrong != PASSPHRASES[name]
        with pytest.raises(walyoff.WalyoffError, match="passphrase"):
            async with walyoff.open_device(root / name, passphrase=wrong):
                pass


def _expected(
    about: dict[str, Any], messages: list[tuple[str, bytes, list[str]]]
) -> list[tuple[str, bytes | None, tuple[str, ...]]]:
    return [(about["devices"][a], content, tuple(topics)) for a, content, topics in messages]


async def _read(
    channel: walyoff.Channel, count: int
) -> list[tuple[str, bytes | None, tuple[str, ...]]]:
    """The first messages of the log, waiting for those that are on their way."""
    found = []
    async for message in channel.messages():
        found.append((message.author, message.content, tuple(message.topics)))
        if len(found) == count:
            break
    return found
