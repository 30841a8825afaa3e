"""A member, or one that was, with a client of its own: it writes to the identity's chain.

What it writes is signed by all the keys that it has, and stands on any blocks that it likes.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from walyoff import Device
from walyoff.child.acts import Claim, expand, pin_of
from walyoff.child.blocks import BlockFile, decode_block
from walyoff.testing.walytis_blocks import make_block
from walyoff.walytis.ledger import export_chain

_TOPICS = {
    "join": ["GroupDidManager", "member_joining"],
    "leave": ["GroupDidManager", "member_leaving"],
    "renew": ["DidManager", "control_key"],
    "segment": ["walyoff_segment"],
    "rules": ["walyoff_rules"],
    "admin": ["walyoff_rules"],
}
STRANGER = "did:walytisidentities:QmStranger"
Sign = Callable[[str, bytes], Awaitable[bytes]]


async def tips(device: Device) -> list[str]:
    """The newest blocks of the identity's chain, as this device has it."""
    blocks = await _blocks(device)
    parents = {parent for block in blocks.values() for parent in block.parents}
    return sorted(cid for cid in blocks if cid not in parents)


async def write_acts(
    device: Device,
    *,
    kinds: Sequence[str],
    about: str = STRANGER,
    parents: Sequence[str] | None = None,
    old_format: bool = False,
) -> dict[str, int]:
    """Write one act of each kind; returns how many blocks this device's own chain took."""
    channel = device.channels()[0]
    child: Any = device.platform.ipfs
    chain = channel.did.split(":")[-1]
    taken = {}
    for kind in kinds:
        blocks = await _blocks(device)
        on = list(parents or await tips(device))
        if len(on) == 1 and on != [chain]:
            on.append(chain)
        made = await _content(device, kind, about, on, old_format=old_format)
        ids = [blocks[parent].short_id for parent in on]
        file = make_block(made, [*_TOPICS[kind], chain], ids)
        answer = await child.call("chain.import", {"chain": chain, "files": [file]})
        taken[kind] = answer["admitted"]
        await child.call("chain.announce", {"chain": chain})
    return taken


async def _blocks(device: Device) -> dict[str, BlockFile]:
    child: Any = device.platform.ipfs
    chain = device.channels()[0].did.split(":")[-1]
    files = await export_chain(child, chain)
    return {block.cid: block for block in map(decode_block, files)}


async def _content(
    device: Device, kind: str, about: str, parents: Sequence[str], *, old_format: bool
) -> bytes:
    channel = device.channels()[0]
    child: Any = device.platform.ipfs

    async def sign(did: str, data: bytes) -> bytes:
        signature: bytes = await child.call("did.sign", {"did": did, "data": data})
        return signature

    new = f"|evil {os.urandom(8).hex()}"
    claim = Claim(
        group=channel.did,
        kind=kind,
        by=channel.me,
        subject={"renew": "", "rules": "", "segment": "Qm" + "1" * 44}.get(kind, about),
        pin=b"" if kind in ("rules", "admin", "segment") else bytes(32),
        rule="any" if kind == "rules" else "",
        nonce=os.urandom(16),
        parents=tuple(parents),
    )
    if kind == "renew":
        answer = await child.call("group.control_keys", {"did": channel.did})
        return await _renewal(claim, str(answer["id"]), new, sign)
    body = claim.body()
    approval = await sign(channel.me, body)
    if kind not in ("join", "leave"):
        return claim.as_block(approval, expand(await sign(channel.did, body)))
    field = claim.as_field(approval)
    if old_format:
        names = ("act", "group", "pin", "nonce")
        field = {"v": 1, **{name: field[name] for name in names}}
    info = {"did": about, "invitation": "{}", "walyoff": field}
    signed = expand(await sign(channel.did, json.dumps(info).encode()))
    return _json({"info_content": info}, signed)


async def _renewal(claim: Claim, old: str, new: str, sign: Sign) -> bytes:
    claim = Claim(
        group=claim.group,
        kind="renew",
        by=claim.by,
        pin=pin_of(new),
        nonce=claim.nonce,
        parents=claim.parents,
    )
    signed = expand(await sign(claim.group, f"{old}--{new}".encode()))
    field = claim.as_field(await sign(claim.by, claim.body()))
    return _json({"old_keys": old, "new_keys": new, "walyoff": field}, signed)


def _json(value: dict[str, Any], signature: bytes) -> bytes:
    text = base64.urlsafe_b64encode(signature).decode()
    return json.dumps({**value, "signature": text, "priblocks_version": [0, 0, 1]}).encode()
