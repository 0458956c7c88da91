"""One tiny model for each awkwardness that a tool which watches models has to bear.

``AWKWARD`` maps a name to a recipe without arguments: a model, a batch, and a loss where the batch
holds a target. ``make(name)`` draws both from a seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

N, FEATURES, CLASSES = 12, 6, 3


class Case(NamedTuple):
    """What ``nndiag.check`` takes."""

    model: nn.Module
    batch: Any
    loss_fn: Callable[..., torch.Tensor] | None = None


AWKWARD: dict[str, Callable[[], Case]] = {}


def awkward(recipe: Callable[[], Case]) -> Callable[[], Case]:
    AWKWARD[recipe.__name__.replace("_", "-")] = recipe
    return recipe


def make(name: str, seed: int = 0) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AWKWARD[name]()


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (N, FEATURES)))


def labelled(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return features(*shape), torch.randint(0, CLASSES, (N,))


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 8), *between, nn.Linear(8, CLASSES))


# -- how a layer is called --------------------------------------------------------------------


class CalledTwice(nn.Module):
    """One activation for both hidden layers: their statistics must not mix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, 8)
        self.head, self.act = nn.Linear(8, CLASSES), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.second(self.act(self.first(x)))))


@awkward
def called_twice() -> Case:
    return Case(CalledTwice(), labelled(), F.cross_entropy)


class Functional(nn.Module):
    """Activations as functions, methods and operators."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        x = torch.sigmoid(self.b(x))
        x = self.c(x).tanh()
        return self.d(x).clamp(min=0)


@awkward
def functional() -> Case:
    return Case(Functional(), features())


class InPlace(nn.Module):
    """Each layer's output is overwritten by what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.a(x))
        x = self.b(x)
        x += 0.5
        x = F.dropout(F.hardtanh(x, -0.2, 0.7, inplace=True), 0.5, self.training, inplace=True)
        return self.head(x)


@awkward
def in_place() -> Case:
    return Case(InPlace(), labelled(), F.cross_entropy)


class NeverCalled(nn.Module):
    """A head that this forward leaves out, and one that is called by its ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.auxiliary = nn.Sequential(nn.Linear(8, 2), nn.ReLU())
        self.direct = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.direct.forward(self.body(x))))


@awkward
def never_called() -> Case:
    return Case(NeverCalled(), labelled(), F.cross_entropy)


class KeywordsOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, CLASSES)

    def forward(self, *, values: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return self.body(values) * scale


@awkward
def keywords_only() -> Case:
    return Case(KeywordsOnly(), {"values": features()})


class Unregistered(nn.Module):
    """A layer in a plain list, and one made anew in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.hidden = nn.Linear(FEATURES, 8), [nn.Tanh()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.ReLU()(self.hidden[0](self.body(x)))


@awkward
def unregistered() -> Case:
    return Case(Unregistered(), features())


class Recurses(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor, times: int = 3) -> torch.Tensor:
        x = torch.tanh(self.step(x))
        return x if times == 1 else self(x, times - 1)


@awkward
def recursive() -> Case:
    return Case(Recurses(), features())


class SharedByTwo(nn.Module):
    """One module under two names: the first one counts."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(FEATURES, FEATURES)
        self.left = nn.Sequential(shared, nn.ReLU())
        self.right = nn.Sequential(shared, nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) + self.right(x)


@awkward
def shared_by_two() -> Case:
    return Case(SharedByTwo(), features())


# -- what goes in and comes out ---------------------------------------------------------------


@dataclass
class Answer:
    logits: torch.Tensor
    extra: Any = None


class Answers(nn.Module):
    """Hands its output out as whatever ``wrap`` makes of it; so does its inner layer."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any], read: Callable[[Any], torch.Tensor]):
        super().__init__()
        self.inner, self.head = Wrapping(wrap), nn.Linear(8, CLASSES)
        self.wrap, self.read = wrap, read

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.head(self.read(self.inner(x))))


class Wrapping(nn.Module):
    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, FEATURES) / 3)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(F.relu(F.linear(x, self.weight)))


class Plain:
    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


@awkward
def tuple_output() -> Case:
    return Case(Answers(lambda x: (x, None, x * 2), lambda out: out[0]), features())


@awkward
def dict_output() -> Case:
    return Case(Answers(lambda x: {"none": None, "x": x}, lambda out: out["x"]), features())


@awkward
def dataclass_output() -> Case:
    return Case(Answers(Answer, lambda out: out.logits), features())


@awkward
def object_output() -> Case:
    return Case(Answers(Plain, lambda out: out.value), features())


class Distribution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(FEATURES, 2)

    def forward(self, x: torch.Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.mean(x), 1.0, validate_args=False)


@awkward
def distribution_output() -> Case:
    return Case(Distribution(), features())


class ReturnsNone(nn.Module):
    """Has a layer that only looks on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.watcher = nn.Linear(FEATURES, CLASSES), Silent()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        self.watcher(x)
        return x


class Silent(nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        return None


@awkward
def none_output() -> Case:
    return Case(ReturnsNone(), features())


class Tokens(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8, **options)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).mean(1))


def ids() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 20, (N, 5)), torch.randint(0, CLASSES, (N,))


@awkward
def integer_input() -> Case:
    return Case(Tokens(), ids(), F.cross_entropy)


@awkward
def sparse_gradient() -> Case:
    return Case(Tokens(sparse=True), ids(), F.cross_entropy)


@awkward
def max_norm_embedding() -> Case:
    return Case(Tokens(max_norm=0.5), ids(), F.cross_entropy)


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.relu_())


@awkward
def changes_its_input() -> Case:
    return Case(ChangesItsInput(), features())


# -- parameters -------------------------------------------------------------------------------


@awkward
def frozen() -> Case:
    model = mlp(nn.ReLU())
    model[0].requires_grad_(False)
    return Case(model, labelled(), F.cross_entropy)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(ids)))


@awkward
def tied() -> Case:
    return Case(Tied(), torch.randint(0, 20, (N, 5)))


@awkward
def weight_norm() -> Case:
    model = mlp(nn.Tanh())
    parametrizations.weight_norm(model[0])
    return Case(model, labelled(), F.cross_entropy)


@awkward
def spectral_norm() -> Case:
    model = mlp(nn.Tanh())
    parametrizations.spectral_norm(model[0])
    return Case(model, labelled(), F.cross_entropy)


@awkward
def old_weight_norm() -> Case:
    model = mlp(nn.Tanh())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in use
        nn.utils.weight_norm(model[0])
    return Case(model, labelled(), F.cross_entropy)


class Own(nn.Module):
    """A user's own layer, to be parametrized: then it has children."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, FEATURES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class Symmetric(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2) if w.shape[0] == w.shape[1] else w * 2


@awkward
def own_parametrization() -> Case:
    model = Own()
    parametrize.register_parametrization(model, "weight", Symmetric())
    return Case(nn.Sequential(model), features())


class Adapted(nn.Module):
    """A low-rank addition to a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, FEATURES), requires_grad=False)
        self.a = nn.Parameter(torch.randn(2, FEATURES))
        self.b = nn.Parameter(torch.randn(CLASSES, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight + self.b @ self.a)


@awkward
def adapted() -> Case:
    return Case(Adapted(), features())


@awkward
def lazy_once_run() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that lazy modules may change
        model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(CLASSES))
    model(features())
    return Case(model, labelled(), F.cross_entropy)


# -- state ------------------------------------------------------------------------------------


def normed() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


@awkward
def batch_norm() -> Case:
    return Case(normed(), labelled(), F.cross_entropy)


@awkward
def eval_mode() -> Case:
    return Case(normed().eval(), labelled(), F.cross_entropy)


@awkward
def mixed_modes() -> Case:
    model = nn.Sequential(normed(), nn.Dropout(0.5))
    model[0][1].eval()
    return Case(model, labelled(), F.cross_entropy)


class Cache:
    def __init__(self) -> None:
        self.keys = torch.zeros(2)
        self.seen: list[int] = []


class Remembers(nn.Module):
    """Changes attributes, lists, tensors and objects of its own as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, CLASSES)
        self.steps, self.history, self.cache = 0, [1], Cache()
        self.options = {"nested": [{"deep": 1}]}
        self.plain = torch.zeros(3)
        self.state: torch.Tensor | None = None
        self.own_random = torch.Generator().manual_seed(5)
        self.register_buffer("calls", torch.zeros(1).expand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.history.append(self.steps)
        self.cache.keys += 1
        self.cache.seen.append(2)
        self.options["nested"][0]["deep"] += 1
        self.plain.data.add_(1)
        self.calls = self.calls + 1
        self.state = self.body(x) + (0 if self.state is None else self.state)
        self.added = True
        noise = torch.randn(x.shape, generator=self.own_random)
        return self.state + self.body(x + noise)


@awkward
def remembers() -> Case:
    return Case(Remembers(), features())


@awkward
def random() -> Case:
    return Case(mlp(nn.Dropout(0.5), nn.RReLU()), labelled(), F.cross_entropy)


# -- autograd ---------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(F.relu(x))


@awkward
def checkpointed() -> Case:
    return Case(Checkpointed(False), labelled(), F.cross_entropy)


@awkward
def checkpointed_reentrant() -> Case:
    return Case(Checkpointed(True), labelled(), F.cross_entropy)


class Detaches(nn.Module):
    """The first layer is cut off; the second runs where gradients are off."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.off, self.head = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.cut(x)).detach()
        with torch.no_grad():
            x = torch.sigmoid(self.off(x))
        return self.head(x)


@awkward
def detaches() -> Case:
    return Case(Detaches(), features())


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        values = x.detach().numpy()
        return torch.from_numpy(values / (1 + np.exp(-values)))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s + x * s * (1 - s))


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(Swish.apply(self.body(x))))


@awkward
def custom_function() -> Case:
    return Case(CustomFunction(), labelled(), F.cross_entropy)


class GradientInside(nn.Module):
    """Differentiates within its forward, as energy models and meta-learners do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        energy = checkpoint(self.energy, x, use_reentrant=False)
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return force


@awkward
def gradient_inside() -> Case:
    return Case(GradientInside(), features())


class InPlaceOnView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.shape, self.head = nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shape(self.body(x) * 1)
        x.relu_()
        return self.head(x)


@awkward
def in_place_on_view() -> Case:
    return Case(InPlaceOnView(), features())


class Vectorised(nn.Module):
    """Runs its layer once for each sample, under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.vmap(lambda row: F.relu(self.body(row)))(x))


@awkward
def vmapped() -> Case:
    return Case(Vectorised(), features())


class FunctionalCall(nn.Module):
    """Runs a module with other parameters than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(nn.ReLU())
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = {name: p * self.gain for name, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, scaled, x)


@awkward
def functional_call() -> Case:
    return Case(FunctionalCall(), features())


class ForeignTensor(nn.Module):
    """Uses a tensor that a graph of the caller's made."""

    def __init__(self) -> None:
        super().__init__()
        self.source = torch.randn(FEATURES, requires_grad=True)
        self.context = self.source.exp()
        self.body = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x * self.context)


@awkward
def foreign_tensor() -> Case:
    return Case(ForeignTensor(), features())


# -- numbers ----------------------------------------------------------------------------------


@awkward
def bfloat16() -> Case:
    return Case(mlp(nn.ReLU()).bfloat16(), features().bfloat16())


@awkward
def float16() -> Case:
    return Case(mlp(nn.ReLU()).half(), features().half())


@awkward
def float64() -> Case:
    return Case(mlp(nn.Tanh()).double(), features().double())


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, 4, dtype=torch.complex64)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x.to(torch.complex64))).abs())


@awkward
def complex_numbers() -> Case:
    return Case(Complex(), features())


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x)


@awkward
def autocast() -> Case:
    return Case(Autocast(), features())


class Ragged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[0:3], x[3:8], x[8:]]
        nested = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
        return self.head(self.body(nested).values())


@awkward
def jagged() -> Case:
    return Case(Ragged(), features())


# -- recurrence and attention -----------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(FEATURES, 5, **options)
        self.head = nn.Linear(5 * (1 + self.rnn.bidirectional), CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.rnn(x)
        return torch.tanh(self.head(out))


@awkward
def time_first() -> Case:
    return Case(Recurrent(nn.LSTM), features(7, N, FEATURES))


@awkward
def gru() -> Case:
    return Case(Recurrent(nn.GRU, batch_first=True, num_layers=2), features(N, 7, FEATURES))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.arange(1, len(x) + 1).clamp(max=x.shape[1])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out[:, -1])


@awkward
def packed_sequence() -> Case:
    return Case(Packed(), features(N, 7, FEATURES))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(FEATURES, 5), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        outputs = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0])
        return self.head(torch.stack(outputs, 1))


@awkward
def cells() -> Case:
    return Case(Cells(), features(N, 3, FEATURES))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attend(x, x, x, need_weights=False)[0])


@awkward
def attention() -> Case:
    return Case(Attends(), features(N, 5, 8))


@awkward
def transformer_in_eval() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Case(model.eval(), features(N, 5, 8))


# -- other people's hooks and wrappers --------------------------------------------------------


@awkward
def hook_that_changes_the_output() -> Case:
    model = mlp(nn.ReLU())
    model[0].register_forward_hook(lambda module, args, output: output * 3)
    return Case(model, features())


@awkward
def full_backward_hook() -> Case:
    model = mlp(nn.ReLU())
    model[1].register_full_backward_hook(lambda module, before, after: None)
    return Case(model, features())


class RegistersHooks(nn.Module):
    """Collects what its layers put out by hooks that it sets anew in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.ReLU())
        self.collected: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.collected.clear()
        for layer in self.body:
            layer.register_forward_hook(lambda module, args, out: self.collected.append(out))
        self.body[0].weight.register_hook(lambda grad: None)
        return self.body(x)


@awkward
def registers_hooks() -> Case:
    return Case(RegistersHooks(), features())


class CatchesErrors(nn.Module):
    """Falls back on another layer where the first one fails."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(FEATURES, 8), nn.Linear(7, 7))
        self.second, self.act = nn.Linear(FEATURES, CLASSES), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            x = self.first(x)
        except RuntimeError:
            x = self.act(self.second(x))
        return F.relu(x)


@awkward
def catches_errors() -> Case:
    return Case(CatchesErrors(), features())


@awkward
def scripted() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return Case(nn.Sequential(torch.jit.script(mlp(nn.ReLU())), nn.ReLU()), features())


@awkward
def traced() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return Case(torch.jit.trace(mlp(nn.ReLU()), features()), features())


@awkward
def fx_traced() -> Case:
    return Case(torch.fx.symbolic_trace(CalledTwice()), labelled(), F.cross_entropy)


@awkward
def data_parallel() -> Case:
    return Case(nn.DataParallel(mlp(nn.ReLU())), labelled(), F.cross_entropy)
