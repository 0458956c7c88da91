"""The README's tests run."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## In a test suite\n")[2].partition("\n## ")[0]
NAMES = (
    "build_unet, build_gated, make_batch, loss = well, dead, batch, F.cross_entropy\n"
    "batch = batch()\n"
)


def test_its_tests_run(inner):
    fixture, parametrized = re.findall(r"```python\n(.*?)```", SECTION, re.S)
    names = NAMES.replace("batch = batch()\n", "")

    inner(NAMES + fixture).assert_outcomes(passed=1)
    result = inner(names + parametrized)
    result.assert_outcomes(passed=27, xfailed=1)
