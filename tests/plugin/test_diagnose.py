"""The fixture ``diagnose``."""

from __future__ import annotations

import pytest
from plugin_parts import SICK, WELL, both


def test_a_healthy_model_passes_without_a_word(inner, section):
    result = inner(WELL)

    result.assert_outcomes(passed=1)
    assert section(result) == []


def test_the_optimiser_is_judged_too(inner):
    result = inner(
        """
def test_rate(diagnose):
    inputs, classes = torch.randn(64, 4), torch.arange(64) % 3
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    diagnose(model, inputs, classes, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.0))
"""
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*error[[]ND802[]] no-update"])


@both
def test_a_sick_model_fails_with_its_report_and_no_frame_of_ours(inner):
    result = inner(SICK)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       diagnose(sick(), batch(), loss_fn=F.cross_entropy)",
            "E       nndiag.errors.FindingsError: 2 errors and 7 warnings",
            "E*error[[]ND201[]] vanishing-gradient",
            "E*--> 0   Linear",
            "E*= fix: *",
        ]
    )
    assert "nndiag/testing" not in result.stdout.str()
    assert "During handling" not in result.stdout.str()


@both
def test_the_summary_tells_what_failed_where_its_page_is_and_what_to_do_next(
    inner, section, pytester
):
    lines = section(inner(SICK + WELL))

    assert lines[0] == "1 of 2 diagnosed models failed."
    assert [line.strip() for line in lines[1:4]] == [
        "test_it.py::test_sick",
        "error[ND201] vanishing-gradient at 0",
        ".pytest_cache/d/nndiag/test_it.test_sick.html",
    ]
    assert lines[-2:] == [
        "What it means, and when it is no fault: nndiag rule vanishing-gradient",
        "To keep all reports: pytest --nndiag-report=DIR",
    ]
    assert (pytester.path / lines[3].strip()).read_text("utf-8").startswith("<!doctype html>")


def test_a_finding_that_is_meant_does_not_fail(inner):
    result = inner(
        "def test_dead(diagnose):\n"
        "    diagnose(dead(), batch(), loss_fn=F.cross_entropy,\n"
        "             expect={'dead-relu': 'a sparse gate by design'})\n"
        "def test_not_said(diagnose):\n"
        "    diagnose(dead(), batch(), loss_fn=F.cross_entropy)\n"
    )

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_not_said*"])


def test_what_a_meant_finding_explains_does_not_fail_either(inner):
    inner(
        "def test_sick(diagnose):\n"
        "    report = diagnose(sick(), batch(), loss_fn=F.cross_entropy,\n"
        "             expect={'ND201': 'to see it vanish'})\n"
        "    assert len(report.at_least('warning')) > 1\n"
    ).assert_outcomes(passed=1)


def test_a_meant_finding_that_is_gone_fails(inner, section):
    result = inner(
        "def test_gone(diagnose):\n"
        "    diagnose(well(), batch(), expect={'dead-relu': 'a sparse gate by design'})\n"
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*FindingsError: expected but not found: dead-relu",
            "E*dead-relu was expected (a sparse gate by design), but the model has no*",
        ]
    )
    assert "    dead-relu was expected (a sparse gate by design) but not found" in section(result)


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ("{'dead-rel': 'x'}", "UnknownRuleError: no rule is called 'dead-rel'. Did you mean"),
        ("{'dead-relu': ''}", "SettingsError: expect['dead-relu'] is ''. Write why"),
        ("['dead-relu']", "SettingsError: expect is ['dead-relu']. Write {\"dead-relu\": "),
    ],
)
def test_an_expectation_that_cannot_be_met_is_an_error(inner, expect, message):
    result = inner(f"def test_it(diagnose):\n    diagnose(well(), batch(), expect={expect})\n")

    result.assert_outcomes(failed=1)
    assert message in result.stdout.str()
    assert "nndiag/testing" not in result.stdout.str()


def test_an_error_of_the_models_own_shows_the_users_line(inner):
    result = inner(
        "class Broken(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x @ torch.zeros(3, 3)\n"
        "def test_it(diagnose):\n"
        "    diagnose(Broken(), batch())\n"
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*CaptureError: the model raised in *", "*test_it.py*"])
    assert "x @ torch.zeros(3, 3)" in result.stdout.str()
    assert "nndiag/testing" not in result.stdout.str()


def test_several_models_in_one_test_have_reports_of_their_own(inner, saved):
    inner(
        "def test_it(diagnose):\n"
        "    diagnose(well(), batch())\n"
        "    diagnose(well(), batch())\n"
        "    diagnose(well(), batch(), name='big one')\n",
        "--nndiag-report=out",
        "--nndiag-format=json",
    ).assert_outcomes(passed=1)

    names = saved("out")
    assert names[:2] == ["test_it.test_it-2.json", "test_it.test_it-big-one-7df04965.json"]
    assert names[2:] == ["test_it.test_it.json"]


def test_it_serves_unittest_classes(inner):
    result = inner(
        "import unittest\n"
        "class TestNets(unittest.TestCase):\n"
        "    @pytest.fixture(autouse=True)\n"
        "    def _diagnose(self, diagnose):\n"
        "        self.diagnose = diagnose\n"
        "    def test_well(self):\n"
        "        self.diagnose(well(), batch(), loss_fn=F.cross_entropy)\n"
        "    def test_sick(self):\n"
        "        self.diagnose(sick(), batch(), loss_fn=F.cross_entropy)\n"
    )

    result.assert_outcomes(passed=1, failed=1)
    assert "nndiag/testing" not in result.stdout.str()


def test_it_serves_classes_modules_and_parametrized_tests(inner, saved):
    inner(
        "class TestNets:\n"
        "    @pytest.mark.parametrize('name', ['a/b', 'a-b', 'é ü'])\n"
        "    def test_well(self, diagnose, name):\n"
        "        diagnose(well(), batch())\n",
        "--nndiag-report=out",
        "--nndiag-format=json",
    ).assert_outcomes(passed=3)

    assert len(saved("out")) == 3  # no two names that look alike are one file


def test_what_a_rerun_finds_is_told_once(inner, section):
    pytest.importorskip("pytest_rerunfailures")
    result = inner(
        "tries = []\n"
        "def test_flaky(diagnose):\n"
        "    tries.append(1)\n"
        "    diagnose(sick() if len(tries) == 1 else well(), batch(), loss_fn=F.cross_entropy)\n",
        "--reruns=1",
    )

    result.assert_outcomes(passed=1)
    assert section(result) == []


@both
def test_a_rerun_that_fails_again_is_one_failure(inner, section):
    result = inner(SICK, "--reruns=1")

    result.assert_outcomes(failed=1)
    assert section(result)[0] == "1 of 1 diagnosed model failed."


@both
def test_properties_go_to_junit(inner, pytester):
    from xml.etree import ElementTree

    inner(SICK + WELL, "--junitxml=junit.xml", "--nndiag-report=out")

    cases = {
        c.get("name"): c for c in ElementTree.parse(pytester.path / "junit.xml").iter("testcase")
    }
    text = {p.get("name"): p.get("value") for p in cases["test_sick"].iter("property")}
    assert text["nndiag.model"] == "Sequential"
    assert text["nndiag.findings"].split()[0] == "vanishing-gradient"
    assert text["nndiag.verdict"].startswith("The first layers will not learn: ")
    assert text["nndiag.report"].endswith("test_it.test_sick.html")
    fine = {p.get("name"): p.get("value") for p in cases["test_well"].iter("property")}
    assert "nndiag.findings" not in fine


def test_nothing_of_the_process_is_touched(inner):
    inner(
        "def test_it(diagnose):\n"
        "    model, data = well(), batch()\n"
        "    before = torch.get_rng_state(), [p.clone() for p in model.parameters()]\n"
        "    diagnose(model, data, loss_fn=F.cross_entropy)\n"
        "    assert torch.equal(torch.get_rng_state(), before[0])\n"
        "    assert all(map(torch.equal, model.parameters(), before[1]))\n"
        "    assert all(p.grad is None for p in model.parameters())\n"
    ).assert_outcomes(passed=1)


def test_what_a_test_expects_to_fail_is_no_failure_of_the_session(inner, section):
    result = inner(
        "from nndiag import FindingsError\n"
        "def test_raises(diagnose):\n"
        "    with pytest.raises(FindingsError):\n"
        "        diagnose(sick(), batch())\n"
        # The xfail is what is tested: an inner test of a sick model that is known to be sick.
        "@pytest.mark.xfail(raises=FindingsError, reason='eight sigmoids in a row')\n"
        "def test_xfail(diagnose):\n"
        "    diagnose(sick(), batch())\n"
    )

    result.assert_outcomes(passed=1, xfailed=1)
    assert section(result) == []


def test_a_cache_that_cannot_be_used_costs_no_verdict(inner, pytester):
    (pytester.path / ".pytest_cache").write_text("")
    result = inner(SICK, "-W", "ignore")

    result.assert_outcomes(failed=1)
    assert "FindingsError: 2 errors" in result.stdout.str()


def test_a_report_that_cannot_be_kept_costs_no_verdict(inner, pytester):
    (pytester.path / "out").write_text("a file")
    result = inner(SICK, "--nndiag-report=out")

    result.assert_outcomes(failed=1)
    assert "FindingsError: 2 errors" in result.stdout.str()
    assert "OutputError: " in result.stdout.str()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("thresholds='abc'", "SettingsError: thresholds = 'abc': give a mapping"),
        ("select=3", "SettingsError: select = 3: give a word or a list"),
    ],
)
def test_a_wrong_option_of_a_call_is_one_clear_error(inner, given, message):
    result = inner(f"def test_it(diagnose):\n    diagnose(well(), batch(), {given})\n")

    result.assert_outcomes(failed=1)
    assert message in result.stdout.str()
    assert "nndiag/testing" not in result.stdout.str()
