"""The blocks of a channel as a drawing: segments, authors, anchors, and what builds on what.

Decided here: the layout. Blocks of one height stand above each other, heights run to the
right, segments follow each other. Colours tell who wrote what is anchored; a link to the next
segment is a diamond, a chain's birth is hollow. SVG, with the names in tooltips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from walyoff.audit_chains import RawSegment
from walyoff.child.blocks import BlockFile
from walyoff.child.chainfiles import GENESIS
from walyoff.errors import RemoteProtocolError
from walyoff.records import decode_batch

#: Blocks in one drawing: browsers show that many shapes without trouble.
MAX_DRAWN = 5_000
#: Distances and sizes, in pixels.
STEP = 26
LANE = 22
RADIUS = 7
MARGIN = 40
GAP = 30
#: Colours of authors, told apart by people who see few colours too (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
UNOPENED = "#999999"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A block and where it is drawn."""

    block: BlockFile
    segment: int
    x: float
    y: float
    colour: str
    title: str
    is_link: bool

    def is_first(self) -> bool:
        """Whether it is a chain's first block."""
        return not self.block.parents


def layout(segments: Iterable[RawSegment], *, limit: int = MAX_DRAWN) -> list[Placed]:
    """Places for the newest blocks, at most `limit` of them."""
    placed: list[Placed] = []
    colours: dict[str, str] = {}
    left = float(MARGIN)
    chosen = _newest(list(segments), limit)
    for segment, blocks in chosen:
        heights: dict[str, int] = {}
        lanes: Counter[int] = Counter()
        for block in blocks:
            height = max((heights.get(p, -1) for p in block.parents), default=-1) + 1
            heights[block.cid] = height
            author = _author(segment, block)
            if author is not None:
                colours.setdefault(author, COLOURS[len(colours) % len(COLOURS)])
            placed.append(
                Placed(
                    block=block,
                    segment=segment.number,
                    x=left + height * STEP,
                    y=MARGIN + 20 + lanes[height] * LANE,
                    colour=UNOPENED if author is None else colours[author],
                    title=_title(segment, block, author),
                    is_link=block.cid in segment.links,
                )
            )
            lanes[height] += 1
        left += (max(heights.values(), default=0) + 1) * STEP + GAP
    return placed


def _newest(segments: list[RawSegment], limit: int) -> list[tuple[RawSegment, list[BlockFile]]]:
    chosen: list[tuple[RawSegment, list[BlockFile]]] = []
    for segment in reversed(segments):
        blocks = segment.raw.blocks[-limit:] if limit > 0 else []
        if blocks:
            chosen.append((segment, blocks))
        limit -= len(blocks)
    return chosen[::-1]


def _author(segment: RawSegment, block: BlockFile) -> str | None:
    anchor = segment.anchors.get(block.cid)
    if anchor is None:
        return None
    try:
        return decode_batch(anchor.batches[0][0]).author
    except RemoteProtocolError:
        return None


def _title(segment: RawSegment, block: BlockFile, author: str | None) -> str:
    lines = [block.cid, f"{block.created:%Y-%m-%d %H:%M:%S} UTC (as its writer said)"]
    if GENESIS in block.topics:
        lines.append("birth of the chain")
    elif block.cid in segment.links:
        lines.append(f"link to segment {segment.number + 1}")
    elif author is not None:
        count = len(segment.anchors[block.cid].batches)
        lines.append(f"anchors {count} batch{'es' if count > 1 else ''}, first of {author}")
    else:
        lines.append("does not open")
    return "\n".join(lines)


def draw(segments: list[RawSegment], title: str, *, limit: int = MAX_DRAWN) -> str:
    """The drawing as SVG text."""
    import drawsvg  # noqa: PLC0415  (only drawing needs it)

    placed = layout(segments, limit=limit)
    by_cid = {item.block.cid: item for item in placed}
    width = max((item.x for item in placed), default=0) + MARGIN
    height = max((item.y for item in placed), default=0) + MARGIN
    drawing = drawsvg.Drawing(width, height)
    drawing.append(drawsvg.Rectangle(0, 0, width, height, fill="white"))
    drawing.append(drawsvg.Text(title, 12, MARGIN / 2, 18, font_family="sans-serif"))
    for item in placed:
        for parent in item.block.parents:
            start = by_cid.get(parent)
            # Every block without company has the first block as its second parent.
            if start is not None and not (start.is_first() and item.x - start.x > STEP):
                drawing.append(drawsvg.Line(start.x, start.y, item.x, item.y, stroke="#bbbbbb"))
    links = {link.chain: ref for segment in segments for ref, link in segment.links.items()}
    for chain, ref in links.items():
        if ref in by_cid and chain in by_cid:
            start, end = by_cid[ref], by_cid[chain]
            drawing.append(
                drawsvg.Line(
                    start.x, start.y, end.x, end.y, stroke="black", stroke_dasharray="4 3"
                )
            )
    for item in placed:
        drawing.append(_shape(drawsvg, item))
    svg: str = drawing.as_svg()
    return svg


def _shape(drawsvg: Any, item: Placed) -> Any:
    hollow = GENESIS in item.block.topics
    style = {"fill": "white" if hollow else item.colour, "stroke": "#333333"}
    if item.is_link:
        x, y, r = item.x, item.y, RADIUS + 1
        shape = drawsvg.Lines(x, y - r, x + r, y, x, y + r, x - r, y, close=True, **style)
    else:
        shape = drawsvg.Circle(item.x, item.y, RADIUS, **style)
    shape.append_title(item.title)
    return shape


__all__ = ["MAX_DRAWN", "Placed", "draw", "layout"]
