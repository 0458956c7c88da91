"""The fixes: reference implementations of the lecture's repairs, and surgery on a model in memory.

Each is small, carries its formula and source, and is tested against torch's own, the lecture's
numbers or theory. The code of a fix calls these functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nndiag.fixes.activations import ELU, SELU, LeakyReLU, Maxout, PReLU, maxout_gain
    from nndiag.fixes.clipping import clip_grad_norm_, clip_grad_value_
    from nndiag.fixes.data_init import class_prior_bias_, data_bias_, lsuv_
    from nndiag.fixes.initialization import (
        asymmetric_,
        forget_bias_,
        gain,
        he_normal_,
        he_uniform_,
        lecun_normal_,
        lecun_uniform_,
        orthogonal_,
        positive_bias_,
        small_normal_,
        unit_normal_,
        xavier_normal_,
        xavier_uniform_,
    )
    from nndiag.fixes.matrix import Matrix, matrices
    from nndiag.fixes.normalization import (
        BatchNorm1d,
        BatchNorm2d,
        BatchNorm3d,
        GroupNorm,
        LayerNorm,
        batch_norm_backward,
    )
    from nndiag.fixes.scaling import (
        ScaleOutput,
        Standardize,
        scale_output_,
        standardize_input_,
    )
    from nndiag.fixes.surgery import insert_after, insert_before, recalibrate_, swap

__all__ = [
    "ELU",
    "SELU",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "LayerNorm",
    "LeakyReLU",
    "Matrix",
    "Maxout",
    "PReLU",
    "ScaleOutput",
    "Standardize",
    "asymmetric_",
    "batch_norm_backward",
    "class_prior_bias_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "data_bias_",
    "forget_bias_",
    "gain",
    "he_normal_",
    "he_uniform_",
    "insert_after",
    "insert_before",
    "lecun_normal_",
    "lecun_uniform_",
    "lsuv_",
    "matrices",
    "maxout_gain",
    "orthogonal_",
    "positive_bias_",
    "recalibrate_",
    "scale_output_",
    "small_normal_",
    "standardize_input_",
    "swap",
    "unit_normal_",
    "xavier_normal_",
    "xavier_uniform_",
]

# Loaded on first use: rules import nndiag.fixes.fix, and rules must work without torch.
_NAMES = {
    "activations": ("ELU", "SELU", "LeakyReLU", "Maxout", "PReLU", "maxout_gain"),
    "clipping": ("clip_grad_norm_", "clip_grad_value_"),
    "data_init": ("class_prior_bias_", "data_bias_", "lsuv_"),
    "initialization": (
        "asymmetric_",
        "forget_bias_",
        "gain",
        "he_normal_",
        "he_uniform_",
        "lecun_normal_",
        "lecun_uniform_",
        "orthogonal_",
        "positive_bias_",
        "small_normal_",
        "unit_normal_",
        "xavier_normal_",
        "xavier_uniform_",
    ),
    "matrix": ("Matrix", "matrices"),
    "normalization": (
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "GroupNorm",
        "LayerNorm",
        "batch_norm_backward",
    ),
    "scaling": ("ScaleOutput", "Standardize", "scale_output_", "standardize_input_"),
    "surgery": ("insert_after", "insert_before", "recalibrate_", "swap"),
}
_HOME = {name: f"nndiag.fixes.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
