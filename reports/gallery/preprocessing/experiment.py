"""Page 7: data preprocessing."""

import functools
import itertools
import math

import numpy as np
import pandas as pd
import torch
from gallery import figures
from gallery.lab import (
    he,
    mlp,
    photographs,
    table,
    tiles,
    train,
    xavier,
)  # fmt: skip
from gallery.page import Judged, number, spread, summary, where
from torch import nn

STEPS = ("raw", "centred", "scaled", "decorrelated", "whitened")
DATA = ("wine", "cancer", "digits", "patches")
EPS, SEEDS, CUTS, LEAKS = 1e-5, 5, 10, 100
TARGET = {"wine": 0.2, "cancer": 0.2, "digits": 0.2, "patches": 0.5}
ONE = "mean of each channel"
CAP, NET_CAP = 5000, 800
RATES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
GREY = 1 / 255


def fitted(x, step, eps=EPS):
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


def through(x, step, eps=EPS):
    """These rows after a step that was fitted to them."""
    mean, matrix = fitted(x, step, eps)
    return (x - mean) @ matrix


def second_moments(x):
    """The eigenvalues of XᵀX/N, the smallest first."""
    return np.linalg.eigvalsh(x.T @ x / len(x))


@functools.cache
def data(name):
    if name == "patches":
        x, y = tiles(8)
        return x / 255, y
    x, y = table(name)
    rows = x.double().numpy()
    return rows[:, rows.std(axis=0) > 0], y.numpy()


def crops(seed, size=32, each=260):
    """Patches cut at random places: (2 · each, size, size, 3), and their photographs; shuffled."""
    draws, images = np.random.default_rng(seed), photographs() / 255
    _, height, width, _ = images.shape
    found = []
    for image, _ in itertools.product(images, range(each)):
        top, left = draws.integers(height - size + 1), draws.integers(width - size + 1)
        found.append(image[top : top + size, left : left + size])
    order = draws.permutation(2 * each)
    return np.stack(found)[order], np.repeat([0, 1], each)[order]


def conditioning(name):
    """A row a step: the eigenvalues of XᵀX/N, and κ of whitened data by theory."""
    x, _ = data(name)
    covariance = second_moments(through(x, "centred"))
    shrunk = covariance / (covariance + EPS)
    rows = []
    for step in STEPS:
        values = second_moments(through(x, step))
        theory = shrunk.max() / shrunk.min() if step == "whitened" else math.nan
        rows.append((name, step, values[-1], values[0], values[-1] / values[0], theory))
    return pd.DataFrame(
        rows, columns=["data", "step", "largest", "smallest", "condition", "theory"]
    )


def descent(x, y, target, cap=CAP):
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


def half(name, seed):
    x, y = data(name)
    chosen = np.random.default_rng(seed).permutation(len(x))[: min(len(x) // 2, 2000)]
    x, y = x[chosen], y[chosen]
    return x[:, x.std(axis=0) > 0], y


def regression(name, step, seed):
    """Steps of gradient descent on half of the rows, and κ of these."""
    x, y = half(name, seed)
    x = through(x, step)
    values = second_moments(x)
    losses = descent(x, y, TARGET[name])
    reached = losses[-1] <= TARGET[name]
    return {
        "data": name, "step": step, "seed": seed, "condition": values[-1] / values[0],
        "steps": len(losses) - 1 if reached else CAP, "reached": reached,
    }  # fmt: skip


class Rates:
    """Plain SGD on a stack of networks, each at a rate of its own."""

    def __init__(self, params, rates):
        self.params, self.rates = params, rates

    def zero_grad(self):
        for param in self.params:
            param.grad = None

    @torch.no_grad()
    def step(self):
        for param in self.params:
            param -= self.rates * param.grad


def nets(name, step, seeds):
    """A row a rate and seed: a small net by SGD. All nets are trained side by side."""
    x, y = half(name, seeds[0])
    prepared, count = through(x, step), len(seeds)
    inputs, targets = torch.tensor(prepared, dtype=torch.float32), torch.tensor(y)
    features, classes = inputs.shape[1], int(y.max()) + 1
    params = []
    for shape in ((features, 32), (1, 32), (32, classes), (1, classes)):
        std = math.sqrt(2 / shape[0]) if shape[0] > 1 else 0.0
        draws = (torch.Generator().manual_seed(seed) for seed in seeds)
        drawn = torch.stack([std * torch.randn(*shape, generator=draw) for draw in draws])
        params.append(drawn.repeat(len(RATES), 1, 1).requires_grad_())
    rates = torch.tensor(RATES).repeat_interleave(count).reshape(-1, 1, 1)
    first = np.full(len(rates), NET_CAP)

    def forward(rows):
        return (rows @ params[0] + params[1]).relu() @ params[2] + params[3]

    def losses(logits, labels):
        return -logits.log_softmax(dim=2)[:, torch.arange(len(labels)), labels].mean(dim=1)

    def look(taken, images, labels):
        if taken % 5 == 0:
            with torch.no_grad():
                there = (losses(forward(inputs), targets) < TARGET[name]).numpy()
            first[there & (first == NET_CAP)] = taken
        return images

    optimizer = Rates(params, rates / second_moments(prepared)[-1])
    train(forward, inputs, targets, optimizer, NET_CAP, seeds[0], 32, loss=losses, before=look)
    return pd.DataFrame({
        "data": name, "step": step, "rate·λmax": np.repeat(RATES, count),
        "seed": np.tile(seeds, len(RATES)), "steps": first,
    })  # fmt: skip


SUBTRACTIONS = {
    "nothing": lambda train, x: x,
    "mean of each image": lambda train, x: x - x.mean(axis=(1, 2, 3), keepdims=True),
    "mean image": lambda train, x: x - train.mean(axis=0),
    "mean of each channel": lambda train, x: x - train.mean(axis=(0, 1, 2)),
}


def stored(name, shape):
    """How many numbers a subtraction keeps from training."""
    return {"mean image": math.prod(shape), "mean of each channel": shape[-1]}.get(name, 0)


def subtracted(seed):
    """A row a subtraction: what it removes of random crops, and what brightness still tells."""
    x, y = crops(seed)
    middle, rows = len(x) // 2, []
    for name, less in SUBTRACTIONS.items():
        # rounded: a mean that is zero up to rounding says nothing
        bright = less(x[:middle], x).mean(axis=(1, 2, 3)).round(9)
        cut, sign = stump(bright[:middle], y[:middle])
        right = float(((sign * (bright[middle:] - cut) > 0) == y[middle:]).mean())
        rows.append({"data": "photographs", **removed(name, x), "seed": seed,
                     "by brightness": right})  # fmt: skip
    return rows


def removed(name, x):
    """What share of the second moment a subtraction takes from these images."""
    share = 1 - (SUBTRACTIONS[name](x, x) ** 2).sum() / (x**2).sum()
    return {"subtracted": name, "stored": stored(name, x.shape[1:]), "removed": share}


def stump(values, labels):
    """The cut, and the side of it, that tell two classes apart best."""
    best = (-1.0, 0.0, 1)
    for cut in np.unique(values):
        for sign in (1, -1):
            best = max(best, (float(((sign * (values - cut) > 0) == labels).mean()), cut, sign))
    return best[1], best[2]


def digits_subtracted():
    x = table("digits")[0].double().numpy().reshape(-1, 8, 8, 1)
    return [{"data": "digits", **removed(n, x), "seed": 0, "by brightness": math.nan}
            for n in SUBTRACTIONS]  # fmt: skip


def noise(eps, seed):
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


def leak(drift, seed, train=40):
    """Scalers fitted to the training rows, to all, to each set by itself: accuracy, drift left.

    The drift moves each measurement of the test rows by so many of its standard deviations, up or
    down.
    """
    x, y = data("wine")
    draws = np.random.default_rng(seed)
    order = draws.permutation(len(x))
    x, y = x[order], y[order]
    signs = draws.choice([-1.0, 1.0], x.shape[1])
    known, moved = x[:train], x[train:] + drift * x.std(axis=0) * signs
    row, whole = {"drift": drift, "seed": seed}, np.vstack([known, moved])
    for name, *sides in (("train", known, known), ("all", whole, whole), ("own", known, moved)):
        scalers = [fitted(side, "scaled") for side in sides]
        seen, unseen = (
            (rows - mean) @ matrix
            for rows, (mean, matrix) in zip((known, moved), scalers, strict=True)
        )
        centres = np.stack([seen[y[:train] == c].mean(axis=0) for c in range(3)])
        distance = ((unseen[:, None] - centres) ** 2).sum(axis=2)
        row[name] = float((distance.argmin(axis=1) == y[train:]).mean())
        row[f"{name} mean"] = round(float((unseen.mean(axis=0) * signs).mean()), 9)
    return row


PIXELS = 16
"""The sides of the drawn patches: every second pixel of 32."""


def drawn_patches():
    """Four patches, and the mean image of all 520, a row a pixel."""
    images = tiles(32)[0].reshape(-1, 32, 32, 3) / 255
    kept = {f"patch {n}": images[n] for n in (107, 253, 390, 436)} | {"mean": images.mean(axis=0)}
    frames = []
    for name, image in kept.items():
        small = image[::2, ::2].reshape(-1, 3)
        frames.append(pd.DataFrame(np.round(small, 3), columns=["r", "g", "b"]).assign(patch=name))
    return pd.concat(frames)[["patch", "r", "g", "b"]]


def checked(seed=0):
    """The same small net on data as they are and prepared, each with a batch."""
    found = {}
    for name, step in (
        ("wine", "raw"), ("wine", "scaled"), ("cancer", "raw"), ("cancer", "scaled"),
        ("digits", "raw"), ("digits", "centred"), ("digits", "whitened"),
    ):  # fmt: skip
        x, y = data(name)
        torch.manual_seed(seed)
        inputs = torch.tensor(through(x, step), dtype=torch.float32)[:128]
        widths = [x.shape[1], 32, 32, int(y.max()) + 1]
        kinds = {"tanh": mlp(widths, nn.Tanh, xavier)}
        if name == "wine":
            kinds["ReLU"] = mlp(widths, nn.ReLU, he)
        for kind, model in kinds.items():
            found[f"{kind}: {name}, {step}"] = (model, inputs, torch.tensor(y)[:128])
    return found


def measure(lab):
    seeds, steps, by_sgd = lab.seeds(SEEDS), [], []
    for name in lab.track(DATA):
        for step in STEPS:
            steps += [regression(name, step, seed) for seed in seeds]
            if name in ("wine", "cancer"):
                by_sgd.append(nets(name, step, seeds))
    for name, (model, inputs, targets) in checked(lab.first).items():
        lab.check(name, model, inputs, targets)
    means = [row for seed in lab.seeds(CUTS) for row in subtracted(seed)] + digits_subtracted()
    columns = ["data", "subtracted", "seed", "stored", "removed", "by brightness"]
    x, y = data("wine")
    return {
        "conditioning": pd.concat(map(conditioning, DATA)),
        "steps": pd.DataFrame(steps),
        "nets": pd.concat(by_sgd),
        "means": pd.DataFrame(means)[columns],
        "noise": pd.DataFrame(noise(eps, seed) for eps in (EPS, 1e-2) for seed in seeds),
        "leak": pd.DataFrame(leak(d, seed) for d in (0.0, 1.0) for seed in lab.seeds(LEAKS)),
        "cloud": pd.DataFrame({"flavanoids": x[:, 6], "proline": x[:, 12], "class": y}),
        "patches": drawn_patches(),
    }


def best(frames, name, step):
    """The net's best rate (times λmax), and its steps by seed."""
    rows = where(frames["nets"], data=name, step=step)
    rate = float(str(rows.groupby("rate·λmax")["steps"].mean().idxmin()))
    return rate, where(rows, **{"rate·λmax": rate})["steps"]


def late(steps, cap):
    """Steps as mean and range, or how many seeds needed more than the cap."""
    slow = int((steps >= cap).sum())
    some = f" in {slow} of {len(steps)}" if slow < len(steps) else ""
    return f"over {cap:,}{some}" if slow else spread(steps)


def tables(frames):
    rows = []
    for name, step in itertools.product(DATA, STEPS):
        rate, by_sgd = best(frames, name, step) if name in ("wine", "cancer") else ("", None)
        rows.append({
            "data": name, "step": step, "κ": _condition(frames, name, step),
            "steps, softmax": late(_steps(frames, name, step), CAP),
            "best rate of the net, times λmax": rate,
            "steps, net": "" if by_sgd is None else late(by_sgd, NET_CAP),
        })  # fmt: skip
    return {
        "Conditioning, and steps to one loss": pd.DataFrame(rows),
        "What each mean removes": summary(
            frames["means"], ["data", "subtracted"],
            {
                "stored": "numbers kept", "removed": "share of second moment removed",
                "by brightness": "which photograph, by brightness",
            },
        ),
        "Noise of one grey level in 8 x 8 patches, as a share of the second moment": summary(
            frames["noise"], {"eps": "ε"},
            {
                "least gain": "gain of the largest component", "most gain": "of the smallest",
                "before": "noise before", "after": "noise after", "theory": "by theory",
            },
        ),
        "Scalers fitted to 40 training wines, to all rows, to each set by itself; 138 to test":
            summary(
                frames["leak"], {"drift": "drift of the test set, sd"},
                {
                    f"{side}{column}": f"{label}, {heading}"
                    for side, label in (("train", "training rows"), ("all", "all"), ("own", "each"))
                    for column, heading in (("", "accuracy"), (" mean", "drift seen, sd"))
                },
            ),
    }  # fmt: skip


def _steps(frames, name, step):
    return where(frames["steps"], data=name, step=step)["steps"]


def _error(values):
    return float(values.std() / math.sqrt(len(values)))


def draw(frames, figure):
    figure.set_size_inches(11, 7)
    parts = figure.subfigures(2, 1, height_ratios=[1, 1.6])
    top, bottom = parts
    lower = bottom.subfigures(1, 2, width_ratios=[1.9, 1])
    _clouds(frames, top)
    _bars(frames, lower[0])
    _strip(frames, lower[1])


def _clouds(frames, figure):
    rows = frames["cloud"]
    x = rows[["flavanoids", "proline"]].to_numpy()
    for axes, step in zip(figure.subplots(1, len(STEPS)), STEPS, strict=True):
        moved = through(x, step)
        for place in range(3):
            chosen = moved[rows["class"] == place][::2]
            axes.plot(*chosen.T, ".", ms=3, color=figures.COLORS[place])
        centre = moved.mean(axis=0)
        reach = np.abs(moved - centre).max() * 1.1
        for side, middle in zip(("x", "y"), centre, strict=True):
            axes.set(**{f"{side}lim": (middle - reach, middle + reach)})
        axes.set(title=step, aspect="equal")
        axes.axhline(0, color=figures.QUIET, lw=0.6)
        axes.axvline(0, color=figures.QUIET, lw=0.6)
        axes.locator_params(nbins=4)
        axes.tick_params(labelsize=7)


def _bars(frames, figure):
    left, right = figure.subplots(1, 2, sharey=True)
    for place, step in enumerate(STEPS):
        where_at = np.arange(len(DATA)) + (place - 2) * 0.16
        condition = [
            where(frames["conditioning"], data=d, step=step)["condition"].iloc[0] for d in DATA
        ]
        found = [_steps(frames, d, step) for d in DATA]
        style = {"height": 0.16, "color": figures.COLORS[place], "left": 0.7}
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


def _strip(frames, figure):
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


# -- judging -------------------------------------------------------------------------------------


def _condition(frames, name, step):
    return float(where(frames["conditioning"], data=name, step=step)["condition"].iloc[0])


def scaling_helps_unlike_units_and_leaves_pixels_as_they_were(frames) -> Judged:
    holds, parts = True, []
    for name in ("wine", "cancer"):
        raw, scaled = _steps(frames, name, "raw"), _steps(frames, name, "scaled")
        before, after = best(frames, name, "raw")[1], best(frames, name, "scaled")[1]
        gain = _condition(frames, name, "centred") / _condition(frames, name, "scaled")
        holds &= (raw >= CAP).all() and scaled.max() < CAP / 100
        holds &= after.max() < before.min() / 10 and gain > 1000
        parts.append(
            f"{name} {late(raw, CAP)} steps to {number(scaled.mean())} "
            f"(net: {late(before, NET_CAP)} to {number(after.mean())})"
        )
    before_mean, after_mean = (
        float(_steps(frames, "patches", s).mean()) for s in ("centred", "scaled")
    )
    ratio = _condition(frames, "patches", "scaled") / _condition(frames, "patches", "centred")
    holds &= 0.5 < after_mean / before_mean < 2 and 0.5 < ratio < 2
    parts.append(f"patches {number(before_mean)} to {number(after_mean)}, κ × {number(ratio)}")
    return Judged(
        holds, "; ".join(parts), "a hundredfold or more for measurements; × 0.5 to 2 for pixels"
    )


def a_far_smaller_condition_number_saves_digits_no_step(frames) -> Judged:
    centred, scaled = _steps(frames, "digits", "centred"), _steps(frames, "digits", "scaled")
    kappa = _condition(frames, "digits", "centred") / _condition(frames, "digits", "scaled")
    return Judged(
        kappa > 1000 and scaled.mean() > 0.8 * centred.mean(),
        f"κ / {number(kappa)}; steps {spread(centred)} centred, {spread(scaled)} scaled",
        "if κ decided: a thousandth of the steps",
    )


def decorrelation_alone_changes_no_step_of_gradient_descent(frames) -> Judged:
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


def whitening_leaves_lambda_over_lambda_plus_epsilon(frames) -> Judged:
    rows = where(frames["conditioning"], step="whitened").set_index("data")
    off = (rows["condition"] / rows["theory"] - 1).abs().max()
    return Judged(
        off < 1e-3 and rows["condition"]["wine"] < 1.01 and rows["condition"]["cancer"] > 10,
        ", ".join(f"κ {number(rows['condition'][d])} {d}" for d in DATA),
        ", ".join(number(rows["theory"][d]) for d in DATA) + " by λ/(λ + 1e-5)",
    )


def three_numbers_remove_what_a_mean_image_does_unless_pictures_are_aligned(frames) -> Judged:
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


def _removed(frames, name, subtraction):
    rows = where(frames["means"], data=name, subtracted=subtraction)
    return rows.set_index("seed")["removed"]


def the_mean_of_each_image_takes_its_brightness_with_it(frames) -> Judged:
    means = where(frames["means"], data="photographs").set_index(["subtracted", "seed"])
    share = means["by brightness"]
    removed = _removed(frames, "photographs", "mean of each image")
    before, after = share["mean of each channel"], share["mean of each image"]
    width = 4 * math.sqrt(0.25 / (260 * CUTS))
    return Judged(
        abs(after.mean() - 0.5) < width and before.mean() > 0.5 + width
        and (before == share["nothing"]).all(),
        f"{removed.mean():.0%} removed; temple or flower by brightness: {after.mean():.1%} right, "
        f"{before.mean():.1%} with the means that all images share",
        f"50% ± {width:.1%} (4 sd), as by guessing",
    )  # fmt: skip


def whitening_blows_noise_up_and_a_larger_epsilon_calms_it(frames) -> Judged:
    by = frames["noise"].groupby("eps")
    before, after, theory = (by[c].mean() for c in ("before", "after", "theory"))
    factor = after / before
    return Judged(
        (after / theory - 1).abs().max() < 0.02 and factor[EPS] > 10 * factor[1e-2] > 10,
        f"noise's share × {number(factor[EPS])} with 1e-5, × {number(factor[1e-2])} with 1e-2",
        f"× {number((theory / before)[EPS])} and × {number((theory / before)[1e-2])}: "
        "Σ τ²/(λ + ε) over Σ λ/(λ + ε)",
    )


def a_leaking_scaler_hides_the_drift_rather_than_flattering(frames) -> Judged:
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


def nndiag_sees_raw_measurements_by_the_units_that_they_saturate(frames) -> Judged:
    verdicts = frames["verdicts"].set_index("network")
    tanh = verdicts[verdicts.index.str.startswith("tanh")]
    raw = tanh.index.str.endswith("raw")
    return Judged(
        tanh[raw].leading.str.startswith("saturation at 1").all()
        and (tanh[~raw].verdict == "healthy").all()
        and verdicts.verdict["ReLU: wine, raw"] == "healthy",
        "; ".join(f"{n}: {r.leading}" for n, r in verdicts.iterrows()),
        "saturation in the first layer for the three raw tanh nets, none for the others: what ReLU "
        "makes of large inputs is in proportion to them, and no rule asks how large they are",
    )
