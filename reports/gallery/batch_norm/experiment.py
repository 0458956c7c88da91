"""Page 6: BatchNorm."""

import copy
import itertools
import math

import numpy as np
import pandas as pd
import torch
from gallery.figures import BAD, GOOD, QUIET
from gallery.lab import accuracy, digits, linears, mlp, normal, sgd, train
from gallery.page import Judged, leads, number, sick, spread, summary, where
from torch import nn
from torch.nn import functional as F

SEEDS = 5
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (0.01, 0.1, 1.0, 10.0)
OWN = {3.0: 5e-4, 10.0: 3e-6}
"""Large scales, and a rate below the grid's at which they learn without BN."""
GRID_STEPS = 100
DRIFT_STEPS, DRIFT_EVERY, DRIFT_RATE, DRIFT_BATCH, PROBES = 300, 20, 0.5, 60, 300
ICS_STEPS = (5, 20, 50, 100, 200, 299)
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "ReLU": nn.ReLU}
SIZES = (2, 4, 8, 32, 128)
PROBE = 7
"""Which training digit is looked at in all batches."""
NOISE_SIZES = (4, 8, 16, 32, 64, 128, 256)
FEW, FEW_STEPS = 300, 300
RUNNING_STEPS = (1, 2, 5, 10, 20, 40, 80)
FACTORS = (1.0, 10.0, 100.0, 1000.0)


def network(bn, seed, *, scale=1.0, hidden=(64,) * 5, activation=nn.ReLU):
    """For digits, with BN or without, weights at ``scale`` times He's (of ReLU) or Xavier's."""
    gain = scale * (math.sqrt(2) if activation is nn.ReLU else 1.0)
    torch.manual_seed(seed)
    init = normal(lambda n: gain / math.sqrt(n))
    return mlp([64, *hidden, 10], activation, init, nn.BatchNorm1d if bn else None)


def cell(bn, scale, rate, seed):
    """One net of the grid: its loss over the last 20 steps (NaN: diverged) and its accuracy."""
    x, y, x_test, y_test = digits()
    model = network(bn, seed, scale=scale)
    losses = train(model, x, y, sgd(model, rate), GRID_STEPS, seed)
    whole = len(losses) == GRID_STEPS and np.isfinite(losses[-1])
    return {
        "bn": bn, "scale": scale, "rate": rate, "seed": seed,
        "loss": np.mean(losses[-20:]) if whole else math.nan,
        "accuracy": accuracy(model, x_test, y_test) if whole else math.nan,
    }  # fmt: skip


# -- drift ----------------------------------------------------------------------------------------


def _gradients(model, x, y):
    loss = F.cross_entropy(model(x), y)
    return torch.autograd.grad(loss, [linear.weight for linear in linears(model)])


def ics(model, x, y, rate):
    """Each layer's ‖G - G'‖/‖G‖ and cosine between them (Santurkar et al. 2018, definition 2.1).

    G is the gradient of a layer's weights, G' what it is once all before it made a step of SGD.
    """
    before = _gradients(model, x, y)
    moved, mixed = copy.deepcopy(model), copy.deepcopy(model)
    train(moved, x, y, sgd(moved, rate), 1, choose=lambda: slice(None))
    starts = [n for n, module in enumerate(model) if isinstance(module, nn.Linear)]
    found = []
    for layer, start in enumerate(starts):
        for n in range(starts[layer - 1] if layer else 0, start):
            mixed[n].load_state_dict(moved[n].state_dict())
        g, after = before[layer], _gradients(mixed, x, y)[layer]
        cosine = F.cosine_similarity(g.flatten(), after.flatten(), dim=0)
        found.append((((g - after).norm() / g.norm()).item(), cosine.item()))
    return found


def drift(name, bn, seed, steps=DRIFT_STEPS):
    """What the last hidden layer gets over training; and the run's loss, accuracy and mean ICS."""
    x, y, x_test, y_test = digits()
    model = network(bn, seed, hidden=(100,) * 3, activation=ACTIVATIONS[name])
    named, rows, shifts = {"activation": name, "bn": bn, "seed": seed}, [], []

    def look(step, images, labels):
        if step % DRIFT_EVERY == 0:
            # In training mode, by a copy: the averages stay.
            with torch.no_grad():
                gets = copy.deepcopy(model)[:-2](x_test[:PROBES])
            low, middle, high = torch.quantile(gets[:, 0], torch.tensor([0.15, 0.5, 0.85])).tolist()
            rows.append({
                **named, "step": step, "p15": low, "p50": middle, "p85": high,
                "spread": gets.std(dim=0).mean().item(),
                "centre": gets.mean(dim=0).abs().mean().item(),
            })  # fmt: skip
        if step in ICS_STEPS:
            shifts.extend(ics(model, images, labels, DRIFT_RATE)[1:])
        return images

    optimizer = sgd(model, DRIFT_RATE)
    losses = train(model, x, y, optimizer, steps + 1, seed, DRIFT_BATCH, before=look)
    moved, cosines = np.mean(shifts, axis=0)
    return pd.DataFrame(rows), {
        **named, "loss": np.mean(losses[-20:]), "accuracy": accuracy(model, x_test, y_test),
        "ics": moved, "cosine": cosines,
    }  # fmt: skip


# -- batches --------------------------------------------------------------------------------------


def batches(bn, size, seed):
    """Trained on a few digits in batches of this size: losses, and accuracy in both modes."""
    x, y, x_test, y_test = digits()
    x, y = x[:FEW], y[:FEW]
    model = network(bn, seed, hidden=(64,) * 3)
    train(model, x, y, sgd(model, 0.05), FEW_STEPS, seed, batch=size)
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(a), b).item() for a, b in ((x, y), (x_test, y_test))]
    return {
        "bn": bn, "size": size, "seed": seed, "loss": losses[0], "test_loss": losses[1],
        "accuracy": accuracy(model, x_test, y_test),
        "train_mode": in_train_mode(model, x_test, y_test, size),
    }  # fmt: skip


@torch.no_grad()
def in_train_mode(model, x, y, size):
    """Accuracy with the statistics of batches of this size, the averages left alone."""
    model = copy.deepcopy(model).train()
    whole = len(x) // size * size
    right = [model(x[n : n + size]).argmax(dim=1) == y[n : n + size] for n in range(0, whole, size)]
    return torch.cat(right).double().mean().item()


def noise(seed, sizes=NOISE_SIZES):
    """How much one digit's values scatter over 100 batches that it is in.

    ``first`` is what the first BN hands on, ``last`` the logits, each against its standard
    deviation over digits. ``theory`` is √m times the first's, were all inputs normal: of a value x
    the mean's scatter takes 1/m, the deviation's x²/2m.
    """
    x, y, *_ = digits()
    model = network(True, seed, hidden=(64,) * 3)
    train(model, x, y, sgd(model, 0.05), 100, seed)
    draws, rows = torch.Generator().manual_seed(seed), []
    with torch.no_grad():
        parts, z = (model[:2], model), model[0](x)
        whole = [part(x).std(dim=0).pow(2).mean().sqrt() for part in parts]
        normalised = (z[PROBE] - z.mean(dim=0)) / z.std(dim=0)
        theory = (1 + normalised**2 / 2).mean().sqrt().item()
        for size in sizes:
            found = []
            for _ in range(100):
                chosen = torch.randint(len(x), (size,), generator=draws)
                chosen[0] = PROBE
                found.append([part(x[chosen])[0] for part in parts])
            first, last = (
                (torch.stack(values).var(dim=0).mean().sqrt() / std).item()
                for values, std in zip(zip(*found, strict=True), whole, strict=True)
            )
            rows.append((seed, size, first, last, theory))
    return pd.DataFrame(rows, columns=["seed", "size", "first", "last", "theory"])


def running(seed):
    """After so many steps: accuracy in both modes, and how much of the start the averages hold."""
    x, y, x_test, y_test = digits()
    model, rows = network(True, seed), []
    still = nn.BatchNorm1d(64)
    z = linears(model)[0](x[:64]).detach()

    def each(step, _):
        still(z)
        if step + 1 in RUNNING_STEPS:
            held = (still.running_var - z.var(dim=0)) / (1 - z.var(dim=0))
            rows.append({
                "seed": seed, "steps": step + 1, "held": held.mean().item(),
                "eval_mode": accuracy(model, x_test, y_test),
                "train_mode": in_train_mode(model, x_test, y_test, len(x_test)),
            })  # fmt: skip

    train(model, x, y, sgd(model, 0.1), max(RUNNING_STEPS), seed, each=each)
    return rows


def scaled(factor, seed):
    """All weights that a BN follows times a factor: the loss and the gradients, in float64."""
    x, y, *_ = digits()
    model = network(True, seed).double()
    for linear in linears(model)[:-1]:
        linear.weight.data *= factor
    loss = F.cross_entropy(model(x[:64].double()), y[:64])
    loss.backward()
    weight, bias = linears(model)[2].weight, linears(model)[2].bias
    inner = (weight * weight.grad).sum() / weight.norm() / weight.grad.norm()
    return {
        "factor": factor, "seed": seed, "loss": loss.item(),
        "weight_gradient": weight.grad.norm().item(), "cosine": abs(inner.item()),
        "bias_gradient": bias.grad.norm().item(),
    }  # fmt: skip


def measure(lab):
    rows = {name: [] for name in ("grid", "own", "batches", "running", "scaled", "ics")}
    drifts = []
    for seed in lab.track(lab.seeds(SEEDS)):
        for bn in (False, True):
            rows["grid"] += [cell(bn, scale, rate, seed) for scale in SCALES for rate in RATES]
            rows["batches"] += [batches(bn, size, seed) for size in SIZES]
            for name in ACTIVATIONS:
                path, shift = drift(name, bn, seed)
                drifts.append(path)
                rows["ics"].append(shift)
        rows["running"] += running(seed)
        rows["scaled"] += [scaled(factor, seed) for factor in FACTORS]
        rows["own"] += [cell(False, scale, rate, seed) for scale, rate in OWN.items()]
    x, y, *_ = digits()
    for scale, bn in itertools.product((0.1, 1.0, 10.0), (False, True)):
        model = network(bn, lab.first, scale=scale)
        lab.check(f"init × {scale:g}, {WITH[bn]}", model, x[:256], y[:256])
    return {
        **{name: pd.DataFrame(found) for name, found in rows.items()},
        "noise": pd.concat(noise(seed) for seed in lab.seeds(SEEDS)),
        "drift": pd.concat(drifts),
    }


# -- showing --------------------------------------------------------------------------------------


def grid(frames, bn, column="accuracy"):
    """Means over seeds by scale and rate; a diverged net is right in a tenth of the cases."""
    rows = where(frames["grid"], bn=bn).fillna({"accuracy": 0.1})
    return rows.pivot_table(index="scale", columns="rate", values=column, aggfunc="mean")


WITH = {False: "without BN", True: "with BN"}


def tables(frames):
    cells = pd.concat(
        grid(frames, bn).rename(columns="rate {:g}".format).reset_index().assign(network=WITH[bn])
        for bn in WITH
    )
    return {
        "Test accuracy (diverged: 0.1), mean of five seeds": cells,
        "Shift of distributions (ICS, Santurkar et al. 2018), five seeds": summary(
            frames["ics"], {"activation": "activation", "bn": "BN"},
            {
                "ics": "ICS / gradient", "cosine": "cosine", "loss": "loss, last 20 steps",
                "accuracy": "accuracy",
            },
        ),
        f"Trained on {FEW} digits, by batch size": summary(
            frames["batches"], {"bn": "BN", "size": "batch"},
            {
                "loss": "training loss", "test_loss": "test loss",
                "accuracy": "accuracy, evaluation mode", "train_mode": "accuracy, training mode",
            },
        ),
        "Running averages after a few steps": summary(
            frames["running"], ["steps"],
            {
                "held": "the averages' start weighs", "eval_mode": "accuracy, evaluation mode",
                "train_mode": "accuracy, training mode",
            },
        ),
    }  # fmt: skip


def draw(frames, figure):
    figure.set_size_inches(11, 3.6)
    cells = figure.subplots(1, 4, width_ratios=[1, 1, 1.4, 1.4])
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


# -- judging --------------------------------------------------------------------------------------

LEARNT = 0.8
"""An accuracy after 100 steps; chance is 0.1."""


def bn_trains_over_a_hundredfold_range_of_init_scales(frames) -> Judged:
    plain, normed = (grid(frames, bn).max(axis="columns") for bn in WITH)
    learnt = [f"{scale:g}" for scale in SCALES if plain[scale] > LEARNT]
    own = frames["own"].groupby("scale")["accuracy"].mean()
    return Judged(
        (normed > LEARNT).all() and not {0.1, 10.0} & set(plain.index[plain > LEARNT]),
        f"with BN at least {number(normed.min())}; without, {LEARNT} is reached at "
        f"{', '.join(learnt)} only; at rates of their own "
        + ", ".join(f"{number(own[scale])} ({scale:g} at {OWN[scale]:g})" for scale in OWN),
        "five of five scales; at 0.1 and 10 without BN five layers change the signal 10⁵-fold",
    )


def bn_allows_a_tenfold_learning_rate(frames) -> Judged:
    best = [max((r for r in RATES if grid(frames, bn)[r][1.0] > LEARNT), default=0) for bn in WITH]
    lost = where(frames["grid"], bn=False, scale=1.0, rate=1.0)["loss"]
    return Judged(
        best[1] >= 10 * best[0] > 0,
        f"{best[1]:g} against {best[0]:g}; at 1 without BN {int(lost.isna().sum())} of "
        f"{len(lost)} diverge",
        "Ioffe & Szegedy 2015: 5 to 30 times Inception's",
    )


def bn_undoes_the_scale_of_weights_and_divides_their_gradient_by_it(frames) -> Judged:
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


def moves(frames, bn):
    """Of each seed: how far the middle of a unit's inputs wanders, in spreads at the start."""
    rows = where(frames["drift"], activation="sigmoid", bn=bn)

    def wander(run):
        first = run.iloc[0]
        return float((run["p50"] - first["p50"]).abs().max() / (first["p85"] - first["p15"]))

    return pd.Series({seed: wander(run) for seed, run in rows.groupby("seed")})


def bn_holds_the_distribution_of_a_units_inputs(frames) -> Judged:
    plain, normed = moves(frames, False), moves(frames, True)
    return Judged(
        plain.min() > 1 and normed.max() < 0.5,
        f"{spread(plain)} of its first 15 to 85% range without, {spread(normed)} with",
        "more than 1 without, less than 0.5 with",
    )


def shift(frames, name, bn, column="ics"):
    return where(frames["ics"], activation=name, bn=bn).set_index("seed")[column]


def bn_trains_faster_without_reliably_lowering_the_covariate_shift(frames) -> Judged:
    plain, normed = (shift(frames, "sigmoid", bn) for bn in WITH)
    faster = shift(frames, "sigmoid", True, "loss") < shift(frames, "sigmoid", False, "loss")
    relu = [shift(frames, "ReLU", bn).mean() for bn in WITH]
    return Judged(
        faster.all() and int((normed >= plain).sum()) >= 4,
        f"sigmoid: {spread(plain)} without, {spread(normed)} with, the loss lower in "
        f"{int(faster.sum())} of {len(faster)}; ReLU: {number(relu[0])} without, "
        f"{number(relu[1])} with",
        "lower with BN, if that were why it trains faster",
    )


def slope(frames, column, least=16):
    """d ln noise / d ln batch size."""
    rows = frames["noise"].query("size >= @least")
    mean = np.log(rows[column]).groupby(rows["size"]).mean()
    return float(np.polyfit(np.log(mean.index.to_numpy()), mean, 1)[0])


def the_noise_of_bn_falls_with_the_root_of_the_batch(frames) -> Judged:
    first, last = slope(frames, "first"), slope(frames, "last", 64)
    at = where(frames["noise"], size=64)
    measured, expected = at["first"].mean() * 8, at["theory"].mean()
    return Judged(
        abs(first + 0.5) < 0.08 and abs(last + 0.5) < 0.15 and abs(measured / expected - 1) < 0.2,
        f"first BN: m^{first:.2f}, {number(measured)}/√m at 64; logits: m^{last:.2f} from 64 on",
        f"m^-0.5; √(1 + x²/2) = {number(expected)} over √m for a normal value at x deviations",
    )


def the_noise_of_bn_regularises_and_bn_as_a_whole_does_not(frames) -> Judged:
    losses = {(bn, size): _tested(frames, bn, size) for bn in WITH for size in SIZES}
    gains = [losses[bn, 128] - losses[bn, 32] for bn in WITH]
    sizes = [size for size in SIZES if losses[True, size].mean() < losses[False, size].mean()]
    train = [where(frames["batches"], bn=True, size=size)["loss"].mean() for size in (32, 128)]
    return Judged(
        (gains[1] > 0).all() and gains[1].mean() > 2 * abs(gains[0].mean()) and not sizes,
        f"test loss with BN {spread(losses[True, 32])} (32) and {spread(losses[True, 128])} (128), "
        f"training loss {number(train[0])} and {number(train[1])}; without BN "
        f"{spread(losses[False, 32])} and {spread(losses[False, 128])}",
        "lower with BN than without, if it regularised; lower with smaller batches, if noise does",
    )


def _tested(frames, bn, size):
    return where(frames["batches"], bn=bn, size=size).set_index("seed")["test_loss"]


def evaluation_mode_differs_in_small_batches_and_early_on(frames) -> Judged:
    rows = where(frames["batches"], bn=True)
    gap = (rows["accuracy"] - rows["train_mode"]).abs().groupby(rows["size"]).mean()
    steps = frames["running"]
    early = (steps["train_mode"] - steps["eval_mode"]).groupby(steps["steps"]).mean()
    held = (steps["held"] - 0.9 ** steps["steps"]).abs().max()
    return Judged(
        (gap[4] > 0.1 and gap[128] < 0.04 and early[5] > 0.1 and abs(early[80]) < 0.04
             and held < 1e-3),
        f"accuracies differ by {number(gap[4])} in batches of 4, {number(gap[128])} of 128; by "
        f"{number(early[5])} after 5 steps, {number(early[80])} after 80",
        "none: below 0.04, some 2 sd of the difference of two shares of 500; 0.9^t of the start "
        "after t steps",
    )  # fmt: skip


def nndiag_blames_the_scale_without_bn_and_not_with_it(frames) -> Judged:
    return Judged(
        sick(frames).keys() == {"init × 0.1, without BN", "init × 10, without BN"},
        leads(frames),
        "two of six sick: 0.1 and 10 without BN",
    )
