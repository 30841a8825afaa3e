"""Renewal keys: what they sign, and that a kill at any instant leaves a device that renews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from walyoff.child.renewal_files import RenewalFiles, Step
from walyoff.child.renewal_keys import SEEDS_SIZE, RenewalKey, verify_renewal
from walyoff.child.renewals import SCHEME
from walyoff.errors import LocalProtocolError, StoreError
from walyoff.sealing import Sealing

DID = "did:walytisidentities:Qmdevice"


class Control:
    """Control keys, as far as their name goes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_id(self) -> str:
        return self._name


class Keyring:
    """Makes and writes them; the real one is used in `test_real_renewals`."""

    made = 0

    def new_group(self) -> Control:
        self.made += 1
        return Control(f"|control {self.made}")

    def serialise(self, groups: list[Control]) -> bytes:
        return groups[0].get_id().encode()

    def deserialise(self, secrets: bytes) -> list[Control]:
        return [Control(secrets.decode())]


class Home:
    """A device's files, and what its chain says."""

    def __init__(self, folder: Path, sealing: Sealing, committed: bytes = b"") -> None:
        self.keyring = Keyring()
        keyring: Any = self.keyring
        self.files = RenewalFiles(keyring, folder, sealing)
        self.path = folder / "Qmdevice.next"
        self.committed = committed
        self.named = ["|control 0"]

    def prepare(self) -> Step:
        return self.files.prepare(DID, self.committed, self.named)

    def write(self, step: Step) -> None:
        """The block is there; nothing was done afterwards."""
        assert (step.signer and step.signer.fingerprint) == (self.committed or None)
        self.committed = step.following.fingerprint
        self.named.append(step.new.get_id())


@pytest.fixture(params=[True, False], ids=["committed", "of before"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """Sealed; of a device that was made with a renewal key, or without."""
    made = Home(tmp_path, Sealing(bytes(32)))
    if request.param:
        key = RenewalKey.new()
        made.files.keep(DID, key)
        made.committed = key.fingerprint
    return made


def same(one: Step, other: Step) -> bool:
    return one.following.public == other.following.public and (
        one.new.get_id() == other.new.get_id()
    )


def test_a_renewal_that_was_not_written_is_the_same_the_next_time(home: Home) -> None:
    """So nobody can have a block of it with other keys."""
    step = home.prepare()
    assert same(home.prepare(), step)
    assert home.keyring.made == 1


def test_a_kill_after_the_block_leaves_a_device_that_renews(home: Home) -> None:
    steps = []
    for _ in range(3):
        steps.append(home.prepare())
        home.write(steps[-1])
    assert len({step.following.public for step in steps}) == 3
    assert home.named == [f"|control {number}" for number in range(4)]


def test_a_key_that_has_signed_is_gone(home: Home) -> None:
    step = home.prepare()
    home.write(step)
    home.files.keep(DID, step.following)
    last = home.prepare()
    home.write(last)
    home.files.keep(DID, last.following)
    for older in (step.signer, last.signer):
        if older is not None:
            home.committed = older.fingerprint
            with pytest.raises(LocalProtocolError, match="another copy"):
                home.prepare()


def test_a_device_without_the_key_that_is_awaited_is_told(home: Home) -> None:
    home.committed = RenewalKey.new().fingerprint
    before = home.path.read_bytes() if home.path.exists() else b""
    with pytest.raises(LocalProtocolError, match="another copy"):
        home.prepare()
    assert (home.path.read_bytes() if home.path.exists() else b"") == before


def test_the_file_is_sealed_private_and_of_its_place_alone(tmp_path: Path) -> None:
    sealed = Home(tmp_path, Sealing(bytes(32)))
    key = RenewalKey(bytes(range(SEEDS_SIZE)))
    sealed.files.keep(DID, key)
    assert sealed.path.stat().st_mode & 0o777 == 0o600
    assert key.secret()[:16] not in sealed.path.read_bytes()
    assert key.secret()[:16].hex() not in repr(key) + repr(sealed.prepare())
    for damaged in (b"", b"WOCS\x01" + bytes(60), sealed.path.read_bytes()[:-1]):
        (tmp_path / "Qmother.next").write_bytes(damaged or sealed.path.read_bytes())
        with pytest.raises(StoreError):
            sealed.files.prepare("did:walytisidentities:Qmother", key.fingerprint, [])


def test_both_halves_must_sign() -> None:
    key = RenewalKey.new()
    name = SCHEME + key.public.hex()
    good = key.sign(b"text")
    assert verify_renewal(name, good, b"text")
    assert not verify_renewal(name, good, b"other")
    for at in (0, 63, 64, len(good) - 1):
        spoilt = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        assert not verify_renewal(name, spoilt, b"text")
    other = RenewalKey.new().sign(b"text")
    for mixed in (good[:64] + other[64:], other[:64] + good[64:], good + b"x", b""):
        assert not verify_renewal(name, mixed, b"text")
    # One key has one name.
    for spelt in (name.upper(), name.replace(SCHEME, SCHEME + " "), SCHEME, "", SCHEME + "zz"):
        assert not verify_renewal(spelt, good, b"text")
