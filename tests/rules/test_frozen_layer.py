"""frozen-layer: frozen weights with trainable ones before and behind; fine-tuning is no fault."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "frozen-layer"


def findings(model, x):
    torch.manual_seed(1)
    return list(nndiag.check(model, x, select=NAME, config=False).findings)


def alarms(model, x):
    return [f.layer for f in findings(model, x) if f.severity != "note"]


def mlp(depth=4, width=32):
    layers = []
    for k in range(depth):
        layers += [nn.Linear(width if k else 16, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(32, 16) / 4)
        self.b = nn.Parameter(torch.randn(32, 32) / 4)
        self.c = nn.Parameter(torch.randn(10, 32) / 4)

    def forward(self, x):
        return F.linear(F.relu(F.linear(F.relu(F.linear(x, self.a)), self.b)), self.c)


class Text(nn.Module):
    """An embedding, something in the middle, a head."""

    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.middle = {
            "lstm": lambda: nn.LSTM(16, 16, batch_first=True),
            "gru": lambda: nn.GRU(16, 16, batch_first=True),
            "attention": lambda: nn.MultiheadAttention(16, 2, batch_first=True),
            "encoder": lambda: nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True),
        }[kind]()
        self.head = nn.Linear(16, 10)
        self.kind = kind

    def forward(self, x):
        h = self.embed(x)
        if self.kind == "attention":
            h = h + self.middle(h, h, h, need_weights=False)[0]
        elif self.kind == "encoder":
            h = self.middle(h)
        else:
            h = self.middle(h)[0]
        return self.head(h[:, -1])


class TestInTheMiddle:
    @pytest.mark.parametrize("layer", [2, 4, 6])
    @pytest.mark.parametrize("shape", [(64, 16), (8, 5, 16)])
    def test_one_dense_layer_is_a_warning_and_leads(self, layer, shape):
        torch.manual_seed(0)
        model = mlp()
        model[layer].requires_grad_(False)
        rep = nndiag.check(model, torch.randn(shape), config=False)
        assert [(f.rule, f.layer, f.severity) for f in rep.findings if f.severity != "note"] == [
            (NAME, str(layer), "warning")
        ]
        assert f"{layer}.weight is frozen" in rep.findings[0].message

    def test_can_be_made_to_train_or_the_rule_be_ignored(self):
        torch.manual_seed(0)
        model = mlp()
        model[2].requires_grad_(False)
        [found] = findings(model, torch.randn(64, 16))
        train, ignore = found.fixes
        assert train.runnable
        assert ignore.what == "If it is intended, ignore frozen-layer for this model."

    def test_a_convolution(self):
        torch.manual_seed(0)
        layers = []
        for k in range(3):
            layers += [nn.Conv2d(8 if k else 3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))
        model[3].weight.requires_grad_(False)
        assert alarms(model, torch.randn(16, 3, 8, 8)) == ["3"]

    def test_a_functional_layer(self):
        torch.manual_seed(0)
        model = Functional()
        model.b.requires_grad_(False)
        assert alarms(model, torch.randn(64, 16)) == ["/linear#2"]

    @pytest.mark.parametrize("kind", ["lstm", "gru", "attention"])
    def test_a_layer_whose_weights_lie_inside_one_call(self, kind):
        torch.manual_seed(0)
        model = Text(kind)
        assert findings(model, torch.randint(0, 20, (32, 6))) == []
        model.middle.requires_grad_(False)
        assert alarms(model, torch.randint(0, 20, (32, 6))) == ["middle"]

    def test_though_it_holds_most_of_the_values(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
        )
        model[2].requires_grad_(False)
        assert alarms(model, torch.randn(64, 16)) == ["2"]

    def test_a_block_is_one_finding_with_the_rest_folded_under_it(self):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        model = nn.Sequential(nn.Linear(8, 16), encoder, nn.Linear(16, 10))
        encoder.layers[1].requires_grad_(False)
        found = [f for f in findings(model, torch.randn(16, 5, 8)) if f.severity == "warning"]
        assert [f.layer for f in found if f.cause is None] == ["1.layers.1.self_attn"]
        assert len(found) == 3

    def test_a_layer_called_twice_is_said_once(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 10)

            def forward(self, x):
                return self.c(self.b(torch.relu(self.b(torch.relu(self.a(x))))))

        torch.manual_seed(0)
        model = Net()
        model.b.requires_grad_(False)
        assert alarms(model, torch.randn(64, 16)) == ["b"]


class TestOnPurpose:
    @pytest.mark.parametrize("upto", [1, 2, 4])
    def test_a_frozen_prefix_is_a_note(self, upto):
        torch.manual_seed(0)
        model = mlp()
        for layer in model[: 2 * upto]:
            layer.requires_grad_(False)
        [found] = findings(model, torch.randn(64, 16))
        assert found.severity == "note"
        assert f"{upto} of 5 layers with weights are frozen" in found.message

    def test_a_frozen_end_is_a_note(self):
        torch.manual_seed(0)
        model = mlp()
        model[-1].requires_grad_(False)
        model[-3].requires_grad_(False)
        assert [f.severity for f in findings(model, torch.randn(64, 16))] == ["note"]

    def test_everything_frozen_is_a_note(self):
        torch.manual_seed(0)
        [found] = findings(mlp().requires_grad_(False), torch.randn(64, 16))
        assert found.severity == "note"
        assert "All 10 parameters of the model are frozen." in found.message

    def test_nothing_frozen_is_nothing(self):
        torch.manual_seed(0)
        assert findings(mlp(), torch.randn(64, 16)) == []

    @pytest.mark.parametrize("what", ["head and embedding", "norms", "biases"])
    def test_training_only_small_parts_is_a_note(self, what):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        model = nn.Sequential(
            nn.Embedding(20, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(16, 10),
        )  # fmt: skip
        for name, p in model.named_parameters():
            trains = {
                "head and embedding": not name.startswith("1."),
                "norms": "norm" in name,
                "biases": name.endswith("bias"),
            }[what]
            p.requires_grad_(trains)
        assert alarms(model, torch.randint(0, 20, (16, 5))) == []

    def test_low_rank_adapters_beside_frozen_weights_are_a_note(self):
        class Adapted(nn.Module):
            def __init__(self, width=48):
                super().__init__()
                self.base = nn.Linear(width, width).requires_grad_(False)
                self.a = nn.Linear(width, 2, bias=False)
                self.b = nn.Linear(2, width, bias=False)

            def forward(self, x):
                return torch.relu(self.base(x) + self.b(self.a(x)))

        torch.manual_seed(0)
        model = nn.Sequential(*[Adapted() for _ in range(4)], nn.Linear(48, 10))
        assert alarms(model, torch.randn(64, 48)) == []

    def test_frozen_normalisation_between_trainable_layers_is_no_frozen_layer(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32),
            nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
        for norm in (model[1], model[4]):
            norm.requires_grad_(False)
        assert findings(model, torch.randn(64, 16)) == []

    def test_a_frozen_branch_that_reads_only_the_input_is_a_note(self):
        class Perceptual(nn.Module):
            def __init__(self):
                super().__init__()
                self.features = nn.Linear(16, 16).requires_grad_(False)
                self.trunk, self.head = nn.Linear(16, 16), nn.Linear(16, 10)

            def forward(self, x):
                return self.head(torch.relu(self.trunk(x) + self.features(x)))

        torch.manual_seed(0)
        assert alarms(Perceptual(), torch.randn(64, 16)) == []


@pytest.mark.parametrize("frozen", [1, 2, 3, 4])
def test_the_boundary_lies_where_more_than_half_of_the_layers_are_frozen(frozen):
    torch.manual_seed(0)
    model = mlp(5, 16)  # six layers with weights
    for k in range(frozen):
        model[2 + 2 * k].requires_grad_(False)
    found = alarms(model, torch.randn(64, 16))
    assert found == ([] if frozen > 3 else [str(2 + 2 * k) for k in range(frozen)])
