"""A chain that is open in Walytis: the stock core class with a guard in front.

The stock class makes blocks, announces them and broadcasts its leaves. What it would do in
O(chain) or by recursion is answered from `chainfiles`, and nothing from outside reaches it
but blocks that were fetched, decoded and checked here, in causal order.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from walyoff.child import guard, patches
from walyoff.child.births import Birth, put_birth
from walyoff.child.blocks import BlockFile, decode_block, decode_id
from walyoff.child.chainfiles import ChainFiles
from walyoff.child.dag import causal_order
from walyoff.child.inbox import Inbox
from walyoff.child.proofs import UnknownEpochError
from walyoff.child.upstream import Stock
from walyoff.errors import LocalProtocolError, RemoteProtocolError, WalyoffError

if TYPE_CHECKING:
    from walyoff.child.chains import Chains

#: Parents of a new block: outsiders can make leaves at will, and each parent costs 300 bytes.
MAX_OWN_PARENTS = 16
#: So many blocks go to Kubo at once; of more, one after each pause, in seconds: each takes
#: some milliseconds of a core.
MAX_SPREAD_AT_ONCE = 32
SPREAD_PAUSE_S = 0.05
#: The exit status of a child whose stock code is in an unknown state.
EXIT_STOCK_FAILED = 70

_log = logging.getLogger(__name__)

OpenChain = Any


def open_chain_class(stock: Stock, hub: Any, chains: Chains) -> Any:
    """The class of open chains; made here because its base exists only after the import."""
    client = stock.client

    class GuardedBlockchain(patches.answers_from_files(stock.blockchain)):  # type: ignore[misc]
        """The stock core class behind the guard."""

        def __init__(
            self, chain: str | None, *, listen: bool = True, birth: Birth | None = None
        ) -> None:
            #: What the first block is to say, until it is made.
            self._birth = birth
            self._listens = listen
            self._mutate = threading.RLock()
            self._own: ChainFiles | None = chains.files(chain) if chain else None
            self._inbox = Inbox("guard", self._announcement)
            self._handle: Any = None
            self._spreading = threading.Lock()
            self._spread_again = False
            self.refused = chains.refusals(chain or "")
            self.aside = guard.Aside()
            self.current_endblocks: list[bytearray] = []
            super().__init__(chain)
            threading.Thread(target=self._spread, daemon=True, name="spread").start()

        def __repr__(self) -> str:
            return f"<OpenChain {self.blockchain_id} [{len(self._own or ())} blocks]>"

        @property
        def files(self) -> ChainFiles:
            """What is on disk of this chain."""
            if self._own is None:
                self._own = chains.new_files(self.blockchain_id)
                self.refused = chains.refusals(self.blockchain_id)
                chains.adopt_files(self._own)
            return self._own

        # ------------------------------------------------------------- own calls

        def append(
            self, content: bytes | Callable[[list[str]], bytes], topics: list[str]
        ) -> tuple[str, int]:
            """Make a block; returns its CID and position."""
            with self._mutate:
                if self._terminate:
                    raise LocalProtocolError("the chain was closed")
                with self.endblocks_lock:
                    self.current_endblocks = self.current_endblocks[-MAX_OWN_PARENTS:]
                parents = self._parents()
                if callable(content):
                    content = content([decode_id(parent).cid for parent in parents])
                else:
                    content = chains.prepare(self.blockchain_id, content, topics, parents)
                try:
                    block = self.create_block(content, topics)
                    cid = str(block.ipfs_cid)
                    position = self.files.position(cid)
                except BaseException:
                    # Stock code left its lock held: every later block would hang.
                    _log.critical("making a block failed; the child ends", exc_info=True)
                    logging.shutdown()
                    os._exit(EXIT_STOCK_FAILED)
                top = self.files.top
            chains.admitted(self.blockchain_id, top)
            return cid, position

        def create_block(self, content: bytes, topics: Any = ()) -> Any:
            """Make a block, as stock code does. Of a new chain the first is the birth."""
            birth, self._birth = self._birth, None
            if birth is not None:
                content = put_birth(bytes(content), birth)
            return super().create_block(content, list(topics))

        def _parents(self) -> list[bytes]:
            """The short ids of the parents that stock code gives the next block."""
            ids = [decode_id(bytes(block)).short for block in self.current_endblocks]
            parents = list(dict.fromkeys(ids))
            if len(parents) == 1:
                parents.append(decode_id(bytes(self.get_genesis_block())).short)
            return sorted(parents)

        def feed(self, block: BlockFile, data: bytes) -> bool:
            """Admit a block from outside by the stock path; True if it was new.

            Raises RemoteProtocolError when it may not follow what is known, or its content
            does not authenticate.
            """
            with self._mutate:
                if self._terminate:
                    raise LocalProtocolError("the chain was closed")
                if block.cid in self.files:
                    return False
                self.files.check(block)
                chains.judge(self.blockchain_id, block)
                client.files.publish_bytes(block.cid, data)
                super().download_and_process_block(bytearray(block.long_id))
                if block.cid not in self.files:
                    raise RemoteProtocolError("stock code refused a block", reason="stock")
            return True

        def feed_many(
            self,
            blocks: Sequence[tuple[BlockFile, bytes]],
            refuse: Callable[[str], None],
            judge: Callable[[BlockFile], None] | None,
        ) -> int:
            """Admit blocks that somebody handed over, in causal order, all at once.

            What stock code holds in memory of them is its leaves; Kubo gets them later.
            """
            with self._mutate:
                if self._terminate:
                    raise LocalProtocolError("the chain was closed")
                added = self.files.add_closed(blocks, refuse, judge=judge)
                if added:
                    with self.endblocks_lock:
                        self.current_endblocks = self.load_latest_block_ids()
            if added:
                threading.Thread(target=self._spread, daemon=True, name="spread").start()
            return added

        def admit_aside(self) -> int:
            """Feed what was kept until keys came; what still lacks one is kept again."""
            kept = self.aside.take()
            admitted = 0
            for block in causal_order({cid: pair[0] for cid, pair in kept.items()}):
                data = kept[block.cid][1]
                try:
                    admitted += self.feed(block, data)
                except UnknownEpochError:
                    self.aside.put(block, data)
                except RemoteProtocolError as error:
                    if error.reason == "unknown-parents":
                        self.aside.put(block, data)
                    else:
                        self.refused.remember(block.cid, error.reason)
            return admitted

        def announce(self) -> None:
            """Publish the leaves in the form of stock code's own broadcast."""
            entries = [self.files.entry(cid) for cid in self.files.leaves()]
            leaves = [guard.to_text(entry.long_id) for entry in entries if entry]
            message = {"message": "Leaf blocks:", "leaf_blocks": leaves[: guard.MAX_ANNOUNCED]}
            client.pubsub.publish(self.blockchain_id, json.dumps(message).encode())

        def close(self) -> None:
            """Stop following the chain."""
            with self._mutate:
                self.terminate()

        # ------------------------------------------------- what stock code asks for

        def save_block(self, block: Any) -> None:
            data = bytes(block.file_data)
            decoded = decode_block(data, str(block.ipfs_cid))
            self.files.write_block(decoded, data)
            self.files.admit(decoded)

        def publish_new_block(self, _block: Any) -> None:
            """Applications are told by `Chains.admitted`."""

        def _spread(self) -> None:
            """Give Kubo, and stock files, what was handed over, in nobody's way."""
            if not self._spreading.acquire(blocking=False):
                # Who is at it finds what came meanwhile.
                self._spread_again = True
                return
            try:
                self._spread_again = True
                while self._spread_again and not self._terminate:
                    self._spread_again = False
                    self._spread_packed()
            except (WalyoffError, OSError) as error:
                # It stays in the pack until the next start.
                _log.warning("chain %s: spreading failed: %s", self.blockchain_id, error)
            finally:
                self._spreading.release()

        def _spread_packed(self) -> None:
            packed = self.files.packed()
            for cid in packed:
                if self._terminate:
                    return
                client.files.publish_bytes(cid, self.files.read(cid))
                if len(packed) > MAX_SPREAD_AT_ONCE:
                    time.sleep(SPREAD_PAUSE_S)
            self.files.spread(packed)

        # ------------------------------------------------------------- from outside

        def listen_for_blocks(self) -> None:
            if self._listens:
                self._handle = hub.subscribe(self.blockchain_id, self._announced)

        def _announced(self, sender: str, data: bytes) -> None:
            # On the hub's thread: nothing but a queue.
            if sender != client.peer_id and len(data) <= guard.MAX_ANNOUNCEMENT:
                self._inbox.put(sender, data)

        def _announcement(self, sender: str, data: bytes) -> None:
            if self._terminate:
                return
            admitted = 0
            try:
                announced = guard.decode_announcement(data)
                # Stock code keeps quiet about its leaves when others have named them.
                self.update_shared_leaf_blocks([text for text, _ in announced])
            except WalyoffError as error:
                self._refuse(error)
                return
            judge = chains.judge_of(self.blockchain_id)
            for _, wanted in announced:
                # One that cannot be had must not hide the others.
                try:
                    branch = guard.Branch(self, client.files, judge, sender)
                    admitted += branch.fetch(wanted)
                except WalyoffError as error:
                    self._refuse(error)
                except Exception:
                    self.refused.count("error")
                    _log.exception("chain %s: announcement failed", self.blockchain_id)
            if admitted:
                client.files.prove(sender)
                self._inbox.prefer(sender)
                chains.admitted(self.blockchain_id, self.files.top)

        def _refuse(self, error: WalyoffError) -> None:
            if not guard.counted(error):
                self.refused.count(getattr(error, "reason", "unavailable"))
            chains.has_refused(self.blockchain_id)
            _log.debug("chain %s: %s", self.blockchain_id, error)

        def terminate_networking(self) -> None:
            if self._handle is not None:
                self._handle.close()
            self._inbox.close()

    return GuardedBlockchain
