"""A node that belongs to nobody: `outsider.py HOME`. It has Kubo and Walytis, and no keys.

It calls the child's low-level methods, which is what anybody who knows a chain's id can do.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import anyio

# Started as a script, but a part of the tests.
sys.path.append(str(Path(__file__).parents[2]))

from walyoff_transports.ipfs import PROTOCOL

from tests.real import wire
from walyoff.walytis.process import Child, open_child


async def do(child: Child, what: str, args: dict[str, Any]) -> Any:
    """One request."""
    if what == "connect":
        return await child.connect(args["multiaddr"])
    if what == "stream":
        return await stream(child, **args)
    return await child.call(args["method"], args["args"], timeout=120)


async def stream(
    child: Child, *, peer_id: str, sent: bytes, linger: float, repeat: int, folder: str
) -> list[bytes]:
    """Open streams to a device, say something, and listen for a while; what it answered."""
    path = f"{folder}/s"
    await child.forward_streams(PROTOCOL, peer_id, path)
    answers: list[bytes] = []

    async def one() -> None:
        heard = b""
        async with await anyio.connect_unix(path) as connection:
            with anyio.move_on_after(linger):
                try:
                    for at in range(0, len(sent), 1 << 16):
                        await connection.send(sent[at : at + (1 << 16)])
                    while True:
                        heard += await connection.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
        answers.append(heard)

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(repeat):
                tasks.start_soon(one)
    finally:
        await child.close_streams(PROTOCOL, peer_id=peer_id)
        await anyio.Path(path).unlink(missing_ok=True)
    return answers


async def main(home: Path) -> None:
    """Serve until the input ends."""
    async with open_child(home) as child:
        wire.write({"event": "ready", "addresses": list(child.addresses)})
        async for request in wire.requests():
            try:
                value = await do(child, request["do"], request["args"])
            except Exception as error:
                logging.exception("%s failed", request["do"])
                wire.write({"id": request["id"], "error": (type(error).__name__, str(error))})
            else:
                wire.write({"id": request["id"], "value": value})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    anyio.run(main, Path(sys.argv[1]))
