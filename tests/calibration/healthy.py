"""The calibration's healthy half: networks that nothing is wrong with, and what is said of them.

Each is judged with its loss and an optimiser at a usual rate. Remade by
``PYTHONPATH=tests python -m calibration.healthy``; writes ``healthy.csv`` (a row for each run) and
``healthy.md`` into ``reports/calibration``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import torch
import typer
import zoo
import zoo_papers
from scipy import stats
from torch import nn

import nndiag
from calibration import healthy_libraries, trained, usual
from calibration.cases import Healthy, Subject
from nndiag import activations, ops
from nndiag.progress import Progress, silenced
from nndiag.render import files
from nndiag.render.markdown import escape
from nndiag.report import Report
from nndiag.rule import SEVERITIES
from nndiag.rules import discover
from nndiag.stats import Snapshot

SEEDS = (0, 1, 2)
FOLDER = Path(__file__).parents[2] / "reports" / "calibration"


@dataclass(frozen=True)
class Network(Healthy):
    """A healthy network, and where it normalises.

    "pre": what enters a residual branch; "post": the sum of branch and skip; "both"; "inside":
    between weights and activation; "none".
    """

    norm: str
    known: bool  # the rules took shape while it was in the test suite
    exam: trained.Recipe | None = None  # of a trained one: how it came to be, what it must reach


# -- at initialisation -----------------------------------------------------------------------------

# family -> where it normalises -> names in the zoo
KINDS = {
    "mlp": {
        "none": """mlp-1-relu mlp-1-gelu mlp-1-silu mlp-1-tanh mlp-1-elu mlp-2-relu mlp-2-gelu
            mlp-2-silu mlp-2-tanh mlp-2-elu mlp-3-relu mlp-3-gelu mlp-3-silu mlp-3-tanh mlp-3-elu
            mlp-4-relu mlp-4-gelu mlp-4-silu mlp-4-tanh mlp-4-elu mlp-2-leakyrelu mlp-2-mish
            mlp-2-softplus mlp-2-hardswish mlp-2-prelu mlp-regression mlp-dropout mlp-eval-mode
            mlp-float64 mlp-bfloat16 logistic-regression binary-sigmoid-output he-relu-10
            he-relu-20 xavier-tanh-10 xavier-uniform-gain-tanh-8 orthogonal-tanh-20
            truncated-normal-relu self-normalising siren weight-norm-mlp orthogonal-parametrized
            zero-init-head lora-mlp adapter-bottleneck maxout he-leaky-12 orthogonal-relu-12
            lsuv-gelu-10 lecun-silu-6 mup-mlp hypernetwork""",
        "inside": "mlp-batchnorm-deep mlp-layernorm-deep checkpointed-mlp",
    },
    "residual": {
        "pre": """residual-mlp-20 resnet-preactivation densenet gated-rms-mlp stochastic-depth""",
        "inside": """resnet resnet-zero-gamma resnet-eval-fresh resnet-frozen-backbone
            squeeze-excite mobilenet resnet-bottleneck regnet mobilenet-v2 shufflenet""",
        "none": """fixup conv1d-tcn highway-20 rezero normaliser-free-resnet super-resolution
            wavenet""",
    },
    "cnn": {
        "none": """lenet mnist-example text-cnn spatial-transformer he-conv-8
            delta-orthogonal-conv-12 squeezenet dueling-q-network""",
        "inside": "vgg-batchnorm conv3d pixel-cnn inception style-transfer",
    },
    "detector": {
        "inside": "detector-one-stage keypoint-heatmaps detector-pyramid",
    },
    "u-net": {
        "none": "unet-without-norm",
        "inside": "unet",
        "pre": "diffusion-unet diffusion-unet-no-zero-head",
    },
    "convnext, mixer": {
        "pre": "layer-scale mlp-mixer convnext poolformer focalnet gated-mlp",
        "inside": "conv-mixer",
        "post": "fourier-mixing",
    },
    "autoencoder": {
        "none": """autoencoder conv-autoencoder tied-autoencoder vae vector-quantised
            masked-autoencoder-density"""
    },
    "gan": {
        "inside": "dcgan-generator dcgan-discriminator wgan-critic",
        "none": "spectral-norm-critic energy-based",
        "pre": "residual-gan-generator",
        "post": "style-generator",
    },
    "recurrent": {
        "none": """lstm lstm-time-first lstm-bidirectional-2 gru gru-bidirectional-2-time-first
            rnn-tanh rnn-relu-2 lstm-regression gru-cell-loop lstm-packed
            lstm-language-model-tied lstm-forget-bias rnn-identity rnn-tanh-orthogonal
            seq2seq-attention quasi-recurrent"""
    },
    "transformer encoder": {
        "none": "t-fixup",
        "pre": """transformer-encoder-prenorm lora-transformer modernbert linear-attention perceiver
            feature-tokens""",
        "post": """transformer-encoder-postnorm transformer-encoder-eval bert bert-masked
            bert-tokens roberta albert distilbert electra deberta-v2 mpnet roformer convbert
            universal-transformer""",
    },
    "transformer decoder": {
        "pre": """nano-gpt gpt2 gpt-neo gpt-neox gptj llama mistral qwen2 gemma phi opt bloom falcon
            mixtral phimoe""",
        "post": "transformer-decoder",
        "both": "gemma2",
    },
    "encoder-decoder": {
        "pre": "t5 t5-gated switch pegasus whisper",
        "post": "transformer-seq2seq bart marian",
    },
    "vision transformer": {
        "pre": "vit deit beit swin segformer mobilevit adaptive-norm-zero",
        "post": "vision-transformer-zero-head swinv2",
    },
    "speech": {"post": "wav2vec2 hubert", "pre": "spectrogram-transformer", "both": "wavlm"},
    "several inputs": {"pre": "clip siglip vilt blip git"},
    "time series": {"inside": "patchtst"},
    "state space": {"pre": "mamba rwkv diagonal-state-space"},
    "graph": {"none": "graph-convolution graph-attention message-passing"},
    "set": {"none": "deep-sets neural-process", "inside": "pointnet", "post": "set-transformer"},
    "density": {"none": "normalizing-flow mixture-density"},
    "loop": {"none": "neural-ode deep-equilibrium"},
    "embeddings": {
        "none": "embedding-bag-classifier embedding-bag-sparse two-tower skip-gram",
        "inside": "tabular-embeddings deep-factorisation-machine",
    },
    "several heads": {"none": "multi-task ppo-actor-critic soft-actor"},
    "mixture of experts": {
        "none": "multi-gate-experts",
        "pre": "top-two-experts",
        "post": "mixture-of-experts",
    },
    "siamese": {
        "none": "siamese-contrastive momentum-contrast",
        "inside": "bootstrap-your-own-latent siamese-triplet",
    },
    "table": {"none": "cross-network periodic-embeddings"},
    "conditional": {"inside": "feature-wise-modulation"},
    "physics": {"none": "physics-informed fourier-operator"},
}


def at_init() -> Iterator[Network]:
    for family, norms in KINDS.items():
        for norm, names in norms.items():
            for name in names.split():
                build, known = functools.partial(_grown, name), name not in zoo_papers.NAMES
                yield Network(name, family, "init", build, norm, known)
    for name, (family, norm, _) in healthy_libraries.RECIPES.items():
        build = functools.partial(healthy_libraries.make, name)
        yield Network(name, family, "init", build, norm, known=False)


def _grown(name: str, seed: int) -> Subject:
    return Subject(*zoo.make(name, seed))


def after_training() -> Iterator[Network]:
    for recipe in trained.TRAINED:
        build = functools.partial(trained.train, recipe)
        yield Network(recipe.name, recipe.family, "trained", build, recipe.norm, False, recipe)


HEALTHY: list[Network] = [*at_init(), *after_training()]


class Repair(NamedTuple):
    """A network that was meant to be healthy, and was not."""

    network: str
    said: str
    true: str
    fix: str


REPAIRED = [
    Repair(
        "mlp-bfloat16",
        "no-update with SGD at 0.01",
        "A copy of the model before and after optimizer.step(): 99.1 % of its values have the same "
        "bits.",
        "Adam or AdamW",
    ),
    Repair(
        "MONAI's HighResNet",
        "output-activation: a ReLU before the cross-entropy",
        "model(x).min() is 0: its last convolution comes with a norm and a ReLU.",
        "without them",
    ),
    Repair(
        "MONAI's VarAutoEncoder",
        "unreachable-target, 66 % of the targets",
        "Its output is a sigmoid's, and the images were standard normal.",
        "images in [0, 1]",
    ),
    Repair(
        "digits-lstm-bidirectional",
        "no-gradient at rnn.weight_hh_l0_reverse",
        "It read the output at the last step only, which the backward direction reaches first: "
        "autograd gives its recurrent weights exact zeros.",
        "reads the mean over all steps",
    ),
    Repair(
        "digits-pointnet",
        "dead-relu behind the maximum over points, 26 to 30 of 64 units",
        "(z > 0).any(0) over all 1797 images: 25 to 30 of the 64 units are never active.",
        "BatchNorm, as published",
    ),
    Repair(
        "MONAI's ViT and UNETR",
        "no-gradient at norm_cross_attn in every block",
        "p.grad is None after backward: the blocks make a norm for a cross-attention that they do "
        "not have.",
        "left out",
    ),
    Repair(
        "the digits as a set of pixels, averaged",
        "dead-relu behind the mean, 56 of 128 units (one seed)",
        "(z > 0).any(0) over all 1797 images: the 56 are never active; accuracy 0.72.",
        "left out",
    ),
]


class FirstContact(NamedTuple):
    """A false alarm on a network that the rules had never met, and what ended it."""

    network: str
    said: str
    false: str
    fix: str


FIRST_CONTACT = [
    FirstContact(
        "digits-pointnet",
        "signal-collapse at each.0: varies by 0.0045 across samples",
        "0.24, by output.std(0) over all 64 pixels.",
        "The 512 elements followed through the batch were evenly strided and all lay in the left "
        "column of pixels, where digits are blank; they are spread by the golden section now.",
    ),
]

# The same, when a loss and an optimiser were first given to all of the networks.
FIRST_STEPS = [
    FirstContact(
        "conv-autoencoder",
        "lr-too-low with SGD at 0.01 (one seed of three)",
        "Its gradient is small, not the rate: it starts at 0.083, the variance of its pixels.",
        "The update of SGD is judged as if the gradient had its usual size.",
    ),
    FirstContact(
        "59 networks of transformers",
        "check raised: the output forbids update()",
        "Forward, backward and step work without the check.",
        "The copy of an output is made without its update().",
    ),
]


# -- judged ----------------------------------------------------------------------------------------


class Said(NamedTuple):
    """One finding, as the tables need it."""

    severity: str
    rule: str
    layer: str
    message: str


def judge_healthy(
    progress: Progress | None = None,
    networks: Sequence[Network] | None = None,
    seeds: Sequence[int] = SEEDS,
) -> pd.DataFrame:
    """A row for each network, seed and mode; the column ``said`` holds what was found.

    Each is checked with its loss and an optimiser: a fresh one with those of ``usual`` by turns, a
    trained one with that of its training, at the rate it was trained at.
    """
    runs = [
        (network, seed, turn + seed)
        for turn, network in enumerate(networks or HEALTHY)
        for seed in seeds
    ]
    rows: list[dict[str, Any]] = []
    for done, (network, seed, turn) in enumerate(runs):
        if progress is not None:
            progress.update(done, len(runs), network.name)
        subject = usual.with_loss(network.name, network.build(seed))
        exam = network.exam
        name, optimiser = usual.optimiser(network.name, turn)
        if exam is not None:
            name, optimiser = usual.named(exam.optimizer), exam.optimizer
        reached = math.nan if exam is None else trained.score(exam, subject.model)
        for mode in _modes(network, subject.model):
            subject.model.train(mode == "train")
            with silenced():
                report = nndiag.check(*subject, optimizer=optimiser, config=False, seed=seed)
            row = _row(network, subject, seed, mode, report)
            rows.append(row | {"optimizer": name, "score": reached})
    return pd.DataFrame(rows)


def _modes(network: Network, model: nn.Module) -> tuple[str, ...]:
    """Fresh networks as they come; running statistics mean nothing before any training."""
    if network.state == "trained":
        return ("train", "eval")
    return ("train" if model.training else "eval",)


def _row(
    network: Network, subject: Subject, seed: int, mode: str, report: Report
) -> dict[str, Any]:
    count = Counter(f.severity for f in report.findings)
    snapshot = report.snapshot
    return {
        "network": network.name,
        "family": network.family,
        "known": network.known,
        "state": network.state,
        "source": _source(subject.model),
        "norm": network.norm,
        "activations": " ".join(sorted({a.op for a in snapshot.layers if _bends(a.op)})),
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "samples": snapshot.samples,
        "seed": seed,
        "mode": mode,
        "loss": _loss(snapshot),
        "stepped": int(_stepped(snapshot)),
        "metric": network.exam.task.metric if network.exam else "",
        "bar": network.exam.bar if network.exam else math.nan,
        "crashed": len(report.crashed),
        **{f"{severity}s": count[severity] for severity in SEVERITIES},
        "said": tuple(Said(f.severity, f.rule, f.layer, f.message) for f in report.findings),
    }


def _loss(snapshot: Snapshot) -> str:
    """The losses of torch that were called, or how else the loss came about."""
    called = [call.op for call in snapshot.experiment.calls if ops.named(call.op).loss is not None]
    kind = "written by hand" if snapshot.loss.kind == "loss_fn" else snapshot.loss.kind
    return " + ".join(dict.fromkeys(called)) or kind


def _stepped(snapshot: Snapshot) -> bool:
    """Whether a step of the optimiser was made, and the loss was measured after it."""
    optimizer = snapshot.experiment.optimizer
    return optimizer is not None and bool(optimizer.losses)


def _bends(op: str) -> bool:
    return op != "linear" and activations.named(op) is not None


def _source(model: nn.Module) -> str:
    """Whose code the network is."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    for library in ("transformers", "monai", "torch_geometric", "x_transformers"):
        if library in packages:
            return library
    return "torch.nn" if any(isinstance(m, _WHOLE) for m in model.modules()) else "own recipe"


# Architectures that torch.nn brings whole.
_WHOLE = (
    nn.RNNBase, nn.RNNCellBase, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.MultiheadAttention,
)  # fmt: skip


# -- published -------------------------------------------------------------------------------------


def upper_bound(alarms: int, trials: int, confidence: float = 0.95) -> float:
    """The largest rate that is not yet unlikely (Clopper & Pearson 1934, one-sided)."""
    if alarms == trials:
        return 1.0
    return float(stats.beta.ppf(confidence, alarms + 1, trials - alarms))


def publish(runs: pd.DataFrame, folder: Path = FOLDER) -> None:
    """``healthy.csv`` and ``healthy.md``, both or none."""
    files.write({folder / "healthy.csv": _csv(runs), folder / "healthy.md": _page(runs)})


def _csv(runs: pd.DataFrame) -> str:
    """The runs, with a column of notes for each rule and the alarms in words."""
    table = runs.drop(columns="said")
    for rule in discover():
        table[rule] = [
            sum(f.severity == "note" and f.rule == rule for f in said) for said in runs["said"]
        ]
    table["alarms"] = [
        "; ".join(f"{f.severity} {f.rule} {f.layer}" for f in said if f.severity != "note")
        for said in runs["said"]
    ]
    return str(table.round({"score": 4}).to_csv(index=False))


def _page(runs: pd.DataFrame) -> str:
    examined = runs[runs["metric"] != ""]
    runs = runs.assign(alarm=(runs["errors"] + runs["warnings"] + runs["crashed"]) > 0)
    return (
        jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
        .from_string(Path(__file__).with_name("healthy.md.j2").read_text("utf-8"))
        .render(
            runs=runs,
            seeds=len(SEEDS),
            states=[_state(name, part) for name, part in runs.groupby("state", sort=False)],
            everything=_state("all", runs),
            optimizers=runs[runs["state"] == "init"]["optimizer"].value_counts(),
            losses=runs["loss"].value_counts(),
            sources=runs.groupby("source")["network"].nunique().sort_values(ascending=False),
            alarms=[
                (run, f)
                for run in runs.itertuples()
                for f in run.said
                if f.severity != "note"
            ],
            networks=[_network(part) for _, part in runs.groupby("network", sort=False)],
            exams=[_exam(part) for _, part in examined.groupby("network", sort=False)],
            repaired=REPAIRED,
            new=_state("new", runs[~runs["known"]]),
            first_contact=FIRST_CONTACT,
            first_steps=FIRST_STEPS,
            first_bound=upper_bound(
                len({c.network for c in FIRST_CONTACT}), runs[~runs["known"]]["network"].nunique()
            ),
            versions=_versions(),
            escape=escape,
        )
    )  # fmt: skip


def _versions() -> dict[str, str]:
    """Of the libraries that networks come from; empty where one is not installed."""
    versions = {}
    for package in ("torch", "transformers", *healthy_libraries.PACKAGES, "scikit-learn"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    return versions


def _state(name: Any, runs: pd.DataFrame) -> dict[str, Any]:
    by_network = runs.groupby("network")["alarm"].any()
    return {
        "name": name,
        "networks": len(by_network),
        "networks_alarmed": int(by_network.sum()),
        "network_bound": upper_bound(int(by_network.sum()), len(by_network)),
        "runs": len(runs),
        "runs_alarmed": int(runs["alarm"].sum()),
        "stepped": int(runs["stepped"].sum()),
        "run_bound": upper_bound(int(runs["alarm"].sum()), len(runs)),
    }


def _network(runs: pd.DataFrame) -> dict[str, Any]:
    """What one network is, and its notes: how many of its runs have each."""
    notes = Counter(
        {(f.rule, f.layer): 0 for said in runs["said"] for f in said if f.severity == "note"}
    )
    for said in runs["said"]:
        notes.update({(f.rule, f.layer) for f in said if f.severity == "note"})
    by_rule: dict[str, list[str]] = {}
    for (rule, layer), count in notes.items():
        share = "" if count == len(runs) else f" ({count} of {len(runs)})"
        by_rule.setdefault(rule, []).append(f"{escape(layer)}{share}")
    return {"is": runs.iloc[0], "runs": len(runs), "notes": by_rule}


def _exam(runs: pd.DataFrame) -> dict[str, Any]:
    """What a trained network reached, over its seeds."""
    network = next(n for n in HEALTHY if n.name == runs["network"].iloc[0])
    assert network.exam is not None
    scores = runs.groupby("seed")["score"].first()
    return {"recipe": network.exam, "least": scores.min(), "most": scores.max()}


def main(folder: Path = FOLDER) -> None:
    """Judge every healthy network and write what was said of them."""
    quieten()
    torch.set_num_threads(1)
    with Progress("judging") as progress:
        runs = judge_healthy(progress)
    publish(runs, folder)


def quieten() -> None:
    """transformers remarks on missing kernels for each of its models."""
    import transformers

    transformers.logging.set_verbosity_error()


if __name__ == "__main__":
    typer.run(main)
