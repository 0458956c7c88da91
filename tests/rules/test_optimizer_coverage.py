"""optimizer-coverage: what trains and is not held, and what is held and does not train."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "optimizer-coverage"
X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 3))  # fmt: skip


def sgd(parameters):
    return torch.optim.SGD(list(parameters), 0.05)


def found(model, optimizer, loss_fn=F.cross_entropy):
    report = nndiag.check(model, X, Y, loss_fn, optimizer=optimizer, select=NAME, config=False)
    return [(f.severity, f.message) for f in report.findings]


def test_all_is_held():
    model = net()
    assert found(model, sgd(model.parameters())) == []


@pytest.mark.parametrize("how", ["built again", "copied", "assigned", "memory"])
def test_none_is_held_is_an_error_that_says_what_is(how):
    model = net()
    optimizer = sgd(model.parameters())
    if how == "built again":
        model = net()
    elif how == "copied":
        model = copy.deepcopy(model)
    elif how == "assigned":
        state = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
    else:
        optimizer = sgd(nn.Parameter(p.data) for p in model.parameters())
    [(severity, message)] = found(model, optimizer)
    assert severity == "error"
    assert message.startswith("SGD holds none of the 6 parameters that train")
    assert ("over the same memory" if how == "memory" else "not this model's") in message


def test_what_is_held_is_frozen_and_what_trains_is_not_held():
    model = net()
    model[4].requires_grad_(False)
    report = nndiag.check(model, X, Y, F.cross_entropy, optimizer=sgd(model[4].parameters()),
                          config=False)  # fmt: skip
    finding = report.findings[0]
    assert (finding.rule, finding.severity) == (NAME, "error")
    assert "2 parameters of this model that it holds are frozen" in finding.message
    repaired = copy.deepcopy(model)
    finding.fixes[0].apply(repaired)
    assert all(p.requires_grad for p in repaired[4].parameters())


@pytest.mark.parametrize("part", ["head", "middle", "biases", "first bias"])
def test_a_part_that_is_not_held_is_a_warning_that_names_it(part):
    model = net()
    held = {
        "head": [*model[0].parameters(), *model[2].parameters()],
        "middle": [*model[0].parameters(), *model[4].parameters()],
        "biases": [p for p in model.parameters() if p.dim() > 1],
        "first bias": [p for n, p in model.named_parameters() if n != "0.bias"],
    }[part]
    [(severity, message)] = found(model, sgd(held))
    assert severity == "warning"
    names = {"head": ": 4.", "middle": ": 2.", "biases": "0.bias, 2.bias and 4.bias",
             "first bias": "1 parameter of the 6"}  # fmt: skip
    assert names[part] in message


def test_layers_before_all_that_is_held_are_a_note():
    model = net()
    [(severity, message)] = found(model, sgd(model[4].parameters()))
    assert severity == "note"
    assert "All of them lie before the parameters that it holds" in message


def test_a_new_first_layer_after_the_optimiser_is_no_note():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(16, 3))
    optimizer = sgd(model.parameters())
    model[0] = nn.Embedding(12, 8)  # a longer vocabulary
    report = nndiag.check(model, torch.randint(0, 10, (64, 2)), Y, F.cross_entropy,
                          optimizer=optimizer, select=NAME, config=False)  # fmt: skip
    assert [f.severity for f in report.findings] == ["warning"]


def test_fine_tuning_a_head_is_no_fault():
    model = net()
    for layer in model[:4]:
        layer.requires_grad_(False)
    assert found(model, sgd(model[4].parameters())) == []
    [(severity, message)] = found(model, sgd(model.parameters()))
    assert severity == "note"
    assert "4 parameters that the optimiser holds are frozen" in message


def test_several_optimisers_cover_together():
    model = net()
    assert found(model, [sgd(model[:2].parameters()), sgd(model[2:].parameters())]) == []
    [(severity, message)] = found(model, [sgd(model.parameters()), sgd(model[4].parameters())])
    assert severity == "note"
    assert "by several optimisers" in message


def test_held_twice_by_one_optimiser_is_a_warning():
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns when it is made
        optimizer = sgd([*model.parameters(), model[4].weight])
    [(severity, message)] = found(model, optimizer)
    assert severity == "warning"
    assert message == "1 parameter is held more than once by one optimiser, from 4.weight on."


def test_parameters_of_the_loss_are_no_fault_and_unused_ones_need_no_optimiser():
    model, scale = net(), nn.Parameter(torch.ones(()))
    model.spare = nn.Linear(3, 3)
    model.forward = lambda x: nn.Sequential(*list(model)[:5])(x)
    used = [p for n, p in model.named_parameters() if not n.startswith("spare")]
    assert found(model, sgd([*used, scale]), lambda o, t: F.cross_entropy(o, t) * scale) == []


def test_two_encoders_of_which_one_is_left_out_on_purpose():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 4), nn.Linear(8, 4)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(torch.cat([self.left(x), self.right(x)], 1))

    model = Towers()
    [(severity, _)] = found(model, sgd([*model.right.parameters(), *model.head.parameters()]))
    assert severity == "note"
