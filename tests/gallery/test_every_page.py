"""What holds of every page of the gallery, said once."""

from __future__ import annotations

import ast
import contextlib
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bands import GALLERY

from nndiag.gallery import kept, page, plots, render, run
from nndiag.languages import words

PAGES = page.discover()
LECTURE = Path(__file__).parents[1] / "lecture"
SUBJECTS = (
    "activations", "zigzag", "dead-relu", "weight-init", "depth", "batch-norm", "preprocessing",
    "babysitting", "maxout", "robustness", "regularization",
)  # fmt: skip

every_page = pytest.mark.parametrize(("name", "module"), PAGES.items(), ids=PAGES)


def names_tested(name):
    path = LECTURE / f"test_{name.replace('-', '_')}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.name.removeprefix("test_")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_the_pages_are_the_lectures_subjects_in_order():
    assert tuple(PAGES) == SUBJECTS
    assert [module.PAGE.number for module in PAGES.values()] == [*range(1, 12)]


@every_page
def test_every_claim_is_a_test_named_as_it_and_every_test_a_claim(name, module):
    regression = f"{name.replace('-', '_')}_page_holds_whatever_the_seed"
    assert sorted(names_tested(name)) == sorted(
        [*(c.name for c in page.claims(module)), regression]
    )


def test_the_lecture_has_forty_claims_and_no_two_of_one_name():
    names = [claim.name for module in PAGES.values() for claim in page.claims(module)]
    assert len(names) >= 40
    assert len(set(names)) == len(names)


@every_page
def test_a_page_says_what_it_shows_and_whose_claim_it_is(name, module):
    own = module.PAGE
    assert own.sources
    assert own.title
    assert len(own.caption) > 80
    assert len(module.__doc__.partition("\n\n")[2]) > 200
    claims = page.claims(module)
    assert any(claim.source == "nndiag" for claim in claims)
    for claim in claims:
        assert claim.statement.endswith("."), claim.name
        assert claim.says, claim.name
        # what is not simply confirmed says why, and only that
        assert bool(claim.but) == (claim.stands != "confirmed"), claim.name


@every_page
def test_the_committed_page_is_what_its_committed_tables_say(name, module):
    frames = run.read(GALLERY / name)
    told = run.runs(GALLERY)[name]
    assert (GALLERY / name / kept.PAGE).read_text(encoding="utf-8") == render.page(
        name, module, frames, told
    )


@every_page
def test_the_committed_tables_bear_every_claim_out(name, module):
    told = render.tell(module, run.read(GALLERY / name))
    assert [t.claim.name for t in told if t.verdict == "not shown"] == []


# A law whose both sides are spoilt alike still holds; its own test in tests/lecture spoils one.
ALIKE = {
    "zigzag": {"real_data_train_in_fewer_steps_when_centred"},
    "preprocessing": {"decorrelation_alone_changes_no_step_of_gradient_descent"},
}


@every_page
def test_no_claim_survives_tables_that_are_all_wrong(name, module):
    """Whatever was measured, also counts and flags, is one and the same large number."""
    flat = {key: frame.copy() for key, frame in run.read(GALLERY / name).items()}
    keys = {"seed", "layer", "size", "step", "scale", "rate", "trials", "case", "side"}
    for frame in flat.values():
        for column in frame.select_dtypes(["float", "int", "bool"]).columns.difference([*keys]):
            frame[column] = 12_345.678
    survived = set()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for claim in page.claims(module):
            # a table that it cannot make sense of is no confirmation either
            with contextlib.suppress(ArithmeticError, LookupError, TypeError, ValueError):
                if claim.judge(flat).holds and claim.source != "nndiag":
                    survived.add(claim.name)
    assert survived <= ALIKE.get(name, set())


@every_page
def test_judging_and_tabling_leave_the_tables_alone(name, module):
    frames = run.read(GALLERY / name)
    before = {key: frame.copy() for key, frame in frames.items()}
    render.tell(module, frames)
    module.tables(frames)
    for key, frame in frames.items():
        pd.testing.assert_frame_equal(frame, before[key])


@every_page
def test_the_figure_is_drawn_from_the_tables(name, module):
    drawn = plots.svg(module, run.read(GALLERY / name))
    assert drawn.lstrip().startswith("<?xml")
    assert "<script" not in drawn
    assert len(drawn) < 300_000
    # what it says is that of the committed one, whatever the release of matplotlib
    assert words_in(drawn) == words_in((GALLERY / name / kept.FIGURE).read_text(encoding="utf-8"))


def words_in(svg):
    return sorted(re.findall(r"[A-Za-z]{3,}", " ".join(re.findall(r"<text[^>]*>([^<]*)<", svg))))


def test_a_figure_is_twice_the_same():
    frames = run.read(GALLERY / "zigzag")
    assert plots.svg(PAGES["zigzag"], frames) == plots.svg(PAGES["zigzag"], frames)


def test_the_committed_indexes_and_claims_are_those_of_the_pages(tmp_path):
    drawn = run.drawn(GALLERY)
    for name, text in drawn.indexes().items():
        if name.endswith(".md"):
            assert (GALLERY / name).read_text(encoding="utf-8") == text
    assert (GALLERY / kept.CLAIMS).read_text(encoding="utf-8") == run.csv(drawn.claims)


def test_the_gallery_took_at_most_ten_minutes():
    assert sum(int(told["seconds"]) for told in run.runs(GALLERY).values()) <= 600


def test_the_gallery_is_under_3_mb_and_all_reports_under_6():
    def size(folder):
        return sum(
            path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".html" and "demo" not in path.parts
        )

    assert size(GALLERY) < 3_000_000
    assert size(GALLERY.parent) < 6_000_000


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_index_shows_every_page_with_thumbnail_title_and_verdict(language):
    text = (GALLERY / render.INDEX[language]).read_text(encoding="utf-8")
    claims = pd.read_csv(GALLERY / kept.CLAIMS, keep_default_na=False)
    said = words(language)["gallery"]
    for name, module in PAGES.items():
        [row] = [line for line in text.splitlines() if f'<a href="{name}/README.md">' in line]
        own = said.get("pages", {}).get(name, vars(module.PAGE))
        assert f'<img src="{name}/figure.svg"' in row
        assert own["title"] in row
        counts = claims[claims.page == name].verdict.value_counts()
        for verdict, count in counts.items():
            assert said["count"].format(count=count, verdict=said["verdicts"][verdict]) in row


def test_the_chinese_index_has_the_numbers_of_the_english_one():
    english, chinese = (
        re.findall(r"\d+(?:\.\d+)?", (GALLERY / name).read_text(encoding="utf-8"))
        for name in render.INDEX.values()
    )
    # claims in the lecture's words name numbers, too, in the order of each language
    assert sorted(english) == sorted(chinese)


def test_the_readme_counts_the_claims_as_the_gallery_does():
    text = " ".join((GALLERY.parents[1] / "README.md").read_text(encoding="utf-8").split())
    verdicts = pd.read_csv(GALLERY / kept.CLAIMS, keep_default_na=False).verdict
    n = verdicts.value_counts()
    assert (
        f"of {len(verdicts)} claims (11 of them about nndiag itself) {n['confirmed']} are "
        f"confirmed, {n['qualified']} hold in part or on a condition, and {n['contradicted']} is "
        "contradicted." in text
    )
