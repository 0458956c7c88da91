"""``nndiag explain`` and ``nndiag gallery`` on the command line, as a stranger would call them."""

from __future__ import annotations

import errno
import re
import sys

import pandas as pd
import pytest
import torch
import typer.testing
from bands import GALLERY

from nndiag import cli
from nndiag.errors import MissingPackageError, ReportError, UnknownClaimError
from nndiag.gallery import explain, kept, page, run
from nndiag.languages import words

CLAIMS = pd.read_csv(GALLERY / kept.CLAIMS, keep_default_na=False)


def invoke(*arguments):
    result = typer.testing.CliRunner(env={"COLUMNS": "140"}).invoke(cli.app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def squeezed(text):
    return " ".join(re.sub(r"[▌•│]", " ", text).split())


def test_without_a_claim_every_page_is_listed_with_its_verdict():
    result = invoke("explain")
    assert result.exit_code == 0
    for name, module in page.discover().items():
        [row] = [line for line in result.stdout.splitlines() if f" {name} " in line]
        assert module.PAGE.title in row
        counts = CLAIMS[CLAIMS.page == name].verdict.value_counts()
        assert f"{counts['confirmed']} confirmed" in row


@pytest.mark.parametrize(
    "asked", ["weight-init", "weight_init", "4", "04", "#4", "page 4", "Weight Init", "权重初始化"]
)
def test_a_page_is_found_by_name_and_number(asked):
    said = squeezed(invoke("explain", asked).stdout)
    assert said.startswith("4. Weight initialisation")
    assert "0.213081" in said  # slide 45


@pytest.mark.parametrize(
    "asked",
    [
        "unit_weights_saturate_tanh",
        "test_unit_weights_saturate_tanh",
        "unit weights saturate",
        "unit-weights-saturate-tanh",
    ],
)
def test_a_claim_is_told_first_then_its_page(asked):
    said = squeezed(invoke("explain", asked).stdout)
    assert said.startswith("With weights of 1.0 over nine tenths of all tanh outputs lie beyond")
    assert "measured: 92." in said
    assert "4. Weight initialisation" in said


@pytest.mark.parametrize("claim", CLAIMS.claim)
def test_every_claim_can_be_asked_for(claim):
    parts = list(explain.explain(claim))
    assert len(parts) == 2
    assert CLAIMS.set_index("claim").loc[claim, "statement"] in parts[0].markup


def test_an_unknown_claim_is_one_clear_error():
    with pytest.raises(UnknownClaimError, match=r"no page or claim 'zig-zag'\. Did you mean"):
        invoke("explain", "zig-zag")
    with pytest.raises(UnknownClaimError, match="Its pages are activations, zigzag"):
        invoke("explain", "qqqq")
    with pytest.raises(UnknownClaimError, match=r"no page or claim ''\. Its pages are"):
        invoke("explain", "")


def test_words_that_several_claims_have_are_one_clear_error():
    with pytest.raises(UnknownClaimError, match="claims have 'nndiag' in their names: "):
        invoke("explain", "nndiag")


def test_chinese_gives_the_chinese_title_and_verdict():
    said = invoke("explain", "unit_weights_saturate_tanh", "--lang", "zh").stdout
    assert words("zh")["gallery"]["pages"]["weight-init"]["title"] in said
    assert "测得: 92." in said
    listed = invoke("explain", "--lang", "zh").stdout
    assert "权重初始化" in listed
    assert "成立" in listed


def test_a_page_that_does_not_exist_is_not_measured(tmp_path):
    with pytest.raises(
        UnknownClaimError, match=r"no page 'weigth-init'\. Did you mean 'weight-init"
    ):
        invoke("gallery", "weigth-init", "--output", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_redrawing_nothing_says_what_to_do(tmp_path):
    with pytest.raises(
        ReportError, match=r"holds no measured page\. Measure them with: nndiag gal"
    ):
        invoke("gallery", "--redraw", "--output", str(tmp_path))


def test_redraw_and_a_page_do_not_go_together(tmp_path):
    result = invoke("gallery", "depth", "--redraw", "--output", str(tmp_path))
    assert result.exit_code == cli.FAILED
    assert "it makes all pages that were measured" in squeezed(result.output)


@pytest.fixture
def one_page(tmp_path):
    """A gallery of one measured page, its tables as they are committed."""
    folder = tmp_path / "weight-init"
    folder.mkdir()
    for path in (GALLERY / "weight-init").glob("*.csv"):
        (folder / path.name).write_bytes(path.read_bytes())
    told = pd.DataFrame([run.runs(GALLERY)["weight-init"]])
    (tmp_path / kept.PAGES).write_text(run.csv(told), encoding="utf-8")
    return tmp_path


def test_a_gallery_of_one_page_is_drawn_with_both_indexes(one_page):
    result = invoke("gallery", "--redraw", "--output", str(one_page))
    assert result.exit_code == cli.FINE
    assert "Weight initialisation" in result.stdout
    assert f"To click through: {one_page / 'index.html'}" in result.stdout.replace("\n", "")
    written = {str(path.relative_to(one_page)) for path in one_page.rglob("*") if path.is_file()}
    assert {
        "README.md", "README.zh-CN.md", "index.html", "index.zh-CN.html", "claims.csv", "pages.csv",
        "weight-init/README.md", "weight-init/index.html", "weight-init/figure.svg",
    } <= written  # fmt: skip
    committed = (GALLERY / "weight-init" / kept.PAGE).read_text(encoding="utf-8")
    assert (one_page / "weight-init" / kept.PAGE).read_text(encoding="utf-8") == committed


def test_a_claim_that_is_not_shown_is_said_and_fails(one_page):
    path = one_page / "weight-init" / "layers.csv"
    table = pd.read_csv(path)
    table.loc[table.case == "tanh, 1.0", "saturated"] = 0.1
    path.write_text(run.csv(table), encoding="utf-8")
    result = invoke("gallery", "--redraw", "--output", str(one_page))
    assert result.exit_code == cli.FOUND
    assert "1 not shown" in result.stdout
    assert "not shown on weight-init: With weights of 1.0" in squeezed(result.stdout)
    text = (one_page / "weight-init" / kept.PAGE).read_text(encoding="utf-8")
    assert "This run does not show what the page claims" in text


BROKEN = {
    "cut in a row": lambda text: text[: len(text) // 2].rpartition(",")[0] + ",x,y,z,1,2,3",
    "empty": lambda text: "",
    "binary": lambda text: b"\xff\xfe\x00\x81",
    "header only": lambda text: text.partition("\n")[0] + "\n",
    "other columns": lambda text: text.replace("case", "kind").replace("page,", "leaf,"),
    "words for numbers": lambda text: text.replace("0.", "x").replace("2", "two"),
}


@pytest.mark.parametrize("harm", BROKEN)
@pytest.mark.parametrize("name", ["weight-init/layers.csv", "pages.csv"])
def test_a_broken_table_is_one_clear_error_and_nothing_is_written(one_page, name, harm):
    path = one_page / name
    broken = BROKEN[harm](path.read_text(encoding="utf-8"))
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    before = {file: file.read_bytes() for file in one_page.rglob("*") if file.is_file()}
    with pytest.raises(ReportError, match=r"nndiag gallery .*--output") as caught:
        invoke("gallery", "--redraw", "--output", str(one_page))
    assert str(path if "pages" in name else path.parent) in str(caught.value) or (
        "holds no measured page" in str(caught.value)
    )
    assert {file: file.read_bytes() for file in one_page.rglob("*") if file.is_file()} == before


def test_a_broken_list_of_pages_is_said_before_anything_is_measured(one_page):
    (one_page / kept.PAGES).write_text("hello\n", encoding="utf-8")
    with pytest.raises(ReportError, match=r"pages\.csv is not what the gallery wrote"):
        run.measure(["zigzag"], one_page, None)  # no progress: it is not come to
    (one_page / kept.PAGES).write_text("page,seconds,date,torch,cores\nzag,1,2026,2,2\n")
    with pytest.raises(ReportError, match="it names zag, which is no page"):
        run.draw(one_page)


def test_without_matplotlib_nothing_is_measured_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'nndiag\[gallery\]'"):
        run.measure(["zigzag"], tmp_path, None)  # no progress: it is not come to
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "claim\n", "page,number,title,claim,verdict\n", "\0"])
def test_a_broken_list_of_claims_is_one_clear_error(tmp_path, monkeypatch, text):
    (tmp_path / kept.CLAIMS).write_text(text, encoding="utf-8")
    monkeypatch.setattr(explain, "folder", lambda: tmp_path)
    with pytest.raises(ReportError, match="Install nndiag again, or remake the pages"):
        invoke("explain", "4")


def test_a_page_that_is_gone_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / kept.CLAIMS).write_bytes((GALLERY / kept.CLAIMS).read_bytes())
    monkeypatch.setattr(explain, "folder", lambda: tmp_path)
    with pytest.raises(ReportError, match=r"weight-init/README\.md cannot be read"):
        invoke("explain", "4")


def test_no_number_is_cut_short_on_a_narrow_terminal(monkeypatch):
    result = typer.testing.CliRunner(env={"COLUMNS": "60"}).invoke(cli.app, ["explain", "4"])
    assert "…" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 60


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == cli.FAILED
    said = capsys.readouterr().err
    assert said.startswith("nndiag: the output could not be written: [Errno 28] No space left")
    assert "fault in nndiag" not in said


class Bar:
    """A progress bar that remembers what it was told."""

    def __init__(self):
        self.told = []

    def update(self, done, total, text):
        self.told.append((done, total, text.strip()))


@pytest.fixture
def thinnest(monkeypatch):
    """The cheapest page, with one case and one seed."""
    from nndiag.gallery.pages import weight_init

    monkeypatch.setattr(weight_init, "SEEDS", 1)
    monkeypatch.setattr(weight_init, "CASES", {"tanh, Xavier": weight_init.CASES["tanh, Xavier"]})
    return ["weight-init"]


def test_measuring_is_repeated_to_the_digit_and_moves_a_progress_bar(thinnest, tmp_path):
    bars, tables = [Bar(), Bar()], []
    for folder, bar in zip(("one", "two"), bars, strict=True):
        run.measure(thinnest, tmp_path / folder, bar)
        tables.append((tmp_path / folder / "weight-init" / "layers.csv").read_text())
    assert tables[0] == tables[1]
    assert bars[0].told == [(0, 1, "weight-init"), (0, 1, "weight-init  tanh, Xavier")]


def test_measuring_leaves_the_random_state_and_the_threads_as_they_were(thinnest, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.get_num_threads()
    run.measure(thinnest, tmp_path, Bar())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.get_num_threads()
