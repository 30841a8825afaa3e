"""The renewal keys of this device's DIDs: kept until their turn, then destroyed.

What they are for is told in `renewals`. Decided here: how a renewal is prepared, so that a kill
at any instant leaves a device that can renew. The files are beside those of the control keys
(`keyring`) and not in them: what uses, loads or hands over control keys has nothing to do with
these.

A file is sealed, and holds pack([version, seeds, control keys]): the renewal key whose turn is
next, and while a renewal is on its way the control keys that it brings in, with the renewal key
after it. Which of the two the chain awaits tells whether the block was written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walyoff.child.acts import chain_of
from walyoff.child.keyring import MAX_SECRETS, Keyring
from walyoff.child.renewal_keys import SEEDS_SIZE, RenewalKey
from walyoff.errors import LocalProtocolError, RemoteProtocolError, StoreError
from walyoff.files import replace_file
from walyoff.sealing import Sealing
from walyoff.wire import expect_array, expect_bytes, expect_int, pack, unpack

#: What the names of the files end with.
ENDING = ".next"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A renewal that is about to be written, the same as often as it is prepared."""

    #: None where the DID has committed to nothing yet: the old control keys sign.
    signer: RenewalKey | None
    #: Control keys, secrets included.
    new: Any
    following: RenewalKey


class RenewalFiles:
    """The renewal keys that are kept. The caller takes one DID at a time."""

    def __init__(self, keyring: Keyring, folder: Path, sealing: Sealing) -> None:
        self._keyring = keyring
        self._folder = folder
        self._sealing = sealing

    def keep(self, did: str, key: RenewalKey) -> None:
        """Keep the key whose turn is next, and no other. Durable when it returns."""
        self._save(did, [key], b"")

    def prepare(self, did: str, committed: bytes, named: Collection[str]) -> Step:
        """The renewal that the chain awaits: by the key that it has committed to, if any.

        Durable when it returns; `named` are the control keys that the chain has already.

        Raises:
            LocalProtocolError: that key is not here.
            StoreError: the file is damaged.
        """
        held, new = self._load(did)
        signer = next((key for key in held if key.fingerprint == committed), None)
        if committed and signer is None:
            raise LocalProtocolError(
                "this device has not the key that its next control keys need, as another copy "
                "of it has renewed them: go on with that one, or join as a new device"
            )
        following = held[-1] if held else None
        if following is None or following is signer or new is None or new.get_id() in named:
            new, following = self._keyring.new_group(), RenewalKey.new()
            keys = [following] if signer is None else [signer, following]
            self._save(did, keys, self._keyring.serialise([new]))
        return Step(signer=signer, new=new, following=following)

    def _load(self, did: str) -> tuple[list[RenewalKey], Any]:
        path = self._path(did)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return [], None
        try:
            seeds, control = decode_kept(self._sealing.unseal(data, self._place(path)))
            new = self._keyring.deserialise(control)[0] if control else None
        except RemoteProtocolError as error:
            raise StoreError("a file of renewal keys is damaged") from error
        return [RenewalKey(seed) for seed in seeds], new

    def _save(self, did: str, keys: list[RenewalKey], control: bytes) -> None:
        path = self._path(did)
        value = pack([1, [key.secret() for key in keys], control])
        replace_file(path, self._sealing.seal(value, self._place(path)))

    def _path(self, did: str) -> Path:
        return self._folder / (chain_of(did) + ENDING)

    @staticmethod
    def _place(path: Path) -> str:
        return f"keys/{path.name}"


def decode_kept(value: bytes) -> tuple[list[bytes], bytes]:
    """Seeds, and control keys or nothing. Raises RemoteProtocolError."""
    version, seeds, control = expect_array(unpack(value, MAX_SECRETS), 3, "renewal keys")
    if expect_int(version, "version", high=255) != 1:
        raise RemoteProtocolError("renewal keys of an unknown version")
    if not isinstance(seeds, list) or not 0 < len(seeds) <= 2:
        raise RemoteProtocolError("one renewal key or two are kept")
    found = [expect_bytes(seed, "seed", size=SEEDS_SIZE) for seed in seeds]
    return found, expect_bytes(control, "control keys", limit=MAX_SECRETS)


__all__ = ["ENDING", "RenewalFiles", "Step", "decode_kept"]
