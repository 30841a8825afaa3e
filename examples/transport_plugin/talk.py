import sys

import anyio

import walyoff


async def main(home, *invitation):
    async with walyoff.open_device(home, transports=["demo"]) as device:
        if invitation:
            channel = await device.join(*invitation)
        else:
            channel = await device.create_channel("family")
            print(await channel.invite(), flush=True)
        await channel.send(f"hello from {home}".encode())
        async for message in channel.messages():
            print(message.content.decode(), flush=True)


anyio.run(main, *sys.argv[1:])
