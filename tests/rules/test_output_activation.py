"""output-activation: activations that a loss on logits does not expect."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
CLASSES, FLAGS = torch.arange(64) % 5, (torch.arange(64) % 2).float()[:, None]


def body(units):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, units))


class Net(nn.Module):
    def __init__(self, units, last):
        super().__init__()
        self.body, self.last = body(units), last

    def forward(self, x):
        return self.last(self.body(x))


def found(model, target, loss_fn):
    report = nndiag.check(model, X, target, loss_fn, select="output-activation", config=False)
    return list(report.findings)


def only(model, target, loss_fn):
    [finding] = found(model, target, loss_fn)
    return finding


def test_softmax_before_cross_entropy_says_the_lowest_loss_that_is_left():
    finding = only(nn.Sequential(*body(10), nn.Softmax(1)), torch.arange(64) % 10, F.cross_entropy)

    assert (finding.severity, finding.layer) == ("error", "3")
    assert finding.evidence["lowest_loss"] == pytest.approx(math.log(1 + 9 / math.e))
    assert "1.46" in finding.summary
    assert finding.fixes[0].runnable


def test_its_fix_takes_the_module_out():
    model = nn.Sequential(*body(5), nn.Softmax(1))
    only(model, CLASSES, F.cross_entropy).fixes[0].apply(model)

    assert isinstance(model[3], nn.Identity)
    assert found(model, CLASSES, F.cross_entropy) == []


@pytest.mark.parametrize(
    "last",
    [
        lambda z: F.softmax(z, dim=-1),
        lambda z: z.softmax(1),
        lambda z: z.double().softmax(1).float(),
        lambda z: z.softmax(1)[:, :].view(64, 5),
        lambda z: torch.cat([z[:32].softmax(1), z[32:].softmax(1)]),
        torch.sigmoid,
        torch.tanh,
        lambda z: (torch.tanh(z) + 1) / 2,
        lambda z: z.exp() / z.exp().sum(1, keepdim=True),  # seen by its values
    ],
)
def test_bounded_logits_in_every_form(last):
    assert only(Net(5, last), CLASSES, nn.CrossEntropyLoss()).severity == "error"


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda p, y: F.nll_loss(F.log_softmax(p, 1), y),
        lambda p, y: -(p.log_softmax(1) * F.one_hot(y, 5)).sum(1).mean(),
        lambda p, y: -F.softmax(p, 1).clamp_min(1e-9).log().gather(1, y[:, None]).mean(),
        lambda p, y: (p.logsumexp(1) - p.gather(1, y[:, None])[:, 0]).mean(),
        lambda p, y: -(p.exp() / p.exp().sum(1, keepdim=True)).gather(1, y[:, None]).log().mean(),
    ],
)
def test_a_second_softmax_written_by_hand(loss_fn):
    assert only(Net(5, nn.Softmax(1)), CLASSES, loss_fn).severity == "error"


def by_hand(p, y):
    return -(y * (p + 1e-7).log() + (1 - y) * (1 - p + 1e-7).log()).mean()


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.BCEWithLogitsLoss(),
        lambda p, y: by_hand(torch.sigmoid(p), y),
        lambda p, y: by_hand(1 / (1 + (-p).exp()), y),
        lambda p, y: F.binary_cross_entropy(p.sigmoid(), y),
        lambda p, y: (F.softplus(p) - y * p).mean(),
        lambda p, y: -(y * F.logsigmoid(p) + (1 - y) * F.logsigmoid(-p)).mean(),
    ],
)
def test_a_second_sigmoid(loss_fn):
    assert only(Net(1, nn.Sigmoid()), FLAGS, loss_fn).severity == "error"


def test_the_bound_of_a_sigmoid_follows_from_the_share_of_positives():
    finding = only(Net(1, torch.sigmoid), FLAGS, F.binary_cross_entropy_with_logits)
    assert finding.evidence["lowest_loss"] == pytest.approx(
        0.5 * math.log(1 + 1 / math.e) + 0.5 * math.log(2)
    )


def test_relu_loses_the_negatives_of_binary_logits_and_only_slopes_of_classes():
    assert only(Net(1, F.relu), FLAGS, F.binary_cross_entropy_with_logits).severity == "error"
    assert only(Net(5, F.relu), CLASSES, F.cross_entropy).severity == "warning"


def test_relu_cut_to_a_probability_loses_its_slope():
    def cut(p, y):
        p = p.clamp(1e-7, 1 - 1e-7)
        return by_hand(p, y)

    finding = only(nn.Sequential(*body(1), nn.ReLU()), FLAGS, cut)
    assert (finding.severity, finding.layer) == ("error", "3")
    assert "Sigmoid" in finding.fixes[0].what


@pytest.mark.parametrize(("bound", "alarms"), [(1.0, 1), (3.0, 0), (10.0, 0)])
def test_bounds_that_are_wide_enough_are_no_fault(bound, alarms):
    last = lambda z: bound * torch.tanh(z)  # noqa: E731  one line says it
    assert len(found(Net(2, last), CLASSES % 2, F.cross_entropy)) == alarms
    assert found(Net(2, lambda z: z.clamp(-20, 20)), CLASSES % 2, F.cross_entropy) == []


@pytest.mark.parametrize(
    ("last", "loss_fn"),
    [
        (nn.LogSoftmax(1), F.nll_loss),
        (nn.LogSoftmax(1), F.cross_entropy),
        (nn.Identity(), F.cross_entropy),
        (nn.Softmax(1), lambda p, y: -p.gather(1, y[:, None]).log().mean()),
        (nn.Softmax(1), lambda p, y: F.cross_entropy(p / 0.05, y)),
        (nn.Identity(), lambda o, y: F.kl_div(o.log_softmax(1), F.one_hot(y, 5).float())),
        (nn.Identity(), lambda o, y: (F.log_softmax(o, 1).exp() * F.one_hot(y, 5)).sum()),
        (nn.Softmax(1), lambda p, y: F.mse_loss(p, F.one_hot(y, 5).float())),
    ],
)
@pytest.mark.filterwarnings("ignore:reduction. 'mean':UserWarning")
def test_what_fits_is_silent(last, loss_fn):
    assert found(Net(5, last), CLASSES, loss_fn) == []


def test_the_logarithm_of_a_softmax_is_a_note():
    def loss_fn(p, y):
        return F.nll_loss(p.log(), y)

    assert only(Net(5, nn.Softmax(1)), CLASSES, loss_fn).severity == "note"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
def test_a_scripted_model_is_judged_by_its_values():
    model = torch.jit.script(nn.Sequential(*body(5), nn.Softmax(1)))
    assert "sums to one" in only(model, CLASSES, F.cross_entropy).message
    assert found(torch.jit.script(body(5)), CLASSES, F.cross_entropy) == []


def test_twice_inside_the_network_counts_at_its_output_only():
    twice = nn.Sequential(nn.Sigmoid(), nn.Sigmoid())
    assert only(Net(1, twice), FLAGS, nn.BCELoss()).severity == "error"
    inside = nn.Sequential(nn.Sigmoid(), nn.Sigmoid(), nn.Linear(1, 1), nn.Sigmoid())
    assert found(Net(1, inside), FLAGS, nn.BCELoss()) == []
