"""Peer-to-peer encrypted, authenticated messages for every device of a Walytis Identity.

    async with walyoff.open_device("alice") as device:
        channel = await device.create_channel("family")
        await channel.send(b"hello", topics=["greeting"])
        async for message in channel.messages(cursor="app"):
            print(message.author, message.content, message.anchored)

Names are loaded when they are first used, so that `import walyoff` stays cheap.
"""

from __future__ import annotations

import importlib

# As in `typing`, whose import takes as long as all else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from walyoff.attachments import Attachment, AttachmentState, AttachmentStream, Progress
    from walyoff.channel import Channel
    from walyoff.engine.facts import Reason, Report
    from walyoff.engine.policy import AttachmentPolicy, Fetching
    from walyoff.errors import (
        ChildError,
        CipherError,
        HomeInUseError,
        InvitationError,
        LedgerError,
        LocalProtocolError,
        NotAMemberError,
        PayloadTooLargeError,
        QuotaExceededError,
        RemoteProtocolError,
        StoreError,
        SupersededError,
        TransportError,
        UnknownSuiteError,
        WalyoffError,
    )
    from walyoff.forgetting import Agreement, ForgetRequest, ForgetStatus, Forgotten
    from walyoff.inviting import InvitationInfo, Joiner
    from walyoff.message import Message
    from walyoff.messages import MessageStream, Receipt
    from walyoff.moving.homes import (
        backup_device,
        change_passphrase,
        export_device,
        import_device,
        restore_device,
        take_over,
        undo_export,
    )
    from walyoff.node import Device
    from walyoff.opening import open_device

__version__ = "0.1.0"

_HOMES = {
    "walyoff.attachments": ("Attachment", "AttachmentState", "AttachmentStream", "Progress"),
    "walyoff.channel": ("Channel",),
    "walyoff.engine.facts": ("Reason", "Report"),
    "walyoff.engine.policy": ("AttachmentPolicy", "Fetching"),
    "walyoff.errors": (
        "ChildError",
        "CipherError",
        "HomeInUseError",
        "InvitationError",
        "LedgerError",
        "LocalProtocolError",
        "NotAMemberError",
        "PayloadTooLargeError",
        "QuotaExceededError",
        "RemoteProtocolError",
        "StoreError",
        "SupersededError",
        "TransportError",
        "UnknownSuiteError",
        "WalyoffError",
    ),
    "walyoff.forgetting": ("Agreement", "ForgetRequest", "ForgetStatus", "Forgotten"),
    "walyoff.inviting": ("InvitationInfo", "Joiner"),
    "walyoff.message": ("Message",),
    "walyoff.messages": ("MessageStream", "Receipt"),
    "walyoff.moving.homes": (
        "backup_device",
        "change_passphrase",
        "export_device",
        "import_device",
        "restore_device",
        "take_over",
        "undo_export",
    ),
    "walyoff.node": ("Device",),
    "walyoff.opening": ("open_device",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Agreement",
    "Attachment",
    "AttachmentPolicy",
    "AttachmentState",
    "AttachmentStream",
    "Channel",
    "ChildError",
    "CipherError",
    "Device",
    "Fetching",
    "ForgetRequest",
    "ForgetStatus",
    "Forgotten",
    "HomeInUseError",
    "InvitationError",
    "InvitationInfo",
    "Joiner",
    "LedgerError",
    "LocalProtocolError",
    "Message",
    "MessageStream",
    "NotAMemberError",
    "PayloadTooLargeError",
    "Progress",
    "QuotaExceededError",
    "Reason",
    "Receipt",
    "RemoteProtocolError",
    "Report",
    "StoreError",
    "SupersededError",
    "TransportError",
    "UnknownSuiteError",
    "WalyoffError",
    "backup_device",
    "change_passphrase",
    "export_device",
    "import_device",
    "open_device",
    "restore_device",
    "take_over",
    "undo_export",
]


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'walyoff' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value
