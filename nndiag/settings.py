"""Settings: the command line goes before ``[tool.nndiag]`` in pyproject.toml, then defaults."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from nndiag.errors import SettingsError, UnknownRuleError, did_you_mean
from nndiag.judge import chosen, effective_thresholds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["KEPT", "Config", "FailOn", "KeptAs", "Settings", "flatten", "load", "nearest"]

FailOn = Literal["error", "warning", "never"]
KeptAs = Literal["json", "html", "csv", "markdown", "sarif", "junit"]
KEPT: tuple[KeptAs, ...] = get_args(KeptAs)
"""The formats that are saved as files; the others are for logs."""
Config = Mapping[str, Any] | str | os.PathLike[str] | bool | None


@dataclass(frozen=True)
class Settings:
    """The settings of a check, with their defaults."""

    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    fail_on: FailOn = "warning"
    seed: int = 0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    max_batches: int = 64
    # For the pytest plugin: the folder and formats of reports, and the folder of baselines.
    report: Path | None = None
    format: tuple[str, ...] | None = None
    baseline: Path | None = None

    def override(
        self,
        *,
        select: Iterable[str] | str | None = None,
        ignore: Iterable[str] | str | None = None,
        fail_on: FailOn | None = None,
        seed: int | None = None,
        thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
        max_batches: int | None = None,
        report: Path | None = None,
        format: Iterable[str] | str | None = None,
        baseline: Path | None = None,
    ) -> Settings:
        """These settings, with the given ones in their place; None means "not given".

        Thresholds are merged key by key.
        """
        for name, words in (("select", select), ("ignore", ignore), ("format", format)):
            _require_words(name, words)
        if thresholds is not None and not isinstance(thresholds, Mapping):
            raise SettingsError(
                f'thresholds = {thresholds!r}: give a mapping, such as {{"dead-relu.share": 0.5}}.'
            )
        given: dict[str, Any] = {
            "select": None if select is None else _as_tuple(select),
            "ignore": None if ignore is None else _as_tuple(ignore),
            "fail_on": fail_on,
            "seed": seed,
            "max_batches": max_batches,
            "report": report,
            "format": None if format is None else _as_tuple(format),
            "baseline": baseline,
        }
        return dataclasses.replace(
            self,
            **{name: value for name, value in given.items() if value is not None},
            thresholds={**self.thresholds, **flatten(thresholds or {})},
        )


@dataclass(frozen=True)
class _Key:
    type: Any
    legal: str


_RULES = 'a list of rule names, codes or beginnings of codes, such as ["ND2", "dead-relu"]'
_KEYS = {
    "select": _Key(str | list[str], _RULES),
    "ignore": _Key(str | list[str], _RULES),
    "fail-on": _Key(FailOn, '"error", "warning" or "never"'),
    # A check also seeds NumPy's global generator, which takes no larger seed.
    "seed": _Key(Annotated[int, Field(ge=0, lt=2**32)], "a whole number from 0 to 4294967295"),
    "thresholds": _Key(
        dict[str, float | dict[str, float]],
        'a table of numbers, such as {"dead-relu.share" = 0.5}',
    ),
    "max-batches": _Key(Annotated[int, Field(ge=1)], "a whole number, 1 or more"),
    "report": _Key(str, "the path of a folder"),
    "format": _Key(KeptAs | list[KeptAs], f"a list of formats; legal are {', '.join(KEPT)}"),
    "baseline": _Key(str, "the path of a folder"),
}
_PATHS = ("report", "baseline")


def load(config: Config = None, here: Path | None = None) -> Settings:
    """Settings from a mapping or a TOML file; None reads the nearest pyproject.toml.

    False gives the defaults. ``here``: where the search for pyproject.toml starts, if not in the
    working directory.

    Raises:
        SettingsError: an unknown key, a wrong value, or a file that cannot be read.
    """
    if config is False:
        return Settings()
    if isinstance(config, Mapping):
        return _settings(config, "config", Path.cwd())
    if config is not None and not isinstance(config, (str, os.PathLike)):
        raise SettingsError(
            f"config is {type(config).__name__}. Pass a mapping of settings, the path of a "
            "TOML file with a [tool.nndiag] table, None for the nearest pyproject.toml, or False "
            "for no file."
        )
    path = nearest(here) if config is None else Path(config)
    if path is None:
        return Settings()
    table = _read(path).get("tool", {})
    table = table.get("nndiag") if isinstance(table, dict) else None
    if table is None:
        if config is None:
            return Settings()
        raise SettingsError(f"{path} has no [tool.nndiag] table. Write the settings in one.")
    if not isinstance(table, dict):
        raise SettingsError(f"{path} tool.nndiag = {table!r}: write a table, [tool.nndiag].")
    return _settings(table, f"{path} [tool.nndiag]", path.parent)


def nearest(here: Path | None = None) -> Path | None:
    """The first pyproject.toml at or above a folder, the working directory if none is given."""
    here = here or Path.cwd()
    return next((p for d in (here, *here.parents) if (p := d / "pyproject.toml").is_file()), None)


def flatten(thresholds: Mapping[str, float | Mapping[str, float]]) -> dict[str, float]:
    """``{"dead-relu": {"share": 0.5}}`` as ``{"dead-relu.share": 0.5}``."""
    flat: dict[str, float] = {}
    for key, value in thresholds.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": number for inner, number in value.items()}
        else:
            flat[key] = value
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # broken TOML or broken UTF-8
        raise SettingsError(f"{path} is not valid TOML: {error}.") from error


def _settings(table: Mapping[str, Any], where: str, home: Path) -> Settings:
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            raise SettingsError(
                f"{where} has no setting {key!r}.{did_you_mean(str(key), _KEYS)} "
                f"Choose one of: {', '.join(_KEYS)}."
            )
        try:
            given[key.replace("-", "_")] = TypeAdapter(_KEYS[key].type).validate_python(
                list(value) if isinstance(value, tuple) else value, strict=True
            )
        except ValidationError as error:
            raise SettingsError(f"{where} {key} = {value!r}: write {_KEYS[key].legal}.") from error
    given |= {key: home / given[key] for key in _PATHS if key in given}
    settings = Settings().override(**given)
    # Checked here, where the file and the key are known, and not when the rules are chosen.
    for key, validate in (
        ("select", lambda: chosen(settings.select)),
        ("ignore", lambda: chosen(None, settings.ignore)),
        ("thresholds", lambda: effective_thresholds(settings.thresholds)),
    ):
        try:
            validate()
        except (UnknownRuleError, SettingsError) as error:
            raise SettingsError(f"{where} {key}: {error}") from error
    return settings


def _require_words(name: str, words: object) -> None:
    if words is None or isinstance(words, str):
        return
    if not isinstance(words, Iterable):
        raise SettingsError(f"{name} = {words!r}: give a word or a list of words.")


def _as_tuple(words: Iterable[str] | str) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)
