"""Hidden activations that are never zero: every unit takes part in every output.

What it does
------------

Counts zeros in the outputs of hidden activations. Activations with under 1 % zeros are named.

Why it matters
--------------

A ReLU is off for about half of its inputs, so its representation is sparse: it is cheaper to
compute with, and different inputs use different units. Sigmoid, tanh, GELU and similar activations
are dense (CS231n 2017 lecture 6, slide 24; Glorot, Bordes & Bengio 2011).

When it is no fault
-------------------

Never a fault: this is a property of the activation. The finding is a note.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    batch = torch.randn(128, 16)

Well::

    model[1] = nn.ReLU()

References: Glorot, Bordes & Bengio 2011, "Deep sparse rectifier neural networks", section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND104",
    name="dense-activation",
    severity="note",
    about="activations",
    thresholds={
        "zero_fraction": Threshold(
            0.01,
            "derived: a rectifier of N(0, 1) is zero for 50 % of its inputs, a smooth one for none",
            0,
            1,
            "share",
        ),
    },
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    hidden = [layer for layer in flow.hidden_activations(snapshot) if layer.output.count]
    dense = [layer for layer in hidden if layer.output.zero_fraction < thresholds.zero_fraction]
    if dense:
        kinds = ", ".join(dict.fromkeys(layer.op for layer in dense))
        yield RULE.finding(
            dense[0],
            f"{len(dense)} of {flow.plural(len(hidden), 'hidden activation')} ({kinds}) "
            f"{'has' if len(dense) == 1 else 'have'} under "
            f"{number(thresholds.zero_fraction, 'share')} zeros: every unit takes part in every "
            "output.",
            summary=f"{len(dense)} of {flow.plural(len(hidden), 'hidden activation')} ({kinds}) "
            f"{'is' if len(dense) == 1 else 'are'} hardly ever zero.",
            against=("zero_fraction", thresholds),
            evidence={
                "zero_fraction": max(layer.output.zero_fraction for layer in dense),
                "dense_layers": len(dense),
                "hidden_layers": len(hidden),
            },
        )
