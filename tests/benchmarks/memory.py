"""How much more memory a step takes at its peak with a tool looking on (Linux with glibc only).

The peak is the kernel's (VmHWM), so it holds what C++ allocates too. Every tool gets a fresh
process, in which model, batch and hooks are in place and two steps have been
taken; then freed memory is given back, the kernel's peak is reset, and one more step is taken.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from benchmarks.paired import reason
from benchmarks.tools import TOOLS, Step
from benchmarks.workloads import make

MIB = 2**20
REPEATS = 5
# Tensors of 64 KiB and more go back to the kernel as they are freed, so the peak is not what an
# earlier step has left in the heap.
SMALLEST = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}


def compare(workload: str, tools: list[str], *, processes: int) -> pd.DataFrame:
    """A row for each tool: the medians over the processes, and the ratio of those medians."""
    rows = []
    bare = statistics.median(apart(workload, "bare") for _ in range(processes))
    parameters = sum(p.nbytes for p in make(workload).model.parameters()) / MIB
    for tool in tools:
        try:
            peaks = [apart(workload, tool) for _ in range(processes)]
        except RuntimeError as error:
            rows.append((tool, None, None, None, None, str(error)))
            continue
        median = statistics.median(peaks)
        rows.append((tool, median, bare, median / bare, max(peaks) - min(peaks), None))
    columns = ["tool", "peak_mib", "bare_mib", "ratio", "spread_mib", "why_not"]
    return pd.DataFrame(rows, columns=columns).assign(parameters_mib=parameters)


def apart(workload: str, tool: str) -> float:
    """The peak in MiB of a step of its own process."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", workload, tool],
        env={**os.environ, **SMALLEST, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    *_, last = run.stdout.splitlines() or [""]
    if not last.startswith("peak "):
        raise RuntimeError(last or run.stderr.strip()[-200:])
    return float(last.removeprefix("peak "))


def peak(workload: str, tool: str) -> float:
    """The peak in MiB of a step of this process."""
    with TOOLS[tool].attach(make(workload)) as step:
        step()
        step()
        return statistics.median(peak_of(step) for _ in range(REPEATS))


def peak_of(step: Step) -> float:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / MIB


def resident(line: str) -> int:
    status = Path("/proc/self/status").read_text()
    kib = re.search(rf"^{line}:\s+(\d+) kB$", status, re.MULTILINE)
    assert kib is not None
    return int(kib[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        print("peak", peak(*sys.argv[1:]))
    except Exception as error:
        print(reason(sys.argv[2], error))
