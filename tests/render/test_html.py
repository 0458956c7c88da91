from __future__ import annotations

import html.parser
import re

import pytest
import samples

from nndiag.render import html as page_of
from nndiag.render import tables

SCRIPT = re.compile(r"<script( [^>]*)?>(.*?)</script>", re.S)
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
    """A strict reader: what is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(params=[page_of.render, page_of.fragment], ids=["page", "fragment"])
def render(request):
    return request.param


@pytest.mark.parametrize("make", [samples.sick, samples.healthy, samples.empty, samples.large])
def test_the_page_is_sound(render, make):
    Page(render(make()))


def test_a_module_named_like_a_script_is_a_name(render):
    name = "<script>alert(1)</script>"

    text = render(samples.hostile(name))

    assert name in Page(text).text
    assert "alert" not in "".join(body for kind, body in SCRIPT.findall(text) if not kind)
    assert name not in text


def test_a_name_cannot_leave_an_attribute_or_a_template(render):
    name = "\"' onload=alert(1) {{ 7 * 7 }}"

    page = Page(SCRIPT.sub("", render(samples.hostile(name))))

    assert not [a for a, _ in page.attributes if a.startswith("on")]
    assert name in page.text
    assert "49" not in page.text


def test_the_page_asks_nothing_of_the_network(render):
    text = render(samples.sick())
    page = Page(text)

    assert not {"link", "iframe", "img"} & set(page.tags)
    assert "src" not in {name for name, _ in page.attributes}
    assert all(v.startswith("#") for name, v in page.attributes if name == "href")
    assert not re.search(r"url\(|@import|https?:", SCRIPT.sub("", text))


def test_every_script_is_ours_or_one_that_we_ship():
    text = page_of.render(samples.sick())
    shipped = [page_of._script(n) for n in ("vendor/plot.js", "vendor/tablesort.js", "page.js")]

    assert [body for kind, body in SCRIPT.findall(text) if not kind] == shipped
    assert not any("</script" in script.lower() for script in shipped)
    assert "<script" not in page_of.fragment(samples.sick())


@pytest.mark.parametrize(
    ("layers", "most"), [(100, 1_500_000), (1000, 4_000_000)], ids=["100 layers", "1,000 layers"]
)
def test_a_page_is_not_large(layers, most):
    text = page_of.render(samples.large(layers))

    assert text.count('<tr id="L') == layers
    assert len(text.encode()) <= most


def test_everything_that_was_found_and_measured_is_on_the_page():
    report = samples.sick()
    text = Page(page_of.render(report)).text

    for finding in report.findings:
        assert finding.layer in text
        assert finding.message in text
    for row in tables.layers(report.snapshot):
        assert row["layer"] in text
    for parameter in report.snapshot.parameters:
        assert parameter.name in text
    for words in (
        "measured: reports/calibration/dead-relu.md", "Re-initialise the weights (He)", "head_aux",
        "encoder.lstm", "needs a virtual update", "ZeroDivisionError", "8 samples say little",
        "nndiag check net.py:net", "torch 2.13.0", "input-scale",
    ):  # fmt: skip
        assert words in text


def test_an_unknown_number_is_an_empty_cell():
    assert [page_of._cell(v) for v in (None, float("nan"), True, 3, 0.12345, "x")] == [
        "", "", "yes", "3", "0.123", "x",
    ]  # fmt: skip
