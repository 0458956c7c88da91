"""What the pytest plugin costs a session that has nothing to do with it.

Whole sessions of one test that asserts nothing, with the plugin and without, in turn; the price is
the CPU time above the mean of the two neighbours.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

PLUGIN = ("-p", "nndiag.pytest_plugin")


def compare(rounds: int) -> pd.DataFrame:
    """A row for each round, in milliseconds of CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_it.py").write_text("def test_it():\n    pass\n")
        _session(folder)  # compiles what is to be compiled
        rows, before = [], _session(folder)
        for turn in range(rounds):
            spent = _session(folder, *PLUGIN)
            after = _session(folder)
            bare = (before + after) / 2
            rows.append((turn, bare, spent - bare))
            before = after
    return pd.DataFrame(rows, columns=["round", "bare_cpu_ms", "added_cpu_ms"])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    added = rows["added_cpu_ms"]
    return pd.DataFrame(
        [
            {
                "rounds": len(rows),
                "bare_cpu_ms": rows["bare_cpu_ms"].median(),
                "added_cpu_ms": added.median(),
                "added_quartile_1": added.quantile(0.25),
                "added_quartile_3": added.quantile(0.75),
            }
        ]
    )


def _session(folder: str, *options: str) -> float:
    """Of no other plugin than pytest's own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder, env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
