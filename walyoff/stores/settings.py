"""How settings are written: small sealed values under keyed names, inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from walyoff.stores import places
from walyoff.stores.vault import Vault


def put_settings(
    connection: sqlite3.Connection, vault: Vault, values: Mapping[str, bytes | None]
) -> None:
    """Write settings; None removes."""
    for key, value in values.items():
        ref = vault.ref(places.SETTING, b"", key.encode())
        connection.execute("DELETE FROM settings WHERE ref = ?", (ref,))
        if value is not None:
            name = vault.seal(key.encode(), places.SETTING_NAME + ref)
            sealed = vault.seal(value, places.SETTING_VALUE + ref)
            connection.execute(
                "INSERT INTO settings(ref, name, value) VALUES (?, ?, ?)", (ref, name, sealed)
            )
