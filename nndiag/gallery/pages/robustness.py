"""Robustness.

Networks of 64 pixels, two hidden layers of 100 ReLU units and 10 classes, on scikit-learn's digits
(8 by 8 pixels from 0 to 1; 1297 to train on, 500 to test on), He init, SGD with momentum 0.9, rate
0.05, 300 batches of 64; eight seeds. They differ in one thing: none (plain); Gaussian noise of 0.2
on the training images; training images shifted by up to one pixel; weight decay of 0.005; dropout
of 0.5 behind both hidden layers; the mean probability of five networks (ensemble); training on FGSM
images, or on those of PGD in three steps, both of ε = 0.1. Beside them a linear softmax. All are
tested on images with Gaussian noise, with outliers (pixels set to 0 or 1 at random), with missing
pixels (set to 0, which is the background, or to the pixel's mean), with the image shifted by a
pixel (mean of four directions), and with every pixel moved by up to ε: by a random sign, by one
step along the sign of the loss's gradient (FGSM), or by 20 such steps of ε/8 (PGD). Pixels are kept
in 0 to 1 throughout; shares of pixels and sizes are of that range.

For the closed form, a logistic regression tells even from odd digits in float64, without limits
for the pixels; eight random starts and orders. With label t = ±1 and weights w, no perturbation of
at most ε a pixel can raise the loss above softplus(-t·w·x + ε·‖w‖₁).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.gallery.lab import Lab, accuracy, mlp, split, table, train
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.plots import BAD, GOOD, QUIET, THEORY, band
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = Page(
    number=10,
    title="Robustness",
    claim="A step along the sign of the loss's gradient, often too small to see, fools a network "
    "that noise of the same size leaves alone; training on such steps helps.",
    sources=(
        "CS231n notes, adversarial attacks",
        "Szegedy et al. 2013",
        "Goodfellow et al. 2014 (FGSM)",
        "Madry et al. 2017 (PGD)",
    ),
    caption="Left, accuracy of the plain network against the size ε of a perturbation: random "
    "signs, FGSM, PGD (mean and range over seeds); dashed, PGD against the PGD-trained network. "
    "Right, what each change gains or loses against the plain network, in points of accuracy, "
    "under each perturbation.",
)

SEEDS, STEPS, HIDDEN, EPS = 8, 300, 100, 0.1
SIZES = (0.05, 0.1, 0.15, 0.2, 0.25)
LEVELS: dict[str, tuple[float, ...]] = {
    "clean": (0.0,),
    "noise": (0.1, 0.2, 0.3, 0.5),
    "outliers": (0.05, 0.1, 0.2),
    "missing, 0": (0.1, 0.2, 0.4),
    "missing, mean": (0.1, 0.2, 0.4),
    "shift": (1.0,),
    "random signs": SIZES,
    "FGSM": SIZES,
    "PGD": SIZES,
}
SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1))
KINDS = (
    "plain", "noise-trained", "shift-trained", "weight decay", "dropout", "ensemble",
    "FGSM-trained", "PGD-trained", "softmax",
)  # fmt: skip
T99 = 3.499
"""Student's t, 7 degrees of freedom, 0.995: half a 99 % interval is T99 standard errors."""


# -- perturbations -------------------------------------------------------------------------------


Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits and labels, summed over the images."""


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The best wrong logit less the right one; unlike the loss it never flattens."""
    right = logits.gather(1, y[:, None])[:, 0]
    return (logits.scatter(1, y[:, None], -math.inf).amax(1) - right).sum()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="sum")


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> Tensor:
    """Of the loss with respect to the images."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(model(x), y), x)[0]


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, loss: Loss = cross_entropy,
    low: float = 0.0, high: float = 1.0,
) -> Tensor:  # fmt: skip
    """One step of ε along the sign of the gradient (Goodfellow et al. 2014)."""
    return (x + eps * gradient(model, x, y, loss).sign()).clamp(low, high)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 20,
    loss: Loss = cross_entropy, low: float = 0.0, high: float = 1.0,
) -> Tensor:  # fmt: skip
    """Steps of 2.5 ε / steps, each cut back to within ε of the image (Madry et al. 2017)."""
    moved = x
    for _ in range(steps):
        moved = moved + 2.5 * eps / steps * gradient(model, moved, y, loss).sign()
        moved = moved.clamp(x - eps, x + eps).clamp(low, high)
    return moved


def shifted(x: Tensor, right: int, down: int) -> Tensor:
    """Images moved by a pixel; what comes in is background."""
    padded = F.pad(x.view(-1, 8, 8), (1, 1, 1, 1))
    return padded[:, 1 - down : 9 - down, 1 - right : 9 - right].reshape(-1, 64)


def perturbed(
    name: str, level: float, model: nn.Module, x: Tensor, y: Tensor, mean: Tensor, seed: int
) -> list[Tensor]:
    """The test images under a perturbation; several versions for the four directions of a shift."""
    draws = torch.Generator().manual_seed(seed)
    if name == "shift":
        return [shifted(x, *by) for by in SHIFTS]
    if name == "FGSM":
        return [fgsm(model, x, y, level)]
    if name == "PGD":
        return [pgd(model, x, y, level)]
    chosen = torch.rand(x.shape, generator=draws) < level
    other = torch.randn(x.shape, generator=draws)
    made = {
        "clean": x,
        "noise": (x + level * other).clamp(0, 1),
        "random signs": (x + level * other.sign()).clamp(0, 1),
        "outliers": torch.where(chosen, (other > 0).float(), x),
        "missing, 0": torch.where(chosen, torch.zeros(()), x),
        "missing, mean": torch.where(chosen, mean, x),
    }
    return [made[name]]


# -- networks ------------------------------------------------------------------------------------


class Ensemble(nn.Module):
    """The logarithm of the members' mean probability."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        logs = torch.stack([m(x).log_softmax(dim=1) for m in self.members])
        return logs.logsumexp(dim=0) - math.log(len(self.members))


def he(linear: nn.Linear) -> None:
    nn.init.kaiming_normal_(linear.weight)
    nn.init.zeros_(linear.bias)


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits to train and to test on, pixels from 0 to 1."""
    x, y = table("digits")
    return split(x / 16, y, 1297)


def trained(kind: str, seed: int, steps: int = STEPS) -> nn.Module:
    """A network of this kind, in eval mode."""
    x, y, _, _ = images()
    torch.manual_seed(seed)
    widths = [64, 10] if kind == "softmax" else [64, HIDDEN, HIDDEN, 10]
    model = mlp(widths, nn.ReLU, he)
    if kind == "dropout":
        model.insert(4, nn.Dropout(0.5)).insert(2, nn.Dropout(0.5))
    draws = torch.Generator().manual_seed(seed)

    def augmented(batch: Tensor, labels: Tensor) -> Tensor:
        if kind == "noise-trained":
            return (batch + 0.2 * torch.randn(batch.shape, generator=draws)).clamp(0, 1)
        if kind == "shift-trained":
            ways = torch.stack([shifted(batch, *by) for by in ((0, 0), *SHIFTS)])
            way = torch.randint(len(ways), (len(batch),), generator=draws)
            return ways[way, torch.arange(len(batch))]
        if kind == "FGSM-trained":
            return fgsm(model, batch, labels, EPS)
        if kind == "PGD-trained":
            return pgd(model, batch, labels, EPS, steps=3)
        return batch

    decay = 0.005 if kind == "weight decay" else 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,), generator=draws)
        loss = F.cross_entropy(model(augmented(x[chosen], y[chosen])), y[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def ensemble(first: nn.Module, seed: int, size: int = 5, steps: int = STEPS) -> Ensemble:
    """A plain network and more of its kind, by other seeds."""
    others = [trained("plain", seed + 100 * n, steps) for n in range(1, size)]
    return Ensemble([first, *others]).eval()


def scores(kind: str, seed: int, model: nn.Module) -> pd.DataFrame:
    """A row a perturbation and level: the accuracy on the test images."""
    x_train, _, x, y = images()
    mean, rows = x_train.mean(dim=0), []
    for name, levels in LEVELS.items():
        for level in levels:
            versions = perturbed(name, level, model, x, y, mean, seed)
            right = sum(accuracy(model, version, y) for version in versions) / len(versions)
            rows.append((kind, seed, name, level, right))
    return pd.DataFrame(rows, columns=["kind", "seed", "perturbation", "level", "accuracy"])


def inside(kind: str, seed: int, model: nn.Module) -> dict[str, object]:
    """How large the logits are, and how the gradient spreads over the pixels."""
    _, _, x, y = images()
    with torch.no_grad():
        gap = -margin_loss(model(x), y).item() / len(y)
    slope = gradient(model, x, y, margin_loss)
    ratio = slope.norm(1, dim=1) / slope.norm(2, dim=1)
    return {"kind": kind, "seed": seed, "margin": gap, "norm_ratio": ratio.median().item()}


# -- a linear model, and large logits ------------------------------------------------------------


def linear(seed: int) -> tuple[nn.Linear, Tensor, Tensor]:
    """Even against odd digits: the model, the test images, their labels ±1."""
    x, y, x_test, y_test = images()
    torch.manual_seed(seed)
    model = nn.Linear(64, 1).double()
    train(
        model, x.double(), 2 * (y % 2) - 1, torch.optim.SGD(model.parameters(), lr=0.5), 500, seed,
        loss=lambda out, t: F.softplus(-t * out[:, 0]).mean(),
    )  # fmt: skip
    return model, x_test.double(), 2 * (y_test % 2) - 1


def bound(model: nn.Linear, x: Tensor, t: Tensor, eps: float) -> Tensor:
    """The largest loss of a linear model within ε of each image."""
    with torch.no_grad():
        return F.softplus(-t * model(x)[:, 0] + eps * model.weight.abs().sum())


def linear_rows(seed: int) -> list[dict[str, object]]:
    """A row a size ε: the losses by closed form and by attack, and what random signs do."""
    model, x, t = linear(seed)
    weight = model.weight.detach()[0]
    draws = torch.Generator().manual_seed(seed)
    signs = torch.randn(2000, 64, generator=draws).sign().double()
    free: Any = {"loss": lambda out, t: F.softplus(-t * out[:, 0]).sum()}
    free |= {"low": -math.inf, "high": math.inf}
    rows: list[dict[str, object]] = []
    for eps in SIZES:
        exact = bound(model, x, t, eps)
        moved = {"FGSM": fgsm(model, x, t, eps, **free), "PGD": pgd(model, x, t, eps, **free)}
        with torch.no_grad():
            off = {
                name: (F.softplus(-t * model(z)[:, 0]) - exact).abs().max().item()
                for name, z in moved.items()
            }
        rows.append(
            {
                "seed": seed, "eps": eps, "loss": bound(model, x, t, 0).mean().item(),
                "bound": exact.mean().item(), "FGSM_off": off["FGSM"], "PGD_off": off["PGD"],
                "norm1": weight.norm(1).item(), "norm2": weight.norm(2).item(),
                "random_sd": (eps * signs @ weight).std().item(),
            }
        )  # fmt: skip
    return rows


class Scaled(nn.Module):
    """The same network with its logits times a factor: every image stays in its class."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.factor * self.model(x)
        return out


FACTORS = (1, 10, 100, 1000)


def masking(seed: int, model: nn.Module) -> list[dict[str, object]]:
    """What FGSM finds where the logits are multiplied."""
    _, _, x, y = images()
    rows: list[dict[str, object]] = []
    for factor in FACTORS:
        scaled = Scaled(model, factor)
        none = (gradient(scaled, x, y) == 0).all(dim=1).double().mean().item()
        rows.append(
            {
                "seed": seed, "factor": factor, "no_gradient": none,
                "by_loss": accuracy(scaled, fgsm(scaled, x, y, EPS), y),
                "by_margin": accuracy(scaled, fgsm(scaled, x, y, EPS, margin_loss), y),
            }
        )  # fmt: skip
    return rows


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    found, networks, masked, lines = [], [], [], []
    x, y, _, _ = images()
    for seed in lab.track(range(SEEDS)):
        lines += linear_rows(seed)
        plain = trained("plain", seed)
        masked += masking(seed, plain)
        for kind in KINDS:
            model = trained(kind, seed) if kind not in ("plain", "ensemble") else plain
            if kind == "ensemble":
                model = ensemble(plain, seed)
            found.append(scores(kind, seed, model))
            networks.append(inside(kind, seed, model))
            if seed == 0 and kind not in ("softmax", "ensemble"):
                lab.check(kind, model.train(), x[:256], y[:256], loss_fn=F.cross_entropy)
                model.eval()
    return {
        "accuracy": pd.concat(found), "networks": pd.DataFrame(networks),
        "masking": pd.DataFrame(masked), "linear": pd.DataFrame(lines),
    }  # fmt: skip


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    rows = frames["accuracy"]
    mean = rows.pivot_table(index=["perturbation", "level"], columns="kind", values="accuracy")
    small = {("noise", 0.1), ("outliers", 0.05), ("missing, 0", 0.1), ("missing, mean", 0.1)}
    small |= {("random signs", eps) for eps in (0.05, 0.15, 0.2)}
    order = [
        (name, level)
        for name, levels in LEVELS.items()
        for level in levels
        if (name, level) not in small
    ]
    accuracies = mean.reindex(order)[list(KINDS)].map(lambda v: f"{v:.1%}").reset_index()
    changes = pd.DataFrame(
        {
            "against plain, points": [f"{n}, {level:g}" if level else n for n, level in SHOWN],
            **{
                kind: [_points(*gain(frames, kind, n, level)) for n, level in SHOWN]
                for kind in KINDS[1:]
            },
        }
    )
    inner = frames["networks"].groupby("kind", sort=False)
    return {
        f"Accuracy, mean of {SEEDS} seeds": accuracies,
        "Change against the plain network, with its 99 % interval": changes,
        "Logits and gradients": pd.DataFrame(
            {
                "network": [kind for kind, _ in inner],
                "mean margin of the right logit": [spread(g["margin"]) for _, g in inner],
                "‖gradient‖₁ / ‖gradient‖₂, median image": [
                    spread(g["norm_ratio"]) for _, g in inner
                ],
            }
        ),
        "Plain network, logits multiplied: accuracy under FGSM of 0.1": pd.DataFrame(
            [
                {
                    "factor": str(factor),
                    "images without any gradient": f"{group['no_gradient'].mean():.1%}",
                    "along the loss's gradient": f"{group['by_loss'].mean():.1%}",
                    "along the margin's gradient": f"{group['by_margin'].mean():.1%}",
                }
                for factor, group in frames["masking"].groupby("factor")
            ]
        ),
    }


SHOWN = (
    ("clean", 0.0), ("noise", 0.3), ("outliers", 0.2), ("missing, 0", 0.4), ("missing, mean", 0.4),
    ("shift", 1.0), ("random signs", 0.1), ("FGSM", 0.1), ("PGD", 0.1), ("PGD", 0.2),
)  # fmt: skip


def gain(frames: Frames, kind: str, name: str, level: float) -> tuple[float, float]:
    """What a kind gains on the plain network of its seed, and half the 99 % interval of the mean.

    In points of accuracy.
    """
    rows = where(frames["accuracy"], perturbation=name, level=level)
    by_kind = rows.pivot_table(index="seed", columns="kind", values="accuracy")
    change = 100 * (by_kind[kind] - by_kind["plain"])
    return float(change.mean()), float(T99 * change.std() / math.sqrt(len(change)))


def _points(mean: float, half: float) -> str:
    return f"{mean:+.1f} ± {half:.1f}"


def draw(frames: Frames, figure: Figure) -> None:
    figure.set_size_inches(11, 4.6)
    axes: Any = figure.subplots(1, 2, width_ratios=[1, 1.75])
    left, right = axes
    rows = frames["accuracy"]
    for name, kind, color, line in (
        ("random signs", "plain", QUIET, "-"), ("FGSM", "plain", THEORY, "-"),
        ("PGD", "plain", BAD, "-"), ("PGD", "PGD-trained", GOOD, "--"),
    ):  # fmt: skip
        clean = where(rows, kind=kind, perturbation="clean")
        shown = pd.concat([clean, where(rows, kind=kind, perturbation=name)])
        label = name if kind == "plain" else "PGD, PGD-trained"
        band(left, "level", "accuracy", shown, color=color, ls=line, marker="o", ms=3, label=label)
    left.set(title="accuracy", xlabel="ε, share of the pixel range", ylim=(0, 1.02))
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    kinds = KINDS[1:]
    found = np.array([[gain(frames, k, *shown)[0] for shown in SHOWN] for k in kinds])
    right.imshow(found, cmap="RdBu", vmin=-50, vmax=50, aspect="auto")
    for (i, j), value in np.ndenumerate(found):
        color = "white" if abs(value) > 32 else "#1f2328"
        text = f"{value:+.0f}" if abs(value) >= 0.5 else "0"
        right.text(j, i, text, ha="center", va="center", color=color)
    right.grid(False)
    right.set_xticks(
        range(len(SHOWN)),
        [f"{name.replace(', ', ' → ')}\n{level:g}" if level else name for name, level in SHOWN],
        rotation=40, ha="right", rotation_mode="anchor",
    )  # fmt: skip
    right.set_yticks(range(len(kinds)), kinds)
    right.set_title("points gained on the plain network")


# -- what it shows -------------------------------------------------------------------------------


def _accuracy(frames: Frames, name: str, level: float) -> pd.DataFrame:
    """A row a seed, a column a kind."""
    rows = where(frames["accuracy"], perturbation=name, level=level)
    return rows.pivot_table(index="seed", columns="kind", values="accuracy")


@claim(
    "Goodfellow et al. 2014, sections 3 and 5",
    "a linear model's worst perturbation of size ε is ε·sign(w) and moves the output by ε·‖w‖₁, "
    "which grows with the number of pixels",
)
def linear_margins_fall_by_the_one_norm_under_attack_and_the_two_norm_by_chance(
    frames: Frames,
) -> Judged:
    """FGSM and PGD reach a linear model's worst case; random signs move its margin by ‖w‖₂ only."""
    rows = frames["linear"]
    off = float(rows[["FGSM_off", "PGD_off"]].max().max())
    chance = rows.random_sd / (rows.eps * rows.norm2)
    ratio = rows.norm1 / rows.norm2
    # The standard deviation of 2000 draws is off by 1/√4000 of itself: 5 of those.
    holds = off < 1e-12 and bool(((chance - 1).abs() < 5 / math.sqrt(4000)).all())
    return Judged(
        holds and bool((ratio > 1).all() and (ratio <= 8).all()),
        f"off the closed form by at most {number(off)}; standard deviation over ε·‖w‖₂ "
        f"{spread(chance)}; ‖w‖₁/‖w‖₂ {spread(ratio)}",
        "0; 1; at most √64 = 8, and 6.38 for normal weights",
    )


@claim(
    "Goodfellow et al. 2014",
    "FGSM of ε = 0.25 on MNIST: 99.9 % error of a softmax, 89.4 % of a maxout network",
)
def an_adversarial_step_hurts_far_more_than_noise_of_its_size(frames: Frames) -> Judged:
    """FGSM of 0.1 costs every network more than random signs of 0.25, two and a half times that."""
    chance, step = _accuracy(frames, "random signs", 0.25), _accuracy(frames, "FGSM", 0.1)
    clean, same = _accuracy(frames, "clean", 0.0), _accuracy(frames, "random signs", 0.1)
    big = 1 - _accuracy(frames, "FGSM", 0.25)
    return Judged(
        bool((chance > step).all(axis=None))
        and bool((big[["plain", "softmax"]] > 0.9).all(axis=None)),
        f"plain: {clean.plain.mean():.1%} clean, {same.plain.mean():.1%} with random signs of 0.1, "
        f"{chance.plain.mean():.1%} with 0.25, {step.plain.mean():.1%} under FGSM of 0.1; FGSM of "
        f"0.25: {big.plain.mean():.1%} error, softmax {big.softmax.mean():.1%}",
        "a linear margin moves by chance ‖w‖₂/‖w‖₁ ≈ 1/6 as far; over 90 % error at 0.25",
    )


@claim(
    "Madry et al. 2017", "PGD is the strongest attack that uses only the gradient",
    stands="qualified",
    but="So it is on average, for every kind of network and every size. No theorem says so of one "
    "image: here and there one falls to the big step and not to the small ones.",
)  # fmt: skip
def pgd_is_on_average_at_least_as_strong_as_fgsm(frames: Frames) -> Judged:
    """Twenty small steps leave no kind of network more accurate than one big one, at no size."""
    rows = frames["accuracy"]
    wide = rows[rows.perturbation.isin(["FGSM", "PGD"])].pivot_table(
        index=["kind", "level", "seed"], columns="perturbation", values="accuracy"
    )
    more = 100 * (wide["PGD"] - wide["FGSM"])
    mean = more.groupby(level=["kind", "level"]).mean()
    at = mean.xs(0.1, level="level")
    return Judged(
        bool((mean < 1e-9).all()),
        f"at 0.1 {at['plain']:+.1f} points against FGSM (plain), {at['dropout']:+.1f} (dropout), "
        f"{at['softmax']:+.1f} (softmax); above FGSM in {(more > 1e-9).sum()} of {len(more)} "
        f"single networks, by {more.max():.1f}",
        "0 or below; 0 for two classes and a linear model",
    )


@claim(
    "Madry et al. 2017",
    "natural MNIST network: 99.2 % clean, 6.4 % under FGSM of 0.3; trained on attacked images, it "
    "holds",
)
def adversarial_training_gains_ten_times_what_it_costs(frames: Frames) -> Judged:
    """Training on attacked images gains ten points under PGD for each that it loses without."""
    kinds = ("PGD-trained", "FGSM-trained")
    under = {k: gain(frames, k, "PGD", EPS) for k in kinds}
    clean = {k: gain(frames, k, "clean", 0.0) for k in kinds}
    return Judged(
        all(under[k][0] - under[k][1] > max(0, -10 * clean[k][0]) for k in kinds),
        "; ".join(
            f"{k}: {_points(*under[k])} points under PGD of 0.1, {_points(*clean[k])} clean"
            for k in kinds
        ),
        "0 under PGD, if it taught nothing; at least ten for one",
    )


@claim(
    "CS231n notes, adversarial training",
    "it is only effective in defending the models against the same attacks used to craft the "
    "examples originally included in the training pool",
    stands="contradicted",
    but="One step of FGSM in training gains as much against twenty of PGD as PGD's own images do, "
    "and also helps against noise and shifts, which it never showed. What does not carry over is "
    "the size: against twice the ε of training most of it is gone.",
)  # fmt: skip
def training_on_fgsm_helps_against_what_it_never_showed(frames: Frames) -> Judged:
    """Networks trained on FGSM images gain against PGD, noise and shifts, too."""
    unseen = {"PGD": 0.1, "noise": 0.3, "shift": 1.0}
    found = {name: gain(frames, "FGSM-trained", name, level) for name, level in unseen.items()}
    own = gain(frames, "PGD-trained", "PGD", EPS)[0]
    twice = _accuracy(frames, "PGD", 2 * EPS)["FGSM-trained"]
    return Judged(
        all(mean - half > 0 for mean, half in found.values()) and found["PGD"][0] > own / 2,
        ", ".join(f"{name} {_points(*v)}" for name, v in found.items())
        + f" points; {twice.mean():.1%} under PGD of 0.2",
        f"0 each, if the notes were right; PGD's own images gain {own:.1f}",
    )


@claim(
    "CS231n notes, adversarial training",
    "trained on such images, too, models have 'some immunity' over them",
    stands="qualified",
    but="True of the perturbation that is shown. Shifted images cure the shift and make this "
    "network, trained as long, worse against everything else; noisy images help against "
    "noise and small steps alike and do little for a shift.",
)
def shifted_images_cure_shifts_and_nothing_else(frames: Frames) -> Judged:
    """Training on shifted images mends the shift and loses on noise, outliers and FGSM."""
    own = gain(frames, "shift-trained", "shift", 1.0)
    lost = {n: gain(frames, "shift-trained", n, v) for n, v in SHOWN if n not in ("clean", "shift")}
    other = gain(frames, "noise-trained", "shift", 1.0)
    return Judged(
        own[0] - own[1] > 0
        and all(lost[name][0] + lost[name][1] < 0 for name in ("noise", "outliers", "FGSM"))
        and other[0] < own[0] / 2,
        f"shift {_points(*own)}; noise {_points(*lost['noise'])}, outliers "
        f"{_points(*lost['outliers'])}, FGSM of 0.1 "
        f"{_points(*gain(frames, 'shift-trained', 'FGSM', 0.1))}; noisy images on shifts "
        f"{_points(*other)}",
        "above 0; below 0; far less than shifted images",
    )


@claim(
    "Goodfellow et al. 2014",
    "dropout and averaging models do not much reduce the vulnerability to adversarial examples",
    stands="qualified",
    but="Against a step of 0.1 they gain some points, though no more than half of what "
    "adversarial training gains; against 0.2 next to nothing is left of it. Weight decay is no "
    "exception.",
)
def weight_decay_dropout_and_ensembles_buy_less_than_half(frames: Frames) -> Judged:
    """Under PGD of 0.1 each gains less than half of what PGD images gain; of 0.2, next to none."""
    own = gain(frames, "PGD-trained", "PGD", EPS)[0]
    found = {k: gain(frames, k, "PGD", EPS) for k in ("weight decay", "dropout", "ensemble")}
    left = _accuracy(frames, "PGD", 2 * EPS)
    chance = 0.1
    return Judged(
        all(mean + half > 0 and mean < own / 2 for mean, half in found.values())
        and all(left[kind].mean() < chance for kind in found)
        and left["PGD-trained"].mean() > chance,
        "; ".join(f"{k} {_points(*v)}, {left[k].mean():.1%} left at 0.2" for k, v in found.items()),
        f"PGD-trained {own:+.1f}, {left['PGD-trained'].mean():.1%}; guessing 10 %",
    )


@claim(
    "CS231n notes, defensive distillation",
    "train with a softmax of high temperature T, test with T = 1: less sensitive to the input",
    stands="qualified",
    but="At test the logits are then T times as large, and a loss that is zero to the last "
    "digit has no gradient: FGSM stands still, and the network looks robust. Here that alone is "
    "done to a network, without any distillation, and the margin's gradient fools it as before.",
)
def large_logits_blind_the_attack_and_protect_nothing(frames: Frames) -> Judged:
    """With logits × 1000 FGSM finds no gradient in most images; by the margin it fools as many."""
    rows = frames["masking"]
    one, large = (where(rows, factor=factor).set_index("seed") for factor in (1, 1000))
    same = (large.by_margin - one.by_margin).abs().max()
    return Judged(
        bool((large.no_gradient > 0.9).all())
        and bool((large.by_loss > one.by_loss + 0.2).all())
        and same < 0.005,
        f"{large.no_gradient.mean():.1%} without gradient; accuracy by the loss "
        f"{one.by_loss.mean():.1%} → {large.by_loss.mean():.1%}, by the margin "
        f"{one.by_margin.mean():.1%} → {large.by_margin.mean():.1%}",
        "the same before and after, if logits protected nothing",
    )


@claim(
    "nndiag", "looks inside a network: signals, gradients, units", stands="qualified",
    but="No rule of nndiag is about robustness: `healthy` says that a network can learn, and "
    "nothing of what a perturbed image does to it. Measure that by an attack.",
)  # fmt: skip
def nndiag_calls_fragile_and_robust_networks_healthy_alike(frames: Frames) -> Judged:
    """All these networks are healthy inside, though PGD of 0.1 leaves them far apart."""
    told = frames["verdicts"].set_index("network")
    left = _accuracy(frames, "PGD", EPS).mean()[list(told.index)]
    return Judged(
        set(told.verdict) == {"healthy"} and left.max() - left.min() > 0.3,
        f"{(told.verdict == 'healthy').sum()} of {len(told)} healthy; accuracy under PGD from "
        f"{left.min():.1%} ({left.idxmin()}) to {left.max():.1%} ({left.idxmax()})",
        "no rule for robustness: healthy",
    )
