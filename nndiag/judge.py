"""Run rules over a snapshot: which rules, with which thresholds, and what they find."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType

from nndiag import rules
from nndiag.causes import explain
from nndiag.errors import SettingsError, UnknownRuleError, did_you_mean
from nndiag.rule import ABOUT, SEVERITIES, Finding, Outcome, Rule, Thresholds, Unjudged
from nndiag.stats import Snapshot

__all__ = ["NOT_SELECTED", "Judgement", "chosen", "effective_thresholds", "judge", "needed", "rank"]


@dataclass(frozen=True)
class Judgement:
    findings: tuple[Finding, ...]
    outcomes: tuple[Outcome, ...]
    unjudged: tuple[Unjudged, ...]


def chosen(
    select: Iterable[str] | str | None = None, ignore: Iterable[str] | str | None = None
) -> dict[str, ModuleType]:
    """The rules that ``select`` names, without those that ``ignore`` names.

    A word is a rule's name, its code, or the beginning of codes ("ND2": all gradient rules).

    Raises:
        UnknownRuleError: a word that names no rule, with the nearest one that does.
    """
    known = rules.discover()
    picked = _selected_names(select, ignore)
    return {name: module for name, module in known.items() if name in picked}


def _selected_names(
    select: Iterable[str] | str | None, ignore: Iterable[str] | str | None
) -> frozenset[str]:
    """The names of what is selected, also of rules that could not be loaded."""
    codes = {name: module.RULE.code for name, module in rules.discover().items()}
    codes |= dict.fromkeys(rules.not_loaded(), "")
    picked = _matching(select, codes) if select is not None else set(codes)
    return frozenset(picked - (_matching(ignore, codes) if ignore is not None else set()))


def _matching(words: Iterable[str] | str, codes: Mapping[str, str]) -> set[str]:
    matched: set[str] = set()
    for word in [words] if isinstance(words, str) else words:
        # A prefix of codes needs both letters: a single "N" must not select every rule.
        begins = re.fullmatch(r"[A-Z]{2,}\d*", word.upper()) is not None
        matches = {
            name
            for name, code in codes.items()
            if word == name or (begins and code.startswith(word.upper()))
        }
        if not matches:
            legal = (f"{name} ({code})" if code else name for name, code in codes.items())
            raise UnknownRuleError(
                f"no rule is called {word!r}."
                f"{did_you_mean(word, [*codes, *map(str.lower, codes.values())])} "
                f"Choose one of: {', '.join(legal)}; or the beginning of a code, such as ND2."
            )
        matched |= matches
    return matched


def effective_thresholds(
    overrides: Mapping[str, float | Mapping[str, float]] | None,
) -> dict[str, Thresholds]:
    """Thresholds by rule, with the user's own: ``{"dead-relu.share": 0.5}`` or nested.

    Raises:
        UnknownRuleError: no such rule or no such threshold.
        SettingsError: a value that is no number or outside the threshold's range.
    """
    known = rules.discover()
    values = {name: {k: t.value for k, t in m.RULE.thresholds.items()} for name, m in known.items()}
    flat: dict[str, object] = {}
    for key, given in (overrides or {}).items():
        if isinstance(given, Mapping):
            flat.update({f"{key}.{inner}": v for inner, v in given.items()})
        else:
            flat[key] = given
    for key, value in flat.items():
        rule_name, _, threshold_name = key.partition(".")
        if rule_name not in known:
            raise UnknownRuleError(
                f"thresholds name a rule {rule_name!r} that does not exist."
                f"{did_you_mean(rule_name, known)}"
            )
        legal_names = known[rule_name].RULE.thresholds
        if not threshold_name and legal_names:
            raise UnknownRuleError(
                f"thresholds name the rule {rule_name!r} but none of its thresholds. "
                f"Choose one of: {', '.join(f'{rule_name}.{n}' for n in legal_names)}."
            )
        if threshold_name not in legal_names:
            legal = ", ".join(f"{rule_name}.{n}" for n in legal_names)
            raise UnknownRuleError(
                f"{rule_name} has no threshold {threshold_name!r}."
                f"{did_you_mean(threshold_name, legal_names)} "
                + (f"Choose one of: {legal}." if legal else "It has none at all.")
            )
        t = legal_names[threshold_name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SettingsError(f"threshold {key} = {value!r}: give a number.")
        if not t.low <= value <= t.high:
            hint = (
                f" For {value:g} %, write {value / 100:g}."
                if t.unit == "share" and 1 < value <= 100
                else ""
            )
            raise SettingsError(
                f"threshold {key} = {value:g}: it lies between {t.low:g} and {t.high:g}.{hint}"
            )
        values[rule_name][threshold_name] = float(value)
    return {name: Thresholds(v) for name, v in values.items()}


def needed(modules: Mapping[str, ModuleType]) -> frozenset[str]:
    """What has to be computed so that these rules can judge."""
    rules: list[Rule] = [module.RULE for module in modules.values()]
    return frozenset(need for rule in rules for need in rule.needs + rule.uses)


def judge(
    snapshot: Snapshot,
    select: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
) -> Judgement:
    """Run the rules over a snapshot. A rule that crashes is an outcome, not an exception."""
    modules, thresholds_of = chosen(select, ignore), effective_thresholds(thresholds)
    selected = _selected_names(select, ignore)
    findings: list[Finding] = []
    outcomes: list[Outcome] = []
    unjudged: list[Unjudged] = []
    nonfinite = sum(layer.output.nonfinite > 0 for layer in snapshot.layers)
    for name, module in rules.discover().items():
        rule: Rule = module.RULE
        if name not in modules:
            outcomes.append(Outcome(name, rule.code, "skipped", NOT_SELECTED))
            continue
        reason = _cannot_run(rule, snapshot)
        if reason:
            outcomes.append(Outcome(name, rule.code, "skipped", reason))
            continue
        try:
            results = list(module.check(snapshot, thresholds_of[name]))
        except Exception as error:  # one broken rule must not cost the others' verdicts
            where = _line_of(error)
            outcomes.append(
                Outcome(name, rule.code, "crashed", f"{type(error).__name__}: {error}{where}")
            )
            continue
        if wrong := [r for r in results if not isinstance(r, (Finding, Unjudged))]:
            reason = f"check yielded a {type(wrong[0]).__name__}: yield RULE.finding(...)"
            outcomes.append(Outcome(name, rule.code, "crashed", reason))
            continue
        own = [r for r in results if isinstance(r, Finding)]
        unjudged += [r for r in results if isinstance(r, Unjudged)]
        if not own and nonfinite and rule.name != "non-finite" and rule.about in _ABOUT_VALUES:
            reason = f"{nonfinite} of {len(snapshot.layers)} layers hold NaN or infinity"
            outcomes.append(Outcome(name, rule.code, "skipped", reason))
            continue
        findings += map(_at_a_line_of_the_users, own)
        outcomes.append(Outcome(name, rule.code, "found" if own else "passed"))
    for name, reason in rules.not_loaded().items():
        if name in selected:
            outcomes.append(Outcome(name, "", "crashed", reason))
        else:
            outcomes.append(Outcome(name, "", "skipped", NOT_SELECTED))
    return Judgement(tuple(explain(findings, snapshot, rank)), tuple(outcomes), tuple(unjudged))


NOT_SELECTED = "not selected"
_ABOUT_VALUES = ("activations", "gradients")


def _cannot_run(rule: Rule, snapshot: Snapshot) -> str:
    if "gradients" in rule.needs and not snapshot.has_gradients:
        return f"needs gradients: {snapshot.no_gradients_because or 'none were computed'}"
    if "loss" in rule.needs and not snapshot.has_loss:
        return "needs the loss: pass target= and loss_fn="
    if "optimizer" in rule.needs and snapshot.experiment.optimizer is None:
        return f"needs the optimizer: {snapshot.experiment.no_optimizer_because}"
    if "step" in rule.needs and not snapshot.has_step:
        return f"needs a virtual update: {snapshot.no_step_because or 'none was made'}"
    return ""


def _line_of(error: BaseException) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return ""
    return f" ({frame.tb_frame.f_globals.get('__name__')}, line {frame.tb_lineno})"


def rank(finding: Finding) -> tuple[int, int]:
    """By severity, then input, parameters, activations, gradients, training."""
    module = rules.discover().get(finding.rule)
    about = ABOUT.index(module.RULE.about) if module is not None else len(ABOUT)
    return SEVERITIES.index(finding.severity), about


_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")


def _at_a_line_of_the_users(finding: Finding) -> Finding:
    """A note does not point into an installed library: there is nothing to change there."""
    if finding.severity == "note" and _INSTALLED.search(finding.location or ""):
        return replace(finding, location=None)
    return finding
