"""What a channel is doing, as people and programs are told it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from walyoff.engine.attachment_states import status_of as attachments_status

if TYPE_CHECKING:
    from walyoff.channel import Channel


def status_of(channel: Channel) -> dict[str, Any]:
    """What it is doing now; see `Channel.status`."""
    engine = channel.engine
    reconciler = engine.reconciler
    identity = channel.foundation.identity
    return {
        "channel": channel.did,
        "name": channel.name,
        "me": channel.me,
        "messages": engine.top,
        "unanchored": len(engine.anchoring.waiting),
        "resuming": engine.resuming.waiting,
        "missing": len(reconciler.open),
        "members": len(channel.members()),
        "peers": channel.connections.status(),
        "devices": dict(engine.durable),
        "forked": sorted(reconciler.forked),
        "faults": dict(engine.reports),
        # By the member that they claim to be by; under nothing those that name none.
        "refused_batches": dict(engine.anchors.refusals.counts),
        "attachments": attachments_status(engine.attachments),
        "refused_blocks": dict(identity.membership.refused),
    }


def statistics_of(channel: Channel, uptime_s: float) -> dict[str, float]:
    """Counters since it was opened, and the sizes of now."""
    return {
        "uptime_s": uptime_s,
        "messages": channel.engine.top,
        "unanchored": len(channel.engine.anchoring.waiting),
        "missing": len(channel.engine.reconciler.open),
        "members": len(channel.members()),
        **channel.connections.statistics(),
        **{f"fault_{k}": v for k, v in Counter(channel.engine.reports).items()},
    }


__all__ = ["statistics_of", "status_of"]
