"""The corpus: every fault and every negative, and the healthy networks they were made from."""

from __future__ import annotations

from calibration import faults_activations, faults_gradients, faults_values, faults_weights
from calibration.build import USED, Base
from calibration.cases import Fault

THEMES = (faults_activations, faults_gradients, faults_weights, faults_values)

FAULTS: list[Fault] = [case for theme in THEMES for case in theme.FAULTS]
# Sigmoids in hidden layers are a fault of their own.
BASES: list[Base] = [base for base in USED if base.act != "sigmoid"]

# Why a case that goes wrong is left as it is, by case or kind.
WHY: dict[str, str] = {
    "one-for-all": "what `expand` gives is not followed sample by sample, so how much it varies is "
    "not known",
    "dead-by-rate": "the same training also made the weights several times too large: that is said "
    "first, and the dead units are laid to it",
}

# What is done to a healthy network, and the unit of the strength.
KINDS: dict[str, str] = {
    "tanh-bias": "biases before a tanh, up and down by turns (their size)",
    "sigmoid-bias": "the same before a sigmoid",
    "tanh-units": "biases of ±30 for some units (their share)",
    "unscaled-hidden": "what a tanh layer reads is multiplied by a constant (the constant)",
    "attention-sharp": "queries and keys are multiplied by a constant (the constant)",
    "gate-bias": "biases of an LSTM's candidate, up and down by turns (their size)",
    "gate-weights": "an LSTM's input weights are multiplied by a constant (the constant)",
    "sigmoid-hidden": "two or three hidden layers of sigmoids (their number)",
    "sigmoid-shifted": "the same, with a constant taken off them (the share of their mean left)",
    "dead-bias": "biases of -100 before a ReLU (the share of units)",
    "dead-beta": "the same in a BatchNorm (the share of units)",
    "dead-sign": "weights made negative behind positive inputs (the share of units)",
    "dead-by-rate": "two epochs of Adam at far too high a rate (the rate)",
    "batch-blended": "samples are blended with the batch's mean (1 over what is left of them)",
    "one-for-all": "every sample is replaced by the first",
    "drowned-by-bias": "random biases in a layer that is linear or nearly so (their size)",
    "damped": "every hidden layer's input is divided by a constant (the constant)",
    "amplified": "the same multiplied, and taken back before the head (the constant)",
    "damped-once": "one layer's input is divided by a constant (the constant)",
    "amplified-once": "the same multiplied, and taken back before the head (the constant)",
    "sigmoid-stack": "many hidden layers of sigmoids with Xavier weights (their number)",
    "loss-tiny": "the loss is multiplied by 1e-30 and less",
    "detached": "`x.detach()` in the middle",
    "data": "`x.data` in the middle",
    "rounded": "`torch.round(x)` in the middle",
    "through-numpy": "through a NumPy array and back",
    "never-called": "a layer that forward forgets",
    "thrown-away": "a layer whose output forward forgets",
    "zero-head": "negative: a head that starts at zero",
    "zero-branches": "negative: residual branches that start at zero",
    "weights-small": "one layer's weights are divided by a constant (the constant)",
    "weights-large": "one layer's weights are multiplied by a constant (the constant)",
    "normal-0.01": "all weights drawn with a standard deviation of 0.01",
    "normal-1": "all weights drawn with a standard deviation of 1",
    "he-without-root": "He's weights with 2/n for the root of 2/n",
    "gain-doubled": "twice He's standard deviation",
    "xavier-for-relu": "Xavier's weights before ReLU (the number of layers)",
    "torch-default": "torch's default weights before ReLU (the number of layers)",
    "tanh-weights-large": "one layer's weights before a tanh multiplied (by how much)",
    "tanh-normal-1": "all weights of a tanh network drawn with a standard deviation of 1",
    "constant-all": "all weights 0.05",
    "zero-all": "all weights 0",
    "constant-layer": "one layer's weights 0.05",
    "zero-layer": "one layer's weights 0",
    "constant-lstm": "an LSTM's weights 0.1",
    "zero-lstm": "an LSTM's weights 0",
    "constant-embedding": "an embedding's vectors all alike",
    "units-in-pairs": "units are copies of others and read alike (their share)",
    "pairs-read-apart": "negative: units are copies of others but read differently",
    "frozen": "a layer or block in the middle does not train (how many layers)",
    "frozen-backbone": "negative: all but the head is frozen",
    "frozen-several": "several layers frozen, up to most of them, which is a plan (how many)",
    "nan-by-log": "the logarithm of what may be zero or negative; negatives: of 1 + ReLU",
    "nan-by-sqrt": "the root of what may be negative; negatives: of a ReLU",
    "nan-by-division": "by a difference that is zero; negatives: by 1 + |x|",
    "nan-by-exp": "an exponential that overflows; negatives: of -|x|",
    "nan-by-power": "a fractional power of what may be negative; negatives: of |x|",
    "parameter-inf": "one infinite parameter",
    "parameter-nan": "one parameter that is NaN",
    "diverged": "two epochs of gradient descent at far too high a rate",
    "input-nan": "missing values in the input (their share)",
    "gradient-nan": "a norm at zero: the slope of the root is infinite (what is added under it)",
    "float16-overflow": "values up to a bound, in float16, which ends at 65504 (the bound)",
    "running-mean": "a BatchNorm's running mean is off (in standard deviations)",
    "running-variance": "a BatchNorm's running variance is off (by a factor)",
    "other-preparation": "in evaluation mode the data are scaled otherwise (by a factor)",
}
