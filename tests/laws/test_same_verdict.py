"""What changes nothing about a model changes nothing about its verdict."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from effort import tried
from hypothesis import assume, example, given
from hypothesis import strategies as st
from subjects import (
    FEATURES,
    SUBJECTS,
    WIDTH,
    Residual,
    any_subject,
    check,
    usual,
)
from torch import nn
from verdict import leading, verdict

from nndiag.render import json

SICK = [s for s in SUBJECTS.values() if s.leads]
draws = st.integers(0, 2**31)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def wide(model, data):
    """The same weights and the same batch in double precision."""
    x, y = data
    return copy.deepcopy(model).double(), (x.double() if x.is_floating_point() else x, y)


def is_plain(subject):
    """A stack of linear layers and activations: its units can be permuted and rescaled."""
    model = subject.model()
    return type(model) is nn.Sequential and all(
        type(layer) is nn.Linear or not list(layer.parameters()) for layer in model
    )


plain = any_subject(only=is_plain)


# -- the subjects are what they say -----------------------------------------------------------


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=repr)
def test_a_subject_is_sick_with_its_fault_or_healthy(subject):
    assert leading(usual(subject, 0)) == subject.leads


@pytest.mark.parametrize("subject", SICK, ids=repr)
def test_a_sick_subject_is_clearly_sick(subject):
    """Its number lies a factor 1.2 beyond the threshold, where it hangs on one."""
    first = usual(subject, 0).findings[0]
    if first.threshold:
        ratio = first.evidence[first.measure] / first.threshold
        assert abs(math.log(ratio)) > math.log(1.2)


# -- data and loss ----------------------------------------------------------------------------


@tried(20)
@given(any_subject(), draws)
def test_the_order_of_the_samples_changes_no_verdict(subject_seed, seed):
    subject, weights = subject_seed
    x, y = subject.data(seed=weights + 1)
    order = torch.randperm(len(x), generator=generator(seed))

    shuffled = check(subject.model(weights), (x[order], y[order]))

    assert verdict(shuffled) == verdict(usual(subject, weights))


@tried(25)
@given(any_subject(), st.floats(-3, 3), st.sampled_from(["mean", "sum"]))
def test_the_scale_of_the_loss_changes_no_verdict(subject_seed, decades, reduction):
    subject, weights = subject_seed

    def loss(output, target):
        return F.cross_entropy(output, target, reduction=reduction) * 10**decades

    scaled = check(subject.model(weights), subject.data(seed=weights + 1), loss)

    assert verdict(scaled) == verdict(usual(subject, weights))


@tried(20)
@given(any_subject())
@example((SUBJECTS["constant-weights"], 0))  # gradients that cancel: to zero, or to rounding
def test_precision_changes_no_verdict(subject_seed):
    subject, weights = subject_seed

    doubled = check(*wide(subject.model(weights), subject.data(seed=weights + 1)))

    assert verdict(doubled) == verdict(usual(subject, weights))


# -- chance -----------------------------------------------------------------------------------


@tried(40)
@given(any_subject(), draws, draws)
def test_another_seed_of_the_same_init_leads_to_the_same_finding(subject_seed, weights, data):
    subject, _ = subject_seed

    report = check(subject.model(weights), subject.data(seed=data))

    assert leading(report) == subject.leads


@tried(20)
@given(any_subject(), draws)
def test_another_seed_of_the_check_changes_no_verdict(subject_seed, seed):
    subject, weights = subject_seed

    report = check(subject.model(weights), subject.data(seed=weights + 1), seed=seed)

    assert verdict(report) == verdict(usual(subject, weights))


@tried(20)
@given(any_subject(but=("constant-weights", "all-zero")), draws)
def test_another_random_direction_in_place_of_a_loss_leads_to_the_same_finding(subject_seed, seed):
    subject, weights = subject_seed
    x, _ = subject.data(seed=weights + 1)

    report = check(subject.model(weights), x, None, seed=seed)

    assert leading(report) == subject.leads


# -- how the model is put ---------------------------------------------------------------------


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


WRAPS = {
    "0": nn.Sequential,
    "0.0": lambda model: nn.Sequential(nn.Sequential(model)),
    "inner": Wrapper,
    "inner.0.inner": lambda model: Wrapper(nn.Sequential(Wrapper(model))),
    "_orig_mod": lambda model: torch.compile(model, backend="eager"),
    "module": nn.DataParallel,
}


@tried(25)
@given(any_subject(), st.sampled_from(list(WRAPS)))
@example((SUBJECTS["unused-parts"], 0), "inner")  # parts that never ran lie nowhere
def test_a_wrapper_around_the_model_only_gives_its_layers_a_prefix(subject_seed, prefix):
    subject, weights = subject_seed

    wrapped = check(WRAPS[prefix](subject.model(weights)), subject.data(seed=weights + 1))

    plain = usual(subject, weights)
    assert verdict(wrapped) == verdict(plain)
    assert [layer.name for layer in wrapped.snapshot.layers] == [
        prefix + ("" if layer.name.startswith("/") else ".") + layer.name
        for layer in plain.snapshot.layers
    ]


def renamed(model, names):
    """A copy of a Sequential, its elements and those within them called otherwise."""
    twin = nn.Sequential()
    for name, (_, child) in zip(names, model.named_children(), strict=False):
        if type(child) is nn.Sequential:
            child = renamed(child, names)
        elif isinstance(child, Residual):
            child = Residual(renamed(child.branch, names))
        twin.add_module(name, child)
    return twin.train(model.training)


free = st.text(st.characters(exclude_characters=".", codec="utf-8"), min_size=1, max_size=6)
names = st.lists(
    free.filter(lambda name: not hasattr(nn.Sequential(), name)), min_size=21, max_size=21,
    unique=True,
)  # fmt: skip


@tried(25)
@given(any_subject(only=lambda s: type(s.model()) is nn.Sequential), names)
@example((SUBJECTS["all-zero"], 0), [f"relu@{k}/tanh#2" for k in range(21)])
@example((SUBJECTS["embedding-gru"], 0), [f"{k}@2/gru" for k in range(21)])
def test_names_change_no_verdict(subject_seed, chosen):
    subject, weights = subject_seed

    report = check(renamed(subject.model(weights), chosen), subject.data(seed=weights + 1))

    assert verdict(report) == verdict(usual(subject, weights))


def differs_in_eval(subject):
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout)
    return any(isinstance(m, kinds) for m in subject.model().modules())


# What is not called in evaluation mode may be called in training: nndiag says so in a note.
@tried(15)
@given(any_subject(but=("unused-parts",), only=lambda s: not differs_in_eval(s)))
def test_the_mode_changes_no_verdict_where_no_layer_differs(subject_seed):
    subject, weights = subject_seed

    report = check(subject.model(weights).eval(), subject.data(seed=weights + 1))

    assert verdict(report) == verdict(usual(subject, weights))


COPIES = {
    "itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@tried(20)
@given(any_subject(), st.sampled_from(list(COPIES)))
def test_checking_twice_or_a_copy_gives_the_same_report_to_the_last_bit(subject_seed, how):
    subject, weights = subject_seed
    model, data = subject.model(weights), subject.data(seed=weights + 1)
    reports = [check(m, data) for m in (model, COPIES[how](model))]

    assert json.render(reports[0]) == json.render(reports[1])


# -- modules and functions --------------------------------------------------------------------

RELU = {
    "F": F.relu, "torch": torch.relu, "method": lambda x: x.relu(), "in place": lambda x: x.relu_(),
    "F in place": lambda x: F.relu(x, inplace=True), "clamp": lambda x: x.clamp(min=0),
}  # fmt: skip
TANH = {
    "F": F.tanh, "torch": torch.tanh, "method": lambda x: x.tanh(), "in place": lambda x: x.tanh_(),
    "F in place": torch.tanh_, "clamp": torch.tanh,
}  # fmt: skip
SIGMOID = {
    "F": F.sigmoid, "torch": torch.sigmoid, "method": lambda x: x.sigmoid(),
    "in place": lambda x: x.sigmoid_(), "F in place": torch.sigmoid_, "clamp": torch.special.expit,
}  # fmt: skip


class Functional(nn.Module):
    """The layers of a Sequential by calls; parameters and buffers of its own."""

    def __init__(self, model, spelled):
        super().__init__()
        self.spelled, self.layers = spelled, []
        for k, layer in enumerate(model):
            if isinstance(layer, Residual):
                layer = Residual(Functional(layer.branch, spelled))
                self.add_module(f"residual{k}", layer)
            else:
                for name, p in layer.named_parameters():
                    twin = nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
                    self.register_parameter(f"{name}{k}", twin)
                for name, buffer in layer.named_buffers():
                    self.register_buffer(f"{name}{k}", buffer.clone())
            self.layers.append((type(layer), layer.extra_repr(), vars(layer)))
        self.train(model.training)

    def own(self, name, k):
        return getattr(self, f"{name}{k}", None)

    def forward(self, x):
        for k, (kind, _, options) in enumerate(self.layers):
            weight, bias = self.own("weight", k), self.own("bias", k)
            if kind is nn.Linear:
                x = self.linear(x, weight, bias)
            elif kind is nn.Conv2d:
                x = F.conv2d(x, weight, bias, padding=options["padding"])
            elif kind in (nn.BatchNorm1d, nn.BatchNorm2d):
                mean, variance = self.own("running_mean", k), self.own("running_var", k)
                x = F.batch_norm(x, mean, variance, weight, bias, self.training)
            elif kind is nn.LayerNorm:
                x = F.layer_norm(x, options["normalized_shape"], weight, bias)
            elif kind is Residual:
                x = self.own("residual", k)(x)
            elif kind is nn.Flatten:
                x = torch.flatten(x, 1)
            elif kind is nn.MaxPool2d:
                x = F.max_pool2d(x, options["kernel_size"])
            elif kind is nn.GELU:
                x = F.gelu(x)
            elif kind is nn.LeakyReLU:
                x = F.leaky_relu(x, options["negative_slope"], "place" in self.spelled)
            else:
                table = {nn.ReLU: RELU, nn.Tanh: TANH, nn.Sigmoid: SIGMOID}[kind]
                x = table[self.spelled](x)
        return x

    def linear(self, x, weight, bias):
        if self.spelled == "method":
            return x @ weight.t() + bias
        if self.spelled == "torch" and x.dim() == 2:
            return torch.addmm(bias, x, weight.t())
        return F.linear(x, weight, bias)


DIFFER = {("clamp", "dead-layer"), ("clamp", "all-zero"), ("method", "all-zero")}
OTHERWISE = ("embedding-gru", "root-of-negatives")


def has_functional_form(subject):
    model = subject.model()
    return type(model) is nn.Sequential and subject.name not in (
        "embedding-gru",
        "root-of-negatives",
    )


@tried(30)
@given(any_subject(only=has_functional_form), st.sampled_from(list(RELU)))
@example((SUBJECTS["residual-mlp"], 1), "method")
def test_modules_and_functions_get_the_same_verdict(subject_seed, spelled):
    subject, weights = subject_seed
    # At its bound, where all is zero, a clamp has slope one and a ReLU none. A bias added by "+"
    # is not known to be its layer's: it may be told to get no gradient where a layer's is not.
    assume((spelled, subject.name) not in DIFFER)
    twin = Functional(subject.model(weights), spelled)

    report = check(twin, subject.data(seed=weights + 1))

    same = {"clamp": "relu"}
    here, there = verdict(report, same), verdict(usual(subject, weights), same)
    assert here.findings == there.findings
    assert here.unjudged == there.unjudged
    # One note names the worst of many places; a layer without its bias is off by another amount.
    rules = slice(0, 1) if spelled == "method" else slice(None)
    # Whether a network was trained, and so what its loss may be, is read from its layers' biases.
    aside = {"loss-at-init", "bias-before-norm"} if spelled == "method" else set()
    here_notes, there_notes = (
        {n[rules] for n in v.notes if n[0] not in aside} for v in (here, there)
    )
    assert here_notes == there_notes


# -- symmetries of the network ----------------------------------------------------------------


def linears(model):
    return [k for k, layer in enumerate(model) if isinstance(layer, nn.Linear)]


@tried(20)
@given(plain, draws)
def test_the_order_of_hidden_units_and_of_features_changes_no_verdict(subject_seed, seed):
    subject, weights = subject_seed
    model, (x, y) = subject.model(weights), subject.data(seed=weights + 1)
    at, rng = linears(model), generator(seed)
    with torch.no_grad():
        order = torch.randperm(FEATURES, generator=rng)
        x, model[at[0]].weight[:] = x[:, order], model[at[0]].weight[:, order]
        for here, after in itertools.pairwise(at):
            order = torch.randperm(WIDTH, generator=rng)
            model[here].weight[:] = model[here].weight[order]
            model[here].bias[:] = model[here].bias[order]
            model[after].weight[:] = model[after].weight[:, order]

    assert verdict(check(model, (x, y))) == verdict(usual(subject, weights))


def rescaled(model, scales):
    """The same function of a stack: hidden units times a number, what reads them by it."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for here, after, scale in zip(linears(model), linears(model)[1:], scales, strict=False):
            twin[here].weight.mul_(scale[:, None])
            twin[here].bias.mul_(scale)
            twin[after].weight.div_(scale)
    return twin


# Whether all that enters a unit has one sign is no property of the function: turning units round is
# the very fix. A collapse may begin one layer on, for the means that hid it have gone.
TURNED = {"non-zero-centered", "signal-collapse"}


@tried(20)
@given(any_subject(only=lambda s: is_plain(s) and type(s.model()[1]) is nn.Tanh), draws)
def test_the_sign_of_tanh_units_changes_no_other_verdict(subject_seed, seed):
    subject, weights = subject_seed
    signs = torch.randint(0, 2, (8, WIDTH), generator=generator(seed)) * 2.0 - 1

    model = rescaled(subject.model(weights), signs)

    turned = check(model, subject.data(seed=weights + 1))
    untouched = usual(subject, weights)
    assert {f for f in verdict(turned).findings if f.rule not in TURNED} == {
        f for f in verdict(untouched).findings if f.rule not in TURNED
    }
    assert leading(turned) == leading(untouched)


# What they measure changes with the weights' scale, though the function does not.
OF_SCALE = {"init-scale", "vanishing-gradient", "exploding-gradient", "covariate-shift"}


@tried(25)
@given(
    any_subject(only=lambda s: is_plain(s) and type(s.model()[1]) in (nn.ReLU, nn.LeakyReLU)),
    st.lists(st.floats(-1, 1), min_size=9, max_size=9),
)
def test_the_scale_of_relu_layers_changes_no_verdict_but_those_of_scale(subject_seed, decades):
    subject, weights = subject_seed
    scales = [torch.full((WIDTH,), 10.0**d) for d in decades]

    model = rescaled(subject.model(weights), scales)

    report = check(model, subject.data(seed=weights + 1))
    kept = [
        {f[:3] for f in v.findings if f.rule not in OF_SCALE}
        for v in (verdict(report), verdict(usual(subject, weights)))
    ]
    assert kept[0] == kept[1]
