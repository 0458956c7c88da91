"""What is said of each case of the corpus, without words and numbers: ``findings.csv``.

A change that should move no verdict shows it by ``python -m calibration.findings --check``; one
that should makes the list anew by ``python -m calibration.findings``, and its diff is reviewed.

A case has one row for each finding, in the report's order, then one for each layer that a rule
could not judge, then one for each rule that was skipped or crashed, but for those that need a loss
or an optimiser that the case does not have. A case with none of these has
one row with the status "passed". A cause is ``rule@layer``.

Covered is what the packages of the extra ``dev`` can build, each from seed 0: every fault and
negative, the bases they were made from, the zoo with transformers' networks and the trained
networks in train and eval mode. The networks of MONAI, torch-geometric and x-transformers are not
covered: only ``make calibration`` installs those.

One thread, because sums in another order end trainings elsewhere. Rows that hang on a training or
on a release of transformers can differ on another machine: make the list there from the commit
before a change.
"""

from __future__ import annotations

import csv
import functools
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
import zoo
from rich.console import Console
from rich.progress import track

from calibration import healthy, healthy_libraries, judge, nets
from calibration.build import control
from calibration.cases import Subject
from calibration.faults import BASES, FAULTS
from nndiag.progress import silenced
from nndiag.report import Report

FINDINGS = Path(__file__).parents[2] / "reports" / "calibration" / "findings.csv"
NOT_GIVEN = ("needs the loss", "needs the optimizer")
"""Why a rule about these is skipped in most cases: that says nothing of the case."""
GROUPS = ("fault", "negative", "base", "zoo", "trained")


class Case(NamedTuple):
    group: str
    name: str
    build: Callable[[], Subject]


class Row(NamedTuple):
    """One thing said of a case; ``order`` is empty for what is no finding."""

    order: str
    status: str  # "found", "unjudged", "skipped", "crashed" or "passed"
    rule: str = ""
    code: str = ""
    severity: str = ""
    layer: str = ""
    cause: str = ""

    def __str__(self) -> str:
        where = f" at {self.layer}" if self.layer else ""
        why = f", caused by {self.cause}" if self.cause else ""
        return f"{self.severity or self.status} {self.code} {self.rule}{where}{why}"


Said = dict[str, tuple[Row, ...]]  # by case


def cases(groups: Sequence[str] = GROUPS) -> Iterator[Case]:
    for fault in FAULTS:
        yield Case("fault" if fault.sick else "negative", fault.name, fault.build)
    for base in BASES:
        less = "" if base.samples == nets.SAMPLES else f"/{base.samples} samples"
        yield Case("base", control(base).name + less, functools.partial(base.build, 0))
    for network in healthy.HEALTHY:
        if network.name in healthy_libraries.RECIPES:
            continue
        if network.exam is None:
            yield Case("zoo", network.name, functools.partial(network.build, 0))
            continue
        for mode in ("train", "eval"):
            build = functools.partial(_in_mode, network, mode)
            yield Case("trained", f"{network.name}/{mode}", build)
    for name in zoo.LEFTOVERS:
        yield Case("zoo", name, lambda name=name: Subject(*zoo.make(name)))


def _in_mode(network: healthy.Network, mode: str) -> Subject:
    subject = _trained(network.name)
    subject.model.train(mode == "train")
    return subject


@functools.lru_cache(maxsize=1)
def _trained(name: str) -> Subject:
    """Trained once for both modes: a check leaves a network as it was."""
    return next(n for n in healthy.HEALTHY if n.name == name).build(0)


def rows(report: Report) -> tuple[Row, ...]:
    """What a report says, without its words and numbers."""
    said = [
        Row(
            str(order), "found", f.rule, f.code, f.severity, f.layer,
            f"{f.cause.rule}@{f.cause.layer}" if f.cause is not None else "",
        )
        for order, f in enumerate(report.findings, start=1)
    ]  # fmt: skip
    code = {outcome.rule: outcome.code for outcome in report.outcomes}
    said += [Row("", "unjudged", u.rule, code[u.rule], layer=u.layer) for u in report.unjudged]
    said += [
        Row("", outcome.status, outcome.rule, outcome.code)
        for outcome in report.outcomes
        if outcome.status in ("skipped", "crashed") and not outcome.reason.startswith(NOT_GIVEN)
    ]
    return tuple(said) or (Row("", "passed"),)


# -- compared --------------------------------------------------------------------------------------


def differences(was: Mapping[str, Sequence[Row]], now: Mapping[str, Sequence[Row]]) -> list[str]:
    """A line for each thing that is gone (−) or new (+), and for each order that changed."""
    lines = []
    for case in dict.fromkeys([*was, *now]):
        before, after = (_unordered(said.get(case, ())) for said in (was, now))
        gone, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
        lines += [f"{case}: − {row}" for row in gone.elements()]
        lines += [f"{case}: + {row}" for row in new.elements()]
        if not gone and not new and before != after:
            lines.append(f"{case}: the order is now " + "; ".join(map(str, after)))
    return lines


def _unordered(said: Iterable[Row]) -> list[Row]:
    """Without the number of each: one finding more would change all that follow it."""
    return [row._replace(order="") for row in said]


# -- stored ----------------------------------------------------------------------------------------


def text(said: Mapping[str, Sequence[Row]], group: Mapping[str, str]) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("group", "case", *Row._fields))
    for case, lines in said.items():
        table.writerows((group[case], case, *row) for row in lines)
    return out.getvalue()


def read(path: Path = FINDINGS, groups: Sequence[str] = GROUPS) -> Said:
    """What was said of each case of these groups when the list was made."""
    said: dict[str, list[Row]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["group"] in groups:
                row = Row(*(line[field] for field in Row._fields))
                said.setdefault(line["case"], []).append(row)
    return {case: tuple(lines) for case, lines in said.items()}


def said_now(chosen: Iterable[Case]) -> Said:
    return {case.name: rows(_checked(case)) for case in chosen}


def _checked(case: Case) -> Report:
    with silenced():
        return judge.check(case.build())


def main(
    path: Annotated[Path, typer.Option(help="Where the list is.")] = FINDINGS,
    check: Annotated[bool, typer.Option("--check", help="Compare, and write nothing.")] = False,
    only: Annotated[str, typer.Option(help="Compare the cases whose name holds this.")] = "",
) -> None:
    """Write down what is said of each case, or compare it with what is written down."""
    healthy.quieten()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    chosen = [case for case in cases() if only in case.name]
    now = said_now(track(chosen, "judging", console=console))
    if not check and not only:
        path.write_text(text(now, {case.name: case.group for case in chosen}), encoding="utf-8")
        console.print(f"{len(now)} cases written to {path}")
        return
    was = {case: said for case, said in read(path).items() if only in case}
    lines = differences(was, now)
    print("\n".join(lines or [f"{len(now)} cases: every finding is what it was."]))
    raise typer.Exit(1 if lines else 0)


if __name__ == "__main__":
    typer.run(main)
