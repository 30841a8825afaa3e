"""Block files from outside: decoded totally, and admitted only where they may follow."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walyoff.child import guard
from walyoff.child.blocks import MAX_CONTENT, BlockFile, decode_block, decode_id
from walyoff.child.chainfiles import POSITION_LINE, ChainFiles
from walyoff.child.chainindex import index_differs
from walyoff.child.dag import causal_order
from walyoff.errors import LedgerError, RemoteProtocolError
from walyoff.testing.walytis_blocks import Birth, birth, make_block


def refused(data: bytes, cid: str | None = None) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_block(data, cid)
    return caught.value.reason


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Birth, ChainFiles]:
    born = birth()
    files = ChainFiles(born.chain, tmp_path / "chain", tmp_path / "positions")
    files.add_closed(zip(born.blocks, born.files, strict=True))
    return born, files


def add(files: ChainFiles, data: bytes) -> BlockFile:
    block = decode_block(data)
    files.add_closed([(block, data)])
    return block


def check(files: ChainFiles, data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        files.check(decode_block(data))
    return caught.value.reason


def test_block_decodes_to_what_was_written() -> None:
    born = birth()
    data = born.child(b"\0\0\0\0\0\0content\0", topics=["a", "ü"])
    block = decode_block(data)
    assert block.content == b"\0\0\0\0\0\0content\0"
    assert block.topics == ("a", "ü", born.chain)
    assert set(block.parents) == {born.blocks[4].cid, born.chain}
    again = decode_id(block.long_id)
    assert (again.cid, again.short, again.topics) == (block.cid, block.short_id, block.topics)
    assert decode_id(block.short_id).parents is None


def test_malformed_blocks_are_refused_with_a_reason() -> None:
    born = birth()
    ids = [born.blocks[4].short_id, born.blocks[0].short_id]
    good = make_block(b"x", ["t", born.chain], ids)
    decode_block(good)
    assert refused(good, born.chain) == "cid"
    assert refused(good[:-1]) == "content-size"
    assert refused(good + b"y") == "malformed"
    assert refused(make_block(b"x", ["t"], ids, digest=bytes(64))) == "bad-hash"
    assert refused(make_block(b"x", ["t"], ids, parents_hash=b"\x05")) == "bad-hash"
    assert refused(make_block(b"x", ["t"], ids, length=2)) == "malformed"
    assert refused(make_block(b"x" * (MAX_CONTENT + 1), ["t"], ids)) == "content-size"
    assert refused(make_block(b"x", [""], ids)) == "malformed"
    assert refused(make_block(b"x", ["a", "", "b"], ids)) == "malformed"
    assert refused(make_block(b"x", ["t" * 1000], ids)) == "bad-topics"
    assert refused(make_block(b"x", ["t"], ids * 60)) == "too-many-parents"
    assert refused(make_block(b"x", ["t"], ids, creator=b"a\0b")) == "malformed"
    assert refused(make_block(b"x", ["t"], ids, year=999)) == "malformed"
    assert refused(b"\0" * 100) == "malformed"
    assert refused(bytes(5 << 20)) == "too-large"
    forged = born.blocks[4].short_id.replace(b"Qm", b"..")
    with pytest.raises(RemoteProtocolError):
        decode_id(forged)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_blocks_and_ids_never_raise_anything_else(data: st.DataObject) -> None:
    born = birth()
    block = born.child(b"content")
    for original, decode in (
        (block, decode_block),
        (decode_block(block).long_id, decode_id),
    ):
        raw = bytearray(original)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(raw) - 1))
            piece = data.draw(st.binary(max_size=4))
            raw[at : at + data.draw(st.integers(0, 4))] = piece
        with contextlib.suppress(RemoteProtocolError):
            decode(bytes(raw))


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
            ),
        ).map(lambda value: json.dumps({"message": "New block!", "block_id": value}).encode()),
    )
)
def test_announcements_are_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        guard.decode_announcement(data)


def test_cids_are_those_that_kubo_computes(tmp_path: Path) -> None:
    # In a process of its own, because Kubo takes over signals.
    script = """
import os, sys
from pathlib import Path
from walyoff.child import repo
from walyoff.child.kubo import Kubo
from walyoff.child.blocks import cid_of
home = Path(sys.argv[1])
os.chdir(home)
repo.ensure_repo(home / "ipfs")
kubo = Kubo(home / "ipfs")
kubo.start()
for size in (1, 127, 128, 16_384, 262_144, 262_145, 524_288, 1_100_000):
    data = bytes(i * 7 & 255 for i in range(size))
    (home / "file").write_bytes(data)
    assert kubo.add_file(home / "file", True) == cid_of(data), size
kubo.stop()
print("same", flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "LIBP2P_TCP_REUSEPORT": "false"},
    )
    assert "same" in done.stdout, done.stderr


def test_blocks_that_may_not_follow_are_refused(chain: tuple[Birth, ChainFiles]) -> None:
    born, files = chain
    first = add(files, born.child(b"first"))
    second_data = born.child(b"second", first)
    second = decode_block(second_data)
    assert check(files, born.child(b"third", second)) == "unknown-parents"
    add(files, second_data)
    ids = [first.short_id, born.blocks[0].short_id]
    assert check(files, make_block(b"x", ["walyoff"], ids)) == "wrong-chain"
    assert check(files, make_block(b"x", [born.chain], ids[:1])) == "parents"
    assert check(files, make_block(b"x", [born.chain], ids[:1] * 2)) == "parents"
    assert check(files, born.child(b"x", first, second)) == "parents"
    assert check(files, make_block(b"x", ["genesis"], ids)) == "genesis"
    assert check(files, make_block(b"x", ["genesis", born.chain], ids)) == "genesis"
    assert check(files, make_block(b"other", ["genesis"], [])) == "wrong-chain"
    late = [born.blocks[4].short_id, born.blocks[0].short_id]
    assert check(files, make_block(b"sixth", ["genesis"], late)) == "genesis"
    false_id = first.short_id.replace(b"walyoff", b"woolyff")
    lying = make_block(b"x", [born.chain], [false_id, born.blocks[0].short_id])
    assert check(files, lying) == "parents"
    assert files.leaves() == [second.cid]


def test_positions_survive_and_order_parents_first(
    chain: tuple[Birth, ChainFiles], tmp_path: Path
) -> None:
    born, files = chain
    blocks = [add(files, born.child(b"one"))]
    blocks.append(add(files, born.child(b"two")))
    blocks.append(add(files, born.child(b"merge", blocks[0], blocks[1])))
    listed = files.after(0, 100)
    assert [entry.cid for _, entry in listed] == [block.cid for block in blocks]
    assert [position for position, _ in listed] == [6, 7, 8]
    assert files.without_ancestors([b.cid for b in blocks]) == [blocks[2].cid]
    assert set(files.without_ancestors([b.cid for b in blocks[:2]])) == {
        b.cid for b in blocks[:2]
    }
    positions = tmp_path / "positions"
    with positions.open("ab") as file:
        file.write(b"Qmtorn")
    again = ChainFiles(born.chain, tmp_path / "chain", positions)
    again.load()
    assert [(p, e.cid) for p, e in again.after(0, 100)] == [(p, e.cid) for p, e in listed]
    positions.unlink()
    again.load()
    order = [entry.cid for _, entry in again.after(0, 100)]
    assert set(order) == {block.cid for block in blocks}
    assert order[-1] == blocks[2].cid


def test_positions_that_a_power_loss_took_are_given_again(
    chain: tuple[Birth, ChainFiles], tmp_path: Path
) -> None:
    born, files = chain
    for text in (b"one", b"two", b"three", b"four", b"five"):
        add(files, born.child(text))
    listed = [(position, entry.cid) for position, entry in files.after(0, 100)]
    # Not the order in which they would stand if nothing was known of it.
    assert [cid for _, cid in listed] != sorted(cid for _, cid in listed)
    positions = tmp_path / "positions"
    for kept in range(len(listed) + 1):
        os.truncate(positions, (5 + kept) * POSITION_LINE)
        again = ChainFiles(born.chain, tmp_path / "chain", positions)
        again.load()
        assert [(position, entry.cid) for position, entry in again.after(0, 100)] == listed
    # Without the pack, the positions alone say it: they are synced before it goes.
    again.spread(again.packed())
    again.load()
    assert [(position, entry.cid) for position, entry in again.after(0, 100)] == listed


def test_what_a_crash_left_torn_is_removed_and_the_index_written_again(
    chain: tuple[Birth, ChainFiles], tmp_path: Path
) -> None:
    born, files = chain
    one = add(files, born.child(b"one"))
    two = add(files, born.child(b"two", one))
    files.spread(files.packed())
    (index,) = (tmp_path / "chain" / "KnownBlocksIndex").iterdir()
    whole = index.read_bytes()
    torn = tmp_path / "chain" / "ReceivedBlocks" / two.cid[:4] / two.cid
    torn.write_bytes(torn.read_bytes()[:100])
    index.write_bytes(whole[:-20])
    again = ChainFiles(born.chain, tmp_path / "chain", tmp_path / "positions")
    again.load()
    assert two.cid not in again
    assert one.cid in again
    assert not torn.exists()
    assert index.read_bytes() == whole[: len(index.read_bytes())]
    # When the block comes again, readers that are past its old position see it.
    top = again.top
    add(again, born.child(b"two", one))
    assert [entry.cid for _, entry in again.after(top, 10)] == [two.cid]
    again.spread(again.packed())
    assert index.read_bytes() == whole


def test_what_was_handed_over_is_one_file_until_it_is_spread(
    chain: tuple[Birth, ChainFiles], tmp_path: Path
) -> None:
    born, files = chain
    data = [born.child(b"%d" % number) for number in range(4)]
    blocks = [decode_block(file) for file in data]
    pack = tmp_path / "chain" / "HandedOver"
    files.add_closed(zip(blocks[:3], data[:3], strict=True))
    whole = pack.read_bytes()
    assert [path.name for path in (tmp_path / "chain").iterdir()] == ["HandedOver"]
    # Torn in its last block; altered in its second.
    altered = bytearray(whole[:-10])
    altered[whole.index(data[1]) + 20] ^= 1
    pack.write_bytes(altered)
    again = ChainFiles(born.chain, tmp_path / "chain", tmp_path / "positions")
    again.load()
    assert [block.cid in again for block in blocks] == [True, False, False, False]
    assert again.read(blocks[0].cid) == data[0]
    # They come again, and one more; then stock code is given files.
    again.add_closed(zip(blocks, data, strict=True))
    third = ChainFiles(born.chain, tmp_path / "chain", tmp_path / "positions")
    third.load()
    assert [third.read(block.cid) for block in blocks] == data
    order = [entry.cid for _, entry in third.after(0, 9)]
    third.spread(third.packed()[:2])
    assert pack.exists()
    third.spread(third.packed())
    assert not pack.exists()
    assert [third.read(block.cid) for block in blocks] == data
    assert not index_differs(tmp_path / "chain", [e.long_id for e in third.in_order()])
    # What opens the chain in Walytis finds its birth, and gives it no second time.
    third.file_birth()
    assert not index_differs(tmp_path / "chain", [e.long_id for e in third.in_order()])
    # A kill between the files and the end of the pack leaves blocks twice.
    pack.write_bytes(whole)
    last = ChainFiles(born.chain, tmp_path / "chain", tmp_path / "positions")
    last.load()
    assert [entry.cid for _, entry in last.after(0, 9)] == order
    assert len(last) == 9


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_a_pack(
    seed: int, chain: tuple[Birth, ChainFiles], tmp_path: Path
) -> None:
    born, files = chain
    one = add(files, born.child(b"one"))
    files.file_birth()
    pack = tmp_path / "chain" / "HandedOver"
    data = bytearray(pack.read_bytes())
    source = random.Random(seed)
    for _ in range(source.randrange(8)):
        data[source.randrange(len(data))] = source.randrange(256)
    pack.write_bytes(bytes(data[: source.randrange(len(data) + 1)]) + source.randbytes(60))
    again = ChainFiles(born.chain, tmp_path / "chain", tmp_path / "positions")
    again.load()
    assert len(again) in (5, 6)
    assert (one.cid in again) == (len(again) == 6)


def test_chain_without_its_first_block_is_an_error(
    chain: tuple[Birth, ChainFiles], tmp_path: Path
) -> None:
    born, files = chain
    files.file_birth()
    (tmp_path / "chain" / "ReceivedBlocks" / born.chain[:4] / born.chain).unlink()
    (tmp_path / "chain" / "HandedOver").unlink()
    with pytest.raises(LedgerError):
        ChainFiles(born.chain, tmp_path / "chain", tmp_path / "positions").load()


def test_export_gives_what_is_not_known_in_causal_order(
    chain: tuple[Birth, ChainFiles],
) -> None:
    born, files = chain
    one = add(files, born.child(b"one"))
    two_data = born.child(b"two", one)
    add(files, two_data)
    everything, more = files.export(None, 1 << 20)
    assert len(everything) == 7
    assert more is None
    assert files.export([one.cid], 1 << 20) == ([two_data], None)
    # In pieces, also by who has not read the chain.
    unread = ChainFiles(born.chain, files.folder, files._positions_path)
    for export in (functools.partial(files.export, None), unread.export_unread):
        pieces: list[bytes] = []
        after: int | None = 0
        while after is not None:
            piece, after = export(1, after)
            assert len(piece) <= 1
            pieces += piece
        assert pieces == everything
    shuffled = {decode_block(f).cid: decode_block(f) for f in everything[::-1]}
    ordered = [block.cid for block in causal_order(shuffled)]
    assert ordered.index(one.cid) < ordered.index(decode_block(two_data).cid)
    assert ordered[0] == born.chain


def test_three_thousand_blocks_in_a_row_need_no_recursion() -> None:
    born = birth()
    blocks = {block.cid: block for block in born.blocks}
    last = born.blocks[-1]
    for number in range(3_000):
        last = decode_block(born.child(b"%d" % number, last))
        blocks[last.cid] = last
    assert len(causal_order(blocks)) == 3_005
    assert causal_order(blocks)[-1].cid == last.cid


def test_a_disk_that_was_full_costs_no_position(
    chain: tuple[Birth, ChainFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born, files = chain
    one = add(files, born.child(b"one"))
    data = born.child(b"two", one)
    two = decode_block(data)
    files.write_block(two, data)

    def full(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 20)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            files.admit(two)
    three = add(files, born.child(b"three", two))
    placed = [(position, entry.cid) for position, entry in files.after(0, 100)]
    assert [cid for _, cid in placed] == [one.cid, two.cid, three.cid]
    again = ChainFiles(born.chain, tmp_path / "chain", tmp_path / "positions")
    again.load()
    assert [(position, entry.cid) for position, entry in again.after(0, 100)] == placed
