"""Finds suites and transports by entry point; the only way in which a plug-in gets loaded.

walyoff never imports a plug-in package by name, its own first-party ones included. A name
is looked up among the installed distributions, its object is loaded when it is first asked
for, and a plug-in that does not load is blamed by the name of its distribution.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from walyoff.errors import LocalProtocolError, UnknownSuiteError, WalyoffError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from walyoff.abc import Cipher, TransportFactory

SUITES: Final = "walyoff.suites"
TRANSPORTS: Final = "walyoff.transports"

#: As `Cipher.name` promises; certificates and flights have no room for more.
MAX_NAME: Final = 32

_CIPHER_PARTS: Final = (
    "key_types",
    "aead_key_size",
    "aead_nonce_size",
    "new_sign_key",
    "load_sign_key",
    "verify",
    "new_seal_key",
    "load_seal_key",
    "seal",
    "aead",
)

_suites: dict[str, Cipher] = {}
_lock = threading.Lock()


def installed_suites() -> list[str]:
    """The names of the installed suites, sorted; nothing is loaded."""
    return sorted(_entries(SUITES))


def suite(name: str) -> Cipher:
    """The suite of that name, loaded once for the process. Safe from any thread.

    Raises:
        UnknownSuiteError: no distribution offers it; the message lists what is installed.
        WalyoffError: the plug-in is broken, or two distributions claim the name.
    """
    found = _suites.get(name)
    if found is not None:
        return found
    if name not in _entries(SUITES):
        raise UnknownSuiteError(name, installed_suites())
    with _lock:
        if name not in _suites:
            _suites[name] = _load_suite(name)
        return _suites[name]


def installed_transports() -> list[str]:
    """The names of the installed transports, sorted; nothing is loaded."""
    return sorted(_entries(TRANSPORTS))


def transport_factory(name: str) -> TransportFactory:
    """The factory of the transport of that name.

    Raises:
        LocalProtocolError: no distribution offers it; the message lists what is installed.
        WalyoffError: the plug-in is broken, or two distributions claim the name.
    """
    if name not in _entries(TRANSPORTS):
        have = ", ".join(installed_transports()) or "none"
        raise LocalProtocolError(f"transport {name!r} is not installed (installed: {have})")
    factory, entry = _load(TRANSPORTS, name)
    if not callable(factory):
        raise WalyoffError(f"{_blame(TRANSPORTS, entry)} is not callable")
    return cast("TransportFactory", factory)


def forget_plugins() -> None:
    """Look at the installed distributions again the next time: for tests and installers."""
    _all_entries.cache_clear()
    _entries.cache_clear()
    with _lock:
        _suites.clear()


@cache
def _all_entries() -> Any:
    # Imported late: reading metadata is slow, and a program that only reads our types
    # should not pay for it. All groups at once, as each reading looks at all distributions.
    from importlib.metadata import entry_points  # noqa: PLC0415

    return entry_points()


@cache
def _entries(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    entry: EntryPoint
    for entry in _all_entries().select(group=group):
        same = found.get(entry.name, ())
        # The same object may be listed twice (an editable install beside its source).
        if all(_origin(entry) != _origin(other) for other in same):
            found[entry.name] = (*same, entry)
    return found


def _origin(entry: EntryPoint) -> tuple[str, str]:
    return entry.dist.name if entry.dist is not None else "unknown", entry.value


def _blame(group: str, entry: EntryPoint) -> str:
    distribution, value = _origin(entry)
    return f"plug-in {entry.name!r} of {group} in distribution {distribution!r} ({value})"


def _load(group: str, name: str) -> tuple[Any, EntryPoint]:
    entries = _entries(group)[name]
    if len(entries) > 1:
        # Choosing one would let any installed package take the place of a suite in silence.
        claims = " and ".join(sorted(repr(_origin(entry)[0]) for entry in entries))
        raise WalyoffError(f"{name!r} of {group} is claimed by distributions {claims}")
    entry = entries[0]
    try:
        return entry.load(), entry
    except Exception as error:
        # Importing foreign code may raise anything.
        raise WalyoffError(f"{_blame(group, entry)} does not load: {error!r}") from error


def _load_suite(name: str) -> Cipher:
    loaded, entry = _load(SUITES, name)
    if isinstance(loaded, type):
        try:
            loaded = loaded()
        except Exception as error:
            raise WalyoffError(f"{_blame(SUITES, entry)} cannot be made: {error!r}") from error
    _check_suite(loaded, name, entry)
    return cast("Cipher", loaded)


def _check_suite(loaded: Any, name: str, entry: EntryPoint) -> None:
    missing = [part for part in _CIPHER_PARTS if not hasattr(loaded, part)]
    if missing:
        raise WalyoffError(f"{_blame(SUITES, entry)} lacks {', '.join(missing)}")
    if getattr(loaded, "name", None) != name or len(name) > MAX_NAME or not name.isascii():
        # A suite under another name would verify what its name does not promise.
        raise WalyoffError(f"{_blame(SUITES, entry)} does not bear a valid name of its own")


__all__ = [
    "SUITES",
    "TRANSPORTS",
    "forget_plugins",
    "installed_suites",
    "installed_transports",
    "suite",
    "transport_factory",
]
