"""Depth.

Gradients: nets of 2 to 50 hidden layers of 100 units on 100 inputs of 100 features from N(0, 1), in
float64, six seeds. The loss is the product of the last hidden layer's outputs with a random
direction, and δ the gradient with respect to a layer's pre-activations. Xavier draws weights from
N(0, 1/n), He from N(0, 2/n), both without biases, and torch's default both weights and biases
evenly from ±1/√n (n inputs of a layer). Theory is that of infinite width (mean field): δ's mean
square changes by χ = n · Var W · E[φ'(z)²] in each layer. Scatter: the power of one random input
after up to 50 He ReLU layers, 200 networks of each width.

Training: networks of 30 and of 10 linear layers, 64 units each, on scikit-learn's digits (1297 to
train on, 500 to test on), batches of 32, five seeds: SGD with learning rate 0.003 and momentum 0.9,
or Adam with 0.001. The five seeds' networks are trained side by side, each on batches of its own;
nothing passes between them. Losses are means over 20
steps; ln 10 = 2.303 is chance.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nndiag import activations, theory
from nndiag.gallery import lab as data
from nndiag.gallery.lab import Lab, mlp, normal
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.plots import QUIET, band
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

PAGE = Page(
    number=5,
    title="Depth",
    claim="Each layer multiplies the gradient by a factor: sigmoid's kills it within a few "
    "layers, and at 30 layers of ReLU the difference between Xavier and He is that between a "
    "network that stalls and one that trains.",
    sources=(
        "CS231n 2017, lecture 6, slides 17 to 33 and 44 to 50",
        "Glorot & Bengio 2010, equations 14 and 15",
        "He et al. 2015, sections 2.2 and 3",
        "Pascanu et al. 2013; Hanin 2018",
    ),
    caption="Left, the gradient δ at layer 1 against the last hidden layer's, by depth: points are "
    "means over six seeds, lines theory. Middle, a 30-layer net's loss, with SGD if nothing else "
    "is said, mean and range of five seeds; dashed are those that stall. Right, 200 He networks of "
    "each width: the scatter of the output's power (variance of its logarithm) against depth over "
    "width, line 5·depth/width.",
)

WIDTH, SAMPLES, SEEDS = 100, 100, 6
DEPTHS = (2, 3, 5, 8, 12, 20, 30, 50)
HIDDEN, BATCH, RUNS, BIN = 64, 32, 5, 20
CHANCE = math.log(10)


def xavier(linear: nn.Linear) -> None:
    normal(lambda n: 1 / math.sqrt(n))(linear)


def he(linear: nn.Linear) -> None:
    normal(lambda n: math.sqrt(2 / n))(linear)


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


def network(case: str, depth: int, seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """``depth`` hidden layers with their activations, the inputs, and the loss's direction."""
    activation, init, *_ = CASES[case]
    torch.manual_seed(seed)
    model = mlp([WIDTH] * (depth + 1), activation, init)
    model.append(activation())
    return model.double(), *torch.randn(2, SAMPLES, WIDTH, dtype=torch.float64)


def gradients(case: str, depth: int, seed: int) -> dict[str, object]:
    """The first layer's gradients against the last's; of sigmoid, the largest they could be."""
    model, x, direction = network(case, depth, seed)
    y, before = x, []
    for module in model:
        y = module(y)
        if isinstance(module, nn.Linear):
            y.retain_grad()
            before.append(y)
    (y * direction).sum().backward()  # type: ignore[no-untyped-call]
    deltas = [_norm(z.grad) for z in before]
    weights = [_norm(module.weight.grad) for module in model if isinstance(module, nn.Linear)]
    row: dict[str, object] = {
        "case": case, "depth": depth, "seed": seed,
        "delta": deltas[0] / deltas[-1], "weight": weights[0] / weights[-1],
        "saturated": math.nan, "bound": math.nan,
    }  # fmt: skip
    if case.startswith("sigmoid"):
        row["saturated"] = max((z.abs() > 4.3565).double().mean().item() for z in before)
        largest = [torch.linalg.matrix_norm(m.weight, 2).item() / 4 for m in list(model)[2::2]]
        row["bound"] = math.prod(largest)
    return row


def _norm(gradient: Tensor | None) -> float:
    assert gradient is not None
    return float(gradient.norm())


@functools.cache
def predicted(case: str, depth: int) -> float:
    """δ at layer 1 over δ at the last hidden layer, at infinite width."""
    activation, _, gain, bias = CASES[case]
    act = activations.named(
        {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}[activation]  # type: ignore[index]
    )
    assert act is not None
    rows = theory.recursion(act, gain, depth, bias_std=bias / math.sqrt(WIDTH))
    return math.prod(math.sqrt(gain**2 * row.output.slope_second) for row in rows[: depth - 1])


def scatter(width: int, seed: int, depths: Sequence[int] = SCATTER_DEPTHS) -> list[float]:
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


def _scattered(width: int) -> pd.DataFrame:
    logs = np.array([scatter(width, seed) for seed in range(DRAWS)])
    b = 5 * np.array(SCATTER_DEPTHS) / width
    inside = np.abs(logs + b / 2) < 1.96 * np.sqrt(b)
    return pd.DataFrame(
        {
            "width": width, "depth": SCATTER_DEPTHS, "nets": DRAWS, "mean": logs.mean(axis=0),
            "variance": logs.var(axis=0, ddof=1), "inside": inside.mean(axis=0),
        }
    )  # fmt: skip


# -- training -------------------------------------------------------------------------------------


def classifier(case: str, layers: int, seed: int) -> nn.Sequential:
    """A network for digits with this many linear layers."""
    torch.manual_seed(seed)
    return mlp([64, *[HIDDEN] * (layers - 1), 10], *CASES[case][:2])


def trained(run: Run, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The losses (step, seed) and the accuracies of one network a seed, trained side by side.

    Of the five networks' parameters one stack each is made: one call for all of them.
    """
    x, y, x_test, y_test = data.digits()
    models = [classifier(run.case, run.layers, seed) for seed in seeds]
    linears = list(zip(*(list(model)[::2] for model in models), strict=True))
    weights = [_stack([linear.weight.T for linear in row]) for row in linears]
    biases = [_stack([linear.bias[None] for linear in row]) for row in linears]
    both = [*weights, *biases]
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(both, 0.003, momentum=0.9) if run.optimizer == SGD
        else torch.optim.Adam(both, 0.001)
    )  # fmt: skip
    activation = CASES[run.case].activation()

    def forward(h: Tensor) -> Tensor:
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = activation(torch.baddbmm(bias, h, weight))
        return torch.baddbmm(biases[-1], h, weights[-1])

    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    losses = []
    for _ in range(run.steps):
        chosen = torch.stack([torch.randint(len(x), (BATCH,), generator=g) for g in draws])
        logits = forward(x[chosen])
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), y[chosen].flatten(), reduction="none"
        )
        each = loss.view(len(seeds), BATCH).mean(dim=1)
        optimizer.zero_grad()
        each.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(each.detach())
    with torch.no_grad():
        right = forward(x_test.expand(len(seeds), *x_test.shape)).argmax(dim=2) == y_test
    return torch.stack(losses), right.double().mean(dim=1)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.detach() for t in tensors]).contiguous().requires_grad_()


def curves(run: Run, seeds: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row for each seed and bin of steps; a row for each seed, its accuracy at the end."""
    losses, accuracies = trained(run, seeds)
    binned = losses.view(run.steps // BIN, BIN, len(seeds)).mean(dim=1)
    named = {"case": run.case, "layers": run.layers, "optimizer": run.optimizer}
    rows = pd.DataFrame(
        {**named, "seed": seed, "step": (n + 1) * BIN, "loss": binned[n, place].item()}
        for place, seed in enumerate(seeds) for n in range(len(binned))
    )  # fmt: skip
    return rows, pd.DataFrame({**named, "seed": seeds, "accuracy": accuracies.numpy()})


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    rows, scattered, training, ends = [], [], [], []
    parts: list[str | int | Run] = [*CASES, *SCATTER_WIDTHS, *RUNS_OF]
    for part in lab.track(parts):
        if isinstance(part, str):
            rows += [gradients(part, depth, seed) for depth in DEPTHS for seed in range(SEEDS)]
        elif isinstance(part, int):
            scattered.append(_scattered(part))
        else:
            made = curves(part, range(RUNS))
            training.append(made[0])
            ends.append(made[1])
    x, y, *_ = data.digits()
    for case, layers in CHECKED:
        model = classifier(case, layers, 0)
        loss = nn.functional.cross_entropy
        lab.check(f"{case}, {layers} layers", model, x[:256], y[:256], loss_fn=loss)
    return {
        "gradients": pd.DataFrame(rows),
        "scatter": pd.concat(scattered),
        "training": pd.concat(training),
        "accuracy": pd.concat(ends),
    }


# -- the page -------------------------------------------------------------------------------------


def ratio(frames: Frames, case: str, depth: int, column: str = "delta") -> float:
    """Of the first layer's gradient to the last's, the geometric mean over seeds."""
    values = where(frames["gradients"], case=case, depth=depth)[column]
    return float(np.exp(np.log(values).mean()))


def ran(frames: Frames, case: str, layers: int, optimizer: str = SGD) -> pd.DataFrame:
    """A run's rows, of all seeds and steps."""
    return where(frames["training"], case=case, layers=layers, optimizer=optimizer)


def loss_at(rows: pd.DataFrame, step: int = SHORT) -> pd.Series[float]:
    """A loss a seed, the mean of the 20 steps up to this one."""
    found: pd.Series[float] = where(rows, step=step).set_index("seed")["loss"]
    return found


def accuracy(frames: Frames, run: Run) -> pd.Series[float]:
    rows = where(
        frames["accuracy"], case=run.case, layers=run.layers, optimizer=run.optimizer
    ).set_index("seed")
    found: pd.Series[float] = rows["accuracy"]
    return found


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    factors = pd.DataFrame(
        {
            "network": case,
            **{
                f"δ, {depth} layers": f"{ratio(frames, case, depth):.3g} "
                f"({predicted(case, depth):.3g})"
                for depth in (5, 12, 30, 50)
            },
            "a layer, 50": ratio(frames, case, 50) ** (1 / 49),
            "theory": predicted(case, 50) ** (1 / 49),
            "weight gradients, 30": ratio(frames, case, 30, "weight"),
        }
        for case in CASES
    )
    runs = pd.DataFrame(
        {
            "network": run.case, "layers": run.layers, "optimizer": run.optimizer,
            "loss, step 300": spread(loss_at(ran(frames, *run[:3]))), "steps in all": run.steps,
            "loss at the end": spread(loss_at(ran(frames, *run[:3]), run.steps)),
            "accuracy, test": spread(accuracy(frames, run)),
        }
        for run in RUNS_OF
    )  # fmt: skip
    power = where(frames["scatter"], width=100).assign(b=lambda f: 5 * f["depth"] / f["width"])
    wide = pd.DataFrame(
        {
            "He layers of 100": power["depth"],
            "mean ln power": power["mean"], "theory": -power["b"] / 2,
            "variance": power["variance"], "theory ": power["b"],
            "rms, 95% of networks": [
                f"{math.exp(-b / 4 - 0.98 * b**0.5):.2f} to {math.exp(-b / 4 + 0.98 * b**0.5):.2f}"
                for b in power["b"]
            ],
            "share inside": power["inside"],
        }
    )  # fmt: skip
    return {
        "Layer 1's gradient against the last hidden layer's, in brackets theory": factors,
        f"Training on digits, {RUNS} seeds": runs,
        "How far one He network is from the mean": wide,
    }


def draw(frames: Frames, figure: Figure) -> None:
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
    ends: Any = np.array([0.009, 2.2])
    right.plot(ends, 5 * ends, color=QUIET, lw=1)
    right.set(title="He networks: variance of ln power", xlabel="depth / width")
    right.legend()


# -- what it shows --------------------------------------------------------------------------------


def tolerance(depth: int, seeds: int = SEEDS) -> float:
    """How far ln of the mean ratio may be from theory's at this width: 4.5 standard deviations.

    A ReLU layer adds 5/n to the variance of ln δ², which takes half of that from its mean; tanh's
    and sigmoid's add less.
    """
    b = 5 * (depth - 1) / WIDTH
    return b / 4 + 4.5 * math.sqrt(b) / 2 / math.sqrt(seeds)


@claim(
    "Glorot & Bengio 2010, equations 6 and 15; He et al. 2015, equation 14",
    "the back-propagated variance changes by a constant factor a layer: 1/3 with U(±1/√n) where "
    "units are linear, 1 with √(2/n) and ReLU",
)
def each_layer_multiplies_the_gradient_by_the_factor_of_theory(frames: Frames) -> Judged:
    """From 2 to 50 layers the gradient is what theory says: × 1 with He, × 1/√6 with torch."""
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


@claim(
    "slide 22", "sigmoid: saturated neurons kill the gradients", stands="qualified",
    but="Hardly one of these sigmoids is saturated, and the gradient dies all the same: the slope "
    "is 1/4 at its very best (Pascanu et al. 2013), so that weights must have a largest singular "
    "value beyond 4 before a layer can even keep the gradient. Xavier's is about 2.",
)  # fmt: skip
def sigmoid_kills_the_gradient_with_hardly_a_unit_saturated(frames: Frames) -> Judged:
    """Sigmoid takes three quarters of the gradient a layer, 1 unit in 1000 saturated at most."""
    rows = where(frames["gradients"], case="sigmoid, Xavier")
    both = frames["gradients"].dropna(subset="bound")
    below = bool((both["delta"] <= both["bound"] * (1 + 1e-5)).all())
    share = float(rows["saturated"].max())
    factor = ratio(frames, "sigmoid, Xavier", 50) ** (1 / 49)
    loss = loss_at(ran(frames, "sigmoid, Xavier", 30))
    return Judged(
        below and share < 1e-3 and factor < 0.25 and bool((loss > STALLED).all()),
        f"× {number(factor)} a layer, {share:.2%} saturated at most; all {len(both)} nets below "
        f"∏ σ/4; 30 layers trained: loss {spread(loss)}",
        f"× {number(predicted('sigmoid, Xavier', 50) ** (1 / 49))}; at most 1/4 of σ, the largest "
        "singular value",
    )


@claim(
    "Glorot & Bengio 2010, equation 14 and figure 8",
    "back-propagated gradients get smaller from layer to layer, the weights' gradients do not",
    stands="qualified",
    but="True without biases. Torch's default draws them, too: they hold up the signal (a floor "
    "below which outputs do not fall), and so nothing makes up for what the gradient loses "
    "backwards. Its weights' gradients vanish with δ.",
)
def random_biases_make_the_weight_gradients_vanish_too(frames: Frames) -> Judged:
    """Xavier's weight gradients are of one size over 30 ReLU layers; torch's default's vanish."""
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


@claim(
    "Hanin 2018",
    "how far gradients and outputs of a random ReLU net scatter grows with the sum of 1/width",
)
def he_networks_scatter_by_depth_over_width(frames: Frames) -> Judged:
    """Over He networks the logarithm of the power has variance 5 · depth / width."""
    rows = frames["scatter"].assign(b=lambda f: 5 * f["depth"] / f["width"])
    mild = rows[(rows["b"] <= 1.5) & (rows["depth"] > 1)]
    off = (mild["variance"] / mild["b"] - 1).abs().max()
    inside = mild["inside"]
    return Judged(
        bool(off < 4.5 * math.sqrt(2 / DRAWS)) and bool((inside > 0.88).all()),
        f"within {off:.0%} of it wherever that is at most 1.5; {spread(inside)} of networks inside "
        "the 95% band",
        f"within {4.5 * math.sqrt(2 / DRAWS):.0%} (4.5 sd of a variance of {DRAWS} draws); 0.95",
    )


@claim(
    "He et al. 2015, section 2.2 and figure 3",
    "a 30-layer net: Xavier completely stalls, He converges",
)
def xavier_stalls_the_30_layer_net_that_he_trains(frames: Frames) -> Judged:
    """In 300 steps of SGD a 30-layer ReLU net learns with He and stays at chance with Xavier."""
    good, bad = (loss_at(ran(frames, f"ReLU, {init}", 30)) for init in ("He", "Xavier"))
    return Judged(
        bool((good < 2.0).all()) and bool((bad > STALLED).all()),
        f"loss {spread(good)} with He, {spread(bad)} with Xavier",
        f"chance is ln 10 = {CHANCE:.3f}; Xavier's signal is 2^(-29/2) = {number(2**-14.5)} of "
        "He's at the last hidden layer",
    )


@claim(
    "He et al. 2015, section 2.2", "the 30-layer net with Xavier completely stalls",
    stands="qualified",
    but="It stalls for as long as SGD's step is in proportion to a tiny gradient. It is a long "
    "plateau, not an end, at this size; and Adam, which divides each gradient by its own size, "
    "hides the scale: it trains the same net.",
)  # fmt: skip
def the_stall_is_a_plateau_of_sgd_that_adam_does_not_know(frames: Frames) -> Judged:
    """Xavier's 30-layer net learns in 300 steps of Adam; with SGD it leaves chance much later."""
    adam = loss_at(ran(frames, "ReLU, Xavier", 30, ADAM))
    rows = ran(frames, "ReLU, Xavier", 30)
    long, left = loss_at(rows, 1200), _arrived(rows, STALLED)
    return Judged(
        bool((adam < 2.0).all() and (left > SHORT).all() and (long < STALLED).any()),
        f"Adam's loss {spread(adam)} after 300 steps; SGD's {spread(long)} after 1200, "
        f"{int((long < STALLED).sum())} of {len(long)} off the plateau, the first after "
        f"{left.min():.0f} steps",
        "a loss of 2.303 throughout, if it stalled completely",
    )


@claim(
    "He et al. 2015, section 2.2",
    "the 22-layer net converges with both, with He earlier; no superiority in accuracy",
)
def at_ten_layers_both_train_and_he_only_earlier(frames: Frames) -> Judged:
    """A 10-layer ReLU net trains with both, with He earlier; Xavier's accuracy comes close."""
    steps = [_arrived(ran(frames, *run[:3]), 1) for run in RUNS_OF[:2]]
    ends = [accuracy(frames, run) for run in RUNS_OF[:2]]
    each = ends[0] - ends[1]
    apart = float(each.mean())
    return Judged(
        bool((steps[0] < steps[1]).all()) and abs(apart) < 0.03,
        f"loss below 1 after {spread(steps[0])} steps with He, {spread(steps[1])} with Xavier; "
        f"accuracy {spread(ends[0])} and {spread(ends[1])}, He ahead in {int((each > 0).sum())} of "
        f"{len(each)} seeds by {number(apart)}",
        "He first in every seed; accuracies less than 0.03 apart after 1200 steps",
    )


def _arrived(rows: pd.DataFrame, loss: float) -> pd.Series[float]:
    """The first step of each seed with a loss below this, infinite where there is none."""
    found = rows[rows["loss"] < loss].groupby("seed")["step"].min().astype(float)
    return found.reindex(sorted(rows["seed"].unique()), fill_value=math.inf)


@claim(
    "Glorot & Bengio 2010, section 4.2",
    "the common heuristic U(±1/√n) has n · Var W = 1/3 and is worse for deep nets than 1/√n",
)
def torchs_default_stalls_where_xavier_still_trains(frames: Frames) -> Judged:
    """Torch's default stalls a ReLU net at ten layers with SGD, and at thirty even with Adam."""
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


@claim("nndiag", "names a fault where a net of this depth cannot learn, and none where it can")
def nndiag_passes_the_nets_that_train_and_none_that_stalls(frames: Frames) -> Judged:
    """nndiag calls sick the nets that SGD does not train, before a step is made; no other."""
    told = frames["verdicts"].set_index("network")
    sick = set(told.index[told["verdict"] == "sick"])
    stalled = {
        f"{case}, {layers} layers" for case, layers in CHECKED
        if (loss_at(ran(frames, case, layers)) > STALLED).all()
    }  # fmt: skip
    return Judged(
        sick == stalled and 0 < len(stalled) < len(told),
        "; ".join(f"{name}: {row.leading}" for name, row in told.iterrows()),
        f"sick are {', '.join(sorted(stalled))}",
    )
