"""The page in a real browser: drawn, sorted, filtered, followed, dark, narrow and without scripts.

Accessibility by axe-core (``axe/``, MPL-2.0).
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import repairs
import samples
from bands import GALLERY
from gallery import __main__ as make
from gallery import render as gallery
from gallery.page import every

from nndiag.compare import compare
from nndiag.fixes.repair import Repair
from nndiag.render import html, index
from nndiag.render import repair as repair_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
AXE = Path(__file__).with_name("axe") / "axe.min.js"

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ,
        reason="there is no chromium on this machine; on Debian: apt-get install chromium",
    ),
]

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def tabs() -> Iterator[Callable[[bool], Any]]:
    """A tab with scripts and one without: to open a new one costs more than to draw a page."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        @functools.cache
        def tab(scripts: bool) -> Any:
            context = browser.new_context(java_script_enabled=scripts)
            context.set_default_timeout(300_000)  # a busy machine is no fault of the page
            return context.new_page()

        yield tab
        browser.close()


@pytest.fixture
def page(tabs: Callable[[bool], Any], tmp_path: Path) -> Iterator[Open]:
    """Opens a report or a repair, in the place of what was open.

    At the end nothing was complained of, nor asked of a network.
    """
    complaints: list[str] = []
    asked: list[str] = []
    used: set[Any] = set()
    paths = (tmp_path / f"report-{number}.html" for number in itertools.count())
    listeners = {
        "console": lambda said: complaints.append(said.text) if said.type != "log" else None,
        "pageerror": lambda error: complaints.append(str(error)),
        "request": lambda request: asked.append(request.url),
    }

    def open_page(
        report: Any, *, width: int = 1280, scripts: bool = True, color_scheme: str = "light"
    ) -> Any:
        path = next(paths)
        text = repair_page.html(report) if isinstance(report, Repair) else html.render(report)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        tab = tabs(scripts)
        if tab not in used:
            used.add(tab)
            for event, listener in listeners.items():
                tab.on(event, listener)
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(media="null", color_scheme=color_scheme, reduced_motion="reduce")
        tab.mouse.move(0, 0)
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for tab in used:
        tab.evaluate("0")  # what the page said before has arrived when this has
        for event, listener in listeners.items():
            tab.remove_listener(event, listener)
    assert complaints == []
    assert [url for url in asked if not url.startswith("file:")] == []


REPORTS = {
    "sick": samples.sick,
    "healthy": samples.healthy,
    "empty": samples.empty,
    "large": samples.large,
    "hostile": lambda: samples.hostile("<script>alert(1)</script>"),
    "right to left": lambda: samples.hostile("שכבה.\u202eنموذج.层"),
    "long": lambda: samples.hostile("encoder." * 62),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [1280, 390], ids=["laptop", "phone"])
def test_it_opens_and_fits(page, name, width):
    opened = page(REPORTS[name](), width=width)

    opened.wait_for_load_state("load")
    assert opened.locator("h1").is_visible()
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    if REPORTS[name]().snapshot.layers:
        assert opened.locator("#figure svg").count() >= 2


# What passed has a record for each element of the page: how many rules did is all that is asked.
LOOK = """
() => axe.run({
  runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'],
  resultTypes: ['violations'],
}).then(found => ({
  passes: found.passes.length,
  violations: found.violations.map(
    v => [v.id, v.nodes.slice(0, 3).map(n => n.html.slice(0, 120))]
  ),
}))
"""


def violations(opened: Any) -> list[Any]:
    opened.add_script_tag(content=AXE.read_text(encoding="utf-8"))
    found = opened.evaluate(LOOK)
    assert found["passes"]
    return found["violations"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["sick", "healthy", "large", "empty"])
def test_axe_finds_nothing(page, name, scheme):
    opened = page(REPORTS[name](), color_scheme=scheme)
    opened.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")

    assert violations(opened) == []


def test_the_picture_has_a_curve_a_dot_and_a_name_for_each_layer(page):
    report = samples.large(20)
    opened = page(report)

    titles = opened.locator("#figure h3").all_inner_texts()
    assert titles[:2] == ["Layer", "Activations"]
    activations = opened.locator("#figure figure").nth(1)
    assert activations.locator("g.area path").count() == 20
    assert activations.locator("circle").count() == 20
    names = opened.locator("#figure figure").first.locator("a")
    assert names.count() == 20


def test_pointing_at_a_layer_tells_its_numbers(page):
    opened = page(samples.large(20))
    plot = opened.locator("#figure figure").nth(1).locator("svg")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()

    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    text = opened.locator("#figure figure").nth(1).text_content()
    assert "mean" in text
    assert "theory" in text or "std" in text


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_table_is_sorted_by_any_column_and_back(page, by):
    opened = page(samples.large(30))
    rows = opened.locator("#layers-table tbody tr")
    header = opened.locator("#layers-table thead th", has_text="std")
    column = header.evaluate("th => th.cellIndex")

    def sort() -> list[float]:
        if by == "mouse":
            header.click()
        else:
            header.focus()
            opened.keyboard.press("Enter")
        cells = rows.evaluate_all(
            "(rows, i) => rows.map(r => r.cells[i].dataset.sort || r.cells[i].textContent)", column
        )
        return [float(cell) for cell in cells]

    once, twice = sort(), sort()
    assert len(once) == 30
    assert sorted([once, twice]) == sorted([sorted(once), sorted(once, reverse=True)])
    assert header.get_attribute("aria-sort") in ("ascending", "descending")


def test_a_filter_keeps_the_rows_with_all_its_words(page):
    opened = page(samples.large(30))
    field = opened.get_by_label("Show only rows with").first
    rows = opened.locator("#layers-table tbody tr")
    name = rows.nth(7).locator("th").inner_text()

    field.fill(name.upper())

    kept = rows.evaluate_all("rows => rows.filter(r => !r.hidden).map(r => r.cells[0].textContent)")
    assert name in kept
    assert len(kept) < 30
    assert opened.locator("#layers [role=status]").inner_text() == f"{len(kept)} of 30"
    field.fill("")
    assert rows.evaluate_all("rows => rows.every(r => !r.hidden)")


def test_a_finding_leads_to_its_layer(page):
    opened = page(samples.sick())
    link = opened.locator("article .place a, .lead .place a").first
    name = link.inner_text()

    link.focus()
    opened.keyboard.press("Enter")

    assert opened.locator("tr:target th").inner_text() == name
    assert opened.evaluate(
        "(() => {const r = document.querySelector('tr:target').getBoundingClientRect();"
        "return r.top >= 0 && r.bottom <= innerHeight + 1})()"
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("width", [1280, 390], ids=["laptop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_and_an_index_open_fit_and_satisfy_axe(page, tmp_path, width, scheme):
    opened = page(samples.sick(), width=width, color_scheme=scheme)
    compare(samples.healthy(), samples.sick()).to_html(tmp_path / "comparison.html")
    index.update(tmp_path)

    for name in ("comparison.html", "index.html"):
        opened.goto((tmp_path / name).as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(opened) == []


@pytest.fixture(scope="module")
def clickable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed gallery with its pages as HTML."""
    folder = tmp_path_factory.mktemp("gallery") / "gallery"
    shutil.copytree(GALLERY, folder, ignore=shutil.ignore_patterns("*.csv", "*.py", "__pycache__"))
    for name, text in make.indexes(GALLERY)[0].items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, shown in every().items():
        text = (folder / name / "README.md").read_text(encoding="utf-8")
        made = gallery.html(text, shown.title)
        (folder / name / "index.html").write_text(made, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("pattern", "width", "scheme"),
    [
        ("weight_init/index.html", 1280, "dark"),
        ("index*.html", 390, "light"),
        pytest.param("**/*.html", 1280, "dark", marks=pytest.mark.exhaustive),
        pytest.param("**/*.html", 390, "light", marks=pytest.mark.exhaustive),
    ],
)
def test_the_gallery_opens_fits_and_satisfies_axe(page, clickable, pattern, width, scheme):
    opened = page(samples.healthy(), width=width, color_scheme=scheme)

    for path in sorted(clickable.glob(pattern)):
        opened.goto(path.as_uri())
        assert opened.locator("h1").count() == 1
        drawn = "[...document.images].every((image) => image.naturalWidth > 0)"
        assert opened.evaluate(drawn), path
        assert opened.evaluate("document.documentElement.scrollWidth") <= width, path
        assert violations(opened) == [], path


@pytest.mark.exhaustive
def test_the_gallerys_thumbnails_lead_to_their_pages(page, clickable):
    opened = page(samples.healthy())

    for index_page in ("index.html", "index.zh-CN.html"):
        opened.goto((clickable / index_page).as_uri())
        assert opened.locator("td a img").count() == len(every())
        opened.locator("td a img").nth(3).click()
        assert opened.title() == "Weight initialisation"
    opened.goto((clickable / "index.html").as_uri())
    opened.get_by_role("link", name="简体中文").click()
    assert opened.locator("html").get_attribute("lang") == "zh-CN"


def test_dark_and_light_differ_and_both_print(page):
    colors = []
    for scheme in ("light", "dark"):
        opened = page(samples.sick(), color_scheme=scheme)
        colors.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.emulate_media(media="print", color_scheme=scheme)
        paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
    assert len(set(colors)) == 2


def test_without_scripts_all_of_it_can_be_read(page):
    report = samples.sick()
    opened = page(report, scripts=False)

    text = opened.locator("body").inner_text()
    for finding in report.findings:
        assert finding.rule in text
    assert "scripts are off" in text
    rows = [*report.snapshot.layers, *report.snapshot.experiment.calls]
    assert opened.locator("#layers-table tbody tr").count() == len(rows)
    assert opened.locator("#layers-table tbody tr").first.is_visible()
    assert not opened.locator(".filter").first.is_visible()
    assert not opened.locator("#figure").is_visible()


REPAIRS = {
    "repaired": repairs.repaired,
    "better": repairs.better,
    "safe": repairs.safe,
    "hopeless": repairs.hopeless,
    "healthy": repairs.healthy,
    "empty": repairs.empty,
    "without gradients": repairs.without_gradients,
    "large": repairs.large,
    "hostile": lambda: repairs.hostile("<script>alert(1)</script>"),
    "right to left": lambda: repairs.hostile("שכבה.\u202eنموذج.层"),
    "long": lambda: repairs.hostile("encoder." * 62),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", REPAIRS)
@pytest.mark.parametrize("width", [1280, 390], ids=["laptop", "phone"])
def test_a_repair_opens_and_fits(page, name, width):
    repair = REPAIRS[name]()

    opened = page(repair, width=width)

    assert opened.locator("h1").is_visible()
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    drawn = (2 if repair.before.snapshot.layers else 0) + (repair.trial is not None)
    assert opened.locator(".figure:visible").count() == drawn


@pytest.mark.one_in(3)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["repaired", "better", "safe", "empty"])
def test_axe_finds_nothing_about_a_repair(page, name, scheme):
    opened = page(REPAIRS[name](), color_scheme=scheme)
    opened.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")

    assert violations(opened) == []


def boxes(opened: Any, selector: str) -> list[dict[str, float]]:
    return [place.bounding_box() for place in opened.locator(selector).all()]


def test_before_and_after_stand_side_by_side_and_on_a_phone_one_below_the_other(page):
    old, new = boxes(page(repairs.repaired(), width=1280), ".sides .figure")
    assert old["y"] == new["y"]
    assert old["x"] + old["width"] <= new["x"]

    old, new = boxes(page(repairs.repaired(), width=390), ".sides .figure")
    assert old["x"] == new["x"]
    assert old["y"] + old["height"] <= new["y"]


def test_a_layer_is_on_the_same_line_of_both_pictures_and_both_have_the_same_scales(page):
    opened = page(repairs.repaired())
    names, ticks = [], []
    for side in opened.locator(".sides .figure").all():
        assert side.locator("h4").all_inner_texts() == ["Layer", "Activations", "Gradients"]
        links = side.locator("figure").first.locator("a").all()
        names.append({a.text_content(): round(a.bounding_box()["y"]) for a in links})
        plot = side.locator("figure").nth(1)
        ticks.append([t.bounding_box()["x"] for t in plot.locator(".tick text, text").all()])
        ticks[-1] = [round(x - plot.bounding_box()["x"], 1) for x in ticks[-1]]

    before, after = names
    assert before["head linear"] == after["head linear"]
    assert before["encoder.2 tanh"] == after["encoder.2.1 relu"]
    assert set(before.values()) < set(after.values())
    assert ticks[0] == ticks[1] != []


def test_a_name_in_either_picture_leads_to_the_row_of_its_layer(page):
    opened = page(repairs.repaired())

    for side, name in ((0, "encoder.2 tanh"), (1, "encoder.2.1 relu")):
        link = opened.locator(".sides .figure").nth(side).locator("a", has_text=name)
        link.focus()
        opened.keyboard.press("Enter")
        assert opened.locator("tr:target th").inner_text() == "encoder.2 → encoder.2.1"


def test_the_losses_are_drawn_a_thin_line_a_seed_and_a_thick_one_for_their_mean(page):
    opened = page(repairs.repaired())

    chart = opened.locator("#trial figure")
    widths = [line.get_attribute("stroke-width") for line in chart.locator("g.area").all()]
    assert [line.locator("path").count() for line in chart.locator("g.area").all()] == [3, 1, 3, 1]
    assert widths == ["0.8", "2.5", "0.8", "2.5"]
    # Over two decades: a logarithmic scale, and a linear one has no tick below 0.2 here.
    assert "0.1" in chart.locator("text").all_text_contents()


def test_a_run_that_diverged_is_drawn_as_far_as_it_went(page):
    opened = page(replace(repairs.repaired(), trial=repairs.diverged()))

    ends = [line.bounding_box() for line in opened.locator("#trial g.area path").all()]

    before, after = ends[:4], ends[4:]
    assert max(box["x"] for box in ends) - min(box["x"] for box in ends) < 2
    reached = max(box["width"] for box in before) / min(box["width"] for box in after)
    assert reached == pytest.approx(24 / 39, abs=0.02)


def test_without_scripts_all_of_a_repair_can_be_read(page):
    repair = repairs.repaired()
    opened = page(repair, scripts=False)

    text = opened.locator("body").inner_text()
    for step in repair.taken:
        assert step.fix.what in text
    assert "The pictures need scripts, which are off." in text
    assert repair.patch.strip() in opened.locator("#patch pre").inner_text()
    assert opened.locator("#trial tbody tr").count() == 2
    assert not opened.locator(".figure").first.is_visible()
    assert opened.locator("#layers-table tbody tr").first.is_visible()


def test_a_repair_prints_dark_or_light_on_white_paper_and_unfolded(page):
    for scheme in ("light", "dark"):
        opened = page(repairs.repaired(), color_scheme=scheme)
        opened.emulate_media(media="print", color_scheme=scheme)
        assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        opened.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert opened.locator("details:not([open])").count() == 0


def test_the_patch_can_be_reached_by_keyboard(page):
    opened = page(repairs.repaired(), width=390)

    for _ in range(100):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.matches('#patch pre')"):
            return
    pytest.fail("100 tabs did not reach the patch")
