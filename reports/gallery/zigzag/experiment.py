"""Page 2: the zig-zag of all-positive inputs."""

import itertools
import math

import numpy as np
import pandas as pd
import torch
from gallery.figures import BAD, COLORS, GOOD, QUIET
from gallery.lab import (
    digits,
    largest_curvature,
    mlp,
    sgd,
    softmax_regression,
    table,
    train,
    xavier,
)  # fmt: skip
from gallery.page import Judged, leads, number, sick, spread, summary, where
from torch import nn

from nndiag import activations, theory

UNITS, FEATURES, BATCHES, SIGN_SEEDS = 1000, 200, (1, 4, 16, 64, 256), 8
INPUTS = {
    "tanh": torch.tanh,
    "ReLU": torch.relu,
    "pixels": torch.special.ndtr,
    "sigmoid": torch.sigmoid,
}
"""Of z from N(0, 1); its distribution function makes it uniform."""

GOAL, LEFT, EXAMPLES, PATH_SEEDS, CAP = (1.0, -1.0), 0.05, 40, 40, 3000
RATES = tuple(0.25 * 2 ** (n / 2) for n in range(12))
DIMENSIONS, DESCENT_SEEDS, PER_FEATURE = (10, 100), 5, 400
SIDES = ("positive", "centred")
"""Of the inputs."""
REAL = {"digits": 0.1, "cancer": 0.05, "wine": 0.01}
HALVES, STEPS = 5, 4000
NETWORK_SEEDS, TRAINED = 6, (0, 10, 100, 300)


# -- signs ---------------------------------------------------------------------------------------


def ratio(name):
    """|mean| / std of an input."""
    if name == "pixels":
        return math.sqrt(3)
    found = theory.moments(activations.named(name.lower()), 1.0)
    return round(abs(found.mean) / found.std, 12)


def coherence(delta, x):
    """The mean coherence of the units, and the share of units without a second sign.

    Args:
        delta: (batch, units).
        x: (batch, features), the inputs.
    """
    gradient = delta.T @ x
    agrees = gradient.sign() * delta.sum(dim=0, keepdim=True).T.sign()
    counted = agrees != 0
    share = (agrees > 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    one = ((agrees > 0) | ~counted).all(dim=1) | ((agrees < 0) | ~counted).all(dim=1)
    return share.double().mean().item(), one.double().mean().item()


def signs(name, seed):
    """A row a batch size."""
    draws, rows = torch.Generator().manual_seed(seed), []
    for batch in BATCHES:
        delta = torch.randn(batch, UNITS, generator=draws)
        x = INPUTS[name](torch.randn(batch, FEATURES, generator=draws))
        share, one = coherence(delta, x)
        rows.append((name, seed, batch, share, one))
    return pd.DataFrame(rows, columns=["inputs", "seed", "batch", "coherence", "one_sign"])


def stack(activation, seed):
    torch.manual_seed(seed)
    return mlp([64, 100, 100, 10], activation, xavier)


def trained_signs(activation, seed, steps=TRAINED):
    """The second layer's gradient over all examples, on the way of training."""
    x, y, _, _ = digits()
    model = stack(activation, seed)
    optimizer, rows, before = sgd(model, 0.5), [], 0
    for step in steps:
        losses = train(model, x, y, optimizer, step - before, seed=1000 * seed + step)
        before = step
        hidden = model[:2](x)
        z = model[2](hidden)
        z.retain_grad()
        nn.functional.cross_entropy(model[3:](z), y).backward()
        share, one = coherence(z.grad, hidden.detach())
        rows.append({
            "network": activation.__name__, "seed": seed, "step": step, "coherence": share,
            "one_sign": one, "loss": losses[-1] if len(losses) else math.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


# -- the path ------------------------------------------------------------------------------------


def walk(centred, rate, seed):
    """The weights on their way, a row a step, until LEFT of the distance are left."""
    draws = np.random.default_rng(seed)
    x = draws.uniform(0, 1, (EXAMPLES, 2))
    if centred:
        x = x - x.mean(axis=0)
    goal, way = np.array(GOAL), [np.zeros(2)]
    for chosen in draws.integers(EXAMPLES, size=CAP):
        example = x[chosen]
        way.append(way[-1] - rate * (example @ (way[-1] - goal)) * example)
        away = np.linalg.norm(way[-1] - goal) / np.linalg.norm(goal)
        if away <= LEFT or not away < 1e3:
            break
    return np.array(way)


def path(centred, rate, seed):
    """Its steps (CAP if it does not arrive), its length, and what one sign a step forces.

    Steps of one sign each that add up to D are in all at least as long as |D⁺| + |D⁻|, its positive
    and its negative parts: each sign's steps have to add up to at least its part.
    """
    way = walk(centred, rate, seed)
    moves, whole = np.diff(way, axis=0), way[-1] - way[0]
    there = np.linalg.norm(way[-1] - GOAL) <= LEFT * np.linalg.norm(GOAL)
    straight = float(np.linalg.norm(whole))
    forced = np.linalg.norm(np.maximum(whole, 0)) + np.linalg.norm(np.minimum(whole, 0))
    return {
        "inputs": SIDES[centred], "rate": rate, "seed": seed,
        "steps": len(moves) if there else CAP,
        "length": float(np.linalg.norm(moves, axis=1).sum()) / straight if there else math.nan,
        "forced": float(forced) / straight if there else math.nan,
        "same_way": float((moves[:, 0] * moves[:, 1] >= 0).mean()),
    }  # fmt: skip


# -- the count -----------------------------------------------------------------------------------


def descent_steps(condition):
    """Steps to a thousandth at the best rate: each leaves (κ - 1)/(κ + 1)."""
    left = (condition - 1) / (condition + 1)
    return max(math.log(1000) / -math.log(left), 1.0) if left > 0 else 1.0


def descend(name, d, seed):
    draws = torch.Generator().manual_seed(seed)
    z = torch.randn(PER_FEATURE * d, d, generator=draws, dtype=torch.float64)
    x = INPUTS[name](z)
    moments = x.T @ x / len(x)
    values = torch.linalg.eigvalsh(moments)
    rate = 2 / float(values[0] + values[-1])
    off = torch.randn(d, generator=draws, dtype=torch.float64)
    target, steps = off.norm() / 1000, 0
    while off.norm() > target:
        off = off - rate * (moments @ off)
        steps += 1
    return {
        "inputs": name, "d": d, "seed": seed, "steps": steps,
        "condition": float(values[-1] / values[0]),
    }  # fmt: skip


# -- real data -----------------------------------------------------------------------------------


def half(name, seed, centred):
    """A random half of real data, no feature negative or all of zero mean."""
    x, y = table(name)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: len(x) // 2]
    x, y = x[chosen].double(), y[chosen]
    x = x / 16 if name == "digits" else x / x.std(dim=0)
    return (x - x.mean(dim=0) if centred else x), y


def race(name, seed, centred):
    """The fewest steps to the target over all rates."""
    x, y = half(name, seed, centred)
    largest = largest_curvature(x)
    best, multiple, most = STEPS, math.nan, STEPS
    # From the middle outwards: who is slower than the best so far is stopped.
    for times in (64 * 2 ** (n / 2) for n in sorted(range(-8, 9), key=abs)):
        losses = softmax_regression(x, y, times * 2 / largest, REAL[name], most)
        if losses[-1] <= REAL[name] and len(losses) - 1 < best:
            best, multiple, most = len(losses) - 1, times, len(losses) - 1
    mean, variance = x.mean(dim=0).square().sum(), x.var(dim=0).sum()
    return {
        "data": name, "inputs": SIDES[centred], "seed": seed, "steps": best,
        "rate": multiple * 2 / largest, "multiple": multiple, "largest": largest,
        "k": (mean / variance).sqrt().item(),
    }  # fmt: skip


def measure(lab):
    ways = [
        pd.DataFrame(walk(centred, RATES[2], lab.first), columns=["w1", "w2"]).assign(inputs=side)
        for centred, side in enumerate(SIDES)
    ]
    networks = [trained_signs(f, seed) for f in (nn.Sigmoid, nn.Tanh)
                for seed in lab.seeds(NETWORK_SEEDS)]  # fmt: skip
    descents = itertools.product(INPUTS, DIMENSIONS, lab.seeds(DESCENT_SEEDS))
    races = [race(name, seed, centred) for name in lab.track(REAL)
             for seed in lab.seeds(HALVES) for centred in (False, True)]  # fmt: skip
    x, y, _, _ = digits()
    for name, activation in (("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh), ("ReLU", nn.ReLU)):
        lab.check(f"{name} stack", stack(activation, lab.first), x[:256], y[:256])
    raw, labels = half("cancer", lab.first, centred=False)
    for name, data in (("positive", raw), ("centred", raw - raw.mean(dim=0))):
        torch.manual_seed(lab.first)
        lab.check(f"regression, {name} inputs", nn.Linear(30, 2), data.float(), labels)
    paths = itertools.product((False, True), RATES, lab.seeds(PATH_SEEDS))
    return {
        "signs": pd.concat(signs(name, seed) for name in INPUTS for seed in lab.seeds(SIGN_SEEDS)),
        "networks": pd.concat(networks),
        "paths": pd.DataFrame(path(*each) for each in paths),
        "ways": pd.concat(ways),
        "descents": pd.DataFrame(descend(*each) for each in descents),
        "races": pd.DataFrame(races),
    }


def tables(frames):
    signs, descents = (
        frames[n].assign(k=frames[n].inputs.map(ratio)) for n in ("signs", "descents")
    )
    signs["theory, large batch"] = signs.k.map(theory.sign_coherence)
    descents["1 + d·k²"] = list(map(theory.mean_square_condition, descents.k, descents.d))
    descents["steps by it"] = descents["1 + d·k²"].map(descent_steps)
    paths = frames["paths"]
    there = paths.steps < CAP
    arrived = there.groupby([paths.inputs, paths.rate]).transform("mean")
    paths = paths.assign(arrived=arrived, steps=paths.steps.where(there))
    return {
        "Share of a unit's weight gradients with the sign of the sum of its δ": summary(
            signs, ["inputs", "batch"], ["k", "coherence", "theory, large batch", "one_sign"]
        ),
        f"To the goal by single examples, {PATH_SEEDS} seeds": summary(
            paths, ["inputs", "rate"],
            {"arrived": "share that arrives", "steps": "steps", "length": "path / straight line"},
        ),
        "Steps of gradient descent to a thousandth": summary(
            descents, ["inputs", "d"], ["condition", "1 + d·k²", "steps", "steps by it"]
        ),
        f"Steps to the same loss on real data, {HALVES} halves": summary(
            compared(frames), ["data"],
            {
                "k": "k", "steps_positive": "steps, positive", "steps_centred": "steps, centred",
                "ratio": "ratio", "rate_positive": "best rate, positive",
                "rate_centred": "best rate, centred",
                "eigenvalues": "largest eigenvalue, positive over centred",
            },
        ),
    }  # fmt: skip


def groups(rows):
    """By inputs, in the order of INPUTS."""
    return [(name, where(rows, inputs=name)) for name in INPUTS]


def compared(frames):
    """A row a data set and half: positive beside centred."""
    sides = [where(frames["races"], inputs=inputs) for inputs in SIDES]
    both = sides[0].merge(sides[1], on=["data", "seed"], suffixes=("_positive", "_centred"))
    return both.assign(
        ratio=both.steps_positive / both.steps_centred,
        eigenvalues=both.largest_positive / both.largest_centred,
        k=both.k_positive,
    )


def draw(frames, figure):
    figure.set_size_inches(10, 7.6)
    grid = figure.subplots(2, 2)
    _draw_ways(frames, grid[0, 0])
    axes = grid[0, 1]
    for place, (name, rows) in enumerate(groups(frames["signs"])):
        mean, limit = rows.groupby("batch").coherence.mean(), theory.sign_coherence(ratio(name))
        axes.semilogx(mean.index, mean, "o-", ms=4, base=2, color=COLORS[place], label=name)
        axes.axhline(limit, color=COLORS[place], ls="--", lw=1)
    axes.set(
        title="weight gradients of one sign", xlabel="examples in the batch", ylim=(0.45, 1.02),
        xticks=BATCHES, xticklabels=BATCHES, ylabel="share of a unit's",
    )  # fmt: skip
    axes.legend(ncols=2)
    axes = grid[1, 0]
    ends = np.array([1.0, 3000.0])
    axes.loglog(ends, ends, color=QUIET, lw=1)
    for place, (name, rows) in enumerate(groups(frames["descents"])):
        theirs = [descent_steps(theory.mean_square_condition(ratio(name), d)) for d in rows.d]
        axes.plot(theirs, rows.steps, "o", ms=6, alpha=0.6, color=COLORS[place], label=name)
    axes.set(
        title="steps of gradient descent, d = 10 and 100", xlabel="by 1 + d·k²", ylabel="measured"
    )
    axes.legend()
    axes = grid[1, 1]
    names = list(REAL)
    for inputs, color in (("positive", BAD), ("centred", GOOD)):
        rows = where(frames["races"], inputs=inputs)
        places = rows.data.map(names.index) + 0.09 * (rows.seed - 2)
        axes.semilogy(places, rows.steps, "o", ms=6, alpha=0.8, color=color, label=inputs)
    axes.set(
        title="steps to the same loss, best rate each", xticks=range(3), xticklabels=names,
        xlim=(-0.5, 2.5), ylim=(2, 1500),
    )  # fmt: skip
    axes.legend(loc="upper left")


def _draw_ways(frames, axes):
    for inputs, color in (("positive", BAD), ("centred", GOOD)):
        way = where(frames["ways"], inputs=inputs)
        axes.plot(way.w1, way.w2, "-", lw=1.2, color=color, label=f"{inputs}, {len(way) - 1} steps")
    axes.plot([0, GOAL[0]], [0, GOAL[1]], color=QUIET, lw=1, ls=":")
    axes.plot(0, 0, "o", color="black", ms=6)
    axes.annotate("start", (0, 0), (-6, 6), textcoords="offset points", ha="right")
    axes.plot(*GOAL, "*", color="black", ms=12)
    axes.annotate("goal", GOAL, (8, 6), textcoords="offset points")
    axes.set(title="two weights on their way", xlabel="w₁", ylabel="w₂", aspect="equal")
    axes.margins(0.1)
    axes.legend(loc="lower left")


# -- judging -------------------------------------------------------------------------------------


def one_example_moves_all_weights_of_a_unit_the_same_way(frames) -> Judged:
    one = where(frames["signs"], batch=1)
    positive = one[one.inputs != "tanh"]
    units = len(positive) * UNITS
    tanh = where(one, inputs="tanh").one_sign.max()
    return Judged(
        ((positive.one_sign == 1).all() and (positive.coherence == 1).all()) and tanh == 0,
        f"all of {units:,} units; of tanh inputs, none",
        "all: each is δ·x with x > 0 (ReLU's zeros have none); of centred inputs 2⁻¹⁹⁹",
    )


def over_a_batch_the_signs_mix_as_far_as_the_mean_allows(frames) -> Judged:
    found = {
        name: rows.coherence.mean()
        for name, rows in groups(where(frames["signs"], batch=BATCHES[-1]))
    }
    off = [abs(mean - theory.sign_coherence(ratio(name))) for name, mean in found.items()]
    # A unit's share varies by at most √(1/12) from unit to unit: over 8 seeds of 1000 units 3.5
    # standard errors are 0.0113.
    return Judged(
        max(off) < 0.0113,
        ", ".join(f"{name} {number(mean)}" for name, mean in found.items()),
        ", ".join(f"{number(theory.sign_coherence(ratio(name)))}" for name in INPUTS),
    )


def a_whole_data_set_does_not_mix_the_signs_of_a_sigmoid_layer(frames) -> Judged:
    shares = frames["networks"].groupby("network").coherence
    sigmoid, tanh = (shares.get_group(name) for name in ("Sigmoid", "Tanh"))
    return Judged(
        sigmoid.min() > theory.sign_coherence(1.0) and abs(tanh.mean() - 0.5) < 0.03,
        f"{spread(sigmoid)} from step 0 to {TRAINED[-1]}; tanh {spread(tanh)}",
        "over 0.75, which is k = 1; a half if they mixed",
    )


def with_positive_inputs_the_path_is_a_zigzag(frames) -> Judged:
    rows = where(frames["paths"], rate=RATES[0])
    positive, centred = (where(rows, inputs=name) for name in ("positive", "centred"))
    return Judged(
        ((positive.same_way == 1).all() and (positive.length > positive.forced).all())
        and (positive.length.to_numpy() > centred.length.to_numpy()).all(),
        f"{spread(positive.length)} times the straight line, centred {spread(centred.length)}",
        "over √2 = 1.41 with one sign a step, over 1 without",
    )


def at_one_small_rate_the_zigzag_takes_no_more_steps(frames) -> Judged:
    medians = [
        where(frames["paths"], rate=RATES[0], inputs=name).steps.median()
        for name in ("positive", "centred")
    ]
    # The variance of n examples about their own mean is (n - 1)/n of the square's, 1/12.
    shares = (1.0, (EXAMPLES - 1) / EXAMPLES)
    theirs = [math.log(1 / LEFT) / (RATES[0] / 12 * share) for share in shares]
    # A median of 40 whose relative spread is 0.22 varies by 0.044: three of these.
    return Judged(
        all(abs(median / steps - 1) < 0.13 for median, steps in zip(medians, theirs, strict=True)),
        f"{number(medians[0])} and {number(medians[1])} (medians of {PATH_SEEDS})",
        f"ln(1/{LEFT}) / (rate · variance) = {number(theirs[0])} and {number(theirs[1])}",
    )


def best_rate(frames, inputs):
    """With the smallest median of steps."""
    rows = where(frames["paths"], inputs=inputs)
    rates = list(rows.rate.unique())
    return min(rates, key=lambda rate: float(where(rows, rate=rate).steps.median()))


def centred_inputs_bear_a_larger_rate_and_need_fewer_steps(frames) -> Judged:
    rates = [best_rate(frames, name) for name in ("positive", "centred")]
    positive, centred = (
        where(frames["paths"], inputs=name, rate=rate).steps.to_numpy()
        for name, rate in zip(("positive", "centred"), rates, strict=True)
    )
    fewer = int((centred < positive).sum())
    # Were both alike, as many or more of 40 would be in favour by a chance of 0.0003.
    return Judged(
        rates[1] > rates[0] and fewer >= 31,
        f"{number(float(np.median(positive)))} steps at rate {number(rates[0])}, "
        f"{number(float(np.median(centred)))} at {number(rates[1])}; "
        f"fewer for {fewer} of {PATH_SEEDS} seeds",
        "31 of 40 or more, were it no chance; one rate and as many steps, were there no effect",
    )


def the_mean_of_the_inputs_predicts_the_steps_of_gradient_descent(frames) -> Judged:
    rows = frames["descents"]
    theirs = [theory.mean_square_condition(ratio(name), d)
              for name, d in zip(rows.inputs, rows.d, strict=True)]  # fmt: skip
    # Of 400 examples a feature, the eigenvalues are within (1 ± 1/20)² (Marchenko & Pastur).
    edge = (1 + 1 / 20) ** 2 / (1 - 1 / 20) ** 2
    conditions = rows.condition / theirs
    least, most = (np.array([descent_steps(x * c) for c in theirs]) for x in (1, edge))
    kept = (rows.steps > 0.9 * least) & (rows.steps < most + 1)
    longest, shortest = where(rows, inputs="sigmoid", d=100).steps, where(rows, inputs="tanh").steps
    return Judged(
        kept.all() and conditions.between(0.95, edge).all(),
        f"{spread(shortest)} steps (tanh) to {spread(longest)} (sigmoid, d = 100); "
        f"condition over 1 + d·k²: {spread(conditions)}",
        f"{number(least.min())} to {number(least.max())} steps; 1 to {number(edge)}",
    )


def real_data_train_in_fewer_steps_when_centred(frames) -> Judged:
    real = compared(frames)
    # All 15 of 15 have a chance of 3e-5, were it as likely either way.
    return Judged(
        (frames["races"].steps < STEPS).all() and real["ratio"].min() > 1,
        ", ".join(f"{n} ÷ {spread(rows['ratio'])}" for n, rows in real.groupby("data", sort=False)),
        "over 1 in all 15 halves; 1 without effect, since the model is the same",
    )


def nndiag_warns_of_the_sigmoid_stack_and_not_of_positive_data(frames) -> Judged:
    return Judged(
        sick(frames) == {"sigmoid stack": "non-zero-centered"}, leads(frames),
        "non-zero-centered for sigmoid alone",
    )  # fmt: skip
