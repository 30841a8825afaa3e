"""QR codes, of invitations: on a terminal, and into files that only their owner can read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import segno

from walyoff.cli.runtime import Failure

FORMATS = (".png", ".svg")
#: Black on white whatever the terminal's colours are: not every reader takes the inverse.
_ON, _OFF = "\x1b[30;107m", "\x1b[0m"
#: Pixels of one module in a PNG.
_SCALE = 8


def _make(text: str) -> segno.QRCode:
    # Capitals and digits take two thirds of the room of other text.
    return segno.make(text.upper().replace("-", ""), error="l", micro=False)


def draw(text: str) -> str:
    """The code as lines of half-block characters, two modules in the height of one."""
    rows = [list(row) for row in _make(text).matrix_iter(border=2)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    blocks = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
    lines = (
        "".join(blocks[bool(a), bool(b)] for a, b in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    )
    return "\n".join(f"{_ON}{line}{_OFF}" for line in lines)


def save(text: str, path: Path) -> None:
    """Write the code to a new file, mode 0600. Raises Failure, OSError."""
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise Failure(f"{path} is neither a .svg nor a .png file: choose such a name")
    image = io.BytesIO()
    _make(text).save(image, kind=kind[1:], scale=_SCALE, border=4)
    # The string is a secret. A file that is there may be somebody's, or be open to others.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failure(f"{path} exists already: choose another name, or remove it") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(image.getvalue())
