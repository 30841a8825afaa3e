"""Names the tests that failed, and fails if they are many: `failed_once.py LASTFAILED`."""

import json
import pathlib
import sys

#: Failures of more functions are no accident. One often fails in all its cases, for one reason.
MOST = 3


def main() -> None:
    """Raise SystemExit if none is known, or too many are; print the names of a few."""
    path = pathlib.Path(sys.argv[1])
    failed = sorted(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
    for name in failed:
        print(f"FAILED ONCE: {name}")
    # What could not even be collected has the name of a file or of a worker.
    functions = {name.partition("[")[0] for name in failed}
    if not 0 < len(functions) <= MOST or not all("::" in name for name in failed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
