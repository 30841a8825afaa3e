"""What `import walyoff` costs, alone and with the names that applications use."""

from __future__ import annotations

import json
import subprocess
import sys

from anyio import to_thread

from walyoff.bench.bench import Bench
from walyoff.bench.lab import OURS, BenchError, installed_environment

_CODE = """
import json, sys, time
began, cpu = time.perf_counter(), time.process_time()
import walyoff
first = time.perf_counter()
walyoff.open_device, walyoff.Device
second, used = time.perf_counter(), time.process_time() - cpu
print(json.dumps([1000 * (first - began), 1000 * (second - began), 1000 * used,
                  len(sys.modules)]))
"""
TIMEOUT_S = 30.0


def once() -> list[float]:
    """Milliseconds of both imports, processor milliseconds, and modules."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _CODE],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        env=installed_environment(),
    )
    if done.returncode:
        raise BenchError(f"the import failed: {done.stderr.decode(errors='replace')[-200:]}")
    values: list[float] = json.loads(done.stdout)
    return values


async def measure(bench: Bench) -> None:
    """A fresh interpreter each time; the first one only fills the caches of files."""
    await to_thread.run_sync(once)
    for _ in range(bench.repeats):
        alone, with_device, cpu, modules = await to_thread.run_sync(once)
        bench.figures.add(
            OURS,
            {
                "import_ms": alone,
                "with_open_device_ms": with_device,
                "with_open_device_cpu_ms": cpu,
                "modules": modules,
            },
        )
