"""Authenticated, forward-secret sessions between two devices, without I/O.

`Initiator` and `Responder` make the keys (`handshake`), `SecureChannel` carries frames under
them (`records`). What both hash and derive is in `transcript`, the bytes are in `flights`.
"""

from walyoff.session.handshake import (
    REFUSAL,
    Established,
    Event,
    HandshakeContext,
    Initiator,
    PeerPresented,
    Responder,
    Send,
)
from walyoff.session.records import MAX_FRAME, DirectionStatistics, SecureChannel
from walyoff.session.transcript import Mode, Role, SessionKeys, blinded_tag

__all__ = [
    "MAX_FRAME",
    "REFUSAL",
    "DirectionStatistics",
    "Established",
    "Event",
    "HandshakeContext",
    "Initiator",
    "Mode",
    "PeerPresented",
    "Responder",
    "Role",
    "SecureChannel",
    "Send",
    "SessionKeys",
    "blinded_tag",
]
