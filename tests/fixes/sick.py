"""Sick models that between them need every kind of fix, and what is done with fixes in tests."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag import rules
from nndiag.batch import batches
from nndiag.render import page


def example(name):
    sick, _ = page.examples(rules.discover()[name])
    names = {"torch": torch, "nn": nn, "F": F}
    exec(sick, names)  # the examples of the rule pages are code
    return names["model"], names["batch"], names.get("loss_fn")


class Net(nn.Module):
    """Parts by name, put together by a function."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def saturated_lstm():
    model = Net(lambda s, x: s.head(s.rnn(x)[0]), rnn=nn.LSTM(6, 8), head=nn.Linear(8, 3))
    for p in model.rnn.parameters():
        p.data.uniform_(3, 9)
    return model, torch.randn(5, 64, 6).abs(), None


def one_hot_attention():
    model = Net(
        lambda s, x: s.head(s.attend(x, x, x, need_weights=False)[0]),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 3),
    )
    model.attend.in_proj_weight.data.mul_(80)
    return model, torch.randn(32, 6, 8), None


def dead_behind_a_norm():
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, 2),
    )  # fmt: skip
    nn.init.constant_(model[1].bias[:12], -9.0)
    return model, torch.randn(128, 8), None


def not_a_number(share):
    def build():
        model = Net(
            lambda s, x: s.head(s.norm(s.act(s.body(x))) * s.scale.weight),
            body=nn.Linear(8, 16), act=nn.PReLU(), norm=nn.LayerNorm(16), head=nn.Linear(16, 2),
            scale=nn.Linear(16, 1, bias=False),
        )  # fmt: skip
        with torch.no_grad():
            for p in model.parameters():
                p.view(-1)[: int(share * p.numel())] = torch.nan
        return model, torch.randn(64, 8), None

    return build


def frozen_attention():
    model = Net(
        lambda s, x: s.head(s.attend(s.body(x), s.body2(x), s.body2(x))[0]),
        body=nn.Linear(8, 8), body2=nn.Linear(8, 8),
        attend=nn.MultiheadAttention(8, 2, batch_first=True), head=nn.Linear(8, 3),
    )  # fmt: skip
    model.attend.requires_grad_(False)
    return model, torch.randn(32, 6, 8), None


def deep_sigmoids():
    layers = []
    for width in (8, 24, 24, 24, 24):
        layers += [nn.Linear(width, 24), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(24, 2)), torch.randn(64, 8), None


def deep_sigmoid_calls():
    model = Net(
        lambda s, x: s.head(through_sigmoids(s.layers, x)),
        layers=nn.ModuleList(nn.Linear(24, 24) for _ in range(5)), head=nn.Linear(24, 2),
    )  # fmt: skip
    return model, torch.randn(64, 24), None


def through_sigmoids(layers, x):
    for layer in layers:
        x = torch.sigmoid(layer(x))
    return x


def equal_embeddings():
    model = nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.Linear(80, 16), nn.Tanh())
    nn.init.constant_(model[0].weight, 0.5)
    return nn.Sequential(*model, nn.Linear(16, 2)), torch.randint(50, (32, 5)), None


SICK = {
    **{name: lambda name=name: example(name) for name in rules.discover()},
    "saturated-lstm": saturated_lstm,
    "one-hot-attention": one_hot_attention,
    "dead-behind-a-norm": dead_behind_a_norm,
    "some-not-a-number": not_a_number(0.01),
    "all-not-a-number": not_a_number(1.0),
    "frozen-attention": frozen_attention,
    "deep-sigmoids": deep_sigmoids,
    "deep-sigmoid-calls": deep_sigmoid_calls,
    "equal-embeddings": equal_embeddings,
    "half-precision": lambda: (
        deep_sigmoids()[0].bfloat16(),
        torch.randn(64, 8).bfloat16(),
        None,
    ),
}


def make(name):
    """A sick model, its batch, and what can be run of the fixes of its findings, each once."""
    torch.manual_seed(0)
    model, batch, loss_fn = SICK[name]()
    report = nndiag.check(model, batch, None, loss_fn)
    runnable = {fix.actions: fix for fix in report.fixes if fix.runnable}
    return model, batch, list(runnable.values())


def bits(tensors):
    return [
        (
            key,
            t.dtype,
            tuple(t.shape),
            t.detach().reshape(-1).contiguous().view(torch.uint8).tolist(),
        )
        for key, t in tensors.items()
    ]


def seen_in(model, batch):
    """A snapshot, by a rule that needs no gradients."""
    return nndiag.check(model, batch, select="dense-activation").snapshot


def applied(fix, model, batch, seed=3):
    treated = copy.deepcopy(model)
    torch.manual_seed(seed)
    fix.apply(treated, batch)
    return treated


def written(fix, model, batch, seed=3):
    """A copy on which the lines of a fix ran."""
    changed = copy.deepcopy(model)
    torch.manual_seed(seed)
    exec(fix.code(), {"model": changed, "batch": batch, "torch": torch, "nn": nn})
    return changed


def facts(model):
    """All that a fix can change in a model."""
    kinds = [(name, type(m).__qualname__, m.training) for name, m in model.named_modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    trainable = [(name, p.requires_grad) for name, p in model.named_parameters()]
    return kinds, hooks, trainable, str(model), bits(model.state_dict())


def output(model, batch):
    torch.manual_seed(0)
    given = next(batches(batch, model))
    return model(*given.args, **dict(given.kwargs))


# Small networks by their parts: weights, an activation, a head.


def conv(layer, act=nn.Sigmoid):
    return lambda: Net(
        lambda s, x: s.head(s.act(s.conv(x)).flatten(2).mean(2)),
        conv=layer(), act=act(), head=nn.Linear(8, 2),
    )  # fmt: skip


def dense(run=lambda s, x: s.head(s.act(s.layer(x))), **parts):
    parts = {
        "layer": lambda: nn.Linear(6, 8),
        "act": nn.Sigmoid,
        "head": lambda: nn.Linear(8, 2),
    } | parts
    return lambda: Net(run, **{name: part() for name, part in parts.items()})


def x(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 1
