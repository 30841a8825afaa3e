"""Removing a member from a channel.

Decided here: what a device may remove, and what the error says of the rest. In which order the
others learn of it is decided in `walyoff.kinship`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from walyoff.errors import LocalProtocolError, NotAMemberError

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.node import Device


async def remove(device: Device, channel: Channel, did: str) -> None:
    """End the membership of another; see `Channel.remove`."""
    identity = channel.foundation.identity
    members = channel.members()
    devices = {member.did for member in members if member.voice == did}
    if channel.me in devices:
        raise LocalProtocolError("a device does not remove itself: it leaves (walyoff leave)")
    if not devices and did not in identity.membership.direct:
        for member in members:
            if did in member.path:
                raise LocalProtocolError(
                    f"{did} belongs to {member.voice}: remove it there, or remove that one"
                )
        raise NotAMemberError(f"{did} is not a member of {channel.name!r}")
    channel.check_right("remove")
    async with device.kinship.shut_out(channel, devices):
        await identity.remove_member(did)


__all__ = ["remove"]
