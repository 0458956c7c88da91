"""no-gradient: trainable parameters that get none, and those that get none by construction."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag import judge

NAME = "no-gradient"


def check(model, x, y=None, loss_fn=None, select=NAME):
    torch.manual_seed(1)
    if loss_fn is None and y is not None:
        loss_fn = F.cross_entropy
    return nndiag.check(
        model, x if y is None else (x, y), loss_fn=loss_fn, select=select, config=False
    )


def alarms(rep):
    return {f.layer: f.severity for f in rep.findings if f.severity != "note"}


def labels(n):
    return torch.randint(0, 10, (n,))


def oracle(model, x, y, loss_fn=F.cross_entropy):
    """Which trainable parameters autograd gives None, and which exactly zero."""
    model.zero_grad(set_to_none=True)
    loss_fn(model(x), y).backward()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    none = {n for n, p in trainable.items() if p.grad is None}
    zero = {n for n, p in trainable.items() if p.grad is not None and not p.grad.any()}
    model.zero_grad(set_to_none=True)
    return none, zero


def mlp(depth=4, width=32, activation=nn.ReLU):
    layers = []
    for k in range(depth):
        layers += [nn.Linear(width if k else 16, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Detached(nn.Module):
    """Cut behind its second layer, in one of the ways people cut."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        self.how = how

    def forward(self, x):
        h = torch.relu(self.b(torch.relu(self.a(x))))
        if self.how == "detach":
            h = h.detach()
        elif self.how == "data":
            h = h.data
        elif self.how == "new tensor":
            h = torch.from_numpy(h.detach().numpy().copy())
        return self.c(h)


class NoGrad(Detached):
    def forward(self, x):
        with torch.no_grad():
            h = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(h)


class TestNone:
    @pytest.mark.parametrize("how", ["detach", "data", "new tensor", "no_grad"])
    @pytest.mark.parametrize("shape", [(64, 16), (8, 5, 16)])
    def test_everything_before_a_cut_is_a_warning_and_the_rest_is_not(self, how, shape):
        torch.manual_seed(0)
        model = NoGrad("") if how == "no_grad" else Detached(how)
        rep = check(model, torch.randn(shape))
        expected = {"a.weight", "a.bias", "b.weight", "b.bias"}
        assert alarms(rep) == dict.fromkeys(expected, "warning")

    def test_it_is_said_behind_which_layer_none_comes_back(self):
        torch.manual_seed(0)
        rep = check(Detached("detach"), torch.randn(64, 16))
        assert {f.message for f in rep.findings} == {
            "Its gradient is None: none comes back to b, so it is cut off there (detach, no_grad, "
            ".data, argmax)."
        }

    def test_a_module_that_is_never_called(self):
        torch.manual_seed(0)
        model = mlp()
        model.aux = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
        rep = check(model, torch.randn(64, 16), labels(64))
        assert alarms(rep) == dict.fromkeys(
            ["aux.0.weight", "aux.0.bias", "aux.2.weight", "aux.2.bias"], "warning"
        )
        assert {f.message for f in rep.findings} == {"Its gradient is None: aux was never called."}
        assert len([f for f in rep.findings if f.cause is None]) == 1

    def test_a_head_whose_output_is_thrown_away(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head, self.aux = mlp(2), nn.Linear(10, 10), nn.Linear(10, 3)

            def forward(self, x):
                h = self.body(x)
                self.aux(h)
                return self.head(h)

        torch.manual_seed(0)
        rep = check(Net(), torch.randn(64, 16), labels(64))
        assert alarms(rep) == dict.fromkeys(["aux.weight", "aux.bias"], "warning")
        assert "the model's output does not depend on it" in rep.findings[0].message

    def test_a_bare_parameter_nobody_uses(self):
        torch.manual_seed(0)
        model = mlp()
        model.scale = nn.Parameter(torch.ones(3))
        assert alarms(check(model, torch.randn(64, 16), labels(64))) == {"scale": "warning"}

    def test_the_part_a_loss_leaves_out(self):
        class TwoHeads(nn.Module):
            def __init__(self):
                super().__init__()
                self.trunk, self.a, self.b = mlp(2), nn.Linear(10, 10), nn.Linear(10, 1)

            def forward(self, x):
                h = self.trunk(x)
                return self.a(h), self.b(h)

        torch.manual_seed(0)
        x, y = torch.randn(64, 16), labels(64)
        rep = check(TwoHeads(), x, y, loss_fn=lambda out, t: F.cross_entropy(out[0], t))
        assert alarms(rep) == dict.fromkeys(["b.weight", "b.bias"], "warning")

    @pytest.mark.parametrize("seed", range(3))
    def test_a_cut_in_a_transformer_leads_once_and_the_rest_is_folded(self, seed):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.pos = nn.Embedding(20, 16), nn.Parameter(torch.randn(6, 16))
                layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
                self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
                self.head = nn.Linear(16, 10)

            def forward(self, x):
                return self.head(self.encoder(self.embed(x) + self.pos).mean(1).detach())

        torch.manual_seed(seed)
        model, x, y = Net(), torch.randint(0, 20, (32, 6)), labels(32)
        rep = check(model, x, y, select=None)
        none, _ = oracle(model, x, y)
        found = {f.layer for f in rep.findings if f.rule == NAME}
        assert found == none
        assert len(none) == 26
        roots = [f for f in rep.findings if f.cause is None and f.severity != "note"]
        assert [f.rule for f in roots] == [NAME]

    def test_is_laid_to_no_value_since_it_is_how_the_program_is_written(self):
        torch.manual_seed(0)
        model = nn.Sequential(*mlp()[:4], Apply(torch.detach), *mlp()[2:])
        nn.init.constant_(model[7].bias, -100.0)  # a dead layer behind the cut
        rep = check(model, torch.randn(64, 16), labels(64), select=None)
        cut = [f for f in rep.findings if f.layer == "2.weight" and f.rule == NAME]
        dead = [f for f in rep.findings if f.rule == "dead-relu" and f.severity == "error"]
        assert dead
        assert [f.root.rule for f in cut] == [NAME]

    def test_frozen_parameters_need_none(self):
        torch.manual_seed(0)
        model = Detached("detach")
        model.a.requires_grad_(False)
        model.b.requires_grad_(False)
        rep = check(model, torch.randn(64, 16))
        assert rep.findings == ()

    @pytest.mark.parametrize("kind", ["list", "dict"])
    def test_neighbours_in_a_list_that_this_run_skipped_are_a_note(self, kind):
        class Experts(nn.Module):
            def __init__(self):
                super().__init__()
                names = [f"expert_{k}" for k in range(4)]
                experts = [nn.Linear(16, 10) for _ in names]
                self.experts = (
                    nn.ModuleList(experts)
                    if kind == "list"
                    else nn.ModuleDict(dict(zip(names, experts, strict=True)))
                )

            def forward(self, x):
                chosen = list(self.experts if kind == "list" else self.experts.values())
                return chosen[0](x) + chosen[2](x)

        torch.manual_seed(0)
        rep = check(Experts(), torch.randn(64, 16), labels(64))
        assert rep.ok
        assert len(rep.findings) == 4
        assert all("its neighbours in the list were" in f.message for f in rep.findings)

    def test_which_batch_of_a_stream_reaches_a_parameter_does_not_matter(self):
        class Alternating(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(16, 10), nn.Linear(16, 10)

            def forward(self, x):
                return self.a(x) if x.shape[0] == 32 else self.b(x)

        torch.manual_seed(0)
        stream = [(torch.randn(n, 16), labels(n)) for n in (32, 48)]
        rep = nndiag.check(
            Alternating(), stream, loss_fn=F.cross_entropy, select=NAME, config=False
        )
        assert alarms(rep) == {}


class TestExactlyZero:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("form", ["dense", "conv"])
    def test_behind_a_dead_layer_it_is_found_for_each_and_folded_under_it(self, seed, form):
        torch.manual_seed(seed)
        if form == "dense":
            model, x, dead = mlp(), torch.randn(128, 16), "5"
            nn.init.constant_(model[4].bias, -100.0)
        else:
            layers = []
            for k in range(4):
                layers += [nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.ReLU()]
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
            model, x, dead = nn.Sequential(*layers), torch.randn(128, 3, 8, 8), "5"
            nn.init.constant_(model[4].bias, -100.0)
        y = labels(128)
        rep = check(model, x, y, select=None)
        none, zero = oracle(model, x, y)
        own = [f for f in rep.findings if f.rule == NAME]
        assert {f.layer for f in own} == zero
        assert none == set()
        assert len(zero) >= 6
        assert (rep.findings[0].rule, rep.findings[0].layer) == ("dead-relu", dead)
        assert all(f.root is rep.findings[0] for f in own)

    def test_where_weights_make_the_loss_sure_of_itself_they_lead(self):
        torch.manual_seed(0)
        model, x = mlp(activation=nn.LeakyReLU), torch.randn(64, 16)
        with torch.no_grad():
            model[4].weight.mul_(1e9)
        y = model(x).argmax(1)
        _, zero = oracle(model, x, y)
        assert len(zero) == len(list(model.parameters()))
        rep = check(model, x, y, select=None)
        assert (rep.findings[0].rule, rep.findings[0].layer) == ("init-scale", "4")
        assert {f.root.rule for f in rep.findings if f.rule == NAME} == {"init-scale"}

    def test_a_softmax_over_a_single_class_teaches_nobody(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
        rep = check(model, torch.randn(64, 16), torch.zeros(64, dtype=torch.long))
        assert [(f.layer, f.severity) for f in rep.findings] == [("(model)", "error")]
        assert "None of the 4 trainable parameters" in rep.findings[0].message

    def test_recurrent_weights_that_only_ever_saw_the_zero_state(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.head = nn.GRU(16, 24, batch_first=True), nn.Linear(24, 10)

            def forward(self, x):
                return self.head(self.rnn(x.unsqueeze(1))[0][:, -1])  # one step only

        torch.manual_seed(0)
        rep = check(Net(), torch.randn(64, 16), labels(64))
        assert alarms(rep) == {"rnn.weight_hh_l0": "warning"}

    def test_weights_that_read_zeros_are_told_so(self):
        torch.manual_seed(0)
        model = mlp(2)
        rep = check(model, torch.zeros(64, 16), labels(64))
        [first] = [f for f in rep.findings if f.layer == "0.weight"]
        assert "The layer's input is zero on every sample." in first.message

    def test_a_nearly_zero_gradient_is_none_of_this_rules_business(self):
        torch.manual_seed(0)
        model, x, y = mlp(), torch.randn(64, 16), labels(64)
        rep = check(model, x, y, loss_fn=lambda out, t: 1e-20 * F.cross_entropy(out, t))
        assert rep.findings == ()


class TestZeroByConstruction:
    @pytest.mark.parametrize("activation", [None, nn.Sigmoid, nn.Tanh, nn.Softplus])
    def test_before_a_head_that_starts_at_zero(self, activation):
        torch.manual_seed(0)
        model = mlp()
        nn.init.zeros_(model[-1].weight)
        nn.init.zeros_(model[-1].bias)
        if activation is not None:
            model.append(activation())
        x, y = torch.randn(64, 16), torch.rand(64, 10)
        rep = check(model, x, y, loss_fn=F.mse_loss)
        assert rep.findings == ()
        assert len(oracle(model, x, y, F.mse_loss)[1]) >= 8  # it is zero, and no fault

    def test_bare_parameters_before_a_zero_head(self):
        class Vision(nn.Module):
            def __init__(self):
                super().__init__()
                self.cls = nn.Parameter(torch.randn(1, 1, 16))
                self.encoder = nn.Module()
                self.encoder.pos = nn.Parameter(torch.randn(1, 5, 16))
                self.encoder.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
                self.patch, self.head = nn.Linear(12, 16), nn.Linear(16, 10)
                nn.init.zeros_(self.head.weight)

            def forward(self, x):
                h = torch.cat([self.cls.expand(len(x), 1, 16), self.patch(x)], 1)
                return self.head(self.encoder.layer(h + self.encoder.pos)[:, 0])

        torch.manual_seed(0)
        assert alarms(check(Vision(), torch.randn(32, 4, 12), labels(32))) == {}

    @pytest.mark.parametrize("what", ["end", "gamma", "scale"])
    def test_inside_residual_branches_that_start_at_zero(self, what):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32)
                self.norm = nn.BatchNorm1d(32)
                self.scale = nn.Parameter(torch.ones(32))
                {"end": self.down.weight, "gamma": self.norm.weight, "scale": self.scale}[
                    what
                ].data.zero_()
                if what == "end":
                    self.down.bias.data.zero_()

            def forward(self, x):
                return x + self.scale * self.norm(self.down(torch.relu(self.up(x))))

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), Block(), Block(), nn.Linear(32, 10))
        x, y = torch.randn(64, 16), labels(64)
        assert alarms(check(model, x, y)) == {}
        assert len(oracle(model, x, y)[1]) >= 4

    def test_the_input_half_of_a_low_rank_adapter(self):
        class Adapted(nn.Module):
            def __init__(self):
                super().__init__()
                self.base = nn.Linear(16, 32).requires_grad_(False)
                self.a, self.b = nn.Linear(16, 4, bias=False), nn.Linear(4, 32, bias=False)
                self.head = nn.Linear(32, 10)
                nn.init.zeros_(self.b.weight)

            def forward(self, x):
                return self.head(F.relu(self.base(x) + 2.0 * self.b(self.a(x))))

        torch.manual_seed(0)
        assert alarms(check(Adapted(), torch.randn(64, 16), labels(64))) == {}

    def test_what_is_multiplied_by_a_table_that_starts_at_zero(self):
        class SkipGram(nn.Module):  # word2vec
            def __init__(self):
                super().__init__()
                self.center, self.context = nn.Embedding(20, 16), nn.Embedding(20, 16)
                nn.init.zeros_(self.context.weight)

            def forward(self, x):
                return -F.logsigmoid((self.center(x[:, 0]) * self.context(x[:, 1])).sum(-1)).mean()

        torch.manual_seed(0)
        assert alarms(check(SkipGram(), torch.randint(0, 20, (64, 2)))) == {}

    @pytest.mark.parametrize("dropout", [False, True])
    def test_a_bias_that_a_normalisation_takes_out_again(self, dropout):
        torch.manual_seed(0)
        layers = [nn.Linear(16, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(32, 10)).train(dropout)
        model[2].train()
        rep = check(model, torch.randn(64, 16), labels(64))
        assert alarms(rep) == {}
        # Rounding decides whether its gradient is 1e-9 or 0: neither is a fault.
        p = rep.snapshot.parameter["0.bias"]
        grad = replace(p.grad, zeros=p.grad.total, mean=0.0, m2=0.0, min=0.0, max=0.0)
        exact = replace(rep.snapshot, parameters=tuple(
            replace(q, grad=grad) if q is p else q for q in rep.snapshot.parameters
        ))  # fmt: skip
        assert judge.judge(exact, NAME).findings == ()

    def test_a_bias_the_loss_does_not_depend_on_is_a_note(self):
        torch.manual_seed(0)
        critic = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
        sign = torch.tensor([1.0, -1.0]).repeat(32).unsqueeze(1)
        rep = check(critic, torch.randn(64, 16), sign, loss_fn=lambda out, s: (out * s).mean())
        assert [(f.layer, f.severity) for f in rep.findings] == [("2.bias", "note")]

    @pytest.mark.parametrize("zero_head", [True, False])
    def test_zero_weights_in_the_middle_are_no_construction_but_symmetrys(self, zero_head):
        torch.manual_seed(0)
        model = mlp(activation=nn.Tanh)
        nn.init.zeros_(model[4].weight)
        rep = check(model, torch.randn(64, 16), labels(64), select=None)
        own = [f for f in rep.findings if f.rule == NAME]
        assert own
        assert {f.root.rule for f in own} == {"symmetry"}


class TestTheBackwardPass:
    def test_that_raises_is_an_error_of_the_model_with_its_message(self):
        class Raises(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, grad):
                raise RuntimeError("shapes do not fit")

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 10)

            def forward(self, x):
                return self.head(Raises.apply(self.body(x)))

        torch.manual_seed(0)
        rep = check(Net(), torch.randn(64, 16), labels(64))
        assert [(f.layer, f.severity) for f in rep.findings] == [("(model)", "error")]
        assert "shapes do not fit" in rep.findings[0].message

    def test_is_not_asked_for_where_nothing_trains(self):
        torch.manual_seed(0)
        model = mlp().requires_grad_(False)
        assert check(model, torch.randn(64, 16)).findings == ()


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_healthy_network_is_quiet_whatever_the_loss(factor, classes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, classes))
    rep = check(
        model, torch.randn(64, 16), torch.randint(0, classes, (64,)),
        loss_fn=lambda out, t: factor * F.cross_entropy(out, t, reduction="sum"),
    )  # fmt: skip
    assert rep.findings == ()
    assert math.isfinite(rep.snapshot.loss.value)


def test_a_forgotten_layer_beside_numbered_ones_is_no_skipped_element_of_a_list():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.fc3(torch.tanh(self.fc1(x)))

    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.Linear(8, 2))
    rep = nndiag.check(model, torch.randn(64, 8), select="no-gradient", config=False)

    assert {f.severity for f in rep.findings} == {"warning"}


def test_a_zero_token_does_not_excuse_what_lies_before_a_learned_scale():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.scale = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(8))
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head((self.body(x) * self.scale).clamp(max=-100) + self.token)

    torch.manual_seed(0)
    rep = nndiag.check(Net(), torch.randn(64, 8), select="no-gradient", config=False)

    assert "body.weight" in {f.layer for f in rep.findings if f.severity == "warning"}


def equal_head(body, classes=4):
    """A head of equal weights; powers of two, so that what cancels is exactly zero."""
    head = nn.Linear(32, classes)
    nn.init.constant_(head.weight, 0.125)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*body, head)


def test_before_a_head_whose_rows_start_equal_it_is_zero_by_construction():
    torch.manual_seed(0)
    model = equal_head(mlp()[:-1])
    x, y = torch.randn(64, 16), torch.randint(0, 4, (64,))

    assert check(model, x, y).findings == ()
    assert len(oracle(model, x, y)[1]) == 8  # all but the head's own


def test_a_head_of_one_row_is_equal_to_no_other_and_excuses_nothing():
    torch.manual_seed(0)
    model = equal_head(mlp(1)[:-1], classes=1)
    nn.init.constant_(model[0].bias, -100.0)
    rep = check(model, torch.randn(64, 16), torch.randn(64, 1), loss_fn=F.mse_loss)

    assert alarms(rep) == dict.fromkeys(["0.weight", "0.bias", "2.weight"], "warning")


def test_a_head_whose_rows_differ_excuses_nothing():
    torch.manual_seed(0)
    model = mlp(1)
    nn.init.constant_(model[0].bias, -100.0)

    assert "0.weight" in alarms(check(model, torch.randn(64, 16), labels(64)))


def test_equal_rows_side_by_side_in_the_middle_are_no_head_and_excuse_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
            self.left, self.right = nn.Linear(32, 32), nn.Linear(32, 32)
            nn.init.constant_(self.body.bias, -100.0)
            nn.init.constant_(self.left.weight, 0.1)
            nn.init.constant_(self.right.weight, 0.1)

        def forward(self, x):
            h = torch.relu(self.body(x))
            return self.head(torch.tanh(self.left(h)) + torch.tanh(self.right(h)))

    torch.manual_seed(0)
    assert "body.weight" in alarms(check(Net(), torch.randn(64, 16), labels(64)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_what_only_training_calls_is_a_note_in_evaluation_mode_and_no_fault_in_training(mode):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aux = mlp(2), nn.Linear(10, 10)

        def forward(self, x):
            out = self.body(x)
            return out + self.aux(out) if self.training else out

    torch.manual_seed(0)
    rep = check(Net().train(mode == "train"), torch.randn(64, 16), labels(64))

    assert rep.ok
    found = {f.layer: f.severity for f in rep.findings}
    assert found == ({} if mode == "train" else {"aux.weight": "note", "aux.bias": "note"})
    assert all("in evaluation mode" in f.message for f in rep.findings)


class TwoWeights(nn.Module):
    """Both weights are the model's own; nothing comes back to the second."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(10, 16))
        self.b = nn.Parameter(torch.randn(10, 16))

    def forward(self, x):
        return F.linear(x, self.a) + F.linear(x, self.b).detach()


def test_a_weight_is_looked_for_at_the_call_that_uses_it():
    torch.manual_seed(0)
    [found] = check(TwoWeights(), torch.randn(64, 16)).findings

    assert found.layer == "b"
    assert "none comes back to /linear#2, " in found.message


class Affine(nn.Module):
    """A model without a single layer, whose shift is switched off."""

    def __init__(self):
        super().__init__()
        self.scale_and_shift = nn.ParameterList([torch.ones(10), torch.ones(10)])

    def forward(self, x):
        scale, shift = self.scale_and_shift
        return x * scale + 0 * shift


def test_where_there_are_no_layers_no_zero_is_by_construction():
    torch.manual_seed(0)
    rep = check(Affine(), torch.randn(64, 10), labels(64))

    assert rep.snapshot.layers == ()
    assert alarms(rep) == {"scale_and_shift.1": "warning"}


class Functional(nn.Module):
    def __init__(self, function, units=1):
        super().__init__()
        self.body, self.head = nn.Linear(16, 8), nn.Linear(8, units)
        self.function = function

    def forward(self, x):
        return self.function(self.head(torch.tanh(self.body(x))))


class TestWhereItEnds:
    @pytest.mark.parametrize(
        "softmax", [nn.Softmax(1), lambda x: F.softmax(x, 1), lambda x: x.log_softmax(-1)]
    )
    def test_at_a_softmax_over_one_unit(self, softmax):
        torch.manual_seed(0)
        rep = check(Functional(softmax), torch.randn(64, 16), torch.rand(64, 1), F.mse_loss)
        [found] = rep.findings
        assert (found.layer, found.severity) == ("(model)", "error")
        assert "softmax over one unit at " in found.message
        assert found.origin in rep.snapshot.by_name
        assert "Identity" in found.fixes[0].what

    def test_the_fix_for_a_probability_is_a_sigmoid_and_it_helps(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1), nn.Softmax(1))
        x, y = torch.randn(64, 16), torch.randint(0, 2, (64, 1)).float()
        [found] = check(model, x, y, F.binary_cross_entropy).findings
        found.fixes[0].apply(model)
        assert isinstance(model[3], nn.Sigmoid)
        assert check(model, x, y, F.binary_cross_entropy).findings == ()

    def test_at_an_output_relu_that_is_off_on_every_sample(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1), nn.ReLU())
        nn.init.constant_(model[2].bias, -10.0)
        x = torch.randn(7, 1)
        [found] = check(model, x, x, F.mse_loss).findings
        assert "the output ReLU is off on 7 of 7 samples" in found.message
        assert found.origin == "3"
        found.fixes[0].apply(model)
        assert alarms(check(model, x, x, F.mse_loss)) == {}

    def test_in_the_loss(self):
        torch.manual_seed(0)
        model, x = mlp(2), torch.randn(64, 16)
        rep = check(model, x, labels(64), lambda out, t: out.clamp(50, 60).mean())
        [found] = rep.findings
        assert found.origin == ""
        assert "dL/doutput is zero on all 64 rows" in found.message

    def test_rows_of_the_output_without_a_gradient_are_counted(self):
        torch.manual_seed(0)
        rep = check(mlp(2), torch.randn(64, 16), labels(64), lambda out, t: out[:10].square().sum())
        assert rep.snapshot.experiment.output_rows == 64
        assert rep.snapshot.experiment.output_zero_rows == 54

    def test_a_single_layer_is_told_where_its_gradient_ends(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.score, self.value = nn.Linear(16, 1), nn.Linear(16, 8)
                self.head = nn.Linear(8, 10)

            def forward(self, x):
                weights = F.softmax(self.score(x).flatten(0, 1), dim=1).view(*x.shape[:2], 1)
                return self.head((weights * self.value(x)).sum(1))

        torch.manual_seed(0)
        rep = check(Attention(), torch.randn(32, 5, 16), labels(32))
        assert alarms(rep) == {"score.weight": "warning", "score.bias": "warning"}
        assert [f.layer for f in rep.findings if f.cause is None] == ["score.weight"]
        assert "softmax over one unit" in rep.findings[0].message

    @pytest.mark.parametrize("scale", [1.0, 1e4])
    def test_nothing_before_it_explains_it(self, scale):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1), nn.Softmax(1)
        )  # at 1e4 the first layer is saturated
        x = scale * torch.randn(128, 8)
        rep = check(model, x, torch.rand(128, 1), F.mse_loss, select=None)
        [own] = [f for f in rep.findings if f.rule == NAME]
        assert own.severity == "error"
        assert own.root.rule == "degenerate-softmax"

    def test_none_and_zero_have_different_fixes(self):
        torch.manual_seed(0)
        none = check(Detached("detach"), torch.randn(64, 16)).findings[0]
        model = mlp(2)
        nn.init.constant_(model[2].bias, -100.0)
        zero = check(model, torch.randn(64, 16), labels(64)).findings[0]
        assert not {f.what for f in none.fixes} & {f.what for f in zero.fixes}
        assert zero.fixes[0].runnable


class Dropped(nn.Module):
    """A residual branch that is dropped for each sample, by chance."""

    def __init__(self, rate):
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.rate = rate

    def forward(self, x):
        h = self.stem(x)
        keep = (torch.rand(len(h), 1) >= self.rate).float()
        return self.head(h + keep * self.branch(h))


class Gated(nn.Module):
    """As in Flamingo: a branch behind the tanh of a gate that starts at zero."""

    def __init__(self):
        super().__init__()
        self.stem, self.left = nn.Linear(16, 16), nn.Linear(16, 16)
        self.gate, self.head = nn.Parameter(torch.zeros(1)), nn.Linear(16, 10)

    def forward(self, x):
        h = self.stem(x)
        return self.head(h + torch.tanh(self.gate) * torch.tanh(self.left(h)))


class TestTheSecondLook:
    def test_a_branch_that_was_dropped_for_the_whole_batch_is_a_note(self):
        torch.manual_seed(0)
        model, x, y = Dropped(0.6), torch.randn(2, 16), labels(2)
        seeds = [
            seed for seed in range(8)
            if (torch.manual_seed(seed), (torch.rand(2, 1) < 0.6).all())[1]
        ]  # fmt: skip
        rep = nndiag.check(
            model, (x, y), loss_fn=F.cross_entropy, select=NAME, config=False, seed=seeds[0]
        )
        assert {f.severity for f in rep.findings} == {"note"}
        assert "With another seed" in rep.findings[0].message
        assert rep.snapshot.parameter["branch.weight"].again == "other seed"

    def test_a_branch_that_is_always_dropped_is_an_alarm(self):
        torch.manual_seed(0)
        rep = check(Dropped(1.0), torch.randn(2, 16), labels(2))
        assert alarms(rep) == {"branch.weight": "warning", "branch.bias": "warning"}

    def test_what_lies_before_a_factor_that_starts_at_zero_is_no_alarm(self):
        torch.manual_seed(0)
        model, x, y = Gated(), torch.randn(64, 16), labels(64)
        assert "left.weight" in oracle(model, x, y)[1]
        assert alarms(check(model, x, y)) == {}

    def test_a_dead_layer_stays_an_alarm(self):
        torch.manual_seed(0)
        model = mlp(2)
        nn.init.constant_(model[2].bias, -100.0)
        rep = check(model, torch.randn(64, 16), labels(64))
        assert set(alarms(rep)) == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight"}
        assert {rep.snapshot.parameter[name].again for name in alarms(rep)} == {"never"}

    def test_it_leaves_the_model_and_the_generators_as_they_were(self):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Dropout(0.2), Gated()), torch.randn(64, 16)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        state = torch.get_rng_state()
        rep = nndiag.check(
            model, (x, torch.arange(64) % 10), loss_fn=F.cross_entropy, select=NAME, config=False
        )
        assert rep.snapshot.parameter["1.left.weight"].again == "later step"
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())

    def test_a_model_that_fails_when_it_runs_again_is_judged_as_it_is(self):
        runs = []

        class Once(Dropped):
            def forward(self, x):
                runs.append(1)
                if len(runs) > 1:
                    raise RuntimeError("once")
                return super().forward(x)

        torch.manual_seed(0)
        rep = check(Once(1.0), torch.randn(64, 16), labels(64))
        assert alarms(rep) == {"branch.weight": "warning", "branch.bias": "warning"}
        assert rep.snapshot.parameter["branch.weight"].again == ""

    def test_a_healthy_model_is_not_run_again(self):
        runs = []
        torch.manual_seed(0)
        model = mlp(2)
        model.register_forward_hook(lambda *_: runs.append(1))
        check(model, torch.randn(64, 16), labels(64))
        assert len(runs) == 1


class TestPartsOfAnInstalledLibrary:
    @pytest.fixture
    def installed(self, monkeypatch):
        """A module class as if it came from site-packages: it has a head that it does not use."""

        class Base(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.pooler = nn.Linear(16, 10), nn.Linear(10, 10)

            def forward(self, x):
                return self.body(x)

        name = "a_library_of_models"
        library = ModuleType(name)
        library.__file__ = f"/usr/lib/site-packages/{name}/__init__.py"
        monkeypatch.setitem(sys.modules, name, library)
        Base.__module__ = name
        return Base

    def test_are_a_note_where_others_of_it_learn(self, installed):
        torch.manual_seed(0)
        for model in (installed(), nn.Sequential(installed())):
            rep = check(model, torch.randn(64, 16), labels(64))
            assert [f.severity for f in rep.findings] == ["note", "note"]
            assert "its library builds it" in rep.findings[0].message

    def test_are_an_alarm_where_nothing_of_it_learns(self, installed):
        torch.manual_seed(0)
        model = nn.Sequential(installed(), Apply(torch.detach), nn.Linear(10, 10))
        rep = check(model, torch.randn(64, 16), labels(64))
        assert set(alarms(rep)) == {"0.body.weight", "0.body.bias", "0.pooler.weight",
                                    "0.pooler.bias"}  # fmt: skip

    def test_a_class_of_the_users_own_is_judged_as_ever(self, installed):
        class Mine(installed):
            pass

        Mine.__module__ = __name__
        torch.manual_seed(0)
        rep = check(Mine(), torch.randn(64, 16), labels(64))
        assert set(alarms(rep)) == {"pooler.weight", "pooler.bias"}


class TestAMinimum:
    def test_a_perfect_fit_is_a_note(self):
        torch.manual_seed(0)
        model, x = mlp(1), torch.randn(64, 16)
        rep = check(model, x, model(x).detach(), F.mse_loss)
        assert [f.severity for f in rep.findings] == ["note"]

    def test_residuals_that_sum_to_exactly_zero_are_a_note(self):
        model = nn.Linear(1, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        x = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]])
        rep = check(model, x, torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), F.mse_loss)
        assert [f.severity for f in rep.findings] == ["note"]
        assert oracle(model, x, x * 0 + torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), F.mse_loss)[1]

    def test_a_loss_that_is_zero_for_another_reason_is_an_error(self):
        torch.manual_seed(0)
        rep = check(
            mlp(1), torch.randn(64, 16), labels(64), lambda out, t: F.relu(out - 1e6).mean()
        )
        assert alarms(rep) == {"(model)": "error"}
