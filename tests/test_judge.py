"""What judging does with the findings of all rules."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import nndiag
from nndiag.judge import judge


def test_a_note_points_into_no_installed_library():
    """A warning does: it says where the library's layer is that needs other weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    snapshot = nndiag.check(model, torch.randn(256, 16)).snapshot
    place = "/venv/lib/python3.12/site-packages/blocks.py:{}"
    layers = tuple(
        replace(layer, location=place.format(n)) for n, layer in enumerate(snapshot.layers)
    )

    findings = judge(replace(snapshot, layers=layers)).findings

    assert {f.severity for f in findings} >= {"note", "warning"}
    assert {f.location for f in findings if f.severity == "note"} == {None}
    warnings = [f.location for f in findings if f.severity == "warning"]
    assert warnings
    assert None not in warnings


def test_a_note_points_at_the_users_own_line():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    snapshot = nndiag.check(model, torch.randn(256, 16)).snapshot
    layers = tuple(replace(layer, location="models/net.py:7") for layer in snapshot.layers)

    findings = judge(replace(snapshot, layers=layers)).findings

    assert {f.severity for f in findings} == {"note"}
    assert {f.location for f in findings} == {"models/net.py:7"}
