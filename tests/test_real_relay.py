"""A device that nobody can dial: its only path is a relay, which is another device."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.libp2p_support import needs_libp2p
from walyoff import open_device

pytestmark = [needs_libp2p, pytest.mark.anyio]

BOUND_S = 600.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop: the transport has its own."""
    return "asyncio"


def choose_services(home: Path, text: str) -> None:
    """What a person writes before the first start."""
    folder = home / "transports" / "libp2p"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "services.toml").write_text(text)


async def test_a_device_behind_a_relay_invites_and_talks(home: Path) -> None:
    use = ["libp2p"]
    choose_services(home / "relay", "serve = true")
    with anyio.fail_after(BOUND_S):
        async with open_device(home / "relay", transports=use) as relay:
            (at,) = relay.addresses
            host = at.removeprefix("libp2p:")
            choose_services(home / "hidden", f'relays = ["{host}"]\nlisten = false')
            async with (
                open_device(home / "hidden", transports=use) as hidden,
                open_device(home / "caller", transports=use) as caller,
            ):
                while not hidden.addresses:  # noqa: ASYNC110 - a place at the relay has no event
                    await anyio.sleep(0.05)
                (address,) = hidden.addresses
                assert address.startswith(f"{at}/p2p-circuit/")
                a = await hidden.create_channel("family")
                b = await caller.join(await a.invite())
                await (await b.send(b"to who cannot be dialled")).wait_received(by=a.me)
                await (await a.send(b"and back")).wait_received(by=b.me)
                assert [m.content async for m in a.history()] == [
                    b"to who cannot be dialled",
                    b"and back",
                ]
                # The relay carries it, and is no member.
                assert relay.channels() == []
                session = b.connections.session(a.me)
                assert session is not None
                assert session.path == "libp2p"
