"""``check()``: capture, measure, judge, report."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nndiag import judge, settings
from nndiag.experiment import Fresh
from nndiag.report import Report
from nndiag.rule import Finding
from nndiag.rules import catalogue
from nndiag.stats import Snapshot
from nndiag.trained import training

if TYPE_CHECKING:
    from nndiag.batch import Batch

__all__ = ["check", "gc_paused", "stream_of"]


def check(
    model: Any,
    batch: Any,
    target: Any = None,
    loss_fn: Callable[..., Any] | None = None,
    *,
    optimizer: Any = None,
    select: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
    config: Mapping[str, Any] | str | Path | bool | None = None,
    seed: int | None = None,
) -> Report:
    """Say what is wrong inside ``model``, where, why, and what repairs it.

    The model runs forward and, where a selected rule needs gradients, backward, in the modes it
    is in; afterwards it and every global random generator are bitwise as before.

    Args:
        model: any ``torch.nn.Module``.
        batch: what a DataLoader yields: a tensor; ``(inputs, target)``; a dict of ``forward``'s
            keyword arguments; a :class:`nndiag.Batch`. A DataLoader, an iterator, or a list of
            those is a stream: its statistics accumulate. 128 samples and more make verdicts about
            single units possible.
        target: the target, where the batch does not hold it.
        loss_fn: ``loss_fn(output, target)`` giving a scalar. Without it the output's own ``loss``
            is used, or a scalar output, or a fixed random direction; the report says which.
        optimizer: the optimiser of the training, a list of them, or a function that makes one from
            ``model.parameters()``. Its own step is tried and undone, its state too. Without it the
            rules about the optimiser do not run.
        select, ignore: rules by name, code, or beginning of a code (``"ND2"``).
        thresholds: ``{"dead-relu.share": 0.5}`` or ``{"dead-relu": {"share": 0.5}}``.
        config: a pyproject.toml or a mapping with nndiag's settings; None looks for the nearest
            pyproject.toml; False for none.
        seed: the seed of every random generator during the check; None takes the setting ``seed``,
            which is 0 by default.

    Raises:
        NNDiagError: one of its kinds (see ``nndiag.errors``); the model is untouched then, too.
    """
    from nndiag.capture.watch import validate, watch
    from nndiag.loss import LossMaker
    from nndiag.progress import Progress

    chosen = settings.load(config).override(
        select=select, ignore=ignore, thresholds=thresholds, seed=seed
    )
    modules = judge.chosen(chosen.select, chosen.ignore)
    judge.effective_thresholds(chosen.thresholds)  # raises for a wrong one, before anything runs
    validate(model)
    first: list[Batch] = []
    stream = _keeping_the_first(stream_of(model, batch, target, loss_fn), first)
    with gc_paused(), Progress("checking") as progress:
        snapshot = watch(
            model,
            stream,
            needs=judge.needed(modules),
            loss=LossMaker(loss_fn, chosen.seed),
            optimizer=optimizer,
            seed=chosen.seed,
            max_batches=chosen.max_batches,
            tick=lambda layer: progress.update(None, None, layer),
        )
        judgement = judge.judge(snapshot, chosen.select, chosen.ignore, chosen.thresholds)
        if "training-damage" in modules and (sick := _made_sick(snapshot, judgement.findings)):
            fresh = _fresh(model, first[0], loss_fn, chosen, sick)
            snapshot = replace(snapshot, experiment=replace(snapshot.experiment, fresh=fresh))
            judgement = judge.judge(snapshot, chosen.select, chosen.ignore, chosen.thresholds)
    return Report(snapshot, judgement.findings, judgement.outcomes, judgement.unjudged)


_RESCALED = 5
"""He's initialisation is 2.4 times torch's own, and wider ones are usual too."""


def _rescaled(model: Any, fresh: Any) -> bool:
    """Whether a weight has another scale than a new one, or none: odd biases are no training."""
    sizes = [
        [float(p.detach().float().norm()) for p in m.parameters() if p.dim() > 1]
        for m in (model, fresh)
    ]
    return any(
        not math.isfinite(old) or old > _RESCALED * new or new > _RESCALED * old
        for old, new in zip(*sizes, strict=True)
    )


def _keeping_the_first(stream: Iterable[Batch], kept: list[Batch]) -> Iterator[Batch]:
    for batch in stream:
        if not kept:
            kept.append(batch)
        yield batch


_ABOUT_VALUES = ("parameters", "activations", "gradients")


def _made_sick(snapshot: Snapshot, findings: Iterable[Finding]) -> list[Finding]:
    """The findings about the values of a network whose training may be their cause."""
    base = snapshot.experiment.baseline
    if math.isfinite(snapshot.loss.value) and (base is None or base.loss < base.constant):
        return []
    about = {rule.name: rule.about for rule in catalogue().values()}
    sick = [f for f in findings if f.severity != "note" and about.get(f.rule) in _ABOUT_VALUES]
    # No initialisation leaves NaN behind.
    broken = any(p.value.nonfinite for p in snapshot.parameters)
    return sick if sick and (broken or training(snapshot)) else []


def _fresh(
    model: Any, batch: Batch, loss_fn: Any, chosen: settings.Settings, sick: list[Finding]
) -> Fresh | None:
    """The same network with new weights, checked on the same batch; None where it cannot be made.

    No batch that the loss or the data spoil leaves a fresh network healthy.
    """
    from nndiag.capture.fresh import drawn_again
    from nndiag.capture.watch import watch
    from nndiag.errors import NNDiagError
    from nndiag.loss import LossMaker

    seed = chosen.seed or 0
    copied = drawn_again(model, seed)
    if copied is None or not _rescaled(model, copied):
        return None
    try:
        snapshot = watch(
            copied,
            [batch],
            needs=judge.needed(judge.chosen(None, chosen.ignore)),
            loss=LossMaker(loss_fn, chosen.seed),
            seed=chosen.seed,
            max_batches=1,
        )
    except NNDiagError:
        return None
    judgement = judge.judge(snapshot, None, chosen.ignore, chosen.thresholds)
    found = [f.rule for f in judgement.findings if f.severity != "note"]
    rules = dict.fromkeys(f.rule for f in sick)
    return Fresh(
        tuple(dict.fromkeys(found)), tuple(rules), any(f.severity == "error" for f in sick)
    )


def stream_of(
    model: Any, batch: Any, target: Any, loss_fn: Callable[..., Any] | None
) -> Iterable[Batch]:
    """The batches of what :func:`check` is given.

    Raises:
        BatchError, LossError: they do not fit together.
    """
    from nndiag.batch import Batch, as_batch, batches
    from nndiag.errors import LossError

    if loss_fn is not None and (isinstance(loss_fn, type) or not callable(loss_fn)):
        example = "nn.CrossEntropyLoss()" if isinstance(loss_fn, type) else "F.cross_entropy"
        raise LossError(
            f"loss_fn is {loss_fn!r}, but it is called as loss_fn(output, target). Pass a function "
            f"or an instance, such as {example}."
        )
    if target is not None and loss_fn is None:
        raise LossError(
            "target was given but no loss_fn: nothing can be computed from it. Pass loss_fn too, "
            "for example torch.nn.functional.cross_entropy."
        )
    if target is not None:
        given = as_batch(batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch, model)
        if given.target is not None:
            raise LossError("the target is given twice: in the batch and as target=. Keep one.")
        return [Batch(given.args, given.kwargs, target)]
    return batches(batch, model)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause Python's garbage collector.

    A check makes many small objects that all stay alive. Each collection that they start would walk
    through everything that torch has loaded.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
