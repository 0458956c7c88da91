"""The corpus: every fault and every negative, and the healthy networks they were made from."""

from __future__ import annotations

from calibration import faults_activations, faults_gradients, faults_values, faults_weights
from calibration.build import USED, Base
from calibration.cases import Fault

THEMES = (faults_activations, faults_gradients, faults_weights, faults_values)

FAULTS: list[Fault] = [case for theme in THEMES for case in theme.FAULTS]
BASES: list[Base] = list(USED)

# Why a case that goes wrong is left as it is, by case or kind.
WHY: dict[str, str] = {
    "one-for-all": "what `expand` gives is not followed sample by sample, so how much it varies is "
    "not known",
    "attention-sharp": "attention inside `nn.MultiheadAttention` is recomputed for a sample of "
    "rows, all from one head",
    "dead-by-rate": "the same training also made the weights several times too large: that is said "
    "first, and the dead units are laid to it",
}
