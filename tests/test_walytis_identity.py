"""Identities and ledgers over real Kubo and Walytis, in two children."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path

import anyio
import pytest

from tests.waiting import HANGS_AFTER, free_time, until
from walyoff.abc import Identity, Ledger
from walyoff.child.blocks import cid_of, decode_block
from walyoff.child.renewal_files import ENDING, decode_kept
from walyoff.errors import (
    LocalProtocolError,
    NotAMemberError,
    PayloadTooLargeError,
    RemoteProtocolError,
    WalyoffError,
)
from walyoff.sockets import UnixListener, connect_unix
from walyoff.walytis.decoding import decode_grant
from walyoff.walytis.identity import WalytisIdentity
from walyoff.walytis.ledger import WalytisLedger, import_chain
from walyoff.walytis.process import Child, open_child
from walyoff.wire import pack, unpack

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def children(tmp_path: Path, *names: str) -> AsyncIterator[list[Child]]:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_child(tmp_path / n)) for n in names]
        for child in opened[1:]:
            await child.connect(opened[0].addresses[0])
        yield opened


async def joined(first: Child, second: Child) -> tuple[WalytisIdentity, WalytisIdentity]:
    """One identity with two devices."""
    did_1, _ = await WalytisIdentity.create_device_did(first)
    did_2, pin_2 = await WalytisIdentity.create_device_did(second)
    mine = await WalytisIdentity.create(first, did_1)
    chain = await WalytisIdentity.export_did(second, did_2)
    await mine.add_member(did_2, chain, pin=pin_2)
    theirs = await WalytisIdentity.adopt(second, await mine.grant(), did_2)
    return mine, theirs


async def next_payload(stream: object, timeout: float = HANGS_AFTER) -> bytes:
    with anyio.fail_after(timeout):
        block = await stream.receive()  # type: ignore[attr-defined]
    return bytes(block.payload)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_two_devices_share_members_and_ledger(tmp_path: Path) -> None:
    async with children(tmp_path, "a", "b") as (a, b):
        mine, theirs = await joined(a, b)
        assert [m.did for m in mine.membership.current()] == [
            m.did for m in theirs.membership.current()
        ]
        assert len(theirs.membership.current()) == 2
        assert all(len(m.pin) == 32 for m in theirs.membership.members)
        assert not theirs.membership.refused
        ledger_a, ledger_b = await mine.ledger(), await theirs.ledger()
        async with ledger_a.blocks() as at_a, ledger_b.blocks() as at_b:
            await _until_peers(a, ledger_a.chain_id)
            # Closing one of two ledgers of a chain leaves the other its chain.
            await (await mine.ledger()).aclose()
            first = await ledger_a.append(b"one")
            assert await next_payload(at_b) == b"one"
            assert await next_payload(at_a) == b"one"
            second = await ledger_b.append(b"two")
            assert second.ref != first.ref
            assert await next_payload(at_a) == b"two"
            assert await next_payload(at_b) == b"two"
        await ledger_a.aclose()
        await ledger_a.aclose()
        with pytest.raises(LocalProtocolError):
            await ledger_a.append(b"closed")
        await ledger_b.aclose()


async def test_certificates_of_members_verify_and_others_do_not(tmp_path: Path) -> None:
    async with children(tmp_path, "a", "b") as (a, b):
        mine, theirs = await joined(a, b)
        signature = await theirs.certify(b"body")
        await mine.verify(theirs.member_did, b"body", signature)
        with pytest.raises(RemoteProtocolError):
            await mine.verify(theirs.member_did, b"other", signature)
        with pytest.raises(RemoteProtocolError):
            await mine.verify(mine.member_did, b"body", signature)
        with pytest.raises(RemoteProtocolError):
            await mine.verify(theirs.member_did, b"body", b"rubbish")
        stranger, _ = await WalytisIdentity.create_device_did(b)
        with pytest.raises(NotAMemberError):
            await mine.verify(stranger, b"body", signature)


async def test_removed_member_is_no_longer_current_everywhere(tmp_path: Path) -> None:
    async with children(tmp_path, "a", "b") as (a, b):
        mine, theirs = await joined(a, b)
        async with theirs, theirs.changes() as changes:
            await _until_peers(a, mine.did.split(":")[-1])
            await mine.remove_member(theirs.member_did)
            with anyio.fail_after(HANGS_AFTER):
                while True:
                    membership = await changes.receive()
                    if [m.did for m in membership.current()] == [mine.member_did]:
                        break
        await mine.remove_member(theirs.member_did)
        chain = await WalytisIdentity.export_did(b, theirs.member_did)
        await mine.add_member(theirs.member_did, chain)
        await mine.add_member(theirs.member_did, chain)
        last = mine.membership.members[-1]
        assert (last.did, last.current, last.joined_at) == (theirs.member_did, True, 3)


async def test_forged_joining_of_an_outsider_is_counted_and_ignored(tmp_path: Path) -> None:
    async with children(tmp_path, "a", "b", "outsider") as (a, b, outsider):
        mine, theirs = await joined(a, b)
        chain = mine.did.split(":")[-1]
        evil_did, _ = await WalytisIdentity.create_device_did(outsider)
        evil = await WalytisIdentity.create(outsider, evil_did)
        # The outsider has followed the public chain, and writes to it by stock code.
        await import_chain(outsider, chain, (await mine.sync_files())[chain])
        await outsider.call("chain.open", {"chain": chain})
        await _until_peers(outsider, chain)
        signature = (await evil.certify(json.dumps({"did": evil_did}).encode())).hex()
        forged = {
            "info_content": {"did": evil_did, "invitation": "{}"},
            "signature": signature,
            "priblocks_version": [0, 0, 1],
        }
        args = {
            "chain": chain,
            "content": json.dumps(forged).encode(),
            "topics": ["GroupDidManager", "member_joining"],
        }
        async with theirs:
            await outsider.call("chain.append", args)
            await until(lambda: theirs.membership.refused)
        assert sum(theirs.membership.refused.values()) == 1
        assert evil_did not in [m.did for m in theirs.membership.members]
        # And the group goes on after it.
        await mine.remove_member(theirs.member_did)
        assert [m.did for m in mine.membership.current()] == [mine.member_did]


async def test_grant_for_another_device_or_altered_is_refused(tmp_path: Path) -> None:
    async with children(tmp_path, "a", "b") as (a, b):
        did_1, _ = await WalytisIdentity.create_device_did(a)
        did_2, _ = await WalytisIdentity.create_device_did(b)
        mine = await WalytisIdentity.create(a, did_1)
        grant = await mine.grant()
        with pytest.raises(RemoteProtocolError):
            await WalytisIdentity.adopt(b, grant, did_2)
        with pytest.raises(RemoteProtocolError):
            await WalytisIdentity.adopt(b, grant.replace(mine.pin, bytes(32)), did_2)
        with pytest.raises(RemoteProtocolError):
            await WalytisIdentity.adopt(b, grant[:-1], did_2)


async def test_nobody_joins_by_keys_that_were_replaced(tmp_path: Path) -> None:
    """Somebody shows a chain as it was, of which the inviter holds more."""
    async with children(tmp_path, "a", "b") as (a, b):
        did_1, _ = await WalytisIdentity.create_device_did(a)
        did_2, _ = await WalytisIdentity.create_device_did(b)
        mine = await WalytisIdentity.create(a, did_1)
        old = await WalytisIdentity.export_did(b, did_2)
        before = await b.call("did.sign", {"did": did_2, "data": b"me"})
        await WalytisIdentity.renew_did(b, did_2)
        chain = did_2.rpartition(":")[2]
        await import_chain(a, chain, await WalytisIdentity.export_did(b, did_2))
        with pytest.raises(LocalProtocolError, match="replaced"):
            await mine.add_member(did_2, old, proof=(b"me", before))
        assert did_2 not in mine.membership.direct
        after = await b.call("did.sign", {"did": did_2, "data": b"me"})
        await mine.add_member(did_2, old, proof=(b"me", after))
        assert did_2 in mine.membership.direct
        assert await mine.verify(did_2, b"me", before) == 1
        assert await mine.verify(did_2, b"me", after) == 2


async def test_members_know_newer_ends_of_chains_that_somebody_shows(tmp_path: Path) -> None:
    """Who joins shows its chain as it was; the inviter knows nothing of it, a member does."""
    async with children(tmp_path, "a", "b") as (a, b):
        did_1, _ = await WalytisIdentity.create_device_did(a)
        mine = await WalytisIdentity.create(a, did_1)
        did_2, _ = await WalytisIdentity.create_device_did(b)
        person = await WalytisIdentity.create(b, did_2)
        old = await WalytisIdentity.export_did(b, person.did)
        before = await b.call("did.sign", {"did": person.did, "data": b"me"})
        family = {did_2: await WalytisIdentity.export_did(b, did_2)}
        await person.renew_keys()
        names = await mine.shown(person.did, old, family)
        shown = {name.partition("/")[0] for name in names}
        assert shown == {did.rpartition(":")[2] for did in (person.did, did_2)}
        newer = await person.newer(names, 1 << 20)
        assert len(newer) == 1
        # Only of chains of identities, and so much at most.
        assert await person.newer([f"{person.segment}/x", "junk", "/"], 1 << 20) == []
        assert len(await person.newer([name.split("/")[0] + "/x" for name in names], 1)) == 1
        chain = person.did.rpartition(":")[2]
        held_before = held(tmp_path / "a")
        spoilt = [b"", pack([chain, b"junk"]), pack(["x", old[0]]), pack([chain, old[0][:-1]])]
        for given in (newer, [*spoilt, *newer]):
            with pytest.raises(LocalProtocolError, match="replaced"):
                await mine.add_member(
                    person.did, old, family=family, proof=(b"me", before), newer=given
                )
        assert held(tmp_path / "a") == held_before
        # What does not hold keeps nobody out.
        after = await b.call("did.sign", {"did": person.did, "data": b"me"})
        await mine.add_member(
            person.did, old, family=family, proof=(b"me", after), newer=[*spoilt, *newer]
        )
        assert mine.membership.direct == (did_1, person.did)
        assert {m.did for m in mine.membership.current()} == {did_1, did_2}


async def test_a_persons_other_device_knows_that_new_keys_are_to_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device replaces the person's control keys and dies; the other one shows them."""
    # It is told, and does not look by itself.
    monkeypatch.setattr("walyoff.walytis.identity.RECONCILE_INTERVAL", 3600.0)
    async with children(tmp_path, "a", "b") as (a, b):
        person, persons = await joined(a, b)
        group = await WalytisIdentity.create(a, person.member_did, first=person.did)
        async with await WalytisIdentity.adopt(b, await group.grant(), persons.member_did) as g:
            assert not g.membership.governance.keys_unshown
            await person.renew_keys()
            await group.refresh()
            assert group.membership.governance.keys_unshown
            # Before the keys are here it cannot, and then it is told at once.
            await persons.import_files(await person.sync_files())
            (lacking,) = persons.membership.governance.lacking
            assert not g.membership.governance.keys_unshown
            # So that it is not by the chain's news.
            await anyio.sleep(1.5)
            await persons.take_keys(await person.give_keys([lacking]))
            await until(lambda: g.membership.governance.keys_unshown)
            await g.renew_keys()
            assert not g.membership.governance.keys_unshown
            await group.import_files(await g.sync_files())
            assert not group.membership.governance.keys_unshown
            # Also by a device that is a member itself, and acts as one otherwise.
            own = await WalytisIdentity.export_did(a, person.member_did)
            await group.take_keys(await g.give_keys(group.membership.governance.lacking))
            await group.add_member(person.member_did, own)
            assert group.membership.governance.actor == person.member_did
            await person.renew_keys()
            await group.refresh()
            assert group.membership.governance.keys_unshown
            await group.renew_keys()
            assert not group.membership.governance.keys_unshown


async def test_who_renewed_at_once_with_another_takes_what_others_write_then(
    tmp_path: Path,
) -> None:
    """One of the two renewals counts; whoever wrote the other one holds its keys, too."""

    async def meet() -> None:
        await theirs.import_files(await mine.sync_files())
        await mine.import_files(await theirs.sync_files())

    async with open_child(tmp_path / "a") as a, open_child(tmp_path / "b") as b:
        mine, theirs = await joined(a, b)
        await mine.renew_keys()
        await theirs.renew_keys()
        await meet()
        lost, counts, child = mine, theirs, b
        if not mine.membership.governance.lacking:
            lost, counts, child = theirs, mine, a
        (lacking,) = lost.membership.governance.lacking
        assert await lost.take_keys(await counts.give_keys([lacking]))
        did, pin = await WalytisIdentity.create_device_did(child)
        await counts.add_member(did, await WalytisIdentity.export_did(child, did), pin=pin)
        await meet()
        for identity in (counts, lost):
            assert did in identity.membership.direct


def held(home: Path) -> set[str]:
    """The chains that lie in a home, and whatever else is where chains lie."""
    return {path.name for part in ("walytis", "positions") for path in (home / part).iterdir()}


async def test_chains_of_who_is_refused_do_not_stay_also_after_a_kill(tmp_path: Path) -> None:
    async with children(tmp_path, "a", "b") as (a, b):
        did_1, _ = await WalytisIdentity.create_device_did(a)
        did_2, _ = await WalytisIdentity.create_device_did(b)
        below, _ = await WalytisIdentity.create_device_did(b)
        mine = await WalytisIdentity.create(a, did_1)
        files = await WalytisIdentity.export_did(b, did_2)
        before = held(tmp_path / "a")
        wrong = (b"text", b"signature")
        family = {below: await WalytisIdentity.export_did(b, below), "junk": [b"junk"]}
        for _ in range(2):
            with pytest.raises(RemoteProtocolError):
                await mine.add_member(did_2, files, family=family, proof=wrong)
        with pytest.raises(LocalProtocolError):
            await mine.add_member(did_2, files, purpose="identity")
        assert held(tmp_path / "a") == before
        # Nor of a group that is not ours.
        before_b = held(tmp_path / "b")
        with pytest.raises(RemoteProtocolError):
            await WalytisIdentity.adopt(b, await mine.grant(), did_2)
        assert held(tmp_path / "b") == before_b
        # Who was refused comes in after all, with the same chain.
        await mine.add_member(did_2, files)
        chain = did_2.rpartition(":")[2]
        assert held(tmp_path / "a") == before | {chain}
        stranger = await WalytisIdentity.export_did(b, below)
        stray = below.rpartition(":")[2]
        await import_chain(a, stray, stranger)
        group = mine.did
    for member, guest, stays in ((did_2, chain, True), (below, stray, False)):
        (tmp_path / "a" / "guests").write_bytes(pack([group, member, [guest]]))
        async with children(tmp_path, "a") as (a,):
            await WalytisIdentity.export_did(a, did_1)
        assert (guest in held(tmp_path / "a")) is stays
        assert not (tmp_path / "a" / "guests").exists()


async def test_chain_handed_over_whole_then_by_leaves(tmp_path: Path) -> None:
    async with children(tmp_path, "a") as (a,), children(tmp_path, "b") as (b,):
        one = await WalytisLedger.create(a)
        for number in range(5):
            await one.append(b"block %d" % number)
        with pytest.raises(LocalProtocolError):
            await WalytisLedger.open(b, one.chain_id)
        files = await one.export()
        with pytest.raises(RemoteProtocolError):
            await import_chain(b, one.chain_id, files[1:])
        admitted, refused = await import_chain(b, one.chain_id, [*files, b"rubbish"])
        assert (admitted, refused) == (10, {"malformed": 1})
        two = await WalytisLedger.open(b, one.chain_id)
        await two.append(b"from two")
        await one.append(b"from one")
        # Not connected: the devices compare leaves and hand over files, both ways.
        assert (await one.import_files(await two.export(await one.leaves()))) == (1, {})
        assert (await two.import_files(await one.export(await two.leaves()))) == (1, {})
        assert await one.leaves() == await two.leaves()
        assert (await two.import_files(files)) == (0, {})
        async with one.blocks() as at_1, two.blocks(after=10) as at_2:
            seen_1 = [await next_payload(at_1) for _ in range(7)]
            seen_2 = [await next_payload(at_2) for _ in range(2)]
        assert seen_1[:5] == [b"block %d" % n for n in range(5)]
        assert sorted(seen_1[5:]) == sorted(seen_2) == [b"from one", b"from two"]
        merged = await one.append(b"merge")
        assert merged.position == 13
        assert await one.leaves() == [merged.ref]


async def test_branch_that_was_missed_comes_with_one_announcement(tmp_path: Path) -> None:
    async with children(tmp_path, "a") as (a,), children(tmp_path, "b") as (b,):
        one = await WalytisLedger.create(a)
        await import_chain(b, one.chain_id, await one.export())
        two = await WalytisLedger.open(b, one.chain_id)
        for number in range(30):
            await one.append(b"%d" % number)
        await b.connect(a.addresses[0])
        await _until_peers(a, one.chain_id)
        async with two.blocks() as stream:
            await one.announce()
            assert [await next_payload(stream) for _ in range(30)] == [
                b"%d" % number for number in range(30)
            ]


async def test_secrets_stay_in_files_of_their_owner_and_out_of_logs(tmp_path: Path) -> None:
    async with children(tmp_path, "a") as (a,):
        did, _ = await WalytisIdentity.create_device_did(a)
        identity = await WalytisIdentity.create(a, did)
        await identity.certify(b"x")
        grant = decode_grant(await identity.grant())
    secrets = [
        key[2]
        for path in (tmp_path / "a" / "keys").iterdir()
        if path.suffix != ENDING
        for group in unpack(path.read_bytes(), 1 << 20)
        for key in group
    ]
    assert len(secrets) == 4
    assert any(secret.encode() in grant["secrets"] for secret in secrets)
    # The key that renews those of the device is handed to nobody.
    (renewal,) = (tmp_path / "a" / "keys").glob(f"*{ENDING}")
    ((seed,), _) = decode_kept(renewal.read_bytes())
    assert seed[:32] not in grant["secrets"]
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file() and path.parent.name != "keys":
            data = path.read_bytes()
            assert seed[:32] not in data, path
            assert not any(secret[:64].encode() in data for secret in secrets), path
            assert not any(bytes.fromhex(secret)[:32] in data for secret in secrets), path
    for path in (tmp_path / "a" / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def conforms(identity: WalytisIdentity, ledger: WalytisLedger) -> tuple[Identity, Ledger]:
    """Checked by mypy."""
    return identity, ledger


async def test_large_and_strange_payloads(tmp_path: Path) -> None:
    async with children(tmp_path, "a", "b") as (a, b):
        one = await WalytisLedger.create(a)
        await import_chain(b, one.chain_id, await one.export())
        two = await WalytisLedger.open(b, one.chain_id)
        payloads = [b"\0", b"\0" * 700, os.urandom(one.max_payload), b"x" * 300_000]
        await _until_peers(a, one.chain_id)
        async with two.blocks() as at_2:
            for payload in payloads:
                await one.append(payload)
                assert await next_payload(at_2) == payload
        with pytest.raises(LocalProtocolError):
            await one.append(b"")
        with pytest.raises(PayloadTooLargeError):
            await one.append(bytes(one.max_payload + 1))
        for topics in ([], [""], ["a\0b"], ["genesis"], ["x" * 300], ["a", "a"]):
            args = {"chain": one.chain_id, "content": b"x", "topics": topics}
            with pytest.raises(LocalProtocolError):
                await a.call("chain.append", args)
        await one.append(b"still here")
        assert a.generation == 1


async def test_killed_in_mid_append_loses_nothing_acknowledged(tmp_path: Path) -> None:
    async with children(tmp_path, "a") as (a,):
        ledger = await WalytisLedger.create(a)
        acknowledged: list[bytes] = []

        async def write() -> None:
            number = 0
            while True:
                number += 1
                payload = b"%d" % number
                try:
                    await ledger.append(payload)
                    acknowledged.append(payload)
                except WalyoffError:
                    await anyio.sleep(0.01)

        seen: list[bytes] = []
        async with ledger.blocks() as stream, anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            for life in range(1, 4):
                await until(
                    lambda n=life: a.generation >= n and len(acknowledged) >= n * 8  # type: ignore[misc]
                )
                assert a.pid is not None
                os.kill(a.pid, signal.SIGKILL)
            await until(lambda: a.generation >= 4 and len(acknowledged) >= 32)
            tasks.cancel_scope.cancel()
        async with ledger.blocks() as stream:
            with anyio.fail_after(HANGS_AFTER):
                while acknowledged[-1] not in seen:
                    seen.append((await stream.receive()).payload)
        assert set(acknowledged) <= set(seen)
        assert len(seen) == len(set(seen))


async def test_reader_goes_on_over_a_restart_without_a_gap(tmp_path: Path) -> None:
    async with children(tmp_path, "a") as (a,):
        did, _ = await WalytisIdentity.create_device_did(a)
        async with await WalytisIdentity.create(a, did) as identity:
            ledger = await identity.ledger()
            async with ledger.blocks() as stream:
                await ledger.append(b"before")
                assert await next_payload(stream) == b"before"
                assert a.pid is not None
                os.kill(a.pid, signal.SIGKILL)
                await until(lambda: a.generation >= 2)
                await ledger.append(b"after")
                assert await next_payload(stream) == b"after"
            assert len((await identity.refresh()).current()) == 1
            await identity.verify(did, b"x", await identity.certify(b"x"))


async def test_no_upstream_protocol_is_offered(tmp_path: Path) -> None:
    async with children(tmp_path, "a", "b") as (a, b):
        mine, _ = await joined(a, b)
        await mine.ledger()
        chain = mine.did.split(":")[-1]
        # A protocol that is offered, so that the test can fail.
        served = str(tmp_path / "served")
        # Not anyio's own: those can be cancelled at the moment when data arrives, and then
        # report an InvalidStateError to the event loop.
        with closing(UnixListener(served, backlog=8)) as listener:
            await a.listen_streams("/x/control", served)

            async def answer(stream: anyio.abc.ByteStream) -> None:
                async with stream:
                    await stream.receive()
                    await stream.send(b"here")
                    # Streams know no half-close: what is under way dies with the end.
                    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                        await stream.receive()

            async with anyio.create_task_group() as tasks:

                async def serve() -> None:
                    while True:
                        tasks.start_soon(answer, await listener.accept())

                tasks.start_soon(serve)
                names = [
                    f"/x/{chain}: JoinRequest",
                    f"/x/{mine.did}-KeyRequests",
                    f"/x/{mine.member_did}-KeyRequests",
                    f"/x/{mine.segment}: JoinRequest",
                ]
                for number, name in enumerate(names):
                    assert await _answer(b, a.peer_id, name, tmp_path / f"s{number}") == b""
                got = await _answer(b, a.peer_id, "/x/control", tmp_path / "control")
                assert got == b"here"
                tasks.cancel_scope.cancel()


async def test_announced_block_that_nobody_has_does_not_stop_reception(
    tmp_path: Path,
) -> None:
    async with children(tmp_path, "a", "b", "outsider") as (a, b, outsider):
        one = await WalytisLedger.create(a)
        await import_chain(b, one.chain_id, await one.export())
        two = await WalytisLedger.open(b, one.chain_id)
        await _until_peers(a, one.chain_id)
        await outsider.connect(b.addresses[0])
        async with outsider.subscribe(one.chain_id), two.blocks() as at_2:
            await _until_peers(outsider, one.chain_id)
            await one.append(b"first")
            assert await next_payload(at_2) == b"first"
            real = decode_block((await one.export())[-1])
            nobody = real.long_id.replace(real.cid.encode(), cid_of(b"nobody").encode())
            text = base64.urlsafe_b64encode(nobody).rstrip(b"=").decode()
            for message in (
                {"message": "New block!", "block_id": text},
                {"message": "Leaf blocks:", "leaf_blocks": [text] * 3},
                {"message": "New block!", "block_id": "AAAA"},
            ):
                await outsider.publish(one.chain_id, json.dumps(message).encode())
            for rubbish in (b"", b"{}", b"[" * 100_000, b"\xff" * 300_000):
                await outsider.publish(one.chain_id, rubbish)
            await anyio.sleep(0.2)
            began = free_time()
            await one.append(b"second")
            assert await next_payload(at_2) == b"second"
            assert free_time() - began < 8


async def _answer(child: Child, peer: str, protocol: str, path: Path) -> bytes:
    await child.forward_streams(protocol, peer, str(path))
    with anyio.fail_after(HANGS_AFTER):
        try:
            async with await connect_unix(str(path)) as stream:
                await stream.send(b"hello?")
                return await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return b""
        finally:
            await child.close_streams(protocol, peer_id=peer)


async def _until_peers(child: Child, topic: str) -> None:
    with anyio.fail_after(HANGS_AFTER):
        while not await child.topic_peers(topic):  # noqa: ASYNC110
            await anyio.sleep(0.02)
