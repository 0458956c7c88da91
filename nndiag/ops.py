"""The table of operations: torch's names for each, and what it does to its values.

It says that ``F.relu``, ``x.relu_()`` and ``nn.ReLU`` are the same operation, which operations have
weights, and what a loss expects. It needs no torch, since saved reports are judged without it.
Tests compare the table with torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

__all__ = [
    "ABOVE",
    "ANY",
    "BELOW",
    "CLASS_INDEX",
    "CONTRACTIONS",
    "COUNTS",
    "DISTANCES",
    "DISTRIBUTIONS",
    "ELEMENTWISE",
    "GATES",
    "LEARNED",
    "LOGITS",
    "LOG_PROBABILITIES",
    "NORMS",
    "ONE_SIDED",
    "OPS",
    "POOLS",
    "PROBABILITIES",
    "PRODUCTS",
    "SAME_SHAPE",
    "SIGNS",
    "SOFTMAXES",
    "SPELLINGS",
    "STANDARDIZED",
    "TRANSPARENT",
    "UNIT_CENTRED",
    "WEIGHTED",
    "WITH_WEIGHTS",
    "LossFacts",
    "Op",
    "named",
]

_INF = math.inf

# What outputs and targets can be.
LOGITS, PROBABILITIES, LOG_PROBABILITIES = "logits", "probabilities", "log-probabilities"
DISTANCES, ANY = "distances", "any"
CLASS_INDEX, SIGNS, COUNTS, SAME_SHAPE = "class index", "signs", "counts", "same shape"


@dataclass(frozen=True)
class LossFacts:
    """What a loss expects, and how low it can get if it is given that."""

    outputs: str
    """What the network's outputs have to be: LOGITS, PROBABILITIES, LOG_PROBABILITIES, DISTANCES
    (at least zero) or ANY."""
    targets: tuple[str, ...]
    """What the targets may be: CLASS_INDEX, PROBABILITIES, SIGNS (1 or -1), COUNTS or SAME_SHAPE;
    empty for a loss without targets."""
    lowest: float
    """-inf: no value is the lowest for all targets."""


@dataclass(frozen=True)
class Op:
    """One operation, whatever it is called."""

    name: str
    """The canonical name, as in ``torch.nn.functional`` where it has one there."""
    category: str
    """Which handler of :mod:`nndiag.capture.handlers` records its calls: a key of HANDLERS."""
    modules: tuple[str, ...] = ()
    """Its classes in ``torch.nn``."""
    spellings: tuple[str, ...] = ()
    """What functions, methods and operators of torch call it besides its name. The underscore of an
    in-place form and those around an operator are left out."""
    order: tuple[str, ...] = ()
    """Parameters after the input that are read, in their positional order."""
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The same, and where the input stands, of functions with another order than their namesake in
    ``torch.nn.functional``."""
    recorded_as: str = ""
    """The op of its row in a report, where that is another."""

    # -- what it does to the data flow --
    learns: bool = False
    """Weights of its own lie inside."""
    hands_on: bool = False
    """Only passes its values on: a chain of weight layers goes through it."""
    shifts: bool = False
    """Passes its values on, shifted by a constant, if only one input is a tensor."""
    product: bool = False
    """Multiplies its inputs with one another."""
    contracts: bool = False
    """Sums products up, as attention does."""
    elementwise: bool = False
    """Each output depends on the inputs at its own position, so axes keep their meaning."""
    makes: str = ""
    """PROBABILITIES or LOG_PROBABILITIES, where its outputs are those."""

    # -- activations, at their default options --
    options: tuple[str, ...] = ()
    """Parameters that shape it."""
    range: tuple[float, float] | None = None
    """The lowest and highest output, or their limits; None: not known without its options."""
    steepest: float | None = None
    """The largest size of the slope, or its limit."""
    flat_sides: tuple[str, ...] = ()
    """Sides ("below", "above") far out on which the slope is zero, or goes to zero."""
    zero_below: bool = False
    """Exactly zero for inputs that are low enough."""
    cost: float | None = None
    """Time of forward and backward over that of ReLU; see reports/benchmarks."""

    # -- norms --
    standardizes: bool = False
    """Leaves mean 0 and variance 1 before its scale and shift."""
    centres_units: bool = False
    """Takes the mean of each unit away, over samples or positions."""

    gates: tuple[str, ...] = ()
    """Of a recurrent layer, in torch's order of naming them."""
    loss: LossFacts | None = None


def _plain_ops(category: str, names: str) -> Iterator[Op]:
    return (Op(name, category) for name in names.split())


# -- activations -------------------------------------------------------------------------------

_ANYTHING, _POSITIVE = (-_INF, _INF), (0.0, _INF)
BELOW, ABOVE = "below", "above"
_SELU = 1.0507009873554805 * 1.6732632423543772  # scale times alpha (Klambauer et al. 2017)


def _activation(
    name: str,
    module: str = "",
    options: str = "",
    *,
    range: tuple[float, float] | None = None,
    steepest: float | None = 1.0,
    flat: tuple[str, ...] = (),
    zero_below: bool = False,
    cost: float | None = None,
    spellings: tuple[str, ...] = (),
    makes: str = "",
) -> Op:
    shaping = tuple(options.split())
    return Op(
        name,
        "activation",
        (module,) if module else (),
        spellings,
        order=shaping,
        elementwise=True,
        makes=makes,
        options=shaping,
        range=range,
        steepest=steepest,
        flat_sides=flat,
        zero_below=zero_below,
        cost=cost,
    )


# The costs are medians on one CPU thread, remade by `python -m tests.benchmarks.activation_cost`.
_ACTIVATIONS = (
    _activation("relu", "ReLU", range=_POSITIVE, flat=(BELOW,), zero_below=True),
    _activation("relu6", range=(0, 6), flat=(BELOW, ABOVE), zero_below=True, cost=1.06),
    _activation("leaky_relu", "LeakyReLU", "negative_slope", range=_ANYTHING, cost=1.05),
    _activation("rrelu", "RReLU", "lower upper", range=_ANYTHING),
    _activation("prelu", "PReLU", "weight", range=_ANYTHING),
    _activation("threshold", "Threshold", "threshold value", flat=(BELOW,),
                spellings=("_threshold",)),
    replace(
        _activation("hardtanh", "Hardtanh", "min_val max_val", range=(-1, 1), flat=(BELOW, ABOVE),
                    cost=1.07),
        modules=("Hardtanh", "ReLU6"),  # a subclass of it, with bounds 0 and 6
    ),
    replace(
        _activation("clamp", "", "min max", spellings=("clip", "clamp_min", "clamp_max")),
        orders=dict.fromkeys(("torch.clamp_max", "torch.clamp_max_", "torch.Tensor.clamp_max",
                              "torch.Tensor.clamp_max_"), ("input", "max")),
    ),
    _activation("hardswish", "Hardswish", range=(-0.375, _INF), steepest=1.5, flat=(BELOW,),
                zero_below=True, cost=1.05),
    _activation("hardsigmoid", "Hardsigmoid", range=(0, 1), steepest=1 / 6, flat=(BELOW, ABOVE),
                zero_below=True, cost=1.05, makes=PROBABILITIES),
    _activation("hardshrink", "Hardshrink", "lambd", range=_ANYTHING),
    _activation("softshrink", "Softshrink", "lambd", range=_ANYTHING),
    _activation("tanhshrink", "Tanhshrink", range=_ANYTHING),
    _activation("sigmoid", "Sigmoid", range=(0, 1), steepest=0.25, flat=(BELOW, ABOVE), cost=1.10,
                spellings=("special_expit",), makes=PROBABILITIES),
    _activation("logsigmoid", "LogSigmoid", range=(-_INF, 0), flat=(ABOVE,), cost=2.51,
                spellings=("log_sigmoid",), makes=LOG_PROBABILITIES),
    _activation("tanh", "Tanh", range=(-1, 1), flat=(BELOW, ABOVE), cost=1.01),
    _activation("softsign", "Softsign", range=(-1, 1), flat=(BELOW, ABOVE), cost=5.23),
    _activation("erf", range=(-1, 1), steepest=2 / math.sqrt(math.pi), flat=(BELOW, ABOVE),
                spellings=("special_erf",)),
    _activation("elu", "ELU", "alpha", range=(-1, _INF), flat=(BELOW,), cost=2.35),
    _activation("celu", "CELU", "alpha", range=(-1, _INF), flat=(BELOW,), cost=2.33),
    _activation("selu", "SELU", range=(-_SELU, _INF), steepest=_SELU, flat=(BELOW,), cost=2.33),
    _activation("gelu", "GELU", "approximate", range=(-0.16997, _INF), steepest=1.12890,
                flat=(BELOW,), cost=1.62),
    _activation("silu", "SiLU", range=(-0.27846, _INF), steepest=1.09984, flat=(BELOW,), cost=1.23),
    _activation("mish", "Mish", range=(-0.30884, _INF), steepest=1.08850, flat=(BELOW,), cost=9.65),
    _activation("softplus", "Softplus", "beta threshold", range=_POSITIVE, flat=(BELOW,),
                cost=2.49),
    replace(
        # Half of its channels gate the other half: no function of one value has its slope.
        _activation("glu", "GLU", range=_ANYTHING, steepest=None),
        order=("dim",),
        elementwise=False,
    ),
)  # fmt: skip

_SOFTMAXES = (
    Op("softmax", "softmax", ("Softmax", "Softmax2d"), ("special_softmax",), ("dim",),
       makes=PROBABILITIES),
    Op("log_softmax", "softmax", ("LogSoftmax",), ("special_log_softmax",), ("dim",),
       makes=LOG_PROBABILITIES),
    Op("softmin", "softmax", ("Softmin",), order=("dim",), makes=PROBABILITIES),
    Op("gumbel_softmax", "softmax", order=("tau", "hard", "eps", "dim"), makes=PROBABILITIES),
)  # fmt: skip


# -- layers with weights -----------------------------------------------------------------------

_CONV = ("weight", "bias", "stride", "padding")
_WEIGHTED = (
    Op("linear", "weighted", ("Linear",), order=("weight", "bias"), learns=True),
    Op("bilinear", "weighted", ("Bilinear",), order=("input2", "weight", "bias"), learns=True),
    # Its input is the bias; the rest is a linear layer.
    Op("addmm", "weighted", order=("mat1", "mat2"), recorded_as="linear", learns=True),
    *(Op(f"conv{n}d", "weighted", (f"Conv{n}d",), order=(*_CONV, "dilation", "groups"), learns=True)
      for n in (1, 2, 3)),
    *(Op(f"conv_transpose{n}d", "weighted", (f"ConvTranspose{n}d",),
         order=(*_CONV, "output_padding", "groups", "dilation"), learns=True) for n in (1, 2, 3)),
    # A row of the table is picked by an index: weights, but no signal that they multiply.
    Op("embedding", "embedding", ("Embedding",), order=("weight",), learns=True,
       orders={"torch.embedding": ("weight", "input")}),
    Op("embedding_bag", "embedding", ("EmbeddingBag",), order=("weight", "offsets"), learns=True),
)  # fmt: skip

_LSTM, _GRU = ("input", "forget", "output", "candidate"), ("reset", "update", "candidate")
_RECURRENT = tuple(
    Op(name + cell, "recurrent", (module + cell.removeprefix("_").title(),), learns=True,
       gates=gates)
    for cell in ("", "_cell")
    for name, module, gates in (
        ("lstm", "LSTM", _LSTM), ("gru", "GRU", _GRU), ("rnn_tanh", "RNN", ("hidden",)),
        ("rnn_relu", "RNN", ()),  # a rectifier has no gate that could saturate
    )
)  # fmt: skip

_ATTENTION = (
    Op("scaled_dot_product_attention", "attention",
       order=("key", "value", "attn_mask", "dropout_p", "is_causal")),
    Op("multi_head_attention_forward", "attention", ("MultiheadAttention",), learns=True, order=(
        "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias",
        "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias",
        "training", "key_padding_mask", "need_weights", "attn_mask", "use_separate_proj_weight",
        "q_proj_weight", "k_proj_weight", "v_proj_weight",
    )),
)  # fmt: skip


# -- normalisation, pooling and what only passes values on -------------------------------------


def _dims(stem: str, dims: Iterable[int] = (1, 2, 3)) -> tuple[str, ...]:
    return tuple(f"{stem}{n}d" for n in dims)


_STATISTICS = ("running_mean", "running_var", "weight", "bias")
_NORMS = (
    Op("batch_norm", "norm", (*_dims("BatchNorm"), "SyncBatchNorm"),
       order=(*_STATISTICS, "training"), standardizes=True, centres_units=True,
       orders={"torch.batch_norm": ("input", "weight", "bias", "running_mean", "running_var",
                                    "training")}),
    Op("instance_norm", "norm", _dims("InstanceNorm"), order=_STATISTICS, standardizes=True,
       centres_units=True,
       orders={"torch.instance_norm": ("input", "weight", "bias", "running_mean", "running_var")}),
    Op("layer_norm", "norm", ("LayerNorm",), order=("normalized_shape", "weight", "bias"),
       standardizes=True),
    Op("group_norm", "norm", ("GroupNorm",), order=("num_groups", "weight", "bias"),
       standardizes=True),
    # It only sets the scale, but that is enough for values that are symmetric about zero.
    Op("rms_norm", "norm", ("RMSNorm",), order=("normalized_shape", "weight"), standardizes=True),
    Op("local_response_norm", "norm", ("LocalResponseNorm",)),
    Op("normalize", "norm"),
)  # fmt: skip

_POOLS = tuple(
    Op(f"{function}_pool{n}d", "pool", (f"{module}{n}d",), hands_on=True)
    for function, module, dims in (
        ("max", "MaxPool", (1, 2, 3)), ("avg", "AvgPool", (1, 2, 3)),
        ("adaptive_avg", "AdaptiveAvgPool", (1, 2, 3)),
        ("adaptive_max", "AdaptiveMaxPool", (1, 2, 3)), ("lp", "LPPool", (1, 2, 3)),
        ("fractional_max", "FractionalMaxPool", (2, 3)),
    )
    for n in dims
)  # fmt: skip

_PADS = tuple(
    name
    for kind in ("Constant", "Zero", "Reflection", "Replication", "Circular")
    for name in _dims(f"{kind}Pad")
)
_PASSING_ON = (
    Op("dropout", "dropout", ("Dropout", *_dims("Dropout"), "AlphaDropout", "FeatureAlphaDropout"),
       (*_dims("dropout"), "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
       ("p", "training"), hands_on=True),
    Op("pad", "resize", _PADS, hands_on=True),
    Op("interpolate", "resize", ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d"),
       hands_on=True),
    Op("upsample", "resize", hands_on=True),
    # They move values between channels and positions, so a chain ends there.
    Op("pixel_shuffle", "resize", ("PixelShuffle",)),
    Op("pixel_unshuffle", "resize", ("PixelUnshuffle",)),
    # Modules with no call that is understood inside: a row of their own, named after the class.
    Op("identity", "module", ("Identity",), hands_on=True),
    Op("module", "module", hands_on=True),
)  # fmt: skip


# -- arithmetic and shapes ---------------------------------------------------------------------

# Calls that join or change values: nodes of the data flow, but not layers.
_JOINS = (
    Op("add", "join", spellings=("radd", "iadd"), shifts=True, elementwise=True),
    Op("sub", "join", spellings=("rsub", "isub", "subtract"), shifts=True, elementwise=True),
    Op("mul", "join", spellings=("rmul", "imul", "multiply"), product=True, elementwise=True),
    Op("div", "join", spellings=("truediv", "rtruediv", "itruediv", "rdiv", "idiv", "divide",
                                 "true_divide"), product=True, elementwise=True),
    # Not a product: attention multiplies values by weights, which is not a gate.
    Op("matmul", "join", spellings=("rmatmul", "mm", "bmm"), order=("other",), contracts=True),
    Op("einsum", "join", product=True, contracts=True),
    Op("baddbmm", "join", product=True, contracts=True),
    Op("lerp", "join", product=True, elementwise=True),
    Op("addcmul", "join", product=True, elementwise=True),
    Op("cat", "join", spellings=("concat", "concatenate", "hstack", "vstack", "dstack"),
       order=("dim",)),
    Op("stack", "join", order=("dim",)),
    Op("abs", "join", spellings=("absolute",), elementwise=True),
    Op("cosine_similarity", "join", ("CosineSimilarity",)),
    Op("unfold", "join", ("Unfold",)),
    Op("fold", "join", ("Fold",)),
    *(replace(op, elementwise=True) for op in _plain_ops("join",
      "addcdiv where maximum minimum pow exp log sqrt rsqrt sin cos square reciprocal cumsum")),
    Op("log1p", "join", spellings=("special_log1p",), elementwise=True),
    Op("expm1", "join", spellings=("special_expm1",), elementwise=True),
    Op("logsumexp", "join", spellings=("special_logsumexp",)),
    *_plain_ops("join",
      "norm setitem index_add scatter scatter_add index_put gather index_select "
      "masked_scatter max min sort topk repeat repeat_interleave"),
)  # fmt: skip
_SHAPES = (
    # Same shape in and out, values at most shifted by a constant: not a node.
    Op("neg", "same", spellings=("negative",)),
    *_plain_ops("same",
      "contiguous clone to float double half bfloat16 type type_as cuda cpu masked_fill detach "
      "tril triu nan_to_num roll flip data resolve_conj positive"),
    Op("flatten", "reshape", ("Flatten",), hands_on=True),
    Op("unflatten", "reshape", ("Unflatten",), hands_on=True),
    *_plain_ops("reshape", "view reshape ravel view_as reshape_as"),
    Op("t", "view", spellings=("T",)),
    Op("mT", "view", spellings=("H", "mH")),
    *_plain_ops("view",
      "permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze expand expand_as "
      "broadcast_to select narrow getitem chunk split split_with_sizes tensor_split unbind adjoint "
      "unsafe_chunk unsafe_split"),
    # A mean over positions works like a pool, so it passes values on; a sum changes their scale.
    Op("mean", "reduce", order=("dim", "keepdim"), hands_on=True),
    *(replace(op, order=("dim", "keepdim")) for op in _plain_ops("reduce", "sum amax amin")),
)  # fmt: skip


# -- losses ------------------------------------------------------------------------------------


def _loss(
    name: str, module: str, outputs: str, targets: tuple[str, ...], lowest: float = 0.0
) -> Op:
    return Op(name, "loss", (module,), loss=LossFacts(outputs, targets, lowest))


_LOSSES = (
    _loss("cross_entropy", "CrossEntropyLoss", LOGITS, (CLASS_INDEX, PROBABILITIES)),
    _loss("nll_loss", "NLLLoss", LOG_PROBABILITIES, (CLASS_INDEX,)),
    _loss("ctc_loss", "CTCLoss", LOG_PROBABILITIES, (CLASS_INDEX,)),
    _loss("kl_div", "KLDivLoss", LOG_PROBABILITIES, (PROBABILITIES,)),
    _loss("binary_cross_entropy", "BCELoss", PROBABILITIES, (PROBABILITIES,)),
    _loss("binary_cross_entropy_with_logits", "BCEWithLogitsLoss", LOGITS, (PROBABILITIES,)),
    _loss("multilabel_soft_margin_loss", "MultiLabelSoftMarginLoss", LOGITS, (PROBABILITIES,)),
    _loss("multilabel_margin_loss", "MultiLabelMarginLoss", ANY, (CLASS_INDEX,)),
    _loss("multi_margin_loss", "MultiMarginLoss", ANY, (CLASS_INDEX,)),
    _loss("soft_margin_loss", "SoftMarginLoss", LOGITS, (SIGNS,)),
    _loss("hinge_embedding_loss", "HingeEmbeddingLoss", DISTANCES, (SIGNS,)),
    _loss("margin_ranking_loss", "MarginRankingLoss", ANY, (SIGNS,)),
    _loss("cosine_embedding_loss", "CosineEmbeddingLoss", ANY, (SIGNS,)),
    _loss("triplet_margin_loss", "TripletMarginLoss", ANY, ()),
    _loss("triplet_margin_with_distance_loss", "TripletMarginWithDistanceLoss", ANY, ()),
    _loss("mse_loss", "MSELoss", ANY, (SAME_SHAPE,)),
    _loss("l1_loss", "L1Loss", ANY, (SAME_SHAPE,)),
    _loss("smooth_l1_loss", "SmoothL1Loss", ANY, (SAME_SHAPE,)),
    _loss("huber_loss", "HuberLoss", ANY, (SAME_SHAPE,)),
    # The variance is held at eps = 1e-6 or more.
    _loss("gaussian_nll_loss", "GaussianNLLLoss", ANY, (SAME_SHAPE,), 0.5 * math.log(1e-6)),
    # The outputs are logarithms of rates. exp(x) - n x falls without end as the count n grows.
    _loss("poisson_nll_loss", "PoissonNLLLoss", ANY, (COUNTS,), -_INF),
)


# -- the table, and sets of its names ----------------------------------------------------------

OPS: Mapping[str, Op] = MappingProxyType(
    {
        op.name: op
        for op in (
            *_ACTIVATIONS, *_SOFTMAXES, *_WEIGHTED, *_RECURRENT, *_ATTENTION, *_NORMS, *_POOLS,
            *_PASSING_ON, *_JOINS, *_SHAPES, *_LOSSES,
        )
    }
)  # fmt: skip
SPELLINGS: Mapping[str, str] = MappingProxyType(
    {spelling: op.name for op in OPS.values() for spelling in op.spellings}
)
_UNKNOWN = Op("", "")


def named(name: str) -> Op:
    """The op called ``name``; for an unknown name an op without any property."""
    return OPS.get(name, _UNKNOWN)


def _names_where(fits: Callable[[Op], bool]) -> frozenset[str]:
    return frozenset(op.name for op in OPS.values() if fits(op))


POOLS = _names_where(lambda op: op.category == "pool")
NORMS = _names_where(lambda op: op.category == "norm")
STANDARDIZED = _names_where(lambda op: op.standardizes)
UNIT_CENTRED = _names_where(lambda op: op.centres_units)
SOFTMAXES = _names_where(lambda op: op.category == "softmax")
# Outputs are probabilities that sum to one: used as weights of a mean they are attention.
DISTRIBUTIONS = _names_where(lambda op: op.category == "softmax" and op.makes == PROBABILITIES)
WEIGHTED = _names_where(lambda op: op.category == "weighted")
# Ops with weights, embeddings included: later values depend on weights.
WITH_WEIGHTS = _names_where(lambda op: op.learns)
# Ops whose weights multiply a signal. Not embeddings: they read indices, which have no scale and no
# gradient.
LEARNED = _names_where(lambda op: op.learns and op.category != "embedding")
# Layers that pass values on: a chain goes through them.
TRANSPARENT = _names_where(lambda op: op.hands_on)
ONE_SIDED = _names_where(lambda op: op.hands_on or op.shifts)  # with one input that is a tensor
PRODUCTS = _names_where(lambda op: op.product)
CONTRACTIONS = _names_where(lambda op: op.contracts)
ELEMENTWISE = _names_where(lambda op: op.elementwise)
GATES = _names_where(lambda op: op.category == "activation" and op.range == (0, 1))
