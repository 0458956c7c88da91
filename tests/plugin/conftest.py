"""An inner pytest, really run, in one process and with two workers."""

from __future__ import annotations

import re

import pytest
from plugin_parts import HEAD

# What the inner sessions load is loaded here first: they put sys.modules back after themselves.
import nndiag.api
import nndiag.fixes
import nndiag.render.formats
import nndiag.testing.fixture
import nndiag.testing.summary  # noqa: F401

NETS = '''
import torch
import torch.nn.functional as F
from torch import nn


def well():
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def sick():
    """vanishing-gradient (error), and what comes of it."""
    layers = [layer for _ in range(8) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def dead():
    """dead-relu (warning)."""
    model = well()
    with torch.no_grad():
        model[0].bias[:9] = -50
    return model


def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    return x, torch.randint(0, 3, (256,), generator=generator)
'''


@pytest.fixture
def workers(request):
    """Options for workers, which each have to import torch: where a test asks for them."""
    return getattr(request, "param", ())


@pytest.fixture
def inner(pytester, monkeypatch, workers):
    """``inner(tests, *options)``: the result of a session of its own; what warns fails it."""
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(nets=NETS)
    pytester.syspathinsert()

    def run(tests: str, *options: str, head: str = HEAD) -> pytest.RunResult:
        pytester.makepyfile(test_it=f"{head}\n{tests}")
        args = ["-W", "error", "-p", "no:randomly", *workers, *options]
        # Workers are processes: only they would load torch anew.
        return pytester.runpytest_inprocess(*args)

    return run


@pytest.fixture
def saved(pytester):
    """The names of the files in a folder that a session wrote."""

    def names(folder: str) -> list[str]:
        return sorted(path.name for path in (pytester.path / folder).iterdir())

    return names


def summary(result: pytest.RunResult) -> list[str]:
    """The lines of nndiag's section; none if there is no such section."""
    lines = result.stdout.lines
    starts = [k for k, line in enumerate(lines) if re.fullmatch(r"=+ nndiag =+", line)]
    if not starts:
        return []
    [start] = starts
    rest = lines[start + 1 :]
    end = next(k for k, line in enumerate(rest) if line.startswith("==="))
    return [line for line in rest[:end] if line]


@pytest.fixture
def section():
    return summary
