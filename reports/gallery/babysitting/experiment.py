"""Page 8: babysitting the learning process."""

import functools
import itertools
import math

import numpy as np
import pandas as pd
import torch
from gallery import figures
from gallery.lab import accuracy, digits, he, mlp, normal, sgd, tiles, train
from gallery.page import Judged, leads, number, sick, spread, summary, where
from torch import nn
from torch.nn import functional as F

CLASSES, SEEDS, STEPS = 10, 5, 400
CHANCE = math.log(CLASSES)
SIGMAS = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
WEIGHTS = 3072 * 50 + 50 * 10
REGULARISATION = 1e3
SLIDE_LOSS, SLIDE_REGULARISED = 2.30261216167, 3.06859716482
SLIDE_OVERFIT = {1: 2.302603, 10: 2.234787, 19: 1.421527, 200: 0.002597}
EPOCHS = (1, 2, 5, 10, 15, 19, 25, 30, 40, 50, 70, 100, 150, 200, 300, 400, 500)
OVERFIT = {
    "patches, random labels": (1e-4, 1e-3),
    "digits": (0.01, 0.1),
    "digits, random labels": (0.01, 0.1),
}
"""Scale of the weights, learning rate."""
RATES = {
    "SGD": (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 1e6),
    "Adam": (1e-4, 1e-3, 1e-2, 0.1),
}
NAMED = {1e-4: "too low", 1e-2: "low", 0.3: "right", 3.0: "too high", 1e6: "far too high"}
"""The rates of SGD that are drawn."""
RATIOS = ("first ratio 1", "ratio 1", "accuracy")
QUADRATIC = (0.5, 0.9, 0.99, 1.01, 1.1)
"""Rates in units of 2/λ."""


# -- the start -----------------------------------------------------------------------------------


@functools.cache
def patches():
    """All 520 patches of 32 x 32, less their mean image, scaled to the rms of CIFAR-10."""
    rows = torch.tensor(tiles(32)[0], dtype=torch.float64)
    rows = rows - rows.mean(dim=0)
    return rows * (63 / rows.pow(2).mean().sqrt())


def slide_net(seed, examples):
    """The slides' net, patches, and labels that are drawn at random."""
    torch.manual_seed(seed)
    model = mlp([3072, 50, CLASSES], nn.ReLU, normal(lambda n: 1e-4)).double()
    chosen = torch.randperm(len(patches()))[:examples]
    return model, patches()[chosen], torch.randint(CLASSES, (examples,))


@torch.no_grad()
def start(seed):
    """The slides' net before it is trained, without and with regularisation."""
    model, x, y = slide_net(seed, 500)
    logits = model(x)
    loss = F.cross_entropy(logits, y).item()
    squares = sum(float(p.pow(2).sum()) for p in model.parameters())
    sigma = (logits - logits.mean(dim=1, keepdim=True)).pow(2).mean().sqrt().item()
    return {
        "seed": seed, "loss - ln 10": loss - CHANCE,
        "penalty": REGULARISATION * squares / 2, "sigma": sigma,
        # labels drawn at random: the mean of 500 logits of one class, less their mean
        "sd": sigma / math.sqrt(len(x)),
    }  # fmt: skip


@functools.cache
def chance_loss(sigma, classes=CLASSES):
    """The expected cross-entropy of independent logits from N(0, σ²).

    E ln S = ∫ (exp(-eᵘ) - φ(eᵘ)) du, with S the sum of the exponentials and φ(t) = E exp(-tS).
    """
    z = np.linspace(-8, 8, 801)
    weights = np.exp(-(z**2) / 2)
    u = np.linspace(-60 - 8 * sigma, 10 + 8 * sigma, 2_001)
    one = (weights / weights.sum()) @ np.exp(-np.exp((u + sigma * z[:, None]).clip(-700, 700)))
    return float(np.sum(np.exp(-np.exp(u.clip(-700, 700))) - one**classes) * (u[1] - u[0]))


@functools.cache
def _grid():
    """The expected loss by σ², in which it is nearly a straight line at first."""
    sigma = 30 * np.linspace(0, 1, 61) ** 2
    return sigma**2, np.array([chance_loss(float(s)) for s in sigma])


@torch.no_grad()
def spread_out(sigma, seed):
    """Digits before training, the last layer drawn so that the logits spread by σ."""
    x, y, _, _ = digits()
    model = he_net(20 * SIGMAS.index(sigma) + seed)
    norms = model[:2](x).norm(dim=1)
    std = sigma / norms.pow(2).mean().sqrt().item()
    nn.init.normal_(model[2].weight, std=std)
    expected = np.interp(((std * norms) ** 2).numpy(), *_grid()).mean()
    loss = whole_loss(model, x, y)
    return {"sigma": sigma, "seed": seed, "loss": loss, "theory": float(expected)}


# -- twenty examples -----------------------------------------------------------------------------


def small_net(seed, scale=0.01):
    """The digits' net with small weights."""
    torch.manual_seed(seed)
    return mlp([64, 50, CLASSES], nn.ReLU, normal(lambda n: scale))


def overfit(case, seed):
    """A row an epoch of those kept: the loss before its step, the accuracy after it."""
    scale, rate = OVERFIT[case]
    if case.startswith("patches"):
        model, x, y = slide_net(seed, 20)
    else:
        x, y, _, _ = digits()
        model = small_net(seed, scale)
        chosen = torch.randperm(len(x))[:20]
        x, y = x[chosen], y[chosen]
        if case.endswith("random labels"):
            y = torch.randint(CLASSES, (20,))
    rows = []

    def each(step, loss):
        if step + 1 in EPOCHS:
            rows.append((case, seed, step + 1, loss.item(), accuracy(model, x, y)))

    train(model, x, y, sgd(model, rate), EPOCHS[-1], choose=lambda: slice(None), each=each)
    return pd.DataFrame(rows, columns=["case", "seed", "epoch", "loss", "accuracy"])


# -- learning rates ------------------------------------------------------------------------------


@torch.no_grad()
def whole_loss(model, x, y):
    return F.cross_entropy(model(x), y).item()


def flat(rate, seed):
    """Digits from weights of 0.01: the loss and the accuracy before and after 200 small steps."""
    x, y, _, _ = digits()
    model, row = small_net(seed), {"rate": rate, "seed": seed}
    for when, steps in (("before", 0), ("after", 200)):
        train(model, x, y, sgd(model, rate), steps, seed)
        row[f"loss {when}"] = whole_loss(model, x, y)
        row[f"accuracy {when}"] = accuracy(model, x, y)
    return row


def he_net(seed):
    torch.manual_seed(seed)
    return mlp([64, 50, CLASSES], nn.ReLU, he)


def run(optimizer, rate, seed, steps=STEPS):
    """One run: what came of it, its loss curve, and the net."""
    x, y, x_val, y_val = digits()
    model = he_net(seed)
    matrices = [model[0].weight, model[2].weight]
    before = [m.detach().clone() for m in matrices]
    rms = [m.pow(2).mean().sqrt().item() for m in before]
    ratios, curve, moving = [], [], []
    first = whole_loss(model, x, y)

    def note(step, loss):
        if step == 0:
            moving.extend((m.grad != 0).double().mean().item() for m in matrices)
        now = [m.detach().clone() for m in matrices]
        ratios.append([float((a - b).norm() / b.norm()) for a, b in zip(now, before, strict=True)])
        before[:] = now
        if (step + 1) % 20 == 0 or step == 0:
            curve.append((optimizer, rate, seed, step + 1, whole_loss(model, x, y)))

    made = getattr(torch.optim, optimizer)(model.parameters(), lr=rate)
    losses = train(model, x, y, made, steps, seed, each=note)
    finite = bool(np.isfinite(losses[-1]))
    over = [step for step, loss in enumerate(losses) if not loss <= 3 * losses[0]]
    with torch.no_grad():
        dead = (model[0](x) <= 0).all(dim=0).double().mean().item()
    found = {
        "optimizer": optimizer, "rate": rate, "seed": seed, "first loss": first,
        "highest / first": float(np.nanmax(np.nan_to_num(losses, posinf=np.nan))) / losses[0],
        "over 3 x at": over[0] if over else math.nan,
        "last loss": whole_loss(model, x, y) if finite else math.nan,
        "accuracy": accuracy(model, x_val, y_val),
        "not finite at": math.nan if finite else len(losses) - 1,
        "dead": dead if finite else math.nan,
    }  # fmt: skip
    for place, column in enumerate(np.transpose(ratios)):
        found[f"first ratio {place + 1}"] = column[0]
        found[f"ratio {place + 1}"] = float(np.median(column)) if finite else math.nan
        # Adam's first step moves by its rate every weight that has a gradient
        by_rate = rate * math.sqrt(moving[place]) / rms[place]
        found[f"Adam's first {place + 1}"] = by_rate if optimizer == "Adam" else math.nan
    columns = ["optimizer", "rate", "seed", "step", "loss"]
    return found, pd.DataFrame(curve, columns=columns), model


def quadratic(relative, seed):
    """Least squares at ``relative`` · 2/λ: how the excess loss changes, in all and at the end."""
    x, y, _, _ = digits()
    inputs, truth = x.double().numpy(), np.eye(CLASSES)[y.numpy()]
    curvature, slope = inputs.T @ inputs / len(x), inputs.T @ truth / len(x)
    top = np.linalg.eigvalsh(curvature)[-1]
    best = np.linalg.lstsq(inputs, truth, rcond=None)[0]
    weight, excess = best + np.random.default_rng(seed).standard_normal(best.shape) / 8, []
    for _ in range(STEPS + 1):
        off = weight - best
        excess.append(float(np.einsum("ij,ik,kj->", off, curvature, off)) / 2)
        weight = weight - relative * 2 / top * (curvature @ weight - slope)
    return {
        "rate": relative, "seed": seed, "last / first": excess[-1] / excess[0],
        "growth": excess[-1] / excess[-2], "theory": (1 - 2 * relative) ** 2,
    }  # fmt: skip


def measure(lab):
    runs, curves, (x, y, _, _) = [], [], digits()
    batch = x[:256], y[:256]
    for kind in lab.track(RATES):
        for rate, seed in itertools.product(RATES[kind], lab.seeds(SEEDS)):
            found, curve, model = run(kind, rate, seed)
            runs.append(found)
            curves.append(curve)
            if kind == "SGD" and seed == lab.first and rate in NAMED:
                lab.check(f"trained at {rate:g} ({NAMED[rate]})", model, *batch)
    lab.check("digits, He, at the start", he_net(lab.first), *batch)
    lab.check("digits, 1e-4, at the start", small_net(lab.first, 1e-4), *batch)
    lab.check("the slide's net, 1e-4, at the start", *slide_net(lab.first, 128))
    ten, twenty = lab.seeds(10), lab.seeds(20)
    return {
        "runs": pd.DataFrame(runs),
        "curves": pd.concat(curves),
        "start": pd.DataFrame(start(seed) for seed in twenty),
        "spread": pd.DataFrame(spread_out(s, seed) for s in SIGMAS for seed in twenty),
        "overfit": pd.concat(overfit(case, seed) for case in OVERFIT for seed in ten),
        "flat": pd.DataFrame(flat(rate, seed) for rate in (1e-4, 1e-3, 1e-2) for seed in ten),
        "quadratic": pd.DataFrame(quadratic(r, s) for r in QUADRATIC for s in lab.seeds(SEEDS)),
    }


def tables(frames):
    begun, spreads, epochs = frames["start"], frames["spread"], frames["overfit"]
    losses = [begun["loss - ln 10"] + CHANCE + share * begun["penalty"] for share in (0, 1)]
    spreads = spreads.assign(series=CHANCE + spreads.sigma**2 / 2 * (1 - 1 / CLASSES))
    epochs = epochs[epochs.epoch.isin((1, 5, 10, 19, 50, 100, 200, 500))]
    return {
        "The slides' net before training": pd.DataFrame({
            "regularisation": ["0", "1000"],
            "the slide": [f"{loss:.6f}" for loss in (SLIDE_LOSS, SLIDE_REGULARISED)],
            "expected": [f"{CHANCE:.6f}", f"{CHANCE + _penalty()[0]:.6f}"],
            "ours, mean": [f"{loss.mean():.6f}" for loss in losses],
            "smallest": [f"{loss.min():.6f}" for loss in losses],
            "largest": [f"{loss.max():.6f}" for loss in losses],
        }),
        "Loss at the start by the spread σ of the logits": summary(
            spreads, {"sigma": "σ"},
            {"loss": "loss at the start", "theory": "expected", "series": "ln 10 + 0.45 σ²"},
        ),
        "Twenty examples; the slide: 2.302603 after 1 epoch, 2.234787 after 10, 1.421527 after 19, "
        "0.002597 after 200": summary(epochs, ["case", "epoch"], ["loss", "accuracy"]),
        "Rates, 400 steps": summary(
            frames["runs"], ["optimizer", "rate"],
            {
                "last loss": "loss after", "accuracy": "validation accuracy",
                "highest / first": "highest loss / first", "not finite at": "not finite at step",
                "dead": "dead units", "first ratio 1": "‖ΔW‖/‖W‖, layer 1, first step",
                "ratio 1": "median of all",
            },
        ),
    }  # fmt: skip


def _penalty():
    """Mean and standard deviation of 1/2 · reg · ΣW², W from N(0, 1e-4²)."""
    mean = REGULARISATION / 2 * WEIGHTS * 1e-8
    return mean, mean * math.sqrt(2 / WEIGHTS)


def draw(frames, figure):
    figure.set_size_inches(10, 7)
    panels = figure.subplots(2, 2)
    (begin, twenty), (curves, ratio) = panels
    rows = frames["spread"]
    sigmas = np.linspace(0.05, 10, 40)
    begin.plot(
        sigmas, [chance_loss(float(v)) for v in sigmas], color=figures.THEORY, label="expected"
    )
    begin.plot(rows["sigma"], rows["loss"], ".", ms=4, alpha=0.5, label="20 nets each")
    begin.axhline(CHANCE, color=figures.QUIET, ls=":", label="ln 10")
    begin.set(
        title="loss at the start", xlabel="spread σ of the logits", xscale="log", yscale="log",
        yticks=[2.3, 3, 5, 10, 20], yticklabels=["2.3", "3", "5", "10", "20"],
    )  # fmt: skip
    begin.minorticks_off()
    begin.legend()
    for case in OVERFIT:
        figures.band(twenty, "epoch", "loss", where(frames["overfit"], case=case), label=case)
    twenty.plot(
        list(SLIDE_OVERFIT), list(SLIDE_OVERFIT.values()), "k^", ms=5, label="the slide (CIFAR-10)"
    )
    twenty.set(title="20 examples", xlabel="epoch", xscale="log", yscale="log", ylim=(1e-3, 5))
    twenty.legend(loc="lower left")
    colors = (figures.QUIET, figures.MEASURED, figures.GOOD, figures.THEORY, figures.BAD)
    for (rate, name), color in zip(NAMED.items(), colors, strict=True):
        runs = where(frames["curves"], optimizer="SGD", rate=rate)
        for place, (_, run_) in enumerate(runs.groupby("seed")):
            first = where(frames["runs"], optimizer="SGD", rate=rate)["first loss"].iloc[place]
            shown = [first, *run_["loss"].replace(np.inf, np.nan)]
            label = f"{name}, {rate:g}" if place == 0 else None
            curves.plot([0, *run_["step"]], shown, color=color, lw=1, label=label)
    curves.set(
        title="SGD at five rates", xlabel="step", ylabel="loss", yscale="log", ylim=(1e-2, 1e3)
    )
    curves.legend(ncols=2)
    for kind, marker in (("SGD", "o"), ("Adam", "s")):
        runs = frames["runs"][frames["runs"]["optimizer"] == kind]
        runs = runs[runs["ratio 1"] > 1e-6]
        mean = runs.groupby("rate")[["ratio 1", "last loss"]].mean()
        [line] = ratio.plot(mean["ratio 1"], mean["last loss"], marker=marker, ms=4, label=kind)
        for point in mean.reset_index().to_dict("records"):
            ratio.annotate(
                f"{point['rate']:g}", (point["ratio 1"], point["last loss"]), fontsize=7,
                xytext=(4, 4), textcoords="offset points", color=line.get_color(),
            )  # fmt: skip
    ratio.axvline(1e-3, color=figures.QUIET, ls=":", label="1e-3")
    ratio.set(
        title="typical ‖ΔW‖/‖W‖ (rates at the points)", xlabel="median over 400 steps",
        ylabel="loss after", xscale="log", yscale="log",
    )  # fmt: skip
    ratio.legend()


# -- judging -------------------------------------------------------------------------------------


def _all(frames, optimizer, rate, column):
    return where(frames["runs"], optimizer=optimizer, rate=rate)[column]


def the_loss_starts_at_ln_10_and_rises_by_half_of_reg_times_w_squared(frames) -> Judged:
    rows = frames["start"]
    mean, sd = _penalty()
    slide = SLIDE_REGULARISED - SLIDE_LOSS
    return Judged(
        (rows["loss - ln 10"].abs() < 4 * rows["sd"]).all()
        and ((rows["penalty"] - mean).abs() < 4 * sd).all()
        and abs(slide - mean) < 3 * sd,
        f"off ln 10 by {number(rows['loss - ln 10'].abs().max())} at most; raised by "
        f"{spread(rows['penalty'])}, by {slide:.4f} on the slides",
        f"4 sd of the draw of labels, {number(4 * rows['sd'].max())}; {mean:.4f} ± {sd:.4f}",
    )


def logits_that_spread_start_above_ln_10_by_a_known_amount(frames) -> Judged:
    worst = 0.0
    for _, group in frames["spread"].groupby("sigma"):
        error = group["loss"].std() / math.sqrt(len(group))
        worst = max(worst, abs(group["loss"].mean() - group["theory"].mean()) / error)
    means = frames["spread"].groupby("sigma")["loss"].mean()
    he = _all(frames, "SGD", 1e-4, "first loss")
    return Judged(
        worst < 4.5 and he.min() > CHANCE + 0.1,
        ", ".join(f"σ = {number(s)}: {means[s]:.2f}" for s in (0.1, 1.0, 10.0))
        + f"; at most {worst:.1f} standard errors off; He {spread(he)}",
        ", ".join(number(chance_loss(s)) for s in (0.1, 1.0, 10.0)) + "; under 4.5",
    )


def twenty_examples_are_learnt_by_heart_with_meaningless_labels_too(frames) -> Judged:
    rows = frames["overfit"]
    ended = {c: where(rows, case=c, epoch=EPOCHS[-1]) for c in OVERFIT}
    plateau = where(rows, case="patches, random labels", epoch=5)["loss"]
    whole = all((ended[c]["accuracy"] == 1).all() for c in OVERFIT if c.startswith("digits"))
    return Judged(
        whole and (plateau > 0.98 * CHANCE).all()
        and all((ended[c]["loss"] < 0.1).all() for c in OVERFIT if c.startswith("digits")),
        "; ".join(
            f"{c}: loss {spread(e['loss'])}, accuracy {e['accuracy'].mean():.2f}"
            for c, e in ended.items()
        ) + f"; the slide's net at epoch 5: {spread(plateau)}",
        "accuracy 1.00 (the slide: 0.0026 after 200 epochs)",
    )  # fmt: skip


def accuracy_triples_while_the_loss_falls_by_one_percent(frames) -> Judged:
    rows = where(frames["flat"], rate=1e-2)
    drop = 1 - rows["loss after"] / rows["loss before"]
    before, after = rows["accuracy before"], rows["accuracy after"]
    return Judged(
        drop.max() < 0.02 and after.mean() > 2 * before.mean(),
        f"loss down by {drop.mean():.2%} ({drop.min():.2%} to {drop.max():.2%}), accuracy "
        f"{before.mean():.1%} to {after.mean():.1%}",
        "twofold or more, at under 2%: only the order of the logits counts for accuracy, not "
        "their size",
    )


def a_rate_somewhat_too_high_ends_in_a_dead_net_and_not_in_nan(frames) -> Judged:
    broken = _all(frames, "SGD", 1e6, "not finite at")
    dead = pd.concat([_all(frames, "SGD", r, "dead") for r in (3.0, 10.0)])
    loss = pd.concat([_all(frames, "SGD", r, "last loss") for r in (3.0, 10.0)])
    return Judged(
        broken.notna().all() and (dead > 0.9).all()
        and ((loss - CHANCE).abs() < 0.25).all(),
        f"1e6: not finite after {spread(broken)} steps; 3 and 10: {dead.mean():.0%} of units dead, "
        f"loss {spread(loss)}",
        f"NaN at once; ln 10 = {CHANCE:.3f} for a net that no longer sees its input",
    )  # fmt: skip


def three_times_the_first_loss_tells_the_lost_runs_at_once(frames) -> Judged:
    runs = frames["runs"]
    lost = runs["last loss"].isna() | (runs["dead"] > 0.9)
    over = runs["over 3 x at"].notna()
    rest = runs[~lost]
    return Judged(
        (lost == over).all() and runs["over 3 x at"].max() <= 2 and lost.any(),
        f"{int((lost & over).sum())} of {int(lost.sum())} lost runs, by step "
        f"{int(runs['over 3 x at'].max())}; {int((over & ~lost).sum())} of {len(rest)} others, of "
        f"which the highest reached {number(rest['highest / first'].max())} times",
        "all, and none",
    )


def a_quadratic_diverges_beyond_two_over_lambda_and_not_before(frames) -> Judged:
    rows = frames["quadratic"]
    above = rows[rows["rate"] > 1]
    below = rows[rows["rate"] < 1]
    off = (above["growth"] / above["theory"] - 1).abs().max()
    return Judged(
        (below["growth"] < 1).all() and off < 1e-3,
        f"excess loss × {number(where(rows, rate=0.99)['last / first'].mean())} after 400 steps at "
        f"0.99 · 2/λ; × {number(where(rows, rate=1.01)['growth'].mean())} a step at 1.01, "
        f"× {number(where(rows, rate=1.1)['growth'].mean())} at 1.1",
        "(1 - rate · λ)² a step: 1.04 and 1.44",
    )


def the_best_runs_update_by_more_than_a_thousandth(frames) -> Judged:
    sgd = [pd.concat([_all(frames, "SGD", r, c) for r in (0.1, 0.3, 1.0)]) for c in RATIOS]
    first, median, accuracies = sgd
    slow, slow_ratio = (_all(frames, "SGD", 1e-2, c) for c in ("accuracy", "ratio 1"))
    adam = frames["runs"][frames["runs"]["optimizer"] == "Adam"]
    off = max(
        float((adam[f"first ratio {n}"] / adam[f"Adam's first {n}"] - 1).abs().max())
        for n in (1, 2)
    )
    return Judged(
        off < 0.01 and median.min() > 2e-3 and slow.max() < accuracies.min()
        and first.min() > 0.01 and 3e-4 < slow_ratio.mean() < 3e-3,
        f"SGD at 0.1 to 1: first {spread(first)}, median {spread(median)}, accuracy "
        f"{spread(accuracies)}; at 0.01: median {spread(slow_ratio)}, accuracy {spread(slow)}; "
        f"Adam at 1e-3: first {spread(_all(frames, 'Adam', 1e-3, 'first ratio 1'))}, within "
        f"{number(off)} of rate / rms(W)",
        "around 0.001 if the rule were right; Adam: exact but for ε and weights without a gradient",
    )  # fmt: skip


def nndiag_sees_what_a_rate_did_to_the_net_and_not_a_rate_too_low(frames) -> Judged:
    expected = {
        "trained at 3 (too high)": "dead-relu", "trained at 1e+06 (far too high)": "non-finite",
        "digits, 1e-4, at the start": "init-scale",
    }  # fmt: skip
    return Judged(
        sick(frames) == expected,
        leads(frames),
        "dead-relu, non-finite, init-scale; none for the rest, also not for the slides' own 1e-4 "
        "net, whose inputs of rms 63 make up for its weights",
    )
