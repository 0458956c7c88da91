"""A fix as data: what to change in a model. It can be applied, and written as code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from nndiag.errors import FixError
from nndiag.fixes.actions import Action, Argument

if TYPE_CHECKING:
    from torch import nn

__all__ = ["IMPORT", "KINDS", "Changes", "Fix", "Kind", "advice", "uses"]

Changes = Literal["nothing", "scale", "weights", "architecture"]

Kind = Literal[
    "redraw", "rescale", "lsuv", "restart", "reset-bias", "reset-norm", "fill-in", "reset",
    "unfreeze", "recalibrate", "standardize-input", "scale-output", "normalize", "center",
    "swap-activation", "advice",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)[:-1]
"""Those that can be run: all but "advice"."""

IMPORT = "from nndiag import fixes\n"


@dataclass(frozen=True)
class Fix:
    """What to do about a finding: why it helps, what to expect, and the actions that do it.

    ``actions`` are applied to a model in order. Where there is none, it is "advice" for a person.

    ``changes`` says what happens to the function that the model computes. "nothing": it stays the
    same. "scale": weights keep their directions; biases change, or what goes in or comes out is
    scaled by fixed numbers. "weights": what a layer has learned is lost. "architecture": layers are
    replaced or added. In a model that was never trained all but the last are safe, in a trained one
    only the first.

    ``source`` is the same change as an edit of the model's source, where there is one.
    """

    kind: Kind
    what: str
    why: str = ""
    effect: str = ""
    changes: Changes = "nothing"
    actions: tuple[Action, ...] = ()
    source: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """Qualified names of the parameters and modules it changes."""
        return tuple(dict.fromkeys(name for action in self.actions for name in action.targets))

    @property
    def arguments(self) -> tuple[tuple[Argument, ...], ...]:
        """Those of each action."""
        return tuple(action.arguments for action in self.actions)

    @property
    def runnable(self) -> bool:
        return bool(self.actions)

    @property
    def needs_batch(self) -> bool:
        return any(action.needs_batch for action in self.actions)

    def safe(self, trained: bool) -> bool:
        """Whether the fix loses nothing that was learned or designed."""
        return self.changes == "nothing" or (self.changes != "architecture" and not trained)

    def apply(self, model: nn.Module, batch: Any = None) -> None:
        """Change the model in place. What it draws comes from torch's global generator.

        Raises:
            FixError: there is nothing to run, the model has no such parameter or module, or a
                batch is needed and there is none. Nothing is changed then.
        """
        if not self.actions:
            raise FixError(f"this is advice for a person and cannot be applied: {self.what}")
        if batch is None and self.needs_batch:
            raise FixError(f"{self.kind} needs data: pass the batch, apply(model, batch).")
        for action in self.actions:
            action.check(model)
        for action in self.actions:
            action.apply(model, batch)

    def code(self, imports: bool = True) -> str:
        """Code that does to ``model`` what :meth:`apply` does; "" for advice.

        It expects ``nn``, ``torch`` and ``batch`` to be defined; ``imports`` adds all other
        imports.
        """
        lines = "\n".join(action.code() for action in self.actions)
        return IMPORT + lines if imports and "fixes" in uses([self]) else lines


def advice(what: str, why: str = "", source: str = "", changes: Changes = "nothing") -> Fix:
    """A fix for a person to make: there is nothing that could be run. ``source`` is code."""
    return Fix("advice", what, why, changes=changes, source=source)


def uses(fixes: Iterable[Fix]) -> frozenset[str]:
    """The names that the lines of these fixes need: "torch", "nn", "fixes"."""
    return frozenset(name for fix in fixes for action in fix.actions for name in action.uses)
