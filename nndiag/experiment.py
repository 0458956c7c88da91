"""Plain numbers about what surrounds a network: its loss, targets, data and optimiser. No torch.

``Snapshot.experiment`` holds them, for rules that judge more than the layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nndiag.columns import Columns

__all__ = [
    "INPUT",
    "OUTPUT",
    "TARGET",
    "Baseline",
    "Experiment",
    "Fresh",
    "Group",
    "LossCall",
    "Made",
    "Mixing",
    "Operand",
    "Optimizer",
    "TrainEvalGap",
    "Unregistered",
    "Update",
    "Values",
]

INPUT, TARGET, OUTPUT = "input", "target", "output"
"""What an operand depends on. A value that depends on the model's output is no "input" any more."""


@dataclass(frozen=True)
class Made:
    """What is known of a tensor's values: which activation made them, and their bounds.

    ``op`` and ``layer`` name the activation, at its row in the report or its call in the loss.
    ``low`` and ``high`` bound the values as they are now, after what came behind it. ``after`` are
    the operations that changed them since, in order: "log", "mul", "gather", …. ``over`` says for a
    softmax what its axis runs over: "samples", "units", "one" (an axis of a single element), or ""
    where that is not known.
    """

    op: str
    layer: str
    low: float = -math.inf
    high: float = math.inf
    over: str = ""
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Values:
    """Numbers about all values of a small tensor, such as a target.

    Moments, extremes and the median are over finite values. ``whole``: every value is a whole
    number. ``size``: the mean size of a value; ``deviation``: its mean distance from the median.
    ``distinct``: how many different values there are, at most ``MOST_DISTINCT`` + 1.
    ``counts``: how often each occurs, where they are whole numbers and not more than that.

    The rest is about rows along the class axis, of a tensor with more than one value a row.
    ``summing``: share of rows that are probabilities (no value below zero, sum 1 to within 1e-4).
    ``normalized``: share of rows that are log-probabilities (logsumexp 0 to within 1e-3).
    ``several``: share of rows with more than one value above 0.5. ``column_means``,
    ``column_variances``: of each column, over samples and positions.
    """

    shape: tuple[int, ...]
    dtype: str
    count: int
    nonfinite: int
    mean: float = math.nan
    std: float = math.nan
    min: float = math.nan
    max: float = math.nan
    median: float = math.nan
    whole: bool = False
    distinct: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    summing: float = math.nan
    normalized: float = math.nan
    several: float = math.nan
    column_means: tuple[float, ...] = ()
    column_variances: tuple[float, ...] = ()
    size: float = math.nan
    deviation: float = math.nan

    MOST_DISTINCT = 1000

    @property
    def rms(self) -> float:
        return math.hypot(self.mean, self.std)


@dataclass(frozen=True)
class Operand:
    """A tensor that a call in the loss reads.

    ``sources``: what it depends on, of INPUT, TARGET and OUTPUT; empty for a constant and for a
    parameter. ``direct``: it is a whole output or target, at most viewed or cast. ``batch``: the
    axis that runs over samples, where that is known. ``values`` are known for operands of torch's
    own losses.
    """

    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...] = ()
    direct: bool = False
    batch: int | None = None
    made: Made | None = None
    values: Values | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class LossCall:
    """One call in the computation of the loss.

    Recorded are torch's losses, activations, and elementwise calls whose result is larger than each
    of their operands. ``name`` is "loss/cross_entropy" in ``loss_fn``, and the usual name of a
    call where the model's forward makes it. ``nodes``: the nodes of the network that it reads.
    ``operands``: its tensors, in the order of the arguments; of a loss the first is the output and
    the second the target. ``options``: its other arguments, as numbers ("reduction": 0 none, 1
    mean, 2 sum). ``value``: the mean of its result.

    ``facts``, of a loss or a difference between an output with known bounds and a target:
    "outside", the share of the target's values beyond them; "outside_values" and "inside_values",
    how many different ones there are on either side, at most 2; "absolute_left" and "square_left",
    the mean distance from them, and its square; "variance" of the target; "first_outside", one of
    the values beyond. Of a clamp: "no_probability", the share of its inputs outside 0..1.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    operands: tuple[Operand, ...] = ()
    nodes: tuple[int, ...] = ()
    options: dict[str, float] = field(default_factory=dict)
    value: float = math.nan
    location: str | None = None
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """Losses of the first batch for outputs that do not look at the input.

    ``loss``: of the network's own output. ``constant``: of the best output that is the same for
    every sample, -inf where there is none. ``zero``: of outputs that are zero. ``large``, ``huge``:
    of outputs drawn from N(0, ``LARGE``²) and N(0, ``HUGE``²). Where the network's last activation
    is a softmax, sigmoid or tanh, these are the values before it. ``tried``: found by trying
    outputs in ``loss_fn``, and not from the target alone.

    ``uphill``: cosine between the gradient of the loss and that of a cross-entropy with this
    target, at the output; -1 where the loss rewards wrong answers. NaN where that is not known.
    """

    loss: float
    constant: float
    zero: float = math.nan
    large: float = math.nan
    huge: float = math.nan
    tried: bool = False
    uphill: float = math.nan

    LARGE = 3.0
    HUGE = 10.0


@dataclass(frozen=True)
class Mixing:
    """Whether one sample's output depends on another sample's input, in evaluation mode.

    Of ``samples`` samples one was replaced. ``changed``: how many of the others' outputs changed;
    ``most``: by how much at most, as a share of the outputs' rms. ``error``: why that is not known.
    """

    samples: int = 0
    changed: int = 0
    most: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class TrainEvalGap:
    """The loss of one batch in training mode and in evaluation mode.

    ``norms_only``: with dropout off, and BatchNorm as in training. ``tracked``: how many batches
    BatchNorm's running averages have seen, at least.
    """

    train: float
    evaluation: float
    norms_only: float
    tracked: float


@dataclass(frozen=True)
class Unregistered:
    """A tensor that learns from the loss but is no parameter of the model.

    ``name``: how it can be reached from the model, as "model.layers[0].weight"; "" if it cannot.
    ``layer``: the row of the call that used it first. ``in_module``: it is a parameter of a module
    that the model does not know.
    """

    name: str
    shape: tuple[int, ...]
    layer: str
    location: str | None = None
    in_module: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Group:
    """A group of parameters of an optimiser, and its settings.

    ``optimizer``: its class; ``index``: which one of several. ``initial_lr``, ``max_lr``: what a
    schedule has put beside the rate. ``later``: how long later steps are beside the first one,
    which has no momentum and no scale yet. ``decoupled``: weight decay is no part of the gradient.
    ``held``: the model's parameters, by name; ``foreign``: the shapes of all others.
    """

    optimizer: str
    index: int
    lr: float
    initial_lr: float = math.nan
    max_lr: float = math.nan
    later: float = 1.0
    weight_decay: float = 0.0
    decoupled: bool = False
    held: tuple[str, ...] = ()
    foreign: tuple[tuple[int, ...], ...] = ()

    @property
    def scheduled(self) -> bool:
        return not math.isnan(self.initial_lr)

    @property
    def peak_lr(self) -> float:
        """The highest rate that is known: a schedule may begin far below it."""
        rates = (self.lr, self.initial_lr, self.max_lr)
        return max((rate for rate in rates if not math.isnan(rate)), default=math.nan)


@dataclass(frozen=True)
class Update:
    """What one step of the optimiser did to a parameter.

    ``graded``: how many of its values have a gradient other than zero; ``moved``: how many of these
    the step changed. The others are norms. ``grad``: the gradient; ``move``: the update;
    ``value``: the values before. ``data``: the part of the gradient that comes through the model's
    output; ``rest``: the part that does not, weight decay in it. ``pull``: the part of the update
    that is decoupled weight decay; ``push``: all other of it.
    """

    name: str
    graded: int
    moved: int
    grad: float
    move: float
    value: float
    data: float = 0.0
    rest: float = 0.0
    pull: float = 0.0
    push: float = 0.0


@dataclass(frozen=True)
class Optimizer:
    """The optimisers that were given, and what a step of their own did on the first batch.

    ``name``: their classes. ``twice``: parameters that are held more than once. ``copies``: those
    of which another tensor over the same memory is held. ``has_state``: a step was made before.

    ``before``: the loss before the step; ``noise``: by how much rounding may change it;
    ``constant``: the loss where each sample gets the mean of the outputs. ``slope``: gradient times
    update, the change of the loss to first order. ``losses``: pairs of a multiple of the step and
    the loss there. ``again``: the losses after further steps, where the first one raised it.
    ``stuck``: the step moves nothing, and would not at a rate a million times as high either.
    ``no_step_because``, ``no_loss_because``: why there is no step, or no loss after it.
    """

    name: str
    groups: tuple[Group, ...] = ()
    twice: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    has_state: bool = False
    filled: dict[str, float] = field(default_factory=dict)
    """Norms of the gradients other than zero that were there before the check, by parameter."""
    updates: tuple[Update, ...] = ()
    before: float = math.nan
    constant: float = math.nan
    noise: float = 0.0
    slope: float = math.nan
    losses: tuple[tuple[float, float], ...] = ()
    again: tuple[float, ...] = ()
    stuck: bool = False
    no_step_because: str = ""
    no_loss_because: str = ""

    @property
    def after(self) -> float:
        """The loss after one step."""
        return dict(self.losses).get(1.0, math.nan)

    @property
    def change(self) -> float:
        """By how much the step changes the loss. Where that is lost in rounding, the slope."""
        change = self.after - self.before
        return self.slope if abs(change) <= 10 * self.noise else change


@dataclass(frozen=True)
class Fresh:
    """A copy of a trained, sick network with new weights, on the same batch.

    ``found``: rules with an error or a warning for the copy; ``sick``: those about the trained
    network's values; ``severe``: whether one of these is an error.
    """

    found: tuple[str, ...]
    sick: tuple[str, ...]
    severe: bool = False


@dataclass(frozen=True)
class Experiment:
    """What the first batch shows of the experiment around the network.

    ``targets``: the tensors of the target, as "target" or "target.KEY". ``inputs``: the raw data,
    as "input" or "input.KEY". ``outputs``: the shapes of the tensors that the model returned.
    ``output_rows``: rows of the model's outputs whose gradient was looked at, ``output_zero_rows``:
    those where it is exactly zero. ``samples``: how many the first batch has.
    """

    calls: tuple[LossCall, ...] = ()
    targets: dict[str, Values] = field(default_factory=dict)
    outputs: tuple[tuple[int, ...], ...] = ()
    baseline: Baseline | None = None
    unregistered: tuple[Unregistered, ...] = ()
    mixing: Mixing | None = None
    gap: TrainEvalGap | None = None
    fresh: Fresh | None = None
    inputs: dict[str, Columns] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    no_optimizer_because: str = "pass optimizer="
    output_rows: int = 0
    output_zero_rows: int = 0
    samples: int = 0
