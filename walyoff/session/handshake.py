"""The handshake: who may read and say what, and when; two machines without I/O.

The order of the flights is decided in this module; the steps that both sides share are in
`machine`. No clock is read; randomness is an argument (and key generation belongs to the
injected suite). Certificates are *trusted* by the driver, which answers `PeerPresented`
with `accept()` or `refuse()`.

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
- It is checked before the certificate is presented: asking who is a member, and checking its
  slow signature, is work for those alone who hold the certificate's key.
- A failed machine is dead. Its driver sends `REFUSAL`, the same bytes for every reason.

Signing and sealing take up to some milliseconds: drivers call the machines in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from walyoff.abc import Cipher, SealKey
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.session.flights import (
    MAX_MESSAGE,
    REFUSAL,
    Answer,
    Hello,
    decode_answer,
    decode_hello,
    encode_answer,
    encode_hello,
    frame,
)
from walyoff.session.machine import (
    Established,
    Event,
    HandshakeContext,
    Machine,
    PeerPresented,
    Send,
    State,
    have,
)
from walyoff.session.transcript import (
    HASH_SIZE,
    Mode,
    Role,
    blinded_tag,
    check_secret,
    seal_info,
)

#: Bytes of records that a responder keeps for an initiator that did not wait while its
#: certificate was being checked: some full records.
MAX_EARLY: Final = 2 * 1024 * 1024


class Initiator(Machine):
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

    def start(self) -> bytes:
        """The bytes of the first flight.

        Raises:
            LocalProtocolError: it was started before.
            UnknownSuiteError: the first suite is not installed.
        """
        if self._state is not State.NEW:
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
        have(self._transcript).add("first flight", hello)
        self._state = State.WAITING
        return frame(hello)

    def _on_message(self, message: bytes) -> list[Event]:
        answer = decode_answer(message)
        if answer.suite not in self._suites:
            raise RemoteProtocolError("the peer chose a suite that was not offered")
        self._cipher = self._cipher_for(answer.suite)
        transcript = have(self._transcript)
        self._secret = have(self._ephemeral).open(answer.sealed, seal_info(transcript.digest()))
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


class Responder(Machine):
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
    ) -> None:
        super().__init__(cipher_for, suites, random)
        self._find_tag = find_tag
        self._answered = False
        self._state = State.WAITING

    def _on_message(self, message: bytes) -> list[Event]:
        if self._answered:
            return self._read_proof(message)
        self._answered = True
        answer = self._answer(decode_hello(message), message)
        if len(self._inbox):
            raise RemoteProtocolError("the initiator spoke out of turn")
        return [Send(data=frame(answer))]

    def _answer(self, hello: Hello, message: bytes) -> bytes:
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
        return encode_answer(Answer(suite=common[0], sealed=sealed, proof=self._make_proof()))

    def _on_accepted(self) -> list[Event]:
        return [self._establish()]

    def _check_early(self) -> None:
        # The initiator is established already and may have begun to send records.
        if len(self._inbox) > MAX_EARLY:
            raise RemoteProtocolError("too much before the session stands", reason="too-large")


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
