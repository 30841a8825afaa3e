"""Hosts that know nothing of each other meet by mDNS."""

from __future__ import annotations

import threading

import anyio
import pytest
from walyoff_transports.libp2p import libp2p_transport
from walyoff_transports.libp2p_settings import Services

from tests.libp2p_support import needs_libp2p
from tests.waiting import HANGS_AFTER
from walyoff.testing.transports import temporary_hosts

pytestmark = [needs_libp2p, pytest.mark.anyio]


async def test_two_that_were_never_told_of_each_other_hear_each_other() -> None:
    opener = libp2p_transport(services=Services(mdns=True))
    with anyio.fail_after(HANGS_AFTER), temporary_hosts(2) as (one, two):
        async with opener(one) as a, opener(two) as b, a.subscribe("topic") as heard:
            payload = b""
            while payload != b"hello":
                await b.broadcast("topic", b"hello")
                with anyio.move_on_after(0.3):
                    payload = (await heard.receive()).payload
    assert not [t.name for t in threading.enumerate() if "zeroconf" in t.name]


async def test_without_the_option_nobody_is_found() -> None:
    with anyio.fail_after(HANGS_AFTER), temporary_hosts(2) as (one, two):
        async with (
            libp2p_transport(services=Services(mdns=True))(one) as a,
            libp2p_transport()(two) as b,
            a.subscribe("topic") as heard,
        ):
            with anyio.move_on_after(3) as scope:
                while True:
                    await b.broadcast("topic", b"hello")
                    with anyio.move_on_after(0.3):
                        await heard.receive()
                        break
            assert scope.cancelled_caught
