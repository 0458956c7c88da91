"""The measurement of baselines does what its page says, and the README tells its numbers."""

from __future__ import annotations

import pandas as pd
import pytest
from typer.testing import CliRunner

from baselines import __main__ as command
from baselines import runs

EVIDENCE = command.HERE.parents[1] / "docs" / "evidence.md"


def test_a_network_is_held_against_its_baseline_changed_and_not():
    rows = runs.job(("digits-mlp-relu", "drawn", 2, 1))

    assert [(row["change"], row["met"]) for row in rows] == [
        ("none", True), ("none", True), ("weights × 1.5", False), ("another activation", False),
        ("input × 2", False), ("one layer's weights × 1.5", False), ("a frozen parameter", False),
    ]  # fmt: skip
    assert all(bool(row["why"]) is not row["met"] for row in rows)


def test_the_page_tells_rates_and_what_was_missed(tmp_path):
    row = {"network": "a", "batches": "drawn", "numbers": 30, "bytes": 2048, "run": 0, "why": ""}
    table = pd.DataFrame(
        [{**row, "change": "none", "met": True}] * 99
        + [{**row, "change": "none", "met": False, "why": "too loud"}]
        + [{**row, "change": "input × 2", "met": met} for met in (True, False, False)]
    )
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert CliRunner().invoke(command.app, ["page", "--output", str(tmp_path)]).exit_code == 0
    text = (tmp_path / "README.md").read_text("utf-8")

    assert "| all | 100 | 1 | 0.04656 | ≤ 0.001 |" in text  # Clopper & Pearson
    assert "| input × 2 | 3 | 2 | 0.094 |" in text
    assert "- a, drawn: too loud" in text
    assert "- input × 2 in a, 1 run" in text


@pytest.mark.parametrize("held", [0, 1])
def test_other_versions_are_noted_once(tmp_path, monkeypatch, held):
    one = {"digits-mlp-relu": runs.RECIPES["digits-mlp-relu"]}
    monkeypatch.setattr(runs, "RECIPES", one)
    invoke = CliRunner().invoke
    assert invoke(command.app, ["keep", str(tmp_path / "kept")]).exit_code == 0
    for _ in range(1 + held):
        options = ["--output", str(tmp_path), "--runs", "1"]
        assert invoke(command.app, ["hold", str(tmp_path / "kept"), *options]).exit_code == 0

    table = pd.read_csv(tmp_path / "versions.csv")
    assert table[["runs", "failed"]].values.tolist() == [[1, 0]]


def test_the_documentation_tells_what_was_measured():
    rows = pd.read_csv(command.OUTPUT / "runs.csv", keep_default_na=False)
    alike, changed = rows[rows.change == "none"], rows[rows.change != "none"]
    text = " ".join(EVIDENCE.read_text("utf-8").split())

    assert f"Of {len(alike):,} runs in which nothing was changed {int((~alike.met).sum())}" in text
    assert f"{int((~changed.met).sum())} of {len(changed)} changes were seen" in text
