"""Two runs of one network compare as equal, and what was changed is seen: in each form, and a
sample of what ``python -m comparison`` measures.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import nndiag
from comparison.pairs import EDITS, RECIPES, run
from nndiag.cli import app
from nndiag.render import comparison as render
from nndiag.render import story
from nndiag.report import Report
from nndiag.rule import Finding, Rule, Threshold


def network(seed: int, *, norm: bool = False, width: int = 48, names: str = "") -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[tuple[str, nn.Module]] = []
    for i in range(4):
        layers.append((f"{names}linear{i}", nn.Linear(width, width)))
        if norm:
            layers.append((f"{names}norm{i}", nn.LayerNorm(width)))
        layers.append((f"{names}act{i}", nn.Tanh()))
    layers.append((f"{names}head", nn.Linear(width, 5)))
    model = nn.Sequential()
    for name, layer in layers:
        model.add_module(name, layer)
    return model


def report(model: nn.Module, seed: int, width: int = 48, change=lambda x: x) -> Report:
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(128, width, generator=generator)
    y = torch.randint(0, 5, (128,), generator=generator)
    return nndiag.check(model, change(x), y, nn.functional.cross_entropy, config=False)


OLD = report(network(0), 0)


def test_a_report_is_the_same_as_itself():
    found = OLD.compare(OLD)

    assert found.same
    assert not found.regressed
    assert found.differences == found.appeared == found.vanished == found.worse == ()
    assert all(pair.old is pair.new for pair in found.layers)
    assert [pair.new for pair in found.parameters] == list(OLD.snapshot.parameters)


@pytest.mark.parametrize("seed", range(1, 6))
def test_another_seed_and_another_batch_are_the_same(seed):
    assert OLD.compare(report(network(seed), seed)).same


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", RECIPES)
def test_two_runs_of_a_network_of_any_family_are_the_same(name):
    pair = [run(RECIPES[name], 0, seed) for seed in (7, 8)]

    found = pair[0].compare(pair[1])

    assert found.same, str(found)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("change", EDITS)
@pytest.mark.parametrize("name", ["digits-mlp-relu", "digits-cnn-batchnorm", "text-gpt"])
def test_what_was_changed_is_seen(name, change):
    old, new = run(RECIPES[name], 0, 3), run(RECIPES[name], 0, 4, EDITS[change])
    if new is None:
        assert (name, change) in {
            ("digits-mlp-relu", "no normalisation"), ("text-gpt", "input × 2"),
            ("text-gpt", "another activation"),
        }  # fmt: skip
        return

    found = old.compare(new)

    assert not found.same
    kind = {"weights × 1.5": "parameter", "input × 2": "input"}.get(change, "structure")
    assert kind in {d.kind for d in found.differences}


def test_one_layer_too_large_is_named_and_its_ratio_told():
    model = network(1)
    with torch.no_grad():
        model.linear2.weight.mul_(1.5)

    found = OLD.compare(report(model, 1))

    [difference] = [d for d in found.differences if d.kind == "parameter"]
    assert (difference.name, difference.what) == ("linear2.weight", "scale")
    assert difference.new / difference.old == pytest.approx(1.5, rel=0.1)
    assert difference.size == pytest.approx(abs(math.log(difference.new / difference.old)))
    assert difference.size > difference.band > 0
    assert "× 1.5" in str(found) or "× 1.4" in str(found)


def test_a_shifted_input_is_seen():
    found = OLD.compare(report(network(1), 1, change=lambda x: x + 2))

    assert {d.what for d in found.differences if d.kind == "input"} == {"mean", "scale"}


def test_other_names_are_no_difference():
    found = OLD.compare(report(network(1, names="block_"), 1))

    assert found.same
    assert all(pair.renamed for pair in (*found.layers, *found.parameters))
    assert [(p.old.name, p.new.name) for p in found.layers][:2] == [
        ("linear0", "block_linear0"), ("act0", "block_act0"),
    ]  # fmt: skip


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 32)  # (steps, samples, features)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0][-1])


def test_another_number_of_samples_and_of_steps_is_no_difference():
    reports = []
    for seed, (steps, samples) in enumerate(((7, 128), (11, 200))):
        torch.manual_seed(seed)
        x, y = torch.randn(steps, samples, 8), torch.randint(0, 5, (samples,))
        reports.append(nndiag.check(Reader(), x, y, nn.functional.cross_entropy, config=False))

    assert reports[0].compare(reports[1]).same, str(reports[0].compare(reports[1]))


def test_another_width_is_a_difference():
    found = OLD.compare(report(network(1, width=64), 1, width=64))

    assert {"units", "shape"} <= {d.what for d in found.differences}


def test_a_layer_less_in_a_sequential_is_that_layer_and_not_all_after_it():
    def numbered(model: nn.Sequential) -> nn.Sequential:
        return nn.Sequential(*model.children())

    old = report(numbered(network(0, norm=True)), 0)

    found = old.compare(report(numbered(network(1)), 1))

    gone = [d.text for d in found.differences if d.what == "layer"]
    assert gone == [f"{i} (layer_norm) is gone" for i in (1, 4, 7, 10)]
    assert {d.name for d in found.differences if d.what == "parameter"} == {
        f"{i}.{p}" for i in (1, 4, 7, 10) for p in ("weight", "bias")
    }
    assert {d.kind for d in found.differences} <= {"structure", "activation", "gradient"}
    fates = {row["layer"]: row["differs"] for row in render.layer_rows(found)[:9]}
    # What is gone had the names of what is there, and says nothing of that.
    numbers = {d.name for d in found.differences if d.kind != "structure"}
    assert {name for name, fate in fates.items() if fate} == numbers & fates.keys()
    assert [row["differs"] for row in render.layer_rows(found)[9:]] == ["gone"] * 4


def test_a_value_that_is_not_finite_is_a_difference_and_a_regression():
    model = network(1)
    with torch.no_grad():
        model.linear1.bias[0] = math.inf

    found = OLD.compare(report(model, 1))

    assert found.regressed
    assert any(c.finding.rule == "non-finite" and c.counts for c in found.appeared)
    assert OLD.compare(OLD).same
    back = report(model, 1).compare(OLD)
    assert not back.regressed
    assert any(c.finding.rule == "non-finite" and c.counts for c in back.vanished)


def sick(scale: float, seed: int = 1) -> Report:
    model = network(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return report(model, seed)


def test_a_finding_appears_vanishes_gets_worse_and_better():
    worst, bad = sick(1e-3), sick(1e-2)

    assert "init-scale" in {c.finding.rule for c in OLD.compare(bad).appeared if c.counts}
    assert "init-scale" in {c.finding.rule for c in bad.compare(OLD).vanished if c.counts}
    assert "init-scale" in {c.finding.rule for c in bad.compare(worst).worse}
    assert "init-scale" in {c.finding.rule for c in worst.compare(bad).better}


@pytest.fixture
def measured(monkeypatch):
    """The loss stands in for whatever a rule measures: reports of a rule on it, of any value."""

    def use(threshold: Threshold, is_sick, **more: float):
        module = ModuleType("stub", "A stub.")
        module.RULE = Rule("ND901", "stub", "warning", "activations",
                           thresholds={"value": threshold})  # fmt: skip

        def check(snapshot, limit):
            value = snapshot.loss.value
            if is_sick(value, limit.value):
                yield Finding("stub", "ND901", "warning", "act0", "m", {"value": value} | more,
                              limit.value, measure="value")  # fmt: skip

        module.check = check
        monkeypatch.setattr("nndiag.rules.discover", lambda: {"stub": module})

        def with_value(value: float) -> Report:
            loss = replace(OLD.snapshot.loss, value=value)
            return replace(OLD, snapshot=replace(OLD.snapshot, loss=loss)).judge()

        return with_value

    return use


@pytest.mark.parametrize("side", [1, -1], ids=["above is sick", "below is sick"])
@pytest.mark.parametrize("other", [1.0, 1.3, 1.49, 1.51, 3.0])
def test_a_finding_just_beyond_its_threshold_may_be_chance(measured, side, other):
    with_value = measured(
        Threshold(1.0, "derived: by hand"), lambda value, limit: (value - limit) * side > 0
    )

    sick, well = with_value(2.0**side), with_value(1 / (other * 1.001) ** side)

    [change] = sick.compare(well).vanished
    assert change.borderline == (other < 1.5)
    [change] = well.compare(sick).appeared
    assert change.borderline == (other < 1.5)
    assert sick.compare(well).same == (other < 1.5)
    assert well.compare(sick).regressed == (other > 1.5)


@pytest.mark.parametrize(("rows", "borderline"), [(10, True), (2000, False), (None, False)])
def test_a_share_of_few_rows_is_what_chance_makes_of_it(measured, rows, borderline):
    """Half of ten rows against a fifth: of so few, chance moves a share by more than that."""
    more = {} if rows is None else {"rows": rows}
    with_value = measured(
        Threshold(0.5, "derived: by hand", high=1, unit="share"),
        lambda value, limit: value >= limit,
        **more,
    )

    for value in (0.5, 0.6):
        [change] = with_value(0.2).compare(with_value(value)).appeared
        assert change.borderline == borderline


def test_a_rule_that_did_not_run_before_has_not_appeared():
    quiet = OLD.judge(ignore=["init-scale"])

    assert quiet.compare(sick(1e-2)).appeared == tuple(
        c for c in quiet.compare(sick(1e-2)).appeared if c.finding.rule != "init-scale"
    )


# -- formats, command ---------------------------------------------------------------------------

CHANGED = OLD.compare(sick(1e-2))


def test_every_difference_and_change_is_told_in_every_form(tmp_path):
    CHANGED.to_html(tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    text, comment = str(CHANGED), CHANGED.to_markdown(tmp_path / "c.md")

    assert (tmp_path / "c.md").read_text() == comment
    for shown in (text, comment, page):
        assert "linear0.weight" in shown
        assert "init-scale" in shown
        assert render.verdict(CHANGED) in shown
    assert "<h1>Sequential</h1>" in page
    assert repr(CHANGED) == f"<Comparison: {render.verdict(CHANGED)}; print() shows it>"
    notebook = CHANGED._repr_mimebundle_()
    assert notebook["text/plain"] == text
    assert render.verdict(CHANGED) in notebook["text/html"]
    assert "linear0.weight" in notebook["text/html"]


def test_layers_stand_side_by_side_old_and_new():
    std = [story.number(r.snapshot.by_name["linear0"].output.std) for r in (OLD, CHANGED.new)]

    for text in (str(CHANGED), CHANGED.to_markdown()):
        [line] = [li for li in text.splitlines() if li.split()[:2] in (["linear0", std[0]],)
                  or li.startswith("| linear0 |")]  # fmt: skip
        assert f"{std[0]} → {std[1]}" in line
    rows = render.layer_rows(CHANGED)
    assert [row["layer"] for row in rows] == [x.name for x in CHANGED.new.snapshot.layers]
    for row in rows:
        for when, side in (("old", OLD), ("new", CHANGED.new)):
            layer = side.snapshot.by_name[row["layer"]]
            assert row[f"std, {when}"] == layer.output.std
            assert row[f"gradient rms, {when}"] == layer.grad.rms


@pytest.mark.exhaustive
def test_a_comment_is_never_too_long():
    layer = OLD.snapshot.layers[0]
    layers = tuple(replace(layer, name=f"layer{'x' * 480}{i}") for i in range(3000))
    many = replace(OLD, snapshot=replace(OLD.snapshot, layers=layers))

    assert len(OLD.compare(many).to_markdown().encode()) <= 60_000


@pytest.fixture
def saved(tmp_path):
    OLD.to_json(tmp_path / "old.json")
    report(network(1), 1).to_json(tmp_path / "same.json")
    sick(1e-2).to_json(tmp_path / "new.json")
    return tmp_path


@pytest.mark.parametrize("form", ["terminal", "markdown", "html"])
def test_the_command_says_whether_anything_differs(saved, form):
    command = CliRunner()

    same = command.invoke(
        app, ["compare", str(saved / "old.json"), str(saved / "same.json"), "--format", form]
    )
    other = command.invoke(
        app, ["compare", str(saved / "old.json"), str(saved / "new.json"), "--format", form]
    )

    assert (same.exit_code, other.exit_code) == (0, 1)
    assert "No difference beyond chance." in same.stdout
    assert "Different:" in other.stdout


def test_the_command_writes_a_file_and_says_the_verdict(saved):
    out = saved / "deep" / "c.html"

    done = CliRunner().invoke(
        app,
        ["compare", str(saved / "old.json"), str(saved / "new.json"), "--format", "html",
         "--output", str(out)],
    )  # fmt: skip

    assert done.exit_code == 1
    assert "Different:" in done.stdout
    assert out.read_text().startswith("<!doctype html>")


def test_what_was_saved_compares_as_what_was_not(saved):
    loaded = Report.from_json(saved / "old.json").compare(Report.from_json(saved / "new.json"))

    assert str(loaded) == str(CHANGED)
    assert json.loads((saved / "old.json").read_text())["schema"] == 1
