"""Healthy networks trained on real data: each learns what it was built for, and shows it.

``TRAINED`` lists them; ``train(recipe, seed)`` takes a few seconds on one core. The data come with
scikit-learn and Python: handwritten digits, three tables, the text of Python's documentation.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from calibration.cases import Subject
from nndiag.demo import digits, one_thread

LOOKED_AT = 256
"""Training examples that a trained network is judged on."""


# -- what is learned -------------------------------------------------------------------------------


class Data(NamedTuple):
    """Inputs and targets: what is trained on, and what is kept back."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Task:
    """What is learned. ``score`` holds outputs against targets, 1 being perfect.

    ``beside`` says how well something simple does, so that a bar can be judged.
    """

    name: str
    data: Callable[[], Data]
    loss: Callable[[Any, Tensor], Tensor]
    metric: str
    score: Callable[[Any, Tensor], float]
    beside: str


def accuracy(output: Tensor, target: Tensor) -> float:
    return (output.argmax(1) == target).double().mean().item()


def explained(output: Tensor, target: Tensor) -> float:
    """R²: the share of the targets' variance that is accounted for."""
    left = (output - target).square().sum()
    return 1 - (left / (target - target.mean(0)).square().sum()).item()


@functools.cache
def images() -> Data:
    """Scikit-learn's 1797 handwritten digits, 1×8×8, standardised."""
    return Data(*_in_order(digits()))


def _in_order(data: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return data.images, data.labels, data.test_images, data.test_labels


@functools.cache
def rebuilt() -> Data:
    """The digits again, flat, to be given back as they are."""
    x, _, test_x, _ = images()
    x, test_x = x.flatten(1), test_x.flatten(1)
    return Data(x, x, test_x, test_x)


@functools.cache
def denoised() -> Data:
    """The digits, to be given back without the noise that was added."""
    x, _, test_x, _ = images()
    noise = torch.Generator().manual_seed(0)
    noisy, test_noisy = (t + 0.5 * torch.randn(t.shape, generator=noise) for t in (x, test_x))
    return Data(noisy, x, test_noisy, test_x)


@functools.cache
def table(name: str) -> Data:
    """One of scikit-learn's tables: "wine", "breast_cancer", "diabetes"; columns standardised."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    regression = name == "diabetes"
    parts = train_test_split(
        x, y, test_size=0.25, random_state=0, stratify=None if regression else y
    )
    train, test, y, test_y = (torch.tensor(part).float() for part in parts)
    mean, std = train.mean(0), train.std(0)
    if regression:
        y, test_y = ((t - y.mean()) / y.std() for t in (y[:, None], test_y[:, None]))
    else:
        y, test_y = y.long(), test_y.long()
    return Data((train - mean) / std, y, (test - mean) / std, test_y)


LENGTH = 16
LETTERS = " abcdefghijklmnopqrstuvwxyz.,"


@functools.cache
def text(length: int = LENGTH) -> Data:
    """Python's own documentation in small letters: each next letter from those before it."""
    from pydoc_data.topics import topics

    words = " ".join(topics[name] for name in sorted(topics)).lower().split()
    kept = [letter for letter in " ".join(words) if letter in LETTERS][:120_000]
    ids = torch.tensor([LETTERS.index(letter) for letter in kept])
    pieces = ids[: len(ids) // (length + 1) * (length + 1)].view(-1, length + 1)
    train, test = pieces[: len(pieces) * 9 // 10], pieces[len(pieces) * 9 // 10 :]
    return Data(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])


def _elbo(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    image, mean, logvar = output
    divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1).mean()
    return (image - target).square().sum(1).mean() + 0.5 * divergence


# fmt: off
DIGITS = Task(
    "handwritten digits", images, F.cross_entropy, "accuracy", accuracy,
    "logistic regression 0.97",
)
WINE = Task(
    "wines from chemistry", lambda: table("wine"), F.cross_entropy, "accuracy", accuracy,
    "logistic regression 1.00",
)
CANCER = Task(
    "breast cancer from cell nuclei", lambda: table("breast_cancer"), F.cross_entropy, "accuracy",
    accuracy, "logistic regression 0.958 (143 cases)",
)
DIABETES = Task(
    "diabetes after a year", lambda: table("diabetes"), F.mse_loss, "R²", explained,
    "ridge regression 0.358",
)
REBUILD = Task(
    "digits through 16 numbers", rebuilt, F.mse_loss, "R²", explained,
    "16 principal components 0.844",
)
GENERATE = Task(
    "digits through 12 noisy numbers", rebuilt, _elbo, "R²",
    lambda output, target: explained(output[0], target),
    "12 principal components without noise 0.781",
)
DENOISE = Task(
    "digits without the noise added", denoised, F.mse_loss, "R²", explained,
    "ridge regression 0.810",
)
TEXT = Task(
    "the next letter", text, F.cross_entropy, "accuracy", accuracy,
    "a table by the two letters before 0.388, by the last alone 0.251",
)
# fmt: on


# -- who learns it ---------------------------------------------------------------------------------


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    pairs = itertools.pairwise(sizes)
    layers = [part for a, b in pairs for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def initialised(
    model: nn.Module, weight: Callable[[Tensor], Any], biases: bool = True
) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            weight(module.weight)
            if module.bias is not None and biases:
                nn.init.zeros_(module.bias)
    return model


def he(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def lecun(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="linear")


def xavier(weight: Tensor) -> Tensor:
    return nn.init.xavier_uniform_(weight, nn.init.calculate_gain("tanh"))


def dropout_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10),
    )  # fmt: skip


def normalised_mlp(norm: Callable[[int], nn.Module], activation: Callable[[], nn.Module]) -> Any:
    layers: list[nn.Module] = [nn.Flatten()]
    for k in range(5):
        layers += [nn.Linear(96 if k else 64, 96), norm(96), activation()]
    return nn.Sequential(*layers, nn.Linear(96, 10))


def selu_net() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for k in range(6):
        layers += [nn.Linear(96 if k else 64, 96), nn.SELU(), nn.AlphaDropout(0.02)]
    return initialised(nn.Sequential(*layers, nn.Linear(96, 10)), lecun)


class ResidualTable(nn.Module):
    """Pre-norm residual blocks over a table's columns."""

    def __init__(self, columns: int, classes: int, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(columns, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(width), nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.2),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def cnn(activation: Callable[[], nn.Module], norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs), activation()] if norm else [activation()]
        if outputs == 32 and inputs == 16:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))


def lenet() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(8, 24, 3, padding=1),
        nn.Tanh(), nn.Flatten(), nn.Linear(24 * 16, 64), nn.Tanh(), nn.Linear(64, 10),
    )  # fmt: skip
    return initialised(model, xavier)


class GrayResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.blocks = nn.Sequential(
            zoo.ResidualBlock(16, 16, 1), zoo.ResidualBlock(16, 32, 2), zoo.ResidualBlock(32, 32, 1)
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class GroupNormBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def groupnorm_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, 1, 1), GroupNormBlock(24), nn.AvgPool2d(2), GroupNormBlock(24),
        nn.GroupNorm(4, 24), nn.SiLU(), nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip


def fixup_resnet() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), *[zoo.FixupBlock(16, 3) for _ in range(3)],
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 10),
    )  # fmt: skip
    nn.init.kaiming_normal_(model[0].weight)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 2, 2), *[zoo.ConvNeXtBlock(32, 0.1) for _ in range(2)],
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 10),
    )  # fmt: skip


class RowReader(nn.Module):
    """Reads an image row by row."""

    def __init__(self, kind: type[nn.RNNBase], width: int = 64, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, width, batch_first=True, **options)
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 10)
        for name, p in self.rnn.named_parameters():
            if isinstance(self.rnn, nn.LSTM) and name.startswith("bias_ih"):
                p.data[width : 2 * width] = 1.0  # the forget gate: Jozefowicz et al. 2015
            if type(self.rnn) is nn.RNN and name.startswith("weight_hh"):
                nn.init.orthogonal_(p)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x.squeeze(1))
        # The last output of a backward direction has seen one row only: its mean has seen them all.
        return self.head(out.mean(1) if self.rnn.bidirectional else out[:, -1])


class RowTransformer(nn.Module):
    """A small transformer encoder over rows: learned positions, the mean of all tokens."""

    def __init__(self, norm_first: bool, width: int = 48, dropout: float = 0.0) -> None:
        super().__init__()
        self.read = nn.Linear(8, width)
        self.position = nn.Parameter(0.5 * torch.randn(1, 8, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout, "gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x.squeeze(1)) + self.position
        return self.head(self.norm(self.encoder(x)).mean(1))


class PatchMixer(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.Sequential(zoo.MixerBlock(16, width), zoo.MixerBlock(16, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class PointNet(nn.Module):
    """A set of points, one a pixel: its place and its ink; the maximum knows no order.

    Normalised as published (Qi et al. 2017); without that, two fifths of the units behind the
    maximum are dead on every image, at initialisation and after training.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        axis = torch.linspace(-1.5, 1.5, 8)
        places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).view(2, 64)
        self.register_buffer("places", places)
        self.each = nn.Sequential(
            nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, width, 1)
        )
        self.norm = nn.BatchNorm1d(width)
        self.all = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        points = torch.cat([self.places.expand(len(x), -1, -1), x.flatten(2)], 1)
        return self.all(self.norm(self.each(points)).amax(2))


class Experts(nn.Module):
    """Soft mixture of four experts between two layers."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.router = nn.Linear(width, 4)
        self.experts = nn.ModuleList(mlp(width, 64, width, activation=nn.GELU) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x.flatten(1)))
        share = self.router(x).softmax(-1)
        mixed = sum(share[:, k, None] * e(x) for k, e in enumerate(self.experts))
        return self.head(self.norm(x + mixed))


class Variational(nn.Module):
    def __init__(self, code: int = 12) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 128)
        self.mean, self.logvar = nn.Linear(128, code), nn.Linear(128, code)
        self.decode = mlp(code, 128, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(self.encode(x))
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar) if self.training else mean
        return self.decode(z), mean, logvar


def autoencoder() -> nn.Module:
    """A code of 16 numbers, on which nothing bends."""
    return nn.Sequential(mlp(64, 128, 16, activation=nn.GELU), mlp(16, 128, 64, activation=nn.GELU))


def conv_autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 1, 3, 1, 1),
    )  # fmt: skip


class SmallUNet(nn.Module):
    def __init__(self, w: int = 12) -> None:
        super().__init__()
        self.down, self.middle = zoo.UNet.block(1, w), zoo.UNet.block(w, 2 * w)
        self.up = nn.ConvTranspose2d(2 * w, w, 2, 2)
        self.decode, self.head = zoo.UNet.block(2 * w, w), nn.Conv2d(w, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x)
        x = self.up(self.middle(F.max_pool2d(a, 2)))
        return self.head(self.decode(torch.cat([x, a], 1)))


class LetterLSTM(nn.Module):
    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(LETTERS), 32)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(ids))[0]).transpose(1, 2)


class LetterConvolution(nn.Module):
    """Causal dilated convolutions with skips."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(LETTERS), width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**k) for k in range(4))
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        for conv in self.convs:
            x = x + F.relu(conv(F.pad(x, (2 * conv.dilation[0], 0))))
        return self.head(x.transpose(1, 2)).transpose(1, 2)


class LetterGPT(nn.Module):
    """The teaching GPT over letters: std 0.02, residual projections scaled down, tied head."""

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(len(LETTERS), width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(zoo.CausalBlock(width, 4) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(LETTERS), bias=False)
        self.head.weight = self.token.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scaled = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * depth) if scaled else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


class LetterGPT2(nn.Module):
    """GPT-2 of transformers, over letters."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        config = transformers.GPT2Config(
            vocab_size=len(LETTERS), n_embd=64, n_layer=2, n_head=4, n_positions=LENGTH,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.05, embd_pdrop=0.05, attn_pdrop=0.05,
        )  # fmt: skip
        self.gpt = transformers.GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.gpt(ids).logits.transpose(1, 2)


# -- how it learns ---------------------------------------------------------------------------------


Parameters = Iterable[nn.Parameter]


def sgd(lr: float, momentum: float = 0.9, decay: float = 0.0) -> Any:
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum, weight_decay=decay)


def adam(lr: float = 1e-3) -> Any:
    return lambda p: torch.optim.Adam(p, lr=lr)


def adamw(lr: float = 2e-3, decay: float = 0.01) -> Any:
    return lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=decay)


@dataclass(frozen=True)
class Recipe:
    """A network, what it learns and how, and the score it must reach to be called healthy."""

    name: str
    family: str
    norm: str
    task: Task
    bar: float
    build: Callable[[], nn.Module]
    optimizer: Callable[[Parameters], torch.optim.Optimizer]
    steps: int = 400


RELU, GELU, TANH, SILU, SIGMOID = nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid

TRAINED = [
    Recipe(
        "digits-mlp-relu",
        "mlp",
        "none",
        DIGITS,
        0.95,
        lambda: initialised(mlp(64, 128, 128, 10), he),
        sgd(0.05),
    ),
    Recipe(
        "digits-mlp-relu-default-adam",
        "mlp",
        "none",
        DIGITS,
        0.95,
        lambda: mlp(64, 128, 128, 10),
        adam(),
    ),
    Recipe(
        "digits-mlp-tanh",
        "mlp",
        "none",
        DIGITS,
        0.95,
        lambda: initialised(mlp(64, 128, 128, 128, 10, activation=TANH), xavier),
        sgd(0.02),
    ),
    Recipe(
        "digits-mlp-gelu",
        "mlp",
        "none",
        DIGITS,
        0.95,
        lambda: mlp(64, 128, 128, 10, activation=GELU),
        adamw(),
    ),
    Recipe(
        "digits-mlp-silu-4",
        "mlp",
        "none",
        DIGITS,
        0.95,
        lambda: mlp(64, 96, 96, 96, 96, 10, activation=SILU),
        adamw(),
    ),
    Recipe(
        "digits-mlp-sigmoid-1",
        "mlp",
        "none",
        DIGITS,
        0.95,
        lambda: mlp(64, 128, 10, activation=SIGMOID),
        sgd(0.3),
    ),
    Recipe("digits-mlp-dropout", "mlp", "none", DIGITS, 0.95, dropout_mlp, adam()),
    Recipe(
        "digits-mlp-batchnorm",
        "mlp",
        "inside",
        DIGITS,
        0.95,
        lambda: normalised_mlp(nn.BatchNorm1d, RELU),
        sgd(0.05, decay=1e-4),
    ),
    Recipe(
        "digits-mlp-layernorm",
        "mlp",
        "inside",
        DIGITS,
        0.95,
        lambda: normalised_mlp(nn.LayerNorm, GELU),
        adamw(),
    ),
    Recipe("digits-selu", "mlp", "none", DIGITS, 0.95, selu_net, sgd(0.02)),
    Recipe(
        "digits-logistic", "mlp", "none", DIGITS, 0.95, lambda: mlp(64, 10), sgd(0.1, decay=1e-3)
    ),
    Recipe("digits-cnn-relu", "cnn", "none", DIGITS, 0.97, lambda: cnn(RELU), adam()),
    Recipe(
        "digits-cnn-batchnorm",
        "cnn",
        "inside",
        DIGITS,
        0.97,
        lambda: cnn(RELU, norm=True),
        sgd(0.05, decay=1e-4),
        300,
    ),
    Recipe("digits-lenet-tanh", "cnn", "none", DIGITS, 0.97, lenet, sgd(0.05)),
    Recipe(
        "digits-resnet", "residual", "inside", DIGITS, 0.97, GrayResNet, sgd(0.1, decay=1e-4), 300
    ),
    Recipe(
        "digits-resnet-groupnorm", "residual", "pre", DIGITS, 0.97, groupnorm_resnet, adamw(), 300
    ),
    Recipe("digits-resnet-fixup", "residual", "none", DIGITS, 0.97, fixup_resnet, sgd(0.05), 400),
    Recipe("digits-convnext", "convnext, mixer", "pre", DIGITS, 0.95, convnext, adamw(), 400),
    Recipe("digits-mixer", "convnext, mixer", "pre", DIGITS, 0.95, PatchMixer, adamw(), 400),
    Recipe(
        "digits-lstm", "recurrent", "none", DIGITS, 0.95, lambda: RowReader(nn.LSTM), adam(5e-3)
    ),
    Recipe("digits-gru", "recurrent", "none", DIGITS, 0.95, lambda: RowReader(nn.GRU), adam(5e-3)),
    Recipe(
        "digits-rnn-tanh", "recurrent", "none", DIGITS, 0.95, lambda: RowReader(nn.RNN), adam(2e-3)
    ),
    Recipe(
        "digits-lstm-bidirectional",
        "recurrent",
        "none",
        DIGITS,
        0.95,
        lambda: RowReader(nn.LSTM, 48, bidirectional=True),
        adamw(5e-3),
        500,
    ),
    Recipe(
        "digits-encoder-prenorm",
        "transformer encoder",
        "pre",
        DIGITS,
        0.95,
        lambda: RowTransformer(norm_first=True),
        adamw(),
    ),
    Recipe(
        "digits-encoder-postnorm",
        "transformer encoder",
        "post",
        DIGITS,
        0.95,
        lambda: RowTransformer(norm_first=False, dropout=0.05),
        adam(2e-3),
    ),
    Recipe("digits-pointnet", "set", "inside", DIGITS, 0.90, PointNet, adam(5e-3), 600),
    Recipe("digits-experts", "mixture of experts", "post", DIGITS, 0.95, Experts, adamw()),
    Recipe(
        "digits-autoencoder", "autoencoder", "none", REBUILD, 0.84, autoencoder, adam(2e-3), 800
    ),
    Recipe("digits-vae", "autoencoder", "none", GENERATE, 0.75, Variational, adam(2e-3), 600),
    Recipe(
        "digits-conv-denoiser",
        "autoencoder",
        "none",
        DENOISE,
        0.82,
        conv_autoencoder,
        adam(2e-3),
        500,
    ),
    Recipe("digits-unet-denoiser", "u-net", "inside", DENOISE, 0.82, SmallUNet, adam(2e-3), 300),
    Recipe(
        "wine-mlp-tanh",
        "mlp",
        "none",
        WINE,
        0.95,
        lambda: mlp(13, 32, 32, 3, activation=TANH),
        sgd(0.05, decay=1e-3),
        300,
    ),
    Recipe(
        "cancer-mlp-relu",
        "mlp",
        "none",
        CANCER,
        0.94,
        lambda: mlp(30, 64, 64, 2),
        sgd(0.02, decay=1e-3),
        300,
    ),
    Recipe(
        "cancer-residual",
        "residual",
        "pre",
        CANCER,
        0.94,
        lambda: ResidualTable(30, 2),
        adamw(1e-3, 0.1),
        200,
    ),
    Recipe(
        "diabetes-mlp-relu",
        "mlp",
        "none",
        DIABETES,
        0.35,
        lambda: mlp(10, 32, 32, 1),
        sgd(0.01, decay=0.1),
        200,
    ),
    Recipe("text-lstm", "recurrent", "none", TEXT, 0.39, LetterLSTM, adam(5e-3), 400),
    Recipe("text-convolution", "residual", "none", TEXT, 0.39, LetterConvolution, adam(5e-3), 400),
    Recipe(
        "text-gpt",
        "transformer decoder",
        "pre",
        TEXT,
        0.39,
        lambda: LetterGPT(48),
        adamw(4e-3),
        600,
    ),
    Recipe("text-gpt2", "transformer decoder", "pre", TEXT, 0.39, LetterGPT2, adamw(3e-3), 500),
]


def train(recipe: Recipe, seed: int) -> Subject:
    """The trained network with training examples to judge it on: the same for each seed.

    Batches of 64; the learning rate rises over a tenth of the steps and falls to zero as a cosine.
    """
    data = recipe.task.data()
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = recipe.build()
        optimizer = recipe.optimizer(model.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _pace(step / recipe.steps)
        )
        for _ in range(recipe.steps):
            chosen = torch.randint(len(data.x), (64,))
            loss = recipe.task.loss(model(data.x[chosen]), data.y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()
    return Subject(model, data.x[:LOOKED_AT], data.y[:LOOKED_AT], recipe.task.loss)


def _pace(done: float) -> float:
    return min(10 * done + 0.01, (1 + math.cos(math.pi * done)) / 2)


def score(recipe: Recipe, model: nn.Module) -> float:
    """How well the network does on what it has not seen."""
    data = recipe.task.data()
    before = model.training
    model.eval()
    with torch.no_grad():
        result = recipe.task.score(model(data.test_x), data.test_y)
    model.train(before)
    return result
