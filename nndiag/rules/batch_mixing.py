"""Outputs of one sample that depend on the input of another.

What it does
------------

Runs the first samples of the batch twice in evaluation mode, the second time with one of them
replaced by a copy of another. The outputs of the samples that did not change must stay the same.

This is done only if the model has a call behind which the axis of the samples is not known: only
such a call can mix them.

Why it matters
--------------

A prediction must not depend on what else is in the batch. Usual causes are a ``view`` or
``reshape`` in the place of a ``transpose`` or ``permute``, which moves values to other samples;
attention or a recurrent layer that expects the samples on another axis (``batch_first``); and a
softmax or a mean over axis 0. No exception is raised, and the network still trains a little, since
the samples of a batch are similar.

When it is no fault
-------------------

- BatchNorm looks at the batch in training only, so it does not count.
- Contrastive heads give a value for each pair of samples: an output with two axes of samples is not
  judged. Nor is a model that makes one output of the whole batch.
- Retrieval from the batch may be intended. Then ignore batch-mixing for this model.

Sick::

    torch.manual_seed(0)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)
        def time_first(self, x):
            return x.reshape(x.shape[1], x.shape[0], x.shape[2])
        def forward(self, x):  # (samples, time, features)
            return self.head(F.relu(self.body(self.time_first(x))).mean(0))
    model, batch = Net(), torch.randn(64, 5, 6)

Well::

    Net.time_first = lambda self, x: x.transpose(0, 1)
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND206",
    name="batch-mixing",
    severity="warning",
    about="gradients",
    uses=("mixing",),
    thresholds={
        "change": Threshold(
            1e-3,
            "derived: rounding changes an output by 1e-5 of the outputs' rms at most in float32; "
            "another sample's values change it by far more",
            0,
        ),
    },
    caused_by=("degenerate-softmax",),
    fixes=(
        advice(
            "Exchange axes by transpose or permute, not by view or reshape.",
            "A reshape keeps the order of the values in memory, so values move to other samples.",
            "x = x.transpose(0, 1)",
            "architecture",
        ),
        advice(
            "Say where the samples are: batch_first=True for recurrent and attention layers.",
            "Otherwise they take the first axis for time.",
            "nn.MultiheadAttention(width, heads, batch_first=True)",
            "architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    mixing = snapshot.experiment.mixing
    if mixing is None:
        return
    if mixing.error:
        yield RULE.unjudged("(model)", mixing.error)
    elif mixing.changed and mixing.most > thresholds.change:
        which = f"{mixing.changed} of {flow.plural(mixing.samples, 'other sample')}"
        yield RULE.finding(
            "(model)",
            f"With one sample of the batch replaced, in evaluation mode, the outputs of {which} "
            f"change, by up to {mixing.most:.2g} times the outputs' rms.",
            summary="A prediction will depend on the other samples of its batch.",
            against=("change", thresholds),
            evidence={"change": mixing.most, "samples_changed": mixing.changed},
        )
