"""The pytest plugin: the fixture ``diagnose``, the marker ``nndiag``, the options ``--nndiag-*``.

Every session of everybody who has nndiag installed loads this file. So it is small, and whatever
needs more than pytest is imported when a test asks for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nndiag.testing.fixture import Diagnose

__all__ = [
    "diagnose",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_terminal_summary",
]

_RULES = "rules by name, code or beginning of codes (ND2); commas or repeated"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nndiag", "nndiag: what is wrong inside neural networks")
    add = group.addoption
    add("--nndiag-report", metavar="DIR", help="keep the reports of all diagnosed models here")
    add(
        "--nndiag-format",
        metavar="FORMAT",
        action="append",
        help="of those reports: html, json, csv, markdown, sarif, junit; commas or repeated "
        "(default: html and json)",
    )
    add(
        "--nndiag-fail-on",
        choices=("error", "warning", "never"),
        help="the mildest finding that fails a test (default: warning)",
    )
    add("--nndiag-select", metavar="RULE", action="append", help=f"only these {_RULES}")
    add("--nndiag-ignore", metavar="RULE", action="append", help=f"not these {_RULES}")
    add(
        "--nndiag-baseline",
        metavar="DIR",
        help="where diagnose.baseline keeps its files (default: nndiag-baselines)",
    )
    add(
        "--nndiag-update-baseline",
        action="store_true",
        help="write the baselines that are not there, and those that are not met",
    )
    for name, kind, about in (
        ("report", "string", "--nndiag-report"),
        ("format", "args", "--nndiag-format"),
        ("fail_on", "string", "--nndiag-fail-on"),
        ("select", "args", "--nndiag-select"),
        ("ignore", "args", "--nndiag-ignore"),
        ("baseline", "string", "--nndiag-baseline"),
    ):
        # Without a default, so that "not given" can be told from "given as nothing".
        parser.addini(f"nndiag_{name}", f"as {about}", type=kind, default=None)  # type: ignore[arg-type]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "nndiag(select=None, ignore=None, thresholds=None, fail_on=None, seed=None): "
        "how nndiag judges the models of a test",
    )
    if _given(config):  # what is wrong with it is said now, not by each test
        from nndiag.errors import NNDiagError
        from nndiag.testing.session import settings_of

        try:
            settings_of(config)
        except NNDiagError as error:
            raise pytest.UsageError(str(error)) from None


def _given(config: pytest.Config) -> bool:
    return any(
        name.startswith("nndiag_") and value not in (None, False)
        for name, value in vars(config.option).items()
    )


@pytest.fixture
def diagnose(request: pytest.FixtureRequest) -> Diagnose:
    """Checks a model, and fails the test where something is wrong in it.

    ``diagnose(model, batch, target=None, loss_fn=None, expect={"dead-relu": "why"})`` takes what
    :func:`nndiag.check` takes and returns its report.
    """
    from nndiag.testing.fixture import Diagnose

    return Diagnose(request.node)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of a model are a group: where xdist keeps groups together, it is checked once."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            for check in _checks(item):
                item.add_marker(pytest.mark.xdist_group(f"nndiag-{check.model}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A check of :func:`nndiag.testing.parametrize_with_checks` learns which test it is."""
    for check in _checks(item):
        check.item = item


def _checks(item: pytest.Item) -> list[Any]:
    spec = getattr(item, "callspec", None)
    values = spec.params.values() if spec is not None else ()
    return [value for value in values if type(value).__module__ == "nndiag.testing.models"]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What was diagnosed goes with the test's report, home from any worker."""
    outcome: Any = yield
    if "nndiag.testing.session" not in sys.modules:  # nothing was diagnosed: it stays unloaded
        return
    from nndiag.testing.session import DIAGNOSES

    diagnoses = item.stash.get(DIAGNOSES, None)
    if diagnoses:
        outcome.get_result().nndiag = list(diagnoses)
        diagnoses.clear()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    told = [
        # What a test expected to fail, or caught, is no failure of the session's.
        (report.nodeid, {**diagnosis, "failed": diagnosis["failed"] and report.failed})
        for outcome, reports in terminalreporter.stats.items()
        for report in reports
        if outcome != "rerun"  # of which the last run tells
        for diagnosis in getattr(report, "nndiag", ())
    ]
    if told:
        from nndiag.testing.summary import tell

        tell(terminalreporter, told)
