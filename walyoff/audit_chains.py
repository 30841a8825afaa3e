"""Reading chains from disk as they are: nothing is repaired, everything is named.

Decided here: what is wrong with the files of a chain, and what its blocks say. The device's
own code repairs a chain when it opens it, so this reads before that. Blocking: for a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from walyoff.child import packs
from walyoff.child.blocks import MAX_FILE, BlockFile, decode_block
from walyoff.child.chainfiles import GENESIS, GENESIS_BLOCKS, POSITION_LINE
from walyoff.child.chainindex import index_differs
from walyoff.child.dag import causal_order
from walyoff.child.proofs import (
    TOPIC_ANCHOR,
    TOPIC_LINK,
    Link,
    UnknownEpochError,
    check_proof,
    open_link,
    payload_epoch,
    unwrap,
)
from walyoff.epochs import Anchor, open_anchor_with
from walyoff.errors import CipherError, RemoteProtocolError

#: What can be wrong; each is one word of a report.
BLOCK_DAMAGED = "block-damaged"
BLOCK_MISSING = "block-missing"
BLOCK_FORGED = "block-forged"
CHAIN_MISSING = "segment-missing"
BIRTH_DAMAGED = "birth-damaged"
INDEX_DIFFERS = "index-differs"
UNKNOWN_EPOCH = "unknown-epoch"
LINK_FORGED = "link-forged"

#: verify(control keys, signature, data)
Verify = Callable[[str, bytes, bytes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    #: The chain, block, author or record that it is about.
    where: str
    detail: str


@dataclass(slots=True)
class RawChain:
    """The blocks of one chain on disk, parents before children, and what is wrong with them."""

    chain: str
    blocks: list[BlockFile] = field(default_factory=list)
    #: The blocks that the device has admitted, in the order in which they came.
    listed: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(slots=True)
class RawSegment:
    """A segment: what its blocks say."""

    chain: str
    number: int
    parent: str | None
    raw: RawChain
    #: Anchors and links by block name.
    anchors: dict[str, Anchor] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)


def count_blocks(home: Path, chain: str) -> int:
    """How many block files there are, for a progress bar."""
    return sum(1 for _ in _stored(home / "walytis" / chain))


def _stored(folder: Path) -> list[tuple[Path, str, int, int]]:
    """(file, block name, offset, size) of all blocks of a chain, as they lie.

    A block that is in two places is there twice.
    """
    found = [
        (path, path.name, 0, MAX_FILE + 1)
        for path in sorted((folder / "ReceivedBlocks").glob("*/*"))
    ]
    pack = folder / packs.NAME
    if pack.is_file():
        with pack.open("rb") as file:
            found += [(pack, cid, start, size) for cid, start, size in packs.records(file)]
    return found


def read_chain(home: Path, chain: str, tick: Callable[[], None]) -> RawChain:
    """Read and check all block files of a chain: form, CID, hashes, parents, index."""
    raw = RawChain(chain)
    folder = home / "walytis" / chain
    stored = _stored(folder)
    if not stored:
        raw.findings.append(Finding(kind=CHAIN_MISSING, where=chain, detail="no such folder"))
        return raw
    found: dict[str, BlockFile] = {}
    damaged: set[str] = set()
    filed: list[bytes] = []
    for path, cid, start, size in stored:
        tick()
        try:
            with open(path, "rb") as file:
                file.seek(start)
                block = decode_block(file.read(size), cid)
        except (OSError, RemoteProtocolError) as error:
            damaged.add(cid)
            raw.findings.append(
                Finding(kind=BLOCK_DAMAGED, where=f"{chain}/{cid}", detail=str(error))
            )
        else:
            found[block.cid] = block
            if path.name != packs.NAME:
                filed.append(block.long_id)
    expected = {parent for block in found.values() for parent in block.parents}
    raw.listed = _listed(home / "positions" / chain)
    expected |= {chain, *raw.listed}
    for cid in sorted(expected - set(found) - damaged):
        raw.findings.append(
            Finding(kind=BLOCK_MISSING, where=f"{chain}/{cid}", detail="known, but no file")
        )
    raw.blocks = causal_order(found)
    births = sum(GENESIS in block.topics for block in raw.blocks)
    if births != GENESIS_BLOCKS:
        detail = f"{births} first blocks, not {GENESIS_BLOCKS}"
        raw.findings.append(Finding(kind=BIRTH_DAMAGED, where=chain, detail=detail))
    if index_differs(folder, filed):
        raw.findings.append(
            Finding(kind=INDEX_DIFFERS, where=chain, detail="it is written again at a start")
        )
    return raw


def _listed(positions: Path) -> list[str]:
    """The blocks that the device has admitted."""
    try:
        data = positions.read_bytes()
    except FileNotFoundError:
        return []
    whole = len(data) // POSITION_LINE * POSITION_LINE
    lines = (data[at : at + POSITION_LINE - 1] for at in range(0, whole, POSITION_LINE))
    return [line.decode("ascii", "replace") for line in lines]


def read_segments(
    home: Path,
    root: str,
    *,
    group: str,
    keys: Mapping[bytes, bytes],
    control_keys: list[str],
    verify: Verify,
    tick: Callable[[], None],
) -> list[RawSegment]:
    """Walk all segments from the first, by the links in them."""
    segments: list[RawSegment] = []
    todo: list[tuple[str, int, str | None]] = [(root, 0, None)]
    seen = {root}
    while todo:
        chain, number, parent = todo.pop(0)
        segment = RawSegment(chain, number, parent, read_chain(home, chain, tick))
        _open_blocks(segment, keys)
        for ref, link in list(segment.links.items()):
            signed = any(verify(key, link.signature, link.body()) for key in control_keys)
            fits = (link.group, link.previous, link.number) == (group, chain, number + 1)
            if not signed or not fits:
                detail = "not signed by the identity" if fits else "of another place"
                segment.raw.findings.append(
                    Finding(kind=LINK_FORGED, where=f"{chain}/{ref}", detail=detail)
                )
                del segment.links[ref]
            elif link.chain not in seen:
                seen.add(link.chain)
                todo.append((link.chain, number + 1, chain))
        segments.append(segment)
    return segments


def _open_blocks(segment: RawSegment, keys: Mapping[bytes, bytes]) -> None:
    for block in segment.raw.blocks:
        if GENESIS in block.topics:
            continue
        try:
            is_link = TOPIC_LINK in block.topics
            if is_link == (TOPIC_ANCHOR in block.topics):
                raise RemoteProtocolError("neither anchor nor link")
            payload, proof = unwrap(block.content)
            epoch_id = payload_epoch(payload, link=is_link)
            if epoch_id not in keys:
                raise UnknownEpochError(epoch_id)
            key = keys[epoch_id]
            check_proof(payload, proof, key, segment.chain, block.parent_ids)
            if is_link:
                segment.links[block.cid] = open_link(key, payload)
            else:
                segment.anchors[block.cid] = open_anchor_with(key, payload)
        except (RemoteProtocolError, CipherError) as error:
            unknown = isinstance(error, UnknownEpochError)
            segment.raw.findings.append(
                Finding(
                    kind=UNKNOWN_EPOCH if unknown else BLOCK_FORGED,
                    where=f"{segment.chain}/{block.cid}",
                    detail=str(error),
                )
            )
