"""Devices find each other again after their addresses have changed."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from walyoff_transports.libp2p import parse_address

from tests.libp2p_support import needs_libp2p
from tests.test_interop_devices import group, join, wait_for
from tests.waiting import HANGS_AFTER
from walyoff import Device

pytestmark = [needs_libp2p, pytest.mark.anyio]


@pytest.fixture(scope="module", params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def move(home: Path, name: str, transport: str = "libp2p") -> None:
    """Let a device listen somewhere else when it starts the next time."""
    if transport == "ipfs":
        path = home / name / "ipfs" / "config"
        config = json.loads(path.read_text())
        config["Addresses"]["Swarm"] = ["/ip4/127.0.0.1/tcp/0"]
        path.write_text(json.dumps(config))
    else:
        (home / name / "transports" / transport / "port").unlink()


def port(device: Device, transport: str = "libp2p") -> str:
    (address,) = (a for a in device.addresses if a.startswith(f"{transport}:"))
    multiaddr, _ = parse_address(address)
    return multiaddr.split("/")[4]


async def test_a_device_that_moved_finds_those_that_stayed(home: Path) -> None:
    async with group(home) as g:
        await g.open("a", "libp2p")
        await g.open("b", "libp2p")
        await g.devices["a"].create_channel("family")
        await join(g, "a", "b")
        before = port(g.devices["b"])
        await g.close("b")
        move(home, "b")
        await g.open("b")
        assert port(g.devices["b"]) != before
        await g.channel("a").wait_peer(g.channel("b").me)
        # And what moved is known now: it is reached when the other one comes back.
        await g.close("a")
        await g.open("a")
        with anyio.fail_after(HANGS_AFTER):
            await g.channel("a").wait_peer(g.channel("b").me)


@pytest.mark.parametrize("transport", ["libp2p", "ipfs"])
async def test_two_that_both_moved_find_each_other_through_a_third(
    home: Path, transport: str
) -> None:
    async with group(home) as g:
        for name in ("a", "b", "c"):
            await g.open(name, transport)
        await g.devices["c"].create_channel("family")
        await join(g, "c", "a")
        await join(g, "c", "b")
        await g.channel("a").wait_peer(g.channel("b").me)
        before = {name: port(g.devices[name], transport) for name in ("a", "b")}
        for name in ("a", "b"):
            await g.close(name)
            move(home, name, transport)
        for name in ("a", "b"):
            await g.open(name)
            assert port(g.devices[name], transport) != before[name]
        with anyio.fail_after(HANGS_AFTER):
            await g.channel("a").wait_peer(g.channel("b").me)


async def test_two_that_both_moved_find_each_other_on_a_local_network(home: Path) -> None:
    """The broadcasts of `tcp` need no connection, and name the addresses of all transports."""
    async with group(home) as g:
        for name in ("a", "b"):
            await g.open(name, "libp2p", "tcp")
        await g.devices["a"].create_channel("family")
        await join(g, "a", "b")
        for name in ("a", "b"):
            await g.close(name)
            move(home, name)
        for name in ("a", "b"):
            await g.open(name)
        with anyio.fail_after(HANGS_AFTER):
            await g.channel("a").wait_peer(g.channel("b").me)
        await g.channel("a").send(b"found")
        await wait_for(g.channel("b"), {b"found"})
