"""Records, batches and commitments."""

from __future__ import annotations

import os
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.make_vectors import ALICE, BOB, CHANNEL, SALT, example_batch, long_content
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, RemoteProtocolError
from walyoff.records import (
    BATCH_VERSION,
    CHUNK_SIZE,
    MAX_BATCH_BODY,
    MAX_CONTENT,
    MAX_LIFETIME_MS,
    MAX_RECORDS,
    MAX_SEEN,
    MAX_TIME_MS,
    MAX_TOPIC_CHARS,
    MAX_TOPICS,
    Batch,
    Record,
    Seen,
    chain_start,
    check_content,
    check_topics,
    commit,
    decode_batch,
    device_id,
    make_batch,
    signed_message,
)
from walyoff.wire import pack, unpack

HASHES = st.binary(min_size=32, max_size=32)
TOPICS = st.text(
    st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=MAX_TOPIC_CHARS
)
RECORDS = st.builds(
    Record,
    st.integers(0, MAX_TIME_MS),
    st.integers(0, 255),
    st.lists(TOPICS, max_size=MAX_TOPICS).map(tuple),
    st.integers(0, (1 << 63) - 1),
    HASHES,
    st.just(0) | st.integers(1, MAX_LIFETIME_MS),
)
SEEN = st.builds(
    Seen, st.binary(min_size=16, max_size=16), st.integers(1, (1 << 63) - 1), HASHES
)


def batch_of(
    records: list[Record], *, first_seq: int = 1, prev: bytes | None = None, **other: Any
) -> Batch:
    fields: dict[str, Any] = {
        "channel": CHANNEL, "author": ALICE, "certificate_id": b"c" * 32, "seen": []
    } | other  # fmt: skip
    before = chain_start(fields["channel"], fields["author"]) if prev is None else prev
    return make_batch(first_seq=first_seq, prev=before, records=records, **fields)


def record(text: bytes = b"hello") -> Record:
    return Record(1_800_000_000_000, 0, (), len(text), commit(SALT, text))


@given(
    records=st.lists(RECORDS, min_size=1, max_size=8),
    seen=st.lists(SEEN, max_size=MAX_SEEN),
    first_seq=st.integers(1, 1 << 62),
    prev=HASHES,
)
def test_a_batch_comes_back_as_it_was(
    records: list[Record], seen: list[Seen], first_seq: int, prev: bytes
) -> None:
    batch = batch_of(records, first_seq=first_seq, prev=prev, seen=seen)
    assert decode_batch(batch.body) == batch
    assert batch.last_seq == first_seq + len(records) - 1


@given(st.binary(max_size=300))
def test_any_bytes_give_a_batch_or_the_one_error(data: bytes) -> None:
    try:
        batch = decode_batch(data)
    except RemoteProtocolError:
        return
    assert batch.body == data


@given(st.data())
def test_a_changed_byte_gives_another_batch_or_the_one_error(data: Any) -> None:
    body = bytearray(example_batch().body)
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        batch = decode_batch(bytes(body))
    except RemoteProtocolError:
        return
    assert batch.batch_id != example_batch().batch_id


def with_field(index: int, value: Any) -> bytes:
    fields = unpack(example_batch().body, MAX_BATCH_BODY)
    fields[index] = value
    return pack(fields)


def with_record_field(index: int, value: Any) -> bytes:
    fields = unpack(example_batch().body, MAX_BATCH_BODY)
    fields[7][0][index] = value
    return pack(fields)


ROW = [0, 0, [], 0, b"c" * 32]


@pytest.mark.parametrize(
    "body",
    [
        with_field(0, 2), with_field(0, True), with_field(0, None),
        with_field(1, ""), with_field(1, "d" * 257), with_field(1, "did:\n"),
        with_field(2, ""), with_field(2, "d\x1b[2J"), with_field(2, b"did"),
        with_field(3, b"c" * 31), with_field(4, 0), with_field(4, (1 << 62) + 1),
        with_field(4, True), with_field(5, b"p" * 33), with_field(6, None),
        with_field(6, [[b"d" * 16, 1, b"b" * 32]] * 17),
        with_field(6, [[b"d" * 15, 1, b"b" * 32]]),
        with_field(6, [[b"d" * 16, 0, b"b" * 32]]), with_field(6, [[b"d" * 16, 1]]),
        with_field(7, []), with_field(7, [ROW] * (MAX_RECORDS + 1)), with_field(7, [[]]),
        with_record_field(0, -1), with_record_field(0, MAX_TIME_MS + 1),
        with_record_field(0, 1.5), with_record_field(1, 256), with_record_field(2, "topic"),
        with_record_field(2, [""]), with_record_field(2, ["a\n"]), with_record_field(2, [b"a"]),
        with_record_field(2, ["a"] * (MAX_TOPICS + 1)),
        with_record_field(2, ["a" * (MAX_TOPIC_CHARS + 1)]), with_record_field(3, -1),
        with_record_field(3, 1 << 63), with_record_field(4, b"c" * 31),
        pack(None), pack([]), pack([BATCH_VERSION]), b"",
        pack([*unpack(example_batch().body, MAX_BATCH_BODY), 0]),
        b"\xc0" * (MAX_BATCH_BODY + 1),
    ],
)  # fmt: skip
def test_a_batch_that_breaks_a_rule_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_batch(body)


def test_another_version_is_named_as_the_reason() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_batch(with_field(0, BATCH_VERSION + 1))
    assert caught.value.reason == "version"


# ----------------------------------------------------------------------- the chain


def test_two_batches_chain_as_one_would() -> None:
    """How records are grouped into batches leaves no mark on their names."""
    records = [record(b"%d" % n) for n in range(5)]
    whole = batch_of(records)
    first = batch_of(records[:2])
    second = batch_of(records[2:], first_seq=3, prev=first.record_ids[-1])
    assert first.record_ids + second.record_ids == whole.record_ids


def test_a_record_id_names_everything_before_it_and_its_place() -> None:
    base = batch_of([record(b"a"), record(b"b")]).record_ids[1]
    others = [
        batch_of([record(b"x"), record(b"b")]),
        batch_of([record(b"a"), record(b"y")]),
        batch_of([record(b"a"), record(b"b")], channel="did:walytis:other"),
        batch_of([record(b"a"), record(b"b")], author=BOB),
        batch_of([record(b"a"), record(b"b")], first_seq=2),
        batch_of([record(b"a"), record(b"b")._replace(kind=1)]),
        batch_of([record(b"a"), record(b"b")._replace(topics=("t",))]),
        batch_of([record(b"a"), record(b"b")._replace(time_ms=1)]),
    ]
    ids = {other.record_ids[1] for other in others}
    assert base not in ids
    assert len(ids) == len(others)


@pytest.mark.parametrize("field", ["certificate_id", "seen"])
def test_a_batch_id_covers_what_the_record_ids_do_not(field: str) -> None:
    others: dict[str, Any] = {
        "certificate_id": {"certificate_id": b"x" * 32},
        "seen": {"seen": [Seen(b"d" * 16, 1, b"b" * 32)]},
    }
    changed = batch_of([record()], **others[field])
    assert changed.record_ids == batch_of([record()]).record_ids
    assert changed.batch_id != batch_of([record()]).batch_id


def test_what_is_signed_is_not_what_is_hashed() -> None:
    batch = batch_of([record()])
    assert signed_message(batch.batch_id).endswith(batch.batch_id)
    assert blake3(signed_message(batch.batch_id)).digest() != batch.batch_id
    assert device_id(ALICE) != device_id(BOB)
    assert len(device_id(ALICE)) == 16


# -------------------------------------------------------------------- commitments


def slow_commitment(salt: bytes, content: bytes) -> bytes:
    """The definition in docs/protocol.md, word for word."""
    count = max(1, -(-len(content) // CHUNK_SIZE))
    hashes = b"".join(
        blake3(
            b"walyoff/chunk/1" + salt + n.to_bytes(8, "big")
            + content[n * CHUNK_SIZE : (n + 1) * CHUNK_SIZE]
        ).digest()
        for n in range(count)
    )  # fmt: skip
    size = len(content).to_bytes(8, "big")
    return blake3(b"walyoff/content/1" + salt + size + hashes).digest()


@pytest.mark.parametrize(
    "size",
    [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 2 * CHUNK_SIZE + 1],
)
def test_a_commitment_follows_its_definition_at_every_edge(size: int) -> None:
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    assert commit(SALT, content) == slow_commitment(SALT, content)
    assert commit(SALT, memoryview(content)) == slow_commitment(SALT, content)


def test_a_guess_cannot_be_confirmed_without_the_salt() -> None:
    """Somebody who reads the register and guesses a content sees no match."""
    secret = commit(os.urandom(32), b"yes")
    guesses = [commit(bytes(32), b"yes"), commit(b"", b"yes"), blake3(b"yes").digest()]
    assert secret not in guesses
    assert commit(os.urandom(32), b"yes") != secret


def test_a_commitment_binds_the_content_its_size_and_the_order_of_its_chunks() -> None:
    content = long_content()
    a, b, rest = content[:CHUNK_SIZE], content[CHUNK_SIZE : 2 * CHUNK_SIZE], content[-1:]
    assert a == b  # so an exchange of them must not show, and one of others must
    assert commit(SALT, b + a + rest) == commit(SALT, content)
    changed = bytes([a[0] ^ 1]) + a[1:]
    assert commit(SALT, changed + b + rest) != commit(SALT, a + changed + rest)
    assert commit(SALT, b"") != commit(SALT, b"\0")
    assert commit(SALT, content[:-1]) != commit(SALT, content)


# ------------------------------------------------------------------ our own limits


def test_own_messages_are_held_to_the_rules_that_others_check() -> None:
    assert check_topics(["a", "é"]) == ("a", "é")
    wrong: list[Any] = [["a"] * (MAX_TOPICS + 1), ["a" * (MAX_TOPIC_CHARS + 1)], [""], ["a\n"]]
    for topics in wrong:
        with pytest.raises(LocalProtocolError):
            check_topics(topics)
    with pytest.raises(LocalProtocolError, match="not one string"):
        check_topics("topic")
    check_content(bytes(MAX_CONTENT))
    with pytest.raises(PayloadTooLargeError) as caught:
        check_content(bytes(MAX_CONTENT + 1))
    assert (caught.value.size, caught.value.limit) == (MAX_CONTENT + 1, MAX_CONTENT)


def test_own_batches_keep_the_limits() -> None:
    assert len(batch_of([record()] * MAX_RECORDS).record_ids) == MAX_RECORDS
    for records in ([], [record()] * (MAX_RECORDS + 1)):
        with pytest.raises(LocalProtocolError):
            batch_of(records)
    long = record()._replace(topics=("\U0001f600" * MAX_TOPIC_CHARS,) * MAX_TOPICS)
    with pytest.raises(PayloadTooLargeError, match="batch"):
        batch_of([long] * 200)
    many = [Seen(bytes([n]) * 16, 1, b"b" * 32) for n in range(MAX_SEEN + 4)]
    kept = batch_of([record()], seen=many)
    assert decode_batch(kept.body).seen == tuple(many[:MAX_SEEN])


def test_a_full_batch_without_topics_has_room_in_its_limit() -> None:
    assert len(batch_of([record()] * MAX_RECORDS).body) < MAX_BATCH_BODY // 2
