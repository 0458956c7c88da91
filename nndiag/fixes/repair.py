"""repair(): try the fixes on a copy, check again, keep what helps.

Each step applies a fix to a new copy and checks it on the same batch, and on the held-out one. The
step is kept if its finding is gone, less severe or clearly smaller, and nothing else became worse.
Otherwise the copy is dropped and the reason recorded.
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

__all__ = [
    "CLEAR_SHARE",
    "DATA",
    "LEAST_FIRST",
    "MOST_BATCHES",
    "MOST_STEPS",
    "NO_BETTER",
    "SWAP",
    "TAKEN_BACK",
    "TriedActions",
    "repair",
]

MOST_STEPS = 40
"""The most fixes that are tried. A model that needs more needs another design."""

MOST_BATCHES = 1000
"""The most batches of trial data, which are kept in memory."""

CLEAR_SHARE = 0.25
"""A remaining finding counts as smaller if its distance from the threshold (of the logarithms, if
both are positive) shrinks by this share. Less can be chance in the drawn weights."""


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
        SettingsError: ``allow`` or ``optimizer`` has a value that is not allowed.
        NNDiagError: what :func:`nndiag.check` raises.
    """
    if allow not in ("safe", "all"):
        raise SettingsError(f'allow = {allow!r}: write "safe" or "all".')
    kinds = guards.checked_kinds(only)
    validate(model)
    guards.check_changeable(model)
    make_optimizer = trial.checked_optimizer(optimizer)
    chosen = settings.load(config).override(seed=seed)
    data = guards.repeatable(batch, chosen.max_batches)
    held_out_data = None if held_out is None else guards.repeatable(held_out, chosen.max_batches)

    def check(candidate: nn.Module, at: Any = data, at_target: Any = target) -> Report:
        return api.check(
            candidate, at, at_target, loss_fn, select=select, ignore=ignore, thresholds=thresholds,
            config=config, seed=seed,
        )  # fmt: skip

    training = None
    if trial_steps:
        training = Training(
            guards.with_target(data, target, model)
            if trial_data is None
            else guards.with_target(guards.repeatable(trial_data, MOST_BATCHES), None, model),
            LossMaker(loss_fn, chosen.seed),
            make_optimizer,
            trial_steps,
            tuple(range(chosen.seed, chosen.seed + trial_seeds)),
        )
    with Progress("repairing") as progress:
        search = _Search(
            original=guards.copied(model),
            allow=allow,
            kinds=kinds,
            seed=chosen.seed,
            batch=data,
            check=check,
            check_held_out=None
            if held_out_data is None
            else lambda m: check(m, held_out_data, None),
            training=training,
            tick=lambda what: progress.update(None, None, what),
        )
        search.start(trained)
        search.run()
        return _result(model, search)


def _result(model: nn.Module, search: _Search) -> Repair:
    tried = search.tried(search.training) if search.training is not None else None
    before, after = search.before, search.now
    for parameter in after.model.parameters():
        parameter.grad = None  # of the model before the last step
    held_out = None
    if before.held_out is not None and after.held_out is not None:
        held_out = before.held_out, after.held_out
    return Repair(
        model=after.model,
        before=before.report,
        after=after.report,
        steps=tuple(search.steps),
        trained=search.trained,
        allow=search.allow,
        seed=search.seed,
        held_out=held_out,
        trial=tried,
        notes=tuple(_notes(model, search)),
    )


def _notes(model: nn.Module, search: _Search) -> Iterator[str]:
    if search.trained:
        yield f"the model was treated as trained ({search.trained})"
    elif any(step.fix.changes in ("scale", "weights") for step in search.now.steps):
        yield "the model was treated as not trained yet: nothing in it shows training"
    if search.training is not None and len(search.training.batches) == 1:
        yield (
            "the trial trained on a single batch, so its seeds differ only in the weights that are "
            "drawn; for a stronger comparison pass a DataLoader as trial_data"
        )
    if not search.now.steps:
        return
    holders = guards.optimizers(model)
    for kind, count in holders:
        yield (
            f"create the optimiser again from the repaired model's parameters: {kind} still holds "
            f"{story.plural(count, 'parameter')} of the original model"
        )
    if not holders:
        yield "create the optimiser from the repaired model's parameters, not from the original's"


# -- trying ----------------------------------------------------------------------------------------


TriedActions = set[tuple[str, tuple[Action, ...]]]
"""Pairs of a rule and the actions that were tried for it."""


@dataclass(eq=False)
class _State:
    """A copy after some of the steps, with its reports."""

    model: nn.Module
    report: Report
    held_out: Report | None  # on the held-out batch
    steps: tuple[Step, ...] = ()
    losses: np.ndarray | None = None  # of the training trial, once it has run


@dataclass
class _Search:
    """The search for fixes: the best state so far, and every step that was tried."""

    original: nn.Module
    allow: Allow
    kinds: frozenset[str] | None
    seed: int
    batch: Any
    check: Callable[[nn.Module], Report]
    check_held_out: Callable[[nn.Module], Report] | None
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
            self.trained = "trained=True was given" if trained else ""

    def run(self) -> None:
        tried: TriedActions = set()
        best = self.now
        while len(self.steps) < MOST_STEPS:
            finding = next(
                (f for f in self._problems() if any(self._untried_fixes(f, tried))), None
            )
            if finding is None:
                break
            if self._fix_finding(finding, tried):
                worse = _worse(self.before.report, self.now.report, unseen=True)
                best = best if worse else self.now
        self.now = best
        self.steps = [
            replace(step, taken=False, reason=TAKEN_BACK)
            if step.taken and step not in best.steps
            else step
            for step in self.steps
        ]

    def _problems(self) -> tuple[Finding, ...]:
        return self.now.report.at_least("warning")

    def _untried_fixes(
        self, finding: Finding, tried: TriedActions
    ) -> Iterator[tuple[tuple[str, ...], Fix]]:
        """The fixes of a finding that were not tried, best first, each with its layers.

        A fix is tried at once at all layers with a finding of the same rule. Fixing one of several
        bad layers often only moves the problem to another.
        """
        alike = [(f, _by_kind_and_number(f)) for f in self._problems() if f.rule == finding.rule]
        numbers = {fix: key for key, fix in _by_kind_and_number(finding).items()}
        for fix in self._ranked_fixes(finding):
            key = numbers[fix]
            places = [(f.layer, fixes[key]) for f, fixes in alike if key in fixes]
            merged = _merged([other for _, other in places])
            if (finding.rule, merged.actions) not in tried:
                yield tuple(dict.fromkeys(layer for layer, _ in places)), merged
            if (finding.rule, fix.actions) not in tried and fix.actions != merged.actions:
                yield (finding.layer,), fix

    def _ranked_fixes(self, finding: Finding) -> list[Fix]:
        fixes = [fix for fix in finding.fixes if fix.runnable]
        if self.kinds is not None:
            fixes = [fix for fix in fixes if fix.kind in self.kinds]
        norm = next((n for n, fix in enumerate(fixes) if fix.kind == "normalize"), -1)
        # Normalisation keeps the user's activation, so it is tried before a swap.
        places = {fix: max(n, norm + 0.5) if fix.kind == SWAP else n for n, fix in enumerate(fixes)}
        fixes.sort(key=places.__getitem__)
        if self.trained:  # first the fixes that keep more of what was learned
            fixes.sort(key=lambda fix: LEAST_FIRST.index(fix.changes))
        return fixes

    def _fix_finding(self, finding: Finding, tried: TriedActions) -> bool:
        """Try the fixes of a finding; whether one was taken.

        Takes the first that helps. With a training trial, the first that also trains better, or if
        none does, the first that trains no worse.
        """
        equal: _State | None = None
        for layers, fix in list(self._untried_fixes(finding, tried)):
            tried.add((finding.rule, fix.actions))
            step = Step(finding.rule, finding.code, layers, fix, True, "")
            if forbidden := self._forbidden(fix):
                self.steps.append(replace(step, taken=False, tried=False, reason=forbidden))
                continue
            state, reason = self._try_step(finding, step)
            if state is None:
                self.steps.append(replace(step, taken=False, reason=reason))
                continue
            trial = None if self.training is None else self._compare_training(state, self.training)
            if trial is not None and trial.verdict == "worse":
                reason = f"{reason}, but it trains worse: {_loss_text(trial)}"
                self.steps.append(replace(step, taken=False, reason=reason))
            elif trial is not None and trial.verdict == "tie":
                if equal is None:
                    equal = state
                else:
                    self.steps.append(replace(step, taken=False, reason=f"{reason}, {NO_BETTER}"))
            else:
                if equal is not None:
                    other = replace(equal.steps[-1], taken=False)
                    self.steps.append(replace(other, reason=f"{other.reason}, {NO_BETTER}"))
                return self._accept(state)
        return equal is not None and self._accept(equal)

    def _forbidden(self, fix: Fix) -> str:
        """Why ``allow`` does not let a fix be tried; "" if it does."""
        if self.allow == "all" or fix.safe(bool(self.trained)):
            return ""
        if fix.changes == "architecture":
            return "not tried: it changes the architecture, which allow='all' permits"
        return (
            f"not tried: the model is trained ({self.trained}), and this would lose some of what "
            "it learned; allow='all' or trained=False permits it"
        )

    def _accept(self, state: _State) -> bool:
        self.now = state
        self.steps.append(state.steps[-1])
        return True

    def _try_step(self, finding: Finding, step: Step) -> tuple[_State | None, str]:
        """The state after a step and how it helps; or None and why it does not."""
        fix = step.fix
        self.tick(fix.what)
        candidate = copy.deepcopy(self.now.model)
        try:
            result.run(fix, candidate, self.batch, self.seed + len(self.now.steps))
            state = self._state(candidate)
        except Exception as error:  # the fault of the fix: the model itself ran before
            first_line = str(error).splitlines()[0] if str(error) else ""
            return None, f"it raises {type(error).__name__}: {first_line}"
        worse = _worse(self.now.report, state.report)
        if not worse and state.held_out is not None and self.now.held_out is not None:
            worse = _worse(self.now.held_out, state.held_out)
            worse = f"on the held-out batch, {worse}" if worse else ""
        helps = _helps(self.now.report, state.report, finding.rule)
        if worse or not helps:
            return None, worse or f"{finding.rule} stays as it is"
        state.steps = (*self.now.steps, replace(step, reason=helps))
        return state, helps

    def _state(self, model: nn.Module) -> _State:
        return _State(
            model, self.check(model), self.check_held_out(model) if self.check_held_out else None
        )

    # -- the trial

    def tried(self, training: Training) -> Trial:
        """The training trial of the original against the repaired model."""
        return training.compare(
            self._losses_of(self.before, training), self._losses_of(self.now, training)
        )

    def _compare_training(self, state: _State, training: Training) -> Trial:
        return training.compare(
            self._losses_of(self.now, training), self._losses_of(state, training)
        )

    def _losses_of(self, state: _State, training: Training) -> np.ndarray:
        if state.losses is None:
            state.losses = training.losses(
                lambda seed: self._model_from_seed(state, seed), tick=lambda: self.tick("training")
            )
        return state.losses

    def _model_from_seed(self, state: _State, seed: int) -> nn.Module:
        """The original with the steps taken, drawn from another seed."""
        if seed == self.seed or not state.steps:
            return state.model
        again = copy.deepcopy(self.original)
        # Far from the seeds of the steps themselves, which count up from self.seed.
        result.apply(state.steps, again, self.batch, 1000 * seed)
        return again


LEAST_FIRST = get_args(Changes)
DATA = "ND60"
"""Codes of rules about data begin so."""
SWAP = "swap-activation"
TAKEN_BACK = "it led to findings that could not be fixed, so it was taken back"
NO_BETTER = "but trains no better"


def _loss_text(trial: Trial) -> str:
    old, new = (float(np.median(x)) for x in (trial.final_before, trial.final_after))
    return f"a loss of {new:.3g} for {old:.3g}"


def _by_kind_and_number(finding: Finding) -> dict[tuple[str, int], Fix]:
    """A finding's runnable fixes, by kind and number within the kind."""
    numbered: dict[tuple[str, int], Fix] = {}
    for fix in finding.fixes:
        if fix.runnable:
            number = sum(kind == fix.kind for kind, _ in numbered)
            numbered[fix.kind, number] = fix
    return numbered


def _merged(fixes: Sequence[Fix]) -> Fix:
    """Several fixes of one kind as one fix for all their targets."""
    different = list({fix.actions: fix for fix in fixes}.values())
    if len(different) == 1:
        return different[0]
    whats = list(dict.fromkeys(fix.what for fix in different))
    more = flow.plural(len(different) - 1, "more place")
    what = whats[0] if len(whats) == 1 else f"{whats[0].rstrip('.')}; likewise at {more}."
    actions = grouped(action for fix in different for action in fix.actions)
    return replace(different[0], what=what, actions=actions)


def _worst_severities(report: Report) -> dict[str, int]:
    """For each rule the severity of its worst finding: 2 for an error, 1 for a warning."""
    worst: dict[str, int] = {}
    for finding in report.findings:
        severity = len(SEVERITIES) - 1 - SEVERITIES.index(finding.severity)
        worst[finding.rule] = max(worst.get(finding.rule, 0), severity)
    return worst


def _worse(old: Report, new: Report, unseen: bool = False) -> str:
    """What became worse, in words; "" for nothing.

    A finding that NaN may have hidden before does not count as new, unless ``unseen`` is True. Nor
    does one that the data explained: what is left of it once they are scaled was there before.
    """
    if len(new.crashed) > len(old.crashed):
        return f"{new.crashed[-1].rule} crashes on the result"
    before, after = _worst_severities(old), _worst_severities(new)
    explained = {f.rule for f in old.findings if f.cause and f.root.code.startswith(DATA)}
    hidden = 0  # new findings up to this severity may have been hidden: NaN blocks most rules
    if not unseen and max(before.values(), default=0) == 2:
        hidden = 2 if before.get("non-finite") == 2 else 1
    for finding in new.at_least("warning"):
        was, now = before.get(finding.rule, 0), after[finding.rule]
        if was == 0 and now == 1 and finding.rule in explained:
            continue
        if was == 0 and now > hidden:
            return f"it brings a new {finding.severity}: {finding.rule} at {finding.layer}"
        if 0 < was < now:
            return f"{finding.rule} becomes an {finding.severity}, at {finding.layer}"
    for name in before:
        a, b = _extent(old, name), _extent(new, name)
        if b[0] > a[0] and before[name] == after.get(name, 0) > 0:
            return f"{name} spreads, from {a[0]} to {b[0]} places"
    return ""


def _helps(old: Report, new: Report, name: str) -> str:
    """How the findings of the rule ``name`` are better now, in words; "" if they are not."""
    before, after = _worst_severities(old).get(name, 0), _worst_severities(new).get(name, 0)
    if not after:
        return f"{name} is gone"
    a, b = _extent(old, name), _extent(new, name)
    if after < before:
        return f"{name} is a {SEVERITIES[len(SEVERITIES) - 1 - after]} now"
    if b[0] < a[0]:
        return f"{name} is left in {b[0]} of {a[0]} places"
    if b[1] < (1 - CLEAR_SHARE) * a[1]:
        return f"{name} is {1 - b[1] / a[1]:.0%} nearer to its threshold"
    return ""


def _extent(report: Report, name: str) -> tuple[int, float]:
    """The number of a rule's errors and warnings, and their total distance from the threshold."""
    problems = [f for f in report.at_least("warning") if f.rule == name]
    yardsticks = [yardstick for f in problems if (yardstick := story.yardstick(f)) is not None]
    return len(problems), sum(yardstick.excess for yardstick in yardsticks)
