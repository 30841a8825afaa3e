"""A device renews its control keys on real chains: among thieves, after restarts and kills."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from walyoff.child.acts import expand
from walyoff.child.blocks import BlockFile, decode_block
from walyoff.child.renewals import as_field, renewal_body
from walyoff.testing.walytis_blocks import make_block
from walyoff.walytis.identity import WalytisIdentity
from walyoff.walytis.ledger import import_chain
from walyoff.walytis.process import Child, open_child

pytestmark = pytest.mark.anyio
EVIL = "|evil"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Thief:
    """Writes renewals by the control keys that a device has in use when it is made."""

    def __init__(self, did: str) -> None:
        self._chain = did.rpartition(":")[2]
        #: Each signed by itself: a signature that a chain has already is refused.
        self._contents: list[bytes] = []

    @classmethod
    async def of(cls, child: Child, did: str) -> Thief:
        thief = cls(did)
        old = (await child.call("group.control_keys", {"did": did}))["id"]

        async def sign(data: bytes) -> bytes:
            signature: bytes = await child.call("did.sign", {"did": did, "data": data})
            return signature

        for commits in (False, True) * 2:
            said = _key_block(old, EVIL, expand(await sign(f"{old}--{EVIL}".encode())))
            if commits:
                own = await sign(renewal_body(did, old, EVIL, bytes(32)))
                said["walyoff"] = as_field(did, b"", bytes(32), own)
            thief._contents.append(json.dumps(said).encode())
        return thief

    async def write(self, children: list[Child], files: list[bytes], before: str) -> None:
        """Beside the last control key block of some, under a name that is smaller."""
        taken, self._contents = self._contents[:2], self._contents[2:]
        made = [_beside(content, self._chain, files, before) for content in taken]
        assert len(made) == 2
        for child in children:
            answer = await child.call("chain.import", {"chain": self._chain, "files": made})
            assert answer["admitted"] == len(made), answer


def _key_block(old: str, new: str, signature: bytes) -> dict[str, Any]:
    text = base64.urlsafe_b64encode(signature).decode()
    said = {"old_keys": old, "new_keys": new, "signature": text}
    return {**said, "priblocks_version": [0, 0, 1]}


def _beside(content: bytes, chain: str, files: list[bytes], before: str) -> bytes:
    blocks = {block.cid: block for block in map(decode_block, files)}
    keys = [block for block in blocks.values() if "control_key" in block.topics]
    parent = max(keys, key=lambda block: block.created)
    named = (
        make_block(
            content,
            ["DidManager", "control_key", chain],
            [parent.short_id, blocks[chain].short_id],
            creator=b"somebody %d" % number,
        )
        for number in range(10_000)
    )
    return next(file for file in named if decode_block(file).cid < before)


async def test_thieves_of_control_keys_do_not_renew_them(tmp_path: Path) -> None:
    """Of those in use and of those replaced, before the device's block comes and after."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(open_child(tmp_path / "a"))
        async with open_child(tmp_path / "b") as two:
            mine = await WalytisIdentity.create(
                one, (await WalytisIdentity.create_device_did(one))[0]
            )
            did, pin = await WalytisIdentity.create_device_did(two)
            chain = did.rpartition(":")[2]
            born = await WalytisIdentity.export_did(two, did)
            await mine.add_member(did, born, pin=pin)
            signed = [await _sign(two, did)]
            of_first = await Thief.of(two, did)
            # Before the device renews, under names that come first as likely as not.
            await of_first.write([one, two], born, "Qmf")
            await WalytisIdentity.renew_did(two, did)
            files = await WalytisIdentity.export_did(two, did)
            renewal = _last_key(files, born)
            # An outsider hides it behind itself: the same, without what the device said.
            said = json.loads(renewal.content)
            stripped = json.dumps({n: v for n, v in said.items() if n != "walyoff"}).encode()
            copy = _beside(stripped, chain, born, renewal.cid)
            answer = await one.call("chain.import", {"chain": chain, "files": [copy]})
            assert answer["admitted"] == 1, answer
            assert await mine.verify(did, b"me", signed[0]) == 1
            await import_chain(one, chain, files)
            signed.append(await _sign(two, did))
            assert [await mine.verify(did, b"me", s) for s in signed] == [1, 2]
            # And when it knows the device's block, certainly under smaller names.
            await of_first.write([one, two], born, renewal.cid)
            of_second = await Thief.of(two, did)
            await of_second.write([one, two], files, "Qmf")
            assert [await mine.verify(did, b"me", s) for s in signed] == [1, 2]
        two = await stack.enter_async_context(open_child(tmp_path / "b"))
        for number in (3, 4):
            before, files = files, await WalytisIdentity.export_did(two, did)
            await WalytisIdentity.renew_did(two, did)
            files = await WalytisIdentity.export_did(two, did)
            await import_chain(one, chain, files)
            if number == 3:
                await of_second.write([one, two], before, _last_key(files, before).cid)
            signed.append(await _sign(two, did))
            numbers = [await mine.verify(did, b"me", s) for s in signed]
            assert numbers == [*range(1, number + 1)]


async def _sign(child: Child, did: str) -> bytes:
    signature: bytes = await child.call("did.sign", {"did": did, "data": b"me"})
    return signature


def _last_key(files: list[bytes], before: list[bytes]) -> BlockFile:
    """The device's newest renewal."""
    known = {decode_block(file).cid for file in before}
    own = (
        block
        for block in map(decode_block, files)
        if "control_key" in block.topics and EVIL.encode() not in block.content
    )
    return max((b for b in own if b.cid not in known), key=lambda b: b.created)


SCRIPT = """
import json, os, sys
from pathlib import Path
home, mode = Path(sys.argv[1]), sys.argv[2]
os.umask(0o077)
home.mkdir(exist_ok=True)
os.chdir(home)
from walyoff.child import repo, upstream
from walyoff.child.kubo import Kubo
from walyoff.child.pubsub import PubsubHub
from walyoff.child.renewal_files import decode_kept
repo.ensure_repo(home / "ipfs")
kubo = Kubo(home / "ipfs")
kubo.start()
methods = {}

class Server:
    def register(self, name, function):
        methods[name] = function
    def emit(self, name, data):
        pass

end = upstream.install(Server(), kubo, PubsubHub(kubo), home)
chains = methods["chain.open"].__self__
known = home / "did"
if not known.exists():
    known.write_text(methods["did.create"]()["did"])
did = known.read_text()

def kept():
    path = home / "keys" / (did.split(":")[-1] + ".next")
    seeds, control = decode_kept(path.read_bytes())
    return [len(seeds), bool(control), path.stat().st_mode & 0o777]

def tell(**more):
    signature = methods["did.sign"](did=did, data=b"x")
    key = methods["group.control_keys"](did=did)["id"]
    good = methods["did.check_compact"](key, signature, b"x")
    blocks = chains.export(did.split(":")[-1])[0]
    number = sum(b"old_keys" in file for file in blocks)
    found = {"kept": kept(), "blocks": number, "good": good, "keys": key, **more}
    print("RESULT" + json.dumps(found), flush=True)

append = chains.append
def cut(*args):
    if mode == "kill after":
        append(*args)
    tell(killed=mode)
    os._exit(9)

if mode.startswith("kill"):
    chains.append = cut
methods["did.renew"](did=did)
tell()
end()
os._exit(0)
"""


def run(home: Path, mode: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home), mode],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "LIBP2P_TCP_REUSEPORT": "false"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    assert done.returncode == (9 if mode.startswith("kill") else 0), done.stderr[-3000:]
    value: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT"))
    return value


def test_a_kill_in_a_renewal_leaves_a_device_that_renews(tmp_path: Path) -> None:
    """Before its block is written, again, and after: the block counts once."""
    home = tmp_path / "home"
    seen = []
    for mode in ("kill before", "kill before", "no"):
        seen.append(run(home, mode))
    assert [one["blocks"] for one in seen] == [1, 1, 2]
    assert [one["kept"] for one in seen] == [[2, True, 0o600]] * 2 + [[1, False, 0o600]]
    assert seen[0]["keys"] == seen[1]["keys"] != seen[2]["keys"]
    killed = run(home, "kill after")
    assert (killed["blocks"], killed["kept"]) == (3, [2, True, 0o600])
    last = run(home, "no")
    assert (last["blocks"], last["kept"]) == (4, [1, False, 0o600])
    assert len({one["keys"] for one in (*seen, killed, last)}) == 4
    assert all(one["good"] for one in (*seen, killed, last))
