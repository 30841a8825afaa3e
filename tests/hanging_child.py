"""The child process with calls that hang, each once, when a file in the home says so.

Started as `walyoff.child.main` is. `HOME/hang-NAME` makes the next call of that name hang for
ever; a process that is begun afterwards finds no such file.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from walyoff.child import chainfiles, chains, main, server, upstream

HOME = Path(sys.argv[2])


def hang_once(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        order = HOME / f"hang-{name}"
        if order.exists():
            order.unlink()
            time.sleep(3_600)
        return function(*args, **kwargs)

    return call


def load_stock(*args: Any) -> Any:
    stock = REAL_LOAD(*args)
    stock.blockchain.create_block = hang_once("append", stock.blockchain.create_block)
    return stock


REAL_LOAD = upstream.load_stock
setattr(upstream, "load_stock", load_stock)  # noqa: B010 (mypy)
setattr(chainfiles.ChainFiles, "read", hang_once("read", chainfiles.ChainFiles.read))  # noqa: B010
setattr(chains.Chains, "export", hang_once("export", chains.Chains.export))  # noqa: B010
setattr(server, "HUNG_AFTER_S", 1.0)  # noqa: B010

if __name__ == "__main__":
    main.main(int(sys.argv[1]), HOME, int(sys.argv[3]))
