"""The device's durable store: SQLite, encrypted at rest, with one owner at a time."""

from walyoff.stores.channel import SqliteChannelStore
from walyoff.stores.sqlite import SqliteStore, StoreStatistics, open_store

__all__ = ["SqliteChannelStore", "SqliteStore", "StoreStatistics", "open_store"]
