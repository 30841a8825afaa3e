"""The W3C DID document of an identity, from its control keys and its devices' certificates.

Decided here: which key is listed, how, and what for. DID Core 1.0
(https://www.w3.org/TR/did-core/) with verification methods of the type Multikey
(https://www.w3.org/TR/cid-1.0/): a multicodec code and the raw public key, in base58btc. A
bundle of keys is listed as its components, since no verifier knows the bundle. Pure.

- Control keys write the identity's chain: assertionMethod, and capabilityInvocation because
  they change who belongs to it. Their KEM is a keyAgreement key.
- Device keys, as certified by the members: authentication, because sessions are opened with
  them, and assertionMethod, because they sign messages. Their seal keys are keyAgreement keys.
- The controllers are the direct members.

What makes a signature of this software hold is more than one of these keys alone: of a hybrid
both halves must. The document says which keys there are, and does not replace the chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import base58

from walyoff.certificates import Certificate
from walyoff.errors import RemoteProtocolError

CONTEXTS: Final = ("https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1")
METHOD_TYPE: Final = "Multikey"
#: A key group's id is 6 KiB.
MAX_KEY_GROUP: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class KeyType:
    """A component's code in the multicodec table, its size, and what it is for."""

    #: https://github.com/multiformats/multicodec/blob/master/table.csv
    code: int
    size: int
    signs: bool


KEY_TYPES: Final[dict[str, KeyType]] = {
    "secp256k1": KeyType(0xE7, 33, True),
    "Ed25519": KeyType(0xED, 32, True),
    "X25519": KeyType(0xEC, 32, False),
    "ML-KEM-768": KeyType(0x120C, 1184, False),
    "ML-KEM-1024": KeyType(0x120D, 1568, False),
    "ML-DSA-65": KeyType(0x1211, 1952, True),
    "ML-DSA-87": KeyType(0x1212, 2592, True),
}
#: The families of control keys, as walytis-identities names them, and their components.
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "EC-secp256k1": ("secp256k1",),
    "PQ-ML-KEM-768-ML-DSA-65": ("ML-KEM-768", "ML-DSA-65"),
    "PQ-ML-KEM-1024-ML-DSA-87": ("ML-KEM-1024", "ML-DSA-87"),
}


@dataclass(frozen=True, slots=True)
class Component:
    """One public key of one algorithm."""

    name: str
    key: bytes

    @property
    def multibase(self) -> str:
        """`publicKeyMultibase`: base58btc of the code as a varint and the key."""
        return "z" + base58.b58encode(_varint(KEY_TYPES[self.name].code) + self.key).decode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def split_control_keys(key_group: str) -> list[Component]:
    """The components of a key group's id, `|family:time:hex|family:time:hex|`.

    Families that have no code are left out. Raises RemoteProtocolError for anything else.
    """
    if len(key_group) > MAX_KEY_GROUP:
        raise RemoteProtocolError("key group id is too long", reason="too-large")
    found: list[Component] = []
    for key in filter(None, key_group.split("|")):
        family, _, rest = key.partition(":")
        try:
            # The time has colons or none: the key is what comes last.
            raw = bytes.fromhex(rest.rpartition(":")[2])
        except ValueError:
            raise RemoteProtocolError("control key is not hex") from None
        names = FAMILIES.get(family)
        if names == ("secp256k1",):
            raw = compress(raw)
        if names is not None:
            found += split(names, raw)
    return found


def compress(key: bytes) -> bytes:
    """A point of secp256k1 in 33 bytes, as the multicodec table wants it."""
    if len(key) == 65 and key[0] == 4:
        return bytes([2 + (key[64] & 1)]) + key[1:33]
    return key


def split(names: Sequence[str], raw: bytes) -> list[Component]:
    """The components of concatenated keys. Raises RemoteProtocolError unless they fit."""
    if len(raw) != sum(KEY_TYPES[name].size for name in names):
        raise RemoteProtocolError("public key of another size than its type has")
    found = []
    for name in names:
        size = KEY_TYPES[name].size
        found.append(Component(name, raw[:size]))
        raw = raw[size:]
    return found


def device_components(certificate: Certificate) -> list[Component]:
    """The components of a device's keys; none for a suite of other key types."""
    if any(name not in KEY_TYPES for name in certificate.key_types):
        return []
    sign = [name for name in certificate.key_types if KEY_TYPES[name].signs]
    seal = [name for name in certificate.key_types if not KEY_TYPES[name].signs]
    return split(sign, certificate.sign_public) + split(seal, certificate.seal_public)


def make_document(
    did: str,
    *,
    control_keys: str,
    controllers: Iterable[str],
    devices: Iterable[Certificate] = (),
) -> dict[str, Any]:
    """The document of an identity with these current control keys, members and devices."""
    methods: list[dict[str, str]] = []
    relations: dict[str, list[str]] = {
        "authentication": [],
        "assertionMethod": [],
        "keyAgreement": [],
        "capabilityInvocation": [],
    }

    def add(component: Component, controller: str, purposes: Sequence[str]) -> None:
        # Named by the key itself, so a key has the same name in every document.
        name = f"{did}#{component.name}-{component.multibase[-16:]}"
        if any(method["id"] == name for method in methods):
            return
        methods.append(
            {
                "id": name,
                "type": METHOD_TYPE,
                "controller": controller,
                "publicKeyMultibase": component.multibase,
            }
        )
        for purpose in purposes if KEY_TYPES[component.name].signs else ("keyAgreement",):
            relations[purpose].append(name)

    for component in split_control_keys(control_keys):
        add(component, did, ("assertionMethod", "capabilityInvocation"))
    for certificate in devices:
        for component in device_components(certificate):
            add(component, certificate.member, ("authentication", "assertionMethod"))
    return {
        "@context": list(CONTEXTS),
        "id": did,
        "controller": list(dict.fromkeys(controllers)),
        "verificationMethod": methods,
        **{purpose: names for purpose, names in relations.items() if names},
    }
