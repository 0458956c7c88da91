"""The Simplified-Chinese edition says what the English one says: same parts, same numbers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from gallery import render
from gallery.page import every

from nndiag import rules
from nndiag.languages import words
from nndiag.render import page

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
)
RULES = rules.discover()
HOME = "https://github.com/nndiag/nndiag/blob/main"
EACH_OTHER = (f"{HOME}/README.md", f"{HOME}/README.zh-CN.md")
HAN = re.compile(r"[\u4e00-\u9fff]")


def numbers(text):
    return Counter(re.findall(r"\d+(?:[.,/]\d+)*(?:e-?\d+)?", text))


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def test_the_readmes_have_the_same_headings_code_and_links():
    def parts(text):
        prose = without_code(text)
        return {
            "headings": re.findall(r"^#+ ", prose, re.M),
            "code": re.findall(r"^```.*?^```$", text, re.M | re.S),
            "spans": Counter(re.findall(r"`[^`\n]+`", prose.replace("\n", " "))),
            "links": [to for to in re.findall(r"\]\(([^)]+)\)", prose) if to not in EACH_OTHER],
            "rows": len(re.findall(r"^\|", prose, re.M)),
        }

    english, chinese = parts(ENGLISH), parts(CHINESE)
    for part, said in english.items():
        assert chinese[part] == said, part


def test_the_readmes_have_the_same_numbers():
    assert numbers(without_code(CHINESE)) == numbers(without_code(ENGLISH))


def test_the_readmes_lead_to_each_other():
    assert f"[简体中文]({HOME}/README.zh-CN.md)" in ENGLISH
    assert f"[English]({HOME}/README.md)" in CHINESE


def test_the_chinese_readme_is_chinese():
    prose = re.sub(r"`[^`]+`|\([^)]*\)", "", without_code(CHINESE))
    words_in_english = re.findall(
        r"[A-Za-z]+", re.sub(r"`[^`]+`|\([^)]*\)", "", without_code(ENGLISH))
    )
    assert len(HAN.findall(prose)) > 1.2 * len(words_in_english)


@pytest.mark.parametrize(("name", "module"), RULES.items(), ids=RULES)
def test_a_rules_first_paragraph_is_there_with_the_same_numbers(name, module):
    own = words("zh")["rules"][name]
    paragraph, *_ = page.sections(module)["What it does"].split("\n\n")
    assert HAN.search(own["title"])
    assert HAN.search(own["text"])
    assert numbers(own["title"] + own["text"]) == numbers(f"{page.title(module)} {paragraph}")


@pytest.mark.parametrize("module", RULES.values(), ids=RULES)
def test_a_rules_chinese_page_goes_on_in_english(module):
    chinese = page.page(module, "zh")
    what, *others = page.sections(module).values()
    first, *paragraphs = what.split("\n\n")
    assert first not in chinese
    assert "\n\n".join((words("zh")["english"], *paragraphs)) in chinese
    assert all(text in chinese for text in others)


def test_each_heading_of_a_rules_page_is_translated_and_underlined_as_wide_as_it_is():
    used = {heading for module in RULES.values() for heading in page.sections(module)}
    translated = words("zh")["headings"]
    assert translated.keys() == used
    text = page.page(RULES["saturation"], "zh")
    for heading in map(translated.get, page.sections(RULES["saturation"])):
        assert HAN.search(heading)
        assert f"\n{heading}\n{'-' * 2 * len(heading)}\n" in text


def test_the_chinese_readme_lists_the_rules_as_the_english_one_does():
    def listed(text):
        rows = re.findall(r"^\| (ND\d) \| [^|]+ \| (.+) \|$", text, re.M)
        return {family: names.split(", ") for family, names in rows}

    assert listed(CHINESE) == listed(ENGLISH) != {}


@pytest.mark.parametrize("name", every())
def test_a_pages_title_and_claim_are_there_with_the_same_numbers(name):
    own, page_ = render.words("zh")["pages"][name], every()[name]
    assert HAN.search(own["title"])
    assert HAN.search(own["claim"])
    assert numbers(own["title"] + own["claim"]) == numbers(f"{page_.title} {page_.claim}")


def test_nothing_is_translated_that_does_not_exist():
    assert words("zh")["rules"].keys() == RULES.keys()
    assert render.words("zh")["pages"].keys() == every().keys()


def test_the_galleries_index_has_the_same_words_in_both_languages():
    english, chinese = render.words("en"), render.words("zh")
    assert set(english) | {"pages"} == set(chinese)
    for group in ("verdicts", "meaning"):
        assert english[group].keys() == chinese[group].keys()
