"""A softmax over one element, or over the samples of the batch.

What it does
------------

Looks along which axis each softmax runs, in the network and in the loss. Over a single unit its
output is 1, whatever the input. Over the batch, the values of all samples together sum to 1.

Why it matters
--------------

A softmax of one element is constant, so no gradient passes it and nothing before it learns. A
softmax over the batch makes each sample's output depend on the other samples. The probabilities of
one sample do not sum to one.

When it is no fault
-------------------

- Attention over a sequence that has one element in this batch.
- A gate over one expert, or a mixture configured with one component: a note.
- A batch that is one bag of instances, where the softmax weights them for one common output.
- A softmax over a matrix of samples by samples, as in contrastive losses.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), nn.Softmax(dim=1))
    x = torch.randn(256, 8)
    batch = x, (x[:, :1] > 0).float()
    loss_fn = nn.BCELoss()

Well::

    model[3] = nn.Sigmoid()
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow, graph, loss_calls, ops
from nndiag.experiment import LossCall, Made
from nndiag.fixes.fix import Fix, advice
from nndiag.rule import Finding, Rule, Severity, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND705",
    name="degenerate-softmax",
    severity="error",
    about="loss",
    uses=("loss",),
    fixes=(
        advice(
            "Run the softmax along the axis of the classes.",
            "It makes the values along its axis sum to one.",
            "torch.softmax(x, dim=1)",
        ),
    ),
)

_OVER_ONE = (
    advice("Give the layer before it one unit for each class."),
    advice(
        "For attention, run it along the axis of the positions.",
        "The weights of each sample's positions then sum to one.",
        "torch.softmax(scores, dim=1)",
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in snapshot.layers:
        if layer.op not in ops.SOFTMAXES or "length" not in layer.options:
            continue
        if layer.options["length"] == 1 and layer.options["over_units"]:
            yield from _over_one(snapshot, layer)
        elif layer.options["over_samples"]:
            yield from _over_batch(snapshot, layer)
    for call in snapshot.experiment.calls:
        if call.op in ops.SOFTMAXES and loss_calls.in_loss(call):
            yield from _in_loss(call)


def _over_one(snapshot: Snapshot, layer: Layer) -> Iterator[Finding]:
    at_output = snapshot.outputs == (layer.node,)
    severity: Severity = "error" if at_output else "warning"
    if not at_output and (_configured(snapshot, layer) or not _weighs(snapshot, layer)):
        severity = "note"
    value = "0" if layer.op == "log_softmax" else "1"
    fixes: tuple[Fix, ...] = _OVER_ONE
    if at_output and layer.op == "softmax":
        made = Made("softmax", layer.name)
        why = "A sigmoid of one unit is the probability of two classes."
        fixes = (loss_calls.removal(snapshot, made, why, "Sigmoid"), _OVER_ONE[0])
        if any(call.op in _REGRESSION for call in snapshot.experiment.calls):
            why = "A linear output gives any number."
            fixes = (loss_calls.removal(snapshot, made, why),)
    yield RULE.finding(
        layer,
        f"Its {layer.op} runs over an axis of one unit, so it gives {value} for every input and "
        "passes no gradient.",
        summary=f"Nothing before {layer.name} will learn: its {layer.op} runs over one unit and "
        f"always gives {value}.",
        severity=severity,
        evidence={"length": 1},
        fixes=fixes,
    )


_REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "sub")


def _configured(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether it chooses from a list of one module, such as experts."""
    home = layer.name.partition("/")[0].rpartition(".")[0]
    if "/" in layer.name:
        home = layer.name.partition("/")[0]
    for folder in snapshot.lists:
        if folder.rpartition(".")[0] == home or not home:
            inside = {x.name[len(folder) + 1 :].partition(".")[0].partition("@")[0]
                      for x in snapshot.layers if x.name.startswith(f"{folder}.")}  # fmt: skip
            if len(inside) == 1:
                return True
    return False


def _weighs(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether it has several values for a sample: weights of positions, as attention has."""
    return layer.output.samples > 0 and layer.output.total > layer.output.samples


def _over_batch(snapshot: Snapshot, layer: Layer) -> Iterator[Finding]:
    samples = int(layer.options["length"])
    axis = int(layer.options["dim"])
    others = [size for k, size in enumerate(layer.shape) if k != axis]
    if samples < 2 or samples in others:  # samples by samples
        return
    if layer.node not in snapshot.outputs and not _samples_come_out(snapshot, layer):
        return  # one bag of instances
    if max(others, default=1) == 1 and not _is_judged_by_sample(snapshot):
        return  # a list to rank
    yield RULE.finding(
        layer,
        f"Its {layer.op} runs over the {samples} samples of the batch (dim={axis} of an input of "
        f"shape {_written(layer.shape)}), so one sample's output depends on the others.",
        summary=f"Samples will share one probability: the {layer.op} at {layer.name} runs over "
        "the batch.",
        evidence={"length": samples, "dim": axis},
        fixes=_along_units(snapshot, layer),
    )


def _written(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _samples_come_out(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether what follows still has an axis of samples."""
    samples = layer.options["length"]
    if any(samples in shape for shape in snapshot.experiment.outputs):
        return True
    if snapshot.experiment.outputs:
        return False
    behind = graph.descendant_bits(snapshot)[layer.node]
    return any(behind >> x.node & 1 and samples in x.shape for x in snapshot.layers)


def _is_judged_by_sample(snapshot: Snapshot) -> bool:
    """Whether the loss compares each sample's output with a target of its own."""
    known = ("binary_cross_entropy", "cross_entropy", "nll_loss", "mse_loss", "l1_loss")
    return any(call.op in known for call in snapshot.experiment.calls)


def _along_units(snapshot: Snapshot, layer: Layer) -> tuple[Fix, ...]:
    if len(layer.shape) == 1 or max(layer.shape[1:], default=1) == 1:
        made = Made(layer.op, layer.name)
        why = "A sigmoid of one unit is the probability of two classes."
        return (loss_calls.removal(snapshot, made, why, "Sigmoid"),)
    if len(layer.shape) == 2 and flow.is_module(layer) and layer.kind in ("Softmax", "LogSoftmax"):
        return (_swapped(snapshot, layer), *RULE.fixes)
    return RULE.fixes


def _swapped(snapshot: Snapshot, layer: Layer) -> Fix:
    from nndiag.fixes.actions import Action

    return Fix(
        "swap-activation",
        f"Run the {layer.op} at {layer.name} along the classes (dim=1).",
        "Each sample's probabilities then sum to one.",
        "one sample's output does not depend on the others",
        "architecture",
        (Action("swap", (flow.owner(snapshot, layer),), (layer.kind, 1)),),
        f"In __init__, write nn.{layer.kind}(dim=1).",
    )


def _in_loss(call: LossCall) -> Iterator[Finding]:
    operand = call.operands[0] if call.operands else None
    if operand is None or "output" not in operand.sources:
        return
    axis, length = int(call.options.get("dim", -1)), call.options.get("length", 0.0)
    others = [size for k, size in enumerate(operand.shape) if k != axis]
    if call.options.get("over_samples") and length > 1 and length not in others:
        if max(others, default=1) > 1 and operand.direct and len(operand.shape) == 2:
            yield RULE.finding(
                call.name,
                f"The loss applies {call.op} over the {int(length)} samples of the batch "
                f"(dim={axis} of an output of shape {_written(operand.shape)}).",
                summary=f"Samples will share one probability: the {call.op} in the loss runs "
                "over the batch.",
                evidence={"length": length, "dim": axis},
                location=call.location,
            )
    elif length == 1 and operand.direct and len(operand.shape) == 2 and axis == 1:
        yield RULE.finding(
            call.name,
            f"The loss applies {call.op} over an axis of one unit, so it is the same for every "
            "output and passes no gradient.",
            summary=f"Nothing will learn: the {call.op} in the loss runs over one unit.",
            evidence={"length": 1},
            location=call.location,
            fixes=_OVER_ONE[:1],
        )
