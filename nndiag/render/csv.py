"""The report as three CSV files: findings, layers and parameters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nndiag.render import tables
from nndiag.render.json import plain

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = ["render"]


def render(report: Report) -> dict[str, str]:
    """The text of each file, by name."""
    findings = report.to_frame()
    # JSON, which every tool reads; the repr of a dict is Python.
    findings["evidence"] = [json.dumps(plain(r["evidence"])) for r in tables.findings(report)]
    frames = {"findings": findings, "layers": report.layers, "parameters": report.parameters}
    return {
        f"{name}.csv": frame.map(_writable).to_csv(index=False) for name, frame in frames.items()
    }


def _writable(value: object) -> object:
    """The value without NUL, which Python 3.10's csv module does not write."""
    return value.replace("\0", "\\x00") if isinstance(value, str) else value
