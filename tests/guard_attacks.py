"""A stranger and what it does: to two devices in tests, to stock nodes in a benchmark."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.waiting import HANGS_AFTER
from walyoff.child.blocks import cid_of, decode_block
from walyoff.child.chainfiles import parent_ids
from walyoff.child.repo import ensure_repo
from walyoff.testing.walytis_blocks import make_block


def prepare_stock(home: Path) -> tuple[dict[str, str], IO[bytes]]:
    """The environment of a stock node, and its log."""
    home.mkdir(exist_ok=True)
    # 127.0.0.1 alone: the one that stock code makes listens everywhere and dials the world.
    ensure_repo(home / "ipfs")
    (home / "walytis").mkdir(exist_ok=True)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        "HOME": str(home),
        "TMPDIR": str(home),
        "LIBP2P_TCP_REUSEPORT": "false",
        "IPFS_TK_MODE": "EMBEDDED",
        "IPFS_REPO_DIR": str(home / "ipfs"),
        "WALYTIS_BETA_DATA_DIR": str(home / "walytis"),
        "WALY_LOG_DIR": "DISABLED",
    }
    return environment, (home / "log").open("wb")


@dataclass
class Outsider:
    process: Process
    answers: BufferedByteReceiveStream
    folder: Path
    names: int = 0

    async def do(self, what: str, **args: Any) -> Any:
        assert self.process.stdin is not None
        await self.process.stdin.send(json.dumps({"do": what, **args}).encode() + b"\n")
        answer = json.loads(await self.answers.receive_until(b"\n", 1 << 22))
        assert "error" not in answer, answer
        return answer["value"]

    def write(self, data: bytes) -> str:
        self.names += 1
        path = self.folder / f"file-{self.names}"
        path.write_bytes(data)
        return str(path)

    async def publish(self, topic: str, blocks: list[bytes], pause: float = 0.002) -> None:
        lines = b"\n".join(announcement(block) for block in blocks)
        await self.do("publish", topic=topic, path=self.write(lines), pause=pause)

    async def serve(self, topic: str, files: list[bytes], pause: float = 0.002) -> None:
        """Have files, and announce the blocks that they claim to be."""
        paths = [self.write(file) for file in files]
        cids = await self.do("add", paths=paths)
        await self.publish(
            topic, [claim(file, cid) for file, cid in zip(files, cids, strict=True)], pause
        )


def claim(file: bytes, cid: str) -> bytes:
    """The long id of a block file, well-formed or not, as stock code makes it."""
    head, _, _ = file.partition(b"\0" * 5)
    meta, _, parents = head.partition(b"\0" * 4)
    version, rest = meta.split(b"\0\0", 1)
    return b"\0\0".join([version, cid.encode(), rest]) + b"\0" * 4 + parents


def announcement(long_id: bytes) -> bytes:
    text = base64.urlsafe_b64encode(long_id).rstrip(b"=").decode()
    return json.dumps({"message": "New block!", "block_id": text}).encode()


@asynccontextmanager
async def outsider_process(home: Path) -> AsyncIterator[Outsider]:
    script = str(Path(__file__).parent / "guard_outsider.py")
    folder = home / "files"
    folder.mkdir(parents=True)
    async with await anyio.open_process(
        [sys.executable, script, str(home)], stderr=None
    ) as process:
        assert process.stdout is not None
        answers = BufferedByteReceiveStream(process.stdout)
        try:
            with anyio.fail_after(HANGS_AFTER):
                assert await answers.receive_until(b"\n", 100) == b"ready"
            yield Outsider(process, answers, folder)
        finally:
            process.kill()


def attacks(chain: str, files: list[bytes], victim: str) -> dict[str, list[bytes]]:
    """Block files by attack; "nobody" has ids instead."""
    newest = decode_block(files[-1])
    parents = [newest.short_id, decode_block(files[0]).short_id]
    real = newest.content
    own = parent_ids(newest)
    forged = [
        newest.short_id.replace(newest.cid.encode(), cid_of(b"forged %d" % n).encode())
        for n in range(40)
    ]
    big = b"x" * (40 << 20)
    topics = ["walyoff", chain]
    return {
        "empty topic": [make_block(real, ["", chain], parents)],
        "no topic of the chain": [make_block(real, ["walyoff"], parents)],
        "forged creator": [make_block(real, topics, parents, creator=victim.encode())],
        "copies in place": [
            make_block(real, topics, own, minute=n, creator=victim.encode()) for n in range(5)
        ],
        "forged content": [make_block(b"\x93\x01\xc4\x01x", topics, parents)],
        "forged parents": [
            make_block(real, topics, [one, two])
            for one, two in zip(forged[::2], forged[1::2], strict=True)
        ],
        "another birth": [
            make_block(b"birth %d" % n, ["genesis"], [decode_block(files[0]).short_id] * 2)
            for n in range(20)
        ],
        "40 MB": [make_block(big, topics, parents, length=len(big))],
        "rubbish": [b"\0".join(files[-1].split(b"\0")[:20]) + b"%d" % n for n in range(5)],
        "leaves": [
            make_block(real, topics, parents, minute=n % 60, creator=b"%d" % n)
            for n in range(1_000)
        ],
    }


def respelled(files: list[bytes]) -> list[bytes]:
    """An identity's blocks once more, each in spellings of its own, at the chain's end."""
    blocks = [decode_block(file) for file in files]
    stock = [block for block in blocks if block.content.startswith(b"{")]
    parents = [blocks[-1].short_id, blocks[0].short_id]
    return [
        make_block(content, list(block.topics), parents, minute=n)
        for block in stock
        for n in range(8)
        for content in (block.content + b" " * n, b'{"n": %d, ' % n + block.content[1:])
    ]
