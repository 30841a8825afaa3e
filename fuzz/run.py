"""`python -m fuzz.run [--seconds N] [TARGET...]`: each target under atheris in its own process.

The corpus grows in `fuzz/corpus/TARGET` (or `--corpus DIR`); what breaks a target is left in
`fuzz/found`. Ends with 1 if anything was found, and prints how many executions there were.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from fuzz.seeds import seeds
from fuzz.targets import TARGETS

HERE = Path(__file__).parent
#: Memory of one target's process in MiB, and seconds for one input: more is a finding.
MEMORY_MIB = 2048
INPUT_S = 10


def run_target(name: str, seconds: int, corpus: Path) -> tuple[int, bool]:
    """Fuzz one target for a time; returns the executions, and whether nothing was found."""
    folder, found = corpus / name, HERE / "found"
    for path in (folder, found):
        path.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()):
        (folder / f"seed-{number}").write_bytes(data)
    done = subprocess.run(  # noqa: S603 - our own module
        [
            sys.executable,
            "-m",
            "fuzz.one",
            name,
            f"-max_total_time={seconds}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-timeout={INPUT_S}",
            f"-artifact_prefix={found}/{name}-",
            "-print_final_stats=1",
            "-max_len=65536",
            str(folder),
        ],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        check=False,
    )
    counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
    return int(counted[1]) if counted else 0, done.returncode == 0


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description="fuzz the decoders and the machines")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    total, good = 0, True
    for name in options.targets or TARGETS:
        count, fine = run_target(name, options.seconds, options.corpus)
        print(f"{name:16} {count:>12,} executions  {'fine' if fine else 'FOUND'}", flush=True)
        total, good = total + count, good and fine
    print(f"{'all':16} {total:>12,} executions")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
