"""Who may speak in a channel: certificates, checked once and remembered.

A certificate counts when the identity's chain says that its member belongs to the identity
and that this member's control keys signed it. That check is slow (a post-quantum signature
in the child process), so its result is kept, by certificate id, in memory and in the store.
Whether the member belongs to the identity *now* is asked again wherever it matters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import anyio

from walyoff import certificates, plugins
from walyoff.abc import Cipher, Identity, Membership, SignKey, Store
from walyoff.certificates import Certificate, SignedCertificate
from walyoff.errors import CipherError, NotAMemberError, RemoteProtocolError, StoreError
from walyoff.incarnations import AHEAD_MS, load_incarnation
from walyoff.records import decode_batch, signed_message
from walyoff.unused import UnusedCertificates
from walyoff.wire import pack, unpack

#: Certificates kept in memory: a channel of a thousand devices with several renewals each.
MAX_CACHED = 4096


@dataclass(frozen=True, slots=True)
class Standing:
    """The copy of a device that counts, as far as is known (see `walyoff.incarnations`)."""

    #: Which of the device's control keys certified it. Newer ones come before everything:
    #: whoever has the older ones may have stolen them.
    generation: int = 0
    incarnation: int = 0
    #: A certificate that proves it.
    proof: bytes = b""
    #: The first record under it; 0 while none is held.
    first: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """What copies are compared by."""
        return self.generation, self.incarnation


_FIRST = Standing()


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

    def __init__(
        self, *, channel: str, identity: Identity, store: Store, wall_ms: Callable[[], int]
    ) -> None:
        self.channel = channel
        self.identity = identity
        self.store = store
        self._wall_ms = wall_ms
        self._trusted: dict[bytes, Trusted] = {}
        self._membership: Membership | None = None
        self._current: frozenset[str] = frozenset()
        self._paths: dict[str, tuple[str, ...]] = {}
        #: Certificates that their device has replaced, and its first record under the next.
        self._retired: dict[bytes, int] = {}
        #: Per member the copy of it that counts.
        self._standing: dict[str, Standing] = {}
        #: Certificates by later control keys than a device's first, and by which.
        self._generations: dict[bytes, int] = {}
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
        for key in await self.store.keys(self._generation_key(b"")):
            if value := await self.store.get(key):
                self._generations[bytes.fromhex(key.rpartition("/")[2])] = int.from_bytes(value)
        for key in await self.store.keys(self._incarnation_key("")):
            if value := await self.store.get(key):
                await self._restore(key.removeprefix(self._incarnation_key("")), value)
        for key in await self.store.keys(self._retired_key(b"")):
            if value := await self.store.get(key):
                self._retired[bytes.fromhex(key.rpartition("/")[2])] = int.from_bytes(value)

    async def _restore(self, member: str, value: bytes) -> None:
        number, proof, first, *more = unpack(value, 256)
        found = Standing(more[0] if more else 1, number, proof, first)
        if not self._is_time(number):
            # An earlier version believed it.
            return
        if not more and (trusted := await self.load(proof)) is not None:
            # An earlier version did not ask whose keys it was.
            signed = certificates.decode(trusted.encoded)
            with contextlib.suppress(NotAMemberError, RemoteProtocolError):
                generation = await self._verify(signed)
                found = Standing(generation, number, proof, first)
        if found.rank >= self.standing(member).rank:
            self._standing[member] = found

    def _is_time(self, incarnation: int) -> bool:
        """Whether a number can be an incarnation: it is a time, and has come."""
        return incarnation <= self._wall_ms() + AHEAD_MS

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
        """The incarnation in which a device is known."""
        return self.standing(member).incarnation

    def standing(self, member: str) -> Standing:
        """The copy of a device that counts."""
        return self._standing.get(member, _FIRST)

    def _rank(self, certificate: Certificate) -> tuple[int, int]:
        generation = self._generations.get(certificate.certificate_id, 1)
        return Standing(generation, certificate.incarnation).rank

    def superseded(self, certificate: Certificate) -> bool:
        """True if it is of a copy of its device that another copy took over from.

        Or by control keys that the device has replaced since.
        """
        return self._rank(certificate) < self.standing(certificate.member).rank

    def outkeyed(self, certificate: Certificate) -> bool:
        """True if the copy of its device that counts has newer control keys."""
        return self._rank(certificate)[0] < self.standing(certificate.member).generation

    def taken_over(self, certificate: Certificate) -> bool:
        """The same, but not if it is merely an older certificate of that very copy."""
        known = self.incarnation(certificate.member)
        return self.superseded(certificate) and certificate.incarnation != known

    def overruled(self, certificate: Certificate, last_seq: int) -> bool:
        """True if a copy wrote a record that the one that took over had for itself."""
        first = self.standing(certificate.member).first
        return 0 < first <= last_seq and self.superseded(certificate)

    def note_copy(self) -> None:
        """Somebody else writes by this device's keys: its own records came, and are news."""
        self.copied = True
        self._tell()

    def _tell(self) -> None:
        news, self.superseding = self.superseding, anyio.Event()
        news.set()

    async def proof(self, member: str) -> bytes:
        """The signed certificate of the copy of a device that counts."""
        found = await self.load(self._standing[member].proof)
        if found is None:
            raise StoreError("the certificate of an incarnation is missing")
        return found.encoded

    async def began(self, certificate: Certificate, first_seq: int) -> None:
        """A batch by this certificate continues its device's chain."""
        known = self.standing(certificate.member)
        if known.proof and not known.first and self._rank(certificate) == known.rank:
            await self._keep(certificate.member, replace(known, first=first_seq))

    async def _keep(self, member: str, known: Standing) -> None:
        fields = [known.incarnation, known.proof, known.first, known.generation]
        await self.store.put({self._incarnation_key(member): pack(fields)})
        self._standing[member] = known

    def _generation_key(self, certificate_id: bytes) -> str:
        return f"generation/{self.channel}/{certificate_id.hex()}"

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

    async def add(self, data: bytes) -> Trusted:
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
        generation = await self._verify(signed)
        trusted = self._remember(data)
        async with self._adding:
            writes: dict[str, bytes | None] = {self._key(certificate.certificate_id): data}
            if generation > 1:
                self._generations[certificate.certificate_id] = generation
                key = self._generation_key(certificate.certificate_id)
                writes[key] = generation.to_bytes(4)
            # Those of this device are under what it wrote, which it alone may hold.
            if certificate.member != self.identity.member_did:
                key, value, gone = await self.unused.add(
                    certificate.member, certificate.certificate_id
                )
                writes[key] = value
                for certificate_id in gone:
                    writes[self._key(certificate_id)] = None
                    writes[self._generation_key(certificate_id)] = None
                    self._trusted.pop(certificate_id, None)
                    self._generations.pop(certificate_id, None)
            await self.store.put(writes)
            await self._rank_up(certificate, generation)
        return trusted

    async def _rank_up(self, certificate: Certificate, generation: int) -> None:
        claimed = Standing(generation, certificate.incarnation, certificate.certificate_id)
        # A device that was never moved and never had other control keys has nothing to prove.
        best = max(self.standing(certificate.member).rank, (1, 0))
        if claimed.rank > best and self._is_time(claimed.incarnation):
            await self._keep(certificate.member, claimed)
            self._tell()

    async def _needed(self, member: str) -> list[bytes]:
        """Those that sign what is held, and the one that proves the copy that counts."""
        return [*self._retired, self.standing(member).proof]

    async def _verify(self, signed: SignedCertificate) -> int:
        certificate = signed.certificate
        return await self.identity.verify(
            certificate.member, certificate.body(), signed.signature
        )

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
