"""Which keys of a channel its DID document lists: the current control keys, and the newest
certificate of each member device that is valid now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from walyoff import certificates
from walyoff.certificates import Certificate
from walyoff.did_document import make_document

if TYPE_CHECKING:
    from walyoff.channel import Channel


async def describe(channel: Channel) -> dict[str, Any]:
    """The DID document of a channel's identity."""
    members = channel.members()
    current = {member.did for member in members}
    trust = channel.engine.trust
    now_ms = channel.engine.runtime.wall_ms()
    newest: dict[str, Certificate] = {}
    for encoded in await trust.all_encoded():
        certificate = certificates.decode(encoded).certificate
        known = newest.get(certificate.member)
        if (
            certificate.member in current
            and certificate.covers(now_ms)
            and not trust.is_retired(certificate.certificate_id)
            and (known is None or known.not_after_ms < certificate.not_after_ms)
        ):
            newest[certificate.member] = certificate
    return make_document(
        channel.did,
        control_keys=await channel.foundation.identity.control_keys(),
        controllers=[member.voice for member in members],
        # In the order of the members, so that the same keys give the same document.
        devices=[newest[member.did] for member in members if member.did in newest],
    )
