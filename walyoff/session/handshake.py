"""The handshake: who may read and say what, and when; two machines without I/O.

All transitions of the handshake are in this module. No clock is read; randomness is an
argument (and key generation belongs to the injected suite). Certificates are *trusted* by
the driver, which answers `PeerPresented` with `accept()` or `refuse()`.

    initiator                                     responder
    start() -> flight 1            ---->          receive(): finds the context by the tag
    receive(): PeerPresented       <----          Send(flight 2)
    accept(): Send(flight 3)       ---->          receive(): PeerPresented
              Established                         accept(): Established

What this gives and what it costs:

- The responder proves itself first. Somebody without a tag key gets nothing but a refusal;
  somebody who replays a flight 1 gets a flight 2 that it cannot open, and so learns that
  this device knows the channel. The initiator shows its certificate only to a responder
  that its driver has accepted.
- The initiator is established before it knows that the responder accepted it: the first
  record of the responder is the confirmation, or a refusal in its place.
- A signature covers domain, role, mode, channel and the transcript with the signer's own
  certificate. The suite offer is part of the transcript, so a downgrade is found out.
- A failed machine is dead. Its driver sends `REFUSAL`, the same bytes for every reason.

Signing and sealing take up to some milliseconds: drivers call the machines in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, TypeVar

from walyoff.abc import Aead, Cipher, SealKey, SignKey
from walyoff.certificates import SignedCertificate, decode
from walyoff.errors import (
    CipherError,
    LocalProtocolError,
    RemoteProtocolError,
    UnknownSuiteError,
)
from walyoff.session.flights import (
    MAX_MESSAGE,
    REFUSAL,
    Answer,
    Hello,
    Inbox,
    Proof,
    check_suites,
    decode_answer,
    decode_hello,
    decode_proof,
    encode_answer,
    encode_hello,
    encode_proof,
    frame,
)
from walyoff.session.transcript import (
    HASH_SIZE,
    MODES,
    Mode,
    Role,
    SessionKeys,
    Transcript,
    blinded_tag,
    check_secret,
    derive,
    seal_info,
    signed_message,
    traffic_keys,
)

T = TypeVar("T")

#: Bytes of records that a responder keeps for an initiator that did not wait while its
#: certificate was being checked: one record of the largest size and then some.
MAX_EARLY: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Bytes for the stream, framed already."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPresented:
    """The peer showed a certificate; nothing about it has been checked but its form.

    The driver verifies the member's signature, the membership and the validity, and calls
    `accept()` or `refuse()`.
    """

    certificate: SignedCertificate
    #: The bytes as they came, for a cache of verified certificates.
    encoded: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Established:
    """The session stands: `SecureChannel(keys, role)` takes the stream over."""

    keys: SessionKeys
    peer: SignedCertificate
    #: Bytes that came after the handshake: the first to give to `SecureChannel.feed`.
    leftover: bytes = field(repr=False)


Event = Send | PeerPresented | Established


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeContext:
    """What a side brings to a handshake. Its secrets never print."""

    #: The channel's id; bound into every key and signature, never sent in clear. In mode
    #: "join" it may be anything that both sides know, such as the invitation's id.
    channel: str
    sign_key: SignKey
    #: The encoded certificate of the sign key, with its signature.
    certificate: bytes = field(repr=False)
    #: 32 bytes that both sides hold: the invitation's secret, which mode "join" requires.
    psk: bytes | None = field(default=None, repr=False)


class _State(Enum):
    NEW = auto()
    WAITING = auto()
    JUDGING = auto()
    ESTABLISHED = auto()
    DEAD = auto()


class _Machine:
    """What the two sides have in common."""

    role: Role
    peer_role: Role

    def __init__(
        self,
        cipher_for: Callable[[str], Cipher],
        suites: Sequence[str],
        random: Callable[[int], bytes],
    ) -> None:
        self._cipher_for = cipher_for
        self._suites = check_suites(suites)
        self._random = random
        self._inbox = Inbox()
        self._state = _State.NEW
        self._context: HandshakeContext | None = None
        self._own: SignedCertificate | None = None
        self._mode: Mode = "member"
        self._transcript: Transcript | None = None
        self._cipher: Cipher | None = None
        self._secret = b""
        self._peer: SignedCertificate | None = None
        self._peer_signature = b""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.name.lower()}>"

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes from the stream, in pieces of any size.

        Raises:
            RemoteProtocolError: the peer broke the protocol, proved nothing, or refused
                (reason "refused"). The machine is dead; send `REFUSAL` and close.
            LocalProtocolError: the machine has not been started, or is finished.
        """
        if self._state not in (_State.WAITING, _State.JUDGING):
            raise LocalProtocolError(f"the handshake is {self._state.name.lower()}")
        try:
            self._inbox.add(data)
            if self._state is _State.JUDGING:
                self._check_early()
                return []
            message = self._inbox.pop()
            return [] if message is None else self._on_message(message)
        except (RemoteProtocolError, CipherError) as error:
            raise self._die(error) from None
        except BaseException:
            # A bug or a broken plug-in on this side: nothing half done may go on.
            self._forget()
            raise

    def accept(self) -> list[Event]:
        """The presented certificate is trusted: check the signature and go on.

        Raises:
            RemoteProtocolError: the signature does not hold; as for `receive`.
            LocalProtocolError: no certificate is waiting for a decision.
        """
        if self._state is not _State.JUDGING:
            raise LocalProtocolError(f"the handshake is {self._state.name.lower()}")
        try:
            self._check_signature()
            return self._on_accepted()
        except (RemoteProtocolError, CipherError) as error:
            raise self._die(error) from None
        except BaseException:
            # A bug or a broken plug-in on this side: nothing half done may go on.
            self._forget()
            raise

    def refuse(self) -> list[Event]:
        """The presented certificate is not trusted: what to send before closing.

        The peer learns nothing but this; the reason is for the driver's own log. Idempotent,
        and allowed in every state but the established one.
        """
        if self._state is _State.ESTABLISHED:
            raise LocalProtocolError("the session is established")
        self._forget()
        return [Send(data=REFUSAL)]

    def eof(self) -> None:
        """The stream ended before the handshake did.

        Raises:
            RemoteProtocolError: always, unless the handshake is over.
        """
        if self._state not in (_State.ESTABLISHED, _State.DEAD):
            self._forget()
            raise RemoteProtocolError("the stream ended in the handshake", reason="truncated")

    # -- for the two sides

    def _on_message(self, message: bytes) -> list[Event]:
        raise NotImplementedError

    def _on_accepted(self) -> list[Event]:
        raise NotImplementedError

    def _check_early(self) -> None:
        raise NotImplementedError

    def _begin(self, mode: Mode, context: HandshakeContext) -> Transcript:
        """Fix whom the handshake is for."""
        if mode not in MODES:
            raise LocalProtocolError(f"unknown mode {mode!r}")
        if context.psk is not None:
            check_secret(context.psk, "pre-shared secret")
        elif mode == "join":
            # Without it anybody could read the responder's certificate.
            raise LocalProtocolError("mode 'join' needs the invitation's secret")
        try:
            own = decode(context.certificate)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"own certificate: {error}") from None
        if own.certificate.sign_public != context.sign_key.public:
            raise LocalProtocolError("the sign key is not that of the own certificate")
        self._mode, self._context, self._own = mode, context, own
        self._transcript = Transcript(mode, context.channel)
        return self._transcript

    def _proof_aead(self, role: Role, transcript: bytes) -> tuple[Aead, bytes]:
        """The AEAD of a role's proof, under a key that is used once, and its nonce."""
        cipher, context = _have(self._cipher), _have(self._context)
        key = derive(
            self._secret, context.psk, cipher.aead_key_size, f"proof {role}", transcript
        )
        return cipher.aead(key), bytes(cipher.aead_nonce_size)

    def _make_proof(self) -> bytes:
        """Sign the transcript with the own certificate in it, and encrypt both."""
        context, transcript = _have(self._context), _have(self._transcript)
        before = transcript.digest()
        transcript.add(f"{self.role} certificate", context.certificate)
        signature = context.sign_key.sign(
            signed_message(self.role, self._mode, transcript.digest())
        )
        transcript.add(f"{self.role} signature", signature)
        aead, nonce = self._proof_aead(self.role, before)
        plaintext = encode_proof(Proof(certificate=context.certificate, signature=signature))
        return aead.encrypt(nonce, plaintext, before)

    def _read_proof(self, encrypted: bytes) -> list[Event]:
        """Decrypt the peer's proof and present its certificate to the driver."""
        before = _have(self._transcript).digest()
        aead, nonce = self._proof_aead(self.peer_role, before)
        proof = decode_proof(aead.decrypt(nonce, encrypted, before))
        peer = decode(proof.certificate)
        self._check_certificate(peer)
        _have(self._transcript).add(f"{self.peer_role} certificate", proof.certificate)
        self._peer, self._peer_signature = peer, proof.signature
        self._state = _State.JUDGING
        self._check_early()
        return [PeerPresented(certificate=peer, encoded=proof.certificate)]

    def _check_certificate(self, peer: SignedCertificate) -> None:
        """What can be said about a certificate without asking anybody."""
        theirs, own = peer.certificate, _have(self._own).certificate
        if (
            theirs.certificate_id == own.certificate_id
            or theirs.sign_public == own.sign_public
            or theirs.seal_public == own.seal_public
        ):
            raise RemoteProtocolError("the peer presents our own keys", reason="reflected")
        # A joining device has no certificate of the channel yet, and may not know its id.
        if self._mode == "member" and theirs.channel != _have(self._context).channel:
            raise RemoteProtocolError("certificate of another channel", reason="channel")
        if theirs.suite not in self._suites:
            raise RemoteProtocolError("certificate of an unwanted suite", reason="suite")
        if theirs.key_types != self._cipher_for(theirs.suite).key_types:
            raise RemoteProtocolError("key types are not those of the suite", reason="suite")

    def _check_signature(self) -> None:
        transcript = _have(self._transcript)
        theirs = _have(self._peer).certificate
        self._cipher_for(theirs.suite).verify(
            theirs.sign_public,
            signed_message(self.peer_role, self._mode, transcript.digest()),
            self._peer_signature,
        )
        transcript.add(f"{self.peer_role} signature", self._peer_signature)

    def _establish(self) -> Established:
        own, peer = _have(self._own), _have(self._peer)
        context = _have(self._context)
        responder, initiator = (own, peer) if self.role == "responder" else (peer, own)
        keys = traffic_keys(
            _have(self._cipher),
            self._secret,
            context.psk,
            transcript=_have(self._transcript).digest(),
            channel=context.channel,
            responder_certificate=responder.certificate.certificate_id,
            initiator_certificate=initiator.certificate.certificate_id,
        )
        leftover = self._inbox.take_rest()
        self._forget()
        self._state = _State.ESTABLISHED
        return Established(keys=keys, peer=peer, leftover=leftover)

    def _die(self, error: RemoteProtocolError | CipherError) -> RemoteProtocolError:
        self._forget()
        if isinstance(error, RemoteProtocolError):
            return error
        if isinstance(error, UnknownSuiteError):
            return RemoteProtocolError(str(error), reason="suite")
        # Wrong key, altered bytes, forged signature, suite not here: one answer for all.
        return RemoteProtocolError("the peer's proof does not hold", reason="forged")

    def _forget(self) -> None:
        """Drop every secret and everything received."""
        self._state = _State.DEAD
        self._secret = b""
        self._context = self._own = self._peer = None
        self._transcript = self._cipher = None
        self._peer_signature = b""
        self._inbox = Inbox()


class Initiator(_Machine):
    """The side that opened the stream.

    `suites` are the acceptable ones, best first; the ephemeral key is of the first. The
    tag key is the 32 secret bytes of the channel or of the invitation that both sides know.
    """

    role: Role = "initiator"
    peer_role: Role = "responder"

    def __init__(
        self,
        *,
        cipher_for: Callable[[str], Cipher],
        suites: Sequence[str],
        mode: Mode,
        tag_key: bytes,
        context: HandshakeContext,
        random: Callable[[int], bytes],
    ) -> None:
        super().__init__(cipher_for, suites, random)
        check_secret(tag_key, "tag key")
        self._tag_key = tag_key
        self._begin(mode, context)
        self._ephemeral: SealKey | None = None

    @property
    def ephemeral_public(self) -> bytes:
        """The ephemeral public key, once started: a responder must not answer its own."""
        if self._ephemeral is None:
            raise LocalProtocolError("the handshake has no ephemeral key now")
        return self._ephemeral.public

    def start(self) -> bytes:
        """The bytes of the first flight.

        Raises:
            LocalProtocolError: it was started before.
            UnknownSuiteError: the first suite is not installed.
        """
        if self._state is not _State.NEW:
            raise LocalProtocolError("the handshake was started before")
        suite = self._suites[0]
        self._ephemeral = self._cipher_for(suite).new_seal_key()
        public = self._ephemeral.public
        hello = encode_hello(
            Hello(
                mode=self._mode,
                suites=self._suites,
                ephemeral_suite=suite,
                ephemeral=public,
                tag=blinded_tag(self._tag_key, self._mode, public),
            )
        )
        _have(self._transcript).add("first flight", hello)
        self._state = _State.WAITING
        return frame(hello)

    def _on_message(self, message: bytes) -> list[Event]:
        answer = decode_answer(message)
        if answer.suite not in self._suites:
            raise RemoteProtocolError("the peer chose a suite that was not offered")
        self._cipher = self._cipher_for(answer.suite)
        transcript = _have(self._transcript)
        self._secret = _have(self._ephemeral).open(
            answer.sealed, seal_info(transcript.digest())
        )
        if len(self._secret) != HASH_SIZE:
            raise RemoteProtocolError("session secret of the wrong size")
        # From here on nobody, this device included, can open the sealed secret again.
        self._ephemeral = None
        transcript.add("answer", answer.suite.encode(), answer.sealed)
        return self._read_proof(answer.proof)

    def _on_accepted(self) -> list[Event]:
        flight = Send(data=frame(self._make_proof()))
        return [flight, self._establish()]

    def _check_early(self) -> None:
        # The responder has nothing to say before the third flight, except that it gives up.
        if len(self._inbox):
            self._inbox.pop()
            raise RemoteProtocolError("the responder spoke out of turn")

    def _forget(self) -> None:
        super()._forget()
        self._ephemeral = None
        self._tag_key = b""


class Responder(_Machine):
    """The side that accepted the stream.

    `find_tag(mode, ephemeral, tag)` compares the tag with `blinded_tag` of each tag key
    (in constant time: `hmac.compare_digest`) and returns what the device brings to that
    channel or invitation, or None. `suites` are the acceptable ones, in any order.
    """

    role: Role = "responder"
    peer_role: Role = "initiator"

    def __init__(
        self,
        *,
        cipher_for: Callable[[str], Cipher],
        suites: Sequence[str],
        find_tag: Callable[[Mode, bytes, bytes], HandshakeContext | None],
        random: Callable[[int], bytes],
        own_ephemerals: Container[bytes] = (),
    ) -> None:
        super().__init__(cipher_for, suites, random)
        self._find_tag = find_tag
        self._own_ephemerals = own_ephemerals
        self._answered = False
        self._state = _State.WAITING

    def _on_message(self, message: bytes) -> list[Event]:
        if self._answered:
            return self._read_proof(message)
        self._answered = True
        answer = self._answer(decode_hello(message), message)
        if len(self._inbox):
            raise RemoteProtocolError("the initiator spoke out of turn")
        return [Send(data=frame(answer))]

    def _answer(self, hello: Hello, message: bytes) -> bytes:
        if hello.ephemeral in self._own_ephemerals:
            raise RemoteProtocolError("our own first flight came back", reason="reflected")
        common = [name for name in hello.suites if name in self._suites]
        if hello.ephemeral_suite not in common:
            raise RemoteProtocolError("no common suite", reason="suite")
        context = self._find_tag(hello.mode, hello.ephemeral, hello.tag)
        if context is None:
            raise RemoteProtocolError("nothing here has that tag", reason="unknown-tag")
        transcript = self._begin(hello.mode, context)
        transcript.add("first flight", message)
        # The initiator's order counts; what both know first on its list is chosen.
        self._cipher = self._cipher_for(common[0])
        self._secret = self._random(HASH_SIZE)
        check_secret(self._secret, "random secret")
        sealed = self._cipher_for(hello.ephemeral_suite).seal(
            hello.ephemeral, self._secret, seal_info(transcript.digest())
        )
        transcript.add("answer", common[0].encode(), sealed)
        return encode_answer(
            Answer(suite=common[0], sealed=sealed, proof=self._make_proof())
        )

    def _on_accepted(self) -> list[Event]:
        return [self._establish()]

    def _check_early(self) -> None:
        # The initiator is established already and may have begun to send records.
        if len(self._inbox) > MAX_EARLY:
            raise RemoteProtocolError("too much before the session stands", reason="too-large")


def _have(value: T | None) -> T:
    """A value that the state of the machine guarantees."""
    if value is None:
        raise LocalProtocolError("the handshake is not that far")
    return value


__all__ = [
    "MAX_EARLY",
    "MAX_MESSAGE",
    "REFUSAL",
    "Established",
    "Event",
    "HandshakeContext",
    "Initiator",
    "PeerPresented",
    "Responder",
    "Send",
]
