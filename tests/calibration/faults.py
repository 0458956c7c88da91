"""The corpus: every fault and every negative, and the healthy networks they were made from."""

from __future__ import annotations

from calibration import faults_activations
from calibration.build import Base
from calibration.cases import Fault

THEMES = (faults_activations,)

FAULTS: list[Fault] = [case for theme in THEMES for case in theme.FAULTS]
BASES: list[Base] = list(dict.fromkeys(base for theme in THEMES for base in theme.BASES))

# Why a case that goes wrong is left as it is, by case or kind.
WHY: dict[str, str] = {}
