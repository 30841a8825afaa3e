"""Names the tests that failed, and fails if they are many: `failed_once.py LASTFAILED`."""

import json
import pathlib
import sys

#: More than so many failures are no accident.
MOST = 3


def main() -> None:
    """Raise SystemExit if none is known, or too many are; print the names of a few."""
    path = pathlib.Path(sys.argv[1])
    failed = sorted(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
    for name in failed:
        print(f"FAILED ONCE: {name}")
    # What could not even be collected has the name of a file or of a worker.
    if not 0 < len(failed) <= MOST or not all("::" in name for name in failed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
