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
            verdict, lost = self._verdict(
                (model, batch, target, loss_fn), name, expect,
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
        """Fail where a model's numbers are not what other seeds explain.

        The scales and means of inputs, parameters, activations and gradients, shares of zeros and
        of saturated values, and the structure are held against a file that is kept with the tests
        (``--nndiag-baseline=DIR``) and written by ``--nndiag-update-baseline``. Of runs in which
        nothing was changed at most 1 in 1,000 fails, whatever the number of layers: see
        ``nndiag.testing.baseline``, and ``reports/baselines`` for how often that was measured.
        Other seeds and other numbers of threads are no change, nor are other batches of the same
        data, unless a batch has too few samples, or its samples cannot be told apart: the file then
        says ``"batches": "same"``. Buffers are not held.

        Args:
            build: a function without arguments that builds the model.
            batch, target, loss_fn: as :func:`nndiag.check` takes them. A function without
                arguments as ``batch`` is called for each seed; of a batch the samples are drawn
                anew for each.
            name: of the baseline, where a test has several.
            seeds: that a new baseline is made from. Among 200 numbers, 20 see a Gaussian weight of
                130 values and more to be 1.5 times too large, five one of 4,000.

        Raises:
            FindingsError: what differs, and by how much.
            NNDiagError: the baseline cannot be read, or the model not be built or run.
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
            found = known.confirmed(lambda seed: baseline.look(build, *data, seed=seed)[0])
            if not found:
                session.tell_baseline(self._item, title, path)
                return ""
            if not update:
                told = baseline.text(found)
                session.tell_baseline(self._item, title, path, failed=found[0].text)
                return (
                    f"{story.plural(len(found), 'difference')} from {path}, beyond what other "
                    f"seeds explain\n\n{told}\n\nIf that is meant: {command}"
                )
        elif not update:
            missing = f"there is no baseline {path} yet"
            session.tell_baseline(self._item, title, path, failed=missing)
            return f"{missing}. Make it, look at it and commit it: {command}"
        files.write({path: baseline.make(build, *data, seeds=seeds).dumps()})
        session.tell_baseline(self._item, title, path, written=True)
        return ""

    def _title(self, what: str, name: str) -> str:
        """The test's name, with this call's where there is another."""
        used = self._names[what]
        called = name or (str(len(used) + 1) if used else "")
        if called in used:
            raise SettingsError(f"name={name!r} is that of an earlier {what} of this test.")
        used.add(called)
        return session.title_of(self._item) + (f"[{called}]" if called else "")

    def _verdict(
        self, arguments: tuple[Any, ...], name: str, expect: object, **given: Any
    ) -> tuple[expected.Verdict, str]:
        """What fails; and why no report of it could be kept, where one was asked for."""
        from nndiag import api

        meant = expected.checked(expect, "expect")
        chosen = session.settings_for(self._item).override(**given)
        title = self._title("report", name)
        report = api.check(*arguments, config=session.as_config(chosen))
        verdict = expected.judged(report, meant, chosen.fail_on)
        file, kept, lost = session.file_name(title), None, ""
        try:
            kept = session.keep(report, self._item.config, file, verdict.failed)
        except OutputError as error:
            if not verdict.failed:
                raise
            lost = f"{type(error).__name__}: {error}"  # what is wrong in the model matters more
        session.tell(self._item, title, verdict, verdict.failed, kept)
        return verdict, lost


def _known(path: Path, update: bool) -> baseline.Baseline | None:
    """The baseline in a file; None where there is none, or one that is to be written anew."""
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
