"""What no honest device does: with a member's real keys, or with stolen ones."""

from __future__ import annotations

import os
from typing import Any

import anyio

from tests.real.rulebreaking import tips, write_acts
from walyoff import Device, RemoteProtocolError, frames, plugins
from walyoff.abc import SignKey
from walyoff.certificates import Certificate, encode
from walyoff.channel import Channel
from walyoff.epochs import SALT_SIZE, seal_anchor
from walyoff.records import KIND_MESSAGE, Batch, Record, commit, make_batch, signed_message
from walyoff.session.dialling import dial
from walyoff.session.handshake import HandshakeContext, Initiator, PeerPresented
from walyoff.session.peer import Session

#: The channel of the attacking device.
_HOUR_MS = 3600 * 1000


def _channel(device: Device) -> Channel:
    return device.channels()[0]


# ------------------------------------------------------------------- forged authors


async def _forged(channel: Channel, victim: str, content: bytes, *, own: bool) -> Any:
    """A batch in the victim's name, by our key: (batch, signature, contents, certificate)."""
    engine = channel.engine
    certificate = engine.credentials.certificate
    encoded = engine.credentials.encoded
    if not own:
        for data in await engine.trust.all_encoded():
            trusted = await engine.trust.add(data)
            if trusted.certificate.member == victim:
                certificate, encoded = trusted.certificate, data
    head = engine.reconciler.heads[victim]
    salt = os.urandom(32)
    batch: Batch = make_batch(
        channel=channel.did,
        author=victim,
        certificate_id=certificate.certificate_id,
        first_seq=head.seq + 1,
        prev=head.record_id,
        seen=(),
        records=[Record(1, KIND_MESSAGE, (), len(content), commit(salt, content))],
    )
    signature = engine.credentials.sign_key.sign(signed_message(batch.batch_id))
    return batch, signature, ((salt, content),), encoded


async def forge_over_session(device: Device, *, victim: str, content: bytes, own: bool) -> None:
    """Push a batch in another member's name over every session."""
    channel = _channel(device)
    batch, signature, contents, encoded = await _forged(channel, victim, content, own=own)
    for link in channel.engine.links.values():
        link.send(frames.CertificateFrame(encoded))
        link.send(frames.BatchFrame(batch.body, signature, contents))


async def forge_on_ledger(device: Device, *, victim: str, content: bytes, own: bool) -> str:
    """Anchor a batch in another member's name; returns the block's name."""
    channel = _channel(device)
    batch, signature, _, encoded = await _forged(channel, victim, content, own=own)
    payload = seal_anchor(
        channel.engine.anchors.newest_epoch(),
        [encoded],
        [(batch.body, signature)],
        salt=os.urandom(SALT_SIZE),
    )
    return (await channel.foundation.ledger.append(payload)).ref


# ------------------------------------------------------------------ altered content

_send = Session.send


async def alter_contents_for(device: Device, *, did: str, times: int) -> None:
    """From now on alter what is sent to one member: whole contents, so many times."""
    left = [times]

    def altered(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        left[0] -= 1
        return pair[0], bytes(len(pair[1]))

    def send(session: Session, data: bytes) -> None:
        frame = frames.decode(data)
        if session.did == did and left[0] > 0:
            match frame:
                case frames.BatchFrame(body, signature, contents):
                    contents = tuple(pair and altered(pair) for pair in contents)
                    data = frames.encode(frames.BatchFrame(body, signature, contents))
                case frames.ContentsFrame(contents):
                    changed = tuple((c[0], *altered(c[1:])) for c in contents)
                    data = frames.encode(frames.ContentsFrame(changed))
                case _:
                    pass
        _send(session, data)

    setattr(Session, "send", send)  # noqa: B010 - a method is replaced on purpose


# ------------------------------------------------------------------------- dialling


async def tag_key(device: Device) -> bytes:
    """What a former member may have given away."""
    return _channel(device).state.tag_key


async def dial_as_stranger(device: Device, *, address: str) -> bytes:
    """Begin a handshake about a channel of our own; all that the other side answers."""
    channel = _channel(device)
    machine = Initiator(
        cipher_for=plugins.suite,
        suites=device.suites(),
        mode="member",
        tag_key=channel.state.tag_key,
        context=channel.handshake_context(),
        random=os.urandom,
    )
    heard = b""
    stream = await device.connect_stream(address)
    async with stream:
        await stream.send(machine.start())
        try:
            while True:
                heard += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return heard


async def _try(device: Device, address: str, key: bytes, context: HandshakeContext) -> str:
    """Dial as a member; the reason of the refusal, or what was heard if there was none."""

    async def trust_anybody(presented: PeerPresented) -> None:
        """An attacker does not check."""

    try:
        session = await dial(
            await device.connect_stream(address),
            mode="member",
            tag_key=key,
            context=context,
            suites=device.suites(),
            judge=trust_anybody,
        )
        # The initiator is established before it knows what the responder thinks of it.
        async with session.run():
            async for frame in session.frames():
                return f"let in: {frame}"
    except RemoteProtocolError as error:
        return error.reason
    return "ended"


class _LyingKey:
    """A key of our own that says it is another one."""

    def __init__(self, public: bytes, own: SignKey) -> None:
        self.public = public
        self._own = own

    def sign(self, message: bytes) -> bytes:
        return self._own.sign(message)

    def secret(self) -> bytes:
        return self._own.secret()


async def dial_with_stolen_certificate(device: Device, *, address: str, victim: str) -> str:
    """Present another member's certificate with a key of our own."""
    channel = _channel(device)
    for data in await channel.engine.trust.all_encoded():
        trusted = await channel.engine.trust.add(data)
        if trusted.certificate.member == victim:
            context = HandshakeContext(
                channel=channel.did,
                sign_key=_LyingKey(
                    trusted.certificate.sign_public,
                    plugins.suite(device.suite).new_sign_key(),
                ),
                certificate=data,
            )
            return await _try(device, address, channel.state.tag_key, context)
    return "no certificate"


async def dial_as_non_member(device: Device, *, address: str, channel: str, key: bytes) -> str:
    """Know the channel's tag key, and have a DID and a certificate, but no membership."""
    did = await device.did()
    cipher = plugins.suite(device.suite)
    sign_key, seal_key = cipher.new_sign_key(), cipher.new_seal_key()
    now_ms = device.runtime.wall_ms()
    certificate = Certificate(
        channel=channel,
        member=did,
        suite=device.suite,
        key_types=cipher.key_types,
        sign_public=sign_key.public,
        seal_public=seal_key.public,
        not_before_ms=now_ms - _HOUR_MS,
        not_after_ms=now_ms + _HOUR_MS,
    )
    signature = await device.platform.certify(did, certificate.body())
    context = HandshakeContext(
        channel=channel, sign_key=sign_key, certificate=encode(certificate, signature)
    )
    return await _try(device, address, key, context)


# --------------------------------------------------------------------------- chains


async def chains(device: Device) -> dict[str, tuple[str, list[bytes]]]:
    """What anybody can have who knows the chains' names: (chain, block files) of both."""
    channel = _channel(device)
    node: Any = device.platform.ipfs
    ledger: Any = channel.foundation.ledger
    found = {}
    for name, chain in (
        ("identity", channel.did.rpartition(":")[2]),
        ("ledger", ledger.chain_id),
    ):
        args = {"chain": chain, "known": None, "limit_bytes": 1 << 25}
        found[name] = (chain, (await node.call("chain.export", args))["files"])
    return found


#: What is written to the chain is in a module of its own.
RULE_BREAKING = (tips, write_acts)
