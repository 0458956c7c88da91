"""Page 10: robustness."""

import math

import numpy as np
import pandas as pd
import torch
from gallery.figures import BAD, GOOD, QUIET, THEORY, band
from gallery.lab import accuracy, he, mlp, sgd, split, table, train
from gallery.page import Judged, number, spread, summary, where
from torch import nn
from torch.nn import functional as F

SEEDS, STEPS, HIDDEN, EPS = 8, 300, 100, 0.1
SIZES = (0.05, 0.1, 0.15, 0.2, 0.25)
LEVELS = {
    "clean": (0.0,),
    "noise": (0.1, 0.2, 0.3, 0.5),
    "outliers": (0.05, 0.1, 0.2),
    "missing, 0": (0.1, 0.2, 0.4),
    "missing, mean": (0.1, 0.2, 0.4),
    "shift": (1.0,),
    "random signs": SIZES,
    "FGSM": SIZES,
    "PGD": SIZES,
}
SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1))
KINDS = (
    "plain", "noise-trained", "shift-trained", "weight decay", "dropout", "ensemble",
    "FGSM-trained", "PGD-trained", "softmax",
)  # fmt: skip
T99 = 3.499
"""Student's t, 7 degrees of freedom, 0.995: half a 99 % interval is T99 standard errors."""


"""Of logits and labels, summed over the images."""


def margin_loss(logits, y):
    """The best wrong logit less the right one; unlike the loss it never flattens."""
    right = logits.gather(1, y[:, None])[:, 0]
    return (logits.scatter(1, y[:, None], -math.inf).amax(1) - right).sum()


def cross_entropy(logits, y):
    return F.cross_entropy(logits, y, reduction="sum")


def gradient(model, x, y, loss=cross_entropy):
    """Of the loss with respect to the images."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(model(x), y), x)[0]


def fgsm(model, x, y, eps, loss=cross_entropy, low=0.0, high=1.0):
    """One step of ε along the sign of the gradient (Goodfellow et al. 2014)."""
    return (x + eps * gradient(model, x, y, loss).sign()).clamp(low, high)


def pgd(model, x, y, eps, steps=20, loss=cross_entropy, low=0.0, high=1.0):
    """Steps of 2.5 ε / steps, each cut back to within ε of the image (Madry et al. 2017)."""
    moved = x
    for _ in range(steps):
        moved = moved + 2.5 * eps / steps * gradient(model, moved, y, loss).sign()
        moved = moved.clamp(x - eps, x + eps).clamp(low, high)
    return moved


def shifted(x, right, down):
    """Images moved by a pixel; what comes in is background."""
    padded = F.pad(x.view(-1, 8, 8), (1, 1, 1, 1))
    return padded[:, 1 - down : 9 - down, 1 - right : 9 - right].reshape(-1, 64)


def perturbed(name, level, model, x, y, mean, seed):
    """The test images under a perturbation; several versions for the four directions of a shift."""
    if name == "shift":
        return [shifted(x, *by) for by in SHIFTS]
    if name in ("FGSM", "PGD"):
        return [(fgsm if name == "FGSM" else pgd)(model, x, y, level)]
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.rand(x.shape, generator=draws) < level
    other = torch.randn(x.shape, generator=draws)
    made = {
        "clean": x,
        "noise": (x + level * other).clamp(0, 1),
        "random signs": (x + level * other.sign()).clamp(0, 1),
        "outliers": torch.where(chosen, (other > 0).float(), x),
        "missing, 0": torch.where(chosen, torch.zeros(()), x),
        "missing, mean": torch.where(chosen, mean, x),
    }
    return [made[name]]


# -- networks ------------------------------------------------------------------------------------


class Ensemble(nn.Module):
    """The logarithm of the members' mean probability."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        logs = torch.stack([m(x).log_softmax(dim=1) for m in self.members])
        return logs.logsumexp(dim=0) - math.log(len(self.members))


def images():
    """Digits to train and to test on, pixels from 0 to 1."""
    x, y = table("digits")
    return split(x / 16, y, 1297)


def trained(kind, seed):
    """A network of this kind, in eval mode."""
    x, y, _, _ = images()
    torch.manual_seed(seed)
    widths = [64, 10] if kind == "softmax" else [64, HIDDEN, HIDDEN, 10]
    model = mlp(widths, nn.ReLU, he, dropout=0.5 if kind == "dropout" else 0.0)
    draws = torch.Generator().manual_seed(seed)

    def augmented(step, batch, labels):
        if kind == "noise-trained":
            return (batch + 0.2 * torch.randn(batch.shape, generator=draws)).clamp(0, 1)
        if kind == "shift-trained":
            ways = torch.stack([shifted(batch, *by) for by in ((0, 0), *SHIFTS)])
            way = torch.randint(len(ways), (len(batch),), generator=draws)
            return ways[way, torch.arange(len(batch))]
        if kind == "FGSM-trained":
            return fgsm(model, batch, labels, EPS)
        if kind == "PGD-trained":
            return pgd(model, batch, labels, EPS, steps=3)
        return batch

    decay = 0.005 if kind == "weight decay" else 0.0
    optimizer = sgd(model, 0.05, momentum=0.9, weight_decay=decay)
    train(model, x, y, optimizer, STEPS, draws, before=augmented)
    return model.eval()


def ensemble(first, seed):
    """A plain network and four more of its kind, by other seeds."""
    return Ensemble([first, *(trained("plain", seed + 100 * n) for n in range(1, 5))]).eval()


def scores(kind, seed, model):
    """A row a perturbation and level: the accuracy on the test images."""
    x_train, _, x, y = images()
    mean, rows = x_train.mean(dim=0), []
    for name, levels in LEVELS.items():
        for level in levels:
            versions = perturbed(name, level, model, x, y, mean, seed)
            right = sum(accuracy(model, version, y) for version in versions) / len(versions)
            rows.append((kind, seed, name, level, right))
    return pd.DataFrame(rows, columns=["kind", "seed", "perturbation", "level", "accuracy"])


def inside(kind, seed, model):
    """How large the logits are, and how the gradient spreads over the pixels."""
    _, _, x, y = images()
    with torch.no_grad():
        gap = -margin_loss(model(x), y).item() / len(y)
    slope = gradient(model, x, y, margin_loss)
    ratio = slope.norm(1, dim=1) / slope.norm(2, dim=1)
    return {"kind": kind, "seed": seed, "margin": gap, "norm_ratio": ratio.median().item()}


def logistic(out, t):
    """The loss of each example, of a label t = ±1."""
    return F.softplus(-t * out[:, 0])


def linear(seed):
    """Even against odd digits: the model, the test images, their labels ±1."""
    x, y, x_test, y_test = images()
    torch.manual_seed(seed)
    model = nn.Linear(64, 1).double()
    train(model, x.double(), 2 * (y % 2) - 1, sgd(model, 0.5), 500, seed,
          loss=lambda out, t: logistic(out, t).mean())  # fmt: skip
    return model, x_test.double(), 2 * (y_test % 2) - 1


def bound(model, x, t, eps):
    """The largest loss of a linear model within ε of each image."""
    with torch.no_grad():
        return F.softplus(-t * model(x)[:, 0] + eps * model.weight.abs().sum())


def linear_rows(seed):
    """A row a size ε: the losses by closed form and by attack, and what random signs do."""
    model, x, t = linear(seed)
    weight, rows = model.weight.detach()[0], []
    draws = torch.Generator().manual_seed(seed)
    signs = torch.randn(2000, 64, generator=draws).sign().double()
    free = {"loss": lambda out, t: logistic(out, t).sum(), "low": -math.inf, "high": math.inf}
    for eps in SIZES:
        exact = bound(model, x, t, eps)
        moved = [attack(model, x, t, eps, **free) for attack in (fgsm, pgd)]
        with torch.no_grad():
            off = [(logistic(model(z), t) - exact).abs().max().item() for z in moved]
        rows.append({
            "seed": seed, "eps": eps, "loss": bound(model, x, t, 0).mean().item(),
            "bound": exact.mean().item(), "FGSM_off": off[0], "PGD_off": off[1],
            "norm1": weight.norm(1).item(), "norm2": weight.norm(2).item(),
            "random_sd": (eps * signs @ weight).std().item(),
        })  # fmt: skip
    return rows


class Scaled(nn.Module):
    """The same network with its logits times a factor: every image stays in its class."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


def masking(seed, model):
    """What FGSM finds where the logits are multiplied."""
    (_, _, x, y), rows = images(), []
    for factor in (1, 10, 100, 1000):
        scaled = Scaled(model, factor)
        none = (gradient(scaled, x, y) == 0).all(dim=1).double().mean().item()
        by = [accuracy(scaled, fgsm(scaled, x, y, EPS, loss), y)
              for loss in (cross_entropy, margin_loss)]  # fmt: skip
        rows.append((seed, factor, none, *by))
    return pd.DataFrame(rows, columns=["seed", "factor", "no_gradient", "by_loss", "by_margin"])


def measure(lab):
    found, networks, masked = [], [], []
    x, y, _, _ = images()
    for seed in lab.track(lab.seeds(SEEDS)):
        plain = trained("plain", seed)
        masked.append(masking(seed, plain))
        known = {"plain": plain, "ensemble": ensemble(plain, seed)}
        for kind in KINDS:
            model = known.get(kind) or trained(kind, seed)
            found.append(scores(kind, seed, model))
            networks.append(inside(kind, seed, model))
            if seed == lab.first and kind not in ("softmax", "ensemble"):
                lab.check(kind, model.train(), x[:256], y[:256])
                model.eval()
    lines = [row for seed in lab.seeds(SEEDS) for row in linear_rows(seed)]
    return {
        "accuracy": pd.concat(found), "networks": pd.DataFrame(networks),
        "masking": pd.concat(masked), "linear": pd.DataFrame(lines),
    }  # fmt: skip


def tables(frames):
    small = {("noise", 0.1), ("outliers", 0.05), ("missing, 0", 0.1), ("missing, mean", 0.1)}
    small |= {("random signs", eps) for eps in (0.05, 0.15, 0.2)}
    mean = frames["accuracy"].pivot_table(
        index=["perturbation", "level"], columns="kind", values="accuracy", sort=False
    )
    changes = pd.DataFrame({
        "against plain, points": [f"{name}, {level:g}" for name, level in SHOWN],
        **{kind: [_points(*gain(frames, kind, *shown)) for shown in SHOWN] for kind in KINDS[1:]},
    })  # fmt: skip
    return {
        f"Accuracy, mean of {SEEDS} seeds": mean.drop(index=small)[list(KINDS)].reset_index(),
        "Change against the plain network, with its 99 % interval": changes,
        "Logits and gradients": summary(
            frames["networks"], {"kind": "network"},
            {
                "margin": "mean margin of the right logit",
                "norm_ratio": "‖gradient‖₁ / ‖gradient‖₂, median image",
            },
        ),
        "Plain network, logits multiplied: accuracy under FGSM of 0.1": summary(
            frames["masking"], ["factor"],
            {
                "no_gradient": "images without any gradient",
                "by_loss": "along the loss's gradient", "by_margin": "along the margin's gradient",
            },
        ),
    }  # fmt: skip


SHOWN = (
    ("clean", 0.0), ("noise", 0.3), ("outliers", 0.2), ("missing, 0", 0.4), ("missing, mean", 0.4),
    ("shift", 1.0), ("random signs", 0.1), ("FGSM", 0.1), ("PGD", 0.1), ("PGD", 0.2),
)  # fmt: skip


def gain(frames, kind, name, level):
    """What a kind gains on the plain network of its seed, and half the 99 % interval of the mean.

    In points of accuracy.
    """
    rows = where(frames["accuracy"], perturbation=name, level=level)
    by_kind = rows.pivot_table(index="seed", columns="kind", values="accuracy")
    change = 100 * (by_kind[kind] - by_kind["plain"])
    return float(change.mean()), float(T99 * change.std() / math.sqrt(len(change)))


def _points(mean, half):
    return f"{mean:+.1f} ± {half:.1f}"


def draw(frames, figure):
    figure.set_size_inches(11, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.75])
    rows = frames["accuracy"]
    for name, kind, color, line in (
        ("random signs", "plain", QUIET, "-"), ("FGSM", "plain", THEORY, "-"),
        ("PGD", "plain", BAD, "-"), ("PGD", "PGD-trained", GOOD, "--"),
    ):  # fmt: skip
        of_kind = where(rows, kind=kind)
        shown = of_kind[of_kind.perturbation.isin(("clean", name))]
        label = name if kind == "plain" else "PGD, PGD-trained"
        band(left, "level", "accuracy", shown, color=color, ls=line, marker="o", ms=3, label=label)
    left.set(title="accuracy", xlabel="ε, share of the pixel range", ylim=(0, 1.02))
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    found = np.array([[gain(frames, k, *shown)[0] for shown in SHOWN] for k in KINDS[1:]])
    right.imshow(found, cmap="RdBu", vmin=-50, vmax=50, aspect="auto")
    for (i, j), value in np.ndenumerate(found):
        color = "white" if abs(value) > 32 else "#1f2328"
        text = f"{value:+.0f}" if abs(value) >= 0.5 else "0"
        right.text(j, i, text, ha="center", va="center", color=color)
    right.grid(False)
    right.set_xticks(
        range(len(SHOWN)),
        [f"{name.replace(', ', ' → ')}\n{level:g}" if level else name for name, level in SHOWN],
        rotation=40, ha="right", rotation_mode="anchor",
    )  # fmt: skip
    right.set_yticks(range(len(KINDS) - 1), KINDS[1:])
    right.set_title("points gained on the plain network")


# -- judging -------------------------------------------------------------------------------------


def _accuracy(frames, name, level):
    """A row a seed, a column a kind."""
    rows = where(frames["accuracy"], perturbation=name, level=level)
    return rows.pivot_table(index="seed", columns="kind", values="accuracy")


def linear_margins_fall_by_the_one_norm_under_attack_and_the_two_norm_by_chance(frames) -> Judged:
    rows = frames["linear"]
    off = float(rows[["FGSM_off", "PGD_off"]].max().max())
    chance = rows.random_sd / (rows.eps * rows.norm2)
    ratio = rows.norm1 / rows.norm2
    # The standard deviation of 2000 draws is off by 1/√4000 of itself: 5 of those.
    holds = off < 1e-12 and ((chance - 1).abs() < 5 / math.sqrt(4000)).all()
    return Judged(
        holds and (ratio > 1).all() and (ratio <= 8).all(),
        f"off the closed form by at most {number(off)}; standard deviation over ε·‖w‖₂ "
        f"{spread(chance)}; ‖w‖₁/‖w‖₂ {spread(ratio)}",
        "0; 1; at most √64 = 8, and 6.38 for normal weights",
    )


def an_adversarial_step_hurts_far_more_than_noise_of_its_size(frames) -> Judged:
    chance, step = _accuracy(frames, "random signs", 0.25), _accuracy(frames, "FGSM", 0.1)
    clean, same = _accuracy(frames, "clean", 0.0), _accuracy(frames, "random signs", 0.1)
    big = 1 - _accuracy(frames, "FGSM", 0.25)
    return Judged(
        (chance > step).all(axis=None) and (big[["plain", "softmax"]] > 0.9).all(axis=None),
        f"plain: {clean.plain.mean():.1%} clean, {same.plain.mean():.1%} with random signs of 0.1, "
        f"{chance.plain.mean():.1%} with 0.25, {step.plain.mean():.1%} under FGSM of 0.1; FGSM of "
        f"0.25: {big.plain.mean():.1%} error, softmax {big.softmax.mean():.1%}",
        "a linear margin moves by chance ‖w‖₂/‖w‖₁ ≈ 1/6 as far; over 90 % error at 0.25",
    )


def pgd_is_on_average_at_least_as_strong_as_fgsm(frames) -> Judged:
    rows = frames["accuracy"]
    wide = rows[rows.perturbation.isin(["FGSM", "PGD"])].pivot_table(
        index=["kind", "level", "seed"], columns="perturbation", values="accuracy"
    )
    more = 100 * (wide["PGD"] - wide["FGSM"])
    mean = more.groupby(level=["kind", "level"]).mean()
    at = mean.xs(0.1, level="level")
    return Judged(
        (mean < 1e-9).all(),
        f"at 0.1 {at['plain']:+.1f} points against FGSM (plain), {at['dropout']:+.1f} (dropout), "
        f"{at['softmax']:+.1f} (softmax); above FGSM in {(more > 1e-9).sum()} of {len(more)} "
        f"single networks, by {more.max():.1f}",
        "0 or below; 0 for two classes and a linear model",
    )


def adversarial_training_gains_ten_times_what_it_costs(frames) -> Judged:
    kinds = ("PGD-trained", "FGSM-trained")
    under = {k: gain(frames, k, "PGD", EPS) for k in kinds}
    clean = {k: gain(frames, k, "clean", 0.0) for k in kinds}
    return Judged(
        all(under[k][0] - under[k][1] > max(0, -10 * clean[k][0]) for k in kinds),
        "; ".join(
            f"{k}: {_points(*under[k])} points under PGD of 0.1, {_points(*clean[k])} clean"
            for k in kinds
        ),
        "0 under PGD, if it taught nothing; at least ten for one",
    )


def training_on_fgsm_helps_against_what_it_never_showed(frames) -> Judged:
    unseen = {"PGD": 0.1, "noise": 0.3, "shift": 1.0}
    found = {name: gain(frames, "FGSM-trained", name, level) for name, level in unseen.items()}
    own = gain(frames, "PGD-trained", "PGD", EPS)[0]
    twice = _accuracy(frames, "PGD", 2 * EPS)["FGSM-trained"]
    return Judged(
        all(mean - half > 0 for mean, half in found.values()) and found["PGD"][0] > own / 2,
        ", ".join(f"{name} {_points(*v)}" for name, v in found.items())
        + f" points; {twice.mean():.1%} under PGD of 0.2",
        f"0 each, if the notes were right; PGD's own images gain {own:.1f}",
    )


def shifted_images_help_against_shifts_and_nothing_else(frames) -> Judged:
    own = gain(frames, "shift-trained", "shift", 1.0)
    lost = {n: gain(frames, "shift-trained", n, v) for n, v in SHOWN if n not in ("clean", "shift")}
    other = gain(frames, "noise-trained", "shift", 1.0)
    return Judged(
        own[0] - own[1] > 0
        and all(lost[name][0] + lost[name][1] < 0 for name in ("noise", "outliers", "FGSM"))
        and other[0] < own[0] / 2,
        f"shift {_points(*own)}; noise {_points(*lost['noise'])}, outliers "
        f"{_points(*lost['outliers'])}, FGSM of 0.1 "
        f"{_points(*gain(frames, 'shift-trained', 'FGSM', 0.1))}; noisy images on shifts "
        f"{_points(*other)}",
        "above 0; below 0; far less than shifted images",
    )


def weight_decay_dropout_and_ensembles_buy_less_than_half(frames) -> Judged:
    own = gain(frames, "PGD-trained", "PGD", EPS)[0]
    found = {k: gain(frames, k, "PGD", EPS) for k in ("weight decay", "dropout", "ensemble")}
    left = _accuracy(frames, "PGD", 2 * EPS)
    chance = 0.1
    return Judged(
        all(mean + half > 0 and mean < own / 2 for mean, half in found.values())
        and all(left[kind].mean() < chance for kind in found)
        and left["PGD-trained"].mean() > chance,
        "; ".join(f"{k} {_points(*v)}, {left[k].mean():.1%} left at 0.2" for k, v in found.items()),
        f"PGD-trained {own:+.1f}, {left['PGD-trained'].mean():.1%}; guessing 10 %",
    )


def large_logits_blind_the_attack_and_protect_nothing(frames) -> Judged:
    rows = frames["masking"]
    one, large = (where(rows, factor=factor).set_index("seed") for factor in (1, 1000))
    same = (large.by_margin - one.by_margin).abs().max()
    return Judged(
        (large.no_gradient > 0.9).all()
        and (large.by_loss > one.by_loss + 0.2).all()
        and same < 0.005,
        f"{large.no_gradient.mean():.1%} without gradient; accuracy by the loss "
        f"{one.by_loss.mean():.1%} → {large.by_loss.mean():.1%}, by the margin "
        f"{one.by_margin.mean():.1%} → {large.by_margin.mean():.1%}",
        "the same before and after, if logits protected nothing",
    )


def nndiag_calls_fragile_and_robust_networks_healthy_alike(frames) -> Judged:
    verdicts = frames["verdicts"].set_index("network")
    left = _accuracy(frames, "PGD", EPS).mean()[list(verdicts.index)]
    return Judged(
        set(verdicts.verdict) == {"healthy"} and left.max() - left.min() > 0.3,
        f"{(verdicts.verdict == 'healthy').sum()} of {len(verdicts)} healthy; accuracy under PGD "
        f"from {left.min():.1%} ({left.idxmin()}) to {left.max():.1%} ({left.idxmax()})",
        "no rule for robustness: healthy",
    )
