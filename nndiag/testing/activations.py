"""The properties of an activation function: ``check_activation(nn.GELU)``.

The laws hold for every activation, unless declared otherwise. The traits are measured; they are
those of the lecture's table of activations: bounds, the largest slope, sides that saturate or are
dead, mean and share of zeros under N(0, 1).
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nndiag.testing.battery import NotApplicable, battery, must, one_line, parametrized

if TYPE_CHECKING:
    import pytest
    import torch

__all__ = [
    "ACTIVATION",
    "Activation",
    "Factory",
    "bounded",
    "bounds",
    "check_activation",
    "compilable",
    "dead_side",
    "deterministic",
    "device_kept",
    "dtype_kept",
    "elementwise",
    "extremes",
    "gradient",
    "homogeneous",
    "in_place",
    "infinity",
    "input_untouched",
    "max_slope",
    "mean",
    "monotone",
    "nan",
    "parametrize_activations",
    "saturates",
    "scriptable",
    "second_moment",
    "shape_kept",
    "zeros",
]

Factory = Callable[..., Any]

_FLAT = 1e-3  # a smaller slope far from 0 is saturation, as in the rule of that name
_FAR = 100.0
_MANY = 200_001


@dataclass(frozen=True)
class Activation:
    """``factory`` builds a module or a function of tensors, or is such a function itself."""

    factory: Factory

    @functools.cached_property
    def function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The activation in evaluation mode: randomness in training is not checked."""
        return self.fresh()

    def fresh(self, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """Another one, built at the same seed."""
        from torch import nn

        from nndiag.capture.untouched import seeded

        if isinstance(self.factory, nn.Module):
            return copy.deepcopy(self.factory).eval()
        if _takes_a_tensor(self.factory):
            return functools.partial(self.factory, **options) if options else self.factory
        with seeded(0):
            function = self.factory(**options)
        return function.eval() if isinstance(function, nn.Module) else function

    def on(self, x: np.ndarray) -> np.ndarray:
        """Its values, in double precision."""
        import torch

        function = self._as(torch.float64)
        with torch.no_grad():
            y: np.ndarray = function(torch.from_numpy(x)).double().numpy()
        return y

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Its derivative at ``x``, from autograd, in double precision."""
        import torch

        t = torch.from_numpy(x).requires_grad_()
        [grad] = torch.autograd.grad(self._as(torch.float64)(t).sum(), t)
        slopes: np.ndarray = grad.numpy()
        return slopes

    def _as(self, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        from torch import nn

        function = self.function
        return copy.deepcopy(function).to(dtype) if isinstance(function, nn.Module) else function

    def elementwise(self) -> None:
        """
        Raises:
            NotApplicable: an output depends on inputs at other positions.
        """
        if why := _crosses(self):
            raise NotApplicable(f"it is not elementwise: {why}")


def _takes_a_tensor(factory: Factory) -> bool:
    """Whether it is a function of tensors, and not a factory of one."""
    if inspect.isclass(factory):
        return False
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # torch's C++ functions have no signature; none is a factory
        return True
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def _crosses(block: Activation) -> str:
    x = _grid(8.0, 64).reshape(4, 16)
    together = block.on(x)
    if together.shape != x.shape:
        return f"its output has shape {together.shape} for an input of {x.shape}"
    moved = x.copy()
    moved[1, 3] += 1.0
    changed = np.argwhere(block.on(moved) != together)
    others = [tuple(map(int, at)) for at in changed if tuple(at) != (1, 3)]
    return f"the input at (1, 3) changes the output at {others[0]}" if others else ""


def _grid(far: float, number: int = _MANY) -> np.ndarray:
    """Points from -far to far, off round numbers, where kinks lie."""
    return np.linspace(-far, far, number) + 1.234e-7 * far


# -- laws -----------------------------------------------------------------------------------------


def shape_kept(block: Activation) -> None:
    """The output has the shape of the input, for any shape, also an empty one."""
    import torch

    for shape in ((), (0,), (3,), (2, 3), (2, 3, 4, 5), (0, 4)):
        y = block.function(torch.zeros(shape))
        must(
            tuple(y.shape) == shape,
            f"its output has shape {tuple(y.shape)} for an input of {shape}",
        )


def elementwise(block: Activation) -> None:
    """Each output depends only on the input at its own position."""
    why = _crosses(block)
    must(not why, why)


def gradient(block: Activation) -> None:
    """The gradient equals finite differences, in double precision, away from kinks."""
    block.elementwise()
    x = np.random.default_rng(0).normal(scale=3.0, size=400)
    h = 1e-5
    left, here, right = (block.on(x + d) for d in (-h, 0.0, h))
    smooth = np.abs(right - 2 * here + left) < 1e-3 * h  # at a kink the values differ by about h
    expected, actual = (right - left) / (2 * h), block.slope(x)
    off = np.abs(actual - expected) > 1e-5 + 1e-5 * np.abs(expected)
    bad = np.flatnonzero(off & smooth)
    if len(bad):
        k = bad[0]
        raise AssertionError(
            f"at {x[k]:.6g} the gradient is {actual[k]:.6g}, "
            f"but finite differences give {expected[k]:.6g}"
        )


def dtype_kept(block: Activation) -> None:
    """Output and gradient have the dtype of the input: float16, bfloat16, float32 or float64."""
    import torch

    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.linspace(-3, 3, 8, dtype=dtype, requires_grad=True)
        y = block._as(dtype)(x)
        must(y.dtype == dtype, f"its output is {y.dtype} for an input of {dtype}")
        [grad] = torch.autograd.grad(y.sum(), x, allow_unused=True)
        if grad is None:
            raise AssertionError(f"in {dtype} no gradient reaches the input")
        must(grad.dtype == dtype, f"its gradient is {grad.dtype} for an input of {dtype}")


def device_kept(block: Activation) -> None:
    """The output is on the input's device: the CPU, the meta device, and CUDA if there is one."""
    import torch

    places = ["cpu", "meta"]
    if torch.cuda.is_available():
        places.append("cuda")
    for place in places:
        x = torch.ones(4, device=place)
        function = block.fresh()
        if isinstance(function, torch.nn.Module):
            function = function.to(place)
        y = function(x)
        must(y.device.type == place, f"its output is on {y.device.type} for an input on {place}")


def extremes(block: Activation) -> None:
    """Neither output nor gradient is NaN for the largest and smallest inputs of each dtype."""
    import torch

    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        about = torch.finfo(dtype)
        values = [about.max, about.tiny, about.eps, 100.0, 1000.0, 0.0]
        x = torch.tensor([s * v for v in values for s in (1, -1)], dtype=dtype, requires_grad=True)
        y = block._as(dtype)(x)
        if y.shape != x.shape:
            raise NotApplicable("its output has another shape than its input")
        [grad] = torch.autograd.grad(y.float().sum(), x, allow_unused=True)
        for what, got in (("the output", y), ("the gradient", grad)):
            bad = torch.zeros(0) if got is None else x[torch.isnan(got)]
            if len(bad):
                raise AssertionError(f"{what} is NaN at {bad[0].item():g} in {dtype}")


def deterministic(block: Activation) -> None:
    """The same input gives the same bits, and no random numbers are drawn."""
    import torch

    x = torch.linspace(-3, 3, 64)
    before = torch.get_rng_state()
    first = block.function(x.clone())
    must(
        torch.equal(first, block.function(x.clone())),
        "two calls with the same input give different outputs",
    )
    must(torch.equal(torch.get_rng_state(), before), "it draws random numbers in evaluation mode")


def input_untouched(block: Activation) -> None:
    """The input is not changed, unless ``inplace`` was set."""
    import torch

    x = torch.linspace(-3, 3, 64)
    before = x.clone()
    block.function(x)
    must(torch.equal(x, before), "it changes its input")


def in_place(block: Activation) -> None:
    """With ``inplace=True`` the output is the same, and is the input."""
    import torch

    if "inplace" not in _options(block.factory):
        raise NotApplicable("it has no option inplace")
    x = torch.linspace(-3, 3, 64)
    expected, given = block.function(x.clone()), x.clone()
    y = block.fresh(inplace=True)(given)
    must(torch.equal(y, expected), "with inplace=True its output differs")
    must(y.data_ptr() == given.data_ptr(), "with inplace=True it allocates a new tensor")


def _options(factory: Factory) -> Mapping[str, Any]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}


def scriptable(block: Activation) -> None:
    """torch.jit.script accepts it, and its output is the same."""
    import torch

    function = block.fresh()
    if not isinstance(function, torch.nn.Module):
        raise NotApplicable("it is a function, not a module")
    x = torch.linspace(-3, 3, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        try:
            scripted = torch.jit.script(function)
        except Exception as error:
            raise AssertionError(one_line(error)) from None
        must(torch.allclose(scripted(x), function(x)), "its output differs under torch.jit.script")


def compilable(block: Activation) -> None:
    """torch.compile accepts it as one graph, with the same output and gradient."""
    import torch

    function = block.fresh()
    x = torch.linspace(-3, 3, 64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            y = compiled(x)
        except Exception as error:
            raise AssertionError(one_line(error)) from None
        finally:
            torch.compiler.reset()
    must(torch.allclose(y, function(x), atol=1e-6), "its output differs under torch.compile")
    grads = [torch.autograd.grad(out.sum(), x, allow_unused=True)[0] for out in (y, function(x))]
    same = grads[0] is grads[1] is None or torch.allclose(grads[0], grads[1], atol=1e-6)
    must(same, "its gradient differs under torch.compile")


# -- traits ---------------------------------------------------------------------------------------


def bounds(block: Activation) -> tuple[float, float]:
    """The smallest and largest value; infinite where it is unbounded."""
    block.elementwise()
    near, far = block.on(_grid(1e6)), block.on(_grid(1e9))
    low, high = (min(near.min(), far.min()), max(near.max(), far.max()))
    # The smallest value may lie near zero, between the points of so wide a grid.
    low, high = min(low, block.on(_grid(_FAR)).min()), max(high, block.on(_grid(_FAR)).max())
    return (
        -math.inf if far.min() < near.min() - 1e-2 else round(float(low), 5) + 0.0,
        math.inf if far.max() > near.max() + 1e-2 else round(float(high), 5) + 0.0,
    )


def bounded(block: Activation) -> bool:
    """Whether both bounds are finite."""
    return all(map(math.isfinite, bounds(block)))


def monotone(block: Activation) -> bool:
    """Whether it never decreases."""
    block.elementwise()
    y = block.on(_grid(_FAR))
    return bool((np.diff(y) >= -1e-12).all())


def max_slope(block: Activation) -> float:
    """The largest absolute slope. A sigmoid has 1/4, so that each layer shrinks the gradient at
    least four times."""
    block.elementwise()
    return round(float(np.abs(block.slope(_grid(_FAR / 5))).max()), 3)


def saturates(block: Activation) -> str:
    """On which sides the slope goes to zero: "left", "right", "both" or "neither"."""
    block.elementwise()
    return _sides(np.abs(block.slope(np.array([-_FAR, _FAR]))) < _FLAT)


def dead_side(block: Activation) -> str:
    """On which sides the slope is exactly 0 throughout, so that a unit there stays dead."""
    block.elementwise()
    right = np.linspace(6.5, 12, 101)  # farther out a tanh's slope underflows to 0
    return _sides(np.array([(block.slope(side) == 0).all() for side in (-right, right)]))


def _sides(flat: np.ndarray) -> str:
    left, right = map(bool, flat)
    return {(True, True): "both", (True, False): "left", (False, True): "right"}.get(
        (left, right), "neither"
    )


def mean(block: Activation) -> float:
    """Its mean for standard normal inputs; 0 if it is zero-centred."""
    return round(float(_under_normal(block).mean()), 3) + 0.0


def second_moment(block: Activation) -> float:
    """Its mean square for standard normal inputs; its gain is 1/√ of it (He et al. 2015, section
    2.2)."""
    return round(float((_under_normal(block) ** 2).mean()), 3) + 0.0


def zeros(block: Activation) -> float:
    """The share of exact zeros for standard normal inputs: one half for a ReLU."""
    return round(float((_under_normal(block) == 0).mean()), 3)


def _under_normal(block: Activation) -> np.ndarray:
    """Its values at the quantiles of N(0, 1): a sample without chance."""
    from scipy.special import ndtri

    block.elementwise()
    return block.on(ndtri((np.arange(_MANY) + 0.5) / _MANY))


def homogeneous(block: Activation) -> bool:
    """Whether f(a·x) = a·f(x) for a > 0, so that a scale passes through it unchanged."""
    block.elementwise()
    x = _grid(10.0, 1001)
    y = block.on(x)
    return all(bool(np.allclose(block.on(a * x), a * y, rtol=1e-9)) for a in (0.01, 3.0, 100.0))


def nan(block: Activation) -> str:
    """Its output for NaN: "nan", or the number that hides it."""
    block.elementwise()
    [y] = block.on(np.array([math.nan]))
    return "nan" if math.isnan(y) else f"{y:g}"


def infinity(block: Activation) -> tuple[float, float]:
    """Its outputs for -∞ and ∞. If one is NaN, an overflow before it becomes NaN."""
    block.elementwise()
    low, high = block.on(np.array([-math.inf, math.inf]))
    return float(low) + 0.0, float(high) + 0.0


ACTIVATION = battery(
    "activation",
    [
        shape_kept, elementwise, gradient, dtype_kept, device_kept, extremes, deterministic,
        input_untouched, in_place, scriptable, compilable, bounds, bounded, monotone, max_slope,
        saturates, dead_side, mean, second_moment, zeros, homogeneous, nan, infinity,
    ],
)  # fmt: skip


def check_activation(
    factory: Factory,
    *,
    declared: Mapping[str, str] | None = None,
    expect: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check an activation function of your own, as scikit-learn's ``check_estimator`` does.

    Args:
        factory: what makes the module, such as ``nn.GELU`` or ``lambda: nn.LeakyReLU(0.2)``; a
            module; or a function of a tensor. It is judged in evaluation mode.
        declared: laws that do not hold and why, ``{"elementwise": "a softmax"}``. Once one does
            hold, that is a failure, too.
        expect: traits, ``{"bounded": True, "max-slope": 0.25}``.

    Returns:
        the traits, as measured.

    Raises:
        FindingsError: what does not hold, and where.
        SettingsError: no such property, or no reason.
    """
    __tracebackhide__ = True
    called = getattr(factory, "__name__", None) or type(factory).__name__
    return ACTIVATION.check(called, Activation(factory), declared, expect)


def parametrize_activations(
    factories: Mapping[str, Factory],
    *,
    declared: Mapping[str, Mapping[str, str]] | None = None,
    expect: Mapping[str, Mapping[str, Any]] | None = None,
) -> pytest.MarkDecorator:
    """A test for each activation and property, over ``def test_activations(check): check()``.

    ``declared`` and ``expect`` are those of :func:`check_activation`, by the activations' names.
    """
    blocks = {name: functools.partial(Activation, factory) for name, factory in factories.items()}
    return parametrized(ACTIVATION, blocks, declared, expect)
