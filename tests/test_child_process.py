"""The supervised child: ready soon, replaced when it dies, gone when the parent is."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from tests.waiting import HANGS_AFTER, free_time, until
from walyoff.abc import IpfsNode
from walyoff.child.rpc import VERSION, Hello, encode
from walyoff.errors import (
    ChildError,
    LocalProtocolError,
    PayloadTooLargeError,
    TransportError,
)
from walyoff.walytis import link, process, spawning
from walyoff.walytis.process import CallFailedError, Child, open_child

pytestmark = pytest.mark.anyio
PROTOCOL = "/x/walyoff-test/1"
STRANGER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before
    # No zombie either: every child of ours was waited for.
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def environment_of(pid: int | None) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def topic_seen(child: Child, topic: str, *, empty: bool = False) -> None:
    """Wait until somebody (nobody) is on a topic."""
    with anyio.fail_after(HANGS_AFTER):
        while empty == bool(await child.topic_peers(topic)):  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def killed(child: Child) -> None:
    """Kill the process and wait for the next one."""
    generation = child.generation
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    await until(lambda: child.generation > generation)
    await child.wait_ready(timeout=HANGS_AFTER)


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[Child, Child]]:
    async with open_child(tmp_path / "a") as a, open_child(tmp_path / "b") as b:
        await b.connect(a.addresses[0])
        yield a, b


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="wo", dir="/tmp") as path:
        yield Path(path)


async def test_a_child_is_ready_soon_and_gone_after(tmp_path: Path) -> None:
    async with open_child(tmp_path / "home") as child:
        addresses = child.addresses
    began = free_time()
    async with open_child(tmp_path / "home") as child:
        # A fifth of a second when the machine is idle; bounded here for a busy one.
        assert free_time() - began < 5
        node: IpfsNode = child
        assert node.generation == 1
        assert node.peer_id
        assert node.addresses == addresses
        assert child.pid is not None
        pid = child.pid
        assert os.getsid(pid) == pid
    assert not alive(pid)
    with pytest.raises(ChildError, match="closed"):
        await child.topic_peers("x")


async def test_nothing_is_printed_and_all_is_written_privately_at_home(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.umask(old := os.umask(0o022))
    async with open_child(tmp_path / "home") as child:
        with pytest.raises(TransportError):
            await child.connect("garbage")
        # Long enough for Walytis to be imported, which prints a lot.
        with pytest.raises(LocalProtocolError):
            await child.call("chain.nothing", {})
    assert os.umask(old) == old
    assert capfd.readouterr() == ("", "")
    assert names(tmp_path) == ["home"]
    # Python's text goes to one file, and the library's own to another beside it.
    assert "ready after" in (tmp_path / "home" / "child" / "child.log").read_text()
    assert "garbage" in (tmp_path / "home" / "child" / "kubo.log").read_text()
    for path in (tmp_path / "home").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_the_environment_of_the_child_has_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WALYOFF_PASSPHRASE", "hunter2")
    async with open_child(tmp_path) as child:
        environment = environment_of(child.pid)
    assert b"hunter2" not in environment
    assert b"LIBP2P_TCP_REUSEPORT=false" in environment


async def test_calls_fail_with_the_error_that_fits(tmp_path: Path) -> None:
    async with open_child(tmp_path) as child:
        with pytest.raises(LocalProtocolError, match="no method"):
            await child.call("nope", {})
        with pytest.raises(LocalProtocolError):
            await child.call("ipfs.connect", {"wrong": 1})
        with pytest.raises(LocalProtocolError):
            await child.call("ipfs.connect", {"multiaddr": object()})
        with pytest.raises(LocalProtocolError):
            await child.call("ipfs.peers", {}, timeout=-1)
        with pytest.raises(LocalProtocolError, match="socket path"):
            await child.listen_streams(PROTOCOL, "/" + "x" * 107)
        with pytest.raises(LocalProtocolError, match="socket path"):
            await child.forward_streams(PROTOCOL, child.peer_id, "/" + "x" * 107)
        with pytest.raises(PayloadTooLargeError):
            await child.publish("topic", bytes(1_000_001))
        with pytest.raises(TransportError):
            await child.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{child.peer_id}")


async def test_own_and_others_messages_arrive(tmp_path: Path) -> None:
    async with (
        two(tmp_path) as (a, b),
        a.subscribe("topic") as first,
        a.subscribe("topic") as s,
    ):
        await topic_seen(b, "topic")
        await b.publish("topic", b"from b")
        await a.publish("topic", b"from a")
        for stream in (first, s):
            with anyio.fail_after(HANGS_AFTER):
                got = [await stream.receive(), await stream.receive()]
            assert {(m.sender, m.payload) for m in got} == {
                (a.peer_id, b"from a"),
                (b.peer_id, b"from b"),
            }


async def test_leaving_a_topic_leaves_it_for_good_only_with_the_last(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        async with a.subscribe("topic"):
            async with a.subscribe("topic"):
                await topic_seen(b, "topic")
            await anyio.sleep(0.1)
            assert await b.topic_peers("topic")
        await topic_seen(b, "topic", empty=True)


async def test_a_killed_child_is_replaced_with_all_that_was_set_up(
    tmp_path: Path, short: Path
) -> None:
    async def echo(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.send(await stream.receive())

    async def works() -> None:
        await b.connect(a.addresses[0])
        async with await anyio.connect_unix(short / "forward") as stream:
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
        await topic_seen(b, "topic")
        await b.publish("topic", b"x")
        assert (await messages.receive()).payload == b"x"

    hooks: list[str] = []
    async with (
        two(tmp_path) as (a, b),
        await anyio.create_unix_listener(short / "listen") as listener,
        a.subscribe("topic") as messages,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, echo)

        async def hook() -> None:
            # Goes through although everybody else's calls wait for this to end.
            hooks.append(str(await a.call("ipfs.peers", {})))

        a.on_restart.append(hook)
        await a.listen_streams(PROTOCOL, str(short / "listen"))
        await b.forward_streams(PROTOCOL, a.peer_id, str(short / "forward"))
        with anyio.fail_after(HANGS_AFTER):
            await works()
            peer_id, addresses = a.peer_id, a.addresses
            for child in (a, b):
                await killed(child)
                assert child.generation == 2
                await works()
        assert len(hooks) == 1
        assert (a.peer_id, a.addresses) == (peer_id, addresses)
        tasks.cancel_scope.cancel()


async def test_calls_under_way_fail_when_the_child_dies_and_later_ones_wait(
    tmp_path: Path,
) -> None:
    with socket_that_is_mute() as address:
        async with open_child(tmp_path) as child, anyio.create_task_group() as tasks:

            async def connect() -> None:
                with pytest.raises(ChildError, match="ended"):
                    await child.connect(f"{address}/p2p/{STRANGER}")

            tasks.start_soon(connect)
            await anyio.sleep(0.2)
            assert child.pid is not None
            os.kill(pid := child.pid, signal.SIGKILL)
            # Until the parent has noticed, a call would count as under way.
            await until(lambda: child.pid != pid)
            with anyio.fail_after(HANGS_AFTER):
                assert await child.call("ipfs.peers", {}) == []
            assert child.generation == 2


class socket_that_is_mute:  # noqa: N801
    """Accepts connections (by its backlog) and never says a word."""

    def __enter__(self) -> str:
        import socket

        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        return f"/ip4/127.0.0.1/tcp/{self._socket.getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        self._socket.close()


async def test_a_call_ends_by_its_deadline(tmp_path: Path) -> None:
    with socket_that_is_mute() as address:
        async with open_child(tmp_path) as child:
            target = f"{address}/p2p/{STRANGER}"
            began = free_time()
            with pytest.raises(CallFailedError) as caught:
                await child.call("ipfs.connect", {"multiaddr": target}, timeout=0.3)
            assert caught.value.kind == "deadline"
            assert free_time() - began < 5
            # Cancelled calls leave nothing behind either.
            with anyio.move_on_after(0.1):
                await child.call("ipfs.connect", {"multiaddr": target})
            assert await child.call("ipfs.peers", {}) == []


async def test_a_child_that_answers_no_ping_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(process, "PING_TIME", 0.3)
    async with open_child(tmp_path) as child:
        assert child.pid is not None
        os.kill(pid := child.pid, signal.SIGSTOP)
        await until(lambda: child.generation == 2)
        await child.wait_ready(timeout=HANGS_AFTER)
        assert not alive(pid)


async def test_who_did_not_run_itself_keeps_its_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PING_INTERVAL", 0.0)
    monkeypatch.setattr(process, "PING_TIME", 1.0)
    monkeypatch.setattr(link, "DEADLINE_SLACK", 0.0)
    async with open_child(tmp_path) as child:
        pid = child.pid
        # Then it has nothing else to do.
        await child.call("did.checked", {})
        for _ in range(2):
            await anyio.sleep(0.1)
            # A ping is under way, as there always is one here.
            time.sleep(1.1)  # noqa: ASYNC251 - that nothing runs is the point
        await anyio.sleep(0.3)
        assert (child.pid, child.generation) == (pid, 1)


async def test_a_stopped_child_does_not_keep_us_from_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GOODBYE_TIME", 0.3)
    async with open_child(tmp_path) as child:
        assert child.pid is not None
        os.kill(pid := child.pid, signal.SIGSTOP)
        began = free_time()
    assert free_time() - began < 10
    assert not alive(pid)


@pytest.mark.parametrize("delay", [0, 0.01, 0.05, 0.15])
async def test_cancelling_at_any_moment_leaves_nothing(tmp_path: Path, delay: float) -> None:
    with anyio.move_on_after(delay):
        async with open_child(tmp_path) as child:
            await child.call("chain.nothing", {})


async def test_the_callers_error_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_child(tmp_path):
            raise ZeroDivisionError


async def test_a_home_that_cannot_be_used_is_a_child_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChildError, match="cannot be started"):
        async with open_child(tmp_path / "file"):
            pass
    (tmp_path / "home" / "ipfs").mkdir(parents=True)
    (tmp_path / "home" / "ipfs" / "config").write_text("damaged")
    with pytest.raises(ChildError, match="IPFS config is damaged"):
        async with open_child(tmp_path / "home"):
            pass
    assert "damaged" in (tmp_path / "home" / "child" / "child.log").read_text()


async def test_another_version_of_the_child_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a changed installation looks like: the other side says another number.
    wrong = Hello(version=VERSION + 1, info={})
    program = f"import os, sys; os.write(int(sys.argv[1]), {encode(wrong)!r})"
    monkeypatch.setattr(spawning, "CHILD_COMMAND", ("-c", program))
    with pytest.raises(ChildError, match=f"version {VERSION + 1}"):
        async with open_child(tmp_path):
            pass


async def test_signals_to_the_child_end_it(tmp_path: Path) -> None:
    async with open_child(tmp_path) as child:
        for number in (signal.SIGTERM, signal.SIGINT):
            generation, pid = child.generation, child.pid
            assert pid is not None
            os.kill(pid, number)
            await until(lambda before=generation: child.generation > before)  # type: ignore[misc]
            assert not alive(pid)
            await child.wait_ready()


PARENT = """
import sys, anyio
from pathlib import Path
from walyoff.walytis.process import open_child
async def main():
    async with open_child(Path(sys.argv[1])) as child:
        print(child.pid, flush=True)
        await anyio.sleep(1000)
anyio.run(main)
"""


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    began = free_time()
    while alive(pid):
        assert free_time() - began < 10
        time.sleep(0.01)


FORKING_PARENT = """
import os, sys, time, anyio
from pathlib import Path
from walyoff.walytis.process import open_child
async def main():
    async with open_child(Path(sys.argv[1])) as child:
        print(child.pid, flush=True)
        if os.fork() == 0:
            # Holds the parent's end of the socket open for a while.
            os.close(1)
            time.sleep(12)
            os._exit(0)
        await anyio.sleep(60)
anyio.run(main)
"""


def test_a_fork_that_holds_the_socket_does_not_keep_the_child_alive(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKING_PARENT, str(tmp_path)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.kill()
    began = free_time()
    while alive(pid):
        assert free_time() - began < 9
        time.sleep(0.01)


async def test_a_home_in_use_keeps_its_port_for_the_one_who_uses_it(tmp_path: Path) -> None:
    async with open_child(tmp_path) as child:
        addresses = child.addresses
        with pytest.raises(ChildError):
            async with open_child(tmp_path):
                pass
        assert await child.call("ipfs.peers", {}) == []
    async with open_child(tmp_path) as child:
        assert child.addresses == addresses


LOGGING = """
import os, sys
from pathlib import Path
from walyoff.child import main
main.MAX_LOG = 1000
log = main.OutputLog(Path(sys.argv[1]))
for n in range(5):
    os.write(2, b"%d" % n * 1000 + b"\\n")
    print("python", n, flush=True)
    log.rotate()
os.write(1, b"last words\\n")
os.abort()
"""


def test_the_log_is_bounded_and_keeps_the_last_words(tmp_path: Path) -> None:
    path = tmp_path / "child.log"
    subprocess.run([sys.executable, "-c", LOGGING, str(path)], check=False, timeout=HANGS_AFTER)
    assert names(tmp_path) == ["child.log", "child.log.1", "child.log.2"]
    assert path.read_text() == "last words\n"
    assert path.with_suffix(".log.1").read_text() == "4" * 1000 + "\npython 4\n"
    assert path.with_suffix(".log.2").read_text() == "3" * 1000 + "\npython 3\n"
