"""Runs the model of the handshake in ProVerif: the protocol as it is, and with mistakes in it.

    python -m tests.handshake_model            everything
    python -m tests.handshake_model NAME ...   some runs; --list names them
    python -m tests.handshake_model --write    and keep the results in docs/models/results.txt

The model is in `docs/models/*.pvl`, the questions are in the `.pv` files beside it. Decided
here: which mistakes are made on purpose, and what must be answered to every question. A mistake
is a replacement in the text of the model; that it breaks what it should shows that a proof
of the model without it says something.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent.parent / "docs" / "models"
RESULTS = MODELS / "results.txt"
COMMAND = "proverif"
#: Seconds for one question on a busy machine; the longest takes a minute on a quiet one.
TIMEOUT = 1800.0

PROVEN, ATTACK, UNKNOWN = "proven", "attack", "not proven"
_ANSWERS = {"is true": PROVEN, "is false": ATTACK, "cannot be proved": UNKNOWN}
_LABEL = re.compile(r"\(\* ([A-Z]\d)(?: \[(\w+)\])?: (.+?) ?\*\)", re.S)
_RESULT = re.compile(rf"^RESULT (?!\(even).*({'|'.join(_ANSWERS)})\.$", re.M)
#: Only these files are about hiding; for the others the tags are given away.
_HIDING = "hiding_"
#: Only here an offer is a list; for the others the attacker says what is chosen.
_CHOICE = "choice.pv"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, with all that it needs from its file."""

    label: str
    sentence: str
    file: str
    text: str
    #: The only mode in which anybody talks; all modes at once if it is empty.
    mode: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Questions that are asked of the model after some replacements."""

    name: str
    why: str
    #: What must be answered.
    answers: Mapping[str, str]
    replace: tuple[tuple[str, str], ...] = ()
    #: Signatures and sealing of two halves, one of which is broken.
    halves: bool = False
    #: The only mode in which anybody talks, whatever the question says.
    mode: str = ""


def questions() -> dict[str, Question]:
    """All questions by their labels."""
    found = {}
    for path in sorted(MODELS.glob("*.pv")):
        text = path.read_text()
        if path.name.startswith(_HIDING):
            label, mode, sentence = _LABEL.findall(text)[0]
            found[label] = Question(
                label=label, sentence=" ".join(sentence.split()), file=path.name, text=text
            )
            continue
        questions_part, process, _ = text.partition("process World")
        for part in re.split(r"(?=\(\* [A-Z]\d[ :])", questions_part)[1:]:
            label, mode, sentence = _LABEL.findall(part)[0]
            found[label] = Question(
                label=label,
                sentence=" ".join(sentence.split()),
                file=path.name,
                text=f"{part}\n{process}\n",
                mode=mode,
            )
    return found


def digest() -> str:
    """Names the model with its questions."""
    hasher = hashlib.sha256()
    for path in sorted([*MODELS.glob("*.pv"), *MODELS.glob("*.pvl")]):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()


def libraries(run: Run, question: Question) -> Iterator[tuple[str, str]]:
    """Names and texts of the parts of the model, with the mistakes of a run."""
    hiding = question.file.startswith(_HIDING)
    tag = "tag_blinded.pvl" if hiding else "tag_open.pvl"
    whole = "halves.pvl" if run.halves else "whole.pvl"
    choice = "choice_first.pvl" if question.file == _CHOICE else "choice_any.pvl"
    names = (
        *("switches.pvl", "primitives.pvl", whole, "weaker.pvl", tag, choice),
        "handshake.pvl",
    )
    texts = [(MODELS / name).read_text() for name in names]
    mode = run.mode or question.mode
    off = {"member", "join", "introduce", "reveal"} - {mode} if mode else ()
    for switch in off:
        texts[0] = texts[0].replace(
            f"{switch}_on: channel.", f"{switch}_on: channel [private]."
        )
    for old, new in run.replace:
        if not any(old in text for text in texts):
            raise ValueError(f"{run.name}: the model does not contain {old!r}")
        texts = [text.replace(old, new) for text in texts]
    return zip(names, texts, strict=True)


def ask(run: Run, question: Question, command: str = COMMAND) -> str:
    """What the verifier answers: PROVEN, ATTACK or UNKNOWN."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [command]
        for name, text in libraries(run, question):
            Path(folder, name).write_text(text)
            arguments += ["-lib", str(Path(folder, name))]
        asked = Path(folder, "question.pv")
        asked.write_text(question.text)
        done = subprocess.run(
            [*arguments, str(asked)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    found = _RESULT.findall(done.stdout)
    if len(found) != 1:
        raise RuntimeError(
            f"{run.name}, {question.label}: {(done.stdout + done.stderr)[-2000:]}"
        )
    answer = _ANSWERS[found[0]]
    # Of an equivalence it never says that it is false, but it shows where the worlds part.
    equivalence = question.file.startswith(_HIDING)
    parted = answer == UNKNOWN and "A trace has been found." in done.stdout
    return ATTACK if equivalence and parted else answer


def _version(command: str) -> str:
    done = subprocess.run([command, "-help"], capture_output=True, text=True, check=False)
    return done.stdout.partition(".  ")[0].partition(" Crypto")[0].rstrip(".")


#: Of `halves.pvl`: the other half is the broken one.
SECOND_HALF = (
    ("forge(public(s, k), m) = sign_first(k, m)", "forge(public(s, k), m) = sign_second(k, m)"),
    ("break_seal(seal_first(", "break_seal(seal_second("),
)


def _as_it_is() -> Run:
    return Run(
        name="protocol",
        why="the handshake as it is",
        answers={label: ATTACK if label[0] == "E" else PROVEN for label in questions()},
    )


#: One half of a hybrid suite is broken, and that changes nothing.
VARIANTS = (
    Run(
        name="first-half-broken",
        why="whoever has a public key signs by its first half, and opens what that sealed",
        halves=True,
        mode="member",
        answers={
            "R1": PROVEN,
            "R2": PROVEN,
            "E1": ATTACK,
            **dict.fromkeys(("S1", "S2", "S3", "S4"), PROVEN),
        },
    ),
    Run(
        name="second-half-broken",
        why="the same of the second half",
        halves=True,
        mode="member",
        replace=SECOND_HALF,
        answers={
            "R1": PROVEN,
            "R2": PROVEN,
            "E1": ATTACK,
            **dict.fromkeys(("S1", "S2", "S3", "S4"), PROVEN),
        },
    ),
)

MISTAKES = (
    Run(
        name="signature-without-transcript",
        why="a side signs its certificate, and not what was said",
        replace=(
            (
                "sign(k, signed_message(responder, m, t3))",
                "sign(k, signed_message(responder, m, certificate))",
            ),
            (
                "signed_message(responder, m, t3), signature_r",
                "signed_message(responder, m, certificate_r), signature_r",
            ),
            (
                "sign(k, signed_message(initiator, m, t5))",
                "sign(k, signed_message(initiator, m, certificate))",
            ),
            (
                "signed_message(initiator, m, t5), signature_i",
                "signed_message(initiator, m, certificate_i), signature_i",
            ),
        ),
        answers={"S1": ATTACK, "S3": ATTACK},
    ),
    Run(
        name="signature-without-domain",
        why="a device signs whatever it is given, as it signs batches",
        replace=(("sign(k, batch_message(m))", "sign(k, m)"),),
        answers={"S1": ATTACK, "S3": ATTACK},
    ),
    Run(
        name="initiator-does-not-check-signature",
        why="an initiator believes a certificate without a proof of its key",
        replace=(
            ("if verify(public_r, signed_message(responder, m, t3), signature_r) then", ""),
        ),
        answers={"S1": ATTACK},
    ),
    Run(
        name="responder-does-not-check-signature",
        why="a responder believes a certificate without a proof of its key",
        replace=(
            ("if verify(public_i, signed_message(initiator, m, t5), signature_i) then", ""),
        ),
        answers={"S3": ATTACK},
    ),
    Run(
        name="certificate-not-checked",
        why="the control keys' signature of a member's certificate is not looked at",
        replace=(
            ("    if control_verify(did_r, body_r, control_r) then\n", ""),
            (
                "     if control_verify(did_i, body_i, control_i) then\n     Responder",
                "     Responder",
            ),
        ),
        answers={"S1": ATTACK, "S3": ATTACK},
    ),
    Run(
        name="offer-not-hashed",
        why="mode, offer, key and tag of the first flight are not in the transcript",
        replace=(
            (
                "absorb(transcript(m, channel_id), first_flight, hello)",
                "transcript(m, channel_id)",
            ),
        ),
        answers={"K1": ATTACK},
    ),
    Run(
        name="keys-without-transcript",
        why="keys follow from the secrets alone: two sides can share them and mean others",
        replace=(
            (
                "(t6, channel_id, certificate_id(body_r), certificate_id(own))",
                "empty",
            ),
            (
                "(t6, channel_id, certificate_id(own), certificate_id(body_i))",
                "empty",
            ),
        ),
        answers={"K1": ATTACK},
    ),
    Run(
        name="no-ephemeral-key",
        why="the secret is sealed to the device's long-lived key",
        replace=(
            (
                "  new e: key;\n  let ephemeral = public(ephemeral_suite, e) in",
                "  let e = k in\n  let ephemeral = public(s, e) in",
            ),
        ),
        answers={"S1": ATTACK},
    ),
    Run(
        name="join-without-invitation",
        why="the invitation's secret is not in the keys of a join",
        replace=(("invitation_psk(invited)", "no_psk"),),
        answers={"R8": ATTACK, "S6": ATTACK},
    ),
    Run(
        name="introduction-without-epoch",
        why="the epoch's secret is not in the keys of an introduction",
        replace=(("introduction_psk(epoch)", "no_psk"),),
        answers={"S9": ATTACK},
    ),
    Run(
        name="joiner-not-checked",
        why="the inviter writes a joining before it looks at the joiner's signature",
        replace=(
            (
                "     if control_verify(did_i, body_i, control_i) then\n     event LetsIn",
                "     event LetsIn",
            ),
        ),
        answers={"R5": ATTACK},
    ),
    Run(
        name="first-half-alone-checked",
        why="a signature counts if its first half holds, and that half is broken",
        halves=True,
        mode="member",
        replace=(
            (
                "forall s: suite, k: key, m: bitstring;\n"
                "        verify(public(s, k), m, (sign_first(k, m), sign_second(k, m)))",
                "forall s: suite, k: key, m: bitstring, x: bitstring;\n"
                "        verify(public(s, k), m, (sign_first(k, m), x))",
            ),
        ),
        answers={"S1": ATTACK, "S3": ATTACK},
    ),
    Run(
        name="second-half-alone-checked",
        why="the same of the second half",
        halves=True,
        mode="member",
        replace=(
            *SECOND_HALF,
            (
                "forall s: suite, k: key, m: bitstring;\n"
                "        verify(public(s, k), m, (sign_first(k, m), sign_second(k, m)))",
                "forall s: suite, k: key, m: bitstring, x: bitstring;\n"
                "        verify(public(s, k), m, (x, sign_second(k, m)))",
            ),
        ),
        answers={"S1": ATTACK, "S3": ATTACK},
    ),
    Run(
        name="sealed-by-first-half-alone",
        why="the key that seals follows from one half, and that half is broken",
        halves=True,
        mode="member",
        replace=(
            (
                "sealed_with(sealing_key(a, b, info), m)",
                "sealed_with(sealing_key(a, a, info), m)",
            ),
            ("opened_with(sealing_key(a, b, info)", "opened_with(sealing_key(a, a, info)"),
        ),
        answers={"S1": ATTACK, "S3": ATTACK},
    ),
    Run(
        name="membership-not-asked-again",
        why="who was a member when its certificate was first seen is taken for one for ever",
        replace=(
            ("    event Looked(did_r, t4);\n", ""),
            ("     event Looked(did_i, t4);\n", ""),
            (
                "let World = ",
                "let Seen = in(net, did: bitstring); if belongs(did) then "
                "event Looked(did, empty).\n\n"
                "let World = !Seen | ",
            ),
        ),
        answers={"M1": ATTACK, "M2": ATTACK},
    ),
    Run(
        name="last-suite-chosen",
        why="a responder chooses the last suite of the offer that it takes",
        replace=(
            (
                "choice_of(both, (a, b)) = a",
                "choice_of(both, (a, b)) = b",
            ),
        ),
        answers={"C1": ATTACK},
    ),
    Run(
        name="offer-not-hashed-and-chosen-from",
        why="who is in the middle takes the better suites out of an offer that is not hashed",
        replace=(
            (
                "absorb(transcript(m, channel_id), first_flight, hello)",
                "transcript(m, channel_id)",
            ),
        ),
        answers={"C1": ATTACK},
    ),
)


def runs() -> tuple[Run, ...]:
    """All runs: the protocol, with a broken half as well, then the mistakes."""
    return (_as_it_is(), *VARIANTS, *MISTAKES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask everything; 1 if something was answered otherwise than it must be."""
    parser = argparse.ArgumentParser(description="Verify the model of the handshake.")
    parser.add_argument("names", nargs="*", help="runs (default: all)")
    parser.add_argument("--only", help="questions, as R1,S1 (default: all of a run)")
    parser.add_argument("--command", default=COMMAND, help="ProVerif (default: on the PATH)")
    parser.add_argument("--write", action="store_true", help=f"keep the results in {RESULTS}")
    parser.add_argument("--list", action="store_true", help="name the runs")
    options = parser.parse_args(arguments)
    if options.list:
        print(*(f"{run.name}: {run.why}" for run in runs()), sep="\n")
        return 0
    lines, wrong, known = [f"{_version(options.command)}, model {digest()}"], 0, questions()
    only = options.only.split(",") if options.only else None
    for run in runs():
        if options.names and run.name not in options.names:
            continue
        lines += ["", f"{run.name}: {run.why}"]
        print(lines[-1], flush=True)
        for label, expected in run.answers.items():
            if only and label not in only:
                continue
            began = time.monotonic()
            answer = ask(run, known[label], options.command)
            lines.append(f"  {label} {answer}: {known[label].sentence}")
            wrong += answer != expected
            note = "" if answer == expected else f", but {expected} was expected"
            print(f"{lines[-1]} ({time.monotonic() - began:.0f} s{note})", flush=True)
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
