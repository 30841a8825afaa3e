"""The control keys of this device's own DID: renewed when they are old.

Decided here: when. Whoever has copied them can certify device keys in the device's name, so
they do not live for ever; what they signed before stays verifiable.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from walyoff.engine.control_keys import RENEW_AFTER_MS
from walyoff.errors import WalyoffError

if TYPE_CHECKING:
    from walyoff.node import Device

log = logging.getLogger("walyoff.device")

#: How often the age is looked at, in seconds.
CHECK_EVERY_S = 3600.0
_KEY = "own-keys"


async def keep_own_keys(device: Device) -> None:
    """Renew the control keys of the device's DID by age, for ever."""
    while True:
        await anyio.sleep(CHECK_EVERY_S)
        if await device.store.get("device") is None:
            continue
        try:
            stored = await device.store.get(_KEY)
            since = None if stored is None else int.from_bytes(stored, "big")
            if since is not None and since + RENEW_AFTER_MS > device.runtime.wall_ms():
                continue
            # Of keys of an older version it is not known how old they are: from now on it is.
            if since is not None:
                await device.renew_keys()
                log.info("the control keys of this device were renewed")
            await device.store.put({_KEY: device.runtime.wall_ms().to_bytes(8, "big")})
        except WalyoffError as error:
            log.warning("the device's control keys were not renewed, again later: %s", error)


__all__ = ["keep_own_keys"]
