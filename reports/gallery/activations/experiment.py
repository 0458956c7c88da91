"""Page 1: activation functions."""

import itertools
import math

import pandas as pd
import torch
from gallery.figures import QUIET
from gallery.lab import accuracy, adam, digits, mlp, sgd, timed, train
from gallery.page import Judged, leads, number, sick, spread, summary, where
from scipy import stats
from torch import nn

from nndiag import fixes

CASES = {
    "sigmoid": ("sigmoid", nn.Sigmoid, 0.5, 0.208276),
    "tanh": ("tanh", nn.Tanh, 0.0, 0.627929),
    "relu": ("ReLU", nn.ReLU, 0.398942, 0.583819),
    "leaky_relu": ("Leaky ReLU", nn.LeakyReLU, 0.394953, 0.586568),
    "prelu": ("PReLU", nn.PReLU, 0.299207, 0.664624),
    "elu": ("ELU", nn.ELU, 0.160521, 0.786879),
    "selu": ("SELU", nn.SELU, 0.0, 1.0),
    "maxout": ("Maxout", nn.Identity, 1 / math.sqrt(math.pi), math.sqrt(1 - 1 / math.pi)),
    "gelu": ("GELU", nn.GELU, 0.282095, 0.587915),
    "silu": ("SiLU", nn.SiLU, 0.206621, 0.559538),
}
"""Label, module; mean and std of its output for inputs from N(0, 1), by Gaussian quadrature."""
LABELS = {name: label for name, (label, *_) in CASES.items()}
PIECES = 2
WIDTHS = (64, 100, 100, 100, 10)
SEEDS, SAMPLES, WIDE = 5, 50_000, 3.0
RATES, STEPS, ENOUGH = (0.03, 0.1, 0.3, 1.0), 100, 0.75
LOOKED_AT = 324
"""Training digits, a quarter, on which the steps to ENOUGH are counted."""
HIGH, HIGHEST, SOUND, ADAM_STEPS, EVERY = 0.1, 0.3, 0.001, 200, 20
FLAT = 0.05
"""A slope under this share of the steepest is flat."""


class Largest(nn.Module):
    """The maximum over neighbouring pairs: what Maxout does behind its linear layer."""

    def forward(self, z):
        return z.reshape(*z.shape[:-1], -1, PIECES).amax(-1)


def function(name):
    return Largest() if name == "maxout" else CASES[name][1]()


def network(name, seed, dtype=torch.float32):
    """The page's network with this activation, at its own reference scale."""
    torch.manual_seed(seed)

    def init(linear):
        gain = 1.0 if linear.out_features == WIDTHS[-1] else fixes.gain(name)
        nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
        nn.init.zeros_(linear.bias)

    if name != "maxout":
        return mlp(WIDTHS, CASES[name][1], init).to(dtype)
    last = nn.Linear(*WIDTHS[-2:])
    init(last)
    hidden = itertools.pairwise(WIDTHS[:-1])
    layers = [fixes.Maxout.of(nn.Linear(*sizes), PIECES) for sizes in hidden]
    return nn.Sequential(*layers, last).to(dtype)


def slope(function, z):
    """By autograd, element for element; of a maxout the sum over its pieces."""
    z = z.detach().requires_grad_()
    out = function(z)
    (found,) = torch.autograd.grad(out.sum(), z)
    return found.reshape(*out.shape, -1).sum(-1)


def shapes():
    """Each function and its slope from -10 to 10, in float64."""
    x, rows = torch.arange(-100, 101, dtype=torch.float64) / 10, []
    for name in [name for name in CASES if name != "maxout"]:
        f = function(name).double()
        with torch.no_grad():
            y = f(x)
        rows.append(pd.DataFrame({"activation": name, "x": x, "y": y, "slope": slope(f, x)}))
    return pd.concat(rows)


def moments(name, seed):
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


def last_slopes():
    """How far below zero float32 and float64 know a slope: the last of -1, -2, -3 ... that has."""
    rows = []
    for name, dtype in itertools.product(CASES, (torch.float32, torch.float64)):
        if name != "maxout":
            z = torch.arange(-1000, 0, dtype=dtype).reshape(-1, 1)
            known = z[slope(function(name).to(dtype), z) != 0]
            last = known.min().item() if len(known) else math.nan
            rows.append({"activation": name, "dtype": _short(dtype), "last": last})
    return pd.DataFrame(rows)


def _short(dtype):
    return str(dtype).removeprefix("torch.")


def learning(name, rate, seed):
    """Steps of gradient descent until enough is right, and what is right after all of them."""
    x, y, x_test, y_test = digits()
    model, reached = network(name, seed), [STEPS + 1]

    def look(step, loss):
        due = step < 40 or step % 4 == 3
        if due and reached[0] > STEPS and accuracy(model, x[:LOOKED_AT], y[:LOOKED_AT]) >= ENOUGH:
            reached[0] = step + 1

    train(model, x, y, sgd(model, rate), STEPS, seed, each=look)
    return {
        "activation": name, "rate": rate, "seed": seed, "steps": reached[0],
        "train": accuracy(model, x, y), "test": accuracy(model, x_test, y_test),
    }  # fmt: skip


def dead(model, x):
    """Share of hidden units whose activation has slope zero on every one of these inputs."""
    silent = []
    for module in list(model)[:-1]:
        if isinstance(module, nn.Linear):
            x = module(x)
            continue
        maxout = isinstance(module, fixes.Maxout)
        z, f = (module.layer(x), Largest()) if maxout else (x, module)
        silent.append((slope(f, z) == 0).all(0))
        with torch.no_grad():
            x = f(z)
    return torch.cat(silent).double().mean().item()


def dying(name, rate, seed, dtype=torch.float32, every=EVERY):
    """The share of dead units while Adam trains; and the network it leaves."""
    x, y, _, _ = digits()
    x = x.to(dtype)
    model = network(name, seed, dtype)
    shares = {0: dead(model, x)}

    def look(step, loss):
        if (step + 1) % every == 0:
            shares[step + 1] = dead(model, x)

    train(model, x, y, adam(model, rate, fused=True), ADAM_STEPS, seed, each=look)
    rows = {"activation": name, "rate": rate, "dtype": _short(dtype), "seed": seed}
    rows |= {"step": list(shares), "dead": list(shares.values())}
    return pd.DataFrame(rows).assign(train=accuracy(model, x, y)), model


def costs():
    """Times over ReLU's, forwards of each function and of a layer with it both ways."""
    torch.manual_seed(0)
    values, pairs = torch.randn(100, 500), torch.randn(100, PIECES * 500)
    functions = {**{name: function(name) for name in CASES}, "exp": torch.exp}

    def alone(name):
        f, x = functions[name], pairs if name == "maxout" else values
        return lambda: [f(x) for _ in range(10)]

    def layer(name):
        linear = nn.Linear(500, 500)
        maxout = name == "maxout"
        f = fixes.Maxout.of(linear) if maxout else nn.Sequential(linear, function(name))
        return lambda: f(values.requires_grad_()).sum().backward()

    rows = []
    for kind, made, names in (("function", alone, functions), ("layer", layer, CASES)):
        reference = made("relu")
        with torch.set_grad_enabled(kind == "layer"):
            rows += [{"kind": kind, "activation": n, **timed(made(n), reference)} for n in names]
    return pd.DataFrame(rows)


def measure(lab):
    found, learned, died = [], [], []
    x, y, _, _ = digits()
    for name in lab.track(CASES):
        for seed in lab.seeds(SEEDS):
            first = seed == lab.first
            found.append(moments(name, seed))
            rates = (*RATES, 3.0) if name == "sigmoid" else RATES
            learned += [learning(name, rate, seed) for rate in rates]
            rows, model = dying(name, HIGH, seed)
            died.append(rows)
            if first and name in ("tanh", "relu", "leaky_relu", "gelu", "maxout"):
                lab.check(f"{LABELS[name]}, Adam at {HIGH}", model, x, y)
            if name == "relu":
                rows, model = dying(name, SOUND, seed, every=ADAM_STEPS)
                died.append(rows)
                if first:
                    lab.check(f"ReLU, Adam at {SOUND}", model, x, y)
            if name == "elu":
                died += [dying(name, HIGHEST, seed, dtype, every=ADAM_STEPS)[0]
                         for dtype in (torch.float32, torch.float64)]  # fmt: skip
    return {
        "shapes": shapes(), "moments": pd.DataFrame(found), "last": last_slopes(),
        "learning": pd.DataFrame(learned), "dead": pd.concat(died), "cost": costs(),
    }  # fmt: skip


# -- showing -------------------------------------------------------------------------------------


def at_best(frames, name):
    """Its runs at the rate at which most of the training data are right in the end."""
    rows = where(frames["learning"], activation=name)
    return where(rows, rate=rows.groupby("rate")["train"].mean().idxmax())


def at_fastest(frames, name):
    """Its runs at the rate at which it needs the fewest steps."""
    rows = where(frames["learning"], activation=name)
    return where(rows, rate=rows.groupby("rate")["steps"].mean().idxmin())


def final(frames, name, rate=HIGH, dtype="float32"):
    """The shares of dead units at the end of training."""
    rows = where(frames["dead"], activation=name, rate=rate, dtype=dtype, step=ADAM_STEPS)
    return rows["dead"]


def cost(frames, kind, name):
    return float(where(frames["cost"], kind=kind, activation=name)["median"].iloc[0])


def steps(values):
    return f"not within {STEPS}" if (values > STEPS).all() else spread(values)


def tables(frames):
    theory = {"mean, theory": [c[2] for c in CASES.values()],
              "std, theory": [c[3] for c in CASES.values()]}  # fmt: skip
    return {
        f"Inputs from N(0, 1); flat: a slope under {FLAT:.0%} of the steepest, inputs from "
        f"N(0, {WIDE:.0f}²)": summary(
            frames["moments"], ["activation"],
            ["mean", "std", "zeros", "flat_positive", "flat_negative"],
        ).assign(**theory),
        f"Digits, {STEPS} steps of gradient descent; {STEPS + 1} steps: {ENOUGH:.0%} never reached":
            summary(frames["learning"], ["activation", "rate"], ["steps", "train", "test"]),
        f"Units dead after {ADAM_STEPS} steps of Adam": summary(
            where(frames["dead"], step=ADAM_STEPS), ["activation", "rate", "dtype"],
            ["dead", "train"],
        ),
        "Time over ReLU's, median of 31 pairs": frames["cost"],
    }  # fmt: skip


def draw(frames, figure):
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.5])
    for name, axes in zip(frames["shapes"]["activation"].unique(), top.subplots(1, 9), strict=True):
        rows = where(frames["shapes"], activation=name)
        rows = rows[rows["x"].abs() <= 4]
        axes.plot(rows["x"], rows["y"])
        axes.plot(rows["x"], rows["slope"], "--", lw=1.2)
        axes.set(ylim=(-2, 3), xticks=[-3, 0, 3], yticks=[-1, 0, 1, 2])
        axes.set_title(LABELS[name], fontsize=9)
        axes.tick_params(labelleft=name == "sigmoid", labelsize=7, length=2)
    left, right = bottom.subplots(1, 2)
    for place, (name, label) in enumerate(LABELS.items()):
        share = where(frames["dead"], rate=HIGH, activation=name).groupby("step")["dead"].mean()
        if share.max() > 0.05:
            left.plot(share.index, 100 * share, marker="o", ms=3, color=f"C{place}")
            left.text(ADAM_STEPS * 1.03, 100 * share.iloc[-1], label, va="center")
        mean = float(at_fastest(frames, name)["steps"].mean())
        right.barh(place, mean, color=f"C{place}")
        right.text(mean * 1.05, place, f"{mean:.0f}", va="center", fontsize=8)
    left.plot([0, ADAM_STEPS], [0, 0], color=QUIET)
    left.text(ADAM_STEPS * 1.03, 0, "the others", va="center")
    left.set(title=f"dead units, Adam at {HIGH} (%)", xlabel="step", ylim=(-3, 100),
             xlim=(-5, ADAM_STEPS * 1.28), xticks=range(0, ADAM_STEPS + 1, 50))  # fmt: skip
    right.set(
        title=f"steps to {ENOUGH:.0%} of the training digits", xscale="log", xlim=(1, 200),
        yticks=range(len(CASES)), yticklabels=LABELS.values(),
    )  # fmt: skip
    right.invert_yaxis()
    right.grid(False)


# -- judging -------------------------------------------------------------------------------------


def sigmoid_slope_never_exceeds_a_quarter(frames) -> Judged:
    rows = where(frames["shapes"], activation="sigmoid").set_index("x")["slope"]
    ends = rows[[-10, 10]]
    expected = math.exp(-10) / (1 + math.exp(-10)) ** 2
    return Judged(
        rows.max() == rows[0] == 0.25 and (abs(ends / expected - 1) < 1e-4).all(),
        f"{number(rows.max())} at 0, {number(ends.max())} at ±10",
        f"1/4 and {number(expected)}: σ' = σ(1 - σ)",
    )


def tanh_is_a_sigmoid_that_saturates_at_half_the_distance(frames) -> Judged:
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


def the_outputs_are_centred_as_theory_has_it(frames) -> Judged:
    worst, off = 0.0, {}
    for name, (_, _, mean, std) in CASES.items():
        rows = where(frames["moments"], activation=name)
        mean_error = std / math.sqrt(SAMPLES * len(rows))
        std_error = rows["std_error"].mean() / math.sqrt(len(rows))
        worst = max(worst, abs(rows["mean"].mean() - mean) / mean_error,
                    abs(rows["std"].mean() - std) / std_error)  # fmt: skip
        off[name] = (rows["mean"] / rows["std"]).mean()
    order = off["sigmoid"] > off["relu"] > off["elu"] > 0.1
    ratios = ", ".join(f"{LABELS[n]} {off[n]:.2f}" for n in ("sigmoid", "relu", "elu", "tanh"))
    return Judged(
        worst < 4 and order,
        f"mean/std {ratios}; the farthest of 20 is {worst:.1f} standard errors off theory",
        "2.40, 0.68, 0.20, 0 by quadrature; at most 4 standard errors",
    )  # fmt: skip


def relu_units_die_where_leaky_units_do_not(frames) -> Judged:
    relu, sound = final(frames, "relu"), final(frames, "relu", SOUND)
    kept = pd.concat([final(frames, n) for n in ("leaky_relu", "prelu", "maxout")])
    return Judged(
        relu.min() > 0.3 and sound.max() < 0.1 and kept.max() == 0,
        f"ReLU {spread(relu)}, at {SOUND} {spread(sound)}; the three {spread(kept)}",
        "over 0.3 (a like net on synthetic clusters: 0.41 to 0.62), under 0.1; 0",
    )


def elu_and_gelu_die_where_float32_ends(frames) -> Judged:
    last = where(frames["last"], dtype="float32").set_index("activation")["last"]
    single, double = (final(frames, "elu", HIGHEST, d) for d in ("float32", "float64"))
    elu, gelu = final(frames, "elu"), final(frames, "gelu")
    return Judged(
        last["elu"] == -103 and -14 <= last["gelu"] <= -5
        and double.median() < single.median() / 10 and elu.max() == 0 < gelu.min(),
        f"last slopes at {last['elu']:.0f} and {last['gelu']:.0f}; dead at {HIGHEST}: ELU "
        f"{spread(single)}, in float64 {spread(double)}; at {HIGH}: ELU {spread(elu)}, "
        f"GELU {spread(gelu)}",
        "exp(-103) > 0 = exp(-104) in float32, zφ(z) = 0 from -14 on; hardly any dead in float64",
    )  # fmt: skip


def exp_costs_more_than_max_and_hardly_matters_in_a_layer(frames) -> Judged:
    alone = cost(frames, "function", "exp")
    layers = {n: cost(frames, "layer", n) for n in ("sigmoid", "tanh", "elu", "maxout")}
    slowest = max(layers[n] for n in ("sigmoid", "tanh", "elu"))
    return Judged(
        alone > 1.5 and slowest < 1.5 < layers["maxout"],
        f"exp {number(alone)} times max; a layer with sigmoid, tanh or ELU at most "
        f"{number(slowest)}, with Maxout {number(layers['maxout'])} times one with ReLU",
        "over 1; near 1; 2 for two products",
    )


def relu_is_many_times_faster_than_sigmoid_and_not_than_tanh(frames) -> Judged:
    relu, tanh, sigmoid = (at_fastest(frames, n)["steps"] for n in ("relu", "tanh", "sigmoid"))
    return Judged(
        sigmoid.mean() > 3 * relu.mean() and tanh.mean() < 2 * relu.mean(),
        f"ReLU {steps(relu)}, tanh {steps(tanh)}, sigmoid {steps(sigmoid)} steps",
        "6 times as many for tanh, if the slide's number held here",
    )


def sigmoid_comes_last_of_the_ten_after_a_fixed_budget(frames) -> Judged:
    tests = {name: at_best(frames, name)["test"] for name in CASES}
    sigmoid = tests.pop("sigmoid")
    means = {name: values.mean() for name, values in tests.items()}
    chance = stats.mannwhitneyu(sigmoid, pd.concat(tests.values()), alternative="less").pvalue
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return Judged(
        sigmoid.mean() < means[low] and chance < 1e-3,
        f"sigmoid {spread(sigmoid)}; the nine from {LABELS[low]}, {spread(tests[low])}, to "
        f"{LABELS[high]}, {spread(tests[high])}",
        f"no difference: a rank test against all of the nine has p = {number(chance)}",
    )  # fmt: skip


def nndiag_names_dead_relus_and_saturated_tanhs(frames) -> Judged:
    led = sick(frames)
    return Judged(
        led[f"ReLU, Adam at {HIGH}"] == "dead-relu" and f"tanh, Adam at {HIGH}" in led
        and f"ReLU, Adam at {SOUND}" not in led
        and led.get(f"GELU, Adam at {HIGH}") != "dead-relu"
        and led.get(f"Leaky ReLU, Adam at {HIGH}") != "dead-relu",
        leads(frames),
        "dead-relu for ReLU at the high rate, none for the sound one",
    )  # fmt: skip
