"""Relays and the DHT, on loopback: who does not listen is reached, who moved is found."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.libp2p_support import needs_libp2p
from tests.waiting import HANGS_AFTER
from walyoff.errors import LocalProtocolError, RemoteProtocolError, TransportError

pytestmark = needs_libp2p

libp2p_node = pytest.importorskip("walyoff_transports.libp2p_node", exc_type=ImportError)
libp2p_relay = pytest.importorskip("walyoff_transports.libp2p_relay", exc_type=ImportError)
libp2p_dht = pytest.importorskip("walyoff_transports.libp2p_dht", exc_type=ImportError)

from walyoff_transports.libp2p_settings import (  # noqa: E402
    FILE,
    Services,
    decode_services,
    peer_of,
    read_services,
)

from tests.test_libp2p_guards import Echo, exchange, run  # noqa: E402


@asynccontextmanager
async def node(state: Path, services: Services, **settings: Any) -> AsyncIterator[Echo]:
    await trio.Path(state).mkdir(exist_ok=True)
    echo = Echo()
    if not services.listen:
        settings["hosts"] = ()
    made = libp2p_node.Settings(state_dir=state, services=services, **settings)
    async with libp2p_node.run_node(made, echo.accept) as echo.node:
        await echo.node.listen(True)
        try:
            yield echo
        finally:
            for sock in echo.accepted:
                sock.close()


async def until(condition: Any) -> Any:
    with trio.fail_after(HANGS_AFTER):
        while not (found := condition()):  # noqa: ASYNC110 - hosts have no events for it
            await trio.sleep(0.02)
    return found


async def reached(one: Echo, other: Echo, address: str) -> tuple[Any, Any]:
    """A stream over one address, as sockets: near and far."""
    near, far = socket.socketpair()
    count = len(other.accepted)
    await one.node.open(address, other.node.peer_id, far)
    await until(lambda: len(other.accepted) > count)
    return trio.socket.from_stdlib_socket(near), trio.socket.from_stdlib_socket(
        other.accepted[-1]
    )


# ------------------------------------------------------------------------------- relay


def test_who_does_not_listen_is_reached_through_its_relay(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            relay = await enter(node(tmp_path / "r", Services(serve=True)))
            use = Services(relays=(relay.node.addresses[0],), listen=False)
            hidden = await enter(node(tmp_path / "h", use))
            callers = [await enter(node(tmp_path / name, Services())) for name in ("a", "b")]
            assert hidden.node.addresses == ()
            (address,) = await until(hidden.node.all_addresses)
            assert "/p2p-circuit/" in address
            # Nobody reserves a place for somebody else.
            assert libp2p_relay.relay_of(address) == (
                relay.node.addresses[0],
                relay.node.peer_id,
            )
            streams = [await reached(caller, hidden, address) for caller in callers]
            for near, far in streams:
                await exchange(near, far)
            blob = os.urandom(600_000)
            near, far = streams[0]
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    view = memoryview(blob)
                    while view:
                        view = view[await near.send(view) :]

                nursery.start_soon(send)
                got = bytearray()
                while len(got) < len(blob):
                    part = await far.recv(1 << 20)
                    assert part
                    got += part
            assert got == blob
            # The end of one circuit is not that of another to the same host.
            await callers[0].connection(hidden).close()
            await trio.sleep(0.3)
            await exchange(*streams[1])
            for pair in streams:
                for end in pair:
                    end.close()

    run(test)


def test_a_place_at_a_relay_that_was_away_is_taken_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            serve = Services(serve=True)
            async with node(tmp_path / "r", serve) as relay:
                at = relay.node.addresses[0]
            hidden = await enter(node(tmp_path / "h", Services(relays=(at,), listen=False)))
            caller = await enter(node(tmp_path / "a", Services()))
            async with node(tmp_path / "r", serve):
                (address,) = await until(hidden.node.all_addresses)
            await until(lambda: not hidden.node.all_addresses())
            async with node(tmp_path / "r", serve):
                assert await until(hidden.node.all_addresses) == (address,)
                near, far = await reached(caller, hidden, address)
                await exchange(near, far)
                near.close()

    run(test)


def test_without_a_place_nobody_is_reached_through_a_host(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            relay = await enter(node(tmp_path / "r", Services(serve=True)))
            idle = await enter(node(tmp_path / "i", Services()))
            caller = await enter(node(tmp_path / "a", Services()))
            await idle.node.connect(relay.node.addresses[0], relay.node.peer_id)
            address = f"{relay.node.addresses[0]}/p2p-circuit/p2p/{idle.node.peer_id}"
            elsewhere = f"{idle.node.addresses[0]}/p2p-circuit/p2p/{peer_of(HOST)}"
            with pytest.raises(TransportError):
                await caller.node.connect(address, idle.node.peer_id)
            with pytest.raises(TransportError):
                # It does not relay at all.
                await caller.node.connect(elsewhere, peer_of(HOST))

    run(test)


@pytest.mark.parametrize("protocol", [libp2p_relay.HOP, libp2p_relay.STOP, libp2p_dht.KAD])
def test_garbage_for_a_service_does_not_harm_the_host(tmp_path: Path, protocol: str) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            relay = await enter(node(tmp_path / "r", Services(serve=True)))
            use = Services(relays=(relay.node.addresses[0],))
            serving = await enter(node(tmp_path / "s", use))
            caller = await enter(node(tmp_path / "a", Services()))
            await until(lambda: serving.node.relays.addresses)
            victim = serving if protocol == libp2p_relay.STOP else relay
            for size in (1, 50, 5_000):
                with suppress(Exception):
                    stream = await caller.node._open_protocol(
                        victim.node.addresses[0], victim.node.peer_id, protocol
                    )
                    await stream.write(os.urandom(size))
                    await stream.close()
            await trio.sleep(0.2)
            near, far = await reached(caller, victim, victim.node.addresses[0])
            await exchange(near, far)
            near.close()

    run(test)


# --------------------------------------------------------------------------------- DHT


def test_who_moved_is_found_by_its_peer_id(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            serving = await enter(node(tmp_path / "s", Services(serve=True)))
            use = Services(dht=(serving.node.addresses[0],))
            async with node(tmp_path / "m", use) as moving:
                before = moving.node.addresses[0]
            (tmp_path / "m" / "port").unlink()
            moving = await enter(node(tmp_path / "m", use))
            assert moving.node.addresses[0] != before
            caller = await enter(node(tmp_path / "a", use))
            lost = await enter(node(tmp_path / "b", Services()))
            found = await until_found(caller, moving.node.peer_id)
            assert found == [moving.node.addresses[0]]
            near, far = await reached(caller, moving, before)
            await exchange(near, far)
            near.close()
            with pytest.raises(TransportError):
                await lost.node.connect(before, moving.node.peer_id, look_up=True)

    run(test)


async def until_found(caller: Echo, peer: str) -> list[str]:
    with trio.fail_after(HANGS_AFTER):
        while True:
            if found := await caller.node.dht.find(peer):
                return list(found)
            await trio.sleep(0.05)


def test_who_is_behind_a_relay_is_found_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            serving = await enter(node(tmp_path / "s", Services(serve=True)))
            at = (serving.node.addresses[0],)
            use = Services(relays=at, dht=at, listen=False)
            hidden = await enter(node(tmp_path / "h", use))
            caller = await enter(node(tmp_path / "a", Services(dht=at)))
            found = await until_found(caller, hidden.node.peer_id)
            assert found == list(hidden.node.all_addresses())
            nowhere = f"/ip4/127.0.0.1/tcp/9/p2p/{hidden.node.peer_id}"
            near, far = await reached(caller, hidden, nowhere)
            await exchange(near, far)
            near.close()

    run(test)


def test_a_record_that_somebody_else_signed_does_not_count(tmp_path: Path) -> None:
    keys = [libp2p_dht_key(number) for number in range(2)]
    message = libp2p_dht.Message()
    for owner, signer in ((0, 0), (0, 1)):
        peer = libp2p_dht.ID.from_pubkey(keys[owner].public_key)
        claimed = libp2p_dht.ID.from_pubkey(keys[signer].public_key)
        address = libp2p_dht.Multiaddr(f"/ip4/10.0.{owner}.{signer}/tcp/1")
        record = libp2p_dht.create_signed_peer_record(
            claimed, [address], keys[signer].private_key
        )
        closer = message.closerPeers.add()
        closer.id = peer.to_bytes()
        closer.signedRecord = record.marshal_envelope()
        found = libp2p_dht.decode_closer(message.SerializeToString())
        (addresses,) = found.values()
        assert bool(addresses) == (owner == signer)


def libp2p_dht_key(number: int) -> Any:
    from libp2p.crypto.ed25519 import create_new_key_pair

    return create_new_key_pair(bytes([number + 1]) * 32)


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x0a", os.urandom(200)], ids=["tag", "cut off", "noise"]
)
def test_an_answer_that_makes_no_sense_is_a_protocol_error_or_nothing(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert libp2p_dht.decode_closer(data) == {}


# ---------------------------------------------------------------------------- settings

HOST = "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"


def test_services_are_read_from_the_transports_folder(tmp_path: Path) -> None:
    assert read_services(tmp_path) == Services()
    (tmp_path / FILE).write_text(f'relays = ["{HOST}"]\ndht = ["{HOST}"]\nlisten = false\n')
    assert read_services(tmp_path) == Services(relays=(HOST,), dht=(HOST,), listen=False)
    assert peer_of(HOST).startswith("12D3")


@pytest.mark.parametrize(
    "text",
    [
        "relays = [",
        'relays = "x"',
        'relays = ["localhost"]',
        "serve = 1",
        "other = true",
        "listen = false\nserve = true",
        f"dht = {[HOST] * 9}",
    ],
)
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(LocalProtocolError):
        read_services(tmp_path)


def test_an_unknown_service_names_those_that_there_are() -> None:
    with pytest.raises(LocalProtocolError, match="relays"):
        decode_services({"relay": []}, "here")
