from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from render import samples

from nndiag.errors import FindingsError, OutputError, ReportError, SettingsError, UnknownRuleError
from nndiag.render import tables
from nndiag.report import NotJudged, Report
from nndiag.rule import Finding, Outcome, Unjudged
from nndiag.stats import FlatStats


@pytest.fixture(autouse=True)
def _sample_rules(monkeypatch):
    samples.use_sample_rules(monkeypatch)


@pytest.fixture
def report():
    return samples.sick()


def only(report, *severities):
    found = tuple(f for f in report.findings if f.severity in severities)
    return replace(report, findings=found, outcomes=())


class TestOk:
    def test_an_error_or_a_warning_is_not_ok(self, report):
        assert not only(report, "error").ok
        assert not only(report, "warning").ok

    def test_notes_are_ok(self, report):
        assert only(report, "note").ok
        assert samples.healthy().ok

    def test_a_crashed_rule_is_not_ok(self):
        healthy = samples.healthy()
        crashed = Outcome("non-finite", "ND401", "crashed", "ZeroDivisionError")

        assert not replace(healthy, outcomes=(*healthy.outcomes, crashed)).ok

    def test_a_skipped_rule_is_ok(self):
        assert replace(samples.healthy(), outcomes=(Outcome("x", "ND1", "skipped", "y"),)).ok

    def test_a_report_is_true_where_it_is_ok(self, report):
        assert bool(samples.healthy()) is samples.healthy().ok is True
        assert bool(report) is report.ok is False


RUN = NotJudged(
    "not looked at",
    layer="the training run and validation data",
    reason="a check sees a batch, not a run",
)


class TestNotJudged:
    def test_it_says_what_was_not_looked_at_and_why(self, report):
        snapshot = replace(
            report.snapshot,
            never_called=("spare",),
            not_observed=("core: ValueError: 3: no size", "only 64 batches"),
        )
        outcomes = (
            Outcome("dead-relu", "ND103", "found"),
            Outcome("covariate-shift", "ND501", "skipped", "needs a virtual update: none was made"),
            Outcome("non-finite", "ND401", "crashed", "ZeroDivisionError"),
        )
        unjudged = (Unjudged("dead-relu", "act", "its unit axis is not known"),)
        missing = replace(
            report, snapshot=snapshot, outcomes=outcomes, unjudged=unjudged
        ).not_judged

        assert missing == (
            NotJudged("crashed", "non-finite", reason="ZeroDivisionError"),
            NotJudged("skipped", "covariate-shift", reason="needs a virtual update: none was made"),
            NotJudged("not judged", "dead-relu", "act", "its unit axis is not known"),
            NotJudged("never called", layer="spare"),
            NotJudged("not observed", layer="core", reason="ValueError: 3: no size"),
            NotJudged("not observed", reason="only 64 batches"),
            RUN,
        )
        assert [str(item) for item in missing] == [
            "crashed: non-finite (ZeroDivisionError)",
            "skipped: covariate-shift (needs a virtual update: none was made)",
            "not judged: dead-relu at act (its unit axis is not known)",
            "never called: spare",
            "not observed: core (ValueError: 3: no size)",
            "not observed: only 64 batches",
            "not looked at: the training run and validation data (a check sees a batch, not a run)",
        ]

    def test_where_all_was_looked_at_nothing_is_missing(self):
        seen = replace(
            samples.healthy(), unjudged=(), outcomes=(Outcome("dead-relu", "ND103", "passed"),)
        )
        assert seen.not_judged == (RUN,)  # no report vouches for these

    def test_every_name_in_it_is_one_the_report_prints(self, report):
        text = " ".join(str(report).split())

        assert report.not_judged
        for item in report.not_judged:
            assert (item.rule or item.layer) in text


class TestLayers:
    def test_the_columns_come_in_their_order(self, report):
        assert " ".join(report.layers) == (
            "layer kind op shape units samples mean std min max spread zero_fraction "
            "saturated_fraction dead_units nonfinite grad_rms grad_nonfinite location"
        )

    def test_a_row_says_what_the_values_were(self, report):
        values = np.random.default_rng(0).normal(size=(8, 4))
        row = report.layers.iloc[0]

        assert row["layer"] == "encoder.0"
        assert row["shape"] == "(8, 4)"
        assert (row["units"], row["samples"]) == (4, 8)
        assert row["mean"] == pytest.approx(values.mean())
        assert row["std"] == pytest.approx(values.std())
        assert row["spread"] == pytest.approx(math.sqrt(values.var(axis=0).mean()))
        assert row["grad_rms"] == pytest.approx(1e-12)
        assert row["location"] == "models/encoder.py:40"

    def test_dead_units_are_counted_for_rectifiers_and_unknown_for_others(self, report):
        assert report.layers["dead_units"].tolist() == [
            pd.NA, 1, pd.NA, pd.NA, pd.NA, pd.NA
        ]  # fmt: skip

    def test_dead_units_are_unknown_where_units_were_not_told_apart(self):
        row = samples.layer("act", "relu", flat=FlatStats(8, 32, 20, None))
        report = replace(samples.healthy(), snapshot=samples.snapshot(layers=(row,)))

        assert report.layers["dead_units"].isna().all()

    def test_the_saturated_share_is_of_saturating_activations_only(self, report):
        np.testing.assert_array_equal(
            report.layers["saturated_fraction"], [np.nan, np.nan, 0.75, *[np.nan] * 3]
        )

    def test_nonfinite_values_are_counted(self, report):
        *counted, loss = report.layers["nonfinite"].tolist()
        assert counted == [0, 0, 0, 4, 0]
        assert loss is pd.NA

    def test_without_gradients_their_columns_are_unknown(self):
        rows = tuple(replace(r, grad=None) for r in samples.snapshot().layers)
        report = replace(
            samples.sick(), snapshot=samples.snapshot(layers=rows, has_gradients=False)
        )

        assert report.layers["grad_rms"].isna().all()
        assert report.layers["grad_nonfinite"].isna().all()

    def test_a_table_of_nothing_has_the_same_columns_and_types(self, report):
        nothing = samples.empty()

        for name in ("layers", "parameters"):
            full, none = getattr(report, name), getattr(nothing, name)
            assert len(none) == 0
            pd.testing.assert_series_equal(none.dtypes, full.dtypes)
        pd.testing.assert_series_equal(nothing.to_frame().dtypes, report.to_frame().dtypes)

    def test_whole_numbers_stay_whole_where_some_are_unknown(self, report):
        assert str(report.layers["units"].dtype) == "Int64"
        assert str(report.layers["dead_units"].dtype) == "Int64"

    def test_changing_the_table_does_not_change_the_report(self, report):
        table = report.layers
        table.loc[0, "layer"] = "changed"

        assert report.layers.loc[0, "layer"] == "encoder.0"


def test_parameters_have_a_row_each(report):
    table = report.parameters

    assert " ".join(table) == (
        "parameter shape dtype trainable mean std min max zero_fraction nonfinite grad_rms "
        "grad_zero_fraction grad_nonfinite duplicate_units used"
    )
    assert table["parameter"].tolist() == ["encoder.0.weight", "head_aux.weight"]
    assert table["used"].tolist() == [True, False]
    assert table["duplicate_units"].tolist() == [2, 0]
    assert table["zero_fraction"].tolist() == [0.75, 1.0]
    assert pd.isna(table.loc[1, "grad_nonfinite"])


def test_findings_have_a_row_each_with_their_cause(report):
    table = report.to_frame()

    assert " ".join(table) == ("rule code severity layer message evidence threshold location cause")
    assert len(table) == len(report.findings)
    assert table.loc[1, "evidence"] == {"share": 110 / 256, "units": 256.0}
    assert table["cause"].tolist()[-3:] == [
        "init-scale at encoder.0.weight", "init-scale at encoder.0.weight",
        "saturation at encoder.2",
    ]  # fmt: skip
    assert table.loc[0, "cause"] is None


class TestRaiseForFindings:
    def test_the_error_is_the_report_of_the_findings(self, report):
        with pytest.raises(FindingsError) as caught:
            report.raise_for_findings()

        text = str(caught.value)
        counts = "1 error and 7 warnings; 1 rule crashed"
        assert text.startswith(f"{report.verdict}\n{counts}\n\nnndiag 0.1.0 · Tiny")
        assert "warning[ND103] dead-relu" in text
        assert "note[" not in text
        assert "crashed: ND401 non-finite" in text

    def test_only_what_is_severe_enough_is_shown(self, report):
        with pytest.raises(FindingsError) as caught:
            report.raise_for_findings(at="error")

        assert "init-scale" in str(caught.value)
        assert "dead-relu" not in str(caught.value)

    def test_notes_fail_only_those_who_ask(self, report):
        noted = only(report, "note")

        noted.raise_for_findings()
        with pytest.raises(FindingsError, match="2 notes"):
            noted.raise_for_findings(at="note")

    def test_a_crashed_rule_fails_too(self):
        crashed = (Outcome("non-finite", "ND401", "crashed", "ZeroDivisionError"),)

        with pytest.raises(FindingsError, match="1 rule crashed"):
            replace(samples.healthy(), outcomes=crashed).raise_for_findings()

    def test_a_severity_that_is_none_is_refused(self, report):
        with pytest.raises(SettingsError, match=r"no severity 'warn'\. Choose one of: 'error', "):
            report.raise_for_findings(at="warn")

    def test_it_is_an_assertion_error(self, report):
        with pytest.raises(AssertionError):
            report.raise_for_findings()


class TestJudge:
    @pytest.fixture(autouse=True)
    def _a_rule_with_a_threshold(self, monkeypatch):
        def check(snapshot, thresholds):
            for layer in snapshot.of_op("relu"):
                share = layer.flat.closed / 4
                if share >= thresholds.share:
                    yield Finding(
                        "dead-relu", "ND103", "warning", layer.name, "dead", {"share": share},
                        thresholds.share,
                    )  # fmt: skip

        monkeypatch.setattr(samples.RULES["dead-relu"], "check", check)

    def test_the_same_numbers_are_judged_by_another_threshold(self, report):
        strict = report.judge(select="dead-relu", thresholds={"dead-relu.share": 0.2})
        lax = report.judge(select="dead-relu", thresholds={"dead-relu": {"share": 0.9}})

        assert [f.layer for f in strict.findings] == ["encoder.1/relu"]
        assert strict.findings[0].threshold == 0.2
        assert lax.findings == ()
        assert [o.rule for o in lax.outcomes if o.reason != "not selected"] == ["dead-relu"]
        assert lax.snapshot is report.snapshot

    def test_a_loaded_report_can_be_judged_again(self, report, tmp_path):
        report.to_json(tmp_path / "r.json")

        again = Report.from_json(tmp_path / "r.json").judge(thresholds={"dead-relu.share": 0.2})

        assert [f.rule for f in again.findings] == ["dead-relu"]

    def test_a_rule_that_does_not_exist_is_refused(self, report):
        with pytest.raises(UnknownRuleError, match="dead-rule"):
            report.judge(ignore=["dead-rule"])


WRITERS = {
    "r.json": Report.to_json,
    "r.html": Report.to_html,
    "r.sarif": Report.to_sarif,
    "tables": Report.to_csv,
}


class TestFiles:
    @pytest.mark.parametrize("name", WRITERS)
    def test_folders_are_made_and_nothing_else_is_left_in_them(self, report, tmp_path, name):
        WRITERS[name](report, str(tmp_path / "a" / "b" / name))

        assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [name]

    def test_the_three_tables_are_in_the_folder(self, report, tmp_path):
        report.to_csv(tmp_path)

        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "findings.csv", "layers.csv", "parameters.csv",
        ]  # fmt: skip
        with (tmp_path / "findings.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["layer"] for row in rows] == [f.layer for f in report.findings]
        assert json.loads(rows[0]["evidence"]) == {"factor": 11.3}

    def test_an_existing_file_is_replaced_and_keeps_its_mode(self, report, tmp_path):
        path = tmp_path / "r.json"
        path.write_text("old")
        path.chmod(0o640)

        report.to_json(path)

        assert path.read_text().startswith('{"schema"')
        assert path.stat().st_mode & 0o777 == 0o640

    def test_a_new_file_is_as_readable_as_any_other(self, report, tmp_path):
        (tmp_path / "other").write_text("")

        report.to_html(tmp_path / "r.html")

        assert (tmp_path / "r.html").stat().st_mode == (tmp_path / "other").stat().st_mode

    def test_a_link_stays_a_link(self, report, tmp_path):
        (tmp_path / "real.json").write_text("old")
        (tmp_path / "link.json").symlink_to(tmp_path / "real.json")

        report.to_json(tmp_path / "link.json")

        assert (tmp_path / "link.json").is_symlink()
        assert (tmp_path / "real.json").read_text().startswith("{")

    @pytest.mark.parametrize("name", WRITERS)
    def test_a_place_under_a_file_cannot_be_written(self, report, tmp_path, name):
        (tmp_path / "file").write_text("precious")

        with pytest.raises(OutputError, match=f"file.{name}.* could not be written: .* Choose"):
            WRITERS[name](report, tmp_path / "file" / name)
        assert (tmp_path / "file").read_text() == "precious"

    def test_a_name_that_no_file_can_have_is_refused(self, report, tmp_path):
        with pytest.raises(OutputError, match="could not be written: embedded null"):
            report.to_json(tmp_path / "a\0b")

    def test_a_folder_is_not_overwritten_by_a_file(self, report, tmp_path):
        with pytest.raises(OutputError, match="it is a folder"):
            report.to_json(tmp_path)

    def test_when_the_disk_is_full_the_old_file_is_still_there(self, report, tmp_path, monkeypatch):
        (tmp_path / "r.json").write_text("precious")

        def full(self, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)

        with pytest.raises(OutputError, match=r"r\.json could not be written: No space left"):
            report.to_json(tmp_path / "r.json")
        assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
        assert (tmp_path / "r.json").read_text() == "precious"

    def test_of_three_tables_all_or_none_are_written(self, report, tmp_path):
        (tmp_path / "findings.csv").write_text("precious")
        (tmp_path / "parameters.csv").mkdir()

        with pytest.raises(OutputError, match=r"parameters\.csv"):
            report.to_csv(tmp_path)
        assert (tmp_path / "findings.csv").read_text() == "precious"
        assert not (tmp_path / "layers.csv").exists()

    def test_a_device_stays_a_device(self, report):
        report.to_json(os.devnull)

        assert not Path(os.devnull).is_file()

    def test_a_report_that_is_not_there_is_said_so(self, tmp_path):
        with pytest.raises(ReportError, match=r"gone\.json cannot be read: No such file"):
            Report.from_json(tmp_path / "gone.json")

    def test_bytes_that_are_no_text_are_no_report(self, tmp_path):
        (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")

        with pytest.raises(ReportError, match=r"r\.json cannot be read"):
            Report.from_json(tmp_path / "r.json")


class TestShowing:
    def test_print_is_plain(self, report, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "100")

        assert str(report).startswith(report.verdict[:60])
        assert "nndiag 0.1.0 · TinyUNet · 5 layers" in str(report)
        assert "\x1b" not in str(report)

    def test_print_fits_the_terminal(self, report, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")

        assert max(map(len, str(report).splitlines())) <= 60

    def test_the_repr_is_one_short_line(self, report):
        assert repr(report) == (
            "<Report on TinyUNet: 1 error, 7 warnings and 2 notes; print() shows it>"
        )

    def test_a_notebook_gets_html_and_a_terminal_text(self, report):
        bundle = report._repr_mimebundle_()

        assert bundle["text/plain"] == str(report)
        assert bundle["text/html"] == report._repr_html_()
        assert "<html" not in report._repr_html_()


IN_A_FRESH_PROCESS = """
import sys
from nndiag.report import Report
report = Report.from_json(sys.argv[1])
print(report, report.to_markdown(), report.ok)
report.judge()
report.to_html(sys.argv[1] + ".html")
report.to_sarif(sys.argv[1] + ".sarif")
heavy = [m for m in {heavy} if m in sys.modules]
sys.exit(f"loaded: {{heavy}}" if heavy else 0)
"""


def in_a_fresh_process(report, tmp_path, heavy):
    report.to_json(tmp_path / "r.json")
    code = IN_A_FRESH_PROCESS.format(heavy=heavy)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "r.json")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def test_a_saved_report_is_read_and_shown_without_torch(report, tmp_path):
    done = in_a_fresh_process(report, tmp_path, ("torch", "pandas"))

    assert done.returncode == 0, done.stderr
    assert "dead-relu" in done.stdout


def test_the_test_for_torch_can_fail(report, tmp_path):
    done = in_a_fresh_process(report, tmp_path, ("numpy",))

    assert "loaded: ['numpy']" in done.stderr


def test_two_reports_of_the_same_run_are_not_compared_number_by_number(report):
    assert report != replace(report)
    assert Finding("a", "b", "note", "c", "d") == Finding("a", "b", "note", "c", "d")


def test_every_column_of_a_table_is_documented_and_no_other():
    columns = {*tables.LAYERS, *tables.PARAMETERS, *tables.FINDINGS}

    assert columns == tables.ABOUT.keys()
    assert all(tables.ABOUT.values())
