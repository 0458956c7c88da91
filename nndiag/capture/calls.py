"""Which torch calls are understood, under which one name, and how their arguments read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nndiag.batch import tensors_in

Options = dict[str, float]

# One name for every spelling. What is not here is spelled as torch spells it, without the
# trailing underscore of the in-place form.
_SPELLINGS = {
    "radd": "add", "iadd": "add", "rsub": "sub", "isub": "sub", "subtract": "sub",
    "rmul": "mul", "imul": "mul", "multiply": "mul",
    "truediv": "div", "rtruediv": "div", "itruediv": "div", "rdiv": "div", "idiv": "div",
    "divide": "div", "true_divide": "div",
    "rmatmul": "matmul", "imatmul": "matmul", "mm": "matmul", "bmm": "matmul",
    "special_expit": "sigmoid", "expit": "sigmoid", "special_softmax": "softmax",
    "special_log_softmax": "log_softmax", "special_erf": "erf", "_threshold": "threshold",
    "log_sigmoid": "logsigmoid",
    "clip": "clamp", "clamp_min": "clamp", "clamp_max": "clamp",
    "concat": "cat", "concatenate": "cat", "hstack": "cat", "vstack": "cat", "dstack": "cat",
    "absolute": "abs", "negative": "neg", "swish": "silu", "T": "t", "H": "mT", "mH": "mT",
    **dict.fromkeys(("alpha_dropout", "feature_dropout", "feature_alpha_dropout", "dropout1d",
                     "dropout2d", "dropout3d"), "dropout"),
}  # fmt: skip

# Activations with the names of the arguments that shape them.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "relu": (), "relu6": (), "tanh": (), "sigmoid": (), "logsigmoid": (), "softsign": (),
    "silu": (), "mish": (), "hardswish": (), "hardsigmoid": (), "selu": (), "tanhshrink": (),
    "erf": (), "leaky_relu": ("negative_slope",), "rrelu": ("lower", "upper"),
    "prelu": ("weight",), "elu": ("alpha",), "celu": ("alpha",), "gelu": ("approximate",),
    "hardtanh": ("min_val", "max_val"), "clamp": ("min", "max"),
    "softplus": ("beta", "threshold"), "hardshrink": ("lambd",), "softshrink": ("lambd",),
    "threshold": ("threshold", "value"), "glu": (),
}  # fmt: skip

SOFTMAXES = ("softmax", "log_softmax", "softmin", "gumbel_softmax")
WEIGHTED = (
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "addmm", "bilinear", "embedding", "embedding_bag",
)  # fmt: skip
NORMS = (
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm",
    "normalize",
)  # fmt: skip
POOLS = tuple(
    f"{kind}_pool{n}d"
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp", "fractional_max")
    for n in (1, 2, 3)
)
KEPT = (*POOLS, "dropout", "interpolate", "upsample", "pad", "pixel_shuffle", "pixel_unshuffle")
ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")
RECURRENT = tuple(
    f"{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")
)

# Calls that join or bend paths: points of the data flow, but no rows.
JOINS = (
    "add", "sub", "mul", "div", "matmul", "cat", "stack", "einsum", "where", "lerp", "addcmul",
    "addcdiv", "baddbmm", "maximum", "minimum", "pow", "exp", "log", "sqrt", "rsqrt", "sin", "cos",
    "abs", "square", "reciprocal", "log1p", "expm1", "cumsum", "norm", "logsumexp", "setitem",
    "index_add", "scatter", "scatter_add", "index_put", "gather", "index_select", "masked_scatter",
    "max", "min", "sort", "topk", "cosine_similarity", "repeat", "repeat_interleave", "unfold",
    "fold",
)  # fmt: skip
# Same shape in and out, values only moved by a constant: looked through.
SAME = (
    "contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type", "type_as", "cuda",
    "cpu", "neg", "masked_fill", "requires_grad_", "detach", "tril", "triu", "nan_to_num",
    "roll", "flip", "alias", "data", "resolve_conj", "positive",
)  # fmt: skip
RESHAPES = ("view", "reshape", "flatten", "unflatten", "ravel", "view_as", "reshape_as")
VIEWS = (
    "permute", "transpose", "t", "mT", "swapaxes", "swapdims", "movedim", "moveaxis", "squeeze",
    "unsqueeze", "expand", "expand_as", "broadcast_to", "select", "narrow", "getitem", "chunk",
    "split", "split_with_sizes", "tensor_split", "unbind", "adjoint", "unsafe_chunk",
    "unsafe_split",
)  # fmt: skip
REDUCES = ("mean", "sum", "amax", "amin")

CATEGORY: dict[str, str] = {
    **dict.fromkeys(ACTIVATIONS, "activation"),
    **dict.fromkeys(SOFTMAXES, "softmax"),
    **dict.fromkeys(WEIGHTED, "weighted"),
    **dict.fromkeys(NORMS, "norm"),
    **dict.fromkeys(KEPT, "kept"),
    **dict.fromkeys(ATTENTION, "attention"),
    **dict.fromkeys(RECURRENT, "recurrent"),
    **dict.fromkeys(JOINS, "join"),
    **dict.fromkeys(SAME, "same"),
    **dict.fromkeys(RESHAPES, "reshape"),
    **dict.fromkeys(VIEWS, "view"),
    **dict.fromkeys(REDUCES, "reduce"),
}

# Positional order of the arguments that are read, after the input.
_ORDER: dict[str, tuple[str, ...]] = {
    **ACTIVATIONS,
    "glu": ("dim",), "linear": ("weight", "bias"), "bilinear": ("input2", "weight", "bias"),
    **{f"conv{n}d": ("weight", "bias", "stride", "padding", "dilation", "groups")
       for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ("weight", "bias", "stride", "padding", "output_padding", "groups",
                               "dilation") for n in (1, 2, 3)},
    "embedding": ("weight",), "embedding_bag": ("weight", "offsets"), "addmm": ("mat1", "mat2"),
    "matmul": ("other",),
    "batch_norm": ("running_mean", "running_var", "weight", "bias", "training"),
    "layer_norm": ("normalized_shape", "weight", "bias"),
    "group_norm": ("num_groups", "weight", "bias"),
    "instance_norm": ("running_mean", "running_var", "weight", "bias"),
    "rms_norm": ("normalized_shape", "weight"), "softmax": ("dim",), "log_softmax": ("dim",),
    "softmin": ("dim",), "gumbel_softmax": ("tau", "hard", "eps", "dim"),
    "scaled_dot_product_attention": ("key", "value", "attn_mask", "dropout_p", "is_causal"),
    "multi_head_attention_forward": (
        "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias",
        "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias",
        "training", "key_padding_mask", "need_weights", "attn_mask", "use_separate_proj_weight",
        "q_proj_weight", "k_proj_weight", "v_proj_weight",
    ),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), ("dim", "keepdim")),
    "cat": ("dim",), "stack": ("dim",),
}  # fmt: skip
# Functions whose namesake in torch.nn.functional takes its arguments in another order.
_OWN_ORDER: dict[Any, tuple[str, ...]] = {
    torch.batch_norm: ("weight", "bias", "running_mean", "running_var", "training"),
    torch.instance_norm: ("weight", "bias", "running_mean", "running_var"),
    **dict.fromkeys((torch.clamp_max, torch.clamp_max_, torch.Tensor.clamp_max,
                     torch.Tensor.clamp_max_), ("max",)),
}  # fmt: skip
_INPUTS = ("input", "query", "tensors", "self", "x")


@functools.lru_cache(maxsize=8192)
def canonical(func: Callable[..., Any]) -> str:
    """The one name of a torch function, method, operator or property."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    elif name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    elif name.endswith("_") and not name.startswith("_"):
        name = name[:-1]
    return _SPELLINGS.get(name, name)


@functools.lru_cache(maxsize=8192)
def understood(func: Callable[..., Any]) -> tuple[str, str]:
    """Canonical name and category ("" for a call that is not understood) of a function."""
    name = canonical(func)
    return name, CATEGORY.get(name, "")


_NUMBERS = frozenset((type(None), bool, int, float, str))


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif value.__class__ not in _NUMBERS:
            found += tensors_in(value, depth=2)
    return found


def _bound(
    op: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    if func is torch.embedding:
        return dict(zip(("weight", "input"), args, strict=False), **kwargs)
    order = _OWN_ORDER.get(func, _ORDER.get(op, ()))
    bound = dict(zip(("input", *order), args, strict=False))
    for key, value in kwargs.items():
        bound["input" if key in _INPUTS else key] = value
    return bound


class Call:
    """One call of a torch function.

    ``tensors``: all tensors among the arguments, in order. ``bound``: the arguments by name; the
    first is ``input``.
    """

    def __init__(
        self,
        op: str,
        category: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.op, self.category, self.func, self.args, self.kwargs = op, category, func, args, kwargs
        self.tensors = _tensors(args, kwargs)
        self.bound = _bound(op, func, args, kwargs)
        self.input: Any = self.bound.get("input")

    def again(self, other: torch.Tensor) -> Any:
        """The same call with another tensor in the place of its first argument."""
        if self.args:
            return self.func(other, *self.args[1:], **self.kwargs)
        name = next(iter(self.kwargs))
        return self.func(**{**self.kwargs, name: other})


def options(call: Call) -> Options | None:
    """The numbers that shape an activation; None where they are no plain numbers."""
    found: Options = {}
    for name in ACTIVATIONS.get(call.op, ()):
        value = call.bound.get(name)
        if value is None:
            continue
        if name == "approximate":
            found["approximate_tanh"] = float(value == "tanh")
        elif call.op == "prelu" and isinstance(value, torch.Tensor):
            found[name] = float(value.detach().float().mean())
        elif isinstance(value, (int, float)):
            found[name] = float(value)
        else:
            return None
    return found
