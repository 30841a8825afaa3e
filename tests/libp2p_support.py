"""What the tests of the libp2p transport share."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

#: Only for the extra: with it installed, these tests run.
needs_libp2p = pytest.mark.skipif(
    find_spec("libp2p") is None, reason="the extra walyoff[libp2p] is not installed"
)
