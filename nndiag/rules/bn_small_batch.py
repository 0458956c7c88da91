"""BatchNorm in training on a batch too small for its statistics.

What it does
------------

Counts the samples that BatchNorm takes its mean and variance over, in training mode. Positions of
one image are alike, so they do not count as samples.

Why it matters
--------------

With one sample, BatchNorm removes that sample's own mean and scale, which the network may need. In
evaluation mode it uses running averages instead, so the network computes something else than it was
trained for. With few samples the statistics are noisy: errors rise from 32 to 16 samples a worker,
and steeply below 8 (Wu & He 2018, figure 1).

When it is no fault
-------------------

Your training uses larger batches than this one: then check with one of those. Without a loss the
finding is a note, since this is probably not a batch of training. With 2 to 15 samples it is a
note, too.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 36, 4))
    batch, loss_fn = (torch.randn(1, 1, 8, 8), torch.tensor([2])), F.cross_entropy

Well::

    batch = torch.randn(64, 1, 8, 8), torch.randint(0, 4, (64,))

References: Wu & He 2018, "Group normalization", figure 1; Ioffe & Szegedy 2015.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Severity, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND502",
    name="bn-small-batch",
    severity="warning",
    about="training",
    uses=("loss",),
    thresholds={
        "alone": Threshold(
            1,
            "derived: of one sample, the batch's mean is the sample's own",
            0,
        ),
        "few": Threshold(
            16, "cited: Wu & He 2018, figure 1: from 32 to 16 samples a worker errors rise", 0
        ),
    },
    fixes=(
        advice(
            "Train with larger batches, 16 samples or more.",
            "Then the batch's statistics resemble those of the data.",
        ),
        advice(
            "Replace BatchNorm by GroupNorm or LayerNorm.",
            "They take their statistics over one sample, in training as in evaluation.",
            "nn.GroupNorm(num_groups=8, num_channels=channels)",
            "architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    norms = [x for x in snapshot.of_op("batch_norm") if x.options.get("training")]
    if not norms:
        return
    samples = snapshot.samples / max(snapshot.batches, 1)
    if samples >= thresholds.few:
        return
    alone = samples <= thresholds.alone
    severity: Severity = "warning" if alone and snapshot.has_loss else "note"
    layers = flow.plural(len(norms), "BatchNorm layer")
    takes = "takes its" if len(norms) == 1 else "take their"
    yield RULE.finding(
        norms[0],
        f"{layers} {takes} mean and variance over {flow.plural(round(samples), 'sample')}."
        + (
            " A sample is then normalised by itself in training, but by running averages in "
            "evaluation."
            if alone
            else ""
        ),
        summary=f"The network will compute something else in evaluation than in training: {layers} "
        f"{takes} statistics over {flow.plural(round(samples), 'sample')}.",
        severity=severity,
        against=("alone" if alone else "few", thresholds),
        evidence={"alone" if alone else "few": samples, "layers": len(norms)},
    )
