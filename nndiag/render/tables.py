"""The rows behind ``report.layers``, ``report.parameters`` and ``report.to_frame()``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nndiag.experiment import LossCall
from nndiag.rule import Finding
from nndiag.stats import Layer, Parameter, Snapshot

if TYPE_CHECKING:
    import pandas as pd

    from nndiag.report import Report

__all__ = [
    "ABOUT",
    "COUNTS",
    "FINDINGS",
    "LAYERS",
    "PARAMETERS",
    "Row",
    "findings",
    "frame",
    "layers",
    "parameters",
]

Row = dict[str, Any]

LAYERS = (
    "layer", "kind", "op", "shape", "units", "samples", "mean", "std", "min", "max", "spread",
    "zero_fraction", "saturated_fraction", "dead_units", "nonfinite", "grad_rms",
    "grad_nonfinite", "location",
)  # fmt: skip
PARAMETERS = (
    "parameter", "shape", "dtype", "trainable", "mean", "std", "min", "max", "zero_fraction",
    "nonfinite", "grad_rms", "grad_zero_fraction", "grad_nonfinite", "duplicate_units", "used",
)  # fmt: skip
FINDINGS = (
    "rule", "code", "severity", "layer", "message", "evidence", "threshold", "location", "cause",
)  # fmt: skip

# The meaning of each column. Numbers are of one run, over all values of a tensor.
ABOUT: dict[str, str] = {
    "layer": "Name of the module, or of the call in a module (/relu, encoder.3/relu#2)",
    "kind": "Class of the module; 'function' for a call",
    "op": "Name of the operation that it computes",
    "shape": "Shape of the output (on the first batch) or of the parameter",
    "units": "Number of units (channels, features) of the output, where known",
    "samples": "Number of samples seen",
    "mean": "Mean of all finite values",
    "std": "Standard deviation of all finite values (biased)",
    "min": "Smallest finite value",
    "max": "Largest finite value",
    "spread": "How much values differ between samples: rms over the sampled positions",
    "zero_fraction": "Share of values that are exactly zero, 0 to 1",
    "saturated_fraction": "Share of inputs where a saturating activation is flat, 0 to 1",
    "dead_units": "Number of a rectifier's units that are zero on all samples",
    "nonfinite": "Number of values that are NaN or infinite",
    "grad_rms": "Root mean square of the gradient of the loss",
    "grad_nonfinite": "Number of values of the gradient that are NaN or infinite",
    "grad_zero_fraction": "Share of the gradient's values that are exactly zero, 0 to 1",
    "location": "file:line of the call in the user's code",
    "parameter": "Name of the parameter, as in named_parameters()",
    "dtype": "Data type of the parameter",
    "trainable": "Whether it requires a gradient",
    "duplicate_units": "Number of rows (units) with the same weights as another row",
    "used": "Whether forward used it",
    "rule": "Name of the rule",
    "code": "Code of the rule",
    "severity": "error, warning or note",
    "message": "The finding in one sentence",
    "evidence": "The numbers behind the finding, by name (in CSV as JSON)",
    "threshold": "The threshold of the finding's main number",
    "cause": "The finding that explains this one: rule at layer",
}

# Whole numbers that may be missing: plain pandas would turn them into floats.
COUNTS = ("units", "samples", "dead_units", "nonfinite", "grad_nonfinite", "duplicate_units")


def layers(snapshot: Snapshot) -> list[Row]:
    return [*map(_layer, snapshot.layers), *map(_loss_call, snapshot.experiment.calls)]


def parameters(snapshot: Snapshot) -> list[Row]:
    return [_parameter(parameter) for parameter in snapshot.parameters]


def findings(report: Report) -> list[Row]:
    return [_finding(finding) for finding in report.findings]


def frame(rows: list[Row], columns: tuple[str, ...]) -> pd.DataFrame:
    """A table with the same columns and types for any number of rows."""
    import pandas as pd

    table = pd.DataFrame({c: pd.Series([row[c] for row in rows], dtype=_dtype(c)) for c in columns})
    return table


def _dtype(column: str) -> str:
    if column in COUNTS:
        return "Int64"
    if column in ("trainable", "used"):
        return "bool"
    text = ("layer", "parameter", "kind", "op", "shape", "dtype", "location", "rule", "code")
    return "object" if column in (*text, "severity", "message", "evidence", "cause") else "float64"


def _layer(layer: Layer) -> Row:
    output, grad, flat = layer.output, layer.grad, layer.flat
    family = _family(layer)
    dead = flat.closed if flat is not None and flat.open is not None else None
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "op": layer.op,
        "shape": str(tuple(layer.shape)),
        "units": len(output.units) if output.units is not None else None,
        "samples": output.samples,
        "mean": output.mean,
        "std": output.std,
        "min": output.min,
        "max": output.max,
        "spread": output.spread,
        "zero_fraction": output.zero_fraction,
        "saturated_fraction": flat.share if flat and family == "saturating" else math.nan,
        "dead_units": dead if family == "rectifier" else None,
        "nonfinite": output.nonfinite,
        "grad_rms": grad.rms if grad is not None else math.nan,
        "grad_nonfinite": grad.nonfinite if grad is not None else None,
        "location": layer.location,
    }


def _loss_call(call: LossCall) -> Row:
    """A call in the loss: its values are not measured as a layer's are."""
    row: Row = dict.fromkeys(LAYERS, math.nan) | dict.fromkeys(COUNTS)
    return {name: row[name] for name in LAYERS} | {
        "layer": call.name,
        "kind": "function",
        "op": call.op,
        "shape": str(tuple(call.shape)),
        "mean": call.value,
        "location": call.location,
    }


def _family(layer: Layer) -> str:
    from nndiag import activations

    known = activations.named(layer.op, **layer.options) if layer.flat is not None else None
    return known.family if known is not None else ""


def _parameter(parameter: Parameter) -> Row:
    value, grad = parameter.value, parameter.grad
    return {
        "parameter": parameter.name,
        "shape": str(tuple(parameter.shape)),
        "dtype": parameter.dtype,
        "trainable": parameter.trainable,
        "mean": value.mean,
        "std": value.std,
        "min": value.min,
        "max": value.max,
        "zero_fraction": value.zero_fraction,
        "nonfinite": value.nonfinite,
        "grad_rms": grad.rms if grad is not None else math.nan,
        "grad_zero_fraction": grad.zero_fraction if grad is not None else math.nan,
        "grad_nonfinite": grad.nonfinite if grad is not None else None,
        "duplicate_units": parameter.duplicate_units,
        "used": parameter.used,
    }


def _finding(finding: Finding) -> Row:
    cause = finding.cause
    return {
        "rule": finding.rule,
        "code": finding.code,
        "severity": finding.severity,
        "layer": finding.layer,
        "message": finding.message,
        "evidence": {name: float(value) for name, value in finding.evidence.items()},
        "threshold": math.nan if finding.threshold is None else finding.threshold,
        "location": finding.location,
        "cause": None if cause is None else f"{cause.rule} at {cause.layer}",
    }
