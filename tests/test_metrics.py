"""Metrics: whole, parseable, without secrets; a file and an endpoint for this machine only."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.waiting import HANGS_AFTER, until
from walyoff import Channel, Device, LocalProtocolError, TransportError, metrics
from walyoff.engine.facts import Report
from walyoff.testing import SimWorld

pytestmark = pytest.mark.anyio
CONTENT = b"what nobody else may read"


@asynccontextmanager
async def talking(name: str = "family") -> AsyncIterator[tuple[Device, Device]]:
    """Two devices that hold the same two messages."""
    world = SimWorld(3, append_s=0.01)
    async with AsyncExitStack() as stack:
        alice, bob = [
            await stack.enter_async_context(world.device(n)) for n in ("alice", "bob")
        ]
        channel = await alice.create_channel(name)
        joined = await bob.join(await channel.invite())
        with anyio.fail_after(HANGS_AFTER):
            await channel.wait_peer(bob_did := await bob.did())
            assert bob_did
            for sender in (channel, joined):
                await sender.send(CONTENT)
            await both(channel)
            await both(joined)
        yield alice, bob


async def both(channel: Channel) -> None:
    seen = 0
    async for _ in channel.messages():
        seen += 1
        if seen == 2:
            return


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a text, read by a parser that refuses what is not OpenMetrics."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


async def test_the_numbers_are_those_of_the_channels() -> None:
    async with talking() as (alice, _):
        text = metrics.render(alice)
        assert text.endswith("# EOF\n")
        found = values(text)
        labels = (("channel", "family"),)
        assert found["walyoff_device_channels", ()] == 1
        assert found["walyoff_channel_messages", labels] == 2
        assert found["walyoff_channel_members", labels] == 2
        assert found["walyoff_channel_peers", labels] == 1
        assert found["walyoff_channel_missing_messages", labels] == 0
        assert found["walyoff_channel_sessions_opened_total", labels] >= 1
        for direction in ("sent", "received"):
            assert found[f"walyoff_channel_{direction}_bytes_total", labels] > len(CONTENT)
        assert ("walyoff_channel_unanchored_batches", labels) in found


async def test_faults_are_counted_by_reason() -> None:
    async with talking() as (alice, _):
        (channel,) = alice.channels()
        for _turn in range(2):
            channel.engine.report(
                Report(subject="did:x", reason="wrong-commitment", detail="d")
            )
        labels = (("channel", "family"), ("reason", "wrong-commitment"))
        assert values(metrics.render(alice))["walyoff_channel_faults_total", labels] == 2


async def test_counters_do_not_fall_when_sessions_end() -> None:
    async with talking() as (alice, _):
        (channel,) = alice.channels()
        before = channel.statistics()
        assert "1 peers | sim" in repr(alice)
        for session in channel.connections.sessions():
            statistics = session.statistics()
            assert statistics["records_sent"] > 0
            assert statistics["bytes_received"] > len(CONTENT)
            assert 0 <= statistics["silent_s"] <= statistics["age_s"]
            session.close()
        with anyio.fail_after(HANGS_AFTER):
            await until(
                lambda: channel.statistics()["sessions_total"] > before["sessions_total"]
            )
        after = channel.statistics()
        for key in ("bytes_sent", "bytes_received", "sessions_total"):
            assert after[key] >= before[key]


async def test_the_text_names_nobody_and_nothing_unless_asked() -> None:
    async with talking() as (alice, bob):
        text = metrics.render(alice)
        (channel,) = alice.channels()
        secrets = [channel.state.secret, channel.state.pin, CONTENT]
        secrets += [epoch.key for epoch in channel.engine.epochs.values()]
        for secret in (*secrets,):
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text
        for private in ("did:", *alice.addresses, str(alice.home.resolve())):
            assert private not in text
        named = metrics.render(alice, name_peers=True)
        labels = (("channel", "family"), ("peer", await bob.did()))
        assert values(named)["walyoff_peer_backlog_bytes", labels] >= 0


async def test_any_name_of_a_channel_gives_a_text_that_can_be_read() -> None:
    name = 'a"b\\c{d}=1 \N{SNOWMAN} # EOF'
    async with talking(name) as (alice, _):
        found = values(metrics.render(alice))
        assert found["walyoff_channel_messages", (("channel", name),)] == 2


# -------------------------------------------------------------------------------- the file


async def test_the_file_is_private_whole_and_kept_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "walyoff.prom"
    async with talking() as (alice, _), anyio.create_task_group() as tasks:
        tasks.start_soon(metrics.write_file, alice, path, 0.1)
        with anyio.fail_after(HANGS_AFTER):
            await until(path.exists)
            await alice.channel("family").send(b"third")
            while 'family"} 3.0' not in path.read_text():
                assert path.read_text().endswith("# EOF\n")
                await anyio.sleep(0.02)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        tasks.cancel_scope.cancel()
    assert os.listdir(tmp_path) == ["walyoff.prom"]


async def test_a_file_that_cannot_be_written_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "later" / "walyoff.prom"
    async with talking() as (alice, _), anyio.create_task_group() as tasks:
        with pytest.raises(LocalProtocolError, match="every"):
            await metrics.write_file(alice, path, 0.0)
        tasks.start_soon(metrics.write_file, alice, path, 0.1)
        with anyio.fail_after(HANGS_AFTER):
            await until(lambda: "could not be written" in caplog.text)
            path.parent.mkdir()
            await until(path.exists)
        tasks.cancel_scope.cancel()


# ---------------------------------------------------------------------------- the endpoint


async def ask(port: int, request: bytes) -> bytes:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(request)
        answer = b""
        with anyio.fail_after(HANGS_AFTER), contextlib.suppress(anyio.EndOfStream):
            while True:
                answer += await stream.receive()
    return answer


async def test_the_endpoint_answers_what_render_gives() -> None:
    async with talking() as (alice, _), metrics.serve(alice) as port:
        for host in (b"127.0.0.1:%d" % port, b"localhost"):
            answer = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert metrics.CONTENT_TYPE.encode() in head
            assert values(body.decode())["walyoff_device_channels", ()] == 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"x" * 10_000, b"431"),
    ],
)
async def test_the_endpoint_refuses_everything_else(
    request_bytes: bytes, status: bytes
) -> None:
    async with SimWorld(1).device("alice") as alice, metrics.serve(alice) as port:
        answer = await ask(port, request_bytes[: metrics.MAX_HEAD])
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert b"walyoff_device" not in answer


async def test_those_who_say_nothing_do_not_keep_others_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "REQUEST_S", 0.3)
    monkeypatch.setattr(metrics, "MAX_REQUESTS", 2)
    async with (
        SimWorld(1).device("alice") as alice,
        metrics.serve(alice) as port,
        AsyncExitStack() as stack,
    ):
        for _ in range(5):
            await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", port))
        answer = await ask(port, b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")


async def test_the_endpoint_is_on_the_loopback_address_alone() -> None:
    async with SimWorld(1).device("alice") as alice, metrics.serve(alice) as port:
        with pytest.raises(TransportError):
            async with metrics.serve(alice, port=port):
                pass
        # Another loopback address: it would answer if the socket were bound to all of them.
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", port))
    async with SimWorld(1).device("alice") as alice, metrics.serve(alice, port=port) as again:
        assert again == port


# ------------------------------------------------------------------------- imports and logs


async def test_a_missing_client_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with SimWorld(1).device("alice") as alice:
        with pytest.raises(LocalProtocolError, match=r"pip install 'walyoff\[metrics\]'"):
            metrics.render(alice)
        with pytest.raises(LocalProtocolError, match="prometheus_client"):
            await metrics.write_file(alice, "nowhere")
        with pytest.raises(LocalProtocolError, match="prometheus_client"):
            async with metrics.serve(alice):
                pass


_RUN = """
import logging, sys
root = logging.getLogger()
before = (list(root.handlers), root.level, logging.lastResort)
import anyio, walyoff, walyoff.metrics
assert "prometheus_client" not in sys.modules

async def main():
    async with walyoff.open_device(sys.argv[1], suite="classic-1") as device:
        channel = await device.create_channel("family")
        await channel.send(b"x")
        walyoff.metrics.render(device)

anyio.run(main)
assert (list(root.handlers), root.level, logging.lastResort) == before, root.handlers
assert all(name.partition(".")[0] != "walyoff" or not getattr(found, "handlers", None)
           for name, found in root.manager.loggerDict.items())
print("as it was")
"""


def test_a_running_device_leaves_logging_as_it_was(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(home / "device")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=home,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("as it was\n", 0), done.stderr
    assert logging.getLogger("walyoff").handlers == []
