"""Where the fuzzer begins: every value of the golden vectors, and pieces of them."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

from walyoff.child.renewals import PUBLIC_SIZE, SIGNATURE_SIZE

VECTORS = Path(__file__).parent.parent / "tests" / "vectors"
#: A device's renewal, with room for the key that it shows and a signature.
RENEWAL = (
    b'{"old_keys": "k", "new_keys": "n", "signature": "AAAA",'
    b' "walyoff": {"v": 3, "act": "renew", "group": "group", "key": "%s", "next": "'
    + b"00" * 32
    + b'", "sig": "%s"}}'
)
#: What the formats that are not ours begin like.
FOREIGN = (
    b'{"message": "New block!", "block_id": "AAAA"}',
    b'{"message": "Leaf blocks:", "leaf_blocks": ["AAAA"]}',
    b'{"info_content": {"did": "did:walytisidentities:x"}, "signature": "AAAA"}',
    b'{"old_keys": "k", "new_keys": "k", "signature": "AAAA"}',
    b'{"info_content": {"did": "d", "walyoff": {"v": 2, "act": "join", "group": "group",'
    b' "subject": "d", "pin": "'
    + b"00" * 32
    + b'", "nonce": "'
    + b"00" * 16
    + b'", "rule": "",'
    b' "after": ["b"], "by": "a", "sig": "AAAA"}}, "signature": "AAAA"}',
    RENEWAL % (b"", b"kQA="),
    RENEWAL % (b64encode(bytes(PUBLIC_SIZE)), b64encode(bytes(SIGNATURE_SIZE))),
    b'{"info_content": {"did": "d"}, "signature": "YWEtYmI=", "priblocks_version": [0, 0, 1]}',
    b'{"old_keys": "k", "new_keys": "n", "signature": "YWE=", "priblocks_version": [0, 0, 1]}',
    b"\x92\xa1c\xc0",
    b"\1\0\0cid\0\0time\0\0topic\0\0hash\0\0hash\0\0\0\0parent\0\0\0\0\0content",
)


def seeds() -> list[bytes]:
    """All of them, each once, in a fixed order."""
    found: dict[bytes, None] = dict.fromkeys(FOREIGN)
    for path in sorted(VECTORS.glob("*.json")):
        for text in _texts(json.loads(path.read_text())):
            try:
                found[bytes.fromhex(text)] = None
            except ValueError:
                found[text.encode()] = None
    return list(found)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
