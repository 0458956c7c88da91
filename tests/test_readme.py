"""What the README shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nndiag import rules

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def text():
    return README.read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def masked(output):
    """Without the digits, which differ between versions of torch and processors."""
    words = re.sub(r"[\d.,e+-]*\d[\d.,e+-]*", "#", output).split()
    return " ".join(words)


def run(code, folder):
    (folder / "example.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=folder, capture_output=True, text=True, encoding="utf-8", check=True,
        env={"COLUMNS": "100", "PATH": "", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    return done.stdout


def example(text):
    """The code of the first example, and what the README says its output begins with."""
    code, printed = re.findall(
        r"^```(?:python)?\n(.*?)^```$", text[text.index("## One call") :], re.M | re.S
    )[:2]
    return code, printed


def test_the_example_begins_with_what_stands_below_it(text, tmp_path):
    """Rewritten by ``NNDIAG_GOLDEN=write pytest tests/test_readme.py``."""
    code, printed = example(text)

    opening = run(code, tmp_path).partition("\n\n")[0] + "\n"

    if os.environ.get("NNDIAG_GOLDEN") == "write":
        README.write_text(text.replace(printed, opening), encoding="utf-8")
        return
    assert masked(opening) == masked(printed)


def test_the_repair_of_the_examples_network_succeeds(text, tmp_path):
    code, _ = example(text)
    [repair] = [block for _, block in blocks(text) if block.startswith("repair = nndiag.repair(")]

    shown = run(f"{code}\n{repair}\nprint('repaired:', repair.ok)", tmp_path)

    assert shown.splitlines()[-1] == "repaired: True"


def test_it_is_short(text):
    assert len(text.split()) <= 1500


def test_the_list_has_every_rule_in_its_family(text):
    rows = re.findall(r"^\| (ND\d) \| [^|]+ \| (.+) \|$", text, re.M)
    families: dict[str, list[str]] = {}
    for name, module in rules.discover().items():
        families.setdefault(module.RULE.code[:3], []).append(name)
    assert {family: re.findall(r"`([\w-]+)`", names) for family, names in rows} == families


def test_it_names_no_target_that_make_does_not_have(text):
    makefile = README.with_name("Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)$", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
