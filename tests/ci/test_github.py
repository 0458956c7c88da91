"""GitHub's action and workflow, as far as a shell can run them, and ``nndiag check`` in a job."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / ".github/actions/check/action.yml").read_text("utf-8"))
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
NETS = ROOT / "tests" / "ci" / "nets.py"


@pytest.fixture
def job(tmp_path):
    """``job(**inputs)`` runs the action's check as a runner does: (exit status, its output)."""

    def run(**given: str) -> tuple[int, str]:
        inputs = {name: str(about.get("default", "")) for name, about in ACTION["inputs"].items()}
        inputs |= {
            "batch": f"{NETS}:batch", "loss": "torch.nn.functional:cross_entropy",
        } | {name.replace("_", "-"): value for name, value in given.items()}  # fmt: skip
        step = STEPS["Check"]
        variables = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], value)
            for name, value in step["env"].items()
        }
        env = {
            **variables, "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(tmp_path / "outputs"),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "HOME": str(tmp_path),
            # A virtual environment's python finds its packages by where it lies.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        # As the runner calls it: https://docs.github.com/actions, "shell: bash".
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8",
        )  # fmt: skip
        return done.returncode, done.stdout

    return run


@pytest.mark.exhaustive
def test_a_well_model_passes_and_leaves_its_reports(job, tmp_path):
    status, text = job(model=f"{NETS}:healthy_cnn")

    assert status == 0, text
    assert_reports_are_in(tmp_path)
    assert "::error" not in text
    assert "::warning" not in text


def test_a_sick_one_fails_with_annotations_and_a_summary(job, tmp_path):
    status, text = job(model=f"{NETS}:sigmoid_stack")

    assert status == 1
    assert re.search(r"^::error .*title=ND201 vanishing-gradient at 1::", text, re.M)
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert "vanishing-gradient" in summary
    assert (tmp_path / "nndiag-reports" / "report.sarif").is_file()
    assert_reports_are_in(tmp_path)


def assert_reports_are_in(folder):
    outputs = dict(line.split("=", 1) for line in (folder / "outputs").read_text().splitlines())
    assert (folder / outputs["report"]).is_file()
    assert json.loads((folder / outputs["sarif"]).read_text("utf-8"))["version"] == "2.1.0"
    assert (folder / "nndiag-reports" / "index.html").is_file()


@pytest.mark.exhaustive
def test_only_what_a_baseline_does_not_hold_fails(job, tmp_path):
    job(model=f"{NETS}:sigmoid_stack")
    known = tmp_path / "nndiag-reports" / "report.json"

    status, text = job(model=f"{NETS}:sigmoid_stack", baseline=str(known), name="again")

    assert status == 0, text
    assert "Against " in text
    assert "0 new findings" in text
    assert "::error" not in text


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"fail_on": "never"}, 0),
        ({"ignore": "ND2,ND3,ND1"}, 0),
        ({"select": "symmetry"}, 0),
        ({"model": "nowhere.py:net"}, 2),
        ({"baseline": "none.json"}, 2),
    ],
)
def test_its_inputs_reach_the_check(job, given, status):
    given = {"model": f"{NETS}:sigmoid_stack", **given}

    assert job(**given)[0] == status


def test_an_input_is_never_code(job, tmp_path):
    status, _ = job(model="x.py:y\"; touch 'pwned'; $(touch pwned)")

    assert status == 2
    assert not (tmp_path / "pwned").exists()
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_every_input_is_used_and_every_use_is_an_input():
    text = json.dumps(ACTION["runs"])

    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    assert all("description" in about for about in ACTION["inputs"].values())


def test_the_workflow_gives_the_action_what_it_takes():
    [use] = [
        step for step in WORKFLOW["jobs"]["check"]["steps"]
        if step.get("uses", "").startswith("./")
    ]  # fmt: skip
    needed = {name for name, about in ACTION["inputs"].items() if about.get("required")}

    assert (ROOT / use["uses"] / "action.yml").is_file()
    assert needed <= set(use["with"]) <= set(ACTION["inputs"])
    for target in (use["with"]["model"], use["with"]["batch"]):
        assert (ROOT / target.partition(":")[0]).is_file()


def test_the_workflow_runs_what_lands():
    [run] = [step["run"] for step in WORKFLOW["jobs"]["test"]["steps"] if "run" in step]

    assert os.access(ROOT / run, os.X_OK)
