"""The corpus: every fault and every negative, and the healthy networks they were made from."""

from __future__ import annotations

from calibration import faults_activations, faults_gradients, faults_values, faults_weights
from calibration.build import USED, Base
from calibration.cases import Fault

THEMES = (faults_activations, faults_gradients, faults_weights, faults_values)

FAULTS: list[Fault] = [case for theme in THEMES for case in theme.FAULTS]
BASES: list[Base] = list(USED)

# Why a case that goes wrong is left as it is, by case or kind.
WHY: dict[str, str] = {}
