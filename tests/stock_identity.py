"""Stock walytis-identities 0.5.3 in a process of its own: `stock_identity.py make|load HOME`.

`make` makes a DID and a group that it is a member of, as an application of that library does.
`load` opens what is in HOME and says what stock code sees. Of walyoff only two helpers are
used: a Kubo repository that listens on 127.0.0.1 alone, and the stand-in for liboqs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from walyoff.child.oqs_adapter import import_multi_crypt
from walyoff.child.repo import ensure_repo


def load_stock(home: Path) -> tuple[Any, Any, Any]:
    """The stock packages, on a node of their own."""
    for name in ("walytis", "keys"):
        (home / name).mkdir(parents=True, exist_ok=True)
    ensure_repo(home / "ipfs")
    os.chdir(home)
    os.environ.update(
        IPFS_TK_MODE="EMBEDDED",
        IPFS_REPO_DIR=str(home / "ipfs"),
        WALYTIS_BETA_DATA_DIR=str(home / "walytis"),
        WALYTIS_BETA_API_TYPE="WALYTIS_BETA_DIRECT_API",
        WALY_LOG_DIR="DISABLED",
        AUTO_LOAD_BAP_MODULES="false",
        LIBP2P_TCP_REUSEPORT="false",
    )
    import_multi_crypt()
    importlib.import_module("walytis_beta_embedded").run_blockchains()
    return tuple(
        importlib.import_module(name)
        for name in (
            "walytis_identities",
            "walytis_identities.key_objects",
            "walytis_identities.key_store",
        )
    )  # type: ignore[return-value]


def main() -> None:
    """Do one thing, say what came of it, and end at once: stock threads would go on."""
    what, home = sys.argv[1], Path(sys.argv[2])
    identities, keys, key_store = load_stock(home)
    files = {name: str(home / "keys" / f"{name}.json") for name in ("member", "group")}
    unlock = home / "keys" / "unlock.json"
    if what == "make":
        key = keys.Key.create("EC-secp256k1")
        unlock.write_text(json.dumps(key.serialise_private()))
        member = identities.DidManager.create(key_store.KeyStore(files["member"], key))
        group = identities.GroupDidManager.create(
            key_store.KeyStore(files["group"], key), member
        )
        group.renew_control_key()
    else:
        key = keys.Key.deserialise_private(json.loads(unlock.read_text()))
        member = key_store.KeyStore(files["member"], key)
        group = identities.GroupDidManager(key_store.KeyStore(files["group"], key), member)
        member = group.member_did_manager
    signed = group.get_control_keys().sign(b"by the group")
    result = {
        "member": member.did,
        "group": group.did,
        "members": sorted(group.get_members_dids()),
        "group_keys": [k.get_id() for k in group.get_control_keys_history()],
        "member_keys": [k.get_id() for k in member.get_control_keys_history()],
        "unlocked": [
            group.get_control_keys().is_unlocked(),
            member.get_control_keys().is_unlocked(),
        ],
        "verified": group.get_control_keys().verify_signature(signed, b"by the group"),
    }
    print("\n@" + json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
