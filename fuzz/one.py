"""The process of one target: `python -m fuzz.one TARGET [options of libFuzzer] CORPUS`."""

from __future__ import annotations

import sys

import atheris

#: Only ours is watched: watching the standard library costs a minute at each start, and what
#: checks the laws would cost half of the executions.
WATCHED = ["walyoff", "walyoff_codecs", "walyoff_transports"]


def main() -> None:
    """Become the fuzzer of a target; does not return."""
    with atheris.instrument_imports(include=WATCHED):
        from fuzz.targets import attempt  # noqa: PLC0415 - watched from its import on

        name, *arguments = sys.argv[1:]
        # What a target imports late is not the time of any input.
        attempt(name, b"")

    def try_input(data: bytes) -> None:
        attempt(name, data)

    atheris.Setup([f"fuzz-{name}", *arguments], try_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
