"""Invitations: strings that people hand over, mistype, and must not leak."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import pytest
import reedsolo
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from tests.make_vectors import CHANNEL, INVITATION, OLD_STRING, PEER
from walyoff.addresses import MAX_ADDRESSES, decode_addresses, encode_addresses
from walyoff.errors import InvitationError, RemoteProtocolError
from walyoff.invitations import (
    CLOCK_SKEW_S,
    MAX_STRING,
    PURPOSES,
    Invitation,
    grouped,
    new_invitation,
    parse,
)
from walyoff.issued import Issued

NOW = 1_700_000_000.0
SECRET = bytes(range(16))
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
#: 2020, and the unit of the expiry in a string.
BEGIN, UNIT = 1_577_836_800, 4 * 3600
PORT = st.integers(0, 65535)
HOST = st.one_of(
    st.ip_addresses(v=4).map(lambda a: f"/ip4/{a}"),
    st.ip_addresses(v=6).map(lambda a: f"/ip6/{a}"),
    st.sampled_from(["/dns/a.example", "/dns4/b.example", "/dns6/c.example"]),
)
ADDRESSES = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=70),
    st.builds("ipfs:{}/tcp/{}/p2p/{}".format, HOST, PORT, st.just(PEER)),
    st.builds("libp2p:{}/udp/{}/quic-v1/p2p/{}".format, HOST, PORT, st.just(PEER)),
    st.builds("tcp:{}:{}".format, st.ip_addresses(v=4), PORT),
)
INVITATIONS = st.builds(
    Invitation,
    secret=st.binary(min_size=16, max_size=16),
    expires=st.integers(int(NOW - BEGIN) // UNIT + 1, 0xFFFF).map(lambda n: BEGIN + n * UNIT),
    addresses=st.lists(ADDRESSES, max_size=MAX_ADDRESSES).map(tuple),
    purpose=st.sampled_from(PURPOSES),
)


def refusal(text: str, now: float = NOW) -> str:
    with pytest.raises(InvitationError) as caught:
        parse(text, now=now)
    return str(caught.value)


def string_of(body: bytes) -> str:
    """A string with right check bytes, whatever is in it."""
    coded = bytes(reedsolo.RSCodec(4).encode(body))
    check = bytes(a ^ b for a, b in zip(coded[-4:], b"waly", strict=True))
    return base64.b32encode(body + check).decode().rstrip("=").lower()


def old_string_of(body: bytes) -> str:
    """The same in version 1."""
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
    said = refusal(text[:at] + wrong + text[at + 1 :])
    assert "mistyped" in said
    # And found, whatever it was.
    assert f"group {at // 5 + 1}" in said


def test_every_single_mistake_is_placed_and_double_ones_never_pass() -> None:
    text = str(INVITATION)
    for at in range(len(text)):
        for wrong in "b2z0":
            if wrong != text[at]:
                assert f"group {at // 5 + 1}" in refusal(text[:at] + wrong + text[at + 1 :])
    counted: Counter[bool] = Counter()
    for at in range(len(text) - 1):
        # Two neighbours changed places.
        swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        if swapped != text:
            said = refusal(swapped)
            counted[f"group {at // 5 + 1}" in said or f"groups {at // 5 + 1}" in said] += 1
    # They share bytes mostly, and then both are found.
    assert counted[True] > counted[False]


def test_a_missing_character_is_always_noticed() -> None:
    text = str(INVITATION)
    groups = grouped(text).split("-")
    for at in range(len(text)):
        refusal(text[:at] + text[at + 1 :])
        refusal(text[:at])
        refusal(text + "a" * (at % 9 + 1))
    for number in range(len(groups) - 1):
        short = [*groups[:number], groups[number][1:], *groups[number + 1 :]]
        assert f"group {number + 1} has 4 characters" in refusal(" ".join(short))


def test_what_people_see_is_read_as_well() -> None:
    shown = grouped(str(INVITATION))
    assert parse(shown, now=NOW) == INVITATION
    assert {len(group) for group in shown.split("-")[:-1]} == {5}
    assert shown == shown.upper()


def test_one_address_takes_a_hundred_characters() -> None:
    ipfs = [f"ipfs:/ip4/{host}/tcp/4001/p2p/{PEER}" for host in ("192.168.1.17", "10.0.0.7")]
    all_of_them = [*ipfs, f"ipfs:/ip4/203.0.113.9/udp/4001/quic-v1/p2p/{PEER}"]
    sizes = []
    for count in (1, 2, 3):
        made = new_invitation(all_of_them[:count], secret=SECRET, now=NOW, lifetime_s=60)
        assert parse(str(made), now=NOW).addresses == tuple(all_of_them[:count])
        sizes.append(len(str(made)))
    # They were 183, 319 and 472 in version 1.
    assert sizes == [100, 111, 122]


@given(st.text(max_size=100) | st.text(ALPHABET, max_size=300))
@example("")
@example("=")
@example("a" * (MAX_STRING + 1))
@example("ß" * 40)
@example("\u0661" * 40)
def test_any_text_gives_the_one_error(text: str) -> None:
    refusal(text)


@given(
    st.binary(min_size=1, max_size=200)
    | st.builds(bytes.__add__, st.just(b"\x21\xff\xff" + SECRET), st.binary(max_size=80))
)
def test_any_bytes_with_a_right_checksum_give_an_invitation_or_the_one_error(
    body: bytes,
) -> None:
    text = string_of(body)
    try:
        invitation = parse(text, now=0.0)
    except InvitationError:
        return
    assert str(invitation) == text


HEAD = b"\x20\xff\xff" + SECRET


@pytest.mark.parametrize(
    "rest",
    [
        b"\xc0\x05abc",
        b"\xc0\x00",
        b"\xc0\x03a\nb",
        b"\xc0\x02\xc3\xa9",
        b"\xc1\x01a",
        b"\xc0\x01a" * 4,
        # Of a peer that was not named, cut off, of no shape, and not in its shortest form.
        b"\x01\x01\x02\x03\x04\x00\x01",
        b"\x00\x01\x02\x03\x04\x00\x01" + bytes(31),
        b"\x3f" + bytes(40),
        b"\xc0\x0dtcp:1.2.3.4:5",
        (b"\x00\x01\x02\x03\x04\x00\x01" + bytes(32)) * 2,
    ],
)
def test_malformed_addresses_are_refused(rest: bytes) -> None:
    assert "addresses" in refusal(string_of(HEAD + rest))


@given(st.lists(ADDRESSES, max_size=MAX_ADDRESSES))
def test_addresses_come_back_to_the_letter(addresses: list[str]) -> None:
    assert list(decode_addresses(encode_addresses(addresses))) == addresses


@given(st.binary(max_size=120))
@example(bytes.fromhex("0001020304000100") * 4)
def test_any_bytes_are_addresses_or_the_one_error(data: bytes) -> None:
    try:
        found = decode_addresses(data)
    except RemoteProtocolError:
        return
    assert encode_addresses(found) == data


def test_an_expired_invitation_says_so() -> None:
    invitation = new_invitation(["ipfs:a"], secret=SECRET, now=NOW, lifetime_s=60)
    assert not invitation.has_expired(NOW + 60)
    assert invitation.has_expired(NOW + 61)
    # In the string the time is rounded up, and never down.
    read = parse(str(invitation), now=NOW)
    assert invitation.expires <= read.expires < invitation.expires + UNIT
    # The joiner's clock may be wrong by hours: the inviter's decides.
    last = read.expires + CLOCK_SKEW_S
    assert parse(str(invitation), now=last) == read
    assert "expired" in refusal(str(invitation), last + 1)


def test_an_invitation_of_a_newer_walyoff_says_so() -> None:
    assert "version 3" in refusal(string_of(b"\x30" + HEAD[1:]))
    assert "malformed" in refusal(string_of(b"\x2f" + HEAD[1:]))
    assert "malformed" in refusal(string_of(HEAD[:10]))


def test_a_string_of_the_version_before_is_still_understood() -> None:
    old = parse(OLD_STRING, now=NOW)
    assert old == Invitation(
        secret=SECRET,
        expires=1_800_000_000,
        addresses=("ipfs:one", "ipfs:two"),
        purpose="device",
    )
    assert old.psk == INVITATION.psk
    assert "mistyped" in refusal(OLD_STRING.replace("qa", "aq"))
    head = b"\x01\xff\xff\xff\xff" + SECRET
    for rest in (b"\x05abc", b"\x00", b"\x03a\nb", b"\x02\xc3\xa9", b"\x01a" * 4):
        assert "addresses" in refusal(old_string_of(head + rest))


def test_only_the_best_addresses_that_fit_are_named() -> None:
    addresses = ["ipfs:a", "ipfs:" + "x" * 300, "ipfs:ß", "ipfs:b", "ipfs:c", "ipfs:d"]
    invitation = new_invitation(addresses, secret=SECRET, now=NOW, lifetime_s=60)
    assert invitation.addresses == ("ipfs:a", "ipfs:b", "ipfs:c")
    long = [f"x:{n}" + "x" * 120 for n in range(3)]
    invitation = new_invitation([*long, "ipfs:a"], secret=SECRET, now=NOW, lifetime_s=60)
    assert invitation.addresses == (long[0], "ipfs:a")
    assert parse(str(invitation), now=NOW).addresses == invitation.addresses


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
