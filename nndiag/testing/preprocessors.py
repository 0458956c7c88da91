"""The properties of a preprocessing step before the network: a scaler, a whitening, an imputer.

A step follows scikit-learn's convention: ``fit(X)``, ``transform(X)`` and optionally
``inverse_transform(X)``, for arrays ``[n, features]``. Most properties ask one thing: it must learn
from the training data alone.
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
    """A preprocessing step; ``factory`` builds one that is not fitted yet."""

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

        The generators are seeded, so that a random step fails in `deterministic` alone.
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
            warnings.simplefilter("ignore")  # the result must not depend on the caller's filters
            return law(block)

    return seeded_law


@contextlib.contextmanager
def _seeded(seed: int = 0) -> Iterator[None]:
    """Seed the generators. Not nndiag.capture's function, which needs torch."""
    before, drawn = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(drawn)


def _rows(seed: int, rows: int = ROWS) -> NDArray[np.float64]:
    """Correlated features with different means and scales, not normally distributed.

    A normal distribution has no unique independent components.
    """
    generator = np.random.default_rng(seed)
    mixed = generator.laplace(size=(rows, FEATURES)) @ _mixing()
    return np.asarray(mixed * [0.1, 1, 3, 10, 30] + [1, -2, 0.5, 20, -100], dtype=np.float64)


def _mixing() -> NDArray[np.float64]:
    return np.eye(FEATURES) + 0.5 * np.eye(FEATURES, k=1) + 0.3 * np.eye(FEATURES, k=-2)


def _call(step: Any, method: str, x: NDArray[np.float64]) -> Any:
    """The result of a method. If it raises, the law that called it fails."""
    try:
        return getattr(step, method)(x)
    except Exception as error:
        raise AssertionError(f"{method} of an array {x.shape} raises {one_line(error)}") from error


def _dense(output: Any) -> NDArray[np.float64]:
    """A sparse matrix or a data frame as an array."""
    output = output.toarray() if hasattr(output, "toarray") else output
    return np.asarray(output, dtype=np.float64)


def _transformed(step: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transform a copy, so that a step that changes its input fails in one property only."""
    output = _dense(_call(step, "transform", x.copy()))
    must(
        output.ndim == 2, f"transform returns {output.ndim} axes, allowed are 2: rows and features"
    )
    must(len(output) == len(x), f"transform returns {len(output)} rows for {len(x)}")
    return output


def _same(a: NDArray[np.float64], b: NDArray[np.float64], what: str, allowed: float = 1e-9) -> None:
    """In terms of each column's largest value in ``b``."""
    must(a.shape == b.shape, f"{what}: {a.shape} is not {b.shape}")
    size = np.maximum(np.nanmax(np.abs(b), axis=0, initial=0), 1e-12)
    both = np.isnan(a) & np.isnan(b)
    off = float(np.where(both, 0, np.abs(a - b) / size).max())
    # Not off > allowed: NaN is not the same as a number.
    must(
        off <= allowed, f"{what}: by {off:.3g} of a column's largest value, allowed is {allowed:g}"
    )


def _finite(output: NDArray[np.float64], what: str) -> None:
    bad = int((~np.isfinite(output)).sum())
    must(bad == 0, f"{what}: {bad} of {output.size} values are NaN or infinite, allowed are 0")


# -- what it learns from ----------------------------------------------------------------------


@_undisturbed
def fitted_on_training_data_only(block: Preprocessor) -> None:
    """A row is transformed the same, whatever rows are transformed with it or before it."""
    step, test = block.fitted(_rows(0)), _rows(1, 50)
    alike = _transformed(step, test)
    others = test * 7 + 5
    others[::2] = test[::2]
    beside = _transformed(step, others)
    _same(_transformed(step, test), alike, "rows change after other rows were transformed")
    _same(beside[::2], alike[::2], "a row changes with the rows beside it")


@_undisturbed
def refit_forgets(block: Preprocessor) -> None:
    """A second fit leaves no trace of the first."""
    first, second, test = _rows(0) * 3 + 1, _rows(2, 150), _rows(1, 50)
    step = block.fitted(second, again=block.fitted(first))
    fresh = _transformed(block.fitted(second), test)
    _same(_transformed(step, test), fresh, "the first fit changes the output after the second")


@_undisturbed
def row_order(block: Preprocessor) -> None:
    """The order of the training rows does not matter."""
    x, test = _rows(0), _rows(1, 50)
    expected = _transformed(block.fitted(x), test)
    for order in (np.arange(ROWS)[::-1], np.random.default_rng(3).permutation(ROWS)):
        output = _transformed(block.fitted(x[order]), test)
        _same(
            output, expected, "fitted to the same rows in another order, its output differs", 1e-6
        )


@_undisturbed
def deterministic(block: Preprocessor) -> None:
    """Two fits to the same data give the same output, at any state of the random generators."""
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
    """A single new row can be transformed, and its output is finite."""
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
            f"fitted to {FEATURES} features, it accepts {given.shape[1]} without an error: it must "
            "raise one"
        )


@_undisturbed
def constant_features(block: Preprocessor) -> None:
    """Features that are constant over the training data give finite output."""
    for value in (0.0, 3.0, 0.1):  # the mean of many 0.1 is not 0.1: the deviation is not quite 0
        x, test = _rows(0), _rows(1, 50)
        x[:, 1] = test[:, 1] = value
        step = block.fitted(x)
        test[0, 1] += 1  # and once not constant any more
        for given in (x, test):
            _finite(_transformed(step, given), f"rows with a feature of {value:g} throughout")


@_undisturbed
def missing_values(block: Preprocessor) -> Literal["raises", "kept", "filled"]:
    """Missing values (NaN) raise, stay missing there and nowhere else, or are filled."""
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
    must(
        kept,
        f"{missing} of {x.size} input values are missing, but {spread} of {output.size} outputs",
    )
    return "kept"


# -- what comes out ---------------------------------------------------------------------------


@_undisturbed
def inverse(block: Preprocessor) -> None:
    """``inverse_transform`` restores the input."""
    x = _rows(0)
    step = block.fitted(x)
    if not hasattr(step, "inverse_transform"):
        raise NotApplicable("it has no inverse_transform")
    back = _dense(_call(step, "inverse_transform", _transformed(step, x)))
    _same(back, x, "inverse_transform does not restore the input", 1e-6)


def _training(block: Preprocessor) -> NDArray[np.float64]:
    x = _rows(0)
    output = _transformed(block.fitted(x), x)
    _finite(output, "the training data")
    return output


def _covariance(output: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divided by n. With 200 rows n - 1 gives 0.5 % more; both count as unit variance."""
    return np.atleast_2d(np.cov(output, rowvar=False, ddof=0))


@_undisturbed
def centred(block: Preprocessor) -> bool:
    """The transformed training data have mean 0 (to 1e-6 of a deviation)."""
    output = _training(block)
    return bool((np.abs(output.mean(0)) <= 1e-6 * np.maximum(output.std(0), 1e-12)).all())


@_undisturbed
def unit_variance(block: Preprocessor) -> bool:
    """The transformed training data have variance 1 in each feature (to 1 %)."""
    return bool((np.abs(np.diag(_covariance(_training(block))) - 1) <= 0.01).all())


@_undisturbed
def decorrelated(block: Preprocessor) -> bool:
    """The transformed training data have a diagonal covariance (correlations below 1e-6)."""
    covariance = _covariance(_training(block))
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-24))
    correlation = covariance / np.outer(deviation, deviation)
    return bool((np.abs(correlation - np.diag(np.diag(correlation))) <= 1e-6).all())


@_undisturbed
def white(block: Preprocessor) -> bool:
    """The transformed training data have the identity as covariance (to 1 %)."""
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
    """Check a preprocessor, and measure whether it centres, whitens and accepts missing values.

    Args:
        factory: Builds a preprocessor that is not fitted yet.
        declared: Properties that do not hold, and why.
        expect: Traits that it must have, such as ``{"centred": True}``.

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
