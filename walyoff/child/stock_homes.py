"""Identities of stock walytis-identities 0.5.3, taken over and handed back.

Decided here: what of a stock home is believed. Its key stores are files that whoever can write
them can put keys into, so only those keys are taken that the DID's own chain names, and of
which the private half is there and fits. Its chains are read by our own rules. What is written
for stock software is a folder of its own, with a key that unlocks its key stores: from there
on the keys are as safe as that folder is.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from walyoff.child.acts import chain_of, pin_of
from walyoff.child.blocks import MAX_FILE
from walyoff.child.chains import Chains
from walyoff.child.governing import Governing
from walyoff.child.keyring import FAMILIES, Keyring
from walyoff.child.packs import NAME as PACK_NAME
from walyoff.child.reader import SECOND_FIRST_KEY, Reading
from walyoff.errors import LocalProtocolError, NotAMemberError, RemoteProtocolError
from walyoff.files import replace_file

#: Where stock code keeps a chain's blocks, below the chain's folder.
_BLOCKS = "ReceivedBlocks"
#: Bytes of a key store: some hundred renewals.
MAX_KEY_STORE = 32 << 20
#: Blocks of a stock identity's chain; one of a large group has thousands.
MAX_BLOCKS = 100_000
_OWNER = "owner_did"


class StockHomes:
    """Reads and writes the homes of stock software."""

    def __init__(
        self,
        chains: Chains,
        keyring: Keyring,
        governing: Governing,
        read: Callable[[str, bytes | None], Reading],
        keys: Any,
    ) -> None:
        self._chains = chains
        self._keyring = keyring
        self._governing = governing
        self._read = read
        self._keys = keys

    def methods(self) -> dict[str, Callable[..., Any]]:
        """The RPC methods, by name."""
        return {"did.read_stock": self.read, "did.write_stock": self.write}

    # ------------------------------------------------------------------- reading

    def read(
        self, chains: str, member: str, group: str, unlock: dict[str, str]
    ) -> dict[str, Any]:
        """Take over a DID and a group that it is a member of; says which they are.

        `chains` is the folder of stock Walytis (WALYTIS_BETA_DATA_DIR), `member` and `group`
        are key stores, and `unlock` is the key that opens them, as stock code serialises it.
        Nothing of them is changed. Can be done again.

        Raises:
            LocalProtocolError: a file is missing, is none of stock software, or is in use.
            RemoteProtocolError: a chain or a key does not hold.
            NotAMemberError: the group's chain does not say that the DID is a member.
        """
        folder = Path(chains)
        key = self._unlocking(unlock)
        with self._key_store(member, key) as store:
            did = self._owner(store)
            own = self._take_chain(folder, did)
            self._take_keys(did, own, store)
        with self._key_store(group, key) as store:
            group_did = self._owner(store)
            reading = self._take_chain(folder, group_did)
            for other in reading.members:
                if not self._chains.has(chain_of(other)) and self._blocks_of(folder, other):
                    self._take_chain(folder, other)
            # Whether a member joined may stand on the member's own chain.
            reading = self._read(group_did, None)
            found = reading.members.get(did)
            if found is None or not found.current:
                raise NotAMemberError(f"{did} is not a member of {group_did}")
            self._take_keys(group_did, reading, store)
        self._chains.open(chain_of(group_did))
        try:
            self._governing.settle(group_did)
        finally:
            # It is opened again with its rules.
            self._chains.close(chain_of(group_did))
        return {
            "did": did,
            "group": group_did,
            "pin": pin_of(reading.keys[0]),
            "members": [m.did for m in reading.members.values() if m.current],
        }

    def _unlocking(self, unlock: dict[str, str]) -> Any:
        try:
            return self._keys.Key.deserialise_private(unlock)
        except Exception:
            # Upstream raises many kinds, and the cause could carry parts of the secret.
            raise LocalProtocolError("the unlocking key is no stock key") from None

    @contextmanager
    def _key_store(self, path: str, key: Any) -> Iterator[Any]:
        """A stock key store, opened. Stock code locks it by a file beside it."""
        try:
            if os.stat(path).st_size > MAX_KEY_STORE:
                raise LocalProtocolError(f"{path} is too large to be a key store")
        except OSError as error:
            raise LocalProtocolError(f"{path}: {error.strerror}") from None
        module = importlib.import_module("walytis_identities.key_store")
        try:
            store = module.KeyStore(path, key)
        except Exception as error:
            kind = type(error).__name__
            raise LocalProtocolError(
                f"{path} cannot be opened by this key, or is in use ({kind})"
            ) from None
        try:
            yield store
        finally:
            store.terminate()

    def _owner(self, store: Any) -> str:
        did = store.get_custom_metadata().get(_OWNER)
        if not isinstance(did, str):
            raise LocalProtocolError("the key store belongs to no DID")
        chain_of(did)
        return did

    def _blocks_of(self, folder: Path, did: str) -> list[Path]:
        blocks = folder / chain_of(did) / _BLOCKS
        return [path for path in blocks.rglob("*") if path.is_file()][: MAX_BLOCKS + 1]

    def _take_chain(self, folder: Path, did: str) -> Reading:
        paths = self._blocks_of(folder, did)
        if not paths or len(paths) > MAX_BLOCKS:
            raise LocalProtocolError(f"there is no chain of {did} in {folder}")
        files = []
        for path in paths:
            with path.open("rb") as file:
                files.append(file.read(MAX_FILE + 1))
        self._chains.import_files(chain_of(did), files)
        reading = self._read(did, None)
        if not reading.keys or reading.refused[SECOND_FIRST_KEY]:
            raise RemoteProtocolError(f"the first keys of {did} are in doubt", reason="keys")
        return reading

    def _take_keys(self, did: str, reading: Reading, store: Any) -> None:
        groups = []
        for name in reading.keys:
            try:
                group = store.get_keygroup(name)
                # Through our own form, which checks that the halves fit.
                if group.is_unlocked():
                    groups += self._keyring.deserialise(self._keyring.serialise([group]))
            except RemoteProtocolError:
                raise
            except Exception as error:
                # An old one that is not there any more, perhaps.
                if name == reading.keys[-1]:
                    text = f"the key store has not the newest keys of {did}"
                    raise RemoteProtocolError(text, reason="keys") from error
        if not groups or groups[-1].get_id() != reading.keys[-1]:
            raise RemoteProtocolError(
                f"the newest keys of {did} are not unlocked", reason="keys"
            )
        self._keyring.save(did, groups)

    # ------------------------------------------------------------------- writing

    def write(self, folder: str, did: str, group: str) -> None:
        """Write what stock software needs of a DID of this device and a group.

        Into a folder that is there, private and empty: `keys/member.json`, `keys/group.json`,
        `keys/unlock.json` (the key that opens them) and `walytis/`.

        Raises:
            LocalProtocolError: the keys are not here, or the folder is not empty.
        """
        target = Path(folder)
        if any(target.iterdir()):
            raise LocalProtocolError(f"{folder} is not empty")
        for part in ("keys", "walytis"):
            (target / part).mkdir(mode=0o700)
        key = self._keys.Key.create(FAMILIES[0])
        unlock = json.dumps(key.serialise_private()).encode()
        replace_file(target / "keys" / "unlock.json", unlock)
        module = importlib.import_module("walytis_identities.key_store")
        for name, owner in (("member", did), ("group", group)):
            # The child's umask makes the file private, which stock code would not.
            store = module.KeyStore(str(target / "keys" / f"{name}.json"), key)
            try:
                for keys in self._keyring.groups(owner):
                    store.add_keygroup(keys)
                store.set_custom_metadata({_OWNER: owner})
            finally:
                store.terminate()
        members = self._read(group, pin_of(self._keyring.groups(group)[0].get_id())).members
        for one in {did, group, *members}:
            chain = chain_of(one)
            if self._chains.has(chain):
                # Stock code knows blocks in files of their own, and nothing else.
                files = self._chains.files(chain)
                files.spread(files.packed())
                shutil.copytree(
                    self._chains.folder(chain),
                    target / "walytis" / chain,
                    ignore=shutil.ignore_patterns(PACK_NAME),
                )


__all__ = ["StockHomes"]
