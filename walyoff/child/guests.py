"""Chains that others hand over, while it is not decided whether they belong here.

Decided here: what becomes of them. Who asks to join gives its chain, and those below it, and
they have to be on the disk to be read; if it is refused they go again. They are written down
before they are taken, so that a kill leaves none either.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from walyoff.child.chains import Chains
from walyoff.child.reader import chain_of
from walyoff.errors import LocalProtocolError, RemoteProtocolError, WalyoffError
from walyoff.files import replace_file
from walyoff.wire import MAX_DID, expect_array, expect_name, pack, unpack

#: In the home; there while somebody's chains are on trial.
NAME = "guests"
#: A DID, the names of a family's chains, and the encoding.
_MAX_SIZE = 1 << 20

#: holds(group, DID): whether a group that is held here has a member.
HasMember = Callable[[str, str], bool]

_log = logging.getLogger(__name__)


class Guests:
    """What was handed over and may have to go again. Safe to use from many threads."""

    def __init__(
        self, chains: Chains, home: Path, forget: Callable[[Collection[str]], None]
    ) -> None:
        """`forget` is told of chains that go, before they do."""
        self._chains = chains
        self._forget = forget
        self._path = home / NAME
        self._lock = threading.RLock()
        #: Chains that were refused when it could not be told which of them are needed.
        self._undecided: list[str] = []

    @contextmanager
    def on_trial(
        self,
        group: str,
        member: str,
        dids: Iterable[str],
        belong: Callable[[], Collection[str]],
    ) -> Iterator[None]:
        """Those of the DIDs whose chains are not held here stay if the context ends well.

        Else those go that do not `belong` to what is open here. If that cannot be told, they
        go before the next trial, or at the next start; until then they are written down.
        """
        with self._lock:
            self._drop_undecided(belong)
            fresh = [chain for chain in map(_chain, dict.fromkeys(dids)) if self._is_new(chain)]
            if not fresh:
                yield
                return
            replace_file(self._path, pack([group, member, fresh]))
            try:
                yield
            except BaseException:
                self._undecided = fresh
                try:
                    self._drop_undecided(belong)
                except Exception:
                    # What was raised first tells why they were refused.
                    _log.exception("%d chains stay that were refused, for now", len(fresh))
                raise
            self._path.unlink(missing_ok=True)

    def _drop_undecided(self, belong: Callable[[], Collection[str]]) -> None:
        if self._undecided:
            wanted = {_chain(did) for did in belong()}
            self._remove([chain for chain in self._undecided if chain not in wanted])
            self._undecided = []
            self._path.unlink(missing_ok=True)

    def sweep(self, has_member: HasMember) -> None:
        """Remove what a kill left, unless what it was taken for had become a member."""
        try:
            with self._path.open("rb") as file:
                group, member, fresh = decode_guests(file.read(_MAX_SIZE + 1))
            known = _chain(group) not in fresh and has_member(group, member)
            if not known:
                _log.info("%d chains go that were handed over when a kill came", len(fresh))
                self._remove(fresh)
        except FileNotFoundError:
            return
        except (WalyoffError, OSError) as error:
            _log.warning("the list of guests is passed over: %s", error)
        self._path.unlink(missing_ok=True)

    def _is_new(self, chain: str) -> bool:
        try:
            return not self._chains.has(chain)
        except RemoteProtocolError:
            # No chain has such a name, so nothing is taken under it.
            return False

    def _remove(self, chains: Collection[str]) -> None:
        self._forget(chains)
        for chain in chains:
            try:
                self._chains.discard(chain)
            except (LocalProtocolError, RemoteProtocolError, OSError) as error:
                _log.warning("chain %s stays: %s", chain, error)


def decode_guests(data: bytes) -> tuple[str, str, list[str]]:
    """What was written down: group, DID, chains. Raises RemoteProtocolError."""
    group, member, names = expect_array(unpack(data, _MAX_SIZE), 3, "guests")
    if not isinstance(names, list):
        raise RemoteProtocolError("guests are a list of chains")
    return (
        expect_name(group, "DID", limit=MAX_DID),
        expect_name(member, "DID", limit=MAX_DID),
        [expect_name(name, "chain", limit=64) for name in names],
    )


def _chain(did: str) -> str:
    """The chain of a DID; empty for what is none."""
    try:
        return chain_of(did)
    except RemoteProtocolError:
        return ""


__all__ = ["Guests", "decode_guests"]
