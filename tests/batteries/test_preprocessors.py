"""scikit-learn's preprocessors hold to the laws; for each law one that breaks it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from battery_parts import assert_caught
from sklearn import decomposition, impute, preprocessing

import nndiag.testing.preprocessors  # noqa: F401 (the inner sessions unload what they load)
from nndiag.errors import FindingsError, SettingsError
from nndiag.testing.preprocessors import (
    PREPROCESSOR,
    Preprocessor,
    check_preprocessor,
    parametrize_preprocessors,
)


def result_of(name, factory):
    return PREPROCESSOR.result(name, Preprocessor(factory), {}, {})


def failures(factory):
    results = PREPROCESSOR.results(Preprocessor(factory), {}, {})
    return {r.name: r.reason for r in results if r.status == "fails"}


# --- scikit-learn's ------------------------------------------------------------------------------


def traits(missing, *which):
    names = ("centred", "unit-variance", "decorrelated", "white")
    return {"missing-values": missing, **{name: name in which for name in names}}


def quantiles(output):
    return lambda: preprocessing.QuantileTransformer(n_quantiles=50, output_distribution=output)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (preprocessing.StandardScaler, traits("kept", "centred", "unit-variance")),
        (lambda: preprocessing.StandardScaler(with_std=False), traits("kept", "centred")),
        (lambda: preprocessing.StandardScaler(with_mean=False), traits("kept", "unit-variance")),
        (preprocessing.MinMaxScaler, traits("kept")),
        (preprocessing.MaxAbsScaler, traits("kept")),
        (preprocessing.RobustScaler, traits("kept")),
        (preprocessing.PowerTransformer, traits("kept", "centred", "unit-variance")),
        (quantiles("uniform"), traits("kept")),
        (quantiles("normal"), traits("kept")),
        (preprocessing.Normalizer, traits("raises")),
        (preprocessing.SplineTransformer, traits("raises")),
        (impute.KNNImputer, traits("filled")),
        (decomposition.PCA, traits("raises", "centred", "decorrelated")),
        (
            lambda: decomposition.PCA(whiten=True),
            traits("raises", "centred", "unit-variance", "decorrelated", "white"),
        ),
    ],
)
def test_scikit_learns_hold_to_all_laws(build, expected):
    assert check_preprocessor(build) == expected


@pytest.mark.parametrize("build", [preprocessing.Normalizer, impute.KNNImputer])
def test_what_has_no_inverse_is_asked_for_none(build):
    assert result_of("inverse", build).status == "does not apply"


@pytest.mark.parametrize(
    ("build", "name", "why"),
    [
        (lambda: decomposition.PCA(2), "inverse", "three directions are dropped"),
        (lambda: impute.SimpleImputer(), "inverse", "it has one with add_indicator alone"),
        (
            lambda: preprocessing.FunctionTransformer(np.arcsinh, np.sinh),
            "wrong-number-of-features",
            "it takes what comes",
        ),
        (
            lambda: decomposition.FastICA(whiten="unit-variance"),
            "deterministic",
            "it starts at random",
        ),
    ],
    ids=["PCA", "SimpleImputer", "FunctionTransformer", "FastICA"],
)
def test_what_scikit_learn_does_not_promise_is_to_be_declared(build, name, why):
    assert list(failures(build)) == [name]

    check_preprocessor(build, declared={name: why})


# --- what is broken ------------------------------------------------------------------------------


class Sound:
    """Standardises, in parts that can be broken one by one."""

    def fit(self, x):
        self.width = x.shape[1]
        self.mean, self.deviation = self.moments(x)
        return self

    def moments(self, x):
        return np.nanmean(x, axis=0), np.where((s := np.nanstd(x, axis=0)) > 1e-9, s, 1.0)

    def transform(self, x):
        if x.shape[1] != self.width:
            raise ValueError(f"{x.shape[1]} features, not {self.width}")
        return (x - self.mean) / self.deviation

    def inverse_transform(self, x):
        return x * self.deviation + self.mean


class FitsInTransform(Sound):
    def transform(self, x):
        return super().transform(x) if len(x) == 1 else self.fit(x).transform_as_fitted(x)

    def transform_as_fitted(self, x):
        return super().transform(x)


class StandardisesByTheTestBatch(Sound):
    def transform(self, x):
        super().transform(x)
        mean, deviation = self.moments(x)
        return (x - mean) / deviation


class LearnsFromWhatItTransforms(Sound):
    """A row is the same beside whichever others, and not after them."""

    def transform(self, x):
        found = super().transform(x)
        self.mean = 0.9 * self.mean + 0.1 * self.moments(x)[0]
        return found


class FitsOnce(Sound):
    def fit(self, x):
        return self if hasattr(self, "mean") else super().fit(x)


class AveragesItsFits(Sound):
    def moments(self, x):
        mean, deviation = super().moments(x)
        self.fits = [*getattr(self, "fits", []), mean]
        return np.mean(self.fits, axis=0), deviation


class FitsInPlace(Sound):
    def fit(self, x):
        super().fit(x)
        x -= self.mean
        return self


class TransformsInPlace(Sound):
    def transform(self, x):
        x -= self.mean
        x /= self.deviation
        return x


class ForgetsTheMeanOnTheWayBack(Sound):
    def inverse_transform(self, x):
        return x * self.deviation


class RaisesOnTheWayBack(Sound):
    def inverse_transform(self, x):
        raise NotImplementedError("to do")


class DividesByZero(Sound):
    def moments(self, x):
        return np.nanmean(x, axis=0), np.nanstd(x, axis=0)


class SpreadsTheMissing(Sound):
    def moments(self, x):
        return x.mean(axis=0), np.where((s := x.std(axis=0)) > 1e-9, s, 1.0)


class Drawn(Sound):
    def moments(self, x):
        mean, deviation = super().moments(x)
        return mean + np.random.normal(size=len(mean)), deviation


class DrawnAnewInTransform(Sound):
    def transform(self, x):
        return super().transform(x) + random.random()


class ByTheFirstRows(Sound):
    def moments(self, x):
        return super().moments(x[:100])


class SqueezesASingleRow(Sound):
    def transform(self, x):
        return super().transform(x).squeeze(0) if len(x) == 1 else super().transform(x)


class NaNForASingleRow(Sound):
    def transform(self, x):
        return super().transform(x) * (1 if len(x) > 1 else np.nan)


class Broadcasts(Sound):
    """numpy refuses four features for five, and spreads one."""

    def transform(self, x):
        return (x - self.mean) / self.deviation


class CutsOff(Sound):
    def transform(self, x):
        return super().transform(x[:, : self.width])


class LeavesOutRows(Sound):
    def transform(self, x):
        found = super().transform(x)
        return found[np.abs(found).max(1) < 3]


class Infinite(Sound):
    def transform(self, x):
        return super().transform(x) / 0.0


BROKEN = [
    (FitsInTransform, "fitted-on-training-data-only", "a row changes with the rows beside it: by"),
    (StandardisesByTheTestBatch, "fitted-on-training-data-only", "changes with the rows beside it"),
    (LearnsFromWhatItTransforms, "fitted-on-training-data-only", "after other rows were trans"),
    (LeavesOutRows, "fitted-on-training-data-only", r"transform returns \d+ rows for 50"),
    (FitsOnce, "refit-forgets", "the first fit changes the output after the second: by"),
    (AveragesItsFits, "refit-forgets", "the first fit changes the output after the second"),
    (FitsInPlace, "input-untouched", "fit changed 1000 of 1000 values of its input"),
    (TransformsInPlace, "input-untouched", "transform changed 1000 of 1000 values"),
    (ForgetsTheMeanOnTheWayBack, "inverse", "inverse_transform does not restore the input: by"),
    (RaisesOnTheWayBack, "inverse", r"inverse_transform of an array \(200, 5\) raises NotImpl"),
    (DividesByZero, "constant-features", "a feature of 0 throughout: 200 of 1000 values are NaN"),
    (
        SpreadsTheMissing,
        "missing-values",
        "of 1000 input values are missing, but 1000 of 1000 outputs",
    ),
    (Infinite, "centred", "the training data: 1000 of 1000 values are NaN or infinite"),
    (Infinite, "unit-variance", "the training data: 1000 of 1000 values"),
    (Infinite, "decorrelated", "the training data: 1000 of 1000 values"),
    (Infinite, "white", "the training data: 1000 of 1000 values"),
    (Drawn, "deterministic", "two fits to the same rows differ: by"),
    (DrawnAnewInTransform, "deterministic", "two transforms of the same rows differ"),
    (ByTheFirstRows, "row-order", "the same rows in another order, its output differs"),
    (SqueezesASingleRow, "new-data-of-one-row", "transform returns 1 axes, allowed are 2"),
    (NaNForASingleRow, "new-data-of-one-row", "a single row: 5 of 5 values are NaN"),
    (Broadcasts, "wrong-number-of-features", "fitted to 5 features, it accepts 1 without an error"),
    (CutsOff, "wrong-number-of-features", "fitted to 5 features, it accepts 6 without an error"),
]


def test_the_one_that_the_broken_are_made_from_is_sound():
    assert check_preprocessor(Sound) == traits("kept", "centred", "unit-variance")


@pytest.mark.parametrize(
    ("build", "name", "text"), BROKEN, ids=[f"{b.__name__}-{n}" for b, n, _ in BROKEN]
)
def test_what_breaks_a_law_is_caught(build, name, text):
    assert_caught(PREPROCESSOR, result_of(name, build), text)


def test_every_property_has_been_seen_to_fail():
    assert {name for _, name, _ in BROKEN} == set(PREPROCESSOR.properties)


@pytest.mark.parametrize(
    ("build", "only"),
    [
        (FitsOnce, {"refit-forgets"}),
        (TransformsInPlace, {"input-untouched", "wrong-number-of-features"}),
        (DividesByZero, {"constant-features"}),
        (Drawn, {"deterministic", "centred"}),
        (ByTheFirstRows, {"row-order"}),
        (Broadcasts, {"wrong-number-of-features"}),
    ],
)
def test_what_is_wrong_in_one_way_fails_in_no_other(build, only):
    assert set(failures(build)) <= only


class Off(Sound):
    def __init__(self, mean=0.0, deviation=1.0):
        self.off, self.factor = mean, deviation

    def moments(self, x):
        mean, deviation = super().moments(x)
        return mean + self.off * deviation, deviation * self.factor


@pytest.mark.parametrize(
    ("off", "trait"),
    [({"mean": 1e-4}, "centred"), ({"deviation": 1.02}, "unit-variance")],
)
def test_a_little_off_is_off(off, trait):
    assert result_of(trait, Off).value is True
    assert result_of(trait, lambda: Off(**off)).value is False


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_variance_may_divide_by_n_or_by_one_less(ddof):
    class Scaled(Sound):
        def moments(self, x):
            return x.mean(0), x.std(0, ddof=ddof)

    assert result_of("unit-variance", Scaled).value is True


def test_uncorrelated_and_of_unit_variance_is_white():
    class Zca(Sound):
        def fit(self, x):
            super().fit(x)
            values, vectors = np.linalg.eigh(np.cov(x.T))
            self.whitening = vectors / np.sqrt(values) @ vectors.T
            return self

        def transform(self, x):
            return (x - self.mean) @ self.whitening

        def inverse_transform(self, x):
            return x @ np.linalg.inv(self.whitening) + self.mean

    measured = {name: result_of(name, Zca).value for name in ("decorrelated", "white")}
    assert measured == {"decorrelated": True, "white": True}
    # It divides by the deviation of a direction that has none, and numpy spreads a single feature.
    assert set(failures(Zca)) == {"constant-features", "wrong-number-of-features"}


def test_sparse_output_is_looked_at_as_what_it_holds():
    assert failures(lambda: preprocessing.PolynomialFeatures(2)) == {}
    found = failures(lambda: preprocessing.SplineTransformer(sparse_output=True))
    assert found == {}


# --- how it is called ----------------------------------------------------------------------------


def test_a_trait_that_is_not_as_expected_fails():
    with pytest.raises(FindingsError, match="white: it is False, expected True"):
        check_preprocessor(preprocessing.StandardScaler, expect={"white": True})


def test_a_failure_names_the_class_the_property_and_what_is_allowed():
    with pytest.raises(FindingsError) as failure:
        check_preprocessor(FitsInPlace)

    assert str(failure.value).splitlines()[1:3] == [
        "  input-untouched: fit changed 1000 of 1000 values of its input",
        "    (Neither fitting nor transforming changes the array it is given.)",
    ]
    assert str(failure.value).startswith("FitsInPlace: 1 of 14 properties of a preprocessor do")


@pytest.mark.parametrize("factory", [preprocessing.StandardScaler(), 3])
def test_what_builds_nothing_is_no_factory(factory):
    with pytest.raises(SettingsError, match="give a function that builds a fresh preprocessor"):
        check_preprocessor(factory)


def test_what_cannot_fit_is_told():
    with pytest.raises(SettingsError, match="gives list, which has no fit and no transform"):
        check_preprocessor(list)


def test_the_random_generators_are_where_they_were():
    before = random.getstate(), np.random.get_state()[1].tolist()

    failures(Drawn)
    failures(DrawnAnewInTransform)

    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_verdicts_do_not_depend_on_where_the_generators_are():
    first = PREPROCESSOR.results(Preprocessor(Drawn), {}, {})
    random.random(), np.random.random()

    assert PREPROCESSOR.results(Preprocessor(Drawn), {}, {}) == first


def test_verdicts_do_not_depend_on_what_becomes_of_warnings(recwarn):
    build = preprocessing.KBinsDiscretizer  # warns of constant features, among others

    assert list(failures(lambda: build(n_bins=3))) == ["inverse"]
    assert not recwarn


def test_a_data_frame_may_come_out():
    assert failures(lambda: preprocessing.StandardScaler().set_output(transform="pandas")) == {}


INNER = """
from sklearn.preprocessing import Normalizer, StandardScaler
from nndiag.testing.preprocessors import parametrize_preprocessors

class InPlace(StandardScaler):
    def __init__(self):
        super().__init__(copy=False)

@parametrize_preprocessors(
    {"standard": StandardScaler, "rows": Normalizer, "place": InPlace, "bad": InPlace},
    declared={"place": {"input-untouched": "copy=False"}},
    expect={"standard": {"centred": True}},
)
def test_steps(check):
    check()
"""


def test_each_preprocessor_and_property_is_a_test(pytester):
    pytester.makepyfile(test_it=INNER)

    result = pytester.runpytest_inprocess("-W", "error", "-p", "no:randomly", "-v", "-rsx")

    result.assert_outcomes(passed=53, failed=1, xfailed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*test_steps?standard-refit-forgets? PASSED*",
            "*test_steps?bad-input-untouched? FAILED*",
            "E*FindingsError: bad: 1 of 1 properties of a preprocessor do* not hold",
            "SKIPPED*it has no inverse_transform",
        ]
    )


def test_what_is_declared_of_no_one_is_told():
    with pytest.raises(SettingsError, match=r"declared\['standart'\].* Did you mean 'standard'"):
        parametrize_preprocessors(
            {"standard": preprocessing.StandardScaler}, declared={"standart": {}}
        )
