from __future__ import annotations

import html.parser
import re

import pytest
import samples

from nndiag.render import html as page_of
from nndiag.render import tables

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

    page = Page(render(samples.hostile(name)))

    assert "script" not in page.tags
    assert name in page.text


def test_a_name_cannot_leave_an_attribute_or_a_template(render):
    name = "\"' onload=alert(1) {{ 7 * 7 }}"

    page = Page(render(samples.hostile(name)))

    assert not [a for a, _ in page.attributes if a.startswith("on")]
    assert name in page.text
    assert "49" not in page.text


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(render):
    text = render(samples.sick())
    page = Page(text)

    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert not re.search(r"url\(|@import|https?:", text)


def test_it_is_readable_in_the_dark_and_on_a_phone():
    text = page_of.render(samples.sick())

    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert ".wide { overflow-x: auto; }" in text.replace(".nndiag ", "")


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
        "measured: reports/calibration/dead-relu.md", "Start from Kaiming weights", "head_aux",
        "encoder.lstm", "needs a virtual update", "ZeroDivisionError", "8 samples say little",
        "nndiag check net.py:net", "torch 2.13.0", "Passed: input-scale",
    ):  # fmt: skip
        assert words in text


def test_an_unknown_number_is_an_empty_cell():
    assert [page_of._cell(v) for v in (None, float("nan"), True, 3, 0.12345, "x")] == [
        "", "", "yes", "3", "0.123", "x",
    ]  # fmt: skip
