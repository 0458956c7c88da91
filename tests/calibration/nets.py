"""Seven small architectures, each as modules and as functions, healthy until somebody hurts them.

Both forms of one have the same parameters under the same names, so one trained state serves both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

from calibration.cases import Subject

MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "elu": F.elu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
}


# -- data ----------------------------------------------------------------------------------------


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 handwritten digits of 8x8 pixels, from 0 to 1, shuffled."""
    x, y = datasets.load_digits(return_X_y=True)
    return _shuffled(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))


@functools.cache
def table(name: str) -> tuple[Tensor, Tensor]:
    """Wine (178 x 13) or breast cancer (569 x 30), each feature standardised."""
    x, y = {"wine": datasets.load_wine, "cancer": datasets.load_breast_cancer}[name](
        return_X_y=True
    )
    t = torch.tensor(x, dtype=torch.float32)
    return _shuffled((t - t.mean(0)) / t.std(0), torch.tensor(y))


def _shuffled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], y[order]


def pixels() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return (x - x.mean()) / x.std(), y


def images() -> tuple[Tensor, Tensor]:
    x, y = pixels()
    return x.view(-1, 1, 8, 8), y


def rows() -> tuple[Tensor, Tensor]:
    x, y = pixels()
    return x.view(-1, 8, 8), y


def tokens() -> tuple[Tensor, Tensor]:
    """Each digit as 32 tokens of two black or white pixels; the target is the next token."""
    x, _ = digits()
    bits = (x > 0.5).long().view(-1, 32, 2)
    sequence = bits[..., 0] * 2 + bits[..., 1]
    start = torch.full_like(sequence[:, :1], 4)
    return torch.cat([start, sequence[:, :-1]], 1), sequence


def copies() -> tuple[Tensor, Tensor]:
    x, _ = digits()
    return x, x


def each_token(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


# -- architectures -------------------------------------------------------------------------------


def he(layer: Any) -> Any:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def xavier(layer: Any) -> Any:
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Net(nn.Module):
    """Weight layers in a row: ``places``; ``before[k]`` is done to what the k-th of them reads."""

    places: list[str]

    def __init__(self, act: str, functional: bool) -> None:
        super().__init__()
        self.activation, self.functional = act, functional
        self.before: dict[int, Callable[[Tensor], Tensor]] = {}

    def into(self, k: int, x: Tensor) -> Tensor:
        return self.before[k](x) if k in self.before else x

    def make(self, count: int) -> nn.ModuleList | None:
        """Activations as modules, or none of them in the functional form."""
        return None if self.functional else nn.ModuleList(self.one() for _ in range(count))

    def one(self) -> nn.Module:
        return MODULES[self.activation]()

    def bend(self, acts: nn.ModuleList | None, k: int, z: Tensor) -> Tensor:
        return FUNCTIONS[self.activation](z) if acts is None else acts[k](z)

    def where(self, k: int) -> frozenset[str]:
        """Names that are the right place for a fault of the k-th weight layer."""
        name = self.places[k]
        return frozenset({name, f"{name}.weight", f"{name}.bias", *self.after(k)})

    def after(self, k: int) -> set[str]:
        """The names of the activation behind the k-th weight layer."""
        raise NotImplementedError


class MLP(Net):
    def __init__(
        self,
        act: str = "relu",
        functional: bool = False,
        *,
        depth: int = 8,
        width: int = 64,
        inputs: int = 64,
        classes: int = 10,
        norm: bool = False,
        init: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(act, functional)
        init = init or (he if act in ("relu", "gelu", "elu", "leaky_relu") else xavier)
        self.layers = nn.ModuleList(
            init(nn.Linear(width if k else inputs, width)) for k in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(depth)) if norm else None
        self.acts = self.make(depth)
        self.head = xavier(nn.Linear(width, classes))
        self.places = [*(f"layers.{k}" for k in range(depth)), "head"]

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            z = layer(self.into(k, x))
            x = self.bend(self.acts, k, z if self.norms is None else self.norms[k](z))
        return self.head(self.into(len(self.layers), x))

    def after(self, k: int) -> set[str]:
        if self.functional:
            return {f"/{self.activation}" + (f"#{k + 1}" if k else "")}
        return {f"acts.{k}"}


class CNN(Net):
    def __init__(
        self,
        act: str = "relu",
        functional: bool = False,
        *,
        depth: int = 6,
        width: int = 32,
        norm: bool = False,
        init: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(act, functional)
        init = init or (xavier if act in ("tanh", "sigmoid") else he)
        self.convs = nn.ModuleList(
            init(nn.Conv2d(width if k else 1, width, 3, padding=1)) for k in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth)) if norm else None
        self.acts = self.make(depth)
        self.pool = None if functional else nn.MaxPool2d(2)
        self.head = xavier(nn.Linear(width, 10))
        self.places = [*(f"convs.{k}" for k in range(depth)), "head"]

    def forward(self, x: Tensor) -> Tensor:
        for k, conv in enumerate(self.convs):
            z = conv(self.into(k, x))
            x = self.bend(self.acts, k, z if self.norms is None else self.norms[k](z))
            if k == 1:
                x = F.max_pool2d(x, 2) if self.pool is None else self.pool(x)
        return self.head(self.into(len(self.convs), x.mean((2, 3))))

    after = MLP.after


class Block(Net):
    """x + down(act(up(norm(x))))"""

    def __init__(self, width: int, act: str, functional: bool) -> None:
        super().__init__(act, functional)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = he(nn.Linear(width, 2 * width)), xavier(nn.Linear(2 * width, width))
        self.act = self.make(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bend(self.act, 0, self.up(self.into(0, self.norm(x))))
        return x + self.down(self.into(1, h))


class Residual(Net):
    """Places: the stem, then up and down of each block, then the head."""

    def __init__(
        self, act: str = "relu", functional: bool = False, *, depth: int = 4, width: int = 48
    ) -> None:
        super().__init__(act, functional)
        self.stem = xavier(nn.Linear(64, width))
        self.blocks = nn.ModuleList(Block(width, act, functional) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), xavier(nn.Linear(width, 10))
        pairs = (f"blocks.{k}.{part}" for k in range(depth) for part in ("up", "down"))
        self.places = ["stem", *pairs, "head"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.into(0, x))
        for k, block in enumerate(self.blocks):
            x = block(self.into(2 * k + 1, x))
        return self.head(self.into(2 * len(self.blocks) + 1, self.norm(x)))

    def after(self, k: int) -> set[str]:
        block, _, part = self.places[k].rpartition(".")
        if part != "up":
            return set()
        return {f"{block}/{self.activation}" if self.functional else f"{block}.act.0"}


class Cell(nn.Module):
    """An LSTM written out, on the parameters of an nn.LSTM."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(inputs, 4 * width), nn.Linear(width, 4 * width)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class LSTM(Net):
    """Places: what goes into the gates, a hidden layer, the head."""

    def __init__(self, act: str = "relu", functional: bool = False, *, width: int = 32) -> None:
        super().__init__(act, functional)
        self.width = width
        self.cell: Cell | None = None
        self.lstm: nn.LSTM | None = None
        if functional:
            self.cell = Cell(8, width)
        else:
            self.lstm = nn.LSTM(8, width, batch_first=True)
        self.fc, self.head = he(nn.Linear(width, width)), xavier(nn.Linear(width, 10))
        self.acts = self.make(1)
        self.places = ["cell.x" if functional else "lstm", "fc", "head"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(0, x)
        if self.lstm is not None:
            last = self.lstm(x)[0][:, -1]
        else:
            assert self.cell is not None
            last = c = x.new_zeros(len(x), self.width)
            for step in x.unbind(1):
                last, c = self.cell(step, last, c)
        h = self.bend(self.acts, 0, self.fc(self.into(1, last)))
        return self.head(self.into(2, h))

    def after(self, k: int) -> set[str]:
        if k == 1:
            return {f"/{self.activation}" if self.functional else "acts.0"}
        if k == 2:
            return set()
        inside = {f"cell/tanh{n}" for n in ("", "#2")} | {f"cell/sigmoid{n}" for n in ("", "#2")}
        return inside | {"cell", "cell.h"} if self.functional else {"lstm"}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(Net):
    """One pre-norm transformer layer, written out."""

    def __init__(self, width: int, heads: int, act: str, causal: bool) -> None:
        super().__init__(act, True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = Attention(width, heads, causal)
        self.linear1, self.linear2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        h = self.bend(None, 0, self.linear1(self.into(0, self.norm2(x))))
        return x + self.linear2(self.into(1, h))


class Transformer(Net):
    """Places: the stem, then queries-keys-values, up and down of each layer, then the head."""

    def __init__(
        self,
        act: str = "relu",
        functional: bool = False,
        *,
        causal: bool = False,
        depth: int = 3,
        width: int = 32,
    ) -> None:
        super().__init__(act, functional)
        self.causal, self.width = causal, width
        self.stem = nn.Embedding(5, width) if causal else nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(32 if causal else 8, width))
        self.layers = nn.ModuleList(
            Layer(width, 4, act, causal)
            if functional
            else nn.TransformerEncoderLayer(
                width, 4, 2 * width, 0.0, FUNCTIONS[act], batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), xavier(nn.Linear(width, 4 if causal else 10))
        queries = "self_attn.qkv" if functional else "self_attn"
        inner = (
            f"layers.{k}.{part}" for k in range(depth) for part in (queries, "linear1", "linear2")
        )
        self.places = ["stem", *inner, "head"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(0, self.stem(x) + self.position)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        for k, layer in enumerate(self.layers):
            x = self.into(3 * k + 1, x)
            x = layer(x) if self.functional else layer(x, src_mask=mask, is_causal=self.causal)
        x = self.norm(x)
        x = x if self.causal else x.mean(1)
        return self.head(self.into(len(self.places) - 1, x))

    def after(self, k: int) -> set[str]:
        layer, _, part = self.places[k].rpartition(".")
        if part == "qkv":
            attention = f"{layer}"
            return {attention, f"{attention}/softmax"}
        if part == "self_attn":
            matrices = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj")
            return {f"{layer}.self_attn.{name}" for name in matrices}
        return {f"{layer}/{self.activation}"} if part == "linear1" else set()


class Autoencoder(Net):
    """64-64-16-64-64: places 0 and 1 encode, 2 and 3 decode; ends in a sigmoid."""

    def __init__(self, act: str = "relu", functional: bool = False, *, norm: bool = False) -> None:
        super().__init__(act, functional)
        init = xavier if act in ("tanh", "sigmoid") else he
        widths = (64, 64, 16, 64, 64)
        self.layers = nn.ModuleList(
            (init if k in (0, 2) else xavier)(nn.Linear(widths[k], widths[k + 1])) for k in range(4)
        )
        self.norms = nn.ModuleList([nn.BatchNorm1d(64), nn.BatchNorm1d(64)]) if norm else None
        self.acts = self.make(2)
        self.end = None if functional else nn.Sigmoid()
        self.places = [f"layers.{k}" for k in range(4)]

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = layer(self.into(k, x))
            if k in (0, 2):
                x = x if self.norms is None else self.norms[k // 2](x)
                x = self.bend(self.acts, k // 2, x)
        return torch.sigmoid(x) if self.end is None else self.end(x)

    def after(self, k: int) -> set[str]:
        if k not in (0, 2):
            return set()
        if self.functional:
            return {f"/{self.activation}" + ("#2" if k else "")}
        return {f"acts.{k // 2}"}


# -- subjects ------------------------------------------------------------------------------------

ARCHITECTURES: dict[str, Callable[..., Net]] = {
    "mlp": MLP,
    "cnn": CNN,
    "residual": Residual,
    "lstm": LSTM,
    "encoder": Transformer,
    "decoder": functools.partial(Transformer, causal=True),
    "autoencoder": Autoencoder,
}
DATA: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "mlp": pixels,
    "cnn": images,
    "residual": pixels,
    "lstm": rows,
    "encoder": rows,
    "decoder": tokens,
    "autoencoder": copies,
}
LOSSES: dict[str, Callable[..., Tensor]] = {"decoder": each_token, "autoencoder": F.mse_loss}
SAMPLES = 256  # in a check


def data(architecture: str, source: str = "digits") -> tuple[Tensor, Tensor]:
    return DATA[architecture]() if source == "digits" else table(source)


def shape_of(source: str) -> dict[str, int]:
    return {
        "digits": {},
        "wine": {"inputs": 13, "classes": 3},
        "cancer": {"inputs": 30, "classes": 2},
    }[source]


def net(
    architecture: str,
    form: str = "module",
    state: str = "init",
    *,
    act: str = "relu",
    source: str = "digits",
    seed: int = 0,
    **options: Any,
) -> Net:
    """A healthy network: as initialised, or trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture](
            act, form == "functional", **shape_of(source), **options
        )
    if state == "trained":
        key = tuple(sorted(options.items()))
        apart = form if architecture in ("lstm", "encoder", "decoder") else "module"
        model.load_state_dict(_trained(architecture, apart, act, source, seed, key))
    return model


def subject(
    model: Net, architecture: str, source: str = "digits", samples: int = SAMPLES
) -> Subject:
    x, y = data(architecture, source)
    loss = LOSSES.get(architecture, F.cross_entropy)
    return Subject(model, x[:samples], y[:samples], loss)


@functools.cache
def _trained(
    architecture: str, form: str, act: str, source: str, seed: int, options: tuple[Any, ...]
) -> dict[str, Tensor]:
    model = net(architecture, form, act=act, source=source, seed=seed, **dict(options))
    train(model, architecture, source)
    return {name: t.clone() for name, t in model.state_dict().items()}


EPOCHS = {"mlp": 15, "cnn": 8, "residual": 12, "lstm": 20, "encoder": 12, "decoder": 5,
          "autoencoder": 25}  # fmt: skip


def train(
    model: Net,
    architecture: str,
    source: str = "digits",
    *,
    epochs: int | None = None,
    optimiser: torch.optim.Optimizer | None = None,
) -> None:
    """Adam on nine tenths of the data; small tables get more epochs."""
    x, y = data(architecture, source)
    x, y = x[: len(x) * 9 // 10], y[: len(y) * 9 // 10]
    loss_fn = LOSSES.get(architecture, F.cross_entropy)
    if epochs is None:
        epochs = EPOCHS[architecture] if source == "digits" else 60
    opt = optimiser or torch.optim.Adam(model.parameters(), 2e-3)
    order = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=order).split(64):
            opt.zero_grad()
            loss_fn(model(x[part]), y[part]).backward()
            opt.step()
    opt.zero_grad(set_to_none=True)


def score(model: Net, architecture: str, source: str = "digits") -> float:
    """Accuracy on the tenth that was held out; for the autoencoder the share of variance kept."""
    x, y = data(architecture, source)
    start = len(x) * 9 // 10
    x, y = x[start:], y[start:]
    mode = model.training
    with torch.no_grad():
        output = model.eval()(x)
    model.train(mode)
    if architecture == "autoencoder":
        return float(1 - F.mse_loss(output, y) / (y - y.mean(0)).square().mean())
    return float((output.argmax(-1) == y).float().mean())
