"""Blocks and files of several chains, as members of an identity name and exchange them.

Decided here: the form, `chain/block` for a name and `pack([chain, file])` for a file; and how
many blocks of chains that somebody shows are named when others are asked for newer ones. Who
is asked is decided in `walyoff.engine.newcomers`, what is given in `walyoff.child.households`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from walyoff import frames
from walyoff.child.acts import chain_of
from walyoff.errors import RemoteProtocolError
from walyoff.wire import expect_array, expect_bytes, expect_str, pack, unpack

#: A block file and its chain's name around it.
MAX_FILE = 2 * 1024 * 1024
MAX_CHAIN_NAME = 128
#: Chains of one question: who joins, and those below it.
MAX_ASKED = 256


def pack_files(files: Mapping[str, Sequence[bytes]]) -> list[bytes]:
    """The block files of chains, as they travel."""
    return [pack([chain, file]) for chain, given in files.items() for file in given]


def unpack_files(
    packed: Iterable[bytes], into: dict[str, list[bytes]] | None = None
) -> dict[str, list[bytes]]:
    """The inverse, added to what was there. Raises RemoteProtocolError."""
    found = {} if into is None else into
    for item in packed:
        chain, file = expect_array(unpack(item, MAX_FILE), 2, "block file")
        name = expect_str(chain, "chain", limit=MAX_CHAIN_NAME)
        data = expect_bytes(file, "file", limit=MAX_FILE)
        found.setdefault(name, []).append(data)
    return found


def unpack_good(packed: Iterable[bytes]) -> dict[str, list[bytes]]:
    """The same of what several members brought: none spoils what another one did."""
    found: dict[str, list[bytes]] = {}
    for item in packed:
        try:
            unpack_files((item,), found)
        except RemoteProtocolError:
            continue
    return found


def by_chain(names: Iterable[str]) -> dict[str, list[str]]:
    """The named blocks of each chain."""
    found: dict[str, list[str]] = {}
    for name in names:
        chain, _, ref = name.partition("/")
        found.setdefault(chain, []).append(ref)
    return found


def name_blocks(chains: Mapping[str, Sequence[bytes]]) -> list[str]:
    """The names of the blocks of chains, by DID: of long chains some, the newest first.

    As many as a question holds. Decodes each file, a tenth of a millisecond.
    """
    from walyoff.child.blocks import decode_block  # noqa: PLC0415  (only when somebody joins)

    named: list[str] = []
    share = frames.MAX_REFS // max(min(len(chains), MAX_ASKED), 1) - 1
    for did, files in islice(chains.items(), MAX_ASKED):
        try:
            chain = chain_of(did)
        except RemoteProtocolError:
            # Nobody has a chain of what is no DID.
            continue
        refs: list[str] = []
        for file in files:
            try:
                refs.append(decode_block(file).cid)
            except RemoteProtocolError:
                # It is refused where it is taken.
                continue
        step = max(-(-len(refs) // share), 1)
        # A chain is named by its first block: who knows the chain knows that one.
        named += [f"{chain}/{ref}" for ref in (*refs[::-step], chain)]
    return named


__all__ = ["by_chain", "name_blocks", "pack_files", "unpack_files", "unpack_good"]
