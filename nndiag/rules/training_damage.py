"""A network that its training made sick: with new weights it would be healthy.

What it does
------------

Looks at trained networks that have findings about their values, and a loss on this batch no better
than that of a constant output. A copy gets new weights, by the ``reset_parameters`` of its modules,
and is checked on the same batch. If the copy has no error and no warning, the design is healthy,
and training made the network sick.

Why it matters
--------------

The present weights then say nothing about the initialisation. New weights repair the network, until
the same training damages it again. Usual causes are a learning rate that is too high, gradients
that were never cleared, missing clipping in a recurrent network, and one broken batch.

When it is no fault
-------------------

Not judged are new networks, networks whose loss is better than that of a constant output, and
networks with parameters that no ``reset_parameters`` draws.

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
        f"The network looks trained, and is sick ({sick}). A copy with new weights, drawn by "
        "reset_parameters, has no error and no warning on the same batch.",
        summary=f"The training{at} made this network sick: with new weights it is healthy.",
        severity="error" if fresh.severe else None,
        evidence={"findings": len(fresh.sick)},
    )
