"""What a step before the network has to satisfy: a scaler, a whitening, an imputer.

scikit-learn's convention, whoever wrote it: ``fit(X)``, ``transform(X)`` and, where there is one,
``inverse_transform(X)``, of arrays ``[n, features]``. Most of it is one demand: that nothing but
the training data is learnt from.
"""

from __future__ import annotations

import contextlib
import functools
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from nndiag.errors import SettingsError
from nndiag.testing.battery import Battery, NotApplicable, battery, must, one_line, parametrized

if TYPE_CHECKING:
    import pytest
    from numpy.typing import NDArray

__all__ = [
    "FEATURES",
    "PREPROCESSOR",
    "ROWS",
    "Preprocessor",
    "centred",
    "check_preprocessor",
    "constant_features",
    "decorrelated",
    "deterministic",
    "fitted_on_training_data_only",
    "input_untouched",
    "inverse",
    "missing_values",
    "new_data_of_one_row",
    "parametrize_preprocessors",
    "refit_forgets",
    "row_order",
    "unit_variance",
    "white",
    "wrong_number_of_features",
]

Value = TypeVar("Value")

ROWS, FEATURES = 200, 5


@dataclass(frozen=True)
class Preprocessor:
    """How to build one that is not fitted yet."""

    factory: Callable[[], Any]

    def __post_init__(self) -> None:
        built = hasattr(self.factory, "fit") and not isinstance(self.factory, type)
        if built or not callable(self.factory):
            raise SettingsError(
                f"factory is {type(self.factory).__name__}: give a function that builds a fresh "
                "preprocessor, such as lambda: StandardScaler()."
            )

    def fresh(self) -> Any:
        step = self.factory()
        missing = [name for name in ("fit", "transform") if not hasattr(step, name)]
        if missing:
            raise SettingsError(
                f"the factory gives {type(step).__name__}, which has no {' and no '.join(missing)}."
            )
        return step

    def fitted(self, x: NDArray[np.float64], *, seed: int = 0, again: Any = None) -> Any:
        """A fresh one (or ``again`` that one), fitted to a copy.

        With the generators at a seed: only `deterministic` is to fail of what draws.
        """
        step = self.fresh() if again is None else again
        with _seeded(seed):
            _call(step, "fit", x.copy())
        return step


# -- what it is looked at with ----------------------------------------------------------------


def _undisturbed(law: Callable[[Preprocessor], Value]) -> Callable[[Preprocessor], Value]:
    """A property that draws the same numbers each time and leaves the generators as they were."""

    @functools.wraps(law)
    def seeded_law(block: Preprocessor) -> Value:
        with _seeded(), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a verdict does not depend on the caller's filters
            return law(block)

    return seeded_law


@contextlib.contextmanager
def _seeded(seed: int = 0) -> Iterator[None]:
    """Not nndiag.capture's: that one needs torch, and nothing here does."""
    before, drawn = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(drawn)


def _rows(seed: int, rows: int = ROWS) -> NDArray[np.float64]:
    """Features that are correlated, with means and scales of their own, and not normal.

    Of a normal distribution there are no independent components to be found.
    """
    generator = np.random.default_rng(seed)
    mixed = generator.laplace(size=(rows, FEATURES)) @ _mixing()
    return np.asarray(mixed * [0.1, 1, 3, 10, 30] + [1, -2, 0.5, 20, -100], dtype=np.float64)


def _mixing() -> NDArray[np.float64]:
    return np.eye(FEATURES) + 0.5 * np.eye(FEATURES, k=1) + 0.3 * np.eye(FEATURES, k=-2)


def _call(step: Any, method: str, x: NDArray[np.float64]) -> Any:
    """What a method gives; one that raises breaks the law it was called for."""
    try:
        return getattr(step, method)(x)
    except Exception as error:
        raise AssertionError(f"{method} of an array {x.shape} raises {one_line(error)}") from error


def _dense(output: Any) -> NDArray[np.float64]:
    """A sparse matrix or a data frame as what it holds."""
    output = output.toarray() if hasattr(output, "toarray") else output
    return np.asarray(output, dtype=np.float64)


def _transformed(step: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a copy, so that only one property fails of what changes its input."""
    output = _dense(_call(step, "transform", x.copy()))
    must(output.ndim == 2, f"transform gives {output.ndim} axes, allowed are 2: rows and features")
    must(len(output) == len(x), f"transform gives {len(output)} rows for {len(x)}")
    return output


def _same(a: NDArray[np.float64], b: NDArray[np.float64], what: str, allowed: float = 1e-9) -> None:
    """In terms of each column's largest value in ``b``."""
    must(a.shape == b.shape, f"{what}: {a.shape} is not {b.shape}")
    size = np.maximum(np.nanmax(np.abs(b), axis=0, initial=0), 1e-12)
    both = np.isnan(a) & np.isnan(b)
    off = float(np.where(both, 0, np.abs(a - b) / size).max())
    # Not off > allowed: NaN is not the same as a number.
    must(off <= allowed, f"{what}: off by {off:.3g} of a column's largest, allowed is {allowed:g}")


def _finite(output: NDArray[np.float64], what: str) -> None:
    bad = int((~np.isfinite(output)).sum())
    must(bad == 0, f"{what}: {bad} of {output.size} values are NaN or infinite, allowed are 0")


# -- what it learns from ----------------------------------------------------------------------


@_undisturbed
def fitted_on_training_data_only(block: Preprocessor) -> None:
    """A row is transformed by what was fitted, whatever is transformed beside it or before it."""
    step, test = block.fitted(_rows(0)), _rows(1, 50)
    alike = _transformed(step, test)
    others = test * 7 + 5
    others[::2] = test[::2]
    beside = _transformed(step, others)
    _same(_transformed(step, test), alike, "rows come out otherwise after others were transformed")
    _same(beside[::2], alike[::2], "a row comes out otherwise beside other rows")


@_undisturbed
def refit_forgets(block: Preprocessor) -> None:
    """Fitted a second time, it is as if it had never been fitted before."""
    first, second, test = _rows(0) * 3 + 1, _rows(2, 150), _rows(1, 50)
    step = block.fitted(second, again=block.fitted(first))
    fresh = _transformed(block.fitted(second), test)
    _same(_transformed(step, test), fresh, "what it was fitted to before comes through")


@_undisturbed
def row_order(block: Preprocessor) -> None:
    """The order of the training rows does not matter."""
    x, test = _rows(0), _rows(1, 50)
    expected = _transformed(block.fitted(x), test)
    for order in (np.arange(ROWS)[::-1], np.random.default_rng(3).permutation(ROWS)):
        output = _transformed(block.fitted(x[order]), test)
        _same(output, expected, "fitted to the same rows in another order it differs", 1e-6)


@_undisturbed
def deterministic(block: Preprocessor) -> None:
    """Fitted to the same data it gives the same, whatever the random generators are at."""
    x, test = _rows(0), _rows(1, 50)
    step = block.fitted(x)
    first = _transformed(step, test)
    _same(_transformed(step, test), first, "two transforms of the same rows differ")
    other = _transformed(block.fitted(x, seed=1), test)
    _same(other, first, "two fits to the same rows differ")


@_undisturbed
def input_untouched(block: Preprocessor) -> None:
    """Neither fitting nor transforming changes the array it is given."""
    step = block.fresh()
    for method, seed in (("fit", 0), ("transform", 0), ("transform", 1)):
        given = _rows(seed)
        _call(step, method, given)
        changed = int((given != _rows(seed)).sum())
        must(changed == 0, f"{method} changed {changed} of {given.size} values of its input")


# -- what it takes ----------------------------------------------------------------------------


@_undisturbed
def new_data_of_one_row(block: Preprocessor) -> None:
    """A single new row can be transformed, and comes out finite."""
    output = _transformed(block.fitted(_rows(0)), _rows(1, 1))
    _finite(output, "a single row")


@_undisturbed
def wrong_number_of_features(block: Preprocessor) -> None:
    """Rows with fewer or more features than it was fitted to raise."""
    step, x = block.fitted(_rows(0)), _rows(1, 50)
    # A single feature is the one that numpy broadcasts.
    for given in (x[:, :1], x[:, :-1], np.hstack([x, x[:, :1]])):
        try:
            step.transform(given.copy())
        except Exception:  # of whatever type
            continue
        raise AssertionError(
            f"fitted to {FEATURES} features it takes {given.shape[1]} without a word: it has to "
            "raise"
        )


@_undisturbed
def constant_features(block: Preprocessor) -> None:
    """Features that are constant over the training data come out finite."""
    for value in (0.0, 3.0, 0.1):  # the mean of many 0.1 is not 0.1: the deviation is not quite 0
        x, test = _rows(0), _rows(1, 50)
        x[:, 1] = test[:, 1] = value
        step = block.fitted(x)
        test[0, 1] += 1  # and once not constant any more
        for given in (x, test):
            _finite(_transformed(step, given), f"rows with a feature of {value:g} throughout")


@_undisturbed
def missing_values(block: Preprocessor) -> Literal["raises", "kept", "filled"]:
    """What is missing (NaN) raises, stays missing there and nowhere else, or is filled."""
    x = _rows(0)
    x[np.random.default_rng(4).random(x.shape) < 0.1] = np.nan
    step = block.fresh()
    try:
        step.fit(x.copy())
        output = _dense(step.transform(x.copy()))
    except Exception:  # of whatever type
        return "raises"
    missing, spread = int(np.isnan(x).sum()), int(np.isnan(output).sum())
    if spread == 0:
        return "filled"
    kept = output.shape == x.shape and bool((np.isnan(output) == np.isnan(x)).all())
    must(kept, f"{missing} values of {x.size} are missing, and {spread} of {output.size} come out")
    return "kept"


# -- what comes out ---------------------------------------------------------------------------


@_undisturbed
def inverse(block: Preprocessor) -> None:
    """``inverse_transform`` gives back what went in."""
    x = _rows(0)
    step = block.fitted(x)
    if not hasattr(step, "inverse_transform"):
        raise NotApplicable("it has no inverse_transform")
    back = _dense(_call(step, "inverse_transform", _transformed(step, x)))
    _same(back, x, "what comes back is not what went in", 1e-6)


def _training(block: Preprocessor) -> NDArray[np.float64]:
    x = _rows(0)
    output = _transformed(block.fitted(x), x)
    _finite(output, "the training data")
    return output


def _covariance(output: NDArray[np.float64]) -> NDArray[np.float64]:
    """By n: of 200 rows, it is 0.5 % off that by n - 1, and either is called unit variance."""
    return np.atleast_2d(np.cov(output, rowvar=False, ddof=0))


@_undisturbed
def centred(block: Preprocessor) -> bool:
    """The training data come out with mean 0 (1e-6 of a deviation)."""
    output = _training(block)
    return bool((np.abs(output.mean(0)) <= 1e-6 * np.maximum(output.std(0), 1e-12)).all())


@_undisturbed
def unit_variance(block: Preprocessor) -> bool:
    """The training data come out with variance 1 in each feature (1 %)."""
    return bool((np.abs(np.diag(_covariance(_training(block))) - 1) <= 0.01).all())


@_undisturbed
def decorrelated(block: Preprocessor) -> bool:
    """The training data come out with a diagonal covariance (correlations of 1e-6)."""
    covariance = _covariance(_training(block))
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-24))
    correlation = covariance / np.outer(deviation, deviation)
    return bool((np.abs(correlation - np.diag(np.diag(correlation))) <= 1e-6).all())


@_undisturbed
def white(block: Preprocessor) -> bool:
    """The training data come out with the identity as covariance (1 %)."""
    covariance = _covariance(_training(block))
    return bool((np.abs(covariance - np.eye(len(covariance))) <= 0.01).all())


PREPROCESSOR: Battery[Preprocessor] = battery(
    "preprocessor",
    [
        fitted_on_training_data_only,
        refit_forgets,
        input_untouched,
        inverse,
        constant_features,
        missing_values,
        centred,
        unit_variance,
        decorrelated,
        white,
        deterministic,
        row_order,
        new_data_of_one_row,
        wrong_number_of_features,
    ],
)


def check_preprocessor(
    factory: Callable[[], Any],
    *,
    declared: Mapping[str, str] | None = None,
    expect: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What was measured of a preprocessor: whether it centres, whitens, takes missing values.

    Args:
        factory: Builds one that is not fitted yet.
        declared: Properties that do not hold, and why: of an inverse, what is lost.
        expect: What has been promised, such as ``{"centred": True}``.

    Raises:
        FindingsError: laws that do not hold, or traits that are not as expected.
    """
    __tracebackhide__ = True
    block = Preprocessor(factory)
    return PREPROCESSOR.check(type(block.fresh()).__name__, block, declared, expect)


def parametrize_preprocessors(
    factories: Mapping[str, Callable[[], Any]],
    *,
    declared: Mapping[str, Mapping[str, str]] | None = None,
    expect: Mapping[str, Mapping[str, Any]] | None = None,
) -> pytest.MarkDecorator:
    """A test for each preprocessor and property, over ``def test_steps(check): check()``."""
    blocks = {name: functools.partial(Preprocessor, factory) for name, factory in factories.items()}
    return parametrized(PREPROCESSOR, blocks, declared, expect)
