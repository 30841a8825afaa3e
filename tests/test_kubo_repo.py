"""The repository that is written by hand, and the node that runs on it."""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HANGS_AFTER
from walyoff.child import repo
from walyoff.child.kubo import socket_multiaddr
from walyoff.errors import LocalProtocolError, StoreError
from walyoff.walytis.spawning import child_environment

# Go takes signals over, so a node runs in a process of its own here as everywhere.
NODE = """
import json, sys
from pathlib import Path
from walyoff.child.main import start_kubo
kubo = start_kubo(Path(sys.argv[1]))
folder = Path(sys.argv[1])
own = kubo.peer_id
sub = kubo.subscribe("topic")
kubo.publish("topic", b"a\\0b\\xff")
import time
message = None
for _ in range(200):
    message = kubo.next_message(sub)
    if message:
        break
    time.sleep(0.01)
path = folder / "file"
path.write_bytes(b"hello")
only = kubo.add_file(path, only_hash=True)
unpinned = kubo.list_pins()
cid = kubo.add_file(path)
pinned = kubo.list_pins()
kubo.download(cid, folder / "copy")
kubo.unpin(cid)
errors = []
for call in (lambda: kubo.connect("garbage"), lambda: kubo.p2p_listen("walyoff", "/a"),
             lambda: kubo.publish("", b""), lambda: kubo.pin("not a cid")):
    try:
        call()
    except Exception as error:
        errors.append(type(error).__name__)
addresses = kubo.addresses()
kubo.stop()
try:
    kubo.peers()
except Exception as error:
    errors.append(type(error).__name__)
print(json.dumps({
    "peer_id": own, "addresses": addresses, "sender": message[0],
    "data": message[1].hex(), "cids": [only, cid], "unpinned": unpinned, "pinned": pinned,
    "copy": (folder / "copy").read_bytes().decode(), "after": errors,
}))
"""


def run_node(home: Path) -> dict[str, Any]:
    (home / "child" / "tmp").mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", NODE, str(home)],
        env=child_environment(home),
        cwd=home / "child",
        capture_output=True,
        timeout=HANGS_AFTER,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def port_of(address: str) -> int:
    return int(address.split("/")[4])


def test_the_node_has_the_identity_of_its_repository_and_works(tmp_path: Path) -> None:
    answer = run_node(tmp_path)
    config = repo.read_config(tmp_path / "ipfs")
    assert answer["peer_id"] == config["Identity"]["PeerID"] == answer["sender"]
    assert bytes.fromhex(answer["data"]) == b"a\0b\xff"
    assert answer["cids"][0] == answer["cids"][1]
    assert answer["unpinned"] == []
    assert answer["pinned"] == [answer["cids"][1]]
    assert answer["copy"] == "hello"
    assert answer["after"] == [
        "KuboError", "LocalProtocolError", "LocalProtocolError", "KuboError", "KuboError",
    ]  # fmt: skip
    # Loopback alone, and the port it got is the port that it asks for next time.
    (address,) = answer["addresses"]
    assert address.startswith("/ip4/127.0.0.1/tcp/")
    assert config["Addresses"]["Swarm"] == [f"/ip4/127.0.0.1/tcp/{port_of(address)}"]


def test_the_port_is_kept_and_left_when_it_is_taken(tmp_path: Path) -> None:
    first = run_node(tmp_path)
    second = run_node(tmp_path)
    assert second["addresses"] == first["addresses"]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port_of(first["addresses"][0])))
        taken.listen()
        third = run_node(tmp_path)
    assert third["peer_id"] == first["peer_id"]
    assert third["addresses"] != first["addresses"]


def test_the_repository_is_private_and_names_nobody_to_ask(tmp_path: Path) -> None:
    path = tmp_path / "ipfs"
    old = os.umask(0)
    try:
        repo.ensure_repo(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in path.iterdir())
    assert {file.name for file in path.iterdir()} == {"config", "version", "datastore_spec"}
    config = repo.read_config(path)
    assert config["Bootstrap"] == []
    assert config["Discovery"]["MDNS"]["Enabled"] is False
    key = base64.b64decode(config["Identity"]["PrivKey"])
    assert len(key) == 68
    assert key.startswith(b"\x08\x01\x12\x40")


def test_a_second_start_keeps_the_identity_and_the_addresses(tmp_path: Path) -> None:
    repo.ensure_repo(tmp_path, ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"])
    before = repo.read_config(tmp_path)
    repo.keep_ports(
        tmp_path, ["/ip6/::1/tcp/5555/p2p/12D3KooWx", "/ip4/127.0.0.1/tcp/4444/p2p/12D3KooWx"]
    )
    repo.ensure_repo(tmp_path)
    after = repo.read_config(tmp_path)
    assert after["Identity"] == before["Identity"]
    assert after["Addresses"]["Swarm"] == ["/ip4/127.0.0.1/tcp/4444", "/ip6/::1/tcp/5555"]
    assert repo.forget_ports(tmp_path)
    assert not repo.forget_ports(tmp_path)
    assert repo.read_config(tmp_path)["Addresses"]["Swarm"] == [
        "/ip4/127.0.0.1/tcp/0",
        "/ip6/::1/tcp/0",
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"Identity": {}}', "\0"])
def test_a_damaged_config_is_a_store_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(StoreError, match="damaged"):
        repo.ensure_repo(tmp_path)


def test_identities_are_fresh() -> None:
    first, second = repo.new_identity(), repo.new_identity()
    assert first["PeerID"].startswith("12D3KooW")
    assert first != second


def test_a_socket_path_that_is_too_long_is_refused() -> None:
    assert socket_multiaddr("/" + "x" * 106).startswith(b"/unix/x")
    for path in ("/" + "x" * 107, "relative", "/a\0b"):
        with pytest.raises(LocalProtocolError):
            socket_multiaddr(path)


def test_a_node_that_was_not_started_answers_no_call(tmp_path: Path) -> None:
    # In a process of its own: the library opens a log where the process stands.
    script = (
        "from pathlib import Path\n"
        "from walyoff.child.kubo import Kubo, KuboError\n"
        "kubo = Kubo(Path('repo'))\n"
        "try:\n    kubo.peers()\n"
        "except KuboError as error:\n    print(error)\n"
        "kubo.stop()\n"
        "print(Path('repo').exists())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "not running" in done.stdout
    assert done.stdout.endswith("False\n")
