"""What an outsider can read: every block, and every file that the devices keep.

The search is for what must not be found. It also looks for something that must be found (a
member's DID, which is public on the identity's chain): a search that finds nothing at all
proves nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from walyoff.child.blocks import BlockFile, decode_block
from walyoff.errors import RemoteProtocolError
from walyoff.walytis.ledger import TOPIC as ANCHOR_TOPIC

_BLOCKS = "walytis/*/ReceivedBlocks/*/*"
GENESIS_TOPIC = "genesis"
#: The end of a CID, which people can tell from another one.
SHORT = 6
#: What is encrypted cannot be compressed: at most so much of its size is won.
_COMPRESSIBLE = 0.02
#: Compressing it gains nothing on small blocks either, so the result means something.
_LEAST = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenBlock:
    """A block as an outsider sees it."""

    #: The end of its CID.
    id: str
    chain: str
    topics: tuple[str, ...]
    size: int
    time: str
    kind: str
    #: True if it is an anchor and its content looks like noise.
    sealed: bool
    #: Whom the block names as its writer, in clear: the same word in all of ours, where stock
    #: Walytis names the node.
    creator: str


@dataclass(slots=True)
class Findings:
    """What the search saw and what it found."""

    blocks: list[SeenBlock] = field(default_factory=list)
    searched_blocks: int = 0
    searched_files: int = 0
    searched_bytes: int = 0
    #: Where something was found that must not be there: (file, what kind of thing).
    found: list[tuple[str, str]] = field(default_factory=list)
    #: How often the control was found.
    control: int = 0

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "plaintext_on_chain": bool(self.found),
            "found": [{"file": file, "what": what} for file, what in self.found],
            "search_control": self.control,
            "searched_blocks": self.searched_blocks,
            "searched_files": self.searched_files,
            "searched_bytes": self.searched_bytes,
            "blocks": [asdict(block) for block in self.blocks],
        }


def forms(text: str) -> list[bytes]:
    """The ways in which a text may lie in a file: as it is, in hexadecimal, in UTF-16."""
    raw = text.encode()
    return [raw, raw.hex().encode(), text.encode("utf-16-le")]


def search(
    homes: Iterable[Path], *, secrets: dict[str, list[str]], authors: list[str]
) -> Findings:
    """Search all files of the homes.

    `secrets` (by kind) must not be in any file. `authors` are the DIDs of those who wrote:
    the identity's chain names its members, but no anchor may name its author. Blocking.
    """
    findings = Findings()
    needles = [
        (form, kind) for kind, texts in secrets.items() for t in texts for form in forms(t)
    ]
    # A DID occurs with and without its method.
    names = [form for did in authors for form in forms(did.rpartition(":")[2])]
    seen: set[str] = set()
    for home in homes:
        for path in sorted(home.rglob("*")):
            if not path.is_file():
                continue
            data = path.read_bytes()
            findings.searched_files += 1
            findings.searched_bytes += len(data)
            place = str(path.relative_to(home.parent))
            findings.found += [(place, kind) for needle, kind in needles if needle in data]
            findings.control += any(did.encode() in data for did in authors)
            if path.match(_BLOCKS):
                chain = path.parents[2].name
                block = _look_at_block(data, place, names, findings)
                if block is not None and block.cid not in seen:
                    seen.add(block.cid)
                    findings.blocks.append(_describe(block, chain, data))
    findings.blocks.sort(key=lambda block: block.time)
    return findings


def _look_at_block(
    data: bytes, place: str, names: list[bytes], findings: Findings
) -> BlockFile | None:
    findings.searched_blocks += 1
    try:
        block = decode_block(data)
    except RemoteProtocolError:
        findings.found.append((place, "a block that cannot be read"))
        return None
    if ANCHOR_TOPIC in block.topics:
        findings.found += [(place, "author") for name in names if name in data]
    return block


def _describe(block: BlockFile, chain: str, data: bytes) -> SeenBlock:
    anchor = ANCHOR_TOPIC in block.topics
    kind = "anchor" if anchor else "birth" if GENESIS_TOPIC in block.topics else "identity"
    return SeenBlock(
        id=block.cid[-SHORT:],
        chain=chain[-SHORT:],
        topics=block.topics,
        size=len(block.content),
        time=_iso(block.created),
        kind=kind,
        sealed=anchor and is_noise(block.content),
        # The second field of a block file, which was decoded before.
        creator=data.split(b"\0\0", 2)[1].decode("ascii", "replace"),
    )


def is_noise(content: bytes) -> bool:
    """True if compressing the content gains nothing, as of anything encrypted."""
    if len(content) < _LEAST:
        return False
    return 1 - len(zlib.compress(content, 9)) / len(content) < _COMPRESSIBLE


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
