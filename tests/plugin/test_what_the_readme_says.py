"""The README's tests run."""

from __future__ import annotations

import re
from pathlib import Path

from nndiag import rules

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
    needing_more = sum("optimizer" in rule.needs for rule in rules.catalogue().values())
    run = 2 * (len(rules.catalogue()) - needing_more)
    result.assert_outcomes(passed=run - 1, xfailed=1, skipped=2 * needing_more)
