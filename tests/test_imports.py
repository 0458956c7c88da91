"""Which modules load which others: each import in an interpreter of its own."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import nndiag
import nndiag.render
import nndiag.rules

HEAVY = {"torch", "pandas", "scipy", "numpy", "pydantic"}


def modules_of(package):
    return [f"{package.__name__}.{info.name}" for info in pkgutil.iter_modules(package.__path__)]


# These know a snapshot, and no tensor.
RIGHT = [
    "nndiag.stats",
    "nndiag.theory",
    "nndiag.rule",
    "nndiag.report",
    "nndiag.trained",
    "nndiag.verdict",
    "nndiag.judge",
    "nndiag.ops",
    "nndiag.fixes",
    "nndiag.fixes.fix",
    "nndiag.fixes.propose",
    *modules_of(nndiag.rules),
    *modules_of(nndiag.render),
]


def loaded_by(statement):
    """Every module a fresh interpreter holds after the statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# One interpreter for many modules: what others made, which is most of the time, is loaded once;
# then each module is the first of nndiag's in a process of its own.
EACH = """
import os, sys
import jinja2, numpy, pandas, pydantic, rich, scipy.special
assert not [name for name in sys.modules if name.startswith("nndiag")]
for module in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        __import__(module)
        print(module, *sys.modules)
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, module
"""


def loaded_by_each(modules):
    """Of each module, every module that is there after it was imported."""
    command = [sys.executable, "-W", "error", "-c", EACH, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: set(line.split()[1:]) for line in done.stdout.splitlines()}


def test_importing_nndiag_loads_nothing_heavy():
    assert loaded_by("import nndiag") & HEAVY == set()


def test_looking_around_in_nndiag_loads_nothing_heavy():
    assert loaded_by("import nndiag; dir(nndiag); nndiag.__version__") & HEAVY == set()


@pytest.fixture(scope="module")
def loaded():
    return loaded_by_each([*RIGHT, "nndiag.errors"])


@pytest.mark.parametrize("module", RIGHT)
def test_right_of_the_snapshot_nothing_loads_torch(module, loaded):
    assert module in loaded[module]
    assert "torch" not in loaded[module]


def test_finding_all_rules_loads_no_torch():
    assert "torch" not in loaded_by("from nndiag import rules; assert rules.discover()")


def test_capture_loads_no_rule():
    statement = "import pkgutil, importlib, nndiag.capture as c\n" + (
        "for info in pkgutil.iter_modules(c.__path__, 'nndiag.capture.'):\n"
        "    importlib.import_module(info.name)"
    )
    loaded = loaded_by(statement)

    assert "nndiag.capture" in loaded
    assert not {name for name in loaded if name.startswith(("nndiag.rule", "nndiag.report"))}


def test_such_a_test_can_fail():
    loaded = loaded_by("import numpy, nndiag.stats")

    assert "numpy" in loaded & HEAVY
    assert "nndiag.stats" in loaded
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        loaded_by("import nndiag.no_such_module")


def test_so_can_that_of_many_modules(loaded):
    assert "nndiag.stats" in loaded["nndiag.stats"]
    assert "nndiag.stats" not in loaded["nndiag.errors"]
    assert "numpy" in loaded["nndiag.errors"] & HEAVY  # as torch would be
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        loaded_by_each(["nndiag.no_such_module"])


def test_every_public_name_is_there_and_listed():
    for name in nndiag.__all__:
        assert getattr(nndiag, name) is not None
        assert name in dir(nndiag)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'chekc'"):
        nndiag.chekc  # noqa: B018


def test_every_error_of_nndiag_is_public():
    from nndiag import errors

    assert {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.NNDiagError)
    } <= set(nndiag.__all__)
