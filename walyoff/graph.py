"""The blocks of a channel as a drawing: segments, authors, anchors, and what builds on what.

Decided here: the layout. Blocks of one height stand above each other, heights run to the
right, segments follow each other. Colours tell who wrote what is anchored; a link to the next
segment is a diamond, a chain's birth is hollow. SVG, with a legend below, and the names in
tooltips.
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
#: A line of the legend, and what stands in it: a block and a short name.
LEGEND = 20
LEGEND_ITEM = 120
#: Colours of authors, told apart by people who see few colours too (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
UNOPENED = "#999999"
#: The end of a DID, which differs.
SHORT = 6


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
    #: Who wrote the first batch that it anchors.
    author: str | None

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
                    author=author,
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
    items = _legend(placed)
    width = max(width, MARGIN + LEGEND_ITEM * min(len(items), 4))
    columns = max(int(width - MARGIN) // LEGEND_ITEM, 1)
    legend_top = height
    height += LEGEND * -(-len(items) // columns)
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
    lefts: dict[int, float] = {}
    for item in placed:
        lefts[item.segment] = min(item.x, lefts.get(item.segment, item.x))
    for number, left in lefts.items():
        drawing.append(_text(drawsvg, f"segment {number}", left - RADIUS, MARGIN + 4))
    for index, (colour, text, is_link) in enumerate(items):
        x = MARGIN / 2 + RADIUS + index % columns * LEGEND_ITEM
        y = legend_top + index // columns * LEGEND
        drawing.append(_mark(drawsvg, x, y, colour, is_link=is_link))
        drawing.append(_text(drawsvg, text, x + RADIUS + 5, y + 4))
    svg: str = drawing.as_svg()
    return svg


def _legend(placed: list[Placed]) -> list[tuple[str, str, bool]]:
    """(colour, text, whether it is a link) of what is drawn."""
    authors = {item.author: item.colour for item in placed if item.author is not None}
    items = [(colour, f"…{author[-SHORT:]}", False) for author, colour in authors.items()]
    if any(GENESIS in item.block.topics for item in placed):
        items.append(("white", "birth of a chain", False))
    if any(item.is_link for item in placed):
        items.append((UNOPENED, "link to the next", True))
    plain = (i for i in placed if i.author is None and not i.is_link)
    if any(GENESIS not in item.block.topics for item in plain):
        items.append((UNOPENED, "does not open", False))
    return items


def _text(drawsvg: Any, text: str, x: float, y: float) -> Any:
    return drawsvg.Text(text, 11, x, y, font_family="sans-serif", fill="#333333")


def _mark(drawsvg: Any, x: float, y: float, colour: str, *, is_link: bool) -> Any:
    style = {"fill": colour, "stroke": "#333333"}
    if not is_link:
        return drawsvg.Circle(x, y, RADIUS, **style)
    r = RADIUS + 1
    return drawsvg.Lines(x, y - r, x + r, y, x, y + r, x - r, y, close=True, **style)


def _shape(drawsvg: Any, item: Placed) -> Any:
    colour = "white" if GENESIS in item.block.topics else item.colour
    shape = _mark(drawsvg, item.x, item.y, colour, is_link=item.is_link)
    shape.append_title(item.title)
    return shape


__all__ = ["MAX_DRAWN", "Placed", "draw", "layout"]
