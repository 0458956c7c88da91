"""The published page and tables."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import sklearn
import torch

from calibration import judge
from calibration.faults import KINDS
from nndiag.render import files
from nndiag.render.markdown import escape
from nndiag.rules import discover

FOLDER = Path(__file__).parents[2] / "reports" / "calibration"
GOALS = {"recall": 0.97, "cause": 0.90, "localisation": 0.95}


def publish(
    cases: pd.DataFrame,
    rules: list[dict[str, Any]],
    thresholds: pd.DataFrame,
    healthy: pd.DataFrame,
    why: Mapping[str, str],
    folder: Path = FOLDER,
) -> None:
    """All files or none."""
    files.write(
        {
            folder / "README.md": render(cases, rules, thresholds, healthy, why),
            folder / "cases.csv": _csv(cases),
            folder / "rules.csv": _csv(pd.DataFrame(_flat(rules))),
            folder / "thresholds.csv": _csv(thresholds),
        }
    )


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def _flat(rules: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in rules:
        flat: dict[str, Any] = {k: line[k] for k in ("rule", "faults", "negatives")}
        for name in judge.SHARES:
            share: judge.Share = line[name]
            low, high = share.interval
            flat |= {name: share.value, f"{name}_low": low, f"{name}_high": high,
                     f"{name}_hits": share.hits, f"{name}_of": share.of}  # fmt: skip
        yield flat


def render(
    cases: pd.DataFrame,
    rules: list[dict[str, Any]],
    thresholds: pd.DataFrame,
    healthy: pd.DataFrame,
    why: Mapping[str, str],
) -> str:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["yes"] = lambda flag: "yes" if flag else "no"
    template = environment.from_string(Path(__file__).with_name("page.md.j2").read_text("utf-8"))
    sick = cases[cases["sick"]]
    return template.render(
        sick=len(sick),
        negatives=len(cases) - len(sick),
        kinds=cases["kind"].nunique(),
        healthy=len(healthy),
        sound=thresholds["healthy"].max(),
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        sklearn=sklearn.__version__,
        python=platform.python_version(),
        goals=[*_goals(rules[-1], cases, healthy)],
        bad=[*_bad(cases, why)],
        rules=rules,
        by_kind=[_kind(part) for _, part in cases.groupby("kind", sort=False)],
        slices=[
            {"slice": value, **_counts(part)}
            for column in ("architecture", "form", "state")
            for value, part in sick.groupby(column, sort=False)
        ],
        thresholds=[_threshold(part) for _, part in thresholds.groupby(["rule", "threshold"])],
        escape=escape,
        kinds_are=KINDS,
    )  # fmt: skip


def _goals(
    overall: Mapping[str, Any], cases: pd.DataFrame, healthy: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    for name, goal in GOALS.items():
        share: judge.Share = overall[name]
        yield {"what": name, "goal": f"≥ {goal}", "measured": share, "met": share.value >= goal}
    well = cases[~cases["sick"]]
    for what, alarmed, of in (
        ("negatives with a false alarm", (well["false_alarms"] != "").sum(), len(well)),
        ("healthy runs with an alarm", (healthy["rules"] != "").sum(), len(healthy)),
    ):
        yield {
            "what": what,
            "goal": 0,
            "measured": judge.Share(int(alarmed), of),
            "met": alarmed == 0,
        }


def _bad(cases: pd.DataFrame, why: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for row in cases.to_dict("records"):
        right = row["found"] and row["leading"] and row["localised"]
        if row["false_alarms"] or (row["sick"] and not right):
            yield {**row, "why": why.get(row["case"]) or why.get(row["kind"], "")}


def _counts(part: pd.DataFrame) -> dict[str, int]:
    return {
        "faults": len(part),
        "found": int(part["found"].sum()),
        "leading": int(part["leading"].sum()),
        "localised": int((part["found"] & part["localised"]).sum()),
    }


def _kind(part: pd.DataFrame) -> dict[str, Any]:
    sick, well = part[part["sick"]], part[~part["sick"]]
    found, passed = sick[sick["found"]], well[well["false_alarms"] == ""]
    return {
        "kind": part["kind"].iloc[0],
        "rule": part["rule"].iloc[0],
        "negatives": len(well),
        **_counts(sick),
        "weakest": _ratio((found["label"] / found["limit"]).min()),
        "strongest": _ratio((passed["label"] / passed["limit"]).max()),
    }


def _ratio(x: float) -> str:
    return f"{x:.2f}" if 0 < x < 1000 else "–"


def _threshold(part: pd.DataFrame) -> dict[str, Any]:
    rule, name = part["rule"].iloc[0], part["threshold"].iloc[0]
    threshold = discover()[rule].RULE.thresholds[name]
    points = part.to_dict("records")
    return {
        "rule": rule,
        "threshold": name,
        "value": f"{threshold.value:.4g}",
        "negatives": part["negatives"].iloc[0],
        "healthy": part["healthy"].iloc[0],
        "points": [
            {
                "factor": f"{p['factor']:.3g}",
                "recall": f"{p['recall']:.2f}",
                "negatives_alarmed": p["negatives_alarmed"],
                "healthy_alarmed": p["healthy_alarmed"],
            }
            for p in points
        ],
        "why": f"{_neighbours(part)} Where the value comes from: {threshold.source}.",
    }


def _neighbours(part: pd.DataFrame) -> str:
    """What the next values up and down would cost, from the curve."""
    points = part.reset_index(drop=True)
    here = points.index[points["factor"] == 1][0]
    said = []
    for step, word in ((-1, "below"), (1, "above")):
        changes = []
        k = here + step
        while 0 <= k < len(points):
            changes = _change(points.loc[k], points.loc[here])
            if changes:
                break
            k += step
        if changes:
            said.append(f"at {points.loc[k, 'value']:.3g} {' and '.join(changes)}")
        else:
            end = points.loc[0 if step < 0 else len(points) - 1, "value"]
            said.append(f"{word} it nothing changes as far as {end:.3g}")
    text = "; ".join(said) + "."
    return text[0].upper() + text[1:]


def _change(there: pd.Series[Any], here: pd.Series[Any]) -> list[str]:
    missed = round((here["recall"] - there["recall"]) * here["faults"]) if here["faults"] else 0
    negatives = there["negatives_alarmed"] - here["negatives_alarmed"]
    healthy = there["healthy_alarmed"] - here["healthy_alarmed"]
    said = []
    if missed > 0:
        said.append(f"{missed} of {here['faults']} faults are missed")
    if missed < 0:
        said.append(f"{-missed} more faults are found")
    if negatives > 0:
        said.append(f"{negatives} of {here['negatives']} negatives alarm")
    if healthy > 0:
        said.append(f"{healthy} of {here['healthy']} healthy networks alarm")
    return said
