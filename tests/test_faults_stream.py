"""Faults reach the application as they happen, and survive as proof."""

from __future__ import annotations

import anyio

from walyoff import Reason
from walyoff.channel import Channel
from walyoff.records import Batch, Record, chain_start, make_batch, signed_message
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld


def other_beginning(channel: Channel) -> tuple[Batch, bytes]:
    """A second first record of a device, truly signed by it."""
    engine = channel.engine
    batch = make_batch(
        channel=channel.did,
        author=channel.me,
        certificate_id=engine.credentials.certificate.certificate_id,
        first_seq=1,
        prev=chain_start(channel.did, channel.me),
        seen=[],
        records=[Record(0, 0, (), 5, bytes(32))],
    )
    return batch, engine.credentials.sign_key.sign(signed_message(batch.batch_id))


def test_an_equivocating_author_is_reported_to_the_application_and_after_a_restart() -> None:
    async def scenario() -> None:
        world = SimWorld(1)
        async with world.device("alice") as alice:
            family = await alice.create_channel("family")
            async with world.device("bob") as bob:
                theirs = await bob.join(await family.invite())
                receipt = await family.send(b"first")
                await receipt.wait_received(by=theirs.me)
                batch, signature = other_beginning(family)
                async with theirs.faults() as faults:
                    await theirs.engine.inbox.offer(batch.body, signature, None, None)
                    with anyio.fail_after(5):
                        fault = await faults.receive()
                assert (fault.reason, fault.subject) == (Reason.FORK, family.me)
                assert theirs.status()["forked"] == [family.me]
                assert [m.content async for m in theirs.history()] == [b"first"]
            async with world.device("bob") as bob:
                assert bob.channel("family").status()["forked"] == [family.me]

    anyio.run(scenario, backend_options={"loop_factory": VirtualTimeLoop})
