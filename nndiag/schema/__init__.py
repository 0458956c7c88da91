"""The published form of a saved report: ``report-1.json``, a JSON schema.

It follows from the dataclasses. ``python -m nndiag.schema`` writes it anew.
"""

from __future__ import annotations

import json
from importlib.resources import files

__all__ = ["FILE", "current", "published"]

FILE = "report-1.json"


def published() -> str:
    """The schema as it is shipped."""
    return (files(__name__) / FILE).read_text(encoding="utf-8")


def current() -> str:
    """The schema as the dataclasses would have it now."""
    from nndiag.render.json import schema
    from nndiag.report import Report

    return json.dumps(schema(Report), indent=2, sort_keys=True) + "\n"
