"""repair(): try the prescriptions on a copy, measure again, keep what helps.

Each step runs the very lines that a prescription shows, on a copy of the copy, and checks that with
the same batch (and the one held out). It stays if its finding is gone, milder or clearly smaller
and nothing else became worse; else the copy is thrown away and the reason kept.
"""

from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nndiag import api, fixes, flow, prescribe, settings
from nndiag.batch import Batch, batches
from nndiag.capture.untouched import untouched
from nndiag.capture.watch import validate
from nndiag.errors import (
    CureError,
    ModelError,
    SettingsError,
    did_you_mean,
)
from nndiag.fixes import trial
from nndiag.fixes.trial import Optimizer, Training, Trial
from nndiag.loss import LossMaker
from nndiag.progress import Progress
from nndiag.render import story
from nndiag.render.formats import Document, Kind, PathLike
from nndiag.report import Report
from nndiag.rule import SEVERITIES, Finding, Prescription

if TYPE_CHECKING:
    from nndiag.compare import Comparison

Allow = Literal["safe", "all"]

MOST_STEPS = 40
"""Cures tried at most: a model that needs more is to be thought over, not patched."""

MOST_BATCHES = 1000
"""Of the data to train on in a trial, which are kept in memory."""

ENDINGS = (".pt", ".py", ".html", ".md")
"""Of the files that a repair is saved as."""

CLEARLY = 0.25
"""A finding that stays counts as smaller if what it is over its threshold (as a logarithm, where
both are positive) shrinks by this share: under it, chance in drawn weights would do."""

KINDS = (
    "redraw", "rescale", "lsuv", "restart", "reset-bias", "reset-norm", "fill-in", "reset",
    "unfreeze", "recalibrate", "normalize", "center", "swap-activation",
)  # fmt: skip
"""Names of prescriptions that rules hand out and that can be run."""


@dataclass(frozen=True)
class Step:
    """One cure that was tried, or not allowed: for which finding, at which places, what came.

    ``tried`` is False where ``allow`` forbade even that.
    """

    rule: str
    code: str  # of the rule: "ND301"
    layers: tuple[str, ...]
    prescription: Prescription
    taken: bool
    reason: str
    tried: bool = True


@dataclass(frozen=True, eq=False, repr=False)
class Repair(Document):
    """A repaired copy of a model, and how it came about. ``print`` it, or write it as a page.

    ``model`` is a deep copy of what was given, as ``steps`` that were ``taken`` left it, without
    gradients; ``before`` and ``after`` are reports on the same batch, ``held_out`` the two on the
    other one, if one was given. ``trial`` holds the losses of the training trial, if one was run.
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
    trial: Trial | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """The repaired model has no error and no warning."""
        return self.after.ok

    @property
    def taken(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.taken)

    @property
    def refused(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if not step.taken)

    @property
    def patch(self) -> str:
        """Python that makes ``model`` what this repair's model is, run on one as it was before."""
        return patch(self.taken, self.before.snapshot.model, self.seed)

    def apply(self, model: nn.Module, batch: Any = None, seed: int | None = None) -> None:
        """Take the same steps on another model of this kind, in place.

        With the seed of the repair (None) and a model as the one it was made for, the result is
        what ``self.model`` is; another seed draws other weights. ``batch``: for steps that look at
        data (LSUV, running statistics).

        Raises:
            CureError: a step needs a batch and there is none.
        """
        _apply(self.taken, model, batch, self.seed if seed is None else seed)

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
    """The lines of these steps, one after another, as a script that finds ``model`` there."""
    if not steps:
        return "# Nothing to change.\n"
    lines = [
        f"# What nndiag.repair did to {' '.join(model.split())}.",
        "# Run it on the model, before its optimiser is made.",
    ]
    text = "\n".join(step.prescription.code for step in steps)
    needed = ["import torch"]
    needed += ["import torch.nn.functional as F"] if "F." in text else []
    needed += ["from torch import nn"] if "nn." in text else []
    needed += ["", "from nndiag import fixes"] if "fixes." in text else []
    lines += ["\n".join(needed), ""]
    for number, step in enumerate(steps):
        told = f"{number + 1}. {step.rule} at {_some(step.layers)}: {step.prescription.what}"
        lines += textwrap.wrap(told, prescribe.WIDE, initial_indent="# ", subsequent_indent="#    ")
        lines += [f"torch.manual_seed({seed + number})", _body(step.prescription.code), ""]
    return "\n".join(lines).rstrip() + "\n"


def _apply(steps: Sequence[Step], model: nn.Module, batch: Any, seed: int) -> None:
    for number, step in enumerate(steps):
        if batch is None and re.search(r"\bbatch\b", step.prescription.code):
            raise CureError(
                f"step {number + 1} ({step.prescription.name}) looks at data: give the batch, "
                "apply(model, batch)."
            )
    for number, step in enumerate(steps):
        execute(step.prescription.code, model, batch, seed + number)


def _body(code: str) -> str:
    """A prescription's lines without its imports."""
    return code.removeprefix(prescribe.IMPORT)


def repair(
    model: nn.Module,
    batch: Any,
    target: Any = None,
    loss_fn: Callable[..., Any] | None = None,
    *,
    allow: Allow = "safe",
    held_out: Any = None,
    trained: bool | None = None,
    only: Iterable[str] | str | None = None,
    trial_steps: int = 0,
    optimizer: Optimizer | None = None,
    trial_seeds: int = 5,
    trial_data: Any = None,
    select: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
    config: Mapping[str, Any] | str | Path | bool | None = None,
    seed: int | None = None,
) -> Repair:
    """Cure a copy of a model: try what its findings prescribe, and keep what measurably helps.

    The model itself is left exactly as it is, and so are all random generators.

    Args:
        model, batch, target, loss_fn: as for :func:`nndiag.check`. Data that give something else
            each time they are gone through (an iterator, a shuffling DataLoader) are kept, up to
            the setting max-batches, so that all checks see the same.
        allow: "safe" loses nothing that was learned and keeps the architecture: weights are drawn
            again only in a model that was never trained. "all" tries everything.
        held_out: another batch (with its target), which must not become worse either.
        trained: whether the model was trained. None judges by its biases and normalisation layers;
            the repair says what it found.
        only: names of prescriptions (``prescription.name``) to try, such as "redraw".
        trial_steps: train the model before and after for as many steps (200 say much) on these
            batches, keep both losses, and refuse cures that train worse. 0 for no trial.
        optimizer: a function from parameters to an optimiser for the trial; None is Adam at 1e-3.
        trial_data: batches (with their targets) to train on; None is ``batch``.
        trial_seeds: how many times, from other seeds; a verdict needs several.
        select, ignore, thresholds, config, seed: as for :func:`nndiag.check`.

    Raises:
        ModelError: the model cannot be copied or changed: compiled, scripted, quantised, lazy or
            on the meta device.
        CureError: ``only`` names a prescription that does not exist.
        SettingsError: ``allow`` or ``optimizer`` is none that is legal.
        NNDiagError: what :func:`nndiag.check` raises.
    """
    if allow not in ("safe", "all"):
        raise SettingsError(f'allow = {allow!r}: legal are "safe" and "all".')
    wanted = _wanted(only)
    validate(model)
    _changeable(model)
    trainer = trial.checked(optimizer)
    chosen = settings.load(config).override(seed=seed)
    data = _repeatable(batch, chosen.max_batches)
    other = None if held_out is None else _repeatable(held_out, chosen.max_batches)

    def look(candidate: nn.Module, at: Any = data, aim: Any = target) -> Report:
        return api.check(
            candidate, at, aim, loss_fn, select=select, ignore=ignore, thresholds=thresholds,
            config=config, seed=seed,
        )  # fmt: skip

    training = None
    if trial_steps:
        training = Training(
            _with_target(data, target, model)
            if trial_data is None
            else _with_target(_repeatable(trial_data, MOST_BATCHES), None, model),
            LossMaker(loss_fn, chosen.seed),
            trainer,
            trial_steps,
            tuple(range(chosen.seed, chosen.seed + trial_seeds)),
        )
    with Progress("repairing") as progress:
        work = _Work(
            original=_copied(model),
            allow=allow,
            wanted=wanted,
            seed=chosen.seed,
            batch=data,
            look=look,
            look_aside=None if other is None else lambda m: look(m, other, None),
            training=training,
            tick=lambda what: progress.update(None, None, what),
        )
        work.start(trained)
        work.go()
        tried = None if training is None else work.tried(training)
    for parameter in work.now.model.parameters():
        parameter.grad = None  # of the function that it no longer is
    before, after = work.before, work.now
    aside = None
    if before.aside is not None and after.aside is not None:
        aside = before.aside, after.aside
    return Repair(
        model=after.model,
        before=before.report,
        after=after.report,
        steps=tuple(work.steps),
        trained=work.trained,
        allow=allow,
        seed=chosen.seed,
        held_out=aside,
        trial=tried,
        notes=tuple(_notes(model, work)),
    )


# -- trying ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class _State:
    """The copy after some of the steps, and what is known of it."""

    model: nn.Module
    report: Report
    aside: Report | None  # on the held-out batch
    steps: tuple[Step, ...] = ()
    losses: np.ndarray | None = None  # of the trial, once it was needed


@dataclass
class _Work:
    """The copy as far as it is, and everything that was tried on it."""

    original: nn.Module
    allow: Allow
    wanted: frozenset[str] | None
    seed: int
    batch: Any
    look: Callable[[nn.Module], Report]
    look_aside: Callable[[nn.Module], Report] | None
    training: Training | None
    tick: Callable[[str], object]
    steps: list[Step] = field(default_factory=list)
    trained: str = ""
    before: _State = field(init=False)
    now: _State = field(init=False)

    def start(self, trained: bool | None) -> None:
        self.before = self.now = self._state(self.original)
        shown = prescribe.training(self.before.report.snapshot)
        if trained is None:
            self.trained = shown
        else:
            self.trained = "you said so" if trained else ""

    def go(self) -> None:
        tried: set[tuple[str, str]] = set()
        good = self.now
        while len(self.steps) < MOST_STEPS:
            finding = next((f for f in self._grave() if any(self._untried(f, tried))), None)
            if finding is None:
                break
            if self._cure(finding, tried):
                worse = _worse(self.before.report, self.now.report, unseen=True)
                good = good if worse else self.now
        self.now = good
        self.steps = [
            replace(step, taken=False, reason=TAKEN_BACK)
            if step.taken and step not in good.steps
            else step
            for step in self.steps
        ]

    def _grave(self) -> tuple[Finding, ...]:
        return self.now.report.at_least("warning")

    def _untried(
        self, finding: Finding, tried: set[tuple[str, str]]
    ) -> Iterator[tuple[tuple[str, ...], Prescription]]:
        """What is prescribed for a finding, by rank, and where.

        A cure is tried at all places where its rule finds the same at once: one of several layers
        that are off, mended alone, often only moves the trouble.
        """
        alike = [(f, _numbered(f)) for f in self._grave() if f.rule == finding.rule]
        numbers = {cure: which for which, cure in _numbered(finding).items()}
        for cure in self._ranked(finding):
            which = numbers[cure]
            same = [(f.layer, cures[which]) for f, cures in alike if which in cures]
            joined = _joined([other for _, other in same])
            if (finding.rule, joined.code) not in tried:
                yield tuple(dict.fromkeys(layer for layer, _ in same)), joined
            if (finding.rule, cure.code) not in tried and cure.code != joined.code:
                yield (finding.layer,), cure

    def _ranked(self, finding: Finding) -> list[Prescription]:
        cures = [c for c in finding.prescriptions if c.name]
        if self.wanted is not None:
            cures = [c for c in cures if c.name in self.wanted]
        if self.trained:  # first what keeps more of what was learned
            cures.sort(key=lambda c: _GENTLENESS.index(c.changes))
        return cures

    def _cure(self, finding: Finding, tried: set[tuple[str, str]]) -> bool:
        """Try what is prescribed for a finding; whether one of it was taken.

        The first that helps, or with a training trial the first that also trains better; where
        none does, the first that trains no worse.
        """
        equal: _State | None = None
        for layers, cure in list(self._untried(finding, tried)):
            tried.add((finding.rule, cure.code))
            step = Step(finding.rule, finding.code, layers, cure, True, "")
            if forbidden := self._forbidden(cure):
                self.steps.append(replace(step, taken=False, tried=False, reason=forbidden))
                continue
            state, reason = self._try(finding, step)
            if state is None:
                self.steps.append(replace(step, taken=False, reason=reason))
                continue
            found = None if self.training is None else self._compared(state, self.training)
            if found is not None and found.verdict == "worse":
                reason = f"{reason}, but it trains worse: {_losses(found)}"
                self.steps.append(replace(step, taken=False, reason=reason))
            elif found is not None and found.verdict == "tie":
                if equal is None:
                    equal = state
                else:
                    self.steps.append(replace(step, taken=False, reason=f"{reason}, {NO_BETTER}"))
            else:
                if equal is not None:
                    other = replace(equal.steps[-1], taken=False)
                    self.steps.append(replace(other, reason=f"{other.reason}, {NO_BETTER}"))
                return self._take(state)
        return equal is not None and self._take(equal)

    def _forbidden(self, cure: Prescription) -> str:
        """Why ``allow`` does not let a cure be tried; "" if it does."""
        if self.allow == "all" or cure.safe(bool(self.trained)):
            return ""
        if cure.changes == "architecture":
            return "not tried: it changes the architecture, which allow='all' permits"
        return (
            f"not tried: the model looks trained ({self.trained}) and this would lose some of it; "
            "allow='all' or trained=False permits it"
        )

    def _take(self, state: _State) -> bool:
        self.now = state
        self.steps.append(state.steps[-1])
        return True

    def _try(self, finding: Finding, step: Step) -> tuple[_State | None, str]:
        """What a step leads to, if it helps; and in what, or why not."""
        cure = step.prescription
        self.tick(cure.what)
        candidate = copy.deepcopy(self.now.model)
        try:
            execute(cure.code, candidate, self.batch, self.seed + len(self.now.steps))
            state = self._state(candidate)
        except Exception as error:  # of the cure, not of what is repaired: that was checked before
            told = str(error).splitlines()[0] if str(error) else ""
            return None, f"it raises {type(error).__name__}: {told}"
        worse = _worse(self.now.report, state.report)
        if not worse and state.aside is not None and self.now.aside is not None:
            worse = _worse(self.now.aside, state.aside)
            worse = f"on the held-out batch, {worse}" if worse else ""
        helps = _helps(self.now.report, state.report, finding.rule)
        if worse or not helps:
            return None, worse or f"{finding.rule} stays as it is"
        state.steps = (*self.now.steps, replace(step, reason=helps))
        return state, helps

    def _state(self, model: nn.Module) -> _State:
        return _State(model, self.look(model), self.look_aside(model) if self.look_aside else None)

    # -- the trial

    def tried(self, training: Training) -> Trial:
        """What became of the training in all."""
        return training.compare(
            self._trained(self.before, training), self._trained(self.now, training)
        )

    def _compared(self, state: _State, training: Training) -> Trial:
        return training.compare(self._trained(self.now, training), self._trained(state, training))

    def _trained(self, state: _State, training: Training) -> np.ndarray:
        if state.losses is None:
            state.losses = training.losses(
                lambda seed: self._redrawn(state, seed), tick=lambda: self.tick("training")
            )
        return state.losses

    def _redrawn(self, state: _State, seed: int) -> nn.Module:
        """The original with the steps taken, drawn from another seed."""
        if seed == self.seed or not state.steps:
            return state.model
        again = copy.deepcopy(self.original)
        # Far from the seeds of the steps themselves, which count up from the first.
        _apply(state.steps, again, self.batch, 1000 * seed)
        return again


TAKEN_BACK = "what it brought up could not be cured, so it was taken back"
NO_BETTER = "but trains no better"


def _losses(found: Trial) -> str:
    old, new = (float(np.median(x)) for x in (found.final_before, found.final_after))
    return f"a loss of {new:.3g} for {old:.3g}"


def _numbered(finding: Finding) -> dict[tuple[str, int], Prescription]:
    """A finding's cures that can be run, by name and, where there are several, by number."""
    numbered: dict[tuple[str, int], Prescription] = {}
    for cure in finding.prescriptions:
        if cure.name:
            number = sum(name == cure.name for name, _ in numbered)
            numbered[cure.name, number] = cure
    return numbered


_GENTLENESS = ("nothing", "scale", "weights", "architecture")


def execute(code: str, model: nn.Module, batch: Any, seed: int) -> None:
    """Run a prescription's lines on ``model``; random generators are as before afterwards."""
    names = {
        "model": model, "batch": batch, "torch": torch, "nn": nn, "F": F, "math": math,
        "fixes": fixes,
    }  # fmt: skip
    with untouched(None):
        torch.manual_seed(seed)
        exec(compile(code, "<prescription>", "exec"), names)


def _joined(cures: Sequence[Prescription]) -> Prescription:
    """One cure for several places."""
    different = list({cure.code: cure for cure in cures}.values())
    if len(different) == 1:
        return different[0]
    whats = list(dict.fromkeys(cure.what for cure in different))
    more = flow.plural(len(different) - 1, "more place")
    what = whats[0] if len(whats) == 1 else f"{whats[0].rstrip('.')}; likewise at {more}."
    bodies = [_body(cure.code) for cure in different]
    # The same line may come with several findings; a loop's own lines stay together.
    code = "\n".join(dict.fromkeys(bodies))
    if any(cure.code.startswith(prescribe.IMPORT) for cure in different):
        code = prescribe.IMPORT + code
    return replace(different[0], what=what, code=code)


def _rank(report: Report) -> dict[str, int]:
    """For each rule the severity of its worst finding: 2 for an error, 1 for a warning."""
    worst: dict[str, int] = {}
    for finding in report.findings:
        grave = len(SEVERITIES) - 1 - SEVERITIES.index(finding.severity)
        worst[finding.rule] = max(worst.get(finding.rule, 0), grave)
    return worst


def _worse(old: Report, new: Report, unseen: bool = False) -> str:
    """What became worse, in words; "" for nothing.

    What a rule could not look at before, since nothing finite or nothing at all came through, was
    no better for being unknown: that it speaks now is not held against a cure that let it, unless
    ``unseen`` asks.
    """
    if len(new.crashed) > len(old.crashed):
        return f"{new.crashed[-1].rule} crashes on the result"
    before, after = _rank(old), _rank(new)
    hidden = 0  # as grave as what may have been hidden: beside NaN hardly a rule can judge
    if not unseen and max(before.values(), default=0) == 2:
        hidden = 2 if before.get("non-finite") == 2 else 1
    for finding in new.at_least("warning"):
        was, now = before.get(finding.rule, 0), after[finding.rule]
        if was == 0 and now > hidden:
            return f"it brings a new {finding.severity}: {finding.rule} at {finding.layer}"
        if 0 < was < now:
            return f"{finding.rule} gets graver, an {finding.severity} at {finding.layer}"
    for name in before:
        a, b = _size(old, name), _size(new, name)
        if b[0] > a[0] and before[name] == after.get(name, 0) > 0:
            return f"{name} spreads, from {a[0]} to {b[0]} places"
    return ""


def _helps(old: Report, new: Report, name: str) -> str:
    """In what the targeted rule's findings are better now, in words; "" if in nothing."""
    before, after = _rank(old).get(name, 0), _rank(new).get(name, 0)
    if not after:
        return f"{name} is gone"
    a, b = _size(old, name), _size(new, name)
    if after < before:
        return f"{name} is a {SEVERITIES[len(SEVERITIES) - 1 - after]} now"
    if b[0] < a[0]:
        return f"{name} is left in {b[0]} of {a[0]} places"
    if b[1] < (1 - CLEARLY) * a[1]:
        return f"{name} is {1 - b[1] / a[1]:.0%} nearer to its threshold"
    return ""


def _size(report: Report, name: str) -> tuple[int, float]:
    """How many findings of a rule are more than notes, and how far they are over, in all."""
    found = [f for f in report.at_least("warning") if f.rule == name]
    sticks = [stick for f in found if (stick := story.yardstick(f)) is not None]
    return len(found), sum(stick.excess for stick in sticks)


# -- what can be repaired, and with what ----------------------------------------------------------


def _wanted(only: Iterable[str] | str | None) -> frozenset[str] | None:
    if only is None:
        return None
    names = [only] if isinstance(only, str) else list(only)
    for name in names:
        if name not in KINDS:
            raise CureError(
                f"no prescription is called {name!r}.{did_you_mean(name, KINDS)} Legal are: "
                f"{', '.join(KINDS)}."
            )
    return frozenset(names)


def _changeable(model: nn.Module) -> None:
    """Raises ModelError for what cannot be changed layer by layer."""
    if _is_compiled(model):
        raise ModelError(
            "the model is compiled, and what is compiled cannot be changed layer by layer. Repair "
            "the model as it was before torch.compile (model._orig_mod) and compile the result."
        )
    for name, part in model.named_modules():
        where = name or "the model"
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{where} is a ScriptModule, whose layers are fixed. Repair the model that it was "
                "made from, and script or trace the result."
            )
        if ".quantized" in type(part).__module__:
            raise ModelError(
                f"{where} ({type(part).__name__}) is quantised: its weights cannot be drawn or "
                "scaled. Repair the floating-point model and quantise the result."
            )
    for name, tensor in model.named_parameters():
        if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
            raise ModelError(
                f"{name} is {tensor.dtype}: its values cannot be drawn or scaled. Repair the "
                "floating-point model and quantise the result."
            )


def _is_compiled(model: nn.Module) -> bool:
    return any(
        type(part).__name__ == "OptimizedModule" or part._compiled_call_impl is not None
        for part in model.modules()
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        told = str(error).splitlines()[0] if str(error) else ""
        raise ModelError(
            f"a repair works on a copy, and {type(model).__name__} cannot be copied: "
            f"copy.deepcopy raises {type(error).__name__}: {told}. Tensors that are results of "
            "computations, locks and open files cannot be; take them out, or give the model a "
            "__deepcopy__."
        ) from error


def _repeatable(data: Any, most: int) -> Any:
    """Data that give the same whenever they are gone through."""
    if isinstance(data, (torch.Tensor, tuple, list, Mapping, Batch, str, bytes)):
        return data
    if not isinstance(data, Iterable):
        return data  # check() says what is wrong with it
    return list(itertools.islice(data, most))


def _with_target(data: Any, target: Any, model: nn.Module) -> list[Batch]:
    stream = list(batches(data, model))
    return stream if target is None else [replace(b, target=target) for b in stream]


def _notes(model: nn.Module, work: _Work) -> Iterator[str]:
    if work.trained:
        yield f"the model was taken for a trained one ({work.trained})"
    elif any(step.prescription.changes in ("scale", "weights") for step in work.now.steps):
        yield "the model was taken for one that was not trained yet: nothing in it shows training"
    if work.training is not None and len(work.training.batches) == 1:
        yield (
            "the trial trained on a single batch, so its seeds differ only in what is drawn: "
            "trial_data=your DataLoader says more"
        )
    if not work.now.steps:
        return
    holders = _optimizers(model)
    for kind, count in holders:
        yield (
            f"{kind} holds {story.plural(count, 'parameter')} of the model as it was: make it "
            "again from the repaired model's parameters"
        )
    if not holders:
        yield "make the optimiser from the repaired model's parameters: they are new ones"


def _optimizers(model: nn.Module) -> list[tuple[str, int]]:
    """Optimisers alive that hold parameters of this model, and how many."""
    ours = {id(p) for p in model.parameters()}
    found = []
    for thing in gc.get_objects():
        # type(), not isinstance: some objects' __class__ is a property that does work.
        if issubclass(type(thing), torch.optim.Optimizer):
            groups = vars(thing).get("param_groups") or []
            held = sum(id(p) in ours for group in groups for p in group["params"])
            if held:
                found.append((type(thing).__name__, held))
    return found


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
