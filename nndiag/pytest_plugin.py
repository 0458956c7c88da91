"""The pytest plugin: the fixture ``diagnose``, the marker ``nndiag``, the options ``--nndiag-*``.

pytest loads this file in every session where nndiag is installed. So it is small, and imports
anything beyond pytest only when a test needs it.
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

_RULES = "rules, by name, code or beginning of a code (ND2); separated by commas or repeated"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nndiag", "nndiag: what is wrong inside neural networks")
    add = group.addoption
    add("--nndiag-report", metavar="DIR", help="keep the reports of all diagnosed models here")
    add(
        "--nndiag-format",
        metavar="FORMAT",
        action="append",
        help="formats of those reports: html, json, csv, markdown, sarif, junit; separated by "
        "commas or repeated (default: html and json)",
    )
    add(
        "--nndiag-fail-on",
        choices=("error", "warning", "never"),
        help="the lowest severity that fails a test (default: warning)",
    )
    add("--nndiag-select", metavar="RULE", action="append", help=f"only these {_RULES}")
    add("--nndiag-ignore", metavar="RULE", action="append", help=f"not these {_RULES}")
    add(
        "--nndiag-baseline",
        metavar="DIR",
        help="the folder of the files of diagnose.baseline (default: nndiag-baselines)",
    )
    add(
        "--nndiag-update-baseline",
        action="store_true",
        help="write missing baselines, and those that the model no longer meets",
    )
    for name, kind, about in (
        ("report", "string", "--nndiag-report"),
        ("format", "args", "--nndiag-format"),
        ("fail_on", "string", "--nndiag-fail-on"),
        ("select", "args", "--nndiag-select"),
        ("ignore", "args", "--nndiag-ignore"),
        ("baseline", "string", "--nndiag-baseline"),
    ):
        # No default: "not given" and "given as empty" differ.
        parser.addini(f"nndiag_{name}", f"as {about}", type=kind, default=None)  # type: ignore[arg-type]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "nndiag(select=None, ignore=None, thresholds=None, fail_on=None, seed=None): "
        "how nndiag judges the models of a test",
    )
    if _given(config):  # a wrong option stops the session now, and does not fail each test
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
    """Checks a model, and fails the test if something is wrong in it.

    ``diagnose(model, batch, target=None, loss_fn=None, expect={"dead-relu": "why"})`` takes what
    :func:`nndiag.check` takes and returns its report.
    """
    from nndiag.testing.fixture import Diagnose

    return Diagnose(request.node)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests of a model, so that with ``--dist loadgroup`` it is checked only once."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            for check in _checks(item):
                item.add_marker(pytest.mark.xdist_group(f"nndiag-{check.model}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Give each check of :func:`nndiag.testing.parametrize_with_checks` its test."""
    for check in _checks(item):
        check.item = item


def _checks(item: pytest.Item) -> list[Any]:
    spec = getattr(item, "callspec", None)
    values = spec.params.values() if spec is not None else ()
    return [value for value in values if type(value).__module__ == "nndiag.testing.models"]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Attach the diagnoses to the test's report, which xdist workers send to the controller."""
    outcome: Any = yield
    if "nndiag.testing.session" not in sys.modules:  # nothing was diagnosed: do not load it
        return
    from nndiag.testing.session import DIAGNOSES

    diagnoses = item.stash.get(DIAGNOSES, None)
    if diagnoses:
        outcome.get_result().nndiag = list(diagnoses)
        diagnoses.clear()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    diagnoses = [
        # A failure that the test expects or catches does not fail the session.
        (report.nodeid, {**diagnosis, "failed": diagnosis["failed"] and report.failed})
        for outcome, reports in terminalreporter.stats.items()
        for report in reports
        if outcome != "rerun"  # the last run counts
        for diagnosis in getattr(report, "nndiag", ())
    ]
    if diagnoses:
        from nndiag.testing.summary import write

        write(terminalreporter, diagnoses)
