"""Dead ReLUs as geometry.

A ReLU unit is never active, or *dead*, if its pre-activation w·x + b is at most zero on every
training example.

**The cloud.** Wine, its 13 features standardised and reduced to the first two principal components:
178 points in the plane, three classes. A network 2-24-3, He weights, zero biases, trained for 200
steps of 64 examples by Adam at 0.5, ten seeds. A unit's line is where w·x + b = 0. Its gradient is
that of a random direction of the outputs, over all points. Then 200 steps of plain SGD (rate 0.1)
on top.

**The rate.** Digits (1297 to train on), network 64-100-100-100-10, He weights, zero biases, 200
steps of 64 examples, five seeds, at each learning rate of Adam and of SGD; Leaky ReLU (slope 0.01)
with Adam, too. Of a diverged network, one whose outputs are not finite, nothing is counted. The
networks of Adam at 0.03 are then trained by plain SGD (rate 0.05) for 300 steps more. Biases of
hidden layers start at 0.01, 0.1 or 1 in the last panel.

**Before training.** Narrow networks of ten hidden layers, He weights, zero biases, 3000 of each
width: dead if their last hidden layer is zero on all inputs, which are one point of the cloud, or
every fourth, 45 of them. And ten hidden layers of 200 units, He weights, on digits, five seeds:
theory has the share of never-active units from the mean cosine between two inputs of the layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import spatial, stats
from torch import Tensor, nn

from nndiag import theory
from nndiag.gallery.lab import Lab, accuracy, digits, mlp, normal, table, train
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.plots import BAD, COLORS, GOOD, QUIET
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

PAGE = Page(
    number=3,
    title="Dead ReLUs as geometry",
    claim="A ReLU unit whose line lies off the data cloud never activates and never updates; as "
    "much as 40 % of a network can die so if the learning rate is too high, and people like to "
    "start from slightly positive biases.",
    sources=(
        "CS231n 2017, lecture 6, slides 26 to 30",
        "CS231n course notes, Neural Networks 1 and 2",
        "Lu et al. 2019",
    ),
    caption="Top: a cloud of 178 wines and the lines of 24 units, each with a tick to the side on "
    "which it is active; before training all cut the cloud, after 200 steps at too high a rate "
    "many lie off it (red: dead). Bottom left: the share of dead units against the learning rate "
    "on digits, with the notes' 40 % dashed; where SGD's line ends, its networks diverge. Bottom "
    "right: the share for four initial biases, by Adam at 0.03.",
)

CLOUD_UNITS, CLOUD_SEEDS, CLOUD_RATE = 24, 10, 0.5
SEEDS, STEPS, WIDTH = 5, 200, 100
RATES = {
    "Adam": (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
    "SGD": (0.1, 0.3, 0.5, 0.7, 1.0, 2.0),
    "Adam, Leaky ReLU": (1e-2, 3e-2, 0.1),
}
SICK_RATE = 0.03
BIASES = ((0.01, 1e-2), (0.01, SICK_RATE), (0.1, SICK_RATE), (1.0, SICK_RATE))
WIDTHS, DEPTH, NETWORKS = (2, 3, 5, 10), 10, 3000
DEEP_WIDTH = 200
FAR = 0.4
"""The course notes' 40 %."""


def he(linear: nn.Linear) -> None:
    normal(lambda n: math.sqrt(2 / n))(linear)


def dead(z: Tensor) -> Tensor:
    """Which units are never active; z is (examples, units)."""
    return z.detach().max(dim=0).values <= 0


def layers(model: nn.Sequential, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The pre-activations of the hidden layers, and the outputs."""
    found = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            found.append(x)
    return found[:-1], found[-1]


def without_gradient(model: nn.Sequential, x: Tensor, seed: int) -> list[Tensor]:
    """By hidden layer, which units' weights get no gradient at all, for a random direction."""
    draws = torch.Generator().manual_seed(seed)
    model.zero_grad()
    out = model(x)
    (out * torch.randn(out.shape, generator=draws, dtype=out.dtype)).sum().backward()
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    return [(linear.weight.grad == 0).all(dim=1) for linear in linears[:-1]]  # type: ignore[union-attr]


# -- the cloud -----------------------------------------------------------------------------------


def cloud() -> tuple[Tensor, Tensor]:
    """Wine in the plane, and its classes."""
    x, y = table("wine")
    x = ((x - x.mean(dim=0)) / x.std(dim=0)).double()
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    plane = u[:, :2] * s[:2] * torch.sign(u[0, :2])
    return plane / plane.std(), y


def cloud_network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp([2, CLOUD_UNITS, 3], nn.ReLU, he).double()


def too_fast(model: nn.Sequential, seed: int) -> None:
    x, y = cloud()
    train(model, x, y, torch.optim.Adam(model.parameters(), lr=CLOUD_RATE), STEPS, seed)


def geometry(model: nn.Sequential, seed: int) -> dict[str, int]:
    """Dead units, counted on all points, on the corners of their hull, and by their gradient."""
    x, _ = cloud()
    corners = x[spatial.ConvexHull(x.numpy()).vertices.astype(np.int64)]
    by_data, by_corners = dead(model[0](x)), dead(model[0](corners))
    [silent] = without_gradient(model, x, seed)
    return {
        "units": len(by_data), "corners": len(corners), "dead": int(by_data.sum()),
        "dead_by_corners": int(by_corners.sum()), "without_gradient": int(silent.sum()),
        "mismatches": int(((by_data != by_corners) | (by_data != silent)).sum()),
    }  # fmt: skip


def trained_on(
    model: nn.Sequential, x: Tensor, y: Tensor, rate: float, steps: int, seed: int
) -> pd.DataFrame:
    """What dead units do in more steps of plain SGD; a row a hidden layer."""
    linears = [layer for layer in model if isinstance(layer, nn.Linear)][:-1]
    was = [dead(z) for z in layers(model, x)[0]]
    start = [linear.weight.detach().clone() for linear in linears]
    train(model, x, y, torch.optim.SGD(model.parameters(), lr=rate), steps, seed)
    rows = []
    for place, (linear, z) in enumerate(zip(linears, layers(model, x)[0], strict=True)):
        moved, off = (linear.weight != start[place]).any(dim=1), was[place]
        rows.append(
            {
                "layer": place + 1, "dead": int(off.sum()), "moved": int((off & moved).sum()),
                "back": int((off & ~dead(z)).sum()), "alive": int((~off).sum()),
                "alive_moved": int((~off & moved).sum()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def in_the_cloud(seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Counts before and after training, the units' lines, and what more training does."""
    model, counts, lines = cloud_network(seed), [], []
    x, y = cloud()
    for when in ("before", "after"):
        if when == "after":
            too_fast(model, seed)
        counts.append({"seed": seed, "when": when, **geometry(model, seed)})
        weight, bias = (model.get_parameter(f"0.{name}").detach() for name in ("weight", "bias"))
        lines.append(
            pd.DataFrame(
                {
                    "when": when, "w1": weight[:, 0], "w2": weight[:, 1], "b": bias,
                    "dead": dead(model[0](x)),
                }
            )
        )  # fmt: skip
    more = trained_on(model, x, y, 0.1, STEPS, seed).assign(network="cloud", seed=seed)
    return pd.DataFrame(counts), pd.concat(lines), more


# -- the rate ------------------------------------------------------------------------------------


def network(seed: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: float = 0.0) -> Any:
    torch.manual_seed(seed)
    model = mlp([64, WIDTH, WIDTH, WIDTH, 10], activation, he)
    for layer in list(model)[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, bias)
    return model


def trained(case: str, rate: float, seed: int, bias: float = 0.0, steps: int = STEPS) -> Any:
    """A network trained on digits, as RATES names it."""
    x, y, _, _ = digits()
    model = network(seed, nn.LeakyReLU if "Leaky" in case else nn.ReLU, bias)
    make = torch.optim.SGD if case == "SGD" else torch.optim.Adam
    train(model, x, y, make(model.parameters(), lr=rate), steps, seed)
    return model


def counted(model: nn.Sequential, seed: int) -> dict[str, float]:
    """Shares of all hidden units; NaN of a network whose outputs are not finite."""
    x, y, _, _ = digits()
    hidden, out = layers(model, x)
    share = {f"dead_{n}": dead(z).double().mean().item() for n, z in enumerate(hidden, start=1)}
    naive = float(np.mean(list(share.values())))
    if not torch.isfinite(out).all():
        share = dict.fromkeys(share, math.nan)
        silent, right = math.nan, math.nan
    else:
        rows = torch.cat(without_gradient(model, x, seed))
        silent, right = rows.double().mean().item(), accuracy(model, x, y)
    return {
        "finite": float(torch.isfinite(out).all()), **share,
        "never_positive": float(np.mean(list(share.values()))), "naive": naive,
        "without_gradient": silent, "accuracy": right,
    }  # fmt: skip


# -- before training -----------------------------------------------------------------------------


def born_dead(width: int) -> float:
    """By Lu et al. 2019: each of the layers below being alive, a layer is off with 2^-width."""
    return float(1 - (1 - 2.0**-width) ** DEPTH)


def stillborn(width: int, seed: int, networks: int = NETWORKS) -> dict[str, object]:
    """Shares of narrow networks whose last hidden layer is off on one point, or on all 45."""
    draws = np.random.default_rng(seed)
    points = cloud()[0].numpy()[::4]
    y: Any = np.broadcast_to(points, (networks, *points.shape))
    for _ in range(DEPTH):
        weights = draws.normal(0, math.sqrt(2 / y.shape[2]), (networks, y.shape[2], width))
        y = np.maximum(y @ weights, 0)
    on = y.any(axis=2)
    return {
        "width": width, "networks": networks, "one_point": float(1 - on[:, 0].mean()),
        "all_points": float(1 - on.any(axis=1).mean()),
    }  # fmt: skip


def untrained(seed: int) -> pd.DataFrame:
    """Never-active units of a deep He network on digits, and as many as theory has."""
    x, _, _, _ = digits()
    torch.manual_seed(seed)
    rows = []
    for layer in range(1, DEPTH + 1):
        linear = nn.Linear(x.shape[1], DEEP_WIDTH)
        he(linear)
        directions = nn.functional.normalize(x.detach().double(), dim=1)
        n = len(x)
        cosine = ((directions.sum(dim=0).square().sum() - n) / (n * (n - 1))).item()
        z = linear(x)
        rows.append(
            {
                "seed": seed, "layer": layer, "cosine": cosine,
                "never_active": dead(z).double().mean().item(),
                "theory": theory.never_active(n, cosine), "active": (z > 0).double().mean().item(),
            }
        )  # fmt: skip
        x = torch.relu(z)
    return pd.DataFrame(rows)


# -- all of it -----------------------------------------------------------------------------------


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    counts: list[pd.DataFrame] = []
    rates: list[dict[str, object]] = []
    biases: list[dict[str, object]] = []
    more: list[pd.DataFrame] = []
    lines = pd.DataFrame()
    points, classes = cloud()
    for part in lab.track(["cloud", *RATES, "biases", "networks"]):
        if part == "cloud":
            for seed in range(CLOUD_SEEDS):
                found, drawn, then = in_the_cloud(seed)
                counts.append(found)
                more.append(then)
                lines = drawn if seed == 0 else lines
        elif part in RATES:
            for rate in RATES[part]:
                for seed in range(SEEDS):
                    model = trained(part, rate, seed)
                    row = {"rate": rate, "seed": seed, **counted(model, seed)}
                    rates.append({"case": part, **row})
                    if part == "Adam" and rate == SICK_RATE:
                        biases.append({"bias": 0.0, **row})
                        x, y, _, _ = digits()
                        then = trained_on(model, x, y, 0.05, 300, seed)
                        more.append(then.assign(network="digits", seed=seed))
                    elif part == "Adam" and rate == BIASES[0][1]:
                        biases.append({"bias": 0.0, **row})
        elif part == "biases":
            for bias, rate in BIASES:
                for seed in range(SEEDS):
                    row = counted(trained("Adam", rate, seed, bias), seed)
                    biases.append({"bias": bias, "rate": rate, "seed": seed, **row})
        else:
            still = [stillborn(width, seed=0) for width in WIDTHS]
            deep = [untrained(seed) for seed in range(SEEDS)]
    named = _check(lab)
    return {
        "cloud": pd.DataFrame({"x1": points[:, 0], "x2": points[:, 1], "class": classes}),
        "lines": lines, "geometry": pd.concat(counts), "rates": pd.DataFrame(rates),
        "more": pd.concat(more), "biases": pd.DataFrame(biases), "stillborn": pd.DataFrame(still),
        "untrained": pd.concat(deep), "named": named,
    }  # fmt: skip


def _check(lab: Lab) -> pd.DataFrame:
    """How many layers nndiag calls dead, in the lead or as the consequence of something else."""
    points, classes = cloud()
    fresh, killed = cloud_network(0), cloud_network(0)
    too_fast(killed, 0)
    x, y, _, _ = digits()
    torch.manual_seed(0)
    deep = mlp([64, *[DEEP_WIDTH] * DEPTH, 10], nn.ReLU, he)
    networks = {
        "cloud, before": (fresh, points, classes),
        "cloud, after": (killed, points, classes),
        "Adam, 0.001": (trained("Adam", 1e-3, 0), x, y),
        "Adam, 0.1": (trained("Adam", 0.1, 0), x, y),
        "Adam, 0.1, another seed": (trained("Adam", 0.1, 1), x, y),
        "Leaky ReLU, Adam, 0.1": (trained("Adam, Leaky ReLU", 0.1, 0), x, y),
        "SGD, 2.0": (trained("SGD", 2.0, 0), x, y),
        "ten layers, untrained": (deep, x, y),
    }
    rows = []
    for name, (model, inputs, target) in networks.items():
        report = lab.check(name, model, inputs, target, loss_fn=nn.functional.cross_entropy)
        named = [f for f in report.at_least("warning") if f.rule == "dead-relu"]
        rows.append({"network": name, "dead_layers": len(named)})
    return pd.DataFrame(rows)


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    more = frames["more"]
    return {
        f"Never-active units on digits, {SEEDS} seeds": pd.DataFrame(
            {
                "training": case, "rate": rate, "diverged": _diverged(rows),
                "share of units": _known(rows.never_positive),
                "layer 1": rows.dead_1.mean(), "layer 2": rows.dead_2.mean(),
                "layer 3": rows.dead_3.mean(),
                "units without gradient": _known(rows.without_gradient),
                "accuracy": rows.accuracy.mean(),
            }
            for case in RATES for rate in RATES[case]
            for rows in [where(frames["rates"], case=case, rate=rate)]
        ),
        "The same by the biases' start (Adam)": pd.DataFrame(
            {
                "rate": rate, "bias": bias, "share of units": spread(rows.never_positive),
                "accuracy": spread(rows.accuracy),
            }
            for rate in (BIASES[0][1], SICK_RATE)
            for bias in sorted(where(frames["biases"], rate=rate).bias.unique())
            for rows in [where(frames["biases"], rate=rate, bias=bias)]
        ),
        "Dead units in further training by plain SGD, all seeds": pd.DataFrame(
            {
                "network": name, "hidden layer": layer, "dead": int(rows.dead.sum()),
                "of these moved": int(rows.moved.sum()), "back to life": int(rows.back.sum()),
                "alive": int(rows.alive.sum()), "of those moved": int(rows.alive_moved.sum()),
            }
            for name, layer in (("cloud", 1), ("digits", 1), ("digits", 2), ("digits", 3))
            for rows in [where(more, network=name, layer=layer)]
        ),
        f"Dead before training: {NETWORKS} narrow networks of {DEPTH} layers": pd.DataFrame(
            {
                "width": width, "1 - (1 - 2^-width)^10": born_dead(width),
                "on one point": row.one_point.item(),
                "on 45 points of the cloud": row.all_points.item(),
            }
            for width in WIDTHS for row in [where(frames["stillborn"], width=width)]
        ),
    }  # fmt: skip


def _diverged(rows: pd.DataFrame) -> str:
    return f"{int((rows.finite == 0).sum())} of {len(rows)}"


def _known(values: pd.Series[float]) -> str:
    return spread(values.dropna()) if values.notna().any() else ""


def draw(frames: Frames, figure: Figure) -> None:
    figure.set_size_inches(10, 8.4)
    grid: Any = figure.subplots(2, 2, height_ratios=[1.15, 1])
    for axes, when in zip(grid[0], ("before", "after"), strict=True):
        _draw_cloud(frames, axes, when)
    axes = grid[1, 0]
    for place, case in enumerate(RATES):
        rows = where(frames["rates"], case=case)
        column = "without_gradient" if "Leaky" in case else "never_positive"
        found = rows.groupby("rate")[column]
        mean = found.mean().dropna()
        axes.semilogx(mean.index, mean, "o-", ms=4, color=COLORS[place], label=case)
        axes.fill_between(
            mean.index, found.min()[mean.index], found.max()[mean.index],
            color=COLORS[place], alpha=0.15, lw=0,
        )  # fmt: skip
    axes.axhline(FAR, color=QUIET, ls="--", lw=1)
    axes.set(title="share of dead units, digits", xlabel="learning rate", ylim=(-0.03, 1.03))
    axes.legend(loc="upper left")
    axes = grid[1, 1]
    rows = where(frames["biases"], rate=SICK_RATE)
    starts = sorted(rows.bias.unique())
    for place, bias in enumerate(starts):
        shares = where(rows, bias=bias).never_positive
        axes.plot([place] * len(shares), shares, "o", color=COLORS[0], alpha=0.6)
        axes.plot([place - 0.2, place + 0.2], [shares.mean()] * 2, color=COLORS[0])
    axes.axhline(FAR, color=QUIET, ls="--", lw=1)
    axes.set(
        title="share of dead units by the biases' start", xlabel="bias", ylim=(0, 0.6),
        xticks=range(len(starts)), xticklabels=[number(bias) for bias in starts],
    )  # fmt: skip


def _draw_cloud(frames: Frames, axes: Any, when: str) -> None:
    points, lines = frames["cloud"], where(frames["lines"], when=when)
    axes.plot(points.x1, points.x2, "o", ms=3, color=QUIET, alpha=0.6)
    far = 12.0
    each: Any = lines.itertuples()
    for line in each:
        normal = np.array([line.w1, line.w2])
        size = np.linalg.norm(normal)
        foot, along = -line.b * normal / size**2, np.array([-line.w2, line.w1]) / size
        color = BAD if line.dead else GOOD
        ends = np.array([foot - far * along, foot + far * along])
        axes.plot(*ends.T, color=color, lw=1.4 if line.dead else 0.9, alpha=0.8)
        tick = np.array([foot, foot + 0.35 * normal / size])
        axes.plot(*tick.T, color=color, lw=2)
    count = int(lines.dead.sum())
    axes.set(
        title=f"{when} training: {count} of {len(lines)} dead", xlim=(-4, 4), ylim=(-4, 4),
        aspect="equal", xticks=[], yticks=[],
    )  # fmt: skip
    axes.grid(False)


# -- what it shows -------------------------------------------------------------------------------


@claim("slide 27", "a unit whose line lies off the data cloud is a dead ReLU (picture)")
def a_unit_is_dead_exactly_if_the_hull_of_the_data_is_on_its_wrong_side(frames: Frames) -> Judged:
    """A unit gets no gradient exactly if all corners of the cloud's hull are on its wrong side."""
    rows = frames["geometry"]
    return Judged(
        bool((rows.mismatches == 0).all() and rows.dead.sum() > 0),
        f"{rows.mismatches.sum()} of {rows.units.sum()} units otherwise, {rows.dead.sum()} dead; "
        f"{rows.corners.iloc[0]} corners of {len(frames['cloud'])} points decide",
        "none: a linear function is largest at a corner",
    )


@claim(
    "slide 27", "will never activate => never update", stands="qualified",
    but="So it is in the first layer, whose inputs stay as they are. Units of deeper layers see "
    "inputs that the layers below still change: most of their dead stay dead, and a few come back "
    "(the course notes call it irreversible).",
)  # fmt: skip
def dead_units_never_move_in_the_first_layer_and_may_come_back_behind_it(frames: Frames) -> Judged:
    """Dead units of the first layer stay as they are, bit by bit; a few deeper ones come back."""
    first, deeper = where(frames["more"], layer=1), frames["more"].query("layer > 1")
    back = int(deeper.back.sum())
    return Judged(
        bool(first.moved.sum() == 0 and first.dead.sum() > 0 and back > 0),
        f"first layer: {first.moved.sum()} of {first.dead.sum()} dead units moved, "
        f"{first.alive_moved.sum()} of {first.alive.sum()} alive ones; behind it {back} of "
        f"{deeper.dead.sum()} dead units are active again after 300 steps of plain SGD",
        "none in the first layer, where the gradient is exactly zero; none behind it, were it for "
        "good",
    )


def crossing(frames: Frames, case: str = "Adam") -> float:
    """The rate at which the mean share passes 40 %, between two rates on logarithms."""
    mean = where(frames["rates"], case=case).groupby("rate").never_positive.mean()
    at = int(np.argmax(mean.to_numpy() >= FAR))
    (low, high), (below, above) = np.log(mean.index[at - 1 : at + 1]), mean.iloc[at - 1 : at + 1]
    return math.exp(low + (high - low) * (FAR - below) / (above - below))


@claim(
    "course notes, Neural Networks 1",
    "as much as 40% of your network can be 'dead' if the learning rate is set too high",
    stands="qualified",
    but="It depends on optimiser and rate, neither of which is named, and 40 % is no ceiling: with "
    "Adam a rate of 0.03 kills a third and 0.1 nearly nine in ten. Nor is a third dead a failure: "
    "those networks still classify 97 % of the examples right on which they were trained.",
)  # fmt: skip
def the_dead_share_grows_with_adams_rate_and_passes_40_percent(frames: Frames) -> Judged:
    """With Adam the share of dead units grows with the rate, to 40 % and far beyond."""
    rows = where(frames["rates"], case="Adam")
    mean = rows.groupby("rate").never_positive.mean()
    right = where(rows, rate=SICK_RATE).accuracy
    grows = bool((np.diff(mean) > 0).all())
    return Judged(
        grows and mean.iloc[0] < 0.1 and mean.iloc[-1] > FAR and right.min() > 0.9,
        f"{mean.iloc[0]:.1%} at {mean.index[0]}, {mean[SICK_RATE]:.1%} at {SICK_RATE} (accuracy "
        f"{spread(right)}), {mean.iloc[-1]:.1%} at {mean.index[-1]}; 40 % at "
        f"{number(crossing(frames))}",
        "more with each rate, past 40 %",
    )


@claim(
    "course notes, Neural Networks 1", "dead 'if the learning rate is set too high'",
    stands="qualified",
    but="With plain SGD one mostly does not get to see it: from a rate that kills next to nothing "
    "it is less than a factor of 2 to networks that diverge or hardly have a live unit. Of a "
    "diverged one, count nothing: NaN is not at most zero, so that a plain count takes its units "
    "for alive.",
)  # fmt: skip
def sgd_diverges_rather_than_kill_a_part(frames: Frames) -> Judged:
    """SGD at half its fatal rate kills next to nothing; at that rate it kills most or diverges."""
    rows = where(frames["rates"], case="SGD")
    fine, fatal = where(rows, rate=0.5).never_positive, rows.query("rate >= 1")
    lost = fatal.finite == 0
    naive = fatal.naive[lost]
    return Judged(
        bool(fine.max() < 0.1 and (lost | (fatal.never_positive > FAR)).all()) and lost.sum() > 0,
        f"{spread(fine)} dead at 0.5; from 1.0 on {lost.sum()} of {len(lost)} diverge (a plain "
        f"count says {spread(naive)} dead of them), {spread(fatal.never_positive[~lost])} dead of "
        "the rest",
        "below 10 % at 0.5; from 1.0 on none finite with less than 40 % dead",
    )


@claim(
    "slide 28",
    "people like to initialize ReLU neurons with slightly positive biases (e.g. 0.01)",
    stands="qualified",
    but="They do, but it saves none that one could measure here: a learning rate that throws units "
    "off the data does not notice 0.01. The course notes doubt it, too (not clear if it provides a "
    "consistent improvement).",
)
def a_bias_of_a_hundredth_saves_no_unit(frames: Frames) -> Judged:
    """Starting from biases of 0.01 does not change the share of dead units."""
    rows = frames["biases"].set_index(["rate", "seed"])
    with_, without = (rows[rows.bias == bias].never_positive for bias in (0.01, 0.0))
    difference = (with_ - without).to_numpy()
    n = len(difference)
    half = float(stats.t.ppf(0.995, n - 1) * difference.std(ddof=1) / math.sqrt(n))
    mean = float(difference.mean())
    # Were the test blind, an interval wider than 0.05 to each side would tell.
    return Judged(
        abs(mean) < half < 0.05,
        f"{mean:+.3f} ± {half:.3f} (99 %, {n} pairs at rates {BIASES[0][1]} and {SICK_RATE})",
        "0",
    )


@claim("slide 30", "Leaky ReLU: will not 'die'")
def leaky_relu_has_no_unit_without_gradient(frames: Frames) -> Judged:
    """At the rates that kill ReLU every Leaky ReLU unit still gets a gradient."""
    leaky = where(frames["rates"], case="Adam, Leaky ReLU")
    relu = where(frames["rates"], case="Adam", rate=0.1)
    worst = where(leaky, rate=0.1)
    return Judged(
        bool((leaky.without_gradient == 0).all()),
        f"none, though {spread(worst.never_positive)} are never positive at 0.1; ReLU "
        f"{spread(relu.without_gradient)} without gradient",
        "0: its slope is nowhere zero",
    )


@claim("Lu et al. 2019", "narrow deep ReLU networks die before training")
def narrow_deep_networks_are_born_dead_as_often_as_the_formula_says(frames: Frames) -> Judged:
    """On one point a network is born dead with 1 - (1 - 2^-width)^depth; on more, less often."""
    rows = frames["stillborn"]
    theirs = np.array([born_dead(width) for width in rows.width])
    deviation = np.sqrt(theirs * (1 - theirs) / rows.networks)
    off = float((abs(rows.one_point - theirs) / deviation).max())
    return Judged(
        off < 4 and bool((rows.all_points <= rows.one_point).all()),
        ", ".join(f"{value:.1%}" for value in rows.one_point)
        + f" at widths {', '.join(str(width) for width in rows.width)}; the farthest is "
        f"{number(off)} standard deviations off",
        ", ".join(f"{value:.1%}" for value in theirs),
    )


@claim(
    "course notes, Neural Networks 1", "monitor the fraction of dead units in a network",
    stands="qualified",
    but="A deep network has never-active units before it was trained at all: the inputs of deep "
    "layers resemble each other, and what is off on one is off on many. Only what exceeds that is "
    "the learning rate's.",
)  # fmt: skip
def deep_healthy_networks_have_never_active_units_before_training(frames: Frames) -> Judged:
    """An untrained He network has a tenth of never-active units in its tenth layer."""
    rows = where(frames["untrained"], layer=DEPTH)
    theirs = rows.theory.mean()
    first = where(frames["untrained"], layer=1).never_active.mean()
    # Theory takes all pairs of inputs to be equally alike, which digits are not.
    return Judged(
        theirs / 1.5 < rows.never_active.mean() < theirs * 1.5 and first < 0.01,
        f"{spread(rows.never_active)} at layer {DEPTH}, {number(float(first))} at layer 1",
        f"{number(float(theirs))} from the inputs' mean cosine {number(float(rows.cosine.mean()))} "
        "(one-factor normal), within a factor of 1.5",
    )


@claim(
    "nndiag", "names dead units where the learning rate killed them", stands="qualified",
    but="It finds the dead layers of all three that Adam killed, but for one of two seeds at 0.1 "
    "takes them for the consequence of too large weights (init-scale), which the same rate has "
    "made, as it has those of the Leaky ReLU network. It sees no learning rate.",
)  # fmt: skip
def nndiag_finds_the_dead_and_spares_the_untrained(frames: Frames) -> Judged:
    """`dead-relu` is found wherever Adam killed, and nowhere else; NaN is `non-finite`."""
    named = frames["named"].set_index("network").dead_layers
    told = frames["verdicts"].set_index("network").leading.str.split().str[0]
    killed = {"cloud, after", "Adam, 0.1", "Adam, 0.1, another seed"}
    healthy = {"cloud, before", "Adam, 0.001", "ten layers, untrained"}
    return Judged(
        set(named.index[named > 0]) == killed
        and {name for name, rule in told.items() if rule == "none"} == healthy
        and told["cloud, after"] == "dead-relu"
        and told["SGD, 2.0"] == "non-finite",
        "; ".join(f"{name}: {rule}, dead layers {named[str(name)]}" for name, rule in told.items()),
        "dead layers in the three that Adam killed alone; none for the healthy",
    )
