"""Control keys: kept in files of mode 0600, signing, and verifying by key group id.

Decided here: how private keys are kept and how signatures are encoded. Stock key stores are
not used: they are readable by everyone, written in place, and whoever can write one can put
keys into it.

The files are sealed under a key from the store (`sealing`); those of an older home are
sealed when it is opened first.
"""

from __future__ import annotations

import functools
import logging
import threading
from pathlib import Path
from typing import Any

from walyoff.child.acts import MAX_KEY_ID, chain_of, did_of
from walyoff.child.blocks import check_cid
from walyoff.child.renewal_keys import verify_renewal
from walyoff.child.renewals import SCHEME
from walyoff.child.verified import Verified
from walyoff.errors import LocalProtocolError, RemoteProtocolError, StoreError
from walyoff.files import replace_file
from walyoff.sealing import Sealing
from walyoff.wire import expect_array, expect_bytes, expect_str, pack, unpack

#: The families of new control keys, as stock code makes them.
FAMILIES = ("EC-secp256k1", "PQ-ML-KEM-768-ML-DSA-65")
#: Keys of one group, and groups (past and present) of one DID.
MAX_KEYS = 4
MAX_GROUPS = 256
#: Bytes of them all, and of one signature.
MAX_SECRETS = 8 << 20
MAX_SIGNATURE = 64 * 1024
_FIELDS = ("family", "public_key", "private_key", "creation_time")

_log = logging.getLogger(__name__)


class Keyring:
    """The private control keys of this device's DIDs."""

    def __init__(self, keys: Any, folder: Path, sealing: Sealing) -> None:
        self._keys = keys
        self._folder = folder
        self._sealing = sealing
        self._lock = threading.Lock()
        self._loaded: dict[str, list[Any]] = {}
        self._ids: dict[str, list[str]] = {}
        #: So that reading a chain again is cheap.
        self.verified = Verified(folder.parent / "child" / "verified", sealing)
        self._public = functools.lru_cache(maxsize=128)(self._parse_public)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._seal_all()

    def __repr__(self) -> str:
        return f"<Keyring [{len(self._loaded)} loaded]>"

    def new_group(self) -> Any:
        """Fresh control keys (about 50 ms)."""
        return self._keys.KeyGroup.create(list(FAMILIES))

    def _seal_all(self) -> None:
        """Seal the files that an older version wrote in clear."""
        for path in self._folder.iterdir():
            # The others are what a crash left of a file that never was.
            if path.is_file() and not path.name.startswith("."):
                data = path.read_bytes()
                if self._sealing.must_be_sealed(data):
                    place = self._place(path)
                    value = self._sealing.unseal(data, place)
                    replace_file(path, self._sealing.seal(value, place))
            elif path.name.startswith("."):
                path.unlink(missing_ok=True)

    def save(self, did: str, groups: list[Any]) -> None:
        """Keep a DID's control keys, oldest first. Durable when it returns."""
        with self._lock:
            path = self._path(did)
            sealed = self._sealing.seal(self.serialise(groups), self._place(path))
            replace_file(path, sealed)
            self._loaded[did] = list(groups)
            self._ids[did] = [group.get_id() for group in groups]

    def holds(self, did: str) -> bool:
        """Whether there are control keys of a DID here. A chain may name what is none."""
        try:
            check_cid(chain_of(did))
        except RemoteProtocolError:
            return False
        return did in self._loaded or self._path(did).exists()

    def dids(self) -> list[str]:
        """The DIDs of which there are control keys here."""
        return sorted(did_of(p.name) for p in self._folder.iterdir() if p.name[0] != ".")

    def forget(self, did: str) -> None:
        """Delete the control keys of a DID; nothing happens if there are none."""
        with self._lock:
            self._path(did).unlink(missing_ok=True)
            self._loaded.pop(did, None)
            self._ids.pop(did, None)

    def ids(self, did: str) -> list[str]:
        """The key group ids of a DID that is held here, oldest first; no key is loaded for it.

        Raises:
            LocalProtocolError: the device has no keys of the DID.
            StoreError: the key file is damaged.
        """
        with self._lock:
            if did not in self._ids:
                self._ids[did] = [
                    "".join(f"|{key['family']}:{key['creation_time']}:{key['public_key']}"
                            for key in group)
                    for group in self._stored(did)
                ]  # fmt: skip
            return list(self._ids[did])

    def groups(self, did: str) -> list[Any]:
        """The control keys of a DID that is held here, oldest first; the pairs are checked.

        Raises:
            LocalProtocolError: the device has no keys of the DID.
            StoreError: the key file is damaged.
        """
        with self._lock:
            if did not in self._loaded:
                try:
                    self._loaded[did] = [self._group(item) for item in self._stored(did)]
                except RemoteProtocolError as error:
                    raise StoreError("a key file is damaged") from error
            return self._loaded[did]

    def _stored(self, did: str) -> list[list[dict[str, str]]]:
        path = self._path(did)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise LocalProtocolError("this device has no keys of the DID") from None
        try:
            return _decode(self._sealing.unseal(data, self._place(path)))
        except RemoteProtocolError as error:
            raise StoreError("a key file is damaged") from error

    def serialise(self, groups: list[Any]) -> bytes:
        """Control keys as bytes, secrets included."""
        return pack(
            [[[key[f] for f in _FIELDS] for key in g.serialise_private()] for g in groups]
        )

    def deserialise(self, secrets: bytes) -> list[Any]:
        """The inverse; the pairs are checked. Raises RemoteProtocolError."""
        return [self._group(item) for item in _decode(secrets)]

    def _group(self, item: list[dict[str, str]]) -> Any:
        try:
            return self._keys.KeyGroup([self._keys.Key.deserialise_private(k) for k in item])
        except Exception:
            # Upstream raises many kinds; the cause could carry parts of the secret.
            raise RemoteProtocolError("control key is malformed") from None

    def _path(self, did: str) -> Path:
        return self._folder / chain_of(did)

    @staticmethod
    def _place(path: Path) -> str:
        return f"keys/{path.name}"

    # ------------------------------------------------------------- signatures

    def verify_compact(self, key_group_id: str, signature: bytes, data: bytes) -> bool:
        """Whether all keys of a group signed the data."""
        try:
            parts = unpack(signature, MAX_SIGNATURE)
            if not isinstance(parts, list) or not 0 < len(parts) <= MAX_KEYS:
                return False
            raw = [expect_bytes(part, "signature", limit=MAX_SIGNATURE) for part in parts]
        except RemoteProtocolError:
            return False
        return self.verify(key_group_id, "-".join(part.hex() for part in raw).encode(), data)

    def verify(self, key_group_id: str, signature: bytes, data: bytes) -> bool:
        """The same for a signature as stock code writes it; results are remembered.

        Also of renewal keys, by their name.
        """

        def verify() -> bool:
            return self._verify(key_group_id, signature, data)

        return self.verified.check(key_group_id, signature, data, verify)

    def _verify(self, key_group_id: str, signature: bytes, data: bytes) -> bool:
        if key_group_id.startswith(SCHEME):
            return verify_renewal(key_group_id, signature, data)
        try:
            return self._public(key_group_id).verify_signature(signature, data) is True
        except Exception as error:
            # Upstream raises many kinds on malformed keys and signatures: none of them is
            # a signature that holds.
            _log.debug("signature cannot be verified: %s", type(error).__name__)
            return False

    def _parse_public(self, key_group_id: str) -> Any:
        if len(key_group_id) > MAX_KEY_ID:
            raise ValueError("key group id too large")
        group = self._keys.KeyGroup.from_id(key_group_id)
        # Another spelling of the same keys would be another identity of them.
        if len(group.keys) > MAX_KEYS or group.get_id() != key_group_id:
            raise ValueError("key group id is not canonical")
        return group


def _decode(secrets: bytes) -> list[list[dict[str, str]]]:
    value = unpack(secrets, MAX_SECRETS)
    if not isinstance(value, list) or not 0 < len(value) <= MAX_GROUPS:
        raise RemoteProtocolError("secrets of no control keys")
    return [_decode_group(item) for item in value]


def _decode_group(item: Any) -> list[dict[str, str]]:
    if not isinstance(item, list) or not 0 < len(item) <= MAX_KEYS:
        raise RemoteProtocolError("control keys of no keys")
    group = []
    for raw in item:
        fields = expect_array(raw, len(_FIELDS), "control key")
        texts = [expect_str(f, "control key", limit=MAX_KEY_ID) for f in fields]
        group.append(dict(zip(_FIELDS, texts, strict=True)))
    return group


def compact(signature: bytes) -> bytes:
    """A stock key group signature (hex texts joined by "-") as msgpack of raw signatures."""
    return pack([bytes.fromhex(part) for part in signature.decode().split("-")])
