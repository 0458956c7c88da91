"""The fixture ``diagnose``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from nndiag.errors import NNDiagError
from nndiag.report import Report
from nndiag.testing import expected, session


class Diagnose:
    """``diagnose(model, batch)``: a check that fails its test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._calls = 0

    def __call__(
        self,
        model: Any,
        batch: Any,
        target: Any = None,
        loss_fn: Callable[..., Any] | None = None,
        *,
        expect: Mapping[str, str] | None = None,
        name: str = "",
        select: Iterable[str] | str | None = None,
        ignore: Iterable[str] | str | None = None,
        thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
        seed: int | None = None,
    ) -> Report:
        """Check a model, keep its report, and fail the test where something is wrong.

        Args:
            model, batch, target, loss_fn: as :func:`nndiag.check` takes them.
            expect: findings that are known and meant, ``{"dead-relu": "sparse gate by design"}``:
                they and what they explain do not fail the test, and it fails once they are gone.
            name: of the report, where a test diagnoses several models.
            select, ignore, thresholds, seed: for this call alone, over markers and options.

        Raises:
            FindingsError: findings of the severity asked for (``--nndiag-fail-on``) or a graver
                one; its text is their report.
            NNDiagError: what :func:`nndiag.check` raises.
        """
        __tracebackhide__ = True
        try:
            verdict = self._verdict(
                (model, batch, target, loss_fn), name, expect,
                select=select, ignore=ignore, thresholds=thresholds, seed=seed,
            )  # fmt: skip
        except NNDiagError as error:
            raise error.with_traceback(
                None
            ) from error.__cause__  # what is behind it, its cause, is the user's own
        verdict.raise_if_failed()
        return verdict.report

    def _verdict(
        self, arguments: tuple[Any, ...], name: str, expect: object, **given: Any
    ) -> expected.Verdict:
        from nndiag import api

        meant = expected.checked(expect, "expect")
        chosen = session.settings_for(self._item).override(**given)
        report = api.check(*arguments, config=session.as_config(chosen))
        verdict = expected.judged(report, meant, chosen.fail_on)
        self._calls += 1
        title = self._item.nodeid
        if name or self._calls > 1:
            title += f"[{name or self._calls}]"
        file = session.file_name(title)
        kept = session.keep(report, self._item.config, file, verdict.failed)
        session.tell(self._item, title, verdict, verdict.failed, kept)
        return verdict
