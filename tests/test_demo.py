"""What is true of the four networks, found without nndiag; and that nndiag says the same.

The demo runs once, as it does for its users. What it trained and repaired is looked at here.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import nndiag
import nndiag.testing
from nndiag import demo

RECIPES = {recipe.name: recipe for recipe in demo.RECIPES}
SICK = ("sigmoid-stack", "tanh-10x", "dead-relu")


class Shown(NamedTuple):
    """What the demo printed, the folder it wrote, and what it trained and repaired on the way."""

    printed: str
    folder: Path
    networks: dict[str, demo.Network]
    weights: dict[str, dict[str, torch.Tensor]]  # as each network was trained
    repaired: dict[str, demo.Repaired]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder, printed = tmp_path_factory.mktemp("demo") / "new" / "folder", io.StringIO()
    networks, weights, repaired = {}, {}, {}
    train_all, repaired_from = demo.networks, demo.repaired_from

    def seen_networks(watch):
        for network in train_all(watch):
            networks[network.name] = network
            weights[network.name] = copy.deepcopy(network.model.state_dict())
        return list(networks.values())

    def seen_repaired(network, data):
        repaired[network.name] = repaired_from(network, data)
        return repaired[network.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "networks", seen_networks)
        patch.setattr(demo, "repaired_from", seen_repaired)
        demo.main(folder, Console(file=printed, width=120))
    return Shown(printed.getvalue(), folder, networks, weights, repaired)


@pytest.fixture(scope="module")
def networks(shown):
    return shown.networks


@pytest.fixture(scope="module")
def digits():
    return demo.digits()


def accuracy_of(recipe, digits):
    model = demo.train(recipe, digits)
    return demo.accuracy(model, digits.test_images, digits.test_labels)


def outputs_of(activation, network):
    """What each call of the activation gave, layer by layer, as lists of a unit's values."""
    layers, x = [], network.batch.flatten(1)
    with torch.no_grad():
        for linear in [m for m in network.model.modules() if isinstance(m, nn.Linear)][:-1]:
            x = activation(linear(x))
            layers.append(x.T.tolist())
    return layers


def test_the_batch_is_one_that_was_trained_on(networks, digits):
    for network in networks.values():
        assert network.batch.shape == (256, 1, 8, 8)
        assert torch.equal(network.batch, digits.images[:256])
        assert torch.equal(network.target, digits.labels[:256])


def test_training_and_test_images_are_all_the_digits_and_share_no_image(digits):
    rows = torch.cat([digits.images, digits.test_images]).flatten(1)

    assert len(rows) == 1797
    assert len(rows.unique(dim=0)) == 1797


def test_only_training_pixels_set_the_scale(digits):
    assert digits.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert digits.images.std().item() == pytest.approx(1, abs=1e-5)
    assert abs(digits.test_images.mean().item()) > 1e-4


def test_accuracy_counts_the_right_ones_of_the_unseen_images(networks, digits):
    network = networks["dead-relu"]
    right = 0
    with torch.no_grad():
        for image, label in zip(digits.test_images, digits.test_labels, strict=True):
            right += int(network.model(image[None]).argmax()) == int(label)

    assert network.accuracy == right / 450


def test_accuracy_is_taken_in_eval_mode_and_the_batch_in_train_mode(networks, digits):
    model = copy.deepcopy(networks["healthy-cnn"].model)
    before = copy.deepcopy(model.state_dict())
    demo.accuracy(model, digits.test_images, digits.test_labels)

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.training for module in model.modules())


def test_the_sigmoid_stack_stays_at_chance(networks):
    assert networks["sigmoid-stack"].accuracy < 0.15


def test_the_sigmoid_stack_loses_its_gradient_layer_by_layer(networks):
    network = networks["sigmoid-stack"]
    weights = [m.weight for m in network.model.modules() if isinstance(m, nn.Linear)]
    loss = F.cross_entropy(network.model(network.batch), network.target)
    norms = [float(g.norm()) for g in torch.autograd.grad(loss, weights)]

    assert norms[0] / norms[-1] < 1e-3
    assert all(before < after for before, after in itertools.pairwise(norms))


def test_the_tanh_net_sits_where_tanh_is_flat(networks):
    for layer in outputs_of(torch.tanh, networks["tanh-10x"]):
        flat = [value for unit in layer for value in unit if 1 - value**2 < 0.05]

        assert len(flat) / (128 * 256) > 0.85


def test_the_tanh_net_owes_its_bad_accuracy_to_the_size_of_its_weights(networks, digits):
    xavier = RECIPES["tanh-10x"]._replace(build=lambda: demo.xavier(demo.TanhNet()))

    assert networks["tanh-10x"].accuracy < 0.9
    assert accuracy_of(xavier, digits) > 0.95


def test_half_the_relu_units_are_never_active(networks):
    layers = outputs_of(torch.relu, networks["dead-relu"])
    dead = [sum(not any(value > 0 for value in unit) for unit in layer) for layer in layers]

    assert all(n > 40 for n in dead)
    assert sum(dead) > 150
    assert all(p.isfinite().all() for p in networks["dead-relu"].model.parameters())


def test_the_relu_net_is_killed_by_its_learning_rate(digits):
    gentle = RECIPES["dead-relu"]._replace(optimizer=lambda w: torch.optim.Adam(w, lr=1e-3))
    few = RECIPES["dead-relu"]._replace(steps=10)
    survivor, early = demo.train(gentle, digits), demo.train(few, digits)

    assert share_never_active(survivor, digits) < 0.15
    assert share_never_active(early, digits) > 0.5


def share_never_active(model, digits):
    images, labels = digits.images[:256], digits.labels[:256]
    network = demo.Network("", "", model, images, labels, 0.0, RECIPES["dead-relu"])
    units = [unit for layer in outputs_of(torch.relu, network) for unit in layer]
    return sum(max(unit) <= 0 for unit in units) / len(units)


def test_the_healthy_network_reads_digits(networks):
    assert networks["healthy-cnn"].accuracy > 0.97


@pytest.mark.parametrize(
    "name",
    ["dead-relu"]
    + [pytest.param(name, marks=pytest.mark.exhaustive) for name in RECIPES if name != "dead-relu"],
)
def test_training_again_gives_the_same_network_and_touches_no_global_state(networks, digits, name):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    again = demo.train(RECIPES[name], digits)

    for now, then in zip(again.parameters(), networks[name].model.parameters(), strict=True):
        assert torch.equal(now, then)
    assert demo.accuracy(again, digits.test_images, digits.test_labels) == networks[name].accuracy
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def reports(networks):
    return {
        name: nndiag.check(n.model, n.batch, n.target, loss_fn=F.cross_entropy)
        for name, n in networks.items()
    }


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("sigmoid-stack", "vanishing-gradient"),
        ("tanh-10x", "init-scale"),
        ("dead-relu", "dead-relu"),
    ],
)
def test_the_leading_finding_is_the_disease(reports, name, rule):
    assert reports[name].findings[0].rule == rule
    assert not reports[name].ok


def test_the_healthy_network_gets_a_clean_bill(reports):
    assert reports["healthy-cnn"].ok, reports["healthy-cnn"]


@pytest.mark.parametrize("name", SICK)
def test_a_sick_network_is_repaired_and_then_learns(shown, name):
    network, (repair, accuracy) = shown.networks[name], shown.repaired[name]

    assert repair.ok, repair
    assert repair.trial is not None
    assert repair.trial.verdict == "better"
    assert repair.held_out is not None
    assert repair.held_out[1].ok
    assert accuracy > max(0.94, network.accuracy)
    for key, value in network.model.state_dict().items():
        assert torch.equal(value, shown.weights[name][key]), key


def test_it_ends_in_a_table_of_all_four(shown, networks):
    table = shown.printed.partition("The four at a glance")[2]

    for network in networks.values():
        assert re.search(rf"{network.name} .* {network.accuracy:.1%} ", table)
    assert table.count("sick") == 3
    assert table.count("healthy ") == 1


def test_each_sick_network_ends_repaired_with_its_training_before_and_after(shown):
    assert shown.printed.count("Repaired: ") == 3
    assert shown.printed.count("Better beyond chance: the final loss was") == 3
    for name in SICK:
        page = (shown.folder / name / "repair.html").read_text(encoding="utf-8")
        assert "<!doctype html>" in page


def test_the_accuracy_stands_before_each_report(shown, networks):
    text = re.findall(r"Accuracy on unseen images: (\S+)", shown.printed)

    assert text == [f"{network.accuracy:.1%}" for network in networks.values()]


def test_every_link_of_the_index_leads_to_a_file(shown, networks):
    folder = shown.folder
    in_html = re.findall(r'href="([^"]+)"', (folder / "index.html").read_text(encoding="utf-8"))
    in_markdown = re.findall(r"\]\(([^)]+)\)", (folder / "index.md").read_text(encoding="utf-8"))

    assert len(in_html) == 6 * len(networks) + 3  # and what repaired the sick ones
    assert len(in_markdown) == 4 * len(networks)
    for link in in_html + in_markdown:
        assert (folder / link).stat().st_size > 0, link


def test_a_saved_report_is_the_one_that_was_shown(shown, reports):
    for name, report in reports.items():
        saved = nndiag.Report.from_json(shown.folder / name / "report.json")

        assert [f.message for f in saved.findings] == [f.message for f in report.findings]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch, networks):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(demo, "networks", lambda watch: [networks["healthy-cnn"]])

    with pytest.raises(nndiag.OutputError, match="file"):
        demo.main(tmp_path / "file" / "demo", Console(quiet=True))


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    with pytest.raises(nndiag.NNDiagError, match=re.escape("pip install 'nndiag[demo]'")) as caught:
        demo.main(Path("unused"), Console(quiet=True))

    assert isinstance(caught.value, ImportError)


TRAINED: dict[str, demo.Network] = {}


@pytest.fixture(scope="module", autouse=True)
def _trained(networks):
    """For the models of ``parametrize_with_checks``, which cannot ask for a fixture."""
    TRAINED.update(networks)


def built(name):
    network = TRAINED[name]
    return copy.deepcopy(network.model), network.batch, network.target


@nndiag.testing.parametrize_with_checks(
    {name: functools.partial(built, name) for name in RECIPES},
    loss_fn=F.cross_entropy,
    expected={
        "sigmoid-stack": {"vanishing-gradient": "eight sigmoids in a row: the demo shows it"},
        "tanh-10x": {"init-scale": "weights ten times too large: the demo shows it"},
        "dead-relu": {"dead-relu": "trained at fifty times the rate: the demo shows it"},
    },
)
def test_nndiags_own_plugin_finds_what_a_team_would_expect(check):
    check()
