"""symmetry: constant, zero and duplicated units, and whether gradients keep them equal."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag import judge
from nndiag.stats import Layer, Loss, Node, Parameter, Snapshot, TensorStats, Weight

NAME = "symmetry"


def mlp(activation=nn.ReLU, depth=4, width=32, inputs=16):
    layers = []
    for k in range(depth):
        layers += [nn.Linear(width if k else inputs, width), activation()]
        nn.init.kaiming_normal_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers, nn.Linear(width, 10))


def data(n=64):
    return torch.randn(n, 16), torch.randint(0, 10, (n,))


def check(model, x, y, select=NAME):
    return nndiag.check(model, (x, y), loss_fn=F.cross_entropy, select=select, config=False)


def findings(model, x, y):
    return [(f.layer, f.severity) for f in check(model, x, y).findings]


def trained(model, x, y, steps=20, lr=0.1):
    """What really becomes of the units: the oracle."""
    model = copy.deepcopy(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


def distinct_units(layer):
    return len(torch.unique((layer.weight.detach() * 1e4).round(), dim=0))


class TestConstantWeights:
    @pytest.mark.parametrize("value", [0.05, -0.05, 0.0])
    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
    def test_in_every_layer_stay_equal_for_ever(self, value, activation):
        torch.manual_seed(0)
        model, (x, y) = mlp(activation), data()
        for layer in model[::2]:
            nn.init.constant_(layer.weight, value)
        rep = check(model, x, y)

        assert {(f.layer, f.severity) for f in rep.findings} == {
            (str(k), "error") for k in (0, 2, 4, 6)
        }
        assert [f.layer for f in rep.findings if f.cause is None] == ["0"]
        assert distinct_units(trained(model, x, y)[2]) == 1  # and they do

    @pytest.mark.parametrize("value", [0.05, 0.0])
    def test_in_one_layer_are_a_warning_where_the_first_update_tells_the_units_apart(self, value):
        torch.manual_seed(0)
        model, (x, y) = mlp(nn.Tanh), data()
        nn.init.constant_(model[4].weight, value)
        [found] = check(model, x, y).findings

        assert (found.layer, found.severity) == ("4", "warning")
        assert "Their gradients differ" in found.message
        assert distinct_units(trained(model, x, y)[4]) == 32

    def test_with_random_biases_are_found_too(self):
        torch.manual_seed(0)
        model, (x, y) = mlp(nn.Tanh), data()
        nn.init.constant_(model[2].weight, 0.1)
        nn.init.uniform_(model[2].bias, -0.2, 0.2)
        [found] = check(model, x, y).findings
        assert (found.layer, found.severity) == ("2", "warning")
        assert "the same weights, all 0.1; only their biases differ" in found.message

    def test_a_relu_layer_of_zeros_never_wakes_and_is_an_error(self):
        torch.manual_seed(0)
        model, (x, y) = mlp(nn.ReLU), data()
        nn.init.zeros_(model[4].weight)
        assert findings(model, x, y) == [("4", "error")]
        assert not trained(model, x, y)[4].weight.any()

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(("activation", "value"), [(nn.Tanh, 0.0), (nn.ReLU, 0.0),
                                                       (nn.ReLU, 0.1)])  # fmt: skip
    def test_in_the_middle_lead_the_whole_report(self, seed, activation, value):
        torch.manual_seed(seed)
        model, (x, y) = mlp(activation, depth=6), data(256)
        nn.init.constant_(model[6].weight, value)
        rep = check(model, x, y, select=None)
        roots = [f for f in rep.findings if f.cause is None and f.severity != "note"]
        assert (roots[0].rule, roots[0].layer) == (NAME, "6")
        assert rep.findings[0] is roots[0]

    def test_a_layer_of_one_input_is_told_apart_by_its_biases(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 10))
        nn.init.ones_(model[0].weight)  # hinges at different places
        x = torch.randn(64, 1)
        assert findings(model, x, torch.randint(0, 10, (64,))) == []

    def test_in_a_functional_layer_and_in_one_of_sequences(self):
        class Functional(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Parameter(torch.randn(32, 16) / 4)
                self.b = nn.Parameter(torch.full((32, 32), 0.1))
                self.c = nn.Parameter(torch.randn(10, 32) / 4)

            def forward(self, x):
                h = torch.tanh(F.linear(x, self.a))
                return F.linear(torch.tanh(h @ self.b), self.c).mean(1)

        torch.manual_seed(0)
        x, y = torch.randn(64, 5, 16), torch.randint(0, 10, (64,))
        [(layer, severity)] = findings(Functional(), x, y)
        assert severity == "warning"
        assert layer in ("/linear#2", "/matmul")

    @pytest.mark.parametrize("value", [0.02, 0.0])
    def test_of_convolutions(self, value):
        torch.manual_seed(0)
        layers = []
        for k in range(3):
            layers += [nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.Tanh()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        x, y = torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,))
        assert findings(model, x, y) == []
        nn.init.constant_(model[2].weight, value)
        nn.init.zeros_(model[2].bias)
        assert findings(model, x, y) == [("2", "warning")]
        nn.init.constant_(model[4].weight, value)
        nn.init.zeros_(model[4].bias)
        nn.init.constant_(model[8].weight, value)
        assert ("4", "error") in findings(model, x, y)

    def test_averaging_kernels_of_a_depthwise_convolution_are_different_units(self):
        torch.manual_seed(0)
        blur = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        nn.init.constant_(blur.weight, 1 / 9)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), blur, nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
        x, y = torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,))
        model(x)
        assert [s for _, s in findings(model, x, y) if s != "note"] == []


class TestDuplicatedUnits:
    def twins(self, pairs, outgoing=True):
        torch.manual_seed(0)
        model = mlp()
        with torch.no_grad():
            for k in range(pairs):
                model[2].weight[2 * k + 1] = model[2].weight[2 * k]
                if outgoing:
                    model[4].weight[:, 2 * k + 1] = model[4].weight[:, 2 * k]
        return model

    @pytest.mark.parametrize(
        ("pairs", "expected"), [(0, []), (1, ["note"]), (2, ["warning"]), (8, ["warning"]),
                                (16, ["error"])]
    )  # fmt: skip
    def test_with_equal_gradients_are_a_warning_from_a_tenth_of_the_units_on(self, pairs, expected):
        # 2 of 32 units are 6 %, 4 are 12 %
        model, (x, y) = self.twins(pairs), data()
        found = check(model, x, y).findings
        assert [f.severity for f in found] == expected
        for f in found:
            assert f.layer == "2"
            assert f.evidence["kept_equal"] == 2 * pairs
            assert f.evidence["share"] == pytest.approx(2 * pairs / 32)
        assert distinct_units(trained(model, x, y)[2]) == 32 - pairs

    @pytest.mark.parametrize("pairs", [1, 8, 16])
    def test_whose_gradients_differ_are_a_note(self, pairs):
        # Net2Net widens a network like this.
        model, (x, y) = self.twins(pairs, outgoing=False), data()
        [found] = check(model, x, y).findings
        assert found.severity == "note"
        assert "the first update makes them differ" in found.message
        assert distinct_units(trained(model, x, y)[2]) == 32

    def test_that_differ_in_their_bias_are_no_twins(self):
        model, (x, y) = self.twins(8), data()
        with torch.no_grad():
            model[2].bias += torch.randn(32) / 10
        assert findings(model, x, y) == []

    def test_in_several_batches_must_stay_equal_in_each(self):
        model = self.twins(8)
        stream = [data(32) for _ in range(3)]
        rep = nndiag.check(model, stream, loss_fn=F.cross_entropy, select=NAME, config=False)
        assert [(f.layer, f.severity) for f in rep.findings] == [("2", "warning")]

    def test_whether_gradients_keep_them_equal_is_not_claimed_unseen(self):
        model, (x, _) = self.twins(8), data()
        model.requires_grad_(False)
        [found] = nndiag.check(model, x, select=NAME, config=False).findings
        assert found.severity == "note"
        assert "No gradients were measured" in found.message


class Residual(nn.Module):
    def __init__(self, blocks=3, width=32):
        super().__init__()
        self.stem = nn.Linear(16, width)
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x)


class TestZeroOnPurpose:
    def test_a_zero_head_is_no_fault(self):
        torch.manual_seed(0)
        model, (x, y) = mlp(), data()
        nn.init.zeros_(model[-1].weight)
        assert findings(model, x, y) == []

    @pytest.mark.parametrize("zero_head", [False, True])
    def test_nor_is_the_zero_end_of_a_residual_branch(self, zero_head):
        torch.manual_seed(0)
        model, (x, y) = Residual(), data()
        for layer in [*model.down, *([model.head] if zero_head else [])]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        assert [s for _, s in findings(model, x, y) if s != "note"] == []

    def test_nor_is_fixups_where_a_learned_scale_lies_between_and_the_head_is_zero_too(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)
                self.scale = nn.Parameter(torch.ones(1))
                nn.init.zeros_(self.down.weight)

            def forward(self, x):
                return torch.relu(x + self.down(torch.relu(self.up(x))) * self.scale)

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), Block(), Block(), nn.Linear(32, 10))
        nn.init.zeros_(model[-1].weight)
        assert findings(model, *data()) == []

    def test_but_a_branch_of_zeros_only_never_wakes(self):
        torch.manual_seed(0)
        model, (x, y) = Residual(), data()
        for layer in (model.up[1], model.down[1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        assert findings(model, x, y) == [("up.1", "error")]
        assert not trained(model, x, y).up[1].weight.any()

    def test_nor_the_zero_half_of_a_low_rank_adapter(self):
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
        assert [s for _, s in findings(Adapted(), *data()) if s != "note"] == []

    def test_zero_biases_are_fine(self):
        torch.manual_seed(0)
        assert findings(mlp(), *data()) == []

    def test_a_padding_row_of_zeros_in_an_embedding_is_fine(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Embedding(20, 16, padding_idx=0), nn.Flatten(), nn.Linear(80, 32), nn.ReLU(),
            nn.Linear(32, 10),
        )  # fmt: skip
        assert findings(model, torch.randint(0, 20, (64, 5)), torch.randint(0, 10, (64,))) == []

    @pytest.mark.parametrize("value", [0.0, 0.1])
    def test_but_an_embedding_without_a_difference_between_tokens_is_found(self, value):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(20, 16), nn.Flatten(), nn.Linear(80, 10))
        nn.init.constant_(model[0].weight, value)
        x, y = torch.randint(0, 20, (64, 5)), torch.randint(0, 10, (64,))
        assert findings(model, x, y) == [("0", "warning")]

    def test_and_a_table_of_zeros_that_is_added_is_not(self):
        class Typed(nn.Module):
            def __init__(self):
                super().__init__()
                self.tokens, self.types = nn.Embedding(20, 16), nn.Embedding(2, 16)
                self.head = nn.Linear(16, 10)
                nn.init.zeros_(self.types.weight)

            def forward(self, x):
                return self.head((self.tokens(x) + self.types(x % 2)).mean(1))

        torch.manual_seed(0)
        x, y = torch.randint(0, 20, (64, 5)), torch.randint(0, 10, (64,))
        assert findings(Typed(), x, y) == []

    def test_but_a_branch_of_constant_weights_is_found(self):
        torch.manual_seed(0)
        model, (x, y) = Residual(), data()
        nn.init.constant_(model.up[1].weight, 0.1)
        nn.init.zeros_(model.up[1].bias)
        nn.init.constant_(model.down[1].weight, 0.1)
        assert ("up.1", "error") in findings(model, x, y)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(16, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
class TestRecurrentLayers:
    def test_of_constant_matrices_are_found(self, kind):
        torch.manual_seed(0)
        model = Recurrent(kind)
        x, y = torch.randn(32, 6, 16), torch.randint(0, 10, (32,))
        assert findings(model, x, y) == []
        for p in model.rnn.parameters():
            nn.init.constant_(p, 0.1)
        assert findings(model, x, y) == [("rnn", "warning")]
        nn.init.constant_(model.head.weight, 0.1)
        assert findings(model, x, y) == [("rnn", "error")]

    def test_of_orthogonal_or_identity_matrices_are_quiet(self, kind):
        torch.manual_seed(0)
        model = Recurrent(kind)
        for name, p in model.rnn.named_parameters():
            if "weight_hh" in name:
                nn.init.eye_(p)
            elif "bias" in name:
                nn.init.zeros_(p)
        assert findings(model, torch.randn(32, 6, 16), torch.randint(0, 10, (32,))) == []


class Steps(nn.Module):
    """A recurrent network written out: what reads the input and what reads the state are added."""

    def __init__(self):
        super().__init__()
        self.x, self.h = nn.Linear(4, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        h = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            h = torch.tanh(self.x(step) + self.h(h))
        return self.head(h)


def test_a_layer_called_at_every_step_is_passed_by_all_that_enters_though_not_by_each_call():
    torch.manual_seed(0)
    model, x = Steps(), torch.randn(64, 6, 4)
    assert check(model, x, torch.randint(0, 10, (64,))).ok
    nn.init.constant_(model.x.weight, 0.1)
    found = findings(model, x, torch.randint(0, 10, (64,)))
    assert found == [("x", "warning")]


def test_dropout_and_normalisation_do_not_hide_constant_weights():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32),
        nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10),
    )  # fmt: skip
    nn.init.constant_(model[4].weight, 0.1)
    assert findings(model, *data()) == [("4", "warning")]


@pytest.mark.parametrize(
    ("kept", "expected"), [(2, "note"), (9, "note"), (10, "warning"), (99, "warning"),
                           (100, "error")]
)  # fmt: skip
def test_the_boundary_lies_at_a_tenth_of_the_units(kept, expected):
    def counts(n):
        return TensorStats(64, n, 0, 0, 0, 0.0, 1.0 * n, -1.0, 1.0)

    layers = tuple(
        Layer(name, "Linear", "linear", (64, 100), k + 1, counts(6400), counts(6400),
              weight=Weight(f"{name}.weight", None, 100, 100))
        for k, name in enumerate("ab")
    )  # fmt: skip
    parameters = tuple(
        Parameter(f"{name}.weight", (100, 100), "float32", True, counts(10_000), counts(10_000),
                  duplicate_units=same, duplicate_kept=same)
        for name, same in (("a", kept), ("b", 0))
    )  # fmt: skip
    nodes = (Node("input"), Node("linear", (0,), 0), Node("linear", (1,), 1))
    snapshot = Snapshot("Net", layers, nodes, parameters, {"input": counts(6400)}, Loss("loss_fn"),
                        64, 1, outputs=(2,), has_gradients=True)  # fmt: skip
    [found] = judge.judge(snapshot, NAME).findings
    assert (found.layer, found.severity, found.threshold) == ("a", expected, 0.1)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20])
def test_units_with_different_gradients_differ_however_small_those_are(scale):
    torch.manual_seed(0)
    model, (x, y) = mlp(nn.Tanh), data()
    nn.init.constant_(model[2].weight, 0.05)  # what follows tells its units apart

    report = nndiag.check(
        model, x, y, lambda output, y: scale * F.cross_entropy(output, y), select=NAME, config=False
    )

    assert [(f.layer, f.severity) for f in report.findings] == [("2", "warning")]


class Doubled(nn.Module):
    def forward(self, x):
        return x + x


def test_a_layer_whose_output_is_added_to_itself_is_no_end_of_a_branch():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32, bias=False), Doubled(), nn.Linear(32, 10)
    )
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[4].weight)  # no gradient comes back in the first step

    assert findings(model, *data()) == [("2", "error")]


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 12, 3), nn.ConvTranspose2d(8, 4, 3)], ids=["conv", "transposed"]
)
def test_a_convolution_of_one_group_with_constant_kernels_works_as_one_unit(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), copy.deepcopy(layer), nn.Tanh(),
                          nn.Flatten(), nn.LazyLinear(10))  # fmt: skip
    nn.init.constant_(model[2].weight, 0.05)
    x, y = torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,))
    model(x)

    assert findings(model, x, y) == [("2", "warning")]


def test_groups_with_constant_kernels_see_different_inputs_and_are_a_note():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=4), nn.Tanh(),
                          nn.Flatten(), nn.LazyLinear(10))  # fmt: skip
    nn.init.constant_(model[2].weight, 0.05)
    x, y = torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,))
    model(x)

    assert findings(model, x, y) == [("2", "note")]


def test_two_units_are_enough_to_be_equal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 2), nn.Tanh(), nn.Linear(2, 10))
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, 0.1)
        nn.init.zeros_(layer.bias)

    assert findings(model, *data()) == [("0", "error")]


def test_two_equal_units_of_sixteen_are_said_to_stay_equal():
    torch.manual_seed(0)
    model, (x, y) = mlp(width=16), data()
    with torch.no_grad():
        model[2].weight[1] = model[2].weight[0]
        model[4].weight[:, 1] = model[4].weight[:, 0]
    [found] = check(model, x, y).findings

    assert (found.severity, found.evidence["kept_equal"]) == ("warning", 2)
    assert found.summary == "2 of 16 units of 2 will stay equal."


def test_of_an_embedding_of_constants_all_tokens_are_equal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 16), nn.Flatten(), nn.Linear(80, 10))
    nn.init.constant_(model[0].weight, 0.1)
    [found] = check(model, torch.randint(0, 20, (64, 5)), torch.randint(0, 10, (64,))).findings

    assert found.evidence["equal_units"] == found.evidence["units"] == 20
    assert found.evidence["share"] == 1


class Tempered(nn.GRU):
    """A recurrent layer with a single number of its own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.temperature = nn.Parameter(torch.tensor(1.0))


def test_a_single_number_beside_constant_matrices_makes_no_difference():
    torch.manual_seed(0)
    model = Recurrent(Tempered)
    for p in model.rnn.parameters():
        nn.init.constant_(p, 0.1)

    found = findings(model, torch.randn(32, 6, 16), torch.randint(0, 10, (32,)))
    assert found == [("rnn", "warning")]
