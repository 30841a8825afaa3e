"""What all tests share: event loops, short folders, hypothesis' profile, a clean end."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

#: Names this test run in the environment of every process that it starts. It is hidden in
#: the search path, because device processes pass on that and little else.
_RUN = f"walyoff-tests-{uuid.uuid4().hex}"
#: Seconds that processes get to notice that their parent is gone, on a busy machine too.
_END_TIME = 60.0
_PROC = Path("/proc")
#: Files that take more than 20 seconds, the longest first (`pytest --durations=0`).
LONGEST = (
    "test_cli_devices.py", "test_sim_seeds.py", "test_bench.py", "test_real_transports.py",
    "test_real_kills.py", "test_guard_attacks.py", "test_real_people.py",
    "test_real_storm.py", "test_real_devices.py", "test_walytis_identity.py",
    "test_reconciler.py", "test_real_joining.py",
    "test_stock_homes.py", "test_real_forgetting.py", "test_child_hangs.py", "test_demo.py",
    "test_ipfs_transport.py", "test_cli_moving.py", "test_real_attacks.py",
    "test_bench_transport.py", "test_real_rules.py", "test_interop_devices.py",
    "test_sim_nesting_seeds.py", "test_real_moving.py", "test_interop_finding.py",
    "test_real_failover.py", "test_ledger_segments.py", "test_real_homes.py",
    "test_child_process.py", "test_at_rest.py", "test_security_real.py",
    "test_libp2p_lifecycle.py", "test_ledger_handover.py", "test_libp2p_guards.py",
    "test_attachment_files.py",
)  # fmt: skip
assert all((Path(__file__).parent / name).exists() for name in LONGEST)

# Time on a shared machine says nothing, so there is no deadline. On a build machine the
# examples are the same each time; elsewhere new ones are tried in each run.
settings.register_profile("walyoff", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("WALYOFF_CI") else "walyoff")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where files run side by side, those that take longest begin: none is left for last."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops, for every asynchronous test that does not choose by itself."""
    return str(request.param)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for devices, with a short path: a Unix socket's name has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="wo-"))
    yield path
    # A killed device's child may still be writing while it ends.
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _no_process_survives() -> Iterator[None]:
    """Fail the run if a process that it started, however indirectly, is still there."""
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{path}{os.pathsep}/nonexistent/{_RUN}"
    yield
    os.environ["PATH"] = path
    deadline = time.monotonic() + _END_TIME
    while (left := _processes_of_this_run()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"processes were left behind: {left}"


def _processes_of_this_run() -> dict[int, str]:
    """Process ids and command lines; empty where there is no /proc to look at."""
    found = {}
    mark = _RUN.encode()
    for folder in _PROC.glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace")[:200]
        except OSError:
            # It ended while we looked, or it is somebody else's.
            continue
    return found
