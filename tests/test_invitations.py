"""Invitations: strings that people hand over, mistype, and must not leak."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from tests.make_vectors import CHANNEL, INVITATION
from walyoff.errors import InvitationError, RemoteProtocolError
from walyoff.invitations import (
    CLOCK_SKEW_S,
    MAX_ADDRESSES,
    MAX_STRING,
    REMEMBER_S,
    Invitation,
    Issued,
    new_invitation,
    parse,
)
from walyoff.wire import pack

NOW = 1_700_000_000.0
SECRET = bytes(range(16))
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=80)
INVITATIONS = st.builds(
    Invitation,
    secret=st.binary(min_size=16, max_size=16),
    expires=st.integers(int(NOW), (1 << 32) - 1),
    addresses=st.lists(NAMES, max_size=MAX_ADDRESSES).map(tuple),
)


def refusal(text: str, now: float = NOW) -> str:
    with pytest.raises(InvitationError) as caught:
        parse(text, now=now)
    return str(caught.value)


def string_of(body: bytes) -> str:
    """A string with a right checksum, whatever is in it."""
    checked = body + blake3(body).digest(4)
    return base64.b32encode(checked).decode().rstrip("=").lower()


@given(INVITATIONS)
def test_an_invitation_comes_back_as_it_was(invitation: Invitation) -> None:
    assert parse(str(invitation), now=NOW) == invitation


@given(INVITATIONS, st.data())
def test_spaces_lines_dashes_and_case_do_not_matter(invitation: Invitation, data: Any) -> None:
    text = str(invitation)
    for _ in range(4):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from([" ", "-", "\n", "\t", "  "])) + text[at:]
    assert parse(f" {text.upper()} ", now=NOW) == invitation


@given(INVITATIONS, st.data())
def test_a_mistyped_character_is_always_noticed(invitation: Invitation, data: Any) -> None:
    text = str(invitation)
    at = data.draw(st.integers(0, len(text) - 1) | st.just(len(text) - 1))
    wrong = data.draw(st.sampled_from([c for c in ALPHABET if c != text[at]]))
    assert "mistyped" in refusal(text[:at] + wrong + text[at + 1 :])


def test_a_missing_character_is_always_noticed() -> None:
    text = str(INVITATION)
    for at in range(len(text)):
        refusal(text[:at] + text[at + 1 :])
        refusal(text[:at])


@given(st.text(max_size=100) | st.text(ALPHABET, max_size=300))
@example("")
@example("=")
@example("a" * (MAX_STRING + 1))
@example("ß" * 40)
@example("\u0661" * 40)
def test_any_text_gives_the_one_error(text: str) -> None:
    refusal(text)


@given(st.binary(max_size=200))
def test_any_bytes_with_a_right_checksum_give_an_invitation_or_the_one_error(
    body: bytes,
) -> None:
    text = string_of(body)
    try:
        invitation = parse(text, now=0.0)
    except InvitationError:
        return
    assert str(invitation) == text


HEAD = b"\x01\xff\xff\xff\xff" + SECRET


@pytest.mark.parametrize(
    "rest",
    [b"\x05abc", b"\x00", b"\x03a\nb", b"\x03a b", b"\x02\xc3\xa9", b"\x01a" * 4, b"\x01\x1b"],
)
def test_malformed_addresses_are_refused(rest: bytes) -> None:
    assert "addresses" in refusal(string_of(HEAD + rest))


def test_an_expired_invitation_says_so() -> None:
    invitation = new_invitation(["ipfs:a"], secret=SECRET, now=NOW, lifetime_s=60)
    assert not invitation.has_expired(NOW + 60)
    assert invitation.has_expired(NOW + 61)
    # The joiner's clock may be wrong by hours: the inviter's decides.
    assert parse(str(invitation), now=NOW + 60 + CLOCK_SKEW_S) == invitation
    assert "expired" in refusal(str(invitation), NOW + 61 + CLOCK_SKEW_S)


def test_an_invitation_of_a_newer_walyoff_says_so() -> None:
    assert "version 2" in refusal(string_of(b"\x02" + HEAD[1:]))


def test_only_the_best_addresses_that_fit_are_named() -> None:
    addresses = ["ipfs:a", "ipfs:" + "x" * 300, "ipfs:b", "ipfs:c", "ipfs:d"]
    invitation = new_invitation(addresses, secret=SECRET, now=NOW, lifetime_s=60)
    assert invitation.addresses == ("ipfs:a", "ipfs:b", "ipfs:c")


def test_neither_id_nor_tag_key_tells_the_secret_or_the_session_key() -> None:
    derived = {bytes.fromhex(INVITATION.invitation_id), INVITATION.tag_key, INVITATION.psk}
    assert len(derived) == 3
    assert all(INVITATION.secret not in value for value in derived)
    assert not INVITATION.psk.startswith(bytes.fromhex(INVITATION.invitation_id))


def test_secrets_of_invitations_do_not_print() -> None:
    secret = b"S" * 16
    invitation = Invitation(secret=secret, expires=1, addresses=("ipfs:a",))
    issued = Issued(channel=CHANNEL, secret=secret, expires=1)
    for value in (invitation, issued, [invitation, issued]):
        for hidden in ("SSSS", secret.hex(), str(invitation)):
            assert hidden not in repr(value)
    assert "ipfs:a" in repr(invitation)
    assert CHANNEL in repr(issued)


# ----------------------------------------------------------- what the inviter remembers


@pytest.mark.parametrize("used_by", ["", "did:walytis:bob"])
def test_what_was_issued_comes_back_from_the_store(used_by: str) -> None:
    issued = Issued(channel=CHANNEL, secret=SECRET, expires=5, used_by=used_by)
    assert Issued.decode(issued.encode()) == issued
    assert issued.invitation().psk == INVITATION.psk


@given(st.binary(max_size=100))
@example(pack([CHANNEL, SECRET, 5]))
@example(pack([None, SECRET, 5, ""]))
@example(pack([CHANNEL, SECRET[:-1], 5, ""]))
@example(pack([CHANNEL, SECRET, -5, ""]))
@example(pack([CHANNEL, SECRET, 5, None]))
def test_anything_else_from_the_store_gives_the_one_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Issued.decode(data)


def test_an_invitation_serves_one_device_which_may_try_again() -> None:
    issued = Issued(channel=CHANNEL, secret=SECRET, expires=int(NOW) + 60)
    assert issued.problem("did:walytis:bob", NOW) is None
    used = Issued(
        channel=CHANNEL, secret=SECRET, expires=int(NOW) + 60, used_by="did:walytis:bob"
    )
    assert used.problem("did:walytis:bob", NOW) is None
    assert "used already" in str(used.problem("did:walytis:eve", NOW))
    assert "expired" in str(used.problem("did:walytis:bob", NOW + 61))
    assert REMEMBER_S > 0
