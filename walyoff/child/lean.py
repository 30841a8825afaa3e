"""Keeps out what stock code imports and nothing here uses: half of its time and memory.

Decided here: what stands in a package's place while stock code is imported. With stock code
come a test runner, a client of another process over ZeroMQ, a second implementation of
cryptography and tools for docstrings and file patterns; the few functions that it needs of
them stand in their places. Whoever wants the real packages later gets them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from walyoff.errors import LedgerError


def stand_in(name: str, **content: Any) -> None:
    """Put a module of ours where others will look for one of that name."""
    if name in sys.modules:
        raise LedgerError(f"{name} was imported before its stand-in")
    sys.modules[name] = _module(name, content)


def _module(name: str, content: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    return module


def bare_package(name: str, **content: Any) -> None:
    """Make submodules importable without running the package's own __init__."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise LedgerError(f"{name} is not installed")
    stand_in(name, __path__=list(spec.submodule_search_locations), **content)


def late(name: str) -> dict[str, Any]:
    """The content of a stand-in for a module that is imported when something of it is used."""

    def get(attribute: str) -> Any:
        return getattr(importlib.import_module(name), attribute)

    return {"__path__": [], "__getattr__": get}


def _new_key() -> Any:
    """What ecies' function of that purpose does."""
    return importlib.import_module("coincurve").PrivateKey()


class _Plain(type):
    """A metaclass that does nothing."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """While the context is open, stock code is imported without what it does not use."""
    # Their own __init__ import pytest and ZeroMQ; submodules of theirs are used.
    bare_package("emtest", ensure_dir_exists=_make_folder, ensure_dirs_exist=_make_folders)
    bare_package("brenthy_tools_beta")
    put: dict[str, dict[str, Any]] = {
        # For files of plug-ins, of which there are none here.
        "pathspec": {"GitIgnoreSpec": None},
        # Gives methods of subclasses their docstrings.
        "docstring_inheritance": {"__path__": []},
        "docstring_inheritance._internal": {"GoogleDocstringInheritanceMeta": _Plain},
        # For encryption, which stock homes alone have.
        "ecies": late("ecies"),
        "ecies.utils": {"generate_key": _new_key},
        "Crypto": {"__path__": []},
        "Crypto.Cipher": {"AES": _module("Crypto.Cipher.AES", late("Crypto.Cipher.AES"))},
    }
    # What somebody has loaded is paid for.
    put = {n: content for n, content in put.items() if n.partition(".")[0] not in sys.modules}
    for name, content in put.items():
        stand_in(name, **content)
    try:
        yield
    finally:
        for name in put:
            del sys.modules[name]


def _make_folder(path: str) -> str:
    os.makedirs(path, exist_ok=True)
    return path


def _make_folders(*paths: str) -> None:
    for path in paths:
        _make_folder(path)


__all__ = ["bare_package", "late", "lean_imports", "stand_in"]
