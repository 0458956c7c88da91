"""repair(): tries the fixes on a copy, keeps what helps, and leaves the model alone."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator

import models
import pytest
import torch
import torch.nn.functional as F
from bitwise import untouched
from torch import nn

import nndiag
from nndiag import rules
from nndiag.errors import FixError, ModelError, NNDiagError, OutputError, SettingsError
from nndiag.fixes import result
from nndiag.fixes.actions import Action
from nndiag.fixes.fix import Fix


def data(samples: int = 256, features: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, features, generator=generator)
    return x, torch.randint(0, 4, (samples,), generator=generator)


def stack(act: type[nn.Module], std: float, depth: int = 10, width: int = 64) -> nn.Sequential:
    """The lecture's network (CS231n 2017 lecture 6 slides 44-50), smaller: N(0, std²/fan_in)."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in in [32] + [width] * (depth - 1):
        linear = nn.Linear(fan_in, width)
        nn.init.normal_(linear.weight, std=std / math.sqrt(fan_in))
        nn.init.zeros_(linear.bias)
        layers += [linear, act()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class Calls(nn.Module):
    """A network whose activations are calls, not modules."""

    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.hidden:
            x = torch.sigmoid(layer(x))
        return self.head(x)


def dead() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    with torch.no_grad():
        model[0].bias[:48] = -100.0
    return model


def fix(model: nn.Module, **options) -> nndiag.Repair:
    options = {"loss_fn": F.cross_entropy, "config": False, **options}
    return nndiag.repair(model, options.pop("batch", data()), **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# -- it repairs ------------------------------------------------------------------------------------


class TestTheLecturesNetworks:
    @pytest.mark.parametrize(
        ("act", "gain"),
        [
            pytest.param(nn.Tanh, 0.1, id="tanh, 0.01·randn (slide 45)"),
            pytest.param(nn.Tanh, 8.0, id="tanh, 1.0·randn (slide 47)"),
            pytest.param(nn.ReLU, 1.0, id="ReLU, Xavier (slide 49)"),
            pytest.param(nn.ReLU, 0.2, id="ReLU, 0.01·randn"),
        ],
    )
    def test_wrong_weights_are_repaired_before_training_and_lose_nothing(self, act, gain):
        found = fix(stack(act, gain))

        assert not found.before.ok
        assert found.ok
        assert {step.fix.changes for step in found.taken} <= {"scale", "weights"}

    @pytest.mark.exhaustive
    @pytest.mark.parametrize(
        ("act", "std"),
        [
            pytest.param(nn.Tanh, 0.01, id="tanh, 0.01·randn (slide 45)"),
            pytest.param(nn.Tanh, 1.0, id="tanh, 1.0·randn (slide 47)"),
            pytest.param(nn.ReLU, 500**-0.5, id="ReLU, Xavier (slide 49)"),
        ],
    )
    def test_at_the_slides_own_size_too(self, act, std):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(10):
            layers += [nn.Linear(500, 500, bias=False), act()]
            nn.init.normal_(layers[-2].weight, std=std)
        x = torch.randn(1000, 500)

        found = nndiag.repair(nn.Sequential(*layers), x, config=False)

        assert found.before.at_least("warning")
        assert found.ok

    @pytest.mark.one_in(2)
    @pytest.mark.parametrize("model", [stack(nn.Sigmoid, 1.0), Calls()], ids=["modules", "calls"])
    def test_sigmoids_are_repaired_by_another_architecture_only(self, model):
        assert not fix(model).ok
        assert fix(model, allow="all").ok

    def test_the_redrawn_network_is_the_lectures_answer(self):
        found = fix(stack(nn.Tanh, 0.1))

        # Slide 48: with Xavier the tenth layer still has a std of 0.2, not 3e-7.
        last = found.after.snapshot.by_name["19"].output
        assert last.std == pytest.approx(0.228, rel=0.25)


def test_a_healthy_network_is_left_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))

    found = fix(model, allow="all")

    assert found.steps == ()
    assert found.patch == "# Nothing to change.\n"
    assert same(found.model, model)
    assert found.model is not model


def test_several_faults_take_several_steps():
    model = stack(nn.ReLU, math.sqrt(2), depth=4)
    model[2].weight.requires_grad_(False)
    with torch.no_grad():
        model[4].bias[:40] = -100.0

    found = fix(model, trained=False)

    assert {"frozen-layer", "dead-relu"} <= {f.rule for f in found.before.at_least("warning")}
    assert found.ok
    assert {step.rule for step in found.taken} == {"frozen-layer", "dead-relu"}
    assert not model[2].weight.requires_grad


# -- it leaves alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("allow", ["safe", "all"])
@pytest.mark.parametrize("make", [dead, Calls, lambda: stack(nn.Tanh, 8.0)])
def test_the_model_its_batch_and_the_process_stay_as_they_were(make, allow):
    model, batch = make(), data()

    with untouched(model, batch):
        fix(model, batch=batch, allow=allow)


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", models.AWKWARD)
def test_awkward_models_are_repaired_or_refused_and_left_alone(name):
    case = models.make(name)

    with untouched(case.model, case.batch), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # copying some of torch's own objects warns
        try:
            found = nndiag.repair(
                case.model, case.batch, loss_fn=case.loss_fn, allow="all", config=False
            )
        except ModelError:
            return
    assert len(found.after.at_least("warning")) <= len(found.before.at_least("warning"))


def test_safe_keeps_every_name_and_shape():
    model = Calls()

    found = fix(model)

    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in found.model.named_parameters()} == shapes
    assert [str(m) for m in found.model.modules()] == [str(m) for m in model.modules()]


def test_what_a_trained_network_learned_is_kept_unless_all_is_allowed():
    model = stack(nn.ReLU, math.sqrt(2), depth=3)
    x, y = data()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        model[2].bias[:50] = -100.0

    safe, everything = fix(model), fix(model, allow="all")

    assert safe.taken == ()
    assert same(safe.model, model)
    assert "the model is trained" in safe.steps[0].reason
    assert everything.ok
    assert "treated as trained" in everything.notes[0]


def test_one_says_oneself_whether_it_was_trained():
    model = dead()  # biases set by hand look like no initialisation

    assert fix(model).taken == ()
    assert fix(model, trained=False).ok


def test_gradients_of_the_function_that_was_are_not_kept():
    model = dead()
    x, y = data()
    F.cross_entropy(model(x), y).backward()

    found = fix(model, trained=False)

    assert model[0].weight.grad is not None
    assert all(p.grad is None for p in found.model.parameters())


# -- it keeps only what helps ----------------------------------------------------------------------


ZERO_BIAS = Action("set-zeros", ("0.bias",))


def proposing(monkeypatch: pytest.MonkeyPatch, *fixes: tuple[Action, ...]) -> None:
    """dead-relu proposes these actions, in this order."""
    module = rules.discover()["dead-relu"]

    def offered(snapshot, layer) -> Iterator[Fix]:
        for actions in fixes:
            yield Fix("redraw", f"do {actions}", changes="weights", actions=actions)

    monkeypatch.setattr(module, "_fixes", offered)


def test_a_fix_that_does_nothing_is_refused(monkeypatch):
    proposing(monkeypatch, (Action("unfreeze-parameter", ("0.weight",)),))

    found = fix(dead(), trained=False)

    assert found.taken == ()
    assert [step.reason for step in found.steps] == ["dead-relu stays as it is"]


def test_a_fix_that_brings_another_fault_is_refused_and_the_next_one_tried(monkeypatch):
    proposing(monkeypatch, (Action("set-ones", ("0.weight",)), ZERO_BIAS), (ZERO_BIAS,))

    found = fix(dead(), trained=False)

    assert [step.taken for step in found.steps] == [False, True]
    assert found.steps[0].reason.startswith("it brings a new")
    assert "symmetry" in found.steps[0].reason
    assert found.ok


def test_a_fix_that_raises_is_refused_and_nothing_of_it_stays(monkeypatch):
    proposing(monkeypatch, (ZERO_BIAS, Action("swap", ("0",), ("ReLU",))))
    model = dead()

    found = fix(model, trained=False)

    [step] = found.steps
    assert step.reason.startswith("it raises FixError: swap: 0 (Linear) owns weight, bias")
    assert same(found.model, model)


def test_a_fix_that_breaks_the_forward_is_refused(monkeypatch):
    proposing(monkeypatch, (Action("insert-after", ("0",), ("LayerNorm", 5)),))

    found = fix(dead(), trained=False)

    assert found.taken == ()
    assert found.steps[0].reason.startswith("it raises CaptureError")


def test_a_fix_that_hurts_on_the_held_out_batch_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    x, y = data()
    for _ in range(50):
        model(x)
    model.eval()
    moved = (x * 9 + 5, y)

    alone = fix(model, batch=moved, allow="all")
    beside = fix(model, batch=moved, allow="all", held_out=(x, y))

    assert [step.fix.kind for step in alone.taken] == ["recalibrate"]
    assert beside.taken == ()
    assert beside.steps[0].reason.startswith("on the held-out batch, it brings a new warning")
    assert beside.held_out is not None
    assert all(report.ok for report in beside.held_out)


def test_a_normalisation_is_tried_before_another_activation_though_that_is_shown_first():
    found = fix(stack(nn.Sigmoid, 1.0), allow="all")

    shown = [f.kind for f in found.before.findings[0].fixes]
    assert shown[:2] == ["swap-activation", "normalize"]
    assert found.steps[0].fix.kind == "normalize"


def test_only_the_named_kinds_of_fix_are_tried():
    found = fix(stack(nn.Tanh, 8.0), only="rescale")

    assert {step.fix.kind for step in found.steps} == {"rescale"}
    assert found.ok


def test_what_is_not_allowed_is_named_with_how_to_allow_it():
    found = fix(Calls())

    refused = [s for s in found.refused if s.fix.changes == "architecture"]
    assert refused
    assert all("allow='all'" in step.reason for step in refused)


# -- what it gives back ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "allow"),
    [
        (dead, "all"),
        (Calls, "all"),
        (lambda: stack(nn.Tanh, 8.0), "safe"),
        (lambda: stack(nn.Sigmoid, 1.0), "all"),
    ],
)
def test_the_patch_makes_the_repaired_model_of_the_old_one(make, allow):
    found = fix(make(), allow=allow)
    model = make()

    exec(found.patch, {"model": model, "batch": data()})

    assert found.taken
    assert same(model, found.model)
    assert str(model) == str(found.model)


def test_the_steps_can_be_taken_on_another_copy_and_from_another_seed():
    found = fix(stack(nn.Tanh, 8.0), only="redraw")
    again, other = stack(nn.Tanh, 8.0), stack(nn.Tanh, 8.0)

    found.apply(again)
    found.apply(other, seed=5)

    assert same(again, found.model)
    assert not same(other, found.model)
    assert nndiag.check(other, data(), loss_fn=F.cross_entropy, config=False).ok


def test_steps_that_look_at_data_ask_for_it():
    found = fix(stack(nn.Tanh, 8.0), only="lsuv", allow="all")
    model = stack(nn.Tanh, 8.0)

    with untouched(model), pytest.raises(FixError, match=r"step 1 \(lsuv\) needs data"):
        found.apply(model)
    found.apply(model, data())

    assert same(model, found.model)


def test_a_repair_is_saved_whole_and_overwrites_nothing_unasked(tmp_path):
    found = fix(dead(), trained=False)

    found.save(tmp_path)

    assert {p.name for p in tmp_path.iterdir()} == {
        "repair.pt", "repair.py", "repair.html", "repair.md",
    }  # fmt: skip
    fresh = dead()
    fresh.load_state_dict(torch.load(tmp_path / "repair.pt", weights_only=True))
    assert same(fresh, found.model)

    (tmp_path / "repair.pt").write_text("dear")
    with pytest.raises(OutputError, match=r"repair\.pt, .* already exists"):
        found.save(tmp_path)
    assert (tmp_path / "repair.pt").read_text() == "dear"
    found.save(tmp_path, force=True)
    assert (tmp_path / "repair.pt").read_bytes() != b"dear"


def test_an_optimiser_that_holds_the_old_parameters_is_named():
    model = dead()
    optimizer = torch.optim.Adam(model.parameters())

    found = fix(model, trained=False)

    assert any(
        "Adam still holds 4 parameters of the original model" in note for note in found.notes
    )
    del optimizer
    assert not any("holds" in note for note in fix(model, trained=False).notes)


def test_what_is_gone_through_once_is_the_same_at_every_check():
    x, y = data(512)
    pieces = list(zip(x.split(128), y.split(128), strict=True))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=128, shuffle=True
    )

    once, listed = (
        fix(dead(), batch=iter(pieces), trained=False),
        fix(dead(), batch=pieces, trained=False),
    )
    shuffled = fix(dead(), batch=loader, trained=False)

    assert once.ok
    assert same(once.model, listed.model)
    assert once.before.snapshot.samples == shuffled.after.snapshot.samples == 512
    assert shuffled.before.snapshot.inputs["input"].mean == pytest.approx(
        shuffled.after.snapshot.inputs["input"].mean
    )


def test_a_model_whose_target_comes_apart_from_its_batch():
    x, y = data()

    found = fix(dead(), batch=x, target=y, trained=False)

    assert found.ok


# -- a rule's story --------------------------------------------------------------------------------


def test_one_fix_is_tried_at_all_places_of_its_rule_at_once():
    model = stack(nn.ReLU, math.sqrt(2), depth=4)
    with torch.no_grad():
        for layer in (model[0], model[4]):
            layer.bias[:40] = -100.0

    found = fix(model, trained=False)

    assert len(found.taken) == 1
    assert found.taken[0].layers == ("1", "5")


def test_what_could_not_be_seen_before_is_no_worsening():
    """NaN hides everything behind it; that a rule can speak again is not the fix's fault."""
    model = stack(nn.ReLU, 0.05, depth=10)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan

    found = fix(model, trained=False)

    assert {f.rule for f in found.before.at_least("warning")} == {"non-finite"}
    assert found.ok
    assert [step.rule for step in found.taken][:2] == ["non-finite", "init-scale"]


def test_what_a_fix_brings_up_and_nothing_fixes_is_taken_back():
    model = stack(nn.ReLU, 0.05, depth=10)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan

    found = fix(model, trained=False, only="reset")

    assert found.taken == ()
    assert (
        found.steps[0].reason == "it led to findings that could not be fixed, so it was taken back"
    )
    assert found.model[0].weight[0, 0].isnan()


# -- bad input -------------------------------------------------------------------------------------


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lock = nn.Linear(32, 4), threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class ResultOfAComputation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 4)
        self.kept = self.layer.weight * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def compiled_inside() -> nn.Module:
    model = dead()
    model[0].compile(backend="eager")
    return model


def quantised() -> nn.Module:
    layer = nn.Linear(32, 4)
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Uncopyable, "a repair works on a copy, and Uncopyable cannot be copied"),
        (ResultOfAComputation, "a repair works on a copy, and ResultOfAComputation cannot be"),
        (lambda: torch.compile(dead(), backend="eager"), "the model is compiled"),
        (compiled_inside, "the model is compiled"),
        (quantised, "0.weight is torch.int8: its values cannot be drawn or scaled"),
        (lambda: nn.LazyLinear(4), "weight is not initialised yet"),
        (lambda: nn.Linear(32, 4, device="meta"), "weight is on the meta device"),
        (lambda: "net", "needs a torch.nn.Module"),
    ],
)
def test_a_model_that_cannot_be_repaired_is_one_clear_error(make, message):
    with pytest.raises(ModelError) as raised:
        fix(make())

    assert message in str(raised.value)


def test_a_scripted_model_is_one_clear_error():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated scripting
        model = torch.jit.script(dead())

    with pytest.raises(ModelError, match="the model is a ScriptModule, whose layers are fixed"):
        fix(model)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"allow": "some"}, SettingsError, 'allow = \'some\': write "safe" or "all".'),
        ({"only": "redrawn"}, FixError, "Did you mean 'redraw'? Choose one of: redraw, rescale"),
        ({"only": ["lsuv", "x"]}, FixError, "no fix is called 'x'."),
        ({"optimizer": 0.1}, SettingsError, "give a function from parameters to an optimiser"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)},
            SettingsError,
            "optimizer is a SGD that holds the parameters of one model",
        ),
        ({"trial_steps": 5, "trial_seeds": 0}, SettingsError, "a trial of 5 steps from 0 seeds"),
        ({"trial_steps": -1}, SettingsError, "a trial of -1 steps"),
        ({"select": "nothing"}, NNDiagError, "no rule is called 'nothing'"),
        ({"batch": torch.randn(8, 3), "loss_fn": None}, NNDiagError, "mat1 and mat2"),
    ],
)
def test_what_cannot_be_asked_for_is_one_clear_error(options, kind, message):
    model = dead()

    with untouched(model), pytest.raises(kind) as raised:
        fix(model, **options)

    assert message in str(raised.value)


def test_the_patch_shows_the_lines_of_each_step_and_they_do_what_it_did():
    found = fix(dead(), trained=False)
    [step] = found.taken
    applied, ran = dead(), dead()

    result.run(step.fix, applied, data(), 0)
    exec(step.fix.code(), {"model": ran, "nn": nn})

    assert same(applied, found.model)
    assert same(ran, found.model)
    assert step.fix.code(imports=False) in found.patch


def test_a_fix_at_several_places_is_one_loop_in_the_patch():
    model = stack(nn.ReLU, math.sqrt(2), depth=4)
    with torch.no_grad():
        for layer in (model[0], model[4]):
            layer.bias[:40] = -100.0

    [step] = fix(model, trained=False).taken

    assert step.fix.what == "Set the biases of 0 to zero; likewise at 1 more place."
    assert step.fix.actions == (Action("set-zeros", ("0.bias", "4.bias")),)


def test_fixes_of_a_report_come_once_each_and_leading_causes_first():
    report = nndiag.check(Calls(), data(), loss_fn=F.cross_entropy, config=False)

    listed = report.fixes

    assert len(set(listed)) == len(listed)
    assert listed[: len(report.findings[0].fixes)] == report.findings[0].fixes
    assert set(listed) == {fix for f in report.findings for fix in f.fixes}
