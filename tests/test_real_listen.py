"""Devices that listen at other addresses of this machine than the usual one."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

import walyoff
from tests.waiting import HANGS_AFTER
from walyoff.errors import ChildError, LocalProtocolError


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_devices_at_other_addresses_meet_and_keep_them(tmp_path: Path) -> None:
    alice, bob = tmp_path / "a", tmp_path / "b"
    with anyio.fail_after(HANGS_AFTER):
        async with (
            walyoff.open_device(alice, listen=["127.0.0.2"], transports=["ipfs", "tcp"]) as a,
            walyoff.open_device(bob, listen=["127.0.0.3"]) as b,
        ):
            family = await a.create_channel("family")
            theirs = await b.join(await family.invite())
            receipt = await family.send(b"from 127.0.0.2")
            await receipt.wait_received(by=theirs.me)
            before = a.addresses
            assert all("127.0.0.2" in address for address in before)
            assert {address.partition(":")[0] for address in before} == {"ipfs", "tcp"}
            assert all("/ip4/127.0.0.3/" in address for address in b.addresses)
        both = ["ipfs", "tcp"]
        with pytest.raises(LocalProtocolError, match="cannot listen at 203"):
            async with walyoff.open_device(alice, transports=both, listen=["203.0.113.1"]):
                pytest.fail("it opened")
        # What could not be was not kept; and the command line says () where nothing was said.
        async with walyoff.open_device(alice, transports=both, listen=()) as a:
            assert a.addresses == before
        # The machine has lost the address, as one that was carried elsewhere.
        config = alice / "ipfs" / "config"
        config.write_text(config.read_text().replace("/ip4/127.0.0.2/", "/ip4/203.0.113.1/"))
        with pytest.raises(ChildError, match=r"no address 203\.0\.113\.1 any more: .*--listen"):
            async with walyoff.open_device(alice, transports=both):
                pytest.fail("it opened")
        async with walyoff.open_device(alice, listen=["127.0.0.2"], transports=both) as a:
            assert all("127.0.0.2" in address for address in a.addresses)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_name_is_no_address_to_listen_on(tmp_path: Path) -> None:
    with pytest.raises(LocalProtocolError, match="no IP address"):
        async with walyoff.open_device(tmp_path / "a", listen=["localhost"]):
            pytest.fail("it opened")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_long_temporary_folder_does_not_stop_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", None)
    async with walyoff.open_device(tmp_path / "a") as device:
        assert device.addresses
    assert os.listdir(long) == []
