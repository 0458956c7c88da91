"""Plain numbers about tensors, layers and whole runs: all that rules can use.

Everything here is frozen data over NumPy, without torch. It is written to JSON and read back
unchanged on a machine that has no torch.

Every field of :class:`TensorStats` can be merged: measuring two parts and merging them gives the
same as measuring the whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from nndiag.experiment import Experiment

__all__ = [
    "BoolArray",
    "DirectionStats",
    "Environment",
    "FlatStats",
    "FloatArray",
    "Histogram",
    "Layer",
    "Loss",
    "Node",
    "Parameter",
    "ProbeStats",
    "Shift",
    "Snapshot",
    "TensorStats",
    "UnitStats",
    "Weight",
    "merge_facts",
    "merge_moments",
    "merge_parts",
]

FloatArray = Annotated[
    np.ndarray,
    PlainValidator(lambda v: np.asarray([float(x) for x in v], dtype=np.float64)),
    PlainSerializer(lambda v: [_number(x) for x in v.tolist()], return_type=list),
    WithJsonSchema({"type": "array", "items": {"type": ["number", "string"]}}),
]
BoolArray = Annotated[
    np.ndarray,
    PlainValidator(lambda v: np.asarray(v, dtype=bool)),
    PlainSerializer(lambda v: v.astype(int).tolist(), return_type=list),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1}}),
]


def _number(x: float) -> float | str:
    """The number, or a string for NaN and the infinities, which JSON does not have."""
    return (
        x
        if math.isfinite(x)
        else ("NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity")
    )


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts over fixed, signed, logarithmic bins: four to an octave, from 2^-24 to 2^16.

    Of a fixed, well spread choice of each sample's values: a 32nd of them, 16 to 256.

    ``counts[k]`` with ``k = 0 .. 2·SIDE``: the middle bin holds zeros and everything smaller in
    size than 2^-24; bins to its right are positive and growing, to its left negative.
    Within an octave the four bins have equal width (the two leading mantissa bits), so their
    edges are 1, 1.25, 1.5, 1.75 times a power of two.
    """

    counts: FloatArray

    LOW, HIGH, PER_OCTAVE = -24, 16, 4
    SIDE = (HIGH - LOW) * PER_OCTAVE

    @classmethod
    def edges(cls) -> np.ndarray:
        """The lower ends (in size) of the positive bins, and the end of the last: ``SIDE + 1``."""
        octave, quarter = np.divmod(np.arange(cls.SIDE), cls.PER_OCTAVE)
        lower = np.exp2(cls.LOW + octave) * (1 + quarter / cls.PER_OCTAVE)
        return np.append(lower, 2.0**cls.HIGH)

    def merge(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts)

    def magnitude_quantile(self, q: float) -> float:
        """The ``q``-quantile of ``|x|``, to the precision of the bins (12 to 25 %)."""
        side = self.SIDE
        sizes = np.concatenate(
            [self.counts[side : side + 1], self.counts[side + 1 :] + self.counts[side - 1 :: -1]]
        )
        total = sizes.sum()
        if total == 0:
            return math.nan
        k = int(np.searchsorted(np.cumsum(sizes), q * total))
        if k == 0:
            return 0.0
        edges = self.edges()
        return float(math.sqrt(edges[k - 1] * edges[min(k, side)]))


@dataclass(frozen=True, eq=False)
class UnitStats:
    """Per-unit (per-channel, per-feature) sums, pooled over samples and positions."""

    count: FloatArray
    mean: FloatArray
    m2: FloatArray

    def merge(self, other: UnitStats) -> UnitStats:
        count, mean, m2 = merge_moments(
            self.count, self.mean, self.m2, other.count, other.mean, other.m2
        )
        return UnitStats(count, mean, m2)

    def __len__(self) -> int:
        return len(self.count)

    @property
    def variance(self) -> np.ndarray:
        variance: np.ndarray = self.m2 / np.maximum(self.count, 1)
        return variance

    @property
    def std(self) -> np.ndarray:
        std: np.ndarray = np.sqrt(self.variance)
        return std


@dataclass(frozen=True, eq=False)
class ProbeStats:
    """Mean and variance, over samples, of up to 512 fixed elements of a sample's tensor.

    The variance of one element over samples shows how much the values depend on the input. Pooled
    over units, differences between units hide it: a deep sigmoid stack keeps a pooled std of 0.12
    while its outputs differ by 5e-7 between samples.
    """

    shape: tuple[int, ...]
    samples: int
    mean: FloatArray
    m2: FloatArray

    def merge(self, other: ProbeStats) -> ProbeStats | None:
        """``None`` where the two looked at different elements (sequences of another length)."""
        if self.shape != other.shape:
            return None
        n, mean, m2 = merge_moments(
            self.samples, self.mean, self.m2, other.samples, other.mean, other.m2
        )
        return ProbeStats(self.shape, int(n), mean, m2)

    @property
    def spread(self) -> float:
        """Root of the mean over elements of the variance over samples."""
        return float(math.sqrt(self.m2.mean() / self.samples)) if self.samples else math.nan


@dataclass(frozen=True, eq=False)
class DirectionStats:
    """The sum of feature vectors of length 1, from which their mean pairwise cosine follows."""

    vectors: int
    total: FloatArray

    def merge(self, other: DirectionStats) -> DirectionStats:
        return DirectionStats(self.vectors + other.vectors, self.total + other.total)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine over all pairs of different vectors: (‖Σu‖² − n) / (n (n − 1))."""
        n = self.vectors
        if n < 2:
            return math.nan
        return float((self.total @ self.total - n) / (n * (n - 1)))


@dataclass(frozen=True, eq=False)
class TensorStats:
    """Statistics of all values that one tensor took.

    ``mean`` and ``m2`` (the sum of squared deviations from the mean) are over finite values;
    ``samples`` counts independent examples, not pixels or time steps.
    """

    samples: int
    count: int
    nan: int
    inf: int
    zeros: int
    mean: float
    m2: float
    min: float
    max: float
    histogram: Histogram | None = None
    units: UnitStats | None = None
    probe: ProbeStats | None = None
    direction: DirectionStats | None = None

    @property
    def total(self) -> int:
        return self.count + self.nonfinite

    @property
    def nonfinite(self) -> int:
        return self.nan + self.inf

    @property
    def variance(self) -> float:
        return self.m2 / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        return math.sqrt(self.variance) if self.count else math.nan

    @property
    def second_moment(self) -> float:
        return self.variance + self.mean * self.mean  # infinite where ** would raise

    @property
    def rms(self) -> float:
        """Root mean square; by ``hypot``, since the square of a tiny gradient underflows."""
        return math.hypot(self.std, self.mean) if self.count else math.nan

    @property
    def norm(self) -> float:
        return self.rms * math.sqrt(self.count) if self.count else math.nan

    @property
    def zero_fraction(self) -> float:
        return self.zeros / self.count if self.count else math.nan

    @property
    def spread(self) -> float:
        """How much the values vary across samples, as a standard deviation; NaN if not known."""
        return self.probe.spread if self.probe is not None else math.nan

    def merge(self, other: TensorStats) -> TensorStats:
        count, mean, m2 = merge_moments(
            self.count, self.mean, self.m2, other.count, other.mean, other.m2
        )
        return TensorStats(
            samples=self.samples + other.samples,
            count=int(count),
            nan=self.nan + other.nan,
            inf=self.inf + other.inf,
            zeros=self.zeros + other.zeros,
            mean=float(mean),
            m2=float(m2),
            min=_extreme(min, self.min, other.min),
            max=_extreme(max, self.max, other.max),
            histogram=merge_parts(self.histogram, other.histogram),
            units=merge_parts(self.units, other.units),
            probe=merge_parts(self.probe, other.probe),
            direction=merge_parts(self.direction, other.direction),
        )


def merge_moments(
    n1: Any, mean1: Any, m1: Any, n2: Any, mean2: Any, m2: Any
) -> tuple[Any, Any, Any]:
    """Count, mean and sum of squared deviations of two samples put together.

    Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
    variances", eq. 2.1.
    """
    n = n1 + n2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = np.where(n > 0, n2 / np.maximum(n, 1), 0.0)
        a = np.where(n1 > 0, mean1, mean2)  # an empty part has NaN for a mean
        b = np.where(n2 > 0, mean2, a)
        delta = b - a
        mean = a + delta * share
        m = np.where(n1 > 0, m1, 0.0) + np.where(n2 > 0, m2, 0.0) + delta * delta * n1 * share
    return n, mean, m


def merge_parts(a: Any, b: Any) -> Any:
    """Merge two optional statistics; None where either is missing or they do not match."""
    if a is None or b is None or (isinstance(a, UnitStats) and len(a) != len(b)):
        return None
    if isinstance(a, DirectionStats) and len(a.total) != len(b.total):
        return None
    return a.merge(b)


def _extreme(pick: Any, a: float, b: float) -> float:
    return b if math.isnan(a) else a if math.isnan(b) else pick(a, b)


@dataclass(frozen=True, eq=False)
class FlatStats:
    """How much of an activation's input lies where its slope is (nearly) zero.

    ``flat`` values of ``count`` lie in the flat part; ``open[i]`` says whether unit ``i`` was ever
    outside it. For a rectifier the flat part has slope exactly zero, and ``open`` means "was ever
    active"; for a two-sided saturating activation it is where the slope is under 5 % of its
    maximum.
    """

    samples: int
    count: int
    flat: int
    open: BoolArray | None = None

    def merge(self, other: FlatStats) -> FlatStats:
        opened: np.ndarray | None = None
        if self.open is not None and other.open is not None and len(self.open) == len(other.open):
            opened = self.open | other.open
        return FlatStats(
            self.samples + other.samples,
            self.count + other.count,
            self.flat + other.flat,
            opened,
        )

    @property
    def share(self) -> float:
        return self.flat / self.count if self.count else math.nan

    @property
    def closed(self) -> int:
        """Units that were in the flat part on every value seen."""
        return 0 if self.open is None else int((~self.open).sum())


@dataclass(frozen=True)
class Weight:
    """How a layer uses its weight: its bias, its fans and its axes."""

    name: str
    bias: str | None
    fan_in: int
    fan_out: int
    # The axis of the weight that runs over output units.
    unit_axis: int = 0
    # Share of a convolution's taps that fall on real pixels rather than on zero padding.
    coverage: float = 1.0


@dataclass(frozen=True)
class Shift:
    """What one virtual update of all layers did to this layer's input distribution.

    ``mean``: root mean square over units of the change of the unit's mean, in root mean square
    standard deviations before; ``scale``: ln of the ratio of those, after to before. Over the
    ``units`` that varied across samples at all.
    """

    mean: float
    scale: float
    units: int


@dataclass(frozen=True)
class Node:
    """A point of the data flow: a layer of the report, or a call that joins values.

    ``op`` is the canonical name ("add", "cat", "mul", "matmul", "input", "?"); ``layer`` the index
    of its layer in ``Snapshot.layers``, or -1; ``inputs`` the nodes whose values it uses;
    ``parameter`` the name of a learned scale it multiplies them with. Calls that only reshape,
    index or scale are not nodes: their input counts in their place.
    """

    op: str
    inputs: tuple[int, ...] = ()
    layer: int = -1
    parameter: str = ""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the report: a leaf module that ran, or a function call with a known meaning."""

    name: str
    kind: str  # class of the module, or "function"
    op: str  # canonical function name: "linear", "relu", "layer_norm", …
    shape: tuple[int, ...]
    node: int
    output: TensorStats
    input: TensorStats | None = None
    flat: FlatStats | None = None
    grad: TensorStats | None = None
    location: str | None = None
    options: dict[str, float] = field(default_factory=dict)
    weight: Weight | None = None
    shift: Shift | None = None
    facts: dict[str, float] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    calls: int = 1
    dtype: str = "float32"

    def merge(self, other: Layer) -> Layer:
        """The same row in another batch."""
        return dataclasses.replace(
            self,
            output=self.output.merge(other.output),
            input=merge_parts(self.input, other.input),
            flat=merge_parts(self.flat, other.flat),
            grad=merge_parts(self.grad, other.grad),
            facts=merge_facts(self.facts, other.facts),
            unseen=tuple(dict.fromkeys(self.unseen + other.unseen)),
            calls=self.calls + other.calls,
        )


def merge_facts(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """Counts (names ending in ``_count``) add up; anything else keeps its larger value."""
    merged = dict(a)
    for key, value in b.items():
        if key not in merged:
            merged[key] = value
        elif key.endswith("_count"):
            merged[key] += value
        else:
            merged[key] = max(merged[key], value)
    return merged


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter and its gradient."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    value: TensorStats
    grad: TensorStats | None = None
    # Rows (units): in groups with identical weights, and those that also get identical gradients.
    duplicate_units: int = 0
    duplicate_kept: int = 0
    zero_units: int = 0
    # Rows whose weight gradients all have one sign, of the rows that have a gradient at all.
    one_sign_rows: int = 0
    graded_rows: int = 0
    used: bool = True
    # What gave it a gradient that it did not have: "other seed", "later step", "never"; "": not
    # looked at again.
    again: str = ""
    # The outermost module of an installed library around it, with none of the user's between; ""
    # is the model itself.
    library: str | None = None


@dataclass(frozen=True)
class Loss:
    """The scalar that the gradients come from, and which kind it is (see ``nndiag.loss``)."""

    kind: str  # "loss_fn", "output.loss", "scalar output", "random cotangent", "none"
    value: float = math.nan


@dataclass(frozen=True)
class Environment:
    """Versions, device, number format, seed and mode: what it takes to repeat a check."""

    nndiag: str
    torch: str
    python: str
    device: str
    dtype: str
    seed: int | None
    mode: str  # "train", "eval", or "mixed"
    command: str = ""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One run of a model, as plain data."""

    model: str
    layers: tuple[Layer, ...]
    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]
    inputs: dict[str, TensorStats]
    loss: Loss
    samples: int
    batches: int
    outputs: tuple[int, ...] = ()  # nodes whose values the model returns
    has_gradients: bool = False
    has_step: bool = False
    no_gradients_because: str = ""
    backward_error: str = ""
    no_step_because: str = ""
    never_called: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()  # modules that only hold others: ModuleList, ModuleDict
    not_observed: tuple[str, ...] = ()
    environment: Environment | None = None
    experiment: Experiment = field(default_factory=Experiment)

    @property
    def first_samples(self) -> int:
        """How many samples the first batch has: loss, target and data are looked at in it alone."""
        return self.experiment.samples or self.samples

    @property
    def has_loss(self) -> bool:
        """Whether there is a real loss: the caller's, or one that the model computes."""
        return self.loss.kind in ("loss_fn", "output.loss") or bool(self.experiment.calls)

    @functools.cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes that use its value."""
        used: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in node.inputs:
                used[source].append(index)
        return tuple(tuple(dict.fromkeys(consumers)) for consumers in used)

    @functools.cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @functools.cached_property
    def parameter(self) -> dict[str, Parameter]:
        return {p.name: p for p in self.parameters}

    @functools.cached_property
    def parameters_of(self) -> dict[str, tuple[Parameter, ...]]:
        """By the name of a module, its own parameters."""
        own: dict[str, list[Parameter]] = {}
        for p in self.parameters:
            own.setdefault(p.name.rpartition(".")[0], []).append(p)
        return {module: tuple(parameters) for module, parameters in own.items()}

    @functools.cached_property
    def parameters_in(self) -> dict[str, tuple[Parameter, ...]]:
        """By the name of a module, the parameters anywhere inside it."""
        inside: dict[str, list[Parameter]] = {}
        for p in self.parameters:
            for end, letter in enumerate(p.name):
                if letter == ".":
                    inside.setdefault(p.name[:end], []).append(p)
        return {module: tuple(parameters) for module, parameters in inside.items()}

    def layer_at(self, node: int) -> Layer | None:
        index = self.nodes[node].layer
        return self.layers[index] if index >= 0 else None

    def of_op(self, *ops: str) -> Iterator[Layer]:
        return (layer for layer in self.layers if layer.op in ops)
