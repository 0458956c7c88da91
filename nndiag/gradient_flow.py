"""How gradients grow or shrink along the chains of a snapshot; shared by two rules.

Measured at pre-activations (the outputs of weight layers), by norms: for a layer with weights of
variance σ² and fan-in n, ‖δ_l‖² = n σ² E[φ'²] ‖δ_{l+1}‖² whatever its width, also for
convolutions (Glorot & Bengio 2010, eq. 6; He et al. 2015, section 2.2). The norms of weight
gradients hide all of it: they stay equal over the layers of a collapsed network (Glorot & Bengio
2010, eq. 14).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nndiag import flow, graph, ops, theory
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix
from nndiag.numbers import number
from nndiag.stats import Layer, Snapshot

__all__ = [
    "OFF_REFERENCE",
    "WORTH_NAMING",
    "GradientPath",
    "Passage",
    "paths",
    "unseen",
    "weight_fixes",
]

OFF_REFERENCE = math.log(1.2)  # weights off their reference by a larger factor get a fix
WORTH_NAMING = 0.1  # from this share on, saturated values or dead units are named as a reason


@dataclass(frozen=True)
class Passage:
    """What one layer does to the gradient on its way from the next pre-activation to its own."""

    layer: Layer
    after: Layer  # the next weight layer, which the gradient comes from
    activation: Layer | None
    factor: float  # ‖δ_l‖ / ‖δ_{l+1}‖, without the effect of pooling
    slope: float  # the activation's factor: root of E φ'² at the measured scale
    weights: float  # the next layer's factor: root of fan_in E[w²]; NaN: not known
    gain: float  # the same factor for weights of the reference initialisation

    @property
    def by_weights(self) -> float:
        """ln of the factor by which the weights are off their reference, without its sign."""
        off = self.weights / self.gain if self.gain else self.weights
        return 0.0 if math.isnan(off) else _log_size(off)

    @property
    def blocked(self) -> bool:
        """Whether no value lies where the activation has a slope."""
        return bool(
            self.activation is not None
            and self.activation.flat is not None
            and self.activation.flat.share == 1
        )


def _log_size(factor: float) -> float:
    return abs(math.log(max(factor, 1e-300)))


@dataclass(frozen=True)
class GradientPath:
    """A chain's gradient, from its last hidden pre-activation to the first observed one."""

    passages: tuple[Passage, ...]
    repeated: bool  # whether one module is called several times: steps in time, not in depth
    band: tuple[float, float]  # factors a healthy network of these widths stays within

    @property
    def first(self) -> Layer:
        return self.passages[0].layer

    @property
    def last(self) -> Layer:
        return self.passages[-1].after

    @property
    def layers(self) -> list[Layer]:
        """Its weight layers, from the first to the last."""
        return [*(p.layer for p in self.passages), self.last]

    @property
    def total(self) -> float:
        return math.prod(p.factor for p in self.passages)

    @property
    def per_layer(self) -> float:
        return self.total ** (1 / len(self.passages)) if self.total > 0 else 0.0

    @property
    def slope_share(self) -> float:
        """The share of the slopes in ln of the total factor; the rest is the weights'."""
        slope = sum(_log_size(p.slope) for p in self.passages)
        weights = sum(p.by_weights for p in self.passages)
        return slope / (slope + weights) if slope + weights > 0 else 0.0

    @property
    def decisive(self) -> Passage | None:
        """The passage that causes over half of ln of the total, or makes it zero; None: no one."""
        zeros = [p for p in self.passages if p.factor == 0]
        if zeros:
            return zeros[-1]
        sizes = [_log_size(p.factor) for p in self.passages]
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        return self.passages[largest] if sizes[largest] > 0.5 * sum(sizes) else None

    @property
    def origin(self) -> Layer:
        """The layer to report: that of the decisive passage, or else the first of the path."""
        p = self.decisive
        if p is None:
            return self.first
        return p.after if p.by_weights > _log_size(p.slope) and not p.blocked else p.layer

    @property
    def beginning(self) -> str:
        """What lies farthest from the loss, as the subject of a sentence."""
        return "The first time steps" if self.repeated else "The first layers"

    @property
    def steps(self) -> str:
        """``"8 sigmoid layers"``, ``"9 calls"``: what the gradient passes."""
        kinds = {p.activation.op if p.activation is not None else "" for p in self.passages}
        kind = f"{kinds.pop()} " if len(kinds) == 1 and not self.repeated else ""
        what = "call" if self.repeated else "layer"
        return flow.plural(len(self.passages), f"{kind.lstrip()}{what}")

    @property
    def reason(self) -> str:
        """Why, in sentences: slopes and weights, saturated values and dead units."""
        passages = self.passages if self.decisive is None else (self.decisive,)
        kinds = dict.fromkeys(p.activation.op for p in passages if p.activation is not None)
        parts = []
        if kinds:
            slope = _mean(p.slope for p in passages)
            parts.append(
                f"The slope of {' and '.join(kinds)} is {slope:.2g} (rms, at the scale of its "
                f"inputs{_flat_text([p.activation for p in passages])})."
            )
        known = [p for p in passages if p.weights > 0]
        if known:
            usual = {
                theory.reference_name(act): act.gain for act in map(_activation_of, known) if act
            }
            weights = _mean(p.weights for p in known)
            text = f"The gain of the weights (std · √fan-in) is {weights:.2g}"
            if len(usual) == 1:
                [(name, gain)] = usual.items()
                text += f"; {name} init has {gain:.2g}"
            parts.append(f"{text}.")
        return " ".join(parts)


def weight_fixes(snapshot: Snapshot, path: GradientPath) -> Iterator[Fix]:
    """Fixes that bring the factors of a path to one by changing weights."""
    off = [p.after for p in path.passages if p.by_weights > OFF_REFERENCE]
    decisive = [path.decisive.after] if path.decisive is not None else []
    yield from propose.redraw(snapshot, off or path.layers)
    yield from propose.rescale(snapshot, off)
    if decisive and decisive[0] not in off:
        yield from propose.lsuv(snapshot, decisive)
    yield from propose.lsuv(snapshot, path.layers)
    yield from propose.restart(snapshot)


def _mean(values: Iterator[float]) -> float:
    """The geometric mean."""
    logs = [math.log(max(v, 1e-30)) for v in values]
    return math.exp(sum(logs) / len(logs))


def _activation_of(passage: Passage) -> theory.Activation | None:
    return flow.act_of(passage.activation) if passage.activation is not None else None


def _flat_text(rows: Sequence[Layer | None]) -> str:
    """The share of saturated values or never active units, as part of a sentence, or ""."""
    flat_rows = [(row, row.flat) for row in rows if row is not None and row.flat is not None]
    if not flat_rows or len(flat_rows) < len(rows):
        return ""
    families = {act.family for row, _ in flat_rows if (act := flow.act_of(row)) is not None}
    if families == {"saturating"}:
        share = sum(f.flat for _, f in flat_rows) / max(sum(f.count for _, f in flat_rows), 1)
        saturated = f"; {number(share, 'share')} of its values are saturated"
        return saturated if share >= WORTH_NAMING else ""
    if families == {"rectifier"} and all(f.open is not None for _, f in flat_rows):
        dead = sum(f.closed for _, f in flat_rows)
        units = sum(len(f.open) for _, f in flat_rows if f.open is not None)
        if dead >= WORTH_NAMING * units:
            return f"; {dead:,} of its {flow.plural(units, 'unit')} were never active"
    return ""


@graph.once
def paths(snapshot: Snapshot) -> tuple[GradientPath, ...]:
    """Every chain with at least three hidden weight layers whose gradients were observed.

    The last weight layer of the model is left out, as a small or zero head may be intended. So are
    layers before one whose gradient was not observed (frozen, or run without gradients).
    """
    paths = []
    for chain in flow.chains(snapshot):
        hidden = _observed_links(chain)
        if len(hidden) < 3:
            continue
        if any(link.layer.grad is not None and link.layer.grad.nonfinite for link in hidden):
            continue
        if _norm(hidden[-1].layer) == 0:
            continue  # no gradient arrives at all: no-gradient and dead-relu report that
        passages = tuple(
            _passage(snapshot, here, after) for here, after in itertools.pairwise(hidden)
        )
        paths.append(GradientPath(passages, chain.repeated, _band(hidden)))
    return tuple(paths)


def _observed_links(chain: flow.Chain) -> tuple[flow.Link, ...]:
    unobserved = [k for k, link in enumerate(chain.hidden) if _norm(link.layer) is None]
    return chain.hidden[unobserved[-1] + 1 :] if unobserved else chain.hidden


def unseen(snapshot: Snapshot) -> Iterator[tuple[Layer, str]]:
    """Chains that begin with trainable layers without an observed gradient, and why not."""
    for chain in flow.chains(snapshot):
        unobserved = chain.hidden[: len(chain.hidden) - len(_observed_links(chain))]
        if len(chain.hidden) >= 3 and any(_trainable(snapshot, link.layer) for link in unobserved):
            why = next(reversed(unobserved[0].layer.unseen), "gradient not observed")
            yield unobserved[0].layer, f"{why}, in {len(unobserved)} of {len(chain.hidden)} layers"


def _trainable(snapshot: Snapshot, layer: Layer) -> bool:
    parameter = snapshot.parameter.get(layer.weight.name) if layer.weight is not None else None
    return parameter is not None and parameter.trainable


def _norm(layer: Layer) -> float | None:
    return None if layer.grad is None or not layer.grad.count else layer.grad.norm


def _passage(snapshot: Snapshot, here: flow.Link, after: flow.Link) -> Passage:
    before, behind = _norm(here.layer), _norm(after.layer)
    assert before is not None
    factor = before / behind if behind else 0.0
    factor /= _pooling(snapshot, here, after)
    act = flow.act_of(here.activation) if here.activation is not None else None
    slope = 1.0
    if act is not None and here.activation is not None and here.activation.input is not None:
        z = here.activation.input
        slope = math.sqrt(max(theory.moments(act, z.std, z.mean).slope_second, 0.0))
    weights = math.nan
    if after.layer.weight is not None:
        parameter = snapshot.parameter.get(after.layer.weight.name)
        if parameter is not None:
            weights = parameter.value.rms * math.sqrt(after.layer.weight.fan_in)
    gain = act.gain if act is not None else 1.0
    return Passage(here.layer, after.layer, here.activation, factor, slope, weights, gain)


def _pooling(snapshot: Snapshot, here: flow.Link, after: flow.Link) -> float:
    """The factor by which pooling after a link changes the gradient's norm."""
    change = 1.0
    rows = [here.activation or here.layer, *here.between]
    for inner, outer in itertools.pairwise(rows):
        a, b = _norm(inner), _norm(outer)
        if outer.op in ops.POOLS and a and b:
            change *= a / b
    # A mean over positions is not a layer: each of P positions gets 1/P of the gradient.
    node = snapshot.nodes[after.layer.node]
    while len(node.inputs) == 1 and snapshot.nodes[node.inputs[0]].layer < 0:
        node = snapshot.nodes[node.inputs[0]]
        if node.op == "mean" and after.layer.input is not None:
            return change * math.sqrt(after.layer.input.total / max(rows[-1].output.total, 1))
    return change


def _band(hidden: Sequence[flow.Link]) -> tuple[float, float]:
    """The factors that chance allows a healthy network of these widths (Hanin & Nica 2018)."""
    widths = [flow.width(link.layer) for link in hidden[1:]]
    act = flow.act_of(hidden[0].activation) if hidden[0].activation is not None else None
    if not widths or act is None:
        return 1.0, 1.0
    low, high = theory.log_norm_band(widths, act)
    return math.exp(min(low, 0.0)), math.exp(max(high, 0.0))
