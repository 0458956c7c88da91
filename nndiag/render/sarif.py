"""SARIF 2.1.0 (OASIS), for code hosts and editors that show findings beside the code."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nndiag.render import story
from nndiag.render.page import page, title_of
from nndiag.rule import Finding
from nndiag.rules import discover

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = ["render"]


def render(report: Report) -> str:
    from nndiag import __version__

    codes = list(dict.fromkeys((f.code, f.rule) for f in report.findings))
    run = {
        "tool": {
            "driver": {
                "name": "nndiag",
                "version": __version__,
                "rules": [_rule(code, name) for code, name in codes],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not report.crashed,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": f"{o.title}: {o.reason}"}}
                    for o in report.crashed
                ],
            }
        ],
        "results": [_result(f, codes.index((f.code, f.rule))) for f in report.findings],
        "columnKind": "unicodeCodePoints",
    }
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [run],
    }
    return json.dumps(log, indent=2) + "\n"


def _rule(code: str, name: str) -> dict[str, Any]:
    described: dict[str, Any] = {"id": code, "name": name}
    module = discover().get(name)
    if module is not None:
        text = page(module)
        described |= {
            "shortDescription": {"text": title_of(name)},
            "fullDescription": {"text": (module.__doc__ or "").strip()},
            "help": {"text": text},
            "defaultConfiguration": {"level": module.RULE.severity},
        }
    return described


def _result(finding: Finding, rule: int) -> dict[str, Any]:
    location: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": finding.layer, "kind": "module"}]
    }
    physical = _physical(finding.location)
    if physical is not None:
        location["physicalLocation"] = physical
    lines = [f"{finding.layer}: {finding.message}"]
    if finding.cause is not None:
        lines.append(f"Explained by {finding.root.rule} at {finding.root.layer}.")
    lines += [f"Fix: {fix.what}" for fix in finding.fixes[: story.MOST_FIXES]]
    identity = hashlib.sha256(f"{finding.code} {finding.layer}".encode(errors="replace"))
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": "\n".join(lines)},
        "locations": [location],
        # GitHub compares this key; other hosts accept any. It ignores lines, which move.
        "partialFingerprints": {"primaryLocationLineHash": identity.hexdigest()},
    }


def _physical(location: str | None) -> dict[str, Any] | None:
    place = story.in_project(location)
    if place is None:
        return None
    file, line = place
    return {
        "artifactLocation": {"uri": quote(file, errors="replace")},
        "region": {"startLine": line},
    }
