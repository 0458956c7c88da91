"""The numbers behind the page's picture: curves against NumPy, theory against random draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import samples
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nndiag
from nndiag.layout import Axes
from nndiag.measure import Meter
from nndiag.render import picture
from nndiag.stats import Histogram


def rows_of(model, x):
    report = nndiag.check(model, x, config=False)
    return picture.picture(report.snapshot)


@given(st.floats(1e-6, 1e4))
def test_no_value_is_lost_on_the_way_to_a_curve(reach):
    share = picture._linear(reach)

    assert share.shape == (2 * Histogram.SIDE + 1, picture.BINS)
    np.testing.assert_allclose(share.sum(1), 1)
    assert np.all(share >= 0)


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_a_curve_is_the_density_of_the_values(scale):
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)) * scale
    meter = Meter()
    place = meter.stats(x, Axes(1, 0, 4000))
    reach = 3 * scale

    heights = np.array(picture._curve(meter.collect()[place], picture._linear(reach)))

    middles = (np.arange(picture.BINS) + 0.5) / picture.BINS * 2 * reach - reach
    density = np.exp(-((middles / scale) ** 2) / 2)
    # Bins of a histogram are up to a quarter of an octave wide: steps, not a smooth curve.
    assert np.abs(heights / picture.TALLEST - density)[1:-1].max() < 0.25
    assert np.corrcoef(heights, density)[0, 1] > 0.98


def test_sizes_of_gradients_are_drawn_by_their_logarithms():
    x = torch.full((64, 8), 1e-3)
    meter = Meter()
    place = meter.stats(x, Axes(None, 0, 64))

    heights = picture._curve(meter.collect()[place], picture._sizes(-6, 0))

    middle = (np.argmax(heights) + 0.5) / picture.BINS * 6 - 6
    assert middle == pytest.approx(-3, abs=0.15)
    assert picture._curve(samples.stats(np.zeros(9)), picture._sizes(-6, 0)) is None


def test_sizes_too_small_to_draw_do_not_heap_up():
    share = picture._sizes(-3, 0)
    edges = Histogram.edges()

    drawn = share[Histogram.SIDE + 1 :].sum(1)
    assert not drawn[edges[1:] <= 1e-3].any()
    np.testing.assert_allclose(drawn[edges[:-1] >= 1e-3], 1)


@pytest.mark.parametrize("act", [nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.LeakyReLU(0.2)])
def test_an_activation_does_what_theory_expects_of_a_gaussian(act):
    model = nn.Sequential(nn.Linear(400, 300), act)
    x = torch.randn(500, 400)

    row = rows_of(model, x)["layers"][1]

    assert row["mean"] == pytest.approx(row["expected"][0], abs=0.02)
    assert row["std"] == pytest.approx(row["expected"][1], rel=0.05)


def test_weights_of_the_reference_initialisation_do_what_theory_expects():
    layers = []
    for _ in range(4):
        linear = nn.Linear(300, 300)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]

    drawn = rows_of(nn.Sequential(*layers, nn.Linear(300, 10)), torch.randn(400, 300))

    for row in drawn["layers"][:8]:
        assert row["std"] == pytest.approx(row["expected"][1], rel=0.12)
    factors = [row for row in drawn["layers"] if row["factor"] is not None]
    assert len(factors) == 3
    for row in factors:
        assert row["factor"] == pytest.approx(row["expected_factor"], rel=0.2)


def test_weights_ten_times_too_small_fall_short_of_it_by_ten():
    first = nn.Linear(300, 300)
    nn.init.xavier_normal_(first.weight, gain=0.1)
    nn.init.zeros_(first.bias)

    row = rows_of(nn.Sequential(first, nn.Tanh(), nn.Linear(300, 5)), torch.randn(400, 300))

    assert row["layers"][0]["expected"][1] / row["layers"][0]["std"] == pytest.approx(10, rel=0.1)


def test_what_is_not_finite_is_not_drawn_and_breaks_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    nn.init.constant_(model[0].weight, math.inf)

    drawn = rows_of(model, torch.randn(8, 4))

    assert drawn["layers"][0]["mean"] is None
    assert drawn["layers"][0]["expected"] is None or math.isfinite(
        drawn["layers"][0]["expected"][1]
    )


def spread(std, grad=1.0):
    """A network of one layer whose output has this standard deviation, and its gradient."""
    values = [np.random.default_rng(0).normal(scale=s, size=(500, 4)) for s in (std, grad)]
    meter = Meter()
    places = [meter.stats(torch.tensor(x), Axes(1, 0, 500)) for x in values]
    output, gradient = (meter.collect()[place] for place in places)
    row = samples.layer("only", output=output, grad=gradient)
    return samples.snapshot(layers=(row,))


@pytest.mark.parametrize(
    ("old", "new", "reached"),
    [(1.0, 0.01, 0.01), (1.0, 0.5, 1.0), (0.01, 1.0, 1.0)],
    ids=["it had exploded", "it was larger", "it had collapsed"],
)
def test_two_pictures_share_scales_on_which_the_new_one_can_be_seen(old, new, reached):
    before, after = spread(old, grad=1e-7), spread(new, grad=1e-2)

    on = picture.common_scales(before, after)

    assert on.reach == picture.scales(spread(reached)).reach
    assert on.decades[0] <= -7 < -2 <= on.decades[1]
    for snapshot in (before, after):
        drawn = picture.picture(snapshot, on)
        assert (drawn["reach"], drawn["decades"]) == on


def test_where_one_of_two_pictures_has_nothing_to_draw_the_other_sets_the_scales():
    nothing = samples.snapshot(layers=())

    for pair in ((nothing, spread(0.3)), (spread(0.3), nothing)):
        assert picture.common_scales(*pair) == picture.scales(spread(0.3))
    assert picture.common_scales(nothing, nothing) == picture.scales(nothing)


def test_a_curve_in_one_line_of_text():
    assert picture.text_curve([0, 0, 50, 99, 50, 0], 6) == "▁▁▅█▅▁"
    assert picture.text_curve(None) == ""
