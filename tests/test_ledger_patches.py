"""What is changed of stock Walytis: each change is needed, and answers as stock code does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.waiting import HANGS_AFTER, Deadline
from walyoff.child import ipfs_client, patches
from walyoff.child.blocks import MAX_FILE, cid_of
from walyoff.child.ipfs_client import Files
from walyoff.errors import LedgerError, RemoteProtocolError, TransportError

#: Everything that needs the stock code runs in one process of its own, as it does in life.
SCRIPT = """
import importlib, itertools, json, os, random, sys, threading, time
from pathlib import Path
home, tests = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, tests)
os.chdir(home)
from tests.guard_attacks import claim
from walyoff.testing.walytis_blocks import Birth, make_block
from walyoff.child import repo, upstream, patches
from walyoff.child.blocks import cid_of, decode_block
from walyoff.child.kubo import Kubo
from walyoff.child.pubsub import PubsubHub
from walyoff.errors import RemoteProtocolError, TransportError
repo.ensure_repo(home / "ipfs")
kubo = Kubo(home / "ipfs")
kubo.start()
hub = PubsubHub(kubo)
methods, found, result = {}, {}, {}
real, real_interval = upstream.load_stock, patches.shorten_peer_file_interval

def load(*args):
    found["stock"] = real(*args)
    return found["stock"]

def interval(module):
    result["interval_stock"] = module.PM_FILE_WRITE_INTERVALL_SEC
    real_interval(module)
    result["interval"] = module.PM_FILE_WRITE_INTERVALL_SEC

upstream.load_stock = load
patches.shorten_peer_file_interval = interval

class Server:
    def register(self, name, function):
        methods[name] = function
    def emit(self, name, data):
        pass

upstream.install(Server(), kubo, hub, home)
stock = found["stock"]
chains = methods["chain.open"].__self__
ancestry = importlib.import_module("walytis_beta.block_ancestry")
dice = random.Random(7)

def birth():
    files, blocks = [], []
    for number in range(5):
        parents = [blocks[-1].short_id, blocks[0].short_id] if blocks else []
        files.append(make_block(os.urandom(16), ["genesis"], parents, minute=number))
        blocks.append(decode_block(files[-1]))
    return Birth(files, blocks)

def dag(count, width):
    born = birth()
    files, blocks = list(born.files), list(born.blocks)
    chain, tips = born.chain, [born.blocks[-1]]
    for number in range(count):
        parents = dice.sample(tips, min(len(tips), dice.randint(1, 3)))
        data = born.child(b"%d" % number + os.urandom(8), *parents)
        block = decode_block(data)
        files.append(data)
        if len(tips) - len(parents) >= width or dice.random() < 0.5:
            tips = [t for t in tips if t not in parents]
        else:
            tips = [t for t in tips if t is not parents[0]]
        # Parents must not be ancestors of each other: only tips that nobody built on.
        tips = [t for t in tips if t not in parents] + [block]
        if len(tips) < width and number % 3 == 0:
            other = born.child(b"o%d" % number + os.urandom(8), *parents)
            files.append(other)
            tips.append(decode_block(other))
    methods["chain.import"](chain=chain, files=files)
    methods["chain.open"](chain=chain)
    # What was handed over is in a pack, where stock code does not look.
    held = chains.files(chain)
    held.spread(held.packed())
    return chains._open[chain]

class AsStock:
    '''The chain with stock answers only.'''
    def __init__(self, chain):
        self.chain, self.name = chain, "x"
    def find_block(self, short_id):
        return stock.blockchain.find_block(self.chain, short_id)

chain = dag(60, 5)
entries = chain.files.in_order()
same = 0
for _ in range(200):
    subset = [bytearray(e.long_id) for e in dice.sample(entries, dice.randint(1, 6))]
    theirs = ancestry.remove_ancestors(AsStock(chain), subset)
    ours = chain.remove_ancestors(subset, short_ids=False)
    same += theirs == ours
result["same"] = same
result["found"] = all(
    stock.blockchain.find_block(chain, bytearray(e.short_id)) == chain.find_block(e.short_id)
    for e in entries
)

# Block files, as they are and altered anywhere: what ours takes, stock code reads the same way.
model = importlib.import_module("walytis_beta_tools.block_model")

def by_ours(data):
    try:
        b = decode_block(data)
    except RemoteProtocolError:
        return None
    return [b.long_id, b.content, list(b.topics), list(b.parent_ids), b.created, b.cid]

def by_stock_model(data):
    b = model.Block.from_filedata(bytearray(data), cid_of(data))
    b.generate_id()
    assert b.check_integrity()
    parents = [bytes(parent) for parent in b.parents]
    return [bytes(b.long_id), bytes(b.content), b.topics, parents, b.creation_time, b.ipfs_cid]

def altered(data):
    changed, at = bytearray(data), dice.randrange(len(data))
    match dice.randrange(4):
        case 0:
            changed[at] = dice.randrange(256)
        case 1:
            changed.insert(at, dice.randrange(3))
        case 2:
            del changed[at]
        case 3:
            changed += bytes([dice.randrange(256)])
    return bytes(changed)

result["blocks_read"] = {"whole": 0, "taken": 0, "altered": 0}
for entry in entries:
    data = chain.files.read(entry.cid)
    result["blocks_read"]["whole"] += by_ours(data) == by_stock_model(data)
    for _ in range(30):
        other = altered(data)
        if by_ours(other) is not None:
            result["blocks_read"]["taken"] += 1
            assert by_ours(other) == by_stock_model(other), other
        result["blocks_read"]["altered"] += other != data
result["blocks_read"]["of"] = len(entries)

def cost(chain, function):
    # The dearest question about two of the newest blocks: some are answered at the first look.
    # By the processor's time, as the machine has other work.
    worst = 0.0
    for pair in itertools.combinations(chain.files.in_order()[-4:], 2):
        blocks = [bytearray(entry.long_id) for entry in pair]
        began = time.thread_time()
        function(blocks)
        worst = max(worst, time.thread_time() - began)
    return worst

long = dag(240, 3)
times = {}
for name, it in (("short", chain), ("long", long)):
    times["stock_" + name] = cost(it, lambda b: ancestry.remove_ancestors(AsStock(it), b))
    times["ours_" + name] = cost(it, lambda b: it.remove_ancestors(b, short_ids=False))
result["times"] = times

# Pins: how often the stock code asks for all of them, and the node is asked.
asked = {"stock": 0, "node": 0}
files = stock.client.files
list_pins, node_pins = files.list_pins, kubo.list_pins
def counted(*a, **k):
    asked["stock"] += 1
    return list_pins(*a, **k)
def node():
    asked["node"] += 1
    return node_pins()
files.list_pins, kubo.list_pins = counted, node
for number in range(10):
    methods["chain.append"](chain=long.blockchain_id, content=b"%d" % number, topics=["t"])
result["pins"] = asked
pinned, own = set(node_pins()), [e.cid for e in long.files.in_order()[-10:]]
own.append(cid_of(os.urandom(32)))
result["pins_same"] = [(cid in list_pins()) == (cid in pinned) for cid in own]
result["pins_known"] = sum(cid in pinned for cid in own)

# A read that nobody answers: the node's own hangs, ours does not.
nobody = cid_of(os.urandom(32))
hung = threading.Thread(target=lambda: kubo.download(nobody, str(home / "d")), daemon=True)
hung.start()
began = time.monotonic()
try:
    files.read(cid_of(os.urandom(32)))
except TransportError:
    result["read"] = time.monotonic() - began
result["stock_read_hangs"] = hung.is_alive()

# A torn index, a torn block: stock code fails or believes it, ours opens the whole chain.
name = chain.blockchain_id
methods["chain.close"](chain=name)
chains.release(name)
index = home / "walytis" / name / "KnownBlocksIndex"
whole = {p.name: p.read_bytes() for p in index.iterdir()}

def by_stock():
    try:
        stock.blockchain(name).terminate()
    except Exception as error:
        return type(error).__name__
    return "opened"

result["stock_whole"] = by_stock()
for path in index.iterdir():
    path.write_bytes(whole[path.name][:-37])
result["stock_torn"] = by_stock()
for path in index.iterdir():
    path.write_bytes(whole[path.name][:-37] if path.name in whole else b"")
leaf = chain.files.leaves()[0]
leaf_path = home / "walytis" / name / "ReceivedBlocks" / leaf[:4] / leaf
data = leaf_path.read_bytes()
leaf_path.write_bytes(data[: len(data) // 2])
methods["chain.open"](chain=name)
result["ours_torn"] = [len(chains.files(name)), len(entries)]
methods["chain.append"](chain=name, content=b"after", topics=["t"])
result["import"] = methods["chain.import"](chain=name, files=[data])["admitted"]
result["limit"] = sys.getrecursionlimit()

# A block with an empty topic: stock code takes it, and then neither adds nor starts.
born = birth()
name = born.chain
methods["chain.import"](chain=name, files=born.files)
methods["chain.open"](chain=name)
methods["chain.close"](chain=name)
bad = make_block(b"bad", ["", name], [born.blocks[4].short_id, born.blocks[0].short_id])
result["ours_bad"] = methods["chain.import"](chain=name, files=[bad])["refused"]
methods["chain.open"](chain=name)
methods["chain.append"](chain=name, content=b"goes on", topics=["t"])
methods["chain.close"](chain=name)
files.publish_bytes(cid_of(bad), bad)
victim = stock.blockchain(name)
try:
    victim.download_and_process_block(bytearray(claim(bad, cid_of(bad))))
    victim.create_block(b"more", ["t"])
    result["stock_bad"] = "added"
except Exception as error:
    result["stock_bad"] = type(error).__name__
result["stock_bad_start"] = by_stock()
print("RESULT" + json.dumps(result), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home), str(Path(__file__).parent.parent)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "LIBP2P_TCP_REUSEPORT": "false"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    value: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT"))
    print(value)
    return value


def test_ancestors_agree_with_stock_code_on_200_random_sets(result: dict[str, Any]) -> None:
    assert result["same"] == 200


def test_blocks_are_found_as_stock_code_finds_them(result: dict[str, Any]) -> None:
    assert result["found"]


def test_block_files_are_read_as_stock_code_reads_them(result: dict[str, Any]) -> None:
    read = result["blocks_read"]
    assert read["whole"] == read["of"] > 60
    # Times, topics and creators are claims, and may be altered; what passes is read as stock
    # code reads it, which the script asserts of each.
    assert 100 < read["taken"] < read["altered"] / 2


def test_ancestors_cost_what_the_question_needs_and_not_the_chain(
    result: dict[str, Any],
) -> None:
    times = result["times"]
    assert times["stock_long"] > 2 * times["stock_short"]
    assert times["ours_long"] < times["stock_long"] / 20


def test_the_node_is_not_asked_for_all_its_pins_at_each_block(result: dict[str, Any]) -> None:
    assert result["pins"]["stock"] >= 10
    assert result["pins"]["node"] == 0
    # And what it is told is what the node would say.
    assert all(result["pins_same"])
    assert result["pins_known"] == 10


def test_a_read_of_what_nobody_has_ends(result: dict[str, Any]) -> None:
    assert result["stock_read_hangs"]
    assert result["read"] < ipfs_client.READ_DEADLINE_S + 2


def test_the_end_of_a_chain_does_not_wait_for_twenty_seconds(result: dict[str, Any]) -> None:
    assert result["interval_stock"] > 10 * result["interval"]


def test_torn_files_are_repaired_and_what_is_lost_can_come_again(
    result: dict[str, Any],
) -> None:
    assert (result["stock_whole"], result["stock_torn"] != "opened") == ("opened", True)
    assert result["ours_torn"] == [result["ours_torn"][1] - 1, result["ours_torn"][1]]
    assert result["import"] == 1


def test_a_block_that_ends_a_stock_chain_is_refused(result: dict[str, Any]) -> None:
    # Stock code: neither another block, nor a start of the chain.
    assert (result["stock_bad"], result["stock_bad_start"]) == ("IndexError", "IndexError")
    assert result["ours_bad"] == {"bad-topics": 1}


def test_the_recursion_limit_is_pythons_own(result: dict[str, Any]) -> None:
    assert result["limit"] == 1000


# ------------------------------------------------------------------------- refusing


def test_unknown_versions_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    patches.check_versions()
    monkeypatch.setitem(patches.VERSIONS, "walytis_beta", "2.4.99")
    with pytest.raises(LedgerError, match=r"walytis_beta 2\.4\.43 is installed; 2\.4\.99"):
        patches.check_versions()


def test_a_stock_class_that_changed_is_refused() -> None:
    class Changed:
        def find_block(self, block: bytes, deep: bool) -> None: ...

    with pytest.raises(LedgerError, match="has no is_block_known"):
        patches.answers_from_files(Changed)
    whole = {name: _method(takes) for name, takes in patches._REPLACED.items()}
    patches.check_class(type("Same", (), whole))
    whole["find_block"] = _method(("block", "deep"))
    with pytest.raises(LedgerError, match="find_block takes"):
        patches.check_class(type("Other", (), whole))
    with pytest.raises(LedgerError, match="PM_FILE_WRITE_INTERVALL_SEC"):
        patches.shorten_peer_file_interval(ModuleType("networking"))


def _method(takes: tuple[str, ...]) -> Any:
    scope: dict[str, Any] = {}
    exec(f"def method(self, {', '.join(takes)}): ...", scope)
    return scope["method"]


def test_every_patch_says_why_and_until_when() -> None:
    assert len({patch.name for patch in patches.PATCHES}) == len(patches.PATCHES)
    assert all(patch.why and patch.until for patch in patches.PATCHES)


# ------------------------------------------------------------------------ downloads


class SlowNode:
    """A node whose downloads end when they are told to, as Kubo's do when nobody has it."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.count = 0
        self.data = b"x"

    def download(self, cid: str, path: str) -> None:
        self.count += 1
        self.release.wait(HANGS_AFTER)
        Path(path).write_bytes(self.data)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfs_client, "READ_DEADLINE_S", 0.05)


def names(count: int) -> list[str]:
    return [cid_of(b"%d" % number) for number in range(count)]


def test_hung_downloads_of_strangers_leave_room_for_those_of_use(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = SlowNode()
    files = Files(node, tmp_path)
    files.prove("member")
    for number, cid in enumerate(names(80)):
        with pytest.raises(TransportError):
            files.read(cid, f"stranger {number}")
    assert node.count == ipfs_client.MAX_DOWNLOADS_STRANGERS
    before = node.count
    with pytest.raises(TransportError, match="in time"):
        files.read(cid_of(b"true"), "member")
    assert node.count == before + 1
    # Of one announcer only a few hang at once, of use or not.
    for number in range(10):
        with pytest.raises(TransportError):
            files.read(cid_of(b"m%d" % number), "member")
    assert node.count == before + ipfs_client.MAX_DOWNLOADS_EACH
    # One of use has its share anew when those have hung for a while; strangers have not.
    monkeypatch.setattr(ipfs_client, "IN_SHARE_FOR_S", 0.0)
    for cid, announcer in ((cid_of(b"n"), "member"), (cid_of(b"s"), "another stranger")):
        with pytest.raises(TransportError):
            files.read(cid, announcer)
    assert node.count == before + ipfs_client.MAX_DOWNLOADS_EACH + 1
    node.release.set()
    wait_for(lambda: files.statistics()["downloads"] == 0)
    assert files.read(cid_of(b"true"), "member") == b"x"


def test_one_block_that_many_announce_is_one_download(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = SlowNode()
    files = Files(node, tmp_path)
    threads = [
        threading.Thread(target=lambda who: _try(files, who), args=(f"{n}",)) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS_AFTER)
    assert node.count == 1
    # It is not waited for a second time.
    monkeypatch.setattr(ipfs_client, "READ_DEADLINE_S", 2 * HANGS_AFTER)
    began = time.monotonic()
    _try(files, "again")
    # Less than the deadline, on any machine.
    assert time.monotonic() - began < ipfs_client.READ_DEADLINE_S / 2
    node.release.set()


def _try(files: Files, who: str) -> None:
    with pytest.raises(TransportError):
        files.read(cid_of(b"one"), who)


def test_a_download_that_is_too_large_is_refused_by_name(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = SlowNode()
    node.data = bytes(MAX_FILE + 1)
    node.release.set()
    monkeypatch.setattr(ipfs_client, "READ_DEADLINE_S", 5)
    with pytest.raises(RemoteProtocolError) as caught:
        Files(node, tmp_path).read(cid_of(b"large"), "x")
    assert caught.value.reason == "too-large"
    assert not list(tmp_path.iterdir())


def test_the_child_ends_itself_when_nothing_can_be_downloaded_any_more(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = SlowNode()
    files = Files(node, tmp_path)
    ended: list[str] = []
    monkeypatch.setattr(ipfs_client, "FULL_FOR_S", 0.0)
    monkeypatch.setattr(ipfs_client, "MAX_DOWNLOADS", 3)
    monkeypatch.setattr(Files, "_end", staticmethod(ended.append))
    for number, cid in enumerate(names(3)):
        with pytest.raises(TransportError):
            files.read(cid, f"{number}")
    assert not ended
    for cid in names(6)[4:]:
        time.sleep(0.01)
        with pytest.raises(TransportError):
            files.read(cid, "late")
    assert set(ended) == {"3 downloads hang"}
    node.release.set()


def test_download_limits_fit_each_other() -> None:
    assert ipfs_client.MAX_DOWNLOADS_EACH < ipfs_client.MAX_DOWNLOADS_STRANGERS
    assert ipfs_client.MAX_DOWNLOADS_STRANGERS < ipfs_client.MAX_DOWNLOADS


def wait_for(condition: Any) -> None:
    deadline = Deadline(HANGS_AFTER)
    while not condition():
        assert deadline.left()
        time.sleep(0.01)
