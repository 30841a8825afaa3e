"""What the README shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from walyoff.cli.commands import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
#: A device starts in about a second; slow machines get their time.
TIMEOUT_S = 600
MAX_EXAMPLE_LINES = 20

EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)


def test_there_is_one_example_and_it_is_short() -> None:
    assert len(re.findall(r"```python", README)) == len(EXAMPLES) == 1
    assert len(EXAMPLES[0][0].splitlines()) <= MAX_EXAMPLE_LINES


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_example_prints_what_it_says(home: Path, loop: str) -> None:
    code, output = EXAMPLES[0]
    code = code.replace("anyio.run(main)", f"anyio.run(main, backend={loop!r})")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        cwd=home, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, output), done.stderr


def test_every_command_it_shows_exists() -> None:
    """Parsed, not run: the command line's own tests run them."""
    shown = re.findall(r"^    \$ walyoff (.*)$", README, re.MULTILINE)
    assert len(shown) >= 5
    for line in shown:
        option, _home, name, *rest = line.split()
        assert option == "--home"
        with click.Context(cli) as context:
            command = cli.get_command(context, name)
            assert command is not None
            command.make_context(name, rest, parent=context)


def test_the_other_commands_it_names_exist() -> None:
    (sentence,) = re.findall(r"`walyoff send`.*?do the rest", README, re.DOTALL)
    names = {word.removeprefix("walyoff ") for word in re.findall(r"`([a-z ]+)`", sentence)}
    assert len(names) >= 5
    with click.Context(cli) as context:
        assert names <= set(cli.list_commands(context))


def test_every_target_of_make_that_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets


def test_every_file_that_it_names_exists() -> None:
    names = re.findall(r"`([\w./-]+/[\w./-]*)`", README) + re.findall(
        r"\]\(([\w./]+)\)", README
    )
    names = [name for name in names if not name.startswith(".venv")]
    assert len(names) > 6
    assert [name for name in names if not (ROOT / name).exists()] == []
