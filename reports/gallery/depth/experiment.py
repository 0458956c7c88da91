"""Page 5: depth."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from gallery.figures import QUIET, band
from gallery.lab import digits, he, linears, mlp, train, xavier
from gallery.page import Judged, leads, number, sick, spread, summary, where
from torch import nn
from torch.nn import functional as F

from nndiag import activations, theory

WIDTH, SAMPLES, SEEDS = 100, 100, 6
DEPTHS = (2, 3, 5, 8, 12, 20, 30, 50)
HIDDEN, BATCH, RUNS, BIN = 64, 32, 5, 20
CHANCE = math.log(10)


class Case(NamedTuple):
    activation: Callable[[], nn.Module]
    init: Callable[[nn.Linear], None] | None
    """None is torch's default."""
    gain: float
    """Standard deviation of a weight, times √n."""
    bias: float = 0.0
    """Standard deviation of a bias, times √n."""


THIRD = 1 / math.sqrt(3)
CASES = {
    "ReLU, He": Case(nn.ReLU, he, math.sqrt(2)),
    "ReLU, Xavier": Case(nn.ReLU, xavier, 1.0),
    "ReLU, torch": Case(nn.ReLU, None, THIRD, THIRD),
    "tanh, Xavier": Case(nn.Tanh, xavier, 1.0),
    "tanh, torch": Case(nn.Tanh, None, THIRD, THIRD),
    "sigmoid, Xavier": Case(nn.Sigmoid, xavier, 1.0),
    "sigmoid, torch": Case(nn.Sigmoid, None, THIRD, THIRD),
}


class Run(NamedTuple):
    case: str
    layers: int
    optimizer: str
    steps: int


SGD, ADAM = "SGD", "Adam"
RUNS_OF = (
    *(Run(f"ReLU, {init}", 10, SGD, 1200 if init != "torch" else 300)
      for init in ("He", "Xavier", "torch")),
    Run("ReLU, He", 30, SGD, 300),
    Run("ReLU, Xavier", 30, SGD, 1200),
    *(Run(case, 30, SGD, 300) for case in ("ReLU, torch", "tanh, Xavier", "sigmoid, Xavier")),
    *(Run(f"ReLU, {init}", 30, ADAM, 300) for init in ("He", "Xavier", "torch")),
)  # fmt: skip
SHORT = 300
"""Steps at which the 30-layer networks are compared."""
STALLED = 2.25
"""Of a loss of 2.303 at chance: a mean over 20 batches of 32 scatters by 0.01 at most there."""
CHECKED = tuple((run.case, run.layers) for run in RUNS_OF if run.optimizer == SGD)
SCATTER_WIDTHS, DRAWS = (25, 50, 100), 200
SCATTER_DEPTHS = (1, 2, 5, 10, 20, 30, 50)


# -- gradients ------------------------------------------------------------------------------------


def network(case, depth, seed):
    """``depth`` hidden layers with their activations, the inputs, and the loss's direction."""
    activation, init, *_ = CASES[case]
    torch.manual_seed(seed)
    model = mlp([WIDTH] * (depth + 1), activation, init)
    model.append(activation())
    return model.double(), *torch.randn(2, SAMPLES, WIDTH, dtype=torch.float64)


def gradients(case, depth, seed):
    """The first layer's gradients against the last's; of sigmoid, the largest they could be."""
    model, x, direction = network(case, depth, seed)
    y, before = x, []
    for module in model:
        y = module(y)
        if isinstance(module, nn.Linear):
            y.retain_grad()
            before.append(y)
    (y * direction).sum().backward()
    deltas = [float(z.grad.norm()) for z in before]
    weights = [float(linear.weight.grad.norm()) for linear in linears(model)]
    saturated, bound = math.nan, math.nan
    if case.startswith("sigmoid"):
        saturated = max((z.abs() > 4.3565).double().mean().item() for z in before)
        largest = (torch.linalg.matrix_norm(m.weight, 2).item() / 4 for m in linears(model)[1:])
        bound = math.prod(largest)
    return {
        "case": case, "depth": depth, "seed": seed, "delta": deltas[0] / deltas[-1],
        "weight": weights[0] / weights[-1], "saturated": saturated, "bound": bound,
    }  # fmt: skip


@functools.cache
def predicted(case, depth):
    """δ at layer 1 over δ at the last hidden layer, at infinite width."""
    activation, _, gain, bias = CASES[case]
    act = activations.named(activation.__name__.lower())
    rows = theory.recursion(act, gain, depth, bias_std=bias / math.sqrt(WIDTH))
    return math.prod(math.sqrt(gain**2 * row.output.slope_second) for row in rows[: depth - 1])


def scatter(width, seed, depths=SCATTER_DEPTHS):
    """ln of an input's power after each of these depths of a random He ReLU net, at 1 before."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.randn(width, generator=draws)
    y *= math.sqrt(width) / y.norm()
    found = []
    for layer in range(1, max(depths) + 1):
        weight = torch.randn(width, width, generator=draws) * math.sqrt(2 / width)
        y = torch.relu(weight @ y)
        if layer in depths:
            found.append(math.log(y.pow(2).mean().item()))
    return found


def scattered(width, seeds):
    logs = np.array([scatter(width, seed) for seed in seeds])
    b = 5 * np.array(SCATTER_DEPTHS) / width
    inside = np.abs(logs + b / 2) < 1.96 * np.sqrt(b)
    return pd.DataFrame({
        "width": width, "depth": SCATTER_DEPTHS, "nets": DRAWS, "mean": logs.mean(axis=0),
        "variance": logs.var(axis=0, ddof=1), "inside": inside.mean(axis=0),
    })  # fmt: skip


# -- training -------------------------------------------------------------------------------------


def classifier(case, layers, seed):
    """A network for digits with this many linear layers."""
    torch.manual_seed(seed)
    return mlp([64, *[HIDDEN] * (layers - 1), 10], *CASES[case][:2])


def trained(run, seeds):
    """The losses (step, seed) and the accuracies of one network a seed, trained side by side.

    Of the networks' parameters one stack each is made: one call for all of them.
    """
    x, y, x_test, y_test = digits()
    models = [classifier(run.case, run.layers, seed) for seed in seeds]
    layers = list(zip(*map(linears, models), strict=True))
    weights = [_stack([linear.weight.T for linear in layer]) for layer in layers]
    biases = [_stack([linear.bias[None] for linear in layer]) for layer in layers]
    both, activation = [*weights, *biases], CASES[run.case].activation()
    adam = run.optimizer == ADAM
    optimizer = (
        torch.optim.Adam(both, 0.001) if adam else torch.optim.SGD(both, 0.003, momentum=0.9)
    )

    def forward(h):
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = activation(torch.baddbmm(bias, h, weight))
        return torch.baddbmm(biases[-1], h, weights[-1])

    def loss(logits, labels):
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return each.view(len(seeds), BATCH).mean(dim=1)

    draws = [torch.Generator().manual_seed(seed) for seed in seeds]

    def choose():
        return torch.stack([torch.randint(len(x), (BATCH,), generator=g) for g in draws])

    losses = train(forward, x, y, optimizer, run.steps, loss=loss, choose=choose)
    with torch.no_grad():
        right = forward(x_test.expand(len(seeds), *x_test.shape)).argmax(dim=2) == y_test
    return torch.tensor(losses).float(), right.double().mean(dim=1)


def _stack(tensors):
    return torch.stack([t.detach() for t in tensors]).contiguous().requires_grad_()


def curves(run, seeds):
    """A row for each seed and bin of steps; a row for each seed, its accuracy at the end."""
    losses, accuracies = trained(run, seeds)
    binned = losses.view(run.steps // BIN, BIN, len(seeds)).mean(dim=1)
    named = {"case": run.case, "layers": run.layers, "optimizer": run.optimizer}
    rows = pd.DataFrame(
        {**named, "seed": seed, "step": (n + 1) * BIN, "loss": binned[n, place].item()}
        for place, seed in enumerate(seeds) for n in range(len(binned))
    )  # fmt: skip
    return rows, pd.DataFrame({**named, "seed": seeds, "accuracy": accuracies.numpy()})


def measure(lab):
    rows, training, ends = [], [], []
    for case in lab.track(CASES):
        rows += [gradients(case, depth, seed) for depth in DEPTHS for seed in lab.seeds(SEEDS)]
    for run in lab.track(RUNS_OF):
        losses, accuracies = curves(run, lab.seeds(RUNS))
        training.append(losses)
        ends.append(accuracies)
    x, y, *_ = digits()
    for case, layers in CHECKED:
        model = classifier(case, layers, lab.first)
        lab.check(f"{case}, {layers} layers", model, x[:256], y[:256])
    return {
        "gradients": pd.DataFrame(rows),
        "scatter": pd.concat(scattered(width, lab.seeds(DRAWS)) for width in SCATTER_WIDTHS),
        "training": pd.concat(training),
        "accuracy": pd.concat(ends),
    }


# -- showing --------------------------------------------------------------------------------------


def ratio(frames, case, depth, column="delta"):
    """Of the first layer's gradient to the last's, the geometric mean over seeds."""
    values = where(frames["gradients"], case=case, depth=depth)[column]
    return float(np.exp(np.log(values).mean()))


def ran(frames, case, layers, optimizer=SGD):
    """A run's rows, of all seeds and steps."""
    return where(frames["training"], case=case, layers=layers, optimizer=optimizer)


def loss_at(rows, step=SHORT):
    """A loss a seed, the mean of the 20 steps up to this one."""
    return where(rows, step=step).set_index("seed")["loss"]


def accuracy(frames, run):
    rows = where(frames["accuracy"], case=run.case, layers=run.layers, optimizer=run.optimizer)
    return rows.set_index("seed")["accuracy"]


def tables(frames):
    factors = pd.DataFrame(
        {
            "network": case,
            **{
                f"δ, {d} layers": f"{ratio(frames, case, d):.3g} ({predicted(case, d):.3g})"
                for d in (5, 12, 30, 50)
            },
            "a layer, 50": ratio(frames, case, 50) ** (1 / 49),
            "theory": predicted(case, 50) ** (1 / 49),
            "weight gradients, 30": ratio(frames, case, 30, "weight"),
        }
        for case in CASES
    )
    runs = ["case", "layers", "optimizer"]
    steps = frames["training"][frames["training"].step.isin([SHORT, 1200])]
    power = where(frames["scatter"], width=100).assign(b=lambda f: 5 * f["depth"] / f["width"])
    half = 0.98 * power["b"] ** 0.5
    low, high = (np.exp(-power["b"] / 4 + sign * half) for sign in (-1, 1))
    return {
        "Layer 1's gradient against the last hidden layer's, in brackets theory": factors,
        f"Loss on digits, {RUNS} seeds": summary(steps, [*runs, "step"], ["loss"]),
        f"Accuracy on the test digits, {RUNS} seeds": summary(
            frames["accuracy"], runs, ["accuracy"]
        ),
        "How far one He network of width 100 is from the mean": pd.DataFrame(
            {
                "layers": power["depth"], "mean ln power": power["mean"], "theory": -power["b"] / 2,
                "variance": power["variance"], "theory of it": power["b"],
                "rms, 95% of networks from": low, "to": high, "share inside": power["inside"],
            }
        ),
    }  # fmt: skip


def draw(frames, figure):
    figure.set_size_inches(11, 4.2)
    left, middle, right = figure.subplots(1, 3)
    for case in CASES:
        [line] = left.semilogy(
            DEPTHS, [ratio(frames, case, d) for d in DEPTHS], "o", ms=3.5, label=case
        )
        left.plot(DEPTHS, [predicted(case, d) for d in DEPTHS], lw=1, color=line.get_color())
    left.set(title="δ at layer 1 / δ at the last", xlabel="hidden layers")
    left.legend(loc="lower left", fontsize=7.5)
    for run in RUNS_OF[3:8]:
        rows = ran(frames, *run[:3]).query("step <= @SHORT")
        color = f"C{list(CASES).index(run.case)}"
        stalled = bool((loss_at(rows) > STALLED).all())
        style = {"ls": "--", "lw": 1.2} if stalled else {}
        band(middle, "step", "loss", rows, label=run.case, color=color, **style)
    adam = ran(frames, "ReLU, Xavier", 30, ADAM)
    band(middle, "step", "loss", adam, label="ReLU, Xavier, Adam", color="C1")
    middle.set(title="30 layers on digits: loss", xlabel="step", ylim=(0, 2.5))
    middle.legend(loc="lower left", fontsize=7.5)
    for width in SCATTER_WIDTHS:
        rows = where(frames["scatter"], width=width)
        right.loglog(rows["depth"] / width, rows["variance"], "o", ms=4, label=f"width {width}")
    ends = np.array([0.009, 2.2])
    right.plot(ends, 5 * ends, color=QUIET, lw=1)
    right.set(title="He networks: variance of ln power", xlabel="depth / width")
    right.legend()


# -- judging --------------------------------------------------------------------------------------


def tolerance(depth, seeds=SEEDS):
    """How far ln of the mean ratio may be from theory's at this width: 4.5 standard deviations.

    A ReLU layer adds 5/n to the variance of ln δ², which takes half of that from its mean; tanh's
    and sigmoid's add less.
    """
    b = 5 * (depth - 1) / WIDTH
    return b / 4 + 4.5 * math.sqrt(b) / 2 / math.sqrt(seeds)


def each_layer_multiplies_the_gradient_by_the_factor_of_theory(frames) -> Judged:
    off = {
        (case, depth): abs(math.log(ratio(frames, case, depth) / predicted(case, depth)))
        / tolerance(depth)
        for case in CASES for depth in DEPTHS
    }  # fmt: skip
    factors = ", ".join(
        f"{case} {number(ratio(frames, case, 50) ** (1 / 49))}"
        for case in ("ReLU, He", "ReLU, Xavier", "ReLU, torch")
    )
    return Judged(
        max(off.values()) < 1,
        f"a layer of 50: {factors}; the farthest of {len(off)} at {max(off.values()):.0%} of what "
        "width 100 allows",
        "1, 1/√2 = 0.707, 1/√6 = 0.408",
    )


def sigmoid_kills_the_gradient_with_hardly_a_unit_saturated(frames) -> Judged:
    rows = where(frames["gradients"], case="sigmoid, Xavier")
    both = frames["gradients"].dropna(subset="bound")
    below = (both["delta"] <= both["bound"] * (1 + 1e-5)).all()
    share = float(rows["saturated"].max())
    factor = ratio(frames, "sigmoid, Xavier", 50) ** (1 / 49)
    loss = loss_at(ran(frames, "sigmoid, Xavier", 30))
    return Judged(
        below and share < 1e-3 and factor < 0.25 and (loss > STALLED).all(),
        f"× {number(factor)} a layer, {share:.2%} saturated at most; all {len(both)} nets below "
        f"∏ σ/4; 30 layers trained: loss {spread(loss)}",
        f"× {number(predicted('sigmoid, Xavier', 50) ** (1 / 49))}; at most 1/4 of σ, the largest "
        "singular value",
    )


def random_biases_make_the_weight_gradients_vanish_too(frames) -> Judged:
    xavier, default = (ratio(frames, f"ReLU, {i}", 30, "weight") for i in ("Xavier", "torch"))
    delta = ratio(frames, "ReLU, Xavier", 30)
    # the outputs' power h² = (h²/3 + 1/(3n)) / 2 stays at 1/(5n)
    floored = predicted("ReLU, torch", 30) * math.sqrt(5 * WIDTH)
    return Judged(
        delta < 1e-3
        and abs(math.log(xavier)) < 2 * tolerance(30)
        and abs(math.log(default / floored)) < 2 * tolerance(30),
        f"layer 1 against 30: Xavier δ × {number(delta)}, weights' × {number(xavier)}; "
        f"torch's default, weights' × {number(default)}",
        f"{number(predicted('ReLU, Xavier', 30))}, 1; 6^(-29/2)·√(5·{WIDTH}) = {number(floored)}",
    )


def he_networks_scatter_by_depth_over_width(frames) -> Judged:
    rows = frames["scatter"].assign(b=lambda f: 5 * f["depth"] / f["width"])
    mild = rows[(rows["b"] <= 1.5) & (rows["depth"] > 1)]
    off = (mild["variance"] / mild["b"] - 1).abs().max()
    inside = mild["inside"]
    return Judged(
        off < 4.5 * math.sqrt(2 / DRAWS) and (inside > 0.88).all(),
        f"within {off:.0%} of it wherever that is at most 1.5; {spread(inside)} of networks inside "
        "the 95% band",
        f"within {4.5 * math.sqrt(2 / DRAWS):.0%} (4.5 sd of a variance of {DRAWS} draws); 0.95",
    )


def xavier_stalls_the_30_layer_net_that_he_trains(frames) -> Judged:
    good, bad = (loss_at(ran(frames, f"ReLU, {init}", 30)) for init in ("He", "Xavier"))
    return Judged(
        (good < 2.0).all() and (bad > STALLED).all(),
        f"loss {spread(good)} with He, {spread(bad)} with Xavier",
        f"chance is ln 10 = {CHANCE:.3f}; Xavier's signal is 2^(-29/2) = {number(2**-14.5)} of "
        "He's at the last hidden layer",
    )


def the_stall_is_a_plateau_of_sgd_that_adam_does_not_know(frames) -> Judged:
    adam = loss_at(ran(frames, "ReLU, Xavier", 30, ADAM))
    rows = ran(frames, "ReLU, Xavier", 30)
    long, left = loss_at(rows, 1200), _arrived(rows, STALLED)
    return Judged(
        (adam < 2.0).all() and (left > SHORT).all() and (long < STALLED).any(),
        f"Adam's loss {spread(adam)} after 300 steps; SGD's {spread(long)} after 1200, "
        f"{int((long < STALLED).sum())} of {len(long)} off the plateau, the first after "
        f"{left.min():.0f} steps",
        "a loss of 2.303 throughout, if it stalled completely",
    )


def at_ten_layers_both_train_and_he_only_earlier(frames) -> Judged:
    steps = [_arrived(ran(frames, *run[:3]), 1) for run in RUNS_OF[:2]]
    ends = [accuracy(frames, run) for run in RUNS_OF[:2]]
    each = ends[0] - ends[1]
    apart = float(each.mean())
    return Judged(
        (steps[0] < steps[1]).all() and abs(apart) < 0.03,
        f"loss below 1 after {spread(steps[0])} steps with He, {spread(steps[1])} with Xavier; "
        f"accuracy {spread(ends[0])} and {spread(ends[1])}, He ahead in {int((each > 0).sum())} of "
        f"{len(each)} seeds by {number(apart)}",
        "He first in every seed; accuracies less than 0.03 apart after 1200 steps",
    )


def _arrived(rows, loss):
    """The first step of each seed with a loss below this, infinite where there is none."""
    found = rows[rows["loss"] < loss].groupby("seed")["step"].min().astype(float)
    return found.reindex(sorted(rows["seed"].unique()), fill_value=math.inf)


def torchs_default_stalls_where_xavier_still_trains(frames) -> Judged:
    default, xavier = (
        [loss_at(ran(frames, f"ReLU, {init}", *run)) for run in ((10, SGD), (30, ADAM))]
        for init in ("torch", "Xavier")
    )
    stalled = all((loss > STALLED).all() for loss in default)
    return Judged(
        stalled and all((loss < 2.0).all() for loss in xavier),
        f"loss {spread(default[0])} and {spread(default[1])}; Xavier's {spread(xavier[0])} and "
        f"{spread(xavier[1])}",
        "chance is 2.303; the gradient falls √6-fold a layer, Xavier's √2-fold",
    )


def nndiag_passes_the_nets_that_train_and_none_that_stalls(frames) -> Judged:
    stalled = {
        f"{case}, {layers} layers" for case, layers in CHECKED
        if (loss_at(ran(frames, case, layers)) > STALLED).all()
    }  # fmt: skip
    return Judged(
        sick(frames).keys() == stalled and 0 < len(stalled) < len(CHECKED),
        leads(frames),
        f"sick are {', '.join(sorted(stalled))}",
    )
