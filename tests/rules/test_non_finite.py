"""non-finite: NaN and infinity where they begin, and nothing else said of what they touched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "non-finite"


DATA_RULE = "input-missing"  # it leads where the input itself holds NaN


def mlp(depth=5, width=32):
    layers = []
    for k in range(depth):
        layers += [nn.Linear(width if k else 16, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def check(model, x, y=None, loss_fn=None, select=None):
    torch.manual_seed(1)
    if y is not None and loss_fn is None:
        loss_fn = F.cross_entropy
    batch = x if y is None else (x, y)
    return nndiag.check(
        model, batch, loss_fn=loss_fn, select=select, ignore=DATA_RULE, config=False
    )


def roots(rep):
    return [(f.rule, f.layer, f.severity) for f in rep.findings
            if f.cause is None and f.severity != "note"]  # fmt: skip


def labels(n=64):
    return torch.randint(0, 10, (n,))


class Apply(nn.Module):
    """A function as a layer of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def with_layer(function, at=3):
    layers = list(mlp())
    return nn.Sequential(*layers[: 2 * at], Apply(function), *layers[2 * at :])


class TestWhereItBegins:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize(
        ("function", "what"),
        [
            (torch.log, "NaN"), (torch.sqrt, "NaN"), (lambda x: x / 0.0, "infinit"),
            (lambda x: torch.exp(1e4 * x.abs()), "infinit"),
            (lambda x: (x * math.inf), "infinit"), (lambda x: x - x / 0, "infinit"),
            (torch.acos, None), (lambda x: F.normalize(x) / 0, "infinit"),
        ],
    )  # fmt: skip
    def test_a_layer_that_makes_it_leads_and_the_layers_behind_are_counted(
        self, function, what, seed
    ):
        torch.manual_seed(seed)
        model, x = with_layer(function), torch.randn(64, 16)
        made = ~torch.isfinite(model[:7](x).detach())
        rep = check(model, x, labels())
        if what is None:
            assert not made.any()
            assert rep.ok
            return
        assert roots(rep) == [(NAME, "6", "error")]
        found = rep.findings[0]
        assert what in found.message
        assert "Everything before it is finite." in found.message
        assert found.evidence["nan"] + found.evidence["inf"] == int(made.sum())
        assert found.evidence["values"] == made.numel()
        behind = [m(x) for m in [model[: k + 1] for k in range(7, len(model))]]
        sick = sum(bool((~torch.isfinite(h)).any()) for h in behind)
        assert f" {sick} more layers are not finite either." in found.message

    def test_the_function_that_makes_it_is_named_where_it_is_no_layer(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 10)

            def forward(self, x):
                return self.b(torch.sqrt(self.a(x)))

        torch.manual_seed(0)
        rep = check(Net(), torch.randn(64, 16), labels())
        assert roots(rep) == [(NAME, "b", "error")]
        assert "Its input is not finite either (made by sqrt)." in rep.findings[0].message

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("kind", ["dense", "conv", "norm"])
    def test_a_parameter_that_holds_it_is_where_it_begins(self, value, kind):
        torch.manual_seed(0)
        if kind == "conv":
            layers = []
            for k in range(3):
                layers += [nn.Conv2d(8 if k else 3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
            model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))
            x, name, parameter = torch.randn(16, 3, 8, 8), "3.weight", model[3].weight
        elif kind == "norm":
            model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 10))
            x, name, parameter = torch.randn(16, 16), "1.weight", model[1].weight
        else:
            model, x = mlp(), torch.randn(16, 16)
            name, parameter = "4.weight", model[4].weight
        with torch.no_grad():
            parameter.view(-1)[0] = value
        rep = check(model, x, labels(16))
        assert roots(rep) == [(NAME, name, "error")]
        what = "1 NaN" if math.isnan(value) else "1 infinity"
        assert rep.findings[0].message == (
            f"The parameter holds {what} among {parameter.numel():,} values."
        )

    def test_a_model_that_diverged_whole_is_one_finding(self):
        torch.manual_seed(0)
        model = mlp()
        for p in model.parameters():
            nn.init.constant_(p, math.nan)
        rep = check(model, torch.randn(64, 16), labels())
        # Nothing but a training leaves NaN in every parameter.
        assert roots(rep) == [("training-damage", "(model)", "error")]
        [own] = [f for f in rep.findings if f.rule == NAME]
        assert (own.layer, own.severity) == ("0.weight", "error")
        assert "The same holds for 11 more parameters." in own.message

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_an_input_that_holds_it_is_where_it_begins(self, value):
        torch.manual_seed(0)
        x = torch.randn(64, 16)
        x[3, 5] = value
        rep = check(mlp(), x, labels())
        assert roots(rep) == [(NAME, "input", "error")]
        assert rep.findings[0].evidence["values"] == 64 * 16

    def test_the_later_of_two_batches_counts_as_well(self):
        torch.manual_seed(0)
        stream = [(torch.randn(32, 16), labels(32)) for _ in range(3)]
        stream[2][0][1, 1] = math.nan
        rep = nndiag.check(mlp(), stream, loss_fn=F.cross_entropy, ignore=DATA_RULE, config=False)
        assert roots(rep) == [(NAME, "input", "error")]

    def test_two_that_begin_apart_are_two(self):
        class Towers(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(16, 10), nn.Linear(16, 10)
                self.log, self.root = Apply(torch.log), Apply(torch.sqrt)

            def forward(self, x):
                return self.log(self.a(x)) + self.root(self.b(x))

        torch.manual_seed(0)
        rep = check(Towers(), torch.randn(64, 16), labels())
        assert {layer for _, layer, _ in roots(rep)} == {"log", "root"}

    def test_a_recurrent_layer_that_overflows(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.RNN(16, 24, nonlinearity="relu", batch_first=True)
                self.head = nn.Linear(24, 10)
                nn.init.constant_(self.rnn.weight_hh_l0, 1e10)

            def forward(self, x):
                return self.head(self.rnn(x)[0][:, -1])

        torch.manual_seed(0)
        rep = check(Net(), torch.randn(32, 12, 16), labels(32), select=NAME)
        assert roots(rep) == [(NAME, "rnn", "error")]

    def test_half_precision_ends_where_it_ends_though_a_tanh_hides_it(self):
        torch.manual_seed(0)
        model = mlp().half()
        with torch.no_grad():
            model[0].weight.fill_(6e4)
        rep = check(model, torch.randn(64, 16).half(), select=NAME)
        assert roots(rep) == [(NAME, "0", "error")]
        assert "the largest that float16 can hold is 6.55e+04" in rep.findings[0].message


class TestTheLossAndTheGradients:
    def test_a_loss_that_is_not_finite_though_every_output_is(self):
        torch.manual_seed(0)
        rep = check(
            mlp(), torch.randn(64, 16), labels(), lambda out, y: torch.log(-out.abs()).sum()
        )
        assert roots(rep)[0] == (NAME, "(loss)", "error")
        assert "though every layer's output is finite" in rep.findings[0].message

    def test_a_gradient_that_begins_behind_a_finite_forward(self):
        # The slope of a root at zero: a classic of norms and distances.
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 10)

            def forward(self, x):
                h = self.a(x)
                return self.b(torch.sqrt((h - h.detach()).square()))

        torch.manual_seed(0)
        model, x, y = Net(), torch.randn(64, 16), labels()
        rep = check(model, x, y, select=NAME)
        F.cross_entropy(model(x), y).backward()
        assert not torch.isfinite(model.a.weight.grad).all()
        assert torch.isfinite(model.b.weight.grad).all()
        assert roots(rep) == [(NAME, "a", "error")]
        assert "though all outputs are finite" in rep.findings[0].message

    def test_a_gradient_that_a_relu_stops_reaches_no_parameter_and_is_a_note(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), Apply(torch.sqrt), nn.Linear(16, 10))
        x, y = torch.randn(64, 16), labels()
        rep = check(model, x, y, select=NAME)
        F.cross_entropy(model(x), y).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert roots(rep) == []
        assert [(f.severity, f.layer) for f in rep.findings] == [("note", "1")]
        assert "no parameter's gradient has it" in rep.findings[0].message

    def test_weight_gradients_that_overflow_where_those_of_the_outputs_do_not_are_one_finding(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 10)).half()
        rep = check(
            model,
            100 * torch.ones(64, 16).half(),
            None,
            lambda out: 1e4 * out.float().sum(),
            select=NAME,
        )
        assert roots(rep) == [(NAME, "1.bias", "error")]
        assert "Its gradient holds" in rep.findings[0].message

    def test_nothing_else_is_said_of_gradients_that_are_not_finite(self):
        torch.manual_seed(0)
        model = mlp()
        rep = check(
            model, torch.randn(64, 16), labels(),
            lambda out, y: torch.sqrt((out - out.detach()).square()).sum(),
        )  # fmt: skip
        assert {f.rule for f in rep.findings if f.severity != "note"} == {NAME}
        assert len(roots(rep)) == 1


class TestMasks:
    """Infinities on purpose: nothing behind them takes them over."""

    def attention(self, mask):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
                self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
                self.head = nn.Linear(16, 10)

            def forward(self, x, mask):
                return self.head(self.encoder(x, mask=mask))

        torch.manual_seed(0)
        batch = nndiag.Batch(args=(torch.randn(16, 6, 16), mask))
        return nndiag.check(Net(), batch, config=False)

    def test_an_additive_attention_mask_as_an_input_is_a_note(self):
        rep = self.attention(nn.Transformer.generate_square_subsequent_mask(6))
        assert rep.ok
        [found] = [f for f in rep.findings if f.rule == NAME]
        assert (found.layer, found.severity) == ("input.mask", "note")
        assert "looks like a mask" in found.message

    def test_a_mask_that_hides_everything_is_where_nan_begins(self):
        mask = nn.Transformer.generate_square_subsequent_mask(6)
        mask[0] = -math.inf
        rep = self.by_hand(mask, nn.Identity())
        assert roots(rep)[0] == (NAME, "input.mask", "error")

    def test_a_mask_is_not_blamed_for_what_begins_elsewhere(self):
        mask = nn.Transformer.generate_square_subsequent_mask(6)
        rep = self.by_hand(mask, Apply(torch.log))
        assert [f for f in roots(rep) if f[0] == NAME] == [(NAME, "after", "error")]

    def by_hand(self, mask, after):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.q, self.head, self.after = nn.Linear(16, 16), nn.Linear(16, 10), after

            def forward(self, x, mask):
                q = self.q(x)
                return self.head(self.after(F.softmax(q @ q.mT + mask, -1) @ q))

        torch.manual_seed(0)
        return nndiag.check(Net(), nndiag.Batch((torch.randn(16, 6, 16), mask)), config=False)

    @pytest.mark.parametrize("form", ["module", "function"])
    def test_scores_masked_inside_are_no_fault(self, form):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.q, self.head = nn.Linear(16, 16), nn.Linear(16, 10)
                hidden = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
                self.mask = Apply(lambda s: s.masked_fill(hidden, -math.inf))

            def forward(self, x):
                q = self.q(x)
                scores = q @ q.mT / 4
                scores = self.mask(scores) if form == "module" else self.mask.forward(scores)
                return self.head(F.softmax(scores, -1) @ q)

        torch.manual_seed(0)
        rep = check(Net(), torch.randn(16, 6, 16))
        assert rep.ok
        assert {f.severity for f in rep.findings if f.rule == NAME} <= {"note"}

    def test_masked_logits_with_a_finite_loss_are_a_note(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Linear(16, 10)
                legal = torch.arange(10) < 7
                self.mask = Apply(lambda z: z.masked_fill(~legal, -math.inf))

            def forward(self, x):
                return self.mask(self.body(x))

        torch.manual_seed(0)
        rep = check(Net(), torch.randn(64, 16), torch.randint(0, 7, (64,)), select=NAME)
        assert [(f.layer, f.severity) for f in rep.findings] == [("mask", "note")]

    def test_and_an_error_where_the_loss_asks_for_a_masked_one(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.mask = nn.Linear(16, 10), Apply(self.hide)

            @staticmethod
            def hide(z):
                return z.masked_fill(torch.arange(10) >= 7, -math.inf)

            def forward(self, x):
                return self.mask(self.body(x))

        torch.manual_seed(0)
        rep = check(Net(), torch.randn(64, 16), torch.full((64,), 9), select=NAME)
        assert roots(rep) == [(NAME, "mask", "error")]

    def test_what_where_hides_forward_comes_back_as_nan_backward_and_is_no_mask(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.log, self.head = (
                    nn.Linear(16, 16),
                    Apply(torch.log),
                    nn.Linear(16, 10),
                )

            def forward(self, x):
                h = self.body(x).clamp(min=0)
                return self.head(torch.where(h > 0, self.log(h), 0.0))

        torch.manual_seed(0)
        model, x = Net(), torch.randn(64, 16)
        rep = check(model, x, labels(), select=NAME)
        assert torch.isfinite(model(x)).all()
        assert roots(rep) == [(NAME, "log", "error")]

    def test_missing_values_that_the_model_fills_in_are_a_note(self):
        class Impute(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

            def forward(self, x):
                return self.body(torch.nan_to_num(x))

        torch.manual_seed(0)
        x = torch.randn(64, 16)
        x[torch.rand(64, 16) < 0.1] = math.nan
        rep = check(Impute(), x, labels(), select=NAME)
        assert [(f.layer, f.severity) for f in rep.findings] == [("input", "note")]


class TestOfASickNetworkNothingFalseIsSaid:
    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
    @pytest.mark.parametrize("where", ["weight", "input", "layer"])
    def test_no_other_alarm_stands_beside_it(self, activation, where):
        # NaN <= 0 is False: a naive count of dead units finds none, a naive maximum everything.
        torch.manual_seed(0)
        layers = []
        for k in range(4):
            layers += [nn.Linear(32 if k else 16, 32), activation()]
        model, x = nn.Sequential(*layers, nn.Linear(32, 10)), torch.randn(128, 16)
        if where == "weight":
            with torch.no_grad():
                model[2].weight[0, 0] = math.nan
        elif where == "input":
            x[0, 0] = math.nan
        else:
            model.insert(4, Apply(lambda h: h / 0))
        rep = check(model, x, labels(128))
        assert {r[0] for r in roots(rep)} == {NAME}
        assert not [o for o in rep.outcomes if o.status == "crashed"]

    def test_statistics_are_of_the_finite_values_and_say_so(self):
        torch.manual_seed(0)
        model, x = mlp(), torch.randn(64, 16)
        x[:5, 3] = math.nan
        rep = check(model, x, labels())
        row = rep.snapshot.layers[0].output
        with torch.no_grad():
            h = model[0](x).double().numpy()
        assert row.nan == np.isnan(h).sum() == 5 * 32
        assert row.mean == pytest.approx(np.nanmean(h), rel=1e-6)
        assert row.std == pytest.approx(np.nanstd(h), rel=1e-6)

    def test_a_healthy_network_has_none(self):
        torch.manual_seed(0)
        assert check(mlp(), torch.randn(64, 16), labels(), select=NAME).findings == ()


def test_of_a_single_layer_that_is_not_finite_no_others_are_told():
    torch.manual_seed(0)
    [found] = check(
        nn.Sequential(*mlp(), Apply(torch.log)), torch.randn(64, 16), select=NAME
    ).findings

    assert "more layer" not in found.message
