"""Maxout.

A maxout unit is the largest of k linear pieces, here of k = 2: max(w1·x + b1, w2·x + b2). Three
trials. (1) Exact ones: parameters and multiply-adds are counted; ReLU and Leaky ReLU are built as
maxouts and compared on digits. (2) Networks of two hidden layers are trained with Adam (300 steps,
batches of 64) on scikit-learn's digits, wine and cancer data, twelve seeds, each with its own split
into training and test data. A maxout network of width W stands against two of ReLU: one of the same
width W, and one as wide as makes its parameters as many as the maxout's. For each seed the three
have the same split and the same batches, so the differences are taken seed by seed; "p" is that of
a paired t test. Digits are tried at three widths, at the largest with dropout of one half behind
each hidden layer, for which Goodfellow et al. made Maxout. Splits of different seeds share data, so
p is, if anything, too small. (3) Networks of 64-100-100-100-10 units are trained on the digits for
200 steps of Adam at a sound rate (0.001) and at one a hundred times too high, five seeds. A unit is
dead if its activation's slope is zero on all 1297 training images, and a piece of a maxout is idle
if on none of them it is the largest.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nndiag.fixes import Maxout
from nndiag.gallery import lab as data
from nndiag.gallery.lab import Lab, accuracy, train
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.pages import activations
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = Page(
    number=9,
    title="Maxout: what it buys",
    claim="Maxout generalises ReLU and Leaky ReLU, neither saturates nor dies, and doubles the "
    "parameters of every neuron.",
    sources=("CS231n 2017, lecture 6, slide 32", "Goodfellow et al. 2013"),
    caption="Left, functions of one input that are the largest of two or three lines. Middle, test "
    "accuracy of maxout less that of ReLU, in points, mean over twelve seeds with 95% intervals: "
    "against ReLU of as many units, and of as many parameters. Right, what has come to rest after "
    "training at a rate that is too high: most ReLU units, no maxout unit, and some of the pieces.",
)

PIECES, SEEDS, STEPS, DYING_SEEDS, PAIRS = 2, 12, 300, 5, 31
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


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def counted() -> pd.DataFrame:
    """Parameters and multiply-adds of single layers."""
    rows = []
    for d_in, d_out, k in ((64, 16, 1), (64, 16, 2), (64, 16, 3), (500, 500, 2), (13, 4, 5)):
        layer, plain = Maxout.of(nn.Linear(d_in, d_out), k), nn.Linear(d_in, d_out)
        rows.append(
            {
                "inputs": d_in, "units": d_out, "pieces": k, "parameters": parameters(layer),
                "multiply_adds": _multiply_adds(layer, d_in),
                "parameters_relu": parameters(plain),
                "multiply_adds_relu": _multiply_adds(plain, d_in),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _multiply_adds(model: nn.Module, d_in: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, d_in))
    return int(counter.get_total_flops()) // 2


def pair(linear: nn.Linear, slope: float) -> Maxout:
    """The maxout whose pieces are this layer and ``slope`` times this layer."""
    wide = nn.Linear(linear.in_features, 2 * linear.out_features).to(linear.weight)
    with torch.no_grad():
        for whole, half in ((wide.weight, linear.weight), (wide.bias, linear.bias)):
            whole.copy_(torch.stack([half, slope * half], 1).flatten(0, 1))
    return Maxout(wide, 2)


def special(seed: int) -> pd.DataFrame:
    """How far a maxout built as a Leaky ReLU is from it, on digits, in float64."""
    torch.manual_seed(seed)
    x = data.digits()[0].double()
    linear = nn.Linear(64, 50).double()
    rows = []
    for slope in (0.0, 0.01, 0.25, 1.0, 2.0):
        leaky = nn.functional.leaky_relu(linear(x), slope)
        difference = (pair(linear, slope)(x) - leaky).abs().max().item()
        rows.append({"seed": seed, "slope": slope, "difference": difference})
    return pd.DataFrame(rows)


LINES = {
    "ReLU: x, 0": ((1.0, 0.0), (0.0, 0.0)),
    "Leaky ReLU: x, 0.1x": ((1.0, 0.0), (0.1, 0.0)),
    "|x|: x, -x": ((1.0, 0.0), (-1.0, 0.0)),
    "three pieces": ((-1.0, -1.5), (0.1, 0.2), (1.2, -1.5)),
}


def shapes() -> pd.DataFrame:
    x = torch.linspace(-3, 3, 61).reshape(-1, 1)
    rows = []
    for name, lines in LINES.items():
        unit = Maxout.of(nn.Linear(1, 1), len(lines))
        slopes, offsets = torch.tensor(lines).T
        with torch.no_grad():
            unit.layer.weight.copy_(slopes.reshape(-1, 1))  # type: ignore[operator]
            unit.layer.bias.copy_(offsets)  # type: ignore[operator]
            y = unit(x)
        rows.append(pd.DataFrame({"unit": name, "x": x.flatten(), "y": y.flatten()}))
    return pd.concat(rows)


# -- training ------------------------------------------------------------------------------------


def same_size(trial: Trial) -> int:
    """The width of the ReLU network whose parameters come nearest to the maxout network's."""
    d, classes, _ = SIZES[trial.data]

    def size(width: int, pieces: int) -> int:
        return pieces * ((d + 1) * width + (width + 1) * width) + (width + 1) * classes

    wanted = size(trial.width, PIECES)
    return min(range(1, 4 * trial.width), key=lambda width: abs(size(width, 1) - wanted))


def network(trial: Trial, arm: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    d, classes, _ = SIZES[trial.data]
    width = same_size(trial) if arm == SAME_SIZE else trial.width
    layers: list[nn.Module] = []
    for fan_in in (d, width):
        linear = nn.Linear(fan_in, width)
        if arm == MAXOUT:
            layers.append(Maxout.of(linear, PIECES))
        else:
            nn.init.normal_(linear.weight, std=math.sqrt(2 / fan_in))
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
        if trial.dropout:
            layers.append(nn.Dropout(trial.dropout))
    last = nn.Linear(width, classes)
    nn.init.normal_(last.weight, std=1 / math.sqrt(width))
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def split(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test data, another split for every seed, standardised on the training data."""
    x, y = data.table(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y, x_test, y_test = data.split(x[order], y[order], SIZES[name][2])
    # pixels all have one unit, and some of them never vary
    mean, std = (x.mean(), x.std()) if name == "digits" else (x.mean(0), x.std(0))
    return (x - mean) / std, y, (x_test - mean) / std, y_test


def run(name: str, arm: str, seed: int) -> tuple[dict[str, object], nn.Sequential]:
    """Train one network of one trial."""
    trial = TRIALS[name]
    x, y, x_test, y_test = split(trial.data, seed)
    model = network(trial, arm, seed)
    train(model, x, y, torch.optim.Adam(model.parameters(), lr=trial.rate, fused=True), STEPS, seed)
    row: dict[str, object] = {
        "trial": name, "arm": arm, "seed": seed, "parameters": parameters(model),
        "train": accuracy(model, x, y), "test": accuracy(model, x_test, y_test),
    }  # fmt: skip
    return row, model


def rest(name: str, rate: float, seed: int) -> tuple[dict[str, object], nn.Sequential]:
    """Train the deep network; what of it is dead, without gradient, or idle."""
    steps = activations.ADAM_STEPS
    rows, model = activations.dying(name, rate, seed, every=steps)
    x, y, _, _ = data.digits()
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    starved, idle = [], []
    for module in list(model)[:-1]:
        linear = module.layer if isinstance(module, Maxout) else module
        if isinstance(linear, nn.Linear):
            gradient = linear.weight.grad
            assert gradient is not None
            pieces = PIECES if isinstance(module, Maxout) else 1
            starved.append((gradient.reshape(-1, pieces * gradient.shape[1]) == 0).all(1))
        if isinstance(module, Maxout):
            idle.append(never_largest(module, x))
        with torch.no_grad():
            x = module(x)
    row: dict[str, object] = {
        "activation": name, "rate": rate, "seed": seed, "dead": rows["dead"].iloc[-1],
        "starved": torch.cat(starved).double().mean().item(),
        "idle": torch.cat(idle).double().mean().item() if idle else math.nan,
        "train": rows["train"].iloc[-1],
    }  # fmt: skip
    return row, model


@torch.no_grad()
def never_largest(module: Maxout, x: Tensor) -> Tensor:
    """Of each piece, whether it is the largest of its unit on none of these inputs."""
    z = module.layer(x)
    z = z.reshape(len(x), -1, module.pieces)
    idle: Tensor = (z < z.amax(-1, keepdim=True)).all(0).flatten()
    return idle


def costs() -> pd.DataFrame:
    """A training step of the digits networks of width 500: its time over that of ReLU's."""
    trial = Trial("digits", 500, 0.01)
    x, y, _, _ = data.digits()
    x, y = x[:100], y[:100]

    def seconds(model: nn.Module) -> float:
        began = time.perf_counter()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - began

    models = {arm: network(trial, arm, 0) for arm in ARMS}
    rows = []
    for arm in ARMS:
        pairs = [(seconds(models[arm]), seconds(models[SAME_WIDTH])) for _ in range(PAIRS + 1)]
        ratios = pd.Series([a / b for a, b in pairs[1:]])
        low, high = ratios.quantile(0.25), ratios.quantile(0.75)
        rows.append(
            {
                "arm": arm, "parameters": parameters(models[arm]), "median": ratios.median(),
                "quarter": low, "three_quarters": high,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    trained, rested = [], []
    loss = nn.functional.cross_entropy
    for name in lab.track([*TRIALS, "dying"]):
        if name in TRIALS:
            for arm in ARMS:
                for seed in range(SEEDS):
                    row, model = run(name, arm, seed)
                    trained.append(row)
                    if seed == 0 and name == "digits, width 16":
                        x, y, _, _ = split("digits", seed)
                        lab.check(f"{arm}, {name}", model, x, y, loss_fn=loss)
            continue
        for activation in ("relu", "maxout"):
            for rate in (SOUND, HIGH):
                for seed in range(DYING_SEEDS):
                    row, model = rest(activation, rate, seed)
                    rested.append(row)
                    if seed == 0 and rate == HIGH:
                        x, y, _, _ = data.digits()
                        label = activations.CASES[activation].label
                        lab.check(f"{label}, Adam at {rate}", model, x, y, loss_fn=loss)
    return {
        "counted": counted(),
        "special": pd.concat([special(seed) for seed in range(5)]),
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

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half:.2f}"


def gain(frames: Frames, trial: str, arm: str) -> Gain:
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


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    compared, rested = [], []
    for name in TRIALS:
        for arm in ARMS:
            rows = where(frames["trained"], trial=name, arm=arm)
            found = gain(frames, name, arm) if arm != MAXOUT else None
            compared.append(
                {
                    "trial": name, "network": arm, "parameters": int(rows["parameters"].iloc[0]),
                    "training accuracy": rows["train"].mean(),
                    "test accuracy": spread(rows["test"]),
                    "Maxout is better by (points)": str(found) if found else "",
                    "p": found.p if found else math.nan,
                }
            )  # fmt: skip
    for name in ("relu", "maxout"):
        for rate in (SOUND, HIGH):
            rows = where(frames["rest"], activation=name, rate=rate)
            rested.append(
                {
                    "units": activations.CASES[name].label, "Adam's rate": rate,
                    "dead units": spread(rows["dead"]),
                    "units without gradient": spread(rows["starved"]),
                    "idle pieces": spread(rows["idle"]) if name == "maxout" else "",
                    "training accuracy": spread(rows["train"]),
                }
            )  # fmt: skip
    cost = frames["cost"].rename(columns={"median": "time of a step / ReLU's of the same width"})
    return {
        "Maxout of two pieces against ReLU, twelve seeds": pd.DataFrame(compared),
        "After 200 steps of Adam, five seeds": pd.DataFrame(rested),
        "A layer": frames["counted"].rename(columns=lambda name: name.replace("_", " ")),
        "A step of training, width 500": cost.drop(columns=["quarter", "three_quarters"]),
    }


def draw(frames: Frames, figure: Figure) -> None:
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


# -- what it shows -------------------------------------------------------------------------------


@claim("slide 32", "Problem: doubles the number of parameters/neuron")
def maxout_of_k_pieces_has_k_times_the_parameters(frames: Frames) -> Judged:
    """A maxout layer has k(d_in + 1)d_out parameters, k times those of the layer it replaces."""
    table = frames["counted"]
    expected = table["pieces"] * (table["inputs"] + 1) * table["units"]
    doubled = table[table["pieces"] == 2]
    return Judged(
        bool((table["parameters"] == expected).all()),
        "; ".join(
            f"{r.parameters} for {r.parameters_relu}, k = {r.pieces}" for r in doubled.itertuples()
        ),
        "k(d_in + 1)d_out, exactly, by counting",
    )


@claim("slide 32", "Generalizes ReLU and Leaky ReLU")
def relu_and_leaky_relu_are_maxouts_of_a_pair(frames: Frames) -> Judged:
    """The pair (w, a·w) is a Leaky ReLU of slope a ≤ 1, and with a = 0 a ReLU."""
    worst = frames["special"].groupby("slope")["difference"].max()
    most, beyond = worst[worst.index <= 1].max(), worst[2.0]
    return Judged(
        most < 1e-12 < 1e-2 < beyond,
        f"differ by {number(most)} for slopes up to 1, by {number(beyond)} for a slope of 2",
        "0; over 1 the pair is the mirror image",
    )


@claim(
    "slide 32", "Linear Regime! Does not saturate! Does not die!", stands="qualified",
    but="No unit dies, but half of one can: a piece that is the largest on no training image gets "
    "no gradient from them, and a unit with one piece left is only linear there. At the rate that "
    "kills most ReLU units some pieces in a hundred end so, several times as many as at a sound "
    "rate. It is a small loss, and nothing that shows in a unit's slope.",
)  # fmt: skip
def no_maxout_unit_dies_but_pieces_fall_idle(frames: Frames) -> Judged:
    """At a rate that kills most ReLU units no maxout unit is dead, and a few pieces are idle."""
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


def gains(frames: Frames, arm: str) -> dict[str, Gain]:
    return {name: gain(frames, name, arm) for name in TRIALS}


def _told(found: dict[str, Gain]) -> str:
    return "; ".join(f"{name} {g} (p {number(g.p)})" for name, g in found.items())


LEVEL = 0.05 / len(TRIALS)
"""Of each test, so that all of them together err with 5%."""


@claim("slide 33", "Try out Leaky ReLU / Maxout / ELU")
def maxout_reads_digits_better_than_relu_of_its_width(frames: Frames) -> Judged:
    """On digits Maxout is right more often than ReLU of as many units, at every width tried."""
    found = {n: g for n, g in gains(frames, SAME_WIDTH).items() if TRIALS[n].data == "digits"}
    return Judged(
        all(g.mean > 0 and g.p < LEVEL for g in found.values()),
        f"points gained: {_told(found)}",
        f"no gain: p over {number(LEVEL)}",
    )


@claim(
    "slide 33", "Try out Leaky ReLU / Maxout / ELU", stands="qualified",
    but="What Maxout gains here it gains by its parameters: a ReLU network as large, and wider for "
    "it, does about as well, and on wine and cancer, which the smallest network learns as well, "
    "more parameters gain nothing either. A gain of some tenths of a point on digits is "
    "not excluded by twelve seeds: there the means lean to Maxout, most of all with dropout. "
    "Goodfellow et al. 2013 report their gains on larger networks and data.",
)  # fmt: skip
def maxout_does_no_better_than_relu_of_as_many_parameters(frames: Frames) -> Judged:
    """Against ReLU of as many parameters no trial shows a gain; on digits over half is gone."""
    wide, large = gains(frames, SAME_WIDTH), gains(frames, SAME_SIZE)
    digits = [name for name in TRIALS if TRIALS[name].data == "digits"]
    return Judged(
        all(g.p > LEVEL for g in large.values())
        and all(large[name].mean < wide[name].mean / 2 for name in digits),
        f"points gained: {_told(large)}",
        f"no gain: p over {number(LEVEL)}",
    )


@claim("slide 32", "Problem: doubles the number of parameters/neuron")
def a_maxout_layer_computes_k_times_as_much(frames: Frames) -> Judged:
    """Multiply-adds grow k-fold as well, and a step of training takes about twice as long."""
    table, cost = frames["counted"], frames["cost"].set_index("arm")["median"]
    times = table["multiply_adds"] / table["multiply_adds_relu"]
    return Judged(
        bool((times == table["pieces"]).all()) and 1.3 < cost[MAXOUT] < 4,
        f"multiply-adds × {', '.join(number(t) for t in times)} for k = "
        f"{', '.join(str(k) for k in table['pieces'])}; a step × {number(cost[MAXOUT])} of "
        "ReLU's of the same width",
        "× k; × 2",
    )


@claim(
    "nndiag", "passes maxout networks, whose units do not die", stands="qualified",
    but="Right of the units. It has no rule for pieces that are never the largest, so what a "
    "maxout loses at the high rate it does not see, and no rule for training curves either.",
)  # fmt: skip
def nndiag_passes_maxout_where_it_finds_dead_relus(frames: Frames) -> Judged:
    """After the same training at too high a rate `dead-relu` leads for ReLU, and Maxout passes."""
    told = frames["verdicts"].set_index("network")
    relu = f"ReLU, Adam at {HIGH}"
    return Judged(
        told["leading"][relu].startswith("dead-relu")
        and bool((told["verdict"].drop(relu) == "healthy").all()),
        "; ".join(f"{name}: {leading}" for name, leading in told["leading"].items()),
        "dead-relu for ReLU at the high rate, none for the others",
    )
