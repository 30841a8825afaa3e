"""The five protocols that walyoff is made of, and the values that cross them.

Nothing here does anything. Each protocol states order, loss, duplication, size limits,
what cancellation does, and every error. Implementations are checked by the suites in
`walyoff.testing`. Streams are anyio's: `anyio.abc.ByteStream`, with
`anyio.EndOfStream` (the other side is done), `anyio.ClosedResourceError` (closed here) and
`anyio.BrokenResourceError` (the connection is gone).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

from anyio import TypedAttributeSet, typed_attribute
from anyio.abc import ByteStream, ObjectReceiveStream

from walyoff.chunkstore import ChunkStore, NewAttachment

# --------------------------------------------------------------------------- transport


class StreamAttribute(TypedAttributeSet):
    """What a stream that was accepted may say, as anyio's typed attributes do."""

    #: What the transport takes the far end for (an address, a peer id): a hint, never
    #: authenticated, by which one source of many streams is told from many sources.
    source: str = typed_attribute()


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """One broadcast as it was received."""

    #: The transport's own name for the sender: a hint, never authenticated.
    sender: str
    payload: bytes


@runtime_checkable
class Transport(Protocol):
    """Untrusted pipes between devices.

    Confidentiality, authenticity and membership come from the layers above, so an
    implementation may be wrong about who is at the other end without harm.
    """

    @property
    def name(self) -> str:
        """The entry-point name, which is also the scheme of this transport's addresses."""

    @property
    def max_broadcast(self) -> int:
        """The largest broadcast payload, in bytes."""

    @property
    def addresses(self) -> Sequence[str]:
        """What another device needs to reach this one, now: `NAME:REST`, best first.

        At most 16 addresses of at most 256 ASCII characters each.
        """

    async def broadcast(self, topic: str, payload: bytes) -> None:
        """Offer a payload to everybody who is subscribed to the topic, without promise.

        It may be lost, repeated or reordered, and returns when it was handed on, not when
        it arrived. Cancelling leaves it sent or not sent.

        Raises:
            PayloadTooLargeError: it is larger than `max_broadcast`.
            TransportError: it could not be handed on.
        """

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        """Receive other devices' broadcasts on the topic while the context is open.

        Own broadcasts are filtered out. A consumer that does not keep up loses the oldest.

        Raises:
            TransportError: the subscription could not be made.
        """

    async def connect(self, address: str) -> ByteStream:
        """Open a reliable, ordered byte stream to the device at an address.

        The stream has no half-close: `aclose()` ends both directions. A failure of the far
        side may show only at the first `receive`.

        Raises:
            LocalProtocolError: the address is not one of this transport's.
            TransportError: nobody could be reached there within the transport's deadline.
        """

    def listen(self) -> AbstractAsyncContextManager[ObjectReceiveStream[ByteStream]]:
        """Accept streams that others open to this device, while the context is open.

        Streams that wait unaccepted are bounded in number; more are refused. A stream says
        where it is from (`StreamAttribute.source`) if the transport knows.

        Raises:
            TransportError: listening is impossible now.
        """


class IpfsNode(Protocol):
    """The embedded Kubo node, as transports may use it. Calls have deadlines of their own.

    What was set up (listeners, forwards, subscriptions) is set up again by itself when the
    child process was replaced; `generation` grows by one each time that happens.
    """

    @property
    def peer_id(self) -> str:
        """The node's libp2p peer id, in base58."""

    @property
    def generation(self) -> int:
        """How many times the node was started."""

    @property
    def addresses(self) -> Sequence[str]:
        """The node's multiaddrs, each ending in `/p2p/PEER_ID`."""

    async def connect(self, multiaddr: str) -> None:
        """Connect the swarm to a peer. Raises TransportError."""

    async def listen_streams(self, protocol: str, socket_path: str) -> None:
        """Hand incoming streams of a protocol to the listening Unix socket at a path."""

    async def forward_streams(self, protocol: str, peer_id: str, socket_path: str) -> None:
        """Make connections to a Unix socket at a path streams of a protocol to a peer."""

    async def close_streams(
        self, protocol: str, *, peer_id: str | None = None, socket_path: str | None = None
    ) -> None:
        """End the listener (no peer id) or the forward to a peer."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish once on pubsub, without any promise; at most 1,000,000 bytes."""

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        """Receive pubsub messages, own ones included, oldest dropped when slow."""

    async def topic_peers(self, topic: str) -> list[str]:
        """The peer ids that the node sees on a topic."""


class Sealer(Protocol):
    """Makes secrets fit to lie in files: nobody reads them without the home's key."""

    def seal(self, value: bytes, place: str) -> bytes:
        """A value as it goes into a file; the place is a name that stays."""

    def unseal(self, data: bytes, place: str) -> bytes:
        """The inverse. Raises StoreError if it was altered, moved, or put there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportHost:
    """What a device gives a transport to work with."""

    #: A private folder of this transport, mode 0700, kept between starts.
    state_dir: Path
    #: A private folder with a short path, for sockets; emptied at each start.
    run_dir: Path
    #: None on a platform without an IPFS node, as in simulations.
    ipfs: IpfsNode | None
    #: The IP addresses of this machine at which others shall reach the device; None for those
    #: of the last start.
    listen: tuple[str, ...] | None = None
    #: For what is secret in `state_dir`; None where nothing is sealed, as in tests.
    sealer: Sealer | None = None


class TransportFactory(Protocol):
    """The object that a `walyoff.transports` entry point names."""

    def __call__(self, host: TransportHost) -> AbstractAsyncContextManager[Transport]:
        """Open the transport; leaving the context releases everything it holds."""


# ----------------------------------------------------------------------------- ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One admitted block of a ledger."""

    #: The ledger's own permanent name for the block (a CID for Walytis).
    ref: str
    #: Grows in the order in which this device admitted blocks; parents before children.
    position: int
    payload: bytes


class Ledger(Protocol):
    """A permanent register to which anyone may write: a block is a claim."""

    @property
    def max_payload(self) -> int:
        """The largest payload of one block, in bytes."""

    async def append(self, payload: bytes) -> Block:
        """Write a block; when this returns it survives a crash of this device.

        Cancelling leaves it written or not written. Appending the same payload twice makes
        two blocks.

        Raises:
            PayloadTooLargeError: larger than `max_payload`.
            LocalProtocolError: the payload is empty.
            ChildError: the ledger is not available now; the block may have been written.
        """

    def blocks(self, after: int = 0) -> AbstractAsyncContextManager[ObjectReceiveStream[Block]]:
        """All blocks after a position, then new ones as they are admitted, without a gap.

        Each block comes at least once, parents before children.
        """


@runtime_checkable
class GuardedLedger(Ledger, Protocol):
    """A ledger that admits only what opens under keys that its members share."""

    async def learn_keys(self, keys: Mapping[bytes, bytes]) -> None:
        """The anchor key (`walyoff.epochs.anchor_key`) of each epoch id, newest last.

        All that are known, each time; blocks that waited for a key are admitted. Until it is
        called first, nothing can be appended. Raises ChildError: tell them again.
        """

    async def is_complete(self) -> bool:
        """Whether all that is known to come before the newest blocks is here.

        It is not while a device that has joined still gets the history. Raises ChildError.
        """


# --------------------------------------------------------------------------- identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device that is a member of an identity, or stands under one, as the chains say."""

    did: str
    #: The fingerprint (32 bytes) of the member's first control keys, fixed when it joined.
    pin: bytes
    #: True from its joining block to its leaving block.
    current: bool
    #: Which membership it is: a later one of the same device has a larger number. Of a direct
    #: member: how many membership blocks came before its joining block.
    joined_at: int
    #: From the device to the direct member of the identity that it belongs to; a device that is
    #: a member itself is alone in it.
    path: tuple[str, ...] = ()
    #: The memberships along the path, in its order: (name of the link, `joined_at` of it). The
    #: link of a direct member is named by `walyoff.records.device_id`.
    links: tuple[tuple[bytes, int], ...] = ()
    #: "admin" if it may invite and remove where only admins may, else "member".
    role: str = "member"

    @property
    def voice(self) -> str:
        """The direct member of the identity that this device speaks for."""
        return self.path[-1] if self.path else self.did


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedLink:
    """A membership that is over, of one whose identity is the channel's or still under it."""

    #: The name of the link (`Member.links`).
    link: bytes
    joined_at: int
    #: False if it was a device's.
    identity: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Governance:
    """Who may change an identity, and how this device stands in it."""

    #: "any" if every member may invite and remove, or "admins".
    rule: str = "any"
    #: The direct members who are admins.
    admins: tuple[str, ...] = ()
    #: The direct member for which this device acts; None if it is none.
    actor: str | None = None
    #: The fingerprint of the newest control keys, and of those that are lacking here.
    newest_key: bytes = b""
    lacking: tuple[bytes, ...] = ()
    #: True if a member has left since the newest control keys were made.
    renewal_due: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A verified snapshot of an identity's members: all devices under it."""

    did: str
    members: tuple[Member, ...]
    #: The memberships that are over, the topmost of each path.
    ended: tuple[EndedLink, ...] = ()
    #: The direct members of now: devices, people, other groups.
    direct: tuple[str, ...] = ()
    #: All DIDs whose chains this identity stands on, besides its own.
    kin: tuple[str, ...] = ()
    #: Blocks on the chain that claimed to change the identity and were refused, by reason.
    refused: dict[str, int] = field(default_factory=dict)
    governance: Governance = field(default_factory=Governance)

    def current(self) -> list[Member]:
        """The members of now, in order of joining."""
        return [member for member in self.members if member.current]


class Identity(Protocol):
    """A DID with members, seen by one member device."""

    @property
    def did(self) -> str:
        """The identity's DID; also the channel's id."""

    @property
    def member_did(self) -> str:
        """The DID of this device."""

    @property
    def membership(self) -> Membership:
        """The newest verified snapshot."""

    def changes(self) -> AbstractAsyncContextManager[ObjectReceiveStream[Membership]]:
        """New snapshots, newest last, as the chain changes. Slow consumers get the newest."""

    async def certify(self, body: bytes) -> bytes:
        """Sign a certificate body with this device's control keys (slow: milliseconds)."""

    async def verify(self, did: str, body: bytes, signature: bytes) -> int:
        """Check that control keys of a member, past or present, signed a certificate body.

        That is of a device under the identity, or of an identity between the two. Returns
        which of the DID's keys it were: 1 for the first, and more for each renewal.

        Raises:
            NotAMemberError: the DID was never a member.
            RemoteProtocolError: the signature does not hold, or the keys are not pinned.
        """

    async def control_keys(self) -> str:
        """The current control keys: `|family:time:hex of the public key|...|`, or nothing."""

    async def refresh(self) -> Membership:
        """Read the chains now; `membership` is that snapshot from here on."""

    async def add_member(
        self,
        did: str,
        chain: Sequence[bytes],
        *,
        family: Mapping[str, Sequence[bytes]] | None = None,
        purpose: str = "any",
        proof: tuple[bytes, bytes] | None = None,
    ) -> None:
        """Make a DID a member, given the block files of its own chain. Idempotent.

        An identity becomes one with the chains of those below it, by DID. With a purpose only
        a "device" or only an "identity" does. A proof is a text and the signature of the DID's
        control keys over it, which is checked before anything is written.

        Raises:
            RemoteProtocolError: the chain is another's, its keys are in doubt, or the proof
                does not hold.
            LocalProtocolError: it would stand under itself, or too deep, or is of the other
                kind.
        """

    async def remove_member(self, did: str) -> None:
        """End a membership, or this device's own; control keys follow. Idempotent.

        Raises:
            LocalProtocolError: only admins may remove others, or the only admin would leave.
            NotAMemberError: this device is no member.
        """

    async def make_admin(self, did: str) -> None:
        """Let a direct member invite and remove. Raises as `remove_member`."""

    async def renew_keys(self) -> None:
        """Replace the control keys; others get them by `give_keys` and `take_keys`.

        Raises NotAMemberError if this device is no member.
        """

    async def give_keys(self, wanted: Sequence[bytes]) -> bytes:
        """The control keys of these fingerprints, secrets included; empty if none is here.

        For members alone, inside a session.
        """

    async def take_keys(self, secrets: bytes) -> int:
        """Keep control keys that the chain names; returns how many were new.

        Raises RemoteProtocolError when they are malformed.
        """


# ----------------------------------------------------------------------------- cipher


class Aead(Protocol):
    """An AEAD under one key. Nonces are the caller's duty."""

    def encrypt(
        self,
        nonce: bytes,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | None,
    ) -> bytes:
        """Encrypt and authenticate."""

    def decrypt(
        self,
        nonce: bytes,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | None,
    ) -> bytes:
        """Decrypt. Raises CipherError."""


class SignKey(Protocol):
    """A private signing key. Never prints its secret."""

    @property
    def public(self) -> bytes:
        """The public key, in the suite's fixed encoding."""

    def sign(self, message: bytes) -> bytes:
        """Sign; may take milliseconds."""

    def secret(self) -> bytes:
        """The private key, serialised for `Cipher.load_sign_key`."""


class SealKey(Protocol):
    """A private decryption key. Never prints its secret."""

    @property
    def public(self) -> bytes:
        """The public key, in the suite's fixed encoding."""

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open what was sealed to this key with the same info. Raises CipherError."""

    def secret(self) -> bytes:
        """The private key, serialised for `Cipher.load_seal_key`."""


class Cipher(Protocol):
    """A suite: a named set of algorithms. Stateless, and safe to use from many threads."""

    @property
    def name(self) -> str:
        """The name in certificates and on the wire, at most 32 ASCII characters."""

    @property
    def key_types(self) -> tuple[str, ...]:
        """The key types that certificates of this suite list, in order."""

    #: Key and nonce size of `aead`, in bytes.
    aead_key_size: int
    aead_nonce_size: int

    def new_sign_key(self) -> SignKey:
        """A fresh signing key."""

    def load_sign_key(self, secret: bytes) -> SignKey:
        """The inverse of `SignKey.secret`. Raises CipherError."""

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        """Raise CipherError unless every algorithm of the suite accepts the signature."""

    def new_seal_key(self) -> SealKey:
        """A fresh decryption key."""

    def load_seal_key(self, secret: bytes) -> SealKey:
        """The inverse of `SealKey.secret`. Raises CipherError."""

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        """Encrypt to a public key (HPKE base mode). Raises CipherError on a bad key."""

    def aead(self, key: bytes) -> Aead:
        """The suite's AEAD under a key of `aead_key_size` bytes."""


# ------------------------------------------------------------------------------ store


class StoredContent(NamedTuple):
    """A content to be held: the salt of its commitment and the bytes.

    A tuple, because there is one for each message; name its fields all the same.
    """

    salt: bytes
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A verified batch to be written, with what is held of its contents."""

    author: str
    first_seq: int
    #: The batch's hash, 32 bytes.
    batch_id: bytes
    #: The canonical body and the author's signature; None until an own batch is signed.
    body: bytes
    signature: bytes | None
    #: Per record, in order: its hash (32 bytes), and its content if it is held.
    record_ids: tuple[bytes, ...]
    contents: tuple[StoredContent | None, ...]
    #: The ledger's name of the block that anchors it, if it is known already.
    anchor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch as it is read back."""

    author: str
    first_seq: int
    count: int
    batch_id: bytes
    body: bytes
    signature: bytes | None
    anchor: str | None
    record_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One record of the local log, with its content unless that is not held or gone."""

    #: Its place in the local log: grows by one, never changes, starts at 1.
    position: int
    author: str
    seq: int
    record_id: bytes
    #: The batch that holds the record's metadata, for `walyoff.records.decode_batch`.
    batch_id: bytes
    anchored: bool
    content: StoredContent | None
    #: Its content was destroyed, for good.
    forgotten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How far a device's records are held, without a gap."""

    author: str
    #: The newest record's sequence number, its hash, and the batch that it ends.
    seq: int
    record_id: bytes
    batch_id: bytes


class ChannelStore(Protocol):
    """The durable part of one channel. Every read of content authenticates it."""

    async def write(
        self,
        *,
        batches: Sequence[NewBatch] = (),
        contents: Sequence[tuple[bytes, StoredContent]] = (),
        deliver: Sequence[bytes] = (),
        signatures: Sequence[tuple[bytes, bytes]] = (),
        anchors: Sequence[tuple[bytes, str]] = (),
        attachments: Sequence[NewAttachment] = (),
        expiries: Sequence[tuple[bytes, int]] = (),
        values: Mapping[str, bytes | None] = MappingProxyType({}),
    ) -> int:
        """Write all of it in one transaction; durable when it returns.

        `contents` are (record hash, content) of records known before; `deliver` are record
        hashes that get the next positions, one each, in that order; `signatures` are (batch
        hash, signature); `anchors` are (batch hash, block name); `attachments` are those whose
        manifests are held now; `expiries` are (record hash, time in ms at which it is to be
        forgotten); `values` are as in `Store.put`. A content of a forgotten record is not
        taken. All but the values is idempotent: what is there already is left as it is.
        Concurrent calls are committed in call order and
        may share one commit. Cancelling leaves all of it written or nothing.

        Returns the highest position of the log after it.

        Raises:
            StoreError: nothing was written (disk full, read only, corrupt).
        """

    @property
    def chunks(self) -> ChunkStore:
        """The chunks of the channel's attachments."""

    async def heads(self) -> list[Head]:
        """The head of each device, from records held without a gap."""

    async def top(self) -> int:
        """The highest position of the log; 0 when it is empty."""

    async def log(
        self, *, after: int, limit: int, newest_first: bool = False
    ) -> list[LogEntry]:
        """Entries after a position in order (or before it, newest first, 0 = from the end)."""

    async def batches(self, author: str, first_seq: int, last_seq: int) -> list[StoredBatch]:
        """The batches that hold any record of a range, in order; at most 64 of them."""

    async def batch(self, batch_id: bytes) -> StoredBatch | None:
        """One batch."""

    async def contents(self, record_ids: Sequence[bytes]) -> list[StoredContent | None]:
        """The contents of records, None where not held."""

    async def missing(self, limit: int) -> list[tuple[str, int, bytes]]:
        """(author, sequence number, hash) of records without content, oldest first."""

    async def undelivered(self) -> list[tuple[str, int, bytes]]:
        """(author, sequence number, hash) of records with content, or forgotten, and no
        position yet."""

    async def forget(self, record_ids: Sequence[bytes]) -> None:
        """Destroy the contents of records for good; idempotent.

        When it returns, no file of the store has a byte of a content, of its key or of its
        ciphertext. What a crash interrupts is not half done: at the next opening it is either
        done or not begun. No content of these records is ever taken again.

        Raises:
            StoreError: a record is unknown, or it may not be done; call it again.
        """

    async def expired(self, now_ms: int, limit: int) -> list[bytes]:
        """The records that were to be forgotten by a time and are not yet, first due first."""

    async def next_expiry(self) -> int | None:
        """When the next record is to be forgotten, in ms; None if there is none."""

    async def find(self, record_ids: Sequence[bytes]) -> list[LogEntry | None]:
        """The entries of records, without their contents; None for unknown records.

        The position is 0 while a record has none.
        """

    async def unsigned(self) -> list[StoredBatch]:
        """Own batches that a crash left without a signature."""

    async def unanchored(self, limit: int) -> list[StoredBatch]:
        """Signed batches that no known block anchors, oldest first."""

    async def get_cursor(self, name: str) -> int:
        """The last position that a named cursor has committed; 0 for a new one."""

    def mark_cursor(self, name: str, position: int) -> None:
        """Note a cursor at once and without waiting; `set_cursor` makes it durable.

        From here on `get_cursor` gives it, in later runs too if this process is killed. A
        power loss may undo it. It never moves back, and is not beyond the end of the log.
        """

    async def set_cursor(self, name: str, position: int) -> None:
        """Commit a cursor; it never moves back. Durable when it returns."""


class Store(Protocol):
    """A device's transactional store. It has one owner at a time and survives any kill."""

    async def get(self, key: str) -> bytes | None:
        """A small sealed value of the device (keys, certificates, addresses)."""

    async def put(self, values: dict[str, bytes | None]) -> None:
        """Write values in one transaction, None removes; durable when it returns."""

    async def keys(self, prefix: str) -> list[str]:
        """The keys that begin with a prefix, sorted."""

    async def erase(self, channel_id: str) -> None:
        """Delete the log of a channel that is closed: records, contents, attachments.

        Positions go on from where they were, so named cursors skip nothing that comes later.
        """

    def channel(self, channel_id: str) -> ChannelStore:
        """The part of the store that belongs to one channel; made at its first write."""

    async def aclose(self) -> None:
        """Finish what was begun and release the store. Idempotent."""


__all__ = [
    "Aead",
    "AsyncIterator",
    "Block",
    "Broadcast",
    "ByteStream",
    "ChannelStore",
    "Cipher",
    "EndedLink",
    "Governance",
    "GuardedLedger",
    "Head",
    "Identity",
    "IpfsNode",
    "Ledger",
    "LogEntry",
    "Member",
    "Membership",
    "NewBatch",
    "SealKey",
    "Sealer",
    "SignKey",
    "Store",
    "StoredBatch",
    "StoredContent",
    "Transport",
    "TransportFactory",
    "TransportHost",
]
