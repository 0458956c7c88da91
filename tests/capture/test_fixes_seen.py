"""The layers of ``nndiag.fixes`` are seen as torch's own are; so is what says which call it is."""

from __future__ import annotations

import inspect

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from oracle import look, row, rows
from torch import nn

import nndiag
from nndiag.fixes import activations, normalization

ACTIVATIONS = {
    "leaky_relu": ("LeakyReLU", (0.2,), {"negative_slope": 0.2}),
    "prelu": ("PReLU", (), {"weight": 0.25}),
    "prelu of each unit": ("PReLU", (16, 0.5), {"weight": 0.5}),
    "elu": ("ELU", (0.5,), {"alpha": 0.5}),
    "selu": ("SELU", (), {}),
}
NORMS = {
    "batch_norm": ("BatchNorm1d", (16,), {"training": 1.0}),
    "layer_norm": ("LayerNorm", (16,), {}),
    "group_norm": ("GroupNorm", (4, 16), {}),
}


def dense(kind, args, modules):
    """A net with two layers called ``kind``, of torch's or of ours."""
    torch.manual_seed(0)
    make = getattr(modules, kind)
    return nn.Sequential(
        nn.Linear(8, 16), make(*args), nn.Linear(16, 16), make(*args), nn.ReLU(), nn.Linear(16, 3)
    )


def same_reports(mine, torchs, batch, **options):
    """Both reports, after every table and finding is found to be the same."""
    found, expected = (
        nndiag.check(m, batch, loss_fn=F.cross_entropy, config=False, **options)
        for m in (mine, torchs)
    )
    pd.testing.assert_frame_equal(found.layers, expected.layers, rtol=1e-4, atol=1e-6)
    assert [n.op for n in found.snapshot.nodes] == [n.op for n in expected.snapshot.nodes]
    assert [n.inputs for n in found.snapshot.nodes] == [n.inputs for n in expected.snapshot.nodes]
    for a, b in zip(found.snapshot.layers, expected.snapshot.layers, strict=True):
        assert a.options == pytest.approx(b.options)
        assert a.facts == pytest.approx(b.facts, rel=1e-4, abs=1e-6)
        assert (a.flat is None, a.input is None) == (b.flat is None, b.input is None)
        if a.input is not None:
            assert a.input.mean == pytest.approx(b.input.mean, rel=1e-4, abs=1e-6)
            assert (a.input.units is None) == (b.input.units is None)
        assert (a.weight, a.unseen) == (b.weight, b.unseen)
    assert [(f.rule, f.severity, f.layer) for f in found.findings] == [
        (f.rule, f.severity, f.layer) for f in expected.findings
    ]
    assert found.snapshot.not_observed == expected.snapshot.not_observed
    assert [p.used for p in found.snapshot.parameters] == [
        p.used for p in expected.snapshot.parameters
    ]
    return found, expected


def labelled(*shape, classes=3):
    torch.manual_seed(1)
    return torch.randn(*shape), torch.randint(classes, shape[:1])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_seen_as_torchs(name):
    kind, args, options = ACTIVATIONS[name]

    found, _ = same_reports(dense(kind, args, activations), dense(kind, args, nn), labelled(160, 8))

    layer = row(found.snapshot, "1")
    assert (layer.op, layer.kind, layer.options) == (name.split()[0], kind, pytest.approx(options))
    assert rows(found.snapshot) == list("012345")


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_a_normalisation_is_seen_as_torchs(name, training):
    kind, args, options = NORMS[name]
    mine, torchs = dense(kind, args, normalization), dense(kind, args, nn)

    found, _ = same_reports(mine.train(training), torchs.train(training), labelled(160, 8))

    layer = row(found.snapshot, "1")
    assert (layer.op, layer.kind) == (name, kind)
    assert layer.options == {key: float(training) for key in options}
    assert rows(found.snapshot) == list("012345")


def convolutional(norms, acts):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        norms.BatchNorm2d(8),
        acts.ELU(),
        nn.Conv2d(8, 16, 3),
        norms.GroupNorm(4, 16),
        acts.PReLU(16),
        nn.Flatten(),
        nn.Linear(256, 32),
        norms.BatchNorm1d(32, affine=False, momentum=None),
        acts.SELU(),
        nn.Linear(32, 3),
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_convolutional_network_gets_the_report_of_the_same_network_of_torchs(training):
    mine, torchs = convolutional(normalization, activations), convolutional(nn, nn)

    same_reports(mine.train(training), torchs.train(training), labelled(64, 3, 8, 8))


def sick(modules, act):
    """Weights a hundred times too large, a layer that says nothing, statistics of another world."""
    model = dense("BatchNorm1d", (16,), modules)
    model[4] = act(0.01)
    with torch.no_grad():
        model[0].weight.mul_(100)
        model[2].weight.zero_()
        model[3].running_mean.fill_(50.0)
        model[3].num_batches_tracked.fill_(7)
    return model.eval()


def test_a_sick_network_gets_the_findings_of_the_same_network_of_torchs():
    found, expected = same_reports(
        sick(normalization, activations.LeakyReLU), sick(nn, nn.LeakyReLU), labelled(160, 8)
    )

    assert len(found.findings) >= 2
    assert [f.message for f in found.findings] == [f.message for f in expected.findings]
    assert row(found.snapshot, "3").facts["batches_tracked"] == 7


def test_a_check_leaves_the_running_statistics_as_they_were():
    norm = normalization.BatchNorm1d(8)
    norm(torch.randn(16, 8))
    before = {name: value.clone() for name, value in norm.state_dict().items()}

    look(nn.Sequential(norm, nn.Linear(8, 3)), torch.randn(32, 8) + 5)

    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_batch_of_one_is_an_error_that_names_the_layer():
    model = nn.Sequential(nn.Linear(8, 4), normalization.BatchNorm1d(4))

    with pytest.raises(nndiag.CaptureError, match=r"raised in 1 \(BatchNorm1d\)[\s\S]*FixError"):
        nndiag.check(model, torch.randn(1, 8), config=False)


# -- maxout ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [2, 3, 5])
@pytest.mark.parametrize("depth", [1, 3, 8])
def test_a_maxout_network_is_healthy_as_it_starts(pieces, depth):
    torch.manual_seed(depth)
    hidden = [activations.Maxout.of(nn.Linear(64, 64), pieces) for _ in range(depth)]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))

    report = nndiag.check(model, torch.randn(256, 64), config=False)

    assert report.ok
    assert {f.severity for f in report.findings} <= {"note"}


def test_the_layer_inside_a_maxout_is_a_row_and_its_maximum_comes_after_it():
    model = nn.Sequential(
        activations.Maxout.of(nn.Conv2d(3, 8, 3), 2),
        nn.Flatten(),
        activations.Maxout.of(nn.Linear(128, 16), 3),
        nn.Linear(16, 3),
    )

    snapshot = look(model, torch.randn(64, 3, 6, 6))

    assert rows(snapshot) == ["0.layer", "1", "2.layer", "3"]
    assert [layer.shape[1] for layer in snapshot.layers] == [16, 128, 48, 3]
    assert [node.op for node in snapshot.nodes] == [
        "input", "conv2d", "amax", "flatten", "linear", "amax", "linear",
    ]  # fmt: skip
    assert len(row(snapshot, "3").input.units) == 16
    assert row(snapshot, "2.layer").grad is not None
    assert snapshot.not_observed == ()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = activations.Maxout.of(nn.Linear(8, 8))
        self.norm = normalization.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.body(x))


def test_a_row_knows_the_users_line_and_not_ours():
    snapshot = look(Net(), torch.randn(16, 8))

    lines, start = inspect.getsourcelines(Net.forward)
    assert [layer.location.rsplit("/")[-1] for layer in snapshot.layers] == [
        f"test_fixes_seen.py:{start + len(lines) - 1}"
    ] * 2


# -- whatever says what it is ----------------------------------------------------------------------


class Squashed(nn.Module):
    """A tanh in disguise."""

    def forward(self, x):
        return 2 * torch.sigmoid(2 * x) - 1

    def as_torch_call(self, x):
        return torch.tanh, (x,)


def test_a_module_of_the_users_that_says_what_it_is_is_seen_as_that():
    snapshot = look(nn.Sequential(nn.Linear(8, 8), Squashed(), nn.Linear(8, 3)), torch.randn(64, 8))

    assert rows(snapshot) == ["0", "1", "2"]
    layer = row(snapshot, "1")
    assert (layer.op, layer.kind) == ("tanh", "Squashed")
    assert layer.flat is not None


class Wrong(Squashed):
    def as_torch_call(self, x):
        raise RuntimeError("no idea")


def test_one_that_cannot_say_it_is_looked_into():
    snapshot = look(nn.Sequential(nn.Linear(8, 8), Wrong(), nn.Linear(8, 3)), torch.randn(64, 8))

    assert "1/sigmoid" in rows(snapshot)
    assert snapshot.not_observed == ("1: nndiag could not measure it (RuntimeError: no idea)",)
