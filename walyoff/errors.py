"""Every error that walyoff raises on purpose.

Blame is in the type, because blame decides the reaction: the caller's bug is fixed, a
peer's fault is dropped and scored, a transport's fault is retried. There is one class for
each kind of reaction, not one for each message.

Secrets and plaintext never appear in an error's text.
"""

from __future__ import annotations


class WalyoffError(Exception):
    """Base of all errors of this library."""


class LocalProtocolError(WalyoffError):
    """The caller broke a rule of the interface; the call changed nothing."""


class PayloadTooLargeError(LocalProtocolError):
    """A payload exceeds the named limit of the operation."""

    def __init__(self, size: int, limit: int, what: str = "payload") -> None:
        super().__init__(f"{what} of {size} bytes exceeds the limit of {limit}")
        self.size = size
        self.limit = limit


class RemoteProtocolError(WalyoffError):
    """A peer (or a block, or a file from outside) broke the protocol: drop and score it.

    `reason` is a short constant for logs and metrics.
    """

    def __init__(self, message: str, *, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class TransportError(WalyoffError):
    """The way to a peer, or the peer itself, is not there now: try again later."""


class ChildError(TransportError):
    """The child process failed, timed out or is being replaced: try again."""


class LedgerError(WalyoffError):
    """The ledger refused or failed an operation that is not worth repeating as it is."""


class CipherError(WalyoffError):
    """Decryption, verification or the choice of a suite failed. It says no more than that."""


class UnknownSuiteError(CipherError):
    """A certificate names a suite that is not installed here."""

    def __init__(self, name: str, installed: list[str]) -> None:
        have = ", ".join(sorted(installed)) or "none"
        super().__init__(f"suite {name!r} is not installed (installed: {have})")
        self.name = name


class StoreError(WalyoffError):
    """The store cannot be read or written, or its content does not authenticate."""


class HomeInUseError(StoreError):
    """Another process owns this home now."""


class SupersededError(WalyoffError):
    """This home is not the device any more: another copy is, or shall be."""


class QuotaExceededError(WalyoffError):
    """The attachments of a channel would take more than its quota: free some, or raise it."""

    def __init__(self, size: int, quota: int) -> None:
        super().__init__(
            f"{size} bytes of attachments exceed the channel's quota of {quota}: raise it, or"
            " drop attachments"
        )
        self.size = size
        self.quota = quota


class NotAMemberError(WalyoffError):
    """The device or person is not, or no longer, a member of the identity."""


class InvitationError(WalyoffError):
    """An invitation is mistyped, expired, used up, revoked or unknown to the inviter."""
