"""What a repair is: the repaired copy, the steps that led there, the patch that repeats them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from nndiag.capture.untouched import untouched
from nndiag.errors import FixError
from nndiag.fixes import code
from nndiag.fixes.fix import Fix, uses
from nndiag.fixes.trial import Trial
from nndiag.render.formats import Document, Kind, PathLike
from nndiag.report import Report

if TYPE_CHECKING:
    from nndiag.compare import Comparison

__all__ = ["ENDINGS", "Allow", "Repair", "Step", "apply", "patch", "run"]

Allow = Literal["safe", "all"]

ENDINGS = (".pt", ".py", ".html", ".md")
"""Endings of the files that a repair is saved as."""


@dataclass(frozen=True)
class Step:
    """One fix that was tried, or not allowed: its rule and layers, whether it was taken, and why.

    ``tried`` is False if ``allow`` did not permit the fix.
    """

    rule: str
    code: str  # of the rule: "ND301"
    layers: tuple[str, ...]
    fix: Fix
    taken: bool
    reason: str
    tried: bool = True


@dataclass(frozen=True, eq=False, repr=False)
class Repair(Document):
    """A repaired copy of a model, and the steps that led to it. Print it, or save it as a page.

    ``model`` is a deep copy of the given model with all ``taken`` steps applied, without gradients.
    ``before`` and ``after`` are reports on the same batch; ``held_out`` are the two reports on the
    held-out batch, if there is one. ``trial`` holds the losses of the training trial, if one was
    run.
    """

    _kind: ClassVar[Kind] = "repair"

    model: nn.Module
    before: Report
    after: Report
    steps: tuple[Step, ...]
    trained: str  # what shows that the model was trained before; "" for a fresh one
    allow: Allow
    seed: int
    held_out: tuple[Report, Report] | None = None
    """The reports before and after on the held-out batch; None without one."""
    trial: Trial | None = None
    """Losses and verdict of the training trial; None if none was run."""
    notes: tuple[str, ...] = ()
    """What else to know: whether the model counts as trained, which optimiser to create again."""

    @property
    def ok(self) -> bool:
        """The repaired model has no error and no warning."""
        return self.after.ok

    @property
    def taken(self) -> tuple[Step, ...]:
        """The steps that were kept, in order."""
        return tuple(step for step in self.steps if step.taken)

    @property
    def refused(self) -> tuple[Step, ...]:
        """The steps that were not kept or not tried, each with its reason."""
        return tuple(step for step in self.steps if not step.taken)

    @property
    def patch(self) -> str:
        """Python code that changes ``model``, as it was before, into the repaired model."""
        return patch(self.taken, self.before.snapshot.model, self.seed)

    def apply(self, model: nn.Module, batch: Any = None, seed: int | None = None) -> None:
        """Take the same steps on another model of this kind, in place.

        With the repair's own seed (None) and a copy of the original model, the result equals
        ``self.model``. Another seed draws other weights. ``batch``: for steps that need data (LSUV,
        running statistics).

        Raises:
            FixError: a step needs a batch and there is none.
        """
        apply(self.taken, model, batch, self.seed if seed is None else seed)

    def save(self, folder: PathLike, name: str = "repair", *, force: bool = False) -> list[Path]:
        """``name.pt`` (the repaired state dict), ``name.py`` (the patch) and the pages.

        All or none. Nothing that exists is overwritten without ``force``.

        Raises:
            OutputError: one of them exists, or cannot be written.
        """
        from nndiag.render import files
        from nndiag.render import repair as page

        folder = Path(folder)
        files.free([folder / f"{name}{ending}" for ending in ENDINGS], force)
        state = io.BytesIO()
        torch.save(self.model.state_dict(), state)
        contents: dict[Path, str | bytes] = {
            folder / f"{name}.pt": state.getvalue(),
            folder / f"{name}.py": self.patch,
            folder / f"{name}.html": page.html(self),
            folder / f"{name}.md": page.markdown(self),
        }
        files.write(contents)
        return list(contents)

    @property
    def comparison(self) -> Comparison:
        """What differs between before and after by more than chance."""
        return self.before.compare(self.after)


def patch(steps: Sequence[Step], model: str, seed: int) -> str:
    """The code of these steps as a script; it expects a variable ``model``."""
    if not steps:
        return "# Nothing to change.\n"
    lines = [
        f"# What nndiag.repair did to {' '.join(model.split())}.",
        "# Run this on the original model, before you create its optimiser.",
        "import torch",
    ]
    needed = uses(step.fix for step in steps)
    lines += ["from torch import nn"] if "nn" in needed else []
    lines += ["", "from nndiag import fixes"] if "fixes" in needed else []
    lines.append("")
    for number, step in enumerate(steps):
        comment = f"{number + 1}. {step.rule} at {_first_and_count(step.layers)}: {step.fix.what}"
        lines += textwrap.wrap(comment, code.WIDE, initial_indent="# ", subsequent_indent="#    ")
        lines += [f"torch.manual_seed({seed + number})", step.fix.code(imports=False), ""]
    return "\n".join(lines).rstrip() + "\n"


def apply(steps: Sequence[Step], model: nn.Module, batch: Any, seed: int) -> None:
    """Apply these steps, each with the seed that the patch sets for it."""
    for number, step in enumerate(steps):
        if batch is None and step.fix.needs_batch:
            raise FixError(
                f"step {number + 1} ({step.fix.kind}) needs data: pass the batch, "
                "apply(model, batch)."
            )
    for number, step in enumerate(steps):
        run(step.fix, model, batch, seed + number)


def run(fix: Fix, model: nn.Module, batch: Any, seed: int) -> None:
    """Apply a fix with a seed; the random generators are restored afterwards."""
    with untouched(None):
        torch.manual_seed(seed)
        fix.apply(model, batch)


def _first_and_count(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
