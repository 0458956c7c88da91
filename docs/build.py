"""Builds the site that ``make docs`` makes: ``python docs/build.py [--links] [FOLDER]``.

Sphinx does not read this folder but a copy under ``FOLDER/source``, beside pages that are made from
what they describe: one a rule, the command line, the pytest options, the changelog. Nothing that is
made is committed. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BLOB = "https://github.com/nndiag/nndiag/blob/main"
HEADINGS = {
    "Thresholds": "Thresholds and their sources",
    "Fixes": "Fixes, and whether each is safe",
}
FAMILIES = {
    "ND1": "Activations",
    "ND2": "Gradients",
    "ND3": "Weights and signals",
    "ND4": "Numbers",
    "ND5": "Normalisation and shift",
    "ND6": "Data",
    "ND7": "Loss and targets",
    "ND8": "Optimiser and regularisation",
}


def build(folder: Path, builder: str = "html") -> int:
    """The site as ``folder/html``: Sphinx's exit status. A warning is an error."""
    from sphinx.cmd.build import main as sphinx

    source = folder / "source"
    prepare(source)
    strict = ["-q", "-W", "--keep-going", "-n", "-d", str(folder / "doctrees")]
    return sphinx([*strict, "-b", builder, str(source), str(folder / builder)])


def prepare(source: Path) -> None:
    """This folder's copy, with the pages that are made."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns("build.py", "__pycache__"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (source / name.lower()).write_text(_absolute(text), encoding="utf-8")
    for path, text in pages().items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The pages that are made, by their path in the source."""
    from nndiag.rules import discover

    modules = [m for m in discover().values() if m.__name__.startswith("nndiag.")]
    made = {f"rules/{m.RULE.name}.md": rule_page(m) for m in modules}
    return {
        **made,
        "rules/index.md": rule_index(modules),
        "command-line.md": command_line(),
        "pytest-options.md": pytest_options(),
    }


def rule_index(modules: Sequence[ModuleType]) -> str:
    """All rules, family by family."""
    from nndiag.render.page import title

    lines = [(HERE / "rules" / "index.md").read_text(encoding="utf-8").rstrip(), ""]
    for prefix, family in FAMILIES.items():
        lines += [f"## {family} ({prefix})", ""]
        for module in modules:
            rule = module.RULE
            if rule.code.startswith(prefix):
                lines += [f"[{rule.name}]({rule.name}.md) · {rule.code} · {rule.severity}"]
                lines += [f": {_escaped(title(module))}", ""]
    names = [m.RULE.name for m in modules]
    lines += ["```{toctree}", ":hidden:", "", *names, "```", ""]
    return "\n".join(lines)


def rule_page(module: ModuleType) -> str:
    """One rule's page, under the fixed headings."""
    from nndiag.render import page, story

    rule = module.RULE
    lines = [f"# {rule.name}", "", f"**{rule.code}** · {rule.severity} · about {rule.about}", ""]
    lines += [_escaped(page.title(module)), ""]
    for heading, text in page.sections(module).items():
        lines += [f"## {HEADINGS.get(heading, heading)}", ""]
        if heading == "Example":
            for label, code in zip(("Sick:", "Well:"), page.examples(module), strict=True):
                lines += [label, "", "```python", code, "```", ""]
        elif heading == "Thresholds":
            lines += ["| threshold | value | source |", "|-|-|-|"]
            for name, threshold in rule.thresholds.items():
                source = _linked(_escaped(" ".join(threshold.source.split())))
                lines.append(f"| `{name}` | {story.number(threshold.value)} | {source} |")
            setting = f"{rule.name}.{next(iter(rule.thresholds))}"
            lines += ["", f'Set one with `thresholds={{"{setting}": …}}`.', ""]
        elif heading == "Fixes":
            lines += [*_fixes(text), ""]
        else:
            lines += [_linked(_escaped(text)), ""]
    lines += ["## Commands", "", "```console"]
    lines += [f"$ nndiag rule {rule.name}", f"$ nndiag check … --select {rule.name}", "```", ""]
    return "\n".join(lines)


def _fixes(text: str) -> Iterator[str]:
    """The list of fixes, its lines of code as code."""
    code: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("      "):
            code.append(line[6:])
            continue
        if code:
            yield from ("", "  ```python", *(f"  {part}" for part in code), "  ```", "")
            code = []
        if line:
            yield _escaped(line) if not line.startswith("- ") else f"- {_escaped(line[2:])}"


def command_line() -> str:
    """Every command with its arguments and options, as typer lists them."""
    command = [sys.executable, "-m", "typer", "nndiag.cli", "utils", "docs", "--name", "nndiag"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    _, _, commands = run.stdout.partition("\n## ")  # the text before it is in command-line.md
    head = (HERE / "command-line.md").read_text(encoding="utf-8").rstrip()
    return f"{head}\n\n## {commands}"


def pytest_options() -> str:
    """The plugin's options, as pytest gets them."""
    from nndiag import pytest_plugin

    options: list[tuple[str, str, str]] = []

    class Parser:
        def getgroup(self, *_: str) -> Parser:
            return self

        def addoption(self, name: str, **about: Any) -> None:
            choices = "\\|".join(about.get("choices", ()))
            options.append((name, about.get("metavar", choices), about["help"]))

        def addini(self, name: str, *_: Any, **__: Any) -> None:
            inis.append(name)

    inis: list[str] = []
    pytest_plugin.pytest_addoption(Parser())  # type: ignore[arg-type]  # only what it calls
    lines = [(HERE / "pytest-options.md").read_text(encoding="utf-8").rstrip(), ""]
    lines += ["| option | ini | |", "|-|-|-|"]
    for name, value, text in options:
        ini = name.removeprefix("--").replace("-", "_")
        shown = f"`{name}={value}`" if value else f"`{name}`"
        lines.append(f"| {shown} | {f'`{ini}`' if ini in inis else ''} | {_escaped(text)} |")
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    """Text as Markdown that shows it as it stands; what is between backticks stays code."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_<>\[\]|#~$])", r"\\\1", part)
        for part in parts
    )


def _linked(text: str) -> str:
    """Paths of files in the repository as links to it."""
    return re.sub(
        r"reports/[\w./\\-]*[\w/]",
        lambda match: f"[{match[0]}]({BLOB}/{match[0].replace(chr(92), '')})",
        text,
    )


def _absolute(text: str) -> str:
    """Links of a page at the repository's root, as links from anywhere."""
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({BLOB}/\1)", text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the documentation.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "docs")
    parser.add_argument("--links", action="store_true", help="follow the links to other sites")
    given = parser.parse_args()
    if given.links:
        return build(given.folder / "links", "linkcheck")
    code = build(given.folder)
    if code == 0:
        print(f"built: {given.folder / 'html' / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
