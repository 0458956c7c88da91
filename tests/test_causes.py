"""Cause before consequence: one injected fault gives one leading finding, where it was injected.

A table of faults, one a line, over six architectures at initialisation. The architectures are
healthy without it: nothing is said of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nndiag
from nndiag import graph
from nndiag.causes import explain
from nndiag.rule import SEVERITIES, Finding
from nndiag.stats import Layer, Loss, Node, Parameter, Snapshot, Weight

CLASSES = 10


def he(layer):
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def xavier(layer):
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# -- architectures -----------------------------------------------------------------------------


class MLP(nn.Sequential):
    """Eight hidden layers; weights at 0, 2, 4, ..., 16."""

    def __init__(self, activation=nn.ReLU, init=he, width=64):
        layers = []
        for k in range(8):
            layers += [init(nn.Linear(width if k else 32, width)), activation()]
        super().__init__(*layers, nn.Linear(width, CLASSES))


class CNN(nn.Module):
    """Six convolutions, with BatchNorm or He's weights."""

    def __init__(self, norm):
        super().__init__()
        layers = []
        for k in range(6):
            conv = nn.Conv2d(16 if k else 3, 16, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(16)] if norm else [he(conv)]
            layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if k == 2 else [])]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(F.relu(self.up(self.norm(x))))


class Residual(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.stem, self.norm = nn.Linear(32, width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(4))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(50, 24), nn.LSTM(24, 32, batch_first=True)
        self.fc, self.head = nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        states, _ = self.lstm(self.embed(x))
        return self.head(torch.relu(self.fc(states[:, -1])))


class Transformer(nn.Module):
    cut = False

    def __init__(self):
        super().__init__()
        self.embed, self.pos = nn.Embedding(50, 32), nn.Parameter(0.02 * torch.randn(12, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        h = self.encoder(self.embed(x) + self.pos).mean(1)
        return self.head(h.detach() if self.cut else h)


class Autoencoder(nn.Module):
    def __init__(self, between=nn.Identity):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        self.between = between()
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.Sigmoid())

    def forward(self, x):
        return self.decoder(self.between(self.encoder(x)))


class Detach(nn.Module):
    def forward(self, x):
        return x.detach()


class Log(nn.Module):
    def forward(self, x):
        return torch.log(x)


def used(model, data, times=30):
    """As it would be after training, for all its BatchNorms know."""
    for _ in range(times):
        model(data())
    return model.eval()


def numbers():
    return torch.randn(256, 32)


def images():
    return torch.randn(64, 3, 16, 16)


def tokens():
    return torch.randint(0, 50, (128, 12))


def shares():
    return torch.rand(256, 32)


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (MLP, numbers),
    "tanh": (lambda: MLP(nn.Tanh, xavier), numbers),
    "cnn": (lambda: CNN(norm=False), images),
    "cnn-norm": (lambda: CNN(norm=True), images),
    "cnn-used": (lambda: used(CNN(norm=True), images), images),
    "residual": (Residual, numbers),
    "lstm": (LSTM, tokens),
    "transformer": (Transformer, tokens),
    "autoencoder": (Autoencoder, shares),
    "autoencoder-detach": (lambda: Autoencoder(Detach), shares),
    "autoencoder-log": (lambda: Autoencoder(Log), shares),
}


def examine(model, x):
    if isinstance(model, Autoencoder):
        return nndiag.check(model, (x, x), loss_fn=F.mse_loss, config=False)
    y = torch.randint(0, CLASSES, (len(x),))
    return nndiag.check(model, (x, y), loss_fn=F.cross_entropy, config=False)


# -- faults ------------------------------------------------------------------------------------


class Fault(NamedTuple):
    what: str
    architecture: str
    inject: Callable[[Any], object]
    rule: str
    layer: str
    severity: str = "warning"


def times(path, factor):
    def inject(model):
        with torch.no_grad():
            model.get_parameter(path).mul_(factor)

    return inject


def fill(path, value, rows=slice(None)):
    def inject(model):
        with torch.no_grad():
            model.get_parameter(path)[rows] = value

    return inject


def every(kind, **values):
    """Set weights and biases of all layers of a kind."""

    def inject(model):
        for layer in model.modules():
            if isinstance(layer, kind):
                for name, p in layer.named_parameters(recurse=False):
                    nn.init.constant_(p, values.get(name.partition("_")[0], 0.0))

    return inject


def draw(std):
    def inject(model):
        for layer in list(model)[:-1:2]:
            nn.init.normal_(layer.weight, std=std)

    return inject


def freeze(path):
    return lambda model: model.get_submodule(path).requires_grad_(False)


def twins(model):
    with torch.no_grad():
        model[6].weight[32:] = model[6].weight[:32]
        model[8].weight[:, 32:] = model[8].weight[:, :32]


def forget(model):
    model.aux = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def cut(model):
    model.cut = True


def statistics(model):
    norm = model.features[4]
    norm.running_mean.add_(6 * norm.running_var.sqrt())


def sigmoid(model):
    for k in range(1, 16, 2):
        model[k] = nn.Sigmoid()


def sharpen(model):
    with torch.no_grad():
        model.encoder.layers[1].self_attn.in_proj_weight[:64] *= 30


FAULTS = [
    # MLP
    Fault("small weights", "mlp", times("6.weight", 0.01), "init-scale", "6"),
    Fault("large weights", "mlp", times("6.weight", 100), "init-scale", "6"),
    Fault("tiny weights", "mlp", times("6.weight", 1e-4), "init-scale", "6", "error"),
    Fault("weights of 1.0", "mlp", draw(1.0), "init-scale", "0", "error"),
    Fault("weights of 0.01", "tanh", draw(0.01), "init-scale", "0", "error"),
    Fault("weights of 1.0", "tanh", draw(1.0), "init-scale", "0"),
    Fault("large weights", "tanh", times("6.weight", 100), "init-scale", "6"),
    Fault("sigmoids", "tanh", sigmoid, "vanishing-gradient", "0", "error"),
    Fault("a dead layer", "mlp", fill("6.bias", -100.0), "dead-relu", "7", "error"),
    Fault("dead units", "mlp", fill("6.bias", -100.0, slice(40)), "dead-relu", "7"),
    Fault("NaN", "mlp", fill("6.weight", math.nan, 3), "non-finite", "6.weight", "error"),
    Fault("constant weights", "mlp", every(nn.Linear, weight=0.1), "symmetry", "0", "error"),
    Fault("zero weights", "mlp", every(nn.Linear), "symmetry", "0", "error"),
    Fault("one zero layer", "mlp", fill("6.weight", 0.0), "symmetry", "6", "error"),
    Fault("one zero layer", "tanh", fill("6.weight", 0.0), "symmetry", "6"),
    Fault("one constant layer", "mlp", fill("6.weight", 0.05), "symmetry", "6"),
    Fault("units in pairs", "mlp", twins, "symmetry", "6", "error"),
    Fault("a frozen layer", "mlp", freeze("6"), "frozen-layer", "6"),
    # CNN
    Fault("small weights", "cnn", times("features.4.weight", 0.01), "init-scale", "features.4"),
    Fault("a dead layer", "cnn", fill("features.4.bias", -100.0), "dead-relu", "features.5",
          "error"),
    Fault("constant weights", "cnn", every(nn.Conv2d, weight=0.02), "symmetry", "features.0",
          "error"),
    Fault("a frozen layer", "cnn-norm", freeze("features.6"), "frozen-layer", "features.6"),
    Fault("infinite weights", "cnn-norm", fill("features.3.weight", math.inf, 0), "non-finite",
          "features.3.weight", "error"),
    Fault("other statistics", "cnn-used", statistics, "covariate-shift", "features.4"),
    # residual
    Fault("a dead branch", "residual", fill("blocks.1.up.bias", -100.0), "dead-relu",
          "blocks.1/relu"),
    Fault("a module never called", "residual", forget, "no-gradient", "aux.0.weight"),
    Fault("a frozen branch", "residual", freeze("blocks.1"), "frozen-layer", "blocks.1.up"),
    Fault("NaN in a norm", "residual", fill("blocks.1.norm.weight", math.nan), "non-finite",
          "blocks.1.norm.weight", "error"),
    # LSTM
    Fault("saturated gates", "lstm", times("lstm.weight_ih_l0", 100), "saturation", "lstm"),
    Fault("constant weights", "lstm", every(nn.LSTM, weight=0.1), "symmetry", "lstm"),
    Fault("zero weights", "lstm", every(nn.LSTM), "symmetry", "lstm"),
    Fault("frozen", "lstm", freeze("lstm"), "frozen-layer", "lstm"),
    Fault("a dead layer", "lstm", fill("fc.bias", -100.0), "dead-relu", "/relu", "error"),
    # transformer
    Fault("one-hot attention", "transformer", sharpen, "saturation",
          "encoder.layers.1.self_attn"),
    Fault("a dead branch", "transformer", fill("encoder.layers.1.linear1.bias", -100.0),
          "dead-relu", "encoder.layers.1/relu"),
    Fault("a frozen block", "transformer", freeze("encoder.layers.1"), "frozen-layer",
          "encoder.layers.1.self_attn"),
    Fault("a module never called", "transformer", forget, "no-gradient", "aux.0.weight"),
    Fault("cut before the head", "transformer", cut, "no-gradient", "embed.weight"),
    Fault("infinite norm", "transformer", fill("encoder.layers.1.norm2.weight", math.inf, 0),
          "non-finite", "encoder.layers.1.norm2.weight", "error"),
    # autoencoder
    Fault("cut in the middle", "autoencoder-detach", lambda model: None, "no-gradient",
          "encoder.0.weight"),
    Fault("log of negatives", "autoencoder-log", lambda model: None, "non-finite", "between",
          "error"),
    Fault("constant weights", "autoencoder", fill("decoder.0.weight", 0.1), "symmetry",
          "decoder.0"),
    Fault("zero bottleneck", "autoencoder", fill("encoder.2.weight", 0.0), "symmetry",
          "encoder.2"),
    Fault("a dead layer", "autoencoder", fill("decoder.0.bias", -100.0), "dead-relu",
          "decoder.1", "error"),
    Fault("frozen bottleneck", "autoencoder", freeze("encoder.2"), "frozen-layer", "encoder.2"),
]  # fmt: skip


@pytest.mark.one_in(5)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", [n for n in HEALTHY if not n.startswith("autoencoder-")])
def test_without_a_fault_nothing_is_said(name, seed):
    build, data = HEALTHY[name]
    torch.manual_seed(seed)
    rep = examine(build(), data())
    assert [f for f in rep.findings if f.severity != "note"] == []


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "fault", FAULTS, ids=[f"{f.architecture}-{f.what.replace(' ', '-')}" for f in FAULTS]
)
def test_a_fault_leads_where_it_is_and_all_else_is_folded_under_it(fault):
    build, data = HEALTHY[fault.architecture]
    torch.manual_seed(0)
    model = build()
    fault.inject(model)
    rep = examine(model, data())
    first = rep.findings[0]

    assert (first.rule, first.layer, first.severity) == (fault.rule, fault.layer, fault.severity)
    assert first.cause is None
    others = [f for f in rep.findings if f.severity != "note" and f is not first]
    assert [(f.rule, f.layer) for f in others if f.root is not first] == []
    assert not rep.ok
    assert not [o for o in rep.outcomes if o.status == "crashed"]


@pytest.mark.one_in(11)
@pytest.mark.parametrize("seed", range(1, 3))
@pytest.mark.parametrize(
    "fault",
    [f for f in FAULTS if f.architecture in ("mlp", "tanh", "lstm")],
    ids=lambda f: f"{f.architecture}-{f.what.replace(' ', '-')}",
)
def test_whatever_the_seed(fault, seed):
    build, data = HEALTHY[fault.architecture]
    torch.manual_seed(seed)
    model = build()
    fault.inject(model)
    first = examine(model, data()).findings[0]
    assert (first.rule, first.layer, first.severity) == (fault.rule, fault.layer, fault.severity)


def test_roots_come_before_what_they_explain_and_by_severity_among_themselves():
    torch.manual_seed(0)
    model = MLP()
    freeze("2")(model)
    fill("8.bias", -100.0)(model)
    rep = examine(model, numbers())
    causes = [f.cause is None for f in rep.findings]
    assert causes == sorted(causes, reverse=True)
    rank = {"error": 0, "warning": 1, "note": 2}
    roots = [rank[f.severity] for f in rep.findings if f.cause is None]
    assert roots == sorted(roots)
    alarms = [f for f in rep.findings if f.cause is None and f.severity != "note"]
    assert [(f.rule, f.layer) for f in alarms] == [("dead-relu", "9"), ("frozen-layer", "2")]


def test_a_cause_is_itself_in_the_report_and_no_circle():
    torch.manual_seed(0)
    model = MLP()
    times("6.weight", 1e-4)(model)
    rep = examine(model, numbers())
    for f in rep.findings:
        seen = []
        while f.cause is not None:
            assert any(f.cause is other for other in rep.findings)
            seen.append(id(f))
            f = f.cause
            assert id(f) not in seen


# -- by hand ---------------------------------------------------------------------------------------


def at_place(rule, layer, severity="warning", suspects=()):
    return Finding(rule, "", severity, layer, "", suspects=suspects)


def one_layer(nodes, node):
    """A snapshot of these nodes with a row for one of them, in the module ``body``."""
    layer = Layer("body.1", "Linear", "linear", (1,), node, output=None)
    return Snapshot("Net", (layer,), nodes, (), {"read": None}, Loss("none"), 1, 1,
                    never_called=("lost",))  # fmt: skip


INPUT_FIRST = (Node("input"), Node("linear", (0,), 0))


def explained(snapshot, *findings):
    """By its place, the place of each finding's cause."""
    return {f.layer: f.cause and f.cause.layer for f in explain(findings, snapshot, rank)}


@pytest.mark.parametrize(("severity", "cause"), [("note", "read"), ("warning", None)])
def test_a_note_explains_notes_only(severity, cause):
    snapshot = one_layer(INPUT_FIRST, 1)
    note = at_place("a", "read", "note")

    causes = explained(snapshot, note, at_place("b", "body.1", severity, suspects=("a",)))

    assert causes == {"read": None, "body.1": cause}


def test_what_is_said_of_a_module_around_layers_explains_what_holds_everywhere():
    snapshot = one_layer(INPUT_FIRST, 1)

    causes = explained(snapshot, at_place("a", "body"), at_place("b", "(model)", suspects=("a",)))

    assert causes == {"body": None, "(model)": "body"}


def test_an_input_lies_at_its_own_nodes_only():
    # The layer, first of all nodes, does not read the input.
    snapshot = one_layer((Node("linear", (), 0), Node("input")), 0)

    causes = explained(snapshot, at_place("a", "read"), at_place("b", "body.1", suspects=("a",)))

    assert causes == {"read": None, "body.1": None}


# -- against a naive search ----------------------------------------------------------------------

RULES = ("a", "b", "c")
NOWHERE = ("gone.x.weight", "gone.y.weight", "lost.weight")
PLACES = ("(model)", "read", "bare", "shared", "body.part", *NOWHERE)


@st.composite
def snapshots(draw):
    """Some rows that use one another, two of them with the same weight, and modules never run."""
    size = draw(st.integers(1, 6))
    nodes, layers = [Node("input")], []
    for node in range(1, size + 1):
        inputs = sorted(draw(st.sets(st.integers(0, node - 1), max_size=2)))
        nodes.append(Node("linear", tuple(inputs), node - 1))
        weight = Weight("shared", None, 1, 1) if draw(st.booleans()) else None
        layers.append(
            Layer(f"body.{node}", "Linear", "linear", (1,), node, output=None, weight=weight)
        )
    parameters = [Parameter(name, (1,), "float32", True, None) for name in PLACES[2:]]
    never = draw(st.sets(st.sampled_from(["gone", "gone.x", "gone.y", "lost"])))
    return Snapshot(
        "Net", tuple(layers), tuple(nodes), tuple(parameters), {"read": None}, Loss("none"), 1, 1,
        outputs=(size,), never_called=tuple(never),
    )  # fmt: skip


@st.composite
def reports(draw):
    snapshot = draw(snapshots())
    place = st.sampled_from([*PLACES, *(layer.name for layer in snapshot.layers)])
    finding = st.builds(
        Finding,
        rule=st.sampled_from(RULES),
        code=st.just(""),
        severity=st.sampled_from(SEVERITIES),
        layer=place,
        message=st.integers(0, 99).map(str),
        suspects=st.lists(st.sampled_from(RULES), max_size=3, unique=True).map(tuple),
    )
    return snapshot, draw(st.lists(finding, max_size=8))


def rank(finding):
    return (SEVERITIES.index(finding.severity),)


@given(reports())
def test_the_cause_is_what_a_comparison_of_all_pairs_finds(report):
    snapshot, findings = report

    assert explain(findings, snapshot, rank) == naively(findings, snapshot)


def naively(findings, snapshot):
    ordered = sorted(findings, key=lambda f: (*rank(f), depth(snapshot, f.layer)))
    done = {}

    def cause_of(index, seen):
        finding = ordered[index]
        for name in finding.suspects:
            for other, candidate in enumerate(ordered):
                if (
                    candidate.rule == name
                    and other not in seen
                    and (name != finding.rule or other < index)
                    and (candidate.severity != "note" or finding.severity == "note")
                    and on_a_path(snapshot, candidate.layer, finding.layer)
                ):
                    return other
        return None

    def resolve(index, seen):
        if index not in done:
            cause = cause_of(index, seen | {index})
            root = None if cause is None else resolve(cause, seen | {index})
            done[index] = replace(ordered[index], cause=root)
        return done[index]

    return sorted(
        (resolve(k, frozenset()) for k in range(len(ordered))), key=lambda f: f.cause is not None
    )


def at(snapshot, name):
    """The nodes of a place; None for everywhere."""
    if name in ("(model)", "bare") or (name == "shared" and not users(snapshot)):
        return None
    if name == "read":
        return {0}
    if name == "shared":
        return users(snapshot)
    if name == "body.part":
        return {layer.node for layer in snapshot.layers}
    return {layer.node for layer in snapshot.layers if layer.name == name}


def users(snapshot):
    return {layer.node for layer in snapshot.layers if layer.weight is not None}


def depth(snapshot, name):
    return min(at(snapshot, name) or [math.inf])


def on_a_path(snapshot, a, b):
    here, there = at(snapshot, a), at(snapshot, b)
    if here is None or there is None:
        return True
    if not here and not there:
        return a.partition(".")[0] == b.partition(".")[0]
    return any(
        n == m or n in graph.ancestors(snapshot, m) or m in graph.ancestors(snapshot, n)
        for n in here
        for m in there
    )
