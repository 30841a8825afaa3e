"""What this device does to identities: it founds them, and acts as one of their members.

Decided here: in whose name it acts, what it writes, and what it refuses to write because the
chain's rules would not let it count (`reader` decides on every device whether it does). And
which control keys are held: new ones are kept before their block is written, others' ones
once the chain names them.
"""

from __future__ import annotations

import json
import logging
import secrets as random_source
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from walyoff.child.acts import (
    ADMIN,
    JOIN,
    LEAVE,
    NONCE_SIZE,
    PIN_SIZE,
    RENEW,
    RULE_ADMINS,
    RULE_ANY,
    RULES,
    RULES_KNOWN,
    SEGMENT,
    TOPIC_RULES,
    TOPIC_SEGMENT,
    Claim,
    chain_of,
    did_of,
    pin_of,
)
from walyoff.child.births import Birth
from walyoff.child.chains import Chains
from walyoff.child.keyring import Keyring, compact
from walyoff.child.reader import Reading
from walyoff.child.renewal_files import RenewalFiles, Step
from walyoff.child.renewal_keys import RenewalKey
from walyoff.child.renewals import as_field, renewal_body
from walyoff.errors import LocalProtocolError, NotAMemberError

#: The first topic of stock identity blocks, for a single DID's and for a group's blocks.
_DID_TOPIC = "DidManager"
_GROUP_TOPIC = "GroupDidManager"
#: Control keys of one DID that are kept: the first and the newest. Each has 25 KiB.
MAX_KEPT = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How this device stands in an identity."""

    #: The direct member for which it acts; None if it is none.
    actor: str | None
    rule: str
    admins: list[str]
    #: The fingerprints of control keys that the chain names and that are not here.
    lacking: list[bytes]
    newest: bytes
    renewal_due: bool
    #: True if a member above this device has newer keys, which are here, than those under
    #: which it has acted: who has the older ones speaks for it until it does.
    keys_unshown: bool


class Governing:
    """Writes acts. The caller keeps others from writing to the same identity meanwhile."""

    def __init__(
        self,
        blocks: Any,
        chains: Chains,
        keyring: Keyring,
        read: Callable[[str], Reading],
        device: Callable[[str], str],
        *,
        renewals: RenewalFiles,
    ) -> None:
        self._blocks = blocks
        self._chains = chains
        self._keyring = keyring
        self._renewals = renewals
        #: What a chain says of which the pin is known: an open identity, or keys held here.
        self._read = read
        #: The device's own DID in an identity.
        self._device = device

    # ------------------------------------------------------------------ founding

    def new_did(self) -> tuple[str, Any]:
        """A device's DID with keys and a chain, which is open: it never has members."""
        key = RenewalKey.new()
        did, keys = self._new_did(lambda pin: Birth(pin=pin, next=key.fingerprint))
        # Nobody has heard of the DID before this returns.
        self._renewals.keep(did, key)
        return did, keys

    def _new_did(self, born: Callable[[bytes], Birth]) -> tuple[str, Any]:
        keys = self._keyring.new_group()
        chain = self._chains.create(born(pin_of(keys.get_id())))
        did = did_of(chain)
        # Kept before anything is published under them.
        self._keyring.save(did, [keys])
        self._write_keys(did, keys, keys, None)
        document = self._blocks.DidDocBlock.new({"id": did})
        document.sign(keys)
        content = document.generate_block_content()
        self._chains.append(chain, content, [_DID_TOPIC, document.walytis_block_topic])
        return did, keys

    def found(self, founder: str, rule: str) -> tuple[str, bytes]:
        """A new identity: its DID, which commits to founder, rule and register, and its pin.

        The first member is made, then the rules are stated, under which it acts from there on.
        """
        if rule not in RULES_KNOWN:
            raise LocalProtocolError(f"a rule is one of {', '.join(sorted(RULES_KNOWN))}")
        pin = self._first_pin(founder)
        segment = self._chains.create()
        did, keys = self._new_did(
            lambda first: Birth(
                pin=first, founder=founder, founder_pin=pin, rule=rule, register=segment
            )
        )
        self._write_member(did, keys, JOIN, founder, member=founder, pin=pin)
        self._write_own(did, keys, RULES, founder, rule=rule)
        self._write_own(did, keys, SEGMENT, founder, subject=segment)
        # The register opens it again, with its rules.
        self._chains.close(segment)
        return did, pin_of(keys.get_id())

    def state_rules(self, did: str) -> None:
        """End the time when control keys alone were enough, on a chain of an earlier format."""
        reading = self._read(did)
        actor = self._actor(did, reading)
        if reading.rule is None and actor is not None and not self._lacking(did, reading):
            self._write_own(did, self.newest(did), RULES, actor, rule=RULE_ANY)

    def settle(self, did: str) -> None:
        """Give an identity that stock software made what it lacks: rules, and a register."""
        self.state_rules(did)
        reading = self._read(did)
        actor = self._actor(did, reading)
        if reading.segment is None and actor is not None:
            segment = self._chains.create()
            self._write_own(did, self._keys(did), SEGMENT, actor, subject=segment)
            self._chains.close(segment)

    # ------------------------------------------------------------------- members

    def add(self, did: str, member: str, pin: bytes) -> None:
        """Write a joining."""
        actor = self._manager(did, "invite")
        self._write_member(did, self._keys(did), JOIN, actor, member=member, pin=pin)
        if not self._is_current(did, member):
            raise LocalProtocolError("the joining does not count on the chain: try again")

    def remove(self, did: str, member: str, pin: bytes) -> None:
        """Write a leaving, and renew the keys that the one who left has."""
        actor = self._manager(did, "remove") if member != self._actor_of(did) else member
        if actor == member:
            self._check_successor(did, member)
        self._write_member(did, self._keys(did), LEAVE, actor, member=member, pin=pin)
        if actor == member:
            return
        try:
            self.renew(did)
        except Exception:
            # The leaving counts; that a renewal is due shows on the chain.
            _log.exception("the control keys of %s were not renewed", did)

    def make_admin(self, did: str, member: str) -> None:
        """Let a member invite and remove."""
        reading = self._read(did)
        if reading.rule != RULE_ADMINS:
            raise LocalProtocolError("every member of this identity may invite and remove")
        if member not in reading.members or not reading.members[member].current:
            raise NotAMemberError(f"{member} is no direct member of the identity")
        actor = self._manager(did, "name admins")
        if not reading.members[member].admin:
            self._write_own(did, self._keys(did), ADMIN, actor, subject=member)

    def _check_successor(self, did: str, member: str) -> None:
        reading = self._read(did)
        others = [m for m in reading.members.values() if m.current and m.did != member]
        if (
            reading.rule == RULE_ADMINS
            and reading.members[member].admin
            and others
            and not any(m.admin for m in others)
        ):
            raise LocalProtocolError(
                "the only admin cannot leave the others without one: name another first "
                "(walyoff members --make-admin DID)"
            )

    def _is_current(self, did: str, member: str) -> bool:
        found = self._read(did).members.get(member)
        return found is not None and found.current

    # -------------------------------------------------------------------- actors

    def _actor_of(self, did: str) -> str:
        """The direct member in whose name this device acts. Raises NotAMemberError."""
        actor = self._actor(did, self._read(did))
        if actor is None:
            raise NotAMemberError("this device is not a member of the identity any more")
        return actor

    def _actor(self, did: str, reading: Reading) -> str | None:
        device = self._device(did)
        current = [m.did for m in reading.members.values() if m.current]
        if device in current:
            return device
        # A person, say, whose device this is.
        return next((member for member in current if self._keyring.holds(member)), None)

    def _manager(self, did: str, what: str) -> str:
        """The actor, who may invite and remove. Raises LocalProtocolError, NotAMemberError."""
        actor = self._actor_of(did)
        reading = self._read(did)
        if not reading.may_manage(actor):
            admins = [m.did for m in reading.members.values() if m.current and m.admin]
            who = f"ask {', '.join(admins)}" if admins else "and it has none any more"
            raise LocalProtocolError(f"only admins of this identity may {what}: {who}")
        return actor

    def standing(self, did: str) -> Standing:
        """How this device stands in an identity."""
        reading = self._read(did)
        return Standing(
            actor=self._actor(did, reading),
            rule=reading.rule or RULE_ANY,
            admins=[m.did for m in reading.members.values() if m.current and m.admin],
            lacking=self._lacking(did, reading),
            newest=pin_of(reading.keys[-1]),
            renewal_due=reading.renewal_due,
            keys_unshown=self.keys_unshown(did),
        )

    def keys_unshown(self, did: str) -> bool:
        """See `Standing`."""
        return self._unshown(did) is not None

    def _unshown(self, did: str) -> str | None:
        """A member above this device that has newer keys to show, which are here."""
        members, shown = self._read(did).members, self._read(did).shown
        for member in self._keyring.dids():
            # A device's own keys are its own to show.
            if member == self._device(did) or member not in members:
                continue
            if members[member].current and self._chains.has(chain_of(member)):
                own = self._read(member)
                # Joining was no act of its own, and so showed its first keys alone.
                if shown.get(member, 1) < len(own.keys) and not self._lacking(member, own):
                    return member
        return None

    # ---------------------------------------------------------------------- keys

    def newest(self, did: str) -> Any:
        """The newest control keys that the chain names and that are here."""
        held = self._held(did)
        for key in reversed(self._read(did).keys):
            if key in held:
                return held[key]
        raise LocalProtocolError("this device has no keys that the DID's chain names")

    def renew(self, did: str) -> None:
        """Replace the control keys of an identity, or of a DID of this device alone."""
        reading = self._read(did)
        if not reading.members:
            self._renew_own(did, reading)
            return
        # In whose name is all the same, unless one of them has keys to show.
        actor = self._unshown(did) or self._actor_of(did)
        old, new = self.newest(did), self._keyring.new_group()
        # Kept before anybody hears of them.
        self._keep(did, [new])
        self._write_keys(did, old, new, actor)

    def _renew_own(self, did: str, reading: Reading) -> None:
        """Replace a device's control keys, as its DID has committed to."""
        old = self.newest(did)
        if old.get_id() != reading.keys[-1]:
            raise LocalProtocolError(
                "another copy of this device has renewed its control keys: go on with that "
                "one, or join as a new device"
            )
        step = self._renewals.prepare(did, reading.next, reading.keys)
        self._keep(did, [step.new])
        self._write_keys(did, old, step.new, None, step)
        if self._read(did).next != step.following.fingerprint:
            raise LocalProtocolError("the renewal does not count on the chain: try again")
        # The key that has signed goes.
        self._renewals.keep(did, step.following)

    def take_secrets(self, did: str, secrets: bytes) -> int:
        """Keep control keys that another member gave; returns how many were new.

        Raises RemoteProtocolError when they are malformed. Keys that the chain does not name
        are not kept.
        """
        named = set(self._read(did).keys)
        held = self._held(did)
        groups = {group.get_id(): group for group in self._keyring.deserialise(secrets)}
        new = [group for key, group in groups.items() if key in named and key not in held]
        if new:
            self._keep(did, new)
        return len(new)

    def secrets(self, did: str, wanted: Sequence[bytes] | None = None) -> bytes:
        """Control keys that the chain names, oldest first; with fingerprints only those."""
        held = self._held(did)
        keys = [key for key in self._read(did).keys if key in held]
        if wanted is not None:
            keys = [key for key in keys if pin_of(key) in wanted]
        return self._keyring.serialise([held[key] for key in keys]) if keys else b""

    def _held(self, did: str) -> dict[str, Any]:
        return {group.get_id(): group for group in self._keyring.groups(did)}

    def _lacking(self, did: str, reading: Reading) -> list[bytes]:
        """Only the newest are of use; older ones are history."""
        newest = reading.keys[-1]
        return [] if newest in self._keyring.ids(did) else [pin_of(newest)]

    def _keys(self, did: str) -> Any:
        if self._lacking(did, self._read(did)):
            raise LocalProtocolError(
                "the identity's control keys were renewed and have not come here yet: connect "
                "to another member, or renew them again (walyoff renew)"
            )
        return self.newest(did)

    def _keep(self, did: str, new: Sequence[Any]) -> None:
        """Add control keys; in the order of the chain, those last that it does not name yet."""
        groups = {**self._held(did), **{group.get_id(): group for group in new}}
        named = [key for key in self._read(did).keys if key in groups]
        unnamed = [key for key in groups if key not in named]
        order = [*named, *unnamed]
        if len(order) > MAX_KEPT:
            order = [order[0], *order[1 - MAX_KEPT :]]
        self._keyring.save(did, [groups[key] for key in order])

    def _first_pin(self, did: str) -> bytes:
        return pin_of(self._keyring.ids(did)[0])

    # ------------------------------------------------------------------- writing

    def _claim(
        self,
        did: str,
        kind: str,
        by: str,
        parents: Sequence[str],
        *,
        subject: str = "",
        pin: bytes = b"",
        rule: str = "",
    ) -> tuple[Claim, bytes]:
        claim = Claim(
            group=did,
            kind=kind,
            by=by,
            subject=subject,
            pin=pin,
            rule=rule,
            nonce=random_source.token_bytes(NONCE_SIZE),
            parents=tuple(parents),
        )
        return claim, compact(self.newest(by).sign(claim.body()))

    def _write_member(
        self, did: str, keys: Any, kind: str, by: str, *, member: str, pin: bytes
    ) -> None:
        kinds = self._blocks
        block_class = kinds.MemberJoiningBlock if kind == JOIN else kinds.MemberLeavingBlock
        invitation = {
            "blockchain_id": chain_of(member),
            "peers": [],
            # Stock code wants a key there; nobody listens for it.
            "key": random_source.token_hex(32),
            "one_time": False,
            "shared": True,
        }

        def make(parents: Sequence[str]) -> bytes:
            claim, approval = self._claim(
                did, kind, by, parents, subject=member, pin=pin or bytes(PIN_SIZE)
            )
            info = {
                "did": member,
                "invitation": json.dumps(invitation),
                "walyoff": claim.as_field(approval),
            }
            block = block_class.new(info)
            block.sign(keys)
            content: bytes = block.generate_block_content()
            return content

        topics = [_GROUP_TOPIC, block_class.walytis_block_topic]
        self._chains.append(chain_of(did), make, topics)

    def _write_keys(
        self, did: str, old: Any, new: Any, by: str | None, step: Step | None = None
    ) -> None:
        """A stock control key block; stock readers pass over our field in it."""
        block = self._blocks.ControlKeyBlock.new(old, new)
        block.sign()
        plain: bytes = block.generate_block_content()

        def make(parents: Sequence[str]) -> bytes:
            if by is not None:
                claim, approval = self._claim(did, RENEW, by, parents, pin=pin_of(new.get_id()))
                field = claim.as_field(approval)
            elif step is not None:
                field = _disclosed(did, old, step)
            else:
                return plain
            return json.dumps({**json.loads(plain), "walyoff": field}).encode()

        chain = chain_of(did)
        # A device's own chain is written to so seldom that nobody follows it; what others say
        # of it meanwhile has no judge here.
        followed = self._chains.is_open(chain)
        self._chains.open(chain, listen=False)
        try:
            self._chains.append(chain, make, [_DID_TOPIC, block.walytis_block_topic])
        finally:
            if not followed:
                self._chains.close(chain)

    def _write_own(
        self, did: str, keys: Any, kind: str, by: str, *, subject: str = "", rule: str = ""
    ) -> None:
        def make(parents: Sequence[str]) -> bytes:
            claim, approval = self._claim(did, kind, by, parents, subject=subject, rule=rule)
            return claim.as_block(approval, keys.sign(claim.body()))

        topic = TOPIC_SEGMENT if kind == SEGMENT else TOPIC_RULES
        self._chains.append(chain_of(did), make, [topic])


def _disclosed(did: str, old: Any, step: Step) -> dict[str, Any]:
    following = step.following.fingerprint
    body = renewal_body(did, old.get_id(), step.new.get_id(), following)
    if step.signer is None:
        return as_field(did, b"", following, compact(old.sign(body)))
    return as_field(did, step.signer.public, following, step.signer.sign(body))
