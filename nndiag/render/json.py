"""The report as JSON and back, with everything measured, so that it can be judged again.

Standard JSON has no NaN and no infinity, so these are written as strings. Longer arrays are packed
to half the size: ``{"dtype": "<f8", "deflate": "…"}`` holds the bytes, deflated (zlib), in base64.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from nndiag.errors import ReportError
from nndiag.rule import Finding

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = ["PLAIN", "SCHEMA", "plain", "read", "render", "schema"]

SCHEMA = 1
PLAIN = 16
"""Longer arrays are packed."""

_PACKED = {"dtype", "deflate"}


def render(report: Report) -> str:
    from nndiag import __version__

    tree = {
        "schema": SCHEMA,
        "nndiag": __version__,
        "verdict": report.verdict,  # for a script to show; reading does without
        "report": plain(report),
    }
    # A cause is written as its index in the list of findings, not repeated.
    for finding, cause in zip(tree["report"]["findings"], _causes(report.findings), strict=True):
        finding["cause"] = cause
    # Not pydantic's to_json: it refuses lone surrogates, which a file name may contain.
    return json.dumps(tree, separators=(",", ":"), allow_nan=False) + "\n"


def read(kind: type[Report], text: str, source: str) -> Report:
    """Read a report, of class ``kind``, from its JSON text.

    Raises:
        ReportError: ``text`` is no saved report, or one of an unknown form.
    """
    try:
        tree = json.loads(text, object_hook=_unpacked)
    except (ValueError, zlib.error, TypeError, RecursionError) as error:
        raise ReportError(
            f"{source} is not JSON, or was cut short: {error}. Save the report again with "
            "report.to_json()."
        ) from error
    if not isinstance(tree, dict) or not {"schema", "nndiag", "report"} <= tree.keys():
        raise ReportError(
            f"{source} is JSON, but not a saved report. report.to_json() writes an object with "
            "'schema', 'nndiag' and 'report'."
        )
    if tree["schema"] != SCHEMA:
        raise ReportError(
            f"{source} was written by nndiag {tree['nndiag']} in form {tree['schema']!r}; this "
            f"version reads form {SCHEMA}. Read it with nndiag {tree['nndiag']} or later."
        )
    try:
        causes = [finding.pop("cause", None) for finding in tree["report"]["findings"]]
        report = _adapter(kind).validate_python(tree["report"])
    except ValidationError as error:
        raise ReportError(f"{source} is not a valid report: {_first(error)}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ReportError(f"{source} is not a valid report: it has no list of findings.") from error
    return dataclasses.replace(report, findings=_linked(report.findings, causes, source))


def schema(kind: type[Report]) -> dict[str, Any]:
    """The JSON schema of a saved report, from the dataclasses themselves."""
    report = _adapter(kind).json_schema(mode="serialization", schema_generator=_Generator)
    kinds = report.pop("$defs")
    kinds["Finding"]["properties"]["cause"] = {
        "description": "The index, in the list of findings, of the one that explains this one.",
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
    }
    kinds["Packed"] = {
        "description": "An array's bytes, little-endian, deflated (zlib), in base64.",
        "type": "object",
        "properties": {
            "dtype": {"enum": ["<f8", "|b1"]},
            "deflate": {"type": "string", "contentEncoding": "base64"},
        },
        "required": ["dtype", "deflate"],
        "additionalProperties": False,
    }
    return {
        "$schema": _Generator.schema_dialect,
        "title": f"A report saved by nndiag, form {SCHEMA}",
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA},
            "nndiag": {"description": "The version that wrote it.", "type": "string"},
            "verdict": {"description": "The report in one sentence.", "type": "string"},
            "report": _with_packed(report),
        },
        "required": ["schema", "nndiag", "report"],
        "$defs": _with_packed(kinds),
    }


class _Generator(GenerateJsonSchema):
    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), {"enum": ["NaN", "Infinity", "-Infinity"]}]}

    def encode_default(self, dft: Any) -> Any:
        return plain(super().encode_default(dft))


def _with_packed(tree: Any) -> Any:
    """The schema, with every array of numbers also allowed in packed form."""
    if isinstance(tree, list):
        return [_with_packed(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.get("type") == "array" and _numeric(tree.get("items")):
        return {"anyOf": [tree, {"$ref": "#/$defs/Packed"}]}
    return {key: _with_packed(value) for key, value in tree.items()}


def _numeric(items: Any) -> bool:
    return isinstance(items, dict) and (
        items.get("type") == ["number", "string"] or "maximum" in items
    )


_ADAPTERS: dict[type[Report], TypeAdapter[Report]] = {}  # building one takes tens of milliseconds


def _adapter(kind: type[Report]) -> TypeAdapter[Report]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _first(error: ValidationError) -> str:
    errors = error.errors(include_url=False, include_input=False)
    where = ".".join(map(str, errors[0]["loc"]))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {errors[0]['msg']}{more}."


def plain(value: Any) -> Any:
    """The value as JSON types: a dataclass as an object, NaN as a string, an array packed."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(_array(value))
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _array(values: np.ndarray) -> list[Any] | dict[str, str]:
    flags = values.dtype == bool
    if len(values) <= PLAIN:
        listed: list[Any] = (values.astype(int) if flags else values).tolist()
        return listed
    values = values.astype("|b1" if flags else "<f8")
    packed = base64.b64encode(zlib.compress(values.tobytes(), 6)).decode()
    return {"dtype": values.dtype.str, "deflate": packed}


def _unpacked(item: dict[str, Any]) -> Any:
    if item.keys() != _PACKED or item["dtype"] not in ("<f8", "|b1"):
        return item
    return np.frombuffer(zlib.decompress(base64.b64decode(item["deflate"])), item["dtype"])


def _causes(findings: tuple[Finding, ...]) -> list[int | None]:
    place = {id(finding): index for index, finding in enumerate(findings)}

    def index(cause: Finding | None) -> int | None:
        if cause is None:
            return None
        if id(cause) in place:
            return place[id(cause)]
        if cause in findings:
            return findings.index(cause)
        raise ReportError(
            f"{cause.rule} at {cause.layer} explains a finding, but is not in the report's "
            "findings. Add it before you save the report."
        )

    return [index(finding.cause) for finding in findings]


def _linked(findings: tuple[Finding, ...], causes: list[Any], source: str) -> tuple[Finding, ...]:
    linked: dict[int, Finding] = {}

    def link(index: int, effects: tuple[int, ...] = ()) -> Finding:
        if index in effects or index not in range(len(findings)):
            raise ReportError(
                f"{source} is not a valid report: finding {effects[-1]} names {index!r} as its "
                "cause, which is not in the list of findings, or has this finding as its own cause."
            )
        if index not in linked:
            cause = causes[index]
            linked[index] = dataclasses.replace(
                findings[index], cause=None if cause is None else link(cause, (*effects, index))
            )
        return linked[index]

    return tuple(link(index) for index in range(len(findings)))
