"""The words that two people compare to know that their devices talk to one another.

Both ends of a session derive the same six words from its id, which is a key derived from the
whole transcript, both certificates and the invitation's secret. Somebody in the middle has
two sessions with two ids. The words are of the English list of BIP39 (2,048 words that differ
in their first four letters): 66 bits. A stranger in the middle cannot choose both sessions'
words; to make them equal it would have to try 2^66 certificates of its own within the ten
seconds of a handshake, so no exchange of commitments is needed before (as short strings need
it, RFC 6189 section 4.4.1).
"""

from __future__ import annotations

from functools import cache

from blake3 import blake3

#: Words, and bits of each.
COUNT = 6
_BITS = 11
_CONTEXT = "walyoff 2026-11 short authentication string"


@cache
def _list() -> tuple[str, ...]:
    from mnemonic import Mnemonic  # noqa: PLC0415 - read when it is needed: it is a file

    return tuple(Mnemonic("english").wordlist)


def session_words(session_id: bytes) -> tuple[str, ...]:
    """The words of a session; the same at both of its ends."""
    digest = blake3(session_id, derive_key_context=_CONTEXT).digest()
    number = int.from_bytes(digest, "big")
    words = _list()
    shifts = range(256 - _BITS, 256 - _BITS * (COUNT + 1), -_BITS)
    return tuple(words[number >> shift & (1 << _BITS) - 1] for shift in shifts)
