"""constant-feature: a few constant columns are a note; most of them, a warning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "constant-feature"
X = torch.randn(128, 8, generator=torch.Generator().manual_seed(3))


ONE = torch.zeros(128, dtype=torch.long)  # targets that expect nothing of the input


def severities(x, d=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 2))
    report = nndiag.check(model, x, ONE[: len(x)], F.cross_entropy, config=False)
    return [f.severity for f in report.findings if f.rule == NAME]


def still(count, value=0.5):
    x = X.clone()
    x[:, :count] = value
    return x


def test_most_columns_are_a_warning_and_half_of_them_a_note():
    assert severities(still(5)) == ["warning"]
    assert severities(still(4)) == ["note"]
    assert severities(still(1)) == ["note"]
    assert severities(X) == []


def test_zeros_among_many_columns_are_the_corners_of_images():
    images = torch.rand(128, 64)
    images[:, :40] = 0

    assert severities(images, 64) == []
    assert severities(torch.zeros(128, 8)) == []


def test_few_samples_and_yes_or_no_columns_are_not_judged():
    assert severities(still(5)[:32]) == []
    assert severities((still(5) > 0).float()) == []


def test_a_batch_of_one_sample_repeated_explains_the_collapse():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    report = nndiag.check(model, X[:1].expand(128, -1), ONE, F.cross_entropy, config=False)

    assert report.findings[0].rule == NAME
    assert "Every sample is the same" in report.findings[0].message
    assert NAME in [f.rule for f in report.at_least("warning") if f.cause is None]


def alike(x, y, d=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 2))
    return nndiag.check(model, x, y, nn.CrossEntropyLoss(), config=False)


def test_zeros_alone_are_reported_where_the_targets_differ():
    y = torch.arange(128) % 2
    for d in (1, 8):
        report = alike(torch.zeros(128, d), y, d)
        assert report.findings[0].rule == NAME
        assert "All 128 samples are zeros, but their targets differ" in report.findings[0].message
        assert NAME in [f.rule for f in report.at_least("warning") if f.cause is None]
    assert NAME not in {f.rule for f in alike(torch.zeros(128, 8), y * 0).findings}
    assert NAME not in {f.rule for f in alike(torch.zeros(32, 8), y[:32]).findings}


def test_a_second_input_may_tell_the_samples_apart():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, a, b):
            return self.a(a) + self.b(b)

    batch = nndiag.Batch(args=(torch.zeros(128, 8), X), target=torch.arange(128) % 2)
    report = nndiag.check(Two(), batch, loss_fn=nn.CrossEntropyLoss(), config=False)
    assert NAME not in {f.rule for f in report.at_least("warning")}
