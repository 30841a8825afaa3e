"""Control keys that renew and reach the members, and devices that leave by themselves."""

from __future__ import annotations

from unittest import mock

import anyio
import pytest

from tests.sim.virtual import group, in_virtual_time, read, run
from tests.test_security_removal import contents, until
from walyoff import Channel, frames
from walyoff.abc import Governance
from walyoff.engine.control_keys import RENEW_AFTER_MS
from walyoff.errors import LedgerError, LocalProtocolError, NotAMemberError
from walyoff.testing.platform import SimPlatform


def governance(channel: Channel) -> Governance:
    return channel.foundation.identity.membership.governance


def held(channel: Channel) -> bool:
    """True if the device has the newest control keys."""
    return not governance(channel).lacking


@in_virtual_time
async def test_renewed_control_keys_reach_all_members_while_messages_flow() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        first = governance(a).newest_key
        for n in range(5):
            await a.send(b"%d" % n)
            if n == 2:
                await b.renew_control_keys()
        await until(lambda: all(governance(x).newest_key != first for x in g.channels))
        await until(lambda: all(held(x) for x in g.channels))
        assert len({governance(x).newest_key for x in g.channels}) == 1
        await until(lambda: b.keys_given() == sorted([a.me, c.me]))
        assert await read(c, 5) == [b"%d" % n for n in range(5)]


@in_virtual_time
async def test_a_devices_own_control_keys_are_renewed_by_age() -> None:
    renewed: list[str] = []
    renew = SimPlatform.renew_device

    async def note(self: SimPlatform, did: str) -> None:
        renewed.append(did)
        if renewed.count(did) == 1:
            raise LedgerError("not now")
        await renew(self, did)

    with (
        mock.patch("walyoff.own_keys.CHECK_EVERY_S", 10.0),
        mock.patch("walyoff.own_keys.RENEW_AFTER_MS", 100_000),
        mock.patch.object(SimPlatform, "renew_device", note),
    ):
        async with group(2) as g:
            a, b = g.channels
            first = a.engine.credentials.certificate.certificate_id
            # From the first look on it is known how old they are.
            await anyio.sleep(100)
            assert renewed == []
            await anyio.sleep(40)
            # One that failed is tried again, and then not before its time.
            assert [did for did in renewed if did == a.me] == [a.me, a.me]
            await anyio.sleep(60)
            assert [did for did in renewed if did == a.me] == [a.me, a.me]
            # What it signs by is certified by the new ones.
            assert a.engine.credentials.certificate.certificate_id != first
            await a.send(b"after")
            assert await read(b, 1) == [b"after"]


@in_virtual_time
async def test_a_device_that_was_away_gets_the_keys_from_whom_it_meets_first() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        g.world.network.partition("a", "c")
        g.world.network.partition("b", "c")
        await anyio.sleep(15)
        await a.renew_control_keys()
        await until(lambda: held(b) and governance(b) == governance(b))
        await until(lambda: governance(b).newest_key == governance(a).newest_key)
        assert governance(c).newest_key != governance(a).newest_key
        # Its author never meets it again.
        g.world.network.repair()
        g.world.network.partition("a", "c")
        await until(
            lambda: governance(c).newest_key == governance(b).newest_key and held(c),
            within=120,
        )


@in_virtual_time
async def test_a_remaining_member_renews_when_one_has_left() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        first = governance(a).newest_key
        await c.leave()
        assert g.devices[2].channels() == []
        await until(lambda: [m.did for m in a.members()] == [a.me, b.me])
        await until(lambda: governance(a).newest_key != first and not governance(a).renewal_due)
        await until(lambda: held(a) and held(b))
        # Nobody gives them to the one who left: what it asks for is not answered.
        g.world.network.repair()
        newest = governance(a).newest_key
        everybody = g.world.control_keys.items()
        assert all(newest not in keys for (did, _), keys in everybody if did == c.me)
        await (await a.send(b"after")).wait_received(by=b.me)


@in_virtual_time
async def test_who_would_have_renewed_gets_anothers_keys_at_once() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        await c.leave()
        await until(lambda: governance(a).renewal_due and governance(b).renewal_due)
        renewed = anyio.current_time()
        await a.renew_control_keys()
        await until(lambda: not governance(b).renewal_due and held(b))
        assert anyio.current_time() - renewed < 1


@in_virtual_time
async def test_who_left_is_told_of_by_all_who_are_connected_before_it_closes() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        await (await c.send(b"my last word")).wait_received(by=[a.me, b.me])
        await c.leave()
        assert c.me not in a.peers()
        assert c.me not in b.peers()
        assert c.me not in {m.did for m in a.members()} | {m.did for m in b.members()}
        assert b"my last word" in await contents(a)
        with pytest.raises(NotAMemberError):
            await c.send(b"too late")


@in_virtual_time
async def test_who_left_comes_back_with_its_log_or_without() -> None:
    async with group(2) as g:
        a, b = g.channels
        device = g.devices[1]
        for number, erase in enumerate((False, True)):
            await (await b.send(b"from b %d" % number)).wait_received(by=a.me)
            await (await a.send(b"from a %d" % number)).wait_received(by=b.me)
            before = await contents(b)
            await b.leave(erase=erase)
            keys = await device.store.keys("")
            assert not [
                k
                for k in keys
                if b.did in k
                and "retired" not in k
                and "cert" not in k
                and "removal" not in k
                and "resume" not in k
                and "unused" not in k
            ]
            top = await device.store.channel(b.did).top()
            kept = await device.store.channel(b.did).log(after=0, limit=100)
            assert (not kept) == erase
            assert top == len(before) or erase
            await until(lambda: len(a.members()) == 1)
            b = await device.join(await a.invite())
            await until_holds(b, before)
            # It goes on in its own row, and contradicts nothing that it said before.
            await (await b.send(b"again %d" % number)).wait_received(by=a.me)
            assert a.reports() == []
            assert await contents(a) >= {b"again %d" % number, *before}


async def until_holds(channel: Channel, wanted: set[bytes]) -> None:
    with anyio.fail_after(60):
        while not wanted <= await contents(channel):  # noqa: ASYNC110 - the clock is virtual
            await anyio.sleep(0.1)


def test_a_leaving_that_was_interrupted_is_finished_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with group(2) as g:
            a, b = g.channels
            platform = g.devices[1].platform

            async def dies(did: str) -> None:
                raise RuntimeError("the process was killed here")

            monkeypatch.setattr(platform, "forget", dies)
            with pytest.raises(RuntimeError):
                await b.leave()
            monkeypatch.undo()
            assert await g.devices[1].store.get(f"epochs/{b.did}") is not None
            await until(lambda: len(a.members()) == 1)
        async with g.world.device("b") as device:
            assert device.channels() == []
            assert await device.store.get(f"epochs/{b.did}") is None

    run("asyncio", main)


def test_control_keys_are_renewed_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walyoff.engine.control_keys.AGE_EVERY_S", 20.0)

    async def main() -> None:
        async with group(2) as g:
            a, b = g.channels
            first = governance(a).newest_key
            await anyio.sleep(60)
            assert governance(a).newest_key == first
            for device in g.devices:
                device.runtime._skew_ms = RENEW_AFTER_MS  # type: ignore[attr-defined]
            await anyio.sleep(60)
            assert governance(a).newest_key == governance(b).newest_key != first
            assert held(a)
            assert held(b)

    run("asyncio", main)


@in_virtual_time
async def test_keys_that_nobody_asked_for_and_rubbish_do_no_harm() -> None:
    async with group(2) as g:
        a, b = g.channels
        before = governance(b)
        for link in list(a.engine.links.values()):
            link.send(frames.ControlKeys(b"rubbish"))
            link.send(frames.WantControlKeys((bytes(range(32)),)))
        await anyio.sleep(1)
        assert governance(b) == before
        await (await a.send(b"on")).wait_received(by=b.me)


@in_virtual_time
async def test_who_is_out_neither_renews_nor_names_admins() -> None:
    async with group(2) as g:
        a, b = g.channels
        await a.remove(b.me)
        await until(lambda: len(b.members()) == 1)
        with pytest.raises(NotAMemberError):
            await b.renew_control_keys()
        with pytest.raises(NotAMemberError):
            await b.make_admin(b.me)
        with pytest.raises(LocalProtocolError):
            await a.remove(a.me)
        with pytest.raises(LocalProtocolError):
            await a.make_admin(a.me)
