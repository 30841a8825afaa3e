"""Canonical msgpack: the one place where bytes from outside become Python values.

The encoding is msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) restricted
to nil, booleans, integers, UTF-8 strings, binary, arrays and maps with string keys, each in
its shortest form. `unpack` is total: any bytes give a value or one RemoteProtocolError, and
what it accepts is exactly what `pack` would have written, so a value has one encoding and a
hash of the bytes is a hash of the value.
"""

from __future__ import annotations

from typing import Any

import msgpack

from walyoff.errors import RemoteProtocolError


def pack(value: Any) -> bytes:
    """Encode a value canonically."""
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: bytes | bytearray | memoryview, limit: int) -> Any:
    """Decode canonical bytes of at most `limit` bytes.

    Raises:
        RemoteProtocolError: too long, malformed, trailing bytes, or not canonical.
    """
    size = len(data)
    if size > limit:
        raise RemoteProtocolError(
            f"structure of {size} bytes exceeds {limit}", reason="too-large"
        )
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
        )
        canonical = pack(value) == data
    except Exception as error:
        # msgpack raises many kinds (ValueError, UnicodeDecodeError, OverflowError, its own
        # stack errors): all of them mean the same here, and none of them may pass.
        raise RemoteProtocolError("structure is not valid msgpack") from error
    if not canonical:
        raise RemoteProtocolError("structure is not in canonical form", reason="not-canonical")
    return value


def expect_array(value: Any, length: int, what: str) -> list[Any]:
    """The value if it is an array of the given length. Raises RemoteProtocolError."""
    if not isinstance(value, list) or len(value) != length:
        raise RemoteProtocolError(f"{what} is not an array of {length}")
    return value


def expect_bytes(value: Any, what: str, *, size: int | None = None, limit: int = 0) -> bytes:
    """The value if it is bytes of the size, or within the limit. Raises RemoteProtocolError."""
    if not isinstance(value, bytes):
        raise RemoteProtocolError(f"{what} is not bytes")
    if (size is not None and len(value) != size) or (size is None and len(value) > limit):
        raise RemoteProtocolError(f"{what} of {len(value)} bytes has the wrong size")
    return value


def expect_str(value: Any, what: str, *, limit: int) -> str:
    """The value if it is a string of at most `limit` characters. Raises RemoteProtocolError."""
    if not isinstance(value, str) or len(value) > limit:
        raise RemoteProtocolError(f"{what} is not a string of at most {limit} characters")
    return value


def expect_int(value: Any, what: str, *, low: int = 0, high: int = (1 << 63) - 1) -> int:
    """The value if it is an integer within the bounds. Raises RemoteProtocolError."""
    # bool is an int in Python, and a flag is never meant where a number is.
    if type(value) is not int or not low <= value <= high:
        raise RemoteProtocolError(f"{what} is not an integer from {low} to {high}")
    return value
