"""Runs the tests on mutants, each in a process of its own, on copies of the tree."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mutation.draw import Mutant

Outcome = Literal["killed", "survived", "timeout"]

NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "build", "dist", "*.egg-info", "node_modules"
)
# What every child would import again. Not hypothesis: pytest wants to rewrite its plugins.
FIRST = ("torch", "numpy", "scipy.stats", "pandas", "pydantic", "rich", "jinja2", "sklearn")
CPU_SECONDS, CLOCK_SECONDS = 300, 1800
PASSED = 0


def tests_of(module: str) -> list[list[str]]:
    """Arguments of pytest, one list a run: the tests that belong to the module."""
    stem = Path(module).stem
    if module == "rules/__init__.py":
        return [["tests/test_outside_rules.py"]]
    if module.startswith("rules/"):
        every = ["tests/test_every_rule.py", "-k", stem.replace("_", "-")]
        return [[f"tests/rules/test_{stem}.py"], every]
    if module == "judge.py":
        return [["tests/test_judging.py"], ["tests/test_settings.py"]]
    return [[f"tests/test_{stem}.py"]]


def import_first() -> None:
    """Once in the parent, which then only forks."""
    for name in FIRST:
        importlib.import_module(name)


@contextmanager
def copies(root: Path, count: int) -> Iterator[list[Path]]:
    """So many copies of the tree; the checkout itself is never changed."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        places = [Path(folder) / str(k) for k in range(count)]
        for place in places:
            shutil.copytree(root, place, ignore=NOT_COPIED)
        yield places


def passes(copy: Path, module: str) -> bool:
    """Whether the module's tests pass as they are; leaves the compiled files for the mutants."""
    return all(run(copy, tests, keep_compiled=True) == PASSED for tests in tests_of(module))


def outcome(copy: Path, mutant: Mutant) -> Outcome:
    path = copy / "nndiag" / mutant.module
    original = path.read_text()
    # A file of the same size, written in the same second, would pass for the compiled one.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
    path.write_text(mutant.code)
    try:
        for tests in tests_of(mutant.module):
            status = run(copy, tests)
            if status != PASSED:
                return "timeout" if -status in (signal.SIGXCPU, signal.SIGALRM) else "killed"
        return "survived"
    finally:
        path.write_text(original)


def run(copy: Path, arguments: list[str], keep_compiled: bool = False) -> int:
    """pytest's exit status in a child; negative: the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = _pytest(copy, arguments, keep_compiled)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _pytest(copy: Path, arguments: list[str], keep_compiled: bool) -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    signal.alarm(CLOCK_SECONDS)
    os.chdir(copy)
    with (copy / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.dont_write_bytecode = not keep_compiled
    os.environ |= {
        "CI": "1",  # Hypothesis looks at the same examples each time
        "NNDIAG_SEED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "" if keep_compiled else "1",
        "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}",
    }
    for name in [n for n in sys.modules if n.partition(".")[0] in ("nndiag", "mutation")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), str(copy / "tests"), *sys.path]
    import pytest

    options = ["-x", "-q", "-m", "not exhaustive", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return int(pytest.main([*options, "-p", "no:rerunfailures", *arguments]))
