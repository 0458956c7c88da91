"""Dropout that leaves too little of a layer.

What it does
------------

Looks at dropout in training mode: its probability p, and the number of units it works on. Of n
units all are dropped at once with probability p^n.

Why it matters
--------------

Dropout keeps a share 1 - p and scales it by 1/(1 - p). If a fifth or less is kept, the noise drowns
the signal and the error rises steeply (Srivastava et al. 2014, figure 9a). In a narrow layer even a
usual p drops all units of many samples. These samples then give no gradient.

A p of 0.9 is often meant as the share to keep, as in TensorFlow 1's ``keep_prob``. Torch's p is the
share to drop.

When it is no fault
-------------------

On wide, redundant inputs (bags of words, one-hot vectors) a high p may be intended. Then ignore
dropout-too-high for this model.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.95), nn.Linear(64, 4))
    batch = torch.randn(128, 8)

Well::

    model[2].p = 0.5

References: Srivastava et al. 2014, "Dropout", section 7.3 and figure 9.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND825",
    name="dropout-too-high",
    severity="warning",
    about="training",
    thresholds={
        "p": Threshold(
            0.8,
            "cited: Srivastava et al. 2014, figure 9a: the error is flat while 0.4 to 0.8 is kept, "
            "and rises steeply once 0.2 or less is",
            0,
            1,
            "share",
        ),
        "all_dropped": Threshold(
            0.05, "derived: p^n of the samples lose all n units and give no gradient", 0, 1, "share"
        ),
    },
    fixes=(
        advice(
            "Lower the probability: 0.5 or less in hidden layers, 0.2 or less at the input.",
            "Torch's p is the share to drop, not the share to keep.",
            "nn.Dropout(0.5)",
            "architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in snapshot.of_op("dropout"):
        p, units = layer.options.get("p", 0.0), _units(layer)
        if not layer.options.get("training") or not 0 < p <= 1:
            continue
        lost = p**units if units else 0.0
        if p > thresholds.p:
            yield RULE.finding(
                layer,
                f"Drops {number(p, 'share')} of the values and keeps {number(1 - p, 'share')}."
                + (" Torch's p is the share to drop." if p < 1 else " Nothing gets through."),
                summary=f"Dropout at {layer.name} will drown the signal in noise: it drops "
                f"{number(p, 'share')} of the values.",
                severity="error" if p == 1 else None,
                against=("p", thresholds),
                evidence={"p": p, "units": units},
            )
        elif lost > thresholds.all_dropped and flow.leads_on(snapshot, layer):
            yield RULE.finding(
                layer,
                f"Drops {number(p, 'share')} of {flow.plural(units, 'unit')}: "
                f"{number(lost, 'share')} of the samples lose all of them at once.",
                summary=f"{number(lost, 'share')} of the samples will give no gradient before "
                f"{layer.name}: it drops all of their {flow.plural(units, 'unit')}.",
                severity="note",
                against=("all_dropped", thresholds),
                evidence={"all_dropped": lost, "p": p, "units": units},
            )


def _units(layer: Layer) -> int:
    """The units that are dropped independently of one another; 0 where that is not known.

    Of an image each pixel is dropped on its own, so all are never lost at once.
    """
    if layer.output.units is None or len(layer.shape) != 2:
        return 0
    return len(layer.output.units)
