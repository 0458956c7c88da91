"""Page 3: dead ReLUs as geometry."""

import itertools
import math

import numpy as np
import pandas as pd
import torch
from gallery.figures import BAD, GOOD, MEASURED, QUIET, band
from gallery.lab import accuracy, adam, digits, he, linears, mlp, sgd, table, train
from gallery.page import Judged, number, spread, summary, where
from scipy import spatial, stats
from torch import nn

from nndiag import theory

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


def dead(z):
    """Which units are never active; z is (examples, units)."""
    return z.detach().max(dim=0).values <= 0


def layers(model, x):
    """The pre-activations of the hidden layers, and the outputs."""
    found = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            found.append(x)
    return found[:-1], found[-1]


def without_gradient(model, x, seed):
    """By hidden layer, which units' weights get no gradient at all, for a random direction."""
    draws = torch.Generator().manual_seed(seed)
    model.zero_grad()
    out = model(x)
    (out * torch.randn(out.shape, generator=draws, dtype=out.dtype)).sum().backward()
    return [(linear.weight.grad == 0).all(dim=1) for linear in linears(model)[:-1]]


# -- the cloud -----------------------------------------------------------------------------------


def cloud():
    """Wine in the plane, and its classes."""
    x, y = table("wine")
    x = ((x - x.mean(dim=0)) / x.std(dim=0)).double()
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    plane = u[:, :2] * s[:2] * torch.sign(u[0, :2])
    return plane / plane.std(), y


def cloud_network(seed):
    torch.manual_seed(seed)
    return mlp([2, CLOUD_UNITS, 3], nn.ReLU, he).double()


def too_fast(seed):
    """The cloud's network, trained at too high a rate."""
    model = cloud_network(seed)
    train(model, *cloud(), adam(model, CLOUD_RATE), STEPS, seed)
    return model


def geometry(model, seed):
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


def trained_on(model, x, y, rate, steps, seed):
    """What dead units do in more steps of plain SGD; a row a hidden layer."""
    hidden = linears(model)[:-1]
    was = [dead(z) for z in layers(model, x)[0]]
    start = [linear.weight.detach().clone() for linear in hidden]
    train(model, x, y, sgd(model, rate), steps, seed)
    rows = []
    for place, (linear, z) in enumerate(zip(hidden, layers(model, x)[0], strict=True)):
        moved, off = (linear.weight != start[place]).any(dim=1), was[place]
        counts = (off, off & moved, off & ~dead(z), ~off, ~off & moved)
        rows.append((place + 1, *(int(count.sum()) for count in counts)))
    return pd.DataFrame(rows, columns=["layer", "dead", "moved", "back", "alive", "alive_moved"])


def in_the_cloud(seed):
    """Counts before and after training, the units' lines, and what more training does."""
    counts, lines, (x, y) = [], [], cloud()
    for when, model in (("before", cloud_network(seed)), ("after", too_fast(seed))):
        counts.append({"seed": seed, "when": when, **geometry(model, seed)})
        weight, bias = model[0].weight.detach(), model[0].bias.detach()
        lines.append(pd.DataFrame({
            "when": when, "w1": weight[:, 0], "w2": weight[:, 1], "b": bias,
            "dead": dead(model[0](x)),
        }))  # fmt: skip
    more = trained_on(model, x, y, 0.1, STEPS, seed).assign(network="cloud", seed=seed)
    return pd.DataFrame(counts), pd.concat(lines), more


# -- the rate ------------------------------------------------------------------------------------


def network(seed, activation=nn.ReLU, bias=0.0):
    torch.manual_seed(seed)
    model = mlp([64, WIDTH, WIDTH, WIDTH, 10], activation, he)
    for linear in linears(model)[:-1]:
        nn.init.constant_(linear.bias, bias)
    return model


def trained(case, rate, seed, bias=0.0, steps=STEPS):
    """A network trained on digits, as RATES names it."""
    x, y, _, _ = digits()
    model = network(seed, nn.LeakyReLU if "Leaky" in case else nn.ReLU, bias)
    train(model, x, y, (sgd if case == "SGD" else adam)(model, rate), steps, seed)
    return model


def counted(model, seed):
    """Shares of all hidden units; NaN of a network whose outputs are not finite."""
    x, y, _, _ = digits()
    hidden, out = layers(model, x)
    share = {f"dead_{n}": dead(z).double().mean().item() for n, z in enumerate(hidden, start=1)}
    naive = float(np.mean(list(share.values())))
    finite = bool(torch.isfinite(out).all())
    silent, right = math.nan, math.nan
    if finite:
        silent = torch.cat(without_gradient(model, x, seed)).double().mean().item()
        right = accuracy(model, x, y)
    share = share if finite else dict.fromkeys(share, math.nan)
    return {
        "finite": float(finite), **share, "never_positive": float(np.mean(list(share.values()))),
        "naive": naive, "without_gradient": silent, "accuracy": right,
    }  # fmt: skip


# -- before training -----------------------------------------------------------------------------


def born_dead(width):
    """By Lu et al. 2019: each of the layers below being alive, a layer is off with 2^-width."""
    return float(1 - (1 - 2.0**-width) ** DEPTH)


def stillborn(width, seed, networks=NETWORKS):
    """Shares of narrow networks whose last hidden layer is off on one point, or on all 45."""
    draws = np.random.default_rng(seed)
    points = cloud()[0].numpy()[::4]
    y = np.broadcast_to(points, (networks, *points.shape))
    for _ in range(DEPTH):
        weights = draws.normal(0, math.sqrt(2 / y.shape[2]), (networks, y.shape[2], width))
        y = np.maximum(y @ weights, 0)
    on = y.any(axis=2)
    return {
        "width": width, "networks": networks, "one_point": float(1 - on[:, 0].mean()),
        "all_points": float(1 - on.any(axis=1).mean()),
    }  # fmt: skip


def untrained(seed):
    """Never-active units of a deep He network on digits, and as many as theory has."""
    x, _, _, _ = digits()
    torch.manual_seed(seed)
    rows, n = [], len(x)
    for layer in range(1, DEPTH + 1):
        linear = nn.Linear(x.shape[1], DEEP_WIDTH)
        he(linear)
        directions = nn.functional.normalize(x.detach().double(), dim=1)
        cosine = ((directions.sum(dim=0).square().sum() - n) / (n * (n - 1))).item()
        z = linear(x)
        never, active = dead(z).double().mean().item(), (z > 0).double().mean().item()
        rows.append((seed, layer, cosine, never, theory.never_active(n, cosine), active))
        x = torch.relu(z)
    columns = ["seed", "layer", "cosine", "never_active", "theory", "active"]
    return pd.DataFrame(rows, columns=columns)


def measure(lab):
    clouds = [in_the_cloud(seed) for seed in lab.seeds(CLOUD_SEEDS)]
    more, rates, biases = [then for _, _, then in clouds], [], []
    points, classes = cloud()
    x, y, _, _ = digits()
    for case in lab.track(RATES):
        for rate, seed in itertools.product(RATES[case], lab.seeds(SEEDS)):
            model = trained(case, rate, seed)
            row = {"rate": rate, "seed": seed, **counted(model, seed)}
            rates.append({"case": case, **row})
            if case == "Adam" and rate in {rate for _, rate in BIASES}:
                biases.append({"bias": 0.0, **row})
            if case == "Adam" and rate == SICK_RATE:
                then = trained_on(model, x, y, 0.05, 300, seed)
                more.append(then.assign(network="digits", seed=seed))
    for (bias, rate), seed in itertools.product(BIASES, lab.seeds(SEEDS)):
        row = counted(trained("Adam", rate, seed, bias), seed)
        biases.append({"bias": bias, "rate": rate, "seed": seed, **row})
    return {
        "cloud": pd.DataFrame({"x1": points[:, 0], "x2": points[:, 1], "class": classes}),
        "lines": clouds[0][1], "geometry": pd.concat(counts for counts, _, _ in clouds),
        "rates": pd.DataFrame(rates), "more": pd.concat(more), "biases": pd.DataFrame(biases),
        "stillborn": pd.DataFrame(stillborn(width, lab.first) for width in WIDTHS),
        "untrained": pd.concat(untrained(seed) for seed in lab.seeds(SEEDS)),
        "named": checked(lab),
    }  # fmt: skip


def checked(lab):
    """How many layers nndiag calls dead, in the lead or as the consequence of something else."""
    seed, plane, (x, y, _, _) = lab.first, cloud(), digits()
    torch.manual_seed(seed)
    deep = mlp([64, *[DEEP_WIDTH] * DEPTH, 10], nn.ReLU, he)
    rows = []
    for name, model, *batch in (
        ("cloud, before", cloud_network(seed), *plane),
        ("cloud, after", too_fast(seed), *plane),
        ("Adam, 0.001", trained("Adam", 1e-3, seed), x, y),
        ("Adam, 0.1", trained("Adam", 0.1, seed), x, y),
        ("Adam, 0.1, another seed", trained("Adam", 0.1, seed + 1), x, y),
        ("Leaky ReLU, Adam, 0.1", trained("Adam, Leaky ReLU", 0.1, seed), x, y),
        ("SGD, 2.0", trained("SGD", 2.0, seed), x, y),
        ("ten layers, untrained", deep, x, y),
    ):
        found = lab.check(name, model, *batch).at_least("warning")
        rows.append({"network": name, "dead_layers": sum(f.rule == "dead-relu" for f in found)})
    return pd.DataFrame(rows)


def tables(frames):
    counts = ["dead", "moved", "back", "alive", "alive_moved"]
    rates = frames["rates"]
    rates = rates.assign(finite=rates.groupby(["case", "rate"]).finite.transform("mean"))
    still = frames["stillborn"].assign(formula=[born_dead(w) for w in frames["stillborn"].width])
    return {
        f"Never-active units on digits, {SEEDS} seeds": summary(
            rates, ["case", "rate"],
            {
                "finite": "share of runs that stay finite", "never_positive": "share of units",
                "dead_1": "layer 1", "dead_2": "layer 2", "dead_3": "layer 3",
                "without_gradient": "units without gradient", "accuracy": "accuracy",
            },
        ),
        "The same by the biases' start (Adam)": summary(
            frames["biases"].sort_values(["rate", "bias"]), ["rate", "bias"],
            {"never_positive": "share of units", "accuracy": "accuracy"},
        ),
        "Dead units in further training by plain SGD, all seeds": frames["more"]
            .groupby(["network", "layer"], as_index=False)[counts].sum(),
        f"Dead before training: {NETWORKS} narrow networks of {DEPTH} layers": still[
            ["width", "formula", "one_point", "all_points"]
        ].rename(columns={
            "formula": "1 - (1 - 2^-width)^10", "one_point": "on one point",
            "all_points": "on 45 points of the cloud",
        }),
    }  # fmt: skip


def draw(frames, figure):
    figure.set_size_inches(10, 8.4)
    top, (left, right) = figure.subplots(2, 2, height_ratios=[1.15, 1])
    for axes, when in zip(top, ("before", "after"), strict=True):
        _draw_cloud(frames, axes, when)
    left.set_xscale("log")
    for case in RATES:
        column = "without_gradient" if "Leaky" in case else "never_positive"
        band(left, "rate", column, where(frames["rates"], case=case), marker="o", ms=4, label=case)
    left.axhline(FAR, color=QUIET, ls="--", lw=1)
    left.set(title="share of dead units, digits", xlabel="learning rate", ylim=(-0.03, 1.03))
    left.legend(loc="upper left")
    rows = where(frames["biases"], rate=SICK_RATE)
    starts = sorted(rows.bias.unique())
    for place, bias in enumerate(starts):
        shares = where(rows, bias=bias).never_positive
        right.plot([place] * len(shares), shares, "o", color=MEASURED, alpha=0.6)
        right.plot([place - 0.2, place + 0.2], [shares.mean()] * 2, color=MEASURED)
    right.axhline(FAR, color=QUIET, ls="--", lw=1)
    right.set(
        title="share of dead units by the biases' start", xlabel="bias", ylim=(0, 0.6),
        xticks=range(len(starts)), xticklabels=[number(bias) for bias in starts],
    )  # fmt: skip


def _draw_cloud(frames, axes, when):
    points, lines = frames["cloud"], where(frames["lines"], when=when)
    axes.plot(points.x1, points.x2, "o", ms=3, color=QUIET, alpha=0.6)
    for line in lines.itertuples():
        normal = np.array([line.w1, line.w2])
        size = np.linalg.norm(normal)
        foot, along = -line.b * normal / size**2, np.array([-line.w2, line.w1]) / size
        color, width = (BAD, 1.4) if line.dead else (GOOD, 0.9)
        ends = np.array([foot - 12 * along, foot + 12 * along])
        axes.plot(*ends.T, color=color, lw=width, alpha=0.8)
        axes.plot(*np.array([foot, foot + 0.35 * normal / size]).T, color=color, lw=2)
    axes.set(
        title=f"{when} training: {int(lines.dead.sum())} of {len(lines)} dead",
        xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xticks=[], yticks=[],
    )  # fmt: skip
    axes.grid(False)


# -- judging -------------------------------------------------------------------------------------


def a_unit_is_dead_exactly_if_the_hull_of_the_data_is_on_its_wrong_side(frames) -> Judged:
    rows = frames["geometry"]
    return Judged(
        (rows.mismatches == 0).all() and rows.dead.sum() > 0,
        f"{rows.mismatches.sum()} of {rows.units.sum()} units otherwise, {rows.dead.sum()} dead; "
        f"{rows.corners.iloc[0]} corners of {len(frames['cloud'])} points decide",
        "none: a linear function is largest at a corner",
    )


def dead_units_never_move_in_the_first_layer_and_may_come_back_behind_it(frames) -> Judged:
    first, deeper = where(frames["more"], layer=1), frames["more"].query("layer > 1")
    back = int(deeper.back.sum())
    return Judged(
        first.moved.sum() == 0 and first.dead.sum() > 0 and back > 0,
        f"first layer: {first.moved.sum()} of {first.dead.sum()} dead units moved, "
        f"{first.alive_moved.sum()} of {first.alive.sum()} alive ones; behind it {back} of "
        f"{deeper.dead.sum()} dead units are active again after 300 steps of plain SGD",
        "none in the first layer, where the gradient is exactly zero; none behind it, were it for "
        "good",
    )


def crossing(frames, case="Adam"):
    """The rate at which the mean share passes 40 %, between two rates on logarithms."""
    mean = where(frames["rates"], case=case).groupby("rate").never_positive.mean()
    at = int(np.argmax(mean.to_numpy() >= FAR))
    (low, high), (below, above) = np.log(mean.index[at - 1 : at + 1]), mean.iloc[at - 1 : at + 1]
    return math.exp(low + (high - low) * (FAR - below) / (above - below))


def the_dead_share_grows_with_adams_rate_and_passes_40_percent(frames) -> Judged:
    rows = where(frames["rates"], case="Adam")
    mean = rows.groupby("rate").never_positive.mean()
    right = where(rows, rate=SICK_RATE).accuracy
    grows = (np.diff(mean) > 0).all()
    return Judged(
        grows and mean.iloc[0] < 0.1 and mean.iloc[-1] > FAR and right.min() > 0.9,
        f"{mean.iloc[0]:.1%} at {mean.index[0]}, {mean[SICK_RATE]:.1%} at {SICK_RATE} (accuracy "
        f"{spread(right)}), {mean.iloc[-1]:.1%} at {mean.index[-1]}; 40 % at "
        f"{number(crossing(frames))}",
        "more with each rate, past 40 %",
    )


def sgd_diverges_rather_than_kill_a_part(frames) -> Judged:
    rows = where(frames["rates"], case="SGD")
    fine, fatal = where(rows, rate=0.5).never_positive, rows.query("rate >= 1")
    lost = fatal.finite == 0
    naive = fatal.naive[lost]
    return Judged(
        (fine.max() < 0.1 and (lost | (fatal.never_positive > FAR)).all()) and lost.sum() > 0,
        f"{spread(fine)} dead at 0.5; from 1.0 on {lost.sum()} of {len(lost)} diverge (a plain "
        f"count says {spread(naive)} dead of them), {spread(fatal.never_positive[~lost])} dead of "
        "the rest",
        "below 10 % at 0.5; from 1.0 on none finite with less than 40 % dead",
    )


def a_bias_of_a_hundredth_saves_no_unit(frames) -> Judged:
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


def leaky_relu_has_no_unit_without_gradient(frames) -> Judged:
    leaky = where(frames["rates"], case="Adam, Leaky ReLU")
    relu = where(frames["rates"], case="Adam", rate=0.1)
    worst = where(leaky, rate=0.1)
    return Judged(
        (leaky.without_gradient == 0).all(),
        f"none, though {spread(worst.never_positive)} are never positive at 0.1; ReLU "
        f"{spread(relu.without_gradient)} without gradient",
        "0: its slope is nowhere zero",
    )


def narrow_deep_networks_are_born_dead_as_often_as_the_formula_says(frames) -> Judged:
    rows = frames["stillborn"]
    theirs = np.array([born_dead(width) for width in rows.width])
    deviation = np.sqrt(theirs * (1 - theirs) / rows.networks)
    off = float((abs(rows.one_point - theirs) / deviation).max())
    return Judged(
        off < 4 and (rows.all_points <= rows.one_point).all(),
        ", ".join(f"{value:.1%}" for value in rows.one_point)
        + f" at widths {', '.join(str(width) for width in rows.width)}; the farthest is "
        f"{number(off)} standard deviations off",
        ", ".join(f"{value:.1%}" for value in theirs),
    )


def deep_healthy_networks_have_never_active_units_before_training(frames) -> Judged:
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


def nndiag_finds_the_dead_and_spares_the_untrained(frames) -> Judged:
    named = frames["named"].set_index("network").dead_layers
    led = frames["verdicts"].set_index("network").leading.str.split().str[0]
    killed = {"cloud, after", "Adam, 0.1", "Adam, 0.1, another seed"}
    healthy = {"cloud, before", "Adam, 0.001", "ten layers, untrained"}
    return Judged(
        set(named.index[named > 0]) == killed
        and set(led.index[led == "none"]) == healthy
        and led["cloud, after"] == "dead-relu" and led["SGD, 2.0"] == "non-finite",
        "; ".join(f"{name}: {rule}, dead layers {named[name]}" for name, rule in led.items()),
        "dead layers in the three that Adam killed alone; none for the healthy",
    )  # fmt: skip
