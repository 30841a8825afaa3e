"""A device's numbers as OpenMetrics text, for those who watch many devices; off by default.

`render` gives the text once, `write_file` keeps a file of it (for a collector of text
files), `serve` answers `GET /metrics` on 127.0.0.1 and nowhere else. The text has no
content, no keys and no addresses, and names members only when asked to.

Needs the extra `metrics` (prometheus_client), which is imported when it is first used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

import walyoff
from walyoff.errors import LocalProtocolError, TransportError
from walyoff.files import replace_file, sweep_new
from walyoff.sockets import SocketStream
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from walyoff.channel import Channel
    from walyoff.node import Device

log = logging.getLogger("walyoff.metrics")

HOST: Final = "127.0.0.1"
CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: Seconds between two writings of the file.
EVERY_S: Final = 15.0
MIN_EVERY_S: Final = 0.1
#: A request's head, in bytes, and the seconds in which it must have come and be answered.
MAX_HEAD: Final = 8192
REQUEST_S: Final = 5.0
#: Requests answered at the same time; more wait in the socket's backlog.
MAX_REQUESTS: Final = 8
BACKLOG: Final = 16
#: Characters of a label, which may come from a peer's fault or a user's name.
MAX_LABEL: Final = 128

#: Numbers of `Channel.statistics` by kind: key, metric, help.
_GAUGES: Final = (
    ("messages", "messages", "Messages in the local log"),
    ("unanchored", "unanchored_batches", "Batches that no known block of the ledger anchors"),
    ("missing", "missing_messages", "Messages that are announced and not held"),
    ("members", "members", "Members of the identity"),
    ("peers", "peers", "Devices with a session now"),
    ("sessions", "sessions", "Sessions now"),
    ("backlog", "backlog_bytes", "Bytes that wait to be sent"),
    ("uptime_s", "uptime_seconds", "Time since the channel was opened"),
)
_COUNTERS: Final = (
    ("sessions_total", "sessions_opened", "Sessions since the channel was opened"),
    ("bytes_sent", "sent_bytes", "Bytes sent in sessions"),
    ("bytes_received", "received_bytes", "Bytes received in sessions"),
)
_FAULT: Final = "fault_"


def render(device: Device, *, name_peers: bool = False) -> str:
    """The device's numbers now, as OpenMetrics text that ends with `# EOF`.

    Channels are told apart by the names that this device gave them. `name_peers` adds the
    numbers of each session, labelled with the other device's DID.

    Raises:
        LocalProtocolError: prometheus_client is not installed.
    """
    _need_client()
    from prometheus_client import CollectorRegistry  # noqa: PLC0415 - an optional extra
    from prometheus_client.openmetrics.exposition import generate_latest  # noqa: PLC0415

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(device, name_peers))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


async def write_file(
    device: Device,
    path: str | os.PathLike[str],
    every_s: float = EVERY_S,
    *,
    name_peers: bool = False,
) -> None:
    """Keep a file of the device's numbers, mode 0600, until cancelled.

    Each writing replaces the file at once, so a reader never sees half of it. A file that
    cannot be written is logged and tried again.

    Raises:
        LocalProtocolError: prometheus_client is not installed, or `every_s` is too small.
    """
    _need_client()
    if not every_s >= MIN_EVERY_S:
        raise LocalProtocolError(f"metrics are written every {MIN_EVERY_S:g} s at most")
    path = Path(path)
    await device.runtime.in_thread(sweep_new, path.parent, path.name)
    while True:
        text = render(device, name_peers=name_peers)
        try:
            await device.runtime.in_thread(replace_file, path, text.encode())
        except OSError as error:
            log.warning("metrics could not be written: %s", error)
        await anyio.sleep(every_s)


@asynccontextmanager
async def serve(
    device: Device, *, port: int = 0, name_peers: bool = False
) -> AsyncIterator[int]:
    """Answer `GET /metrics` on 127.0.0.1 while the context is open; gives the port.

    Every process on this machine can read it. Requests that name another host are refused,
    so that a web page cannot read it through a browser.

    Raises:
        LocalProtocolError: prometheus_client is not installed.
        TransportError: the port cannot be used.
    """
    _need_client()
    try:
        listener = socket.create_server((HOST, port), backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise TransportError(f"metrics cannot be served on port {port}: {error}") from error
    with contextlib.closing(listener):
        listener.setblocking(False)
        async with background_tasks() as tasks:
            limiter = anyio.CapacityLimiter(MAX_REQUESTS)

            async def answer(stream: SocketStream) -> None:
                try:
                    with anyio.move_on_after(REQUEST_S):
                        head = await _receive_head(stream)
                        await stream.send(_response(device, head, name_peers))
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    log.debug("a reader of metrics went away")
                finally:
                    limiter.release_on_behalf_of(stream)
                    await anyio.aclose_forcefully(stream)

            async def accept() -> None:
                while True:
                    await anyio.wait_readable(listener)
                    try:
                        connection, _ = listener.accept()
                    except OSError as error:
                        # Gone again, or out of file descriptors.
                        log.debug("a request for metrics was lost: %s", error)
                        await anyio.sleep(0.05)
                        continue
                    stream = SocketStream(connection)
                    try:
                        await limiter.acquire_on_behalf_of(stream)
                    except BaseException:
                        await anyio.aclose_forcefully(stream)
                        raise
                    tasks.start_soon(answer, stream)

            tasks.start_soon(accept)
            yield int(listener.getsockname()[1])


# ------------------------------------------------------------------------------- numbers


class _Collector:
    """Reads a device for prometheus_client."""

    def __init__(self, device: Device, name_peers: bool) -> None:
        self._device = device
        self._name_peers = name_peers

    def collect(self) -> Iterator[Metric]:
        """The metrics of now."""
        from prometheus_client.core import (  # noqa: PLC0415 - an optional extra
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        device, channels = self._device, self._device.channels()
        own = device.statistics()
        info = {"version": walyoff.__version__, "suite": device.suite}
        yield InfoMetricFamily("walyoff", "This device's software", value=info)
        for key, name, text in (
            ("uptime_s", "uptime_seconds", "Time since the device was opened"),
            ("channels", "channels", "Channels of the device"),
            ("handshakes", "handshakes", "Handshakes in progress"),
        ):
            yield GaugeMetricFamily(f"walyoff_device_{name}", text, value=own[key])
        numbers = [(_label(channel.name), channel.statistics()) for channel in channels]
        for key, name, text in _GAUGES:
            gauge = GaugeMetricFamily(f"walyoff_channel_{name}", text, labels=["channel"])
            for label, values in numbers:
                gauge.add_metric([label], values[key])
            yield gauge
        for key, name, text in _COUNTERS:
            counter = CounterMetricFamily(f"walyoff_channel_{name}", text, labels=["channel"])
            for label, values in numbers:
                counter.add_metric([label], values[key])
            yield counter
        faults = CounterMetricFamily(
            "walyoff_channel_faults", "Faults of peers", labels=["channel", "reason"]
        )
        for label, values in numbers:
            for key, count in values.items():
                if key.startswith(_FAULT):
                    faults.add_metric([label, _label(key.removeprefix(_FAULT))], count)
        yield faults
        refused = GaugeMetricFamily(
            "walyoff_channel_refused_blocks",
            "Blocks on the identity's chain that were refused",
            labels=["channel", "reason"],
        )
        for channel in channels:
            for reason, count in channel.status()["refused_blocks"].items():
                refused.add_metric([_label(channel.name), _label(reason)], count)
        yield refused
        if self._name_peers:
            yield from _of_peers(channels)


def _of_peers(channels: list[Channel]) -> Iterator[Metric]:
    """What only those get who ask for names."""
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - as above

    labels = ["channel", "peer"]
    backlog = GaugeMetricFamily(
        "walyoff_peer_backlog_bytes", "Bytes that wait for a device", labels=labels
    )
    score = GaugeMetricFamily("walyoff_peer_score", "How bad a device was", labels=labels)
    for channel in channels:
        # A device has one session at most, but for the moment in which one replaces another.
        for peer in {peer["did"]: peer for peer in channel.status()["peers"]}.values():
            names = [_label(channel.name), _label(peer["did"])]
            backlog.add_metric(names, peer["backlog"])
            score.add_metric(names, peer["score"])
    yield backlog
    yield score


def _label(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_LABEL]


# ------------------------------------------------------------------------------ delivery


def _need_client() -> None:
    try:
        import prometheus_client  # noqa: F401, PLC0415 - an optional extra
    except ImportError as error:
        raise LocalProtocolError(
            "metrics need prometheus_client: pip install 'walyoff[metrics]'"
        ) from error


async def _receive_head(stream: SocketStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD:
        head += await stream.receive(MAX_HEAD - len(head))
    return head


def _response(device: Device, head: bytes, name_peers: bool) -> bytes:
    status, body = _answer(device, head, name_peers)
    kind = CONTENT_TYPE if status.startswith("200") else "text/plain; charset=utf-8"
    lines = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + body


def _answer(device: Device, head: bytes, name_peers: bool) -> tuple[str, bytes]:
    """The status and the body for a request's head, whatever its bytes are."""
    if b"\r\n\r\n" not in head:
        return "431 Request Header Fields Too Large", b"the request is too long\n"
    first, *fields = head.split(b"\r\n\r\n", 1)[0].split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
        return "400 Bad Request", b"not HTTP\n"
    hosts = [f[5:].strip().lower() for f in fields if f[:5].lower() == b"host:"]
    # A browser that was led here by a foreign name says that name.
    if len(hosts) != 1 or hosts[0].split(b":")[0] not in (b"127.0.0.1", b"localhost"):
        return "403 Forbidden", b"only for this machine\n"
    if parts[0] != b"GET":
        return "405 Method Not Allowed", b"only GET\n"
    if parts[1].split(b"?")[0] != b"/metrics":
        return "404 Not Found", b"see /metrics\n"
    return "200 OK", render(device, name_peers=name_peers).encode()


__all__ = ["CONTENT_TYPE", "render", "serve", "write_file"]
