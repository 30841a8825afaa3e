"""The other side of a transport that is measured, and how both open one.

    python -m walyoff.bench.transport_peer NAME FOLDER

It opens the transport of that name, prints its addresses, and serves until its input ends.
On a stream it does what the first byte says: echo everything, or swallow everything and say
how much it was when asked. On the topic it sends back whatever it hears.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream, TaskGroup

from walyoff import plugins
from walyoff.abc import Broadcast, IpfsNode, Transport, TransportHost
from walyoff.errors import TransportError, WalyoffError

TOPIC = "bench"
ECHO, SWALLOW = b"e", b"s"
#: What is swallowed ends with this many bytes, and is then answered with one.
END = b"the end of what is swallowed"
#: Where broadcasts go to, and where they come from.
ASKED, ANSWERED = b"?", b"!"


@asynccontextmanager
async def open_alone(name: str, folder: Path) -> AsyncIterator[Transport]:
    """Open a transport without a device; with an IPFS node only if it wants one.

    Raises:
        WalyoffError: it is not installed, or does not open.
    """
    factory = plugins.transport_factory(name)
    async with AsyncExitStack() as stack:
        try:
            context = factory(_host(folder / "t", None))
            transport = await stack.enter_async_context(context)
        except TransportError:
            node = await stack.enter_async_context(_node(folder / "node"))
            context = factory(_host(folder / "i", node))
            transport = await stack.enter_async_context(context)
        yield transport


@asynccontextmanager
async def _node(home: Path) -> AsyncIterator[IpfsNode]:
    from walyoff.walytis.process import open_child  # noqa: PLC0415 - heavy, and seldom needed

    async with open_child(home) as child:
        yield child


def _host(folder: Path, node: IpfsNode | None) -> TransportHost:
    state, run = folder / "s", folder / "r"
    for made in (folder, state, run):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    return TransportHost(state_dir=state, run_dir=run, ipfs=node)


async def _serve(stream: ByteStream) -> None:
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        async with stream:
            first = await stream.receive(1)
            if first == ECHO:
                while True:
                    await stream.send(await stream.receive())
            tail = b""
            while True:
                data = await stream.receive(1 << 20)
                tail = (tail + data)[-len(END) :]
                if tail == END:
                    await stream.send(ECHO)


async def _answer(transport: Transport, heard: ObjectReceiveStream[Broadcast]) -> None:
    async for broadcast in heard:
        if broadcast.payload.startswith(ASKED):
            with suppress(WalyoffError):
                await transport.broadcast(TOPIC, ANSWERED + broadcast.payload[1:])


async def _accept(streams: ObjectReceiveStream[ByteStream], tasks: TaskGroup) -> None:
    async for stream in streams:
        tasks.start_soon(_serve, stream)


async def main(name: str, folder: Path) -> None:
    """Serve until the input ends."""
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(open_alone(name, folder))
        streams = await stack.enter_async_context(transport.listen())
        async with anyio.create_task_group() as tasks:
            if transport.max_broadcast:
                heard = await stack.enter_async_context(transport.subscribe(TOPIC))
                tasks.start_soon(_answer, transport, heard)
            tasks.start_soon(_accept, streams, tasks)
            sys.stdout.write("\n".join(transport.addresses) + "\n\n")
            sys.stdout.flush()
            await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]))
