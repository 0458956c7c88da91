"""The text of every format, held against files that a person has read.

``NNDIAG_GOLDEN=write pytest tests/render/test_golden.py`` writes them anew; read the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import repairs
import samples

import nndiag
from nndiag.render import csv, html, junit, lines, markdown, repair, sarif, terminal

# What a page carries of others' and our script has tests of its own.
SCRIPT = re.compile(r"<script>.*?</script>", re.S)
GOLDEN = Path(__file__).with_name("golden")


def _terminal(report, width=100):
    return terminal.plain(terminal.render(report), width) + "\n"


TEXTS = {
    "sick.txt": lambda: _terminal(samples.sick()),
    "sick-60-columns.txt": lambda: _terminal(samples.sick(), 60),
    "healthy.txt": lambda: _terminal(samples.healthy()),
    "large.txt": lambda: _terminal(samples.large()),
    "sick.md": lambda: markdown.render(samples.sick()),
    "sick.html": lambda: SCRIPT.sub("<script>…</script>", html.render(samples.sick())),
    "fragment.html": lambda: html.fragment(samples.sick()),
    "sick.sarif": lambda: sarif.render(samples.sick()),
    "sick.junit.xml": lambda: junit.render(samples.sick()),
    "sick.github.txt": lambda: lines.github(samples.sick()),
    "sick.concise.txt": lambda: lines.concise(samples.sick()),
    "findings.csv": lambda: csv.render(samples.sick())["findings.csv"],
    "repair.txt": lambda: terminal.plain(repair.terminal(repairs.repaired()), 100) + "\n",
    "repair-safe.txt": lambda: terminal.plain(repair.terminal(repairs.safe()), 80) + "\n",
    "repair.md": lambda: repair.markdown(repairs.repaired()),
    "repair.html": lambda: SCRIPT.sub("<script>…</script>", repair.html(repairs.repaired())),
    "repair-fragment.html": lambda: repair.fragment(repairs.repaired()),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_one_that_was_read(name, monkeypatch):
    monkeypatch.setattr(nndiag, "__version__", "0.1.0")

    text, file = TEXTS[name](), GOLDEN / name

    if os.environ.get("NNDIAG_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "if this is meant: NNDIAG_GOLDEN=write"
