"""nndiag and its peers behind one interface: ``judge(subject) -> Verdict``.

Each adapter uses its tool as that tool's own documentation does, with its defaults, and returns
what it calls a warning or worse: its words and the places it names. What a tool calls information
is no alarm, and neither are hints about speed or style.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from calibration.cases import Subject

STEPS, PORTION, RATE = 100, 32, 1e-3  # what a tool that watches training is given
SMALL = 32  # a tool that has to learn one batch by heart gets this much of it


class Verdict(NamedTuple):
    alarms: list[str]
    places: list[str]


@dataclass(frozen=True)
class Tool:
    name: str
    package: str  # its distribution on PyPI
    judge: Callable[[Subject], Verdict]
    made_for: str
    run: str
    alarm: str  # which of its output categories count as an alarm
    strict: bool = False  # only the fault's own rule is a right answer

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def require(self) -> None:
        """Import it, or say how to get it."""
        try:
            importlib.import_module(self.package.replace("-", "_"))
        except ImportError as error:
            raise ModuleNotFoundError(
                f"{self.name} is not installed. `make peers` installs every peer, or do it by "
                "hand: pip install 'nndiag[peers]' and pip install --no-deps torcheck"
            ) from error


def optimiser(subject: Subject) -> torch.optim.Optimizer:
    return torch.optim.Adam(subject.model.parameters(), lr=RATE)


def portions(subject: Subject) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The batch as a DataLoader would give it, for STEPS steps: epoch, inputs, target."""

    def forever() -> Iterator[tuple[int, Tensor, Tensor]]:
        for epoch in itertools.count():
            for part in torch.randperm(len(subject.batch)).split(PORTION):
                yield epoch, subject.batch[part], subject.target[part]

    return itertools.islice(forever(), STEPS)


def loss_of(subject: Subject) -> Callable[..., Tensor]:
    assert subject.loss_fn is not None
    return subject.loss_fn


# -- nndiag --------------------------------------------------------------------------------------


def nndiag(subject: Subject) -> Verdict:
    import nndiag

    report = nndiag.check(*subject, config=False)
    found = [f for f in report.findings if f.severity != "note"]
    return Verdict([f"{f.rule}: {f.message}" for f in found], [f.layer for f in found])


def nndiag_first(subject: Subject) -> Verdict:
    alarms, places = nndiag(subject)
    return Verdict(alarms[:1], places[:1])


# -- peers ---------------------------------------------------------------------------------------


def torchlens(subject: Subject) -> Verdict:
    import torchlens as tl
    from torchlens.debug import gradient_flow_audit

    capture = tl.options.CaptureOptions(save_grads=True)
    trace = tl.trace(subject.model, subject.batch, capture=capture)
    output = trace[trace.output_layers[0]].out
    trace.log_backward(loss_of(subject)(output, subject.target))
    flow = gradient_flow_audit(trace)  # the audit's findings point to it for the details
    rows = {} if flow.empty else flow.set_index("op").to_dict("index")
    alarms, places = [], []
    for finding in trace.audit().findings:
        row = rows.get(finding.ops[0], {}) if finding.check == "gradient_flow_audit" else {}
        kinds = [kind for kind in ("vanishing", "exploding", "dead") if row.get(kind)]
        alarms.append(" ".join([f"{finding.check}:", finding.message, *kinds]))
        named = [*finding.modules, row.get("module")]
        places += [str(place).partition(":")[0] for place in named if isinstance(place, str)]
    return Verdict(alarms, places)


def torcheck(subject: Subject) -> Verdict:
    import torcheck

    opt = optimiser(subject)
    torcheck.register(opt)
    torcheck.add_module(
        subject.model, module_name="net", changing=True, check_nan=True, check_inf=True
    )
    try:
        for _, x, y in portions(subject):
            opt.zero_grad()
            loss_of(subject)(subject.model(x), y).backward()
            opt.step()
    except RuntimeError as error:  # its way to say what it found; training ends there
        said = re.findall(
            r"Module net's .+?(?:should change|contains NaN|contains inf)", str(error)
        )
        if not said:
            raise
        names = [re.sub(r"^Module net's (\S+) .*", r"\1", line) for line in said]
        return Verdict(said, [name for name in names if name != "output"])
    return Verdict([], [])


def torchtest2(subject: Subject) -> Verdict:
    import torchtest2

    report = torchtest2.check_model(
        subject.model,
        subject.batch[:SMALL],
        subject.target[:SMALL],
        loss_fn=subject.loss_fn,
        optimizer=optimiser(subject),
    )
    bad = report.failures + report.warnings
    parameters = dict(subject.model.named_parameters())
    words = itertools.chain.from_iterable(
        re.findall(r"[\w.]+", f"{r.message} {r.details}") for r in bad
    )
    listed = ("no_grad", "zero_grad", "non_finite", "unchanged")
    named = [name for r in bad for key in listed for name in r.details.get(key, ())]
    named += [word for word in words if word in parameters and word not in named]
    return Verdict([f"{r.name}: {r.message}" for r in bad], named)


def torchmortem(subject: Subject) -> Verdict:
    from torchmortem import Autopsy
    from torchmortem.types import Severity

    opt = optimiser(subject)
    with Autopsy(subject.model, optimizer=opt) as autopsy:
        for _, x, y in portions(subject):
            opt.zero_grad()
            loss = loss_of(subject)(subject.model(x), y)
            loss.backward()
            opt.step()
            autopsy.step(loss=loss.item())
    report = autopsy.get_report()
    assert report is not None
    bad = [f for f in report.findings if f.severity >= Severity.WARNING]
    return Verdict([f.title for f in bad], [layer for f in bad for layer in f.affected_layers])


def torch_audit(subject: Subject) -> Verdict:
    from torch_audit import audit_dynamic
    from torch_audit.core import Severity

    opt = optimiser(subject)
    with audit_dynamic(subject.model, optimizer=opt, every_n_steps=1) as auditor:
        for _, x, y in portions(subject):
            opt.zero_grad(set_to_none=True)
            loss = loss_of(subject)(auditor.forward(x), y)
            auditor.backward(loss)
            auditor.optimizer_step()
    hints = re.compile("TA2|TA400|TA404")  # speed and style
    bad = [
        f
        for f in auditor.finish(report=False).findings
        if f.severity >= Severity.WARN and not hints.match(f.rule_id)
    ]
    places = [f.module_path for f in bad if f.module_path not in (None, "global")]
    return Verdict([f"{f.rule_id}: {f.message}" for f in bad], [str(place) for place in places])


def neural_observatory(subject: Subject) -> Verdict:
    from neural_observatory import Observatory

    opt = optimiser(subject)
    observatory = Observatory(subject.model)
    observatory.watch()
    for step, (epoch, x, y) in enumerate(portions(subject)):
        observatory.step(step=step, epoch=epoch)
        opt.zero_grad()
        loss_of(subject)(subject.model(x), y).backward()
        opt.step()
    observatory.stop()
    bad = observatory.report().warnings()
    return Verdict(
        [f"{r.analyzer_name}: {text}" for r in bad for text in r.warnings],
        [r.layer_name for r in bad],
    )


def torchdiag(subject: Subject) -> Verdict:
    import torchdiag

    model, x, y = subject.model, subject.batch, subject.target
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        torchdiag.check_dead_neurons(model, x)
        torchdiag.verify_step(model, optimiser(subject), loss_of(subject), x, y)
        model.zero_grad()
        loss_of(subject)(model(x), y).backward()
        torchdiag.check_gradients(model)
    said = re.findall(r"^ +• (.+)$", printed.getvalue(), re.MULTILINE)
    places = [
        m.group(1) for m in (re.match(r"([\w.]+): (?:gradient|\d+% neurons)", s) for s in said) if m
    ]
    return Verdict(said, places)


TOOLS = [
    Tool(
        "nndiag",
        "nndiag",
        nndiag,
        "finding what is wrong inside a network, where and why, from one batch",
        "`check` on the whole batch",
        "error and warning",
    ),
    Tool(
        "nndiag (first finding)",
        "nndiag",
        nndiag_first,
        "the same; only what the report leads with counts, and its rule must be the fault's own",
        "`check` on the whole batch",
        "error and warning, the first only",
        strict=True,
    ),
    Tool(
        "torchtest2",
        "torchtest2",
        torchtest2,
        "bugs in model code (unused layers, cut graphs, mixed-up batches) before training begins",
        f"`check_model` on {SMALL} samples with its optimiser and loss; it trains up to 200 steps",
        "FAIL and WARN",
    ),
    Tool(
        "torchdiag",
        "torchdiag",
        torchdiag,
        "a quick look at dead ReLU modules, gradients and one optimiser step",
        "`check_dead_neurons`, `verify_step` and `check_gradients` on the whole batch",
        "what it lists under ISSUES FOUND",
    ),
    Tool(
        "torchlens",
        "torchlens",
        torchlens,
        "recording every operation of a forward and backward pass; its audit is one small part",
        "`trace` with gradients, `log_backward`, `audit` on the whole batch",
        "critical and warning",
    ),
    Tool(
        "torcheck",
        "torcheck",
        torcheck,
        "assertions inside a training loop: parameters change and nothing is NaN or infinite",
        f"every check that needs no expectation of the user's, in {STEPS} steps of training",
        "any error it raises",
    ),
    Tool(
        "torch-audit",
        "torch-audit",
        torch_audit,
        "silent bugs in training loops: data, optimiser settings, gradients, unused layers",
        f"`audit_dynamic` over {STEPS} steps, looking at each (its default is every 1000th)",
        "FATAL, ERROR and WARN, without the hints on speed and style (TA2xx, TA400, TA404)",
    ),
    Tool(
        "neural-observatory",
        "neural-observatory",
        neural_observatory,
        "watching activations, gradients and parameters of a training run",
        f"`watch` over {STEPS} steps, `report`",
        "critical and warning",
    ),
    Tool(
        "torchmortem",
        "torchmortem",
        torchmortem,
        "an autopsy of a finished training run",
        f"`Autopsy` over {STEPS} steps",
        "CRITICAL and WARNING",
    ),
]
