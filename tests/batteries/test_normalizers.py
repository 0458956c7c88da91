"""Normalisers of torch and of ours hold to the laws; for each law one that breaks it."""

from __future__ import annotations

import functools
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from battery_parts import assert_caught
from torch import nn

import nndiag.capture.untouched
import nndiag.testing.normalizers  # loaded before the inner sessions, which unload what they load
from nndiag.errors import FindingsError, ModelError, SettingsError
from nndiag.fixes import normalization as ours
from nndiag.testing.normalizers import (
    NORMALIZER,
    Normalizer,
    check_normalizer,
    parametrize_normalizers,
)

LAYERS = {nn: "torch", ours: "ours"}
FLAT, LINE, IMAGE, VOLUME = (64, 16), (16, 6, 5), (16, 6, 4, 3), (16, 6, 2, 3, 2)


def result_of(name, factory, shape=FLAT):
    return NORMALIZER.result(name, Normalizer(factory, shape), {}, {})


def failures(factory, shape=FLAT):
    results = NORMALIZER.results(Normalizer(factory, shape), {}, {})
    return {r.name: r.reason for r in results if r.status == "fails"}


# --- what the papers say -------------------------------------------------------------------------


@pytest.mark.one_in(7)
@pytest.mark.parametrize("layers", LAYERS, ids=LAYERS.values())
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"momentum": 0.9}, {"affine": False}, {"eps": 1e-3}],
    ids=str,
)
@pytest.mark.parametrize(
    ("name", "shape", "of_one"),
    [
        ("BatchNorm1d", FLAT, "raises"),
        ("BatchNorm1d", LINE, "works"),
        ("BatchNorm2d", IMAGE, "works"),
        ("BatchNorm3d", VOLUME, "works"),
    ],
)
def test_batch_norm_is_ioffe_and_szegedys(layers, options, name, shape, of_one):
    """2015: each channel over the batch and all places, for which one value is too few."""
    build = functools.partial(getattr(layers, name), shape[1], **options)

    assert check_normalizer(build, shape=shape) == {"axes": "batch", "batch-of-one": of_one}
    assert result_of("running-statistics", build, shape).status == "holds"


@pytest.mark.parametrize("layers", LAYERS, ids=LAYERS.values())
@pytest.mark.parametrize(
    ("name", "shape"), [("BatchNorm1d", LINE), ("BatchNorm2d", IMAGE), ("BatchNorm3d", VOLUME)]
)
def test_batch_norm_that_remembers_nothing_evaluates_as_it_trains(layers, name, shape):
    build = functools.partial(getattr(layers, name), shape[1], track_running_stats=False)

    assert check_normalizer(build, shape=shape)["axes"] == "batch"
    assert result_of("running-statistics", build, shape).status == "does not apply"


@pytest.mark.parametrize("layers", LAYERS, ids=LAYERS.values())
def test_batch_norm_that_remembers_nothing_evaluates_no_single_sample(layers):
    def build():
        return layers.BatchNorm1d(16, track_running_stats=False)

    found = failures(build)

    assert list(found) == ["evaluation-of-one"]
    assert "given f32[1, 16] in eval mode it raises" in found["evaluation-of-one"]
    check_normalizer(build, declared={"evaluation-of-one": "its batches are large"})


@pytest.mark.parametrize("layers", LAYERS, ids=LAYERS.values())
@pytest.mark.parametrize(("of", "shape"), [(16, FLAT), ((6, 5), LINE), ((6, 4, 3), IMAGE)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_is_bas(layers, of, shape, affine):
    """Ba et al. 2016: each sample over its units, so that it works for batches of one."""
    measured = check_normalizer(
        lambda: layers.LayerNorm(of, elementwise_affine=affine), shape=shape
    )

    assert measured == {"axes": "sample", "batch-of-one": "works"}


@pytest.mark.one_in(7)
@pytest.mark.parametrize("layers", LAYERS, ids=LAYERS.values())
@pytest.mark.parametrize(
    ("groups", "axes"), [(1, "sample"), (2, "group"), (3, "group"), (6, "channel")]
)
@pytest.mark.parametrize("shape", [LINE, IMAGE, VOLUME], ids=str)
def test_group_norm_is_wu_and_hes(layers, groups, axes, shape):
    """2018: between layer norm (one group) and instance norm (as many as channels)."""
    measured = check_normalizer(lambda: layers.GroupNorm(groups, 6), shape=shape)

    assert measured == {"axes": axes, "batch-of-one": "works"}


@pytest.mark.parametrize("layers", LAYERS, ids=LAYERS.values())
def test_groups_of_two_values_have_no_gradient_to_speak_of(layers):
    def build():
        return layers.GroupNorm(8, 16)

    assert check_normalizer(build)["axes"] == "group"
    assert result_of("gradient-scales-inversely", build).status == "does not apply"


@pytest.mark.parametrize(("name", "shape"), [("InstanceNorm1d", LINE), ("InstanceNorm2d", IMAGE)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_instance_norm_is_ulyanovs(name, shape, affine, tracks):
    """Ulyanov et al. 2016: each channel of each sample over its places, as when it is tested."""
    build = functools.partial(
        getattr(nn, name), shape[1], affine=affine, track_running_stats=tracks
    )

    assert check_normalizer(build, shape=shape) == {"axes": "channel", "batch-of-one": "works"}
    status = result_of("running-statistics", build, shape).status
    assert status == ("holds" if tracks else "does not apply")


@pytest.mark.parametrize(("of", "shape"), [(16, FLAT), ((6, 4, 3), IMAGE)])
@pytest.mark.parametrize("eps", [None, 1e-6])
def test_rms_norm_is_zhang_and_sennrichs(of, shape, eps):
    """2019: re-scaling without re-centring."""

    def build():
        return nn.RMSNorm(of, eps=eps)

    assert check_normalizer(build, shape=shape) == {"axes": "rms", "batch-of-one": "works"}
    assert result_of("mean-zero", build, shape).status == "does not apply"
    assert result_of("variance-one", build, shape).status == "holds"


@pytest.mark.parametrize(
    ("build", "shape"),
    [(lambda: nn.LocalResponseNorm(5), IMAGE), (nn.Identity, FLAT)],
    ids=["LocalResponseNorm", "Identity"],
)
def test_what_keeps_the_scale_is_no_normaliser(build, shape):
    found = failures(build, shape)

    assert {"axes", "scale-invariant", "gradient-scales-inversely"} <= set(found)
    assert "it does not remove the scale of its input over any of" in found["axes"]
    assert result_of("mean-zero", build, shape).reason == "it normalises over no known set of axes"


def test_local_response_norm_passes_once_it_is_declared():
    why = "it divides by a power of the neighbours' squares, and adds 1 to them"
    names = ["axes", "scale-invariant", "gradient-scales-inversely", "dtype-kept"]

    declared = dict.fromkeys(names, why)
    assert check_normalizer(lambda: nn.LocalResponseNorm(5), shape=IMAGE, declared=declared) == {
        "batch-of-one": "works"
    }


# --- what is broken ------------------------------------------------------------------------------


class Sound(nn.Module):
    """Batch norm of ``[N, C]``, in parts that can be broken one by one."""

    eps, momentum = 1e-5, 0.1

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))
        self.register_buffer("running_mean", torch.zeros(16))
        self.register_buffer("running_var", torch.ones(16))

    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.training:
            mean, variance = self.moments(wide)
            self.remember(mean.detach(), variance.detach() * len(x) / max(len(x) - 1, 1))
        return self.affine(self.normal(wide, mean, variance).to(x.dtype))

    def moments(self, x):
        return x.mean(0), x.var(0, correction=0)

    def remember(self, mean, unbiased):
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)

    def normal(self, x, mean, variance):
        return (x - mean) / (variance + self.eps).sqrt()

    def affine(self, y):
        return self.weight * y + self.bias


class ForgetsTheMean(Sound):
    def normal(self, x, mean, variance):
        return x / (variance + self.eps).sqrt()


class UnbiasedVariance(Sound):
    def moments(self, x):
        return x.mean(0), x.var(0, correction=1)


class LargeEps(Sound):
    eps = 0.1


class AveragePlusDeviation(Sound):
    """The mean absolute deviation is not the standard deviation."""

    def normal(self, x, mean, variance):
        return (x - mean) / ((x - mean).abs().mean(0) + self.eps)


class BiasedRunningVariance(Sound):
    def remember(self, mean, unbiased):
        super().remember(mean, unbiased * 63 / 64)


class SwappedMomentum(Sound):
    def remember(self, mean, unbiased):
        for kept, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            kept.lerp_(batch.to(kept), 1 - self.momentum)


class RemembersTheDeviation(Sound):
    def remember(self, mean, unbiased):
        super().remember(mean, unbiased.sqrt())


class KeepsTheGraph(Sound):
    def forward(self, x):
        mean, variance = self.moments(x)
        self.running_mean = 0.9 * self.running_mean + 0.1 * mean * self.weight.mean()
        self.running_var = 0.9 * self.running_var + 0.1 * variance * 64 / 63
        return self.affine(self.normal(x, mean, variance))


class LearnsInEval(Sound):
    def forward(self, x):
        y = super().forward(x)
        if not self.training:
            self.remember(*self.moments(x))
        return y


class UsesTheBatchInEval(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else self.affine(self.normal(x, *self.moments(x)))


class NothingInEval(Sound):
    def forward(self, x):
        return super().forward(x) if self.training else self.affine(x)


class NaNInEval(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y * torch.nan


class ClippedInEval(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y.clamp(-1, 1)


class SubtractsTheBatchInEval(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y - y.mean(0)


class LayerNormOnlyInTraining(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) if self.training else x


class UnbiasedOfOne(Sound):
    """The variance of one value divides by 0."""

    def moments(self, x):
        return x.mean(0), x.var(0, correction=1) * (len(x) - 1) / len(x)


class SqueezesInEval(Sound):
    def forward(self, x):
        return super().forward(x).squeeze()


class NeedsABatchInEval(Sound):
    def forward(self, x):
        if len(x) < 2:
            raise ValueError("no batch")
        return super().forward(x)


class DividesByTheVariance(Sound):
    def normal(self, x, mean, variance):
        return (x - mean) / (variance + self.eps)


class ClampedDeviation(Sound):
    """As if no unit could ever be louder than 20."""

    def normal(self, x, mean, variance):
        return (x - mean) / variance.sqrt().clamp(max=20)


class StraightThrough(Sound):
    def normal(self, x, mean, variance):
        y = super().normal(x, mean, variance)
        return x + (y - x).detach()


class DetachedStatistics(Sound):
    def moments(self, x):
        return super().moments(x.detach())


class DetachedVariance(Sound):
    def moments(self, x):
        return x.mean(0), x.detach().var(0, correction=0)


class FrozenBias(Sound):
    def affine(self, y):
        return self.weight * y + self.bias.detach()


class NoGradient(Sound):
    def normal(self, x, mean, variance):
        return super().normal(x, mean, variance).detach()


class GivesFloat32(Sound):
    def forward(self, x):
        return super().forward(x).float()


class ComputesInFloat32(Sound):
    def normal(self, x, mean, variance):
        return super().normal(x.float(), mean.float(), variance.float()).to(x.dtype)


class OverflowsInHalf(nn.Module):
    """The squares of 1e3 are beyond float16: the denominator is infinite, the output 0."""

    def forward(self, x):
        squares = x.square().sum(1, keepdim=True) / x.shape[1]
        return x / (squares + torch.finfo(x.dtype).eps).sqrt()


class NoEps(Sound):
    eps = 0.0


class RootOfZero(Sound):
    """Forwards finite, but the root has no slope at 0."""

    def normal(self, x, mean, variance):
        return (x - mean) / (variance.sqrt() + self.eps)


class SquareOfTheMean(Sound):
    def moments(self, x):
        mean = x.mean(0)
        return mean, (x.square().mean(0) - mean.square()).clamp(min=0)


class Noisy(Sound):
    def affine(self, y):
        return super().affine(y) + 1e-6 * torch.randn_like(y)


class NoisyInEval(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else F.dropout(y, 0.1)


class ByOwnPast(Sound):
    """Normalises by what it remembers, in training, too."""

    def forward(self, x):
        super().forward(x)
        return self.affine(self.normal(x, self.running_mean.clone(), self.running_var.clone()))


class WrongShape(Sound):
    def forward(self, x):
        return super().forward(x).flatten()


BROKEN = [
    (ByOwnPast, "axes", "it does not remove the scale of its input over any of"),
    (WrongShape, "axes", r"its output is f64\[1024\] for an input of f64\[64, 16\]"),
    (ForgetsTheMean, "mean-zero", r"a mean over each batch is .*, allowed are -1e-05 to 1e-05"),
    (lambda: nn.Sequential(nn.RMSNorm(16), Shift()), "variance-one", "over each sample"),
    (UnbiasedVariance, "variance-one", "as if eps were 0.0"),
    (LargeEps, "variance-one", "as if eps were 0.1: allowed are 0 to 0.001"),
    (AveragePlusDeviation, "variance-one", "as if eps were -"),
    (BiasedRunningVariance, "running-statistics", "running_var is off by"),
    (SwappedMomentum, "running-statistics", "after batch 1, running_mean is off by"),
    (RemembersTheDeviation, "running-statistics", "after batch 1, running_var is off by"),
    (KeepsTheGraph, "running-statistics", "running_mean requires a gradient and keeps the graph"),
    (
        LearnsInEval,
        "evaluation-is-affine",
        "in eval mode a batch changed running_mean, running_var",
    ),
    (UsesTheBatchInEval, "evaluation-is-affine", "it is not affine"),
    (NaNInEval, "evaluation-is-affine", "it is not affine: off by inf"),
    (NaNInEval, "evaluation-of-one", "16 of 16 values are NaN"),
    (ClippedInEval, "evaluation-is-affine", "it is not affine"),
    (SubtractsTheBatchInEval, "evaluation-is-affine", "depends on the others of its batch"),
    (NothingInEval, "evaluation-is-affine", r"is not \(x - running_mean\)"),
    (lambda: LayerNormOnlyInTraining(16), "evaluation-is-affine", "eval differs from training"),
    (UnbiasedOfOne, "batch-of-one", "16 of 16 values are NaN"),
    (SqueezesInEval, "evaluation-of-one", r"its output is f32\[16\] for an input of f32\[1, 16\]"),
    (
        NeedsABatchInEval,
        "evaluation-of-one",
        r"given f32\[1, 16\] in eval mode it raises ValueError: no batch",
    ),
    (DividesByTheVariance, "scale-invariant", "weights 2 times as large change its output"),
    (ClampedDeviation, "scale-invariant", "times as large change its output"),
    (StraightThrough, "gradient-scales-inversely", "do not get 1/2 of the gradient"),
    (NoGradient, "gradient-scales-inversely", "no gradient reaches"),
    (StraightThrough, "gradient", "for its input, .* Jacobian mismatch"),
    (DetachedStatistics, "gradient", "for its input, .* Jacobian mismatch"),
    (DetachedVariance, "gradient", "for its input, .* Jacobian mismatch"),
    (FrozenBias, "gradient", "for bias, allowed is a difference of 1e-05"),
    (ComputesInFloat32, "gradient", "for its input, .* Jacobian mismatch"),
    (NoGradient, "gradient", r"for its input, .* analytical:tensor\(\[\[0.\]"),
    (GivesFloat32, "dtype-kept", r"the output of torch.float64 .* is torch.float32"),
    (OverflowsInHalf, "dtype-kept", "torch.float16 inputs of scale 1000 is 0 times"),
    (NoEps, "constant-input", "the output for inputs of 0 throughout: 1024 of 1024 values"),
    (RootOfZero, "constant-input", "a gradient for inputs of 0 throughout"),
    (SquareOfTheMean, "large-mean", r"its deviation is .*, allowed are 0.99 to 1.01"),
    (Noisy, "deterministic", "two outputs for one batch differ by .* in training mode"),
    (NoisyInEval, "deterministic", "in eval mode, allowed is 0"),
    (ByOwnPast, "deterministic", "in training mode"),
]


class Shift(nn.Module):
    def forward(self, x):
        return 1.2 * x


def test_the_one_that_the_broken_are_made_from_is_sound():
    assert check_normalizer(Sound) == {"axes": "batch", "batch-of-one": "works"}


@pytest.mark.parametrize(
    ("build", "name", "text"), BROKEN, ids=[f"{b.__name__}-{n}" for b, n, _ in BROKEN]
)
def test_what_breaks_a_law_is_caught(build, name, text):
    assert_caught(NORMALIZER, result_of(name, build), text)


def test_every_property_has_been_seen_to_fail():
    assert {name for _, name, _ in BROKEN} == set(NORMALIZER.properties)


@pytest.mark.parametrize(
    ("build", "only"),
    [
        (BiasedRunningVariance, {"running-statistics"}),
        (SwappedMomentum, {"running-statistics"}),
        (LearnsInEval, {"evaluation-is-affine", "deterministic"}),
        (NothingInEval, {"evaluation-is-affine"}),
        (DetachedStatistics, {"gradient"}),
        (SquareOfTheMean, {"large-mean"}),
        (NoEps, {"constant-input", "batch-of-one"}),
    ],
)
def test_what_is_wrong_in_one_way_fails_in_no_other(build, only):
    assert set(failures(build)) <= only


def test_what_the_unbiased_variance_costs_is_seen_in_layer_norm_too():
    class Unbiased(nn.Module):
        def forward(self, x):
            return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()

    assert "variance-one" in failures(Unbiased)


def test_a_norm_that_remembers_under_other_names_is_not_held_to_training():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("moving_mean", torch.zeros(16))
            self.register_buffer("moving_variance", torch.ones(16))

        def forward(self, x):
            kept = self.moving_mean, self.moving_variance
            return F.batch_norm(x, *kept, training=self.training)

    assert failures(Moving) == {}
    assert result_of("running-statistics", Moving).status == "does not apply"


def test_a_norm_inside_a_block_is_found():
    assert check_normalizer(lambda: nn.Sequential(nn.BatchNorm1d(16)))["axes"] == "batch"


def test_a_norm_that_works_in_place_is_held_to_the_same():
    class InPlace(nn.Module):
        def forward(self, x):
            x -= x.mean(1, keepdim=True)
            return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()

    found = failures(InPlace)

    # ±1e3 squared is beyond float16, and that is all.
    assert list(found) == ["dtype-kept"]
    assert "of torch.float16 inputs of scale 1000" in found["dtype-kept"]


def test_frozen_parameters_are_no_failure():
    assert failures(lambda: nn.LayerNorm(16).requires_grad_(False)) == {}


# --- how it is called ----------------------------------------------------------------------------


def test_a_failure_names_the_class_the_property_and_what_is_allowed():
    with pytest.raises(FindingsError) as failure:
        check_normalizer(BiasedRunningVariance)

    lines = str(failure.value).splitlines()
    assert lines[0].startswith("BiasedRunningVariance: 1 of 14 properties of a normaliser do")
    assert re.match(
        r"  running-statistics: after batch 1, running_var is off by .*, allowed is 1e-06; "
        r"with momentum=0.1 and the unbiased variance it should be .* in the first channel, but is",
        lines[1],
    )
    assert lines[2] == (
        "    (Running statistics move to each batch's mean and unbiased variance by ``momentum``.)"
    )


def test_a_trait_that_is_not_as_expected_fails():
    with pytest.raises(FindingsError, match="axes: it is 'batch', expected 'sample'"):
        check_normalizer(lambda: nn.BatchNorm1d(16), expect={"axes": "sample"})


def test_what_is_declared_and_holds_fails():
    with pytest.raises(FindingsError, match="remove the declaration"):
        check_normalizer(lambda: nn.LayerNorm(16), declared={"mean-zero": "no idea"})


def state():
    return random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_random_generators_are_where_they_were():
    before = state()

    check_normalizer(Sound)
    failures(Noisy)

    assert state() == before


def test_verdicts_do_not_depend_on_where_the_generators_are():
    found = []
    for seed in (1, 2):
        with nndiag.capture.untouched.seeded(seed):
            found.append(NORMALIZER.results(Normalizer(Noisy), {}, {}))

    assert found[0] == found[1]


def test_gradients_are_looked_at_where_the_caller_switched_them_off():
    with torch.no_grad():
        assert failures(Sound) == {}


@pytest.mark.parametrize("factory", [nn.LayerNorm(16), 3], ids=["built", "no function"])
def test_what_builds_nothing_is_no_factory(factory):
    with pytest.raises(SettingsError, match="give a function that builds a fresh normaliser"):
        check_normalizer(factory)


def test_a_factory_of_something_else_is_told():
    with pytest.raises(ModelError, match=r"the factory gives list, not a torch.nn.Module"):
        check_normalizer(list)


@pytest.mark.parametrize("shape", [(), (64,), (2, 16), (64, 1), (64, 16, 0)])
def test_a_shape_without_samples_or_channels_is_told(shape):
    with pytest.raises(SettingsError, match=r"Samples come first, at least 3, and channels second"):
        check_normalizer(Sound, shape=shape)


def test_a_shape_for_a_normaliser_that_is_not_there_is_told():
    with pytest.raises(SettingsError, match=r"shape\['lair'\].* Did you mean 'layer'"):
        parametrize_normalizers({"layer": lambda: nn.LayerNorm(16)}, shape={"lair": IMAGE})


INNER = """
import functools
from torch import nn
from nndiag.testing.normalizers import parametrize_normalizers

@parametrize_normalizers(
    {
        "layer": functools.partial(nn.LayerNorm, 16),
        "batch": functools.partial(nn.BatchNorm2d, 6),
        "none": nn.Identity,
    },
    shape={"batch": (16, 6, 4, 3)},
    declared={"none": {"axes": "it is the baseline", "scale-invariant": "it is the baseline"}},
    expect={"layer": {"axes": "sample"}, "batch": {"axes": "batch"}},
)
def test_norms(check):
    check()
"""


def test_each_normaliser_and_property_is_a_test(pytester):
    pytester.makepyfile(test_it=INNER)

    result = pytester.runpytest_inprocess("-W", "error", "-p", "no:randomly", "-v", "-rsx")

    # failed: the identity's gradient-scales-inversely, which is not declared
    result.assert_outcomes(passed=34, failed=1, xfailed=2, skipped=5)
    result.stdout.fnmatch_lines(
        [
            "*test_norms?layer-mean-zero? PASSED*",
            "*test_norms?none-gradient-scales-inversely? FAILED*",
            "E*FindingsError: none: 1 of 1 properties of a normaliser do* not hold",
        ]
    )
    assert "nndiag/testing" not in result.stdout.str().split("short test summary")[0]


def test_nothing_is_imported_for_collection():
    code = (
        "import sys, nndiag.testing.normalizers, nndiag.testing.preprocessors;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn')))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
