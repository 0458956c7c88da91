"""From a tensor to numbers, against NumPy in double precision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from effort import tried
from hypothesis import example, given
from hypothesis import strategies as st

from nndiag import layout
from nndiag.layout import BLOCK, MOST_UNITS, PROBES, Axes, readable
from nndiag.measure import GATHERED, MOST_DIRECTIONS, SMALL, Meter
from nndiag.stats import Histogram

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool,
          torch.complex64]  # fmt: skip


def stats_of(tensor, axes=None, **options):
    meter = Meter()
    meter.stats(tensor, Axes() if axes is None else axes, **options)
    return meter.collect()[0]


def flat_of(tensor, flat, axes=None):
    meter = Meter()
    meter.flat(tensor, flat, Axes() if axes is None else axes)
    return meter.collect()[0]


def directions_of(tensor, unit):
    meter = Meter()
    meter.directions(tensor, unit)
    return meter.collect()[0]


def double(tensor):
    """The same values in NumPy; a complex number is two, along a last axis of their own."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.detach().double().numpy()


def naive_bins(values):
    """Which bin each value falls into, by comparing it with every edge."""
    edges = Histogram.edges()
    values = np.asarray(values, dtype=np.float64)
    above = (edges[:-1] <= np.abs(values)[:, None]).sum(1)  # none: smaller than the first edge
    counts = np.zeros(2 * Histogram.SIDE + 1)
    np.add.at(counts, Histogram.SIDE + np.where(values > 0, above, -above), 1)
    return counts


def binned(x, axes):
    """The values that the histogram counts: a 32nd of each sample's, 16 to 256, spread."""
    samples = [x.reshape(-1)]
    if axes.batch is not None:
        samples = np.moveaxis(x, axes.batch, 0).reshape(axes.samples, -1)
    width = len(samples[0])
    return np.concatenate([s[spread(width, min(256, max(16, width // 32)))] for s in samples])


def spread(width, count):
    """Different multiples, modulo the width, of a step coprime to it, near its golden section."""
    if count >= width:
        return list(range(width))
    step = next(s for s in itertools.count(round(0.618 * width)) if math.gcd(s, width) == 1)
    return sorted(k * step % width for k in range(count))


def check_against_numpy(tensor, axes):
    stats, x = stats_of(tensor, axes), double(tensor)
    finite = x[np.isfinite(x)]
    size = np.abs(finite).max() if finite.size else 0.0

    def close(value):
        return pytest.approx(value, rel=2e-6, abs=2e-7 * size)

    assert stats.samples == axes.samples
    assert stats.count == finite.size
    assert stats.nan == np.isnan(x).sum()
    assert stats.inf == np.isinf(x).sum()
    assert stats.total == x.size
    assert stats.zeros == (x == 0).sum()
    if finite.size:
        assert stats.mean == close(finite.mean())
        assert stats.std == pytest.approx(finite.std(), rel=2e-6, abs=2e-6 * size)
        assert stats.m2 == pytest.approx(
            ((finite - finite.mean()) ** 2).sum(), rel=4e-6, abs=4e-12 * size**2 * finite.size
        )
        assert (stats.min, stats.max) == (finite.min(), finite.max())
        rms = size * math.sqrt(np.mean((finite / (size or 1)) ** 2))
        assert stats.rms == pytest.approx(rms, rel=2e-6)
        assert stats.norm == pytest.approx(rms * math.sqrt(finite.size), rel=2e-6)
        assert stats.zero_fraction == pytest.approx((finite == 0).mean())
    else:
        assert all(map(math.isnan, (stats.mean, stats.min, stats.max, stats.std)))
        assert stats.m2 == 0
    # Bins are those of float32: that is what the values are read as.
    seen = binned(x, axes)
    rounded = seen[np.isfinite(seen)].astype(np.float32).astype(np.float64)
    assert stats.histogram.counts.tolist() == naive_bins(rounded).tolist()
    if axes.unit is not None:
        per_unit = np.moveaxis(x, axes.unit, 0).reshape(x.shape[axes.unit], -1)
        for unit, values in enumerate(per_unit):
            values = values[np.isfinite(values)]
            assert stats.units.count[unit] == values.size
            if values.size:
                assert stats.units.mean[unit] == close(values.mean())
                assert stats.units.std[unit] == pytest.approx(
                    values.std(), rel=4e-6, abs=4e-6 * size
                )
    else:
        assert stats.units is None


@st.composite
def tensors(draw, dtypes=tuple(DTYPES)):
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * draw(st.sampled_from([1e-3, 1.0, 100.0]))
    values += draw(st.sampled_from([0.0, 1.0, -50.0]))
    values[rng.random(shape) < 0.2] = 0
    if dtype.is_floating_point and draw(st.booleans()):
        values[rng.random(shape) < 0.2] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    if dtype is torch.complex64:
        return torch.complex(torch.tensor(values).float(), torch.tensor(values).float().flip(0))
    return torch.tensor(values).to(dtype)


@tried(150)
@given(tensor=tensors(), unit=st.booleans(), where=st.integers(0, 3))
def test_every_number_is_numpys(tensor, unit, where):
    check_against_numpy(tensor, Axes(where % tensor.dim() if unit else None))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-19, 1.0, 1e19, 1e30])
@pytest.mark.parametrize("unit", [None, 1])
def test_neither_tiny_nor_huge_values_are_lost_in_their_squares(magnitude, unit):
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * magnitude

    check_against_numpy(x, Axes(unit))


@pytest.mark.parametrize("offset", [1e4, -1e4, 1e6])
@pytest.mark.parametrize("unit", [None, 1])
def test_a_spread_that_is_small_beside_the_mean_is_not_lost(offset, unit):
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) + offset

    stats, values = stats_of(x, Axes(unit)), double(x)

    assert stats.std == pytest.approx(values.std(), rel=1e-4)
    assert stats.mean == pytest.approx(values.mean(), rel=1e-9)
    if unit is not None:
        assert stats.units.std == pytest.approx(values.std(0), rel=1e-4)


def test_a_constant_has_no_spread_at_all():
    for value in (0.1, 1e-30, 1e30, -7.0):
        assert stats_of(torch.full((100, 3), value)).std == 0


def test_non_finite_values_are_counted_apart_and_spare_the_rest():
    x = torch.tensor([[1.0, math.nan], [math.inf, 2.0], [-math.inf, 3.0]])

    stats = stats_of(x, Axes(1))

    assert (stats.count, stats.nan, stats.inf, stats.nonfinite) == (3, 1, 2, 3)
    assert (stats.min, stats.max, stats.mean) == (1, 3, 2)
    assert stats.units.count.tolist() == [1, 2]
    assert stats.units.mean.tolist() == [1, 2.5]


def test_nothing_finite_gives_no_mean_and_no_extreme():
    check_against_numpy(torch.full((4, 3), math.nan), Axes(1))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_an_empty_tensor_has_zero_values(shape):
    stats = stats_of(torch.zeros(shape), Axes(len(shape) - 1))

    assert (stats.count, stats.zeros, stats.nonfinite) == (0, 0, 0)
    assert math.isnan(stats.mean)
    assert stats.histogram.counts.sum() == 0
    assert stats.units.count.tolist() == [0] * shape[-1]


@example(bits=0x3F80_0000, negative=False)  # 1
@example(bits=0x0080_0000, negative=True)  # the smallest normal number
@given(bits=st.integers(0, 0x7F7F_FFFF), negative=st.booleans())
def test_every_float_falls_into_its_bin(bits, negative):
    value = np.uint32(bits).view(np.float32) * (-1 if negative else 1)

    counts = stats_of(torch.tensor([value])).histogram.counts

    assert counts.tolist() == naive_bins([float(value)]).tolist()


def test_edges_belong_to_the_bin_above_them():
    edges = Histogram.edges()
    just_below = np.nextafter(edges.astype(np.float32), np.float32(0))
    x = torch.from_numpy(np.concatenate([edges, -edges, just_below, [0.0, -0.0]]))

    counts = stats_of(x, Axes(None, 0, len(x))).histogram.counts

    assert counts.tolist() == naive_bins(x.tolist()).tolist()
    assert counts[Histogram.SIDE] == 3  # two zeros and what lies just below the smallest edge


def test_bins_agree_with_numpys_histogram():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)).abs()
    edges = Histogram.edges()

    counts = stats_of(x, Axes(None, 0, len(x))).histogram.counts[Histogram.SIDE + 1 :]

    expected = np.histogram(double(x), edges)[0]
    assert counts[:-1].tolist() == expected[:-1].tolist()


def test_counts_are_exact_beyond_the_whole_numbers_of_float32():
    n = 2**24 + 1
    x = torch.zeros(1).expand(n)

    stats = stats_of(x, histogram=False)

    assert (stats.count, stats.zeros, stats.total) == (n, n, n)


def test_the_histogram_can_be_left_out():
    assert stats_of(torch.randn(4), histogram=False).histogram is None


# -- units and samples ------------------------------------------------------------------------


def test_more_units_than_one_can_read_have_no_numbers_of_their_own():
    assert stats_of(torch.zeros(1, MOST_UNITS), Axes(1)).units is not None
    assert stats_of(torch.zeros(1, MOST_UNITS + 1), Axes(1)).units is None


@pytest.mark.parametrize(
    ("shape", "batch", "samples"),
    [
        ((12, 7), 0, 12),
        ((7, 12), 1, 12),
        ((12, 12), 0, 12),
        ((12, 700), 0, 12),
        ((5, 12, 3), 1, 12),
        ((12 * 5, 3), 0, 12),
        ((12, 40, 40), 0, 12),
    ],
)
@pytest.mark.parametrize("unit", [None, 0, -1])
def test_the_probe_follows_fixed_elements_across_samples(shape, batch, samples, unit):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    probe = stats_of(x, Axes(unit and unit % len(shape), batch, samples)).probe

    values = np.moveaxis(double(x), batch, 0).reshape(samples, -1)
    width = values.shape[1]
    picked = spread(width, PROBES)
    assert probe.samples == samples
    assert math.prod(probe.shape) == width
    assert probe.mean == pytest.approx(values[:, picked].mean(0), abs=1e-6)
    assert probe.m2 == pytest.approx(values[:, picked].var(0) * samples, rel=1e-5)
    assert probe.spread == pytest.approx(math.sqrt(values[:, picked].var(0).mean()), rel=1e-5)


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_neither_tiny_nor_huge_values_are_lost_in_what_is_followed(magnitude):
    x = torch.randn(12, 40, 3, generator=torch.Generator().manual_seed(0)) * magnitude

    probe = stats_of(x, Axes(2, 0, 12)).probe

    values = double(x).reshape(12, -1)
    assert probe.spread == pytest.approx(math.sqrt(values.var(0).mean()), rel=1e-5)


def test_without_a_sample_axis_nothing_is_followed():
    assert stats_of(torch.randn(6, 2)).probe is None
    assert stats_of(torch.randn(7, 2), Axes(None, 0, 3)).probe is None


def test_what_is_not_finite_is_not_followed():
    x = torch.tensor([[1.0, math.nan], [3.0, 2.0]])

    assert stats_of(x, Axes(None, 0, 2)).probe.mean.tolist() == [2.0, 1.0]


# -- small tensors together, large ones in blocks -----------------------------------------------


def test_small_tensors_of_one_kind_measured_together_are_what_they_are_alone():
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(8, 4, 3, generator=generator) * 10.0**k for k in range(-20, 20)]
    xs[3][0, 0, 0], xs[5][1, 2, 0], xs[7][:] = math.nan, -math.inf, 0
    axes, flat = Axes(1, 0, 8), ((-math.inf, 0.0), (2.0, math.inf))
    meter = Meter()
    for x in xs:
        meter.stats(x, axes)
        meter.stats(x[0])  # another kind in between
        meter.flat(x, flat, axes)
        meter.directions(x, 1)

    results = meter.collect()

    for x, stats, part, found, direction in zip(
        xs, *(results[k::4] for k in range(4)), strict=True
    ):
        assert_same(stats, stats_of(x, axes))
        assert_same(part, stats_of(x[0]))
        assert_same(found, flat_of(x, flat, axes))
        assert_same(direction, directions_of(x, 1))


def assert_same(a, b, size=0.0):
    size = np.nan_to_num(np.max(getattr(a, "std", size)))
    for name, value in vars(a).items():
        other = getattr(b, name)
        if hasattr(value, "__dict__"):
            assert_same(value, other, size)
        elif value is None:
            assert other is None
        else:
            near = {"mean": 1e-6 * size, "total": 1e-6 * getattr(a, "vectors", 0)}.get(name, 0)
            np.testing.assert_allclose(value, other, rtol=1e-5, atol=near, err_msg=name)


def test_more_than_a_group_holds_are_all_there():
    xs = [torch.full((64,), float(k)) for k in range(2 * GATHERED // 64 + 3)]
    meter = Meter()

    places = [meter.stats(x) for x in xs]

    results = meter.collect()
    assert places == list(range(len(xs))) == [stats.mean for stats in results]


@pytest.mark.parametrize(
    ("shape", "unit"),
    [
        ((3 * BLOCK,), None),
        ((1, 3 * BLOCK), 0),
        ((3 * BLOCK, 1), 1),
        ((1, 5, BLOCK), 1),
        ((40, 7, 2000), 1),
        ((40, 7, 2000), 2),
        ((7, 40, 2000), 0),
        ((2, 3, 2, BLOCK // 2 + 1), None),
    ],
)
@pytest.mark.parametrize("odd", [0.0, math.nan, math.inf, 1e30, 1e-30])
def test_a_large_tensor_in_blocks_is_numpys(shape, unit, odd):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
    x.view(-1)[[0, -1, x.numel() // 2]] = odd

    check_against_numpy(x, Axes(unit))

    values = double(x)
    found = flat_of(x, ((-math.inf, 0.0), (4.0, 5.0)), Axes(unit))
    inside = (values <= 0) | ((values >= 4) & (values <= 5))
    assert found.flat == inside.sum()
    if unit is not None:
        others = tuple(a for a in range(x.dim()) if a != unit)
        assert found.open.tolist() == (~inside.all(others)).tolist()


@pytest.mark.parametrize(
    ("shape", "unit"), [((900, 400), 1), ((4, 400, 900), 1), ((4, 90, 1000), 2)]
)
def test_directions_of_a_large_tensor_are_numpys(shape, unit):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.2
    x[0] = 0

    found = directions_of(x, unit)

    vectors = np.moveaxis(double(x), unit, -1).reshape(-1, shape[unit])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert found.vectors == (lengths > 0).sum()
    total = (vectors / np.where(lengths > 0, lengths, 1)).sum(0)
    np.testing.assert_allclose(found.total, total, rtol=1e-4)


@pytest.mark.parametrize("shape", [(200, 5), (200_000, 5), (20, 5, 20_000)])
def test_a_first_value_far_from_the_rest_spoils_no_spread(shape):
    # Deviations are taken from the first value: this is the worst it can be.
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[0] = 1e4

    check_against_numpy(x, Axes(1))


@pytest.mark.parametrize("asked", [(0, 1, 2), (2, 0, 1), (0, 0, 0, 0), (1,), (2, 2, 0)])
def test_what_is_asked_of_a_copy_is_said_of_that_one(asked):
    xs = [torch.randn(6, 5) + k for k in range(3)]
    meter = Meter()
    copies = [meter.stats(x, Axes(1, 0, 6)) for x in xs]

    places = [(k, meter.directions(xs[k], 1, of=copies[k])) for k in asked]
    places += [(k, meter.flat(xs[k], ((-1.0, 1.0),), Axes(1), of=copies[k])) for k in asked]

    found = meter.collect()
    for k, place in places[: len(asked)]:
        lengths = xs[k].norm(dim=1, keepdim=True)
        np.testing.assert_allclose(found[place].total, (xs[k] / lengths).sum(0), rtol=1e-4)
    for k, place in places[len(asked) :]:
        assert found[place].flat == (xs[k].abs() <= 1).sum()


# -- flat parts -------------------------------------------------------------------------------


@tried(80)
@given(tensor=tensors((torch.float32, torch.float16)), unit=st.booleans(), where=st.integers(0, 3))
def test_flat_values_and_open_units_are_those_of_a_loop(tensor, unit, where):
    axis = where % tensor.dim()
    flat = ((-math.inf, -0.5), (0.25, 0.75), (1.5, math.inf))

    found = flat_of(tensor, flat, Axes(axis if unit else None, None, 3))

    x = double(tensor)
    inside = np.zeros(x.shape, bool)
    for low, high in flat:
        inside |= (x >= low) & (x <= high)
    assert (found.samples, found.count, found.flat) == (3, x.size, inside.sum())
    assert found.share == pytest.approx(inside.mean())
    if unit:
        opened = [not np.take(inside, u, axis).all() for u in range(x.shape[axis])]
        assert found.open.tolist() == opened
        assert found.closed == opened.count(False)
    else:
        assert found.open is None
        assert found.closed == 0


def test_the_ends_of_a_flat_part_belong_to_it():
    x = torch.tensor([0.0, -0.0, 1.0, 0.5])

    assert flat_of(x, ((-math.inf, 0.0), (1.0, 1.0))).flat == 3


# -- directions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "unit"), [((9, 5), 1), ((4, 3, 5), 2), ((4, 5, 3, 2), 1), ((5, 7), 0)]
)
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_the_mean_cosine_is_that_over_all_pairs(shape, unit, magnitude):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.4) * magnitude

    found = directions_of(x, unit)

    vectors = np.moveaxis(double(x), unit, -1).reshape(-1, shape[unit])
    unit_length = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [float(a @ b) for a, b in itertools.combinations(unit_length, 2)]
    assert found.vectors == len(vectors)
    assert found.mean_cosine == pytest.approx(np.mean(pairs), abs=1e-5)


def test_zero_vectors_and_vectors_that_are_not_finite_have_no_direction():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [2.0, 0.0]])

    found = directions_of(x, 1)

    assert found.vectors == 2
    assert found.mean_cosine == pytest.approx(1.0)


def test_too_wide_or_too_narrow_vectors_are_left_out():
    assert directions_of(torch.ones(4, 1), 1) is None
    assert directions_of(torch.ones(2, MOST_DIRECTIONS + 1), 1) is None


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_every_layout_reads_as_dense_real_numbers():
    x = torch.tensor([[0.0, 1.5], [-2.0, 0.0]])
    for stored in (
        x.to_sparse(),
        x.to_sparse_csr(),
        x.t().contiguous().t(),
        x[None].expand(3, 2, 2)[0],
    ):
        assert torch.equal(readable(stored), x)
    quantized = torch.quantize_per_tensor(x, 0.5, 0, torch.qint8)
    assert torch.equal(readable(quantized), x)
    assert readable(torch.tensor([1 + 2j]).conj()).tolist() == [[1.0, -2.0]]
    assert readable(torch.tensor([1 + 2j]).conj().imag).tolist() == [-2.0]
    assert readable(torch.ones(1, dtype=torch.float8_e4m3fn)).dtype == torch.float32
    assert readable(x.requires_grad_()).requires_grad is False


def test_everything_crosses_from_the_device_in_one_transfer(monkeypatch):
    moves = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: moves.append(x.numel()) or cpu(x))
    monkeypatch.setattr(layout, "is_on_cpu", lambda _: False)

    meter = Meter()
    for k in range(5):
        meter.stats(torch.full((3,), float(k)))
        meter.stats(torch.full((SMALL + k,), float(k)))
        meter.flat(torch.full((3, k + 1), float(k)), ((0.0, 1.0),), Axes(1))
    results = meter.collect()

    assert len(moves) == 1
    assert [r.mean for r in results[::3]] == [r.mean for r in results[1::3]] == [0, 1, 2, 3, 4]
    assert [r.flat for r in results[2::3]] == [3, 6, 0, 0, 0]
    assert Meter().collect() == []


def test_the_tensor_is_left_as_it_was():
    x = torch.tensor([math.nan, -0.0, 3.0])
    before, version = x.clone(), x._version

    stats_of(x, Axes(0, 0, 3))

    assert torch.equal(x, before) or torch.isnan(x[0])
    assert x._version == version
    assert math.copysign(1, x[1]) == -1


@tried(60)
@given(tensor=tensors(), unit=st.booleans(), where=st.integers(0, 3))
def test_what_spares_a_gpu_from_waiting_gives_the_same(tensor, unit, where):
    axes = Axes(where % tensor.dim() if unit else None, 0, len(tensor))
    flat = ((-math.inf, -0.5), (0.25, 0.75))
    here = stats_of(tensor, axes), flat_of(tensor, flat, axes), directions_of(tensor, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "is_on_cpu", lambda _: False)
        check_against_numpy(tensor, axes)
        there = stats_of(tensor, axes), flat_of(tensor, flat, axes), directions_of(tensor, 0)

    for a, b in zip(here, there, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_same(a, b)
