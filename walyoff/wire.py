"""Canonical msgpack: the one place where bytes from outside become Python values.

The encoding is msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) restricted
to nil, booleans, integers, UTF-8 strings, binary, arrays and maps with string keys, each in
its shortest form. `unpack` is total: any bytes give a value or one RemoteProtocolError, and
what it accepts is exactly what `pack` would have written, so a value has one encoding and a
hash of the bytes is a hash of the value. (Floats pass here, to keep the check cheap; no
structure has one, so every decoder refuses them. The order of a map is part of its value.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from walyoff.errors import RemoteProtocolError

T = TypeVar("T", list[Any], dict[str, Any])

#: A byte can be an empty array, which takes 64 bytes and a quarter of a microsecond: 16 MiB
#: of them took a gigabyte and six seconds. Larger structures than this are counted while
#: they are decoded; smaller ones cannot do much, and are spared the cost.
COUNTED_SIZE = 256 * 1024
#: Arrays and maps in one structure, and what is in them. The largest honest one is a vector
#: of 4,096 devices with 256 gaps each: 8,194 arrays, and 1.07 million numbers.
MAX_CONTAINERS = 32 * 1024
MAX_ITEMS = 1_100_000
#: Characters of a DID; those of Walytis Identities have 67.
MAX_DID = 256


def pack(value: Any) -> bytes:
    """Encode a value canonically."""
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]


def packer() -> Callable[[Any], bytes]:
    """`pack` for many values in one thread: making what packs takes longer than packing."""
    return msgpack.Packer(use_bin_type=True).pack  # type: ignore[no-any-return]


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
    count = _counter() if size > COUNTED_SIZE else None
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            list_hook=count,
            object_hook=count,
            ext_hook=_refuse_extension,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=min(size, MAX_ITEMS),
            max_map_len=min(size, MAX_ITEMS),
            max_ext_len=0,
        )
        canonical = pack(value) == data
    except RemoteProtocolError:
        raise
    except Exception as error:
        # msgpack raises many kinds (ValueError, UnicodeDecodeError, OverflowError, its own
        # stack errors): all of them mean the same here, and none of them may pass.
        raise RemoteProtocolError("structure is not valid msgpack") from error
    if not canonical:
        raise RemoteProtocolError("structure is not in canonical form", reason="not-canonical")
    return value


def unpack_some(data: bytes, count: int) -> list[Any]:
    """The first items of an array whose bytes `unpack` has accepted before.

    Raises:
        RemoteProtocolError: it is no array of so many items.
    """
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=len(data))
    unpacker.feed(data)
    try:
        size = unpacker.read_array_header()
        return [unpacker.unpack() for _ in range(min(size, count))]
    except Exception as error:
        raise RemoteProtocolError("structure is not an array") from error


#: What comes before a tail is shorter than this.
_MAX_HEAD = 64


def unpack_tail(
    data: bytes | memoryview, count: int, limit: int
) -> tuple[list[Any], memoryview] | None:
    """A canonical array of `count` small values but for the last one, which is binary.

    To check that bytes are canonical means to encode them again; binary has one encoding, so
    of a frame that is nearly all data only what is before them is, and the data stay where they
    are: at most `limit` bytes. None for everything else, which `unpack` may refuse by name.
    """
    head = bytes(data[:_MAX_HEAD])
    unpacker = msgpack.Unpacker(max_buffer_size=_MAX_HEAD, strict_map_key=True)
    unpacker.feed(head)
    try:
        if unpacker.read_array_header() != count:
            return None
        fields = [unpacker.unpack() for _ in range(count - 1)]
        at = unpacker.tell()
        if head[:at] != pack([*fields, None])[:-1]:
            return None
    except Exception:
        # As in `unpack`: msgpack raises many kinds, and all of them mean the same.
        return None
    for size in _BINARY:
        length = len(data) - at - size
        if 0 <= length <= limit and head[at : at + size] == _binary_head(length):
            return fields, memoryview(data)[at + size :]
    return None


#: How long what msgpack has before bytes can be.
_BINARY = (2, 3, 5)


def _binary_head(length: int) -> bytes:
    """What msgpack has before so many bytes."""
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")


def _counter() -> Callable[[T], T]:
    """A hook that sees each array and map when it is complete, and stops at the limits."""
    containers = items = 0

    def count(container: T) -> T:
        nonlocal containers, items
        containers += 1
        items += len(container)
        if containers > MAX_CONTAINERS or items > MAX_ITEMS:
            raise RemoteProtocolError(
                f"structure of more than {MAX_CONTAINERS} arrays or {MAX_ITEMS} items",
                reason="too-large",
            )
        return container

    return count


def _refuse_extension(code: int, _data: bytes) -> object:
    raise RemoteProtocolError(f"structure has an extension of type {code}")


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


def expect_name(value: Any, what: str, *, limit: int) -> str:
    """The value if it is 1 to `limit` visible ASCII characters: a DID, a block, an address.

    Names end up in logs and on terminals, where a control character is an attack. Raises
    RemoteProtocolError.
    """
    name = expect_str(value, what, limit=limit)
    if not name or not name.isascii() or not name.isprintable() or " " in name:
        raise RemoteProtocolError(f"{what} is not 1 to {limit} visible ASCII characters")
    return name


def expect_int(value: Any, what: str, *, low: int = 0, high: int = (1 << 63) - 1) -> int:
    """The value if it is an integer within the bounds. Raises RemoteProtocolError."""
    # bool is an int in Python, and a flag is never meant where a number is.
    if type(value) is not int or not low <= value <= high:
        raise RemoteProtocolError(f"{what} is not an integer from {low} to {high}")
    return value


def expect_version(value: Any, what: str, version: int) -> None:
    """Raise RemoteProtocolError, reason "version", unless the value is this version.

    `true` and `1.0` equal 1 in Python, and would be further encodings of the same structure.
    """
    if type(value) is not int or value != version:
        raise RemoteProtocolError(
            f"{what} version {value!r} is not {version}"[:200], reason="version"
        )
