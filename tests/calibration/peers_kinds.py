"""What a tool's message means, and which meanings are a right answer to which fault.

Lenient on purpose: a message counts as naming the cause if somebody who reads it would look in the
right direction. Both tables are published with the results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from calibration.cases import Fault
from nndiag.rules import discover

MEANINGS = {
    "saturation": "activations where the slope is nearly zero",
    "off-centre": "activations far from zero mean",
    "dead": "units that are zero on every sample",
    "vanishing": "gradients that are there but too small",
    "exploding": "gradients that are too large",
    "no gradient": "a gradient that is None or exactly zero",
    "unchanged": "a parameter that an optimiser step does not move",
    "frozen": "weights that are not trained",
    "unused": "a module that is never called",
    "weights": "weights of the wrong scale",
    "updates": "updates too small or too large for the weights",
    "alike": "units that compute the same",
    "collapsed": "outputs that hardly depend on the input",
    "mixed": "samples of a batch that change each other's outputs",
    "not finite": "NaN or infinity",
    "shift": "inputs of a layer whose distribution moves",
    "loss": "a loss that starts too high or too low",
    "not learning": "a loss that stays, rises or does not reach its goal",
    "other": "anything else: no fault of this corpus",
}

_OTHERS = {name for name, m in discover().items() if m.RULE.code[:3] in ("ND6", "ND7", "ND8")} | {
    "unregistered-parameter", "batch-mixing", "bn-small-batch", "train-eval-gap",
}  # fmt: skip
_OTHERS -= {"input-missing"}

# Tool -> (pattern, meaning), read in order; the first that is found in a message counts.
TABLE: dict[str, list[tuple[str, str]]] = {
    "nndiag": [
        (r"^saturation:", "saturation"),
        (r"^non-zero-centered:", "off-centre"),
        (r"^dead-relu:", "dead"),
        (r"^vanishing-gradient:", "vanishing"),
        (r"^exploding-gradient:", "exploding"),
        (r"^no-gradient:", "no gradient"),
        (r"^frozen-layer:", "frozen"),
        (r"^init-scale:", "weights"),
        (r"^symmetry:", "alike"),
        (r"^signal-collapse:", "collapsed"),
        (r"^non-finite:", "not finite"),
        (r"^covariate-shift:", "shift"),
        (r"^input-missing:", "not finite"),
        # The corpus of this comparison has faults of the network only.
        (rf"^({'|'.join(sorted(_OTHERS))}):", "loss"),
    ],
    "torchtest2": [
        (r"^output_finite:", "not finite"),
        (r"^output_varies:", "collapsed"),
        (r"^input_dependency:.*no influence", "collapsed"),
        (r"^loss: the loss is (nan|-?inf)", "not finite"),
        (r"^loss:.*not connected", "no gradient"),
        (r"^initial_loss:", "loss"),
        (r"^gradient_flow:", "no gradient"),
        (r"^gradient_magnitude: NaN", "not finite"),
        (r"^gradient_magnitude: exploding", "exploding"),
        (r"^params_change:.*too small to change", "vanishing"),
        (r"^params_change:", "unchanged"),
        (r"^frozen_params:", "other"),
        (r"^overfit_batch: (the loss became|gradients became)", "not finite"),
        (r"^overfit_batch:", "not learning"),
        (r"^batch_independence:", "mixed"),
        (r"^(forward|eval_determinism|optimizer_coverage|loss):", "other"),
    ],
    "torchdiag": [
        (r"neurons dead$", "dead"),
        (r"gradient max 0\.00e\+00 — vanishing", "no gradient"),
        (r"— vanishing$", "vanishing"),
        (r"— exploding$", "exploding"),
        (r"gradient is None|None gradients", "no gradient"),
        (r"^Loss is .* not finite", "not finite"),
        (r"No parameters changed", "unchanged"),
        (r"failed:", "other"),
    ],
    "torchlens": [
        (r"^(find_nan|bisect_nan|bisect_nan_backward|dtype_nonfinite):", "not finite"),
        (r"^gradient_flow_audit:.*non-finite", "not finite"),
        (r"^gradient_flow_audit:.* dead$", "no gradient"),
        (r"^gradient_flow_audit:.* vanishing$", "vanishing"),
        (r"^gradient_flow_audit:.* exploding$", "exploding"),
        (r"^dtype_near_max:", "exploding"),
        (r"^dtype_subnormal:", "vanishing"),
        (r"^dtype_downcast:", "other"),
    ],
    "torcheck": [
        (r"should change$", "unchanged"),
        (r"contains (NaN|inf)$", "not finite"),
    ],
    "torch-audit": [
        (r"^TA100:", "not finite"),
        (r"^TA102:", "exploding"),
        (r"^TA103:", "no gradient"),
        (r"^TA104:", "no gradient"),
        (r"^TA105:", "dead"),
        (r"^TA405:", "dead"),
        (r"^TA500:", "unused"),
        (r"^TA", "other"),
    ],
    "neural-observatory": [
        (r"NaN|Inf\b", "not finite"),
        (r"^dead_neurons:", "dead"),
        (r"^gradient_health: Vanishing gradients -- mean norm 0\.00e\+00", "no gradient"),
        (r"^gradient_health: (Vanishing|Gradient norm collapsed)", "vanishing"),
        (r"^gradient_health: Exploding", "exploding"),
        (r"^activation_statistics: High saturation", "saturation"),
        (r"^activation_statistics: High sparsity", "dead"),
        (r"^parameter_health: (High parameter drift|Large step)", "updates"),
        (r"^parameter_health: Parameter norm near zero", "weights"),
        (r"^anomaly_detection:.*spike", "other"),
        (r"^(embedding_drift|attention_health|neural_collapse):", "other"),
    ],
    "torchmortem": [
        (r"^Dead units", "dead"),
        (r"^Vanishing gradients", "vanishing"),
        (r"^Gradient stalling", "no gradient"),
        (r"^Exploding gradients", "exploding"),
        (r"^Activation saturation", "saturation"),
        (r"^Update ratio", "updates"),
        (r"^Rank collapse", "collapsed"),
        (r"^(Weight norm explosion|Inter-layer weight norm)", "weights"),
        (r"^Stagnant weight norms", "unchanged"),
        (r"^(Training divergence|Loss plateau)", "not learning"),
        (r"^High gradient noise", "other"),
    ],
}

SMALL = frozenset({"weights", "vanishing", "no gradient", "unchanged", "updates", "collapsed"})
LARGE = frozenset({"weights", "exploding", "saturation", "dead", "updates", "loss"})

# Our rule -> what counts as naming a fault of that rule. A loss that does not fall is an alarm
# and a right one, but names no cause.
ACCEPTED: dict[str, frozenset[str]] = {
    "saturation": frozenset({"saturation", "vanishing", "no gradient"}),
    "non-zero-centered": frozenset({"off-centre", "shift"}),
    "dead-relu": frozenset({"dead", "no gradient", "unchanged"}),
    "vanishing-gradient": frozenset(
        {"vanishing", "no gradient", "unchanged", "saturation", "updates", "weights"}
    ),
    "exploding-gradient": frozenset({"exploding", "weights", "updates"}),
    "no-gradient": frozenset({"no gradient", "unchanged", "unused", "frozen"}),
    "frozen-layer": frozenset({"frozen", "unchanged", "no gradient"}),
    "init-scale": SMALL | LARGE,
    "symmetry": frozenset({"alike", "collapsed", "no gradient", "unchanged", "dead", "weights"}),
    "signal-collapse": frozenset({"collapsed", "dead", "alike", "vanishing"}),
    "non-finite": frozenset({"not finite"}),
    "input-missing": frozenset({"not finite"}),
    "covariate-shift": frozenset({"shift", "loss", "saturation", "off-centre"}),
}

# Kinds of which more is known, or more would be right, than the rule says.
ACCEPTED_OF: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("weights-small", "normal-0.01", "he-without-root", "xavier-for-relu", "torch-default"),
        SMALL,
    ),
    **dict.fromkeys(
        ("weights-large", "normal-1", "gain-doubled", "tanh-weights-large", "tanh-normal-1"), LARGE
    ),
    "loss-tiny": ACCEPTED["vanishing-gradient"] | {"loss"},
    "batch-blended": ACCEPTED["signal-collapse"] | {"mixed"},
    "one-for-all": ACCEPTED["signal-collapse"] | {"mixed"},
}


def meaning(tool: str, message: str) -> str:
    """What the message says, in our words. A message nobody has thought of is an error."""
    for pattern, meant in TABLE[tool.partition(" ")[0]]:
        if re.search(pattern, message):
            return meant
    raise LookupError(f"no meaning is noted for what {tool} says: {message}")


def names(fault: Fault, meant: Iterable[str], strict: bool = False) -> bool:
    """Whether one of these meanings is a right answer; if strict, only that of our own rule is."""
    own = frozenset({meaning("nndiag", f"{fault.rule}:")})
    right = own if strict else ACCEPTED_OF.get(fault.kind, ACCEPTED[fault.rule])
    return not right.isdisjoint(meant)


def claims(tool: str, fault: Fault) -> bool:
    """Whether the tool has any message at all that would be a right answer to this fault."""
    return names(fault, (meant for _, meant in TABLE[tool.partition(" ")[0]]))


def right_place(fault: Fault, places: Iterable[str]) -> bool:
    """A right layer is among the places: itself, a parameter of it, or the module around it."""
    return any(_close(place, right) for place in places for right in fault.where)


def _close(place: str, right: str) -> bool:
    shorter, longer = sorted((place, right), key=len)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}/"))
