"""The cures: reference implementations of the lecture's repairs, and surgery on a living model.

Each is small, carries its formula and source, and is tested against torch's own, the lecture's
numbers or theory. What a repair's lines of code call is here, too.
"""

from __future__ import annotations

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
from nndiag.fixes.matrices import Matrix, matrices
from nndiag.fixes.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    LayerNorm,
    batch_norm_backward,
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
    "small_normal_",
    "swap",
    "unit_normal_",
    "xavier_normal_",
    "xavier_uniform_",
]
