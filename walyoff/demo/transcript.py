"""The demo's transcript: when, who, what. One aligned line each."""

from __future__ import annotations

import time

from walyoff.cli.console import Console
from walyoff.cli.output import SHORT_DID, short
from walyoff.demo.search import Findings, SeenBlock

_WIDTH = 7


class Transcript:
    """Tells people what happens; silent when the result is wanted as JSON."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begun = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._begun

    def say(self, who: str, what: str) -> None:
        """One line."""
        self._print(f"{self.elapsed:6.2f} s  {who:<{_WIDTH}} {what}")

    def blank(self) -> None:
        """An empty line."""
        self._print("")

    def _print(self, line: str) -> None:
        # With --json there is one object, at the end.
        if not self.console.json:
            self.console.result({}, line)

    def arrow(self, sender: str, receiver: str, text: str, latency_ms: float) -> None:
        """A message that arrived."""
        self.say(sender, f"-> {receiver:<{_WIDTH}} {latency_ms:7.1f} ms   “{text}”")

    def blocks(self, findings: Findings) -> None:
        """What an outsider sees. The births of chains say nothing, so they are counted."""
        told = [block for block in findings.blocks if block.kind != "birth"]
        born = len(findings.blocks) - len(told)
        self.say("outside", f"sees {len(findings.blocks)} blocks, {born} of them births:")
        for block in told:
            self._print(" " * 10 + _line(block))

    def verdict(self, findings: Findings) -> None:
        """What the search found."""
        megabytes = findings.searched_bytes / 1e6
        where = (
            f"{findings.searched_files} files ({megabytes:.1f} MB), "
            f"{findings.searched_blocks} of them blocks"
        )
        if not findings.found:
            self.say("outside", f"searched {where}:")
            self._print(
                " " * 10 + "no content, no topic, no channel name; no author's DID in anchors"
            )
            self._print(
                " " * 10 + "what anybody may know: that a block came, when, and about how much"
            )
        for place, what in findings.found:
            self.say("outside", f"FOUND {what} in {place}")


def _line(block: SeenBlock) -> str:
    topics = " ".join(short(t) if len(t) > SHORT_DID * 5 else t for t in block.topics)
    state = f"sealed, by {block.creator!r}" if block.sealed else "public: members and keys"
    return f"…{block.id}  {block.time[11:23]}  {block.size:>6} B  {topics:<38} {state}"
