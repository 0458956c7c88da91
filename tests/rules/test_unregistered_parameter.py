"""Weights that the forward uses and the model does not list."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "unregistered-parameter"
X, Y = torch.randn(64, 8), torch.randint(0, 2, (64,))


class Net(nn.Module):
    def __init__(self, hold):
        super().__init__()
        hold(self)
        self.head = nn.Linear(8, 2)

    def body(self, x):
        raise NotImplementedError

    def forward(self, x):
        return self.head(F.relu(self.body(x)))


class InList(Net):
    def __init__(self):
        super().__init__(lambda s: setattr(s, "layers", [nn.Linear(8, 8), nn.Linear(8, 8)]))

    def body(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class InDict(Net):
    def __init__(self):
        super().__init__(lambda s: setattr(s, "layers", {"a": [nn.Linear(8, 8)]}))

    def body(self, x):
        return self.layers["a"][0](x)


class Bare(Net):
    def __init__(self):
        super().__init__(lambda s: setattr(s, "w", torch.randn(8, 8, requires_grad=True)))

    def body(self, x):
        return x @ self.w


class Created(Net):
    def __init__(self):
        super().__init__(lambda s: None)

    def body(self, x):
        return nn.Linear(8, 8)(x)


GLOBAL = nn.Linear(8, 8)


class FromOutside(Net):
    def __init__(self):
        super().__init__(lambda s: None)

    def body(self, x):
        return GLOBAL(x)


class Registered(Net):
    def __init__(self):
        super().__init__(lambda s: setattr(s, "layers", nn.ModuleList([nn.Linear(8, 8)])))

    def body(self, x):
        return self.layers[0](x)


class Teacher(Net):
    def __init__(self):
        super().__init__(lambda s: setattr(s, "teacher", [nn.Linear(8, 8)]))

    def body(self, x):
        with torch.no_grad():
            hint = self.teacher[0](x)
        return x + hint


class FixedNoise(Net):
    """A constant, and a frozen layer that nobody wants to train."""

    def __init__(self):
        def hold(s):
            s.noise, s.frozen = torch.randn(8), [nn.Linear(8, 8).requires_grad_(False)]

        super().__init__(hold)

    def body(self, x):
        return self.frozen[0](x) + self.noise


def check(model, x=X, loss_fn=F.cross_entropy):
    return nndiag.check(model, x, Y, loss_fn)


def found(model, **options):
    return [f for f in check(model, **options).findings if f.rule == NAME]


NAMES = {
    InList: ("model.layers[0].weight", 4),
    InDict: ("model.layers['a'][0].weight", 2),
    Bare: ("model.w", 1),
}


@pytest.mark.parametrize("kind", NAMES)
def test_it_leads_and_names_where_the_model_holds_them(kind):
    torch.manual_seed(0)
    name, tensors = NAMES[kind]

    report = check(kind())

    finding = report.findings[0]
    assert (finding.rule, finding.severity, finding.cause) == (NAME, "error", None)
    assert name in finding.message
    assert finding.evidence["tensors"] == tensors
    assert finding.location
    assert __file__.endswith(finding.location.rpartition(":")[0].rpartition("/")[2])


@pytest.mark.parametrize("kind", [Created, FromOutside])
def test_layers_that_no_attribute_holds_are_found_too(kind):
    [finding] = found(kind())

    assert "no attribute of the model" in finding.message
    assert "__init__" in finding.fixes[0].what


@pytest.mark.parametrize("kind", [Registered, Teacher, FixedNoise])
def test_what_learns_or_is_not_to_learn_is_not_reported(kind):
    assert found(kind()) == []


def test_the_inputs_may_require_a_gradient():
    assert found(Registered(), x=X.clone().requires_grad_()) == []


def test_weights_of_the_loss_are_the_losss_own():
    weights = torch.ones(2, requires_grad=True)

    def weighted(output, target):
        return F.cross_entropy(output * weights, target)

    assert found(Registered(), loss_fn=weighted) == []


def test_the_tensors_are_as_before():
    model = Bare()
    before = model.w.clone()

    check(model)

    assert model.w.grad is None
    assert torch.equal(model.w, before)
    assert not model.w._backward_hooks
