"""Labels of which all, or all but a few, are of one class.

What it does
------------

Counts the classes among the targets of a classification loss: indices, one-hot rows, zeros and
ones, masks. It is a warning if all samples have the same class. It is also a warning if less than 1
% of the labels have another class, and a trained network has learned only how frequent the classes
are. For a new network that is a note.

Why it matters
--------------

If all labels are equal, the network learns to give that answer always. Labels that were divided,
rounded or read from a wrong column often become zeros. A loader that does not shuffle may give one
class at a time. If 1 % of the labels are rare, the answer "background" is right in 99 % of cases,
and a network may learn nothing else.

When it is no fault
-------------------

Small batches can have one class by chance, and are not judged. Nor are targets that the loss makes
itself, as in a GAN. A rare class is not reported if the loss weights the classes.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y = torch.randn(128, 8), torch.arange(128) % 10
    batch, loss_fn = (x, y // 255), nn.CrossEntropyLoss()

Well::

    batch = x, y

References: Buda et al. 2018, "A systematic study of the class imbalance problem in convolutional
neural networks"; Lin et al. 2017, "Focal loss for dense object detection", section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag.experiment import OUTPUT, TARGET, LossCall, Values
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Snapshot
from nndiag.trained import training

__all__ = ["BALANCE", "BINARY", "CLASSES", "RULE", "check"]

CLASSES = ("cross_entropy", "nll_loss")
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")

RULE = Rule(
    code="ND607",
    name="label-imbalance",
    severity="warning",
    about="input",
    needs=("outputs", "loss"),
    thresholds={
        "samples": Threshold(
            32, "derived: 0.9^32 = 3 %: the chance that 32 samples miss a class that has a tenth "
            "of them", 2,
        ),
        "binary_samples": Threshold(
            256, "derived: 0.99^256 = 8 %: the chance that they miss a class of one in a hundred", 2
        ),
        "rare": Threshold(
            0.01, "derived: always giving the frequent class is right in 99 % of cases", 0, 1,
            "share",
        ),
        "near": Threshold(
            0.1, "derived: the loss is within a tenth of the entropy of the classes' shares", 0, 1,
            "share",
        ),
    },
    fixes=(
        advice(
            "Look at the labels as the loss gets them, and shuffle the data.",
            "Labels that are divided, rounded or read from a wrong column often become zeros.",
            "print(torch.unique(y, return_counts=True))\n"
            "loader = DataLoader(dataset, batch_size=64, shuffle=True)",
        ),
    ),
)  # fmt: skip

BALANCE = (
    advice(
        "Weight the rare class, or draw it more often.",
        "Each class then counts the same, however rare it is.",
        "weight = counts.sum() / (len(counts) * counts)\nloss_fn = nn.CrossEntropyLoss(weight)",
    ),
    advice(
        "Start the output's bias at the log of the classes' shares.",
        "The first steps then need not learn these shares (Lin et al. 2017, section 3.3).",
        "fixes.class_prior_bias_(model.head, y)",
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    calls = [call for call in snapshot.experiment.calls if _is_classification(call)]
    if len(calls) != 1:  # none, or several that compare with different targets, as in a GAN
        return
    [call] = calls
    classes = _shares(call)
    if classes is None:
        return
    shares, count = classes
    several = _units(call)
    present = {k: share for k, share in shares.items() if share > 0}
    name = next(iter(snapshot.experiment.targets), "(loss)")
    if len(present) == 1 and several > 1:
        yield from _one_class(snapshot, name, call, next(iter(present)), several, thresholds)
    elif len(present) > 1 and 1 - max(present.values()) < thresholds.rare:
        yield from _rare(snapshot, name, call, present, count, thresholds)


def _is_classification(call: LossCall) -> bool:
    if call.op not in CLASSES + BINARY or len(call.operands) < 2:
        return False
    output, target = call.operands[:2]
    return (
        OUTPUT in output.sources
        and TARGET in target.sources
        and OUTPUT not in target.sources
        and target.values is not None
        and target.values.count > 0
    )


def _units(call: LossCall) -> int:
    """How many classes the loss knows."""
    shape = call.operands[0].shape
    if call.op in BINARY:
        return 2
    return shape[1] if len(shape) > 1 else shape[0] if shape else 1


def _shares(call: LossCall) -> tuple[dict[int, float], int] | None:
    """The share of each class among the labels, and how many labels there are."""
    output, target = call.operands[:2]
    values: Values | None = target.values
    assert values is not None
    if call.op in BINARY:
        columns = math.prod(target.shape[1:]) if len(target.shape) == 2 else 1
        if columns > 1 or not values.whole or values.min < 0 or values.max > 1:
            return None  # several labels a sample, or probabilities
        return {0: 1 - values.mean, 1: values.mean}, values.count
    if target.shape == output.shape and len(output.shape) > 1:
        if not values.summing > 0.999 or not values.whole:
            return None
        return dict(enumerate(values.column_means)), values.count // output.shape[1]
    ignored = int(call.options.get("ignore_index", -100))
    counts = {k: n for k, n in values.counts.items() if k != ignored}
    total = sum(counts.values())
    return ({k: n / total for k, n in counts.items()}, total) if total else None


def _one_class(
    snapshot: Snapshot,
    name: str,
    call: LossCall,
    which: int,
    several: int,
    thresholds: Thresholds,
) -> Iterator[Finding | Unjudged]:
    needed = thresholds.samples if several > 2 else thresholds.binary_samples
    if snapshot.first_samples < thresholds.samples:
        yield RULE.unjudged(
            name,
            f"{snapshot.first_samples} samples of one class may be chance; give {needed:.0f} or "
            "more",
        )
        return
    # All ones are what a generator is trained on, and what a small batch may have by chance.
    meant = call.op in BINARY and which == 1
    sure = snapshot.first_samples >= needed and not meant
    one = f"all {snapshot.first_samples:,} samples have class {which}"
    yield RULE.finding(
        name,
        f"The loss ({call.name}) tells {several} classes apart, but {one}.",
        summary=f"The network can learn nothing but one answer: {one} of {several}."
        if sure
        else f"In this batch {one} of {several}.",
        severity="warning" if sure else "note",
        against=("samples" if several > 2 else "binary_samples", thresholds),
        location=call.location,
        evidence={
            "samples" if several > 2 else "binary_samples": snapshot.first_samples,
            "class": which, "classes": several,
        },
    )  # fmt: skip


def _rare(
    snapshot: Snapshot,
    name: str,
    call: LossCall,
    shares: dict[int, float],
    count: int,
    thresholds: Thresholds,
) -> Iterator[Finding]:
    rare = 1 - max(shares.values())
    entropy = -sum(share * math.log(share) for share in shares.values())
    weighted = "weight" in call.options or "pos_weight" in call.options
    if weighted or call.options.get("reduction", 1.0) != 1.0 or not math.isfinite(call.value):
        return
    stuck = abs(call.value / entropy - 1) < thresholds.near and bool(training(snapshot))
    what = f"{number(rare, 'share')} of {count:,} labels are not of the most frequent class"
    yield RULE.finding(
        name,
        f"{what}. Always giving the classes' shares has a loss of {entropy:.3g}; this network has "
        f"{call.value:.3g}.",
        summary=f"The network has learned nothing but how frequent the classes are: {what}."
        if stuck
        else f"The classes are very unequal: {what}.",
        severity="warning" if stuck else "note",
        against=("rare", thresholds),
        location=call.location,
        fixes=BALANCE,
        evidence={"rare": rare, "entropy": entropy, "loss": call.value},
    )
