"""The calibration of repairs counts what it says it counts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from calibration import repaired, repairs
from calibration.faults import FAULTS, KINDS


def line(**given):
    usual = {
        "case": "dead-bias/mlp/module/init/1", "kind": "dead-bias", "rule": "dead-relu",
        "state": "init", "silent": True, "new": "", "left": "", "steps": "redraw", "refused": "",
        "trial": "better", "loss_before": 2.3, "loss_after": 0.02, "p": 1e-9,
    }  # fmt: skip
    return {**usual, **given}


def test_every_fault_is_mendable_or_says_where_it_lies_instead():
    sick = {case.kind for case in FAULTS if case.sick}

    assert set(repaired.ELSEWHERE) <= sick <= set(KINDS)
    assert {case.kind for case in repaired.mendable()} == sick - set(repaired.ELSEWHERE)


def test_a_case_is_repaired_where_its_rule_is_silent_and_no_other_speaks_up():
    table = pd.DataFrame(
        [
            line(),
            line(trial="tie"),
            line(trial="worse"),
            line(silent=False, left="dead-relu"),
            line(new="init-scale", trial="worse"),
        ]
    )

    assert repaired.summary(table) == {
        "cases": 5, "repaired": 3, "worse": 1, "tried": 3, "better": 1, "ties": 1,
        "trained_worse": 1,
    }  # fmt: skip


def test_a_case_is_repaired_and_tried_as_the_page_tells(monkeypatch):
    monkeypatch.setattr(repaired, "STEPS", 20)
    monkeypatch.setattr(repaired, "SEEDS", 2)

    found = repaired.row("dead-bias/mlp/module/init/1")

    assert found["silent"]
    assert (found["new"], found["left"]) == ("", "")
    assert found["steps"] == "reset-bias"
    assert found["loss_after"] < found["loss_before"]


def test_bounds_are_exact_ones():
    # Clopper & Pearson: 0.025 = p^10 for ten of ten.
    assert repairs.bound(10, 10) == pytest.approx(0.025**0.1)
    assert repairs.bound(0, 10) == 0


def test_the_page_says_what_the_table_says(tmp_path: Path):
    table = pd.DataFrame(
        [line(), line(case="other", trial="tie"), line(case="bad", silent=False, left="dead-relu")]
    )

    repairs.publish(table, tmp_path)

    page = (tmp_path / "repairs.md").read_text(encoding="utf-8")
    assert "0.667 (2/3)" in page
    assert "0.500 (1/2)" in page
    assert page.count("**missed**") == 2
    assert "| bad | dead-relu |" in page
    assert pd.read_csv(tmp_path / "repairs.csv")["case"].tolist() == list(table["case"])


def test_the_documentation_tells_what_the_table_holds():
    table = repairs.read(repairs.FOLDER)
    text = " ".join((repairs.FOLDER.parents[1] / "docs" / "evidence.md").read_text("utf-8").split())
    found = repaired.summary(table)
    assert found["worse"] == found["trained_worse"] == 0

    assert f"Of {found['cases']} labelled faults" in text
    assert f"left {found['repaired']} without the finding" in text
    assert f"{found['better']} of those trained better" in text
    assert (
        f"{found['ties']} no differently (in {repairs.level(table)} of these both networks learned"
        in text
    )
