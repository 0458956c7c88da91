"""The properties of a normalisation layer, checked before a network is built on it.

A fresh module is checked: its affine weight is 1 and its bias 0, so its output is the normalised
input. ``check_normalizer(lambda: MyNorm(16))`` checks all, ``parametrize_normalizers`` makes a test
for each property.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nndiag.errors import ModelError, SettingsError, did_you_mean
from nndiag.testing.battery import Battery, NotApplicable, battery, must, one_line, parametrized

if TYPE_CHECKING:
    import pytest
    import torch
    from torch import nn

__all__ = [
    "LARGEST_EPS",
    "NORMALIZER",
    "SHAPE",
    "Axes",
    "Normalizer",
    "axes",
    "batch_of_one",
    "check_normalizer",
    "constant_input",
    "deterministic",
    "dtype_kept",
    "evaluation_is_affine",
    "evaluation_of_one",
    "gradient",
    "gradient_scales_inversely",
    "large_mean",
    "mean_zero",
    "parametrize_normalizers",
    "running_statistics",
    "scale_invariant",
    "variance_one",
]

Axes = Literal["batch", "sample", "group", "channel", "rms"]
Value = TypeVar("Value")

SHAPE = (64, 16)
LARGEST_EPS = 1e-3
"""Keras' default, a hundred times torch's. With a larger eps the variance is visibly not 1."""


@dataclass(frozen=True)
class Normalizer:
    """How to build one, and the shape of its inputs: samples first, channels second."""

    factory: Callable[[], nn.Module]
    shape: tuple[int, ...] = SHAPE

    def __post_init__(self) -> None:
        built = hasattr(self.factory, "state_dict") and not isinstance(self.factory, type)
        if built or not callable(self.factory):
            raise SettingsError(
                f"factory is {type(self.factory).__name__}: give a function that builds a fresh "
                "normaliser, such as lambda: nn.LayerNorm(16)."
            )
        # Two values become 1 and -1 in any normaliser.
        if len(self.shape) < 2 or self.shape[0] < 3 or self.shape[1] < 2 or min(self.shape) < 1:
            raise SettingsError(
                f"shape is {self.shape}. Samples come first, at least 3, and channels second, at "
                "least 2."
            )

    def module(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A fresh one in training mode; in float64 unless another dtype is given."""
        import torch

        module = self.factory()
        if not isinstance(module, torch.nn.Module):
            raise ModelError(f"the factory gives {type(module).__name__}, not a torch.nn.Module.")
        return module.to(dtype or torch.float64).train()


# -- what it is looked at with ----------------------------------------------------------------


def _undisturbed(law: Callable[[Normalizer], Value]) -> Callable[[Normalizer], Value]:
    """A property that draws the same numbers each time and leaves the generators as they were."""

    @functools.wraps(law)
    def seeded_law(block: Normalizer) -> Value:
        import torch

        from nndiag.capture.untouched import seeded

        with seeded(0), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the result must not depend on the caller's filters
            return law(block)

    return seeded_law


def _drawn(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Every channel of every sample with a mean and a scale of its own, and no mean near 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    unit = (*shape[:2], *(1 for _ in shape[2:]))
    scale = 0.5 + 1.5 * torch.rand(unit, generator=generator, dtype=torch.float64)
    shift = 2 + torch.randn(unit, generator=generator, dtype=torch.float64)
    return shift + scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def _through(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output. If the module raises, the law that called it fails."""
    import torch

    from nndiag.batch import describe

    try:
        y = module(x.clone())  # some normalise in place
    except Exception as error:
        mode = "training" if module.training else "eval"
        raise AssertionError(
            f"given {describe(x)} in {mode} mode it raises {one_line(error)}"
        ) from error
    same = isinstance(y, torch.Tensor) and y.shape == x.shape
    must(
        same,
        f"its output is {describe(y)} for an input of {describe(x)}: the shape must not change",
    )
    return y  # type: ignore[no-any-return]


def _most(x: torch.Tensor) -> float:
    """NaN counts as infinite, so that no comparison passes on it."""
    most = float(x.detach().abs().max())
    return math.inf if math.isnan(most) else most


def _finite(x: torch.Tensor, what: str) -> None:
    bad = int((~x.isfinite()).sum())
    must(bad == 0, f"{what}: {bad} of {x.numel()} values are NaN or infinite, allowed are 0")


@dataclass(frozen=True)
class _Over:
    """Which values are normalised together: a unit, of which each sample has ``parts``."""

    name: Axes
    parts: int

    def units(self, x: torch.Tensor) -> torch.Tensor:
        """``[units, values]``."""
        if self.name == "batch":
            return x.movedim(1, 0).reshape(x.shape[1], -1)
        return x.reshape(len(x) * self.parts, -1)

    def whole(self, units: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """:meth:`units`, undone."""
        if self.name == "batch":
            return units.reshape(shape[1], shape[0], *shape[2:]).movedim(0, 1).contiguous()
        return units.reshape(shape)

    def variance(self, x: torch.Tensor) -> torch.Tensor:
        """Of each unit; about 0 where the mean is not taken out."""
        units = self.units(x)
        centre = 0 if self.name == "rms" else units.mean(1, keepdim=True)
        return (units - centre).square().mean(1)

    def standardised(self, x: torch.Tensor) -> torch.Tensor:
        """Every unit with mean 0 and variance 1, so that no eps matters."""
        units = self.units(x)
        centred = units - units.mean(1, keepdim=True)
        return self.whole(centred / centred.square().mean(1, keepdim=True).sqrt(), tuple(x.shape))


def _candidates(shape: tuple[int, ...]) -> Iterator[_Over]:
    """The finest units first: a norm without each channel's scale lacks each sample's, too."""
    channels = shape[1]
    for parts in range(channels, 0, -1):
        if channels % parts == 0 and math.prod(shape[1:]) > parts:
            name: Axes = "channel" if parts == channels else "sample" if parts == 1 else "group"
            yield _Over(name, parts)
    yield _Over("batch", 1)


def _normalized_over(block: Normalizer) -> _Over | None:
    """The finest units whose scale does not matter.

    The test is not "output of mean 0 and variance 1": a wrong norm would then seem to normalise
    nothing, and the report would not say what is wrong with it.
    """
    module, x = block.module(), 100 * _drawn(block.shape)  # so that no eps matters
    y = _through(module, x).detach()
    for over in _candidates(block.shape):
        units = over.units(x).clone()
        units[0] *= 3
        again = over.units(_through(module, over.whole(units, block.shape)).detach())[0]
        before = over.units(y)[0]
        if 0 < _most(before) < math.inf and _most(again - before) < 1e-3 * _most(before):
            squares, variance = over.units(y).square().mean(1), over.variance(y)
            rooted = over.name == "sample" and _most(squares - 1) < 0.1 and variance.min() < 0.9
            return _Over("rms", 1) if rooted else over
    return None


def _known(block: Normalizer) -> _Over:
    over = _normalized_over(block)
    if over is None:
        raise NotApplicable("it normalises over no known set of axes")
    return over


def _memory(module: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor] | None:
    """The submodule with running statistics, and their mean and variance."""
    for part in module.modules():
        mean, variance = getattr(part, "running_mean", None), getattr(part, "running_var", None)
        if mean is not None and variance is not None:
            return part, mean, variance
    return None


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}


def _changed(module: nn.Module, before: Mapping[str, torch.Tensor]) -> list[str]:
    import torch

    return [
        name
        for name, now in _buffers(module).items()
        if name not in before or not torch.equal(now, before[name])
    ]


def _trained(block: Normalizer, dtype: torch.dtype | None = None) -> nn.Module:
    """In eval mode, after three batches that differ from the other inputs."""
    module = block.module(dtype)
    for step in range(1, 4):
        x = _drawn(block.shape, seed=step) * step - 1
        _through(module, x.to(dtype or x.dtype))
    return module.eval()


def _remembers(block: Normalizer) -> bool:
    """Whether a batch changes any state except a counter."""
    module = block.module()
    before = _buffers(module)
    _through(module, _drawn(block.shape))
    now = _buffers(module)
    changed = any(now[name].is_floating_point() for name in _changed(module, before))
    return changed or _memory(module) is not None


# -- what comes out in training ---------------------------------------------------------------


@_undisturbed
def axes(block: Normalizer) -> Axes:
    """It normalises each channel over the batch, or each sample, group, channel, or mean square.

    "batch": a channel over samples and positions (Ioffe & Szegedy 2015); "sample": a sample over
    all else (Ba et al. 2016); "group": a sample over groups of channels (Wu & He 2018); "channel":
    a sample's channel over positions (Ulyanov et al. 2016); "rms": a sample to mean square 1, its
    mean left in (Zhang & Sennrich 2019).
    """
    over = _normalized_over(block)
    names = ", ".join(dict.fromkeys(over.name for over in _candidates(block.shape)))
    if over is None:
        raise AssertionError(f"it does not remove the scale of its input over any of {names}")
    return over.name


@_undisturbed
def mean_zero(block: Normalizer) -> None:
    """In training the mean of what is normalised together is 0."""
    over = _known(block)
    if over.name == "rms":
        raise NotApplicable("it normalises the mean square and keeps the mean")
    most = _most(over.units(_through(block.module(), _drawn(block.shape))).mean(1))
    # Some normalise in float32 for any input dtype: `gradient` reports that.
    must(most <= 1e-5, f"a mean over each {over.name} is {most:.3g}, allowed are -1e-05 to 1e-05")


@_undisturbed
def variance_one(block: Normalizer) -> None:
    """In training the variance (of "rms": the mean square) is 1, but for an eps of 1e-3."""
    over = _known(block)
    x = _drawn(block.shape)
    before, after = over.variance(x), over.variance(_through(block.module(), x)).detach()
    eps = before / after - before  # as after = before / (before + eps)
    worst = int(eps.abs().argmax())
    # A little below 0, for those that compute in float32 whatever comes in.
    must(
        -1e-4 <= float(eps[worst]) <= 1.01 * LARGEST_EPS,
        f"a variance over each {over.name} of {before[worst]:.3g} becomes {after[worst]:.4g}, "
        f"as if eps were {eps[worst]:.3g}: allowed are 0 to {LARGEST_EPS:g}",
    )


@_undisturbed
def large_mean(block: Normalizer) -> None:
    """In float32, values of mean 1000 and deviation 1 keep deviation 1, to 1 %."""
    import torch

    over = _known(block)
    if over.name == "rms":
        raise NotApplicable("it normalises the mean square, which is then all mean")
    x = 1e3 + over.standardised(_drawn(block.shape))
    y = _through(block.module(torch.float32), x.float())
    deviation = over.variance(y.detach().double()).sqrt()
    worst = float(deviation[(deviation - 1).abs().argmax()])
    must(
        _most(deviation - 1) <= 0.01,
        f"its deviation is {worst:.4g}, allowed are 0.99 to 1.01: E[x²] - E[x]² loses all digits "
        "if the mean is large",
    )


@_undisturbed
def constant_input(block: Normalizer) -> None:
    """A constant input gives finite outputs and gradients."""
    import torch

    for value in (0.0, 3.0):
        module = block.module(torch.float32)
        x = torch.full(block.shape, value, requires_grad=True)
        y = _through(module, x)
        _finite(y, f"the output for inputs of {value:g} throughout")
        if not y.requires_grad:
            continue  # `gradient` reports that
        targets = [x, *(p for p in module.parameters() if p.requires_grad)]
        grads = torch.autograd.grad((y * _drawn(block.shape).float()).sum(), targets,
                                    allow_unused=True)  # fmt: skip
        for grad in grads:
            if grad is not None:
                _finite(grad, f"a gradient for inputs of {value:g} throughout")


@_undisturbed
def dtype_kept(block: Normalizer) -> None:
    """The output keeps the dtype, is finite and of the right size, for inputs of 1e-3 to 1e3."""
    import torch

    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for scale in (1e-3, 1.0, 1e3):
            x = (scale * _drawn(block.shape)).to(dtype)
            y = _through(block.module(dtype), x).detach()
            of = f"of {dtype} inputs of scale {scale:g}"
            must(y.dtype == dtype, f"the output {of} is {y.dtype}, allowed is {dtype}")
            _finite(y, f"the output {of}")
            # A denominator that overflows to infinity gives 0, which is finite. Small inputs are
            # left out: an eps may depend on the dtype.
            exact = _through(block.module(), x.double()).detach().square().mean().sqrt()
            ratio = float(y.double().square().mean().sqrt() / exact) if exact else 1.0
            must(
                scale < 1 or abs(ratio - 1) <= 0.1,
                f"the output {of} is {ratio:.3g} times what it is in float64, allowed are "
                "0.9 to 1.1",
            )


@_undisturbed
def deterministic(block: Normalizer) -> None:
    """The same batch gives the same output, in training and in eval mode."""
    import torch

    module, x = block.module(), _drawn(block.shape)
    for mode in (True, False):
        module.train(mode)
        first, again = _through(module, x), _through(module, x)
        must(
            torch.equal(first, again),
            f"two outputs for one batch differ by {_most(first - again):.3g} in "
            f"{'training' if mode else 'eval'} mode, allowed is 0",
        )


# -- what it remembers ------------------------------------------------------------------------


@_undisturbed
def running_statistics(block: Normalizer) -> None:
    """Running statistics move to each batch's mean and unbiased variance by ``momentum``.

    ``r = (1 - momentum) r + momentum * batch``, as torch defines momentum. With ``momentum=None``
    they are the average over all batches.
    """
    module = block.module()
    memory = _memory(module)
    if memory is None:
        raise NotApplicable("it has no running_mean and running_var")
    over = _known(block)
    if over.name not in ("batch", "channel"):
        raise NotApplicable(
            f"for norms over each {over.name}, running statistics have no convention"
        )
    expected = [kept.detach().clone().flatten() for kept in memory[1:]]
    for step in range(1, 5):
        x = _drawn(block.shape, seed=step) * step - 1
        _through(module, x)
        part, *kept = _memory(module) or memory
        momentum = getattr(part, "momentum", 0.1)
        rate = 1 / step if momentum is None else momentum
        for k, (name, batch) in enumerate(_of_batch(over, x).items()):
            must(
                not kept[k].requires_grad,
                f"{name} requires a gradient and keeps the graph of a batch: detach it",
            )
            expected[k] = (1 - rate) * expected[k] + rate * batch
            running = kept[k].detach().flatten()
            same = running.shape == batch.shape
            must(same, f"{name} has {len(running)} values, not {len(batch)}")
            off = _most((running - expected[k]) / (1 + expected[k].abs()))
            must(
                off <= 1e-6,
                f"after batch {step}, {name} is off by {off:.3g}, allowed is 1e-06; with "
                f"momentum={momentum} and the unbiased variance it should be {expected[k][0]:.6g} "
                f"in the first channel, but is {running[0]:.6g}",
            )


def _of_batch(over: _Over, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The statistics of a batch; for instance norm, averaged over its samples."""
    units = over.units(x)
    mean, variance = units.mean(1), units.var(1, correction=1)
    if over.name == "channel":
        mean, variance = (m.reshape(x.shape[:2]).mean(0) for m in (mean, variance))
    return {"running_mean": mean, "running_var": variance}


@_undisturbed
def evaluation_is_affine(block: Normalizer) -> None:
    """In eval mode it is an affine map by its running statistics, and does not change them.

    Without running statistics, eval mode equals training mode.
    """
    module = _trained(block)
    x, other = _drawn(block.shape), _drawn(block.shape, seed=7)
    before = _buffers(module)
    y = _through(module, x).detach()
    changed = _changed(module, before)
    must(not changed, f"in eval mode a batch changed {', '.join(changed)}")
    if not _remembers(block):
        _close(
            y,
            _through(block.module(), x),
            "without running statistics, eval differs from training:",
        )
        return
    for share in (0.3, 1.7):
        between = _through(module, share * x + (1 - share) * other)
        apart = share * y + (1 - share) * _through(module, other)
        _close(between, apart, "in eval mode it is not affine:")
    alone = _through(module, x[:1])
    _close(alone, y[:1], "in eval mode a sample depends on the others of its batch:")
    _remembered(block, module, x, y)


def _remembered(block: Normalizer, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Check that the affine map uses the running statistics."""
    memory = _memory(module)
    if memory is None or memory[1].numel() != block.shape[1] or _normalized_over(block) is None:
        return
    mean, variance = (m.detach().reshape(1, -1, *(1 for _ in x.shape[2:])) for m in memory[1:])
    eps = getattr(memory[0], "eps", None)
    eps = eps if isinstance(eps, float) and 0 <= eps <= LARGEST_EPS else 1e-5
    exact = (x - mean) / (variance + eps).sqrt()
    slack = LARGEST_EPS / float(variance.min())
    _close(y, exact, "in eval mode it is not (x - running_mean) / sqrt(running_var):", slack)


def _close(a: torch.Tensor, b: torch.Tensor, what: str, allowed: float = 1e-6) -> None:
    off, size = _most(a - b), _most(b)
    must(
        off <= allowed * size < math.inf,
        f"{what} off by {off:.3g}, allowed is {allowed * size:.3g}",
    )


@_undisturbed
def batch_of_one(block: Normalizer) -> Literal["works", "raises"]:
    """A batch of a single sample works in training, or raises."""
    try:
        y = block.module()(_drawn(block.shape)[:1])
    except Exception:
        return "raises"
    _finite(y, "the output for a single sample in training")
    return "works"


@_undisturbed
def evaluation_of_one(block: Normalizer) -> None:
    """A single sample gives finite output in eval mode."""
    import torch

    module = _trained(block, torch.float32)
    _finite(_through(module, _drawn(block.shape)[:1].float()), "the output for a single sample")


# -- what it does to the layer before it ------------------------------------------------------

_LEAST = 10.0  # deviation of a unit: an eps of 1e-3 then is 1e-5 of the variance
_ALLOWED = 1e-4


def _layer(block: Normalizer) -> tuple[torch.Tensor, torch.Tensor]:
    """An input, and weights of a linear layer or convolution (of size 1) before the normaliser.

    So large that an eps is negligible beside the variance of every unit of its output.
    """
    import torch

    x = _drawn(block.shape)
    channels = block.shape[1]
    weight = torch.randn(channels, channels, dtype=torch.float64) / math.sqrt(channels)
    over = _normalized_over(block) or _Over("sample", 1)
    return x, weight * _LEAST / over.variance(_applied(weight, x)).min().sqrt()


def _applied(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x.movedim(1, -1) @ weight.T).movedim(-1, 1).contiguous()


@_undisturbed
def scale_invariant(block: Normalizer) -> None:
    """The scale of the weights before it has no effect (Ioffe & Szegedy 2015, section 3.3)."""
    x, weight = _layer(block)
    module = block.module()
    expected = _through(module, _applied(weight, x))
    for scale in (2.0, 1e3):
        output = _through(module, _applied(scale * weight, x))
        _close(output, expected, f"weights {scale:g} times as large change its output:", _ALLOWED)


@_undisturbed
def gradient_scales_inversely(block: Normalizer) -> None:
    """Weights before it that are a times as large get 1/a of the gradient (same section)."""
    over = _normalized_over(block)
    if over is not None and over.units(_drawn(block.shape)).shape[1] <= 2:
        raise NotApplicable("any two values become 1 and -1, so that there is no gradient")
    x, weight = _layer(block)
    expected = _weight_gradient(block, x, weight)
    for scale in (2.0, 1e3):
        grad = scale * _weight_gradient(block, x, scale * weight)
        what = f"weights {scale:g} times as large do not get 1/{scale:g} of the gradient:"
        _close(grad, expected, what, _ALLOWED)


def _weight_gradient(block: Normalizer, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    import torch

    weight = weight.detach().requires_grad_()
    y = _through(block.module(), _applied(weight, x))
    grad = None
    if y.requires_grad:
        loss = (y * _drawn(block.shape, seed=5)).sum()
        [grad] = torch.autograd.grad(loss, [weight], allow_unused=True)
    if grad is None:
        raise AssertionError("no gradient reaches the layer before it")
    return grad


@_undisturbed
def gradient(block: Normalizer) -> None:
    """In training its gradients for input and parameters are the slopes of what it computes.

    Whatever comes in is float64: what computes in float32 all the same has no slopes to compare.
    """
    import torch

    module = block.module()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p))
    over, x = _normalized_over(block), _drawn(block.shape)
    x = 0.5 + over.standardised(x) if over else x
    for name, value in {"its input": x, **dict(module.named_parameters())}.items():
        _same_slope(module, x, name, value.detach())


def _same_slope(module: nn.Module, x: torch.Tensor, name: str, value: torch.Tensor) -> None:
    """Three slopes of a drawn loss, along drawn directions; the whole Jacobian takes minutes.

    Not gradcheck's fast mode: its directions have no negative component, so nearly all of such a
    one is the mean, which is what a normaliser takes out.
    """
    import torch

    ways = torch.randn(3, *value.shape, dtype=value.dtype)
    loss = torch.randn_like(x)

    def run(along: torch.Tensor) -> torch.Tensor:
        moved = value + torch.tensordot(along, ways, 1)
        named, given = ({}, moved) if name == "its input" else ({name: moved}, x)
        y: torch.Tensor = torch.func.functional_call(module, named, (given,))
        return (loss * y).sum()

    start = torch.zeros(3, dtype=value.dtype, requires_grad=True)
    try:
        torch.autograd.gradcheck(run, (start,), eps=1e-5, atol=1e-5, rtol=1e-5)
    except Exception as error:
        what = " ".join(str(error).split())
        raise AssertionError(f"for {name}, allowed is a difference of 1e-05: {what}") from error


NORMALIZER: Battery[Normalizer] = battery(
    "normaliser",
    [
        axes,
        mean_zero,
        variance_one,
        running_statistics,
        evaluation_is_affine,
        batch_of_one,
        evaluation_of_one,
        scale_invariant,
        gradient_scales_inversely,
        gradient,
        dtype_kept,
        constant_input,
        large_mean,
        deterministic,
    ],
)


def check_normalizer(
    factory: Callable[[], nn.Module],
    *,
    shape: tuple[int, ...] = SHAPE,
    declared: Mapping[str, str] | None = None,
    expect: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What was measured of a normaliser: over which axes, and whether it takes a single sample.

    Args:
        factory: Builds a fresh one.
        shape: Of its input: samples first, channels second.
        declared: Properties that do not hold, and why.
        expect: What "axes" and "batch-of-one" have to be.

    Raises:
        FindingsError: laws that do not hold, or traits that are not as expected.
    """
    __tracebackhide__ = True
    block = Normalizer(factory, tuple(shape))
    called = type(block.module()).__name__
    return NORMALIZER.check(called, block, declared, expect)


def parametrize_normalizers(
    factories: Mapping[str, Callable[[], nn.Module]],
    *,
    shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] = SHAPE,
    declared: Mapping[str, Mapping[str, str]] | None = None,
    expect: Mapping[str, Mapping[str, Any]] | None = None,
) -> pytest.MarkDecorator:
    """A test for each normaliser and property, over ``def test_normalizers(check): check()``.

    Args:
        shape: Of all inputs, or of each normaliser's by its name.
    """
    shapes = shape if isinstance(shape, Mapping) else dict.fromkeys(factories, shape)
    for name in shapes:
        if name not in factories:
            raise SettingsError(
                f"shape[{name!r}]: there is no such block.{did_you_mean(name, factories)} "
                f"Choose one of: {', '.join(factories)}."
            )
    blocks = {
        name: functools.partial(Normalizer, factory, tuple(shapes.get(name, SHAPE)))
        for name, factory in factories.items()
    }
    return parametrized(NORMALIZER, blocks, declared, expect)
