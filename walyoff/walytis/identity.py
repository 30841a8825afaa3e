"""A Walytis identity as a `walyoff.abc.Identity`, seen by one member device.

The chain, the keys and the reading of membership are in the child process; here is the
newest verified snapshot, and the hand-over of everything that another device needs.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from types import MappingProxyType
from typing import Any

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import ObjectReceiveStream

from walyoff.abc import Membership
from walyoff.child.acts import RULE_ANY
from walyoff.errors import (
    ChildError,
    LocalProtocolError,
    NotAMemberError,
    RemoteProtocolError,
    WalyoffError,
)
from walyoff.fanout import Fanout
from walyoff.tasks import background_tasks
from walyoff.threads import run_in_thread
from walyoff.walytis.decoding import (
    GRANT_VERSION,
    MAX_KEY_GROUP,
    MAX_SECRETS,
    decode_files,
    decode_grant,
    decode_membership,
    did_and_pin,
)
from walyoff.walytis.ledger import (
    FILES_TIME,
    RECONCILE_INTERVAL,
    export_chain,
    import_chain,
)
from walyoff.walytis.newer import MAX_ASKED, by_chain, name_blocks, pack_files, unpack_good
from walyoff.walytis.process import Child
from walyoff.walytis.register import RegisterLedger
from walyoff.wire import (
    expect_bytes,
    expect_int,
    expect_str,
    pack,
)

DID_PREFIX = "did:walytisidentities:"
#: Seconds for a call that makes keys, chains and post-quantum signatures.
SLOW_CALL = 60.0
_CHANGED = "changed"

_log = logging.getLogger(__name__)


class WalytisIdentity(AsyncContextManagerMixin):
    """One identity. Enter it (`async with`) to follow changes; a snapshot needs no entering."""

    def __init__(
        self,
        child: Child,
        did: str,
        pin: bytes,
        member_did: str,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._child = child
        self._options = dict(options)
        self._did = did
        self._pin = pin
        self._member_did = member_did
        self._membership = Membership(did=did, members=())
        self._segment: str | None = None
        self._lock = anyio.Lock()
        # A consumer that is slow gets the newest snapshot, so one waits at most.
        self._changes: Fanout[Membership] = Fanout(1)

    def __repr__(self) -> str:
        current = len(self._membership.current())
        return f"<WalytisIdentity {self._did} [{current} members]>"

    # ---------------------------------------------------------------------- making

    @classmethod
    async def create_device_did(cls, child: Child) -> tuple[str, bytes]:
        """A new DID for this device; its keys stay in the child. Returns (DID, pin)."""
        return did_and_pin(await child.call("did.create", {}, timeout=SLOW_CALL))

    @classmethod
    async def renew_did(cls, child: Child, did: str) -> None:
        """Replace the control keys of a DID of this device."""
        await child.call("did.renew", {"did": did}, timeout=SLOW_CALL)

    @classmethod
    async def forget(cls, child: Child, did: str) -> None:
        """Delete an identity's control keys from this device, and follow it no longer."""
        await child.call("group.forget", {"did": did}, timeout=SLOW_CALL)

    @classmethod
    async def export_did(cls, child: Child, did: str) -> list[bytes]:
        """The chain of a DID that is held here: what `add_member` on another device needs."""
        return await export_chain(child, did.removeprefix(DID_PREFIX))

    @classmethod
    async def export_family(cls, child: Child, did: str) -> dict[str, list[bytes]]:
        """The chains below an identity that is open here, by DID."""
        answer = await child.call("did.family", {"did": did}, timeout=FILES_TIME)
        match answer:
            case {"family": dict() as family}:
                return {str(kin): decode_files(files) for kin, files in family.items()}
        raise ChildError("the child's answer is no family")

    @classmethod
    async def create(
        cls,
        child: Child,
        member_did: str,
        *,
        first: str | None = None,
        rule: str = RULE_ANY,
        guarded: bool = False,
        segment_blocks: int | None = None,
    ) -> WalytisIdentity:
        """A new identity whose only member is this device, or `first`: an identity above it.

        `rule` says who may invite and remove (`walyoff.abc.Governance`); `guarded` and
        `segment_blocks` are as in `open`.
        """
        options = _options(guarded, segment_blocks)
        args = {"member_did": member_did, "first": first, "rule": rule, **options}
        did, pin = did_and_pin(await child.call("group.create", args, timeout=SLOW_CALL))
        return await cls._opened(child, did, pin, member_did, options)

    @classmethod
    async def open(
        cls,
        child: Child,
        did: str,
        pin: bytes,
        member_did: str,
        *,
        guarded: bool = False,
        segment_blocks: int | None = None,
    ) -> WalytisIdentity:
        """An identity that this device has had before.

        With `guarded` the register takes nothing but anchors under epochs whose keys its
        ledger was told (`RegisterLedger.learn_keys`); a device opens an identity in the same
        way each time. `segment_blocks` is for tests: the blocks of one segment.

        Raises:
            LocalProtocolError: it is not held here.
            RemoteProtocolError: its chain does not begin with the pinned keys.
        """
        options = _options(guarded, segment_blocks)
        args = {"did": did, "pin": pin, "member_did": member_did, **options}
        await child.call("group.open", args, timeout=SLOW_CALL)
        return await cls._opened(child, did, pin, member_did, options)

    @classmethod
    async def adopt(
        cls,
        child: Child,
        grant: bytes,
        member_did: str,
        *,
        guarded: bool = False,
        segment_blocks: int | None = None,
    ) -> WalytisIdentity:
        """Become a device of an identity, by what one of its devices granted in a session.

        Raises:
            RemoteProtocolError: the grant is malformed, not for this device, or does not
                fit the identity's chain.
        """
        args = decode_grant(grant)
        did, pin = args["did"], args["pin"]
        options = _options(guarded, segment_blocks)
        call = {**args, "member_did": member_did, **options}
        await child.call("group.adopt", call, timeout=FILES_TIME)
        return await cls._opened(child, did, pin, member_did, options)

    @classmethod
    async def _opened(
        cls, child: Child, did: str, pin: bytes, member_did: str, options: Mapping[str, Any]
    ) -> WalytisIdentity:
        identity = cls(child, did, pin, member_did, options)
        await identity.refresh()
        return identity

    # -------------------------------------------------------------------- following

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[WalytisIdentity]:
        self._child.on_restart.append(self._reopen)
        try:
            async with (
                self._child.events("group.changed") as events,
                background_tasks() as tasks,
            ):
                tasks.start_soon(self._follow, events)
                yield self
        finally:
            self._child.on_restart.remove(self._reopen)
            self._changes.close()

    async def _follow(self, events: ObjectReceiveStream[Any]) -> None:
        while True:
            try:
                await self.refresh()
                with anyio.move_on_after(RECONCILE_INTERVAL):
                    while True:
                        event = await events.receive()
                        if isinstance(event, dict) and event.get("did") == self._did:
                            break
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                return
            except WalyoffError as error:
                _log.debug("following %s: %s", self._did, error)
                await anyio.sleep(1)

    async def _reopen(self) -> None:
        await self._child.call("group.open", self._group(), timeout=SLOW_CALL)
        await self.refresh()

    def _group(self) -> dict[str, Any]:
        """The arguments that open the group in a child."""
        known = {"did": self._did, "pin": self._pin, "member_did": self._member_did}
        return {**known, **self._options}

    async def refresh(self) -> Membership:
        """Read the membership now. Raises ChildError."""
        async with self._lock:
            answer = await self._child.call("group.membership", {"did": self._did})
            membership, self._segment = decode_membership(self._did, answer)
            if membership != self._membership:
                self._membership = membership
                self._changes.publish(_CHANGED, membership)
        return self._membership

    @property
    def did(self) -> str:
        """The identity's DID; also the channel's id."""
        return self._did

    @property
    def pin(self) -> bytes:
        """The fingerprint of the identity's first control keys."""
        return self._pin

    @property
    def member_did(self) -> str:
        """The DID of this device."""
        return self._member_did

    @property
    def membership(self) -> Membership:
        """The newest verified snapshot."""
        return self._membership

    @property
    def segment(self) -> str | None:
        """The chain of the channel's first anchor segment, once the chain names it."""
        return self._segment

    def changes(self) -> AbstractAsyncContextManager[ObjectReceiveStream[Membership]]:
        """New snapshots, newest last. Slow consumers get the newest."""
        changes: Fanout[Membership] = self._changes
        return changes.subscribe(_CHANGED)

    async def control_keys(self) -> str:
        """The id of the identity's current control keys (see `walyoff.abc.Identity`)."""
        answer = await self._child.call("group.control_keys", {"did": self._did})
        if not isinstance(answer, dict):
            raise ChildError("the child's answer is no map")
        return expect_str(answer.get("id"), "key group", limit=MAX_KEY_GROUP)

    # ------------------------------------------------------------------ signatures

    async def certify(self, body: bytes) -> bytes:
        """Sign a certificate body with this device's control keys (about 15 ms)."""
        args = {"did": self._member_did, "data": body}
        signature = await self._child.call("did.sign", args, timeout=SLOW_CALL)
        return expect_bytes(signature, "signature", limit=1 << 16)

    async def verify(self, did: str, body: bytes, signature: bytes) -> int:
        """Check a signature of a member's control keys (see `walyoff.abc.Identity`)."""
        args = {"group": self._did, "did": did, "data": body, "signature": signature}
        found = await self._child.call("did.verify", args)
        if found == "not_member":
            raise NotAMemberError("the DID was never a member of the identity")
        if not isinstance(found, int):
            reason = found.replace("_", "-") if isinstance(found, str) else "malformed"
            raise RemoteProtocolError("the control keys did not sign this", reason=reason)
        return found

    # --------------------------------------------------------------------- members

    async def add_member(
        self,
        did: str,
        chain: Sequence[bytes],
        *,
        family: Mapping[str, Sequence[bytes]] | None = None,
        purpose: str = "any",
        proof: tuple[bytes, bytes] | None = None,
        newer: Sequence[bytes] = (),
        pin: bytes | None = None,
    ) -> None:
        """Make a DID a member, given the block files of its own chain. Idempotent.

        With a pin the DID's first keys must be those; without, the chain must leave no
        doubt about them. `family` are the chains below an identity, by DID; `proof` is a text
        and the DID's signature over it; `newer` see `walyoff.abc.Identity`.

        Raises:
            RemoteProtocolError: the chain is malformed, another's, its keys are in doubt, or
                the proof does not hold.
            LocalProtocolError: it would stand under itself, or too deep, or its control keys
                were replaced.
        """
        args = {
            "did": self._did,
            "member_did": did,
            "files": list(chain),
            "pin": pin,
            "family": {kin: list(files) for kin, files in (family or {}).items()},
            "purpose": purpose,
            "proof": None if proof is None else list(proof),
            "newer": {f"{DID_PREFIX}{c}": f for c, f in unpack_good(newer).items()},
        }
        await self._child.call("group.add_member", args, timeout=SLOW_CALL)
        await self.refresh()

    async def remove_member(self, did: str) -> None:
        """End a membership; see `walyoff.abc.Identity`."""
        args = {"did": self._did, "member_did": did}
        await self._child.call("group.remove_member", args, timeout=SLOW_CALL)
        await self.refresh()

    async def make_admin(self, did: str) -> None:
        """Let a direct member invite and remove; see `walyoff.abc.Identity`."""
        args = {"did": self._did, "member_did": did}
        await self._child.call("group.make_admin", args, timeout=SLOW_CALL)
        await self.refresh()

    async def renew_keys(self) -> None:
        """Replace the control keys; see `walyoff.abc.Identity`."""
        await self._child.call("group.renew", {"did": self._did}, timeout=SLOW_CALL)
        await self.refresh()

    async def give_keys(self, wanted: Sequence[bytes]) -> bytes:
        """Control keys for another member; see `walyoff.abc.Identity`."""
        args = {"did": self._did, "wanted": list(wanted)}
        secrets = await self._child.call("group.secrets", args)
        return expect_bytes(secrets, "secrets", limit=MAX_SECRETS)

    async def take_keys(self, secrets: bytes) -> int:
        """Control keys from another member; see `walyoff.abc.Identity`."""
        args = {"did": self._did, "secrets": secrets}
        kept = expect_int(await self._child.call("group.take_secrets", args), "number")
        await self.refresh()
        return kept

    async def shown(
        self, did: str, chain: Sequence[bytes], family: Mapping[str, Sequence[bytes]]
    ) -> list[str]:
        """What to ask others with for newer blocks; see `walyoff.abc.Identity`."""
        return await run_in_thread(name_blocks, {did: chain, **family})

    async def newer(self, names: Sequence[str], limit: int) -> list[bytes]:
        """What is held here beyond such blocks; see `walyoff.abc.Identity`."""
        asked = islice(by_chain(names).items(), MAX_ASKED)
        known = {f"{DID_PREFIX}{chain}": refs for chain, refs in asked}
        answer = await self._child.call("did.newer", {"known": known, "limit": limit})
        if not isinstance(answer, dict):
            raise ChildError("the child's answer is no map")
        return pack_files({did.removeprefix(DID_PREFIX): f for did, f in answer.items()})

    # ------------------------------------------------------------------- hand-over

    async def grant(self) -> bytes:
        """All that a joining device needs, secrets included: for a session alone."""
        args = {"did": self._did}
        export = await self._child.call("group.export", args, timeout=FILES_TIME)
        secrets = await self._child.call("group.secrets", args)
        if not isinstance(export, dict):
            raise ChildError("the child's answer is no map")
        return pack(
            {
                "v": GRANT_VERSION,
                "did": self._did,
                "pin": self._pin,
                "secrets": secrets,
                "files": export["files"],
                "member_files": export["members"],
                "segments": export["segments"],
                "segment_files": export["segment_files"],
            }
        )

    async def ledger(self) -> RegisterLedger:
        """The channel's register, its newest segment opened.

        Raises:
            LocalProtocolError: the chain names none yet, or it is not held here.
        """
        if self._segment is None:
            await self.refresh()
        if self._segment is None:
            raise LocalProtocolError("the identity's chain names no segment yet")
        return await RegisterLedger.open_register(self._child, self._segment, self._group())

    async def leaves(self) -> dict[str, list[str]]:
        """The newest blocks of the identity's chain and of its members', by chain."""
        answer = await self._child.call("chain.leaves_of", {"chains": self._chains()})
        if not isinstance(answer, dict):
            raise ChildError("the child's answer is no map")
        return {str(chain): [str(ref) for ref in refs] for chain, refs in answer.items()}

    async def sync_files(
        self, known: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, list[bytes]]:
        """Block files that a device with these leaves lacks, by chain."""
        found: dict[str, list[bytes]] = {}
        for chain, leaves in (await self.leaves()).items():
            refs = None if known is None else known.get(chain)
            if refs is not None and set(leaves) <= set(refs):
                continue
            if files := await export_chain(self._child, chain, refs):
                found[chain] = files
        return found

    async def import_files(self, files: Mapping[str, Sequence[bytes]]) -> int:
        """Take another device's files; returns how many blocks were new.

        Chains that are neither the identity's nor a member's are left out.

        Raises:
            RemoteProtocolError: a chain that is not held here lacks its first block.
        """
        left = dict(files)
        admitted = 0
        # From the top down: one chain tells which others are wanted.
        while chains := [chain for chain in self._chains() if chain in left]:
            for chain in chains:
                admitted += (await import_chain(self._child, chain, left.pop(chain)))[0]
            await self.refresh()
        return admitted

    def _chains(self) -> list[str]:
        dids = [self._did, *self._membership.kin]
        return [did.removeprefix(DID_PREFIX) for did in dids]


def _options(guarded: bool, segment_blocks: int | None) -> dict[str, Any]:
    return {"guarded": guarded, "segment_blocks": segment_blocks}
