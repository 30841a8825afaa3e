"""A stock Walytis node: `stock_node.py CHAIN ZIP ADDRESS COUNT`, with a prepared environment.

It uses `walytis_beta_embedded` as it is installed and nothing of walyoff. It joins a chain by
its data, and says what blocks it has as soon as there are so many; then it adds one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import walytis_beta_embedded as waly


def described(block: Any) -> list[Any]:
    """The name, creator, topics, content and parents of a block, as stock code reads them."""
    return [
        block.ipfs_cid,
        bytes(block.creator_id).decode(),
        list(block.topics),
        bytes(block.content).hex(),
        sorted(waly.decode_short_id(parent)["ipfs_cid"] for parent in block.parents),
    ]


def main(chain: str, archive: str, address: str, count: int) -> None:
    """Join, follow, report, add."""
    assert waly.ipfs.peers.connect(address)
    waly.join_blockchain_from_zip(chain, archive, "joined")
    print("JOINED", flush=True)
    ids: list[Any] = []
    while len(ids) < count:
        ids = list(waly.get_latest_blocks(chain, amount=0, long_ids=True))
        time.sleep(0.1)
    blocks = [described(waly.get_block(chain, block_id)) for block_id in ids]
    ours = sorted(name for name in sys.modules if name.partition(".")[0].startswith("walyoff"))
    print("RESULT" + json.dumps({"blocks": blocks, "walyoff": ours}), flush=True)
    sys.stdin.readline()
    added = waly.create_block(chain, b"by a stranger", ["walyoff"])
    named = {"creator": described(added)[1], "peer_id": waly.ipfs.peer_id}
    print("RESULT" + json.dumps(named), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    finally:
        # Stock threads would keep the process for ever.
        os._exit(0)
