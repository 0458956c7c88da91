"""Fixes for layers of a snapshot, to be attached to findings by rules.

Each function yields the fixes that fit the given layers, or nothing. None needs the model itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from nndiag import flow, graph, ops, theory
from nndiag.fixes import facts, places
from nndiag.fixes.actions import Action, Argument, grouped, written_module
from nndiag.fixes.fix import Fix
from nndiag.stats import Layer, Parameter, Snapshot

__all__ = [
    "MOST_CODE",
    "MOST_FILLED",
    "center",
    "fill_in",
    "lsuv",
    "normalize",
    "recalibrate",
    "redraw",
    "replace",
    "rescale",
    "reset",
    "reset_norms",
    "restart",
    "scale_output",
    "standardize_input",
    "swap",
    "unfreeze",
    "zero_biases",
]

MOST_CODE = 10_000
"""In characters: longer code for a whole network is not offered, since nobody reads it."""
MOST_FILLED = 0.1
"""The largest share of a parameter's values that may be replaced by zeros."""


# -- weights ---------------------------------------------------------------------------------------


def redraw(snapshot: Snapshot, layers: Iterable[Layer], biases: bool = False) -> Iterator[Fix]:
    """Draw weights again at the scale that fits their fan-in and activation.

    ``biases``: also set biases to zero.
    """
    drawn, actions, schemes = _drawn(snapshot, layers, biases)
    if not drawn:
        return
    yield Fix(
        "redraw",
        f"Re-initialise {facts.names(drawn)} with {' and '.join(schemes)} weights"
        + (" and zero biases." if any(a.verb == "set-zeros" for a in actions) else "."),
        "Then pre-activations keep their scale from layer to layer.",
        f"what {flow.plural(len(drawn), 'layer')} learned is lost; pre-activations start with a "
        "standard deviation near 1",
        "weights",
        actions,
    )


def _drawn(
    snapshot: Snapshot, layers: Iterable[Layer], biases: bool, relu: bool = False
) -> tuple[list[Layer], tuple[Action, ...], tuple[str, ...]]:
    """The layers whose weights can be drawn, the actions that do it, and the schemes' names.

    ``relu``: draw for a ReLU, which will replace the activation.
    """
    drawn: list[Layer] = []
    actions: list[Action] = []
    schemes: dict[str, None] = {}
    for layer in facts.unique(layers):
        act = facts.activation(snapshot, layer, relu)
        scheme = theory.reference_name(act)
        if facts.is_opaque(layer):
            actions.append(Action("draw-xavier", (flow.owner(snapshot, layer),)))
            scheme = "Xavier"
        elif layer.weight is None or facts.weight(snapshot, layer) is None:
            continue
        elif layer.op.startswith("embedding") and flow.is_module(layer):
            # draw-lecun keeps the padding row at zero.
            actions.append(Action("draw-lecun", (flow.owner(snapshot, layer),)))
            scheme = "LeCun"
        else:
            scale = facts.gain(act), layer.weight.fan_in
            actions.append(Action("draw-normal", (layer.weight.name,), scale))
        schemes[scheme] = None
        drawn.append(layer)
    if biases:
        actions += _action("set-zeros", facts.biases(snapshot, drawn))
    return drawn, grouped(actions), tuple(schemes)


@graph.once
def restart(snapshot: Snapshot) -> tuple[Fix, ...]:
    """Initialise the whole model again; everything that was learned is lost."""
    rows = [row for row in snapshot.layers if row.op in ops.LEARNED and row.op not in ops.NORMS]
    drawn, actions, _ = _drawn(snapshot, rows, biases=True)
    if not drawn or len(facts.unique(rows)) < 2:
        return ()
    norms = [action for fix in reset_norms(snapshot, snapshot.layers) for action in fix.actions]
    fix = Fix(
        "restart",
        "Re-initialise the whole network: He before ReLU, Xavier elsewhere, biases at zero.",
        "Layers that were trained behind a faulty layer do not fit a repaired one.",
        "all that was learned is lost; it trains as a new network does",
        "weights",
        (*actions, *norms),
    )
    return (fix,) if len(fix.code()) <= MOST_CODE else ()


def rescale(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Fix]:
    """Scale weights to the std of their reference initialisation; directions stay."""
    scaled: list[Layer] = []
    actions: list[Action] = []
    gains: set[float] = set()
    for layer in facts.unique(layers):
        weight = facts.weight(snapshot, layer)
        if weight is not None and layer.weight is not None and _has_scale(weight):
            gain = facts.gain(facts.activation(snapshot, layer))
            actions.append(Action("rescale", (weight.name,), (gain, layer.weight.fan_in)))
            gains.add(gain)
            scaled.append(layer)
    if scaled:
        yield Fix(
            "rescale",
            f"Rescale the weights of {facts.names(scaled)} to std {_reference_std(gains)}.",
            "The directions they have learned stay.",
            "weights have the standard deviation of their reference initialisation",
            "scale",
            grouped(actions),
        )


def _reference_std(gains: set[float]) -> str:
    if len(gains) > 1:
        return "gain/√fan_in"
    [gain] = gains
    return (
        "1/√fan_in" if gain == 1 else "√(2/fan_in)" if gain == facts.HE else f"{gain:.3g}/√fan_in"
    )


def _has_scale(weight: Parameter) -> bool:
    """Whether a weight is real, and its square fits into float32 (1e-38 to 1e38)."""
    return "complex" not in weight.dtype and 1e-15 < weight.value.rms < 1e15


def lsuv(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Fix]:
    """Scale weights until the outputs have variance 1 on a batch (Mishkin & Matas 2015)."""
    scaled = [
        layer
        for layer in layers
        if (weight := facts.weight(snapshot, layer)) is not None
        and _has_scale(weight)
        and facts.is_named(layer)
        and (layer.op == "linear" or layer.op.startswith("conv"))
        and layer.output.variance > 0  # no scale makes a constant output vary
    ]
    if scaled:
        names = list(dict.fromkeys(flow.owner(snapshot, layer) for layer in scaled))
        yield Fix(
            "lsuv",
            f"Rescale the weights of {facts.listing(names)} until outputs have variance 1 (LSUV).",
            "It is measured on a batch, so it allows for whatever else scales the signal.",
            "every pre-activation of these layers has a variance of 1 on this batch",
            "scale",
            (Action("lsuv", tuple(names)),),
        )


# -- biases and normalisation layers ---------------------------------------------------------------


def zero_biases(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Fix]:
    """Set the biases of these layers to zero."""
    layers = facts.unique(layers)
    if actions := _action("set-zeros", facts.biases(snapshot, layers)):
        yield Fix(
            "reset-bias",
            f"Set the biases of {facts.names(layers)} to zero.",
            "The weights stay as they are.",
            "pre-activations vary around zero again",
            "scale",
            actions,
        )


def reset_norms(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Fix]:
    """Set scale 1 and shift 0 in normalisation layers."""
    norms = [
        layer for layer in facts.unique(layers) if layer.op in ops.NORMS and facts.is_named(layer)
    ]
    names = [flow.owner(snapshot, layer) for layer in norms]
    scales = [f"{name}.weight" for name in names if f"{name}.weight" in snapshot.parameter]
    shifts = [f"{name}.bias" for name in names if f"{name}.bias" in snapshot.parameter]
    if actions := (*_action("set-ones", scales), *_action("set-zeros", shifts)):
        yield Fix(
            "reset-norm",
            f"Set the scale of {facts.names(norms)} to 1 and the shift to 0.",
            "Its output has mean 0 and standard deviation 1 in each unit again.",
            "half of a ReLU's inputs are positive again",
            "weights",
            actions,
        )


def recalibrate() -> Iterator[Fix]:
    """Estimate running statistics again on data."""
    yield Fix(
        "recalibrate",
        "Re-estimate the running statistics on training data.",
        "",
        "evaluation mode normalises with the statistics of these data",
        "scale",
        (Action("recalibrate"),),
    )


# -- data ------------------------------------------------------------------------------------------


def standardize_input(
    snapshot: Snapshot, layers: Iterable[Layer], source: str, what: str = "Standardise the input"
) -> Iterator[Fix]:
    """Scale what these first layers read to mean 0 and standard deviation 1, by fixed numbers.

    ``source``: lines that do it to the data instead. Advice, where a layer is no module.
    """
    layers = facts.unique(layers)
    names = list(dict.fromkeys(flow.owner(snapshot, layer) for layer in layers))
    why = "Usual initialisations and rates are made for columns of mean 0 and standard deviation 1."
    if not all(facts.is_named(layer) for layer in layers) or not names:
        yield Fix("advice", f"{what}: mean 0 and standard deviation 1.", why, source=source)
        return
    yield Fix(
        "standardize-input",
        f"{what}: in the data, or by a fixed layer before {facts.listing(names)}.",
        why,
        "every column has mean 0 and standard deviation 1 on this batch; in the data, use the mean "
        "and standard deviation of the training set",
        "scale",
        (Action("standardize-input", tuple(names)),),
        source,
    )


def scale_output(snapshot: Snapshot, layer: Layer, mean: float, std: float) -> Iterator[Fix]:
    """Multiply and shift a model's output to the mean and standard deviation of its targets."""
    if not facts.is_named(layer) or not (math.isfinite(mean) and std > 0):
        return
    mean, std = float(f"{mean:.6g}"), float(f"{std:.6g}")
    yield Fix(
        "scale-output",
        f"Or multiply the output of {layer.name} by {std:g} and add {mean:g}, by a fixed layer.",
        "The network then learns numbers of size 1.",
        "predictions start at the targets' mean and scale; gradients grow with it, so use an "
        "optimiser that divides by their size, such as Adam",
        "scale",
        (Action("scale-output", (flow.owner(snapshot, layer),), (mean, std)),),
    )


# -- architecture ----------------------------------------------------------------------------------


def normalize(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Fix]:
    """Add a normalisation layer between each of these weight layers and its activation."""
    actions: list[Action] = []
    normalized: list[Layer] = []
    norms: list[places.Norm] = []
    biases = 0
    for layer in facts.unique(layers):
        place = places.after_weights(snapshot, layer)
        if place is None:
            continue
        verb, name, norm = place
        actions.append(Action(verb, (name,), norm))
        normalized.append(layer)
        norms.append(norm)
        biases += _is_over_batch(norm) and layer.weight is not None and bool(layer.weight.bias)
    if not normalized:
        return
    over = {"unit" if _is_over_batch(norm) else "sample" for norm in norms}
    effect = (
        "pre-activations have mean 0 and standard deviation 1 in each "
        f"{' or '.join(sorted(over, reverse=True))}, at every step"
    )
    if biases:
        which, have, them = (
            ("bias", "has", "it") if biases == 1 else (f"{biases} biases", "have", "them")
        )
        effect += f"; the {which} before it {have} no effect any more: drop {them} (bias=False)"
    yield Fix(
        "normalize",
        f"After {facts.each(normalized)}, add {_norm_names(norms)}.",
        "It keeps the scale through training, whatever the weights do.",
        effect,
        "architecture",
        grouped(actions),
        f"In __init__, create {_norm_code(norms)}. In forward, call it between the layer and its "
        "activation.",
    )


def center(snapshot: Snapshot, activations: Iterable[Layer]) -> Iterator[Fix]:
    """Add a normalisation layer after each of these activations, before the next weights."""
    actions: list[Action] = []
    centered: list[Layer] = []
    norms: list[places.Norm] = []
    for activation in facts.unique(activations):
        place = places.after_activation(snapshot, activation)
        if place is not None:
            verb, name, norm = place
            actions.append(Action(verb, (name,), norm))
            centered.append(activation)
            norms.append(norm)
    if centered:
        yield Fix(
            "center",
            f"After {facts.each(centered)}, add {_norm_names(norms)}.",
            "It takes the mean out of each unit.",
            "the next weights' gradients no longer share one sign",
            "architecture",
            grouped(actions),
            f"In __init__, create {_norm_code(norms)}. In forward, call it between the activation "
            "and the next layer.",
        )


def _is_over_batch(norm: places.Norm) -> bool:
    return str(norm[0]).startswith("Batch")


def _norm_names(norms: Sequence[places.Norm]) -> str:
    return " or ".join(dict.fromkeys(str(norm[0]) for norm in norms))


def _norm_code(norms: Sequence[places.Norm]) -> str:
    """``nn.BatchNorm1d(64)``; for several widths ``nn.BatchNorm1d(its width)``."""
    different = list(dict.fromkeys(norms))
    if len(different) == 1:
        return written_module(different[0])
    return " or ".join(dict.fromkeys(f"nn.{norm[0]}(its width)" for norm in different))


def replace(
    snapshot: Snapshot, layer: Layer, new: str, function: str, why: str, effect: str
) -> Iterator[Fix]:
    """Replace one activation, at the output too, by a class of torch.nn without arguments.

    ``function``: what to write in forward in place of a call.
    """
    if flow.is_module(layer) and facts.is_named(layer):
        yield Fix(
            "swap-activation",
            f"Replace {layer.kind} by {new} at {layer.name}.",
            why,
            effect,
            "architecture",
            _action("swap", [flow.owner(snapshot, layer)], new),
            f"In __init__, replace {_module_code(layer)} by {written_module((new,))}",
        )
    else:
        yield Fix(
            "advice",
            f"Replace {_op_names([layer])} by {new}{_locations([layer])}.",
            why,
            effect,
            "architecture",
            source=f"In forward, write {function} in place of {_op_names([layer])}.",
        )


def swap(
    snapshot: Snapshot,
    activations: Iterable[Layer],
    new: tuple[Argument, ...],
    function: str,
    why: str,
    effect: str,
    redrawn: Iterable[Layer] = (),
) -> Iterator[Fix]:
    """Replace activations: modules by an action, function calls by advice to edit the source.

    A module that is also called as a gate or as the model's output is not replaced.

    Args:
        new: a class of torch.nn and its arguments, ``("LeakyReLU", 0.01)``.
        function: the same as a call, ``F.leaky_relu(x, 0.01)``.
        redrawn: layers to initialise for the new activation, a ReLU.
    """
    activations = facts.unique(activations)
    modules = [
        a
        for a in activations
        if facts.is_named(a) and facts.is_hidden(snapshot, a) and not facts.parameters(snapshot, a)
    ]
    calls = [a for a in activations if not flow.is_module(a)]
    if modules:
        swapped = _action("swap", [flow.owner(snapshot, a) for a in modules], *new)
        every = len(modules) == len(activations)
        drawn, actions, _ = _drawn(snapshot, redrawn if every else (), biases=True, relu=True)
        old = " and ".join(dict.fromkeys(map(_module_code, modules)))
        yield Fix(
            "swap-activation",
            f"Replace {_op_names(modules)} by {new[0]} at {facts.names(modules)}"
            f"{_init_text(drawn)}.",
            why,
            effect,
            "architecture",
            (*swapped, *actions),
            f"In __init__, replace {old} by {written_module(new)}.{_init_code(drawn)}",
        )
    if calls:
        every = len(calls) == len(activations)
        drawn, _, _ = _drawn(snapshot, redrawn if every else (), biases=True, relu=True)
        where = _locations(calls)
        yield Fix(
            "advice",
            f"Replace {_op_names(calls)} by {new[0]}{where}{_init_text(drawn)}.",
            why,
            effect,
            "architecture",
            source=f"In forward, write {function} in place of {_op_names(calls)}."
            f"{_init_code(drawn)}",
        )


def _init_text(layers: Sequence[Layer]) -> str:
    return ", with He weights and zero biases" if layers else ""


def _init_code(layers: Sequence[Layer]) -> str:
    """How to initialise layers before a ReLU, as further lines of a change of the source."""
    if not layers:
        return ""
    return (
        "\nFor each layer before it:\n"
        '    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")\n'
        "    nn.init.zeros_(layer.bias)"
    )


def _op_names(activations: Sequence[Layer]) -> str:
    return " and ".join(dict.fromkeys(a.op for a in activations))


def _module_code(activation: Layer) -> str:
    """``nn.Sigmoid()`` for a class of torch.nn; for any other the name of the class."""
    own = activation.kind.lower() != activation.op.replace("_", "")
    return activation.kind if own else f"nn.{activation.kind}()"


def _locations(calls: Sequence[Layer]) -> str:
    """The lines of the calls, as `` (example.py:15)``."""
    lines = list(dict.fromkeys(a.location for a in calls if a.location))
    shown = lines[: facts.MOST_NAMES]
    more = [f"{len(lines) - len(shown)} more"] if len(lines) > len(shown) else []
    return f" ({', '.join([*shown, *more])})" if lines else ""


# -- parameters ------------------------------------------------------------------------------------


def unfreeze(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Fix]:
    """Unfreeze the frozen parameters of these layers, whole modules at once where possible."""
    frozen = [
        p.name
        for layer in facts.unique(layers)
        for p in facts.parameters(snapshot, layer)
        if not p.trainable
    ]
    if frozen:
        modules, parameters = facts.whole_modules(snapshot, frozen)
        labels = [name or "the whole model" for name in [*modules, *parameters]]
        yield Fix(
            "unfreeze",
            f"Let {facts.listing(labels)} train.",
            "",
            "it gets a gradient",
            "nothing",
            (*_action("unfreeze-module", modules), *_action("unfreeze-parameter", parameters)),
        )


def reset(snapshot: Snapshot, parameters: Iterable[Parameter]) -> Iterator[Fix]:
    """Initialise parameters again: weights are drawn, scales set to one, all others to zero."""
    # A user's own norm module has a row only for the call in its forward: "norm/layer_norm".
    norms = [
        flow.owner(snapshot, row) if flow.is_module(row) else row.name.rpartition("/")[0]
        for row in snapshot.layers
        if row.op in ops.NORMS
    ]
    scales = {f"{name}.weight" for name in norms} | {node.parameter for node in snapshot.nodes}
    shifts = {f"{name}.bias" for name in norms}
    users = {row.weight.name: row for row in snapshot.layers if row.weight is not None}
    actions: list[Action] = []
    for p in parameters:
        if p.name in scales:
            actions.append(Action("set-ones", (p.name,)))
        elif len(p.shape) < 2 or p.name in shifts:
            actions.append(Action("set-zeros", (p.name,)))
        else:
            row = users.get(p.name)
            gain = 1.0 if row is None else facts.gain(facts.activation(snapshot, row))
            fan_in = row.weight.fan_in if row and row.weight else math.prod(p.shape[1:])
            actions.append(Action("draw-normal", (p.name,), (gain, fan_in)))
    whole = grouped(actions)
    names = [name for action in whole for name in action.targets]
    if names:
        yield Fix(
            "reset",
            f"Re-initialise {facts.listing(names)}.",
            "A value that is NaN stays NaN in training.",
            "all parameters are finite",
            "weights",
            whole,
        )


def fill_in(parameters: Iterable[Parameter]) -> Iterator[Fix]:
    """Replace values that are not finite by zeros, if they are at most a share ``MOST_FILLED``."""
    parameters = list(parameters)
    names = [p.name for p in parameters]
    if names and all(p.value.nonfinite <= MOST_FILLED * p.value.total for p in parameters):
        yield Fix(
            "fill-in",
            f"Set NaN and infinity in {facts.listing(names)} to zero.",
            "All other values stay. It helps if a few values were damaged, not if a run diverged.",
            "all parameters are finite",
            "scale",
            (Action("zero-nonfinite", tuple(names)),),
        )


def _action(verb: str, names: Iterable[str], *arguments: Argument) -> tuple[Action, ...]:
    """One action, or none if there are no targets."""
    targets = tuple(dict.fromkeys(names))
    return (Action(verb, targets, arguments),) if targets else ()
