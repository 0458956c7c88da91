"""The table of formats: what a document can be written as, and that its methods are just that."""

from __future__ import annotations

import inspect

import pytest
import samples

from nndiag.compare import Comparison, compare
from nndiag.fixes.result import Repair
from nndiag.render.formats import FORMATS, Document, texts
from nndiag.report import Report

KINDS = {"report": Report, "repair": Repair, "comparison": Comparison}
ALONE = {
    "to_csv",
    "to_frame",
    "to_github",
    "to_concise",
    "to_text",
}  # a folder, a frame, and text for stdout


def test_every_kind_of_document_is_in_the_table():
    assert set(FORMATS) == set(KINDS)
    assert {kind._kind for kind in KINDS.values()} == set(FORMATS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_has_a_method_for_each_file_and_no_other(kind):
    named = {name for name in dir(KINDS[kind]) if name.startswith("to_")}
    files = {f"to_{name}" for name, format in FORMATS[kind].items() if format.ending}

    assert files <= named
    assert named - files <= ALONE


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, formats in FORMATS.items() for name in formats]
)
def test_every_renderer_is_there_and_takes_the_document(kind, name):
    document, *others = inspect.signature(FORMATS[kind][name].render).parameters.values()

    assert all(other.default is not inspect.Parameter.empty for other in others)
    assert document.name in ("snapshot", kind)


@pytest.mark.parametrize("name", FORMATS["report"])
def test_a_report_in_each_format(name):
    assert FORMATS["report"][name].render(samples.sick())


def test_what_is_shown_comes_from_the_table_alone():
    """A method overridden in one class would be a second place for the same thing."""
    shared = [name for name, value in vars(Document).items() if inspect.isfunction(value)]

    for kind in KINDS.values():
        assert [getattr(kind, n) for n in shared] == [getattr(Document, n) for n in shared]


def test_a_comparison_is_shown_in_a_notebook_too():
    page = compare(samples.sick(), samples.healthy())._repr_html_()

    assert "<style>" in page
    assert "Findings that vanished" in page


def test_what_is_only_shown_makes_no_file():
    assert texts(samples.sick(), "terminal") == {}
    assert set(texts(samples.sick(), "csv", "unet")) == {
        "unet.findings.csv",
        "unet.layers.csv",
        "unet.parameters.csv",
    }
