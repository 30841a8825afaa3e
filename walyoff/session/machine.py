"""What the two sides of a handshake have in common: states, proofs, keys, and dying.

The order of the flights, and what each side may say when, is decided in `handshake`; this
module holds the steps that are the same in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeVar

from walyoff.abc import Aead, Cipher, SignKey
from walyoff.certificates import SignedCertificate, decode
from walyoff.errors import (
    CipherError,
    LocalProtocolError,
    RemoteProtocolError,
    UnknownSuiteError,
)
from walyoff.session.flights import (
    REFUSAL,
    Inbox,
    Proof,
    check_suites,
    decode_proof,
    encode_proof,
)
from walyoff.session.transcript import (
    MODES,
    Mode,
    Role,
    SessionKeys,
    Transcript,
    check_secret,
    derive,
    signed_message,
    traffic_keys,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Bytes for the stream, framed already."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPresented:
    """The peer showed a certificate, and signed this handshake with the key that is in it.

    Whose key it is has not been checked: the driver verifies the membership, the member's
    signature and the validity, and calls `accept()` or `refuse()`.
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
    #: 32 bytes that both sides hold: the invitation's secret in mode "join", of an epoch in
    #: mode "introduce"; these require it.
    psk: bytes | None = field(default=None, repr=False)


class State(Enum):
    NEW = auto()
    WAITING = auto()
    JUDGING = auto()
    ESTABLISHED = auto()
    DEAD = auto()


class Machine:
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
        self._state = State.NEW
        self._context: HandshakeContext | None = None
        self._own: SignedCertificate | None = None
        self._mode: Mode = "member"
        self._transcript: Transcript | None = None
        self._cipher: Cipher | None = None
        self._secret = b""
        self._peer: SignedCertificate | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.name.lower()}>"

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes from the stream, in pieces of any size.

        Raises:
            RemoteProtocolError: the peer broke the protocol, proved nothing, or refused
                (reason "refused"). The machine is dead; send `REFUSAL` and close.
            LocalProtocolError: the machine has not been started, or is finished.
        """
        if self._state not in (State.WAITING, State.JUDGING):
            raise LocalProtocolError(f"the handshake is {self._state.name.lower()}")
        try:
            self._inbox.add(data)
            if self._state is State.JUDGING:
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
        """The presented certificate is trusted: go on.

        Raises:
            LocalProtocolError: no certificate is waiting for a decision.
        """
        if self._state is not State.JUDGING:
            raise LocalProtocolError(f"the handshake is {self._state.name.lower()}")
        try:
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
        if self._state is State.ESTABLISHED:
            raise LocalProtocolError("the session is established")
        self._forget()
        return [Send(data=REFUSAL)]

    def eof(self) -> None:
        """The stream ended before the handshake did.

        Raises:
            RemoteProtocolError: always, unless the handshake is over.
        """
        if self._state not in (State.ESTABLISHED, State.DEAD):
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
        elif mode != "member":
            # Without it anybody could read the responder's certificate.
            raise LocalProtocolError(f"mode {mode!r} needs a secret that both sides hold")
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
        cipher, context = have(self._cipher), have(self._context)
        key = derive(
            self._secret, context.psk, cipher.aead_key_size, f"proof {role}", transcript
        )
        return cipher.aead(key), bytes(cipher.aead_nonce_size)

    def _make_proof(self) -> bytes:
        """Sign the transcript with the own certificate in it, and encrypt both."""
        context, transcript = have(self._context), have(self._transcript)
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
        """Decrypt and check the peer's proof, and present its certificate to the driver.

        The signature over the transcript is the first thing that is checked after the form:
        who shows a certificate without its key costs the driver nothing, and is refused alike
        and after the same time whosever certificate it is, this device's own as well.
        """
        before = have(self._transcript).digest()
        aead, nonce = self._proof_aead(self.peer_role, before)
        proof = decode_proof(aead.decrypt(nonce, encrypted, before))
        peer = decode(proof.certificate)
        self._check_certificate(peer)
        transcript = have(self._transcript)
        transcript.add(f"{self.peer_role} certificate", proof.certificate)
        self._cipher_for(peer.certificate.suite).verify(
            peer.certificate.sign_public,
            signed_message(self.peer_role, self._mode, transcript.digest()),
            proof.signature,
        )
        self._refuse_own(peer)
        transcript.add(f"{self.peer_role} signature", proof.signature)
        self._peer = peer
        self._state = State.JUDGING
        self._check_early()
        return [PeerPresented(certificate=peer, encoded=proof.certificate)]

    def _check_certificate(self, peer: SignedCertificate) -> None:
        """What can be said about a certificate without asking anybody."""
        theirs = peer.certificate
        # A joining device has no certificate of the channel yet, and may not know its id.
        if self._mode != "join" and theirs.channel != have(self._context).channel:
            raise RemoteProtocolError("certificate of another channel", reason="channel")
        if theirs.suite not in self._suites:
            raise RemoteProtocolError("certificate of an unwanted suite", reason="suite")
        if theirs.key_types != self._cipher_for(theirs.suite).key_types:
            raise RemoteProtocolError("key types are not those of the suite", reason="suite")

    def _refuse_own(self, peer: SignedCertificate) -> None:
        theirs, own = peer.certificate, have(self._own).certificate
        if (
            theirs.certificate_id == own.certificate_id
            or theirs.sign_public == own.sign_public
            or theirs.seal_public == own.seal_public
        ):
            raise RemoteProtocolError("the peer presents our own keys", reason="reflected")

    def _establish(self) -> Established:
        own, peer = have(self._own), have(self._peer)
        context = have(self._context)
        responder, initiator = (own, peer) if self.role == "responder" else (peer, own)
        keys = traffic_keys(
            have(self._cipher),
            self._secret,
            context.psk,
            transcript=have(self._transcript).digest(),
            channel=context.channel,
            responder_certificate=responder.certificate.certificate_id,
            initiator_certificate=initiator.certificate.certificate_id,
        )
        leftover = self._inbox.take_rest()
        self._forget()
        self._state = State.ESTABLISHED
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
        self._state = State.DEAD
        self._secret = b""
        self._context = self._own = self._peer = None
        self._transcript = self._cipher = None
        self._inbox = Inbox()


def have(value: T | None) -> T:
    """A value that the state of the machine guarantees."""
    if value is None:
        raise LocalProtocolError("the handshake is not that far")
    return value


__all__ = [
    "Established",
    "Event",
    "HandshakeContext",
    "Machine",
    "PeerPresented",
    "Send",
    "State",
    "have",
]
