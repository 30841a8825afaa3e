"""The framing between the child process and its parent: pure, shared by both sides.

A frame is a u32 (big-endian) length and that many bytes of msgpack. The first frame each
side sends is a hello, a map with the version; then come

    request  [0, id, method, args, timeout_s]        parent to child
    reply    [1, id, true, value]                    child to parent
             [1, id, false, [kind, message]]
    event    [2, name, data]                         child to parent

Decoding is total: any bytes give messages or one RemoteProtocolError. The child handles
what strangers send, so the parent trusts its bytes no more than a peer's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack

from walyoff.errors import PayloadTooLargeError, RemoteProtocolError

VERSION = 1
#: The largest frame, in bytes: larger transfers go in pieces.
MAX_FRAME = 64 << 20
#: Names of methods, events and error kinds.
MAX_NAME = 64
#: An error's text is cut here, so that an answer always fits.
MAX_ERROR_TEXT = 2_000
#: The longest deadline that a request may ask for, in seconds.
MAX_TIMEOUT = 3_600.0

_LENGTH = struct.Struct(">I")
_REQUEST, _REPLY, _EVENT = 0, 1, 2


class RpcError(Exception):
    """A failure that crosses the process boundary as a kind and a text.

    Functions in the child raise it to choose the kind that the parent sees.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first message of each side; `info` is the rest of the map."""

    version: int
    info: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call of a method of the child, to be answered within `timeout` seconds."""

    id: int
    method: str
    args: dict[str, Any]
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to a call: a value, or an error as (kind, text)."""

    id: int
    value: Any = None
    error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in the child."""

    name: str
    data: Any


Message = Hello | Request | Reply | Event


def encode(message: Message) -> bytes:
    """One whole frame.

    Raises:
        PayloadTooLargeError: it would exceed `MAX_FRAME`.
        TypeError, ValueError, OverflowError: a value is none that msgpack knows.
    """
    match message:
        case Hello(version=version, info=info):
            value: Any = {**info, "v": version}
        case Request(id=number, method=method, args=args, timeout=timeout):
            value = [_REQUEST, number, method, args, timeout]
        case Reply(id=number, error=(kind, text)):
            value = [_REPLY, number, False, [kind, text[:MAX_ERROR_TEXT]]]
        case Reply(id=number, value=result):
            value = [_REPLY, number, True, result]
        case Event(name=name, data=data):
            value = [_EVENT, name, data]
    body: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="replace")
    if len(body) > MAX_FRAME:
        raise PayloadTooLargeError(len(body), MAX_FRAME, "frame")
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """One frame's body as a message. Raises RemoteProtocolError."""
    size = len(body)
    if size > MAX_FRAME:
        raise RemoteProtocolError(f"frame of {size} bytes exceeds {MAX_FRAME}")
    try:
        value = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=False,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
        )
    except Exception as error:
        # msgpack raises many kinds for bad input; all of them mean the same here.
        raise RemoteProtocolError("frame is not valid msgpack") from error
    match value:
        case {"v": version, **info} if type(version) is int:
            # Keys of a map may be anything in msgpack; ours are strings.
            named = {str(key): item for key, item in info.items() if _is_name(key)}
            return Hello(version=version, info=named)
        case [0, number, method, dict() as args, timeout]:
            named_args = all(isinstance(key, str) for key in args)
            if _is_id(number) and _is_name(method) and _is_timeout(timeout) and named_args:
                return Request(id=number, method=method, args=args, timeout=float(timeout))
        case [1, number, True, result]:
            if _is_id(number):
                return Reply(id=number, value=result)
        case [1, number, False, [kind, str() as text]]:
            if _is_id(number) and _is_name(kind):
                return Reply(id=number, error=(kind, text[:MAX_ERROR_TEXT]))
        case [2, name, data]:
            if _is_name(name):
                return Event(name=name, data=data)
    raise RemoteProtocolError("frame is none of the known messages")


def check_hello(message: Message) -> Hello:
    """The hello, if it is one of our version. Raises RemoteProtocolError."""
    if not isinstance(message, Hello):
        raise RemoteProtocolError("the other side did not say hello", reason="no-hello")
    if message.version != VERSION:
        raise RemoteProtocolError(
            f"the other side speaks version {message.version} of the child protocol, this is "
            f"version {VERSION}: the installation was changed while it ran",
            reason="version",
        )
    return message


class FrameReader:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """The messages that are complete with this data; consume it wholly.

        Raises:
            RemoteProtocolError: the stream is damaged and of no more use.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(buffer, start)
                if size > MAX_FRAME:
                    raise RemoteProtocolError(f"frame of {size} bytes exceeds {MAX_FRAME}")
                end = start + _LENGTH.size + size
                if len(buffer) < end:
                    break
                body = bytes(memoryview(buffer)[start + _LENGTH.size : end])
                start = end
                yield decode(body)
        finally:
            del buffer[:start]


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME


def _is_timeout(value: Any) -> bool:
    # `not >` would let NaN pass; a chained comparison does not.
    return type(value) in (int, float) and 0 < value <= MAX_TIMEOUT
