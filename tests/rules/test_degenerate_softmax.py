"""degenerate-softmax: over one element, over the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

X = torch.randn(48, 6, 4, generator=torch.Generator().manual_seed(0))
FLAT, CLASSES, FLAGS = X[:, 0], torch.arange(48) % 3, (torch.arange(48) % 2).float()[:, None]


def body(units):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, units))


class Net(nn.Module):
    def __init__(self, units, last):
        super().__init__()
        self.body, self.last = body(units), last

    def forward(self, x):
        return self.last(self.body(x))


class Pooled(nn.Module):
    """Attention over the steps; ``weigh`` makes the weights of (samples, steps, 1) scores."""

    def __init__(self, weigh):
        super().__init__()
        torch.manual_seed(0)
        self.score, self.out, self.weigh = nn.Linear(4, 1), nn.Linear(4, 3), weigh

    def forward(self, x):
        return self.out((self.weigh(self.score(x)) * x).sum(1))


def found(model, batch=FLAT, target=CLASSES, loss_fn=F.cross_entropy, select="ND705"):
    report = nndiag.check(model, batch, target, loss_fn, select=select, config=False)
    return list(report.findings)


@pytest.mark.parametrize(
    "last", [nn.Softmax(1), nn.Softmax(dim=-1), lambda z: F.softmax(z, 1), lambda z: z.softmax(-1)]
)
def test_over_one_unit_at_the_output_is_an_error_and_leads(last):
    [first, *others] = found(Net(1, last), FLAT, FLAGS, nn.BCELoss(), select=None)
    assert (first.rule, first.severity) == ("degenerate-softmax", "error")
    assert {f.root.rule for f in others if f.severity != "note"} == {"degenerate-softmax"}


def test_its_fix_is_a_sigmoid_or_for_a_regression_nothing():
    [finding] = found(nn.Sequential(*body(1), nn.Softmax(1)), FLAT, FLAGS, nn.BCELoss())
    assert finding.fixes[0].what == "Replace the softmax by Sigmoid at 3."
    [finding] = found(nn.Sequential(*body(1), nn.Softmax(1)), FLAT, FLAT[:, :1], F.mse_loss)
    assert finding.fixes[0].what == "Take out the softmax at 3."


@pytest.mark.parametrize(
    "weigh",
    [
        lambda s: s.softmax(-1),
        nn.Softmax(dim=2),
        lambda s: F.softmax(s.flatten(0, 1), 1).view_as(s),
    ],
)
def test_over_the_score_of_a_position_is_a_warning(weigh):
    [finding] = found(Pooled(weigh), X)
    assert finding.severity == "warning"


@pytest.mark.parametrize(
    "last",
    [nn.Softmax(0), lambda z: z.softmax(0), lambda z: F.log_softmax(z, dim=0)],
)
def test_over_the_batch_at_the_output(last):
    def pick(p, y):
        return -p.gather(1, y[:, None]).mean()

    [finding] = found(Net(3, last), loss_fn=pick)
    assert finding.severity == "error"
    assert finding.evidence == {"length": 48, "dim": 0}


def test_a_module_along_the_batch_is_exchanged():
    model = nn.Sequential(*body(3), nn.Softmax(0))
    [finding] = found(model, loss_fn=lambda p, y: -p.gather(1, y[:, None]).mean())
    finding.fixes[0].apply(model)
    assert model[3].dim == 1


def test_over_the_batch_inside_attention_and_without_dim():
    assert len(found(Pooled(lambda s: s.softmax(0)), X)) == 1
    with pytest.warns(UserWarning, match="Implicit dimension"):
        assert len(found(Pooled(nn.Softmax()), X)) == 1


def test_over_the_batch_in_the_loss():
    def loss_fn(o, y):
        return F.nll_loss(F.log_softmax(o, dim=0), y)

    assert len(found(body(3), loss_fn=loss_fn)) == 1


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.score, self.out = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.score(x).softmax(0).T @ x)


def lists(o, t):
    return -(F.softmax(t, 0) * F.log_softmax(o, 0)).sum()


def contrast(o, _):
    similar = o @ o.T
    return -similar.log_softmax(0).diagonal().mean()


@pytest.mark.parametrize(
    ("model", "batch", "target", "loss_fn"),
    [
        (Pooled(lambda s: s.softmax(1)), X, CLASSES, F.cross_entropy),
        (Pooled(lambda s: s.softmax(1)), X[:, :1], CLASSES, F.cross_entropy),  # one step
        (Net(3, nn.Softmax(1)), FLAT, CLASSES, lambda p, y: -p.gather(1, y[:, None]).log().mean()),
        (Bag(), FLAT, torch.ones(1, 1), F.binary_cross_entropy_with_logits),
        (Net(1, lambda z: z[:, 0]), FLAT, FLAT[:, 0], lists),
        (Net(8, lambda z: z), FLAT, CLASSES, contrast),
    ],
)
def test_what_is_meant_is_silent(model, batch, target, loss_fn):
    assert found(model, batch, target, loss_fn) == []


def test_a_gate_over_one_expert_is_a_note():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 3)])
            self.gate = nn.Linear(4, 1)

        def forward(self, x):
            weights = self.gate(x).softmax(-1)
            return (torch.stack([e(x) for e in self.experts], -1) * weights[:, None]).sum(-1)

    assert [f.severity for f in found(Experts())] == ["note"]
