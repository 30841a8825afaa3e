"""Files as they are sent and saved: what changes, what is not there, what is hostile, 4 GiB."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from tests.waiting import HANGS_AFTER
from walyoff import Channel, open_device
from walyoff import attachments as module
from walyoff import files as files_module
from walyoff.abc import Store
from walyoff.attaching import _File
from walyoff.attachments import Attachment, AttachmentState
from walyoff.errors import LocalProtocolError
from walyoff.manifest import Manifest, encode_manifest
from walyoff.platform import Platform
from walyoff.records import CHUNK_SIZE
from walyoff.stores import open_store
from walyoff.testing.platform import SimPlatform
from walyoff.testing.world import SimWorld

pytestmark = pytest.mark.anyio
MIB = CHUNK_SIZE


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def channel_in(folder: Path) -> AsyncIterator[Channel]:
    """A channel of one device with a real store."""
    world = SimWorld(1)

    @asynccontextmanager
    async def platform(home: Path) -> AsyncIterator[Platform]:
        yield SimPlatform(world, "a")

    def store(home: Path, passphrase: str | None) -> AbstractAsyncContextManager[Store]:
        return open_store(home, passphrase=passphrase)

    async with open_device(
        folder, transports={}, suite="classic-1", platform=platform, store=store
    ) as device:
        yield await device.create_channel("family")


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[Channel]:
    async with channel_in(tmp_path / "home") as found:
        yield found


async def last(channel: Channel) -> Attachment:
    message = (await channel.attachments())[-1]
    assert message.attachment is not None
    return message.attachment


async def test_a_file_is_sent_and_saved(channel: Channel, tmp_path: Path) -> None:
    data = os.urandom(2 * MIB + 99)
    file = tmp_path / "photo.jpg"
    file.write_bytes(data)
    told: list[int] = []
    await channel.send_file(file, caption="look", progress=told.append)
    assert sorted(told)[-1] == len(data)
    message = (await channel.last(1))[0]
    found = message.attachment
    assert message.content == b"look"
    assert found is not None
    assert (found.name, found.media_type) == ("photo.jpg", "image/jpeg")
    assert found.state == AttachmentState.HELD
    out = tmp_path / "out"
    out.mkdir()
    assert await found.save(out) == out / "photo.jpg"
    assert (out / "photo.jpg").read_bytes() == data
    assert (out / "photo.jpg").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        await found.save(out)
    (out / "photo.jpg").write_bytes(b"old")
    await found.save(out, overwrite=True)
    assert (out / "photo.jpg").read_bytes() == data
    await found.save(out / "other")
    assert sorted(path.name for path in out.iterdir()) == ["other", "photo.jpg"]


async def test_a_file_of_no_bytes(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    await channel.send_file(tmp_path / "empty")
    found = await last(channel)
    assert (found.size, found.state) == (0, AttachmentState.HELD)
    assert (await found.save(tmp_path / "again")).read_bytes() == b""


@pytest.mark.parametrize("how", ["longer", "shorter", "other bytes"])
async def test_a_file_that_changes_meanwhile_is_not_sent(
    channel: Channel, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "film"
    file.write_bytes(os.urandom(3 * MIB))
    read = _File._read

    def change(self: _File, at: int) -> bytes:
        if at == MIB:
            if how == "longer":
                with file.open("ab") as end:
                    end.write(b"more")
            elif how == "shorter":
                os.truncate(file, 2 * MIB)
            else:
                os.utime(file, ns=(1, 1))
        return read(self, at)

    monkeypatch.setattr(_File, "_read", change)
    with pytest.raises(LocalProtocolError, match="changed while it was read"):
        await channel.send_file(file)
    assert await channel.attachments() == []
    assert channel.status()["messages"] == 0


async def test_what_is_no_file_or_cannot_be_read_is_told(
    channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        await channel.send_file(tmp_path / "nothing")
    with pytest.raises(LocalProtocolError, match="is not a file"):
        await channel.send_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with (
        anyio.fail_after(HANGS_AFTER),
        pytest.raises(LocalProtocolError, match="is not a file"),
    ):
        await channel.send_file(tmp_path / "pipe")
    with pytest.raises(LocalProtocolError, match="is not a file"):
        await channel.send_file("/dev/zero")
    (tmp_path / "secret").write_bytes(b"x")

    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "secret")

    # As root every file can be read, so the system's answer is given here.
    with monkeypatch.context() as patch:
        patch.setattr("walyoff.attaching.os.open", denied)
        with pytest.raises(PermissionError, match="Permission denied"):
            await channel.send_file(tmp_path / "secret")
    assert channel.status()["messages"] == 0


async def test_names_of_others_never_leave_the_folder(channel: Channel, tmp_path: Path) -> None:
    out = tmp_path / "out" / "deep"
    out.mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x")
    await channel.send_file(tmp_path / "file")
    found = await last(channel)
    for name in ("../../evil", "/etc/evil", "a\x00b", "x\n\x1b[2J", "..", "con", "a\\b"):
        hostile = Manifest(caption=b"", name=name, media_type="a/b", size=1, ids=bytes(32))
        decoded = module.Attachment(
            name=__import__("walyoff.manifest")
            .manifest.decode_manifest(encode_manifest(hostile))
            .name,
            media_type="a/b",
            size=1,
            _record_id=found._record_id,
            _manifest=found._manifest,
            _engine=found._engine,
        )
        target = await decoded.save(out, overwrite=True)
        assert target.parent == out
        assert target.name.isprintable()
    assert set(os.listdir(tmp_path)) == {"home", "file", "out"}
    assert list((tmp_path / "out").iterdir()) == [out]


async def test_a_full_disk_while_saving_leaves_no_file(
    channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film").write_bytes(os.urandom(3 * MIB))
    await channel.send_file(tmp_path / "film")
    out = tmp_path / "out"
    out.mkdir()
    count = 0
    write = files_module.write_all

    def full(descriptor: int, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_all", full)
        with pytest.raises(OSError, match="No space left"):
            await (await last(channel)).save(out)
    assert list(out.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        await (await last(channel)).save(out / "no" / "such")
    with anyio.move_on_after(0) as scope:
        await (await last(channel)).save(out)
    assert scope.cancelled_caught
    assert list(out.iterdir()) == []


def stop(scope: anyio.CancelScope, done: int) -> None:
    if done >= 4 * MIB:
        scope.cancel()


async def test_cancelled_sends_are_taken_up(channel: Channel, tmp_path: Path) -> None:
    data = os.urandom(12 * MIB)
    (tmp_path / "film").write_bytes(data)
    with anyio.CancelScope() as scope:
        await channel.send_file(tmp_path / "film", progress=lambda done: stop(scope, done))
    assert scope.cancelled_caught
    assert await channel.attachments() == []
    files = {path for path in (tmp_path / "home" / "chunks").rglob("*") if path.is_file()}
    assert len(files) >= 4
    await channel.send_file(tmp_path / "film")
    again = {path for path in (tmp_path / "home" / "chunks").rglob("*") if path.is_file()}
    assert files <= again
    assert len(again) == 12
    assert (await (await last(channel)).save(tmp_path / "out")).read_bytes() == data


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_four_gigabytes_take_little_memory(channel: Channel, tmp_path: Path) -> None:
    size = 4 * 2**30
    file = tmp_path / "disk.img"
    with file.open("wb") as sparse:
        sparse.truncate(size)
        sparse.seek(size - 5)
        sparse.write(b"the e")
    tracemalloc.start()
    await channel.send_file(file)
    found = await last(channel)
    async with found.open() as stream:
        assert await stream.receive(100) == bytes(100)
        stream._place = 4095
        stream._piece = memoryview(b"")
        end = await stream.next_chunk()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert end is not None
    assert end.endswith(b"the e")
    assert found.size == size
    assert found.state == AttachmentState.HELD
    assert peak < 24 * MIB
