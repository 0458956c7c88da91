"""What is uploaded: the sdist, the wheel, and the page that a package index shows."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nndiag

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
HOME = "https://github.com/nndiag/nndiag"


def test_the_readme_needs_no_repository_around_it():
    text = (ROOT / "README.md").read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)

    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_its_links_into_the_repository_lead_to_files_that_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    raw = HOME.replace("github.com", "raw.githubusercontent.com")
    paths = re.findall(rf"\]\((?:{HOME}/(?:blob|tree)|{raw})/main/([^)#]+)", text)

    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_it_says_where_the_project_lives_and_for_which_pythons_it_is():
    pythons = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    oldest = PROJECT["requires-python"].removeprefix(">=")

    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= set(PROJECT["urls"])
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
    assert pythons[0] == oldest
    assert pythons == [f"3.{minor}" for minor in range(10, 10 + len(pythons))]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with both."""
    pytest.importorskip("build", reason="it needs Python 3.11")
    folder = tmp_path_factory.mktemp("dist")
    run("build", "--no-isolation", "--outdir", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    """The names in it."""
    [path] = dist.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


@pytest.mark.exhaustive
def test_an_index_would_take_both_and_show_their_page(dist):
    pytest.importorskip("twine", reason="it needs Python 3.11")

    assert run("twine", "check", "--strict", *sorted(dist.iterdir())).count("PASSED") == 2


@pytest.mark.exhaustive
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    package = Path(nndiag.__file__).parent
    mine = {
        f"nndiag/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert {name.partition("/")[0] for name in wheel} == {
        "nndiag", f"nndiag-{nndiag.__version__}.dist-info",
    }  # fmt: skip
    assert mine <= set(wheel)
    assert [name for name in wheel if "/test_" in name or name.endswith(".pyc")] == []
    for name in ("py.typed", "schema/report-1.json", "render/page.html.j2", "languages/zh.toml"):
        assert f"nndiag/{name}" in wheel


@pytest.mark.exhaustive
def test_the_wheel_holds_no_gallery(wheel):
    assert [name for name in wheel if "gallery" in name] == []
