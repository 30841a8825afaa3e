"""What a device keeps of a channel between runs: its name, its secret, its epochs.

Decided here: how that is written. What a channel does is in `channel`.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from walyoff.abc import Store
from walyoff.engine.policy import AttachmentPolicy
from walyoff.epochs import Epoch, decode_epochs, encode_epochs
from walyoff.wire import pack, unpack

#: Characters of what a person calls a channel: it fits a line of a terminal.
MAX_NAME_CHARS = 64
SECRET_SIZE = 32


class ChannelState:
    """What a device keeps of a channel between runs. Its secret never prints."""

    def __init__(
        self, *, did: str, name: str, pin: bytes, secret: bytes, given_by: str = ""
    ) -> None:
        self.did = did
        self.name = name
        self.pin = pin
        #: Shared by all who were ever members: blinds tags and topics, protects no content.
        self.secret = secret
        #: The device of the same person that handed it over, if it came so.
        self.given_by = given_by

    def __repr__(self) -> str:
        return f"<ChannelState {self.name!r}>"

    def derive(self, purpose: str) -> bytes:
        """A key for one purpose."""
        return blake3(
            self.secret, derive_key_context=f"walyoff 2026-11 channel {purpose}"
        ).digest()

    @property
    def tag_key(self) -> bytes:
        """For finding the channel that a session is about."""
        return self.derive("tag")

    @property
    def topic(self) -> str:
        """The broadcast topic of the channel: says nothing to outsiders."""
        return f"walyoff/{self.derive('topic').hex()[:32]}"

    def encode(self) -> bytes:
        """For the store."""
        return pack([self.did, self.name, self.pin, self.secret, self.given_by])

    @classmethod
    def decode(cls, data: bytes) -> ChannelState:
        """From the store."""
        did, name, pin, secret, *more = unpack(data, 4096)
        return cls(did=did, name=name, pin=pin, secret=secret, given_by=more[0] if more else "")


async def save_epochs(store: Store, did: str, epochs: Sequence[Epoch]) -> None:
    """Keep the epochs of a channel."""
    await store.put({f"epochs/{did}": pack(encode_epochs(epochs))})


async def load_epochs(store: Store, did: str) -> list[Epoch]:
    """The epochs that the store has of a channel."""
    value = await store.get(f"epochs/{did}")
    return [] if value is None else decode_epochs(unpack(value, 1 << 20), 1 << 16)


async def save_policy(store: Store, did: str, policy: AttachmentPolicy) -> None:
    """Keep what is fetched of a channel's attachments."""
    await store.put({f"attachments/{did}": policy.encode()})


async def load_policy(store: Store, did: str) -> AttachmentPolicy:
    """What the store has of it, or the policy of a new channel."""
    value = await store.get(f"attachments/{did}")
    return AttachmentPolicy() if value is None else AttachmentPolicy.decode(value)


__all__ = [
    "MAX_NAME_CHARS",
    "SECRET_SIZE",
    "ChannelState",
    "load_epochs",
    "load_policy",
    "save_epochs",
    "save_policy",
]
