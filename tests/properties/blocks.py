"""The building blocks whose properties are published: torch's, scikit-learn's, and our own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn import decomposition, impute, preprocessing
from torch import nn
from torch.nn import init

from nndiag import fixes
from nndiag.testing.activations import ACTIVATION, Activation
from nndiag.testing.battery import Battery
from nndiag.testing.initializers import INITIALIZER, Initializer
from nndiag.testing.normalizers import NORMALIZER, Normalizer
from nndiag.testing.preprocessors import PREPROCESSOR, Preprocessor

ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "ReLU": nn.ReLU, "ReLU6": nn.ReLU6, "LeakyReLU": nn.LeakyReLU, "PReLU": nn.PReLU,
    "RReLU": nn.RReLU, "ELU": nn.ELU, "SELU": nn.SELU, "CELU": nn.CELU, "GELU": nn.GELU,
    'GELU("tanh")': lambda: nn.GELU("tanh"), "SiLU": nn.SiLU, "Mish": nn.Mish,
    "Sigmoid": nn.Sigmoid, "LogSigmoid": nn.LogSigmoid, "Tanh": nn.Tanh, "Softplus": nn.Softplus,
    "Softsign": nn.Softsign, "Hardtanh": nn.Hardtanh, "Hardsigmoid": nn.Hardsigmoid,
    "Hardswish": nn.Hardswish, "Softshrink": nn.Softshrink, "Hardshrink": nn.Hardshrink,
    "Tanhshrink": nn.Tanhshrink, "Threshold(0.1, 20)": lambda: nn.Threshold(0.1, 20.0),
    "Identity": nn.Identity, "Softmax": lambda: nn.Softmax(-1), "Softmin": lambda: nn.Softmin(-1),
    "LogSoftmax": lambda: nn.LogSoftmax(-1), "GLU": nn.GLU,
    "Threshold(0, 0)": lambda: nn.Threshold(0.0, 0.0), "F.logsigmoid": F.logsigmoid,
    "F.relu": F.relu, "torch.sin": torch.sin,
    "fixes.LeakyReLU": fixes.LeakyReLU, "fixes.PReLU": fixes.PReLU, "fixes.ELU": fixes.ELU,
    "fixes.SELU": fixes.SELU,
}  # fmt: skip
INITIALIZERS: dict[str, Callable[..., Any]] = {
    "uniform_": init.uniform_, "normal_": init.normal_, "trunc_normal_": init.trunc_normal_,
    "constant_(0.1)": functools.partial(init.constant_, val=0.1), "zeros_": init.zeros_,
    "ones_": init.ones_, "eye_": init.eye_, "dirac_": init.dirac_,
    "xavier_uniform_": init.xavier_uniform_, "xavier_normal_": init.xavier_normal_,
    "kaiming_uniform_": init.kaiming_uniform_, "kaiming_normal_": init.kaiming_normal_,
    "kaiming_normal_(mode='fan_out')": functools.partial(init.kaiming_normal_, mode="fan_out"),
    "kaiming_uniform_(a=√5), torch's default":
        functools.partial(init.kaiming_uniform_, a=math.sqrt(5)),
    "orthogonal_": init.orthogonal_, "sparse_(0.1)": functools.partial(init.sparse_, sparsity=0.1),
    "fixes.small_normal_": fixes.small_normal_, "fixes.unit_normal_": fixes.unit_normal_,
    "fixes.xavier_normal_": fixes.xavier_normal_, "fixes.xavier_uniform_": fixes.xavier_uniform_,
    "fixes.he_normal_": fixes.he_normal_, "fixes.he_uniform_": fixes.he_uniform_,
    "fixes.lecun_normal_": fixes.lecun_normal_, "fixes.lecun_uniform_": fixes.lecun_uniform_,
    "fixes.orthogonal_": fixes.orthogonal_, "fixes.asymmetric_": fixes.asymmetric_,
}  # fmt: skip
FLAT, LINE, IMAGE, VOLUME = (64, 16), (16, 6, 5), (16, 6, 4, 3), (16, 6, 2, 3, 2)
NORMALIZERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(16), FLAT),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), IMAGE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6), VOLUME),
    "BatchNorm1d(track_running_stats=False)":
        (lambda: nn.BatchNorm1d(16, track_running_stats=False), FLAT),
    "LayerNorm": (lambda: nn.LayerNorm(16), FLAT),
    "GroupNorm(2, 6)": (lambda: nn.GroupNorm(2, 6), IMAGE),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6), LINE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6), IMAGE),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(6), VOLUME),
    "RMSNorm": (lambda: nn.RMSNorm(16), FLAT),
    "LocalResponseNorm(2)": (lambda: nn.LocalResponseNorm(2), IMAGE),
    "fixes.BatchNorm1d": (lambda: fixes.BatchNorm1d(16), FLAT),
    "fixes.BatchNorm2d": (lambda: fixes.BatchNorm2d(6), IMAGE),
    "fixes.BatchNorm3d": (lambda: fixes.BatchNorm3d(6), VOLUME),
    "fixes.LayerNorm": (lambda: fixes.LayerNorm(16), FLAT),
    "fixes.GroupNorm(2, 6)": (lambda: fixes.GroupNorm(2, 6), IMAGE),
}  # fmt: skip
PREPROCESSORS: dict[str, Callable[[], Any]] = {
    "StandardScaler": preprocessing.StandardScaler, "MinMaxScaler": preprocessing.MinMaxScaler,
    "MaxAbsScaler": preprocessing.MaxAbsScaler, "RobustScaler": preprocessing.RobustScaler,
    "PowerTransformer": preprocessing.PowerTransformer, "Normalizer": preprocessing.Normalizer,
    "PCA": decomposition.PCA, "PCA(whiten=True)": lambda: decomposition.PCA(whiten=True),
    "SimpleImputer": impute.SimpleImputer,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """All blocks of a kind, and what judges them."""

    title: str
    battery: Battery[Any]
    blocks: Mapping[str, Callable[[], Any]]


KINDS = (
    Kind("Activation functions", ACTIVATION,
         {name: functools.partial(Activation, made) for name, made in ACTIVATIONS.items()}),
    Kind("Initialisers", INITIALIZER,
         {name: functools.partial(Initializer, fn) for name, fn in INITIALIZERS.items()}),
    Kind("Normalisers", NORMALIZER,
         {name: functools.partial(Normalizer, *made) for name, made in NORMALIZERS.items()}),
    Kind("Preprocessors", PREPROCESSOR,
         {name: functools.partial(Preprocessor, made) for name, made in PREPROCESSORS.items()}),
)  # fmt: skip
