"""The command line: one function for each command."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nndiag import __version__
from nndiag.errors import NNDiagError, SettingsError
from nndiag.targets import load

if TYPE_CHECKING:
    from rich.console import Console

    from nndiag.compare import Comparison
    from nndiag.fixes.result import Repair
    from nndiag.report import Report
    from nndiag.rule import Finding

__all__ = [
    "FAILED",
    "FINE",
    "FOUND",
    "Allow",
    "CompareFormat",
    "FailOn",
    "Format",
    "Lang",
    "Language",
    "app",
    "check",
    "compare",
    "demo",
    "main",
    "rule",
    "rules",
]

FINE, FOUND, FAILED = 0, 1, 2

app = typer.Typer(
    help="Find what is wrong inside a torch neural network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 no findings, 1 findings or a crashed rule, 2 wrong usage or an error.",
)


class Format(str, Enum):
    terminal = "terminal"
    json = "json"
    html = "html"
    csv = "csv"
    markdown = "markdown"
    sarif = "sarif"
    junit = "junit"
    github = "github"
    concise = "concise"


class Allow(str, Enum):
    safe = "safe"
    all = "all"


class Language(str, Enum):
    en = "en"
    zh = "zh"


class FailOn(str, Enum):
    error = "error"
    warning = "warning"
    never = "never"


def main() -> None:
    """Run the ``nndiag`` command. The user's errors are shown without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the console lacks is shown escaped, so that the report is not lost.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except NNDiagError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT):
            print(f"nndiag: the output could not be written: {error}.", file=sys.stderr)
            sys.exit(FAILED)
        traceback.print_exc()
        print("This is an error in nndiag, not in your model. Please report it.", file=sys.stderr)
        sys.exit(FAILED)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"nndiag {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None: ...


@app.command()
def check(
    model: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="package.module:attr or file.py:attr: a model, or a function without arguments.",
            show_default=False,
        ),
    ],
    batch: Annotated[
        str,
        typer.Option(metavar="TARGET", help="What a DataLoader yields, or a whole DataLoader."),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="The target of the loss, if the batch does not hold it."
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="loss(output, target), or a class or function that makes one."
        ),
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="The format; repeatable with --output, whose default is all file formats.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write report.json, report.html, … here.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the files in --output, for several reports in one folder.")
    ] = "report",
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE", help="Only these rules: names, codes or beginnings of codes (ND2)."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Not these rules.")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE.NAME=VALUE", help="Set a threshold; repeatable."),
    ] = None,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(help="Lowest severity that makes the exit status 1.", show_default="warning"),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="A saved report: only findings that are not in it make the exit status 1.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The seed of everything random; 0 by default.")
    ] = None,
    notes: Annotated[
        bool, typer.Option("--notes", help="On the terminal, show each note in full.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no report on the terminal.")
    ] = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Try the fixes on a copy and show which helped. With --output, save the repaired "
            "state (repair.pt) and the code that makes it (repair.py). The exit status then "
            "depends on the findings left.",
        ),
    ] = False,
    allow: Annotated[
        Allow, typer.Option(help="With --fix: only fixes that lose nothing learned, or all.")
    ] = Allow.safe,
    trained: Annotated[
        bool | None,
        typer.Option(
            "--trained/--untrained",
            help="With --fix: whether the model is trained; detected by default.",
        ),
    ] = None,
    trial: Annotated[
        int,
        typer.Option(
            metavar="STEPS",
            min=0,
            help="With --fix: also train the original and the repaired model for this many steps.",
        ),
    ] = 0,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="The training's optimiser, or optimizer(parameters) that makes it. With --fix: "
            "what --trial trains with; Adam by default.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --fix: overwrite existing files in --output.")
    ] = False,
) -> None:
    """Run a model once and report what is wrong in it."""
    from nndiag import settings
    from nndiag.progress import silenced

    formats = formats or []
    _check_output(formats, output, name)
    saved_as = "repair" if name == "report" else f"{name}.repair"
    if fix:
        _check_repair_output(formats, output, saved_as, force)
    else:
        given = {
            "--allow": allow is not Allow.safe, "--trained": trained is not None,
            "--trial": trial, "--force": force,
        }  # fmt: skip
        if alone := [option for option, there in given.items() if there]:
            raise typer.BadParameter("it needs --fix", param_hint=alone[0])
    fails = settings.load().override(fail_on=None if fail_on is None else fail_on.value).fail_on
    # The user's code may print; that must not end up in a report on stdout.
    with (
        contextlib.redirect_stdout(sys.stderr),
        silenced() if quiet else contextlib.nullcontext(),
    ):
        # torch takes seconds to import: only after the command line has been checked.
        thresholds = _thresholds(threshold)
        known = None if baseline is None else _saved(baseline)
        from nndiag.api import check as run

        inputs = (
            load(model),
            load(batch),
            None if target is None else load(target),
            None if loss is None else load(loss, is_function=True),
        )
        chosen: dict[str, Any] = {
            "select": _words(select),
            "ignore": _words(ignore),
            "thresholds": thresholds,
            "seed": seed,
        }
        if optimizer is not None:
            chosen["optimizer"] = load(optimizer, is_function=True)
        if fix:
            from nndiag.fixes.repair import repair

            repaired = repair(
                *inputs,
                allow=allow.value,
                trained=trained,
                trial_steps=trial,
                **chosen,
            )
            report = repaired.after
        else:
            report = run(*inputs, **chosen)
    if fix:
        _show_repair(repaired, formats, output, saved_as, force, quiet)
    else:
        _show_report(report, formats, output, name, notes, quiet)
    failing = () if fails == "never" else report.at_least(fails)
    if known is not None and fails != "never":
        failing = known.compare(report).new_findings(fails)
    if known is not None and not quiet:
        print(_against_baseline(str(baseline), known, report, failing, fails), file=sys.stderr)
    _write_github(report, failing if known is not None else report.findings, formats, output, quiet)
    raise typer.Exit(FOUND if failing or (report.crashed and fails != "never") else FINE)


def _check_output(formats: Sequence[Format], output: Path | None, name: str) -> None:
    """Check the options of the output before anything runs."""
    if name in ("", ".", "..", "index") or set(name) & set("/\\\0"):
        raise typer.BadParameter("give a file name for --output, not a path", param_hint="--name")
    if output is None and len(formats) > 1:
        raise typer.BadParameter(
            "several formats need --output DIR; without it, one goes to stdout",
            param_hint="--format",
        )


def _show_report(
    report: Report,
    formats: Sequence[Format],
    output: Path | None,
    name: str,
    notes: bool,
    quiet: bool,
) -> None:
    if output is not None:
        from nndiag.render.formats import save
        from nndiag.settings import KEPT

        save(report, output, [form.value for form in formats] or KEPT, name)
    if output is None and formats and formats != [Format.terminal]:
        print(_text(report, formats[0]), end="")
    elif not quiet:
        from nndiag.render import terminal

        _console().print(terminal.render(report, notes))


def _saved(baseline: Path) -> Report:
    """The baseline report, read before the model runs."""
    from nndiag.errors import ReportError
    from nndiag.report import Report

    if not baseline.exists():
        raise ReportError(
            f"--baseline {baseline} does not exist. Save one with: nndiag check ... "
            f"--output {baseline.parent} --name {baseline.stem} --format json"
        )
    return Report.from_json(baseline)


def _against_baseline(
    baseline: str, known: Report, report: Report, new: Sequence[Finding], fails: str
) -> str:
    from nndiag.render import story

    judged = {o.rule for o in known.outcomes if o.status in ("found", "passed")}
    findings = report.at_least("warning" if fails == "never" else fails)  # type: ignore[arg-type]
    others = [f for f in findings if f.rule not in judged]
    known_count = len(findings) - len(new) - len(others)
    counts = f"{story.plural(len(new), 'new finding')}, {known_count} known"
    if others:
        counts += f", {len(others)} of rules that did not run for it"
    lines = [f"Against {baseline}: {counts}."]
    roots = [f for f in new if not any(f.root is other for other in new if other is not f)]
    for root in roots:
        more = sum(f.root is root for f in new) - 1
        lines.append(f"  {root.severity} {root.rule} at {root.layer}")
        lines[-1] += f" (explains {more} more)" if more else ""
    return "\n".join(lines)


def _write_github(
    report: Report,
    findings: Sequence[Finding],
    formats: Sequence[Format],
    output: Path | None,
    quiet: bool,
) -> None:
    """In a GitHub job, write annotations beside the code and the job's summary."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    from dataclasses import replace

    from nndiag.render import lines, markdown

    is_free = output is not None or not formats or formats == [Format.terminal]
    if is_free and not quiet:
        print(lines.github(replace(report, findings=tuple(findings))), end="")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with open(summary, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(markdown.render(report))
        except OSError as error:  # the report matters more
            print(f"GITHUB_STEP_SUMMARY cannot be written: {error}", file=sys.stderr)


_OF_REPAIRS = (Format.terminal, Format.html, Format.markdown)


def _check_repair_output(
    formats: Sequence[Format], output: Path | None, name: str, force: bool
) -> None:
    """Check the options of a repair before anything runs."""
    from nndiag.fixes.result import ENDINGS
    from nndiag.render import files

    if wrong := [form.value for form in formats if form not in _OF_REPAIRS]:
        raise typer.BadParameter(
            f"a repair has no format {wrong[0]}; with --fix use terminal, html or markdown",
            param_hint="--format",
        )
    if output is not None:
        files.free([output / f"{name}{ending}" for ending in ENDINGS], force)


def _show_repair(
    repair: Repair,
    formats: Sequence[Format],
    output: Path | None,
    name: str,
    force: bool,
    quiet: bool,
) -> None:
    from nndiag.render import repair as page

    if output is not None:
        paths = repair.save(output, name, force=force)
    if output is None and formats and formats != [Format.terminal]:
        print((page.html if formats[0] is Format.html else page.markdown)(repair), end="")
    elif not quiet:
        _console().print(repair)
        if output is not None:
            names = ", ".join(str(path) for path in paths)
            _console().print(f"Saved: {names}", markup=False, soft_wrap=True)


class CompareFormat(str, Enum):
    terminal = "terminal"
    markdown = "markdown"
    html = "html"


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The earlier report.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The later report.")],
    form: Annotated[
        CompareFormat, typer.Option("--format", help="The format, on stdout or in --output.")
    ] = CompareFormat.terminal,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file.")] = None,
) -> None:
    """Show what differs between two saved reports by more than chance. Then exit status 1."""
    from nndiag.render import comparison as page
    from nndiag.render import files
    from nndiag.report import Report

    comparison = Report.from_json(old).compare(Report.from_json(new))
    renders: dict[CompareFormat, Callable[[Comparison], str]] = {
        CompareFormat.terminal: lambda c: f"{c}\n",
        CompareFormat.markdown: page.markdown,
        CompareFormat.html: page.html,
    }
    if output is not None:
        files.write({output: renders[form](comparison)})
        print(page.verdict(comparison))
    elif form is CompareFormat.terminal:
        _console().print(page.terminal(comparison))
    else:
        print(renders[form](comparison), end="")
    raise typer.Exit(FINE if comparison.same else FOUND)


Lang = Annotated[Language, typer.Option("--lang", help="English or Simplified Chinese.")]


@app.command()
def rule(
    name: Annotated[str, typer.Argument(help="The rule's name or code.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    lang: Lang = Language.en,
) -> None:
    """Show a rule's page: what it looks for, why, its thresholds, its fixes."""
    from pydantic_core import to_json

    from nndiag.judge import chosen
    from nndiag.render.page import page, title

    for module in chosen([name]).values():
        if as_json:
            from dataclasses import asdict

            fields = {**asdict(module.RULE), "title": title(module), "page": page(module)}
            print(to_json(fields, indent=2, inf_nan_mode="strings").decode())
        else:
            print(page(module, lang.value))


@app.command()
def rules(lang: Lang = Language.en) -> None:
    """List all rules."""
    from rich.table import Table

    from nndiag.render.page import title
    from nndiag.rules import discover, not_loaded

    table = Table(box=None, pad_edge=False)
    for heading in ("code", "name", "severity"):
        table.add_column(heading, no_wrap=True)
    table.add_column("title", overflow="fold")
    for module in discover().values():
        cells = (module.RULE.code, module.RULE.name, module.RULE.severity)
        table.add_row(*cells, title(module, lang.value))
    _console().print(table)
    for name, reason in not_loaded().items():
        print(f"{name} {reason}", file=sys.stderr)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the reports.")] = Path(
        "nndiag-demo"
    ),
) -> None:
    """Train four networks on handwritten digits, check them, and repair the three faulty ones."""
    # Imported here: the demo needs torch, and most commands do not.
    importlib.import_module("nndiag.demo").main(output, _console())


def _words(options: Sequence[str] | None) -> list[str] | None:
    """The words of ``--select ND2,ND401 --select dead-relu``: commas and repetition both work."""
    if not options:
        return None
    return [word.strip() for option in options for word in option.split(",") if word.strip()]


def _thresholds(options: Sequence[str] | None) -> dict[str, float] | None:
    if not options:
        return None
    thresholds = {}
    for option in options:
        name, equals, value = option.partition("=")
        try:
            thresholds[name.strip()] = float(value)
        except ValueError:
            raise SettingsError(
                f"--threshold {option}: write rule.name=number, such as dead-relu.share=0.5."
            ) from None
        if not equals or "." not in name:
            raise SettingsError(
                f"--threshold {option}: write rule.name=number, such as dead-relu.share=0.5."
            )
    return thresholds


def _text(report: Report, form: Format) -> str:
    from nndiag.render.formats import texts

    files = texts(report, form.value)
    # CSV is three files; only the findings go to stdout.
    return files["findings.csv"] if form is Format.csv else next(iter(files.values()))


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, width=shutil.get_terminal_size((100, 24)).columns)
