"""What a pytest session asks of nndiag: the options, over pytest's ini, over ``[tool.nndiag]``."""

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
    "settings_for",
    "settings_of",
    "tell",
    "tell_baseline",
    "title_of",
]

MARKER = "nndiag"
DIAGNOSES = pytest.StashKey[list[dict[str, Any]]]()
"""What a test's models were found to have, until its report takes that along."""
_MARKED = ("select", "ignore", "thresholds", "fail_on", "seed")
_NAMES = ("report", "format", "fail_on", "select", "ignore", "baseline")
_SETTINGS = pytest.StashKey[Settings]()
FORMATS = ("html", "json")
BASELINES = "nndiag-baselines"


@dataclass(frozen=True)
class Diagnosis:
    """What a session tells of one model that a test looked at."""

    title: str  # of the report: the test's name, or the model's
    verdict: str
    failed: bool
    leading: str = ""  # the rule of the gravest finding that failed it
    line: str = ""  # that finding
    page: str = ""  # where its report is, or its baseline
    written: bool = False  # a baseline


def settings_of(config: pytest.Config) -> Settings:
    """What is in force in this session, before any marker.

    Raises:
        NNDiagError: an option, an ini value or a setting that is wrong.
    """
    if _SETTINGS not in config.stash:
        config.stash[_SETTINGS] = _settings(config)
    return config.stash[_SETTINGS]


def _settings(config: pytest.Config) -> Settings:
    found = settings.load(here=config.rootpath)
    for given, home, named in (
        (_ini(config), config.rootpath, "pytest's ini nndiag_{}"),
        (_options(config), config.invocation_params.dir, "--nndiag-{}"),
    ):
        found = _over(found, given, home, named)
    return found


def _ini(config: pytest.Config) -> dict[str, Any]:
    given = {name: config.getini(f"nndiag_{name}") for name in _NAMES}
    return {name: value for name, value in given.items() if value}


def _options(config: pytest.Config) -> dict[str, Any]:
    given = {name: config.getoption(f"nndiag_{name}", None) for name in _NAMES}
    # An empty one is what an unset variable makes of it: nothing was asked for.
    return {name: value for name, value in given.items() if value}


def _over(found: Settings, given: Mapping[str, Any], home: Path, named: str) -> Settings:
    given = {name: _split(v) if isinstance(v, list) else v for name, v in given.items()}
    given = {name: value for name, value in given.items() if value != []}
    for name in ("select", "ignore"):
        judge.chosen(given.get(name))
    _legal(given, named)
    given |= {name: home / given[name] for name in ("report", "baseline") if name in given}
    return found.override(**given)


def _legal(given: Mapping[str, Any], named: str) -> None:
    for name, legal in (("format", settings.KEPT), ("fail_on", get_args(settings.FailOn))):
        values = given.get(name) or ()
        for value in (values,) if isinstance(values, str) else values:
            if value not in legal:
                where = named.format(name.replace("_", "-") if named.startswith("--") else name)
                raise SettingsError(
                    f"{where}: there is no {value!r}. Legal are: {', '.join(legal)}."
                )


def _split(words: Iterable[str]) -> list[str]:
    return [word for given in words for word in re.split(r"[,\s]+", given) if word]


def settings_for(item: pytest.Item) -> Settings:
    """What is in force for one test: the markers nearest to it first, over the session's.

    An option of the command line still says more than a marker.

    Raises:
        NNDiagError: a marker that is wrong.
    """
    found = settings_of(item.config)
    for mark in reversed(list(item.iter_markers(MARKER))):  # the farthest first
        if mark.args or not mark.kwargs.keys() <= set(_MARKED):
            raise SettingsError(
                f"@pytest.mark.nndiag takes {', '.join(f'{key}=' for key in _MARKED)}; "
                f"given were {', '.join([*map(repr, mark.args), *map(repr, mark.kwargs)])}."
            )
        _legal(mark.kwargs, "@pytest.mark.nndiag({}=)")
        found = found.override(**mark.kwargs)
        judge.chosen(mark.kwargs.get("select"), mark.kwargs.get("ignore"))
        judge.limits(mark.kwargs.get("thresholds"))
    chosen = {
        k: v for k, v in _options(item.config).items() if k in ("select", "ignore", "fail_on")
    }
    return _over(found, chosen, Path(), "--nndiag-{}")


def as_config(found: Settings) -> dict[str, Any]:
    """For ``check(config=)``: exactly these, whatever the working directory holds."""
    told = asdict(found)
    keys = ("select", "ignore", "seed", "thresholds", "max_batches")
    return {key.replace("_", "-"): told[key] for key in keys if told[key] is not None}


def keep(report: Report, config: pytest.Config, name: str, failed: bool) -> Path | None:
    """Save a report; where no folder is named, a failed one's page beside pytest's cache.

    Raises:
        OutputError: the folder that was asked for cannot be written to.
    """
    from nndiag.render import formats

    found = settings_of(config)
    if found.report is not None:
        made = formats.save(report, found.report, found.format or FORMATS, name)
    elif failed and (cache := getattr(config, "cache", None)) is not None:
        try:
            made = formats.save(report, Path(cache.mkdir("nndiag")), ("html",), name)
        except OSError:  # an OutputError is one, too; nobody asked for it
            return None
    else:
        return None
    pages = [path for path in made if path.suffix == ".html"] or made
    return pages[0]


def tell(
    item: pytest.Item,
    title: str,
    verdict: Verdict,
    failed: bool,
    kept: Path | None,
) -> None:
    """Tell the session's summary and JUnit of a model that a test looked at."""
    report, leading = verdict.report, next(iter(verdict.findings), None)
    line = ""
    if leading is not None:
        line = f"{leading.severity}[{leading.code}] {leading.rule} at {leading.layer}"
    for name, reason in verdict.missing.items():
        line = line or f"{name} was expected ({reason}) and is gone"
    page = "" if kept is None else str(kept)
    said = report.verdict
    told = Diagnosis(title, said, failed, leading.rule if leading and failed else "", line, page)
    item.stash.setdefault(DIAGNOSES, []).append(asdict(told))
    for key, value in (
        ("model", report.snapshot.model),
        ("verdict", said),
        ("findings", " ".join(dict.fromkeys(f.rule for f in verdict.findings))),
        ("report", page),
    ):
        if value:
            item.user_properties.append((f"nndiag.{key}", story.printable(value)))


def of_the_user(error: NNDiagError) -> BaseException | None:
    """What is behind an error, where the user's code raised it; no frame of ours is shown."""
    raised_by_them = isinstance(error, (BatchError, CaptureError, LossError))
    return error.__cause__ if raised_by_them else None


def baselines(config: pytest.Config) -> Path:
    """The folder of the baselines: beside the tests' configuration, if none is named."""
    return settings_of(config).baseline or config.rootpath / BASELINES


def tell_baseline(
    item: pytest.Item, title: str, path: Path, failed: str = "", written: bool = False
) -> None:
    """Tell the session's summary of a baseline that was met, written, or is not met."""
    told = Diagnosis(title, "", bool(failed), line=failed, page=str(path), written=written)
    item.stash.setdefault(DIAGNOSES, []).append(asdict(told))


def title_of(item: pytest.Item) -> str:
    """Its node's id, without what pytest-xdist adds for a group."""
    groups = sorted({str(m.args[0]) for m in item.iter_markers("xdist_group") if m.args})
    return item.nodeid.removesuffix(f"@{'_'.join(groups)}") if groups else item.nodeid


def command(item: pytest.Item, option: str) -> str:
    """What runs this test again, from where pytest was called."""
    path, colons, rest = title_of(item).partition("::")
    here = item.config.invocation_params.dir
    with contextlib.suppress(ValueError):  # another drive
        path = os.path.relpath(item.config.rootpath / path, here)
    return f"pytest {option} {shlex.quote(path + colons + rest)}"


_SIMPLE = re.compile(r"([\w/]+)\.py((?:::\w+)+)((?:\[\w+\])*)", re.ASCII)


def file_name(title: str) -> str:
    """A file's name for a test's: what every system takes, and another one for another title.

    (But for titles that differ in their case alone, on a system that does not tell it apart.)
    """
    plain = re.sub(r":+", ".", title.replace(".py::", "::").replace("/", "-"))
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", plain).strip("-.") or "test"
    if _SIMPLE.fullmatch(title) and len(plain) <= 120:
        return plain
    return f"{plain[:110]}-{hashlib.sha256(title.encode(errors='replace')).hexdigest()[:8]}"
