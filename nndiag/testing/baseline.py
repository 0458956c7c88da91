"""Baselines: a model's numbers over many seeds, kept in a file, and compared with a later run.

Each number is about normal over seeds: the logarithm of a scale, a mean relative to its scale, or a
share. ``n`` seeds give its mean and standard deviation ``s``. Another seed lies within
``t · s · √(1 + 1/n)`` of that mean, where ``t`` is Student's quantile with ``n - 1`` degrees of
freedom. The rate of false alarms of a run is divided among its numbers (Bonferroni): with 200
numbers at 1 in 1,000, ``t`` is 6.4 for 20 seeds and 36 for 5 seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from nndiag import compare, flow, pairing
from nndiag.compare import Difference
from nndiag.errors import FindingsError, ModelError, ReportError, SettingsError
from nndiag.numbers import Unit, number
from nndiag.pairing import Kind, Outline
from nndiag.settings import Settings
from nndiag.stats import Snapshot, TensorStats

__all__ = [
    "FEWEST",
    "MOST_BATCHES",
    "RATE",
    "SCHEMA",
    "SEEDS",
    "SLACK",
    "Baseline",
    "Batches",
    "Entry",
    "Number",
    "look",
    "make",
    "replayable",
    "student",
    "text",
]

SCHEMA = 1
RATE = 1e-3
"""The share of runs that may fail although nothing changed."""
SEEDS, FEWEST = 20, 5
MOST_BATCHES = Settings().max_batches

SLACK: Mapping[Kind, float] = {
    "input": 0.05, "parameter": 0.05, "activation": 0.05, "gradient": 0.05, "share": 0.02,
}  # fmt: skip
"""A change up to this never counts, such as 5 % of a scale. Versions of torch and numbers of
threads round differently."""

Batches = Literal["drawn", "resampled", "same"]
Number = tuple[Kind, str]  # such as ("activation", "scale")
_GROUPS = ("inputs", "parameters", "layers")  # causes first
_GRADIENT: Number = ("gradient", "scale")
_TINY = 1e-30  # in place of a scale of 0, which has no logarithm


@dataclass(frozen=True)
class Entry:
    """A layer, parameter or input: its outline, and the mean and deviation of each number."""

    outline: Outline
    numbers: Mapping[Number, tuple[float, float]]


@dataclass(frozen=True)
class Baseline:
    """A baseline. ``batches``: drawn anew for each seed, resampled from one batch, or the same."""

    model: str
    seeds: int
    batches: Batches
    loss: str
    inputs: tuple[Entry, ...]
    parameters: tuple[Entry, ...]
    layers: tuple[Entry, ...]

    @property
    def count(self) -> int:
        """The number of numbers that are compared."""
        return sum(len(entry.numbers) for group in _GROUPS for entry in getattr(self, group))

    def confirmed(self, look: Callable[[int], Snapshot], seed: int = 0) -> tuple[Difference, ...]:
        """The differences that two more seeds confirm.

        The quantile holds for normal numbers. In a deep, narrow network a single seed can lie far
        out by chance; a real change shows at every seed.
        """
        changes = self.differences(look(seed))
        for other in (self.seeds + 1, self.seeds + 2):
            if all(map(_is_sure, changes)):
                break
            again = {(d.kind, d.name, d.what): d for d in self.differences(look(seed + other))}
            changes = tuple(d for d in changes if _is_sure(d) or _same(d, again))
        return changes

    def differences(self, snapshot: Snapshot) -> tuple[Difference, ...]:
        """The differences that no seed explains, causes before their consequences."""
        changes: list[Difference] = []
        if snapshot.loss.kind != self.loss:
            text = f"the loss was of the kind {self.loss!r}, is {snapshot.loss.kind!r}"
            changes.append(Difference("structure", "loss", "kind", math.nan, math.nan, text=text))
        quantile = student(self.seeds, self.count)
        numbers: list[Difference] = []
        for group, seen in _described(snapshot).items():
            old = {entry.outline.name: entry for entry in getattr(self, group)}
            pairs = pairing.paired_outlines(
                [entry.outline for entry in old.values()], [outline for outline, _ in seen]
            )
            changes += compare.structure(group[:-1], pairs)
            values = {outline.name: measured for outline, measured in seen}
            for pair in pairs:
                if pair.old is not None and pair.new is not None:
                    before, now = old[pair.old.name].numbers, values[pair.new.name]
                    numbers += self._moved(pair.new.name, before, now, quantile)
        # A changed part changes its own numbers and those of the layers after it.
        kinds = ("structure", "input", "parameter", "activation", "share", "gradient")
        return (*changes, *sorted(numbers, key=lambda d: kinds.index(d.kind)))

    def _moved(
        self,
        name: str,
        before: Mapping[Number, tuple[float, float]],
        now: Mapping[Number, float],
        quantile: float,
    ) -> Iterator[Difference]:
        broken: set[Kind] = set()
        if _GRADIENT in now and before and _GRADIENT not in before:
            text = f"a gradient reaches {name}; before, none did"
            yield Difference("structure", name, "gradient", math.nan, math.nan, text=text)
        for key, (mean, deviation) in before.items():
            kind, what = key
            if key not in now:
                gone = f"{_whose(kind, name)} has no {what} any more"
                text = f"no gradient reaches {name} any more" if key == _GRADIENT else gone
                yield Difference("structure", name, what, mean, math.nan, text=text)
                continue
            value = now[key]
            if not math.isfinite(value):
                if kind not in broken:
                    text = f"{_whose(kind, name)} holds NaN or infinity"
                    yield Difference(kind, name, "finite", mean, value, text=text)
                broken.add(kind)
                continue
            size = abs(value - mean)
            band = max(SLACK[kind], quantile * deviation * self._factor(kind))
            if size > band:
                text = _moved_text(kind, name, what, mean, value, deviation, band, self.seeds)
                yield Difference(kind, name, what, mean, value, size, band, text)

    def _factor(self, kind: Kind) -> float:
        """The factor of the deviation for a later run.

        If all seeds resampled one batch, the mean carries that batch's own deviation, too.
        """
        own = self.batches == "resampled" and kind != "parameter"
        return math.sqrt((2 if own else 1) + 1 / self.seeds)

    # -- as a file

    def dumps(self) -> str:
        """JSON with one line for each layer, parameter and input, readable in a review."""
        head = {
            "nndiag baseline": SCHEMA,
            "model": self.model,
            "seeds": self.seeds,
            "batches": self.batches,
            "loss": self.loss,
        }
        parts = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in head.items()]
        for group in _GROUPS:
            lines = [f"    {_line(entry)}" for entry in getattr(self, group)]
            parts.append(f'  "{group}": [\n' + ",\n".join(lines) + "\n  ]")
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @classmethod
    def loads(cls, text: str, where: str) -> Baseline:
        """
        Raises:
            ReportError: the text is no baseline.
        """
        try:
            fields = json.loads(text)
            if fields["nndiag baseline"] != SCHEMA:
                raise ValueError(
                    f"its format is {fields['nndiag baseline']!r}, this version reads {SCHEMA}"
                )
            groups = {group: tuple(map(_entry, fields[group])) for group in _GROUPS}
            head = [fields[key] for key in ("model", "seeds", "batches", "loss")]
            baseline = cls(*head, *groups.values())
            student(baseline.seeds, max(baseline.count, 1))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReportError(
                f"{where} is no baseline of nndiag: {type(error).__name__}: {error}. "
                "Rewrite it with --nndiag-update-baseline."
            ) from error
        return baseline


def _is_sure(one: Difference) -> bool:
    """Whether chance cannot explain it at all: a structural change, or NaN."""
    return one.kind == "structure" or one.what == "finite"


def _same(one: Difference, others: Mapping[tuple[Kind, str, str], Difference]) -> bool:
    if (one.kind, one.name, "finite") in others:
        return True
    other = others.get((one.kind, one.name, one.what))
    return other is not None and (one.new > one.old) == (other.new > other.old)


def _line(entry: Entry) -> str:
    numbers = {
        f"{kind} {what}": [round(mean, 5), float(f"{deviation:.3g}")]
        for (kind, what), (mean, deviation) in entry.numbers.items()
    }
    fields = {"name": entry.outline.name, **entry.outline.facts, "numbers": numbers}
    return json.dumps(fields, ensure_ascii=False)


def _entry(fields: Mapping[str, Any]) -> Entry:
    facts = {key: str(value) for key, value in fields.items() if key not in ("name", "numbers")}
    numbers: dict[Number, tuple[float, float]] = {}
    for key, (mean, deviation) in fields["numbers"].items():
        kind, _, what = key.partition(" ")
        if kind not in SLACK:
            raise ValueError(f"unknown number {key!r}")
        numbers[kind, what] = float(mean), float(deviation)
    return Entry(Outline(str(fields["name"]), facts), numbers)


def student(seeds: int, count: int) -> float:
    """Student's quantile for each of ``count`` numbers, so that a run fails at ``RATE``."""
    from scipy import stats

    return float(stats.t.isf(RATE / max(count, 1) / 2, seeds - 1))


# -- what is measured -----------------------------------------------------------------------------


def make(
    build: Callable[[], Any],
    batch: Any,
    target: Any = None,
    loss_fn: Callable[..., Any] | None = None,
    *,
    seeds: int = SEEDS,
) -> Baseline:
    """Make a baseline of ``build()`` over ``seeds`` seeds (from 1 on).

    ``batch``: what a check takes, whose samples are drawn with replacement for each seed (Efron
    1979), or a function without arguments that returns a new batch each time.

    Raises:
        SettingsError: too few seeds, or seeds that do not give the same network.
        ModelError: ``build`` is no function, or returns no model.
    """
    __tracebackhide__ = True
    if seeds < FEWEST:
        raise SettingsError(f"seeds = {seeds}: a baseline needs at least {FEWEST}, better {SEEDS}.")
    batch = replayable(batch)
    runs = []
    for seed in range(1, seeds + 1):  # no comprehension: before Python 3.12 it is a frame, shown
        runs.append(look(build, batch, target, loss_fn, seed=seed, resample=True))
    snapshots = [snapshot for snapshot, _ in runs]
    first = _described(snapshots[0])
    samples: dict[str, dict[str, list[dict[Number, float]]]] = {group: {} for group in first}
    for snapshot in snapshots:
        for group, seen in _described(snapshot).items():
            if [outline for outline, _ in seen] != [outline for outline, _ in first[group]]:
                raise SettingsError(
                    "build() gives other layers or parameters from seed to seed, but a baseline "
                    "needs one structure. Remove what is random from the structure."
                )
            for outline, numbers in seen:
                samples[group].setdefault(outline.name, []).append(numbers)
    # A bootstrap's deviation is too small by √(1 - 1/n) (Efron & Tibshirani 1993 section 5.2).
    n = snapshots[0].samples
    widen = math.sqrt(n / (n - 1)) if runs[0][1] == "resampled" else 1.0
    entries = {
        group: tuple(
            Entry(outline, _summary(samples[group][outline.name], outline.name, widen))
            for outline, _ in seen
        )
        for group, seen in first.items()
    }
    one = snapshots[0]
    return Baseline(
        one.model, seeds, runs[0][1], one.loss.kind, *(entries[group] for group in _GROUPS)
    )


def look(
    build: Callable[[], Any],
    batch: Any,
    target: Any = None,
    loss_fn: Callable[..., Any] | None = None,
    *,
    seed: int = 0,
    resample: bool = False,
) -> tuple[Snapshot, Batches]:
    """Build and measure one model at one seed; also returns where its batch came from."""
    from torch import nn

    from nndiag.api import stream_of
    from nndiag.capture.untouched import seeded
    from nndiag.capture.watch import validate, watch
    from nndiag.loss import LossMaker

    __tracebackhide__ = True  # errors in the user's functions are the user's
    if isinstance(build, nn.Module) or not callable(build):
        raise ModelError(
            f"diagnose.baseline got {type(build).__name__}. Give a function without arguments that "
            "builds the model: it is built at many seeds, to separate chance from change."
        )
    with seeded(seed):
        model = build()
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"build() returned {type(model).__name__}. It must return a torch.nn.Module."
            )
        drawn = callable(batch) and not isinstance(batch, nn.Module)
        data = batch() if drawn else batch
        validate(model)
        stream = list(islice(stream_of(model, data, target, loss_fn), MOST_BATCHES))
        origin: Batches = "drawn" if drawn else "same"
        if not drawn and resample:
            redrawn = [_resampled(each, seed) for each in stream]
            if any(new is not old for new, old in zip(redrawn, stream, strict=True)):
                origin = "resampled"
            stream = redrawn
        snapshot = watch(
            model,
            stream,
            needs=frozenset({"outputs", "gradients"}),
            loss=LossMaker(loss_fn, seed),
            seed=seed,
            max_batches=MOST_BATCHES,
        )
    return snapshot, origin


def replayable(batch: Any) -> Any:
    """A batch or a stream that can be read again for another seed."""
    return list(islice(batch, MOST_BATCHES)) if isinstance(batch, Iterator) else batch


def _resampled(batch: Any, seed: int) -> Any:
    """The batch with samples drawn with replacement; unchanged if it has no axis of samples."""
    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten

    parts, spec = tree_flatten((batch.args, dict(batch.kwargs), batch.target))
    dense = [p for p in parts if isinstance(p, torch.Tensor) and p.layout == torch.strided]
    sizes = {len(p) for p in dense if p.dim() > 0 and not p.is_nested}
    if len(sizes) != 1 or any(p.is_nested for p in dense):
        return batch
    [size] = sizes
    if size < FEWEST:  # too few samples to estimate the batch's own deviation
        return batch
    chosen = torch.from_numpy(np.random.default_rng(seed).integers(0, size, size))
    parts = [
        p[chosen.to(p.device)]
        if isinstance(p, torch.Tensor) and p.layout == torch.strided and p.dim() > 0
        else p
        for p in parts
    ]
    args, kwargs, target = tree_unflatten(parts, spec)
    return type(batch)(args, kwargs, target)


def _summary(
    samples: Sequence[Mapping[Number, float]], name: str, widen: float
) -> dict[Number, tuple[float, float]]:
    """Mean and deviation of each number that all seeds have.

    ``widen``: the factor of the deviations of numbers that depend on the batch.
    """
    summary = {}
    for key in samples[0]:
        kind, what = key
        values = np.array([sample.get(key, math.nan) for sample in samples])
        if not np.isfinite(values).all():
            raise FindingsError(
                f"{_whose(kind, name)} holds NaN or infinity, or is missing at some seeds, so that "
                "it cannot be compared. Find the fault first, with diagnose(model, batch)."
            )
        # The deviation of equal numbers may be rounding.
        deviation = 0.0 if np.ptp(values) <= 1e-9 else float(values.std(ddof=1))
        if what.endswith(_OF_FEW) and deviation > 0:
            continue  # too few random values to estimate a scale
        summary[key] = float(values.mean()), deviation * (1 if kind == "parameter" else widen)
    return summary


_OF_FEW = " of a few"


def _described(snapshot: Snapshot) -> dict[str, list[tuple[Outline, dict[Number, float]]]]:
    """Each part with its numbers, by group."""
    inputs = [
        (Outline(name, {}), _numbers("input", stats)) for name, stats in snapshot.inputs.items()
    ]
    parameters = [(pairing.outline(p), _numbers("parameter", p.value)) for p in snapshot.parameters]
    layers = []
    for layer in snapshot.layers:
        numbers = _numbers("activation", layer.output)
        if layer.grad is not None and layer.grad.total:
            numbers["gradient", "scale"] = _scale(layer.grad)
        act = flow.act_of(layer)
        if layer.flat is not None and act is not None:
            if act.family == "rectifier":
                numbers["share", "of zeros"] = layer.flat.share
            elif act.family == "saturating":
                numbers["share", "saturated"] = layer.flat.share
        layers.append((pairing.outline(layer), numbers))
    return {"inputs": inputs, "parameters": parameters, "layers": layers}


def _numbers(kind: Kind, stats: TensorStats) -> dict[Number, float]:
    if not stats.total:
        return {}
    if kind == "parameter" and stats.count < compare.FEW:
        return {(kind, "scale" + _OF_FEW): _scale(stats)}
    mean = stats.mean / stats.rms if stats.rms > _TINY else 0.0
    return {(kind, "scale"): _scale(stats), (kind, "mean"): math.nan if stats.nonfinite else mean}


def _scale(stats: TensorStats) -> float:
    """The logarithm of the root mean square; NaN where there is NaN or infinity."""
    return math.nan if stats.nonfinite else math.log(max(stats.rms, _TINY))


# -- in words -------------------------------------------------------------------------------------


def _whose(kind: Kind, name: str) -> str:
    owners = {"input": f"input {name!r}", "parameter": name, "gradient": f"the gradient at {name}"}
    return owners.get(kind, f"the output of {name}")


def _moved_text(
    kind: Kind,
    name: str,
    what: str,
    mean: float,
    value: float,
    deviation: float,
    band: float,
    seeds: int,
) -> str:
    if what.startswith("scale") and mean < math.log(2 * _TINY):
        return f"{_whose(kind, name)} was all zero; its scale is {number(math.exp(value))}"
    if what.startswith("scale") and value < math.log(2 * _TINY):
        return f"{_whose(kind, name)} is all zero; its scale was {number(math.exp(mean))}"
    if what.startswith("scale"):
        ratio, most = math.exp(value - mean), math.exp(band)
        return (
            f"{_whose(kind, name)}: its scale was {number(math.exp(mean))} "
            f"(± {number(deviation, 'share')} over {seeds} seeds), is "
            f"{number(math.exp(value))} (× {number(ratio)}; chance explains up to "
            f"× {number(most)} either way)"
        )
    unit: Unit = "share" if kind == "share" else ""
    was, now, chance, room = (number(x, unit) for x in (mean, value, deviation, band))
    if unit == "share":
        return (
            f"{_whose(kind, name)}: the share {what} was {was} (± {chance} over {seeds} seeds), is "
            f"{now} (chance explains a change of up to {room})"
        )
    return (
        f"{_whose(kind, name)}: its mean was {was} of its scale (± {chance} over {seeds} seeds), "
        f"is {now} (chance explains a change of up to {room})"
    )


def text(changes: Sequence[Difference], most: int = 12) -> str:
    """The differences as lines of text."""
    lines = [f"  {d.kind}: {d.text}" for d in changes[:most]]
    if len(changes) > most:
        lines.append(f"  and {len(changes) - most} more, which may be consequences of these")
    return "\n".join(lines)
