"""The index of a folder of reports, also where several processes write into it at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import samples

from nndiag.render import files, html, index

HERE = Path(__file__).parent


def put(folder: Path, name: str, report) -> None:
    files.write({folder / f"{name}.html": html.render(report)})


def test_it_lists_each_report_with_its_verdict_most_severe_first(tmp_path):
    put(tmp_path, "b", samples.healthy())
    put(tmp_path, "a & <b>", samples.sick())
    (tmp_path / "notes.html").write_text("<p>somebody else's</p>")
    (tmp_path / "b.json").write_text("{}")

    index.update(tmp_path)
    index.update(tmp_path)  # which finds an index, and does not list it

    assert [shown["file"] for shown in index.reports(tmp_path)] == ["a & <b>.html", "b.html"]
    text = (tmp_path / "index.html").read_text()
    assert 'href="a%20%26%20%3Cb%3E.html"' in text
    assert 'href="b.json"' in text
    assert samples.sick().verdict in text
    assert "notes.html" not in text


def test_a_hostile_name_stays_a_name(tmp_path):
    put(tmp_path, "r", samples.hostile("\"><script>alert('1')</script>&quot;"))

    index.update(tmp_path)

    assert index.reports(tmp_path)[0]["model"] == "\"><script>alert('1')</script>&quot;"
    assert "<script" not in (tmp_path / "index.html").read_text()


WRITE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import samples
from nndiag.render import files, html, index
folder, who = Path(sys.argv[2]), sys.argv[3]
text = html.render(samples.healthy())
for i in range(8):
    files.write({folder / f"{who}-{i}.html": text})
    index.update(folder)
"""


def test_processes_that_write_side_by_side_lose_nothing(tmp_path):
    running = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(HERE), str(tmp_path), who])
        for who in "abc"
    ]

    assert [process.wait() for process in running] == [0, 0, 0]

    text = (tmp_path / "index.html").read_text()
    for who in "abc":
        for i in range(8):
            assert f'href="{who}-{i}.html"' in text
    assert not list(tmp_path.glob(".nndiag-*"))


@pytest.mark.parametrize("junk", [b"\xff\xfe", b'<meta name="nndiag-report" content="{">', b""])
def test_what_is_no_report_is_passed_over(tmp_path, junk):
    (tmp_path / "x.html").write_bytes(junk)

    index.update(tmp_path)

    assert index.reports(tmp_path) == []
