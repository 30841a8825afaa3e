"""A stock Walytis node that is asked over stdin: `stock_walytis.py`, environment prepared.

It uses `walytis_beta_embedded` as it is installed and nothing of walyoff. Answers begin with
`@`: everything else on stdout is the library's own.
"""

import json
import os
import sys
import threading
import time

import walytis_beta_embedded as waly

arrived = {}
news = threading.Condition()
listeners = []


def received(block):
    """A block of anybody; own ones come too."""
    with news:
        arrived.setdefault(bytes(block.content), time.monotonic())
        news.notify_all()


def addresses():
    """Where the node listens."""
    own = [str(a) for a in waly.ipfs.get_addrs()]
    return [a if "/p2p/" in a else f"{a}/p2p/{waly.ipfs.peer_id}" for a in own]


def connect(address):
    """Connect the swarm."""
    return bool(waly.ipfs.peers.connect(address))


def create():
    """Make a chain."""
    return waly.create_blockchain("attacked")


def join(chain, archive):
    """Join a chain by its data."""
    waly.join_blockchain_from_zip(chain, archive, "attacked")


def run():
    """Start the chains that are held, as after a restart."""
    waly.run_blockchains()
    return list(waly.list_blockchain_ids())


def listen(chain):
    """Be told of new blocks."""
    listeners.append(waly.BlocksListener(chain, received))


def append(chain, text):
    """Write a block; when it was asked for."""
    began = time.monotonic()
    waly.create_block(chain, text.encode(), ["walyoff"])
    return began


def expect(text, wait):
    """When a block came here; null if it did not."""
    deadline = time.monotonic() + wait
    with news:
        while text.encode() not in arrived and time.monotonic() < deadline:
            news.wait(0.5)
        return arrived.get(text.encode())


def blocks(chain):
    """How many blocks it has."""
    return len(list(waly.get_latest_blocks(chain, amount=0, long_ids=True)))


def peer():
    """The node's id."""
    return waly.ipfs.peer_id


print("@ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    try:
        answer = {"value": globals()[request.pop("do")](**request)}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    print("@" + json.dumps(answer), flush=True)
# Stock threads would keep the process for ever.
os._exit(0)
