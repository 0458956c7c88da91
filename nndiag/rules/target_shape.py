"""Output and target of different shapes, which broadcast against each other in the loss.

What it does
------------

Looks in the loss for an operation whose result is larger than both operands, because their samples
lie along different axes. The usual case is an output of shape (N, 1) and a target of shape (N,):
their difference is (N, N). It covers torch's losses and losses written by hand.

Why it matters
--------------

Each output is compared with the targets of all samples. The best answer is then their mean (for a
squared error), whatever the input: the loss stops at the variance of the targets.

When it is no fault
-------------------

- Losses over pairs of samples, where both sides got an axis of their own on purpose.
- Differences between outputs and outputs, or between targets and targets.
- Several outputs for each sample's target (quantiles, ensembles), if samples lie along one axis.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    x = torch.randn(256, 8)
    batch = x, x[:, 0] + 0.1 * x[:, 1]
    loss_fn = lambda output, target: ((output - target) ** 2).mean()

Well::

    batch = x, x[:, :1] + 0.1 * x[:, 1:2]
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import loss_calls
from nndiag.experiment import OUTPUT, TARGET, LossCall, Operand
from nndiag.fixes.fix import Fix, advice
from nndiag.rule import Finding, Rule, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND704",
    name="target-shape",
    severity="error",
    about="loss",
    needs=("loss",),
    fixes=(advice("Give output and target the same shape before the loss."),),
)

_SAME_SIZE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss",
              "soft_margin_loss")  # fmt: skip


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    told: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for call in snapshot.experiment.calls:
        sides = _sides(call)
        if sides is None or not _crosses(call, *sides) or _is_meant(snapshot, call, *sides):
            continue
        output, target = sides
        if (output.shape, target.shape) in told:
            continue
        told.add((output.shape, target.shape))
        yield _finding(call, output, target)


def _sides(call: LossCall) -> tuple[Operand, Operand] | None:
    """The output and the target of a call that broadcasts."""
    if len(call.operands) < 2:
        return None
    output, target = loss_calls.output_of(call), loss_calls.target_of(call)
    if call.op not in _SAME_SIZE and (output is None or target is None):
        # A weight for each sample: of the target's making, against a loss for each sample.
        both = [x for x in call.operands[:2] if OUTPUT in x.sources]
        other = [x for x in call.operands[:2] if x.sources == (TARGET,)]
        output, target = next(iter(both), None), next(iter(other), None)
    if output is None or target is None or output.shape == target.shape:
        return None
    return output, target


def _crosses(call: LossCall, output: Operand, target: Operand) -> bool:
    """Whether their samples meet along different axes, because one has fewer axes."""
    rank = max(len(output.shape), len(target.shape))
    shape = _broadcast(output.shape, target.shape, rank)
    if shape is None:
        return False
    if len(output.shape) == len(target.shape) and call.op not in _SAME_SIZE:
        return False  # both have an axis of their own
    size = 1
    for length in shape:
        size *= length
    if size <= max(output.size, target.size):
        return False
    axes = [_sample_axis(x, other, rank) for x, other in ((output, target), (target, output))]
    return None not in axes and axes[0] != axes[1]


def _is_meant(snapshot: Snapshot, call: LossCall, output: Operand, target: Operand) -> bool:
    """Whether one side got a new axis by hand, though both had the same shape: pairs."""
    if call.op in _SAME_SIZE:
        return False
    targets = {values.shape for values in snapshot.experiment.targets.values()}
    outputs = set(snapshot.experiment.outputs)
    by_hand = {output.shape, target.shape} - targets - outputs
    return bool(targets & outputs) and bool(by_hand)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    shape = []
    for x, y in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        if x != y and 1 not in (x, y):
            return None
        shape.append(max(x, y))
    return tuple(shape)


def _sample_axis(operand: Operand, other: Operand, rank: int) -> int | None:
    """The axis of the samples, counted in the result.

    Where it is not known, the only one that is as long as the other side's.
    """
    axis = operand.batch
    if axis is None and other.batch is not None and other.shape[other.batch] > 1:
        length = other.shape[other.batch]
        alike = [k for k, size in enumerate(operand.shape) if size == length]
        axis = alike[0] if len(alike) == 1 else None
    return None if axis is None else axis + rank - len(operand.shape)


def _finding(call: LossCall, output: Operand, target: Operand) -> Finding:
    rank = max(len(output.shape), len(target.shape))
    result = _broadcast(output.shape, target.shape, rank) or call.shape
    ours, theirs = _written(output.shape), _written(target.shape)
    both = f"an output of shape {ours} and a target of shape {theirs}"
    return RULE.finding(
        call.name,
        f"The call of {call.op} gets {both}. They broadcast to {_written(result)}, so each "
        "output is compared with the targets of other samples.",
        summary=f"Every output will learn the mean of all targets: output {ours} and target "
        f"{theirs} broadcast to {_written(result)}.",
        evidence={"output_values": output.size, "target_values": target.size},
        location=call.location,
        fixes=(_fix(output, target), *RULE.fixes),
    )


def _written(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _fix(output: Operand, target: Operand) -> Fix:
    why = "Each output is then compared with the target of its own sample."
    if len(output.shape) > len(target.shape):
        return advice("Give the target the output's shape.", why,
                      "target = target.reshape(output.shape)")  # fmt: skip
    if output.size == target.size:
        return advice("Give the output the target's shape.", why,
                      "output = output.reshape(target.shape)")  # fmt: skip
    return advice("Give the output the target's axes.", why, "output = output.unsqueeze(1)")
