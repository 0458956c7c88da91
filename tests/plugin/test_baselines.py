"""What a baseline catches, what it is silent on, and the arithmetic of its test."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nndiag import errors
from nndiag.testing import baseline
from nndiag.testing.baseline import Baseline

POOL = torch.randn(3000, 12, generator=torch.Generator().manual_seed(0))


def net(act=nn.Tanh, gain=1.0, norm=True, freeze=False, width=32):
    def build():
        norms = [nn.BatchNorm1d(width)] if norm else []
        layers = [nn.Linear(12, width), *norms, act(), nn.Linear(width, width), act()]
        model = nn.Sequential(*layers, nn.Linear(width, 3))
        with torch.no_grad():
            model[-3].weight.mul_(gain)
        model[0].requires_grad_(not freeze)
        return model

    return build


def batch(scale=1.0, shift=0.0):
    def draw():
        x = POOL[torch.randint(0, len(POOL), (128,))]
        return x * scale + shift, x[:, :3].argmax(1)

    return draw


def moved(base, build, data, seed=0):
    return base.confirmed(
        lambda s: baseline.look(build, data, None, F.cross_entropy, seed=s)[0], seed
    )


@pytest.fixture(scope="module", params=["drawn", "resampled"])
def base(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = batch() if request.param == "drawn" else batch()()
    made = baseline.make(net(), data, loss_fn=F.cross_entropy)
    assert made.batches == request.param
    return made


@pytest.mark.parametrize(
    ("build", "data", "kind", "name"),
    [
        (net(gain=1.5), batch(), "parameter", "3.weight"),
        (net(gain=1 / 1.5), batch(), "parameter", "3.weight"),
        (net(act=nn.ReLU), batch(), "structure", "2"),
        (net(norm=False), batch(), "structure", "1"),
        (net(freeze=True), batch(), "structure", "0.weight"),
        (net(width=33), batch(), "structure", "0.weight"),
        (net(), batch(scale=2.0), "input", "input"),
        (net(), batch(shift=1.0), "input", "input"),
    ],
    ids=["init x1.5", "init /1.5", "activation", "norm", "frozen", "width", "scale", "shift"],
)
def test_a_change_is_found_where_it_was_made(base, build, data, kind, name):
    found = moved(base, build, data)

    assert found[0].kind == kind
    assert name in {d.name for d in found if d.kind == kind}


@pytest.mark.parametrize("seed", [100, 200, 300, 400])
def test_other_seeds_and_batches_are_no_change(base, seed):
    assert moved(base, net(), batch(), seed) == ()


def test_the_number_of_threads_is_no_change(base):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert moved(base, net(), batch()) == ()
    finally:
        torch.set_num_threads(before)


def test_nan_is_a_change(base):
    def build():
        model = net()()
        with torch.no_grad():
            model[0].weight[0, 0] = math.nan
        return model

    found = moved(base, build, batch())
    assert found[0].text == "0.weight holds NaN or infinity"


def test_it_is_read_as_it_was_written(base):
    again = Baseline.loads(base.dumps(), "here")

    assert again.dumps() == base.dumps()
    assert moved(again, net(), batch()) == ()
    assert [d.text for d in moved(again, net(act=nn.ReLU), batch())][:1] == [
        "2: op was tanh, is relu"
    ]


def test_equal_seeds_make_equal_baselines():
    made = [baseline.make(net(), batch(), loss_fn=F.cross_entropy, seeds=5) for _ in range(2)]

    assert made[0].dumps() == made[1].dumps()


def test_making_and_looking_leave_the_process_as_it_was():
    from bitwise import untouched

    data = batch()()
    with untouched(data):
        base = baseline.make(net(), data, loss_fn=F.cross_entropy, seeds=5)
        moved(base, net(), data)


def test_the_quantile_is_the_one_that_the_issue_names():
    # 200 numbers at 1 in 1,000: twenty seeds need 6.4 deviations, five 36.
    assert baseline.student(20, 200) * math.sqrt(1 + 1 / 20) == pytest.approx(6.4, abs=0.05)
    assert baseline.student(5, 200) * math.sqrt(1 + 1 / 5) == pytest.approx(36, abs=0.5)


@pytest.mark.parametrize(("seeds", "values"), [(20, 130), (5, 4000)])
def test_how_large_a_weight_has_to_be_is_as_the_docstring_says(seeds, values):
    """ln of the rms of N Gaussian values has a deviation of 1/√(2N)."""
    reach = baseline.student(seeds, 200) * math.sqrt(1 + 1 / seeds)

    assert reach / math.sqrt(2 * values) < math.log(1.5) < reach / math.sqrt(2 * 0.95 * values)


@given(seeds=st.integers(5, 50), count=st.integers(1, 5000))
@tried(50)
def test_the_rate_of_a_run_is_shared_among_its_numbers(seeds, count):
    from scipy import stats

    each = 2 * stats.t.sf(baseline.student(seeds, count), seeds - 1)
    assert count * each == pytest.approx(baseline.RATE, rel=1e-6)


def test_normal_numbers_are_told_apart_no_oftener_than_stated():
    """Of the bare test without its further seeds, at a rate that can be counted."""
    import numpy as np
    from scipy import stats

    rng, n, runs = np.random.default_rng(0), 20, 20_000
    known = rng.normal(size=(runs, n))
    new = rng.normal(size=runs)
    t = stats.t.isf(0.05 / 2, n - 1)
    beyond = abs(new - known.mean(1)) > t * known.std(1, ddof=1) * math.sqrt(1 + 1 / n)

    assert beyond.mean() == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / runs))


def test_a_network_that_is_another_each_time_has_no_baseline():
    def build():
        return nn.Sequential(*[nn.Linear(12, 12) for _ in range(1 + int(torch.randint(0, 4, ())))])

    with pytest.raises(errors.SettingsError, match="other layers or parameters from seed to seed"):
        baseline.make(build, batch())


@pytest.mark.parametrize(
    ("data", "origin"),
    [
        (torch.randn(64, 12), "resampled"),
        ((torch.randn(64, 12), torch.zeros(64, dtype=torch.long)), "resampled"),
        ((torch.randn(64, 12), torch.zeros(3, dtype=torch.long)), "same"),
    ],
)
def test_samples_are_drawn_anew_where_they_can_be_told_apart(data, origin):
    def square(output, target):
        return output.square().mean()

    loss = square if isinstance(data, tuple) else None
    made = baseline.make(lambda: nn.Sequential(nn.Linear(12, 4)), data, loss_fn=loss, seeds=5)

    assert made.batches == origin


def test_a_trained_model_that_is_loaded_is_held_to_its_weights():
    trained = net()()
    base = baseline.make(lambda: trained, batch(), loss_fn=F.cross_entropy, seeds=5)
    with torch.no_grad():
        trained[3].weight.mul_(1.2)

    assert moved(base, lambda: trained, batch())[0].name == "3.weight"


class Cut(nn.Module):
    """Gradients end in the middle of it."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.second(h.detach() if self.cut else h)


@pytest.mark.parametrize("cut", [False, True])
def test_a_gradient_that_is_gone_or_new_is_a_change(cut):
    base = baseline.make(lambda: Cut(cut), batch(), loss_fn=F.cross_entropy)
    found = moved(base, lambda: Cut(not cut), batch())
    shown = "a gradient reaches first; before, none did" if cut else "no gradient reaches first any"

    assert found[0].kind == "structure"
    assert any(d.text.startswith(shown) for d in found)


def test_nan_from_one_seed_alone_is_a_change_too(base):
    def build():
        model = net()()
        if torch.initial_seed() == 0:
            with torch.no_grad():
                model[0].weight[0, 0] = math.nan
        return model

    found = moved(base, build, batch())
    assert {d.what for d in found} == {"finite"}
    assert len({(d.kind, d.name) for d in found}) == len(found)


def test_a_model_that_makes_nan_has_no_baseline():
    def build():
        model = net()()
        with torch.no_grad():
            model[0].weight[0, 0] = math.nan
        return model

    with pytest.raises(errors.FindingsError, match="holds NaN or infinity, or is missing"):
        baseline.make(build, batch(), loss_fn=F.cross_entropy)


@pytest.mark.parametrize("seeds", [5, 8, 20])
def test_a_few_values_are_held_where_they_never_change(seeds):
    def build(bias=0.0):
        model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 4))
        nn.init.constant_(model[2].bias, bias)
        return model

    def data():
        return POOL[torch.randint(0, len(POOL), (128,))]

    base = baseline.make(build, data, seeds=seeds)
    [found] = [
        d
        for d in base.differences(baseline.look(lambda: build(0.1), data)[0])
        if d.name == "2.bias"
    ]

    assert found.text == "2.bias was all zero; its scale is 0.1"


def test_a_batch_of_very_few_is_held_as_it_is():
    data = torch.randn(3, 12)

    assert baseline.make(lambda: nn.Linear(12, 4), data, seeds=5).batches == "same"


def test_a_bootstraps_deviation_is_widened():
    """Of n samples' mean a bootstrap has the deviation σ·√((n-1)/n)/√n."""
    x = torch.randn(8, 200_000, generator=torch.Generator().manual_seed(0))
    made = baseline.make(lambda: nn.Linear(200_000, 1), x, seeds=5)

    [entry] = made.inputs
    assert made.batches == "resampled"
    assert entry.numbers["input", "scale"][1] > 0


def test_a_stream_that_can_be_read_once_is_read_once():
    data = iter([batch()() for _ in range(3)])

    assert baseline.make(net(), data, loss_fn=F.cross_entropy, seeds=5).batches == "resampled"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_fn": nn.CrossEntropyLoss}, "Pass a function or an instance"),
        ({"target": torch.zeros(1)}, "target was given but no loss_fn"),
    ],
)
def test_what_a_check_refuses_a_baseline_refuses(arguments, message):
    with pytest.raises(errors.LossError, match=message):
        baseline.make(net(), batch(), **arguments, seeds=5)
