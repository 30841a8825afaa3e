"""Checks what `walyoff demo --json` says about itself: `check_demo.py FILE`."""

import json
import pathlib
import sys

LONGEST_JOIN_S = 30.0


def main() -> None:
    """Raise SystemExit with what is wrong, or print one line."""
    result = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    wrong = [
        name
        for name, right in {
            "ok": result["ok"] is True,
            "verified": result["verified"] is True,
            "plaintext_on_chain": result["plaintext_on_chain"] is False,
            "messages": result["messages"] >= 6,
            "join_s": 0 < result["join_s"] < LONGEST_JOIN_S,
            "latency_ms": len(result["latency_ms"]) > 0 and min(result["latency_ms"]) > 0,
        }.items()
        if not right
    ]
    if wrong:
        raise SystemExit(f"the demonstration failed: {', '.join(wrong)}\n{result}")
    latencies = sorted(result["latency_ms"])
    print(
        f"demonstration: {result['messages']} messages, joined in {result['join_s']:.2f} s, "
        f"median latency {latencies[len(latencies) // 2]:.1f} ms, no plaintext on the chain"
    )


if __name__ == "__main__":
    main()
