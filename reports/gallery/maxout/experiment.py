"""Page 9: Maxout: what it buys."""

import itertools
import math
from typing import NamedTuple

import pandas as pd
import torch
from gallery.activations import experiment as activations
from gallery.lab import accuracy, adam, digits, he, linears, mlp, table, timed, train, xavier
from gallery.lab import split as cut
from gallery.page import Judged, leads, number, sick, spread, summary, where
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nndiag.fixes import Maxout

PIECES, SEEDS, STEPS, DYING_SEEDS = 2, 12, 300, 5
SOUND, HIGH = activations.SOUND, activations.HIGH
MAXOUT, SAME_WIDTH, SAME_SIZE = "Maxout", "ReLU, same width", "ReLU, same size"
ARMS = (MAXOUT, SAME_WIDTH, SAME_SIZE)
SIZES = {"digits": (64, 10, 1297), "wine": (13, 3, 120), "cancer": (30, 2, 400)}
"""Inputs, classes, and how many rows to train on."""


class Trial(NamedTuple):
    data: str
    width: int
    rate: float
    dropout: float = 0.0


TRIALS = {
    "digits, width 8": Trial("digits", 8, 0.01),
    "digits, width 16": Trial("digits", 16, 0.01),
    "digits, width 64, dropout": Trial("digits", 64, 0.003, 0.5),
    "wine, width 4": Trial("wine", 4, 0.01),
    "cancer, width 4": Trial("cancer", 4, 0.01),
}


# -- counting ------------------------------------------------------------------------------------


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def counted():
    """Parameters and multiply-adds of single layers."""

    def both(layer, d_in):
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(1, d_in))
        return parameters(layer), int(counter.get_total_flops()) // 2

    sizes = ((64, 16, 1), (64, 16, 2), (64, 16, 3), (500, 500, 2), (13, 4, 5))
    rows = [
        (d_in, d_out, k, *both(Maxout.of(nn.Linear(d_in, d_out), k), d_in),
         *both(nn.Linear(d_in, d_out), d_in))
        for d_in, d_out, k in sizes
    ]  # fmt: skip
    names = ["inputs", "units", "pieces", "parameters", "multiply_adds"]
    return pd.DataFrame(rows, columns=[*names, "parameters_relu", "multiply_adds_relu"])


def pair(linear, slope):
    """The maxout whose pieces are this layer and ``slope`` times this layer."""
    wide = nn.Linear(linear.in_features, 2 * linear.out_features).to(linear.weight)
    with torch.no_grad():
        for whole, half in ((wide.weight, linear.weight), (wide.bias, linear.bias)):
            whole.copy_(torch.stack([half, slope * half], 1).flatten(0, 1))
    return Maxout(wide, 2)


def special(seed):
    """How far a maxout built as a Leaky ReLU is from it, on digits, in float64."""
    torch.manual_seed(seed)
    x, linear, rows = digits()[0].double(), nn.Linear(64, 50).double(), []
    for slope in (0.0, 0.01, 0.25, 1.0, 2.0):
        leaky = F.leaky_relu(linear(x), slope)
        rows.append((seed, slope, (pair(linear, slope)(x) - leaky).abs().max().item()))
    return pd.DataFrame(rows, columns=["seed", "slope", "difference"])


LINES = {
    "ReLU: x, 0": ((1.0, 0.0), (0.0, 0.0)),
    "Leaky ReLU: x, 0.1x": ((1.0, 0.0), (0.1, 0.0)),
    "|x|: x, -x": ((1.0, 0.0), (-1.0, 0.0)),
    "three pieces": ((-1.0, -1.5), (0.1, 0.2), (1.2, -1.5)),
}


@torch.no_grad()
def shapes():
    x, rows = torch.linspace(-3, 3, 61).reshape(-1, 1), []
    for name, lines in LINES.items():
        unit = Maxout.of(nn.Linear(1, 1), len(lines))
        slopes, offsets = torch.tensor(lines).T
        unit.layer.weight.copy_(slopes.reshape(-1, 1))
        unit.layer.bias.copy_(offsets)
        rows.append(pd.DataFrame({"unit": name, "x": x.flatten(), "y": unit(x).flatten()}))
    return pd.concat(rows)


# -- training ------------------------------------------------------------------------------------


def network(trial, arm, seed):
    """Two hidden layers; SAME_SIZE is as wide as brings its parameters nearest to the maxout's."""
    torch.manual_seed(seed)
    (d, classes, _), width = SIZES[trial.data], trial.width

    def size(width, pieces):
        return pieces * ((d + 1) * width + (width + 1) * width) + (width + 1) * classes

    if arm == SAME_SIZE:
        wanted = size(width, PIECES)
        width = min(range(1, 4 * width), key=lambda w: abs(size(w, 1) - wanted))
    widths = [d, width, width, classes]
    if arm != MAXOUT:
        inits = iter((he, he, xavier))
        return mlp(widths, nn.ReLU, lambda layer: next(inits)(layer), dropout=trial.dropout)
    layers = []
    for fan_in in (d, width):
        layers.append(Maxout.of(nn.Linear(fan_in, width), PIECES))
        layers += [nn.Dropout(trial.dropout)] if trial.dropout else []
    last = nn.Linear(width, classes)
    xavier(last)
    return nn.Sequential(*layers, last)


def split(name, seed):
    """Training and test data, another split for every seed, standardised on the training data."""
    x, y = table(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y, x_test, y_test = cut(x[order], y[order], SIZES[name][2])
    # pixels all have one unit, and some of them never vary
    mean, std = (x.mean(), x.std()) if name == "digits" else (x.mean(0), x.std(0))
    return (x - mean) / std, y, (x_test - mean) / std, y_test


def run(name, arm, seed):
    """Train one network of one trial."""
    trial = TRIALS[name]
    x, y, x_test, y_test = split(trial.data, seed)
    model = network(trial, arm, seed)
    train(model, x, y, adam(model, trial.rate, fused=True), STEPS, seed)
    row = {
        "trial": name, "arm": arm, "seed": seed, "parameters": parameters(model),
        "train": accuracy(model, x, y), "test": accuracy(model, x_test, y_test),
    }  # fmt: skip
    return row, model


def rest(name, rate, seed):
    """Train the deep network; what of it is dead, without gradient, or idle."""
    rows, model = activations.dying(name, rate, seed, every=activations.ADAM_STEPS)
    x, y, _, _ = digits()
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    pieces = PIECES if name == "maxout" else 1
    starved = [(linear.weight.grad.reshape(-1, pieces * linear.in_features) == 0).all(1)
               for linear in linears(model)[:-1]]  # fmt: skip
    idle = []
    for module in list(model)[:-1]:
        idle += [never_largest(module, x)] if isinstance(module, Maxout) else []
        with torch.no_grad():
            x = module(x)
    row = {
        "activation": name, "rate": rate, "seed": seed, "dead": rows["dead"].iloc[-1],
        "starved": torch.cat(starved).double().mean().item(),
        "idle": torch.cat(idle).double().mean().item() if idle else math.nan,
        "train": rows["train"].iloc[-1],
    }  # fmt: skip
    return row, model


@torch.no_grad()
def never_largest(module, x):
    """Of each piece, whether it is the largest of its unit on none of these inputs."""
    z = module.layer(x).reshape(len(x), -1, module.pieces)
    return (z < z.amax(-1, keepdim=True)).all(0).flatten()


def costs():
    """A training step of the digits networks of width 500: its time over that of ReLU's."""
    x, y, _, _ = digits()
    models = {arm: network(Trial("digits", 500, 0.01), arm, 0) for arm in ARMS}

    def step(arm):
        return lambda: F.cross_entropy(models[arm](x[:100]), y[:100]).backward()

    return pd.DataFrame(
        {"arm": arm, "parameters": parameters(models[arm]), **timed(step(arm), step(SAME_WIDTH))}
        for arm in ARMS
    )


def measure(lab):
    trained, rested = [], []
    for name in lab.track(TRIALS):
        for arm, seed in itertools.product(ARMS, lab.seeds(SEEDS)):
            row, model = run(name, arm, seed)
            trained.append(row)
            if seed == lab.first and name == "digits, width 16":
                lab.check(f"{arm}, {name}", model, *split("digits", seed)[:2])
    for name, rate in itertools.product(("relu", "maxout"), (SOUND, HIGH)):
        for seed in lab.seeds(DYING_SEEDS):
            row, model = rest(name, rate, seed)
            rested.append(row)
            if seed == lab.first and rate == HIGH:
                lab.check(f"{activations.LABELS[name]}, Adam at {rate}", model, *digits()[:2])
    return {
        "counted": counted(), "special": pd.concat(map(special, lab.seeds(5))),
        "shapes": shapes(), "trained": pd.DataFrame(trained), "rest": pd.DataFrame(rested),
        "cost": costs(),
    }  # fmt: skip


# -- showing -------------------------------------------------------------------------------------


class Gain(NamedTuple):
    """Test accuracy of Maxout less that of another arm, in points."""

    mean: float
    half: float
    """Of the 95% interval by Student's t over the seeds."""
    p: float

    def __str__(self):
        return f"{self.mean:+.2f} ± {self.half:.2f}"


def gain(frames, trial, arm):
    rows = where(frames["trained"], trial=trial)
    table = 100 * rows.pivot(index="seed", columns="arm", values="test")
    differences = table[MAXOUT] - table[arm]
    n = len(differences)
    error = float(differences.std()) / math.sqrt(n)
    mean = float(differences.mean())
    if error == 0:
        return Gain(mean, 0.0, 1.0 if mean == 0 else 0.0)
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Gain(mean, float(stats.t.ppf(0.975, n - 1)) * error, p)


def tables(frames):
    gains = pd.DataFrame(
        {
            "trial": name, "against": arm, "Maxout is better by (points)": str(found), "p": found.p,
        }
        for arm in ARMS[1:]
        for name, found in gains_on(frames, arm).items()
    )  # fmt: skip
    return {
        "Maxout of two pieces and ReLU, twelve seeds": summary(
            frames["trained"], ["trial", "arm"], ["parameters", "train", "test"]
        ),
        "Differences of test accuracy, seed by seed": gains,
        "After 200 steps of Adam, five seeds": summary(
            frames["rest"], ["activation", "rate"],
            {
                "dead": "dead units", "starved": "units without gradient", "idle": "idle pieces",
                "train": "training accuracy",
            },
        ),
        "A layer": frames["counted"].rename(columns=lambda name: name.replace("_", " ")),
        "A step of training, width 500, over ReLU's of the same width": frames["cost"],
    }  # fmt: skip


def draw(frames, figure):
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.1, 0.8])
    for name in LINES:
        rows = where(frames["shapes"], unit=name)
        left.plot(rows["x"], rows["y"], label=name)
    left.set(title="one input, one unit", ylim=(-0.5, 4.6), xlabel="x")
    left.legend(loc="upper center")
    for arm, color, shift in ((SAME_WIDTH, "C0", -0.12), (SAME_SIZE, "C1", 0.12)):
        found = [gain(frames, name, arm) for name in TRIALS]
        middle.errorbar(
            [g.mean for g in found], [place + shift for place in range(len(found))],
            xerr=[g.half for g in found], fmt="o", ms=4, color=color, label=f"against {arm}",
        )  # fmt: skip
    middle.axvline(0, color="#57606a", lw=1)
    middle.set(title="what Maxout gains (points)", yticks=range(len(TRIALS)))
    middle.set_yticklabels([name.replace(", ", "\n", 1) for name in TRIALS], fontsize=8)
    middle.set_ylim(len(TRIALS) - 0.4, -0.6)
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    high = where(frames["rest"], rate=HIGH)
    relu, maxout = (where(high, activation=name) for name in ("relu", "maxout"))
    bars = {
        "ReLU's\nunits": relu["dead"], "Maxout's\nunits": maxout["dead"],
        "Maxout's\npieces": maxout["idle"],
    }  # fmt: skip
    for place, (name, values) in enumerate(bars.items()):
        right.bar(name, 100 * values.mean(), color=("#d1495b", "#2e8b57", "#e8a33d")[place])
        right.plot([name] * len(values), 100 * values, "o", ms=3, color="#57606a")
        right.text(place, 100 * values.max() + 2, f"{100 * values.mean():.0f}", ha="center")
    right.set(title=f"at rest, Adam at {HIGH} (%)", ylim=(0, 100))
    right.tick_params(axis="x", labelsize=8)


# -- judging -------------------------------------------------------------------------------------


def maxout_of_k_pieces_has_k_times_the_parameters(frames) -> Judged:
    table = frames["counted"]
    expected = table["pieces"] * (table["inputs"] + 1) * table["units"]
    doubled = table[table["pieces"] == 2]
    return Judged(
        (table["parameters"] == expected).all(),
        "; ".join(
            f"{r.parameters} for {r.parameters_relu}, k = {r.pieces}" for r in doubled.itertuples()
        ),
        "k(d_in + 1)d_out, exactly, by counting",
    )


def relu_and_leaky_relu_are_maxouts_of_a_pair(frames) -> Judged:
    worst = frames["special"].groupby("slope")["difference"].max()
    most, beyond = worst[worst.index <= 1].max(), worst[2.0]
    return Judged(
        most < 1e-12 < 1e-2 < beyond,
        f"differ by {number(most)} for slopes up to 1, by {number(beyond)} for a slope of 2",
        "0; over 1 the pair is the mirror image",
    )


def no_maxout_unit_dies_but_pieces_fall_idle(frames) -> Judged:
    relu, maxout = (where(frames["rest"], activation=a, rate=HIGH) for a in ("relu", "maxout"))
    sound = where(frames["rest"], activation="maxout", rate=SOUND)
    never = pd.concat([maxout["dead"], maxout["starved"], sound["dead"], sound["starved"]])
    return Judged(
        relu["dead"].min() > 0.3
        and never.max() == 0
        and maxout["idle"].min() > sound["idle"].max(),
        f"dead: ReLU {spread(relu['dead'])}, Maxout {spread(maxout['dead'])}; idle pieces "
        f"{spread(maxout['idle'])}, at the sound rate {spread(sound['idle'])}",
        "0 dead: the slopes of a unit's pieces add to 1 on every input",
    )


def gains_on(frames, arm, data=None):
    """Of each trial, or of those on these data."""
    return {n: gain(frames, n, arm) for n, t in TRIALS.items() if data in (None, t.data)}


def _gains_text(found):
    return "points gained: " + "; ".join(f"{n} {g} (p {number(g.p)})" for n, g in found.items())


LEVEL = 0.05 / len(TRIALS)
"""Of each test, so that all of them together err with 5%."""


def maxout_reads_digits_better_than_relu_of_its_width(frames) -> Judged:
    found = gains_on(frames, SAME_WIDTH, "digits")
    return Judged(
        all(g.mean > 0 and g.p < LEVEL for g in found.values()),
        _gains_text(found),
        f"no gain: p over {number(LEVEL)}",
    )


def maxout_does_no_better_than_relu_of_as_many_parameters(frames) -> Judged:
    large = gains_on(frames, SAME_SIZE)
    wide = gains_on(frames, SAME_WIDTH, "digits")
    return Judged(
        all(g.p > LEVEL for g in large.values())
        and all(large[name].mean < g.mean / 2 for name, g in wide.items()),
        _gains_text(large),
        f"no gain: p over {number(LEVEL)}",
    )


def a_maxout_layer_computes_k_times_as_much(frames) -> Judged:
    table, cost = frames["counted"], frames["cost"].set_index("arm")["median"]
    times = table["multiply_adds"] / table["multiply_adds_relu"]
    return Judged(
        (times == table["pieces"]).all() and 1.3 < cost[MAXOUT] < 4,
        f"multiply-adds × {', '.join(number(t) for t in times)} for k = "
        f"{', '.join(str(k) for k in table['pieces'])}; a step × {number(cost[MAXOUT])} of "
        "ReLU's of the same width",
        "× k; × 2",
    )


def nndiag_passes_maxout_where_it_finds_dead_relus(frames) -> Judged:
    return Judged(
        sick(frames) == {f"ReLU, Adam at {HIGH}": "dead-relu"}, leads(frames),
        "dead-relu for ReLU at the high rate, none for the others",
    )  # fmt: skip
