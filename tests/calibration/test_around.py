"""The table of faults around a network is what a check says today."""

from __future__ import annotations

from pathlib import Path

from calibration import around

PAGE = Path(__file__).parents[2] / "reports" / "calibration" / "published-tools.md"


def test_the_page_holds_the_table_as_it_is_printed(capsys):
    around.main()

    printed = capsys.readouterr().out
    assert printed.count("\n") == 17
    assert printed in PAGE.read_text(encoding="utf-8")
