from __future__ import annotations

import html.parser
from dataclasses import replace

import pytest
import samples
from markdown_it import MarkdownIt

from nndiag.render import markdown
from nndiag.rule import Finding


class Page(html.parser.HTMLParser):
    """Tags, and the text inside ``code``, of what a Markdown reader makes of a comment."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.code: list[str] = []
        self._in_code = False
        self.feed(MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "code":
            self.code.append("")
            self._in_code = True

    def handle_endtag(self, tag):
        self._in_code &= tag != "code"

    def handle_data(self, data):
        if self._in_code:
            self.code[-1] += data


OURS = {"h3", "p", "code", "strong", "blockquote", "details", "summary", "ul", "li"}


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>", "a|b", "`tick`", "``", "**bold**", "__init__", "[x](http://y)",
        "a_b", "enc.3@2/relu#2", "~~gone~~", "&lt;", "\\`", "![i](j)", "$x$", "</details>",
    ],
)  # fmt: skip
def test_a_name_is_read_as_it_is_and_never_as_markup(name):
    text = markdown.render(samples.hostile(name))
    page = Page(text)

    assert set(page.tags) <= OURS
    assert name in page.code
    assert "<script" not in text


def test_a_line_break_in_a_name_does_not_begin_a_heading():
    assert Page(markdown.render(samples.hostile("a\n# b"))).tags.count("h1") == 0


def test_the_worst_comes_first_and_notes_last():
    text = markdown.render(samples.sick())

    places = [text.index(word) for word in ("init-scale", "dead-relu", "future-dis", ">2 notes")]
    assert places == sorted(places)


def test_details_are_folded():
    text = markdown.render(samples.sick())

    assert text.count("<details>") == text.count("</details>") == 5
    fix = text.index("fix: Re-initialise the weights")
    assert (
        text.rindex("<details>", 0, fix) > text.rindex("</details>", 0, fix)
        if ("</details>" in text[:fix])
        else "<details>" in text[:fix]
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: samples.large(3000),
        lambda: samples.hostile("x" * 100_000),
        lambda: samples.hostile("`" * 50_000),
        lambda: samples.hostile("é" * 60_000),
    ],
)
def test_a_comment_is_never_longer_than_a_code_host_takes(make):
    text = markdown.render(make())

    assert len(text.encode()) <= markdown.MOST_BYTES
    assert set(Page(text).tags) <= OURS


def test_as_many_blocks_as_fit_are_shown_and_the_others_counted():
    findings = tuple(
        Finding(f"rule-{i}", "ND1", "warning", "head", "too long a story. " * 60)
        for i in range(100)
    )

    text = markdown.render(replace(samples.sick(), findings=findings))

    shown = text.count("too long a story. " * 59)
    assert 20 <= shown < 100
    assert f"{100 - shown} more findings did not fit here" in text


def test_where_no_block_fits_all_are_counted():
    text = markdown.render(samples.hostile("x" * 100_000))

    assert "3 more findings did not fit here" in text
