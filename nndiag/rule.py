"""What a rule is, how rules are found, and how their findings become one ordered story.

A rule is one file in ``nndiag/rules``: a docstring that is its page, a ``RULE`` and a pure
function ``check(snapshot, limit)`` that yields findings. Nothing registers it: :func:`discover`
walks the folder, and the entry-point group ``nndiag.rules`` for other people's.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

from nndiag.causes import explain
from nndiag.errors import SettingsError, UnknownRuleError, did_you_mean
from nndiag.fixes.fix import Fix
from nndiag.stats import Layer, Parameter, Snapshot

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
ABOUT = ("input", "parameters", "activations", "gradients", "training")


@dataclass(frozen=True)
class Threshold:
    """A number a verdict hangs on, and where it comes from.

    ``source`` begins with ``derived:`` (arithmetic the reader can redo), ``cited:`` (a paper or
    standard, with the place in it) or ``measured:`` (a file under ``reports/``).
    """

    value: float
    source: str
    low: float = 0.0
    high: float = math.inf


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (or worth knowing) at one place.

    ``evidence`` maps names to numbers; ``threshold`` is the limit that the one called ``measure``
    (the name of the threshold, too) was held against;
    ``cause`` the finding that explains this one, or None for a root; ``suspects`` the rules whose
    findings can explain it.
    """

    rule: str
    code: str
    severity: Severity
    layer: str
    message: str
    evidence: dict[str, float] = field(default_factory=dict)
    threshold: float | None = None
    location: str | None = None
    cause: Finding | None = None
    fixes: tuple[Fix, ...] = ()
    suspects: tuple[str, ...] = ()
    measure: str = ""

    @property
    def root(self) -> Finding:
        """The finding at the beginning of the chain of causes (itself, for a root)."""
        return self if self.cause is None else self.cause.root


@dataclass(frozen=True)
class Unjudged:
    """A layer a rule looked at and could not judge, and why: neither health nor sickness."""

    rule: str
    layer: str
    reason: str


@dataclass(frozen=True)
class Rule:
    """The fixed part of a rule.

    ``needs``: what it cannot judge without ("outputs", "gradients", "step" for a virtual update);
    without it the rule is skipped and the report says why. ``uses``: what it judges better with.
    """

    code: str
    name: str
    severity: Severity
    about: Literal["input", "parameters", "activations", "gradients", "training"]
    needs: tuple[str, ...] = ("outputs",)
    uses: tuple[str, ...] = ()
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    caused_by: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()

    def finding(
        self,
        where: Layer | Parameter | str,
        message: str,
        *,
        evidence: Mapping[str, float] | None = None,
        severity: Severity | None = None,
        against: tuple[str, Limits] | None = None,
        location: str | None = None,
        fixes: tuple[Fix, ...] | None = None,
        suspects: tuple[str, ...] | None = None,
    ) -> Finding:
        """A finding of this rule at a layer, a parameter or a named place.

        ``against``: the name of the threshold, and of the evidence held against it, and the limits
        in force.
        """
        measure, limit = against or ("", None)
        return Finding(
            rule=self.name,
            code=self.code,
            severity=severity or self.severity,
            layer=where if isinstance(where, str) else where.name,
            message=message,
            evidence={key: float(value) for key, value in (evidence or {}).items()},
            threshold=None if limit is None else getattr(limit, measure),
            measure=measure,
            location=where.location if isinstance(where, Layer) else location,
            fixes=self.fixes if fixes is None else fixes,
            suspects=self.caused_by if suspects is None else suspects,
        )

    def unjudged(self, where: Layer | Parameter | str, reason: str) -> Unjudged:
        return Unjudged(self.name, where if isinstance(where, str) else where.name, reason)


class Limits:
    """The thresholds in force, read as attributes: ``limit.share``."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> float:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"this rule has no threshold {name!r}") from None


Check = Callable[[Snapshot, Limits], Iterable["Finding | Unjudged"]]


@dataclass(frozen=True)
class Outcome:
    """What became of one rule: "found", "passed", "skipped" or "crashed" (with the reason).

    A rule of another package that could not be loaded is "crashed", too: by its module's name,
    without a code.
    """

    rule: str
    code: str
    status: Literal["found", "passed", "skipped", "crashed"]
    reason: str = ""

    @property
    def title(self) -> str:
        return f"{self.code} {self.rule}".strip()


@dataclass(frozen=True)
class Judgement:
    findings: tuple[Finding, ...]
    outcomes: tuple[Outcome, ...]
    unjudged: tuple[Unjudged, ...]


@functools.cache
def discover() -> Mapping[str, ModuleType]:
    """Every rule's module by the rule's name, in order of code."""
    return _load()[0]


@functools.cache
def not_loaded() -> Mapping[str, str]:
    """Rules of other packages that cannot be used: the module's name, and why not."""
    return _load()[1]


@functools.cache
def _load() -> tuple[Mapping[str, ModuleType], Mapping[str, str]]:
    from nndiag import rules

    modules = [
        importlib.import_module(f"{rules.__name__}.{info.name}")
        for info in pkgutil.iter_modules(rules.__path__)
    ]
    broken: dict[str, str] = {}
    entries = importlib.metadata.entry_points(group="nndiag.rules")
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        try:
            module = entry.load()
            fault = _fault(module, modules)
        except Exception as error:  # one broken rule must not cost the others
            first, *_ = str(error).splitlines() or [""]
            fault = f"{type(error).__name__}: {first}"
        if fault:
            package = f" from {entry.dist.name} {entry.dist.version}" if entry.dist else ""
            broken[entry.value] = f"could not be loaded{package}: {fault}"
        else:
            modules.append(module)
    return {m.RULE.name: m for m in sorted(modules, key=lambda m: m.RULE.code)}, broken


CODE = re.compile(r"[A-Z]{2,}\d+")


def _fault(module: object, known: Sequence[ModuleType]) -> str:
    """Why a module from outside is no rule beside the known ones; "" where it is one."""
    rule = getattr(module, "RULE", None)
    if not isinstance(rule, Rule):
        return "it has no RULE = nndiag.Rule(...)"
    if not callable(getattr(module, "check", None)):
        return "it has no function check(snapshot, limit)"
    if not (getattr(module, "__doc__", None) or "").strip():
        return "it has no docstring, which is the rule's page"
    if not CODE.fullmatch(rule.code):
        return f"its code {rule.code!r} is not capital letters and digits, such as MY101"
    for value, legal in ((rule.severity, SEVERITIES), (rule.about, ABOUT)):
        if value not in legal:
            return f"{value!r} is not one of {', '.join(map(repr, legal))}"
    for other in known:
        for what in ("name", "code"):
            if getattr(rule, what) == getattr(other.RULE, what):
                return f"its {what} {getattr(rule, what)!r} is that of {other.__name__}"
    return ""


def chosen(
    select: Iterable[str] | str | None = None, ignore: Iterable[str] | str | None = None
) -> dict[str, ModuleType]:
    """The rules that ``select`` names less those ``ignore`` names.

    A word is a rule's name, its code, or the beginning of codes ("ND2": all gradient rules).

    Raises:
        UnknownRuleError: a word that names no rule, with the nearest one that does.
    """
    known = discover()
    picked = _named(select, ignore)
    return {name: module for name, module in known.items() if name in picked}


def _named(
    select: Iterable[str] | str | None, ignore: Iterable[str] | str | None
) -> frozenset[str]:
    """The names of what is selected, also of rules that could not be loaded."""
    codes = {name: module.RULE.code for name, module in discover().items()}
    codes |= dict.fromkeys(not_loaded(), "")
    picked = _matching(select, codes) if select is not None else set(codes)
    return frozenset(picked - (_matching(ignore, codes) if ignore is not None else set()))


def _matching(words: Iterable[str] | str, codes: Mapping[str, str]) -> set[str]:
    matched: set[str] = set()
    for word in [words] if isinstance(words, str) else words:
        # The beginning of a code has both its letters, so that no stray letter selects a family.
        begins = re.fullmatch(r"[A-Z]{2,}\d*", word.upper()) is not None
        hits = {
            name
            for name, code in codes.items()
            if word == name or (begins and code.startswith(word.upper()))
        }
        if not hits:
            legal = (f"{name} ({code})" if code else name for name, code in codes.items())
            raise UnknownRuleError(
                f"no rule is called {word!r}."
                f"{did_you_mean(word, [*codes, *map(str.lower, codes.values())])} "
                f"Legal are: {', '.join(legal)}; or the beginning of a code, such as ND2."
            )
        matched |= hits
    return matched


def limits(overrides: Mapping[str, float | Mapping[str, float]] | None) -> dict[str, Limits]:
    """Thresholds by rule, with the user's own: ``{"dead-relu.share": 0.5}`` or nested.

    Raises:
        UnknownRuleError: no such rule or no such threshold.
        SettingsError: a value that is no number or outside the threshold's range.
    """
    known = discover()
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
        known_here = known[rule_name].RULE.thresholds
        if not threshold_name and known_here:
            raise UnknownRuleError(
                f"thresholds name the rule {rule_name!r} but none of its thresholds. Legal are: "
                f"{', '.join(f'{rule_name}.{n}' for n in known_here)}."
            )
        if threshold_name not in known_here:
            legal = ", ".join(f"{rule_name}.{n}" for n in known_here) or "none: it has no threshold"
            raise UnknownRuleError(
                f"{rule_name} has no threshold {threshold_name!r}."
                f"{did_you_mean(threshold_name, known_here)} Legal are: {legal}."
            )
        t = known_here[threshold_name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SettingsError(f"threshold {key} = {value!r}: give a number.")
        if not t.low <= value <= t.high:
            hint = f" For {value:g} %, write {value / 100:g}." if t.high == 1 < value <= 100 else ""
            raise SettingsError(
                f"threshold {key} = {value:g}: it lies between {t.low:g} and {t.high:g}.{hint}"
            )
        values[rule_name][threshold_name] = float(value)
    return {name: Limits(v) for name, v in values.items()}


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
    modules, limit = chosen(select, ignore), limits(thresholds)
    named = _named(select, ignore)
    findings: list[Finding] = []
    outcomes: list[Outcome] = []
    unjudged: list[Unjudged] = []
    sick = sum(layer.output.nonfinite > 0 for layer in snapshot.layers)
    for name, module in discover().items():
        rule: Rule = module.RULE
        if name not in modules:
            outcomes.append(Outcome(name, rule.code, "skipped", NOT_SELECTED))
            continue
        reason = _cannot_run(rule, snapshot)
        if reason:
            outcomes.append(Outcome(name, rule.code, "skipped", reason))
            continue
        try:
            results = list(module.check(snapshot, limit[name]))
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
        found = [r for r in results if isinstance(r, Finding)]
        unjudged += [r for r in results if isinstance(r, Unjudged)]
        if not found and sick and rule.name != "non-finite" and rule.about in _OF_VALUES:
            reason = f"{sick} of {len(snapshot.layers)} layers hold NaN or infinity"
            outcomes.append(Outcome(name, rule.code, "skipped", reason))
            continue
        findings += found
        outcomes.append(Outcome(name, rule.code, "found" if found else "passed"))
    for name, reason in not_loaded().items():
        if name in named:
            outcomes.append(Outcome(name, "", "crashed", reason))
        else:
            outcomes.append(Outcome(name, "", "skipped", NOT_SELECTED))
    return Judgement(tuple(explain(findings, snapshot, _rank)), tuple(outcomes), tuple(unjudged))


NOT_SELECTED = "not selected"
_OF_VALUES = ("activations", "gradients")


def _cannot_run(rule: Rule, snapshot: Snapshot) -> str:
    if "gradients" in rule.needs and not snapshot.has_gradients:
        return f"needs gradients: {snapshot.no_gradients_because or 'none were computed'}"
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


def _rank(finding: Finding) -> tuple[int, int]:
    """By severity, then input, parameters, activations, gradients, training."""
    module = discover().get(finding.rule)
    about = ABOUT.index(module.RULE.about) if module is not None else len(ABOUT)
    return SEVERITIES.index(finding.severity), about
