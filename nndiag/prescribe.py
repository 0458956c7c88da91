"""Cures as lines of code with the user's own names: rules hand them out, ``repair`` runs them.

What is prescribed is what is tried: a cure that can be run is nothing but its lines, so they have
to be right for this very model. Names that are no Python are passed as strings.
"""

from __future__ import annotations

import keyword
import math
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from nndiag import flow, theory
from nndiag.rule import Prescription
from nndiag.stats import Layer, Parameter, Snapshot, UnitStats, Weight

WIDE = 96
MOST_CODE = 10_000
"""Characters of code for a whole network beyond which nobody reads it; each finding holds it."""
IMPORT = "from nndiag import fixes\n\n"
ROOT = "(root)"  # the row of a model that is a single layer
SMALL_BATCH = 16
"""Samples under which BatchNorm's own noise is a fault (Wu & He 2018, figure 1: from 32 to 16 its
error begins to rise), so GroupNorm or LayerNorm is prescribed."""
GROUPS, CHANNELS = 32, 4
"""GroupNorm has so many groups at most, of so many channels at least, where it can be had (Wu & He
2018, table 3: with one channel a group, instance norm, it is worst)."""


# -- code ------------------------------------------------------------------------------------------


def expression(name: str) -> str:
    """A module or parameter as one writes it, ``model.encoder.weight``; "" where that may be wrong.

    That is for anything with a number in its name. Only a Sequential or a ModuleList can be asked
    for ``model[3]``, not a traced copy of it, nor a ModuleDict, and what holds a module is not
    known here.
    """
    parts = name.split(".")
    return ".".join(["model", *parts]) if all(map(_is_attribute, parts)) else ""


def _is_attribute(word: str) -> bool:
    """Python reads identifiers by their normal form: "ﬁ" is an attribute that nobody has."""
    normal = unicodedata.normalize("NFKC", word)
    return word.isidentifier() and not keyword.iskeyword(word) and word == normal


def parameter(name: str) -> str:
    return expression(name) or f"model.get_parameter({quoted(name)})"


def module(name: str) -> str:
    return (expression(name) or f"model.get_submodule({quoted(name)})") if name else "model"


def quoted(name: str) -> str:
    return f'"{name}"' if name.isprintable() and not set('"\\') & set(name) else repr(name)


def listed(names: Sequence[str]) -> str:
    """Python for a list of names, short where only a number in them counts up."""
    counted = _counted(names)
    if counted:
        return counted
    text = f"[{', '.join(map(quoted, names))}]"
    if len(text) <= WIDE - 16:
        return text
    lines: list[str] = []
    for item in map(quoted, names):
        if lines and len(lines[-1]) + len(item) <= WIDE - 6:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{item},")
    return "[\n" + textwrap.indent("\n".join(lines), "    ") + "\n]"


def _counted(names: Sequence[str]) -> str:
    if len(names) < 3:
        return ""
    split = [re.split(r"(?<![^.])(\d+)(?![^.])", name) for name in names]
    first = split[0]
    plain = all(name.isprintable() and not set('"\\{}') & set(name) for name in names)
    if not plain or any(len(parts) != len(first) for parts in split):
        return ""
    moving = [k for k in range(len(first)) if len({parts[k] for parts in split}) > 1]
    if len(moving) != 1 or moving[0] % 2 == 0:
        return ""
    [k] = moving
    numbers = [int(parts[k]) for parts in split]
    step = numbers[1] - numbers[0]
    if step < 1 or numbers != list(range(numbers[0], numbers[0] + step * len(names), step)):
        return ""
    if [str(n) for n in numbers] != [parts[k] for parts in split]:
        return ""
    span = [str(numbers[0])] if numbers[0] or step > 1 else []
    span += [str(numbers[-1] + 1)] + ([str(step)] if step > 1 else [])
    written = "".join(first[:k]) + "{i}" + "".join(first[k + 1 :])
    if written == "{i}":
        return f"map(str, range({', '.join(span)}))"
    return f'[f"{written}" for i in range({", ".join(span)})]'


def for_each(names: Sequence[str], line: str, of: str) -> str:
    """``line`` (with ``{}`` for the thing) for one name as it is, for several in a loop.

    ``of``: "parameter" or "module".
    """
    names = list(dict.fromkeys(names))
    written = parameter if of == "parameter" else module
    if len(names) == 1:
        return line.format(written(names[0]))
    getter = "get_parameter" if of == "parameter" else "get_submodule"
    return f"for name in {listed(names)}:\n    {line.format(f'model.{getter}(name)')}"


def _std(gain: float, fan_in: int) -> str:
    if gain == 1:
        return f"{fan_in} ** -0.5"
    if abs(gain * gain - 2) < 1e-12:
        return f"(2 / {fan_in}) ** 0.5"
    return f"{gain:.6g} / {fan_in} ** 0.5"


# -- cures -----------------------------------------------------------------------------------------


def redraw(
    snapshot: Snapshot, layers: Iterable[Layer], biases: bool = False, relu: bool = False
) -> Iterator[Prescription]:
    """Weights drawn anew at the scale their fan-in and activation ask for.

    ``biases``: to zero, too. ``relu``: for the ReLU that takes the activation's place.
    """
    drawn: list[Layer] = []
    groups: dict[str, list[str]] = {}
    references: dict[str, None] = {}
    for layer in _once(layers):
        act = _activation(snapshot, layer, relu)
        if _is_opaque(layer):
            line, name, scheme = "fixes.xavier_uniform_({})", _owner(snapshot, layer), "Xavier"
        elif layer.weight is None or _weight(snapshot, layer) is None:
            continue
        elif layer.op.startswith("embedding") and _is_module(layer):
            # It leaves the row for padding at zero.
            line, name, scheme = "fixes.lecun_normal_({})", _owner(snapshot, layer), "LeCun"
        else:
            line = f"nn.init.normal_({{}}, std={_std(act.gain, layer.weight.fan_in)})"
            name, scheme = layer.weight.name, theory.reference_name(act)
        groups.setdefault(line, []).append(name)
        references[scheme] = None
        drawn.append(layer)
    if not drawn:
        return
    lines = [
        for_each(names, line, "module" if line.startswith("fixes.") else "parameter")
        for line, names in groups.items()
    ]
    zeros = _to_zero(snapshot, drawn) if biases else []
    yield Prescription(
        f"Draw the weights of {_some(drawn)} again, {' and '.join(references)}"
        + (", with zero biases." if zeros else "."),
        "Then pre-activations keep their scale from layer to layer.",
        _code([*lines, *zeros]),
        name="redraw",
        effect=f"what {flow.plural(len(drawn), 'layer')} learned is lost; pre-activations start "
        "with a standard deviation near 1",
        changes="weights",
    )


@flow.once
def restart(snapshot: Snapshot) -> tuple[Prescription, ...]:
    """The whole model as a good initialisation would have it: nothing that was learned stays."""
    rows = [row for row in snapshot.layers if row.op in flow.LEARNED and row.op not in flow.NORMS]
    drawn = list(redraw(snapshot, rows, biases=True))
    if drawn and len(_once(rows)) > 1:
        lines = [drawn[0].code.removeprefix(IMPORT)]
        lines += [cure.code for cure in reset_norms(snapshot, snapshot.layers)]
        cure = Prescription(
            "Start the whole network again: He weights before ReLU, Xavier elsewhere, zero biases.",
            "Layers that were trained on what the fault made of their inputs do not fit a repaired "
            "one.",
            _code(lines),
            name="restart",
            effect="all that was learned is lost; it trains as a new network does",
            changes="weights",
        )
        return (cure,) if len(cure.code) <= MOST_CODE else ()
    return ()


def rescale(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Prescription]:
    """Weights brought to the scale of their reference, their directions kept."""
    scaled: list[Layer] = []
    groups: dict[str, list[str]] = {}
    for layer in _once(layers):
        weight = _weight(snapshot, layer)
        if weight is not None and layer.weight is not None and _has_scale(weight):
            act = _activation(snapshot, layer)
            groups.setdefault(_std(act.gain, layer.weight.fan_in), []).append(weight.name)
            scaled.append(layer)
    if not scaled:
        return
    lines = []
    for std, names in groups.items():
        names = list(dict.fromkeys(names))
        if len(names) == 1:
            lines += [f"w = {parameter(names[0])}", _RESCALE.format(std)]
        else:
            body = f"    w = model.get_parameter(name)\n    {_RESCALE.format(std)}"
            lines += [f"for name in {listed(names)}:\n{body}"]
    yield Prescription(
        f"Multiply the weights of {_some(scaled)} up or down to that scale.",
        "The directions they have learned stay.",
        _no_grad(lines),
        name="rescale",
        effect="weights have the standard deviation of their reference initialisation",
        changes="scale",
    )


_RESCALE = "w.mul_({} / w.float().square().mean().sqrt())"


def _has_scale(weight: Parameter) -> bool:
    """Whether it is real, and its square a number of float32 (1e-38 to 1e38)."""
    return "complex" not in weight.dtype and 1e-15 < weight.value.rms < 1e15


def lsuv(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Prescription]:
    """Weights scaled by what comes out (Mishkin & Matas 2015)."""
    names = [
        _owner(snapshot, layer)
        for layer in layers
        if (weight := _weight(snapshot, layer)) is not None
        and _has_scale(weight)
        and _is_named(layer)
        and (layer.op == "linear" or layer.op.startswith("conv"))
        and layer.output.variance > 0  # what is constant has no scale
    ]
    if not names:
        return
    only = f", layers={listed(list(dict.fromkeys(names)))}"
    yield Prescription(
        "Scale the weights so that each layer's output has variance 1 on a batch (LSUV).",
        "It allows for whatever else scales the signal on its way.",
        _code([f"fixes.lsuv_(model, batch, orthogonal=False{only})"]),
        name="lsuv",
        effect="every pre-activation of these layers has a variance of 1 on this batch",
        changes="scale",
    )


def zero_biases(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Prescription]:
    layers = _once(layers)
    lines = _to_zero(snapshot, layers)
    if lines:
        yield Prescription(
            f"Set the biases of {_some(layers)} back to zero.",
            "The weights stay as they are.",
            _code(lines),
            name="reset-bias",
            effect="pre-activations vary around zero again",
            changes="scale",
        )


def reset_norms(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Prescription]:
    """Scale 1 and shift 0 for normalisation layers."""
    norms = [layer for layer in _once(layers) if layer.op in flow.NORMS and _is_named(layer)]
    names = [_owner(snapshot, layer) for layer in norms]
    scales = [f"{name}.weight" for name in names if f"{name}.weight" in snapshot.parameter]
    shifts = [f"{name}.bias" for name in names if f"{name}.bias" in snapshot.parameter]
    lines = [for_each(scales, "nn.init.ones_({})", "parameter")] if scales else []
    lines += [for_each(shifts, "nn.init.zeros_({})", "parameter")] if shifts else []
    if lines:
        yield Prescription(
            f"Set scale and shift of {_some(norms)} back to 1 and 0.",
            "Its output has mean 0 and standard deviation 1 in each unit again.",
            _code(lines),
            name="reset-norm",
            effect="half of a ReLU's inputs are positive again",
            changes="weights",
        )


def normalize(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Prescription]:
    """A normalisation layer between each of these weight layers and its activation.

    Only where an activation follows with nothing that learns, joins or normalises between, so never
    into a residual sum nor before another normalisation.
    """
    lines: dict[tuple[str, str], list[str]] = {}
    useless: list[str] = []
    treated: list[Layer] = []
    for layer in _once(layers):
        activation = flow.activation_after(snapshot, layer)
        norm = _norm(snapshot, layer, layer.output.units, layer.op)
        if activation is None or not norm or _repeated(snapshot, layer):
            continue
        if _fits(snapshot, activation) and _reads_as_it_is(snapshot, activation, layer):
            lines.setdefault(("before", norm), []).append(_owner(snapshot, activation))
        elif _is_named(layer):
            lines.setdefault(("after", norm), []).append(_owner(snapshot, layer))
        else:
            continue
        treated.append(layer)
        if norm.startswith("nn.Batch") and layer.weight is not None and layer.weight.bias:
            useless.append(layer.weight.bias)
    if not lines:
        return
    kinds = list(dict.fromkeys(norm.partition("(")[0].removeprefix("nn.") for _, norm in lines))
    over = {"unit" if kind.startswith("Batch") else "sample" for kind in kinds}
    idle = (
        f" {_listing(useless)} then {'does' if len(useless) == 1 else 'do'} nothing."
        if useless
        else ""
    )
    yield Prescription(
        f"Put {' and '.join(kinds)} between {_some(treated)} and "
        f"{'its activation' if len(treated) == 1 else 'their activations'}.{idle}",
        "It keeps the scale through training, whatever the weights do.",
        _code(_inserting(lines)),
        name="normalize",
        effect="pre-activations have mean 0 and standard deviation 1 in each "
        f"{' or '.join(sorted(over, reverse=True))}, at every step",
        changes="architecture",
    )


def center(snapshot: Snapshot, activations: Iterable[Layer]) -> Iterator[Prescription]:
    """A normalisation layer behind each of these activations, before the next weights."""
    lines: dict[tuple[str, str], list[str]] = {}
    treated: list[Layer] = []
    for activation in _once(activations):
        readers = _readers(snapshot, activation)
        if not readers:
            continue
        made_by = next((row.op for row in flow.makers(snapshot, activation)), "")
        norm = _norm(snapshot, activation, activation.output.units, made_by)
        if norm and _fits(snapshot, activation) and _has_units_of(activation, made_by):
            lines.setdefault(("after", norm), []).append(_owner(snapshot, activation))
            treated.append(activation)
            continue
        reader = readers[0]
        entering = reader.input.units if reader.input is not None else None
        norm = _norm(snapshot, reader, entering, reader.op)
        if norm and len(readers) == 1 and _fits(snapshot, reader):
            lines.setdefault(("before", norm), []).append(_owner(snapshot, reader))
            treated.append(activation)
    if lines:
        yield Prescription(
            f"Put a normalisation layer behind {_some(treated)}.",
            "It takes the mean out of each unit.",
            _code(_inserting(lines)),
            name="center",
            effect="the next weights' gradients no longer share one sign",
            changes="architecture",
        )


def swap(
    snapshot: Snapshot,
    activations: Iterable[Layer],
    new: str,
    function: str,
    why: str,
    effect: str,
    redrawn: Iterable[Layer] = (),
) -> Iterator[Prescription]:
    """Another activation: tried where it is a module, offered as code where it is a call.

    A module is left alone if it is a gate or the model's output at another of its places.
    """
    activations = _once(activations)
    modules = [
        a
        for a in activations
        if _is_named(a) and _is_hidden(snapshot, a) and not _parameters(snapshot, a)
    ]
    calls = [a for a in activations if not _is_module(a)]
    title = new.removeprefix("nn.").partition("(")[0]
    if modules:
        names = [_owner(snapshot, a) for a in modules]
        lines = [_loop("fixes.swap(model, {}, " + new + ")", names)]
        every = len(modules) == len(activations)
        drawn = list(redraw(snapshot, redrawn, biases=True, relu=True)) if every else []
        if drawn:
            lines.append(drawn[0].code.removeprefix(IMPORT))
        yield Prescription(
            f"Use {title} in place of {_some(modules)}"
            + (", with He weights and zero biases." if drawn else "."),
            why,
            _code(lines),
            name="swap-activation",
            effect=effect,
            changes="architecture",
        )
    if calls:
        where = ", ".join(dict.fromkeys(a.location for a in calls if a.location))
        yield Prescription(
            f"In forward, write {function} in place of {calls[0].op}"
            + (f" ({where})." if where else "."),
            why,
            function,
            effect=effect,
            changes="architecture",
        )


def unfreeze(snapshot: Snapshot, layers: Iterable[Layer]) -> Iterator[Prescription]:
    frozen = [
        p.name for layer in _once(layers) for p in _parameters(snapshot, layer) if not p.trainable
    ]
    if frozen:
        modules, parameters = _gathered(snapshot, frozen)
        train = "{}.requires_grad_(True)"
        parts = ((modules, "module"), (parameters, "parameter"))
        told = [name or "the whole model" for name in [*modules, *parameters]]
        yield Prescription(
            f"Let {_listing(told)} train.",
            "",
            _code([for_each(names, train, of) for names, of in parts if names]),
            name="unfreeze",
            effect="gets a gradient; the function it computes stays",
        )


def recalibrate() -> Iterator[Prescription]:
    yield Prescription(
        "Re-estimate the running statistics on training data.",
        "",
        _code(["fixes.recalibrate_(model, batch)  # better: a whole DataLoader"]),
        name="recalibrate",
        effect="evaluation mode normalises by what the data are like",
        changes="scale",
    )


def reset(snapshot: Snapshot, parameters: Iterable[Parameter]) -> Iterator[Prescription]:
    """These parameters as they would start: weights drawn anew, scales one, all else zero."""
    # A norm of one's own has a row for the call in its forward only: "norm/layer_norm".
    norms = [
        _owner(snapshot, row) if _is_module(row) else row.name.rpartition("/")[0]
        for row in snapshot.layers
        if row.op in flow.NORMS
    ]
    scales = {f"{name}.weight" for name in norms} | {node.parameter for node in snapshot.nodes}
    shifts = {f"{name}.bias" for name in norms}
    users = {row.weight.name: row for row in snapshot.layers if row.weight is not None}
    groups: dict[str, list[str]] = {}
    for p in parameters:
        line = "nn.init.ones_({})" if p.name in scales else "nn.init.zeros_({})"
        if len(p.shape) > 1 and p.name not in scales | shifts:
            row = users.get(p.name)
            gain = 1.0 if row is None else _activation(snapshot, row).gain
            fan_in = row.weight.fan_in if row and row.weight else math.prod(p.shape[1:])
            line = f"nn.init.normal_({{}}, std={_std(gain, fan_in)})"
        groups.setdefault(line, []).append(p.name)
    if groups:
        names = [name for group in groups.values() for name in group]
        yield Prescription(
            f"Initialise {_listing(names)} again.",
            "What is not a number stays so, whatever is trained.",
            _code([for_each(group, line, "parameter") for line, group in groups.items()]),
            name="reset",
            effect="all parameters are finite",
            changes="weights",
        )


def fill_in(parameters: Iterable[Parameter]) -> Iterator[Prescription]:
    """Zeros for what is not finite, where that is little: the rest is kept."""
    names = [p.name for p in parameters]
    if names and all(p.value.nonfinite <= FILLED * p.value.total for p in parameters):
        test = "~{0}.isfinite()"
        yield Prescription(
            f"Set what is not finite in {_listing(names)} to zero.",
            "All other values stay: sensible where a few were damaged, not where a run diverged.",
            _no_grad([for_each(names, f"{{0}}[{test}] = 0", "parameter")]),
            name="fill-in",
            effect="all parameters are finite",
            changes="scale",
        )


FILLED = 0.1  # of a parameter's values that can be made up without making up the parameter


# -- which and how ---------------------------------------------------------------------------------


def _once(layers: Iterable[Layer]) -> list[Layer]:
    return list({layer.name: layer for layer in layers}.values())


def _is_module(layer: Layer) -> bool:
    return layer.kind != "function"


def _is_named(layer: Layer) -> bool:
    """Whether it is a module, and not the model itself."""
    return _is_module(layer) and layer.name != ROOT


def _is_opaque(layer: Layer) -> bool:
    """Whether it is a module with several weights inside: recurrent layers, attention."""
    return _is_module(layer) and layer.weight is None and layer.op in flow.LEARNED


def _owner(snapshot: Snapshot, layer: Layer) -> str:
    """The name of a row's module: that of the second call of "act" is "act@2"."""
    first = re.sub(r"@\d+$", "", layer.name)
    return "" if first == ROOT else first if first in snapshot.by_name else layer.name


def _parameters(snapshot: Snapshot, layer: Layer) -> Sequence[Parameter]:
    """Those of the module that a row works with, and of an opaque one's parts."""
    owner = _owner(snapshot, layer)
    if _is_opaque(layer):
        return snapshot.parameters_in.get(owner, ()) if owner else snapshot.parameters
    home = layer.weight.name.rpartition(".")[0] if layer.weight is not None else owner
    return snapshot.parameters_of.get(home, ())


def _gathered(snapshot: Snapshot, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The outermost modules of which every parameter is among ``names``, and what is left."""
    wanted = Counter(prefix for name in set(names) for prefix in _around(name))
    inside = {"": snapshot.parameters} | {m: snapshot.parameters_in.get(m, ()) for m in wanted if m}
    modules: dict[str, None] = {}
    rest: list[str] = []
    for name in names:
        whole = next((m for m in _around(name) if wanted[m] == len(inside[m])), None)
        if whole is None:
            rest.append(name)
        else:
            modules[whole] = None
    return list(modules), rest


def _around(name: str) -> list[str]:
    """Of a parameter's name those of the modules around it, outermost first."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:k]) for k in range(len(parts) + 1)]


def _repeated(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a module runs at several places: one normalisation cannot serve them all."""
    return _owner(snapshot, layer) != layer.name or f"{layer.name}@2" in snapshot.by_name


def _is_hidden(snapshot: Snapshot, activation: Layer) -> bool:
    """Whether a module is neither a gate nor the model's output, wherever it runs."""
    return _owner(snapshot, activation) not in _with_other_roles(snapshot)


@flow.once
def _with_other_roles(snapshot: Snapshot) -> frozenset[str]:
    """Modules one of whose calls is a gate, attention or the model's output."""
    return frozenset(
        _owner(snapshot, row)
        for row in snapshot.layers
        if _is_module(row) and flow.role(snapshot, row) != "hidden"
    )


def _weight(snapshot: Snapshot, layer: Layer) -> Parameter | None:
    return snapshot.parameter.get(layer.weight.name) if layer.weight is not None else None


def _activation(snapshot: Snapshot, layer: Layer, relu: bool = False) -> theory.Activation:
    row = flow.activation_after(snapshot, layer)
    act = flow.act_of(row) if row is not None else None
    if act is not None and relu:
        act = theory.activation("relu")
    if act is None or not math.isfinite(act.gain):  # of a PReLU with NaN for a slope
        act = theory.activation("identity")
    assert act is not None
    return act


def _to_zero(snapshot: Snapshot, layers: Iterable[Layer]) -> list[str]:
    names: list[str] = []
    for layer in layers:
        if layer.weight is not None and layer.weight.bias in snapshot.parameter:
            names.append(layer.weight.bias or "")
        elif _is_opaque(layer):
            names += [p.name for p in _parameters(snapshot, layer) if len(p.shape) == 1]
    return [for_each(names, "nn.init.zeros_({})", "parameter")] if names else []


# -- where a normalisation goes --------------------------------------------------------------------


def _norm(snapshot: Snapshot, layer: Layer, units: UnitStats | None, op: str) -> str:
    """The normalisation for values of a layer's shape, with the units of ``op``; "" for none.

    Over the batch, but for few samples, and for sequences, whose padding would count.
    """
    width, shape = len(units) if units is not None else 0, layer.shape
    if op not in flow.WEIGHTED or not width or len(shape) < 2 or "complex" in layer.dtype:
        return ""
    few = min(snapshot.samples / max(snapshot.batches, 1), shape[0]) < SMALL_BATCH
    if op.startswith("conv"):
        if len(shape) != int(op[-2]) + 2:
            return ""
        if not few:
            return f"nn.BatchNorm{len(shape) - 2}d({width})"
        groups = max(
            g for g in range(1, GROUPS + 1) if width % g == 0 and (g == 1 or width // g >= CHANNELS)
        )
        enough = width // groups * math.prod(shape[2:]) > ONLY_SIGNS
        return f"nn.GroupNorm({groups}, {width})" if enough else ""
    if not few and len(shape) == 2:
        return f"nn.BatchNorm1d({width})"
    return f"nn.LayerNorm({width})" if width > ONLY_SIGNS else ""


ONLY_SIGNS = 2  # of two values normalised together no more is left: -1 and 1


def _fits(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a module can have a normalisation beside it."""
    return _is_named(layer) and not _repeated(snapshot, layer)


def _has_units_of(layer: Layer, op: str) -> bool:
    """Whether its units lie where ``op`` puts them, not on an axis that took their place unseen."""
    width, axis = len(layer.output.units or ()), 1 if op.startswith("conv") else -1
    return layer.shape[axis] == width and layer.shape[1:].count(width) == 1


def _reads_as_it_is(snapshot: Snapshot, activation: Layer, layer: Layer) -> bool:
    """Whether an activation reads what a layer gives, not pooled, reshaped nor transposed."""
    straight = snapshot.nodes[activation.node].inputs == (layer.node,)
    return straight and activation.shape == layer.shape and _has_units_of(layer, layer.op)


def _readers(snapshot: Snapshot, activation: Layer) -> list[Layer]:
    """The weight layers that read an activation; none if anything else does, too."""
    users = flow.users(snapshot, activation.node)
    rows = [row for node in users if (row := snapshot.layer_at(node)) is not None]
    alone = all(
        row.op in flow.WEIGHTED and len(snapshot.nodes[row.node].inputs) == 1 for row in rows
    )
    kept = activation.node in snapshot.outputs
    return rows if alone and len(rows) == len(users) and not kept else []


def _inserting(lines: dict[tuple[str, str], list[str]]) -> list[str]:
    return [
        _loop(f"fixes.insert_{where}(model, {{}}, {norm})", names)
        for (where, norm), names in lines.items()
    ]


def _loop(line: str, names: Sequence[str]) -> str:
    """``line`` with each name, as a string, in place of ``{}``."""
    names = list(dict.fromkeys(names))
    if len(names) == 1:
        return line.format(quoted(names[0]))
    return f"for name in {listed(names)}:\n    {line.format('name')}"


def _code(lines: Sequence[str]) -> str:
    text = "\n".join(lines)
    return IMPORT + text if "fixes." in text else text


def _no_grad(lines: Sequence[str]) -> str:
    return "with torch.no_grad():\n" + textwrap.indent("\n".join(lines), "    ")


def _some(layers: Sequence[Layer]) -> str:
    return _listing([layer.name for layer in layers])


def _listing(names: Sequence[str]) -> str:
    names = [name if name.isprintable() else repr(name) for name in names]
    if len(names) <= 3:
        return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    return f"{names[0]} to {names[-1]} ({len(names)} in all)"


# -- trained or not --------------------------------------------------------------------------------


def training(snapshot: Snapshot) -> str:
    """What shows that a model was trained; "" if nothing does.

    Initialisation leaves biases equal, or uniform within torch's ±1/√fan_in, and scales of
    normalisation layers at one; whatever trains moves them apart. Values set by hand take two
    values at most: then (max - mean)(mean - min) is the variance (the bound of Bhatia & Davis
    2000, which only two-point distributions reach).
    """
    for layer in snapshot.layers:
        if layer.op in flow.NORMS and _is_module(layer):
            for part in ("weight", "bias"):
                p = snapshot.parameter.get(f"{_owner(snapshot, layer)}.{part}")
                if p is not None and _varied(p):
                    return f"{p.name} is not the constant it starts as"
        weight = layer.weight
        bias = snapshot.parameter.get(weight.bias or "") if weight is not None else None
        if weight is None or bias is None or bias.value.count < FEW or not _varied(bias):
            continue
        bound = _drawn_within(snapshot, weight, layer.op)
        beyond = max(abs(bias.value.min), abs(bias.value.max)) > bound * ROUNDED
        # The std of n uniform values is off by 0.45/√n of itself: this is more than five times it.
        least = bound / 3**0.5 * (1 - 2.5 / bias.value.count**0.5)
        if beyond or bias.value.std < least:
            return f"{bias.name} is neither constant nor as torch draws it"
    return ""


def _drawn_within(snapshot: Snapshot, weight: Weight, op: str) -> float:
    """1/√fan_in as torch's ``reset_parameters`` counts it, for transposed convolutions, too."""
    p = snapshot.parameter.get(weight.name)
    if p is None or len(p.shape) < 2:
        return 1 / math.sqrt(weight.fan_in)
    fan_in = p.shape[1] if op == "bilinear" else math.prod(p.shape[1:])
    return 1 / math.sqrt(fan_in)


FEW = 8  # biases that are too few to tell how they were drawn
ROUNDED = 1 + 2**-8  # bfloat16 may round what lies just within a bound to beyond it


def _varied(p: Parameter) -> bool:
    """Whether it takes more than two values."""
    v = p.value
    if v.nonfinite or v.count < 3 or v.std <= 1e-6 * max(abs(v.min), abs(v.max)):
        return False
    return (v.max - v.mean) * (v.mean - v.min) > v.variance * 1.001
