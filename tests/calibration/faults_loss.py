"""Faults between a network and its loss: each with the rule that should find it.

The networks are healthy and new, on data sets of scikit-learn; only what lies between output, loss
and target is wrong. Forms: the activation as a module, as a function in forward, or the loss
written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration import nets
from calibration.cases import Subject

Loss = Callable[[Any, Any], Tensor]
SAMPLES = 192


@dataclass(frozen=True)
class Case:
    """A network with its loss and target, and the rule that is right to alarm ("" for none)."""

    name: str  # "softmax-cross-entropy/mlp/module"
    rule: str
    build: Callable[[], Subject]


# -- networks --------------------------------------------------------------------------------------


class Last(nn.Module):
    """Hand on the last step of a recurrent layer."""

    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0][:, -1]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = (
            nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.relu(self.inner(self.norm(x))))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def body(architecture: str, units: int) -> nn.Sequential:
    """A new network of this architecture."""
    torch.manual_seed(0)
    if architecture == "mlp":
        return nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, units))
    if architecture == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(128, units),
        )  # fmt: skip
    if architecture == "lstm":
        return nn.Sequential(nn.LSTM(8, 24, batch_first=True), Last(), nn.Linear(24, units))
    if architecture == "encoder":
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        return nn.Sequential(nn.Linear(8, 16), layer, Mean(), nn.Linear(16, units))
    return nn.Sequential(nn.Linear(30, 24), Residual(24), Residual(24), nn.Linear(24, units))


CLASSES = {"mlp": 3, "cnn": 10, "lstm": 10, "encoder": 10, "residual": 2}
ARCHITECTURES = tuple(CLASSES)


def data(architecture: str) -> tuple[Tensor, Tensor]:
    known: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "mlp": lambda: nets.table("wine"),
        "cnn": nets.images,
        "lstm": nets.rows,
        "encoder": nets.rows,
        "residual": lambda: nets.table("cancer"),
    }
    x, y = known[architecture]()
    return x[:SAMPLES], y[:SAMPLES]


def score(architecture: str) -> Tensor:
    """A target to regress on: one column of mean 0 and variance 1, which the input decides."""
    x, _ = data(architecture)
    flat = x.flatten(1)
    t = flat[:, :1] - flat[:, -1:] + flat.mean(1, keepdim=True)
    return (t - t.mean()) / t.std()


class In(nn.Module):
    """A network whose last step is a function call."""

    def __init__(self, inner: nn.Module, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.then = inner, then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.inner(x))


def made(
    architecture: str,
    units: int,
    last: nn.Module | Callable[[Tensor], Any] | None,
    loss: Loss,
    target: Any,
) -> Subject:
    inner = body(architecture, units)
    model: nn.Module = inner
    if isinstance(last, nn.Module):
        model = nn.Sequential(*inner, last)
    elif last is not None:
        model = In(inner, last)
    return Subject(model, data(architecture)[0], target, loss)


def one_hot(y: Tensor, classes: int) -> Tensor:
    return F.one_hot(y, classes).float()


# -- losses written by hand ------------------------------------------------------------------------


def by_hand(output: Tensor, y: Tensor) -> Tensor:
    return -(F.log_softmax(output, 1) * one_hot(y, output.shape[1])).sum(1).mean()


def by_logsumexp(output: Tensor, y: Tensor) -> Tensor:
    return -F.log_softmax(output, dim=-1)[torch.arange(len(y)), y].mean()


def binary_by_hand(output: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(output)
    return -(y * (p + 1e-7).log() + (1 - y) * (1 - p + 1e-7).log()).mean()


def binary_of_probabilities(p: Tensor, y: Tensor) -> Tensor:
    p = p.clamp(1e-7, 1 - 1e-7)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def squares(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean()


def sizes(output: Tensor, target: Tensor) -> Tensor:
    return (target - output).abs().mean()


# -- output-activation -----------------------------------------------------------------------------


def output_activations() -> Iterator[Case]:
    rule = "output-activation"

    def case(
        kind: str, a: str, form: str, last: Any, loss: Loss, units: int = 0, target: Any = None
    ) -> Case:
        def build() -> Subject:
            y = data(a)[1] if target is None else target()
            return made(a, units or CLASSES[a], last, loss, y)

        return Case(f"{kind}/{a}/{form}", rule, build)

    for a in ARCHITECTURES:
        yield case("softmax", a, "module", nn.Softmax(1), nn.CrossEntropyLoss())
        yield case("softmax", a, "functional", lambda z: F.softmax(z, dim=-1), F.cross_entropy)
        yield case("softmax", a, "hand", nn.Softmax(1), by_hand)
    yield case("softmax", "mlp", "hand", lambda z: z.softmax(1), by_logsumexp)
    yield case("softmax-cast", "encoder", "functional",
               lambda z: z.double().softmax(-1)[:, :].float(), F.cross_entropy)  # fmt: skip
    yield case("softmax-in-loss", "cnn", "hand", None,
               lambda o, y: F.cross_entropy(torch.softmax(o, 1), y))  # fmt: skip
    yield case("softmax-tuple", "lstm", "functional", lambda z: (z.softmax(1), z),
               lambda o, y: F.cross_entropy(o[0], y))  # fmt: skip
    yield case("sigmoid", "mlp", "module", nn.Sigmoid(), nn.CrossEntropyLoss())
    yield case("sigmoid", "encoder", "functional", torch.sigmoid, F.cross_entropy)
    yield case("tanh", "cnn", "module", nn.Tanh(), nn.CrossEntropyLoss())
    yield case("tanh", "lstm", "functional", torch.tanh, F.cross_entropy)
    yield case("relu", "mlp", "module", nn.ReLU(), nn.CrossEntropyLoss())
    yield case("relu", "encoder", "functional", F.relu, F.cross_entropy)
    yield case("clamp", "mlp", "functional", lambda z: z.clamp(0, 1), F.cross_entropy)

    def ones() -> Tensor:
        return data("residual")[1].float()[:, None]

    logits = F.binary_cross_entropy_with_logits
    for form, last in (("module", nn.Sigmoid()), ("functional", torch.sigmoid)):
        yield case("sigmoid-logits", "residual", form, last, nn.BCEWithLogitsLoss(), 1, ones)
        yield case("sigmoid-twice", "residual", form, last, binary_by_hand, 1, ones)
    yield case("sigmoid-logits", "cnn", "functional", torch.sigmoid, logits, 10,
               lambda: one_hot(data("cnn")[1], 10))  # fmt: skip
    yield case("relu-logits", "residual", "module", nn.ReLU(), nn.BCEWithLogitsLoss(), 1, ones)
    yield case("tanh-logits", "residual", "functional", torch.tanh, logits, 1, ones)
    yield case("relu-probability", "residual", "hand", nn.ReLU(), binary_of_probabilities, 1, ones)
    yield case("sigmoid-twice-in-net", "residual", "functional",
               lambda z: torch.sigmoid(torch.sigmoid(z)), nn.BCELoss(), 1, ones)  # fmt: skip
    yield Case("softmax-scripted/mlp/module", rule, scripted)
    yield Case("softmax-own-loss/mlp/functional", rule, own_loss)
    yield Case("softmax-pixels/cnn/module", rule, pixels)


def scripted() -> Subject:
    model = torch.jit.script(nn.Sequential(*body("mlp", 3), nn.Softmax(1)))
    x, y = data("mlp")
    return Subject(model, x, y, F.cross_entropy)


class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = body("mlp", 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        p = self.inner(x).softmax(-1)
        return {"loss": F.cross_entropy(p, labels), "probabilities": p}


def own_loss() -> Subject:
    x, y = data("mlp")
    return Subject(OwnLoss(), {"x": x, "labels": y})


def pixels() -> Subject:
    torch.manual_seed(0)
    x = data("cnn")[0]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Softmax(dim=1)
    )
    return Subject(model, x, (x[:, 0] > 0).long() + (x[:, 0] > 1), nn.CrossEntropyLoss())


# -- loss-mismatch ---------------------------------------------------------------------------------


def mismatches() -> Iterator[Case]:
    rule = "loss-mismatch"

    def case(
        kind: str, a: str, form: str, units: int, last: Any, loss: Loss, target: Callable[[], Any]
    ) -> Case:
        return Case(f"{kind}/{a}/{form}", rule, lambda: made(a, units, last, loss, target()))

    for a in ARCHITECTURES:
        form = "module" if a in ("mlp", "lstm") else "functional"
        loss: Loss = nn.NLLLoss() if form == "module" else F.nll_loss
        yield case("nll-scores", a, form, CLASSES[a], None, loss, lambda a=a: data(a)[1])
    yield case("nll-probabilities", "cnn", "module", 10, nn.Softmax(1), nn.NLLLoss(),
               lambda: data("cnn")[1])  # fmt: skip
    yield case("nll-probabilities", "mlp", "functional", 3, lambda z: z.softmax(1), F.nll_loss,
               lambda: data("mlp")[1])  # fmt: skip
    yield case("kl-probabilities", "encoder", "functional", 10, lambda z: z.softmax(-1),
               lambda o, t: F.kl_div(o, t, reduction="batchmean"),
               lambda: one_hot(data("encoder")[1], 10) * 0.9 + 0.01)  # fmt: skip

    def signs() -> Tensor:
        return data("residual")[1].float()[:, None] * 2 - 1

    yield case("bce-signs", "residual", "module", 1, None, nn.BCEWithLogitsLoss(), signs)
    yield case("bce-signs", "residual", "functional", 1, lambda z: z,
               lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none").mean(),
               signs)  # fmt: skip
    yield case("bce-classes", "mlp", "module", 1, None, nn.BCEWithLogitsLoss(),
               lambda: data("mlp")[1].float()[:, None])  # fmt: skip
    yield case("bce-bytes", "cnn", "module", 64, None, nn.BCEWithLogitsLoss(),
               lambda: data("cnn")[0].flatten(1) * 100 + 100)  # fmt: skip

    def ones() -> Tensor:
        return data("residual")[1].float()[:, None]

    yield case("one-unit", "residual", "module", 1, None, nn.CrossEntropyLoss(), ones)
    yield case("one-unit", "encoder", "functional", 1, None, F.cross_entropy,
               lambda: (data("encoder")[1] > 4).float()[:, None])  # fmt: skip

    def several() -> Tensor:
        return (data("cnn")[0].flatten(1)[:, 10:20] > 0.5).float()

    yield case("several-labels", "cnn", "module", 10, None, nn.CrossEntropyLoss(), several)
    yield case("several-labels", "cnn", "functional", 10, lambda z: z.softmax(1),
               F.binary_cross_entropy, several)  # fmt: skip
    yield case("sign", "mlp", "hand", 3, None, lambda o, y: -by_hand(o, y), lambda: data("mlp")[1])
    yield case("sign", "lstm", "functional", 10, None, lambda o, y: -F.cross_entropy(o, y),
               lambda: data("lstm")[1])  # fmt: skip
    yield case("sign", "cnn", "hand", 10, nn.LogSoftmax(1),
               lambda o, y: o.gather(1, y[:, None]).mean(), lambda: data("cnn")[1])  # fmt: skip
    yield case("sign", "residual", "hand", 1, nn.Sigmoid(),
               lambda o, y: -binary_of_probabilities(o, y), ones)  # fmt: skip


# -- unreachable-target ----------------------------------------------------------------------------


def unreachable() -> Iterator[Case]:
    rule = "unreachable-target"

    def case(kind: str, a: str, form: str, last: Any, loss: Loss, scale: float = 1.0) -> Case:
        return Case(f"{kind}/{a}/{form}", rule, lambda: made(a, 1, last, loss, score(a) * scale))

    for a in ARCHITECTURES:
        yield case("relu", a, "module", nn.ReLU(), nn.MSELoss())
        yield case("sigmoid", a, "functional", torch.sigmoid, F.l1_loss)
        yield case("tanh", a, "hand", nn.Tanh(), squares, 5)
    yield case("softplus", "mlp", "functional", F.softplus, F.huber_loss)
    yield case("sigmoid", "cnn", "hand", nn.Sigmoid(), sizes)
    yield case("scaled", "mlp", "functional", lambda z: torch.tanh(z) * 2 - 1, F.mse_loss, 4)
    yield case("clamp", "lstm", "functional", lambda z: z.clamp(min=0), nn.SmoothL1Loss())
    yield case("view", "encoder", "functional", lambda z: F.relu(z).view(-1, 1).double().float(),
               nn.MSELoss())  # fmt: skip
    yield Case("bytes/cnn/module", rule, lambda: made(
        "cnn", 64, nn.Sigmoid(), nn.MSELoss(), data("cnn")[0].flatten(1) * 60 + 120))  # fmt: skip


# -- target-shape ----------------------------------------------------------------------------------


def shapes() -> Iterator[Case]:
    rule = "target-shape"
    losses: dict[str, Loss] = {
        "module": nn.MSELoss(), "functional": F.l1_loss, "hand": squares, "hand-sizes": sizes,
        "huber": nn.HuberLoss(), "smooth": F.smooth_l1_loss,
        "hand-root": lambda o, t: (o - t).pow(2).mean().sqrt(),
    }  # fmt: skip
    for n, (form, loss) in enumerate(losses.items()):
        for a in (ARCHITECTURES[n % 5], ARCHITECTURES[(n + 2) % 5]):
            yield Case(f"flat-target/{a}/{form}", rule,
                       lambda a=a, loss=loss: made(a, 1, None, loss, score(a)[:, 0]))  # fmt: skip
            yield Case(f"flat-output/{a}/{form}", rule,
                       lambda a=a, loss=loss: made(a, 1, lambda z: z.squeeze(-1), loss, score(a))
                       )  # fmt: skip
    yield Case("binary/residual/hand", rule, lambda: made(
        "residual", 1, torch.sigmoid, binary_of_probabilities, data("residual")[1].float()
    ))  # fmt: skip
    yield Case("unsqueezed/mlp/hand", rule, lambda: made(
        "mlp", 1, None, lambda o, t: squares(o.squeeze(1), t.unsqueeze(1)), score("mlp")[:, 0]
    ))  # fmt: skip
    yield Case("weights/mlp/hand", rule, lambda: made(
        "mlp", 1, None, lambda o, t: ((o - t[0]) ** 2 * t[1]).mean(),
        (score("mlp"), torch.rand(178, generator=torch.Generator().manual_seed(0))),
    ))  # fmt: skip


# -- degenerate-softmax ----------------------------------------------------------------------------


class Attention(nn.Module):
    """Weigh the steps of a sequence by a score; ``wrong`` is the softmax to get wrong."""

    def __init__(self, wrong: Callable[[Tensor], Tensor], classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.score = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 1)
        self.out, self.wrong = nn.Linear(16, classes), wrong

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(x)
        return self.out((self.wrong(self.score(h)) * h).sum(1))


class SelfAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.dim = nn.Linear(8, 24), nn.Linear(8, 10), dim

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=self.dim)
        return self.out((weights @ v).mean(1))


def softmaxes() -> Iterator[Case]:
    rule = "degenerate-softmax"

    def case(
        kind: str, a: str, form: str, units: int, last: Any, loss: Loss, target: Callable[[], Any]
    ) -> Case:
        return Case(f"{kind}/{a}/{form}", rule, lambda: made(a, units, last, loss, target()))

    for a in ARCHITECTURES:

        def flag(a: str = a) -> Tensor:
            return (data(a)[1] > data(a)[1].float().mean()).float()[:, None]

        yield case("one", a, "module", 1, nn.Softmax(1), nn.BCELoss(), flag)
        yield case("one-regression", a, "functional", 1, lambda z: F.softmax(z, dim=-1), squares,
                   lambda a=a: score(a))  # fmt: skip
        yield case("batch", a, "module", CLASSES[a], nn.Softmax(0),
                   lambda p, y: -(p.gather(1, y[:, None]) + 1e-12).log().mean(),
                   lambda a=a: data(a)[1])  # fmt: skip
        yield case("batch-log", a, "functional", CLASSES[a], lambda z: z.log_softmax(0),
                   F.nll_loss, lambda a=a: data(a)[1])  # fmt: skip
    yield case("batch-in-loss", "mlp", "hand", 3, None,
               lambda o, y: F.nll_loss(F.log_softmax(o, dim=0), y),
               lambda: data("mlp")[1])  # fmt: skip

    def y() -> Tensor:
        return data("lstm")[1]

    over_one = {
        "last": lambda s: torch.softmax(s, -1),
        "flattened": lambda s: F.softmax(s.flatten(0, 1), dim=1).view_as(s),
        "module": nn.Softmax(dim=2),
    }
    for name, wrong in over_one.items():
        yield Case(f"attention-one/lstm/{name}", rule, lambda wrong=wrong: Subject(
            Attention(wrong), data("lstm")[0], y(), F.cross_entropy))  # fmt: skip
    yield Case("attention-batch/lstm/functional", rule, lambda: Subject(
        Attention(lambda s: F.softmax(s, dim=0)), data("lstm")[0], y(), F.cross_entropy
    ))  # fmt: skip
    yield Case("attention-batch/encoder/functional", rule, lambda: Subject(
        SelfAttention(0), data("lstm")[0], y(), F.cross_entropy))  # fmt: skip


# -- loss-at-init ----------------------------------------------------------------------------------


def levels() -> Iterator[Case]:
    rule = "loss-at-init"

    def case(kind: str, a: str, form: str, loss: Loss, factor: float) -> Case:
        def build() -> Subject:
            regression = kind.startswith("regression")
            y = score(a) if regression else data(a)[1]
            return made(a, 1 if regression else CLASSES[a], lambda z: z * factor, loss, y)

        return Case(f"{kind}/{a}/{form}", rule, build)

    for n, a in enumerate(ARCHITECTURES):
        yield case("logits", a, "functional", F.cross_entropy, 10.0 ** (2 + n))
        yield case("logits", a, "hand", by_hand, 10.0 ** (2 + n))
        yield case("regression", a, "module", nn.MSELoss(), 10.0 ** (3 + n))
    yield case("regression", "mlp", "hand", squares, 1e15)
    yield case("logits", "mlp", "smoothed", nn.CrossEntropyLoss(label_smoothing=0.1), 1e3)


def cases() -> list[Case]:
    return [
        *output_activations(), *mismatches(), *unreachable(), *shapes(), *softmaxes(), *levels(),
    ]  # fmt: skip
