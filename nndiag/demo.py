"""Four small networks on real digits; three have a fault that is common in practice.

Models and training are ordinary torch code, independent of nndiag. So the reports can be compared
with the accuracy on unseen images. The faulty networks are then repaired and trained again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jinja2
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import nndiag
from nndiag.errors import MissingPackageError
from nndiag.render import files

if TYPE_CHECKING:
    from nndiag import Repair, Report

__all__ = [
    "INDEX_HTML",
    "INDEX_MD",
    "RECIPES",
    "TRIAL_STEPS",
    "ConvNet",
    "Digits",
    "Network",
    "Optimizer",
    "Recipe",
    "ReluNet",
    "Repaired",
    "SigmoidStack",
    "TanhNet",
    "Watch",
    "accuracy",
    "build",
    "digits",
    "leading",
    "main",
    "networks",
    "one_thread",
    "repaired_accuracy",
    "repaired_from",
    "save",
    "summary",
    "train",
    "train_steps",
    "verdict",
    "xavier",
]


Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Network(NamedTuple):
    """A trained network, the training batch to check it on, and its accuracy on unseen images."""

    name: str
    story: str
    model: nn.Module
    batch: Tensor
    target: Tensor
    accuracy: float
    recipe: Recipe


class Digits(NamedTuple):
    """Scikit-learn's 1797 handwritten digits, 8 by 8 pixels: three quarters to train on."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits() -> Digits:
    """The digits, standardised with the mean and deviation of the training pixels.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingPackageError(
            "the demo needs the digits of scikit-learn, which is not installed. Install it with: "
            "pip install 'nndiag[demo]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=0.25, stratify=labels, random_state=0)
    train, test = (torch.tensor(part / 16, dtype=torch.float32) for part in parts[:2])
    mean, std = train.mean(), train.std()
    return Digits(
        images=((train - mean) / std).view(-1, 1, 8, 8),
        labels=torch.tensor(parts[2]),
        test_images=((test - mean) / std).view(-1, 1, 8, 8),
        test_labels=torch.tensor(parts[3]),
    )


def xavier(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """Xavier weights times ``gain``, biases zero (Glorot & Bengio 2010)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, gain=gain)
            nn.init.zeros_(module.bias)
    return model


class SigmoidStack(nn.Sequential):
    """Eight sigmoid layers, the deep network of 1990."""

    def __init__(self) -> None:
        hidden = [(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(8)]
        super().__init__(nn.Flatten(), *(part for pair in hidden for part in pair))
        self.append(nn.Linear(64, 10))


class TanhNet(nn.Module):
    """Four tanh layers."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 128, 128, 128, 128]
        self.hidden = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.out = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.out(x)  # type: ignore[no-any-return]


class ReluNet(nn.Module):
    """Three ReLU layers of 100, in torch's default initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 100)
        self.fc2 = nn.Linear(100, 100)
        self.fc3 = nn.Linear(100, 100)
        self.out = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        x = F.relu(self.fc3(x))
        return self.out(x)  # type: ignore[no-any-return]


class ConvNet(nn.Module):
    """Three convolutions, each with batch normalisation and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        x = F.relu(self.norm3(self.conv3(x)))
        return self.out(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Recipe(NamedTuple):
    """How one of the four networks is built and trained."""

    name: str
    story: str
    build: Callable[[], nn.Module]
    optimizer: Optimizer
    steps: int
    advised: Optimizer | None = None  # the report's advice, if the optimizer caused the fault


RECIPES = (
    Recipe(
        "sigmoid-stack",
        "Eight sigmoid layers with Xavier weights. Each layer passes back about a quarter of the "
        "gradient it gets. After 600 steps of SGD with momentum the accuracy is still at chance.",
        lambda: xavier(SigmoidStack()),
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
        steps=600,
    ),
    Recipe(
        "tanh-10x",
        "Four tanh layers whose weights start ten times too large, as if 1/sqrt(n) had been "
        "forgotten. Nearly every unit is at -1 or 1, where tanh is flat.",
        lambda: xavier(TanhNet(), gain=10),
        lambda weights: torch.optim.SGD(weights, lr=0.1),
        steps=600,
    ),
    Recipe(
        "dead-relu",
        "Three ReLU layers trained with Adam at a learning rate of 0.05, fifty times its "
        "default. Within ten steps most units are zero for every input.",
        ReluNet,
        lambda weights: torch.optim.Adam(weights, lr=0.05),
        steps=200,
        advised=lambda weights: torch.optim.Adam(weights, lr=1e-3),
    ),
    Recipe(
        "healthy-cnn",
        "Three convolutions with batch normalisation and ReLU, trained with Adam at its default "
        "learning rate. Nothing is wrong with it.",
        ConvNet,
        lambda weights: torch.optim.Adam(weights, lr=1e-3),
        steps=300,
    ),
)


Watch = Callable[[range, str], Iterable[int]]


def networks(watch: Watch = lambda steps, name: steps) -> list[Network]:
    """The four networks, trained. On one machine every call gives the same networks.

    ``watch`` wraps the steps of each training, given the network's name, for a progress bar.
    """
    data = digits()
    trained = [(recipe, train(recipe, data, watch)) for recipe in RECIPES]
    return [
        Network(
            recipe.name,
            recipe.story,
            model,
            data.images[:256],
            data.labels[:256],
            accuracy(model, data.test_images, data.test_labels),
            recipe,
        )
        for recipe, model in trained
    ]


def train(recipe: Recipe, data: Digits, watch: Watch = lambda steps, name: steps) -> nn.Module:
    """Build and train one of the four networks."""
    with torch.random.fork_rng():
        model = build(recipe)
        train_steps(model, recipe.optimizer, recipe.steps, data, watch, recipe.name)
    return model


def build(recipe: Recipe) -> nn.Module:
    """Build one of the four networks from seed 0; the generator is not restored."""
    torch.manual_seed(0)
    return recipe.build()


def train_steps(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    data: Digits,
    watch: Watch = lambda steps, name: steps,
    name: str = "",
) -> None:
    """Train a model in place, on random batches of 64."""
    trainer = optimizer(model.parameters())
    with one_thread():
        for _ in watch(range(steps), name):
            chosen = torch.randint(len(data.images), (64,))
            loss = F.cross_entropy(model(data.images[chosen]), data.labels[chosen])
            trainer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            trainer.step()


class Repaired(NamedTuple):
    """A repair of a faulty network, and the accuracy after training it again."""

    repair: Repair
    accuracy: float


def repaired_from(network: Network, data: Digits) -> Repaired:
    """Repair a network, compare both in a training trial, and train the repaired one.

    A fault of the initialisation is repaired in the untrained network, a fault of the training in
    the trained one.
    """
    recipe = network.recipe
    optimizer = recipe.advised or recipe.optimizer
    train_on = list(zip(torch.split(data.images, 64), torch.split(data.labels, 64), strict=True))
    with torch.random.fork_rng():
        model = build(recipe)
    with one_thread():
        untrained = nndiag.check(
            model, network.batch, network.target, loss_fn=F.cross_entropy, config=False
        )
        repair = nndiag.repair(
            network.model if untrained.ok else model,
            network.batch,
            network.target,
            F.cross_entropy,
            allow="all",
            held_out=(data.test_images, data.test_labels),
            trial_steps=TRIAL_STEPS,
            trial_data=train_on,
            optimizer=optimizer,
            config=False,
        )
    trained = copy.deepcopy(repair.model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        train_steps(trained, optimizer, recipe.steps, data)
    return Repaired(repair, accuracy(trained, data.test_images, data.test_labels))


TRIAL_STEPS = 200


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: sums keep their order on any number of cores. It is also faster here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of correctly classified images, in eval mode."""
    model.eval()
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
    model.train()
    return int(right.sum()) / len(labels)


def _track(steps: Iterable[int], name: str, console: Console) -> Iterable[int]:
    quiet = not console.is_terminal
    return track(steps, f"training {name}", console=console, transient=True, disable=quiet)


def main(output: Path, console: Console) -> None:
    """Train the four networks, show each report, and write it to ``output/NAME/`` in every format.

    The faulty networks are repaired and trained again.

    Raises:
        MissingPackageError: scikit-learn is not installed.
        OutputError: ``output`` cannot be written to.
    """
    diagnosed: list[tuple[Network, Report, Repaired | None]] = []
    data = digits()
    for network in networks(lambda steps, name: _track(steps, name, console)):
        report = nndiag.check(
            network.model,
            network.batch,
            network.target,
            loss_fn=F.cross_entropy,
            config=False,  # ignore the settings of the project that this runs in
        )
        console.print()
        console.rule(network.name, align="left")
        console.print(network.story)
        console.print(f"Accuracy on unseen images: {network.accuracy:.1%}\n")
        console.print(report)
        save(report, output / network.name)
        repaired = None if report.ok else repaired_from(network, data)
        if repaired is not None:
            console.print(f"\n{network.name}, repaired\n", style="bold")
            console.print(repaired.repair)
            console.print(
                f"Accuracy on unseen images after {network.recipe.steps} training steps: "
                f"{repaired.accuracy:.1%}; without the repair it was {network.accuracy:.1%}."
            )
            repaired.repair.save(output / network.name, force=True)
        diagnosed.append((network, report, repaired))

    console.print()
    console.print(summary(diagnosed))
    index = {
        output / "index.md": jinja2.Environment(trim_blocks=True).from_string(INDEX_MD),
        output / "index.html": jinja2.Environment(autoescape=True).from_string(INDEX_HTML),
    }
    words = {
        "diagnosed": diagnosed,
        "verdict": verdict,
        "leading": leading,
        "repaired_accuracy": repaired_accuracy,
    }
    files.write({path: template.render(words) for path, template in index.items()})
    console.print(f"All reports: {output / 'index.html'}", markup=False, soft_wrap=True)


def save(report: Report, folder: Path) -> None:
    """Save a report in all formats."""
    report.to_html(folder / "report.html")
    report.to_json(folder / "report.json")
    report.to_csv(folder)
    files.write({folder / "report.md": report.to_markdown()})


def summary(diagnosed: Iterable[tuple[Network, Report, Repaired | None]]) -> Table:
    table = Table(title="The four at a glance", title_justify="left")
    table.add_column("network")
    table.add_column("accuracy", justify="right")
    table.add_column("verdict")
    table.add_column("leading finding")
    table.add_column("repaired", justify="right")
    for network, report, repaired in diagnosed:
        cells = (verdict(report), leading(report), repaired_accuracy(repaired))
        table.add_row(network.name, f"{network.accuracy:.1%}", *cells)
    return table


def verdict(report: Report) -> str:
    """The report in one word; "unclear" if a rule crashed and there are no findings."""
    return "healthy" if report.ok else "sick" if report.at_least("warning") else "unclear"


def repaired_accuracy(repaired: Repaired | None) -> str:
    return "" if repaired is None else f"{repaired.accuracy:.1%}"


def leading(report: Report) -> str:
    """The rule and layer of the first error or warning."""
    severe = report.at_least("warning")
    return f"{severe[0].rule} at {severe[0].layer}" if severe else "none"


INDEX_MD = """\
# Four networks, diagnosed

| network | accuracy | verdict | leading finding | repaired | reports |
| --- | ---: | --- | --- | ---: | --- |
{% for network, report, repaired in diagnosed %}
| {{ network.name }} | {{ "{:.1%}".format(network.accuracy) }} | {{ verdict(report) }} \
| {{ leading(report) }} | {{ repaired_accuracy(repaired) }} \
| [HTML]({{ network.name }}/report.html), \
[Markdown]({{ network.name }}/report.md), [JSON]({{ network.name }}/report.json), \
[CSV]({{ network.name }}/findings.csv) |
{% endfor %}
"""

INDEX_HTML = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Four networks, diagnosed</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em }
  .sick { color: #b00020 } .healthy { color: #1b6e2c }
</style>
<h1>Four networks, diagnosed</h1>
{% for network, report, repaired in diagnosed %}
<h2>{{ network.name }}: <span class="{{ verdict(report) }}">{{ verdict(report) }}</span></h2>
<p>{{ network.story }}</p>
<p>Accuracy on unseen images: {{ "{:.1%}".format(network.accuracy) }}.
Leading finding: {{ leading(report) }}.</p>
<p><a href="{{ network.name }}/report.html">Report</a>, also as
<a href="{{ network.name }}/report.md">Markdown</a>,
<a href="{{ network.name }}/report.json">JSON</a> and CSV
(<a href="{{ network.name }}/findings.csv">findings</a>,
<a href="{{ network.name }}/layers.csv">layers</a>,
<a href="{{ network.name }}/parameters.csv">parameters</a>).</p>
{% if repaired %}
<p><a href="{{ network.name }}/repair.html">Repaired</a> by \
{{ repaired.repair.taken | map(attribute="fix.kind") | join(", ") }}, \
and trained again for as long: accuracy {{ repaired_accuracy(repaired) }}.</p>
{% endif %}
{% endfor %}
"""
