"""Hand-built reports: the few that every format is tested on."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import numpy as np

from nndiag.experiment import Experiment, LossCall, Values
from nndiag.fixes.fix import advice
from nndiag.report import Report
from nndiag.rule import Finding, Outcome, Rule, Threshold, Unjudged
from nndiag.stats import (
    DirectionStats,
    Environment,
    FlatStats,
    Histogram,
    Layer,
    Loss,
    Node,
    Parameter,
    ProbeStats,
    Snapshot,
    TensorStats,
    UnitStats,
)

FIX = advice(
    "Re-initialise the weights (He), biases at zero.",
    "Half of a rectifier's input is dropped.",
    "nn.init.kaiming_normal_(layer.weight)",
)


def rule_module(rule: Rule, doc: str) -> ModuleType:
    module = ModuleType(rule.name.replace("-", "_"), doc)
    module.RULE = rule
    module.check = lambda snapshot, thresholds: []
    return module


RULES = {
    module.RULE.name: module
    for module in (
        rule_module(
            Rule("ND101", "saturation", "warning", "activations", caused_by=("init-scale",),
                 thresholds={"share": Threshold(0.5, "cited: somewhere", 0, 1, "share")}),
            "Units that no longer answer to their input.",
        ),
        rule_module(
            Rule("ND103", "dead-relu", "warning", "activations", fixes=(FIX,),
                 thresholds={
                     "share": Threshold(0.4, "measured: reports/calibration/dead-relu.md", 0, 1,
                                        "share"),
                     "samples": Threshold(90, "derived: 0.95**90 < 1 %"),
                 }),
            "Units that were zero on every sample.\n\nA zero output has a zero gradient.",
        ),
        rule_module(
            Rule("ND104", "dense-activation", "note", "activations"),
            "Activations that are hardly ever zero.",
        ),
        rule_module(
            Rule("ND201", "vanishing-gradient", "warning", "gradients", needs=("gradients",)),
            "Gradients that do not reach the first layers.",
        ),
        rule_module(
            Rule("ND301", "init-scale", "error", "parameters",
                 thresholds={"factor": Threshold(2.0, "derived: 2**10 over ten layers", 1,
                                                  unit="factor")}),
            "Weights far from the scale their layer needs.",
        ),
        rule_module(
            Rule("ND401", "non-finite", "error", "activations"),
            "Values that are NaN or infinite.",
        ),
    )
}  # fmt: skip


def use_sample_rules(monkeypatch) -> None:
    """The rules above instead of nndiag's own, which change."""
    import nndiag.render.page
    import nndiag.render.sarif
    import nndiag.render.story
    import nndiag.rules

    for module in (
        nndiag.rules,
        nndiag.render.page,
        nndiag.render.story,
        nndiag.render.sarif,
    ):
        monkeypatch.setattr(module, "discover", lambda: RULES)


def stats(values: np.ndarray, *, nan: int = 0, inf: int = 0) -> TensorStats:
    """By NumPy's own arithmetic: rows are samples, columns are units."""
    values = np.atleast_2d(np.asarray(values, dtype=float))
    n, units = values.shape
    counts = np.zeros(2 * Histogram.SIDE + 1)
    counts[Histogram.SIDE] = (values == 0).sum()
    counts[Histogram.SIDE + 90] = values.size - counts[Histogram.SIDE]
    centred = values - values.mean(0)
    return TensorStats(
        samples=n,
        count=values.size,
        nan=nan,
        inf=inf,
        zeros=int((values == 0).sum()),
        mean=float(values.mean()),
        m2=float(values.var() * values.size),
        min=float(values.min()),
        max=float(values.max()),
        histogram=Histogram(counts),
        units=UnitStats(np.full(units, float(n)), values.mean(0), (centred**2).sum(0)),
        probe=ProbeStats((units,), n, values.mean(0), (centred**2).sum(0)),
        direction=DirectionStats(n, values.sum(0)),
    )


def layer(
    name: str, op: str = "linear", kind: str = "Linear", *, node: int = 0, seed: int = 0, **more
) -> Layer:
    values = np.random.default_rng(seed).normal(size=(8, 4))
    return Layer(name, kind, op, (8, 4), node, more.pop("output", None) or stats(values), **more)


def snapshot(**changes) -> Snapshot:
    """A network of five rows with one of everything a format may have to show."""
    relu = np.maximum(np.random.default_rng(1).normal(size=(8, 4)), 0)
    relu[:, 2] = 0
    broken = replace(
        stats(np.ones((8, 4))), nan=3, inf=1, mean=math.nan, max=math.inf, min=-math.inf
    )
    grad = stats(np.full((8, 4), 1e-12))
    layers = (
        layer("encoder.0", node=1, location="models/encoder.py:40", grad=grad),
        layer("encoder.1/relu", "relu", "function", node=2, output=stats(relu),
              flat=FlatStats(8, 32, 20, np.array([True, True, False, True])),
              location="models/encoder.py:41"),
        layer("encoder.2", "tanh", "Tanh", node=3,
              flat=FlatStats(8, 32, 24, np.array([False, True, True, True])),
              location="/elsewhere/site-packages/blocks.py:7"),
        layer("decoder.mlp.up", node=4, output=broken, facts={"fan": math.inf}),
        layer("head", node=5),
    )  # fmt: skip
    parameters = (
        Parameter("encoder.0.weight", (4, 4), "float32", True, stats(np.eye(4)), grad,
                  duplicate_units=2),
        Parameter("head_aux.weight", (2, 4), "float32", False, stats(np.zeros((2, 4))), used=False),
    )  # fmt: skip
    whole = Snapshot(
        model="TinyUNet",
        layers=layers,
        nodes=(Node("input"), *(Node(r.op, (i,), i) for i, r in enumerate(layers))),
        parameters=parameters,
        inputs={"input": stats(np.arange(32.0).reshape(8, 4))},
        loss=Loss("loss_fn", 2.3026),
        samples=8,
        batches=2,
        outputs=(5,),
        has_gradients=True,
        no_step_because="no rule asked for one",
        never_called=("head_aux",),
        not_observed=("encoder.lstm",),
        environment=Environment(
            "0.1.0", "2.13.0", "3.11.9", "cpu", "float32", 0, "train", "nndiag check net.py:net"
        ),
    )
    return replace(whole, **changes)


LOSS = LossCall("loss/cross_entropy", "cross_entropy", (), value=2.3026)
TARGET = Values((8,), "int64", 8, 0, 1.5, 1.1, 0.0, 3.0, 1.0, True, 4, {0: 2, 1: 2, 2: 2, 3: 2})


def sick() -> Report:
    """An error that explains a warning and a note; a warning at three layers; notes."""
    root = Finding(
        "init-scale", "ND301", "error", "encoder.0.weight",
        "weights are 11.3 times as large as this layer needs", {"factor": 11.3}, 2.0, None, None,
        (FIX,), measure="factor",
        summary="Signals will blow up: the weights of encoder.0 are 11.3× too large.",
    )  # fmt: skip
    dead = [
        Finding(
            "dead-relu", "ND103", "warning", name, f"{n} of 256 units were zero on all 128 samples",
            {"share": n / 256, "units": 256.0}, 0.4, "models/encoder.py:41", None, (FIX,),
            measure="share",
        )
        for name, n in (("encoder.3.act", 110), ("encoder.1/relu", 156), ("encoder.5.act", 140))
    ]  # fmt: skip
    unknown = Finding(
        "future-disease", "ND999", "warning", "head", "something this version knows nothing of",
        {"badness": math.inf}, 3.5, "/elsewhere/site-packages/blocks.py:7", measure="badness",
    )  # fmt: skip
    saturated = [
        Finding("saturation", "ND101", "warning", name, "75 % of the values lie where it is flat",
                {"share": 0.75}, 0.5, None, root, measure="share")
        for name in ("encoder.2", "encoder.4")
    ]  # fmt: skip
    faint = Finding(
        "vanishing-gradient", "ND201", "warning", "encoder.0", "falls to 0.11 a layer",
        {"factor": 0.11}, None, "models/encoder.py:40", saturated[0],
    )  # fmt: skip
    dense = [
        Finding("dense-activation", "ND104", "note", name, "97 % of the values are not zero")
        for name in ("encoder.2", "head")
    ]
    return Report(
        snapshot(experiment=Experiment((LOSS,), {"target": TARGET})),
        (root, *dead, unknown, *dense, *saturated, faint),
        (
            Outcome("saturation", "ND101", "found"),
            Outcome("dead-relu", "ND103", "found"),
            Outcome("dense-activation", "ND104", "found"),
            Outcome("vanishing-gradient", "ND201", "found"),
            Outcome("init-scale", "ND301", "found"),
            Outcome("non-finite", "ND401", "crashed", "ZeroDivisionError: division by zero"),
            Outcome("covariate-shift", "ND501", "skipped", "needs a virtual update: none was made"),
            Outcome("update-ratio", "ND704", "skipped", "needs a virtual update: none was made"),
            Outcome("input-scale", "ND601", "passed"),
            Outcome("future-disease", "ND999", "found"),
        ),
        (
            Unjudged("dead-relu", "decoder.mlp.up", "8 samples say little about rare units"),
            Unjudged("dead-relu", "head", "8 samples say little about rare units"),
        ),
    )


def healthy() -> Report:
    passed = [Outcome(name, m.RULE.code, "passed") for name, m in RULES.items()]
    return Report(snapshot(never_called=(), not_observed=()), (), tuple(passed), ())


def empty() -> Report:
    """Nothing ran and nothing was judged."""
    nothing = Snapshot("Empty", (), (), (), {}, Loss("none"), 0, 0)
    return Report(nothing, (), (), ())


def hostile(name: str) -> Report:
    """A report in which everything that a model's author can name is called ``name``."""
    finding = Finding(
        name, "ND103", "warning", name, name, {name: 1.0}, 0.5, f"{name}:3", None,
        (advice(name, name, name),),
    )  # fmt: skip
    more = replace(finding, severity="error")
    after = replace(finding, cause=finding)
    base = snapshot(model=name, never_called=(name,), not_observed=(name,))
    base = replace(base, layers=(replace(base.layers[0], name=name, kind=name, location=name),))
    base = replace(
        base,
        nodes=base.nodes[:2],
        outputs=(),
        parameters=(replace(base.parameters[0], name=name),),
        environment=replace(base.environment, device=name, command=name),
    )
    outcomes = (Outcome(name, "ND1", "crashed", name), Outcome(name, "ND2", "skipped", name))
    return Report(base, (more, finding, after), outcomes, (Unjudged(name, name, name),))


def large(layers: int = 200, units: int = 64) -> Report:
    """A deep network in which almost every layer has something."""
    values = np.random.default_rng(0).normal(size=(8, units))
    one = stats(values)
    rows = tuple(
        Layer(f"blocks.{i}.mlp.act", "ReLU", "relu", (8, units), i + 1, one, grad=one, input=one)
        for i in range(layers)
    )
    base = snapshot(
        layers=rows,
        nodes=(Node("input"), *(Node("relu", (i,), i) for i in range(layers))),
        outputs=(layers,),
        never_called=tuple(f"aux.{i}" for i in range(layers)),
    )
    root = Finding("init-scale", "ND301", "error", "blocks.0.mlp.weight", "too large by 11.3",
                   {"factor": 11.3}, 2.0, measure="factor")  # fmt: skip
    dead = [
        Finding("dead-relu", "ND103", "warning", r.name, f"{i} of 256 units were zero",
                {"share": 0.4 + i / 1000}, 0.4, f"models/blocks.py:{i + 1}", None, (FIX,),
                measure="share")
        for i, r in enumerate(rows)
    ]  # fmt: skip
    folded = [
        Finding(
            "saturation",
            "ND101",
            "warning",
            r.name,
            "flat",
            {"share": 0.9},
            0.5,
            None,
            root,
            measure="share",
        )
        for r in rows
    ]
    notes = [Finding("dense-activation", "ND104", "note", r.name, "97 % not zero") for r in rows]
    outcomes = tuple(Outcome(name, m.RULE.code, "found") for name, m in RULES.items())
    unjudged = tuple(Unjudged("dead-relu", r.name, "8 samples say little") for r in rows)
    return Report(base, (root, *dead, *notes, *folded), outcomes, unjudged)
