"""The calls of a loss as rules read them: which operand is the output, where it was made."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import flow, ops
from nndiag.constant_output import softplus
from nndiag.experiment import INPUT, OUTPUT, TARGET, LossCall, Made, Operand
from nndiag.fixes.actions import Action, written_module
from nndiag.fixes.fix import Fix, advice
from nndiag.stats import Layer, Snapshot

__all__ = [
    "classes",
    "in_loss",
    "label",
    "lowest_binary",
    "lowest_cross_entropy",
    "maker",
    "output_of",
    "pairs",
    "place",
    "removal",
    "target_of",
]


def output_of(call: LossCall) -> Operand | None:
    """The operand that depends on the model's output; in a forward, on its input and weights."""
    for operand in call.operands[:2]:
        if OUTPUT in operand.sources and TARGET not in operand.sources:
            return operand
    if not in_loss(call) and call.operands and call.operands[0].sources:
        return call.operands[0]
    return None


def target_of(call: LossCall) -> Operand | None:
    """The operand that depends on the target, and not on the output.

    In a forward, which computes its own loss, the second operand of a loss.
    """
    for operand in call.operands[:2]:
        if TARGET in operand.sources and OUTPUT not in operand.sources:
            return operand
    if not in_loss(call) and len(call.operands) > 1 and INPUT in call.operands[1].sources:
        return call.operands[1]
    return None


def pairs(snapshot: Snapshot, *names: str) -> Iterator[tuple[LossCall, Operand, Operand]]:
    """The calls of these ops with their output and target."""
    for call in snapshot.experiment.calls:
        output, target = output_of(call), target_of(call)
        if call.op in names and output is not None and target is not None:
            yield call, output, target


def in_loss(call: LossCall) -> bool:
    return call.name.startswith("loss/")


def classes(call: LossCall) -> int:
    """How many classes a loss over classes tells apart."""
    shape = call.operands[0].shape
    return shape[1] if len(shape) > 1 else shape[0] if shape else 1


def maker(snapshot: Snapshot, made: Made) -> Layer | None:
    """The layer that an activation is; None for a call of the loss."""
    return snapshot.by_name.get(made.layer)


def place(snapshot: Snapshot, call: LossCall, made: Made | None) -> Layer | str:
    """Where a finding about an output lies: its activation, or the call of the loss."""
    layer = None if made is None else maker(snapshot, made)
    return call.name if layer is None else layer


def label(call: LossCall) -> str:
    """``cross_entropy``, or how a call by hand reads."""
    return call.op if ops.named(call.op).loss is not None else f"the {call.op} in the loss"


def lowest_cross_entropy(made: Made, count: int) -> float:
    """The least cross-entropy over ``count`` classes of logits within these bounds."""
    span = made.high - made.low
    return math.log1p((count - 1) * math.exp(-span)) if span < math.inf else 0.0


def lowest_binary(made: Made, positive: float) -> float:
    """The least binary cross-entropy of logits within these bounds."""
    return positive * softplus(-made.high) + (1 - positive) * softplus(made.low)


def removal(snapshot: Snapshot, made: Made, why: str, instead: str = "Identity") -> Fix:
    """Take an activation out, or put another module of ``torch.nn`` in its place."""
    layer = maker(snapshot, made)
    what = f"Take out the {made.op}"
    source = f"In forward, write x in place of {made.op}(x)."
    if instead != "Identity":
        what = f"Replace the {made.op} by {instead}"
        source = f"In forward, write nn.{instead}()(x) in place of {made.op}(x)."
    if layer is None:
        where = "in the loss" if made.layer.startswith("loss/") else "at the output"
        return advice(f"{what} {where}.", why, source, "architecture")
    where = layer.name if layer.name != flow.ROOT else "the model"
    calls = [x for x in snapshot.layers if flow.owner(snapshot, x) == flow.owner(snapshot, layer)]
    own = layer.kind.lower() == layer.op.replace("_", "") and len(calls) == 1
    if not flow.is_module(layer) or not own or layer.name == flow.ROOT:
        at = f" ({layer.location})" if layer.location else ""
        return advice(f"{what} at {where}{at}.", why, source, "architecture")
    arguments = (instead, 1) if instead == "LogSoftmax" else (instead,)
    source = f"In __init__, take out nn.{layer.kind}."
    if instead != "Identity":
        source = f"In __init__, replace nn.{layer.kind} by {written_module(arguments)}."
    return Fix(
        "swap-activation",
        f"{what} at {where}.",
        why,
        "the loss sees the values it is made for",
        "architecture",
        (Action("swap", (layer.name,), arguments),),
        source,
    )
