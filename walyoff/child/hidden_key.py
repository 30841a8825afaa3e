"""The private key of the Kubo node: sealed at rest, in memory while the node runs.

Kubo reads its key from the file `config` of its repository and from nowhere else. So the
repository that it runs on is a folder of links: to the real repository's parts, and to a file
that has no name on any disk (memfd), which holds the real config and the key. What stays on
the disk is the config without the key, and the key in `identity`, sealed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from walyoff.child import repo
from walyoff.errors import StoreError
from walyoff.files import replace_file
from walyoff.sealing import Sealing

#: The sealed key, in the repository.
KEY_NAME = "identity"
#: Parts of the repository that Kubo reads and writes; its lock belongs to the folder of links.
_PARTS = ("blocks", "datastore", "version", "datastore_spec")
_FOLDERS = ("blocks", "datastore")
#: An Ed25519 key of libp2p in base64 has 92 characters.
_MAX_KEY = 4096


def hide_key(path: Path, sealing: Sealing) -> None:
    """Take the key out of the config of a repository, if it stands there in clear.

    A crash at any instant leaves it in at least one of the two files.
    """
    config = repo.read_config(path)
    if not sealing.active or "PrivKey" not in config["Identity"]:
        return
    key = str(config["Identity"].pop("PrivKey"))
    replace_file(path / KEY_NAME, sealing.seal(key.encode(), "ipfs/identity"))
    repo.write_config(path, config)


def runnable(path: Path, links: Path, sealing: Sealing) -> Path:
    """The repository for Kubo to run on: `links`, made anew, or the real one without a key.

    Raises:
        StoreError: the key is missing or damaged, or the folder cannot be made.
    """
    if not sealing.active:
        return path
    config = repo.read_config(path)
    try:
        with (path / KEY_NAME).open("rb") as file:
            sealed = file.read(_MAX_KEY)
        # Of the process before, if anything.
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir(mode=0o700)
        for name in _FOLDERS:
            (path / name).mkdir(mode=0o700, exist_ok=True)
        for name in _PARTS:
            (links / name).symlink_to(path / name)
        key = sealing.unseal(sealed, "ipfs/identity").decode("ascii", "replace")
        config["Identity"]["PrivKey"] = key
        memory = os.memfd_create("config")
        with open(memory, "w", encoding="utf-8", closefd=False) as file:
            json.dump(config, file)
        # The descriptor stays open as long as the process: Kubo may look again.
        (links / "config").symlink_to(f"/proc/self/fd/{memory}")
    except OSError as error:
        raise StoreError(f"the IPFS repository cannot be used: {error.strerror}") from error
    return links
