"""A node that belongs to nobody: `guard_outsider.py HOME`, with Kubo and none of our rules.

It reads requests as lines of JSON and answers each with one line. Whoever knows a chain's id
and an address can do all of this with stock software.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from walyoff.child import repo
from walyoff.child.kubo import Kubo
from walyoff.errors import WalyoffError


class Outsider:
    """What it can do."""

    def __init__(self, home: Path) -> None:
        repo.ensure_repo(home / "ipfs")
        self._home = home
        self._kubo = Kubo(home / "ipfs")
        self._kubo.start()
        self._subscriptions: list[int] = []

    def connect(self, address: str) -> None:
        self._kubo.connect(address)

    def follow(self, topic: str) -> None:
        """Be a peer of the topic; it is not read."""
        self._subscriptions.append(self._kubo.subscribe(topic))
        deadline = time.monotonic() + 10
        while not self._kubo.topic_peers(topic) and time.monotonic() < deadline:
            time.sleep(0.02)

    def add(self, paths: list[str]) -> list[str]:
        return [self._kubo.add_file(path) for path in paths]

    def publish(self, topic: str, path: str, pause: float) -> int:
        """Each line of a file, one after the other."""
        count = 0
        for line in Path(path).read_bytes().splitlines():
            self._kubo.publish(topic, line)
            count += 1
            time.sleep(pause)
        return count


def main(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    os.chdir(home)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    outsider = Outsider(home)
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            answer["value"] = getattr(outsider, request.pop("do"))(**request)
        except WalyoffError as error:
            answer["error"] = str(error)
        out.write(json.dumps(answer) + "\n")
        out.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
