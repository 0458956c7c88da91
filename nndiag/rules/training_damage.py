"""A network that its training made sick: with new weights it would be healthy.

What it does
------------

Looks at networks that were trained, have findings about their values, and a loss on this batch that
is no better than that of a constant output. A copy of the network is drawn again by the
``reset_parameters`` of its modules and checked on the same batch. Where the copy has no finding,
the design is healthy and its training made it sick.

Why it matters
--------------

The weights that such a network has now are no advice about its initialisation. Drawing them again
repairs it until the same training runs again. Usual causes are a learning rate that is too high,
gradients that were never cleared, missing clipping in a recurrent network, and one broken batch.

When it is no fault
-------------------

Nothing is said of a new network, of one whose loss is better than a constant's, and of one with
parameters that no ``reset_parameters`` draws.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(),
                          nn.Linear(32, 4))
    batch, loss_fn = (torch.randn(128, 8), torch.randint(0, 4, (128,))), F.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), 100.0)
    for _ in range(5):
        optimizer.zero_grad()
        loss_fn(model(batch[0]), batch[1]).backward()
        optimizer.step()
    del optimizer

Well::

    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND826",
    name="training-damage",
    severity="warning",
    about="loss",
    needs=("gradients", "loss"),
    caused_by=("lr-too-high",),
    fixes=(
        advice(
            "Check the network as it was before its training, and train it again at a lower "
            "learning rate.",
            "With new weights it is healthy: its design and its data are not the cause.",
            "nndiag.check(make_model(), batch, loss_fn=loss_fn, optimizer=make_optimizer)",
            "weights",
        ),
        advice(
            "Clear the gradients before each backward, and clip them.",
            "Gradients that add up, or a single huge one, move weights as far as a high rate does.",
            "optimizer.zero_grad()\ntorch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    fresh = snapshot.experiment.fresh
    if fresh is None or fresh.found:
        return
    optimizer = snapshot.experiment.optimizer
    rates = [group.lr for group in optimizer.groups] if optimizer is not None else []
    at = f" at learning rate {number(max(rates))}" if rates else ""
    sick = ", ".join(fresh.sick[:3]) + (
        f" and {len(fresh.sick) - 3} more" if fresh.sick[3:] else ""
    )
    yield RULE.finding(
        "(model)",
        f"The network looks trained, and is sick ({sick}). A copy with weights drawn again by "
        "reset_parameters has no error and no warning on the same batch.",
        summary=f"The training{at} made this network sick: with new weights it is healthy.",
        severity="error" if fresh.severe else None,
        evidence={"findings": len(fresh.sick)},
    )
