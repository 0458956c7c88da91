"""Outputs of one sample that depend on another sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "batch-mixing"
SEQUENCES, Y = torch.randn(32, 5, 6), torch.randint(0, 2, (32,))


class Net(nn.Module):
    def __init__(self, mix=lambda x: x, late=lambda x: x, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.late = mix, late
        for name, part in parts.items():
            setattr(self, name, part)
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(F.relu(self.body(self.mix(x))).mean(1))


class WithAttention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Tokens(nn.Module):
    """Ids in: no gradient could show what depends on what."""

    def __init__(self, mixed):
        super().__init__()
        torch.manual_seed(0)
        self.mixed = mixed
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, ids):
        x = self.table(ids)
        if self.mixed:
            x = x.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)
        return self.head(x.mean(1))


class BagOfInstances(nn.Module):
    """Multiple-instance learning: the batch is one bag, with one output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.score, self.head = nn.Linear(6, 16), nn.Linear(16, 1), nn.Linear(16, 2)

    def forward(self, x):
        h = F.relu(self.body(x.mean(1)))
        return self.head((F.softmax(self.score(h), 0) * h).sum(0, keepdim=True))


class Contrastive(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 16)

    def forward(self, x):
        z = F.normalize(self.body(x.mean(1)), dim=1)
        return z @ z.T


class HandWrittenBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        h = self.body(x.mean(1))
        h = h - (h.mean(0) if self.training else self.mean)
        return self.head(F.relu(h))


def swapped(x):
    return x.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)


SICK = {
    "view for transpose": Net(swapped),
    "attention along the samples": WithAttention(batch_first=False),
    "tokens": Tokens(True),
    "centred over the batch": Net(lambda x: x - x.mean(0)),
    "softmax over the batch": Net(lambda x: F.softmax(x, 0)),
    "similarity to the batch": Net(lambda x: F.softmax(x[:, 0] @ x[:, 0].T, -1) @ x.flatten(1)),
}
SICK["similarity to the batch"].mix = lambda x: (
    F.softmax(x[:, 0] @ x[:, 0].T, -1) @ x.flatten(1)
).view_as(x)
WELL = {
    "nothing": Net(),
    "transposed twice": Net(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)),
    "attention along time": WithAttention(batch_first=True),
    "encoder": nn.Sequential(
        nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), nn.Flatten(), nn.Linear(30, 2)
    ),
    "recurrent": nn.GRU(6, 4, batch_first=True),
    "tokens": Tokens(False),
    "batch norm": nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)),
    "a batch norm by hand": HandWrittenBatchNorm(),
    "a bag": BagOfInstances(),
    "pairs": Contrastive(),
    "positions folded into the batch": Net(lambda x: x.reshape(-1, 6).reshape(x.shape)),
    "dropout": nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(30, 2)),
}


def batch_for(model):
    if isinstance(model, Tokens):
        return torch.randint(0, 20, (32, 5), generator=torch.Generator().manual_seed(0))
    return SEQUENCES


def report_on(model):
    return nndiag.check(model, batch_for(model), select=NAME)


@pytest.mark.parametrize("name", SICK)
def test_samples_that_see_each_other_are_found(name):
    [finding] = report_on(SICK[name]).findings

    assert (finding.severity, finding.layer) == ("warning", "(model)")
    assert finding.evidence["change"] > 1e-2


@pytest.mark.parametrize("name", WELL)
def test_samples_on_their_own_and_batches_that_are_meant_are_silent(name):
    report = report_on(WELL[name])

    assert report.findings == ()


def test_time_first_models_keep_their_samples_apart():
    assert nndiag.check(nn.GRU(6, 4), torch.randn(5, 32, 6), select=NAME).findings == ()


@pytest.mark.parametrize("name", [n for n, m in SICK.items() if not isinstance(m, Tokens)])
def test_the_verdict_is_what_the_gradients_say(name):
    """The oracle: the gradient of one output with respect to another sample's input.

    Ids have none.
    """
    model = SICK[name]
    x = SEQUENCES[:6].clone().requires_grad_()
    model.eval()

    model(x)[0].square().sum().backward()
    model.train()

    assert x.grad[1:].abs().max() > 0


def test_two_samples_are_too_few_to_judge():
    report = nndiag.check(SICK["view for transpose"], SEQUENCES[:2], select=NAME)

    assert report.findings == ()
    assert any("needs 3 samples" in str(item) for item in report.not_judged)
