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
from collections.abc import Iterator
from dataclasses import dataclass

from nndiag import flow, theory
from nndiag.stats import Layer, Snapshot


@dataclass(frozen=True)
class Passage:
    """What one layer does to the gradient on its way from the next pre-activation to its own."""

    layer: Layer
    factor: float  # ‖δ_l‖ / ‖δ_{l+1}‖, without what pooling does by averaging
    slope: float  # the part of the activation: root of E φ'² at the measured scale
    weights: float  # the part of the next layer's weights: root of fan_in E[w²]
    activation: str


@dataclass(frozen=True)
class GradientPath:
    """One chain's gradient from its last hidden pre-activation (largest index) to its first."""

    chain: flow.Chain
    passages: tuple[Passage, ...]
    total: float
    band: tuple[float, float]  # factors a healthy network of these widths stays within
    underflow: bool  # exactly zero because the number format ends

    @property
    def per_layer(self) -> float:
        return self.total ** (1 / len(self.passages)) if self.total > 0 else 0.0

    @property
    def slope_share(self) -> float:
        """How much of the total's logarithm the activations' slopes account for, over weights'."""
        slope = sum(abs(math.log(max(p.slope, 1e-30))) for p in self.passages)
        off = sum(abs(math.log(max(_off_reference(p), 1e-30))) for p in self.passages)
        return slope / (slope + off) if slope + off > 0 else 0.0

    @property
    def leading(self) -> Passage:
        """Where it happens: one layer that makes half of it alone, or else where it is worst."""
        logs = [abs(math.log(max(p.factor, 1e-300))) for p in self.passages]
        largest = max(range(len(logs)), key=logs.__getitem__)
        alone = len(logs) > 1 and logs[largest] > 0.5 * sum(logs)
        return self.passages[largest] if alone else self.passages[0]


def _off_reference(p: Passage) -> float:
    act = theory.activation(p.activation)
    return p.weights / (act.gain if act is not None and act.gain else 1.0)


def paths(snapshot: Snapshot) -> Iterator[GradientPath]:
    """Every chain with at least three hidden weight layers whose gradients were seen.

    The last weight layer of the model is left out: a small or zero head is a choice.
    """
    for chain in flow.chains(snapshot):
        hidden = chain.hidden
        seen = [link for link in hidden if _norm(link.layer) is not None]
        if len(seen) < 3 or len(seen) != len(hidden):
            continue
        if any(link.layer.grad is not None and link.layer.grad.nonfinite for link in hidden):
            continue
        passages = []
        for here, after in itertools.pairwise(hidden):
            passages.append(_passage(snapshot, here, after))
        if _norm(hidden[-1].layer) == 0:
            continue  # nothing arrives at all: no-gradient and dead-relu speak of that
        total = math.prod(p.factor for p in passages)
        yield GradientPath(chain, tuple(passages), total, _band(hidden), _underflows(hidden))


# Gradients below these sizes are about to leave the number format: its smallest number times the
# 1e-4 to 1e-6 that a layer or two take. Zero behind a larger gradient was made zero by something.
_SMALLEST = {"float16": 1e-3, "float64": 1e-300}


def _underflows(hidden: tuple[flow.Link, ...]) -> bool:
    for here, after in itertools.pairwise(hidden):
        grad = after.layer.grad
        if _norm(here.layer) == 0 and grad is not None and grad.rms > 0:
            return grad.rms < _SMALLEST.get(here.layer.dtype, 1e-34)
    return False


def _norm(layer: Layer) -> float | None:
    return None if layer.grad is None or not layer.grad.count else layer.grad.norm


def _passage(snapshot: Snapshot, here: flow.Link, after: flow.Link) -> Passage:
    before, behind = _norm(here.layer), _norm(after.layer)
    assert before is not None
    factor = before / behind if behind else 0.0
    factor /= _pooling(here)
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
    return Passage(here.layer, factor, slope, weights, act.name if act is not None else "none")


def _pooling(link: flow.Link) -> float:
    """What the pooling behind a link does to the gradient's norm by averaging or picking."""
    change = 1.0
    rows = ([link.activation] if link.activation is not None else [link.layer]) + list(link.between)
    for inner, outer in itertools.pairwise(rows):
        a, b = _norm(inner), _norm(outer)
        if outer.op in flow.POOLS and a and b:
            change *= a / b
    return change


def _band(hidden: tuple[flow.Link, ...]) -> tuple[float, float]:
    """Finite-width band (Hanin & Nica 2018): where chance alone can take a healthy network."""
    widths = [link.layer.weight.fan_in for link in hidden[1:] if link.layer.weight is not None]
    act = flow.act_of(hidden[0].activation) if hidden[0].activation is not None else None
    if not widths or act is None:
        return 1.0, 1.0
    low, high = theory.log_norm_band(widths, act)
    return math.exp(min(low, 0.0)), math.exp(max(high, 0.0))


def reason(path: GradientPath) -> str:
    """Why, in words: slopes, weights, or both."""
    p = path.passages
    slope = math.exp(sum(math.log(max(x.slope, 1e-30)) for x in p) / len(p))
    known = [x.weights for x in p if x.weights > 0]
    act = p[0].activation
    text = f"the slope of {act} is {slope:.2g} (rms, at the scale of its inputs)"
    if known:
        gain = math.exp(sum(math.log(w) for w in known) / len(known))
        reference = theory.activation(act)
        usual = (
            f", where {theory.reference_name(reference)} has {reference.gain:.2g}"
            if reference
            else ""
        )
        text += f" and the weights' gain (std times root of fan-in) is {gain:.2g}{usual}"
    return text
