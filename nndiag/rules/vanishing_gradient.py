"""Gradients that shrink from layer to layer until the first layers no longer learn.

Going back through a layer multiplies the gradient by the activation's slope and by the weights. A
sigmoid's slope is at most 1/4: with Xavier weights 0.24 of the gradient passes each layer, and ten
layers leave 2e-6. Weights that are too small do the same to any activation: torch's default
nn.Linear init with ReLU passes 0.41 a layer.

Measured is the gradient at pre-activations along each chain of layers: its factor per layer and in
total. A chain ends at a residual addition, a concatenation, a normalisation or a recurrence, where
gradients have other ways. The size of weight gradients is no measure: it stays the same in every
layer of a collapsed network. Scaling the loss changes nothing; for one module called repeatedly the
factor is time, not depth, and a note.

Sick::

    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        layers += [nn.Linear(64, 64), nn.Sigmoid()]
        nn.init.xavier_normal_(layers[-2].weight)
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    batch = torch.randn(256, 64)

Well::

    model = nn.Sequential(*[nn.Tanh() if isinstance(m, nn.Sigmoid) else m for m in model])

References: Hochreiter 1991; Glorot & Bengio 2010, section 4.2; He et al. 2015, section 2.2;
Pascanu et al. 2013, section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import gradient_flow
from nndiag.rule import Finding, Limits, Prescription, Rule, Severity, Threshold
from nndiag.stats import Snapshot

RULE = Rule(
    code="ND201",
    name="vanishing-gradient",
    severity="warning",
    about="gradients",
    needs=("gradients",),
    thresholds={
        "total": Threshold(
            1e-2,
            "derived: 4 hidden layers of GELU or SiLU at torch's default init (slope 1/2, gain "
            "1/√3) pass (1/2 · 1/√3)³ = 1/41 and train; a factor 2.4 of room for chance",
            0,
            1,
        ),
        "stall": Threshold(
            1e-4,
            "cited: He et al. 2015, section 2.2: with Xavier weights 22 ReLU layers (2^-11 = "
            "4.9e-4) "
            "converge and 30 layers (2^-15 = 3.1e-5) stall completely",
            0,
            1,
        ),
    },
    caused_by=("non-finite", "symmetry", "init-scale", "saturation", "dead-relu"),
    cures=(
        Prescription(
            "Use an activation with slope 1 where it is active (ReLU, ELU) and its matching "
            "init (He).",
            "A sigmoid's slope is at most 0.25: no usual init makes up for it.",
            "nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')",
        ),
        Prescription(
            "Give the gradient another way: residual connections or normalisation layers.",
            "Then it no longer is a product over all layers.",
        ),
    ),
)


def check(snapshot: Snapshot, limit: Limits) -> Iterator[Finding]:
    for path in gradient_flow.paths(snapshot):
        if path.total >= limit.total * path.band[0]:
            continue
        severity: Severity = "error" if path.total < limit.stall * path.band[0] else "warning"
        if path.chain.repeated:
            severity = "note"
        first = path.passages[0].layer
        last = path.chain.hidden[-1].layer
        small = (
            f"is exactly zero (it underflows in {first.dtype})"
            if path.underflow
            else f"is {path.total:.2g} of what it is at {last.name}"
        )
        by_weights = path.slope_share < 0.5
        yield RULE.finding(
            path.leading.layer,
            f"the gradient at {first.name} {small}: a factor {path.per_layer:.2g} for each of "
            f"{len(path.passages)} layers; {gradient_flow.reason(path)}",
            severity=severity,
            against=("total", limit),
            suspects=RULE.caused_by
            if by_weights
            else tuple(s for s in RULE.caused_by if s != "init-scale"),
            evidence={
                "total": path.total,
                "per_layer": path.per_layer,
                "layers": len(path.passages),
                "slope_share": path.slope_share,
                "first_grad_rms": first.grad.rms if first.grad is not None else float("nan"),
            },
        )
