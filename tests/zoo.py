"""Healthy networks with random weights: architectures people use, initialised as they come.

``RECIPES`` maps a name to a recipe without arguments: a tiny model of that architecture and a batch
for it; ``make(name)`` draws both from a seed. Nothing is downloaded. The data are what a
well-prepared pipeline gives: standardised numbers, random tokens, random labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class Specimen(NamedTuple):
    """What ``nndiag.check`` takes."""

    model: nn.Module
    batch: Any
    target: Any = None
    loss_fn: Callable[..., torch.Tensor] | None = None


Recipe = Callable[[], Specimen]

RECIPES: dict[str, Recipe] = {}
# Healthy too, but their usual use leaves parameters without a gradient, and that is reported.
LEFTOVERS: dict[str, Recipe] = {}


def make(name: str, seed: int = 0) -> Specimen:
    """The specimen of that name, drawn from ``seed``; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (RECIPES | LEFTOVERS)[name]()


def recipe(function: Recipe) -> Recipe:
    RECIPES[function.__name__.replace("_", "-")] = function
    return function


# -- data --------------------------------------------------------------------------------------


CLASSES = 10
VOCABULARY = 99


def labels(n: int, classes: int = CLASSES) -> torch.Tensor:
    return torch.randint(0, classes, (n,))


def tokens(n: int, length: int = 12) -> torch.Tensor:
    """Token ids without the special ones, which configurations put at the beginning."""
    return torch.randint(5, VOCABULARY, (n, length))


def images(n: int, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size)


def classify(model: nn.Module, inputs: Any, classes: int = CLASSES) -> Specimen:
    first = inputs[0] if isinstance(inputs, tuple) else inputs
    return Specimen(model, inputs, labels(len(first), classes), F.cross_entropy)


def regress(model: nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> Specimen:
    return Specimen(model, inputs, target, F.mse_loss)


# -- plain networks, as torch.nn initialises them ------------------------------------------------


def mlp(
    hidden: int, activation: Callable[[], nn.Module], width: int = 64, inputs: int = 32
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k in range(hidden):
        layers += [nn.Linear(width if k else inputs, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def _plain(hidden: int, activation: Callable[[], nn.Module]) -> Recipe:
    return lambda: classify(mlp(hidden, activation), torch.randn(128, 32))


for _hidden in (1, 2, 3, 4):
    for _activation in (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU):
        RECIPES[f"mlp-{_hidden}-{_activation.__name__.lower()}"] = _plain(_hidden, _activation)
RECIPES["mlp-2-leakyrelu"] = _plain(2, nn.LeakyReLU)
RECIPES["mlp-2-mish"] = _plain(2, nn.Mish)
RECIPES["mlp-2-softplus"] = _plain(2, nn.Softplus)
RECIPES["mlp-2-hardswish"] = _plain(2, nn.Hardswish)
RECIPES["mlp-2-prelu"] = _plain(2, nn.PReLU)


@recipe
def mlp_regression() -> Specimen:
    x = torch.randn(128, 16)
    model = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    return regress(model, x, x[:, :1] * 2 + 0.1 * torch.randn(128, 1))


@recipe
def mlp_batchnorm_deep() -> Specimen:
    layers: list[nn.Module] = []
    for k in range(10):
        layers += [nn.Linear(64 if k else 32, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    return classify(nn.Sequential(*layers, nn.Linear(64, CLASSES)), torch.randn(128, 32))


@recipe
def mlp_layernorm_deep() -> Specimen:
    layers: list[nn.Module] = []
    for k in range(10):
        layers += [nn.Linear(64 if k else 32, 64), nn.LayerNorm(64), nn.GELU()]
    return classify(nn.Sequential(*layers, nn.Linear(64, CLASSES)), torch.randn(128, 32))


@recipe
def mlp_dropout() -> Specimen:
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, CLASSES),
    )  # fmt: skip
    return classify(model, torch.randn(128, 32))


@recipe
def mlp_eval_mode() -> Specimen:
    specimen = mlp_dropout()
    specimen.model.eval()
    return specimen


@recipe
def mlp_float64() -> Specimen:
    return classify(mlp(3, nn.Tanh).double(), torch.randn(128, 32, dtype=torch.float64))


@recipe
def mlp_bfloat16() -> Specimen:
    return classify(mlp(3, nn.GELU).bfloat16(), torch.randn(128, 32).bfloat16())


@recipe
def logistic_regression() -> Specimen:
    return classify(nn.Linear(32, CLASSES), torch.randn(128, 32))


@recipe
def binary_sigmoid_output() -> Specimen:
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1), nn.Sigmoid(), nn.Flatten(0)
    )
    return Specimen(
        model, torch.randn(128, 32), torch.randint(0, 2, (128,)).float(), F.binary_cross_entropy
    )


class ResidualMLP(nn.Module):
    """The tabular ResNet: pre-norm blocks of two linear layers, twenty of them."""

    def __init__(self, width: int = 64, blocks: int = 20) -> None:
        super().__init__()
        self.first = nn.Linear(32, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(width),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.relu(self.norm(x)))


@recipe
def residual_mlp_20() -> Specimen:
    return classify(ResidualMLP(), torch.randn(128, 32))


# -- initialised by hand, as papers say ----------------------------------------------------------


def _initialise(
    model: nn.Module, weight: Callable[[torch.Tensor], Any], kinds: Any = nn.Linear
) -> None:
    for module in model.modules():
        if isinstance(module, kinds):
            weight(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@recipe
def he_relu_10() -> Specimen:
    model = mlp(10, nn.ReLU, width=128)
    _initialise(model, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"))
    return classify(model, torch.randn(128, 32))


@recipe
def he_relu_20() -> Specimen:
    model = mlp(20, nn.ReLU, width=256)
    _initialise(model, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"))
    return classify(model, torch.randn(128, 32))


@recipe
def xavier_tanh_10() -> Specimen:
    model = mlp(10, nn.Tanh, width=128)
    _initialise(model, nn.init.xavier_normal_)
    return classify(model, torch.randn(128, 32))


@recipe
def xavier_uniform_gain_tanh_8() -> Specimen:
    """torch's own recommendation, gain 5/3."""
    model = mlp(8, nn.Tanh, width=128)
    _initialise(model, lambda w: nn.init.xavier_uniform_(w, nn.init.calculate_gain("tanh")))
    return classify(model, torch.randn(128, 32))


@recipe
def orthogonal_tanh_20() -> Specimen:
    model = mlp(20, nn.Tanh, width=64)
    _initialise(model, nn.init.orthogonal_)
    return classify(model, torch.randn(128, 32))


@recipe
def truncated_normal_relu() -> Specimen:
    model = mlp(4, nn.ReLU, width=128)
    _initialise(model, lambda w: nn.init.trunc_normal_(w, std=math.sqrt(2 / w.shape[1])))
    return classify(model, torch.randn(128, 32))


class SelfNormalising(nn.Module):
    """Klambauer et al. 2017: SELU, alpha dropout, LeCun normal weights, zero biases."""

    def __init__(self, hidden: int = 8, width: int = 64) -> None:
        super().__init__()
        sizes = [32] + [width] * hidden
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.AlphaDropout(0.05)
        self.head = nn.Linear(width, CLASSES)
        _initialise(self, lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.dropout(F.selu(layer(x)))
        return self.head(x)


@recipe
def self_normalising() -> Specimen:
    return classify(SelfNormalising(), torch.randn(128, 32))


class Siren(nn.Module):
    """Sitzmann et al. 2020: sine activations with omega 30 and their own init."""

    def __init__(self, width: int = 64, hidden: int = 3, omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega
        sizes = [2] + [width] * hidden
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(width, 3)
        for k, layer in enumerate((*self.layers, self.head)):
            bound = 1 / 2 if k == 0 else math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.head(x)


@recipe
def siren() -> Specimen:
    return regress(Siren(), torch.rand(256, 2) * 2 - 1, torch.rand(256, 3))


# -- convolutions --------------------------------------------------------------------------------


@recipe
def lenet() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16 * 16, 84), nn.Tanh(), nn.Linear(84, CLASSES),
    )  # fmt: skip
    return classify(model, torch.randn(64, 1, 28, 28))


class SmallConvNet(nn.Module):
    """The MNIST example of pytorch/examples, its structure: F.relu, dropout, log_softmax, nll."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(32 * 12 * 12, 64)
        self.fc2 = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(self.dropout1(x), 1)
        x = self.dropout2(F.relu(self.fc1(x)))
        return F.log_softmax(self.fc2(x), dim=1)


@recipe
def mnist_example() -> Specimen:
    return Specimen(SmallConvNet(), torch.randn(64, 1, 28, 28), labels(64), F.nll_loss)


@recipe
def vgg_batchnorm() -> Specimen:
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 16, "pool", 32, 32, "pool", 64, 64, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        assert isinstance(width, int)
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
        channels = width
    layers += [nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10)]
    return classify(nn.Sequential(*layers), images(64))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    def __init__(self, zero_gamma: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 16, 1))
        self.layer2 = nn.Sequential(ResidualBlock(16, 32, 2), ResidualBlock(32, 32, 1))
        self.layer3 = nn.Sequential(ResidualBlock(32, 64, 2), ResidualBlock(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, ResidualBlock) and zero_gamma:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


@recipe
def resnet() -> Specimen:
    return classify(ResNet(), images(64, 16))


@recipe
def resnet_zero_gamma() -> Specimen:
    return classify(ResNet(zero_gamma=True), images(64, 16))


@recipe
def resnet_eval_fresh() -> Specimen:
    """In evaluation mode before any training: the running statistics are still 0 and 1."""
    return classify(ResNet().eval(), images(64, 16))


@recipe
def resnet_frozen_backbone() -> Specimen:
    """Fine-tuning: everything frozen but a new head."""
    model = ResNet()
    model.requires_grad_(False)
    model.fc = nn.Linear(64, CLASSES)
    return classify(model, images(64, 16))


class PreActivationBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu_())).relu_())


@recipe
def resnet_preactivation() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), *[PreActivationBlock(16) for _ in range(6)], nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip
    return classify(model, images(64, 16))


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + k * growth),
                nn.ReLU(inplace=True),
                nn.Conv2d(inputs + k * growth, growth, 3, padding=1, bias=False),
            )
            for k in range(layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


@recipe
def densenet() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), DenseBlock(16, 8, 4),
        nn.BatchNorm2d(48), nn.ReLU(inplace=True), nn.Conv2d(48, 24, 1, bias=False),
        nn.AvgPool2d(2), DenseBlock(24, 8, 4), nn.BatchNorm2d(56), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(56, CLASSES),
    )  # fmt: skip
    return classify(model, images(64, 16))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Linear(width, reduced), nn.Linear(reduced, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(out.mean((2, 3))))))
        return F.relu(x + out * gate[:, :, None, None])


@recipe
def squeeze_excite() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        SqueezeExcite(32, 8), SqueezeExcite(32, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip
    return classify(model, images(64, 16))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project; a residual where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        hidden = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden), nn.ReLU6(True),
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


@recipe
def mobilenet() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
        InvertedResidual(16, 16, 1), InvertedResidual(16, 24, 2), InvertedResidual(24, 24, 1),
        InvertedResidual(24, 32, 2), nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64),
        nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(64, CLASSES),
    )  # fmt: skip
    return classify(model, images(64))


class UNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w = width
        self.down1, self.down2 = self.block(3, w), self.block(w, 2 * w)
        self.middle = self.block(2 * w, 4 * w)
        self.up2 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2)
        self.up1 = nn.ConvTranspose2d(2 * w, w, 2, 2)
        self.decode2, self.decode1 = self.block(4 * w, 2 * w), self.block(2 * w, w)
        self.head = nn.Conv2d(w, 2, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        x = self.middle(F.max_pool2d(b, 2))
        x = self.decode2(torch.cat([self.up2(x), b], 1))
        x = self.decode1(torch.cat([self.up1(x), a], 1))
        return self.head(x)


@recipe
def unet() -> Specimen:
    return Specimen(UNet(), images(16), torch.randint(0, 2, (16, 32, 32)), F.cross_entropy)


@recipe
def conv1d_tcn() -> Specimen:
    """A temporal convolution network: dilated convolutions with weight normalisation."""

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
            super().__init__()
            self.pad = nn.ZeroPad1d((2 * dilation, 0))
            conv = nn.Conv1d(inputs, outputs, 3, dilation=dilation)
            self.conv = parametrizations.weight_norm(conv)
            self.match = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = F.dropout(F.relu(self.conv(self.pad(x))), 0.1, self.training)
            return F.relu(out + self.match(x))

    model = nn.Sequential(
        Block(4, 32, 1), Block(32, 32, 2), Block(32, 32, 4),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip
    return classify(model, torch.randn(64, 4, 48))


@recipe
def conv3d() -> Specimen:
    model = nn.Sequential(
        nn.Conv3d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm3d(8), nn.ReLU(),
        nn.Conv3d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm3d(16), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip
    return classify(model, torch.randn(64, 1, 12, 12, 12))


class ConvNeXtBlock(nn.Module):
    """Channels last inside, with a layer scale that starts at 1e-6."""

    def __init__(self, width: int, scale: float = 1e-6) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(scale * torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.project(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


@recipe
def layer_scale() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 4, 4), *[ConvNeXtBlock(32) for _ in range(3)],
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, CLASSES),
    )  # fmt: skip
    return classify(model, images(64))


class MixerBlock(nn.Module):
    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(length, 32), nn.GELU(), nn.Linear(32, length))
        self.within = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


@recipe
def mlp_mixer() -> Specimen:
    return classify(Mixer(), images(64))


class VisionTransformer(nn.Module):
    """A class token, learned positions, and a head that starts at zero."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.encoder(x)[:, 0]))


@recipe
def vision_transformer_zero_head() -> Specimen:
    return classify(VisionTransformer(), images(64))


# -- autoencoders, generative models -------------------------------------------------------------


@recipe
def autoencoder() -> Specimen:
    x = torch.randn(128, 32)
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(),
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32),
    )  # fmt: skip
    return regress(model, x, x)


@recipe
def conv_autoencoder() -> Specimen:
    x = torch.rand(64, 1, 28, 28)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1),
        nn.Sigmoid(),
    )  # fmt: skip
    return regress(model, x, x)


class TiedAutoencoder(nn.Module):
    """The decoder's weights are the encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(64, 32))
        self.weight2 = nn.Parameter(torch.empty(16, 64))
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(16))
        self.bias3, self.bias4 = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(32))
        nn.init.xavier_uniform_(self.weight1)
        nn.init.xavier_uniform_(self.weight2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(F.linear(x, self.weight1, self.bias1))
        code = torch.tanh(F.linear(hidden, self.weight2, self.bias2))
        out = torch.tanh(F.linear(code, self.weight2.t(), self.bias3))
        return F.linear(out, self.weight1.t(), self.bias4)


@recipe
def tied_autoencoder() -> Specimen:
    x = torch.randn(128, 32)
    return regress(TiedAutoencoder(), x, x)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 128)
        self.mean, self.logvar = nn.Linear(128, 16), nn.Linear(128, 16)
        self.decode1, self.decode2 = nn.Linear(16, 128), nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = F.relu(self.encode(x))
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.decode2(F.relu(self.decode1(z)))), mean, logvar


@recipe
def vae() -> Specimen:
    def loss(output: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        image, mean, logvar = output
        divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum()
        return F.binary_cross_entropy(image, x, reduction="sum") + divergence

    x = torch.rand(128, 64).round()
    return Specimen(VAE(), x, x, loss)


def _dcgan_init(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


@recipe
def dcgan_generator() -> Specimen:
    model = nn.Sequential(
        nn.ConvTranspose2d(64, 64, 4, 1, 0, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
        nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
        nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    model.apply(_dcgan_init)
    return Specimen(model, torch.randn(64, 64, 1, 1))


@recipe
def dcgan_discriminator() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(64, 1, 4, 1, 0, bias=False), nn.Sigmoid(), nn.Flatten(0),
    )  # fmt: skip
    model.apply(_dcgan_init)
    target = torch.randint(0, 2, (64,)).float()
    return Specimen(model, images(64).clamp(-1, 1), target, F.binary_cross_entropy)


@recipe
def wgan_critic() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, 2, 1), nn.GroupNorm(1, 32), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1), nn.GroupNorm(1, 64), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(64 * 16, 1),
    )  # fmt: skip

    def loss(score: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return (score.flatten() * torch.where(real, -1.0, 1.0)).mean()

    return Specimen(model, images(64).clamp(-1, 1), torch.arange(64) < 32, loss)


@recipe
def spectral_norm_critic() -> Specimen:
    norm = parametrizations.spectral_norm
    model = nn.Sequential(
        norm(nn.Conv2d(3, 16, 3, 1, 1)), nn.LeakyReLU(0.1), norm(nn.Conv2d(16, 32, 4, 2, 1)),
        nn.LeakyReLU(0.1), norm(nn.Conv2d(32, 64, 4, 2, 1)), nn.LeakyReLU(0.1),
        nn.Flatten(), norm(nn.Linear(64 * 64, 1)),
    )  # fmt: skip
    return Specimen(
        model, images(32).clamp(-1, 1), torch.ones(32, 1), F.binary_cross_entropy_with_logits
    )


@recipe
def weight_norm_mlp() -> Specimen:
    norm = parametrizations.weight_norm
    model = nn.Sequential(
        norm(nn.Linear(32, 64)), nn.ReLU(), norm(nn.Linear(64, 64)), nn.ReLU(),
        norm(nn.Linear(64, CLASSES)),
    )  # fmt: skip
    return classify(model, torch.randn(128, 32))


@recipe
def orthogonal_parametrized() -> Specimen:
    model = nn.Sequential(
        *[
            layer
            for _ in range(6)
            for layer in (parametrizations.orthogonal(nn.Linear(64, 64)), nn.Tanh())
        ],
        nn.Linear(64, CLASSES),
    )
    return classify(model, torch.randn(128, 64))


class TimeBlock(nn.Module):
    """The residual block of diffusion U-Nets: GroupNorm, SiLU, time embedding, zero-init end."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class DiffusionUNet(nn.Module):
    def __init__(self, width: int = 16, zero: bool = True) -> None:
        super().__init__()
        w, self.width = width, width
        self.embed = nn.Sequential(nn.Linear(w, 4 * w), nn.SiLU(), nn.Linear(4 * w, 4 * w))
        self.first = nn.Conv2d(3, w, 3, padding=1)
        self.down1, self.pool = TimeBlock(w, w, 4 * w), nn.Conv2d(w, w, 3, 2, 1)
        self.down2 = TimeBlock(w, 2 * w, 4 * w)
        self.norm = nn.GroupNorm(4, 2 * w)
        self.attend = nn.MultiheadAttention(2 * w, 2, batch_first=True)
        self.up, self.join = nn.Upsample(scale_factor=2), TimeBlock(3 * w, w, 4 * w)
        self.last, self.head = nn.GroupNorm(4, w), nn.Conv2d(w, 3, 3, padding=1)
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        rates = torch.exp(-math.log(1e4) * torch.arange(self.width // 2) / (self.width // 2))
        angles = step[:, None].float() * rates[None]
        time = self.embed(torch.cat([angles.sin(), angles.cos()], -1))
        a = self.down1(self.first(x), time)
        b = self.down2(self.pool(a), time)
        flat = self.norm(b).flatten(2).transpose(1, 2)
        attended, _ = self.attend(flat, flat, flat, need_weights=False)
        b = b + attended.transpose(1, 2).reshape(b.shape)
        h = self.join(torch.cat([self.up(b), a], 1), time)
        return self.head(F.silu(self.last(h)))


@recipe
def diffusion_unet() -> Specimen:
    batch = (images(16, 16), torch.randint(0, 1000, (16,)))
    return Specimen(DiffusionUNet(), batch, images(16, 16), F.mse_loss)


@recipe
def diffusion_unet_no_zero_head() -> Specimen:
    batch = (images(16, 16), torch.randint(0, 1000, (16,)))
    return Specimen(DiffusionUNet(zero=False), batch, images(16, 16), F.mse_loss)


@recipe
def zero_init_head() -> Specimen:
    model = mlp(3, nn.ReLU)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return classify(model, torch.randn(128, 32))


# -- adapters ------------------------------------------------------------------------------------


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4, alpha: float = 8.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.a), self.b) * self.scale


@recipe
def lora_mlp() -> Specimen:
    model = nn.Sequential(
        LoRALinear(nn.Linear(32, 64)), nn.ReLU(), LoRALinear(nn.Linear(64, 64)), nn.ReLU(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip
    return classify(model, torch.randn(128, 32))


class LoRAModules(nn.Module):
    """peft's form: A and B are bias-free Linears."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_dropout = nn.Dropout(0.05)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(self.lora_dropout(x))) * 2.0


@recipe
def lora_transformer() -> Specimen:
    specimen = transformer_encoder_prenorm()
    specimen.model.requires_grad_(False)
    for layer in specimen.model.encoder.layers:
        layer.linear1 = LoRAModules(layer.linear1)
        layer.linear2 = LoRAModules(layer.linear2)
    specimen.model.head.requires_grad_(True)
    return specimen


@recipe
def adapter_bottleneck() -> Specimen:
    """Houlsby et al. 2019: a bottleneck after each frozen layer, near the identity at first."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.ModuleList(nn.Linear(64, 64) for _ in range(3)).requires_grad_(False)
            self.down = nn.ModuleList(nn.Linear(64, 8) for _ in range(3))
            self.up = nn.ModuleList(nn.Linear(8, 64) for _ in range(3))
            for up in self.up:
                nn.init.zeros_(up.weight)
                nn.init.zeros_(up.bias)
            self.head = nn.Linear(64, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for frozen, down, up in zip(self.frozen, self.down, self.up, strict=True):
                x = F.gelu(frozen(x))
                x = x + up(F.gelu(down(x)))
            return self.head(x)

    return classify(Adapted(), torch.randn(128, 64))


# -- sequences -----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.batch_first = options.get("batch_first", False)
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.rnn = kind(32, 32, **options)
        self.head = nn.Linear(32 * (2 if options.get("bidirectional") else 1), CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        out, _ = self.rnn(x if self.batch_first else x.transpose(0, 1))
        return self.head(out.mean(1 if self.batch_first else 0))


def _recurrent(kind: type[nn.RNNBase], **options: Any) -> Recipe:
    return lambda: classify(Recurrent(kind, **options), tokens(64, 20))


RECIPES["lstm"] = _recurrent(nn.LSTM, batch_first=True)
RECIPES["lstm-time-first"] = _recurrent(nn.LSTM)
RECIPES["lstm-bidirectional-2"] = _recurrent(
    nn.LSTM, num_layers=2, bidirectional=True, dropout=0.1, batch_first=True
)
RECIPES["gru"] = _recurrent(nn.GRU, batch_first=True)
RECIPES["gru-bidirectional-2-time-first"] = _recurrent(nn.GRU, num_layers=2, bidirectional=True)
RECIPES["rnn-tanh"] = _recurrent(nn.RNN, batch_first=True)
RECIPES["rnn-relu-2"] = _recurrent(nn.RNN, nonlinearity="relu", num_layers=2, batch_first=True)


class LastState(nn.Module):
    """The other usual way: the last hidden state, of an LSTM over numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(x)
        return self.head(h[-1])


@recipe
def lstm_regression() -> Specimen:
    return regress(LastState(), torch.randn(64, 24, 8), torch.randn(64, 1))


class CellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


@recipe
def gru_cell_loop() -> Specimen:
    return classify(CellLoop(), torch.randn(64, 10, 8))


class PackedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32, padding_idx=0)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.lstm(packed)
        return self.head(h[-1])


@recipe
def lstm_packed() -> Specimen:
    lengths = torch.randint(4, 21, (64,))
    ids = tokens(64, 20).masked_fill(torch.arange(20)[None] >= lengths[:, None], 0)
    return classify(PackedLSTM(), (ids, lengths))


class LanguageModelLSTM(nn.Module):
    """Word-level language model with the output weights tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.lstm = nn.LSTM(32, 32, 2, batch_first=True)
        self.head = nn.Linear(32, VOCABULARY)
        self.head.weight = self.embed.weight
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(ids))[0]).transpose(1, 2)


@recipe
def lstm_language_model_tied() -> Specimen:
    ids = tokens(32, 21)
    return Specimen(LanguageModelLSTM(), ids[:, :-1], ids[:, 1:], F.cross_entropy)


@recipe
def embedding_bag_classifier() -> Specimen:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(VOCABULARY, 32)
            self.head = nn.Linear(32, CLASSES)
            nn.init.uniform_(self.bag.weight, -0.5, 0.5)

        def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            return self.head(self.bag(ids, offsets))

    ids, offsets = tokens(1, 64 * 8)[0], torch.arange(0, 64 * 8, 8)
    return Specimen(Bag(), (ids, offsets), labels(64), F.cross_entropy)


@recipe
def embedding_bag_sparse() -> Specimen:
    model = nn.Sequential(
        nn.EmbeddingBag(VOCABULARY, 32, sparse=True), nn.Linear(32, 32), nn.ReLU(),
        nn.Linear(32, CLASSES),
    )  # fmt: skip
    return classify(model, tokens(64, 8))


class TextCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 16, k) for k in (3, 4, 5))
        self.head = nn.Linear(48, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids).transpose(1, 2)
        pooled = [F.relu(conv(x)).max(2).values for conv in self.convs]
        return self.head(F.dropout(torch.cat(pooled, 1), 0.5, self.training))


@recipe
def text_cnn() -> Specimen:
    return classify(TextCNN(), tokens(64, 20))


class Encoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.position = nn.Parameter(0.02 * torch.randn(1, 20, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(ids) + self.position).mean(1))


@recipe
def transformer_encoder_prenorm() -> Specimen:
    return classify(Encoder(norm_first=True, activation="gelu"), tokens(64, 20))


@recipe
def transformer_encoder_postnorm() -> Specimen:
    return classify(Encoder(), tokens(64, 20))


@recipe
def transformer_encoder_eval() -> Specimen:
    """torch then takes its fused path where no gradient is needed."""
    return classify(Encoder().eval(), tokens(64, 20))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, ids: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        out = self.decoder(self.embed(ids), memory, tgt_mask=mask, tgt_is_causal=True)
        return self.head(out).transpose(1, 2)


@recipe
def transformer_decoder() -> Specimen:
    ids = tokens(32, 13)
    batch = (ids[:, :-1], torch.randn(32, 8, 32))
    return Specimen(Decoder(), batch, ids[:, 1:], F.cross_entropy)


class Translation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.goal = nn.Embedding(VOCABULARY, 32), nn.Embedding(VOCABULARY, 32)
        self.transformer = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        mask = self.transformer.generate_square_subsequent_mask(goal.shape[1])
        out = self.transformer(self.source(source), self.goal(goal), tgt_mask=mask)
        return self.head(out).transpose(1, 2)


@recipe
def transformer_seq2seq() -> Specimen:
    goal = tokens(32, 13)
    batch = (tokens(32, 15), goal[:, :-1])
    return Specimen(Translation(), batch, goal[:, 1:], F.cross_entropy)


class CausalBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class NanoGPT(nn.Module):
    """The teaching GPT: std 0.02, residual projections scaled down by depth, tied head."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(20, width)
        self.blocks = nn.ModuleList(CausalBlock(width, 4) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.token.weight
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                scaled = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * depth) if scaled else 0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


@recipe
def nano_gpt() -> Specimen:
    ids = tokens(32, 17)
    return Specimen(NanoGPT(), ids[:, :-1], ids[:, 1:], F.cross_entropy)


# -- other shapes of model -----------------------------------------------------------------------


class GraphConvolution(nn.Module):
    """A GCN on one graph: 200 nodes, an adjacency matrix as the second input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        x = F.relu(adjacency @ self.first(x))
        return adjacency @ self.second(F.dropout(x, 0.5, self.training))


@recipe
def graph_convolution() -> Specimen:
    links = (torch.rand(200, 200) < 0.03).float()
    links = ((links + links.t() + torch.eye(200)) > 0).float()
    degree = links.sum(1).rsqrt()
    adjacency = degree[:, None] * links * degree[None]
    return Specimen(
        GraphConvolution(), (torch.randn(200, 16), adjacency), labels(200), F.cross_entropy
    )


class Tabular(nn.Module):
    """Numbers and categories, each category with its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embeds = nn.ModuleList(nn.Embedding(n, 8) for n in (5, 12, 30))
        self.norm = nn.BatchNorm1d(10)
        self.body = nn.Sequential(
            nn.Linear(34, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.1),
            nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 2),
        )  # fmt: skip

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        parts = [embed(categories[:, k]) for k, embed in enumerate(self.embeds)]
        return self.body(torch.cat([*parts, self.norm(numbers)], 1))


@recipe
def tabular_embeddings() -> Specimen:
    categories = torch.stack([torch.randint(0, n, (128,)) for n in (5, 12, 30)], 1)
    return Specimen(Tabular(), (categories, torch.randn(128, 10)), labels(128, 2), F.cross_entropy)


class TwoTower(nn.Module):
    """Recommender: two towers, their inner product."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 16), nn.Embedding(80, 16)
        self.users = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.items = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return (self.users(self.user(user)) * self.items(self.item(item))).sum(-1)


@recipe
def two_tower() -> Specimen:
    batch = (torch.randint(0, 50, (128,)), torch.randint(0, 80, (128,)))
    target = torch.randint(0, 2, (128,)).float()
    return Specimen(TwoTower(), batch, target, F.binary_cross_entropy_with_logits)


class Siamese(nn.Module):
    """One encoder called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.normalize(self.encoder(a), dim=-1), F.normalize(self.encoder(b), dim=-1)


@recipe
def siamese_contrastive() -> Specimen:
    def loss(output: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output[0] @ output[1].t() / 0.1, target)

    a = torch.randn(64, 32)
    return Specimen(Siamese(), (a, a + 0.1 * torch.randn(64, 32)), torch.arange(64), loss)


class ActorCritic(nn.Module):
    """PPO's usual network: orthogonal weights, tanh, a policy head scaled by 0.01."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(
            self.layer(8, 64), nn.Tanh(), self.layer(64, 64), nn.Tanh(), self.layer(64, 4, 0.01)
        )
        self.critic = nn.Sequential(
            self.layer(8, 64), nn.Tanh(), self.layer(64, 64), nn.Tanh(), self.layer(64, 1, 1.0)
        )

    @staticmethod
    def layer(inputs: int, outputs: int, gain: float = math.sqrt(2)) -> nn.Linear:
        linear = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(linear.bias)
        return linear

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.actor(x), self.critic(x).squeeze(-1)


@recipe
def ppo_actor_critic() -> Specimen:
    def loss(
        output: tuple[torch.Tensor, torch.Tensor], target: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        logits, value = output
        actions, advantages, returns = target
        policy = torch.distributions.Categorical(logits=logits)
        gain = (policy.log_prob(actions) * advantages).mean()
        return -gain + 0.5 * F.mse_loss(value, returns) - 0.01 * policy.entropy().mean()

    target = (labels(128, 4), torch.randn(128), torch.randn(128))
    return Specimen(ActorCritic(), torch.randn(128, 8), target, loss)


class MultiTask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.heads = nn.ModuleDict({"class": nn.Linear(64, CLASSES), "value": nn.Linear(64, 1)})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.trunk(x)
        return {name: head(x) for name, head in self.heads.items()}


@recipe
def multi_task() -> Specimen:
    def loss(output: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
        value = F.mse_loss(output["value"].squeeze(-1), target["value"])
        return F.cross_entropy(output["class"], target["class"]) + value

    target = {"class": labels(128), "value": torch.randn(128)}
    return Specimen(MultiTask(), torch.randn(128, 32), target, loss)


class MixtureOfExperts(nn.Module):
    """Top-1 routing over four experts, soft weights."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(32, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(4)
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, choice = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            mine = choice == k
            if mine.any():
                out[mine] = expert(x[mine]) * weight[mine, None]
        return self.head(self.norm(x + out))


@recipe
def mixture_of_experts() -> Specimen:
    return classify(MixtureOfExperts(), torch.randn(128, 32))


class Highway(nn.Module):
    """Srivastava et al. 2015: gates that start closed (bias -2), twenty layers."""

    def __init__(self, width: int = 32, depth: int = 20) -> None:
        super().__init__()
        self.plain = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gate = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gate:
            nn.init.constant_(gate.bias, -2.0)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for plain, gate in zip(self.plain, self.gate, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * F.relu(plain(x)) + (1 - t) * x
        return self.head(x)


@recipe
def highway_20() -> Specimen:
    return classify(Highway(), torch.randn(128, 32))


class SpatialTransformer(nn.Module):
    """Jaderberg et al. 2015: the localisation head starts at the identity transform, weights 0."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(
            nn.Conv2d(1, 8, 7), nn.MaxPool2d(2, 2), nn.ReLU(True), nn.Conv2d(8, 10, 5),
            nn.MaxPool2d(2, 2), nn.ReLU(True),
        )  # fmt: skip
        self.affine = nn.Sequential(nn.Linear(90, 32), nn.ReLU(True), nn.Linear(32, 6))
        self.affine[2].weight.data.zero_()
        self.affine[2].bias.data.copy_(torch.tensor([1, 0, 0, 0, 1, 0.0]))
        self.conv, self.head = nn.Conv2d(1, 16, 5, 2), nn.Linear(16 * 144, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.affine(self.locate(x).flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        return self.head(F.relu(self.conv(x)).flatten(1))


@recipe
def spatial_transformer() -> Specimen:
    return classify(SpatialTransformer(), torch.randn(64, 1, 28, 28))


@recipe
def checkpointed_mlp() -> Specimen:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU()) for _ in range(3)
            )
            self.head = nn.Linear(32, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.head(x)

    return classify(Checkpointed(), torch.randn(128, 32))


class FixupBlock(nn.Module):
    """Zhang et al. 2019: no normalisation, the second convolution starts at zero."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(1))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.normal_(self.conv1.weight, std=math.sqrt(2 / (9 * width * blocks)))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.conv1(x + self.shifts[0]) + self.shifts[1])
        return F.relu(x + self.conv2(out + self.shifts[2]) * self.scale + self.shifts[3])


@recipe
def fixup() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), *[FixupBlock(16, 4) for _ in range(4)],
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip
    nn.init.kaiming_normal_(model[0].weight)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return classify(model, images(64, 16))


class AdaptiveNormBlock(nn.Module):
    """The diffusion transformer's block: scales, shifts and gates from the condition, all zero."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.head = nn.Linear(width, 8)
        for layer in (self.modulate[1], self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(condition)[:, None].chunk(
            6, -1
        )
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attend(y, y, y, need_weights=False)[0]
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return self.head(x)


@recipe
def adaptive_norm_zero() -> Specimen:
    batch = (torch.randn(32, 12, 32), torch.randn(32, 32))
    return Specimen(AdaptiveNormBlock(), batch, torch.randn(32, 12, 8), F.mse_loss)


class SkipGram(nn.Module):
    """word2vec: the output embeddings start at zero, so at first the others get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.center, self.context = nn.Embedding(VOCABULARY, 16), nn.Embedding(VOCABULARY, 16)
        nn.init.uniform_(self.center.weight, -0.5 / 16, 0.5 / 16)
        nn.init.zeros_(self.context.weight)

    def forward(self, word: torch.Tensor, near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
        center = self.center(word)
        seen = F.logsigmoid((center * self.context(near)).sum(-1))
        drawn = F.logsigmoid(-(center[:, None] * self.context(far)).sum(-1)).sum(-1)
        return -(seen + drawn).mean()


@recipe
def skip_gram() -> Specimen:
    return Specimen(SkipGram(), (tokens(1, 128)[0], tokens(1, 128)[0], tokens(128, 5)))


class Bootstrap(nn.Module):
    """BYOL: a target network that only follows, under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target, self.predict = self.net(), self.net(), self.net()
        self.target.requires_grad_(False)

    @staticmethod
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        predicted = F.normalize(self.predict(self.online(a)), dim=-1)
        with torch.no_grad():
            goal = F.normalize(self.target(b), dim=-1)
        return 2 - 2 * (predicted * goal).sum(-1).mean()


@recipe
def bootstrap_your_own_latent() -> Specimen:
    x = torch.randn(64, 32)
    return Specimen(Bootstrap(), (x, x + 0.1 * torch.randn(64, 32)))


class PhysicsInformed(nn.Module):
    """Burgers without its nonlinearity: forward differentiates the network by its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_(True)
        u = self.net(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 1].sum(), x, create_graph=True)
        residual = first[:, 0] - 0.1 * second[:, 1]
        return (residual**2).mean() + ((u[:, 0] - x[:, 0].sin()) ** 2).mean()


@recipe
def physics_informed() -> Specimen:
    return Specimen(PhysicsInformed(), torch.rand(128, 2))


class MaskedConv(nn.Conv2d):
    """PixelCNN's: forward rewrites its own weight."""

    def __init__(self, inputs: int, outputs: int, sees_itself: bool) -> None:
        super().__init__(inputs, outputs, 7, padding=3, bias=False)
        mask = torch.ones_like(self.weight)
        mask[:, :, 3, 3 + sees_itself :] = 0
        mask[:, :, 4:] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


@recipe
def pixel_cnn() -> Specimen:
    layers: list[nn.Module] = []
    for k in range(4):
        layers += [MaskedConv(16 if k else 1, 16, k > 0), nn.BatchNorm2d(16), nn.ReLU(True)]
    model = nn.Sequential(*layers, nn.Conv2d(16, 8, 1))
    return Specimen(
        model, torch.rand(64, 1, 14, 14), torch.randint(0, 8, (64, 14, 14)), F.cross_entropy
    )


class FourierOperator(nn.Module):
    """Li et al. 2021: complex weights between a Fourier transform and its inverse."""

    def __init__(self, width: int = 16, modes: int = 8) -> None:
        super().__init__()
        self.modes, self.first = modes, nn.Linear(1, width)
        self.spectral = nn.ParameterList(
            nn.Parameter(torch.rand(width, width, modes, dtype=torch.cfloat) / width**2)
            for _ in range(3)
        )
        self.local = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.head = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).transpose(1, 2)
        for weight, local in zip(self.spectral, self.local, strict=True):
            waves = torch.fft.rfft(x)
            mixed = torch.einsum("bix,iox->box", waves[..., : self.modes], weight)
            mixed = F.pad(mixed, (0, waves.shape[-1] - self.modes))
            x = F.gelu(torch.fft.irfft(mixed, n=x.shape[-1]) + local(x))
        return self.head(x.transpose(1, 2))


@recipe
def fourier_operator() -> Specimen:
    return regress(FourierOperator(), torch.randn(32, 32, 1), torch.randn(32, 32, 1))


@recipe
def maxout() -> Specimen:
    class Maxout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 64 * 3), nn.Linear(64, 64 * 3)
            self.head = nn.Linear(64, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in (self.a, self.b):
                x = layer(x).view(len(x), 64, 3).amax(-1)
            return self.head(x)

    return classify(Maxout(), torch.randn(128, 32))


# -- transformers --------------------------------------------------------------------------------


# fmt: off
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2,
}
GROUPED = TEXT | {"num_key_value_heads": 2}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
       "bos_token_id": 0, "eos_token_id": 2}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
      "num_heads": 4, "decoder_start_token_id": 0}
SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}
PYRAMID = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
           "num_attention_heads": [1, 2, 2, 4]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 1],
           "num_heads": [2, 2], "window_size": 4}
SPEECH = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "conv_dim": (16, 16, 16), "conv_stride": (4, 4, 4),
    "conv_kernel": (8, 4, 4), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 3, "layerdrop": 0.0,
}

# fmt: on


def plain_text(n: int = 64) -> dict[str, Any]:
    ids = tokens(n)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def masked_text() -> dict[str, Any]:
    batch = plain_text()
    ids = batch["input_ids"]
    hidden = torch.rand(ids.shape) < 0.15
    batch["labels"] = ids.masked_fill(~hidden, -100)
    batch["input_ids"] = ids.masked_fill(hidden, 4)
    return batch


def next_tokens() -> dict[str, Any]:
    batch = plain_text()
    return batch | {"labels": batch["input_ids"]}


def labelled_text() -> dict[str, Any]:
    return plain_text() | {"labels": labels(64, 2)}


def labelled_tokens() -> dict[str, Any]:
    return plain_text() | {"labels": torch.randint(0, 2, (64, 12))}


def translation() -> dict[str, Any]:
    return {"input_ids": tokens(64), "labels": tokens(64)}


def pictures(n: int = 16, size: int = 32) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": images(n, size)}


def labelled_pictures(n: int = 16, size: int = 32) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": images(n, size), "labels": labels(n, 2)}


def captioned() -> dict[str, Any]:
    """Texts end with their end-of-text token, 2."""
    ids = torch.cat([tokens(16, 11), torch.full((16, 1), 2)], 1)
    return {"input_ids": ids, "pixel_values": images(16), "return_loss": True}


def questions() -> dict[str, Any]:
    seen = {"pixel_values": images(16), "pixel_mask": torch.ones(16, 32, 32, dtype=torch.long)}
    return plain_text(16) | seen | {"labels": torch.rand(16, 2).round()}


def sound() -> dict[str, Any]:
    return {"input_values": torch.randn(8, 1600), "labels": labels(8, 2)}


def transcribed() -> dict[str, Any]:
    return {"input_values": torch.randn(8, 1600), "labels": tokens(8, 4)}


def _kind(model: str, config: str, batch: Callable[[], dict[str, Any]], **options: Any) -> Recipe:
    """A model of transformers with random weights, and its inputs as keyword arguments."""

    def build() -> Specimen:
        import transformers

        return Specimen(
            getattr(transformers, model)(getattr(transformers, config)(**options)), batch()
        )

    return build


# fmt: off
RECIPES |= {
    # text encoders
    "bert": _kind("BertForSequenceClassification", "BertConfig", labelled_text, **TEXT),
    "bert-masked": _kind("BertForMaskedLM", "BertConfig", masked_text, **TEXT),
    "bert-tokens": _kind("BertForTokenClassification", "BertConfig", labelled_tokens, **TEXT),
    "roberta": _kind("RobertaForMaskedLM", "RobertaConfig", masked_text, **TEXT),
    "albert": _kind("AlbertForMaskedLM", "AlbertConfig", masked_text, **TEXT, embedding_size=16),
    "distilbert": _kind(
        "DistilBertForSequenceClassification", "DistilBertConfig", labelled_text,
        vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
    ),
    "electra": _kind(
        "ElectraForPreTraining", "ElectraConfig", labelled_tokens, **TEXT, embedding_size=16,
    ),
    "deberta-v2": _kind(
        "DebertaV2ForSequenceClassification", "DebertaV2Config", labelled_text, **TEXT,
        relative_attention=True, pos_att_type=["c2p", "p2c"],
    ),
    "mpnet": _kind("MPNetForMaskedLM", "MPNetConfig", masked_text, **TEXT),
    "roformer": _kind("RoFormerForMaskedLM", "RoFormerConfig", masked_text, **TEXT),
    "convbert": _kind(
        "ConvBertForSequenceClassification", "ConvBertConfig", labelled_text, **TEXT,
        embedding_size=32,
    ),
    "modernbert": _kind(
        "ModernBertForMaskedLM", "ModernBertConfig", masked_text, **TEXT, cls_token_id=0,
        sep_token_id=2,
    ),
    # decoders
    "gpt2": _kind("GPT2LMHeadModel", "GPT2Config", next_tokens, **GPT),
    "gpt-neo": _kind(
        "GPTNeoForCausalLM", "GPTNeoConfig", next_tokens, vocab_size=VOCABULARY, hidden_size=32,
        num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=2,
    ),
    "gpt-neox": _kind("GPTNeoXForCausalLM", "GPTNeoXConfig", next_tokens, **TEXT),
    "gptj": _kind("GPTJForCausalLM", "GPTJConfig", next_tokens, **GPT, rotary_dim=8),
    "llama": _kind("LlamaForCausalLM", "LlamaConfig", next_tokens, **GROUPED),
    "mistral": _kind("MistralForCausalLM", "MistralConfig", next_tokens, **GROUPED),
    "qwen2": _kind("Qwen2ForCausalLM", "Qwen2Config", next_tokens, **GROUPED),
    "gemma": _kind("GemmaForCausalLM", "GemmaConfig", next_tokens, **GROUPED, head_dim=8),
    "gemma2": _kind(
        "Gemma2ForCausalLM", "Gemma2Config", next_tokens, **GROUPED, head_dim=8,
        query_pre_attn_scalar=8,
    ),
    "phi": _kind("PhiForCausalLM", "PhiConfig", next_tokens, **TEXT),
    "opt": _kind(
        "OPTForCausalLM", "OPTConfig", next_tokens, vocab_size=VOCABULARY, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "bloom": _kind(
        "BloomForCausalLM", "BloomConfig", next_tokens, vocab_size=VOCABULARY, hidden_size=32,
        n_layer=2, n_head=4,
    ),
    "falcon": _kind(
        "FalconForCausalLM", "FalconConfig", next_tokens, vocab_size=VOCABULARY, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=4, bos_token_id=0, eos_token_id=2,
    ),
    "mixtral": _kind(
        "MixtralForCausalLM", "MixtralConfig", next_tokens, **GROUPED, num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "phimoe": _kind(
        "PhimoeForCausalLM", "PhimoeConfig", next_tokens, **GROUPED, num_local_experts=4,
    ),
    "mamba": _kind(
        "MambaForCausalLM", "MambaConfig", next_tokens, vocab_size=VOCABULARY, hidden_size=32,
        num_hidden_layers=2, state_size=8, bos_token_id=0, eos_token_id=2,
    ),
    "rwkv": _kind(
        "RwkvForCausalLM", "RwkvConfig", next_tokens, vocab_size=VOCABULARY, hidden_size=32,
        num_hidden_layers=2, attention_hidden_size=32, intermediate_size=64,
    ),
    # encoder-decoders
    "t5": _kind("T5ForConditionalGeneration", "T5Config", translation, **T5),
    "t5-gated": _kind(
        "T5ForConditionalGeneration", "T5Config", translation, **T5,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    ),
    "switch": _kind(
        "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig", translation,
        **T5, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    ),
    "bart": _kind("BartForConditionalGeneration", "BartConfig", translation, **SEQ2SEQ),
    "marian": _kind("MarianMTModel", "MarianConfig", translation, **SEQ2SEQ),
    "pegasus": _kind("PegasusForConditionalGeneration", "PegasusConfig", translation, **SEQ2SEQ),
    # vision
    "vit": _kind("ViTForImageClassification", "ViTConfig", labelled_pictures(), **VISION),
    "deit": _kind("DeiTForImageClassificationWithTeacher", "DeiTConfig", pictures(), **VISION),
    "beit": _kind("BeitForImageClassification", "BeitConfig", labelled_pictures(), **VISION),
    "swin": _kind("SwinForImageClassification", "SwinConfig", labelled_pictures(), **WINDOWS),
    "swinv2": _kind(
        "Swinv2ForImageClassification", "Swinv2Config", labelled_pictures(), **WINDOWS,
    ),
    "convnext": _kind(
        "ConvNextForImageClassification", "ConvNextConfig", labelled_pictures(),
        hidden_sizes=[16, 32], depths=[1, 2], num_stages=2,
    ),
    "resnet-bottleneck": _kind(
        "ResNetForImageClassification", "ResNetConfig", labelled_pictures(64), embedding_size=16,
        hidden_sizes=[32, 64], depths=[1, 2],
    ),
    "regnet": _kind(
        "RegNetForImageClassification", "RegNetConfig", labelled_pictures(64), embedding_size=16,
        hidden_sizes=[16, 32], depths=[1, 1], groups_width=8,
    ),
    "mobilenet-v2": _kind(
        "MobileNetV2ForImageClassification", "MobileNetV2Config", labelled_pictures(64, 32),
        image_size=32, depth_multiplier=0.25,
    ),
    "mobilevit": _kind(
        "MobileViTForImageClassification", "MobileViTConfig", labelled_pictures(8, 128),
        image_size=128, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 24, 24, 32, 64],
        num_attention_heads=4, mlp_ratio=2.0,
    ),
    "poolformer": _kind(
        "PoolFormerForImageClassification", "PoolFormerConfig", labelled_pictures(8, 64),
        hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1],
    ),
    "focalnet": _kind(
        "FocalNetForImageClassification", "FocalNetConfig", labelled_pictures(), image_size=32,
        patch_size=2, embed_dim=16, depths=[1, 1], hidden_sizes=[16, 32], focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "segformer": _kind(
        "SegformerForSemanticSegmentation", "SegformerConfig",
        lambda: {"pixel_values": images(8, 64), "labels": torch.randint(0, 2, (8, 64, 64))},
        **PYRAMID, decoder_hidden_size=32,
    ),
    # sound
    "wav2vec2": _kind("Wav2Vec2ForCTC", "Wav2Vec2Config", transcribed, **SPEECH),
    "hubert": _kind("HubertForSequenceClassification", "HubertConfig", sound, **SPEECH),
    "wavlm": _kind("WavLMForSequenceClassification", "WavLMConfig", sound, **SPEECH),
    "whisper": _kind(
        "WhisperForConditionalGeneration", "WhisperConfig",
        lambda: {"input_features": torch.randn(16, 16, 40), "labels": tokens(16)}, **SEQ2SEQ,
        num_mel_bins=16, max_source_positions=20, max_target_positions=32,
    ),
    "spectrogram-transformer": _kind(
        "ASTForAudioClassification", "ASTConfig",
        lambda: {"input_values": torch.randn(16, 32, 16), "labels": labels(16, 2)},
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        patch_size=8, frequency_stride=8, time_stride=8, max_length=32, num_mel_bins=16,
    ),
    # several kinds of input
    "clip": _kind(
        "CLIPModel", "CLIPConfig", captioned, text_config=TEXT, vision_config=VISION,
        projection_dim=32,
    ),
    "siglip": _kind(
        "SiglipModel", "SiglipConfig", captioned, text_config=TEXT | {"projection_size": 32},
        vision_config=VISION,
    ),
    "vilt": _kind(
        "ViltForQuestionAnswering", "ViltConfig",
        questions, **TEXT | VISION,
    ),
    "blip": _kind(
        "BlipForConditionalGeneration", "BlipConfig",
        lambda: plain_text(16) | {"labels": tokens(16), "pixel_values": images(16)},
        text_config=TEXT | {"encoder_hidden_size": 32}, vision_config=VISION,
    ),
    "git": _kind(
        "GitForCausalLM", "GitConfig",
        lambda: plain_text(16) | {"labels": tokens(16), "pixel_values": images(16)}, **TEXT,
        vision_config=VISION,
    ),
    # numbers over time
    "patchtst": _kind(
        "PatchTSTForPrediction", "PatchTSTConfig",
        lambda: {"past_values": torch.randn(16, 32, 3), "future_values": torch.randn(16, 8, 3)},
        num_input_channels=3, context_length=32, prediction_length=8, patch_length=8,
        patch_stride=8, d_model=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
    ),
}
# fmt: on


def _detr() -> Specimen:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=6, num_labels=3,
    )  # fmt: skip
    return Specimen(transformers.DetrForObjectDetection(config), {"pixel_values": images(4, 64)})


# fmt: off
LEFTOVERS |= {
    # A pooler that the head for masked tokens does not use; a head for contacts.
    "layoutlm": _kind("LayoutLMForMaskedLM", "LayoutLMConfig", masked_text, **TEXT),
    "esm": _kind(
        "EsmForMaskedLM", "EsmConfig", masked_text, **TEXT | {"position_embedding_type": "rotary"},
        mask_token_id=4,
    ),
    # A mask token that only pre-training uses.
    "dinov2": _kind(
        "Dinov2ForImageClassification", "Dinov2Config", labelled_pictures(), **VISION,
    ),
    # Relative segments and masked queries that need inputs of their own.
    "xlnet": _kind(
        "XLNetForSequenceClassification", "XLNetConfig", labelled_text, vocab_size=VOCABULARY,
        d_model=32, n_layer=2, n_head=4, d_inner=64,
    ),
    # Projections for tokens with global attention, of which there are none.
    "longformer": _kind(
        "LongformerForMaskedLM", "LongformerConfig", masked_text, **TEXT, attention_window=4,
    ),
    # The first self-attention of the decoder sees only zeros (Carion et al. 2020 say so).
    "detr": _detr,
}
# fmt: on
