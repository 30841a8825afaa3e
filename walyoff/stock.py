"""Identities that stock walytis-identities 0.5.3 made, and those that it can open.

Decided here: what a person names. What of it is believed is decided in the child process
(`walyoff.child.stock_homes`). Neither way moves anything: both sides have the keys afterwards,
and the identity is one. Only one device should adopt a group: the others of it join by an
invitation, or each would begin a channel of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from walyoff.errors import LocalProtocolError, StoreError
from walyoff.stores.home import make_private_folder
from walyoff.walytis.platform import WalytisPlatform

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.node import Device

#: Bytes of a serialised stock key.
MAX_UNLOCK = 64 * 1024


async def adopt_stock(
    device: Device,
    *,
    name: str,
    chains: str | os.PathLike[str],
    member: str | os.PathLike[str],
    group: str | os.PathLike[str],
    unlock: str | os.PathLike[str],
) -> Channel:
    """Open a stock group, as the member that it knows; the device must have no DID yet.

    `chains` is stock Walytis' data folder, `member` and `group` are the key stores of the
    member's DidManager and of the GroupDidManager, and `unlock` is a JSON file of the key that
    opens both, as its `serialise_private` gives it. No stock software may use them meanwhile.

    Raises:
        LocalProtocolError: a file is not what it should be, or the device has a DID.
        RemoteProtocolError: a chain or a key does not hold.
        NotAMemberError: the group does not have that member now.
    """
    key = await anyio.to_thread.run_sync(_read_unlock, Path(unlock))
    # The child stands in another folder.
    here = Path.cwd()
    did, group_did, pin = await _platform(device).read_stock(
        here / chains, here / member, here / group, key
    )
    return await device.take_stock(name, did, group_did, pin)


async def export_stock(
    device: Device, channel: Channel, target: str | os.PathLike[str]
) -> None:
    """Write a channel's identity into a new folder, for stock software to open.

    In it are `walytis/` (its data folder), `keys/member.json`, `keys/group.json`, and
    `keys/unlock.json`, the key that opens them: whoever has the folder has the control keys.

    Raises:
        StoreError: the folder is there and not empty, or cannot be made.
        LocalProtocolError: the device's keys are not in a home on this disk.
    """
    folder = Path.cwd() / target

    def prepare() -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} is not empty: name a folder that is not there yet")
        make_private_folder(folder)

    await anyio.to_thread.run_sync(prepare)
    await _platform(device).write_stock(folder, channel.me, channel.did)


def _platform(device: Device) -> WalytisPlatform:
    if not isinstance(device.platform, WalytisPlatform):
        raise LocalProtocolError("this device is not on Walytis")
    return device.platform


def _read_unlock(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_UNLOCK))
    except OSError as error:
        raise LocalProtocolError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise LocalProtocolError(f"{path} is no JSON of a stock key") from None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise LocalProtocolError(f"{path} is no JSON of a stock key")
    return value


__all__ = ["adopt_stock", "export_stock"]
