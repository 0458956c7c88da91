"""repair(): try the fixes on a copy, measure again, keep what helps.

Each step applies a fix to a copy of the copy, and checks that with the same batch (and the one held
out). It stays if its finding is gone, milder or clearly smaller and nothing else became worse; else
the copy is thrown away and the reason kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import nn

from nndiag import api, flow, settings
from nndiag.capture.watch import validate
from nndiag.errors import SettingsError
from nndiag.fixes import guards, result, trial
from nndiag.fixes.actions import Action, grouped
from nndiag.fixes.fix import Changes, Fix
from nndiag.fixes.result import Allow, Repair, Step
from nndiag.fixes.trial import Optimizer, Training, Trial
from nndiag.loss import LossMaker
from nndiag.progress import Progress
from nndiag.render import story
from nndiag.report import Report
from nndiag.rule import SEVERITIES, Finding
from nndiag.trained import training as shows_training

MOST_STEPS = 40
"""Fixes tried at most: a model that needs more is to be thought over, not patched."""

MOST_BATCHES = 1000
"""Of the data to train on in a trial, which are kept in memory."""

CLEARLY = 0.25
"""A finding that stays counts as smaller if what it is over its threshold (as a logarithm, where
both are positive) shrinks by this share: under it, chance in drawn weights would do."""


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
    """Repair a copy of a model: try the fixes of its findings, and keep what measurably helps.

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
        only: kinds of fixes (``fix.kind``) to try, such as "redraw".
        trial_steps: train the model before and after for as many steps (200 say much) on these
            batches, keep both losses, and refuse fixes that train worse. 0 for no trial.
        optimizer: a function from parameters to an optimiser for the trial; None is Adam at 1e-3.
        trial_data: batches (with their targets) to train on; None is ``batch``.
        trial_seeds: how many times, from other seeds; a verdict needs several.
        select, ignore, thresholds, config, seed: as for :func:`nndiag.check`.

    Raises:
        ModelError: the model cannot be copied or changed: compiled, scripted, quantised, lazy or
            on the meta device.
        FixError: ``only`` names a kind of fix that does not exist.
        SettingsError: ``allow`` or ``optimizer`` is none that is legal.
        NNDiagError: what :func:`nndiag.check` raises.
    """
    if allow not in ("safe", "all"):
        raise SettingsError(f'allow = {allow!r}: legal are "safe" and "all".')
    wanted = guards.wanted(only)
    validate(model)
    guards.check_changeable(model)
    trainer = trial.checked(optimizer)
    chosen = settings.load(config).override(seed=seed)
    data = guards.repeatable(batch, chosen.max_batches)
    aside = None if held_out is None else guards.repeatable(held_out, chosen.max_batches)

    def look(candidate: nn.Module, at: Any = data, aim: Any = target) -> Report:
        return api.check(
            candidate, at, aim, loss_fn, select=select, ignore=ignore, thresholds=thresholds,
            config=config, seed=seed,
        )  # fmt: skip

    training = None
    if trial_steps:
        training = Training(
            guards.with_target(data, target, model)
            if trial_data is None
            else guards.with_target(guards.repeatable(trial_data, MOST_BATCHES), None, model),
            LossMaker(loss_fn, chosen.seed),
            trainer,
            trial_steps,
            tuple(range(chosen.seed, chosen.seed + trial_seeds)),
        )
    with Progress("repairing") as progress:
        search = _Search(
            original=guards.copied(model),
            allow=allow,
            wanted=wanted,
            seed=chosen.seed,
            batch=data,
            look=look,
            look_aside=None if aside is None else lambda m: look(m, aside, None),
            training=training,
            tick=lambda what: progress.update(None, None, what),
        )
        search.start(trained)
        search.go()
        return _found(model, search)


def _found(model: nn.Module, search: _Search) -> Repair:
    tried = search.tried(search.training) if search.training is not None else None
    before, after = search.before, search.now
    for parameter in after.model.parameters():
        parameter.grad = None  # of the function that it no longer is
    aside = None
    if before.aside is not None and after.aside is not None:
        aside = before.aside, after.aside
    return Repair(
        model=after.model,
        before=before.report,
        after=after.report,
        steps=tuple(search.steps),
        trained=search.trained,
        allow=search.allow,
        seed=search.seed,
        held_out=aside,
        trial=tried,
        notes=tuple(_notes(model, search)),
    )


def _notes(model: nn.Module, search: _Search) -> Iterator[str]:
    if search.trained:
        yield f"the model was taken for a trained one ({search.trained})"
    elif any(step.fix.changes in ("scale", "weights") for step in search.now.steps):
        yield "the model was taken for one that was not trained yet: nothing in it shows training"
    if search.training is not None and len(search.training.batches) == 1:
        yield (
            "the trial trained on a single batch, so its seeds differ only in what is drawn: "
            "trial_data=your DataLoader says more"
        )
    if not search.now.steps:
        return
    holders = guards.optimizers(model)
    for kind, count in holders:
        yield (
            f"{kind} holds {story.plural(count, 'parameter')} of the model as it was: make it "
            "again from the repaired model's parameters"
        )
    if not holders:
        yield "make the optimiser from the repaired model's parameters: they are new ones"


# -- trying ----------------------------------------------------------------------------------------


Tried = set[tuple[str, tuple[Action, ...]]]
"""For which rule which actions were tried."""


@dataclass(eq=False)
class _State:
    """The copy after some of the steps, and what is known of it."""

    model: nn.Module
    report: Report
    aside: Report | None  # on the held-out batch
    steps: tuple[Step, ...] = ()
    losses: np.ndarray | None = None  # of the trial, once it was needed


@dataclass
class _Search:
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
        shown = shows_training(self.before.report.snapshot)
        if trained is None:
            self.trained = shown
        else:
            self.trained = "you said so" if trained else ""

    def go(self) -> None:
        tried: Tried = set()
        good = self.now
        while len(self.steps) < MOST_STEPS:
            finding = next((f for f in self._grave() if any(self._untried(f, tried))), None)
            if finding is None:
                break
            if self._fix(finding, tried):
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

    def _untried(self, finding: Finding, tried: Tried) -> Iterator[tuple[tuple[str, ...], Fix]]:
        """The fixes of a finding, by rank, and where.

        A fix is tried at all places where its rule finds the same at once: one of several layers
        that are off, mended alone, often only moves the trouble.
        """
        alike = [(f, _numbered(f)) for f in self._grave() if f.rule == finding.rule]
        numbers = {fix: which for which, fix in _numbered(finding).items()}
        for fix in self._ranked(finding):
            which = numbers[fix]
            same = [(f.layer, fixes[which]) for f, fixes in alike if which in fixes]
            joined = _joined([other for _, other in same])
            if (finding.rule, joined.actions) not in tried:
                yield tuple(dict.fromkeys(layer for layer, _ in same)), joined
            if (finding.rule, fix.actions) not in tried and fix.actions != joined.actions:
                yield (finding.layer,), fix

    def _ranked(self, finding: Finding) -> list[Fix]:
        fixes = [fix for fix in finding.fixes if fix.runnable]
        if self.wanted is not None:
            fixes = [fix for fix in fixes if fix.kind in self.wanted]
        norm = next((n for n, fix in enumerate(fixes) if fix.kind == "normalize"), -1)
        # A normalisation keeps the activation that was chosen, so it is tried before another one.
        places = {fix: max(n, norm + 0.5) if fix.kind == SWAP else n for n, fix in enumerate(fixes)}
        fixes.sort(key=places.__getitem__)
        if self.trained:  # first what keeps more of what was learned
            fixes.sort(key=lambda fix: LEAST_FIRST.index(fix.changes))
        return fixes

    def _fix(self, finding: Finding, tried: Tried) -> bool:
        """Try the fixes of a finding; whether one was taken.

        The first that helps, or with a training trial the first that also trains better; where
        none does, the first that trains no worse.
        """
        equal: _State | None = None
        for layers, fix in list(self._untried(finding, tried)):
            tried.add((finding.rule, fix.actions))
            step = Step(finding.rule, finding.code, layers, fix, True, "")
            if forbidden := self._forbidden(fix):
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

    def _forbidden(self, fix: Fix) -> str:
        """Why ``allow`` does not let a fix be tried; "" if it does."""
        if self.allow == "all" or fix.safe(bool(self.trained)):
            return ""
        if fix.changes == "architecture":
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
        fix = step.fix
        self.tick(fix.what)
        candidate = copy.deepcopy(self.now.model)
        try:
            result.run(fix, candidate, self.batch, self.seed + len(self.now.steps))
            state = self._state(candidate)
        except Exception as error:  # of the fix, not of what is repaired: that was checked before
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
        result.apply(state.steps, again, self.batch, 1000 * seed)
        return again


LEAST_FIRST = get_args(Changes)
SWAP = "swap-activation"
TAKEN_BACK = "what it brought up could not be fixed, so it was taken back"
NO_BETTER = "but trains no better"


def _losses(found: Trial) -> str:
    old, new = (float(np.median(x)) for x in (found.final_before, found.final_after))
    return f"a loss of {new:.3g} for {old:.3g}"


def _numbered(finding: Finding) -> dict[tuple[str, int], Fix]:
    """A finding's fixes that can be run, by kind and, where there are several, by number."""
    numbered: dict[tuple[str, int], Fix] = {}
    for fix in finding.fixes:
        if fix.runnable:
            number = sum(kind == fix.kind for kind, _ in numbered)
            numbered[fix.kind, number] = fix
    return numbered


def _joined(fixes: Sequence[Fix]) -> Fix:
    """One fix for several places."""
    different = list({fix.actions: fix for fix in fixes}.values())
    if len(different) == 1:
        return different[0]
    whats = list(dict.fromkeys(fix.what for fix in different))
    more = flow.plural(len(different) - 1, "more place")
    what = whats[0] if len(whats) == 1 else f"{whats[0].rstrip('.')}; likewise at {more}."
    actions = grouped(action for fix in different for action in fix.actions)
    return replace(different[0], what=what, actions=actions)


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
    no better for being unknown: that it speaks now is not held against a fix that let it, unless
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
