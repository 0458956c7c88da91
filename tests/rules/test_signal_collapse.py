"""signal-collapse: outputs that no longer depend on the input, by their spread across samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import nndiag
from nndiag import judge
from nndiag.stats import Layer, Loss, Node, ProbeStats, Snapshot, TensorStats, Weight

NAME = "signal-collapse"


def mlp(depth, activation=nn.ReLU, init=None, width=64, inputs=32):
    layers = []
    for k in range(depth):
        layers += [nn.Linear(width if k else inputs, width), activation()]
        if init is not None:
            init(layers[-2].weight)
            nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers, nn.Linear(width, 10))


def he(weight):
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def findings(model, x, **options):
    return list(nndiag.check(model, x, select=NAME, config=False, **options).findings)


def naive_spread(outputs):
    """Root of the mean over elements of the variance over samples."""
    return float(outputs.detach().double().flatten(1).var(0, unbiased=False).mean().sqrt())


class Functional(nn.Module):
    def __init__(self, net, activation):
        super().__init__()
        self.weights = nn.ParameterList([m.weight for m in net if isinstance(m, nn.Linear)])
        self.activation = activation

    def forward(self, x):
        for weight in self.weights[:-1]:
            x = self.activation(F.linear(x, weight))
        return F.linear(x, self.weights[-1])


class TestADeepSigmoidStack:
    """Its pooled std stays at 0.12 in every layer (CS231n's measure) while its signal dies."""

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("form", ["modules", "functions", "sequences"])
    def test_is_found_where_the_spread_falls_below_a_hundredth(self, seed, form):
        torch.manual_seed(seed)
        model = mlp(10, nn.Sigmoid, nn.init.xavier_normal_)
        x = torch.randn(32, 9, 32) if form == "sequences" else torch.randn(256, 32)
        if form == "functions":
            model = Functional(model, torch.sigmoid)
        [found] = findings(model, x)
        assert found.severity == "error"

        if form == "functions":
            return
        with torch.no_grad():
            outputs = [model[: k + 1](x) for k in range(len(model))]
        below = [
            k
            for k, h in enumerate(outputs)
            if h.flatten(1).var(0, unbiased=False).mean().sqrt() < 0.01 * h.std(unbiased=False)
        ]
        assert found.layer == str(below[0])
        assert found.evidence["layers"] == len(below)

    def test_reports_spread_and_pooled_std_as_one_computes_them_by_hand(self):
        torch.manual_seed(0)
        model, x = mlp(10, nn.Sigmoid, nn.init.xavier_normal_), torch.randn(256, 32)
        [found] = findings(model, x)
        outputs = model[: int(found.layer) + 1](x).detach()
        assert found.evidence["spread"] == pytest.approx(naive_spread(outputs), rel=1e-3)
        assert found.evidence["pooled_std"] == pytest.approx(
            float(outputs.std(unbiased=False)), rel=1e-4
        )

    def test_the_pooled_std_shows_nothing(self):
        torch.manual_seed(0)
        model, x = mlp(10, nn.Sigmoid, nn.init.xavier_normal_), torch.randn(256, 32)
        last = model[:-1](x).detach()
        assert float(last.std()) > 0.1
        assert naive_spread(last) < 1e-5

    def test_of_four_layers_still_passes_something(self):
        torch.manual_seed(0)
        found = findings(mlp(3, nn.Sigmoid, nn.init.xavier_normal_), torch.randn(256, 32))
        assert found == []


class TestHealthyNetworks:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize(
        ("depth", "activation", "init"),
        [
            (30, nn.ReLU, he), (20, nn.Tanh, nn.init.xavier_normal_), (4, nn.GELU, None),
            (4, nn.ReLU, None), (4, nn.Tanh, None), (4, nn.SiLU, None), (4, nn.Softplus, None),
        ],
    )  # fmt: skip
    def test_are_quiet(self, seed, depth, activation, init):
        torch.manual_seed(seed)
        assert findings(mlp(depth, activation, init), torch.randn(128, 32)) == []

    def test_the_spread_of_he_layers_falls_as_the_kernel_says_and_that_is_no_collapse(self):
        torch.manual_seed(0)
        rep = nndiag.check(mlp(10, nn.ReLU, he, 256), torch.randn(256, 32), config=False)
        rows = [x for x in rep.snapshot.layers if x.op == "relu"]
        c = 0.0
        for _ in rows:
            c = (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi  # Cho & Saul 2009
        last = rows[-1].output
        assert last.spread / math.sqrt(last.second_moment) == pytest.approx(
            math.sqrt(1 - c), rel=0.3
        )
        assert not [f for f in rep.findings if f.rule == NAME]

    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
    def test_trained_on_digits_are_quiet(self, activation):
        digits = load_digits()
        x = torch.tensor(digits.data, dtype=torch.float32) / 16
        y = torch.tensor(digits.target)
        torch.manual_seed(0)
        model = mlp(3, activation, inputs=64)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(150):
            rows = slice(step * 128 % 1408, step * 128 % 1408 + 128)
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        assert findings(model, x[1400:]) == []

    @pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
    def test_normalised_deep_stacks_are_quiet(self, norm):
        torch.manual_seed(0)
        layers = []
        for k in range(12):
            layers += [nn.Linear(64 if k else 32, 64), norm(64), nn.ReLU()]
        assert findings(nn.Sequential(*layers, nn.Linear(64, 10)), torch.randn(128, 32)) == []

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_the_scale_of_the_input_changes_nothing(self, scale):
        torch.manual_seed(0)
        sick = mlp(10, nn.Sigmoid, nn.init.xavier_normal_)
        well = mlp(10, nn.ReLU, he)
        x = torch.randn(128, 32) * scale
        assert findings(well, x) == []
        assert [f.severity for f in findings(sick, x)] == ["error"]


class TestHeldAgainstTheInput:
    @pytest.mark.parametrize("difference", [1e-2, 1e-4])
    def test_inputs_that_barely_differ_need_no_outputs_that_do(self, difference):
        torch.manual_seed(0)
        x = torch.randn(1, 32) + difference * torch.randn(128, 32)
        assert findings(mlp(3, nn.ReLU, he), x) == []

    def test_equal_inputs_prove_nothing(self):
        torch.manual_seed(0)
        x = torch.randn(1, 32).repeat(64, 1)
        assert findings(mlp(10, nn.Sigmoid, nn.init.xavier_normal_), x) == []

    def test_one_huge_constant_feature_does_not_make_a_collapse(self):
        torch.manual_seed(0)
        x = torch.randn(128, 32)
        x[:, 0] = 1e4
        assert findings(mlp(2, nn.ReLU, he), x) == []

    def test_few_samples_are_too_few_and_it_is_said(self):
        torch.manual_seed(0)
        model = mlp(10, nn.Sigmoid, nn.init.xavier_normal_)
        rep = nndiag.check(model, torch.randn(7, 32), select=NAME, config=False)
        assert rep.findings == ()
        assert [u.reason for u in rep.unjudged if u.rule == NAME] == [
            "7 samples are too few; give 8 or more"
        ]
        assert findings(model, torch.randn(8, 32))


class TestOnlyWhatEverythingGoesThrough:
    def test_a_collapsed_branch_beside_an_identity_is_passed_by(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.branch = mlp(8, nn.Sigmoid, nn.init.xavier_normal_, 32)[:-1]

            def forward(self, x):
                return x + self.branch(x)

        torch.manual_seed(0)
        assert findings(nn.Sequential(Block(), nn.Linear(32, 10)), torch.randn(128, 32)) == []

    def test_a_gate_that_is_nearly_constant_is_passed_by(self):
        class Gated(nn.Module):
            def __init__(self):
                super().__init__()
                self.gate, self.value, self.head = (
                    nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10),
                )  # fmt: skip
                nn.init.normal_(self.gate.weight, std=1e-4)

            def forward(self, x):
                return self.head(torch.sigmoid(self.gate(x)) * torch.relu(self.value(x)))

        torch.manual_seed(0)
        assert findings(Gated(), torch.randn(128, 32)) == []

    @pytest.mark.parametrize("std", [0.0, 1e-6])
    def test_a_small_head_did_not_lose_the_signal(self, std):
        torch.manual_seed(0)
        model = mlp(3, nn.ReLU, he)
        nn.init.normal_(model[-1].weight, std=std)
        assert findings(model, torch.randn(128, 32)) == []


class TestInjectedInTheMiddle:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("form", ["dense", "conv"])
    def test_is_found_there_and_all_behind_it_counted(self, seed, form):
        # Weights so small that the bias is all that comes out; scale is init-scale's business, so
        # the rule is asked alone.
        torch.manual_seed(seed)
        if form == "dense":
            model, x = mlp(6, nn.Tanh, nn.init.xavier_normal_), torch.randn(128, 32)
        else:
            layers = []
            for k in range(6):
                layers += [nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.Tanh()]
            model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 10))
            x = torch.randn(32, 3, 6, 6)
        with torch.no_grad():
            model[6].weight.mul_(1e-6)
            model[6].bias.normal_()
        [found] = findings(model, x)
        assert (found.layer, found.severity) == ("6", "error")
        behind = sum(type(m) is not nn.Flatten for m in list(model)[7:])
        assert found.evidence["layers"] == 1 + behind
        assert f"The same holds for {behind} layers after it" in found.message

    def test_names_the_cause_where_there_is_one(self):
        torch.manual_seed(0)
        model = mlp(6, nn.ReLU, he)
        nn.init.constant_(model[4].bias, -100.0)
        rep = nndiag.check(model, torch.randn(128, 32), config=False)
        [found] = [f for f in rep.findings if f.rule == NAME]
        assert found.cause is rep.findings[0]
        assert found.cause.rule == "dead-relu"


def test_a_third_of_the_units_at_a_large_bias_take_nothing_from_the_others():
    torch.manual_seed(0)
    model, x = mlp(6, nn.ReLU, he), torch.randn(128, 32)
    nn.init.constant_(model[4].bias[:21], -300.0)
    layer = model[:5](x)
    assert naive_spread(layer) < 0.01 * layer.std()
    assert naive_spread(model[:7](x)) > 0.1 * model[:7](x).std()
    assert findings(model, x) == []


def test_layers_whose_outputs_are_not_finite_are_not_said_to_have_collapsed():
    torch.manual_seed(0)
    model = mlp(3, nn.ReLU, he)
    with torch.no_grad():
        model[2].weight.fill_(math.nan)
    assert findings(model, torch.randn(64, 32)) == []


# -- on numbers made by hand ------------------------------------------------------------------


def tensor(spread, std, samples=64):
    """A tensor of 64 units whose values have ``std`` in all, ``spread`` of it across samples."""
    count = samples * 64
    probe = ProbeStats((64,), samples, np.zeros(64), np.full(64, samples * spread**2))
    return TensorStats(samples, count, 0, 0, 0, 0.0, std**2 * count, -1.0, 1.0, probe=probe)


def snapshot(spread, std=1.0, samples=64, after=None):
    """Three layers; ``after``: the spread of the last, or what the second has."""
    after = spread if after is None else after
    layers = tuple(
        Layer(name, "Linear", "linear", (samples, 64), k + 1, tensor(s, std, samples),
              tensor(1.0, 1.0, samples), weight=Weight(f"{name}.weight", None, 64, 64))
        for k, (name, s) in enumerate([("a", std), ("b", spread), ("c", after)])
    )  # fmt: skip
    nodes = (Node("input"), *(Node("linear", (k,), k) for k in range(3)))
    return Snapshot("Net", layers, nodes, (), {"input": tensor(1.0, 1.0, samples)}, Loss("none"),
                    samples, 1, outputs=(3,))  # fmt: skip


@pytest.mark.parametrize("std", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0101, None), (0.0099, "warning"), (1.01e-4, "warning"), (0.99e-4, "error"), (0.0, "error")],
)
def test_the_boundaries_lie_at_a_hundredth_and_a_ten_thousandth_of_the_pooled_std(
    share, expected, std
):
    found = judge.judge(snapshot(share * std, std), NAME).findings
    assert [f.severity for f in found] == ([expected] if expected else [])
    for f in found:
        assert f.layer == "b"
        assert f.evidence["share"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("share", "after", "expected"),
    [(0.0099, 0.099, "warning"), (0.0099, 0.101, None), (0.99e-4, 1.0, "error")],
)
def test_what_a_later_layer_still_shows_was_not_lost_except_into_rounding(share, after, expected):
    found = judge.judge(snapshot(share, after=after), NAME).findings
    assert [f.severity for f in found] == ([expected] if expected else [])


@pytest.mark.parametrize(("samples", "judged"), [(7, False), (8, True)])
def test_from_eight_samples_on_it_judges(samples, judged):
    outcome = judge.judge(snapshot(1e-5, samples=samples), NAME)
    assert bool(outcome.findings) == judged
    assert bool(outcome.unjudged) != judged


def test_a_collapse_behind_a_layer_that_has_another_way_beside_it_is_found():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.side = nn.Linear(32, 32)
            self.body = mlp(10, nn.Sigmoid, nn.init.xavier_normal_)

        def forward(self, x):
            return self.body(x + self.side(x))

    torch.manual_seed(0)
    [found] = findings(Beside(), torch.randn(128, 32))
    assert found.layer.startswith("body.")
    assert found.severity == "error"


class Sentences(nn.Module):
    """A recurrent layer over ids, and what is read of its states."""

    def __init__(self, recurrent, read):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        self.rnn = recurrent(16, 24, batch_first=True)
        self.fc = nn.Linear(24, 2)
        self.read = read

    def forward(self, x):
        return self.fc(self.read(self.rnn(self.embed(x))[0]))


@pytest.mark.parametrize("recurrent", [nn.RNN, nn.GRU])
def test_a_state_that_has_forgotten_the_samples_is_reported(recurrent):
    x = F.pad(torch.randint(1, 50, (64, 12), generator=torch.Generator().manual_seed(0)), (0, 150))
    [found] = findings(Sentences(recurrent, lambda h: h[:, -1]), x)
    assert (found.layer, found.severity, found.measure) == ("fc", "error", "gone")
    assert "same for every sample" in found.message
    assert findings(Sentences(recurrent, lambda h: h[:, :12].mean(1)), x) == []
    assert findings(Sentences(recurrent, lambda h: h[:, 11]), x) == []
    assert findings(Sentences(recurrent, lambda h: h[:, -1]), x[:1].expand(64, -1)) == []
