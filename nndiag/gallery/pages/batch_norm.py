"""BatchNorm.

All on scikit-learn's digits (64 pixels, ten classes, 500 of them to test on), with plain SGD and
five seeds. Weights are drawn from N(0, 1/n) times a gain (n inputs of a layer); BN stands between
a linear layer and its activation, with torch's defaults (ε = 1e-5, momentum 0.1).

Grid: five ReLU layers of 64 units, batches of 64, 100 steps, for five init scales (1 is He's) and
four learning rates. Drift: three layers of 100 units (Ioffe & Szegedy's sigmoid net for MNIST;
and the same with ReLU), learning rate 0.5, batches of 60, 300 steps; followed are 300 test digits'
inputs to the last hidden layer, normalised by their own batch where there is BN. ICS is that of
Santurkar et al. 2018: how far a layer's gradient G moves (‖G - G'‖/‖G‖) when the layers before it
make their next step, averaged over layers 2 to 4 and six steps. Batches: three ReLU layers of 64,
trained on 300 digits only, learning rate 0.05, 300 steps, batches of 2 to 128. Noise: how much what
a digit gives scatters over 100 random batches that it is in, after 100 steps of training.
Running averages: the grid's net (He's scale, learning rate 0.1) put into evaluation mode after so
many steps.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nndiag.gallery import lab as data
from nndiag.gallery.lab import Lab, mlp, normal
from nndiag.gallery.page import Frames, Judged, Page, claim, where
from nndiag.gallery.plots import BAD, GOOD, QUIET
from nndiag.gallery.render import number, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

PAGE = Page(
    number=6,
    title="BatchNorm",
    claim="Normalising each unit over the batch makes training robust against bad initial scales "
    "and high learning rates, holds the distributions of inputs still, and adds a little noise; "
    "at test time running averages stand in for the batch.",
    sources=(
        "CS231n 2017, lecture 6, slides 54 to 61",
        "Ioffe & Szegedy 2015",
        "Santurkar et al. 2018",
    ),
    caption="Left two, test accuracy by initial scale (1 is He's) and learning rate, without and "
    "with BN, means of five seeds: dark is right, pale is chance. Third, the 15th, 50th and 85th "
    "percentile of what a sigmoid of the last hidden layer gets, over training, one seed: red "
    "without BN, green with it. Right, accuracy in evaluation mode and in training mode, by the "
    "size of the batches.",
)

SEEDS = 5
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (0.01, 0.1, 1.0, 10.0)
OWN = {3.0: 5e-4, 10.0: 3e-6}
"""Large scales, and a rate below the grid's at which they learn without BN."""
GRID_STEPS = 100
DRIFT_STEPS, DRIFT_EVERY, DRIFT_RATE, DRIFT_BATCH, PROBES = 300, 20, 0.5, 60, 300
ICS_STEPS = (5, 20, 50, 100, 200, 299)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"sigmoid": nn.Sigmoid, "ReLU": nn.ReLU}
SIZES = (2, 4, 8, 32, 128)
PROBE = 7
"""Which training digit is looked at in all batches."""
NOISE_SIZES = (4, 8, 16, 32, 64, 128, 256)
FEW, FEW_STEPS = 300, 300
RUNNING_STEPS = (1, 2, 5, 10, 20, 40, 80)
FACTORS = (1.0, 10.0, 100.0, 1000.0)


def network(
    bn: bool,
    seed: int,
    *,
    scale: float = 1.0,
    hidden: Sequence[int] = (64,) * 5,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """For digits, with BN or without, weights at ``scale`` times He's (of ReLU) or Xavier's."""
    gain = scale * (math.sqrt(2) if activation is nn.ReLU else 1.0)
    torch.manual_seed(seed)
    init = normal(lambda n: gain / math.sqrt(n))
    return mlp([64, *hidden, 10], activation, init, nn.BatchNorm1d if bn else None)


def cell(bn: bool, scale: float, rate: float, seed: int, steps: int = GRID_STEPS) -> dict[str, Any]:
    """One net of the grid: its loss over the last 20 steps (NaN: diverged) and its accuracy."""
    x, y, x_test, y_test = data.digits()
    model = network(bn, seed, scale=scale)
    losses = data.train(model, x, y, torch.optim.SGD(model.parameters(), rate), steps, seed)
    whole = len(losses) == steps and math.isfinite(losses[-1])
    return {
        "bn": bn, "scale": scale, "rate": rate, "seed": seed,
        "loss": float(np.mean(losses[-20:])) if whole else math.nan,
        "accuracy": data.accuracy(model, x_test, y_test) if whole else math.nan,
    }  # fmt: skip


# -- drift ----------------------------------------------------------------------------------------


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def _gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    loss = nn.functional.cross_entropy(model(x), y)
    return list(torch.autograd.grad(loss, [linear.weight for linear in linears(model)]))


def ics(model: nn.Sequential, x: Tensor, y: Tensor, rate: float) -> list[tuple[float, float]]:
    """Each layer's ‖G - G'‖/‖G‖ and cosine between them (Santurkar et al. 2018, definition 2.1).

    G is the gradient of a layer's weights, G' what it is once all before it made a step of SGD.
    """
    before = _gradients(model, x, y)
    moved = copy.deepcopy(model)
    optimizer = torch.optim.SGD(moved.parameters(), rate)
    nn.functional.cross_entropy(moved(x), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    mixed = copy.deepcopy(model)
    starts = [n for n, module in enumerate(model) if isinstance(module, nn.Linear)]
    found = []
    for layer, start in enumerate(starts):
        for n in range(starts[layer - 1] if layer else 0, start):
            mixed[n].load_state_dict(moved[n].state_dict())
        g, after = before[layer], _gradients(mixed, x, y)[layer]
        cosine = nn.functional.cosine_similarity(g.flatten(), after.flatten(), dim=0)
        found.append((((g - after).norm() / g.norm()).item(), cosine.item()))
    return found


def drift(
    name: str, bn: bool, seed: int, steps: int = DRIFT_STEPS
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What the last hidden layer gets over training; and the run's loss, accuracy and mean ICS."""
    x, y, x_test, y_test = data.digits()
    model = network(bn, seed, hidden=(100,) * 3, activation=ACTIVATIONS[name])
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), DRIFT_RATE)
    rows, shifts, losses = [], [], []
    for step in range(steps + 1):
        if step % DRIFT_EVERY == 0:
            gets = inputs(model, x_test[:PROBES])
            low, middle, high = torch.quantile(gets[:, 0], torch.tensor([0.15, 0.5, 0.85])).tolist()
            rows.append(
                {
                    "activation": name, "bn": bn, "seed": seed, "step": step,
                    "p15": low, "p50": middle, "p85": high,
                    "spread": gets.std(dim=0).mean().item(),
                    "centre": gets.mean(dim=0).abs().mean().item(),
                }
            )  # fmt: skip
        chosen = torch.randint(len(x), (DRIFT_BATCH,), generator=draws)
        if step in ICS_STEPS:
            shifts += ics(model, x[chosen], y[chosen], DRIFT_RATE)[1:]
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    moved, cosines = zip(*shifts, strict=True)
    return pd.DataFrame(rows), {
        "activation": name, "bn": bn, "seed": seed, "loss": float(np.mean(losses[-20:])),
        "accuracy": data.accuracy(model, x_test, y_test),
        "ics": float(np.mean(moved)), "cosine": float(np.mean(cosines)),
    }  # fmt: skip


@torch.no_grad()
def inputs(model: nn.Sequential, x: Tensor) -> Tensor:
    """What the last hidden layer's activation gets in training mode; the averages stay."""
    h: Tensor = copy.deepcopy(model).train()[:-2](x)
    return h


# -- batches --------------------------------------------------------------------------------------


def batches(bn: bool, size: int, seed: int, steps: int = FEW_STEPS) -> dict[str, Any]:
    """Trained on a few digits in batches of this size: losses, and accuracy in both modes."""
    x, y, x_test, y_test = data.digits()
    x, y = x[:FEW], y[:FEW]
    model = network(bn, seed, hidden=(64,) * 3)
    data.train(model, x, y, torch.optim.SGD(model.parameters(), 0.05), steps, seed, batch=size)
    entropy = nn.functional.cross_entropy
    model.eval()
    with torch.no_grad():
        loss, test_loss = entropy(model(x), y).item(), entropy(model(x_test), y_test).item()
    return {
        "bn": bn, "size": size, "seed": seed, "loss": loss, "test_loss": test_loss,
        "accuracy": data.accuracy(model, x_test, y_test),
        "train_mode": in_train_mode(model, x_test, y_test, size),
    }  # fmt: skip


@torch.no_grad()
def in_train_mode(model: nn.Module, x: Tensor, y: Tensor, size: int) -> float:
    """Accuracy with the statistics of batches of this size, the averages left alone."""
    model = copy.deepcopy(model).train()
    whole = len(x) // size * size
    right = [model(x[n : n + size]).argmax(dim=1) == y[n : n + size] for n in range(0, whole, size)]
    return torch.cat(right).double().mean().item()


@torch.no_grad()
def noise(seed: int, sizes: Sequence[int] = NOISE_SIZES, times: int = 100) -> list[dict[str, Any]]:
    """How much one digit's values scatter over the batches that it is in.

    ``first`` is what the first BN hands on, ``last`` the logits, each against its standard
    deviation over digits. ``theory`` is √m times the first's, were all inputs normal: of a value x
    the mean's scatter takes 1/m, the deviation's x²/2m.
    """
    x, y, *_ = data.digits()
    model = network(True, seed, hidden=(64,) * 3)
    with torch.enable_grad():
        data.train(model, x, y, torch.optim.SGD(model.parameters(), 0.05), 100, seed)
    draws = torch.Generator().manual_seed(seed)
    rows = []
    whole = model[:2](x), model(x)
    z = model[0](x)
    normalised = (z[PROBE] - z.mean(dim=0)) / z.std(dim=0)
    theory = (1 + normalised**2 / 2).mean().sqrt().item()
    for size in sizes:
        firsts, lasts = [], []
        for _ in range(times):
            chosen = torch.randint(len(x), (size,), generator=draws)
            chosen[0] = PROBE
            firsts.append(model[:2](x[chosen])[0])
            lasts.append(model(x[chosen])[0])
        both = (
            torch.stack(values).var(dim=0).mean().sqrt() / all_of.std(dim=0).pow(2).mean().sqrt()
            for values, all_of in zip((firsts, lasts), whole, strict=True)
        )
        first, last = (value.item() for value in both)
        rows.append({"seed": seed, "size": size, "first": first, "last": last, "theory": theory})
    return rows


def running(seed: int, steps: Sequence[int] = RUNNING_STEPS) -> list[dict[str, Any]]:
    """After so many steps: accuracy in both modes, and how much of the start the averages hold."""
    x, y, x_test, y_test = data.digits()
    model, rows = network(True, seed), []
    still = nn.BatchNorm1d(64)
    z = linears(model)[0](x[:64]).detach()

    def each(step: int, _: Tensor) -> None:
        still(z)
        if step + 1 in steps:
            held = (still.running_var - z.var(dim=0)) / (1 - z.var(dim=0))
            rows.append(
                {
                    "seed": seed, "steps": step + 1, "held": held.mean().item(),
                    "eval_mode": data.accuracy(model, x_test, y_test),
                    "train_mode": in_train_mode(model, x_test, y_test, len(x_test)),
                }
            )  # fmt: skip

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data.train(model, x, y, optimizer, max(steps), seed, each=each)
    return rows


def scaled(factor: float, seed: int) -> dict[str, Any]:
    """All weights that a BN follows times a factor: the loss and the gradients, in float64."""
    x, y, *_ = data.digits()
    model = network(True, seed).double()
    for linear in linears(model)[:-1]:
        linear.weight.data *= factor
    loss = nn.functional.cross_entropy(model(x[:64].double()), y[:64])
    loss.backward()  # type: ignore[no-untyped-call]
    weight, bias = linears(model)[2].weight, linears(model)[2].bias
    assert weight.grad is not None
    assert bias.grad is not None
    inner = (weight * weight.grad).sum() / weight.norm() / weight.grad.norm()
    return {
        "factor": factor, "seed": seed, "loss": loss.item(),
        "weight_gradient": weight.grad.norm().item(), "cosine": abs(inner.item()),
        "bias_gradient": bias.grad.norm().item(),
    }  # fmt: skip


KINDS = ("grid", "own", "batches", "noise", "running", "scaled")


def measure(lab: Lab) -> dict[str, pd.DataFrame]:
    rows: dict[str, list[Any]] = {n: [] for n in KINDS}
    drifts, shifts = [], []
    for seed in lab.track(range(SEEDS)):
        for bn in (False, True):
            rows["grid"] += [cell(bn, scale, rate, seed) for scale in SCALES for rate in RATES]
            rows["batches"] += [batches(bn, size, seed) for size in SIZES]
            for name in ACTIVATIONS:
                path, shift = drift(name, bn, seed)
                drifts.append(path)
                shifts.append(shift)
        rows["noise"] += noise(seed)
        rows["running"] += running(seed)
        rows["scaled"] += [scaled(factor, seed) for factor in FACTORS]
        rows["own"] += [cell(False, scale, rate, seed) for scale, rate in OWN.items()]
    x, y, *_ = data.digits()
    for scale in (0.1, 1.0, 10.0):
        for bn in (False, True):
            name = f"init × {scale:g}, {'with' if bn else 'without'} BN"
            model = network(bn, 0, scale=scale)
            lab.check(name, model, x[:256], y[:256], loss_fn=nn.functional.cross_entropy)
    return {
        **{name: pd.DataFrame(found) for name, found in rows.items()},
        "drift": pd.concat(drifts),
        "ics": pd.DataFrame(shifts),
    }


# -- the page -------------------------------------------------------------------------------------


def grid(frames: Frames, bn: bool, column: str = "accuracy") -> pd.DataFrame:
    """Means over seeds by scale and rate; a diverged net is right in a tenth of the cases."""
    rows = where(frames["grid"], bn=bn).fillna({"accuracy": 0.1})
    return rows.pivot_table(index="scale", columns="rate", values=column, aggfunc="mean")


WITH = {False: "without BN", True: "with BN"}


def tables(frames: Frames) -> dict[str, pd.DataFrame]:
    cells = pd.concat(
        pd.DataFrame(
            {
                "network": WITH[bn], "init scale": grid(frames, bn).index,
                **{f"rate {rate:g}": grid(frames, bn)[rate].to_numpy() for rate in RATES},
            }
        )
        for bn in WITH
    )  # fmt: skip
    shifts = pd.DataFrame(
        {
            "network": f"{name} {WITH[bn]}",
            **{label: spread(where(frames["ics"], activation=name, bn=bn)[column])
               for label, column in (("ICS / gradient", "ics"), ("cosine", "cosine"),
                                     ("loss, last 20 steps", "loss"), ("accuracy", "accuracy"))},
        }
        for name in ACTIVATIONS for bn in WITH
    )  # fmt: skip
    sizes = pd.DataFrame(
        {
            "network": WITH[bn], "batch": size,
            **{label: spread(where(frames["batches"], bn=bn, size=size)[column])
               for label, column in (("training loss", "loss"), ("test loss", "test_loss"),
                                     ("accuracy, evaluation mode", "accuracy"),
                                     ("accuracy, training mode", "train_mode"))},
        }
        for bn in WITH for size in SIZES
    )  # fmt: skip
    steps = pd.DataFrame(
        {
            "steps": step, "the averages' start weighs": spread(rows["held"]),
            "accuracy, evaluation mode": spread(rows["eval_mode"]),
            "accuracy, training mode": spread(rows["train_mode"]),
        }
        for step, rows in frames["running"].groupby("steps")
    )  # fmt: skip
    return {
        "Test accuracy (diverged: 0.1), mean of five seeds": cells,
        "Shift of distributions (ICS, Santurkar et al. 2018), five seeds": shifts,
        f"Trained on {FEW} digits, by batch size": sizes,
        "Running averages after a few steps": steps,
    }


def draw(frames: Frames, figure: Figure) -> None:
    figure.set_size_inches(11, 3.6)
    cells: Any = figure.subplots(1, 4, width_ratios=[1, 1, 1.4, 1.4])
    for axes, bn in zip(cells, WITH, strict=False):
        values = grid(frames, bn)
        axes.pcolormesh(values.to_numpy(), cmap="Blues", vmin=0, vmax=1, edgecolors="white")
        for (row, column), value in np.ndenumerate(values.to_numpy()):
            axes.text(
                column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8,
                color="white" if value > 0.6 else "black",
            )  # fmt: skip
        axes.set(title=WITH[bn], xlabel="learning rate", ylabel="" if bn else "init scale / He")
        axes.set_xticks(np.arange(len(RATES)) + 0.5, [f"{r:g}" for r in RATES])
        axes.set_yticks(np.arange(len(SCALES)) + 0.5, [] if bn else [f"{s:g}" for s in SCALES])
        axes.grid(False)
    for bn, color in ((False, BAD), (True, GOOD)):
        rows = where(frames["drift"], activation="sigmoid", bn=bn, seed=0)
        for column, style in (("p15", ":"), ("p50", "-"), ("p85", ":")):
            label = WITH[bn] if column == "p50" else None
            cells[2].plot(rows["step"], rows[column], ls=style, color=color, label=label)
    cells[2].set(title="what a sigmoid gets", xlabel="step", ylim=(-2, 1.5))
    cells[2].legend(loc="lower left", ncols=2)
    for bn, column, color, label in (
        (True, "accuracy", GOOD, "BN, evaluation mode"),
        (True, "train_mode", GOOD, "BN, training mode"),
        (False, "accuracy", BAD, "without BN"),
    ):
        mean = where(frames["batches"], bn=bn).groupby("size")[column].mean()
        style = "--" if column == "train_mode" else "-"
        cells[3].semilogx(mean.index, mean, style, marker="o", ms=3, color=color, label=label)
    cells[3].set(title="test accuracy", xlabel="batch size", ylim=(0, 1))
    cells[3].set_xticks(SIZES, [str(size) for size in SIZES])
    cells[3].minorticks_off()
    cells[3].axhline(0.1, color=QUIET, lw=1, ls=":")
    cells[3].legend(loc="lower right")


# -- what it shows --------------------------------------------------------------------------------

LEARNT = 0.8
"""An accuracy after 100 steps; chance is 0.1."""


@claim(
    "slide 59", "reduces the strong dependence on initialization", stands="qualified",
    but="It does, as far as the rate goes, too. Without BN a large scale learns as well, if not as "
    "much in as many steps, at a rate of its own that is far below those of the grid; who keeps "
    "the rate sees nothing but divergence. A tenth of He's scale learns at none of them.",
)  # fmt: skip
def bn_trains_over_a_hundredfold_range_of_init_scales(frames: Frames) -> Judged:
    """At rates from 0.01 to 10 BN learns from every scale of 0.1 to 10, a plain net from He's."""
    plain, normed = (grid(frames, bn).max(axis="columns") for bn in WITH)
    learnt = [f"{scale:g}" for scale in SCALES if plain[scale] > LEARNT]
    own = frames["own"].groupby("scale")["accuracy"].mean()
    return Judged(
        bool((normed > LEARNT).all()) and not {0.1, 10.0} & set(plain.index[plain > LEARNT]),
        f"with BN at least {number(normed.min())}; without, {LEARNT} is reached at "
        f"{', '.join(learnt)} only; at rates of their own "
        + ", ".join(f"{number(own[scale])} ({scale:g} at {OWN[scale]:g})" for scale in OWN),
        "five of five scales; at 0.1 and 10 without BN five layers change the signal 10⁵-fold",
    )


@claim("slide 59", "allows higher learning rates")
def bn_allows_a_tenfold_learning_rate(frames: Frames) -> Judged:
    """At He's scale the highest rate that learns is ten times as high with BN."""
    best = [max((r for r in RATES if grid(frames, bn)[r][1.0] > LEARNT), default=0) for bn in WITH]
    lost = where(frames["grid"], bn=False, scale=1.0, rate=1.0)["loss"]
    return Judged(
        best[1] >= 10 * best[0] > 0,
        f"{best[1]:g} against {best[0]:g}; at 1 without BN {int(lost.isna().sum())} of "
        f"{len(lost)} diverge",
        "Ioffe & Szegedy 2015: 5 to 30 times Inception's",
    )


@claim(
    "Ioffe & Szegedy 2015, section 3.3",
    "BN(Wu) = BN((aW)u), its gradient with respect to aW is 1/a of that of W, and a bias before "
    "BN is without effect",
)
def bn_undoes_the_scale_of_weights_and_divides_their_gradient_by_it(frames: Frames) -> Judged:
    """Weights times a: the same loss, gradients times 1/a, across the weights; none for biases."""
    rows = frames["scaled"]
    loss, gradient = (
        rows.pivot(index="seed", columns="factor", values=column)
        for column in ("loss", "weight_gradient")
    )
    lost = float(loss.div(loss[1.0], axis="index").sub(1).abs().to_numpy().max())
    against = gradient.mul(list(FACTORS), axis="columns").div(gradient[1.0], axis="index")
    law = float(against.sub(1).abs().to_numpy().max())
    bias = float((rows["bias_gradient"] / rows["weight_gradient"]).max())
    cosine = float(rows["cosine"].max())
    return Judged(
        lost < 1e-3 and law < 1e-3 and bias < 1e-9 and cosine < 1e-6,
        f"a up to 1000: loss off by {number(lost)}, a · gradient by {number(law)}, cosine to the "
        f"weights {number(cosine)}; biases' gradient {number(bias)} of the weights'",
        "0 but for ε = 1e-5 beside the variance, and rounding",
    )


def moves(frames: Frames, bn: bool) -> pd.Series[float]:
    """Of each seed: how far the middle of a unit's inputs wanders, in spreads at the start."""
    rows = where(frames["drift"], activation="sigmoid", bn=bn)

    def wander(run: pd.DataFrame) -> float:
        first = run.iloc[0]
        return float((run["p50"] - first["p50"]).abs().max() / (first["p85"] - first["p15"]))

    return pd.Series({seed: wander(run) for seed, run in rows.groupby("seed")})


@claim(
    "Ioffe & Szegedy 2015, figure 1",
    "the distribution of a sigmoid's input changes over training, with BN it is much more stable",
)
def bn_holds_the_distribution_of_a_units_inputs(frames: Frames) -> Judged:
    """Without BN a unit's median input wanders off by its own spread or more, with it by less."""
    plain, normed = moves(frames, False), moves(frames, True)
    return Judged(
        bool(plain.min() > 1) and bool(normed.max() < 0.5),
        f"{spread(plain)} of its first 15 to 85% range without, {spread(normed)} with",
        "more than 1 without, less than 0.5 with",
    )


def shift(frames: Frames, name: str, bn: bool, column: str = "ics") -> pd.Series[float]:
    rows: pd.Series[float] = where(frames["ics"], activation=name, bn=bn).set_index("seed")[column]
    return rows


@claim(
    "Ioffe & Szegedy 2015, title",
    "BN accelerates training by reducing internal covariate shift", stands="qualified",
    but="The distributions of inputs are held (above). The change of a layer's gradient because "
    "those before it moved, which is what the shift means to training (Santurkar et al. 2018), is "
    "not reliably reduced: less in the ReLU net, more in the sigmoid net, which trains the faster "
    "for BN. A layer that hardly learns has hardly any shift.",
)  # fmt: skip
def bn_trains_faster_without_reliably_lowering_the_covariate_shift(frames: Frames) -> Judged:
    """The sigmoid net learns faster with BN although its gradients shift more, not less."""
    plain, normed = (shift(frames, "sigmoid", bn) for bn in WITH)
    faster = shift(frames, "sigmoid", True, "loss") < shift(frames, "sigmoid", False, "loss")
    relu = [shift(frames, "ReLU", bn).mean() for bn in WITH]
    return Judged(
        bool(faster.all()) and int((normed >= plain).sum()) >= 4,
        f"sigmoid: {spread(plain)} without, {spread(normed)} with, the loss lower in "
        f"{int(faster.sum())} of {len(faster)}; ReLU: {number(relu[0])} without, "
        f"{number(relu[1])} with",
        "lower with BN, if that were why it trains faster",
    )


def slope(frames: Frames, column: str, least: int = 16) -> float:
    """d ln noise / d ln batch size."""
    rows = frames["noise"].query("size >= @least")
    mean = np.log(rows[column]).groupby(rows["size"]).mean()
    return float(np.polyfit(np.log(mean.index.to_numpy()), mean, 1)[0])


@claim("slide 59", "what becomes of an example depends on the others in its batch")
def the_noise_of_bn_falls_with_the_root_of_the_batch(frames: Frames) -> Judged:
    """An example's normalised value scatters over batches by about 1/√m, m the batch's size."""
    first, last = slope(frames, "first"), slope(frames, "last", 64)
    at = where(frames["noise"], size=64)
    measured, expected = at["first"].mean() * 8, at["theory"].mean()
    return Judged(
        abs(first + 0.5) < 0.08 and abs(last + 0.5) < 0.15 and abs(measured / expected - 1) < 0.2,
        f"first BN: m^{first:.2f}, {number(measured)}/√m at 64; logits: m^{last:.2f} from 64 on",
        f"m^-0.5; √(1 + x²/2) = {number(expected)} over √m for a normal value at x deviations",
    )


@claim(
    "slide 59", "it regularises a little, by the noise of its batches",
    stands="qualified",
    but="The noise does, up to a point: at one and the same training loss, batches of 32 end with "
    "a lower test loss than of 128, which they do not without BN; batches of 8 and fewer hurt. "
    "BN as a whole does not here (300 digits, 300 steps without momentum): with it the test loss "
    "is higher than without at every batch size. On the page on regularisation (256 digits, "
    "momentum 0.9) it does lower it, even without noise: it depends on the training.",
)  # fmt: skip
def the_noise_of_bn_regularises_and_bn_as_a_whole_does_not(frames: Frames) -> Judged:
    """With BN batches of 32 end lower than of 128 in test loss, but above the net without BN."""
    losses = {(bn, size): _tested(frames, bn, size) for bn in WITH for size in SIZES}
    gains = [losses[bn, 128] - losses[bn, 32] for bn in WITH]
    sizes = [size for size in SIZES if losses[True, size].mean() < losses[False, size].mean()]
    train = [where(frames["batches"], bn=True, size=size)["loss"].mean() for size in (32, 128)]
    return Judged(
        bool((gains[1] > 0).all()) and gains[1].mean() > 2 * abs(gains[0].mean()) and not sizes,
        f"test loss with BN {spread(losses[True, 32])} (32) and {spread(losses[True, 128])} (128), "
        f"training loss {number(train[0])} and {number(train[1])}; without BN "
        f"{spread(losses[False, 32])} and {spread(losses[False, 128])}",
        "lower with BN than without, if it regularised; lower with smaller batches, if noise does",
    )


def _tested(frames: Frames, bn: bool, size: int) -> pd.Series[float]:
    rows: pd.Series[float] = where(frames["batches"], bn=bn, size=size).set_index("seed")[
        "test_loss"
    ]
    return rows


@claim(
    "slide 60", "at test time the mean and deviation are fixed: running averages from training",
    stands="qualified",
    but="They stand in for the batch only if batches were large enough to resemble one another, "
    "and if there were enough of them: after t steps the averages are still to 0.9^t what they "
    "were initialised with. In batches of 2 each value becomes its sign, ±1, and "
    "the network learns next to nothing in either mode.",
)  # fmt: skip
def evaluation_mode_differs_in_small_batches_and_early_on(frames: Frames) -> Judged:
    """The two modes disagree in batches of 4 and after 5 steps, and agree in 128 and after 80."""
    rows = where(frames["batches"], bn=True)
    gap = (rows["accuracy"] - rows["train_mode"]).abs().groupby(rows["size"]).mean()
    steps = frames["running"]
    early = (steps["train_mode"] - steps["eval_mode"]).groupby(steps["steps"]).mean()
    held = (steps["held"] - 0.9 ** steps["steps"]).abs().max()
    return Judged(
        bool(gap[4] > 0.1 and gap[128] < 0.04 and early[5] > 0.1 and abs(early[80]) < 0.04
             and held < 1e-3),
        f"accuracies differ by {number(gap[4])} in batches of 4, {number(gap[128])} of 128; by "
        f"{number(early[5])} after 5 steps, {number(early[80])} after 80",
        "none: below 0.04, some 2 sd of the difference of two shares of 500; 0.9^t of the start "
        "after t steps",
    )  # fmt: skip


@claim("nndiag", "names the scale of a bad init where it does harm, and not where BN undoes it")
def nndiag_blames_the_scale_without_bn_and_not_with_it(frames: Frames) -> Judged:
    """The two bad scales are sick without BN; with it nndiag names no scale."""
    told = frames["verdicts"].set_index("network")
    sick = set(told.index[told["verdict"] == "sick"])
    return Judged(
        sick == {"init × 0.1, without BN", "init × 10, without BN"},
        "; ".join(f"{name}: {row.leading}" for name, row in told.iterrows()),
        "two of six sick: 0.1 and 10 without BN",
    )
