"""loss-mismatch: losses that cannot take these outputs or targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(60) % 3
FLAGS = (torch.arange(60) % 2).float()[:, None]


class Net(nn.Module):
    def __init__(self, units, last=lambda z: z):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.last = nn.Linear(4, units), last

    def forward(self, x):
        return self.last(self.body(x))


def found(model, target, loss_fn):
    report = nndiag.check(model, X, target, loss_fn, select="loss-mismatch", config=False)
    return list(report.findings)


def several(share):
    """One-hot rows, of which this share has a second label."""
    rows = F.one_hot(CLASSES, 3).float()
    rows[: round(60 * share)] = torch.tensor([1.0, 1.0, 0.0])
    return rows


@pytest.mark.parametrize("loss_fn", [nn.NLLLoss(), F.nll_loss])
@pytest.mark.parametrize("last", [lambda z: z, nn.Softmax(1), lambda z: -(z**2)])
def test_nll_on_what_are_no_log_probabilities(last, loss_fn):
    [finding] = found(Net(3, last), CLASSES, loss_fn)
    assert finding.severity == "error"
    assert finding.evidence["rows"] == 1


def test_a_softmax_before_nll_gets_its_logarithm():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    [finding] = found(model, CLASSES, nn.NLLLoss())
    finding.fixes[0].apply(model)
    assert isinstance(model[1], nn.LogSoftmax)
    assert found(model, CLASSES, nn.NLLLoss()) == []


@pytest.mark.filterwarnings("ignore:reduction. 'mean':UserWarning")
def test_kl_and_ctc_on_probabilities():
    def ctc(o, y):
        lengths = torch.full((60,), 2), torch.full((60,), 1)
        return F.ctc_loss(o.unsqueeze(0).repeat(2, 1, 1), y[:, None] % 2 + 1, *lengths)

    assert len(found(Net(3, nn.Softmax(1)), several(0), F.kl_div)) == 1
    assert len(found(Net(3, lambda z: 9 + z), CLASSES, ctc)) == 1
    assert found(Net(3, nn.LogSoftmax(1)), CLASSES, ctc) == []


@pytest.mark.parametrize("target", [FLAGS * 2 - 1, CLASSES.float()[:, None], FLAGS * 255])
def test_binary_targets_outside_0_and_1(target):
    [finding] = found(Net(1), target, F.binary_cross_entropy_with_logits)
    assert finding.severity == "error"


def test_one_unit_for_several_classes():
    [finding] = found(Net(1), FLAGS, nn.CrossEntropyLoss())
    assert finding.severity == "error"
    assert "BCEWithLogitsLoss" in finding.fixes[0].source


@pytest.mark.parametrize(("share", "alarms"), [(1 / 60, 0), (2 / 60, 1), (0.5, 1)])
def test_several_labels_under_a_softmax(share, alarms):
    assert len(found(Net(3), several(share), F.cross_entropy)) == alarms
    softmax = Net(3, lambda z: z.softmax(1))
    assert len(found(softmax, several(share), F.binary_cross_entropy)) == alarms


@pytest.mark.parametrize(
    ("model", "target", "loss_fn"),
    [
        (Net(3), CLASSES, lambda o, y: -F.cross_entropy(o, y)),
        (Net(3), CLASSES, lambda o, y: F.log_softmax(o, 1).gather(1, y[:, None]).mean()),
        (Net(3), CLASSES, lambda o, y: (F.log_softmax(o, 1) * F.one_hot(y, 3)).sum(1).mean()),
        (Net(3, nn.LogSoftmax(1)), CLASSES, lambda o, y: o[torch.arange(60), y].mean()),
        (Net(1), FLAGS, lambda o, y: -2 * F.binary_cross_entropy_with_logits(o, y)),
        (Net(1), X[:, :1], lambda o, y: -F.mse_loss(o, y)),
    ],
)
def test_a_turned_sign(model, target, loss_fn):
    [finding] = found(model, target, loss_fn)
    assert "sign" in finding.message


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, y: -o.gather(1, y[:, None]).mean(),
        lambda o, y: -(o * F.one_hot(y, 3)).sum(1).mean(),
        lambda o, y: -o[torch.arange(60), y].sum(),
    ],
)
def test_scores_taken_for_log_probabilities_by_hand(loss_fn):
    [finding] = found(Net(3), CLASSES, loss_fn)
    assert "no lowest value" in finding.message
    assert found(Net(3, nn.LogSoftmax(1)), CLASSES, loss_fn) == []


@pytest.mark.parametrize("target", [FLAGS, CLASSES.float()[:, None], several(0)])
def test_squared_error_on_class_labels_is_a_note(target):
    assert [f.severity for f in found(Net(target.shape[1]), target, F.mse_loss)] == ["note"]


def rewarded(o, y):
    reward = torch.linspace(-2, 1, 60)
    return -(F.log_softmax(o, 1).gather(1, y[:, None])[:, 0] * reward).mean()


def density(o, t):
    return (((t - o[:, :1]) / o[:, 1:].exp()) ** 2 / 2 + o[:, 1:] - 9).mean()


@pytest.mark.parametrize(
    ("model", "target", "loss_fn"),
    [
        (Net(3, nn.LogSoftmax(1)), CLASSES, F.nll_loss),
        (Net(3), CLASSES, lambda o, y: F.nll_loss(F.log_softmax(o, 1) * 2, y)),
        (Net(3), CLASSES, lambda o, y: F.nll_loss((o.softmax(1) + 1e-3).log(), y)),
        (Net(3, lambda z: z.bfloat16().log_softmax(1)), CLASSES, F.nll_loss),
        (Net(1), FLAGS, F.binary_cross_entropy_with_logits),
        (Net(3), several(0.5), F.binary_cross_entropy_with_logits),
        (Net(3), several(0), F.cross_entropy),
        (Net(3), CLASSES, rewarded),
        (Net(2), X[:, :1], density),
        (Net(1), X[:, :1], F.mse_loss),
    ],
)
def test_what_fits_is_silent(model, target, loss_fn):
    assert found(model, target, loss_fn) == []


def test_labels_that_a_mask_leaves_out_are_silent():
    target = several(0.5)
    target[::3] = -1

    def masked(o, t):
        return F.binary_cross_entropy_with_logits(o, t, reduction="none")[t >= 0].mean()

    assert found(Net(3), target, masked) == []
    assert len(found(Net(3), target, F.binary_cross_entropy_with_logits)) == 1


def test_pictures_of_classes_are_not_several_labels():
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 1))
    assert found(model, (X > 0).long(), F.cross_entropy) == []


def by_hand(p, t):
    p = p.clamp(1e-7, 1 - 1e-7)
    return -(t * p.log() + (1 - t) * (1 - p).log()).mean()


@pytest.mark.parametrize("target", [2 * FLAGS - 1, FLAGS + 1, CLASSES.float()[:, None]])
def test_binary_cross_entropy_by_hand_needs_targets_from_0_to_1(target):
    [finding] = found(Net(1, nn.Sigmoid()), target, by_hand)
    assert finding.layer == "loss/log"
    assert "written as log(p) and log(1 - p)" in finding.message
    assert found(Net(1, nn.Sigmoid()), FLAGS, by_hand) == []


def test_an_autoencoder_in_a_tuple_is_held_against_its_input():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x).sigmoid(), x.mean()

    def loss_fn(out, t):
        return by_hand(out[0], t)

    assert len(found(Both(), X, loss_fn)) == 1
    assert found(Both(), X.sigmoid(), loss_fn) == []


def test_a_reward_on_both_logarithms_and_a_mask_are_no_targets_by_hand():
    action, sigmoid = FLAGS, Net(1, nn.Sigmoid())

    def rewarded_by_hand(p, reward):
        return -(reward * (action * p.log() + (1 - action) * (1 - p).log())).mean()

    assert found(sigmoid, X[:, :1] * 3 + 2.5, rewarded_by_hand) == []
    unknown = FLAGS.clone()
    unknown[::3] = -1
    assert found(sigmoid, unknown, lambda p, t: by_hand(p[t >= 0], t[t >= 0])) == []
