"""label-imbalance: one class in a whole batch; a network that knows only how rare others are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "label-imbalance"
X = torch.randn(256, 6, generator=torch.Generator().manual_seed(3))


def mlp(out=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, out))


def severities(model, y, loss_fn, x=X):
    report = nndiag.check(model, x, y, loss_fn, config=False)
    return [f.severity for f in report.findings if f.rule == NAME]


ZEROS = torch.zeros(256, dtype=torch.long)
FORMS = {
    "module": (lambda y: y, nn.CrossEntropyLoss()),
    "function": (lambda y: y, F.cross_entropy),
    "one-hot": (lambda y: F.one_hot(y, 10).float(), nn.CrossEntropyLoss()),
    "log_softmax": (lambda y: y, lambda out, y: F.nll_loss(out.log_softmax(1), y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_class_of_ten_is_a_warning_in_every_form(form):
    change, loss_fn = FORMS[form]

    assert severities(mlp(), change(ZEROS), loss_fn) == ["warning"]
    assert severities(mlp(), change(torch.arange(256) % 10), loss_fn) == []


def test_few_samples_may_have_one_class_by_chance():
    report = nndiag.check(mlp(), X[:31], ZEROS[:31], F.cross_entropy, config=False)

    assert NAME in {u.rule for u in report.unjudged}
    assert severities(mlp(), ZEROS[:31], F.cross_entropy, X[:31]) == []
    assert severities(mlp(), ZEROS[:32], F.cross_entropy, X[:32]) == ["warning"]


def test_two_classes_need_more_samples_and_all_ones_may_be_a_generators():
    bce = nn.BCEWithLogitsLoss()

    assert severities(mlp(1), torch.zeros(256, 1), bce) == ["warning"]
    assert severities(mlp(1), torch.zeros(255, 1), bce, X[:255]) == ["note"]
    assert severities(mlp(1), torch.ones(256, 1), bce) == ["note"]
    twice = lambda out, y: bce(out, y) + bce(-out, 1 - y)  # noqa: E731 (two losses, as in a GAN)
    assert severities(mlp(1), torch.zeros(256, 1), twice) == []


def test_ignored_labels_do_not_count():
    y = torch.arange(256) % 10
    y[::2] = -100

    assert severities(mlp(), y, nn.CrossEntropyLoss()) == []
    y[:] = -100
    y[:2] = torch.tensor([1, 2])
    assert severities(mlp(), y, nn.CrossEntropyLoss()) == []


class Masks(nn.Module):
    def __init__(self, trained):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, -5.0)
        if trained:
            nn.init.normal_(self.conv.bias)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)))


def test_a_trained_network_at_the_base_rates_entropy_is_a_warning_and_a_fresh_one_a_note():
    torch.manual_seed(0)
    x = torch.randn(64, 1, 12, 12)
    y = torch.zeros(64, 1, 12, 12)
    y[:, :, 5, 6] = 1  # 1 of 144, log-odds -4.96
    bce = nn.BCEWithLogitsLoss()

    assert severities(Masks(trained=True), y, bce, x) == ["warning"]
    assert severities(Masks(trained=False), y, bce, x) == ["note"]
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(143.0))
    assert severities(Masks(trained=True), y, weighted, x) == []
    better = Masks(trained=True)
    nn.init.constant_(better.head.bias, -4.0)
    assert severities(better, y, bce, x) == ["note"]
