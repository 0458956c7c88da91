"""Settings of a pytest session (options, then ini, then ``[tool.nndiag]``), and its diagnoses."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from nndiag import judge, settings
from nndiag.errors import (
    BatchError,
    CaptureError,
    LossError,
    NNDiagError,
    SettingsError,
)
from nndiag.render import story
from nndiag.report import Report
from nndiag.settings import Settings
from nndiag.testing.expected import Verdict

__all__ = [
    "BASELINES",
    "DIAGNOSES",
    "FORMATS",
    "MARKER",
    "Diagnosis",
    "as_config",
    "baselines",
    "command",
    "file_name",
    "keep",
    "of_the_user",
    "record",
    "record_baseline",
    "settings_for",
    "settings_of",
    "title_of",
]

MARKER = "nndiag"
DIAGNOSES = pytest.StashKey[list[dict[str, Any]]]()
"""The diagnoses of a test's models, until its report takes them."""
_MARKED = ("select", "ignore", "thresholds", "fail_on", "seed")
_NAMES = ("report", "format", "fail_on", "select", "ignore", "baseline")
_SETTINGS = pytest.StashKey[Settings]()
FORMATS = ("html", "json")
BASELINES = "nndiag-baselines"


@dataclass(frozen=True)
class Diagnosis:
    """One checked model or baseline, as pytest's summary shows it."""

    title: str  # the test's name, or the model's
    verdict: str
    failed: bool
    leading: str = ""  # the rule of the most severe finding that failed it
    line: str = ""  # that finding
    page: str = ""  # the path of its report or baseline
    written: bool = False  # whether a baseline was written


def settings_of(config: pytest.Config) -> Settings:
    """The settings of this session, without markers.

    Raises:
        NNDiagError: an option, an ini value or a setting is wrong.
    """
    if _SETTINGS not in config.stash:
        config.stash[_SETTINGS] = _settings(config)
    return config.stash[_SETTINGS]


def _settings(config: pytest.Config) -> Settings:
    current = settings.load(here=config.rootpath)
    for given, home, named in (
        (_ini(config), config.rootpath, "pytest's ini nndiag_{}"),
        (_options(config), config.invocation_params.dir, "--nndiag-{}"),
    ):
        current = _overridden(current, given, home, named)
    return current


def _ini(config: pytest.Config) -> dict[str, Any]:
    given = {name: config.getini(f"nndiag_{name}") for name in _NAMES}
    return {name: value for name, value in given.items() if value}


def _options(config: pytest.Config) -> dict[str, Any]:
    given = {name: config.getoption(f"nndiag_{name}", None) for name in _NAMES}
    # An empty option comes from an unset shell variable and counts as not given.
    return {name: value for name, value in given.items() if value}


def _overridden(current: Settings, given: Mapping[str, Any], home: Path, named: str) -> Settings:
    given = {name: _split(v) if isinstance(v, list) else v for name, v in given.items()}
    given = {name: value for name, value in given.items() if value != []}
    for name in ("select", "ignore"):
        judge.chosen(given.get(name))
    _check_words(given, named)
    given |= {name: home / given[name] for name in ("report", "baseline") if name in given}
    return current.override(**given)


def _check_words(given: Mapping[str, Any], named: str) -> None:
    for name, legal in (("format", settings.KEPT), ("fail_on", get_args(settings.FailOn))):
        values = given.get(name) or ()
        for value in (values,) if isinstance(values, str) else values:
            if value not in legal:
                where = named.format(name.replace("_", "-") if named.startswith("--") else name)
                raise SettingsError(f"{where}: {value!r} is not one of {', '.join(legal)}.")


def _split(words: Iterable[str]) -> list[str]:
    return [word for given in words for word in re.split(r"[,\s]+", given) if word]


def settings_for(item: pytest.Item) -> Settings:
    """The settings of one test: its markers (the nearest first) go before the session's settings.

    Options of the command line go before markers.

    Raises:
        NNDiagError: a marker is wrong.
    """
    current = settings_of(item.config)
    for mark in reversed(list(item.iter_markers(MARKER))):  # the farthest first
        if mark.args or not mark.kwargs.keys() <= set(_MARKED):
            raise SettingsError(
                f"@pytest.mark.nndiag takes {', '.join(f'{key}=' for key in _MARKED)}, but "
                f"got {', '.join([*map(repr, mark.args), *map(repr, mark.kwargs)])}."
            )
        _check_words(mark.kwargs, "@pytest.mark.nndiag({}=)")
        current = current.override(**mark.kwargs)
        judge.chosen(mark.kwargs.get("select"), mark.kwargs.get("ignore"))
        judge.effective_thresholds(mark.kwargs.get("thresholds"))
    chosen = {
        k: v for k, v in _options(item.config).items() if k in ("select", "ignore", "fail_on")
    }
    return _overridden(current, chosen, Path(), "--nndiag-{}")


def as_config(current: Settings) -> dict[str, Any]:
    """The argument ``config`` of a check with exactly these settings."""
    values = asdict(current)
    keys = ("select", "ignore", "seed", "thresholds", "max_batches")
    return {key.replace("_", "-"): values[key] for key in keys if values[key] is not None}


def keep(report: Report, config: pytest.Config, name: str, failed: bool) -> Path | None:
    """Save a report and return its page. Without a folder, a failed one goes into pytest's cache.

    Raises:
        OutputError: the named folder cannot be written to.
    """
    from nndiag.render import formats

    current = settings_of(config)
    if current.report is not None:
        paths = formats.save(report, current.report, current.format or FORMATS, name)
    elif failed and (cache := getattr(config, "cache", None)) is not None:
        try:
            paths = formats.save(report, Path(cache.mkdir("nndiag")), ("html",), name)
        except OSError:  # also OutputError: nobody asked for this page
            return None
    else:
        return None
    pages = [path for path in paths if path.suffix == ".html"] or paths
    return pages[0]


def record(
    item: pytest.Item,
    title: str,
    verdict: Verdict,
    failed: bool,
    kept: Path | None,
) -> None:
    """Record a checked model for the session's summary and for JUnit."""
    report, leading = verdict.report, next(iter(verdict.findings), None)
    line = ""
    if leading is not None:
        line = f"{leading.severity}[{leading.code}] {leading.rule} at {leading.layer}"
    for name, reason in verdict.missing.items():
        line = line or f"{name} was expected ({reason}) but not found"
    page = "" if kept is None else str(kept)
    sentence = report.verdict
    rule = leading.rule if leading and failed else ""
    diagnosis = Diagnosis(title, sentence, failed, rule, line, page)
    item.stash.setdefault(DIAGNOSES, []).append(asdict(diagnosis))
    for key, value in (
        ("model", report.snapshot.model),
        ("verdict", sentence),
        ("findings", " ".join(dict.fromkeys(f.rule for f in verdict.findings))),
        ("report", page),
    ):
        if value:
            item.user_properties.append((f"nndiag.{key}", story.printable(value)))


def of_the_user(error: NNDiagError) -> BaseException | None:
    """The user's own exception behind an error, if any; nndiag's frames are not shown."""
    raised_by_them = isinstance(error, (BatchError, CaptureError, LossError))
    return error.__cause__ if raised_by_them else None


def baselines(config: pytest.Config) -> Path:
    """The folder of the baselines; by default beside pytest's configuration."""
    return settings_of(config).baseline or config.rootpath / BASELINES


def record_baseline(
    item: pytest.Item, title: str, path: Path, failed: str = "", written: bool = False
) -> None:
    """Record a baseline that was met, missed or written, for the session's summary."""
    diagnosis = Diagnosis(title, "", bool(failed), line=failed, page=str(path), written=written)
    item.stash.setdefault(DIAGNOSES, []).append(asdict(diagnosis))


def title_of(item: pytest.Item) -> str:
    """The test's node id, without the suffix that pytest-xdist adds for a group."""
    groups = sorted({str(m.args[0]) for m in item.iter_markers("xdist_group") if m.args})
    return item.nodeid.removesuffix(f"@{'_'.join(groups)}") if groups else item.nodeid


def command(item: pytest.Item, option: str) -> str:
    """The command that runs this test again, from where pytest was called."""
    path, colons, rest = title_of(item).partition("::")
    here = item.config.invocation_params.dir
    with contextlib.suppress(ValueError):  # another drive
        path = os.path.relpath(item.config.rootpath / path, here)
    return f"pytest {option} {shlex.quote(path + colons + rest)}"


_SIMPLE = re.compile(r"([\w/]+)\.py((?:::\w+)+)((?:\[\w+\])*)", re.ASCII)


def file_name(title: str) -> str:
    """A file name for a test, legal on every system and different for every title.

    Titles that differ in case alone share a file where the file system ignores case.
    """
    plain = re.sub(r":+", ".", title.replace(".py::", "::").replace("/", "-"))
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", plain).strip("-.") or "test"
    if _SIMPLE.fullmatch(title) and len(plain) <= 120:
        return plain
    return f"{plain[:110]}-{hashlib.sha256(title.encode(errors='replace')).hexdigest()[:8]}"
