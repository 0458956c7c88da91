"""Networks that were healthy when they were built, and are sick after their training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "training-damage"
X = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(8, 4, generator=torch.Generator().manual_seed(1))).argmax(1)


def net(act=nn.Tanh, **_):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 4))


def trained(model, rate, steps=6, x=X):
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), Y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def check(model, x=X, **options):
    return nndiag.check(model, x, Y, F.cross_entropy, **options)


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
def test_a_rate_that_is_far_too_high_leads_and_the_rest_folds_under_it(act):
    report = check(trained(net(act), 100.0))

    assert report.findings[0].rule == NAME
    assert report.findings[0].cause is None
    about_values = [f for f in report.findings if f.rule in ("init-scale", "saturation")]
    assert all(f.root.rule == NAME for f in about_values if f.severity != "note")


def test_the_rate_is_named_where_the_optimiser_is_known():
    model = trained(net(), 100.0)

    report = check(model, optimizer=torch.optim.SGD(model.parameters(), 100.0))

    [finding] = [f for f in report.findings if f.rule == NAME]
    assert "at learning rate 100" in finding.summary


def test_a_new_network_of_a_sick_design_is_not_blamed_on_training():
    model = net()
    with torch.no_grad():
        model[0].weight *= 100
        model[2].weight *= 100

    assert NAME not in [f.rule for f in check(model).findings]


def test_a_network_that_learned_is_not_suspected():
    model = trained(net(), 0.5, steps=200)

    report = check(model)

    assert report.ok, report
    assert report.snapshot.experiment.fresh is None


def test_data_that_make_a_fresh_network_sick_too_are_the_cause():
    x = 1000 * X
    model = trained(net(), 100.0, x=x)

    report = check(model, x)

    assert NAME not in [f.rule for f in report.findings]
    assert report.snapshot.experiment.fresh.found


def test_weights_that_nothing_draws_again_are_not_judged():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.w, self.body = nn.Parameter(torch.randn(8, 8)), net()

        def forward(self, x):
            return self.body(x @ self.w)

    report = check(trained(Own(), 100.0))

    assert report.snapshot.experiment.fresh is None
    assert NAME not in [f.rule for f in report.findings]


def test_the_model_and_the_random_generator_are_as_before():
    model = trained(net(), 100.0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    check(model)

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
