"""Weights that the forward uses but that are not among ``model.parameters()``.

What it does
------------

Looks for tensors that require a gradient, get one from the loss, and are no parameters of the
model: the weights of layers in a Python list or dict, of layers that the forward creates anew, or
tensors that were never wrapped in ``nn.Parameter``.

Why it matters
--------------

``model.parameters()`` does not list them. So the optimiser does not change them, ``state_dict``
does not save them and ``.to(device)`` does not move them. A layer that is created in the forward
starts from new random weights at every call.

When it is no fault
-------------------

Never reported: the model's inputs, a network that runs under ``no_grad`` (a teacher), and weights
that the loss function brings.

Sick::

    torch.manual_seed(0)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(8, 16), nn.Linear(16, 16)]
            self.head = nn.Linear(16, 2)
        def forward(self, x):
            for layer in self.layers:
                x = F.relu(layer(x))
            return self.head(x)
    model, batch = Net(), torch.randn(128, 8)

Well::

    model.layers = nn.ModuleList(model.layers)
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

_LIST = advice(
    "Keep the layers in an nn.ModuleList (or nn.ModuleDict) instead of a Python list or dict.",
    "Then model.parameters() lists their weights, and the optimiser trains them.",
    "self.layers = nn.ModuleList(layers)",
)
_TENSOR = advice(
    "Make it a parameter of the module.",
    "Then model.parameters() lists it, and the optimiser trains it.",
    "self.scale = nn.Parameter(torch.ones(8))",
)
_CREATED = advice(
    "Create the layer once, in __init__, and keep it as an attribute.",
    "Created in the forward, it starts from new random weights at every call.",
    "self.layer = nn.Linear(8, 8)  # in __init__",
)

RULE = Rule(
    code="ND205",
    name="unregistered-parameter",
    severity="error",
    about="parameters",
    needs=("gradients",),
    fixes=(_LIST, _TENSOR, _CREATED),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    tensors = snapshot.experiment.unregistered
    if not tensors:
        return
    first = tensors[0]
    values = sum(tensor.size for tensor in tensors)
    lost = flow.plural(len(tensors), "weight tensor")
    one = len(tensors) == 1
    names = ", ".join(tensor.name or "no attribute of the model" for tensor in tensors[:3])
    more = f" and {len(tensors) - 3} more" if tensors[3:] else ""
    if any(tensor.name for tensor in tensors):
        held = (
            f"the model holds {'it' if one else 'them'} as {names}{more}, where torch does not look"
        )
        fix = _LIST if first.in_module else _TENSOR
    else:
        held, fix = f"{'it is' if one else 'they are'} no attribute of the model", _CREATED
    yield RULE.finding(
        first.layer,
        f"{lost} ({flow.plural(values, 'value')}) {'takes' if one else 'take'} part in the loss "
        f"but {'is' if one else 'are'} not among model.parameters(): {held}.",
        summary=f"{lost} will not learn: the forward uses {'it' if one else 'them'}, but "
        f"model.parameters() does not list {'it' if one else 'them'}.",
        location=first.location,
        fixes=(fix,),
        evidence={"tensors": len(tensors), "values": values},
    )
