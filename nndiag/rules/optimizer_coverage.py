"""Parameters that the optimiser does not hold, or that are not the model's.

What it does
------------

Compares the parameters that the optimiser holds with the model's: as objects, and by the memory
that they lie in. It looks for parameters that train but are not held, that are held but frozen, or
that are held twice. Several optimisers are taken together.

Why it matters
--------------

A parameter gets a gradient whether an optimiser holds it or not. Nothing looks wrong, but it never
moves. This happens if the model is built again, copied, given a new head or loaded with
``assign=True`` after the optimiser was made. It also happens if one part is forgotten in a list of
parameters. A parameter that one optimiser holds twice takes each step twice.

When it is no fault
-------------------

- Training a head alone, with the layers before it frozen. If they are only left out of the
  optimiser, the backward pass still runs through them: a note.
- An optimiser that holds more than the model, such as the parameters of a loss.
- Frozen parameters that are held beside ones that train: a note.
- Parameters that two optimisers share, such as two that take turns: a note.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    batch = torch.randn(128, 8), torch.randint(0, 3, (128,))
    loss_fn = F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

Well::

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from nndiag import flow, graph
from nndiag.experiment import Optimizer
from nndiag.fixes import facts, propose
from nndiag.fixes.fix import advice
from nndiag.flow import plural
from nndiag.rule import Finding, Rule, Severity, Thresholds
from nndiag.stats import Layer, Parameter, Snapshot

__all__ = ["RULE", "check"]

_ALL = advice(
    "Make the optimiser after the model is complete, from all its parameters.",
    "",
    "optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)",
)
_FREEZE = advice(
    "If they are meant to stay fixed, say so: the backward pass then ends before them.",
    "",
    "for p in layer.parameters(): p.requires_grad_(False)",
)
_ONCE = advice(
    "Give each parameter once.",
    "",
    "parameters = list(dict.fromkeys(parameters))",
)
_ONLY_TRAINED = advice(
    "Give the optimiser only what trains.",
    "",
    "parameters = [p for p in model.parameters() if p.requires_grad]",
)

RULE = Rule(
    code="ND801",
    name="optimizer-coverage",
    severity="warning",
    about="training",
    needs=("optimizer",),
    fixes=(_ALL, _FREEZE),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    optimizer = snapshot.experiment.optimizer
    if optimizer is None:
        return
    held = {name for group in optimizer.groups for name in group.held}
    trained = [p for p in snapshot.parameters if p.trainable and p.grad is not None]
    missing = [p for p in trained if p.name not in held]
    frozen = [p for p in snapshot.parameters if p.name in held and not p.trainable]
    evidence: dict[str, float] = {
        "missing": len(missing),
        "trained": len(trained),
        "frozen": len(frozen),
        "foreign": sum(len(group.foreign) for group in optimizer.groups),
    }
    if missing and len(missing) == len(trained):
        yield from _none_held(snapshot, optimizer, missing, frozen, evidence)
    elif missing:
        yield from _some_missing(snapshot, optimizer, missing, held, evidence)
        yield from _frozen_held(frozen, evidence)
    else:
        yield from _frozen_held(frozen, evidence)
    yield from _held_twice(optimizer)


def _none_held(
    snapshot: Snapshot,
    optimizer: Optimizer,
    missing: Sequence[Parameter],
    frozen: Sequence[Parameter],
    evidence: dict[str, float],
) -> Iterator[Finding]:
    what = f"{optimizer.name} holds none of the {len(missing)} parameters that train"
    fixes = RULE.fixes[:1]
    if frozen:
        what += f": the {plural(len(frozen), 'parameter')} of this model that it holds are frozen"
        fixes = (*propose.unfreeze(snapshot, _layers_of(snapshot, frozen)), *fixes)
    elif optimizer.copies:
        what += ": it holds other tensors over the same memory, which get no gradient"
    elif _is_another_copy(optimizer, missing):
        what += ": it holds similar parameters, which are not this model's"
    yield RULE.finding(
        "(optimizer)",
        f"{what}.",
        summary="Nothing will learn: the optimiser holds none of the parameters that train.",
        severity="error",
        evidence=evidence,
        fixes=fixes,
    )


def _some_missing(
    snapshot: Snapshot,
    optimizer: Optimizer,
    missing: Sequence[Parameter],
    held: set[str],
    evidence: dict[str, float],
) -> Iterator[Finding]:
    modules, parameters = facts.whole_modules(snapshot, [p.name for p in missing])
    names = facts.listing([*modules, *parameters])
    in_front = _lie_in_front(snapshot, missing, held)
    severity: Severity = (
        "note" if in_front and not _is_another_copy(optimizer, missing) else "warning"
    )
    why = ""
    if _is_another_copy(optimizer, missing):
        why = " It holds similar parameters, which are not this model's."
    elif severity == "note":
        why = " All of them lie before the parameters that it holds."
    yield RULE.finding(
        "(optimizer)",
        f"{optimizer.name} does not hold {plural(len(missing), 'parameter')} of the "
        f"{evidence['trained']:.0f} that get a gradient: {names}.{why}",
        summary=_short(f"{names} will not learn: the optimiser does not hold ", missing),
        severity=severity,
        evidence=evidence,
        fixes=(RULE.fixes[1], RULE.fixes[0]) if severity == "note" else RULE.fixes,
    )


def _short(text: str, missing: Sequence[Parameter]) -> str:
    what = "it." if len(missing) == 1 else "them."
    if len(text) > 150:
        return f"{len(missing)} parameters will not learn: the optimiser does not hold {what}"
    return text + what


def _frozen_held(frozen: Sequence[Parameter], evidence: dict[str, float]) -> Iterator[Finding]:
    if frozen:
        yield RULE.finding(
            "(optimizer)",
            f"{plural(len(frozen), 'parameter')} that the optimiser holds "
            f"{'is' if len(frozen) == 1 else 'are'} frozen, from {frozen[0].name} on.",
            summary=f"{plural(len(frozen), 'parameter')} will stay as "
            f"{'it is' if len(frozen) == 1 else 'they are'}: frozen, though the optimiser holds "
            f"{'it' if len(frozen) == 1 else 'them'}.",
            severity="note",
            evidence=evidence,
            fixes=(_ONLY_TRAINED,),
        )


def _held_twice(optimizer: Optimizer) -> Iterator[Finding]:
    if not optimizer.twice:
        return
    by_one = Counter((group.index, name) for group in optimizer.groups for name in group.held)
    same = [name for name in optimizer.twice if max(
        count for (_, held), count in by_one.items() if held == name) > 1]  # fmt: skip
    names = same or list(optimizer.twice)
    yield RULE.finding(
        "(optimizer)",
        f"{plural(len(names), 'parameter')} {'is' if len(names) == 1 else 'are'} held more than "
        f"once{' by one optimiser' if same else ', by several optimisers'}, from {names[0]} on.",
        summary=f"{plural(len(names), 'parameter')} will move more than once with each step.",
        severity="warning" if same else "note",
        evidence={"twice": len(names)},
        fixes=(_ONCE,),
    )


def _is_another_copy(optimizer: Optimizer, missing: Sequence[Parameter]) -> bool:
    """Whether it holds foreign parameters of the shapes of all that are missing, or like them.

    A new head or a longer embedding has other sizes, but the same numbers of axes.
    """
    foreign = [shape for group in optimizer.groups for shape in group.foreign]
    axes = Counter(map(len, foreign)) == Counter(len(p.shape) for p in missing)
    return axes or not Counter(tuple(p.shape) for p in missing) - Counter(foreign)


def _lie_in_front(snapshot: Snapshot, missing: Sequence[Parameter], held: set[str]) -> bool:
    """Whether nothing that is held lies before, or in the same layer as, what is not."""
    place = _nodes_of(snapshot)
    of_held = graph.bits(node for name in held for node in place.get(name, ()))
    ancestors = graph.ancestor_bits(snapshot)
    nodes = [node for p in missing for node in place.get(p.name, ())]
    return bool(nodes) and not any((ancestors[n] | 1 << n) & of_held for n in nodes)


@graph.once
def _nodes_of(snapshot: Snapshot) -> dict[str, set[int]]:
    """By parameter, the nodes of the layers that use it."""
    found: dict[str, set[int]] = {}
    for layer in snapshot.layers:
        names = {p.name for p in snapshot.parameters_in.get(flow.owner(snapshot, layer), ())}
        if layer.weight is not None:
            names |= {layer.weight.name, layer.weight.bias or layer.weight.name}
        for name in names:
            found.setdefault(name, set()).add(layer.node)
    return found


def _layers_of(snapshot: Snapshot, parameters: Sequence[Parameter]) -> list[Layer]:
    nodes = {node for p in parameters for node in _nodes_of(snapshot).get(p.name, ())}
    return [layer for layer in snapshot.layers if layer.node in nodes]
