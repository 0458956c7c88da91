"""``python -m gallery``, as ``make gallery`` calls it, on a page of one experiment."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from bands import GALLERY
from gallery import __main__ as make
from gallery.page import csv
from gallery.weight_init import experiment


@pytest.fixture
def one_page(tmp_path):
    """A gallery of one measured page, its tables as they are committed."""
    folder = tmp_path / "weight_init"
    folder.mkdir()
    for path in (GALLERY / "weight_init").glob("*.csv"):
        (folder / path.name).write_bytes(path.read_bytes())
    measured = pd.DataFrame([make.runs(GALLERY)["weight_init"]])
    (tmp_path / make.RUNS).write_text(csv(measured), encoding="utf-8")
    return tmp_path


def test_a_page_that_does_not_exist_is_not_measured(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make.main(["weigth-init", "--output", str(tmp_path)])
    assert "no page weigth_init. The pages are activations, zigzag" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_redrawing_nothing_says_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match="Measure them first: leave out"):
        make.main(["--redraw", "--output", str(tmp_path)])


def test_redraw_and_a_page_do_not_go_together(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make.main(["depth", "--redraw", "--output", str(tmp_path)])
    assert "--redraw makes all pages that were measured" in capsys.readouterr().err


def test_a_gallery_of_one_page_is_drawn_with_both_indexes(one_page, capsys):
    assert make.main(["--redraw", "--output", str(one_page)]) == 0
    said = capsys.readouterr().out
    assert "weight_init      7 confirmed, 2 qualified" in said
    assert f"To click through: {one_page / 'index.html'}" in said
    written = {str(path.relative_to(one_page)) for path in one_page.rglob("*") if path.is_file()}
    assert {
        "README.md", "README.zh-CN.md", "index.html", "index.zh-CN.html", "claims.csv", "pages.csv",
        "weight_init/README.md", "weight_init/index.html", "weight_init/figure.svg",
    } <= written  # fmt: skip
    committed = (GALLERY / "weight_init" / "README.md").read_text(encoding="utf-8")
    assert (one_page / "weight_init" / "README.md").read_text(encoding="utf-8") == committed


def test_a_claim_that_is_not_shown_is_said_and_fails(one_page, capsys):
    path = one_page / "weight_init" / "layers.csv"
    table = pd.read_csv(path)
    table.loc[table.case == "tanh, 1.0", "saturated"] = 0.1
    path.write_text(csv(table), encoding="utf-8")
    assert make.main(["--redraw", "--output", str(one_page)]) == 1
    said = capsys.readouterr().out
    assert "1 not shown" in said
    assert "not shown on weight_init: With weights of 1.0" in said
    text = (one_page / "weight_init" / "README.md").read_text(encoding="utf-8")
    assert "This run does not show what the page claims" in text


class Bar:
    """A progress bar that records its updates."""

    def __init__(self):
        self.updates = []

    def update(self, done, total, text):
        self.updates.append((done, total, text.strip()))


@pytest.fixture
def thinnest(monkeypatch):
    """The cheapest page, with one case and one seed."""
    monkeypatch.setattr(experiment, "SEEDS", 1)
    monkeypatch.setattr(experiment, "CASES", {"tanh, Xavier": experiment.CASES["tanh, Xavier"]})
    return ["weight_init"]


def test_measuring_is_repeated_to_the_digit_and_leaves_the_random_state(thinnest, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.get_num_threads()
    bars, tables = [Bar(), Bar()], []
    for folder, bar in zip(("one", "two"), bars, strict=True):
        make.measure(thinnest, tmp_path / folder, bar)
        tables.append((tmp_path / folder / "weight_init" / "layers.csv").read_text())
    assert tables[0] == tables[1]
    assert bars[0].updates == [(0, 1, "weight_init"), (0, 1, "weight_init tanh, Xavier")]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.get_num_threads()
