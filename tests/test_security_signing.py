"""Nobody signs what they do not mean: what a device signs while a member tries everything."""

from __future__ import annotations

import random

import anyio
import pytest

from tests.make_vectors import example_frames
from tests.sim.virtual import group, run
from walyoff import frames
from walyoff.abc import SignKey
from walyoff.certificates import DOMAIN as CERTIFICATE
from walyoff.certificates import decode
from walyoff.records import signed_message
from walyoff.session.transcript import DOMAIN as SESSION
from walyoff.wire import unpack

CHOSEN = b"chosen by somebody else"


class Watched:
    """A signing key that notes what it signs."""

    def __init__(self, inner: SignKey) -> None:
        self._inner = inner
        self.public = inner.public
        self.signed: list[bytes] = []

    def sign(self, message: bytes) -> bytes:
        self.signed.append(message)
        return self._inner.sign(message)

    def secret(self) -> bytes:
        return self._inner.secret()


def hostile_frames(seed: int) -> list[bytes]:
    """Frames of every type, good and with other bytes in them."""
    rng = random.Random(seed)
    found = [frames.encode(frame) for frame in example_frames().values()]
    found += [frames.encode(frames.ContentsFrame(((CHOSEN.ljust(32), bytes(32), CHOSEN),)))]
    found += [frames.encode(frames.WantCertificate(CHOSEN.ljust(32)))]
    found += [frames.encode(frames.CertificateFrame(CHOSEN))]
    found += [frames.encode(frames.BatchFrame(CHOSEN, CHOSEN, ()))]
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_a_device_signs_nothing_that_a_peer_chose(seed: int) -> None:
    async def main() -> None:
        async with group(2, seed=seed) as g:
            a, b = g.channels
            credentials = a.engine.credentials
            key = Watched(credentials.sign_key)
            a.engine.credentials = type(credentials)(
                credentials.certificate, credentials.encoded, key
            )
            certified: list[bytes] = []
            certify = a.foundation.identity.certify

            async def watched(body: bytes) -> bytes:
                certified.append(body)
                return await certify(body)

            a.foundation.identity.certify = watched  # type: ignore[method-assign]
            own = []
            for data in hostile_frames(seed):
                own.append(await a.send(b"mine"))
                await b.wait_peer(a.me)
                for link in list(b.engine.links.values()):
                    link.link.send(data)
                await anyio.sleep(0.3)
            # A handshake anew, as the initiator or as the responder.
            g.world.network.partition("a", "b")
            await anyio.sleep(15)
            g.world.network.repair()
            await a.wait_peer(b.me)
            batches = {signed_message(receipt._batch_id) for receipt in own}
            proofs = [message for message in key.signed if message not in batches]
            assert len(proofs) >= 1
            for message in proofs:
                domain, what, role, mode, transcript = unpack(message, 4096)
                assert (domain, what, mode) == (SESSION, "signature", "member")
                assert role in ("initiator", "responder")
                assert len(transcript) == 32
            assert batches <= set(key.signed)
            assert not any(CHOSEN in message for message in key.signed)
            for body in certified:
                assert unpack(body, 65536)[0] == CERTIFICATE
            assert decode(a.engine.credentials.encoded).certificate.member == a.me

    run("asyncio", main)
