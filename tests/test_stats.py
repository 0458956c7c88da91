"""Numbers that merge: measuring two parts and merging equals measuring the whole."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st

from nndiag.layout import Axes
from nndiag.measure import Meter
from nndiag.stats import (
    DirectionStats,
    FlatStats,
    Histogram,
    Layer,
    Node,
    Parameter,
    ProbeStats,
    Snapshot,
    TensorStats,
    UnitStats,
    Weight,
    merge_facts,
    merge_moments,
    merge_parts,
)

FLAT = ((-math.inf, 0.0), (1.0, math.inf))


def measure(tensor, axes=Axes()):  # noqa: B008
    return lambda meter: meter.stats(tensor, axes)


def collect(measurements):
    meter = Meter()
    for measurement in measurements:
        measurement(meter)
    return meter.collect()


def parts_and_whole(tensors, axes, function):
    """The same measurement of each part, merged, and of all together."""
    parts = collect([function(t, axes._replace(samples=len(t))) for t in tensors])
    whole = torch.cat(list(tensors))
    [expected] = collect([function(whole, axes._replace(samples=len(whole)))])
    merged = parts[0]
    for part in parts[1:]:
        merged = merge_parts(merged, part)
    return merged, expected


def same(merged, expected, path="stats", scale=1.0):
    """Every field, whatever fields there are, now and later."""
    assert type(merged) is type(expected), path
    for f in dataclasses.fields(expected):
        a, b = getattr(merged, f.name), getattr(expected, f.name)
        here = f"{path}.{f.name}"
        if dataclasses.is_dataclass(b):
            same(a, b, here, scale)
        elif isinstance(b, np.ndarray) and b.dtype == bool:
            assert a.tolist() == b.tolist(), here
        elif isinstance(b, (np.ndarray, float)):
            squared = scale**2 if f.name == "m2" else scale
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5 * squared, nan_ok=True), here
        else:
            assert a == b, here


@st.composite
def unlike_parts(draw):
    """Parts whose means, scales, sizes and non-finite values differ."""
    rest = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    parts = []
    for _ in range(draw(st.integers(2, 4))):
        rng = np.random.default_rng(draw(st.integers(0, 2**31)))
        shape = (draw(st.integers(1, 6)), *rest)
        values = rng.standard_normal(shape) * draw(st.sampled_from([0.01, 1.0, 5.0]))
        values += draw(st.sampled_from([-3.0, 0.0, 4.0]))
        values[rng.random(shape) < 0.2] = draw(st.sampled_from([0.0, 0.0, math.nan, math.inf]))
        parts.append(torch.tensor(values, dtype=torch.float32))
    return parts


@tried(120)
@given(parts=unlike_parts(), where=st.integers(0, 2))
def test_merging_parts_is_measuring_the_whole(parts, where):
    unit = 1 + where % (parts[0].dim() - 1)

    same(*parts_and_whole(parts, Axes(unit, 0), measure), scale=10)


@tried(60)
@given(parts=unlike_parts())
def test_merging_flat_parts_is_measuring_the_whole(parts):
    same(*parts_and_whole(parts, Axes(1, 0), lambda t, axes: lambda m: m.flat(t, FLAT, axes)))


@tried(60)
@given(parts=unlike_parts())
def test_merging_directions_is_measuring_the_whole(parts):
    parts = [torch.cat([t, t], 1) for t in parts]  # at least two features

    same(*parts_and_whole(parts, Axes(1, 0), lambda t, axes: lambda m: m.directions(t, 1)))


def test_every_field_of_the_whole_is_filled_so_that_the_law_is_about_all_of_them():
    [stats] = collect([measure(torch.randn(6, 4), Axes(1, 0, 6))])

    assert [f.name for f in dataclasses.fields(stats) if getattr(stats, f.name) is None] == [
        "direction"  # measured apart, with a law of its own
    ]


def test_a_part_without_values_changes_nothing_but_the_samples():
    x = torch.randn(6, 4)
    full, empty = collect([measure(x, Axes(1)), measure(x[:0], Axes(1, None, 0))])

    for merged in (full.merge(empty), empty.merge(full)):
        same(dataclasses.replace(merged, samples=full.samples), full)


def test_one_part_that_is_all_nan_does_not_spoil_the_mean():
    x, nans = torch.randn(6, 4), torch.full((3, 4), math.nan)

    merged, expected = parts_and_whole([nans, x], Axes(1, 0), measure)

    same(merged, expected)
    assert merged.mean == pytest.approx(float(x.mean()), abs=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_order_of_merging_does_not_matter(order):
    tensors = [torch.randn(n, 4) + n for n in (3, 8, 20)]
    axes = Axes(1, 0)
    parts = collect([measure(t, axes._replace(samples=len(t))) for t in tensors])

    first, second, third = (parts[k] for k in order)

    same(first.merge(second).merge(third), parts[0].merge(parts[1].merge(parts[2])), scale=30)


def test_a_mean_far_from_zero_keeps_its_spread_through_many_merges():
    x = torch.randn(512, 1, dtype=torch.float64) + 1e6
    merged = None
    for row in x:
        [part] = collect([measure(row[None])])
        merged = part if merged is None else merged.merge(part)

    assert merged.std == pytest.approx(float(x.std(correction=0)), rel=1e-6)


def test_the_formula_is_chans():
    a, b = np.random.default_rng(0).normal(size=7), np.random.default_rng(1).normal(3, size=4)
    both = np.concatenate([a, b])

    n, mean, m2 = merge_moments(7, a.mean(), a.var() * 7, 4, b.mean(), b.var() * 4)

    assert n == 11
    assert mean == pytest.approx(both.mean())
    assert m2 == pytest.approx(both.var() * 11)


# -- what does not merge ----------------------------------------------------------------------


def test_what_one_side_could_not_see_the_whole_does_not_claim():
    with_units, without = collect([measure(torch.randn(4, 3), Axes(1)), measure(torch.randn(4, 3))])

    assert with_units.merge(without).units is None
    assert merge_parts(None, with_units) is None


def test_other_units_and_other_elements_do_not_merge():
    three, four = collect([measure(torch.randn(5, n), Axes(1, 0, 5)) for n in (3, 4)])

    merged = three.merge(four)

    assert merged.units is None
    assert merged.probe is None
    assert merged.count == 35


def test_sequences_of_another_length_have_other_elements():
    long, short = collect([measure(torch.randn(6 * steps, 3), Axes(1, 0, 6)) for steps in (5, 4)])

    merged = long.merge(short)

    assert merged.probe is None
    assert merged.samples == 12
    assert len(merged.units) == 3


def test_flat_parts_of_other_units_keep_their_counts():
    merged = FlatStats(2, 6, 3, np.array([True, False])).merge(FlatStats(1, 4, 4, np.array([True])))

    assert (merged.samples, merged.count, merged.flat, merged.open) == (3, 10, 7, None)
    assert merged.closed == 0


def test_directions_of_other_widths_do_not_merge():
    narrow, wide = DirectionStats(1, np.ones(2)), DirectionStats(1, np.ones(3))

    assert merge_parts(narrow, wide) is None
    assert merge_parts(wide, narrow) is None


def test_facts_add_up_if_they_are_counts_and_keep_the_larger_value_otherwise():
    one, two = {"rows_count": 2, "shift": 0.5}, {"rows_count": 3, "shift": 0.2, "new": 1}

    assert merge_facts(one, two) == {"rows_count": 5, "shift": 0.5, "new": 1}


# -- what follows from the numbers ------------------------------------------------------------


def test_nothing_measured_has_no_mean_no_spread_and_no_share():
    nothing = TensorStats(0, 0, 0, 0, 0, math.nan, 0.0, math.nan, math.nan)

    for value in (nothing.variance, nothing.std, nothing.rms, nothing.norm, nothing.zero_fraction,
                  nothing.spread, FlatStats(0, 0, 0).share):  # fmt: skip
        assert math.isnan(value)


def test_the_second_moment_is_the_mean_of_squares():
    x = torch.randn(50) + 2
    [stats] = collect([measure(x)])

    assert stats.second_moment == pytest.approx(float(x.square().mean()))


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95])
def test_a_quantile_of_sizes_is_right_to_the_width_of_a_bin(q):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    [stats] = collect([measure(x)])

    expected = float(x.abs().quantile(q))
    assert stats.histogram.magnitude_quantile(q) == pytest.approx(expected, rel=0.25)


def test_quantiles_of_nothing_and_of_zeros():
    empty = Histogram(np.zeros(2 * Histogram.SIDE + 1))
    [zeros] = collect([measure(torch.zeros(5))])

    assert math.isnan(empty.magnitude_quantile(0.5))
    assert zeros.histogram.magnitude_quantile(0.9) == 0


def test_units_that_were_never_seen_have_no_spread():
    units = UnitStats(np.array([0.0, 4.0]), np.array([0.0, 1.0]), np.array([0.0, 8.0]))

    assert units.std.tolist() == [0.0, math.sqrt(2)]
    assert len(units) == 2


def test_one_vector_has_no_pair():
    assert math.isnan(DirectionStats(1, np.ones(3)).mean_cosine)


def test_a_probe_of_no_sample_has_no_spread():
    assert math.isnan(ProbeStats((1,), 0, np.zeros(1), np.zeros(1)).spread)


def test_a_snapshot_knows_who_uses_what():
    [numbers] = collect([measure(torch.randn(4))])
    layers = tuple(
        Layer(name, "function", op, (4,), node, numbers)
        for name, op, node in (("/relu", "relu", 1), ("/tanh", "tanh", 2))
    )
    nodes = (Node("input"), Node("relu", (0,), 0), Node("tanh", (0,), 1), Node("add", (1, 2, 1)))
    snapshot = Snapshot("Net", layers, nodes, (), {}, None, 4, 1)

    assert snapshot.consumers == ((1, 2), (3,), (3,), ())
    assert snapshot.layer_at(2).name == "/tanh"
    assert snapshot.layer_at(3) is None
    assert [layer.name for layer in snapshot.of_op("relu", "gelu")] == ["/relu"]
    assert set(snapshot.by_name) == {"/relu", "/tanh"}


def test_a_snapshot_knows_the_parameters_of_a_module_and_those_inside_it():
    [numbers] = collect([measure(torch.randn(4))])
    names = ("scale", "body.0.weight", "body.0.bias", "body.shift")
    parameters = tuple(Parameter(name, (4,), "float32", True, numbers) for name in names)
    snapshot = Snapshot("Net", (), (), parameters, {}, None, 4, 1)

    assert {module: [p.name for p in own] for module, own in snapshot.parameters_of.items()} == {
        "": ["scale"], "body.0": ["body.0.weight", "body.0.bias"], "body": ["body.shift"],
    }  # fmt: skip
    assert [p.name for p in snapshot.parameters_in["body"]] == list(names[1:])


def test_where_nothing_else_is_said_a_parameter_is_used_and_a_weight_meets_no_padding():
    [numbers] = collect([measure(torch.randn(4))])

    assert Parameter("a.weight", (2, 2), "float32", True, numbers).used
    assert Weight("a.weight", None, 2, 2).coverage == 1


def test_a_layer_seen_in_two_batches_says_what_was_unseen_in_either():
    [numbers] = collect([measure(torch.randn(4))])
    one = Layer("a", "Linear", "linear", (4,), 0, numbers, unseen=("x", "y"))
    two = dataclasses.replace(one, unseen=("y", "z"), grad=numbers)

    merged = one.merge(two)

    assert merged.unseen == ("x", "y", "z")
    assert merged.calls == 2
    assert merged.output.count == 8
    assert merged.grad is None


def test_the_mean_cosine_is_that_over_all_pairs():
    vectors = np.random.default_rng(0).normal(0.5, 1, (7, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = (vectors @ vectors.T)[~np.eye(7, dtype=bool)]

    assert DirectionStats(7, vectors.sum(0)).mean_cosine == pytest.approx(pairs.mean())
