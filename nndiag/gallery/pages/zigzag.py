"""The zig-zag: inputs that are all positive.

**Signs.** One linear layer of 1000 units with 200 independent inputs: tanh, ReLU or sigmoid of
N(0, 1), or pixels uniform from 0 to 1. The error signal δ of each unit and example is N(0, 1). A
weight's gradient is the sum of δ·x over the batch. *Coherence* is the share of a unit's weight
gradients that have the sign of the sum of its δ (one half is chance; zero gradients left out), at
batches of 1 to 256, eight seeds. k is the mean of an input over its standard deviation. Then a real
network: 64-100-100-10 with sigmoid or tanh, Xavier weights, on digits, by SGD (rate 0.5, batch 64),
the gradient of its second layer over all 1297 examples at steps 0, 10, 100 and 300, six seeds.

**Path.** The lecture's picture: one unit w·x with two weights, from (0, 0) to the goal w* = (1,
-1), by SGD, one example a step, on the squared error ½(w·x - w*·x)². Forty examples uniform in the
unit square, as they are or less their mean; 40 seeds; a run ends when 5 % of the distance are left.
Rates from 0.25 to 11 in steps of √2.

**Count.** Gradient descent on a linear layer of d = 10 or 100 independent inputs, 400·d examples,
until a thousandth of the distance is left, at the best constant rate, 2/(largest + smallest
eigenvalue of the second moments E[x xᵀ]); five seeds. By theory the condition number of E[x xᵀ] is
1 + d·k².

**Real data.** Softmax regression with a bias by gradient descent on a random half of digits (pixels
over 16), breast cancer and wine (features over their standard deviation), as they are, none
negative, and less each feature's mean; five halves. Both are the same model: the bias can take up
the mean. The count is of steps to a training loss of 0.1, 0.05 and 0.01, each at the best of 17
constant rates in steps of √2, from 8/λ to 2048/λ, where λ is the largest eigenvalue of the second
moments of the features and the bias's 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nndiag import activations, theory
from nndiag.gallery.lab import Lab, digits, mlp, normal, table, train
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.plots import BAD, COLORS, GOOD, QUIET
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PAGE = Page(
    number=2,
    title="The zig-zag of all-positive inputs",
    claim="If all inputs of a unit are positive, the gradients of its weights are all positive or "
    "all negative, and the way to a good direction is a zig-zag: this is why one wants zero-mean "
    "data.",
    sources=(
        "CS231n 2017, lecture 6, slides 20 and 21",
        "CS231n course notes, Neural Networks 1",
        "LeCun et al. 1998, section 4.3",
    ),
    caption="Top left: the path of two weights to their goal with positive inputs (each step up "
    "and right, or down and left) and with centred ones, at one small learning rate. Top right: "
    "the share of a unit's weight gradients of one sign falls with the batch to what theory says "
    "(dashed). Bottom left: steps of gradient descent against those that 1 + d·k² predicts. Bottom "
    "right: steps to the same loss on real data, all positive and centred, each at its best rate.",
)

UNITS, FEATURES, BATCHES, SIGN_SEEDS = 1000, 200, (1, 4, 16, 64, 256), 8
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "ReLU": torch.relu,
    "pixels": lambda z: torch.special.ndtr(z),
    "sigmoid": torch.sigmoid,
}
"""Of z from N(0, 1); its distribution function makes it uniform."""

GOAL, LEFT, EXAMPLES, PATH_SEEDS, CAP = (1.0, -1.0), 0.05, 40, 40, 3000
RATES = tuple(0.25 * 2 ** (n / 2) for n in range(12))
DIMENSIONS, DESCENT_SEEDS, PER_FEATURE = (10, 100), 5, 400
REAL = {"digits": 0.1, "cancer": 0.05, "wine": 0.01}
HALVES, STEPS = 5, 4000
NETWORK_SEEDS, TRAINED = 6, (0, 10, 100, 300)


# -- signs ---------------------------------------------------------------------------------------


def ratio(name: str) -> float:
    """|mean| / std of an input."""
    if name == "pixels":
        return math.sqrt(3)
    act = activations.named(name.lower())
    assert act is not None
    found = theory.moments(act, 1.0)
    return round(abs(found.mean) / found.std, 12)


def coherence(delta: Tensor, x: Tensor) -> tuple[float, float]:
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


def signs(name: str, seed: int) -> pd.DataFrame:
    """A row a batch size."""
    draws = torch.Generator().manual_seed(seed)
    rows = []
    for batch in BATCHES:
        delta = torch.randn(batch, UNITS, generator=draws)
        x = INPUTS[name](torch.randn(batch, FEATURES, generator=draws))
        share, one = coherence(delta, x)
        rows.append(
            {"inputs": name, "seed": seed, "batch": batch, "coherence": share, "one_sign": one}
        )
    return pd.DataFrame(rows)


def stack(activation: Callable[[], nn.Module], seed: int, depth: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp([64, *[100] * depth, 10], activation, normal(lambda n: 1 / math.sqrt(n)))


def trained_signs(
    activation: type[nn.Module], seed: int, steps: tuple[int, ...] = TRAINED
) -> pd.DataFrame:
    """The second layer's gradient over all examples, on the way of training."""
    x, y, _, _ = digits()
    model = stack(activation, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rows = []
    before = 0
    for step in steps:
        losses = train(model, x, y, optimizer, step - before, seed=1000 * seed + step)
        before = step
        hidden = model[:2](x)
        z = model[2](hidden)
        z.retain_grad()
        nn.functional.cross_entropy(model[3:](z), y).backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        share, one = coherence(z.grad, hidden.detach())
        rows.append(
            {
                "network": activation.__name__, "seed": seed, "step": step, "coherence": share,
                "one_sign": one, "loss": losses[-1] if losses else math.nan,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


# -- the path ------------------------------------------------------------------------------------


def walk(centred: bool, rate: float, seed: int) -> Array:
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


def path(centred: bool, rate: float, seed: int) -> dict[str, object]:
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
        "inputs": "centred" if centred else "positive", "rate": rate, "seed": seed,
        "steps": len(moves) if there else CAP,
        "length": float(np.linalg.norm(moves, axis=1).sum()) / straight if there else math.nan,
        "forced": float(forced) / straight if there else math.nan,
        "same_way": float((moves[:, 0] * moves[:, 1] >= 0).mean()),
    }  # fmt: skip


# -- the count -----------------------------------------------------------------------------------


def descent_steps(condition: float) -> float:
    """Steps to a thousandth at the best rate: each leaves (κ - 1)/(κ + 1)."""
    left = (condition - 1) / (condition + 1)
    return max(math.log(1000) / -math.log(left), 1.0) if left > 0 else 1.0


def descend(name: str, d: int, seed: int) -> dict[str, object]:
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


def half(name: str, seed: int, centred: bool) -> tuple[Tensor, Tensor]:
    """A random half of real data, no feature negative or all of zero mean."""
    x, y = table(name)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: len(x) // 2]
    x, y = x[chosen].double(), y[chosen]
    x = x / 16 if name == "digits" else x / x.std(dim=0)
    return (x - x.mean(dim=0) if centred else x), y


def regress(x: Tensor, y: Tensor, rate: float, target: float, most: int) -> list[float]:
    """The loss at each step of gradient descent from zero weights, until ``target`` or ``most``."""
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    wanted = nn.functional.one_hot(y).to(x.dtype)
    weights = torch.zeros(ones.shape[1], wanted.shape[1], dtype=x.dtype)
    losses: list[float] = []
    while len(losses) <= most:
        logs = torch.log_softmax(ones @ weights, dim=1)
        losses.append(-(logs * wanted).sum().item() / len(x))
        if losses[-1] <= target or not losses[-1] < 1e3:
            break
        weights -= rate / len(x) * (ones.T @ (logs.exp() - wanted))
    return losses


def race(name: str, seed: int, centred: bool) -> dict[str, object]:
    """The fewest steps to the target over all rates."""
    x, y = half(name, seed, centred)
    # With a bias: the largest eigenvalue of the second moments of (x, 1); a softmax's curvature is
    # at most half of it (Böhning 1992).
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    largest = torch.linalg.eigvalsh(ones.T @ ones / len(x))[-1].item()
    best: list[float] = []
    multiple, most = math.nan, STEPS
    # From the middle outwards: who is slower than the best so far is stopped.
    for times in (64 * 2 ** (n / 2) for n in sorted(range(-8, 9), key=abs)):
        losses = regress(x, y, times * 2 / largest, REAL[name], most)
        if losses[-1] <= REAL[name] and (not best or len(losses) < len(best)):
            best, multiple, most = losses, times, len(losses) - 1
    mean, variance = x.mean(dim=0).square().sum(), x.var(dim=0).sum()
    return {
        "data": name, "inputs": "centred" if centred else "positive", "seed": seed,
        "steps": len(best) - 1 if best else STEPS, "rate": multiple * 2 / largest,
        "multiple": multiple, "largest": largest, "k": (mean / variance).sqrt().item(),
    }  # fmt: skip


# -- all of it -----------------------------------------------------------------------------------


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    found: dict[str, list[Any]] = {
        name: [] for name in ("signs", "networks", "paths", "ways", "descents", "races")
    }
    for part in lab.track(["signs", "networks", "paths", "descents", *REAL]):
        if part == "signs":
            found[part] = [signs(name, seed) for name in INPUTS for seed in range(SIGN_SEEDS)]
        elif part == "networks":
            for activation in (nn.Sigmoid, nn.Tanh):
                found[part] += [trained_signs(activation, seed) for seed in range(NETWORK_SEEDS)]
        elif part == "paths":
            for centred in (False, True):
                for rate in RATES:
                    found[part] += [path(centred, rate, seed) for seed in range(PATH_SEEDS)]
                way = pd.DataFrame(walk(centred, RATES[2], 0), columns=["w1", "w2"])
                found["ways"].append(way.assign(inputs="centred" if centred else "positive"))
        elif part == "descents":
            found[part] = [
                descend(name, d, seed)
                for name in INPUTS
                for d in DIMENSIONS
                for seed in range(DESCENT_SEEDS)
            ]
        else:
            found["races"] += [
                race(part, seed, centred) for seed in range(HALVES) for centred in (False, True)
            ]
    _check(lab)
    whole = ("signs", "networks", "ways")
    return {
        name: pd.concat(rows) if name in whole else pd.DataFrame(rows)
        for name, rows in found.items()
    }


def _check(lab: Lab) -> None:
    x, y, _, _ = digits()
    loss = nn.functional.cross_entropy
    for name, activation in (("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh), ("ReLU", nn.ReLU)):
        lab.check(f"{name} stack", stack(activation, 0), x[:256], y[:256], loss_fn=loss)
    raw, labels = half("cancer", 0, centred=False)
    for name, data in (("positive", raw), ("centred", raw - raw.mean(dim=0))):
        torch.manual_seed(0)
        model = nn.Linear(30, 2)
        lab.check(f"regression, {name} inputs", model, data.float(), labels, loss_fn=loss)


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    real = _compared(frames["races"])
    return {
        "Share of a unit's weight gradients with the sign of the sum of its δ": pd.DataFrame(
            {
                "inputs": name,
                "k": ratio(name),
                **{
                    f"batch {batch}": spread(where(rows, batch=batch).coherence)
                    for batch in BATCHES
                },
                "theory, large batch": theory.sign_coherence(ratio(name)),
                "units of one sign, batch 256": spread(where(rows, batch=256).one_sign),
            }
            for name, rows in groups(frames["signs"])
        ),
        f"To the goal by single examples, {PATH_SEEDS} seeds": pd.DataFrame(
            {
                "rate": rate,
                "steps, positive": _steps(frames, "positive", rate),
                "steps, centred": _steps(frames, "centred", rate),
                "path over straight line, positive": _median(frames, "positive", rate, "length"),
                "path over straight line, centred": _median(frames, "centred", rate, "length"),
            }
            for rate in sorted(frames["paths"].rate.unique())
        ),
        "Steps of gradient descent to a thousandth": pd.DataFrame(
            {
                "inputs": name, "d": d, "condition number": spread(rows.condition),
                "1 + d·k²": theory.mean_square_condition(ratio(name), d),
                "steps": spread(rows.steps),
                "steps by 1 + d·k²": descent_steps(theory.mean_square_condition(ratio(name), d)),
            }
            for name, each in groups(frames["descents"])
            for d, rows in ((d, where(each, d=d)) for d in DIMENSIONS)
        ),
        f"Steps to the same loss on real data, {HALVES} halves": pd.DataFrame(
            {
                "data": name, "k": spread(rows.k), "steps, positive": spread(rows.steps_positive),
                "steps, centred": spread(rows.steps_centred), "ratio": spread(rows["ratio"]),
                "best rate, positive": spread(rows.rate_positive),
                "best rate, centred": spread(rows.rate_centred),
                "largest eigenvalue, positive over centred": spread(rows.eigenvalues),
            }
            for name, rows in real.groupby("data", sort=False)
        ),
    }  # fmt: skip


def groups(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """By inputs, in the order of INPUTS."""
    return [(name, where(rows, inputs=name)) for name in INPUTS]


def _steps(frames: Frames, inputs: str, rate: float) -> str:
    """The median and the extremes; a run that does not arrive has no steps."""
    steps = where(frames["paths"], inputs=inputs, rate=rate).steps
    arrived, text = steps[steps < CAP], f"{number(float(steps.median()))} "
    if len(arrived) <= len(steps) / 2:
        return f"{len(steps) - len(arrived)} of {len(steps)} never arrive"
    lost = f", {len(steps) - len(arrived)} never" if len(arrived) < len(steps) else ""
    return f"{text}({arrived.min()} to {arrived.max()}{lost})"


def _median(frames: Frames, inputs: str, rate: float, column: str) -> float:
    """NaN where most do not arrive."""
    rows = where(frames["paths"], inputs=inputs, rate=rate)
    return float(rows[column].median()) if (rows.steps < CAP).mean() > 0.5 else math.nan


def _compared(races: pd.DataFrame) -> pd.DataFrame:
    """A row a data set and half: positive beside centred."""
    sides = [where(races, inputs=inputs) for inputs in ("positive", "centred")]
    both = sides[0].merge(sides[1], on=["data", "seed"], suffixes=("_positive", "_centred"))
    return both.assign(
        ratio=both.steps_positive / both.steps_centred,
        eigenvalues=both.largest_positive / both.largest_centred,
        k=both.k_positive,
    )


def draw(frames: Frames, figure: Figure) -> None:
    figure.set_size_inches(10, 7.6)
    grid: Any = figure.subplots(2, 2)
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


def _draw_ways(frames: Frames, axes: Any) -> None:
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


# -- what it shows -------------------------------------------------------------------------------


@claim("slide 20", "What can we say about the gradients on w?")
def one_example_moves_all_weights_of_a_unit_the_same_way(frames: Frames) -> Judged:
    """On one example with positive inputs all weight gradients of a unit have one sign."""
    one = where(frames["signs"], batch=1)
    positive = one[one.inputs != "tanh"]
    units = len(positive) * UNITS
    tanh = where(one, inputs="tanh").one_sign.max()
    return Judged(
        bool((positive.one_sign == 1).all() and (positive.coherence == 1).all()) and tanh == 0,
        f"all of {units:,} units; of tanh inputs, none",
        "all: each is δ·x with x > 0 (ReLU's zeros have none); of centred inputs 2⁻¹⁹⁹",
    )


@claim(
    "slide 21", "Always all positive or all negative :(", stands="qualified",
    but="Always for one example. The gradient of a batch is a sum over examples whose δ differ in "
    "sign: of sigmoid outputs 87 % of a unit's weights still go one way, of ReLU's 69 %, and one "
    "unit in four (sigmoid) or one in a thousand (ReLU) has a single sign left. The course notes "
    "say so themselves.",
)  # fmt: skip
def over_a_batch_the_signs_mix_as_far_as_the_mean_allows(frames: Frames) -> Judged:
    """Over a batch a share of 1/2 + arctan(k)/π of a unit's weight gradients goes one way."""
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


@claim(
    "course notes, Neural Networks 1",
    "added up across a batch the update can have variable signs, 'somewhat mitigating this issue'",
    stands="qualified",
    but="In a sigmoid network they hardly do: over all 1297 examples five of six weights of a unit "
    "are still moved one way, at the start and after training. Only what is centred mixes them.",
)
def a_whole_data_set_does_not_mix_the_signs_of_a_sigmoid_layer(frames: Frames) -> Judged:
    """Over all digits a sigmoid's next layer still moves most weights of a unit one way."""
    shares = frames["networks"].groupby("network").coherence
    sigmoid, tanh = (shares.get_group(name) for name in ("Sigmoid", "Tanh"))
    return Judged(
        sigmoid.min() > theory.sign_coherence(1.0) and abs(tanh.mean() - 0.5) < 0.03,
        f"{spread(sigmoid)} from step 0 to {TRAINED[-1]}; tanh {spread(tanh)}",
        "over 0.75, which is k = 1; a half if they mixed",
    )


@claim("slide 21", "zig zag path")
def with_positive_inputs_the_path_is_a_zigzag(frames: Frames) -> Judged:
    """A path of single positive examples goes only up-right or down-left, and is a detour."""
    rows = where(frames["paths"], rate=RATES[0])
    positive, centred = (where(rows, inputs=name) for name in ("positive", "centred"))
    return Judged(
        bool((positive.same_way == 1).all() and (positive.length > positive.forced).all())
        and bool((positive.length.to_numpy() > centred.length.to_numpy()).all()),
        f"{spread(positive.length)} times the straight line, centred {spread(centred.length)}",
        "over √2 = 1.41 with one sign a step, over 1 without",
    )


@claim(
    "slide 21", "allowed gradient update directions (two quadrants of four)", stands="qualified",
    but="The detour itself costs nothing: at one small rate both arrive after the same number of "
    "steps, because the zig and the zag cancel and the mean step towards the goal is the same. And "
    "one sign a step forces no path longer than √2 times the straight line, in any dimension. What "
    "costs is the curvature along the common mean, which limits the rate.",
)  # fmt: skip
def at_one_small_rate_the_zigzag_takes_no_more_steps(frames: Frames) -> Judged:
    """At one small learning rate positive and centred inputs need the same number of steps."""
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


def best_rate(frames: Frames, inputs: str) -> float:
    """With the smallest median of steps."""
    rows = where(frames["paths"], inputs=inputs)
    rates: list[float] = list(rows.rate.unique())
    return min(rates, key=lambda rate: float(where(rows, rate=rate).steps.median()))


@claim("slide 21", "this is also why you want zero-mean data!")
def centred_inputs_bear_a_larger_rate_and_need_fewer_steps(frames: Frames) -> Judged:
    """Each at its best rate, the path of centred inputs takes fewer steps to the goal."""
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


@claim(
    "LeCun et al. 1998, section 4.3", "convergence is faster if the mean of each input is near zero"
)
def the_mean_of_the_inputs_predicts_the_steps_of_gradient_descent(frames: Frames) -> Judged:
    """The condition number is 1 + d·k², and the steps to a thousandth follow from it."""
    rows = frames["descents"]
    theirs = [
        theory.mean_square_condition(ratio(name), d)
        for name, d in zip(rows.inputs, rows.d, strict=True)
    ]
    # Of 400 examples a feature, the eigenvalues are within (1 ± 1/20)² (Marchenko & Pastur).
    edge = (1 + 1 / 20) ** 2 / (1 - 1 / 20) ** 2
    conditions = rows.condition / theirs
    least = np.array([descent_steps(condition) for condition in theirs])
    most = np.array([descent_steps(edge * condition) for condition in theirs])
    kept = (rows.steps > 0.9 * least) & (rows.steps < most + 1)
    longest, shortest = (rows.steps[rows.inputs == name] for name in ("sigmoid", "tanh"))
    return Judged(
        bool(kept.all() and conditions.between(0.95, edge).all()),
        f"{spread(shortest)} steps (tanh) to {spread(longest[rows.d == 100])} (sigmoid, d = 100); "
        f"condition over 1 + d·k²: {spread(conditions)}",
        f"{number(least.min())} to {number(least.max())} steps; 1 to {number(edge)}",
    )


@claim("slide 21", "this is also why you want zero-mean data!")
def real_data_train_in_fewer_steps_when_centred(frames: Frames) -> Judged:
    """Regression on digits, cancer and wine reaches the same loss in fewer steps when centred."""
    real = _compared(frames["races"])
    low = real["ratio"].min()
    arrived = bool((frames["races"].steps < STEPS).all())
    # All 15 of 15 have a chance of 3e-5, were it as likely either way.
    return Judged(
        arrived and low > 1,
        ", ".join(f"{name} ÷ {spread(rows['ratio'])}"
                  for name, rows in real.groupby("data", sort=False)),
        "over 1 in all 15 halves; 1 without effect, since the model is the same",
    )  # fmt: skip


@claim(
    "nndiag", "warns of hidden layers far from zero mean", stands="qualified",
    but="It looks at hidden activations only: it has no rule for the data, and passes a regression "
    "on all-positive inputs that takes many times the steps.",
)  # fmt: skip
def nndiag_warns_of_the_sigmoid_stack_and_not_of_positive_data(frames: Frames) -> Judged:
    """`non-zero-centered` leads for the sigmoid stack; tanh, ReLU and positive data pass."""
    told = frames["verdicts"].set_index("network")
    sick = told[told.verdict == "sick"]
    blamed = sick.leading.str.startswith("non-zero-centered").all()
    return Judged(
        list(sick.index) == ["sigmoid stack"] and bool(blamed),
        "; ".join(f"{name}: {row.leading}" for name, row in told.iterrows()),
        "non-zero-centered for sigmoid alone",
    )
