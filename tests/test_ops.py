"""The table of operations, held against torch: names, parameters, ranges, slopes, losses."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from nndiag import activations, ops
from nndiag.capture.calls import canonical
from nndiag.capture.handlers import HANDLERS

# Classes of torch.nn that are no row of the table, and why.
NO_OP = {
    "they make a class of the same name without Lazy of themselves": (
        "LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d", "LazyConv1d", "LazyConv2d",
        "LazyConv3d", "LazyConvTranspose1d", "LazyConvTranspose2d", "LazyConvTranspose3d",
        "LazyInstanceNorm1d", "LazyInstanceNorm2d", "LazyInstanceNorm3d", "LazyLinear",
    ),
    "they hold or call other modules, which are rows": (
        "AdaptiveLogSoftmaxWithLoss", "Container", "DataParallel", "Module", "ModuleDict",
        "ModuleList", "ParameterDict", "ParameterList", "RNNBase", "RNNCellBase", "Sequential",
        "Transformer", "TransformerDecoder", "TransformerDecoderLayer", "TransformerEncoder",
        "TransformerEncoderLayer",
    ),
    "not understood: a point of the data flow with a question mark": (
        "ChannelShuffle", "CrossMapLRN2d", "LinearCrossEntropyLoss", "MaxUnpool1d", "MaxUnpool2d",
        "MaxUnpool3d", "PairwiseDistance",
    ),
    "deprecated: a second name of NLLLoss": ("NLLLoss2d",),
}  # fmt: skip
# Functions of torch.nn.functional likewise.
NO_OP_FUNCTION = {
    "no operation": (
        "assert_int_or_pair", "boolean_dispatch", "handle_torch_function", "has_torch_function",
        "has_torch_function_unary", "has_torch_function_variadic",
    ),
    "deprecated: what they call is interpolate": ("upsample_bilinear", "upsample_nearest"),
    "not understood: a point of the data flow with a question mark": (
        "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices",
        "adaptive_max_pool3d_with_indices", "affine_grid", "channel_shuffle", "conv_tbc",
        "fractional_max_pool2d_with_indices", "fractional_max_pool3d_with_indices", "grid_sample",
        "grouped_mm", "linear_cross_entropy", "max_pool1d_with_indices", "max_pool2d_with_indices",
        "max_pool3d_with_indices", "max_unpool1d", "max_unpool2d", "max_unpool3d",
        "native_channel_shuffle", "one_hot", "pairwise_distance", "pdist", "scaled_grouped_mm",
        "scaled_mm",
    ),
}  # fmt: skip

ALL = list(ops.OPS.values())
ACTIVATIONS = [op for op in ALL if op.category == "activation"]
LOSSES = [op for op in ALL if op.loss is not None]
MODULES = [(op, name) for op in ALL for name in op.modules]
PLACES = (F, torch, torch.Tensor, torch.special, torch._C._nn, torch._VF)


def by_name(op):
    return op.name


def reasons(table):
    return {name for names in table.values() for name in names}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- names ----------------------------------------------------------------------------------------


def test_every_module_of_torch_is_in_the_table_or_left_out_for_a_reason():
    theirs = {
        name
        for name, kind in vars(nn).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module)
    }
    ours = {name for _, name in MODULES}
    assert theirs - ours - reasons(NO_OP) == set()
    assert ours - theirs == set()
    assert ours & reasons(NO_OP) == set()


def test_every_function_of_torch_is_in_the_table_or_left_out_for_a_reason():
    theirs = {
        name.removesuffix("_")
        for name, value in vars(F).items()
        if callable(value)
        and not name.startswith("_")
        and not inspect.isclass(value)
        and getattr(value, "__module__", "") != "typing"
    }
    ours = set(ops.OPS) | set(ops.SPELLINGS)
    assert theirs - ours - reasons(NO_OP_FUNCTION) == set()
    assert ours & reasons(NO_OP_FUNCTION) == set()


def called(name):
    """Everything in torch by this name: function, method, in-place form or operator."""
    name = name.removeprefix("special_")
    for place in PLACES:
        for spelled in (name, f"{name}_", f"__{name}__"):
            thing = getattr(place, spelled, None)
            if inspect.isgetsetdescriptor(thing) or isinstance(thing, property):
                yield thing.__get__
            elif callable(thing) and not inspect.isclass(thing):
                yield thing


@pytest.mark.parametrize("op", [op for op in ALL if op.category != "module"], ids=by_name)
def test_each_name_exists_and_means_this_op(op):
    for name in (op.name, *op.spellings):
        things = list(called(name))
        assert things, f"torch has no {name}"
        assert {canonical(thing) for thing in things} == {op.name}, name


def test_a_spelling_is_no_op_of_its_own():
    assert set(ops.SPELLINGS) & set(ops.OPS) == set()
    assert len(ops.SPELLINGS) == sum(len(op.spellings) for op in ALL)


def test_every_category_has_a_handler():
    assert {op.category for op in ALL} | {""} == set(HANDLERS)


class Names(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(canonical(func))
        return func(*args, **kwargs or {})


SPATIAL = {"1d": (2, 4, 6), "2d": (2, 4, 6, 6), "3d": (2, 4, 6, 6, 6)}
# Constructor arguments by how a class is called; the first pattern that fits counts.
MADE = {
    r"Fractional": {"kernel_size": 2, "output_size": 2},
    r"LPPool": {"norm_type": 2, "kernel_size": 2},
    r"Adaptive": {"output_size": 2},
    r"Pool": {"kernel_size": 2},
    r"Conv": {"in_channels": 4, "out_channels": 4, "kernel_size": 2},
    r"ConstantPad": {"padding": 1, "value": 0.0},
    r"Pad": {"padding": 1},
    r"BatchNorm|InstanceNorm": {"num_features": 4},
    r"GroupNorm": {"num_groups": 2, "num_channels": 4},
    r"LayerNorm|RMSNorm": {"normalized_shape": 6},
    r"LocalResponseNorm": {"size": 2},
    r"Bilinear$": {"in1_features": 6, "in2_features": 6, "out_features": 3},
    r"^Linear$": {"in_features": 6, "out_features": 3},
    r"Embedding": {"num_embeddings": 9, "embedding_dim": 3},
    r"LSTM|GRU|RNN": {"input_size": 6, "hidden_size": 3},
    r"MultiheadAttention": {"embed_dim": 6, "num_heads": 2},
    r"^(Log)?Soft(max|min)$": {"dim": -1},
    r"Threshold": {"threshold": 0.1, "value": 0.0},
    r"Upsampl": {"scale_factor": 2},
    r"PixelShuffle": {"upscale_factor": 2},
    r"PixelUnshuffle": {"downscale_factor": 2},
    r"Unflatten": {"dim": 1, "unflattened_size": (2, 2)},
    r"Unfold": {"kernel_size": 2},
    r"Fold": {"output_size": (4, 4), "kernel_size": (2, 2)},
}


def module_and_input(op, name):
    options = next((made for part, made in MADE.items() if re.search(part, name)), {})
    if name.startswith("RNN"):
        options = {**options, "nonlinearity": re.split("_", op.name)[1]}
    shape = next((shape for end, shape in SPATIAL.items() if name.endswith(end)), (2, 4, 6, 6))
    x = torch.randn(shape, generator=generator())
    if name.endswith("Cell"):
        x = x[0, 0]
    elif op.category == "recurrent":
        x = x[0]
    elif op.category == "embedding":
        x = torch.tensor([[1, 2, 3]])
    elif name == "Fold":
        x = torch.randn(1, 8, 9, generator=generator())
    inputs = (x,)
    if name == "MultiheadAttention":
        inputs = (x[0],) * 3
    elif name in ("Bilinear", "CosineSimilarity"):
        inputs = (x, x)
    return getattr(nn, name)(**options), inputs


@pytest.mark.parametrize(
    ("op", "name"),
    [case for case in MODULES if case[0].category not in ("loss", "module")],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_a_module_calls_the_function_of_its_row(op, name):
    module, inputs = module_and_input(op, name)
    with Names() as names:
        module(*inputs)
    assert op.name in names.seen


# -- parameters -----------------------------------------------------------------------------------


def parameters(op):
    """The names of a function's parameters after the first, as torch documents them."""
    function = getattr(F, op.name, None) or getattr(torch, op.name)
    try:
        return list(inspect.signature(function).parameters)[1:]
    except ValueError:  # built in C++: the signature is in its docstring
        signature = re.match(r"\s*\w+\((.*?)\) *->", function.__doc__, re.S)
        names = (part.partition("=")[0].strip() for part in signature[1].split(","))
        return [name for name in names if name and name != "*" and name[0] not in "\\*"][1:]


# What torch documents no order of, or another than it accepts.
UNDOCUMENTED = {"embedding_bag", "rrelu", "mean", "sum"}


@pytest.mark.parametrize(
    "op",
    [op for op in ALL if op.order and op.category != "recurrent" and op.name not in UNDOCUMENTED],
    ids=by_name,
)
def test_parameters_are_torchs_own_in_its_order(op):
    theirs = parameters(op)
    assert list(op.order) == theirs[: len(op.order)]


def test_functions_with_an_order_of_their_own():
    x = torch.randn(8, 4, generator=generator())
    mean, variance, weight, bias = torch.randn(4, 4, generator=generator()).abs()
    values = {"input": x, "running_mean": mean, "running_var": variance, "weight": weight,
              "bias": bias, "training": False}  # fmt: skip
    order = ops.OPS["batch_norm"].orders["torch.batch_norm"]
    torch.testing.assert_close(
        torch.batch_norm(*(values[name] for name in order), 0.1, 1e-5, False),
        F.batch_norm(**values),
    )
    order = ops.OPS["instance_norm"].orders["torch.instance_norm"]
    values["input"] = x = torch.randn(2, 4, 6, generator=generator())
    del values["training"]
    torch.testing.assert_close(
        torch.instance_norm(*(values[name] for name in order), False, 0.1, 1e-5, False),
        F.instance_norm(**values, use_input_stats=False),
    )
    table = torch.randn(5, 3, generator=generator())
    values = {"weight": table, "input": torch.tensor([1, 4])}
    order = ops.OPS["embedding"].orders["torch.embedding"]
    assert torch.equal(torch.embedding(*(values[name] for name in order)), table[[1, 4]])
    assert set(ops.OPS["clamp"].orders.values()) == {("input", "max")}
    for function in (torch.clamp_max, torch.Tensor.clamp_max):
        assert torch.equal(function(x, 0.5), torch.clamp(x, max=0.5))


# -- activations ----------------------------------------------------------------------------------

FAR = 1e9
Z = torch.cat(
    (
        torch.tensor([-FAR]),
        torch.linspace(-50, 50, 200_001, dtype=torch.float64) + 1.3e-7,
        torch.tensor([FAR]),
    )
)


def function(op):
    found = getattr(F, op.name, None) or getattr(torch, op.name)
    return (lambda z: found(z, torch.tensor([0.25]).to(z))) if op.name == "prelu" else found


def values_and_slopes(op):
    z = Z.clone().requires_grad_()
    y = function(op)(z)
    [slope] = torch.autograd.grad(y.sum(), z)
    return y.detach(), slope


with_defaults = pytest.mark.parametrize(
    "op", [op for op in ACTIVATIONS if op.name not in ("clamp", "threshold", "glu")], ids=by_name
)


@with_defaults
def test_the_range_is_torchs(op):
    y, _ = values_and_slopes(op)
    expected = [max(min(end, FAR), -FAR) for end in op.range]
    found = [y.min().item(), y.max().item()]
    for here, there in zip(found, expected, strict=True):
        if abs(there) == FAR:
            assert here * there > 0.005 * FAR * FAR  # a leaking side multiplies by 0.01
        else:
            assert here == pytest.approx(there, abs=1e-5)


@with_defaults
def test_the_slope_is_torchs(op):
    _, slope = values_and_slopes(op)
    assert slope.abs().max().item() == pytest.approx(op.steepest, rel=1e-3)
    sides = {"below": slope[0].item(), "above": slope[-1].item()}
    assert {side for side, s in sides.items() if abs(s) < 1e-12} == set(op.flat_sides)


@with_defaults
def test_zero_below_is_exact(op):
    y, slope = values_and_slopes(op)
    near = (Z > -7) & (Z < -6)  # not so far out that everything is rounded to zero
    assert (bool((y[near] == 0).all()) and bool((slope[near] == 0).all())) == op.zero_below


@with_defaults
def test_an_activation_works_place_by_place(op):
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)
    moved = x.clone()
    moved[1, 2] += 0.1
    changed = torch.nonzero(function(op)(moved) != function(op)(x)).tolist()
    assert changed in ([[1, 2]], [])  # [] on a flat part


def test_glu_is_no_function_of_one_value():
    x = torch.linspace(-2, 2, 12).reshape(3, 4)
    assert F.glu(x).shape == (3, 2)
    assert not ops.OPS["glu"].elementwise
    assert ops.OPS["glu"].steepest is None
    assert activations.named("glu") is None


@pytest.mark.parametrize("op", [op for op in ACTIVATIONS if op.name != "glu"], ids=by_name)
def test_theory_knows_every_activation_and_its_options(op):
    given = {"threshold": 0.0, "value": 0.0} if op.name == "threshold" else {}
    act = activations.named(op.name, **given)
    assert act is not None
    known = inspect.signature(activations.BUILDERS[op.name]).parameters
    assert {name.removesuffix("_tanh") for name in known} == set(op.options)


@with_defaults
def test_theorys_family_fits_the_table(op):
    """Saturating: flat on both sides, about zero. Rectifier: exactly flat somewhere."""
    act = activations.named(op.name)
    if act.family == "saturating":
        assert op.flat_sides == ("below", "above")
        assert all(map(math.isfinite, op.range))
    if op.zero_below and op.name != "hardsigmoid":
        assert act.family == "rectifier"
    if not op.flat_sides:
        assert act.family != "saturating"


def test_gates_lie_between_zero_and_one():
    assert {"sigmoid", "hardsigmoid"} == ops.GATES


@pytest.mark.parametrize("op", [op for op in ALL if op.makes], ids=by_name)
def test_what_are_called_probabilities_are(op):
    x = torch.randn(64, 5, generator=generator(), dtype=torch.float64) * 3
    y = function(op)(x, **({"dim": -1} if op.category == "softmax" else {}))
    if op.makes == ops.LOG_PROBABILITIES:
        y = y.exp()
    assert y.min() >= 0
    assert y.max() <= 1
    if op.category == "softmax":
        torch.testing.assert_close(y.sum(-1), torch.ones(64, dtype=torch.float64))
    assert (op.name in ops.DISTRIBUTIONS) == (
        op.category == "softmax" and op.makes == ops.PROBABILITIES
    )


# -- norms, products ------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in ALL if op.category == "norm"], ids=by_name)
def test_what_a_norm_leaves(op):
    x = torch.randn(32, 8, 16, generator=generator(), dtype=torch.float64)
    centred = x * 5
    if op.name != "rms_norm":  # which leaves the mean alone
        centred = centred + torch.arange(8.0)[:, None] - 3.5
    given = {
        "batch_norm": {"running_mean": None, "running_var": None, "training": True},
        "layer_norm": {"normalized_shape": (16,)}, "rms_norm": {"normalized_shape": (16,)},
        "group_norm": {"num_groups": 2}, "local_response_norm": {"size": 2},
    }.get(op.name, {})  # fmt: skip
    y = getattr(F, op.name)(centred, **given)
    standard = abs(y.mean()) < 0.02 and abs(y.std() - 1) < 0.02
    assert bool(standard) == op.standardizes
    units = y.mean((0, 2)).abs().max()
    if op.centres_units:
        assert units < 1e-9
    elif op.name in ("group_norm", "local_response_norm", "normalize"):
        assert units > 1e-3


def test_products_grow_with_the_product_of_their_inputs():
    a, b = torch.randn(2, 2, 3, 3, generator=generator(), dtype=torch.float64)
    calls = {
        "mul": torch.mul, "div": lambda a, b: torch.div(a, 1 / b),
        "addcmul": lambda a, b: torch.addcmul(torch.zeros_like(a), a, b),
        "lerp": lambda a, b: torch.lerp(torch.zeros_like(a), a, b),
        "einsum": lambda a, b: torch.einsum("bij,bjk->bik", a, b),
        "baddbmm": lambda a, b: torch.baddbmm(torch.zeros_like(a), a, b),
        "matmul": torch.matmul,
    }  # fmt: skip
    assert set(calls) == ops.PRODUCTS | ops.CONTRACTIONS
    assert set(calls) - ops.PRODUCTS == {"matmul"}
    for name, call in calls.items():
        torch.testing.assert_close(call(2 * a, 3 * b), 6 * call(a, b), msg=name)
        summed = not torch.allclose(call(a, b)[0, 0, 0], a[0, 0, 0] * b[0, 0, 0])
        assert summed == (name in ops.CONTRACTIONS)


# -- losses ---------------------------------------------------------------------------------------

ROWS, CLASSES = 6, 4


def outputs(kind, g):
    x = torch.randn(ROWS, CLASSES, generator=g, dtype=torch.float64) * 3
    return {
        ops.LOG_PROBABILITIES: x.log_softmax(-1),
        ops.PROBABILITIES: x.sigmoid(),
        ops.DISTANCES: x.abs(),
    }.get(kind, x)


def targets(kind, g):
    x = torch.randn(ROWS, CLASSES, generator=g, dtype=torch.float64)
    return {
        ops.CLASS_INDEX: torch.randint(CLASSES, (ROWS,), generator=g),
        ops.PROBABILITIES: x.softmax(-1),
        ops.SIGNS: torch.where(x > 0, 1.0, -1.0),
        ops.COUNTS: x.abs().round() * 10,
    }.get(kind, x)


def arguments(op, kind, seed):
    """Outputs and targets as the table says that they have to be."""
    g = generator(seed)
    out, target = outputs(op.loss.outputs, g), targets(kind, g)
    other, third = outputs(ops.ANY, g), outputs(ops.ANY, g)
    if op.name == "ctc_loss":
        lengths = torch.tensor([ROWS]), torch.tensor([2])
        return out[:, None], target[None, :2] % (CLASSES - 1) + 1, *lengths
    if op.name == "multilabel_margin_loss":
        rows = [[*torch.randperm(CLASSES, generator=g)[:2].tolist(), -1, -1] for _ in range(ROWS)]
        return out, torch.tensor(rows)
    if op.name == "cosine_embedding_loss":
        return out, other, target[:, 0]
    return {
        "gaussian_nll_loss": (out, target, other.abs()),
        "margin_ranking_loss": (out, other, target),
        "triplet_margin_loss": (out, other, third),
        "triplet_margin_with_distance_loss": (out, other, third),
    }.get(op.name, (out, target))


def value(op, given):
    return getattr(F, op.name)(*given, **MEAN.get(op.name, {}))


MEAN = {"kl_div": {"reduction": "batchmean"}}  # torch warns of the other mean


def best(name):
    """Arguments for which a loss is as low as it gets."""
    zero = torch.zeros(2, 2, dtype=torch.float64)
    sure, sign = torch.tensor([[1e3, -1e3], [-1e3, 1e3]]).double(), torch.eye(2).double() * 2 - 1
    index, half = torch.tensor([0, 1]), zero + 0.5
    same = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).double()
    return {
        "cross_entropy": (sure, index), "nll_loss": (sure.log_softmax(-1), index),
        "ctc_loss": (sure[[1], None].log_softmax(-1), index[None, 1:], index[1:], index[1:]),
        "kl_div": (half.log(), half), "binary_cross_entropy": (torch.eye(2), torch.eye(2)),
        "binary_cross_entropy_with_logits": (sure, torch.eye(2).double()),
        "multilabel_soft_margin_loss": (sure, torch.eye(2).double()),
        "multilabel_margin_loss": (sure, torch.tensor([[0, -1], [1, -1]])),
        "multi_margin_loss": (sure, index), "soft_margin_loss": (sure, sign),
        "hinge_embedding_loss": (zero, zero + 1),
        "margin_ranking_loss": (sure, zero, sign),
        "cosine_embedding_loss": (same, same, torch.ones(2)),
        "triplet_margin_loss": (same, same, same + 100),
        "triplet_margin_with_distance_loss": (same, same, same + 100),
        "gaussian_nll_loss": (same, same, zero),
    }.get(name, (same, same))  # fmt: skip


bounded = pytest.mark.parametrize("op", [op for op in LOSSES if op.name != "poisson_nll_loss"],
                                  ids=by_name)  # fmt: skip


@bounded
def test_a_loss_reaches_its_lowest_value(op):
    assert value(op, best(op.name)).item() == pytest.approx(op.loss.lowest, abs=1e-6)


@bounded
def test_no_loss_goes_below_it_while_it_is_given_what_it_expects(op):
    for kind in op.loss.targets or (None,):
        for seed in range(50):
            loss = value(op, arguments(op, kind, seed))
            assert loss.item() >= op.loss.lowest - 1e-9


def test_a_poisson_likelihood_has_no_lowest_value():
    counts = torch.tensor([1e1, 1e3, 1e5])
    losses = [F.poisson_nll_loss(n.log(), n).item() for n in counts]
    assert losses[0] > -100 > losses[1] > -1e5 > losses[2]
    assert ops.OPS["poisson_nll_loss"].loss.lowest == -float("inf")


@pytest.mark.parametrize("op", LOSSES, ids=by_name)
def test_a_loss_module_is_its_function(op):
    [name] = op.modules
    for kind in op.loss.targets or (None,):
        given = arguments(op, kind, 0)
        with Names() as names:
            loss = getattr(nn, name)(**MEAN.get(op.name, {}))(*given)
        assert op.name in names.seen
        assert torch.equal(loss, value(op, given))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("nll_loss", ops.LOGITS), ("kl_div", ops.PROBABILITIES), ("nll_loss", ops.PROBABILITIES)],
)
def test_outputs_of_another_kind_take_a_loss_below_it(name, wrong):
    op = ops.OPS[name]
    losses = [
        value(op, (outputs(wrong, generator(s)), targets(op.loss.targets[0], generator(s))))
        for s in range(20)
    ]
    assert min(losses) < op.loss.lowest


def test_losses_of_logits_take_the_softmax_or_sigmoid_themselves():
    g = generator()
    x = outputs(ops.LOGITS, g)
    index, shares = targets(ops.CLASS_INDEX, g), targets(ops.PROBABILITIES, g)
    torch.testing.assert_close(F.cross_entropy(x, index), F.nll_loss(x.log_softmax(-1), index))
    of_sigmoid = F.binary_cross_entropy(x.sigmoid(), shares)
    torch.testing.assert_close(F.binary_cross_entropy_with_logits(x, shares), of_sigmoid)
    torch.testing.assert_close(F.multilabel_soft_margin_loss(x, shares), of_sigmoid)
    signs = targets(ops.SIGNS, g)
    torch.testing.assert_close(F.soft_margin_loss(x, signs), -F.logsigmoid(x * signs).mean())


def test_binary_cross_entropy_refuses_what_are_no_probabilities():
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        F.binary_cross_entropy(torch.tensor([1.5]), torch.tensor([1.0]))
