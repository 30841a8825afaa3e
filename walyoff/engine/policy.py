"""Which attachments of a channel a device fetches by itself, and how many bytes it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from walyoff.errors import LocalProtocolError
from walyoff.wire import pack, unpack

_VERSION = 1
#: What `small` means unless it is said otherwise.
SMALL = 16 * 1024 * 1024


class Fetching(StrEnum):
    """What is fetched without being asked for."""

    ALL = "all"
    #: What is not larger than the policy's size.
    SMALL = "small"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentPolicy:
    """The policy of one channel on one device."""

    fetch: Fetching = Fetching.ALL
    #: The largest attachment that is small, in bytes.
    small: int = SMALL
    #: Bytes of chunks that this device keeps of the channel, own ones included; None: no limit.
    quota: int | None = None

    def __post_init__(self) -> None:
        if self.small < 0 or (self.quota is not None and self.quota < 0):
            raise LocalProtocolError("sizes of a policy are not negative")

    def wants(self, size: int) -> bool:
        """True if an attachment of so many bytes is fetched without being asked for."""
        return self.fetch == Fetching.ALL or (
            self.fetch == Fetching.SMALL and size <= self.small
        )

    def encode(self) -> bytes:
        """For the store."""
        return pack([_VERSION, str(self.fetch), self.small, self.quota])

    @classmethod
    def decode(cls, data: bytes) -> AttachmentPolicy:
        """From the store."""
        _, fetch, small, quota = unpack(data, 256)
        return cls(fetch=Fetching(fetch), small=small, quota=quota)
