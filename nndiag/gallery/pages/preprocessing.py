"""Data preprocessing.

Each step of the lecture is an affine map, fitted to training rows and applied to others: centred
(the mean μ of each feature subtracted), scaled (then divided by its standard deviation),
decorrelated (centred, then rotated onto the eigenvectors of the covariance), whitened
(decorrelated, then divided by √(λ + 1e-5), λ the eigenvalue). The condition number κ is the largest
eigenvalue of the second-moment matrix XᵀX/N over the smallest, in float64. The data are wine (13
measurements, three classes), breast cancer (30, two), digits (the 61 pixels that vary, ten classes)
and all 8 x 8 patches in colour of two photographs, pixels from 0 to 1 (192 numbers; which
photograph a patch is from is its class). Softmax regression is trained by full-batch gradient
descent on a random half of the rows (2000 patches), five seeds, at rate 2/λmax (with the bias's
column), up to which theory guarantees descent; the net has 32 ReLU units behind He initialisation
and is trained by SGD on batches of 32 at the best of eight rates from 0.3/λmax to 1000/λmax, five
seeds. Steps are counted until the loss on the training rows is below 0.2 (0.5 for patches). For the
means, 260 patches of 32 x 32 are cut from each photograph at random places, half of them to test
on, ten seeds. For the leak, 40 wines train and 138 test a nearest-class-mean classifier, a hundred
seeds, once as they are and once with each measurement of the test set shifted by ±1 standard
deviation.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from nndiag.gallery import lab as labs
from nndiag.gallery import plots
from nndiag.gallery.lab import Lab, mlp, normal
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

PAGE = Page(
    number=7,
    title="Data preprocessing",
    claim="Zero-centre the data and normalise them; for images centre only: subtract the mean "
    "image or the mean of each channel. PCA and whitening are possible, and not common.",
    sources=(
        "CS231n 2017, lecture 6, slides 34 to 39",
        "CS231n course notes, Neural Networks 2: data preprocessing",
    ),
    caption="Top: two measurements of 178 wines (coloured by class) through the five steps, on "
    "equal axes. Bottom left: condition number of XᵀX/N, and steps of gradient descent to one and "
    "the same loss (mean of five seeds, hatched where it was not reached). Right: four patches of "
    "the photographs, grey being zero, after each subtraction.",
)

STEPS = ("raw", "centred", "scaled", "decorrelated", "whitened")
DATA = ("wine", "cancer", "digits", "patches")
EPS, SEEDS, CUTS, LEAKS = 1e-5, 5, 10, 100
TARGET = {"wine": 0.2, "cancer": 0.2, "digits": 0.2, "patches": 0.5}
ONE = "mean of each channel"
CAP, NET_CAP = 5000, 800
RATES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
GREY = 1 / 255

Array = Any


# -- the steps -----------------------------------------------------------------------------------


def fitted(x: Array, step: str, eps: float = EPS) -> tuple[Array, Array]:
    """The shift m and the matrix A of a step: rows x become (x - m) A."""
    mean, eye = x.mean(axis=0), np.eye(x.shape[1])
    if step == "raw":
        return np.zeros_like(mean), eye
    if step == "centred":
        return mean, eye
    if step == "scaled":
        return mean, np.diag(1 / x.std(axis=0))
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    if step == "whitened":
        vectors = vectors / np.sqrt(values.clip(0) + eps)
    return mean, vectors


def through(x: Array, step: str, eps: float = EPS) -> Array:
    """These rows after a step that was fitted to them."""
    mean, matrix = fitted(x, step, eps)
    return (x - mean) @ matrix


def second_moments(x: Array) -> Array:
    """The eigenvalues of XᵀX/N, the smallest first."""
    return np.linalg.eigvalsh(x.T @ x / len(x))


@functools.cache
def data(name: str) -> tuple[Array, Array]:
    if name == "patches":
        return tiles(8)
    x, y = labs.table(name)
    rows = x.double().numpy()
    return rows[:, rows.std(axis=0) > 0], y.numpy()


def tiles(size: int) -> tuple[Array, Array]:
    """All patches of this size, side by side, and the photograph that each is from."""
    images = labs.photographs() / 255
    n, height, width, channels = images.shape
    down, across = height // size, width // size
    cut = images[:, : down * size, : across * size].reshape(n, down, size, across, size, channels)
    flat = cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size * channels)
    return flat, np.repeat(np.arange(n), down * across)


def crops(seed: int, size: int = 32, each: int = 260) -> tuple[Array, Array]:
    """Patches cut at random places: (2 · each, size, size, 3), and their photographs; shuffled."""
    draws, images = np.random.default_rng(seed), labs.photographs() / 255
    _, height, width, _ = images.shape
    found = []
    for image in images:
        for _ in range(each):
            top, left = draws.integers(height - size + 1), draws.integers(width - size + 1)
            found.append(image[top : top + size, left : left + size])
    order = draws.permutation(2 * each)
    return np.stack(found)[order], np.repeat([0, 1], each)[order]


# -- what is measured ----------------------------------------------------------------------------


def conditioning(name: str) -> pd.DataFrame:
    """A row a step: the eigenvalues of XᵀX/N, and κ of whitened data by theory."""
    x, _ = data(name)
    covariance = second_moments(through(x, "centred"))
    shrunk = covariance / (covariance + EPS)
    rows = []
    for step in STEPS:
        values = second_moments(through(x, step))
        rows.append(
            {
                "data": name, "step": step, "largest": values[-1], "smallest": values[0],
                "condition": values[-1] / values[0],
                "theory": shrunk.max() / shrunk.min() if step == "whitened" else math.nan,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def descent(x: Array, y: Array, target: float, cap: int = CAP) -> list[float]:
    """The losses of softmax regression by gradient descent from zero weights, until the target."""
    x, truth = np.hstack([x, np.ones((len(x), 1))]), np.eye(y.max() + 1)[y]
    rate = 2 / second_moments(x)[-1]  # the softmax's own curvature is 1/2 at most
    weight, losses = np.zeros((x.shape[1], truth.shape[1])), []
    for _ in range(cap):
        logits = x @ weight
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        shares /= shares.sum(axis=1, keepdims=True)
        losses.append(float(-np.log(shares[truth > 0] + 1e-300).mean()))
        if losses[-1] < target:
            break
        weight -= rate * x.T @ (shares - truth) / len(x)
    return losses


def half(name: str, seed: int) -> tuple[Array, Array]:
    x, y = data(name)
    chosen = np.random.default_rng(seed).permutation(len(x))[: min(len(x) // 2, 2000)]
    x, y = x[chosen], y[chosen]
    return x[:, x.std(axis=0) > 0], y


def regression(name: str, step: str, seed: int) -> dict[str, object]:
    """Steps of gradient descent on half of the rows, and κ of these."""
    x, y = half(name, seed)
    x = through(x, step)
    values = second_moments(x)
    losses = descent(x, y, TARGET[name])
    return {
        "data": name, "step": step, "seed": seed, "condition": values[-1] / values[0],
        "steps": len(losses) - 1 if losses[-1] < TARGET[name] else CAP,
        "reached": losses[-1] < TARGET[name],
    }  # fmt: skip


def nets(name: str, step: str, seeds: int = SEEDS, cap: int = NET_CAP) -> pd.DataFrame:
    """A row a rate and seed: a small net by SGD. All nets are trained side by side."""
    x, y = half(name, 0)
    prepared = through(x, step)
    largest = second_moments(prepared)[-1]
    inputs, targets = torch.tensor(prepared, dtype=torch.float32), torch.tensor(y)
    features, classes = inputs.shape[1], int(y.max()) + 1
    params: list[torch.Tensor] = []
    for shape in ((features, 32), (1, 32), (32, classes), (1, classes)):
        drawn = []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            std = math.sqrt(2 / shape[0]) if shape[0] > 1 else 0.0
            drawn.append(std * torch.randn(*shape, generator=generator))
        params.append(torch.stack(drawn).repeat(len(RATES), 1, 1).requires_grad_())
    rates = torch.tensor(RATES).repeat_interleave(seeds).reshape(-1, 1, 1) / largest
    batches = torch.Generator().manual_seed(0)

    def losses(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = (rows @ params[0] + params[1]).relu()
        logits = hidden @ params[2] + params[3]
        picked = logits.log_softmax(dim=2)[:, torch.arange(len(labels)), labels]
        return -picked.mean(dim=1)

    first = np.full(len(rates), cap)
    for taken in range(cap):
        if taken % 5 == 0:
            with torch.no_grad():
                there = (losses(inputs, targets) < TARGET[name]).numpy()
            first = np.where(there & (first == cap), taken, first)
        chosen = torch.randint(len(inputs), (32,), generator=batches)
        found = torch.autograd.grad(losses(inputs[chosen], targets[chosen]).sum(), params)
        with torch.no_grad():
            for param, gradient in zip(params, found, strict=True):
                param -= rates * gradient
    return pd.DataFrame(
        {
            "data": name, "step": step, "rate·λmax": np.repeat(RATES, seeds),
            "seed": np.tile(np.arange(seeds), len(RATES)), "steps": first,
        }
    )  # fmt: skip


SUBTRACTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "nothing": lambda train, x: x,
    "mean of each image": lambda train, x: x - x.mean(axis=(1, 2, 3), keepdims=True),
    "mean image": lambda train, x: x - train.mean(axis=0),
    "mean of each channel": lambda train, x: x - train.mean(axis=(0, 1, 2)),
}
STORED: dict[str, Callable[[tuple[int, ...]], int]] = {
    "nothing": lambda shape: 0,
    "mean of each image": lambda shape: 0,
    "mean image": lambda shape: math.prod(shape),
    "mean of each channel": lambda shape: shape[-1],
}


def subtracted(seed: int) -> list[dict[str, object]]:
    """A row a subtraction: what it removes of random crops, and what brightness still tells."""
    x, y = crops(seed)
    train, labels, test, truth = (
        x[: len(x) // 2], y[: len(x) // 2], x[len(x) // 2 :], y[len(x) // 2 :],
    )  # fmt: skip
    rows: list[dict[str, object]] = []
    for name, less in SUBTRACTIONS.items():
        # rounded: a mean that is zero up to rounding says nothing
        bright, dark = (less(train, v).mean(axis=(1, 2, 3)).round(9) for v in (train, test))
        cut, sign = stump(bright, labels)
        rows.append(
            {
                "data": "photographs", "subtracted": name, "seed": seed,
                "stored": STORED[name](x.shape[1:]),
                "removed": 1 - (less(x, x) ** 2).sum() / (x**2).sum(),
                "by brightness": float(((sign * (dark - cut) > 0) == truth).mean()),
            }
        )  # fmt: skip
    return rows


def stump(values: Array, labels: Array) -> tuple[float, int]:
    """The cut, and the side of it, that tell two classes apart best."""
    best = (-1.0, 0.0, 1)
    for cut in np.unique(values):
        for sign in (1, -1):
            best = max(best, (float(((sign * (values - cut) > 0) == labels).mean()), cut, sign))
    return best[1], best[2]


def digits_subtracted() -> list[dict[str, object]]:
    x = labs.table("digits")[0].double().numpy().reshape(-1, 8, 8, 1)
    return [
        {
            "data": "digits", "subtracted": name, "seed": 0, "stored": STORED[name](x.shape[1:]),
            "removed": 1 - (less(x, x) ** 2).sum() / (x**2).sum(), "by brightness": math.nan,
        }
        for name, less in SUBTRACTIONS.items()
    ]  # fmt: skip


def noise(eps: float, seed: int) -> dict[str, object]:
    """The share of noise of one grey level in patches, before and after they are whitened."""
    clean, _ = data("patches")
    added = GREY * np.random.default_rng(seed).standard_normal(clean.shape)
    mean, matrix = fitted(clean + added, "whitened", eps)
    values = second_moments(clean + added - mean)
    white, white_noise = (clean + added - mean) @ matrix, added @ matrix
    return {
        "eps": eps, "seed": seed,
        "before": (added**2).sum() / ((clean + added - mean) ** 2).sum(),
        "after": (white_noise**2).sum() / (white**2).sum(),
        "theory": (GREY**2 / (values + eps)).sum() / (values / (values + eps)).sum(),
        "least gain": 1 / math.sqrt(values[-1] + eps), "most gain": 1 / math.sqrt(values[0] + eps),
    }  # fmt: skip


def leak(drift: float, seed: int, train: int = 40) -> dict[str, object]:
    """Scalers fitted to the training rows, to all, to each set by itself: accuracy, drift left.

    The drift moves each measurement of the test rows by so many of its standard deviations, up or
    down.
    """
    x, y = data("wine")
    draws = np.random.default_rng(seed)
    order = draws.permutation(len(x))
    x, y = x[order], y[order]
    signs = draws.choice([-1.0, 1.0], x.shape[1])
    moved = x[train:] + drift * x.std(axis=0) * signs
    row: dict[str, object] = {"drift": drift, "seed": seed}
    whole = np.vstack([x[:train], moved])
    for name, first, second in (
        ("train", x[:train], x[:train]), ("all", whole, whole), ("own", x[:train], moved),
    ):  # fmt: skip
        mean, matrix = fitted(first, "scaled")
        seen = (x[:train] - mean) @ matrix
        mean, matrix = fitted(second, "scaled")
        unseen = (moved - mean) @ matrix
        centres = np.stack([seen[y[:train] == c].mean(axis=0) for c in range(3)])
        distance = ((unseen[:, None] - centres) ** 2).sum(axis=2)
        row[name] = float((distance.argmin(axis=1) == y[train:]).mean())
        row[f"{name} mean"] = round(float((unseen.mean(axis=0) * signs).mean()), 9)
    return row


PIXELS = 16
"""The drawn patches' sides: every second pixel of 32."""


def drawn_patches() -> pd.DataFrame:
    """Four patches, and the mean image of all 520, a row a pixel."""
    x, _ = tiles(32)
    images = x.reshape(-1, 32, 32, 3)
    kept = {f"patch {n}": images[n] for n in (107, 253, 390, 436)} | {"mean": images.mean(axis=0)}
    frames = []
    for name, image in kept.items():
        small = image[::2, ::2].reshape(-1, 3)
        frames.append(pd.DataFrame(np.round(small, 3), columns=["r", "g", "b"]).assign(patch=name))
    return pd.concat(frames)[["patch", "r", "g", "b"]]


def checked() -> dict[str, tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    """The same small net on data as they are and prepared."""
    found: dict[str, tuple[nn.Module, torch.Tensor, torch.Tensor]] = {}
    for name, steps in (
        ("wine", ("raw", "scaled")),
        ("cancer", ("raw", "scaled")),
        ("digits", ("raw", "centred", "whitened")),
    ):
        x, y = data(name)
        for step in steps:
            torch.manual_seed(0)
            inputs = torch.tensor(through(x, step), dtype=torch.float32)[:128]
            for kind, activation, power in (("tanh", nn.Tanh, 1.0), ("ReLU", nn.ReLU, 2.0)):
                if kind == "ReLU" and name != "wine":
                    continue
                model = mlp(
                    [x.shape[1], 32, 32, int(y.max()) + 1], activation,
                    normal(lambda n, power=power: math.sqrt(power / n)),  # type: ignore[misc]
                )  # fmt: skip
                found[f"{kind}: {name}, {step}"] = (model, inputs, torch.tensor(y)[:128])
    return found


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    made: dict[str, list[Any]] = {"conditioning": [], "steps": [], "nets": []}
    for name in lab.track(DATA):
        made["conditioning"].append(conditioning(name))
        for step in STEPS:
            made["steps"] += [regression(name, step, seed) for seed in range(SEEDS)]
            if name in ("wine", "cancer"):
                made["nets"].append(nets(name, step))
    for name, (model, inputs, targets) in checked().items():
        lab.check(name, model, inputs, targets, loss_fn=nn.functional.cross_entropy)
    x, y = data("wine")
    subtractions = [row for seed in range(CUTS) for row in subtracted(seed)]
    return {
        "conditioning": pd.concat(made["conditioning"]),
        "steps": pd.DataFrame(made["steps"]),
        "nets": pd.concat(made["nets"]),
        "means": pd.DataFrame(subtractions + digits_subtracted()),
        "noise": pd.DataFrame([noise(eps, s) for eps in (EPS, 1e-2) for s in range(SEEDS)]),
        "leak": pd.DataFrame([leak(drift, s) for drift in (0.0, 1.0) for s in range(LEAKS)]),
        "cloud": pd.DataFrame({"flavanoids": x[:, 6], "proline": x[:, 12], "class": y}),
        "patches": drawn_patches(),
    }


def best(frames: Frames, name: str, step: str) -> tuple[float, pd.Series[float]]:
    """The net's best rate (times λmax), and its steps by seed."""
    rows = where(frames["nets"], data=name, step=step)
    rate = float(str(rows.groupby("rate·λmax")["steps"].mean().idxmin()))
    return rate, where(rows, **{"rate·λmax": rate})["steps"]


def taken(steps: pd.Series[float], cap: int) -> str:
    """Steps as mean and range, and of how many seeds none came there."""
    late = int((steps >= cap).sum())
    return (
        f"over {cap:,}" + ("" if late == len(steps) else f" in {late} of {len(steps)}")
        if (late)
        else spread(steps)
    )


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    rows = []
    for name in DATA:
        for step in STEPS:
            [moments] = where(frames["conditioning"], data=name, step=step).to_dict("records")
            net = best(frames, name, step) if name in ("wine", "cancer") else None
            rows.append(
                {
                    "data": name, "step": step, "largest λ": moments["largest"],
                    "smallest λ": moments["smallest"], "κ": moments["condition"],
                    "steps, softmax": taken(_steps(frames, name, step), CAP),
                    "best rate of the net, times λmax": net[0] if net else "",
                    "steps, net": taken(net[1], NET_CAP) if net else "",
                }
            )  # fmt: skip
    means = [
        {
            "data": name, "subtracted": what, "numbers kept": int(group["stored"].iloc[0]),
            "share of second moment removed": spread(group["removed"]),
            "which photograph, by brightness": spread(group["by brightness"])
            if group["by brightness"].notna().all() else "",
        }
        for (name, what), group in frames["means"].groupby(["data", "subtracted"], sort=False)
    ]  # fmt: skip
    noisy = [
        {
            "ε": eps, "gain of the largest component": group["least gain"].mean(),
            "gain of the smallest": group["most gain"].mean(),
            "noise before": group["before"].mean(), "noise after": spread(group["after"]),
            "by theory": group["theory"].mean(),
        }
        for eps, group in frames["noise"].groupby("eps", sort=False)
    ]  # fmt: skip
    leaks = [
        {
            "drift of the test set, sd": drift, "scaler fitted to": told,
            "accuracy": f"{group[name].mean():.3f} ± {_error(group[name]):.3f}",
            "drift that it shows, sd": spread(group[f"{name} mean"]),
        }
        for drift, group in frames["leak"].groupby("drift", sort=False)
        for name, told in (
            ("train", "the training rows"), ("all", "training and test rows"),
            ("own", "each set by itself"),
        )
    ]  # fmt: skip
    return {
        "Conditioning, and steps to one loss": pd.DataFrame(rows),
        "What each mean removes": pd.DataFrame(means),
        "Noise of one grey level in 8 x 8 patches, as a share of the second moment": pd.DataFrame(
            noisy
        ),
        "Statistics from where: 40 wines to train, 138 to test": pd.DataFrame(leaks),
    }


def _steps(frames: Frames, name: str, step: str) -> pd.Series[float]:
    return where(frames["steps"], data=name, step=step)["steps"]


def _error(values: pd.Series[float]) -> float:
    return float(values.std() / math.sqrt(len(values)))


def draw(frames: Frames, figure: Figure) -> None:
    figure.set_size_inches(11, 7)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.6])
    top, bottom = parts
    lower: Any = bottom.subfigures(1, 2, width_ratios=[1.9, 1])
    _clouds(frames, top)
    _bars(frames, lower[0])
    _strip(frames, lower[1])


def _clouds(frames: Frames, figure: Any) -> None:
    rows = frames["cloud"]
    x = rows[["flavanoids", "proline"]].to_numpy()
    for axes, step in zip(figure.subplots(1, len(STEPS)), STEPS, strict=True):
        moved = through(x, step)
        for place in range(3):
            chosen = moved[rows["class"] == place][::2]
            axes.plot(*chosen.T, ".", ms=3, color=plots.COLORS[place])
        centre = moved.mean(axis=0)
        reach = np.abs(moved - centre).max() * 1.1
        for side, middle in zip(("x", "y"), centre, strict=True):
            axes.set(**{f"{side}lim": (middle - reach, middle + reach)})
        axes.set(title=step, aspect="equal")
        axes.axhline(0, color=plots.QUIET, lw=0.6)
        axes.axvline(0, color=plots.QUIET, lw=0.6)
        axes.locator_params(nbins=4)
        axes.tick_params(labelsize=7)


def _bars(frames: Frames, figure: Any) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    for place, step in enumerate(STEPS):
        where_at = np.arange(len(DATA)) + (place - 2) * 0.16
        condition = [
            where(frames["conditioning"], data=d, step=step)["condition"].iloc[0] for d in DATA
        ]
        found = [_steps(frames, d, step) for d in DATA]
        style: dict[str, Any] = {"height": 0.16, "color": plots.COLORS[place], "left": 0.7}
        left.barh(where_at, np.array(condition) - 0.7, label=step, **style)
        bars = right.barh(where_at, [f.mean() - 0.7 for f in found], **style)
        for bar, steps in zip(bars, found, strict=True):
            if (steps >= CAP).any():
                bar.set(hatch="////", edgecolor="white", linewidth=0)
    left.set(title="condition number κ", xscale="log", yticks=range(len(DATA)), xlim=(0.7, None))
    left.set_yticklabels(DATA)
    left.invert_yaxis()
    right.set(title="steps of gradient descent", xscale="log", xlim=(0.7, CAP))
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(STEPS))


def _strip(frames: Frames, figure: Any) -> None:
    images = {
        name: group[["r", "g", "b"]].to_numpy().reshape(PIXELS, PIXELS, 3)
        for name, group in frames["patches"].groupby("patch", sort=False)
    }
    mean = images.pop("mean")[None]
    grid = figure.subplots(len(SUBTRACTIONS), len(images))
    for row, (name, less) in zip(grid, SUBTRACTIONS.items(), strict=True):
        for axes, image in zip(row, images.values(), strict=True):
            shown = less(mean, image[None])[0] + (0 if name == "nothing" else 0.5)
            axes.imshow(shown.clip(0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(False)
        row[0].set_ylabel(
            name.replace(" of ", "\nof "), rotation=0, ha="right", va="center", fontsize=8
        )


# -- what it shows -------------------------------------------------------------------------------


def _condition(frames: Frames, name: str, step: str) -> float:
    return float(where(frames["conditioning"], data=name, step=step)["condition"].iloc[0])


@claim(
    "course notes, Neural Networks 2",
    "normalise where features have different scales or units; for pixels it is not strictly needed",
)
def scaling_cures_unlike_units_and_leaves_pixels_as_they_were(frames: Frames) -> Judged:
    """Scaled measurements train in a handful of steps, raw ones not in thousands; pixels do not
    care."""
    holds, told = True, []
    for name in ("wine", "cancer"):
        raw, scaled = _steps(frames, name, "raw"), _steps(frames, name, "scaled")
        before, after = best(frames, name, "raw")[1], best(frames, name, "scaled")[1]
        gain = _condition(frames, name, "centred") / _condition(frames, name, "scaled")
        holds &= bool((raw >= CAP).all()) and scaled.max() < CAP / 100
        holds &= after.max() < before.min() / 10 and gain > 1000
        told.append(
            f"{name} {taken(raw, CAP)} steps to {number(scaled.mean())} "
            f"(net: {taken(before, NET_CAP)} to {number(after.mean())})"
        )
    before_mean, after_mean = (
        float(_steps(frames, "patches", s).mean()) for s in ("centred", "scaled")
    )
    ratio = _condition(frames, "patches", "scaled") / _condition(frames, "patches", "centred")
    holds &= 0.5 < after_mean / before_mean < 2 and 0.5 < ratio < 2
    told.append(f"patches {number(before_mean)} to {number(after_mean)}, κ × {number(ratio)}")
    return Judged(
        holds, "; ".join(told), "a hundredfold or more for measurements; × 0.5 to 2 for pixels"
    )


@claim(
    "LeCun et al. 1998, Efficient BackProp",
    "learning takes the longer, the larger the ratio of the extreme eigenvalues is",
    stands="qualified",
    but="It is the worst case. Directions of tiny variance ruin κ, but a model that does not need "
    "them does not wait for them: scaling makes the κ of digits a thousand times smaller and saves "
    "not one step.",
)
def a_far_smaller_condition_number_saves_digits_no_step(frames: Frames) -> Judged:
    """Scaling divides the condition number of digits by over 1000, and descent takes as long."""
    centred, scaled = _steps(frames, "digits", "centred"), _steps(frames, "digits", "scaled")
    kappa = _condition(frames, "digits", "centred") / _condition(frames, "digits", "scaled")
    return Judged(
        kappa > 1000 and scaled.mean() > 0.8 * centred.mean(),
        f"κ / {number(kappa)}; steps {spread(centred)} centred, {spread(scaled)} scaled",
        "if κ decided: a thousandth of the steps",
    )


@claim(
    "slides 36 and 37", "PCA decorrelates the data: their covariance becomes diagonal",
    stands="qualified",
    but="It does, and plain gradient descent from zero weights gains nothing by it: a rotation "
    "changes neither the eigenvalues of XᵀX/N nor a single loss on the way. (A net's random first "
    "weights are not rotated with the data: its steps differ by chance.) What helps is the "
    "division that follows.",
)  # fmt: skip
def decorrelation_alone_changes_no_step_of_gradient_descent(frames: Frames) -> Judged:
    """Rotated onto its principal axes the data train softmax in as many steps as only centred."""
    most, worst = 0, 0.0
    for name in DATA:
        centred, rotated = (_steps(frames, name, s).to_numpy() for s in ("centred", "decorrelated"))
        most = max(most, int(np.abs(centred - rotated).max()))
        kappas = [_condition(frames, name, s) for s in ("centred", "decorrelated")]
        worst = max(worst, abs(kappas[0] / kappas[1] - 1))
    return Judged(
        most <= 1 and worst < 1e-3,
        f"at most {most} steps' difference in {len(DATA) * SEEDS} runs; κ within {number(worst)}",
        "none (exact law); one step and 1e-3 for rounding",
    )


@claim(
    "course notes, Neural Networks 2", "whitened data have zero mean and an identity covariance",
    stands="qualified",
    but="Only where every eigenvalue is far above the 1e-5 that is added to it: the covariance "
    "becomes λ/(λ + 1e-5). The 1e-5 has the units of the data, so that data in small units stay "
    "short of white.",
)  # fmt: skip
def whitening_leaves_lambda_over_lambda_plus_epsilon(frames: Frames) -> Judged:
    """Whitened wine has κ = 1 to a thousandth or so; whitened breast cancer keeps a κ of 15."""
    rows = where(frames["conditioning"], step="whitened").set_index("data")
    off = (rows["condition"] / rows["theory"] - 1).abs().max()
    return Judged(
        bool(off < 1e-3) and rows["condition"]["wine"] < 1.01 and rows["condition"]["cancer"] > 10,
        ", ".join(f"κ {number(rows['condition'][d])} {d}" for d in DATA),
        ", ".join(number(rows["theory"][d]) for d in DATA) + " by λ/(λ + 1e-5)",
    )


@claim(
    "slide 39", "subtract the mean image (32 x 32 x 3), or the mean of each channel (3 numbers)",
    stands="qualified",
    but="The slide offers the two as equals. They are where pictures are cut from anywhere. "
    "Digits stand in the middle of their frames, and there a mean image removes far more than one "
    "number does.",
)  # fmt: skip
def three_numbers_remove_what_a_mean_image_does_unless_pictures_are_aligned(
    frames: Frames,
) -> Judged:
    """Of photographs 3 numbers remove as much as 3072; of digits one removes far less than 64."""
    image, channel = (
        _removed(frames, "photographs", s) for s in ("mean image", "mean of each channel")
    )
    extra, chance = (image - channel).mean(), (1 - channel.mean()) / 520
    ours, one = (_removed(frames, "digits", s).iloc[0] for s in ("mean image", ONE))
    return Judged(
        0 <= extra < 3 * chance and ours > one + 0.1,
        f"{image.mean():.2%} and {channel.mean():.2%} of the second moment; digits {ours:.0%} and "
        f"{one:.0%}",
        f"a mean of 520 patches removes {chance:.2%} more by chance, at most",
    )


def _removed(frames: Frames, name: str, subtraction: str) -> pd.Series[float]:
    rows = where(frames["means"], data=name, subtracted=subtraction)
    return rows.set_index("seed")["removed"]


@claim("slide 39", "lists the mean image and the mean of each channel, not each image's own mean")
def the_mean_of_each_image_takes_its_brightness_with_it(frames: Frames) -> Judged:
    """The own mean of each image removes most, and whatever the brightness could have told."""
    told = where(frames["means"], data="photographs").set_index(["subtracted", "seed"])
    share = told["by brightness"]
    removed = _removed(frames, "photographs", "mean of each image")
    before, after = share["mean of each channel"], share["mean of each image"]
    width = 4 * math.sqrt(0.25 / (260 * CUTS))
    return Judged(
        abs(after.mean() - 0.5) < width and before.mean() > 0.5 + width
        and bool((before == share["nothing"]).all()),
        f"{removed.mean():.0%} removed; temple or flower by brightness: {after.mean():.1%} right, "
        f"{before.mean():.1%} with the means that all images share",
        f"50% ± {width:.1%} (4 sd), as by guessing",
    )  # fmt: skip


@claim(
    "course notes, Neural Networks 2",
    "whitening can greatly exaggerate noise; a number above 1e-5 smooths it",
)
def whitening_blows_noise_up_and_a_larger_epsilon_calms_it(frames: Frames) -> Judged:
    """One grey level of noise, 0.01% of the patches, becomes 9% of them when they are whitened."""
    by = frames["noise"].groupby("eps")
    before, after, theory = (by[c].mean() for c in ("before", "after", "theory"))
    factor = after / before
    return Judged(
        bool((after / theory - 1).abs().max() < 0.02) and factor[EPS] > 10 * factor[1e-2] > 10,
        f"noise's share × {number(factor[EPS])} with 1e-5, × {number(factor[1e-2])} with 1e-2",
        f"× {number((theory / before)[EPS])} and × {number((theory / before)[1e-2])}: "
        "Σ τ²/(λ + ε) over Σ λ/(λ + ε)",
    )


@claim(
    "course notes, Neural Networks 2",
    "statistics come from the training data only; to compute them on all data would be a mistake",
    stands="qualified",
    but="A mean and a deviation over training and test rows together flatter no accuracy here: "
    "both sets move alike. What they hide is a drift of the test set, of which four fifths are no "
    "longer seen. It is the test set scaled by itself that flatters, by what the drift had cost.",
)
def a_leaking_scaler_hides_the_drift_rather_than_flattering(frames: Frames) -> Judged:
    """Scaled over all rows a drift of 1 sd looks like 0.2, accuracy unmoved; scaled by itself the
    test set hides both."""
    still, moved = (where(frames["leak"], drift=d) for d in (0.0, 1.0))
    extra, error = (moved["all"] - moved["train"]).mean(), _error(moved["all"] - moved["train"])
    own, own_error = (moved["own"] - moved["train"]).mean(), _error(moved["own"] - moved["train"])
    p = 40 / 178
    law = p / math.sqrt(1 + p * (1 - p))
    return Judged(
        abs(extra) < 0.01 and own > max(0.02, 4 * own_error)
        and abs(moved["all mean"].mean() - law) < 0.02
        and abs((still["all"] - still["train"]).mean()) < 0.01,
        f"shows {moved['all mean'].mean():.2f} sd of {moved['train mean'].mean():.2f}; accuracy "
        f"{moved['train'].mean():.3f}, {extra:+.3f} ± {error:.3f} over all rows, {own:+.3f} ± "
        f"{own_error:.3f} by itself",
        f"{law:.3f} sd: p / √(1 + p(1 - p)), p = 40/178 the training rows' share; 0; what drift "
        f"cost, {still['train'].mean() - moved['train'].mean():.3f}",
    )  # fmt: skip


@claim("nndiag", "looks at a network, its loss and one batch; it has no rule for the data as such")
def nndiag_sees_raw_measurements_by_the_units_that_they_saturate(frames: Frames) -> Judged:
    """`saturation` finds raw inputs behind tanh; a ReLU net on raw wine passes, and hardly
    learns."""
    told = frames["verdicts"].set_index("network")
    tanh = told[told.index.str.startswith("tanh")]
    raw = tanh.index.str.endswith("raw")
    return Judged(
        bool(tanh[raw].leading.str.startswith("saturation at 1").all())
        and bool((tanh[~raw].verdict == "healthy").all())
        and told.verdict["ReLU: wine, raw"] == "healthy",
        "; ".join(f"{n}: {r.leading}" for n, r in told.iterrows()),
        "saturation in the first layer for the three raw tanh nets, none for the others: what ReLU "
        "makes of large inputs is in proportion to them, and no rule asks how large they are",
    )
