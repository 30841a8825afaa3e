"""The model in docs/models is of the handshake that the code does, and was verified as it is.

What both sides hash, sign and derive is recorded in a real handshake, and compared with what
the model says in the same places. Where ProVerif is on the PATH it is asked again; everywhere
the results that are kept must be of this model, and as expected.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import fields

import pytest

from tests import handshake_model
from tests.handshake_model import MISTAKES, MODELS, RESULTS, ask, digest, questions, runs
from tests.test_session_handshake import (
    ALICE,
    BOB,
    BOTH,
    CHANNEL,
    initiator,
    presented,
    responder,
    sent,
)
from walyoff.certificates import decode
from walyoff.session import flights, handshake, machine, transcript
from walyoff.session.transcript import MODES, Transcript

WORDS = (MODELS / "primitives.pvl").read_text()
MODEL = (MODELS / "handshake.pvl").read_text()
#: What a constant of the model is called in the code.
LITERALS = dict(re.findall(r"^const (\w+): \w+\. +\(\* \"(.+)\" \*\)$", WORDS, re.M))

#: A call that hashes, signs or derives: its name, its first argument, and the label.
_CALL = re.compile(
    r"\b(absorb|absorb_signature|derive|signed_message|seal_info)"
    r"\((\w+(?:\(.*?\))?)(?:, psk)?(?:, (\w+))?"
)

Step = tuple[str, str]


def process(name: str) -> str:
    """The text of a process of the model, without comments."""
    found = re.search(
        rf"^let {name}\(.*?\.\n\n", re.sub(r"\(\*.*?\*\)", "", MODEL, flags=re.S), re.M | re.S
    )
    assert found is not None, name
    return found[0]


def modelled(name: str) -> list[Step]:
    """What a side of the model hashes, signs and derives, in order."""
    text = process(name).partition("=\n")[2] + process(f"{name}Finishes").partition("=\n")[2]
    steps = []
    for call, first, label in _CALL.findall(text):
        match call:
            case "seal_info":
                steps.append(("info", ""))
            case "signed_message":
                steps.append(("sign", LITERALS[first]))
            case "derive":
                steps.append(("derive", LITERALS[label]))
            case _:
                steps.append(("add", LITERALS[label]))
    return steps


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What the code hashes, signs and derives from now on, in order."""
    steps: list[Step] = []
    add, derive = Transcript.add, transcript.derive
    sign, info = transcript.signed_message, transcript.seal_info

    def note_add(self: Transcript, label: str, *items: bytes) -> None:
        steps.append(("add", label))
        add(self, label, *items)

    def note_derive(
        secret: bytes, psk: bytes | None, size: int, label: str, *info: str | bytes
    ) -> bytes:
        steps.append(("derive", label))
        if not label.startswith("proof"):
            ids = [decode(one.certificate).certificate.certificate_id for one in (BOB, ALICE)]
            assert list(info[1:]) == [CHANNEL, *ids], "the context of the keys"
        return derive(secret, psk, size, label, *info)

    def note_sign(role: transcript.Role, mode: transcript.Mode, digest: bytes) -> bytes:
        steps.append(("sign", role))
        return sign(role, mode, digest)

    def note_info(digest: bytes) -> bytes:
        steps.append(("info", ""))
        return info(digest)

    monkeypatch.setattr(Transcript, "add", note_add)
    for module in (transcript, machine):
        monkeypatch.setattr(module, "derive", note_derive)
    monkeypatch.setattr(machine, "signed_message", note_sign)
    monkeypatch.setattr(handshake, "seal_info", note_info)
    return steps


def test_the_model_does_what_the_code_does_in_the_same_order(recorded: list[Step]) -> None:
    left, right = initiator(suites=BOTH), responder()
    by_left: list[Step] = []
    by_right: list[Step] = []

    def since(part: list[Step]) -> None:
        part += recorded
        recorded.clear()

    first = left.start()
    since(by_left)
    second = sent(right.receive(first))
    since(by_right)
    assert presented(left.receive(second)).encoded == BOB.certificate
    # Whoever is presented has proved that it holds the key: nobody is asked about others.
    assert ("sign", "responder") in recorded
    third = sent(left.accept())
    since(by_left)
    right.receive(third)
    right.accept()
    since(by_right)
    assert by_left == modelled("Initiator")
    assert by_right == modelled("Responder")


def test_every_word_of_the_model_is_a_word_of_the_code() -> None:
    labels = {name for name in LITERALS.values() if name not in MODES and name not in BOTH}
    used = {label for side in ("Initiator", "Responder") for _, label in modelled(side)}
    assert labels == used - {""} | {"initiator", "responder"}
    assert [LITERALS[mode] for mode in ("member", "join", "introduce")] == list(MODES)
    assert {LITERALS["strong"], LITERALS["weak"]} == set(BOTH)


def test_flights_have_the_same_fields_in_the_same_order() -> None:
    first = re.search(r"let hello = \((.*), blinded_tag\(", process("Initiator"))
    second = re.search(r"out\(net, \((chosen, .*)\)\);", process("Responder"))
    sides = (process("InitiatorFinishes"), process("Responder"))
    assert first is not None
    assert second is not None
    said = {"m": "mode", "offer": "suites", "chosen": "suite", "encrypted": "proof"}

    def named(found: re.Match[str]) -> list[str]:
        return [said.get(name, name) for name in found[1].split(", ")]

    assert [*named(first), "tag"] == [field.name for field in fields(flights.Hello)]
    assert named(second) == [field.name for field in fields(flights.Answer)]
    proof = ", ".join(field.name for field in fields(flights.Proof))
    assert all(f"({proof}))" in text for text in sides)


def test_the_results_that_are_kept_are_of_this_model_and_as_expected() -> None:
    kept = RESULTS.read_text()
    assert f"model {digest()}\n" in kept, (
        "the model was changed: python -m tests.handshake_model --write"
    )
    for run in runs():
        _, found, rest = kept.partition(f"\n{run.name}: {run.why}\n")
        assert found, run.name
        answers = re.findall(r"^  (\w\d) ([a-z ]+): ", rest.partition("\n\n")[0], re.M)
        assert answers == list(run.answers.items())


def test_each_mistake_changes_the_model_and_breaks_something() -> None:
    known = questions()
    for run in MISTAKES:
        assert handshake_model.ATTACK in run.answers.values()
        for label in run.answers:
            parts = dict(handshake_model.libraries(run, known[label]))
            assert any(
                parts[name] != (MODELS / name).read_text()
                for name in parts
                if name != "switches.pvl"
            )


def test_the_verifier_says_the_same_where_it_is_installed() -> None:
    """Where it is not, the results that are kept are all there is: see the test above."""
    if shutil.which(handshake_model.COMMAND) is None:
        return
    protocol, known = runs()[0], questions()
    for label in ("S1", "S7", "K1", "H2"):
        assert ask(protocol, known[label]) == protocol.answers[label]
    mistake = next(run for run in MISTAKES if run.name == "keys-without-transcript")
    assert ask(mistake, known["K1"]) == handshake_model.ATTACK
