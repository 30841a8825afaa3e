"""What an inviter remembers of its invitations, in each version of its form."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.make_vectors import ALICE, BOB, CHANNEL, INVITATION
from tests.sim.virtual import in_virtual_time
from walyoff.errors import InvitationError, LocalProtocolError, RemoteProtocolError
from walyoff.invitations import PURPOSES, SECRET_SIZE, Purpose, grouped
from walyoff.issued import MAX_USES, REMEMBER_S, InvitationBook, Issued
from walyoff.testing.memory import MemoryDisk, open_memory_store
from walyoff.testing.virtual import SimRuntime
from walyoff.wire import pack, unpack

NOW = 1_700_000_000.0
SECRET = bytes(range(SECRET_SIZE))
EVE = "did:walytis:eve"


def issued(
    uses: int | None = 1,
    used_by: tuple[str, ...] = (),
    purpose: Purpose = "any",
    *,
    revoked: bool = False,
) -> Issued:
    return Issued(
        channel=CHANNEL,
        secret=SECRET,
        expires=int(NOW) + 60,
        uses=uses,
        used_by=used_by,
        purpose=purpose,
        created=int(NOW),
        by=ALICE,
        revoked=revoked,
    )


@pytest.mark.parametrize("uses", [1, 3, None])
@pytest.mark.parametrize("used_by", [(), (BOB,), (BOB, EVE)])
@pytest.mark.parametrize("purpose", PURPOSES)
def test_what_was_issued_comes_back_from_the_store(
    uses: int | None, used_by: tuple[str, ...], purpose: Purpose
) -> None:
    for revoked in (False, True):
        value = issued(uses, used_by, purpose, revoked=revoked)
        assert Issued.decode(value.encode()) == value
        assert value.invitation().psk == INVITATION.psk


@pytest.mark.parametrize(("user", "used_by"), [("", ()), (BOB, (BOB,))])
def test_what_the_version_before_stored_is_read(user: str, used_by: tuple[str, ...]) -> None:
    old = Issued.decode(pack([CHANNEL, SECRET, 5, user]))
    assert old == Issued(
        channel=CHANNEL, secret=SECRET, expires=5, used_by=used_by, purpose="device"
    )
    assert Issued.decode(old.encode()) == old


@given(st.binary(max_size=100))
@example(pack([CHANNEL, SECRET, 5]))
@example(pack([None, SECRET, 5, ""]))
@example(pack([CHANNEL, SECRET[:-1], 5, ""]))
@example(pack([CHANNEL, SECRET, -5, ""]))
@example(pack([CHANNEL, SECRET, 5, None]))
@example(pack([3, {}]))
@example(pack([2, {}]))
@example(pack([2, {"channel": CHANNEL, "secret": SECRET, "expires": 5, "uses": 0}]))
@example(pack([2, {"channel": CHANNEL, "secret": SECRET, "expires": 5, "purpose": "x"}]))
@example(pack([2, {"channel": CHANNEL, "secret": SECRET, "expires": 5, "used_by": 5}]))
def test_anything_else_from_the_store_gives_the_one_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Issued.decode(data)


def test_a_field_that_a_later_version_adds_is_not_needed() -> None:
    version, fields = unpack(issued().encode(), 4096)
    least = {name: fields[name] for name in ("channel", "secret", "expires")}
    assert Issued.decode(pack([version, least])).state(NOW) == "open"


def test_an_invitation_serves_as_many_as_it_says_who_may_try_again() -> None:
    one = issued()
    assert one.problem(BOB, NOW) is None
    used = one.used(BOB)
    assert used.used(BOB) == used
    assert used.problem(BOB, NOW) is None
    assert "used already" in str(used.problem(EVE, NOW))
    assert "expired" in str(used.problem(BOB, NOW + 61))
    assert issued(2).used(BOB).problem(EVE, NOW) is None
    many = issued(None)
    for n in range(MAX_USES):
        assert many.problem(f"did:{n}", NOW) is None
        many = many.used(f"did:{n}")
    assert "used already" in str(many.problem(EVE, NOW))
    assert Issued.decode(many.encode()) == many


def test_an_invitation_lets_in_what_it_is_for() -> None:
    for purpose in PURPOSES:
        for kind in ("device", "identity"):
            problem = issued(purpose=purpose).problem(BOB, NOW, kind=kind)
            assert (problem is None) == (purpose in ("any", kind)), (purpose, kind)


def test_who_was_removed_does_not_come_back_by_the_same_invitation() -> None:
    used = issued(None, (BOB,))
    assert used.problem(BOB, NOW) is None
    # Nor does a friend, or the same device by another name: it knows the string.
    for did in (BOB, EVE):
        assert "removed" in str(used.problem(did, NOW, removed={BOB}))
    # Who was removed before is invited again by a new one.
    assert issued().problem(BOB, NOW, removed={BOB}) is None


def test_states() -> None:
    assert issued().state(NOW) == "open"
    assert issued().state(NOW + 61) == "expired"
    assert issued(used_by=(BOB,)).state(NOW + 61) == "used"
    assert issued(revoked=True).state(NOW) == "revoked"
    assert "revoked" in str(issued(used_by=(BOB,), revoked=True).problem(BOB, NOW))


@pytest.mark.parametrize("uses", [0, -1, MAX_USES + 1])
def test_uses_are_bounded(uses: int) -> None:
    with pytest.raises(LocalProtocolError, match="uses"):
        issued(uses)


@in_virtual_time
async def test_a_book_revokes_by_string_id_and_beginning_and_forgets_after_a_month() -> None:
    disk = MemoryDisk(sync_s=0.001)
    async with open_memory_store(disk) as store:
        book = InvitationBook(store, SimRuntime(1))
        made = [
            Issued(
                channel=CHANNEL,
                secret=bytes([n]) * 16,
                expires=int(book.now()) + 60,
                created=n,
            )
            for n in range(4)
        ]
        for one in made:
            await book.keep(one)
        string = grouped(str(made[0].invitation()))
        assert (await book.revoke(CHANNEL, string)).revoked
        await book.revoke(CHANNEL, made[1].invitation_id)
        await book.revoke(CHANNEL, f" {made[2].invitation_id[:6].upper()}")
        states = [one.state(book.now()) for one in book.of(CHANNEL)]
        assert states == ["revoked", "revoked", "revoked", "open"]
        for wrong in ("", "zz", "0" * 16):
            with pytest.raises(InvitationError, match="walyoff invitations"):
                await book.revoke(CHANNEL, wrong)
        with pytest.raises(InvitationError):
            await book.revoke("another channel", made[3].invitation_id)

        # What was decided is there after a restart.
        again = InvitationBook(store, SimRuntime(1))
        await again.load()
        assert again.of(CHANNEL) == book.of(CHANNEL)
        later = SimRuntime(1, skew_s=60.0 + REMEMBER_S + 1)
        last = InvitationBook(store, later)
        await last.load()
        assert last.of(CHANNEL) == []
        assert await store.keys("invitation/") == []
