"""The labels as they were when the corpus was made, beside the cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from calibration.cases import Fault
from nndiag.render import files

LABELS = Path(__file__).with_name("labels.csv")


def write(cases: Sequence[Fault], measured: Mapping[str, float], path: Path = LABELS) -> None:
    table = pd.DataFrame(
        {"case": c.name, "sick": c.sick, "limit": c.limit, "label": measured[c.name]} for c in cases
    )
    files.write({path: table.to_csv(index=False, float_format="%.6g", lineterminator="\n")})


def read(path: Path = LABELS) -> dict[str, float]:
    """Each case's label, by name."""
    table = pd.read_csv(path)
    return dict(zip(table["case"], table["label"], strict=True))
