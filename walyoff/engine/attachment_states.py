"""Where an attachment is, as people and programs are told it.

Decided here: the name of each state, and which one is told if several hold. What is fetched is
decided in `walyoff.engine.transfers`; whose turn it is, in `open_attachments`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from walyoff.engine.attachments import Attachments


class AttachmentState(StrEnum):
    """Where an attachment is."""

    #: All of it is here.
    HELD = "held"
    #: Chunks are coming.
    FETCHING = "fetching"
    #: It is wanted, and nobody who has it is here, or its turn has not come.
    WAITING = "waiting"
    #: It is not wanted: by the policy, or because it was dropped. `fetch` gets it.
    REMOTE = "remote"
    #: It is wanted, and the channel's quota does not allow more.
    OVER_QUOTA = "over-quota"
    #: It is wanted, and this device's store takes no more now, mostly for lack of space.
    NO_SPACE = "no-space"


def state_of(attachments: Attachments, record_id: bytes) -> AttachmentState:
    """Where an attachment is whose manifest is held."""
    known = attachments.open.get(record_id)
    if known is None:
        return AttachmentState.HELD
    if not attachments.line.wants(known):
        return AttachmentState.REMOTE
    if attachments.no_space:
        return AttachmentState.NO_SPACE
    transfer = attachments.transfers.transfers.get(record_id)
    if transfer is not None and attachments.transfers.sources(record_id):
        return AttachmentState.FETCHING
    if transfer is not None and transfer.over_quota:
        return AttachmentState.OVER_QUOTA
    return AttachmentState.WAITING


def status_of(attachments: Attachments) -> dict[str, object]:
    """How the channel's attachments are, for people and for `--json`."""
    policy = attachments.policy
    states = [state_of(attachments, record_id) for record_id in attachments.transfers.transfers]
    return {
        "bytes": attachments.total,
        "quota": policy.quota,
        "fetch": str(policy.fetch),
        "small": policy.small,
        "not_whole": len(attachments.open),
        "fetching": states.count(AttachmentState.FETCHING),
        "over_quota": AttachmentState.OVER_QUOTA in states,
        "no_space": attachments.no_space,
    }


__all__ = ["AttachmentState", "state_of", "status_of"]
