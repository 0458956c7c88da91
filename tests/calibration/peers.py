"""The same small corpus judged by nndiag and by its peers: ``make peers``.

Each tool runs in a process of its own, for some of them change torch; a case that crashes or hangs
is listed as such. Writes ``peers.csv`` (a row for each tool and case) and ``peers.md`` into
``reports/calibration``. A few minutes on one core.
"""

from __future__ import annotations

import copy
import datetime
import inspect
import itertools
import logging
import math
import os
import platform
import random
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from scipy import stats
from torch import nn

from calibration import peers_kinds
from calibration.cases import Fault, Healthy, Subject
from calibration.peers_tools import TOOLS, Tool, Verdict
from nndiag.progress import Progress, silenced
from nndiag.render import files
from nndiag.render.markdown import escape

FOLDER = Path(__file__).parents[2] / "reports" / "calibration"
FAULTY, SOUND = 40, 20
CHEAP = 20_000  # numbers in a batch: healthy networks up to this come from a second seed too
PATIENCE = 900.0  # seconds for one case: a machine that is busy is not a tool that hangs


# -- the corpus: chosen by what the cases are, never by what anybody says of them ------------------


class Case(NamedTuple):
    name: str
    what: Fault | Healthy
    seed: int = 0

    def build(self) -> Subject:
        return self.what.build() if isinstance(self.what, Fault) else self.what.build(self.seed)


def usable(subject: Subject) -> bool:
    """Every peer can be given it: one tensor of floats, a target and a loss."""
    x = subject.batch
    floats = isinstance(x, torch.Tensor) and x.dtype == torch.float32
    return floats and isinstance(subject.target, torch.Tensor) and subject.loss_fn is not None


def fits(what: Fault | Healthy) -> bool:
    return usable(Case(what.name, what).build())


def faulty(faults: Iterable[Fault], most: int = FAULTY) -> list[Fault]:
    """Rules take turns, and within a rule its kinds; then each kind again in another architecture.

    Sick ones only. Of the architectures of a kind the one that has had the fewest so far; module
    and functional by turns; at initialisation if there is that; the strongest, which the corpus
    lists first.
    """
    rules: dict[str, dict[str, list[Fault]]] = {}
    for fault in faults:
        if fault.sick:
            rules.setdefault(fault.rule, {}).setdefault(fault.kind, []).append(fault)
    turns = itertools.zip_longest(*([*kinds.values()] * 2 for kinds in rules.values()))
    chosen: list[Fault] = []
    for cases in itertools.chain.from_iterable(turns):
        if cases is not None and len(chosen) < most:
            chosen += _one(cases, chosen)
    return chosen


def _one(cases: Sequence[Fault], chosen: Sequence[Fault]) -> list[Fault]:
    """The next case of a kind, in an architecture that it has not been taken in, if there is."""
    form = ("module", "functional")[len(chosen) % 2]
    had = Counter(case.architecture for case in chosen)
    taken = {case.architecture for case in chosen if case.kind == cases[0].kind}
    for architecture in sorted({case.architecture: 0 for case in cases}, key=had.__getitem__):
        first = min(
            (case for case in cases if case.architecture == architecture),
            key=lambda case: (case.state != "init", case.form != form),
        )
        if architecture not in taken and fits(first):
            return [first]
    return []


def sound(networks: Iterable[Healthy], most: int = SOUND) -> list[Healthy]:
    """One of each family, then a second, until there are enough; within a family by lot."""
    families: dict[str, list[Healthy]] = {}
    for network in networks:
        families.setdefault(network.family, []).append(network)
    for family in families.values():
        random.Random(0).shuffle(family)
    turns = itertools.zip_longest(*families.values())
    ordered = (n for n in itertools.chain.from_iterable(turns) if n is not None)
    return list(itertools.islice((n for n in ordered if fits(n)), most))


def corpus() -> list[Case]:
    from calibration.faults import FAULTS
    from calibration.healthy import HEALTHY

    cases = [Case(fault.name, fault) for fault in faulty(FAULTS)]
    for network in sound(HEALTHY):
        seeds = (0, 1) if network.build(0).batch.numel() <= CHEAP else (0,)
        cases += [Case(f"{network.name}/seed {seed}", network, seed) for seed in seeds]
    return cases


# -- judged, in a process for each tool ------------------------------------------------------------


class Answer(NamedTuple):
    verdict: Verdict
    layers: int  # how many different ones it names
    seconds: float  # of processor time
    crash: str  # what was raised, or nothing


def judge(tool: Tool, subject: Subject) -> Answer:
    subject = subject._replace(model=copy.deepcopy(subject.model))
    owners = {name for name, _ in subject.model.named_modules()}
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    began = time.process_time()
    try:
        verdict, crash = tool.judge(subject), ""
    except Exception as error:
        verdict, crash = Verdict([], []), f"{type(error).__name__}: {error}"
    seconds = time.process_time() - began
    layers = {place.rpartition(".")[0] if place not in owners and "." in place and "/" not in place
              else place for place in verdict.places}  # fmt: skip
    return Answer(verdict, len(layers), seconds, crash)


def easy() -> Subject:
    """Whoever cannot judge this one is not being run right; and what a tool loads on first use is

    not charged to the first case.
    """
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return Subject(model, torch.randn(64, 4), torch.arange(64) % 2, nn.functional.cross_entropy)


def work(pipe: Connection, name: str, cases: Sequence[tuple[str, int]]) -> None:
    """A tool's process: names of cases come in, answers go out; first how the rehearsal went."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    tool = next(tool for tool in TOOLS if tool.name == name)
    with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
        known = {case.name: case for case in find(cases)}
        tool.require()
        pipe.send(judge(tool, easy()).crash)
        while True:
            subject = known[pipe.recv()].build()
            with silenced():
                pipe.send(judge(tool, subject))


def find(cases: Sequence[tuple[str, int]]) -> Iterator[Case]:
    """The cases of these names and seeds, without choosing anew."""
    from calibration.faults import FAULTS
    from calibration.healthy import HEALTHY

    whats: dict[str, Fault | Healthy] = {what.name: what for what in (*HEALTHY, *FAULTS)}
    for name, seed in cases:
        yield Case(name, whats[name.removesuffix(f"/seed {seed}")], seed)


class Worker:
    """A process that answers questions; another one is begun when it hangs or dies.

    Not one of multiprocessing's: torchlens refuses to work in those.
    """

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self.target, self.args = target, args
        self.process: subprocess.Popen[bytes] | None = None

    def answer(self, question: str) -> Answer:
        if self.process is None:
            self.begin()
        try:
            self.pipe.send(question)
            if self.pipe.poll(PATIENCE):
                answer: Answer = self.pipe.recv()
                return answer
            crash, seconds = f"no answer in {PATIENCE:g} s", PATIENCE
        except (EOFError, OSError):
            crash, seconds = "the process died", math.nan
        self.end()
        return Answer(Verdict([], []), 0, seconds, crash)

    def begin(self) -> None:
        """Raises RuntimeError if the rehearsal fails: that is our fault and nobody's verdict."""
        self.pipe, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        module = inspect.getmodulename(inspect.getfile(self.target))
        self.pipe.send((f"calibration.{module}", self.target.__name__, self.args))
        try:
            trouble = self.pipe.recv()
        except EOFError:
            trouble = "the process died"
        if trouble:
            self.end()
            raise RuntimeError(f"{self.args} fails where nothing is wrong: {trouble}")

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.pipe.close()


CHILD = """
import importlib, sys
from multiprocessing.connection import Connection, Pipe
pipe = Connection(int(sys.argv[1]))
module, name, args = pipe.recv()
getattr(importlib.import_module(module), name)(pipe, *args)
"""


def run(tools: Sequence[Tool], cases: Sequence[Case], console: Console) -> pd.DataFrame:
    rows = []
    for tool in tools:
        worker = Worker(work, tool.name, [(case.name, case.seed) for case in cases])
        with Progress(tool.name, console) as progress:
            for n, case in enumerate(cases):
                progress.update(n, len(cases), case.name)
                rows.append(row(tool, case, worker.answer(case.name)))
        worker.end()
        spent = sum(line["seconds"] for line in rows[-len(cases) :])
        console.print(f"{tool.name}: {spent:.0f} s of processor time", highlight=False)
    return pd.DataFrame(rows)


# -- scored ----------------------------------------------------------------------------------------


def row(tool: Tool, case: Case, answer: Answer) -> dict[str, Any]:
    what, (alarms, places) = case.what, answer.verdict
    meant = list(dict.fromkeys(meaning(tool.name, alarm) for alarm in alarms))
    fault = what if isinstance(what, Fault) else None
    return {
        "tool": tool.name,
        "version": tool.version,
        "case": case.name,
        "sick": fault is not None,
        "kind": fault.kind if fault else what.family,  # type: ignore[union-attr]
        "rule": fault.rule if fault else "",
        "claimed": fault is not None and peers_kinds.claims(tool.name, fault),
        "alarmed": bool(alarms),
        "named": fault is not None and peers_kinds.names(fault, meant, strict=tool.strict),
        "placed": fault is not None and peers_kinds.right_place(fault, places),
        "layers": answer.layers,
        "crash": textwrap.shorten(answer.crash, 160),
        "seconds": answer.seconds,
        "meanings": "; ".join(meant),
        "places": textwrap.shorten(" ".join(dict.fromkeys(places)), 100),
        "said": textwrap.shorten(alarms[0], 160) if alarms else "",
    }


def meaning(tool: str, message: str) -> str:
    try:
        return peers_kinds.meaning(tool, message)
    except LookupError:
        return "unknown"


class Share(NamedTuple):
    hits: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper & Pearson 1934, 95 %."""
        if not self.of:
            return 0.0, 1.0
        exact = stats.binomtest(self.hits, self.of).proportion_ci(method="exact")
        return float(exact.low), float(exact.high)

    def __str__(self) -> str:
        if not self.of:
            return "–"
        low, high = self.interval
        rate = 100 * self.hits / self.of
        return f"{self.hits} of {self.of}: {rate:.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def score(rows: pd.DataFrame) -> dict[str, Any]:
    """One tool's rows: how many of how many, over all faults and over those it claims to find."""
    faults, healthy = rows[rows["sick"]], rows[~rows["sick"]]
    claimed = faults[faults["claimed"]]
    always = {m for meant in healthy["meanings"] for m in meant.split("; ")}
    telling = [bool(set(meant.split("; ")) - always - {""}) for meant in faults["meanings"]]
    located = faults.loc[faults["layers"] > 0, "layers"]

    def share(part: pd.DataFrame, column: str) -> Share:
        return Share(int(part[column].sum()), len(part))

    return {
        "tool": rows["tool"].iloc[0],
        "false": share(healthy, "alarmed"),
        "alarmed": share(faults, "alarmed"),
        "telling": Share(sum(telling), len(faults)),
        "named": share(faults, "named"),
        "placed": share(faults, "placed"),
        "claimed_alarmed": share(claimed, "alarmed"),
        "claimed_named": share(claimed, "named"),
        "claimed_placed": share(claimed, "placed"),
        "layers": f"{located.median():g}" if len(located) else "–",
        "crashes": int((rows["crash"] != "").sum()),
        "seconds": float(rows["seconds"].median()),
    }


def by_kind(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """For each kind of fault: how many, and of each tool how many it named."""
    tools = list(dict.fromkeys(rows["tool"]))
    for kind, part in rows[rows["sick"]].groupby("kind", sort=False):
        cells = []
        for tool in tools:
            mine = part[part["tool"] == tool]
            said = f"{mine['named'].sum()} / {mine['alarmed'].sum()}"
            cells.append(said if mine["claimed"].all() else f"({said})")
        yield {"kind": kind, "rule": part["rule"].iloc[0], "cases": len(mine), "cells": cells}


# -- published -------------------------------------------------------------------------------------


def publish(rows: pd.DataFrame, folder: Path = FOLDER) -> None:
    """The rows and the page, both or none."""
    table = rows.assign(seconds=rows["seconds"].round(2)).to_csv(index=False, lineterminator="\n")
    files.write({folder / "peers.csv": table, folder / "peers.md": page(rows)})


def page(rows: pd.DataFrame) -> str:
    tools = [tool for tool in TOOLS if tool.name in set(rows["tool"])]
    parts = [rows[rows["tool"] == tool.name] for tool in tools]
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = Path(__file__).with_name("peers.md.j2").read_text("utf-8")
    return environment.from_string(template).render(
        tools=tools,
        scores=[score(part) for part in parts],
        kinds=[*by_kind(rows)],
        crashes=rows[rows["crash"] != ""].groupby(["tool", "crash"], sort=False)["case"].agg(list),
        unknown=rows[rows["meanings"].str.contains("unknown")],
        cases=parts[0]["case"][parts[0]["sick"]].tolist(),
        networks=list(dict.fromkeys(
            name.rpartition("/seed")[0] for name in parts[0]["case"][~parts[0]["sick"]])),
        meanings=peers_kinds.MEANINGS,
        table=peers_kinds.TABLE,
        accepted=peers_kinds.ACCEPTED,
        accepted_of=peers_kinds.ACCEPTED_OF,
        runs=int((~parts[0]["sick"]).sum()),
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        python=platform.python_version(),
        escape=escape,
    )  # fmt: skip


def main(
    folder: Annotated[Path, typer.Option(help="Where the table and the page go.")] = FOLDER,
    only: Annotated[str, typer.Option(help="Tools, by commas; writes nothing.")] = "",
) -> None:
    """Judge a small corpus with nndiag and its peers, write what came out."""
    console = Console(stderr=True)
    tools = [tool for tool in TOOLS if not only or tool.name in only.split(",")]
    for tool in tools:
        try:
            tool.require()
        except ModuleNotFoundError as error:
            console.print(str(error), markup=False)
            raise typer.Exit(2) from error
    torch.set_num_threads(1)
    cases = corpus()
    rows = run(tools, cases, console)
    if only:
        print(rows.to_csv(index=False))
        return
    publish(rows, folder)
    console.print(f"written to {folder}")


if __name__ == "__main__":
    typer.run(main)
