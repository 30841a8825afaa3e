"""The DIDs of this device and the groups it is a member of, as methods of the child.

Blocks are made by the stock block classes, so stock software reads these identities; they are
read by `reader`, which believes only what is signed. Stock managers are not used: their
threads, listeners and key stores are what the rest of the child keeps out.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from walyoff.child.blocks import check_cid, decode_block
from walyoff.child.chains import Chains
from walyoff.child.circles import signed_by
from walyoff.child.family import Family
from walyoff.child.governing import Governing
from walyoff.child.guests import Guests
from walyoff.child.households import Households, snapshot
from walyoff.child.judging import IdentityJudge
from walyoff.child.keyring import Keyring, compact
from walyoff.child.reader import (
    PIN_SIZE,
    RULE_ANY,
    SECOND_FIRST_KEY,
    Reading,
    chain_of,
    did_of,
    pin_of,
)
from walyoff.child.readings import Readings
from walyoff.child.registers import Registers
from walyoff.child.renewal_files import RenewalFiles
from walyoff.child.stock_homes import StockHomes
from walyoff.child.upstream import Stock
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.sealing import Sealing
from walyoff.wire import expect_array, expect_str

#: Bytes of the anchor segment in a grant, which travels in one frame of a session.
GRANTED_SEGMENT = 2 << 20

_log = logging.getLogger(__name__)


class Identities:
    """DIDs and groups. Safe to use from many threads."""

    def __init__(
        self,
        stock: Stock,
        chains: Chains,
        home: Any,
        emit: Callable[[str, Any], None],
        sealing: Sealing,
    ) -> None:
        self._chains = chains
        self._keyring = Keyring(stock.keys, home / "keys", sealing)
        renewals = RenewalFiles(self._keyring, home / "keys", sealing)
        self._emit = emit
        self._lock = threading.RLock()
        #: Open groups: DID -> (pin, member DID).
        self._groups: dict[str, tuple[bytes, str]] = {}
        readings = Readings(chains, self._keyring.verify, self._keyring.verify_compact)
        self._read = readings.read
        self._guests = Guests(chains, home, readings.forget)
        self._governing = Governing(
            stock.blocks,
            chains,
            self._keyring,
            self._reading,
            lambda did: self._groups[did][1] if did in self._groups else "",
            renewals=renewals,
        )
        self._stock_homes = StockHomes(
            chains, self._keyring, self._governing, self._read, stock.keys
        )
        self._last: dict[str, Any] = {}
        self._households = Households(
            chains,
            self._read,
            readings.birth,
            self._keyring.verify,
            lambda did: self._groups[did][0],
            approves=readings.approves,
        )
        self._judge = functools.partial(
            IdentityJudge,
            verify=self._keyring.verify,
            approves=readings.approves,
            counting=readings.counting,
            is_members=readings.is_members,
        )
        self._registers = Registers(
            stock.client,
            chains,
            verify=self._keyring.verify,
            control_keys=self._governing.newest,
            home=home,
            emit=emit,
        )
        self._guests.sweep(self._has_member)
        self._dirty: queue.SimpleQueue[str] = queue.SimpleQueue()
        chains.watch(self._dirty.put)
        threading.Thread(target=self._watch, daemon=True, name="identities").start()

    def methods(self) -> dict[str, Callable[..., Any]]:
        """The RPC methods, by name."""
        return {
            "did.create": self.create_did,
            "did.export": lambda did: {"files": self._chains.export(chain_of(did))[0]},
            "did.family": self.export_family,
            "did.newer": self._households.newer,
            # Answered once this is there: files in clear were sealed before.
            "did.sealed": lambda: True,
            "did.sign": self._keyring_sign,
            "did.verify": self.verify,
            "did.check": self._keyring.verify,
            "did.checked": lambda: self._keyring.verified.checked,
            "did.check_compact": self._keyring.verify_compact,
            "group.create": self.create_group,
            "group.open": self.open_group,
            "group.adopt": self.adopt,
            "group.add_member": self.add_member,
            "group.remove_member": self.remove_member,
            "group.make_admin": self.make_admin,
            "group.renew": self.renew,
            "group.secrets": self._governing.secrets,
            "group.take_secrets": self.take_secrets,
            "group.forget": self.forget,
            "did.renew": self.renew,
            "group.membership": self.membership,
            "group.segment": lambda did: {"chain": self._reading(did).segment},
            "group.control_keys": lambda did: {"id": self._reading(did).keys[-1]},
            "group.export": self.export,
            **self._stock_homes.methods(),
            **self._registers.methods(),
        }

    # ------------------------------------------------------------------- making

    def create_did(self) -> dict[str, Any]:
        """A new DID for a device; its chain is stored, not followed."""
        did, keys = self._governing.new_did()
        self._chains.close(chain_of(did))
        return {"did": did, "pin": pin_of(keys.get_id())}

    def create_group(
        self,
        member_did: str,
        first: str | None = None,
        guarded: bool = False,
        segment_blocks: int | None = None,
        rule: str = RULE_ANY,
    ) -> dict[str, Any]:
        """A new group, whose first member and first segment are made at once.

        The first member is this device's DID, or an identity above it whose keys are here.
        """
        did, pin = self._governing.found(first or member_did, rule)
        self.open_group(did, pin, member_did, guarded=guarded, segment_blocks=segment_blocks)
        return {"did": did, "pin": pin}

    # ------------------------------------------------------------------ members

    def add_member(
        self,
        did: str,
        member_did: str,
        files: Sequence[bytes],
        *,
        pin: bytes | None = None,
        family: dict[str, Sequence[bytes]] | None = None,
        purpose: str = "any",
        proof: Sequence[bytes] | None = None,
        newer: dict[str, Sequence[bytes]] | None = None,
    ) -> None:
        """Make a DID a member, given its chain; nothing happens if it is one.

        An identity's chain comes with those below it. A proof is a text and the DID's
        signature over it. What others hold of these chains besides is taken as far as it
        holds.

        Raises:
            RemoteProtocolError: the chain is not that DID's, its first keys are in doubt, or
                the proof does not hold.
            LocalProtocolError: only admins may invite, the newest keys are not here, or it
                would stand under itself, or too deep, or is not what it was invited as.
            NotAMemberError: this device is none.
        """
        brought = (member_did, *(family or ()))
        with self._guests.on_trial(did, member_did, brought, self._needed), self._lock:
            self._take_member_chain(member_did, files)
            reading = self._read(member_did, pin)
            if not reading.keys:
                raise RemoteProtocolError("the DID's chain has no valid keys", reason="no-keys")
            if pin is None and reading.refused[SECOND_FIRST_KEY]:
                raise RemoteProtocolError(
                    "the DID's chain has several first keys", reason="ambiguous-keys"
                )
            member_pin = pin_of(reading.keys[0])
            self._households.take(member_did, member_pin, family or {})
            self._households.take_newer(member_did, member_pin, newer or {})
            # Whose acts count on its chain is told by theirs.
            reading = self._read(member_did, member_pin)
            signed = len(reading.keys) if proof is None else self._signed(reading, *proof)
            if not signed:
                raise RemoteProtocolError("the DID did not sign", reason="bad_signature")
            if signed < len(reading.keys):
                # A device that was removed from a person keeps the person's keys of then.
                raise LocalProtocolError(
                    "who joins has control keys that were replaced: connect to another device "
                    "of the same person first"
                )
            kind = "identity" if reading.members else "device"
            if purpose not in ("any", kind):
                raise LocalProtocolError(f"what joins is a {kind}: invite it as one")
            self._households.check_new(did, member_did, member_pin)
            group = self._reading(did)
            member = group.members.get(member_did)
            if member is not None and member.current:
                return
            self._governing.add(did, member_did, member_pin)

    def remove_member(self, did: str, member_did: str) -> None:
        """End a membership, also this device's own; nothing happens if there is none.

        Raises:
            LocalProtocolError: only admins may remove, the newest keys are not here, or it is
                the only admin who leaves.
            NotAMemberError: this device is none.
        """
        with self._lock:
            member = self._reading(did).members.get(member_did)
            if member is None or not member.current:
                return
            pin = member.pin or self._households.chain_pin(member_did) or bytes(PIN_SIZE)
            self._governing.remove(did, member_did, pin)

    def make_admin(self, did: str, member_did: str) -> None:
        """Let a member invite and remove, where only admins may."""
        with self._lock:
            self._governing.make_admin(did, member_did)

    def renew(self, did: str) -> None:
        """Replace the control keys of a group, or of this device's DID."""
        with self._lock:
            self._governing.renew(did)

    def take_secrets(self, did: str, secrets: bytes) -> int:
        """Keep the control keys that another member gave, as far as the chain names them."""
        with self._lock:
            kept = self._governing.take_secrets(did, secrets)
        # In the groups above it this device can act under them now.
        self._dirty.put(chain_of(did))
        return kept

    def forget(self, did: str) -> None:
        """Stop following a group, and delete its control keys. Its chains stay."""
        with self._lock:
            if (register := self._registers.get(did)) is not None:
                register.close()
            self._registers.forget(did)
            self._chains.close(chain_of(did))
            self._groups.pop(did, None)
            self._last.pop(did, None)
            self._keyring.forget(did)

    def _has_member(self, did: str, member_did: str) -> bool:
        return member_did in self._read(did, None).members

    def _needed(self) -> set[str]:
        """The DIDs whose chains the open groups stand on."""
        with self._lock:
            groups = list(self._groups)
        return {*groups, *(kin for did in groups for kin in self._family(did).pins)}

    def _take_member_chain(self, member_did: str, files: Sequence[bytes]) -> None:
        chain = chain_of(member_did)
        if files:
            self._chains.import_files(chain, files)
        elif not self._chains.has(chain):
            raise RemoteProtocolError("the DID's chain was not given", reason="no-chain")

    def membership(self, did: str) -> dict[str, Any]:
        """The verified devices and chains of the family, what was refused, the segment."""
        reading, family = self._reading(did), self._family(did)
        devices, ended, kin, strange = snapshot(family)
        refused = reading.refused + Counter(self._chains.refusals(chain_of(did)).statistics())
        refused += Counter(strange)
        if (register := self._registers.get(did)) is not None:
            found = register.statistics()
            refused += Counter({f"ledger-{reason}": n for reason, n in found.items()})
        return {
            "members": [[did, self._pin(did, pin), *more] for did, pin, *more in devices],
            "ended": ended,
            "kin": kin,
            "direct": [m.did for m in reading.members.values() if m.current],
            "refused": dict(refused),
            "segment": reading.segment,
            "keys": len(reading.keys),
            "standing": asdict(self._governing.standing(did)),
        }

    def _family(self, did: str) -> Family:
        return self._households.look(did, self._pin_of_group(did))

    def _pin(self, did: str, pin: bytes) -> bytes:
        return pin or self._households.chain_pin(did) or b""

    # --------------------------------------------------------------- signatures

    def _keyring_sign(self, did: str, data: bytes) -> bytes:
        return compact(self._governing.newest(did).sign(data))

    def verify(self, group: str, did: str, data: bytes, signature: bytes) -> str | int:
        """Which of the keys of one of a family, past or present, signed; or what is wrong."""
        pin = self._households.pin(group, self._pin_of_group(group), did)
        if pin is None:
            return "not_member"
        if not pin or not self._households.holds(did):
            return "not_pinned"
        if not self._read(did, pin).keys:
            return "not_pinned"
        return self._signed(self._read(did, pin), data, signature) or "bad_signature"

    def _signed(self, reading: Reading, data: bytes, signature: bytes) -> int:
        verify = self._keyring.verify_compact
        return signed_by(reading.keys, lambda key: verify(key, signature, data))

    def _own_pin(self, did: str) -> bytes:
        return pin_of(self._keyring.ids(did)[0])

    def _pin_of_group(self, did: str) -> bytes:
        group = self._groups.get(did)
        # While it is being made: its first keys are the ones that are held.
        return self._own_pin(did) if group is None else group[0]

    # ----------------------------------------------------------------- handover

    def export(self, did: str) -> dict[str, Any]:
        """All of a group that a joiner needs, but the secrets."""
        reading = self._reading(did)
        members = self._households.export(self._family(did).pins)
        register = self._registers.get(did)
        newest = None if register is None else register.tree.head().chain
        return {
            "files": self._chains.export(chain_of(did))[0],
            "members": members,
            "segment": reading.segment,
            "segments": [] if register is None else register.listing(),
            # The beginning is enough to know the chain; sessions bring the rest.
            "segment_files": self._chains.export(newest, limit=GRANTED_SEGMENT)[0]
            if newest and self._chains.has(newest)
            else [],
            "pin": self._groups[did][0],
        }

    def export_family(self, did: str) -> dict[str, Any]:
        """The chains below an identity that is held here: what another one needs to join it."""
        return {"family": self._households.export(self._family(did).pins)}

    def adopt(
        self,
        *,
        did: str,
        pin: bytes,
        secrets: bytes,
        files: Sequence[bytes],
        member_files: dict[str, Sequence[bytes]],
        member_did: str,
        segment_files: Sequence[bytes],
        segments: Sequence[Sequence[str]] = (),
        guarded: bool = False,
        segment_blocks: int | None = None,
    ) -> None:
        """Become a device of a group that has made this device's DID a member.

        Raises:
            RemoteProtocolError: chain, pin, keys or membership do not fit together.
        """
        if self._keyring.holds(did) and self._own_pin(did) != pin:
            # Nobody replaces the keys of an identity that is this device's already.
            raise RemoteProtocolError("other keys of this identity are here", reason="pin")
        brought = (did, *member_files)
        with self._guests.on_trial(did, member_did, brought, self._needed):
            self._chains.import_files(chain_of(did), files)
            reading = self._read(did, _checked_pin(pin))
            if not reading.keys:
                raise RemoteProtocolError(
                    "the group's chain has not the pinned keys", reason="pin"
                )
            self._households.take(did, pin, member_files)
            # Whose acts count is told by the members' own chains.
            reading = self._read(did, pin)
            device = self._households.device(did, pin, member_did)
            if device is None or not device.current or device.pin != self._own_pin(member_did):
                raise RemoteProtocolError("this device is not a member", reason="not-a-member")
            groups = self._keyring.deserialise(secrets)
            if groups[-1].get_id() not in reading.keys:
                raise RemoteProtocolError("secrets of other keys", reason="wrong-keys")
        self._keyring.save(did, groups)
        told = [_told(item) for item in segments]
        if reading.segment and segment_files:
            newest = told[-1][0] if told else reading.segment
            for chain in dict.fromkeys((reading.segment, *(t[0] for t in told), newest)):
                if any(decode_block(file).cid == chain for file in segment_files[:1]):
                    self._chains.import_files(chain, segment_files)
        self.open_group(
            did, pin, member_did, guarded=guarded, segment_blocks=segment_blocks, told=told
        )

    def open_group(
        self,
        did: str,
        pin: bytes,
        member_did: str,
        *,
        guarded: bool = False,
        segment_blocks: int | None = None,
        told: Sequence[tuple[str, str, str]] = (),
    ) -> None:
        """Follow a group that this device has; its newest segment too.

        `guarded` admits to the segments only what opens under the epochs' anchor keys (see
        "chain.keys"); until they are told, blocks wait.
        """
        chain = chain_of(did)
        with self._lock:
            self._groups[did] = (_checked_pin(pin), member_did)
            reading = self._reading(did)
            if not reading.keys:
                del self._groups[did]
                raise RemoteProtocolError(
                    "the group's chain has not the pinned keys", reason="pin"
                )
            self._last[did] = self._snapshot(did, reading)
            self._chains.guard(chain, self._judge(did, pin))
            self._registers.take_reading(did, reading)
            if reading.segment:
                self._registers.make(
                    did, reading.segment, guarded=guarded, limit=segment_blocks, told=told
                )
        self._chains.open(chain)
        with self._lock:
            self._governing.state_rules(did)
        if (register := self._registers.get(did)) is not None:
            register.follow()

    # ------------------------------------------------------------------ reading

    def _reading(self, did: str) -> Reading:
        return self._read(did, self._pin_of_group(did))

    def _snapshot(self, did: str, reading: Reading) -> Any:
        refused = dict(reading.refused), self._chains.refusals(chain_of(did)).statistics()
        rules = [(m.did, m.admin) for m in reading.members.values()], reading.renewal_due
        keys = list(reading.keys), self._governing.keys_unshown(did)
        return snapshot(self._family(did)), reading.segment, keys, rules, refused

    def _watch(self) -> None:
        while True:
            chains = {self._dirty.get()}
            # Blocks come in bursts, and one reading serves them all.
            while not self._dirty.empty():
                chains.add(self._dirty.get())
            # News of a person's chain are news of the groups above.
            groups = {group for c in chains for group in self._households.concerned(did_of(c))}
            for did in groups:
                self._look(did)

    def _look(self, did: str) -> None:
        if did not in self._groups:
            return
        try:
            reading = self._reading(did)
            self._registers.take_reading(did, reading)
            now = self._snapshot(did, reading)
        except Exception:
            _log.exception("reading %s failed", did)
            return
        if now != self._last.get(did):
            self._last[did] = now
            self._emit("group.changed", {"did": did})


def _told(item: Any) -> tuple[str, str, str]:
    names = [expect_str(name, "segment", limit=64) for name in expect_array(item, 3, "segment")]
    for name in names:
        check_cid(name)
    return names[0], names[1], names[2]


def _checked_pin(pin: bytes) -> bytes:
    if not isinstance(pin, bytes) or len(pin) != PIN_SIZE:
        raise LocalProtocolError(f"a pin has {PIN_SIZE} bytes")
    return pin
