"""The fixture ``diagnose``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nndiag.errors import (
    FindingsError,
    NNDiagError,
    OutputError,
    ReportError,
    SettingsError,
)
from nndiag.render import story
from nndiag.report import Report
from nndiag.testing import expected, session

if TYPE_CHECKING:
    from nndiag.testing import baseline

__all__ = ["Diagnose"]


class Diagnose:
    """``diagnose(model, batch)``: a check that fails its test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._names: dict[str, set[str]] = {"report": set(), "baseline": set()}

    def __call__(
        self,
        model: Any,
        batch: Any,
        target: Any = None,
        loss_fn: Callable[..., Any] | None = None,
        *,
        optimizer: Any = None,
        expect: Mapping[str, str] | None = None,
        name: str = "",
        select: Iterable[str] | str | None = None,
        ignore: Iterable[str] | str | None = None,
        thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
        seed: int | None = None,
    ) -> Report:
        """Check a model, keep its report, and fail the test if something is wrong.

        Args:
            model, batch, target, loss_fn, optimizer: as :func:`nndiag.check` takes them.
            expect: known, intended findings, ``{"dead-relu": "sparse gate by design"}``. They and
                what they explain do not fail the test. The test fails once they are gone.
            name: the report's name, if a test diagnoses several models.
            select, ignore, thresholds, seed: for this call alone; they go before markers and
                options.

        Raises:
            FindingsError: findings at or above the severity of ``--nndiag-fail-on``; its text is
                their report.
            NNDiagError: what :func:`nndiag.check` raises.
        """
        __tracebackhide__ = True
        try:
            verdict, lost = self._verdict(
                (model, batch, target, loss_fn), name, expect, optimizer,
                select=select, ignore=ignore, thresholds=thresholds, seed=seed,
            )  # fmt: skip
        except NNDiagError as error:
            raise error.with_traceback(None) from session.of_the_user(error)
        verdict.raise_if_failed(lost)
        return verdict.report

    def baseline(
        self,
        build: Callable[[], Any],
        batch: Any,
        target: Any = None,
        loss_fn: Callable[..., Any] | None = None,
        *,
        name: str = "",
        seeds: int = 20,
    ) -> None:
        """Fail if a model's numbers differ from its baseline by more than a seed explains.

        Compared are the structure, the scales and means of inputs, parameters, activations and
        gradients, and the shares of zeros and saturated values. The baseline is a file kept with
        the tests (``--nndiag-baseline=DIR``); ``--nndiag-update-baseline`` writes it. If nothing
        changed, at most 1 run in 1,000 fails, whatever the number of layers. See
        ``nndiag.testing.baseline`` for the method and ``reports/baselines`` for measured rates.

        Another seed or number of threads does not count as a change. Another batch of the same data
        does not either, unless the file says ``"batches": "same"``: the batch was too small or has
        no axis of samples. Buffers are not compared.

        Args:
            build: a function without arguments that builds the model.
            batch, target, loss_fn: as :func:`nndiag.check` takes them. If ``batch`` is a function
                without arguments, it is called for each seed. The samples of a batch are drawn
                anew, with replacement, for each seed.
            name: the baseline's name, if a test has several.
            seeds: how many seeds a new baseline is made from. Among 200 numbers, 20 seeds detect
                a Gaussian weight that is 1.5 times too large from 130 values on, 5 seeds from
                4,000.

        Raises:
            FindingsError: with what differs, and by how much.
            NNDiagError: the baseline cannot be read, or the model cannot be built or run.
        """
        __tracebackhide__ = True
        try:
            failure = self._baseline(build, (batch, target, loss_fn), name, seeds)
        except NNDiagError as error:
            raise error.with_traceback(None) from session.of_the_user(error)
        if failure:
            raise FindingsError(failure)

    def _baseline(
        self, build: Callable[[], Any], data: tuple[Any, ...], name: str, seeds: int
    ) -> str:
        from nndiag.render import files
        from nndiag.testing import baseline

        __tracebackhide__ = True
        config, title = self._item.config, self._title("baseline", name)
        path = session.baselines(config) / f"{session.file_name(title)}.json"
        update = config.getoption("nndiag_update_baseline", False)
        command = session.command(self._item, "--nndiag-update-baseline")
        data = (baseline.replayable(data[0]), *data[1:])
        if (known := _known(path, update)) is not None:
            changes = known.confirmed(lambda seed: baseline.look(build, *data, seed=seed)[0])
            if not changes:
                session.record_baseline(self._item, title, path)
                return ""
            if not update:
                session.record_baseline(self._item, title, path, failed=changes[0].text)
                return (
                    f"{story.plural(len(changes), 'difference')} from {path}, beyond what other "
                    f"seeds explain\n\n{baseline.text(changes)}\n\nIf that is intended: {command}"
                )
        elif not update:
            missing = f"there is no baseline {path} yet"
            session.record_baseline(self._item, title, path, failed=missing)
            return f"{missing}. Write it, review it and commit it: {command}"
        files.write({path: baseline.make(build, *data, seeds=seeds).dumps()})
        session.record_baseline(self._item, title, path, written=True)
        return ""

    def _title(self, what: str, name: str) -> str:
        """The test's name; from the second call on, with the call's name or number."""
        used = self._names[what]
        called = name or (str(len(used) + 1) if used else "")
        if called in used:
            raise SettingsError(
                f"name={name!r} names an earlier {what} of this test: give another."
            )
        used.add(called)
        return session.title_of(self._item) + (f"[{called}]" if called else "")

    def _verdict(
        self,
        arguments: tuple[Any, ...],
        name: str,
        expect: object,
        optimizer: Any = None,
        **given: Any,
    ) -> tuple[expected.Verdict, str]:
        """What fails, and why its report could not be saved, if it could not."""
        from nndiag import api

        intended = expected.checked(expect, "expect")
        chosen = session.settings_for(self._item).override(**given)
        title = self._title("report", name)
        report = api.check(*arguments, optimizer=optimizer, config=session.as_config(chosen))
        verdict = expected.judged(report, intended, chosen.fail_on)
        file, kept, lost = session.file_name(title), None, ""
        try:
            kept = session.keep(report, self._item.config, file, verdict.failed)
        except OutputError as error:
            if not verdict.failed:
                raise
            lost = f"{type(error).__name__}: {error}"  # the findings matter more
        session.record(self._item, title, verdict, verdict.failed, kept)
        return verdict, lost


def _known(path: Path, update: bool) -> baseline.Baseline | None:
    """The baseline in a file; None if there is no file, or a broken one that will be replaced."""
    from nndiag.testing import baseline

    try:
        return baseline.Baseline.loads(path.read_text("utf-8", "replace"), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}.") from error
    except ReportError:
        if update:
            return None
        raise
