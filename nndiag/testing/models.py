"""One test for each model and rule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nndiag import judge, rules, settings
from nndiag.errors import FindingsError, ModelError, NNDiagError, SettingsError, did_you_mean
from nndiag.report import Report
from nndiag.settings import Settings
from nndiag.testing import expected as known
from nndiag.testing import session

__all__ = ["ModelCheck", "parametrize_with_checks"]


def parametrize_with_checks(
    models: Mapping[str, Any],
    batch: Any = None,
    target: Any = None,
    loss_fn: Callable[..., Any] | None = None,
    *,
    expected: Mapping[str, Any] | None = None,
    select: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
    seed: int | None = None,
) -> pytest.MarkDecorator:
    """A test for each model and rule, over ``def test_models(check): check()``.

    ``test_models[unet-dead-relu]`` fails if that rule finds something in that model. All tests of a
    model share one check. A finding that another rule's finding explains fails the test of that
    other rule; its own test is an xfail that names the cause.

    Args:
        models: models by name, or functions without arguments that build them. Such a function
            runs with all randomness at ``seed``, which is restored afterwards. It may return
            ``(model, batch)`` or more of the arguments of ``nndiag.check``, if batches differ.
        batch, target, loss_fn: as :func:`nndiag.check` takes them; ``batch`` may be a function
            without arguments that makes it.
        expected: known, intended findings, with the reason, for all models,
            ``{"dead-relu": "sparse gate by design"}``, or for one,
            ``{"unet": {"dead-relu": "..."}}``. Their tests are strict xfails at any severity:
            once the finding is gone, its test fails until it is removed here.
        select, ignore: which rules have tests.
        thresholds, seed: as :func:`nndiag.check` takes them; they go before markers and settings.

    Raises:
        SettingsError, UnknownRuleError: an unknown rule, model or threshold; no model; no reason.
    """
    if not isinstance(models, Mapping) or not models:
        raise SettingsError(
            f'models is {models!r}. Write {{"unet": build_unet}}: a name for each model, and the '
            "model or a function that builds it."
        )
    judge.effective_thresholds(thresholds)
    chosen = judge.chosen(select, ignore)
    reasons = _reasons(expected, models)
    cases = []
    for name, model in models.items():
        subject = _Subject(name, model, (batch, target, loss_fn), thresholds, seed, chosen)
        for rule_name in chosen:
            marks = []
            reason = reasons[name].get(rule_name, "")
            if reason:
                marks.append(pytest.mark.xfail(reason=reason, strict=True, raises=FindingsError))
            check = ModelCheck(subject, rule_name, reason)
            cases.append(pytest.param(check, id=f"{name}-{rule_name}", marks=marks))
    return pytest.mark.parametrize("check", cases)


def _reasons(expected: object, models: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The reasons of the expected findings, by model and rule."""
    reasons: dict[str, dict[str, str]] = {name: {} for name in models}
    if expected is None:
        return reasons
    for key, value in known.mapping(expected, "expected").items():
        if isinstance(value, Mapping):
            if key not in models:
                raise SettingsError(
                    f"expected[{key!r}]: there is no such model.{did_you_mean(key, models)} "
                    f"Choose one of: {', '.join(models)}."
                )
            names, intended = [key], known.checked(value, f"expected[{key!r}]")
        else:
            names, intended = list(models), known.checked({key: value}, "expected")
        for word, reason in intended.items():
            for name in names:
                reasons[name] |= dict.fromkeys(judge.chosen([word]), reason)
    return reasons


class _Subject:
    """A model, checked when its first test runs."""

    def __init__(
        self,
        name: str,
        model: Any,
        arguments: tuple[Any, ...],
        thresholds: Mapping[str, Any] | None,
        seed: int | None,
        rules: Collection[str],
    ) -> None:
        self.name, self.rules, self.thresholds = name, rules, thresholds or {}
        self.pages: dict[Report, Path] = {}  # the path of each saved report
        self._model, self._arguments, self._seed = model, arguments, seed
        # By seed and max_batches: the report of the one check, or why it failed.
        self._reports: dict[tuple[int, int], Report] = {}
        self._failures: dict[tuple[int, int], tuple[str, str]] = {}
        self._judged: dict[str, Report] = {}

    def report(self, current: Settings, test: str) -> Report:
        """The report of the model, judged with the settings of a test.

        All rules judge it: a rule that the test leaves out may give the cause of its finding.
        """
        __tracebackhide__ = True
        seed = current.seed if self._seed is None else self._seed
        run = (seed, current.max_batches)
        if run in self._failures:
            where, what = self._failures[run]
            pytest.fail(f"{self.name} could not be checked, see {where}: {what}", pytrace=False)
        if run not in self._reports:
            try:
                self._reports[run] = self._checked(*run)
            except Exception as error:
                self._failures[run] = (test, f"{type(error).__name__}: {error}")
                raise
        thresholds = {**current.thresholds, **settings.flatten(self.thresholds)}
        key = repr((run, current.ignore, sorted(thresholds.items())))
        if key not in self._judged:
            report = self._reports[run]
            self._judged[key] = report.judge(ignore=current.ignore, thresholds=thresholds)
        return self._judged[key]

    def _checked(self, seed: int, max_batches: int) -> Report:
        __tracebackhide__ = True  # an error while building is the user's
        from torch import nn

        from nndiag import api
        from nndiag.capture.untouched import seeded

        model, arguments = self._model, self._arguments
        with seeded(seed):
            if not isinstance(model, nn.Module) and callable(model):
                model = model()
            if isinstance(model, tuple) and model:
                if arguments[0] is not None:
                    raise SettingsError(
                        f"models[{self.name!r}] returns a batch, and batch= gives another. "
                        "Keep one."
                    )
                model, *own = model
                arguments = (*own, *arguments[len(own) :])
            elif callable(arguments[0]):
                arguments = (arguments[0](), *arguments[1:])
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"models[{self.name!r}] gives {type(model).__name__}. Give a torch.nn.Module, a "
                "function without arguments that returns one, or one that returns (model, batch)."
            )
        return api.check(model, *arguments, config={"max-batches": max_batches}, seed=seed)


class ModelCheck:
    """``check()``: fails the test if a rule finds something in a model."""

    item: pytest.Item | None = None  # the test; None if the plugin is switched off

    def __init__(self, subject: _Subject, rule_name: str, reason: str) -> None:
        self._subject, self.rule, self._reason = subject, rule_name, reason
        self.model = subject.name

    def __repr__(self) -> str:
        return f"<check of {self.rule} in {self._subject.name}>"

    def __call__(self) -> Report:
        """The report of the model, if this rule finds nothing that fails the test.

        Raises:
            FindingsError: with a report of the findings that fail it.
        """
        __tracebackhide__ = True
        try:
            return self._check()
        except NNDiagError as error:
            raise error.with_traceback(None) from session.of_the_user(error)

    def _check(self) -> Report:
        __tracebackhide__ = True
        item, subject = self.item, self._subject
        current = settings.load() if item is None else session.settings_for(item)
        tested = judge.chosen(current.select, current.ignore).keys() & subject.rules
        if self.rule not in tested:
            # Tests are created at collection; a marker's rules are known only when the test runs.
            pytest.skip("not selected by option, marker or settings")
        report = subject.report(current, "its first test" if item is None else item.nodeid)
        [outcome] = [o for o in report.outcomes if o.rule == self.rule]
        if outcome.status == "skipped":
            # Not a pass: the rule could not run, and says what it needs.
            pytest.skip(outcome.reason)
        verdict = self._verdict(report, current, tested)
        if item is not None:
            self._record(item, verdict, outcome.status == "crashed")
        if outcome.status == "crashed":
            home = rules.discover()[self.rule].__name__
            whose = "nndiag" if home.startswith("nndiag.") else home
            pytest.fail(
                f"{self.rule} crashed: {outcome.reason}. This is an error in {whose}, not in your "
                "model. Please report it.",
                pytrace=False,
            )
        verdict.raise_if_failed()
        if causes := [f.root for f in report.findings if f.rule == self.rule and f.cause]:
            named = dict.fromkeys(f"{f.rule} at {f.layer}" for f in causes)
            if any(f.severity != "note" for f in causes):
                # Not a pass: the finding is there. Not a failure: its cause fails its own test.
                pytest.xfail(f"explained by {next(iter(named))}")
        return report

    def _verdict(self, report: Report, current: Settings, tested: Collection[str]) -> known.Verdict:
        if self._reason:  # expected, at any severity
            expected = tuple(f for f in report.findings if f.rule == self.rule)
            return known.Verdict(report, expected, (), {})
        if current.fail_on == "never":
            return known.Verdict(report, (), (), {})
        severe = report.at_least(current.fail_on)
        # A finding explained by another tested rule fails that rule's test only.
        others = {f.rule for f in severe} & set(tested) - {self.rule}
        mine = tuple(f for f in severe if f.rule == self.rule and f.root.rule not in others)
        return known.Verdict(report, mine, (), {})

    def _record(self, item: pytest.Item, verdict: known.Verdict, crashed: bool) -> None:
        subject, report = self._subject, verdict.report
        head, bracket, given = session.title_of(item).rpartition("[")
        title = f"{head}{bracket}{given.replace(f'{subject.name}-{self.rule}', subject.name, 1)}"
        if self._reason and not verdict.failed:
            verdict = replace(verdict, missing={self.rule: self._reason})
        failed = crashed or (bool(verdict.missing) if self._reason else verdict.failed)
        if report not in subject.pages:
            kept = session.keep(report, item.config, session.file_name(title), failed)
            if kept is not None:
                subject.pages[report] = kept
        session.record(item, title, verdict, failed, subject.pages.get(report))
