"""Activation functions.

Ten activations under the same four trials: the lecture's seven (sigmoid, tanh, ReLU, Leaky ReLU of
slope 0.01, PReLU from slope 0.25, ELU, Maxout of two pieces), and three that are not on its slides
(SELU, GELU, SiLU). (1) 50,000 inputs from N(0, 1), five seeds: the mean and spread of what comes
out. (2) Scikit-learn's digits (1297 to train on, 500 to test on), networks of 64-100-100-100-10
units, zero biases, weights from N(0, g²/n), where n is a layer's fan_in and g the activation's
reference gain (Xavier for sigmoid and tanh, LeCun for SELU, He's condition for the rest); 100 steps
of plain gradient descent on batches of 64, four learning rates from 0.03 to 1 (for sigmoid, which
learns at the highest of them alone, also 3), five seeds; each activation is judged at the rate at
which it does best on the training data, and the steps until 75% are right are counted on a quarter
of these, at the rate at which they are fewest. (3) The same networks, 200 steps of Adam at the rate
0.1, which is a hundred times too high (ReLU also at 0.001, ELU also at 0.3): a unit is dead if the
slope of its activation is exactly zero on all 1297 training images. (4) Time: each function on
50,000 values against ReLU on the same, and a linear layer of 500 x 500 with the activation behind
it, forwards and backwards, against the same with ReLU; medians of 31 pairs on one thread. (The
function alone is timed forwards, on values that stay in the cache; forwards and backwards over
larger tensors all wait for memory, and the ratios shrink: see the rule costly-activation.) A maxout
unit is the larger of two linear pieces, so it has twice the weights.
"""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from nndiag import fixes
from nndiag.gallery import lab as data
from nndiag.gallery.lab import Lab, accuracy, mlp, train
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

PAGE = Page(
    number=1,
    title="Activation functions",
    claim="Sigmoid saturates, is not zero-centred and costs an exp(); tanh is zero-centred but "
    "saturates; ReLU saturates on one side alone and is cheap, but is not zero-centred, and its "
    "units can die; Leaky ReLU, ELU and Maxout mend that.",
    sources=(
        "CS231n 2017, lecture 6, slides 15 to 33",
        "Krizhevsky et al. 2012, figure 1",
        "Clevert et al. 2015",
    ),
    caption="Above, the functions and (dashed) their slopes; Maxout has no one shape. Below, the "
    "share of dead units while Adam trains at a rate that is too high, mean over the seeds; and "
    "the steps of gradient descent until 75% of the training digits are right, each at its fastest "
    "rate.",
)


class Case(NamedTuple):
    label: str
    module: Callable[[], nn.Module]
    mean: float
    std: float
    """Of its output for inputs from N(0, 1), by Gaussian quadrature."""


CASES = {
    "sigmoid": Case("sigmoid", nn.Sigmoid, 0.5, 0.208276),
    "tanh": Case("tanh", nn.Tanh, 0.0, 0.627929),
    "relu": Case("ReLU", nn.ReLU, 0.398942, 0.583819),
    "leaky_relu": Case("Leaky ReLU", nn.LeakyReLU, 0.394953, 0.586568),
    "prelu": Case("PReLU", nn.PReLU, 0.299207, 0.664624),
    "elu": Case("ELU", nn.ELU, 0.160521, 0.786879),
    "selu": Case("SELU", nn.SELU, 0.0, 1.0),
    "maxout": Case("Maxout", nn.Identity, 1 / math.sqrt(math.pi), math.sqrt(1 - 1 / math.pi)),
    "gelu": Case("GELU", nn.GELU, 0.282095, 0.587915),
    "silu": Case("SiLU", nn.SiLU, 0.206621, 0.559538),
}
PIECES = 2
WIDTHS = (64, 100, 100, 100, 10)
SEEDS, SAMPLES, WIDE = 5, 50_000, 3.0
RATES, STEPS, ENOUGH = (0.03, 0.1, 0.3, 1.0), 100, 0.75
LOOKED_AT = 324
"""Training digits, a quarter, on which the steps to ENOUGH are counted."""
HIGH, HIGHEST, SOUND, ADAM_STEPS, EVERY = 0.1, 0.3, 0.001, 200, 20
PAIRS, VALUES, LAYER = 31, (100, 500), 500
FLAT = 0.05
"""A slope under this share of the steepest is flat."""


class Largest(nn.Module):
    """The maximum over neighbouring pairs: what Maxout does behind its linear layer."""

    def forward(self, z: Tensor) -> Tensor:
        return z.reshape(*z.shape[:-1], -1, PIECES).amax(-1)


def function(name: str) -> nn.Module:
    return Largest() if name == "maxout" else CASES[name].module()


def network(name: str, seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The page's network with this activation, at its own reference scale."""
    torch.manual_seed(seed)

    def init(linear: nn.Linear) -> None:
        gain = 1.0 if linear.out_features == WIDTHS[-1] else fixes.gain(name)
        nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
        nn.init.zeros_(linear.bias)

    if name != "maxout":
        return mlp(WIDTHS, CASES[name].module, init).to(dtype)
    last = nn.Linear(*WIDTHS[-2:])
    init(last)
    hidden = itertools.pairwise(WIDTHS[:-1])
    layers = [fixes.Maxout.of(nn.Linear(*sizes), PIECES) for sizes in hidden]
    return nn.Sequential(*layers, last).to(dtype)


# -- measuring -----------------------------------------------------------------------------------


def slope(function: nn.Module, z: Tensor) -> Tensor:
    """By autograd, element for element; of a maxout the sum over its pieces."""
    z = z.detach().requires_grad_()
    out = function(z)
    (found,) = torch.autograd.grad(out.sum(), z)
    return found.reshape(*out.shape, -1).sum(-1)


def shapes() -> pd.DataFrame:
    """Each function and its slope from -10 to 10, in float64."""
    x = torch.arange(-100, 101, dtype=torch.float64) / 10
    rows = []
    for name in CASES:
        if name != "maxout":
            f = function(name).double()
            with torch.no_grad():
                y = f(x)
            rows.append(pd.DataFrame({"activation": name, "x": x, "y": y, "slope": slope(f, x)}))
    return pd.concat(rows)


def moments(name: str, seed: int) -> dict[str, object]:
    """Mean and spread at N(0, 1); what of the N(0, 3²) inputs of each sign is flat."""
    torch.manual_seed(seed)
    f = function(name).double()
    z = torch.randn(SAMPLES, PIECES if name == "maxout" else 1, dtype=torch.float64)
    with torch.no_grad():
        y = f(z).flatten()
    centred = y - y.mean()
    std = centred.pow(2).mean().sqrt()
    kurtosis = centred.pow(4).mean() / std**4
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64).reshape(-1, 1)
    steepest = slope(f, grid.expand(-1, z.shape[1])).abs().max()
    flat = (slope(f, WIDE * z).abs() < FLAT * steepest).flatten()
    positive = z.amax(1) > 0
    return {
        "activation": name, "seed": seed, "mean": y.mean().item(), "std": std.item(),
        "std_error": (std * ((kurtosis - 1) / (4 * SAMPLES)).sqrt()).item(),
        "zeros": (y == 0).double().mean().item(),
        "flat_positive": flat[positive].double().mean().item(),
        "flat_negative": flat[~positive].double().mean().item(),
    }  # fmt: skip


def last_slopes() -> pd.DataFrame:
    """How far below zero float32 and float64 know a slope: the last of -1, -2, -3 ... that has."""
    rows = []
    for name in CASES:
        for dtype in (torch.float32, torch.float64):
            z = torch.arange(-1000, 0, dtype=dtype).reshape(-1, 1)
            if name != "maxout":
                known = z[slope(function(name).to(dtype), z) != 0]
                last = known.min().item() if len(known) else math.nan
                rows.append({"activation": name, "dtype": _short(dtype), "last": last})
    return pd.DataFrame(rows)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def learning(name: str, rate: float, seed: int) -> dict[str, object]:
    """Steps of gradient descent until enough is right, and what is right after all of them."""
    x, y, x_test, y_test = data.digits()
    model, reached = network(name, seed), [STEPS + 1]

    def look(step: int, loss: Tensor) -> None:
        due = step < 40 or step % 4 == 3
        if due and reached[0] > STEPS and accuracy(model, x[:LOOKED_AT], y[:LOOKED_AT]) >= ENOUGH:
            reached[0] = step + 1

    train(model, x, y, torch.optim.SGD(model.parameters(), lr=rate), STEPS, seed, each=look)
    return {
        "activation": name, "rate": rate, "seed": seed, "steps": reached[0],
        "train": accuracy(model, x, y), "test": accuracy(model, x_test, y_test),
    }  # fmt: skip


def dead(model: nn.Sequential, x: Tensor) -> float:
    """Share of hidden units whose activation has slope zero on every one of these inputs."""
    silent = []
    for module in list(model)[:-1]:
        if isinstance(module, nn.Linear):
            x = module(x)
        else:
            z = module.layer(x) if isinstance(module, fixes.Maxout) else x
            f = Largest() if isinstance(module, fixes.Maxout) else module
            silent.append((slope(f, z) == 0).all(0))
            with torch.no_grad():
                x = f(z)
    return torch.cat(silent).double().mean().item()


def dying(
    name: str, rate: float, seed: int, dtype: torch.dtype = torch.float32, every: int = EVERY
) -> tuple[pd.DataFrame, nn.Sequential]:
    """The share of dead units while Adam trains; and the network it leaves."""
    x, y, _, _ = data.digits()
    x = x.to(dtype)
    model = network(name, seed, dtype)
    shares = {0: dead(model, x)}

    def look(step: int, loss: Tensor) -> None:
        if (step + 1) % every == 0:
            shares[step + 1] = dead(model, x)

    train(
        model,
        x,
        y,
        torch.optim.Adam(model.parameters(), lr=rate, fused=True),
        ADAM_STEPS,
        seed,
        each=look,
    )
    rows = pd.DataFrame(
        {
            "activation": name, "rate": rate, "dtype": _short(dtype), "seed": seed,
            "step": list(shares), "dead": list(shares.values()),
        }
    )  # fmt: skip
    rows["train"] = accuracy(model, x, y)
    return rows, model


def costs() -> pd.DataFrame:
    """Times over ReLU's, pair by pair."""
    torch.manual_seed(0)
    values, pairs = torch.randn(VALUES), torch.randn(VALUES[0], PIECES * VALUES[1])
    functions: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
        **{name: function(name) for name in CASES}, "exp": torch.exp,
    }  # fmt: skip

    def alone(name: str) -> Callable[[], object]:
        f, x = functions[name], pairs if name == "maxout" else values
        return lambda: [f(x) for _ in range(10)]

    def layer(name: str) -> Callable[[], object]:
        linear = nn.Linear(LAYER, LAYER)
        block = (
            fixes.Maxout.of(linear, PIECES)
            if name == "maxout"
            else nn.Sequential(linear, function(name))
        )
        return lambda: block(values.requires_grad_()).sum().backward()

    rows = []
    for kind, made, names in (("function", alone, functions), ("layer", layer, CASES)):
        reference = made("relu")
        for name in names:
            other = made(name)
            with torch.set_grad_enabled(kind == "layer"):
                pairs_of = [(_seconds(other), _seconds(reference)) for _ in range(PAIRS + 1)]
            ratios = pd.Series([a / b for a, b in pairs_of[1:]])
            rows.append(
                {
                    "kind": kind, "activation": name, "median": ratios.median(),
                    "quarter": ratios.quantile(0.25), "three_quarters": ratios.quantile(0.75),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    found, learned, died = [], [], []
    x, y, _, _ = data.digits()
    loss = nn.functional.cross_entropy
    for name in lab.track(CASES):
        for seed in range(SEEDS):
            found.append(moments(name, seed))
            rates = (*RATES, 3.0) if name == "sigmoid" else RATES
            learned += [learning(name, rate, seed) for rate in rates]
            rows, model = dying(name, HIGH, seed)
            died.append(rows)
            if seed == 0 and name in ("tanh", "relu", "leaky_relu", "gelu", "maxout"):
                lab.check(f"{CASES[name].label}, Adam at {HIGH}", model, x, y, loss_fn=loss)
            if name == "relu":
                rows, model = dying(name, SOUND, seed, every=ADAM_STEPS)
                died.append(rows)
                if seed == 0:
                    lab.check(f"ReLU, Adam at {SOUND}", model, x, y, loss_fn=loss)
            if name == "elu":
                for dtype in (torch.float32, torch.float64):
                    rows, model = dying(name, HIGHEST, seed, dtype, every=ADAM_STEPS)
                    died.append(rows)
    return {
        "shapes": shapes(), "moments": pd.DataFrame(found), "last": last_slopes(),
        "learning": pd.DataFrame(learned), "dead": pd.concat(died), "cost": costs(),
    }  # fmt: skip


# -- showing -------------------------------------------------------------------------------------


def at_best(frames: Frames, name: str) -> pd.DataFrame:
    """Its runs at the rate at which most of the training data are right in the end."""
    rows = where(frames["learning"], activation=name)
    return where(rows, rate=rows.groupby("rate")["train"].mean().idxmax())


def at_fastest(frames: Frames, name: str) -> pd.DataFrame:
    """Its runs at the rate at which it needs the fewest steps."""
    rows = where(frames["learning"], activation=name)
    return where(rows, rate=rows.groupby("rate")["steps"].mean().idxmin())


def final(frames: Frames, name: str, rate: float = HIGH, dtype: str = "float32") -> pd.DataFrame:
    return where(frames["dead"], activation=name, rate=rate, dtype=dtype, step=ADAM_STEPS)


def cost(frames: Frames, kind: str, name: str) -> float:
    return float(where(frames["cost"], kind=kind, activation=name)["median"].iloc[0])


def steps(values: pd.Series[float]) -> str:
    late = (values > STEPS).all()
    return f"not within {STEPS}" if late else spread(values)


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    shape, learned, died = [], [], []
    for name, case in CASES.items():
        rows = where(frames["moments"], activation=name)
        shape.append(
            {
                "activation": case.label, "mean": spread(rows["mean"]), "mean, theory": case.mean,
                "std": spread(rows["std"]), "std, theory": case.std,
                "exact zeros": f"{rows['zeros'].mean():.0%}",
                "flat, z > 0": f"{rows['flat_positive'].mean():.0%}",
                "flat, z < 0": f"{rows['flat_negative'].mean():.0%}",
            }
        )  # fmt: skip
        best, fastest = at_best(frames, name), at_fastest(frames, name)
        learned.append(
            {
                "activation": case.label, "best rate": best["rate"].iloc[0],
                "test accuracy there": spread(best["test"]),
                "fastest rate": fastest["rate"].iloc[0],
                f"steps to {ENOUGH:.0%}": steps(fastest["steps"]),
                "function's time / ReLU's": cost(frames, "function", name),
                "layer's time / ReLU's": cost(frames, "layer", name),
            }
        )  # fmt: skip
    ends = where(frames["dead"], step=ADAM_STEPS)
    for key, rows in ends.groupby(["activation", "rate", "dtype"], sort=False):
        name, rate, dtype = cast("tuple[str, float, str]", key)
        died.append(
            {
                "activation": CASES[name].label, "Adam's rate": rate, "precision": dtype,
                "dead units": spread(rows["dead"]), "training accuracy": spread(rows["train"]),
            }
        )  # fmt: skip
    return {
        f"Inputs from N(0, 1); flat: slope under {FLAT:.0%} of the steepest, "
        f"inputs from N(0, {WIDE:.0f}²)": pd.DataFrame(shape),
        f"Digits, {STEPS} steps of gradient descent, {SEEDS} seeds; time": pd.DataFrame(learned),
        f"Units dead after {ADAM_STEPS} steps of Adam": pd.DataFrame(died),
    }


def draw(frames: Frames, figure: Figure) -> None:
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.5])
    top, bottom = parts
    for name, axes in zip(frames["shapes"]["activation"].unique(), top.subplots(1, 9), strict=True):
        rows = where(frames["shapes"], activation=name)
        rows = rows[rows["x"].abs() <= 4]
        axes.plot(rows["x"], rows["y"])
        axes.plot(rows["x"], rows["slope"], "--", lw=1.2)
        axes.set(ylim=(-2, 3), xticks=[-3, 0, 3], yticks=[-1, 0, 1, 2])
        axes.set_title(CASES[name].label, fontsize=9)
        axes.tick_params(labelleft=name == "sigmoid", labelsize=7, length=2)
    left, right = bottom.subplots(1, 2)
    rows = where(frames["dead"], rate=HIGH)
    for place, (name, case) in enumerate(CASES.items()):
        dead_now = where(rows, activation=name).groupby("step")["dead"].mean()
        if dead_now.max() > 0.05:
            left.plot(dead_now.index, 100 * dead_now, marker="o", ms=3, color=f"C{place}")
            left.text(ADAM_STEPS * 1.03, 100 * dead_now.iloc[-1], case.label, va="center")
    left.plot([0, ADAM_STEPS], [0, 0], color="#8a939d")
    left.text(ADAM_STEPS * 1.03, 0, "the others", va="center")
    left.set(title=f"dead units, Adam at {HIGH} (%)", xlabel="step", ylim=(-3, 100))
    left.set(xlim=(-5, ADAM_STEPS * 1.28), xticks=range(0, ADAM_STEPS + 1, 50))
    for place, name in enumerate(CASES):
        mean = float(at_fastest(frames, name)["steps"].mean())
        right.barh(place, mean, color=f"C{place}")
        right.text(mean * 1.05, place, f"{mean:.0f}", va="center", fontsize=8)
    right.set(
        title=f"steps to {ENOUGH:.0%} of the training digits", xscale="log", xlim=(1, 200),
        yticks=range(len(CASES)),
        yticklabels=[case.label for case in CASES.values()],
    )  # fmt: skip
    right.invert_yaxis()
    right.grid(False)


# -- what it shows -------------------------------------------------------------------------------


@claim("slide 17", "Saturated neurons “kill” the gradients (sigmoid)")
def sigmoid_slope_never_exceeds_a_quarter(frames: Frames) -> Judged:
    """A sigmoid passes on at most a quarter of the gradient, at 0, and next to none at ±10."""
    rows = where(frames["shapes"], activation="sigmoid").set_index("x")["slope"]
    ends = rows[[-10, 10]]
    expected = math.exp(-10) / (1 + math.exp(-10)) ** 2
    return Judged(
        bool(rows.max() == rows[0] == 0.25) and bool((abs(ends / expected - 1) < 1e-4).all()),
        f"{number(rows.max())} at 0, {number(ends.max())} at ±10",
        f"1/4 and {number(expected)}: σ' = σ(1 - σ)",
    )


@claim(
    "slides 23, 24 and course notes, Neural Networks 1",
    "tanh is a scaled sigmoid, 2σ(2x) - 1; still kills gradients when saturated; ReLU does not "
    "saturate (in +region)",
)
def tanh_is_a_sigmoid_that_saturates_at_half_the_distance(frames: Frames) -> Judged:
    """tanh(x) = 2σ(2x) - 1: of x > 0 from N(0, 3²) 47% are flat for tanh, for sigmoid 15%."""
    tanh, sigmoid = (
        where(frames["shapes"], activation=name).set_index("x")["y"] for name in ("tanh", "sigmoid")
    )
    near = [x for x in tanh.index if abs(x) <= 5]  # 2x is on the grid, too
    twice = sigmoid.loc[[round(2 * x, 1) for x in near]].to_numpy()
    difference = abs(tanh.loc[near].to_numpy() - (2 * twice - 1)).max()
    flat = frames["moments"].groupby("activation")["flat_positive"].mean()
    # the slope is under 5% of the steepest beyond 2.1783 for tanh, and twice that for sigmoid
    expected = {
        name: math.erfc(edge / WIDE / math.sqrt(2))
        for name, edge in (("tanh", 2.1783), ("sigmoid", 4.3565))
    }
    right = all(
        abs(flat[name] - share) < 5 * math.sqrt(share * (1 - share) / (SEEDS * SAMPLES / 2))
        for name, share in expected.items()
    )
    others = flat.drop(list(expected)).max()
    return Judged(
        difference < 5e-6 and right and others == 0,
        f"they differ by {number(difference)}; flat: tanh {flat['tanh']:.1%}, sigmoid "
        f"{flat['sigmoid']:.1%}, the other eight {others:.0%}",
        f"0, to the table's six digits; {expected['tanh']:.1%}, {expected['sigmoid']:.1%}, 0%",
    )


@claim(
    "slides 19 to 31",
    "Sigmoid: not zero-centered; tanh: zero centered (nice); ReLU: not zero-centered output; ELU: "
    "closer to zero mean outputs",
)
def the_outputs_are_centred_as_theory_has_it(frames: Frames) -> Judged:
    """At N(0, 1) tanh and SELU are centred, ELU nearly, ReLU not, and sigmoid least of all."""
    worst, off = 0.0, {}
    for name, case in CASES.items():
        rows = where(frames["moments"], activation=name)
        mean_error = case.std / math.sqrt(SAMPLES * len(rows))
        std_error = rows["std_error"].mean() / math.sqrt(len(rows))
        worst = max(
            worst, abs(rows["mean"].mean() - case.mean) / mean_error,
            abs(rows["std"].mean() - case.std) / std_error,
        )  # fmt: skip
        off[name] = (rows["mean"] / rows["std"]).mean()
    order = off["sigmoid"] > off["relu"] > off["elu"] > 0.1
    told = ", ".join(f"{CASES[n].label} {off[n]:.2f}" for n in ("sigmoid", "relu", "elu", "tanh"))
    return Judged(
        worst < 4 and order,
        f"mean/std {told}; the farthest of 20 is {worst:.1f} standard errors off theory",
        "2.40, 0.68, 0.20, 0 by quadrature; at most 4 standard errors",
    )  # fmt: skip


@claim(
    "slides 27 and 29", "dead ReLU: will never activate, never update; Leaky ReLU: will not “die”"
)
def relu_units_die_where_leaky_units_do_not(frames: Frames) -> Judged:
    """At a rate a hundred times too high most ReLU units die; of Leaky, PReLU, Maxout none."""
    relu, sound = final(frames, "relu")["dead"], final(frames, "relu", SOUND)["dead"]
    kept = pd.concat([final(frames, n)["dead"] for n in ("leaky_relu", "prelu", "maxout")])
    return Judged(
        relu.min() > 0.3 and sound.max() < 0.1 and kept.max() == 0,
        f"ReLU {spread(relu)}, at {SOUND} {spread(sound)}; the three {spread(kept)}",
        "over 0.3 (a like net on synthetic clusters: 0.41 to 0.62), under 0.1; 0",
    )


@claim(
    "slide 31", "ELU: all benefits of ReLU, negative saturation regime", stands="qualified",
    but="Where an ELU saturates its slope is exp(z), and float32 knows no exp(z) below -103. There "
    "the unit is as dead as a ReLU. It takes a higher rate to get there, and in float64 the same "
    "networks lose hardly a unit. The smooth GELU, which is not on the slides, gets there much "
    "sooner: its slope is Φ(z) + zφ(z), which torch rounds to zero from about -7 on, and at a rate "
    "at which ELU keeps all units it loses a fifth and more.",
)  # fmt: skip
def elu_and_gelu_die_where_float32_ends(frames: Frames) -> Judged:
    """In float32 ELU has no slope below -103 and GELU none below -7: their units can die."""
    last = where(frames["last"], dtype="float32").set_index("activation")["last"]
    single, double = (final(frames, "elu", HIGHEST, d)["dead"] for d in ("float32", "float64"))
    elu, gelu = final(frames, "elu")["dead"], final(frames, "gelu")["dead"]
    return Judged(
        bool(last["elu"] == -103 and -14 <= last["gelu"] <= -5)
        and bool(double.mean() < single.mean() / 10)
        and bool(elu.max() == 0 < gelu.min()),
        f"last slopes at {last['elu']:.0f} and {last['gelu']:.0f}; dead at {HIGHEST}: ELU "
        f"{spread(single)}, in float64 {spread(double)}; at {HIGH}: ELU {spread(elu)}, "
        f"GELU {spread(gelu)}",
        "exp(-103) > 0 = exp(-104) in float32, zφ(z) = 0 from -14 on; hardly any dead in float64",
    )


@claim(
    "slides 22 and 24", "exp() is a bit compute expensive; ReLU: very computationally efficient",
    stands="qualified",
    but="True of the function alone. In a network it stands behind a matrix product, and a layer "
    "of 500 units with sigmoid or tanh takes hardly longer than one with ReLU. What costs is "
    "Maxout, which needs two products.",
)  # fmt: skip
def exp_costs_more_than_max_and_hardly_matters_in_a_layer(frames: Frames) -> Judged:
    """exp takes several times as long as max, and a layer with sigmoid or tanh a few per cent."""
    alone = cost(frames, "function", "exp")
    layers = {n: cost(frames, "layer", n) for n in ("sigmoid", "tanh", "elu", "maxout")}
    slowest = max(layers[n] for n in ("sigmoid", "tanh", "elu"))
    return Judged(
        alone > 1.5 and slowest < 1.5 < layers["maxout"],
        f"exp {number(alone)} times max; a layer with sigmoid, tanh or ELU at most "
        f"{number(slowest)}, with Maxout {number(layers['maxout'])} times one with ReLU",
        "over 1; near 1; 2 for two products",
    )


@claim(
    "slide 24", "Converges much faster than sigmoid/tanh in practice (e.g. 6x)",
    stands="qualified",
    but="True of sigmoid, and not of tanh. The 6x are from one figure (Krizhevsky et al. 2012: a "
    "convolutional network on CIFAR-10, tanh, steps to 25% training error). On the digits, by the "
    "same measure and with each at its fastest rate, tanh is no slower than ReLU.",
)  # fmt: skip
def relu_is_many_times_faster_than_sigmoid_and_not_than_tanh(frames: Frames) -> Judged:
    """To 75% of the digits ReLU needs far fewer steps than sigmoid, but no fewer than tanh."""
    relu, tanh, sigmoid = (at_fastest(frames, n)["steps"] for n in ("relu", "tanh", "sigmoid"))
    return Judged(
        sigmoid.mean() > 3 * relu.mean() and tanh.mean() < 2 * relu.mean(),
        f"ReLU {steps(relu)}, tanh {steps(tanh)}, sigmoid {steps(sigmoid)} steps",
        "6 times as many for tanh, if the slide's number held here",
    )


@claim("slide 33", "Use ReLU; try out Leaky ReLU / Maxout / ELU; try out tanh; don't use sigmoid")
def sigmoid_comes_last_of_the_ten_after_a_fixed_budget(frames: Frames) -> Judged:
    """After 100 steps, each at its best rate, sigmoid reads the fewest test digits right."""
    tests = {name: at_best(frames, name)["test"] for name in CASES}
    sigmoid = tests.pop("sigmoid")
    means = {name: values.mean() for name, values in tests.items()}
    chance = stats.mannwhitneyu(sigmoid, pd.concat(tests.values()), alternative="less").pvalue
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return Judged(
        sigmoid.mean() < means[low] and chance < 1e-3,
        f"sigmoid {spread(sigmoid)}; the nine from {CASES[low].label}, {spread(tests[low])}, to "
        f"{CASES[high].label}, {spread(tests[high])}",
        f"no difference: a rank test against all of the nine has p = {number(chance)}",
    )  # fmt: skip


@claim(
    "nndiag", "names dead and saturated units, and nothing where a unit only has a leak",
    stands="qualified",
    but="It names ReLU's dead units and tanh's saturated ones, and passes the sound network. That "
    "most of GELU's first layer has lost its slope it does not say: its rule for dead units knows "
    "activations that are exactly flat, and there it names the grown weights instead.",
)  # fmt: skip
def nndiag_names_dead_relus_and_saturated_tanhs(frames: Frames) -> Judged:
    """`dead-relu` leads for ReLU at the high rate, tanh is sick, and the sound ReLU passes."""
    told = frames["verdicts"].set_index("network")
    leading = told["leading"]
    return Judged(
        leading[f"ReLU, Adam at {HIGH}"].startswith("dead-relu")
        and told["verdict"][f"tanh, Adam at {HIGH}"] == "sick"
        and told["verdict"][f"ReLU, Adam at {SOUND}"] == "healthy"
        and not leading[f"GELU, Adam at {HIGH}"].startswith("dead-relu")
        and not leading[f"Leaky ReLU, Adam at {HIGH}"].startswith("dead-relu"),
        "; ".join(f"{n}: {v}" for n, v in leading.items()),
        "dead-relu for ReLU at the high rate, none for the sound one",
    )  # fmt: skip
