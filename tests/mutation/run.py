"""Runs the tests on mutants, each in a fork of a process that has collected the tests already."""

from __future__ import annotations

import dataclasses
import importlib
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing.queues import Queue
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

from mutation.draw import Mutant

Outcome = Literal["killed", "survived", "timeout"]

NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
CPU_SECONDS, CLOCK_SECONDS = 300, 1800
EVERY = "tests/test_every_rule.py"


def tests_of(module: str) -> tuple[str, ...]:
    """The files with the tests of a module; of ``EVERY`` only what names the rule."""
    stem = Path(module).stem
    if module == "rules/__init__.py":
        return ("tests/test_outside_rules.py",)
    if module.startswith("rules/"):
        return f"tests/rules/test_{stem}.py", EVERY
    return (f"tests/test_{stem}.py",)


def outcomes(
    root: Path, mutants: list[Mutant], processes: int, minutes: float
) -> Iterator[tuple[Mutant, Outcome]]:
    """As they come, until the minutes are over. No file is changed, not even of the copy.

    At the end the tests of each module are run without a mutant, unless one survived them.

    Raises:
        RuntimeError: tests that fail without a mutant; what they killed says nothing.
    """
    end = time.monotonic() + 60 * minutes
    context = multiprocessing.get_context("fork")
    due: Queue[Mutant | None] = context.Queue()
    done: Queue[tuple[Mutant, Outcome]] = context.Queue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / root.name
        shutil.copytree(root, copy, ignore=NOT_COPIED)
        files = list(dict.fromkeys(file for mutant in mutants for file in tests_of(mutant.module)))
        workers = [
            context.Process(target=_work, args=(copy, files, due, done), daemon=True)
            for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        killed: dict[str, Mutant] = {}
        passing: set[str] = set()
        for mutant, outcome in _handed_out(mutants, due, done, processes, end):
            yield mutant, outcome
            killed[mutant.module] = mutant
            if outcome == "survived":
                passing.add(mutant.module)
        controls = [
            dataclasses.replace(mutant, code=(copy / "nndiag" / module).read_text())
            for module, mutant in killed.items()
            if module not in passing
        ]
        for control, outcome in _handed_out(controls, due, done, processes, math.inf):
            if outcome != "survived":
                raise RuntimeError(f"the tests of {control.module} fail without a mutant")
        for _ in workers:
            due.put(None)
        for worker in workers:
            worker.join()


def _handed_out(
    mutants: list[Mutant],
    due: Queue[Mutant | None],
    done: Queue[tuple[Mutant, Outcome]],
    processes: int,
    end: float,
) -> Iterator[tuple[Mutant, Outcome]]:
    """One a process, and another for each that comes back."""
    rest = iter(mutants)
    out = 0
    for mutant in islice(rest, processes):
        due.put(mutant)
        out += 1
    while out:
        yield done.get()
        out -= 1
        if time.monotonic() < end and (mutant := next(rest, None)) is not None:
            due.put(mutant)
            out += 1


def _work(
    copy: Path,
    files: list[str],
    due: Queue[Mutant | None],
    done: Queue[tuple[Mutant, Outcome]],
) -> None:
    """One pytest that collects what all the mutants need, and forks for each of them."""
    os.chdir(copy)
    with (copy / f"output-{os.getpid()}.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
    os.environ |= {
        "CI": "1",  # Hypothesis looks at the same examples each time
        "NNDIAG_SEED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}",
    }
    sys.path[:] = [str(copy), str(copy / "tests"), *sys.path]
    options = ["-x", "-q", "-m", "not exhaustive", "-p", "no:cacheprovider", "-p", "no:xdist"]
    pytest.main([*options, "-p", "no:rerunfailures", *files], [_Fork(due, done)])


class _Fork:
    """In place of the tests: for each mutant a child that goes on to run those of its module."""

    def __init__(self, due: Queue[Mutant | None], done: Queue[tuple[Mutant, Outcome]]) -> None:
        self._due, self._done = due, done
        self._in_child = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        while (mutant := self._due.get()) is not None:
            child = os.fork()
            if child == 0:
                self._become(mutant, session)
                return None  # and the tests are run
            _, status = os.waitpid(child, 0)
            late = -os.waitstatus_to_exitcode(status) in (signal.SIGXCPU, signal.SIGALRM)
            self._done.put((mutant, "timeout" if late else "killed" if status else "survived"))
        return True

    def _become(self, mutant: Mutant, session: pytest.Session) -> None:
        self._in_child = True
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        signal.alarm(CLOCK_SECONDS)
        session.items[:] = _belonging(session.items, mutant.module)
        try:
            _put_in_place(mutant.module, mutant.code)
        except BaseException:
            os._exit(1)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._in_child:
            os._exit(min(session.testsfailed, 1))


def _belonging(items: list[pytest.Item], module: str) -> list[pytest.Item]:
    files, rule = tests_of(module), Path(module).stem.replace("_", "-")
    return [
        item
        for item in items
        for file in files
        if item.nodeid.startswith(f"{file}::") and (file != EVERY or rule in item.nodeid)
    ]


def _put_in_place(module: str, code: str) -> None:
    """Run the code as the module, and give the new functions and classes to all who have the old.

    What holds an old one otherwise (an argument of a test, an instance) keeps it. So a survivor
    may be none; what is killed is killed.
    """
    name = f"nndiag.{module.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}"
    target = importlib.import_module(name)
    before = dict(vars(target))
    exec(compile(code, target.__file__ or name, "exec"), vars(target))
    after = {id(old): vars(target)[key] for key, old in before.items() if _belongs(old, name)}
    for other in list(sys.modules.values()):
        if isinstance(other, ModuleType) and other is not target:
            for key, value in list(vars(other).items()):
                if id(value) in after:
                    setattr(other, key, after[id(value)])


def _belongs(value: object, name: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == name
