"""Who may speak in a channel: certificates, checked once and remembered.

A certificate counts when the identity's chain says that its member belongs to the identity
and that this member's control keys signed it. That check is slow (a post-quantum signature
in the child process), so its result is kept, by certificate id, in memory and in the store.
Whether the member belongs to the identity *now* is asked again wherever it matters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio

from walyoff import certificates, plugins
from walyoff.abc import Cipher, Identity, Membership, SignKey, Store
from walyoff.certificates import Certificate
from walyoff.errors import CipherError, NotAMemberError, RemoteProtocolError, StoreError
from walyoff.incarnations import load_incarnation
from walyoff.records import decode_batch, signed_message
from walyoff.unused import UnusedCertificates
from walyoff.wire import pack, unpack

#: Certificates kept in memory: a channel of a thousand devices with several renewals each.
MAX_CACHED = 4096
_FIRST = (0, b"", 0)


@dataclass(frozen=True, slots=True)
class Credentials:
    """This device's own certificate in a channel and the key that it certifies."""

    certificate: Certificate
    #: The signed certificate, as others get it.
    encoded: bytes
    sign_key: SignKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trusted:
    """A certificate that was checked."""

    certificate: Certificate
    encoded: bytes
    cipher: Cipher

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raise CipherError unless the certified key signed the message."""
        self.cipher.verify(self.certificate.sign_public, message, signature)


class Trust:
    """The certificates of one channel."""

    def __init__(self, *, channel: str, identity: Identity, store: Store) -> None:
        self.channel = channel
        self.identity = identity
        self.store = store
        self._trusted: dict[bytes, Trusted] = {}
        self._membership: Membership | None = None
        self._current: frozenset[str] = frozenset()
        self._paths: dict[str, tuple[str, ...]] = {}
        #: Certificates that their device has replaced, and its first record under the next.
        self._retired: dict[bytes, int] = {}
        #: Per member its highest incarnation: the number, a certificate that proves it, and
        #: the first record under it (0 while none is held).
        self._incarnations: dict[str, tuple[int, bytes, int]] = {}
        #: Set when a member is known in a higher incarnation; then there is a new one.
        self.superseding = anyio.Event()
        #: True if a copy of this device was found at work.
        self.copied = False
        #: Who left as members say, while the chain does not say it here yet.
        self.barred: set[str] = set()
        #: How many of a device are kept that verify nothing.
        self.unused = UnusedCertificates(channel=channel, store=store)
        self.unused.needed_by.append(self._needed)
        self._adding = anyio.Lock()

    def is_member(self, did: str) -> bool:
        """True if the identity's chain says that a DID is a member now."""
        self._look()
        return did in self._current

    def path(self, did: str) -> tuple[str, ...]:
        """From a device, past or present, up to the identity, each link as the chains say."""
        self._look()
        return self._paths.get(did, (did, self.channel))

    def _look(self) -> None:
        membership = self.identity.membership
        if membership is not self._membership:
            self._membership = membership
            self._current = frozenset(m.did for m in membership.members if m.current)
            self._paths = {
                m.did: (*(m.path or (m.did,)), self.channel) for m in membership.members
            }

    def knows(self, did: str) -> bool:
        """True if a DID is or was a member."""
        return any(m.did == did for m in self.identity.membership.members)

    def admits(self, did: str) -> bool:
        """True if a DID is a member now, and no member says that it left."""
        return did not in self.barred and self.is_member(did)

    def get(self, certificate_id: bytes) -> Trusted | None:
        """A certificate that was checked in this run."""
        return self._trusted.get(certificate_id)

    async def load(self, certificate_id: bytes) -> Trusted | None:
        """A certificate that was ever checked."""
        found = self._trusted.get(certificate_id)
        if found is None and (value := await self.store.get(self._key(certificate_id))):
            found = self._remember(value)
        return found

    async def restore(self) -> None:
        """Take up which certificates were replaced, and the incarnations of members."""
        for key in await self.store.keys(self._incarnation_key("")):
            if value := await self.store.get(key):
                number, proof, first = unpack(value, 256)
                member = key.removeprefix(self._incarnation_key(""))
                if number >= self.incarnation(member):
                    self._incarnations[member] = (number, proof, first)
        for key in await self.store.keys(self._retired_key(b"")):
            if value := await self.store.get(key):
                self._retired[bytes.fromhex(key.rpartition("/")[2])] = int.from_bytes(value)

    def is_retired(self, certificate_id: bytes, seq: int | None = None) -> bool:
        """True if a device replaced a certificate, before a record of its, or ever."""
        end = self._retired.get(certificate_id)
        return end is not None and (seq is None or seq >= end)

    async def retire(self, certificate_id: bytes, seq: int) -> None:
        """Note that a device signs by another certificate from a record on."""
        if certificate_id not in self._retired:
            await self.store.put({self._retired_key(certificate_id): seq.to_bytes(8)})
            self._retired[certificate_id] = seq

    def incarnation(self, member: str) -> int:
        """The highest incarnation in which a device is known."""
        return self._incarnations.get(member, _FIRST)[0]

    def superseded(self, certificate: Certificate) -> bool:
        """True if it is of a copy of its device that another copy took over from."""
        return certificate.incarnation < self.incarnation(certificate.member)

    def overruled(self, certificate: Certificate, last_seq: int) -> bool:
        """True if a copy wrote a record that the one that took over had for itself."""
        first = self._incarnations.get(certificate.member, _FIRST)[2]
        return 0 < first <= last_seq and self.superseded(certificate)

    def note_copy(self) -> None:
        """Somebody else writes by this device's keys: its own records came, and are news."""
        self.copied = True
        self._tell()

    def _tell(self) -> None:
        news, self.superseding = self.superseding, anyio.Event()
        news.set()

    async def proof(self, member: str) -> bytes:
        """The signed certificate of a device's highest incarnation."""
        found = await self.load(self._incarnations[member][1])
        if found is None:
            raise StoreError("the certificate of an incarnation is missing")
        return found.encoded

    async def began(self, certificate: Certificate, first_seq: int) -> None:
        """A batch by this certificate continues its device's chain."""
        number, proof, first = self._incarnations.get(certificate.member, _FIRST)
        if certificate.incarnation == number and number and not first:
            await self._keep(certificate.member, (number, proof, first_seq))

    async def _keep(self, member: str, known: tuple[int, bytes, int]) -> None:
        await self.store.put({self._incarnation_key(member): pack(list(known))})
        self._incarnations[member] = known

    def _incarnation_key(self, member: str) -> str:
        return f"incarnation/{self.channel}/{member}"

    def _retired_key(self, certificate_id: bytes) -> str:
        return f"retired/{self.channel}/{certificate_id.hex()}"

    async def all_encoded(self) -> list[bytes]:
        """Every certificate that was ever checked, signed, for a new member."""
        encoded = []
        for key in await self.store.keys(f"certificate/{self.channel}/"):
            if value := await self.store.get(key):
                encoded.append(value)
        return encoded

    async def add(self, data: bytes, *, own: bool = False) -> Trusted:
        """Check a signed certificate and remember it; one of this device's for good.

        Raises:
            RemoteProtocolError: malformed, for another channel, or the signature is wrong.
            NotAMemberError: its member never belonged to the identity.
            UnknownSuiteError: its suite is not installed here.
        """
        signed = certificates.decode(data)
        certificate = signed.certificate
        known = self._trusted.get(certificate.certificate_id)
        if known is not None:
            return known
        if certificate.channel != self.channel:
            raise RemoteProtocolError(
                "certificate is for another channel", reason="wrong-channel"
            )
        if not any(m.did == certificate.member for m in self.identity.membership.members):
            raise NotAMemberError(f"{certificate.member} is not a member of {self.channel}")
        await self.identity.verify(certificate.member, certificate.body(), signed.signature)
        trusted = self._remember(data)
        async with self._adding:
            writes: dict[str, bytes | None] = {self._key(certificate.certificate_id): data}
            if not own:
                key, value, gone = await self.unused.add(
                    certificate.member, certificate.certificate_id
                )
                writes[key] = value
                for certificate_id in gone:
                    writes[self._key(certificate_id)] = None
                    self._trusted.pop(certificate_id, None)
            await self.store.put(writes)
        if certificate.incarnation > self.incarnation(certificate.member):
            proof = (certificate.incarnation, certificate.certificate_id, 0)
            await self._keep(certificate.member, proof)
            self._tell()
        return trusted

    async def _needed(self, member: str) -> list[bytes]:
        """Those that sign what is held, and the one that proves an incarnation."""
        return [*self._retired, self._incarnations.get(member, _FIRST)[1]]

    def _remember(self, data: bytes) -> Trusted:
        certificate = certificates.decode(data).certificate
        cipher = plugins.suite(certificate.suite)
        if certificate.key_types != cipher.key_types:
            raise CipherError("certificate lists other key types than its suite has")
        if len(self._trusted) >= MAX_CACHED:
            # The oldest is loaded again from the store if it is needed again.
            del self._trusted[next(iter(self._trusted))]
        trusted = Trusted(certificate, data, cipher)
        self._trusted[certificate.certificate_id] = trusted
        return trusted

    def _key(self, certificate_id: bytes) -> str:
        return f"certificate/{self.channel}/{certificate_id.hex()}"


#: How long a device key is certified for, in milliseconds: renewed long before (half of it).
CERTIFICATE_LIFETIME_MS = 90 * 24 * 3600 * 1000
#: Clocks of members may differ by so much.
CLOCK_SKEW_MS = 24 * 3600 * 1000


def is_due(certificate: Certificate, now_ms: int) -> bool:
    """True if a new certificate is better: half of its time is over, or it has not begun.

    The second happens when a device's clock was far ahead and is right again: the others
    would refuse it until the time that it had believed in.
    """
    renewal = certificate.not_after_ms - CERTIFICATE_LIFETIME_MS // 2
    return not certificate.not_before_ms <= now_ms < renewal


async def make_credentials(
    *,
    channel: str,
    identity: Identity,
    store: Store,
    suite: str,
    now_ms: int,
    renew: bool = False,
) -> Credentials:
    """The device's credentials in a channel: the stored ones while they last, else new ones.

    New ones also when the device has moved to another suite or machine, or when `renew` asks
    for them.
    """
    incarnation = await load_incarnation(store)
    key = f"credentials/{channel}"
    value = await store.get(key)
    if value is not None and not renew:
        stored = _load(value)
        mine = stored.certificate
        same = (mine.suite, mine.incarnation) == (suite, incarnation)
        if same and not is_due(mine, now_ms):
            return stored
    cipher = plugins.suite(suite)
    sign_key, seal_key = cipher.new_sign_key(), cipher.new_seal_key()
    certificate = Certificate(
        channel=channel,
        member=identity.member_did,
        suite=suite,
        key_types=cipher.key_types,
        sign_public=sign_key.public,
        seal_public=seal_key.public,
        not_before_ms=max(now_ms - CLOCK_SKEW_MS, 0),
        not_after_ms=now_ms + CERTIFICATE_LIFETIME_MS,
        incarnation=incarnation,
    )
    signature = await identity.certify(certificate.body())
    encoded = certificates.encode(certificate, signature)
    new = pack([encoded, sign_key.secret(), seal_key.secret()])
    # The one before is kept: a batch that it signs now may be left unsigned by a crash.
    await store.put({key: new, f"{key}/previous": value})
    return Credentials(certificate, encoded, sign_key)


async def sign_leftovers(store: Store, channel: str) -> None:
    """Sign what a crash left unsigned with the key that it names, before that is replaced.

    A batch that is signed by another key than its certificate's is refused by everybody, and
    with it all that follows in its author's chain.
    """
    part = store.channel(channel)
    unsigned = await part.unsigned()
    if not unsigned:
        return
    keys: dict[bytes, SignKey] = {}
    for name in ("", "/previous"):
        if value := await store.get(f"credentials/{channel}{name}"):
            credentials = _load(value)
            keys[credentials.certificate.certificate_id] = credentials.sign_key
    signatures = [
        (batch.batch_id, key.sign(signed_message(batch.batch_id)))
        for batch in unsigned
        if (key := keys.get(decode_batch(batch.body).certificate_id))
    ]
    await part.write(signatures=signatures)


def _load(value: bytes) -> Credentials:
    encoded, sign_secret, _ = unpack(value, 1 << 20)
    certificate = certificates.decode(encoded).certificate
    return Credentials(
        certificate, encoded, plugins.suite(certificate.suite).load_sign_key(sign_secret)
    )
