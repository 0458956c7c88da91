"""A report in one line: what will happen, and what to do first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nndiag.fixes.fix import Fix
from nndiag.flow import plural
from nndiag.numbers import number
from nndiag.rule import Finding, Outcome, Unjudged
from nndiag.stats import Snapshot

__all__ = ["verdict"]


def verdict(
    snapshot: Snapshot,
    findings: Sequence[Finding],
    outcomes: Sequence[Outcome],
    unjudged: Sequence[Unjudged] = (),
) -> str:
    """The leading cause and its first fix, or that nothing was found and what was not looked at."""
    causes = [f for f in findings if f.cause is None and f.severity != "note"]
    broken = sum(o.status == "crashed" for o in outcomes)
    crashed = f"{plural(broken, 'rule')} crashed"
    if causes:
        sentences = [_what_happens(causes[0]), _what_to_do(causes[0]), *_others(causes)]
        sentences += [f"{crashed}, so there may be more."] if broken else []
        return " ".join(filter(None, sentences))
    if broken:
        return f"No problem found, but {crashed}, so there may be one."
    if not any(o.status in ("passed", "found") for o in outcomes):
        return "Nothing was judged: no rule could run."
    if not snapshot.layers:
        return "Nothing was judged: no layer of the network was seen."
    parts = (*_level(findings), _healthy(findings, outcomes), *_loss(snapshot, findings))
    return " ".join((*parts, *_not_seen(snapshot, unjudged)))


def _what_happens(cause: Finding) -> str:
    """The summary, or for a rule that gives none the message with its place."""
    sentence = cause.summary or f"{cause.layer}: {cause.message}"
    return sentence if sentence.endswith(".") else f"{sentence}."


def _what_to_do(cause: Finding) -> str:
    """The first fix, and as an alternative the next one of another kind."""
    fixes = _fixes(cause)
    if not fixes:
        return ""
    first = f"{_imperative(fixes[0])}."
    other = next((fix for fix in fixes[1:] if fix.kind != fixes[0].kind), None)
    return first if other is None else f"{first} Or {_lowered(_imperative(other))}."


def _fixes(finding: Finding) -> Sequence[Fix]:
    return finding.fixes


def _imperative(fix: Fix) -> str:
    """Its first sentence, without the full stop."""
    return fix.what.partition(". ")[0].rstrip(".")


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _others(causes: Sequence[Finding]) -> Iterator[str]:
    """How many places have the same cause, and how many other causes there are."""
    kinds = dict.fromkeys((f.rule, f.severity) for f in causes)
    leading = next(iter(kinds))
    alike = sum((f.rule, f.severity) == leading for f in causes) - 1
    if alike:
        yield f"The same holds for {plural(alike, 'more place')}."
    if len(kinds) > 1:
        yield f"{plural(len(kinds) - 1, 'more cause')} below."


def _healthy(findings: Sequence[Finding], outcomes: Sequence[Outcome]) -> str:
    ran = sum(o.status != "skipped" for o in outcomes)
    rules = plural(len(outcomes), "rule")
    counts = [rules if ran == len(outcomes) else f"{ran} of {rules}"]
    notes = sum(f.severity == "note" for f in findings)
    counts += [plural(notes, "note")] if notes else []
    return f"No problem found in the network ({', '.join(counts)})."


def _level(findings: Sequence[Finding]) -> Iterator[str]:
    """What a rule notes about the loss as a whole comes first, though it is no alarm."""
    yield from (f.summary for f in findings if f.rule == "loss-at-init" and f.summary)


def _loss(snapshot: Snapshot, findings: Sequence[Finding]) -> Iterator[str]:
    """That the loss is no better than a constant output's, where nothing else says so."""
    base = snapshot.experiment.baseline
    if base is None or any(f.rule == "loss-at-init" for f in findings):
        return
    guess = max(base.constant, base.zero)
    if not base.constant <= base.loss < math.inf:
        return
    loss = f"Its loss is {number(base.loss)}"
    if 0 < base.loss <= _NEAR * guess:
        yield f"{loss}, still that of a guess."
    else:
        yield f"{loss}, worse than the {number(base.constant)} of a constant output."


_NEAR = 1.5


def _not_seen(snapshot: Snapshot, unjudged: Sequence[Unjudged]) -> Iterator[str]:
    """What a verdict without a problem does not cover."""
    if snapshot.loss.kind == "random cotangent" and snapshot.experiment.targets:
        yield "Your targets were not used: pass loss_fn=…."
    if snapshot.never_called:
        yield f"{plural(len(snapshot.never_called), 'part')} of it never ran."
    if snapshot.not_observed:
        yield f"{plural(len(snapshot.not_observed), 'part')} of it could not be observed."
    places = {item.layer for item in unjudged}
    if places:
        yield f"{plural(len(places), 'layer')} could not be judged by every rule."
