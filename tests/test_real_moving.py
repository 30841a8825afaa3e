"""A device is moved, and a lost one restored, on real chains and nodes."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

import walyoff
from tests.cli_processes import walyoff as command
from tests.fixtures.make_homes import (
    ARCHIVE,
    CHANNEL,
    FOLDER,
    LARGE,
    MESSAGES,
    PASSPHRASES,
    open_home,
    unpack,
)

pytestmark = pytest.mark.anyio

TIMEOUT_S = 600.0
SECRET = "a passphrase for the way"
OLD = {content for _, content, _ in MESSAGES}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop: what depends on it is tried in virtual time, on both."""
    return "asyncio"


@pytest.fixture
def homes(home: Path) -> Path:
    """Two devices of one channel, each with its history."""
    unpack(FOLDER / "format-1" / ARCHIVE, home)
    return home


async def holds(channel: walyoff.Channel, contents: set[bytes]) -> None:
    """Wait until a device has exactly these messages."""
    async for _ in channel.messages():
        if {m.content async for m in channel.history()} == contents:
            return


async def test_a_device_moves_without_its_log_and_the_old_one_is_told(homes: Path) -> None:
    file = homes / "bob.walyoff"
    with anyio.fail_after(TIMEOUT_S):
        async with open_home(homes, "ada") as ada:
            family = ada.channel(CHANNEL)
            await walyoff.export_device(homes / "bob", file, file_passphrase=SECRET)
            assert file.stat().st_mode & 0o777 == 0o600
            # The log stays: it would be at least as large as this one of its messages.
            assert not any(LARGE[at : at + 64] in file.read_bytes() for at in (0, 4096))
            with pytest.raises(walyoff.SupersededError, match="import the file"):
                async with open_home(homes, "bob"):
                    pass
            with pytest.raises(walyoff.StoreError, match="wrong passphrase"):
                await walyoff.import_device(file, homes / "new", file_passphrase="no")
            await walyoff.import_device(
                file, homes / "new", file_passphrase=SECRET, passphrase="at home"
            )
            async with walyoff.open_device(homes / "new", passphrase="at home") as new:
                moved = new.channel(CHANNEL)
                receipt = await moved.send(b"here I am")
                assert receipt.seq == 3
                await receipt.wait_received()
                await receipt.wait_anchored()
                await holds(moved, OLD | {b"here I am"})
                await holds(family, OLD | {b"here I am"})
                # Somebody takes the export back; the members know better.
                assert await walyoff.undo_export(homes / "bob")
                with pytest.raises(walyoff.SupersededError, match="takeover"):
                    async with open_home(homes, "bob"):
                        await anyio.sleep(TIMEOUT_S)
                with pytest.raises(walyoff.SupersededError, match="takeover"):
                    async with open_home(homes, "bob"):
                        pass
                await (await moved.send(b"and I stay")).wait_received()
            assert not family.status()["forked"]


async def test_a_backup_of_a_running_device_is_restored_and_goes_on(homes: Path) -> None:
    backup, secret = homes / "ada.backup", homes / "secret"
    secret.write_text(PASSPHRASES["ada"] or "")
    options = ("--home", str(homes / "ada"), "--passphrase-file", str(secret))
    with anyio.fail_after(TIMEOUT_S):
        async with open_home(homes, "bob") as bob:
            async with open_home(homes, "ada") as ada:
                await holds(ada.channel(CHANNEL), OLD)
                await (await ada.channel(CHANNEL).send(b"before")).wait_received()
                done = await anyio.to_thread.run_sync(
                    lambda: command(*options, "backup", str(backup))
                )
                assert done.returncode == 0, done.stderr
                await (await ada.channel(CHANNEL).send(b"after")).wait_received()
            # The machine is lost. Restored where nobody is, it would say nothing.
            await walyoff.restore_device(backup, homes / "again", passphrase=PASSPHRASES["ada"])
            async with walyoff.open_device(
                homes / "again", passphrase=PASSPHRASES["ada"]
            ) as again:
                channel = again.channel(CHANNEL)
                everything = OLD | {b"before", b"after", b"restored"}
                assert channel.status()["resuming"]
                await (await channel.send(b"restored")).wait_received()
                await holds(channel, everything)
                await holds(bob.channel(CHANNEL), everything)
                assert not bob.channel(CHANNEL).status()["forked"]
