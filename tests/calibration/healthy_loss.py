"""What looks like a fault between a network and its loss, and is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.cases import Subject
from calibration.faults_loss import (
    ARCHITECTURES,
    CLASSES,
    Attention,
    Case,
    Loss,
    SelfAttention,
    binary_of_probabilities,
    body,
    by_hand,
    data,
    made,
    one_hot,
    score,
    sizes,
    squares,
)


def _case(name: str, a: str, units: int, last: Any, loss: Loss, target: Callable[[], Any]) -> Case:
    return Case(f"{name}/{a}", "", lambda: made(a, units, last, loss, target()))


def labels(a: str) -> Callable[[], Tensor]:
    return lambda: data(a)[1]


def flags(a: str) -> Callable[[], Tensor]:
    return lambda: (data(a)[1] > data(a)[1].float().mean()).float()[:, None]


# -- classes ---------------------------------------------------------------------------------------


def keras(p: Tensor, y: Tensor) -> Tensor:
    p = (p / p.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return -p.log().gather(1, y[:, None]).mean()


def policy(p: Tensor, y: Tensor) -> Tensor:
    reward = torch.linspace(-1, 1, len(y))
    return -(p.gather(1, y[:, None])[:, 0].log() * reward).mean()


def focal(output: Tensor, y: Tensor) -> Tensor:
    every = F.binary_cross_entropy_with_logits(output, y, reduction="none")
    p = torch.sigmoid(output)
    return ((1 - (p * y + (1 - p) * (1 - y))) ** 2 * every).mean()


def focal_classes(output: Tensor, y: Tensor) -> Tensor:
    logs = F.log_softmax(output, 1).gather(1, y[:, None])[:, 0]
    return -((1 - logs.exp()) ** 2 * logs).mean()


def distilled(output: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(output / 2, 1), F.softmax(teacher / 2, 1), reduction="batchmean")


def dice(p: Tensor, y: Tensor) -> Tensor:
    return 1 - 2 * (p * y).sum() / (p.sum() + y.sum())


def poly(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y) + (1 - output.softmax(1).gather(1, y[:, None])).mean()


def entropy_bonus(output: Tensor, y: Tensor) -> Tensor:
    p = torch.softmax(output, 1)
    return F.cross_entropy(output, y) + 0.01 * (p * p.log()).sum(1).mean()


def classifiers() -> Iterator[Case]:
    for a in ARCHITECTURES:
        c = CLASSES[a]
        yield _case("cross-entropy", a, c, None, nn.CrossEntropyLoss(), labels(a))
        yield _case("nll", a, c, nn.LogSoftmax(1), nn.NLLLoss(), labels(a))
        yield _case("by-hand", a, c, None, by_hand, labels(a))
        yield _case("bce", a, 1, torch.sigmoid, F.binary_cross_entropy, flags(a))
        yield _case("bce-logits", a, 1, None, nn.BCEWithLogitsLoss(), flags(a))
    y = labels("cnn")
    yield _case("log-softmax-twice", "cnn", 10, nn.LogSoftmax(1), nn.CrossEntropyLoss(), y)
    yield _case("softmax-clamped-log", "cnn", 10, nn.Softmax(1), keras, y)
    yield _case("sigmoid-clamped-log", "residual", 1, nn.Sigmoid(), binary_of_probabilities,
                flags("residual"))  # fmt: skip
    yield _case("policy", "mlp", 3, nn.Softmax(1), policy, labels("mlp"))
    yield _case("policy-log", "mlp", 3, None, lambda o, y: policy(o.softmax(1), y), labels("mlp"))
    yield _case("smoothing", "cnn", 10, None, nn.CrossEntropyLoss(label_smoothing=0.1), y)
    yield _case("weights", "mlp", 3, None, nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3])),
                labels("mlp"))  # fmt: skip
    yield _case("sum", "cnn", 10, None, nn.CrossEntropyLoss(reduction="sum"), y)
    yield _case("scaled-tanh", "cnn", 10, lambda z: 10 * torch.tanh(z), F.cross_entropy, y)
    yield _case("clamped", "cnn", 10, lambda z: z.clamp(-20, 20), F.cross_entropy, y)
    yield _case("cosine", "cnn", 16, Cosine(), F.cross_entropy, y)
    yield _case("soft-targets", "cnn", 10, None, F.cross_entropy,
                lambda: one_hot(data("cnn")[1], 10) * 0.9 + 0.01)  # fmt: skip
    yield _case("focal", "cnn", 10, None, focal, lambda: one_hot(data("cnn")[1], 10))
    yield _case("focal-classes", "lstm", 10, None, focal_classes, labels("lstm"))

    def teacher() -> Tensor:
        return body("cnn", 10)(data("cnn")[0]).detach()

    yield _case("distilled", "cnn", 10, None, distilled, teacher)
    yield _case("softmax-kl", "cnn", 10, nn.LogSoftmax(1),
                lambda o, t: F.kl_div(o, t, reduction="batchmean"),
                lambda: teacher().softmax(1))  # fmt: skip
    yield _case("entropy-bonus", "mlp", 3, None, entropy_bonus, labels("mlp"))

    def several() -> Tensor:
        return (data("cnn")[0].flatten(1)[:, 10:20] > 0.5).float()

    yield _case("several-labels", "cnn", 10, nn.Sigmoid(), nn.BCELoss(), several)
    yield _case("positive-weight", "cnn", 10, None,
                nn.BCEWithLogitsLoss(pos_weight=torch.full((10,), 3.0)), several)  # fmt: skip
    yield _case("brier", "cnn", 10, nn.Softmax(1), nn.MSELoss(),
                lambda: one_hot(data("cnn")[1], 10))  # fmt: skip
    yield _case("hinge", "residual", 1, None, lambda o, y: F.relu(1 - (2 * y - 1) * o).mean(),
                flags("residual"))  # fmt: skip
    yield _case("tanh-hinge", "residual", 1, torch.tanh,
                lambda o, y: F.relu(1 - (2 * y - 1) * o).mean(), flags("residual"))  # fmt: skip
    yield _case("multi-margin", "cnn", 10, None, nn.MultiMarginLoss(), y)
    yield _case("dice", "residual", 1, torch.sigmoid,
                dice, flags("residual"))  # fmt: skip
    yield _case("ordinal", "mlp", 2, None,
                lambda o, y: F.binary_cross_entropy_with_logits(o, y),
                lambda: (data("mlp")[1][:, None] > torch.arange(2)).float())  # fmt: skip
    yield _case("masked-labels", "cnn", 10, None, masked_labels, lambda: hidden(several()))
    yield _case("ignored", "cnn", 10, None, nn.CrossEntropyLoss(ignore_index=0), y)
    yield _case("poly", "cnn", 10, None,
                poly, y)  # fmt: skip
    yield Case("pooled-relu/cnn", "", pooled_relu)
    yield Case("language-model/encoder", "", next_token)
    yield Case("ctc/lstm", "", alignment)
    yield Case("own-loss/mlp", "", own_loss)
    yield Case("scripted/mlp", "", lambda: Subject(
        torch.jit.script(body("mlp", 3)), *data("mlp"), F.cross_entropy))  # fmt: skip


class Cosine(nn.Module):
    """Logits as cosines with one vector for each class, times 16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def hidden(target: Tensor) -> Tensor:
    target = target.clone()
    target[::3, ::2] = -1
    return target


def masked_labels(output: Tensor, target: Tensor) -> Tensor:
    every = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return every[target >= 0].mean()


def pooled_relu() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return Subject(model, *data("cnn"), F.cross_entropy)


def next_token() -> Subject:
    torch.manual_seed(0)
    x = (data("lstm")[0].flatten(1)[:, :16] > 0).long()
    model = nn.Sequential(nn.Embedding(2, 16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 2))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())

    return Subject(model, x, x, loss)


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0]).log_softmax(-1)


def alignment() -> Subject:
    x, y = data("lstm")

    def loss(output: Tensor, target: Tensor) -> Tensor:
        n = len(target)
        lengths = torch.full((n,), 8), torch.full((n,), 1)
        return F.ctc_loss(output.transpose(0, 1), target[:, None] + 1, *lengths)

    return Subject(Steps(), x, y, loss)


class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = body("mlp", 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.inner(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def own_loss() -> Subject:
    x, y = data("mlp")
    return Subject(OwnLoss(), {"x": x, "labels": y})


# -- numbers ---------------------------------------------------------------------------------------


def counts(a: str) -> Tensor:
    return (score(a) * 2).round().clamp(min=0)


def quantiles(output: Tensor, target: Tensor) -> Tensor:
    levels = torch.tensor([0.1, 0.5, 0.9])
    off = target - output
    return torch.maximum(levels * off, (levels - 1) * off).mean()


def all_quantiles(output: Tensor, target: Tensor) -> Tensor:
    off = target.unsqueeze(1) - output.unsqueeze(2)
    levels = torch.tensor([0.1, 0.5, 0.9])[None, :, None]
    return (off.abs() * (levels - (off < 0).float()).abs()).mean()


def regressions() -> Iterator[Case]:
    for a in ARCHITECTURES:
        yield _case("squares", a, 1, None, nn.MSELoss(), lambda a=a: score(a))
        yield _case("sizes-by-hand", a, 1, None, sizes, lambda a=a: score(a))
        yield _case("tanh-in-reach", a, 1, nn.Tanh(), F.mse_loss,
                    lambda a=a: torch.tanh(score(a)))  # fmt: skip
        yield _case("relu-in-reach", a, 1, nn.Softplus(), squares, lambda a=a: score(a).relu())

    def t() -> Tensor:
        return score("mlp")

    yield _case("huber", "mlp", 1, None, nn.HuberLoss(), t)
    yield _case("flat", "mlp", 1, lambda z: z.squeeze(1), nn.MSELoss(), lambda: t()[:, 0])
    yield _case("on-the-bound", "residual", 1, nn.Sigmoid(), nn.MSELoss(), flags("residual"))
    yield _case("tanh-signs", "residual", 1, nn.Tanh(), nn.MSELoss(),
                lambda: flags("residual")() * 2 - 1)  # fmt: skip
    yield _case("poisson", "mlp", 1, None, nn.PoissonNLLLoss(), lambda: counts("mlp"))
    yield _case("scaled-sigmoid", "mlp", 1, lambda z: torch.sigmoid(z) * 8 - 4, F.mse_loss, t)
    yield _case("gaussian", "mlp", 2, None, gaussian, t)
    yield _case("quantiles", "mlp", 3, None, quantiles, t)
    yield _case("all-quantiles", "mlp", 3, None, all_quantiles, t)
    yield _case("ranking", "mlp", 1, lambda z: z.squeeze(1), ranking, lambda: t()[:, 0])
    yield _case("pairs", "mlp", 1, lambda z: z.squeeze(1), pairs, lambda: t()[:, 0])
    yield _case("ensemble", "mlp", 5, None, lambda o, y: ((o - y) ** 2).mean(), t)
    yield _case("padded", "mlp", 4, torch.sigmoid, padded, lambda: padding())
    yield _case("correlation", "mlp", 1, None, correlation, t)
    yield _case("listwise", "mlp", 1, lambda z: z.squeeze(1), listwise, lambda: t()[:, 0])
    yield _case("survival", "mlp", 1, lambda z: z.squeeze(1), survival, lambda: t()[:, 0])
    yield Case("autoencoder/cnn", "", autoencoder)
    yield Case("mixture/mlp", "", mixture)
    yield Case("triplet/cnn", "", triplets)
    yield Case("contrastive/cnn", "", contrastive)
    yield Case("values-of-actions/mlp", "", values_of_actions)


def gaussian(output: Tensor, target: Tensor) -> Tensor:
    return F.gaussian_nll_loss(output[:, :1], target, F.softplus(output[:, 1:]) + 1e-3)


def ranking(output: Tensor, target: Tensor) -> Tensor:
    better = (target[:, None] > target[None, :]).float()
    return (better * F.softplus(output[None, :] - output[:, None])).mean()


def pairs(output: Tensor, target: Tensor) -> Tensor:
    ours, theirs = output[:, None] - output[None], target[:, None] - target[None]
    return ((ours - theirs) ** 2).mean()


def padding() -> Tensor:
    t = torch.sigmoid(torch.cat([score("mlp")] * 4, 1) + torch.arange(4))
    t[::2, 3] = -1
    return t


def padded(output: Tensor, target: Tensor) -> Tensor:
    every = F.mse_loss(output, target, reduction="none")
    there = (target >= 0).float()
    return (every * there).sum() / there.sum()


def correlation(output: Tensor, target: Tensor) -> Tensor:
    a, b = output - output.mean(), target - target.mean()
    return -(a * b).sum() / (a.norm() * b.norm() + 1e-6)


def listwise(output: Tensor, target: Tensor) -> Tensor:
    return -(F.softmax(target, dim=0) * F.log_softmax(output, dim=0)).sum()


def survival(output: Tensor, times: Tensor) -> Tensor:
    risk = output[times.argsort(descending=True)]
    return -(risk - risk.logcumsumexp(0)).mean()


def autoencoder() -> Subject:
    torch.manual_seed(0)
    x = (data("cnn")[0].flatten(1) > 0).float()
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64), nn.Sigmoid())
    return Subject(model, x, x, nn.BCELoss())


class Mixture(nn.Module):
    def __init__(self, components: int) -> None:
        super().__init__()
        self.body = body("mlp", 16)
        self.parts = nn.ModuleList(nn.Linear(16, components) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        share, mean, scale = (part(F.relu(self.body(x))) for part in self.parts)
        return share.softmax(-1), mean, F.softplus(scale) + 1e-3


def mixture() -> Subject:
    def loss(output: tuple[Tensor, ...], target: Tensor) -> Tensor:
        share, mean, scale = output
        density = torch.exp(-0.5 * ((target - mean) / scale) ** 2) / scale
        return -((share * density).sum(1) + 1e-6).log().mean()

    return Subject(Mixture(3), data("mlp")[0], score("mlp"), loss)


def triplets() -> Subject:
    def loss(output: Tensor) -> Tensor:
        a, b, c = output[:64], output[64:128], output[128:192]
        return F.triplet_margin_loss(a, b, c)

    return Subject(body("cnn", 16), data("cnn")[0], None, loss)


def contrastive() -> Subject:
    def loss(output: Tensor) -> Tensor:
        z = F.normalize(output, dim=1)
        similar = z[:96] @ z[96:].T / 0.5
        own = torch.arange(96)
        return (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2

    return Subject(body("cnn", 16), data("cnn")[0], None, loss)


def values_of_actions() -> Subject:
    torch.manual_seed(0)
    x, y = data("mlp")

    def loss(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        actions, returns = target
        return F.smooth_l1_loss(output.gather(1, actions[:, None])[:, 0], returns)

    return Subject(body("mlp", 3), x, (y, score("mlp")[:, 0]), loss)


# -- softmaxes -------------------------------------------------------------------------------------


class Bag(nn.Module):
    """One bag of instances: attention over all of them gives one answer (Ilse et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.score = nn.Linear(13, 16), nn.Linear(16, 1)
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        weights = torch.softmax(self.score(h), dim=0)
        return self.out(weights.T @ h)


class OneExpert(nn.Module):
    """A mixture of experts that was configured with one of them, and its gate."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(13, 16) for _ in range(experts))
        self.gate, self.out = nn.Linear(13, experts), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.gate(x), -1)
        h = torch.stack([expert(x) for expert in self.experts], -1)
        return self.out(F.relu((h * weights[:, None]).sum(-1)))


def attentions() -> Iterator[Case]:
    y = labels("lstm")
    yield Case("attention/lstm", "", lambda: Subject(
        Attention(lambda s: F.softmax(s, dim=1)), data("lstm")[0], y(), F.cross_entropy
    ))  # fmt: skip
    yield Case("attention-one-step/lstm", "", lambda: Subject(
        SelfAttention(2), data("lstm")[0][:, 3:5], y(), F.cross_entropy))  # fmt: skip
    yield Case("self-attention/encoder", "", lambda: Subject(
        SelfAttention(2), data("lstm")[0], y(), F.cross_entropy))  # fmt: skip
    yield Case("bag/mlp", "", lambda: Subject(
        Bag(), data("mlp")[0], torch.ones(1, 1), F.binary_cross_entropy_with_logits))  # fmt: skip
    yield Case("experts/mlp", "", lambda: Subject(
        OneExpert(4), *data("mlp"), F.cross_entropy))  # fmt: skip


def cases() -> list[Case]:
    return [*classifiers(), *regressions(), *attentions()]
