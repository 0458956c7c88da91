"""``python -m calibration.experiments``: the rules about the experiment, on labelled cases.

Faults of the loss, the data, the optimiser and of how a network is written, and what only looks
like them; and faults as people report them, each beside its mended twin. Remakes
``reports/calibration/experiments.csv`` and its page. ``--check`` fails where a verdict is not the
committed one.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nndiag
from calibration import (
    faults_data,
    faults_loss,
    faults_optimizer,
    faults_structure,
    healthy_data,
    healthy_loss,
    healthy_optimizer,
    reports_rebuilt,
)

REPORTS = Path(__file__).parents[2] / "reports" / "calibration"
TABLE, PAGE = REPORTS / "experiments.csv", REPORTS / "experiments.md"
COLUMNS = ("domain", "case", "rule", "found", "leads", "alarms")


@dataclass(frozen=True)
class Labelled:
    """A case of one of the lists: what ``check`` takes, and the rule that is right to alarm."""

    domain: str
    name: str
    rule: str
    build: Callable[[], Any]

    def report(self) -> nndiag.Report:
        model, batch, *others = self.build()
        target, loss_fn, optimizer = (*others, None, None, None)[:3]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own about shapes and schedulers
            return nndiag.check(model, batch, target, loss_fn, optimizer=optimizer, config=False)


def cases() -> Iterator[Labelled]:
    for domain, lists in {
        "loss": (faults_loss.cases(), healthy_loss.cases()),
        "data": (faults_data.FAULTS, healthy_data.HEALTHY),
        "optimiser": (faults_optimizer.FAULTS, healthy_optimizer.HEALTHY),
        "structure": (faults_structure.faults(), faults_structure.look_alikes()),
        "reports": reports_rebuilt.cases(),
    }.items():
        for listed in lists:
            for case in listed:
                yield Labelled(domain, case.name, case.rule, case.build)


def row(case: Labelled) -> dict[str, str]:
    """What is said of a case. ``found``: its rule has an error or a warning; ``leads``: as a root,
    before all others; ``alarms``: every root that is no note.
    """
    findings = case.report().findings
    severe = [f for f in findings if f.severity != "note"]
    roots = list(dict.fromkeys(f.rule for f in severe if f.cause is None))
    return {
        "domain": case.domain,
        "case": case.name,
        "rule": case.rule,
        "found": str(any(f.rule == case.rule and f.cause is None for f in severe)),
        "leads": str(roots[:1] == [case.rule]),
        "alarms": " ".join(roots),
    }


def page(rows: list[dict[str, str]]) -> str:
    faults = [r for r in rows if r["rule"]]
    healthy = [r for r in rows if not r["rule"]]
    alarmed = [r for r in healthy if r["alarms"]]
    lines = [
        "# The rules about the experiment",
        "",
        "Faults of the loss, the data, the optimiser and of how a network is written, put into",
        "healthy networks, and cases that only look like them. Each has one label; no case is used",
        "for a threshold alone, but the rules were corrected on them, so the table guards against",
        "regressions and does not predict what a new network will meet. Remade by",
        "`python -m calibration.experiments`.",
        "",
        "Found: the rule has an error or a warning without a cause. Leads: it is the first in",
        "the report.",
        "",
        "| rule | faults | found | leads |",
        "|---|---:|---:|---:|",
    ]
    for rule in sorted({r["rule"] for r in faults}):
        own = [r for r in faults if r["rule"] == rule]
        found, leads = (sum(r[k] == "True" for r in own) for k in ("found", "leads"))
        lines.append(f"| `{rule}` | {len(own)} | {found} | {leads} |")
    found, leads = (sum(r[k] == "True" for r in faults) for k in ("found", "leads"))
    lines += [
        f"| all | {len(faults)} | {found} | {leads} |",
        "",
        f"Of {len(healthy)} cases that only look like a fault, {len(alarmed)} have an error or a",
        "warning of any rule.",
        "",
    ]
    missed = [r for r in faults if r["found"] != "True"] + alarmed
    if missed:
        lines += ["| case | label | alarms |", "|---|---|---|"]
        lines += [f"| {r['case']} | {r['rule'] or 'healthy'} | {r['alarms']} |" for r in missed]
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--domain")
    given = parser.parse_args()
    rows = [row(c) for c in cases() if given.domain in (None, c.domain)]
    if given.domain or given.check:
        with TABLE.open(encoding="utf-8", newline="") if TABLE.exists() else open("/dev/null") as f:
            known = {(r["domain"], r["case"], r["rule"]): r for r in csv.DictReader(f)}
        for r in rows:
            wrong = (r["rule"] and r["found"] != "True") or (not r["rule"] and r["alarms"])
            if wrong or (given.check and known.get((r["domain"], r["case"], r["rule"])) != r):
                print(*r.values(), sep=" | ")
        return int(given.check and {tuple(r.values()) for r in rows}
                   != {tuple(r.values()) for r in known.values()
                       if given.domain in (None, r["domain"])})  # fmt: skip
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
