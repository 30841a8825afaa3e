"""Leaving a channel by oneself, and forgetting it here.

Decided here: in which order, so that a crash at any step leaves a device that is either still
in the channel or can finish: the leaving is on the chain, others were told, the intention is
in the store, and only then keys are deleted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from walyoff.incarnations import resume_key
from walyoff.wire import pack, unpack

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.node import Device

log = logging.getLogger("walyoff.device")

#: Those who are connected end their sessions when they have heard of it: within seconds.
TELL_S = 5.0
_PREFIX = "leaving/"


async def leave(device: Device, channel: Channel, *, erase: bool) -> None:
    """End this device's membership; see `Channel.leave`."""
    identity = channel.foundation.identity
    actor = identity.membership.governance.actor
    # The groups that this device is in through the identity that it leaves.
    above = device.kinship.above(channel)
    if actor is not None:
        await identity.remove_member(actor)
        with anyio.move_on_after(TELL_S):
            for concerned in (channel, *above):
                await concerned.foundation.identity.refresh()
                concerned.engine.membership_changed()
                await concerned.connections.announce_chains()
            for concerned in (channel, *above):
                while not concerned.engine.trust.is_member(concerned.me) and concerned.peers():
                    await concerned.changed()
    for concerned in (channel, *above):
        if concerned is channel or not concerned.engine.trust.is_member(concerned.me):
            await _close(device, concerned, erase=erase)


async def _close(device: Device, channel: Channel, *, erase: bool) -> None:
    # How far it wrote: when it comes back with an erased log it asks before it writes.
    written = channel.engine.durable.get(channel.me, 0)
    did = channel.did
    await device.store.put({f"{_PREFIX}{did}": pack([erase, written])})
    await device.close_channel(did)
    await _forget(device, did, erase=erase, written=written)


async def finish_leaving(device: Device) -> None:
    """Forget the channels that were being left when the device was stopped."""
    for key in await device.store.keys(_PREFIX):
        if value := await device.store.get(key):
            erase, written = unpack(value, 64)
            did = key.removeprefix(_PREFIX)
            await _forget(device, did, erase=erase is True, written=int(written))


async def _forget(device: Device, did: str, *, erase: bool, written: int) -> None:
    """Delete the keys of a channel that is closed, and its log if that is wished."""
    store = device.store
    await device.platform.forget(did)
    gone: dict[str, bytes | None] = {}
    for prefix in ("channel/", "epochs/", "credentials/", "ledger-position/"):
        gone[f"{prefix}{did}"] = None
    for prefix in (f"credentials/{did}/", f"address/{did}/", f"control-keys/{did}"):
        gone.update(dict.fromkeys(await store.keys(prefix)))
    await device.invitations.forget(did)
    if erase:
        await store.erase(did)
        # What was said about forgetting names members and messages.
        gone[f"consents/{did}"] = None
        gone.update(dict.fromkeys(await store.keys(f"consent/{did}/")))
        if written:
            gone[resume_key(did)] = written.to_bytes(8, "big")
    gone[f"{_PREFIX}{did}"] = None
    await store.put(gone)
    log.info("the channel %s was left and forgotten", did)


__all__ = ["finish_leaving", "leave"]
