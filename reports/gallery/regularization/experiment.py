"""Page 11: regularisation and the search for hyperparameters."""

import itertools
import math

import numpy as np
import pandas as pd
import torch
from gallery.figures import BAD, GOOD, QUIET, THEORY
from gallery.lab import accuracy, he, mlp, sgd, table, train
from gallery.page import Judged, number, spread, summary, where
from torch import nn
from torch.nn import functional as F

SEEDS, STEPS, IMAGES, HIDDEN = 8, 150, 256, 100
T99 = 3.499
"""Student's t, 7 degrees of freedom, 0.995: half a 99 % interval is T99 standard errors."""

KINDS = {
    "plain": (0, 0.0),
    "dropout 0.2": (0, 0.2),
    "dropout 0.5": (0, 0.5),
    "BN, 256": (256, 0.0),
    "BN, 32": (32, 0.0),
    "BN, 8": (8, 0.0),
    "BN, 256, dropout 0.5": (256, 0.5),
    "BN, 8, dropout 0.5": (8, 0.5),
}
"""By name: the group over which BatchNorm averages (0: no BatchNorm), and dropout's share."""


class GhostNorm(nn.BatchNorm1d):
    """BatchNorm over groups of a batch; in eval mode as ever, by its running averages."""

    def __init__(self, features, group):
        super().__init__(features)
        self.group = group

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        size = min(self.group, len(x))
        groups = x.view(-1, size, x.shape[1])
        mean = groups.mean(dim=1, keepdim=True)
        variance = (groups - mean).pow(2).mean(dim=1, keepdim=True)
        with torch.no_grad():
            self.running_mean.lerp_(mean.mean(dim=(0, 1)), 0.1)
            self.running_var.lerp_(variance.mean(dim=(0, 1)) * size / (size - 1), 0.1)
        normal = (groups - mean) / (variance + self.eps).sqrt()
        return normal.view_as(x) * self.weight + self.bias


def network(kind):
    group, share = KINDS[kind]
    norm = (lambda features: GhostNorm(features, group)) if group else None
    return mlp([64, HIDDEN, HIDDEN, 10], nn.ReLU, he, norm, share)


def images(seed):
    """256 digits to train on, drawn by the seed, and all others; by the training pixels' scale."""
    x, y = table("digits")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    mine, other = order[:IMAGES], order[IMAGES:]
    mean, std = x[mine].mean(), x[mine].std()
    return (x[mine] - mean) / std, y[mine], (x[other] - mean) / std, y[other]


def trained(kind, seed):
    """The network in eval mode, and its row."""
    x, y, x_test, y_test = images(seed)
    torch.manual_seed(seed)
    model = network(kind)
    optimizer = sgd(model, 0.05, momentum=0.9)
    train(model, x, y, optimizer, STEPS, choose=lambda: torch.randperm(IMAGES))
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(a), b).item() for a, b in ((x, y), (x_test, y_test))]
    return model, {
        "kind": kind, "seed": seed, "train": accuracy(model, x, y),
        "test": accuracy(model, x_test, y_test), "train_loss": losses[0], "test_loss": losses[1],
    }  # fmt: skip


GROUPS = (8, 16, 32, 64, 128, 256)


@torch.no_grad()
def noise(model, seed, draws=50):
    """How far a group's mean lies from the mean of all, in deviations of each unit; its rms."""
    z = model[0](images(seed)[0]).double()
    z = (z - z.mean(dim=0)) / z.std(dim=0, correction=0)
    random, rows = torch.Generator().manual_seed(seed), []
    for group in GROUPS:
        orders = (torch.randperm(IMAGES, generator=random) for _ in range(draws))
        means = (z[order].view(-1, group, HIDDEN).mean(dim=1) for order in orders)
        found = sum(mean.pow(2).mean().item() for mean in means)
        rows.append({"seed": seed, "group": group, "noise": math.sqrt(found / draws)})
    return rows


# -- search --------------------------------------------------------------------------------------

RATES, PENALTIES = np.linspace(-6, 1, 22), np.linspace(-5, 5, 11)
SURFACES, SEARCHES, SIDES = 5, 2000, (2, 3, 4, 5, 7)
TARGET = 0.05
METHODS = ("random", "grid", "grid, ends")


@torch.no_grad()
def surface(seed):
    """Validation accuracy, a row a learning rate, a column a penalty: all of them at once.

    Not by the loop of the other pages: each of the 242 networks has a rate and a penalty of its
    own, so that their steps are written out.
    """
    x, y = table("digits")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = ((x - x.mean()) / x.std())[order], y[order]
    many = len(RATES) * len(PENALTIES)
    rate = torch.tensor(10**RATES).float().repeat_interleave(len(PENALTIES))[:, None, None]
    penalty = torch.tensor(10**PENALTIES).float().repeat(len(RATES))[:, None, None]
    random, weights = torch.Generator().manual_seed(seed), []
    for fan_in, fan_out in ((64, 50), (50, 10)):
        start = torch.randn(fan_in, fan_out, generator=random) * math.sqrt(2 / fan_in)
        weights += [start.repeat(many, 1, 1), torch.zeros(many, 1, fan_out)]
    w, b, v, c = weights

    def out(images):
        hidden = torch.relu(images @ w + b)
        return hidden, torch.baddbmm(c, hidden, v)

    for _ in range(150):
        chosen = torch.randint(1000, (50,), generator=random)
        hidden, logits = out(x[chosen])
        delta = (logits.softmax(dim=2) - F.one_hot(y[chosen], 10)) / 50
        back = (delta @ v.mT) * (hidden > 0)
        v -= rate * (hidden.mT @ delta + penalty * v)
        c -= rate * delta.sum(dim=1, keepdim=True)
        w -= rate * (x[chosen].T @ back + penalty * w)
        b -= rate * back.sum(dim=1, keepdim=True)
    logits = out(x[1000:])[1]
    right = (logits.argmax(dim=2) == y[1000:]).double().mean(dim=1)
    right[~logits.isfinite().all(dim=2).all(dim=1)] = 0.1
    return right.numpy().reshape(len(RATES), len(PENALTIES))


def between(accuracies):
    """The surface between its points, bilinear over the unit square."""
    last = np.array(accuracies.shape) - 1

    def at(points):
        scaled = points * last
        corner = np.minimum(scaled.astype(int), last - 1)
        i, j = corner[..., 0], corner[..., 1]
        u, v = np.moveaxis(scaled - corner, -1, 0)
        low = (1 - v) * accuracies[i, j] + v * accuracies[i, j + 1]
        high = (1 - v) * accuracies[i + 1, j] + v * accuracies[i + 1, j + 1]
        return (1 - u) * low + u * high

    return at


def trials(method, side, count, random):
    """Searches of side² trials in the unit square: (count, side², 2)."""
    if method == "random":
        return random.random((count, side**2, 2))
    steps = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(1, -1, 2)
    if method == "grid, ends":
        return steps / (side - 1)
    return (steps + random.random((count, 1, 2))) / side


def exact(case, method, side):
    """The probability that a search hits the target."""
    if method == "random":
        return 1 - (1 - TARGET) ** (side**2)
    return min(1.0, side * TARGET) if case == "one" else min(1.0, side * math.sqrt(TARGET)) ** 2


def hits(seed):
    """How often a search hits a target at a random place; what leaves the square re-enters."""
    random, rows = np.random.default_rng(seed), []
    for side, method in itertools.product(SIDES, ("random", "grid")):
        points = trials(method, side, 10 * SEARCHES, random)
        away = (points - random.random((10 * SEARCHES, 1, 2))) % 1
        one = (away[..., 0] < TARGET).any(axis=1).mean()
        both = np.any((away < math.sqrt(TARGET)).all(axis=2), axis=1).mean()
        rows += [("one", side, method, one), ("both", side, method, both)]
    return pd.DataFrame(rows, columns=["case", "side", "method", "hit"])


HARMLESS = 0.3
"""The share of the penalties' range from 1e-5 to 0.01."""


def searches(seed, accuracies):
    """What searches find on one surface: the mean of their best, and how many reach the top 5 %."""
    random, found, rows = np.random.default_rng(seed), between(accuracies), []

    def row(method, penalties, count, best, top):
        rows.append((seed, method, penalties, count, best.mean(), (best >= top).mean()))

    for penalties, share in (("all", 1.0), ("up to 0.01", HARMLESS)):
        top = float(np.quantile(found(random.random((50_000, 2)) * [1, share]), 0.95))
        for side, method in itertools.product(SIDES, METHODS):
            points = trials(method, side, SEARCHES, random) * [1, share]
            row(method, penalties, side**2, found(points).max(axis=1), top)
        best = found(random.random((SEARCHES, 60, 2)) * [1, share]).max(axis=1)
        row("random", penalties, 60, best, top)
        if penalties == "all":
            # Below the table's edge falls less than a millionth of these draws.
            drawn = np.maximum(random.random((50_000, 2)) * [10, 1e5], [1e-6, 1e-5])
            row("linear", penalties, 1, found((np.log10(drawn) + np.array([6, 5])) / [7, 10]), top)
            row("log", penalties, 1, found(random.random((50_000, 2))), top)
    return pd.DataFrame(rows, columns=["seed", "method", "penalties", "trials", "best", "top"])


BORDERS = {"1e-6 to 0.01": (-6.0, -2.0), "1e-6 to 0.1": (-6.0, -1.0), "1e-6 to 10": (-6.0, 1.0)}


def borders(seed, accuracies):
    """Random searches of 25 rates in narrower ranges: where in the range the best one lies."""
    random, found, rows = np.random.default_rng(seed), between(accuracies), []
    for name, (low, high) in BORDERS.items():
        points = random.random((SEARCHES, 25, 2))
        inside = points[..., 0].copy()
        points[..., 0] = (low + inside * (high - low) + 6) / 7
        scores = found(points)
        place = np.take_along_axis(inside, scores.argmax(axis=1)[:, None], axis=1)
        rows.append((seed, name, scores.max(axis=1).mean(), (place > 0.9).mean()))
    return pd.DataFrame(rows, columns=["seed", "range", "best", "top_tenth"])


def measure(lab):
    runs, noises, surfaces, found, edges = [], [], [], [], []
    for seed in lab.track(lab.seeds(SEEDS)):
        for kind in KINDS:
            model, row = trained(kind, seed)
            runs.append(row)
            noises += noise(model, seed) if kind == "plain" else []
            if seed == lab.first:
                lab.check(kind, model.train(), *images(seed)[:2])
    for seed in lab.seeds(SURFACES):
        accuracies = surface(seed)
        surfaces += [(seed, RATES[i], PENALTIES[j], a) for (i, j), a in np.ndenumerate(accuracies)]
        found.append(searches(seed, accuracies))
        edges.append(borders(seed, accuracies))
    return {
        "runs": pd.DataFrame(runs), "noise": pd.DataFrame(noises),
        "surface": pd.DataFrame(surfaces, columns=["seed", "log_lr", "log_reg", "accuracy"]),
        "searches": pd.concat(found), "hits": hits(lab.first), "borders": pd.concat(edges),
    }  # fmt: skip


def change(frames, kind, other, column="test", times=100):
    """Mean over seeds of kind less other, and half its 99 % interval; in points of accuracy."""
    by_kind = frames["runs"].pivot_table(index="seed", columns="kind", values=column)
    return interval(times * (by_kind[kind] - by_kind[other]))


def interval(values):
    return float(values.mean()), float(T99 * values.std() / math.sqrt(len(values)))


def _points(mean, half):
    return f"{mean:+.2f} ± {half:.2f}"


def _best(frames, method, penalties):
    """By the number of trials, mean over the surfaces."""
    rows = where(frames["searches"], method=method, penalties=penalties)
    return rows.groupby("trials")["best"].mean()


def tables(frames):
    counts = [n**2 for n in SIDES]
    noise, hit = frames["noise"], frames["hits"]
    gains = pd.DataFrame(
        {"network": kind, "test on plain, points (99 %)": _points(*change(frames, kind, "plain"))}
        for kind in KINDS
        if kind != "plain"
    )
    found = {
        f"{method}, penalties {penalties}": _best(frames, method, penalties)[counts].to_list()
        for penalties in ("all", "up to 0.01")
        for method in METHODS
    }
    return {
        "256 digits to train on": summary(
            frames["runs"], {"kind": "network"}, {"train": "train", "test": "test",
                                                  "test_loss": "test loss"}
        ),
        "Test accuracy, seed by seed": gains,
        "Deviation of a group's mean, in deviations of the unit": summary(
            noise.assign(noise=noise["noise"].round(12), theory=noise["group"].map(expected_noise)),
            ["group"], {"noise": "measured", "theory": "theory"},
        ),
        f"Best accuracy found, mean of {SURFACES} surfaces": pd.DataFrame(
            {"trials": counts, **found}
        ),
        "Searches that hit a target of a twentieth": hit.assign(
            theory=list(map(exact, hit["case"], hit["method"], hit["side"])),
            side=hit["side"] ** 2,
        ).rename(columns={"side": "trials"}),
    }  # fmt: skip


def expected_noise(group):
    """Of the mean of a group drawn from all images without replacement."""
    return math.sqrt((IMAGES - group) / (group * (IMAGES - 1)))


def draw(frames, figure):
    figure.set_size_inches(10, 7)
    grid = figure.subplots(2, 2)
    (tests, map_), (targets, bests) = grid
    for place, (kind, rows) in enumerate(frames["runs"].groupby("kind", sort=False)):
        color = QUIET if kind == "plain" else GOOD if str(kind).startswith("BN") else THEORY
        tests.plot(rows["test"], [place] * len(rows), "o", color=color, ms=4, alpha=0.7)
        tests.plot(rows["test"].mean(), place, "|", color=color, ms=16, mew=3)
    tests.set_yticks(range(len(KINDS)), list(KINDS))
    tests.invert_yaxis()
    tests.set(title="test accuracy")
    mean = frames["surface"].pivot_table(index="log_reg", columns="log_lr", values="accuracy")
    image = map_.imshow(
        mean, origin="lower", aspect="auto", extent=(-6.17, 1.17, -5.5, 5.5), vmin=0, vmax=1,
        cmap="viridis",
    )  # fmt: skip
    map_.grid(False)
    map_.set(title="validation accuracy", xlabel="log₁₀ learning rate", ylabel="log₁₀ penalty")
    figure.colorbar(image, ax=map_)
    counts = [n**2 for n in SIDES]
    fine = np.linspace(2, 7, 60)
    for case, style in (("one", "-"), ("both", "--")):
        for method, color in (("random", GOOD), ("grid", BAD)):
            if case == "one" or method == "grid":
                chances = [exact(case, method, n) for n in fine]
                name = "random, either" if method == "random" else f"grid, {case} matters"
                name = name.replace("both matters", "both matter")
                targets.plot(fine**2, chances, style, color=color, label=name)
            hit = where(frames["hits"], case=case, method=method)
            targets.plot(hit["side"] ** 2, hit["hit"], "o", ms=3, color=color)
    targets.set(title="searches that hit", xlabel="trials", ylim=(0, 1.05))
    targets.legend(loc="lower right", bbox_to_anchor=(1, 0.4))
    for method, color in (("random", GOOD), ("grid", BAD), ("grid, ends", QUIET)):
        for penalties, style in (("up to 0.01", "-"), ("all", "--")):
            best = _best(frames, method, penalties)[counts]
            name = f"{method}, penalties {penalties}"
            bests.plot(counts, best, style, color=color, marker="o", ms=3, label=name)
    bests.set(title="best accuracy found", xlabel="trials", ylim=(0, 1.02))
    bests.legend(loc="lower right")


# -- judging -------------------------------------------------------------------------------------


def batchnorm_noise_falls_with_the_root_of_the_group(frames) -> Judged:
    found = frames["noise"].groupby("group")["noise"].mean()
    theory = pd.Series({g: expected_noise(g) for g in GROUPS})
    # Over 50 orders a seed's own rms varies by 0.4 to 3 %, the mean of eight by a third of it.
    return Judged(
        ((found - theory).abs() <= 0.05 * theory + 1e-9).all(),
        ", ".join(f"{g}: {found[g]:.3f}" for g in GROUPS),
        ", ".join(f"{theory[g]:.3f}" for g in GROUPS),
    )


def batchnorm_gains_by_its_noise_and_gains_without_it(frames) -> Judged:
    noisy, loss = (
        change(frames, "BN, 32", "BN, 256", *c) for c in (("test", 100), ("test_loss", 1))
    )
    still = change(frames, "BN, 256", "plain")
    return Judged(
        noisy[0] - noisy[1] > 0 and loss[0] + loss[1] < 0 and still[0] - still[1] > 0,
        f"groups of 32 on one of 256: {_points(*noisy)} points, test loss {loss[0]:+.3f} ± "
        f"{loss[1]:.3f}; groups of 8: {_points(*change(frames, 'BN, 8', 'BN, 256'))}; one of 256 "
        f"on no BatchNorm: {_points(*still)}",
        "above 0 by noise; 0 without, if noise were all",
    )


def behind_noisy_batchnorm_dropout_gains_less(frames) -> Judged:
    alone, noisy = (
        change(frames, "dropout 0.5", "plain"),
        change(frames, "BN, 8, dropout 0.5", "BN, 8"),
    )
    still = change(frames, "BN, 256, dropout 0.5", "BN, 256")
    test = frames["runs"].pivot_table(index="seed", columns="kind", values="test")
    fewer = (test["dropout 0.5"] - test["plain"]) - (test["BN, 8, dropout 0.5"] - test["BN, 8"])
    less = interval(100 * fewer)
    return Judged(
        less[0] - less[1] > 0,
        f"{_points(*alone)} points without, {_points(*noisy)} with groups of 8, "
        f"{_points(*still)} with one of 256; the first less the second {_points(*less)}",
        "the difference above 0",
    )


def sixty_random_trials_reach_the_best_twentieth(frames) -> Judged:
    rows = where(frames["searches"], method="random")
    theory, n = 1 - 0.95 ** rows["trials"], len(rows) * SEARCHES
    found = where(rows, trials=60)["top"]
    # Three deviations of a share of 2000, and of the quantile: 50,000 draws.
    slope = rows["trials"] * 0.95 ** (rows["trials"] - 1)
    deviation = (theory * (1 - theory) / SEARCHES + (slope**2) * 0.05 * 0.95 / 50_000) ** 0.5
    off = ((rows["top"] - theory) / deviation).abs().max()
    return Judged(
        off < 4.5, f"{spread(found)} of 60; the farthest of {len(rows)} shares from 4 to 60 "
        f"trials is {number(float(off))} sd off, {n:,} searches",
        "1 - 0.95⁶⁰ = 0.954; 90 trials for 99 %",
    )  # fmt: skip


def random_search_wins_where_one_parameter_matters(frames) -> Judged:
    rows = frames["hits"]
    theory = rows.apply(lambda r: exact(r["case"], r["method"], r["side"]), axis=1)
    # Five deviations of a share of 20,000.
    band = 5 * (theory * (1 - theory) / (10 * SEARCHES)) ** 0.5 + 1e-9
    hit = where(rows, case="one", side=5).set_index("method")["hit"]
    return Judged(
        ((rows["hit"] - theory).abs() < band).all() and hit["random"] > hit["grid"],
        f"{hit['random']:.1%} at random, {hit['grid']:.1%} on a grid, of 25 trials each",
        "1 - 0.95²⁵ = 72.3 %; 5/20 = 25 %",
    )


def an_even_grid_wins_where_both_parameters_matter(frames) -> Judged:
    share = {}
    for penalties in ("all", "up to 0.01"):
        rows = where(frames["searches"], penalties=penalties, trials=9)
        share[penalties] = rows.pivot_table(index="seed", columns="method", values="best")
    both, one = share["all"], share["up to 0.01"]
    return Judged(
        ((both["grid"] > both["random"]).all() and (one["random"] > one["grid"]).all())
        and (both["random"] > both["grid, ends"]).all(),
        "; ".join(
            f"penalties {name}: {f['random'].mean():.1%} at random, {f['grid'].mean():.1%} on the "
            f"even grid, {f['grid, ends'].mean():.1%} with the ends"
            for name, f in share.items()
        ),
        "random ahead in all, by the notes",
    )


def linear_space_wastes_nearly_every_draw(frames) -> Judged:
    rows = frames["searches"].query("trials == 1")
    top = rows.pivot_table(index="seed", columns="method", values="top")
    low, high = useful(frames)
    return Judged(
        (top["linear"] < 1e-3).all() and (top["log"] > 0.04).all(),
        f"{top['linear'].mean():.2%} against {top['log'].mean():.1%} in log space; of rates alone "
        f"(useful: {number(low)} to {number(high)}) {(high - low) / 10:.1%} against "
        f"{math.log10(high / low) / 7:.1%}",
        "penalties below 1: 1 draw in 100,000, half of them in log space",
    )


def useful(frames):
    """The learning rates within five points of the best at the smallest penalty."""
    rows = where(frames["surface"], log_reg=-5).groupby("log_lr")["accuracy"].mean()
    kept = rows[rows > rows.max() - 0.05].index
    return 10 ** float(kept.min()), 10 ** float(kept.max())


def a_best_rate_at_the_border_means_look_further(frames) -> Judged:
    rows = frames["borders"]
    found = rows.groupby("range", sort=False)[["best", "top_tenth"]].mean()
    by = rows.pivot_table(index="seed", columns="range", values="top_tenth")
    short, wide = list(BORDERS)[:-1], list(BORDERS)[-1]
    return Judged(
        (by[short] > 0.5).all(axis=None) and (by[wide] < 0.1).all(),
        "; ".join(
            f"{name}: {r.top_tenth:.0%} in the last tenth, {r.best:.1%} found"
            for name, r in found.iterrows()
        ),
        "10 % in any tenth, if the place did not matter",
    )


def nndiag_passes_regularised_and_overfitted_networks_alike(frames) -> Judged:
    verdicts, train = frames["verdicts"], frames["runs"]["train"]
    return Judged(
        (verdicts.verdict == "healthy").all() and (train > 0.99).all(),
        f"{(verdicts.verdict == 'healthy').sum()} of {len(verdicts)} healthy; training accuracy "
        f"at least {train.min():.1%}",
        "healthy: nndiag sees one batch, and has no rule for overfitting",
    )
