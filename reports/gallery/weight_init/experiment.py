"""Page 4: weight initialisation."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from gallery.lab import linears, mlp, normal
from gallery.page import Judged, leads, number, sick, spread, where
from torch import nn

from nndiag import activations, theory

DEPTH, WIDTH, SAMPLES, SEEDS = 10, 500, 1000, 6


class Case(NamedTuple):
    activation: Callable[[], nn.Module]
    std: float
    slide_std: tuple[float, ...]
    spread: tuple[float, ...]
    """The relative standard deviation of a layer's std over 100 seeds."""
    slide_mean: tuple[float, ...] = (0.0,) * DEPTH


RELU_SPREAD = (0.0023, 0.0202, 0.0364, 0.0476, 0.0573, 0.0696, 0.0764, 0.0872, 0.0928, 0.0973)
CASES = {
    "tanh, 0.01": Case(  # slide 45
        nn.Tanh, 0.01,
        (0.213081, 0.047551, 0.010630, 0.002378, 0.000532,
         0.000119, 0.000026, 0.000006, 0.000001, 0.0),
        (0.0019, 0.0032, 0.0042, 0.0052, 0.0058, 0.0063, 0.0069, 0.0072, 0.0081, 0.0085),
    ),
    "tanh, 1.0": Case(  # slide 47
        nn.Tanh, 1.0,
        (0.981879, 0.981649, 0.981601, 0.981755, 0.981614,
         0.981560, 0.981520, 0.981913, 0.981728, 0.981736),
        (0.00013,) * 10,
    ),
    "tanh, Xavier": Case(  # slide 48
        nn.Tanh, 1 / math.sqrt(WIDTH),
        (0.627953, 0.486051, 0.407723, 0.357108, 0.320917,
         0.292116, 0.273387, 0.254935, 0.239266, 0.228008),
        (0.0011, 0.0017, 0.0022, 0.0027, 0.0032, 0.0037, 0.0041, 0.0045, 0.0055, 0.0058),
    ),
    "ReLU, Xavier": Case(  # slide 49
        nn.ReLU, 1 / math.sqrt(WIDTH),
        (0.582273, 0.403795, 0.276912, 0.198685, 0.140299,
         0.103280, 0.072748, 0.051572, 0.038583, 0.026076),
        RELU_SPREAD,
        (0.398623, 0.272352, 0.186076, 0.136442, 0.099568,
         0.072234, 0.049775, 0.035138, 0.025404, 0.018408),
    ),
    "ReLU, He": Case(  # slide 50
        nn.ReLU, math.sqrt(2 / WIDTH),
        (0.825232, 0.827835, 0.813855, 0.826902, 0.834092,
         0.860035, 0.870610, 0.889348, 0.845357, 0.844523),
        RELU_SPREAD,
        (0.562488, 0.553614, 0.545867, 0.565396, 0.547678,
         0.587103, 0.596867, 0.623214, 0.567498, 0.552531),
    ),
}  # fmt: skip
BINS = 40


def network(name, seed):
    """The network, its inputs, and the random direction that its loss is.

    In float64: float32 rounds the typical gradient of a saturated layer to zero.
    """
    case = CASES[name]
    torch.manual_seed(seed)
    model = mlp([WIDTH] * (DEPTH + 1), case.activation, normal(lambda n: case.std))
    model.append(case.activation())
    for linear in linears(model):
        linear.register_parameter("bias", None)
    return model.double(), *torch.randn(2, SAMPLES, WIDTH, dtype=torch.float64)


def layers(name, seed):
    """A row a layer: its outputs' moments and its gradients; and the outputs themselves."""
    model, x, direction = network(name, seed)
    outputs, rows = [x], []
    for module in model:
        outputs.append(module(outputs[-1]))
        outputs[-1].retain_grad()
    (outputs[-1] * direction).sum().backward()
    for layer, linear in enumerate(linears(model)):
        delta, y = outputs[2 * layer + 1].grad, outputs[2 * layer + 2].detach()
        saturated = (y.abs() > 0.97).double().mean().item()
        rows.append({
            "case": name, "seed": seed, "layer": layer + 1,
            "mean": y.mean().item(), "std": y.std(correction=0).item(),
            "saturated": saturated if "tanh" in name else math.nan,
            "delta_rms": delta.pow(2).mean().sqrt().item(),
            "delta_median": delta.abs().median().item(),
            "weight_gradient": linear.weight.grad.norm().item(),
        })  # fmt: skip
    return pd.DataFrame(rows), [y.detach() for y in outputs[2::2]]


def histogram(name, layer, y):
    low, high = (-1, 1) if name.startswith("tanh") else (0, 2.5)
    edges = np.linspace(low, high, BINS + 1)
    values = y if name.startswith("tanh") else y[y != 0]
    share = np.histogram(values.numpy(), edges)[0] / max(values.numel(), 1)
    return pd.DataFrame({"case": name, "layer": layer, "from": edges[:-1], "share": share})


def measure(lab):
    found, histograms = [], []
    for name in lab.track(CASES):
        for seed in lab.seeds(SEEDS):
            rows, outputs = layers(name, seed)
            found.append(rows)
            if seed == lab.first:
                histograms += [histogram(name, n, y) for n, y in enumerate(outputs, start=1)]
        model, x, direction = network(name, lab.first)
        lab.check(name, model, x, loss=lambda out, d=direction: (out * d).sum())
    return {"layers": pd.concat(found), "histograms": pd.concat(histograms)}


@functools.cache
def predicted(name):
    """Mean and standard deviation of each layer's outputs at infinite width."""
    case = CASES[name]
    act = activations.named("tanh" if case.activation is nn.Tanh else "relu")
    rows = theory.recursion(act, case.std * math.sqrt(WIDTH), DEPTH)
    return tuple((row.output.mean, row.output.std) for row in rows)


def tables(frames):
    made = {}
    for name, case in CASES.items():
        rows = where(frames["layers"], case=name)
        made[f"{name}: the slide, {SEEDS} seeds of ours, theory"] = pd.DataFrame({
            "layer": range(1, DEPTH + 1),
            "std, slide": [f"{v:.6f}" for v in case.slide_std],
            "std, ours": [spread(group["std"]) for _, group in rows.groupby("layer")],
            "std, theory": [std for _, std in predicted(name)],
            "mean, slide": [f"{v:.6f}" if v else "≈ 0" for v in case.slide_mean],
            "mean, ours": [spread(group["mean"]) for _, group in rows.groupby("layer")],
            "rms δ / rms δ of layer 10": list(_relative(rows, "delta_rms")),
            "median |δ| / rms δ": list(_median(rows)),
        })  # fmt: skip
    return made


def _relative(rows, column):
    """Each layer's against the last layer's, the geometric mean over seeds."""
    logs = rows.pivot(index="layer", columns="seed", values=column).apply(np.log)
    mean = logs.sub(logs.loc[DEPTH], axis="columns").mean(axis="columns")
    return pd.Series(np.exp(mean), mean.index)


def _median(rows):
    return (rows.delta_median / rows.delta_rms).groupby(rows.layer).median()


def draw(frames, figure):
    figure.set_size_inches(11, 6)
    parts = figure.subfigures(1, 2, width_ratios=[3.2, 1])
    left, right = parts
    grid = left.subplots(len(CASES), DEPTH, sharex="row")
    for row, name in zip(grid, CASES, strict=True):
        for layer, axes in enumerate(row, start=1):
            cells = where(frames["histograms"], case=name, layer=layer)
            low, width = cells["from"].iloc[0], cells["from"].iloc[1] - cells["from"].iloc[0]
            edges = low + width * np.arange(len(cells) + 1)
            axes.stairs(cells["share"], edges, fill=True)
            axes.set(yticks=[], ylim=(0, max(cells["share"].max(), 0.05) * 1.05))
            axes.grid(False)
            axes.tick_params(labelbottom=False, length=2)
        row[0].set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center")
    for layer, axes in enumerate(grid[0], start=1):
        axes.set_title(f"{layer}", loc="center")
    left.suptitle("outputs, layer 1 to 10")
    axes = right.subplots()
    for name in CASES:
        relative = _relative(where(frames["layers"], case=name), "delta_rms")
        axes.semilogy(relative.index, relative, marker="o", ms=3, label=name)
    axes.set(title="rms δ against layer 10", xlabel="layer", xticks=range(1, DEPTH + 1, 3))
    axes.legend()


# -- judging -------------------------------------------------------------------------------------


def _last(frames, name, column="std"):
    return where(frames["layers"], case=name, layer=DEPTH)[column]


def per_layer(frames, name, column="delta_rms"):
    """The factor by which a gradient changes from a layer to the one before it."""
    rows = where(frames["layers"], case=name)
    return float(_relative(rows, column).loc[1] ** (1 / (DEPTH - 1)))


def the_slides_numbers_are_those_of_an_infinitely_wide_network(frames) -> Judged:
    worst = ours = 0.0
    for name, case in CASES.items():
        rows = where(frames["layers"], case=name)
        means = np.log(rows.pivot(index="layer", columns="seed", values="std")).mean(axis=1)
        seeds = rows["seed"].nunique()
        for (_, std), slide, relative, mean in zip(
            predicted(name), case.slide_std, case.spread, means, strict=True
        ):
            # what is past half of the last digit that the slide prints
            worst = max(worst, (abs(slide - std) - 5e-7) / (relative * std))
            ours = max(ours, abs(mean - math.log(std)) / (relative / math.sqrt(seeds)))
    return Judged(
        worst < 3 and ours < 5,
        f"the farthest of the slides' 50 is {number(worst)} sd off, of our means {number(ours)}",
        "at most 3 sd of a draw; 5 sd of a mean",
    )


def weights_of_a_hundredth_let_activations_fade_to_nothing(frames) -> Judged:
    last = _last(frames, "tanh, 0.01")
    return Judged(
        (last < 1e-6).all(), f"std {spread(last)} at layer 10",
        f"{number(predicted('tanh, 0.01')[-1][1])} by theory; a factor 0.01·√500 = 0.224 a layer",
    )  # fmt: skip


def unit_weights_saturate_tanh(frames) -> Judged:
    share = where(frames["layers"], case="tanh, 1.0")["saturated"].mean()
    edge = math.atanh(0.97) / (math.sqrt(WIDTH) * predicted("tanh, 1.0")[-1][1])
    expected = math.erfc(edge / math.sqrt(2))
    return Judged(abs(share - expected) < 0.01, f"{share:.1%}", f"{expected:.1%} by theory")


def unit_weights_silence_the_median_gradient_and_explode_its_norm(frames) -> Judged:
    rows = where(frames["layers"], case="tanh, 1.0")
    median, factor = _median(rows).loc[1], per_layer(frames, "tanh, 1.0")
    return Judged(
        median < 1e-9 and abs(factor / 3.480 - 1) < 0.02,
        f"median over rms {number(median)} at layer 1; rms × {number(factor)} a layer",
        "7.5e-13; × √χ = 3.480 a layer (mean field)",
    )


def xavier_keeps_tanh_alive_over_ten_layers(frames) -> Judged:
    last = _last(frames, "tanh, Xavier")
    saturated = where(frames["layers"], case="tanh, Xavier").query("layer > 1")["saturated"].max()
    return Judged(
        (last > 0.2).all() and saturated < 0.01, f"std {spread(last)} at layer 10",
        f"{number(predicted('tanh, Xavier')[-1][1])} by theory, 0.228008 on the slide",
    )  # fmt: skip


def xavier_halves_the_power_of_relu_at_every_layer(frames) -> Judged:
    rows = where(frames["layers"], case="ReLU, Xavier")
    power = (rows["std"] ** 2 + rows["mean"] ** 2).groupby(rows["layer"]).mean()
    factor = float((power.loc[DEPTH] / power.loc[1]) ** (1 / (2 * DEPTH - 2)))
    return Judged(abs(factor / math.sqrt(0.5) - 1) < 0.03, f"× {number(factor)}", "× 1/√2 = 0.707")


def he_keeps_the_power_of_relu_at_every_layer(frames) -> Judged:
    last, factor = _last(frames, "ReLU, He"), per_layer(frames, "ReLU, He")
    expected = math.sqrt(1 - 1 / math.pi)
    return Judged(
        abs(last.mean() / expected - 1) < 0.15 and abs(factor - 1) < 0.02,
        f"std {spread(last)} at layer 10; δ × {number(factor)} a layer",
        f"√(1 - 1/π) = {number(expected)}; × 1",
    )


def weight_gradients_stay_equal_while_the_gradient_vanishes(frames) -> Judged:
    rows = where(frames["layers"], case="tanh, 0.01")
    delta, weights = _relative(rows, "delta_rms").loc[1], _relative(rows, "weight_gradient").loc[1]
    return Judged(
        delta < 1e-5 and abs(weights - 1) < 0.05,
        f"δ × {number(delta)} from layer 10 to 1, weight gradients × {number(weights)}",
        "0.2236⁹ = 1.4e-06; 1",
    )


def nndiag_blames_the_scale_of_the_three_and_passes_the_two(frames) -> Judged:
    bad = dict.fromkeys(CASES.keys() - {"tanh, Xavier", "ReLU, He"}, "init-scale")
    return Judged(sick(frames) == bad, leads(frames), "three init-scale, two none")
