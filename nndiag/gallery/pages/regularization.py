"""Regularisation by BatchNorm noise, and the search for hyperparameters.

A network of 64 pixels, two hidden layers of 100 ReLU units and 10 classes is trained on 256 of
scikit-learn's 1797 standardised digits, drawn by the seed, and tested on the other 1541; eight
seeds, He init, SGD with momentum 0.9 and rate 0.05. Each of 150 steps takes all 256 images in a new
order, so there is no noise of the gradient's batch. BatchNorm stands between layer and activation
and takes its means and variances over groups of 8, 32 or 256 of them ("ghost batches"), each
group by itself: the groups alone are random, and with one group of 256 nothing is. Dropout of 0.2
or 0.5 stands behind the activations. Differences are paired by seed.

For the search, a network of 64-50-10 with ReLU is trained on 1000 digits for 150 batches of 50 with
plain SGD, on a fine grid of 22 learning rates from 1e-6 to 10 and 11 strengths of an L2 penalty
½·reg·Σw² from 1e-5 to 1e5, five seeds, and scored on 797 other digits; one that diverged scores as
much as guessing, 0.1. Between the points the accuracy is interpolated linearly in the logarithms.
On each seed's surface 2000 searches are drawn of each kind: at random, on a square grid with a
random offset, and the one grid that includes both ends of each range; with as many trials each.
Once over all penalties, and once over those of 0.01 or less, which hardly matter. Beside it a
target that can be computed: what the search must hit is a twentieth of the range of one of two
parameters, or a square in both of a twentieth of the area, at a random place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.gallery.lab import Lab, accuracy, table
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.plots import BAD, GOOD, QUIET, THEORY
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

PAGE = Page(
    number=11,
    title="Regularisation and the search for hyperparameters",
    claim="BatchNorm acts as a form of regularisation in a funny way, and slightly reduces the "
    "need for dropout, maybe. Hyperparameters are searched at random rather than on a grid, coarse "
    "to fine, and in log space.",
    sources=(
        "CS231n 2017, lecture 6, slides 58 to 60 and 75 to 81",
        "CS231n notes, Neural Networks 3",
        "Ioffe & Szegedy 2015",
        "Bergstra & Bengio 2012",
    ),
    caption="Top left, test accuracy of each seed (dots) and their mean (stroke). Top right, the "
    "accuracy over learning rate and penalty, mean of five seeds. Bottom left, how often a search "
    "hits a target of a twentieth: lines by theory, dots by drawing. Bottom right, the best "
    "accuracy found on that surface by as many trials, mean over searches.",
)

SEEDS, STEPS, IMAGES, HIDDEN = 8, 150, 256, 100
T99 = 3.499
"""Student's t, 7 degrees of freedom, 0.995: half a 99 % interval is T99 standard errors."""

KINDS: dict[str, tuple[int, float]] = {
    "plain": (0, 0.0),
    "dropout 0.2": (0, 0.2),
    "dropout 0.5": (0, 0.5),
    "BN, 256": (256, 0.0),
    "BN, 32": (32, 0.0),
    "BN, 8": (8, 0.0),
    "BN, 256, dropout 0.5": (256, 0.5),
    "BN, 8, dropout 0.5": (8, 0.5),
}
"""By name: the group over which BatchNorm averages (0: no BatchNorm), and dropout's share."""


class GhostNorm(nn.BatchNorm1d):
    """BatchNorm over groups of a batch; in eval mode as ever, by its running averages."""

    def __init__(self, features: int, group: int) -> None:
        super().__init__(features)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        size = min(self.group, len(x))
        groups = x.view(-1, size, x.shape[1])
        mean = groups.mean(dim=1, keepdim=True)
        variance = (groups - mean).pow(2).mean(dim=1, keepdim=True)
        with torch.no_grad():
            self.running_mean.lerp_(mean.mean(dim=(0, 1)), 0.1)
            self.running_var.lerp_(variance.mean(dim=(0, 1)) * size / (size - 1), 0.1)
        normal = (groups - mean) / (variance + self.eps).sqrt()
        return normal.view_as(x) * self.weight + self.bias


def network(kind: str) -> nn.Sequential:
    group, share = KINDS[kind]
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((64, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10)):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if fan_out == HIDDEN:
            layers += [GhostNorm(fan_out, group)] if group else []
            layers.append(nn.ReLU())
            layers += [nn.Dropout(share)] if share else []
    return nn.Sequential(*layers)


def images(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """256 digits to train on, drawn by the seed, and all others; by the training pixels' scale."""
    x, y = table("digits")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    mine, other = order[:IMAGES], order[IMAGES:]
    mean, std = x[mine].mean(), x[mine].std()
    return (x[mine] - mean) / std, y[mine], (x[other] - mean) / std, y[other]


def trained(kind: str, seed: int, steps: int = STEPS) -> tuple[nn.Sequential, dict[str, object]]:
    """The network in eval mode, and its row."""
    x, y, x_test, y_test = images(seed)
    torch.manual_seed(seed)
    model = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        order = torch.randperm(IMAGES)
        loss = F.cross_entropy(model(x[order]), y[order])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(a), b).item() for a, b in ((x, y), (x_test, y_test))]
    row: dict[str, object] = {
        "kind": kind, "seed": seed, "train": accuracy(model, x, y),
        "test": accuracy(model, x_test, y_test), "train_loss": losses[0], "test_loss": losses[1],
    }  # fmt: skip
    return model, row


GROUPS = (8, 16, 32, 64, 128, 256)


def noise(model: nn.Sequential, seed: int, draws: int = 50) -> list[dict[str, object]]:
    """How far a group's mean lies from the mean of all, in deviations of each unit; its rms."""
    x, _, _, _ = images(seed)
    with torch.no_grad():
        z = model[0](x).double()
    z = (z - z.mean(dim=0)) / z.std(dim=0, correction=0)
    random = torch.Generator().manual_seed(seed)
    rows: list[dict[str, object]] = []
    for group in GROUPS:
        found = []
        for _ in range(draws):
            mixed = z[torch.randperm(IMAGES, generator=random)].view(-1, group, HIDDEN)
            found.append(mixed.mean(dim=1).pow(2).mean().item())
        rows.append({"seed": seed, "group": group, "noise": math.sqrt(sum(found) / draws)})
    return rows


# -- search --------------------------------------------------------------------------------------

RATES, PENALTIES = np.linspace(-6, 1, 22), np.linspace(-5, 5, 11)
SURFACES, SEARCHES, SIDES = 5, 2000, (2, 3, 4, 5, 7)
TARGET = 0.05


def surface(seed: int, steps: int = 150) -> np.ndarray:
    """Validation accuracy, a row a learning rate, a column a penalty: all of them at once."""
    x, y = table("digits")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = ((x - x.mean()) / x.std())[order], y[order]
    many = len(RATES) * len(PENALTIES)
    rate = torch.tensor(10**RATES).float().repeat_interleave(len(PENALTIES))[:, None, None]
    penalty = torch.tensor(10**PENALTIES).float().repeat(len(RATES))[:, None, None]
    random = torch.Generator().manual_seed(seed)
    weights = []
    for fan_in, fan_out in ((64, 50), (50, 10)):
        start = torch.randn(fan_in, fan_out, generator=random) * math.sqrt(2 / fan_in)
        weights += [start.repeat(many, 1, 1), torch.zeros(many, 1, fan_out)]
    w, b, v, c = weights

    def out(images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(images @ w + b)
        return hidden, torch.baddbmm(c, hidden, v)

    with torch.no_grad():
        for _ in range(steps):
            chosen = torch.randint(1000, (50,), generator=random)
            hidden, logits = out(x[chosen])
            delta = (logits.softmax(dim=2) - F.one_hot(y[chosen], 10)) / 50
            back = (delta @ v.mT) * (hidden > 0)
            v -= rate * (hidden.mT @ delta + penalty * v)
            c -= rate * delta.sum(dim=1, keepdim=True)
            w -= rate * (x[chosen].T @ back + penalty * w)
            b -= rate * back.sum(dim=1, keepdim=True)
        logits = out(x[1000:])[1]
    right = (logits.argmax(dim=2) == y[1000:]).double().mean(dim=1)
    right[~logits.isfinite().all(dim=2).all(dim=1)] = 0.1
    return right.numpy().reshape(len(RATES), len(PENALTIES))


def between(accuracies: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The surface between its points, bilinear over the unit square."""
    last = np.array(accuracies.shape) - 1

    def at(points: np.ndarray) -> np.ndarray:
        scaled = points * last
        corner = np.minimum(scaled.astype(int), last - 1)
        i, j = corner[..., 0], corner[..., 1]
        u, v = np.moveaxis(scaled - corner, -1, 0)
        low = (1 - v) * accuracies[i, j] + v * accuracies[i, j + 1]
        high = (1 - v) * accuracies[i + 1, j] + v * accuracies[i + 1, j + 1]
        found: np.ndarray = (1 - u) * low + u * high
        return found

    return at


def trials(method: str, side: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Searches of side² trials in the unit square: (count, side², 2)."""
    if method == "random":
        return random.random((count, side**2, 2))
    steps = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(1, -1, 2)
    if method == "grid, ends":
        return steps / (side - 1)
    return (steps + random.random((count, 1, 2))) / side


def exact(case: str, method: str, side: float) -> float:
    """The probability that a search hits the target."""
    if method == "random":
        return float(1 - (1 - TARGET) ** (side**2))
    if case == "one":
        return min(1.0, side * TARGET)
    return float(min(1.0, side * math.sqrt(TARGET)) ** 2)


def hits(seed: int) -> list[dict[str, object]]:
    """How often a search hits a target at a random place; what leaves the square re-enters."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for side in SIDES:
        for method in ("random", "grid"):
            points = trials(method, side, 10 * SEARCHES, random)
            away = (points - random.random((10 * SEARCHES, 1, 2))) % 1
            one = (away[..., 0] < TARGET).any(axis=1).mean()
            both = np.any((away < math.sqrt(TARGET)).all(axis=2), axis=1).mean()
            rows += [
                {"case": c, "side": side, "method": method, "hit": h}
                for c, h in (("one", one), ("both", both))
            ]
    return rows


HARMLESS = 0.3
"""The share of the penalties' range from 1e-5 to 0.01."""


def searches(seed: int, accuracies: np.ndarray) -> list[dict[str, object]]:
    """What searches find on one surface: the mean of their best, and how many reach the top 5 %."""
    random = np.random.default_rng(seed)
    found = between(accuracies)
    rows: list[dict[str, object]] = []

    def row(method: str, penalties: str, count: int, best: np.ndarray, top: float) -> None:
        rows.append(
            {
                "seed": seed, "method": method, "penalties": penalties, "trials": count,
                "best": best.mean(), "top": (best >= top).mean(),
            }
        )  # fmt: skip

    for penalties, share in (("all", 1.0), ("up to 0.01", HARMLESS)):
        top = float(np.quantile(found(random.random((50_000, 2)) * [1, share]), 0.95))
        for side in SIDES:
            for method in ("random", "grid", "grid, ends"):
                points = trials(method, side, SEARCHES, random) * [1, share]
                row(method, penalties, side**2, found(points).max(axis=1), top)
        best = found(random.random((SEARCHES, 60, 2)) * [1, share]).max(axis=1)
        row("random", penalties, 60, best, top)
        if penalties == "all":
            # Below the table's edge falls less than a millionth of these draws.
            drawn = np.maximum(random.random((50_000, 2)) * [10, 1e5], [1e-6, 1e-5])
            row("linear", penalties, 1, found((np.log10(drawn) + np.array([6, 5])) / [7, 10]), top)
            row("log", penalties, 1, found(random.random((50_000, 2))), top)
    return rows


BORDERS = {"1e-6 to 0.01": (-6.0, -2.0), "1e-6 to 0.1": (-6.0, -1.0), "1e-6 to 10": (-6.0, 1.0)}


def borders(seed: int, accuracies: np.ndarray) -> list[dict[str, object]]:
    """Random searches of 25 rates in narrower ranges: where in the range the best one lies."""
    random = np.random.default_rng(seed)
    found = between(accuracies)
    rows: list[dict[str, object]] = []
    for name, (low, high) in BORDERS.items():
        points = random.random((SEARCHES, 25, 2))
        inside = points[..., 0].copy()
        points[..., 0] = (low + inside * (high - low) + 6) / 7
        scores = found(points)
        place = np.take_along_axis(inside, scores.argmax(axis=1)[:, None], axis=1)
        rows.append(
            {
                "seed": seed, "range": name, "best": scores.max(axis=1).mean(),
                "top_tenth": (place > 0.9).mean(),
            }
        )  # fmt: skip
    return rows


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    runs, noises, surfaces, found, edges = [], [], [], [], []
    for seed in lab.track(range(SEEDS)):
        for kind in KINDS:
            model, row = trained(kind, seed)
            runs.append(row)
            if kind == "plain":
                noises += noise(model, seed)
            if seed == 0:
                x, y, _, _ = images(seed)
                lab.check(kind, model.train(), x, y, loss_fn=F.cross_entropy)
        if seed < SURFACES:
            accuracies = surface(seed)
            for (i, j), value in np.ndenumerate(accuracies):
                surfaces.append((seed, RATES[i], PENALTIES[j], value))
            found += searches(seed, accuracies)
            edges += borders(seed, accuracies)
    return {
        "runs": pd.DataFrame(runs), "noise": pd.DataFrame(noises),
        "surface": pd.DataFrame(surfaces, columns=["seed", "log_lr", "log_reg", "accuracy"]),
        "searches": pd.DataFrame(found), "hits": pd.DataFrame(hits(0)),
        "borders": pd.DataFrame(edges),
    }  # fmt: skip


def change(
    frames: Frames, kind: str, other: str, column: str = "test", times: float = 100
) -> tuple[float, float]:
    """Mean over seeds of kind less other, and half its 99 % interval; in points of accuracy."""
    by_kind = frames["runs"].pivot_table(index="seed", columns="kind", values=column)
    return interval(times * (by_kind[kind] - by_kind[other]))


def interval(values: pd.Series[float]) -> tuple[float, float]:
    return float(values.mean()), float(T99 * values.std() / math.sqrt(len(values)))


def _points(mean: float, half: float) -> str:
    return f"{mean:+.2f} ± {half:.2f}"


def _best(frames: Frames, method: str, penalties: str, column: str = "best") -> pd.Series[float]:
    """By the number of trials, mean over the surfaces."""
    rows = where(frames["searches"], method=method, penalties=penalties)
    mean: pd.Series[float] = rows.groupby("trials")[column].mean()
    return mean


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    runs = frames["runs"].groupby("kind", sort=False)
    found = {}
    for penalties in ("all", "up to 0.01"):
        columns = {
            m: _best(frames, m, penalties)[[n**2 for n in SIDES]]
            for m in ("random", "grid", "grid, ends")
        }
        for method, values in columns.items():
            found[f"{method}, penalties {penalties}"] = [f"{v:.1%}" for v in values]
    targets = frames["hits"].pivot_table(index="side", columns=["case", "method"], values="hit")
    return {
        "256 digits to train on": pd.DataFrame(
            {
                "network": [kind for kind, _ in runs],
                "train": [spread(g["train"]) for _, g in runs],
                "test": [spread(g["test"]) for _, g in runs],
                "test loss": [spread(g["test_loss"]) for _, g in runs],
                "test on plain, points (99 %)": [
                    "" if kind == "plain" else _points(*change(frames, str(kind), "plain"))
                    for kind, _ in runs
                ],
            }
        ),
        "Deviation of a group's mean, in deviations of the unit": pd.DataFrame(
            {
                "group": [str(g) for g in GROUPS],
                "measured": [
                    spread(where(frames["noise"], group=g)["noise"].round(12)) for g in GROUPS
                ],
                "theory": [expected_noise(g) for g in GROUPS],
            }
        ),
        f"Best accuracy found, mean of {SURFACES} surfaces": pd.DataFrame(
            {"trials": [str(n**2) for n in SIDES], **found}
        ),
        "Searches that hit a target of a twentieth": pd.DataFrame(
            {"trials": [str(n**2) for n in SIDES]}
            | {
                f"{case}: {method}": [
                    f"{targets[case, method][n]:.1%} ({exact(case, method, n):.1%})" for n in SIDES
                ]
                for case in ("one", "both")
                for method in ("random", "grid")
            }
        ),
    }


def expected_noise(group: int) -> float:
    """Of the mean of a group drawn from all images without replacement."""
    return math.sqrt((IMAGES - group) / (group * (IMAGES - 1)))


def draw(frames: Frames, figure: Figure) -> None:
    figure.set_size_inches(10, 7)
    grid: Any = figure.subplots(2, 2)
    (tests, map_), (targets, bests) = grid
    for place, (kind, rows) in enumerate(frames["runs"].groupby("kind", sort=False)):
        color = QUIET if kind == "plain" else GOOD if str(kind).startswith("BN") else THEORY
        tests.plot(rows["test"], [place] * len(rows), "o", color=color, ms=4, alpha=0.7)
        tests.plot(rows["test"].mean(), place, "|", color=color, ms=16, mew=3)
    tests.set_yticks(range(len(KINDS)), list(KINDS))
    tests.invert_yaxis()
    tests.set(title="test accuracy")
    mean = frames["surface"].pivot_table(index="log_reg", columns="log_lr", values="accuracy")
    image = map_.imshow(
        mean, origin="lower", aspect="auto", extent=(-6.17, 1.17, -5.5, 5.5), vmin=0, vmax=1,
        cmap="viridis",
    )  # fmt: skip
    map_.grid(False)
    map_.set(title="validation accuracy", xlabel="log₁₀ learning rate", ylabel="log₁₀ penalty")
    figure.colorbar(image, ax=map_)
    counts = [n**2 for n in SIDES]
    fine = np.linspace(2, 7, 60)
    for case, style in (("one", "-"), ("both", "--")):
        for method, color in (("random", GOOD), ("grid", BAD)):
            if case == "one" or method == "grid":
                chances = [exact(case, method, n) for n in fine]
                name = "random, either" if method == "random" else f"grid, {case} matters"
                name = name.replace("both matters", "both matter")
                targets.plot(fine**2, chances, style, color=color, label=name)
            hit = where(frames["hits"], case=case, method=method)
            targets.plot(hit["side"] ** 2, hit["hit"], "o", ms=3, color=color)
    targets.set(title="searches that hit", xlabel="trials", ylim=(0, 1.05))
    targets.legend(loc="lower right", bbox_to_anchor=(1, 0.4))
    for method, color in (("random", GOOD), ("grid", BAD), ("grid, ends", QUIET)):
        for penalties, style in (("up to 0.01", "-"), ("all", "--")):
            best = _best(frames, method, penalties)[counts]
            name = f"{method}, penalties {penalties}"
            bests.plot(counts, best, style, color=color, marker="o", ms=3, label=name)
    bests.set(title="best accuracy found", xlabel="trials", ylim=(0, 1.02))
    bests.legend(loc="lower right")


# -- what it shows -------------------------------------------------------------------------------


@claim(
    "Ioffe & Szegedy 2015, section 3.4",
    "with batch statistics a training example no longer gets a deterministic value: what it "
    "becomes depends on the others in its batch",
)
def batchnorm_noise_falls_with_the_root_of_the_group(frames: Frames) -> Judged:
    """A group's mean strays by 1/√group of a unit's deviation, less as it nears all images."""
    found = frames["noise"].groupby("group")["noise"].mean()
    theory = pd.Series({g: expected_noise(g) for g in GROUPS})
    # Over 50 orders a seed's own rms varies by 0.4 to 3 %, the mean of eight by a third of it.
    return Judged(
        bool(((found - theory).abs() <= 0.05 * theory + 1e-9).all()),
        ", ".join(f"{g}: {found[g]:.3f}" for g in GROUPS),
        ", ".join(f"{theory[g]:.3f}" for g in GROUPS),
    )


@claim(
    "slide 59", "Acts as a form of regularization in a funny way", stands="qualified",
    but="The noise of its groups is worth something, and not all of it: with one group of all "
    "images, where nothing is random, BatchNorm gains as well.",
)  # fmt: skip
def batchnorm_gains_by_its_noise_and_gains_without_it(frames: Frames) -> Judged:
    """Groups of 32 test better than one of all 256, which has no noise, and that than none."""
    noisy, loss = (
        change(frames, "BN, 32", "BN, 256", *c) for c in (("test", 100), ("test_loss", 1))
    )
    still = change(frames, "BN, 256", "plain")
    return Judged(
        noisy[0] - noisy[1] > 0 and loss[0] + loss[1] < 0 and still[0] - still[1] > 0,
        f"groups of 32 on one of 256: {_points(*noisy)} points, test loss {loss[0]:+.3f} ± "
        f"{loss[1]:.3f}; groups of 8: {_points(*change(frames, 'BN, 8', 'BN, 256'))}; one of 256 "
        f"on no BatchNorm: {_points(*still)}",
        "above 0 by noise; 0 without, if noise were all",
    )


@claim("slide 59", "slightly reduces the need for dropout, maybe")
def behind_noisy_batchnorm_dropout_gains_less(frames: Frames) -> Judged:
    """Dropout of 0.5 does less behind BatchNorm in groups of 8 than without BatchNorm."""
    alone, noisy = (
        change(frames, "dropout 0.5", "plain"),
        change(frames, "BN, 8, dropout 0.5", "BN, 8"),
    )
    still = change(frames, "BN, 256, dropout 0.5", "BN, 256")
    test = frames["runs"].pivot_table(index="seed", columns="kind", values="test")
    fewer = (test["dropout 0.5"] - test["plain"]) - (test["BN, 8, dropout 0.5"] - test["BN, 8"])
    less = interval(100 * fewer)
    return Judged(
        less[0] - less[1] > 0,
        f"{_points(*alone)} points without, {_points(*noisy)} with groups of 8, "
        f"{_points(*still)} with one of 256; the first less the second {_points(*less)}",
        "the difference above 0",
    )


@claim(
    "slide 78",
    "random search reaches good regions; by counting, one of 60 trials lies in the best twentieth "
    "with probability 1 - 0.95⁶⁰",
)
def sixty_random_trials_reach_the_best_twentieth(frames: Frames) -> Judged:
    """Of searches of 60 random trials 1 - 0.95⁶⁰ reach the top 5 %, whatever the surface."""
    rows = where(frames["searches"], method="random")
    theory, n = 1 - 0.95 ** rows["trials"], len(rows) * SEARCHES
    found = where(rows, trials=60)["top"]
    # Three deviations of a share of 2000, and of the quantile: 50,000 draws.
    slope = rows["trials"] * 0.95 ** (rows["trials"] - 1)
    deviation = (theory * (1 - theory) / SEARCHES + (slope**2) * 0.05 * 0.95 / 50_000) ** 0.5
    off = ((rows["top"] - theory) / deviation).abs().max()
    return Judged(
        bool(off < 4.5), f"{spread(found)} of 60; the farthest of {len(rows)} shares from 4 to 60 "
        f"trials is {number(float(off))} sd off, {n:,} searches",
        "1 - 0.95⁶⁰ = 0.954; 90 trials for 99 %",
    )  # fmt: skip


@claim(
    "slide 78 (Bergstra & Bengio 2012)",
    "of n² trials on a grid only n differ in the parameter that matters, at random all n²",
)
def random_search_wins_where_one_parameter_matters(frames: Frames) -> Judged:
    """A twentieth of one parameter: 25 random trials hit it in 72 % of searches, a grid in 25 %."""
    rows = frames["hits"]
    theory = rows.apply(lambda r: exact(r["case"], r["method"], r["side"]), axis=1)
    # Five deviations of a share of 20,000.
    band = 5 * (theory * (1 - theory) / (10 * SEARCHES)) ** 0.5 + 1e-9
    hit = where(rows, case="one", side=5).set_index("method")["hit"]
    return Judged(
        bool(((rows["hit"] - theory).abs() < band).all()) and hit["random"] > hit["grid"],
        f"{hit['random']:.1%} at random, {hit['grid']:.1%} on a grid, of 25 trials each",
        "1 - 0.95²⁵ = 72.3 %; 5/20 = 25 %",
    )


@claim(
    "CS231n notes, Neural Networks 3",
    'Prefer random search to grid search: "randomly chosen trials are more efficient for '
    'hyper-parameter optimization than trials on a grid"',
    stands="qualified",
    but="That holds where one parameter matters, and, with so few trials, against the grid that "
    "includes the ends of the ranges, where nothing trains. Where both matter, as over all "
    "penalties here, an even grid with its points inside the ranges finds more, as it leaves no "
    "such gaps as chance does; from 16 trials on even the grid with the ends does.",
)
def an_even_grid_wins_where_both_parameters_matter(frames: Frames) -> Judged:
    """Over all penalties 9 trials on an even grid beat 9 at random; over harmless ones, not."""
    share = {}
    for penalties in ("all", "up to 0.01"):
        rows = where(frames["searches"], penalties=penalties, trials=9)
        share[penalties] = rows.pivot_table(index="seed", columns="method", values="best")
    both, one = share["all"], share["up to 0.01"]
    return Judged(
        bool((both["grid"] > both["random"]).all() and (one["random"] > one["grid"]).all())
        and bool((both["random"] > both["grid, ends"]).all()),
        "; ".join(
            f"penalties {name}: {f['random'].mean():.1%} at random, {f['grid'].mean():.1%} on the "
            f"even grid, {f['grid, ends'].mean():.1%} with the ends"
            for name, f in share.items()
        ),
        "random ahead in all, by the notes",
    )


@claim(
    "slide 77 and notes, Neural Networks 3",
    "it's best to optimize in log space: learning_rate = 10 ** uniform(-6, 1)",
)
def linear_space_wastes_nearly_every_draw(frames: Frames) -> Judged:
    """Drawn evenly from 0 to 10 and 0 to 1e5, not one pair in a thousand is among the top 5 %."""
    rows = frames["searches"].query("trials == 1")
    top = rows.pivot_table(index="seed", columns="method", values="top")
    low, high = useful(frames)
    return Judged(
        bool((top["linear"] < 1e-3).all()) and bool((top["log"] > 0.04).all()),
        f"{top['linear'].mean():.2%} against {top['log'].mean():.1%} in log space; of rates alone "
        f"(useful: {number(low)} to {number(high)}) {(high - low) / 10:.1%} against "
        f"{math.log10(high / low) / 7:.1%}",
        "penalties below 1: 1 draw in 100,000, half of them in log space",
    )


def useful(frames: Frames) -> tuple[float, float]:
    """The learning rates within five points of the best at the smallest penalty."""
    rows = where(frames["surface"], log_reg=-5).groupby("log_lr")["accuracy"].mean()
    kept = rows[rows > rows.max() - 0.05].index
    return 10 ** float(kept.min()), 10 ** float(kept.max())


@claim(
    "slide 79",
    "53 % with the best rate at 9.47e-04 of a range that ends at 1e-3: worrying, it may end short "
    "of the best",
)
def a_best_rate_at_the_border_means_look_further(frames: Frames) -> Judged:
    """In ranges that end short of it most searches end in their last tenth; in the wide one few."""
    rows = frames["borders"]
    found = rows.groupby("range", sort=False)[["best", "top_tenth"]].mean()
    by = rows.pivot_table(index="seed", columns="range", values="top_tenth")
    short, wide = list(BORDERS)[:-1], list(BORDERS)[-1]
    return Judged(
        bool((by[short] > 0.5).all(axis=None)) and bool((by[wide] < 0.1).all()),
        "; ".join(
            f"{name}: {r.top_tenth:.0%} in the last tenth, {r.best:.1%} found"
            for name, r in found.iterrows()
        ),
        "10 % in any tenth, if the place told nothing",
    )


@claim("nndiag", "looks inside a network: signals, gradients, units")
def nndiag_passes_regularised_and_overfitted_networks_alike(frames: Frames) -> Judged:
    """All are healthy inside: they fit what they were trained on, and differ in what they miss."""
    told, train = frames["verdicts"], frames["runs"]["train"]
    return Judged(
        bool((told.verdict == "healthy").all()) and bool((train > 0.99).all()),
        f"{(told.verdict == 'healthy').sum()} of {len(told)} healthy; training accuracy at least "
        f"{train.min():.1%}",
        "healthy: nndiag sees one batch, and has no rule for overfitting",
    )
