"""The properties of a weight initialiser: ``check_initializer(nn.init.xavier_normal_)``.

It draws weights of six shapes, (out, in, *kernel), of dense layers and convolutions, with torch's
fans: fan_in = in · taps and fan_out = out · taps. Random numbers are compared with their
distribution by chance. All seeds are fixed, so that the result is always the same. A property fails
a correct initialiser in one case of a million.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from nndiag.errors import SettingsError, did_you_mean
from nndiag.testing.battery import Battery, NotApplicable, battery, must, one_line, parametrized

if TYPE_CHECKING:
    import pytest
    import torch

__all__ = [
    "INITIALIZER",
    "RATE",
    "Initializer",
    "Law",
    "Shape",
    "check_initializer",
    "draws",
    "dtype_kept",
    "finite",
    "generator_honoured",
    "in_place",
    "independent",
    "mean_zero",
    "on_parameters",
    "parametrize_initializers",
    "rows_differ",
    "scale_free_of_layout",
    "seed_honoured",
    "takes",
    "variance_law",
]

Shape = tuple[int, ...]
Law = Callable[[int, int], float]

RATE = 1e-6
"""The rate at which a property may fail a correct initialiser, over all shapes."""

# No two laws of _BASES agree on them, nor does any with its fans swapped or its kernel forgotten.
_SHAPES: Mapping[Shape, str] = {
    (128, 128): "dense",
    (256, 64): "dense",
    (64, 256): "dense",
    (96, 32, 5): "Conv1d",
    (32, 48, 3, 5): "Conv2d",
    (48, 16, 2, 3, 4): "Conv3d",
}
_LARGE = (256, 320)  # has more weights than float16 can count
_DTYPES = ("float64", "float32", "bfloat16", "float16")
_DRAWS = 8  # of each shape, where numbers are held against a distribution
_EXACT = 0.01  # for what is not drawn; the variance of eye(n), say, is (1 - 1/n) / n


@dataclass(frozen=True)
class Initializer:
    """``fn(tensor)`` draws a weight in place, with ``variance(fan_in, fan_out)`` if that is given.

    ``fn`` may take ``generator=``, and refuse a shape by a ValueError, as torch.nn.init's do.
    """

    fn: Callable[..., Any]
    variance: Law | None = None

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        """Those that it does not refuse."""
        import torch

        taken, refusal = [], ""
        for shape in _SHAPES:
            try:
                with _at(0):
                    self.fn(torch.zeros(shape))
            except (ValueError, NotImplementedError) as error:
                refusal = refusal or f"f32{list(shape)}: {one_line(error)}"
                continue
            except Exception:
                pass  # no refusal: each property that draws this shape reports the error
            taken.append(shape)
        must(taken, f"it accepts no weight of any shape: {refusal}")
        return taken

    @functools.cached_property
    def weights(self) -> dict[Shape, torch.Tensor]:
        """One of each shape, in double precision."""
        return {shape: self.drawn(shape, 0) for shape in self.shapes}

    @functools.cached_property
    def random(self) -> bool:
        """Whether another seed gives other weights."""
        shape = self.shapes[0]
        return not _same(self.weights[shape], self.drawn(shape, 1))

    def samples(self) -> Iterator[tuple[Shape, torch.Tensor]]:
        """Of each shape several weights, (number, out, in, *kernel); not kept, they are large."""
        import torch

        for shape, weight in self.weights.items():
            others = range(1, _DRAWS) if self.random else ()
            yield shape, torch.stack([weight, *(self.drawn(shape, seed) for seed in others)])

    def drawn(self, shape: Shape, seed: int, **options: Any) -> torch.Tensor:
        """A weight in double precision, drawn in single from ``seed``, of each shape another."""
        import torch

        tensor = torch.zeros(shape)
        with _at(1000 * seed + list(_SHAPES).index(shape)):  # or shapes would share their numbers
            self.call(tensor, **options)
        return tensor.detach().double()

    def call(self, tensor: torch.Tensor, **options: Any) -> Any:
        """What ``fn`` returns.

        Raises:
            AssertionError: it raised something.
        """
        from nndiag.batch import describe

        try:
            return self.fn(tensor, **options)
        except Exception as error:
            raise AssertionError(f"on {describe(tensor)} it raises {one_line(error)}") from error

    def must_draw(self) -> None:
        """
        Raises:
            NotApplicable: nothing is random.
        """
        if not self.random:
            raise NotApplicable("it is not random: every seed gives the same weights")


# -- what it does to a tensor ---------------------------------------------------------------------


def takes(block: Initializer) -> str:
    """The kinds of weights that it accepts, without a ValueError: check that none is missing."""
    return ", ".join(dict.fromkeys(_SHAPES[shape] for shape in block.shapes))


def finite(block: Initializer) -> None:
    """It raises no error and draws no NaN or infinity, in single, double and half precision."""
    dense = all(shape in block.shapes for shape, kind in _SHAPES.items() if kind == "dense")
    for shape in [*block.shapes, *([_LARGE] if dense else [])]:
        for tensor in _in_each_dtype(shape):
            _drawing(block, tensor)
            bad = int((~tensor.isfinite()).sum())
            must(
                not bad,
                f"{bad} of {tensor.numel()} weights of {_named(tensor)} are NaN or infinite",
            )


def dtype_kept(block: Initializer) -> None:
    """The tensor keeps its dtype, its shape, its strides and its requires_grad."""
    for shape in block.shapes:
        for tensor in _in_each_dtype(shape):
            before, name = _form(tensor), _named(tensor)
            try:
                _drawing(block, tensor)
            except AssertionError:  # `finite` reports that it raises
                continue
            for what, was in before.items():
                now = _form(tensor)[what]
                must(now == was, f"the {what} of {name} was {was}, and is {now} afterwards")


def in_place(block: Initializer) -> None:
    """It writes every value into the tensor's own memory, and returns that tensor or None."""
    import torch

    for shape in block.shapes:
        tensor = torch.full(shape, math.nan)
        memory = tensor.data_ptr()
        returned = _drawing(block, tensor)
        must(
            returned is None or returned is tensor,
            f"for {_named(tensor)} it returns another tensor, {_named(returned)}",
        )
        must(
            tensor.data_ptr() == memory,
            f"{_named(tensor)} has new memory, so that tied weights and views keep the old "
            "values. Write with copy_(), not to tensor.data",
        )
        left = int(tensor.isnan().sum())
        must(
            not left,
            f"{left} of {tensor.numel()} weights of {_named(tensor)} are NaN, as all were before: "
            "not written, or computed from the old values",
        )


def on_parameters(block: Initializer) -> None:
    """It accepts an nn.Parameter, keeps it a leaf, and does not switch gradients on or off."""
    import torch
    from torch import nn

    for shape in block.shapes:
        for on in (True, False):
            weight = nn.Parameter(torch.zeros(shape))
            with _at(0), torch.set_grad_enabled(on):
                block.call(weight)
                left = torch.is_grad_enabled()
            must(left == on, f"gradients were {_on(on)}, and are {_on(left)} afterwards")
            must(
                weight.is_leaf,
                f"{_named(weight)} is no leaf afterwards, and no optimiser takes it: draw it under "
                "torch.no_grad()",
            )
            must(weight.requires_grad, f"{_named(weight)} requires no gradient afterwards")


def scale_free_of_layout(block: Initializer) -> None:
    """A weight with other strides follows the same law, and nothing beside a view is written."""
    import scipy.stats

    def band(a: float, b: float) -> tuple[float, float]:
        rate = RATE / (2 * len(block.shapes))
        return scipy.stats.f.ppf(rate / 2, a, b), scipy.stats.f.isf(rate / 2, a, b)

    for shape, plain in block.weights.items():
        for layout, tensor, beside in _layouts(shape):
            _drawing(block, tensor)
            where = f"{_named(tensor)} {layout}"
            must(not bool(beside.any()), f"{where}: it writes beside the view")
            drawn = tensor.double()
            if not block.random or _is_constant(plain):
                must(_same(drawn, plain), f"{where} gets other values than a contiguous one")
                continue
            one, other = _Spread.of(plain), _Spread.of(drawn)
            low, high = (math.sqrt(b * one.variance) for b in band(other.freedom, one.freedom))
            must(
                low <= other.std <= high,
                f"{where}: the std is {other.std:.4g}, allowed is {low:.4g} to {high:.4g}, as that "
                f"of a contiguous one is {one.std:.4g}",
            )


# -- what it draws --------------------------------------------------------------------------------


def mean_zero(block: Initializer) -> None:
    """The mean of n weights is zero, to a standard error of std/√n (central limit theorem)."""
    errors = NormalDist().inv_cdf(1 - RATE / (2 * len(block.shapes)))
    for shape, drawn in block.samples():
        spread = _Spread.of(drawn)
        mean, allowed = float(drawn.mean()), errors * spread.std / math.sqrt(drawn.numel())
        must(
            abs(mean) <= allowed,
            f"the mean of f32{list(shape)} is {mean:.4g}, allowed is ±{allowed:.2g}, "
            f"{errors:.1f} standard errors; the std is {spread.std:.4g}",
        )


def variance_law(block: Initializer) -> str | None:
    """The variance is what is claimed, of each shape and of all together; or which law it follows.

    1/fan_in: LeCun et al. 1998 section 4.6. 2/(fan_in+fan_out): Glorot & Bengio 2010 eq. 12 and,
    uniform, 16. 2/fan_in and 2/fan_out: He et al. 2015 eq. 10 and 14. 1/max(fan_in, units): a
    matrix with orthonormal rows or columns, Saxe et al. 2013; of a dense layer that is
    1/max(fan_in, fan_out), too. 1/(3 fan_in): U(±1/√fan_in), torch's default and the "standard
    heuristic" of Glorot & Bengio 2010 eq. 1 and 15. "constant c" is a variance, whatever the shape.

    Of n weights from a normal distribution the sample variance is that of the law times χ²/(n - 1),
    with n - 1 degrees of freedom. With a kurtosis κ > 3 there are 2(n - 1)/(κ - 1) of them, which
    gives the variance its own variance, σ⁴ (κ - 1)/n; with a lower one, as of a uniform
    distribution's, the band is wider than it need be.
    """
    spreads = {shape: _Spread.of(w, drawn=block.random) for shape, w in block.samples()}
    if block.variance is None:
        return _law(spreads)
    rate, ratios, instead = RATE / (len(spreads) + 1), [], _fitting_law_text(spreads)
    for shape, spread in spreads.items():
        claimed = _claimed(block.variance, shape)
        low, high = (math.sqrt(claimed * b) for b in _band(spread.freedom, rate))
        must(
            low <= spread.std <= high,
            f"the std of f32{list(shape)} (fan_in {_fan_in(shape)}, fan_out {_fan_out(shape)}) is "
            f"{spread.std:.4g}, allowed is {low:.4g} to {high:.4g}{instead}",
        )
        if claimed:
            ratios.append((spread.variance / claimed, spread.freedom))
    if ratios:
        ratio, freedom = _pooled(ratios)
        low, high = (math.sqrt(b) for b in _band(freedom, rate))
        must(
            low <= math.sqrt(ratio) <= high,
            f"over all shapes the std is {math.sqrt(ratio):.4g} times the claimed one, allowed is "
            f"{low:.4g} to {high:.4g}{instead}",
        )
    return None


def independent(block: Initializer) -> None:
    """The weights of a unit are uncorrelated, and so are those of an input.

    Sums over uncorrelated units have the sum of their variances, and χ² says how closely. Of two
    units alone, Σab/√(Σa²b²) exceeds t with a probability of 2 exp(-t²/2) at most, whatever the
    distribution, if it is symmetric (Hoeffding 1963 theorem 2, given the sizes).
    """
    block.must_draw()
    rate = RATE / (4 * len(block.shapes))
    for shape, weights in block.samples():
        drawn = (weights - weights.mean()).flatten(2)
        _uncorrelated("units", shape, drawn.transpose(0, 1).flatten(1), rate)
        _uncorrelated("inputs", shape, drawn.permute(2, 0, 1).flatten(1), rate)


def rows_differ(block: Initializer) -> None:
    """No two units start equal: with equal gradients they would stay equal (lecture slide 41)."""
    import torch

    for shape, weight in block.weights.items():
        rows = weight.flatten(1)
        kinds, kind = torch.unique(rows, dim=0, return_inverse=True)
        if len(kinds) < len(rows):
            twice = int(kind.bincount().argmax())
            first, second = (kind == twice).nonzero().flatten()[:2].tolist()
            raise AssertionError(
                f"units {first} and {second} of f32{list(shape)} have the same weights; "
                f"of {len(rows)} units {len(kinds)} are different"
            )


# -- where it comes from --------------------------------------------------------------------------


def draws(block: Initializer) -> bool:
    """Whether another seed gives other weights; with a fixed seed inside, it does not."""
    return block.random


def seed_honoured(block: Initializer) -> None:
    """torch.manual_seed decides the weights, and the next layer gets different ones."""
    for shape in block.shapes:
        (one, after), (again, _), (other, later) = (
            _from_seed(block, shape, *seeds) for seeds in ((5, 1), (5, 2), (6, 1))
        )
        what = f"f32{list(shape)}"
        must(
            _same(one, again),
            f"torch.manual_seed(5) gives {what} different weights each time: they also depend on "
            "NumPy, Python, or a generator of its own",
        )
        must(
            after["torch"] != later["torch"],
            f"after {what}, torch's generator is in the same state for any seed: the initialiser "
            "seeds it, so that the next random numbers are always the same",
        )
        if not block.random:
            continue
        must(not _same(one, other), f"torch.manual_seed(5) and (6) give {what} the same weights")
        must(not _same(*_two_layers(block, shape)), f"two layers in a row, {what}, are the same")
    block.must_draw()


def generator_honoured(block: Initializer) -> None:
    """With generator=, that alone decides the weights, and no global generator is used."""
    import torch

    def generator_at(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    if not _takes_generator(block.fn):
        raise NotApplicable("its signature has no generator=")
    for shape in block.shapes:
        with _at(1):
            before = _states()
            block.call(torch.zeros(shape), generator=generator_at(5))
            moved = [name for name, state in _states().items() if state != before[name]]
        what = f"f32{list(shape)}"
        must(
            not moved, f"{what} with a generator also uses the global one of {' and '.join(moved)}"
        )
        one, again, other = (
            block.drawn(shape, seed, generator=generator_at(state))
            for seed, state in ((1, 5), (2, 5), (1, 6))
        )
        must(_same(one, again), f"equal generators give {what} different weights")
        must(not _same(one, other), f"different generators give {what} the same weights")


# -- laws and bands -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spread:
    """A variance, and how many degrees of freedom it has as a sample's."""

    variance: float
    freedom: float

    @classmethod
    def of(cls, values: torch.Tensor, drawn: bool = True) -> _Spread:
        if _is_constant(values):  # by rounding, its variance need not be zero
            return cls(0.0, math.inf)
        squares = (values - values.mean()).square()
        variance, free = float(squares.mean()), values.numel() - 1
        kurtosis = max(3.0, float(squares.square().mean()) / variance**2)
        freedom = 2 * free / (kurtosis - 1) if drawn else math.inf
        return cls(variance * values.numel() / free, freedom)

    @property
    def std(self) -> float:
        return math.sqrt(self.variance)


def _band(freedom: float, rate: float) -> tuple[float, float]:
    """The interval of χ²/freedom, which holds with probability 1 - ``rate``."""
    import scipy.stats

    if freedom == math.inf:
        return 1 - _EXACT, 1 + _EXACT
    low, high = scipy.stats.chi2.ppf(rate / 2, freedom), scipy.stats.chi2.isf(rate / 2, freedom)
    return float(low / freedom), float(high / freedom)


def _pooled(ratios: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Of ratios with their freedoms: the mean and its freedom."""
    weighted = list(ratios)
    total = sum(freedom for _, freedom in weighted)
    if total == math.inf:
        return sum(ratio for ratio, _ in weighted) / len(weighted), total
    return sum(ratio * freedom for ratio, freedom in weighted) / total, total


def _fan_in(shape: Shape) -> int:
    return math.prod(shape[1:])


def _fan_out(shape: Shape) -> int:
    return shape[0] * math.prod(shape[2:])


_BASES: Mapping[str, Callable[[Shape], int]] = {
    "fan_in": _fan_in,
    "fan_out": _fan_out,
    "(fan_in+fan_out)": lambda shape: _fan_in(shape) + _fan_out(shape),
    "max(fan_in, fan_out)": lambda shape: max(_fan_in(shape), _fan_out(shape)),
    "max(fan_in, units)": lambda shape: max(_fan_in(shape), shape[0]),
    "constant": lambda shape: 1,
}


def _law(spreads: Mapping[Shape, _Spread]) -> str:
    """The name of the first law, with the roundest number, that fits all shapes; or "other"."""
    if not any(spread.variance for spread in spreads.values()):
        return "constant 0"
    for name, base in _BASES.items():
        ratios = [(s.variance * base(shape), s.freedom) for shape, s in spreads.items()]
        for law, number in _numbered(name, _pooled(ratios)[0]):
            if _fits([(ratio / number, freedom) for ratio, freedom in ratios]):
                return law
    return "other"


def _numbered(name: str, number: float) -> Iterator[tuple[str, float]]:
    """Laws with that number, or about that, the roundest first."""
    for digits in (1, 2, 3):
        rounded = float(f"{number:.{digits}g}")
        if name == "constant":
            yield f"constant {rounded:g}", rounded
            continue
        yield f"{rounded:g}/{name}", rounded
        if digits == 1:
            yield f"1/(3 {name})", 1 / 3


def _fits(ratios: list[tuple[float, float]]) -> bool:
    rate = RATE / (len(ratios) + 1)
    bands = [(ratio, _band(free, rate)) for ratio, free in (*ratios, _pooled(ratios))]
    return all(low <= ratio <= high for ratio, (low, high) in bands)


def _fitting_law_text(spreads: Mapping[Shape, _Spread]) -> str:
    law = _law(spreads)
    return "" if law == "other" else f". The variance over all shapes fits {law}"


def _claimed(variance: Law, shape: Shape) -> float:
    fans = _fan_in(shape), _fan_out(shape)
    claimed = variance(*fans)
    if not isinstance(claimed, (int, float)) or not 0 <= claimed < math.inf:
        raise SettingsError(
            f"variance({fans[0]}, {fans[1]}) is {claimed!r}. Give a function of fan_in and fan_out "
            "that returns a variance, such as lambda fan_in, fan_out: 2 / fan_in."
        )
    return claimed


def _uncorrelated(what: str, shape: Shape, lines: torch.Tensor, rate: float) -> None:
    count, variance = len(lines), float(lines.square().mean())
    sums = _Spread.of(lines.sum(0))
    low, high = (math.sqrt(count * variance * b) for b in _band(sums.freedom, rate))
    must(
        low <= sums.std <= high,
        f"f32{list(shape)}: the sum over its {count} {what} has a std of {sums.std:.4g}, allowed "
        f"is {low:.4g} to {high:.4g} for uncorrelated weights",
    )
    squares = lines.square()
    product, error = lines @ lines.T, (squares @ squares.T).sqrt()
    far = (product.abs() / error.clamp_min(1e-300)).fill_diagonal_(0)
    largest = math.sqrt(2 * math.log(count * (count - 1) / rate))
    a, b = divmod(int(far.argmax()), count)
    size = math.sqrt(float(product[a, a] * product[b, b])) or 1.0
    must(
        float(far[a, b]) <= largest,
        f"f32{list(shape)}: {what} {a} and {b} have a correlation of {product[a, b] / size:.3f}, "
        f"allowed is ±{largest * float(error[a, b]) / size:.2g}",
    )


# -- tensors and generators -----------------------------------------------------------------------


@contextlib.contextmanager
def _at(seed: int) -> Iterator[None]:
    """Seed every global generator; afterwards they and autograd are restored."""
    import torch

    from nndiag.capture.untouched import seeded

    with seeded(seed), torch.set_grad_enabled(True):
        yield


def _in_each_dtype(shape: Shape) -> Iterator[torch.Tensor]:
    import torch

    for dtype in _DTYPES:
        yield torch.zeros(shape, dtype=getattr(torch, dtype))


def _drawing(block: Initializer, tensor: torch.Tensor) -> Any:
    """What it returns."""
    with _at(0):
        return block.call(tensor)


def _layouts(shape: Shape) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Not contiguous, with what lies beside."""
    import torch

    axes = range(len(shape) - 1, -1, -1)
    yield "transposed", torch.zeros([shape[a] for a in axes]).permute(*axes), torch.zeros(0)
    whole = torch.zeros(2 * shape[0], *shape[1:])
    yield "of every other row", whole[::2], whole[1::2]


def _from_seed(
    block: Initializer, shape: Shape, seed: int, others: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """What it draws with torch's generator at ``seed``, and the states afterwards."""
    import torch

    tensor = torch.zeros(shape)
    with _at(others):
        # As in `seeded`, not torch.manual_seed: it queues seeds for devices nobody has started.
        torch.default_generator.manual_seed(seed)
        block.call(tensor)
        return tensor, _states()


def _two_layers(block: Initializer, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    first, second = torch.zeros(shape), torch.zeros(shape)
    with _at(0):
        block.call(first)
        block.call(second)
    return first, second


def _states() -> dict[str, Any]:
    """Of the global random generators on the CPU."""
    import numpy as np
    import torch

    _, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "NumPy": (np.asarray(keys).tobytes(), rest),
        "Python": random.getstate(),
    }


def _takes_generator(fn: Callable[..., Any]) -> bool:
    try:
        return "generator" in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # built in C++
        return False


def _is_constant(values: torch.Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """NaN is NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _form(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "dtype": tensor.dtype,
        "shape": tuple(tensor.shape),
        "stride": tensor.stride(),
        "requires_grad": tensor.requires_grad,
    }


def _named(thing: Any) -> str:
    from nndiag.batch import describe

    return describe(thing)


def _on(flag: bool) -> str:
    return "on" if flag else "off"


INITIALIZER: Battery[Initializer] = battery(
    "initialiser",
    [
        takes, draws, finite, dtype_kept, in_place, on_parameters, scale_free_of_layout, mean_zero,
        variance_law, independent, rows_differ, seed_honoured, generator_honoured,
    ],
)  # fmt: skip


def check_initializer(
    fn: Callable[..., Any],
    *,
    variance: Law | None = None,
    declared: Mapping[str, str] | None = None,
    expect: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check a weight initialiser of your own, as scikit-learn's ``check_estimator`` does.

    Args:
        fn: draws the weights of a tensor, ``(out, in, *kernel)``, in place, as torch.nn.init's do.
            It may take ``generator=``, and raise a ValueError for shapes that it is not for.
        variance: which variance they are to have, ``lambda fan_in, fan_out: 2 / fan_in``. Without
            it, the law that they follow is a trait.
        declared: laws that do not hold and why, ``{"mean-zero": "a gain: it starts at one"}``. Once
            one does hold, that is a failure, too.
        expect: traits, ``{"variance-law": "2/fan_in", "takes": "dense"}``.

    Returns:
        the traits, as measured.

    Raises:
        FindingsError: what does not hold, what was measured and what is allowed.
        SettingsError: no such property, no reason, or no function.
    """
    __tracebackhide__ = True
    _check_arguments(fn, variance)
    return INITIALIZER.check(_called(fn), Initializer(fn, variance), declared, expect)


def parametrize_initializers(
    fns: Mapping[str, Callable[..., Any]],
    *,
    variance: Mapping[str, Law] | None = None,
    declared: Mapping[str, Mapping[str, str]] | None = None,
    expect: Mapping[str, Mapping[str, Any]] | None = None,
) -> pytest.MarkDecorator:
    """A test for each initialiser and property, over ``def test_initializers(check): check()``.

    ``variance``, ``declared`` and ``expect`` are those of :func:`check_initializer`, by the
    initialisers' names.
    """
    for name in variance or {}:
        if name not in fns:
            raise SettingsError(
                f"variance[{name!r}]: there is no such initialiser.{did_you_mean(name, fns)} "
                f"Choose one of: {', '.join(fns)}."
            )
    blocks = {}
    for name, fn in fns.items():
        law = (variance or {}).get(name)
        _check_arguments(fn, law)
        blocks[name] = functools.partial(Initializer, fn, law)
    return parametrized(INITIALIZER, blocks, declared, expect)


def _check_arguments(fn: object, variance: object) -> None:
    """
    Raises:
        SettingsError: one of them is no function.
    """
    if not callable(fn):
        raise SettingsError(
            f"{fn!r} is no function of a tensor. Give one, such as torch.nn.init.xavier_normal_."
        )
    if variance is not None and not callable(variance):
        raise SettingsError(
            f"variance is {variance!r}. Give a function of fan_in and fan_out, such as "
            "lambda fan_in, fan_out: 2 / fan_in."
        )


def _called(fn: Any) -> str:
    """``kaiming_normal_(mode='fan_out')``: a name without an address."""
    if isinstance(fn, functools.partial):
        given = [*map(repr, fn.args), *(f"{name}={value!r}" for name, value in fn.keywords.items())]
        return f"{_called(fn.func)}({', '.join(given)})"
    return getattr(fn, "__name__", None) or repr(fn)
