"""One node of walytis-offchain 0.5.4, as a process, in the virtual environment of its own.

Requests are JSON lines on stdin, answers on stdout begin with `@`: everything else there is
the library's own. Of walyoff only two helpers are used, by their files: a Kubo repository that
listens on 127.0.0.1 alone, and the stand-in for liboqs, which the library cannot do without.
"""

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path

home, source = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, source)
for name in ("walytis", "offchain", "keys"):
    (home / name).mkdir(parents=True, exist_ok=True)

from walyoff.child.oqs_adapter import import_multi_crypt  # noqa: E402
from walyoff.child.repo import ensure_repo  # noqa: E402

ensure_repo(home / "ipfs")
os.environ.update(
    IPFS_TK_MODE="EMBEDDED",
    IPFS_REPO_DIR=str(home / "ipfs"),
    WALYTIS_BETA_DATA_DIR=str(home / "walytis"),
    WALYTIS_BETA_API_TYPE="WALYTIS_BETA_DIRECT_API",
    PRIVATE_BLOCKS_DATA_DIR=str(home / "offchain"),
    WALY_LOG_DIR="DISABLED",
    AUTO_LOAD_BAP_MODULES="false",
    LIBP2P_TCP_REUSEPORT="false",
)
import_multi_crypt()

embedded = importlib.import_module("walytis_beta_embedded")
identities = importlib.import_module("walytis_identities")
offchain = importlib.import_module("walytis_offchain")
keys = importlib.import_module("walytis_identities.key_objects")
key_store = importlib.import_module("walytis_identities.key_store")

arrived = {}
news = threading.Condition()
group = private = None


def received(block):
    """A block came, or one of our own was handed back."""
    now = time.monotonic_ns()
    with news:
        arrived.setdefault(bytes(block.content), now)
        news.notify_all()


def start_private():
    """Open the off-chain part of the group."""
    global private  # noqa: PLW0603
    private = offchain.PrivateBlockchain(group, block_received_handler=received)


def store(name):
    """A key store of its own."""
    return key_store.KeyStore(
        str(home / "keys" / f"{name}.json"), keys.Key.create("EC-secp256k1")
    )


def addresses(_):
    """Where this node listens."""
    own = [str(a) for a in embedded.ipfs.get_addrs()]
    peer = embedded.ipfs.peer_id
    return [a if "/p2p/" in a else f"{a}/p2p/{peer}" for a in own]


def connect(request):
    """Connect the swarm: invitations leave 127.0.0.1 out."""
    return [embedded.ipfs.peers.connect(a) for a in request["addresses"]]


def create(_):
    """Make a group with this node as its member."""
    global group  # noqa: PLW0603
    member = identities.DidManager.create(store("member"))
    group = identities.GroupDidManager.create(store("group"), member)
    start_private()
    return group.did


def invite(_):
    """An invitation; it leaves out 127.0.0.1, which is all that there is here."""
    invitation = group.invite_member()
    invitation["ipfs_addresses"] = [a.partition("/p2p/")[0] for a in addresses(None)]
    return invitation


def join(request):
    """Join a group."""
    global group  # noqa: PLW0603
    began = time.monotonic_ns()
    member = identities.DidManager.create(store("member"))
    group = identities.GroupDidManager.join(request["invitation"], store("group"), member)
    start_private()
    return (time.monotonic_ns() - began) / 1e9


def send(request):
    """Add blocks one after another; when each was asked for."""
    times = []
    for text in request["texts"]:
        times.append(time.monotonic_ns())
        private.add_block(text.encode())
    return times


def expect(request):
    """When each message came."""
    wanted = [text.encode() for text in request["texts"]]
    deadline = time.monotonic() + request["limit"]
    with news:
        while not all(w in arrived for w in wanted) and time.monotonic() < deadline:
            news.wait(deadline - time.monotonic())
        return [arrived.get(w) for w in wanted]


DO = {f.__name__: f for f in (addresses, connect, create, invite, join, send, expect)}
embedded.run_blockchains()
print("@" + json.dumps({"ready": time.monotonic_ns()}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    try:
        answer = {"value": DO[request["do"]](request)}
    except BaseException as error:
        answer = {"error": repr(error)}
    print("@" + json.dumps(answer), flush=True)
os._exit(0)
