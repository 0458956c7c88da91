"""A fix is data: applied, written and saved it is the same, and does no more than it says."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sick import SICK, applied, bits, facts, make, output, written
from torch import nn

import nndiag
from nndiag import fixes
from nndiag.errors import FixError
from nndiag.fixes.actions import VERBS, Action, grouped, std, written_std
from nndiag.fixes.fix import KINDS, Fix, advice


@pytest.fixture(scope="module")
def treated():
    """Each sick model with its batch and the fixes that can be run on it."""
    return {name: make(name) for name in SICK}


SCALING = ("standardize-input", "scale-output")
"""They add a layer with fixed numbers, and nothing that learns."""

every_sick_model = pytest.mark.parametrize("name", SICK)


# --- every kind, over the sick models ------------------------------------------------------------


def test_the_sick_models_need_every_kind_of_fix_and_every_verb(treated):
    found = [fix for _, _, offered in treated.values() for fix in offered]

    assert {fix.kind for fix in found} == set(KINDS)
    assert {action.verb for fix in found for action in fix.actions} == set(VERBS)


@every_sick_model
def test_the_lines_of_a_fix_do_bitwise_what_it_does(name, treated):
    model, batch, offered = treated[name]
    for fix in offered:
        done, ran = applied(fix, model, batch), written(fix, model, batch)

        assert facts(ran) == facts(done), fix.code()
        assert bits({"": output(ran, batch)}) == bits({"": output(done, batch)}), fix.code()


@every_sick_model
def test_its_targets_are_names_of_the_model_and_its_arguments_plain(name, treated):
    model, _, offered = treated[name]
    names = {n for n, _ in (*model.named_parameters(), *model.named_modules())}
    for fix in offered:
        assert set(fix.targets) <= names
        assert all(type(a) in (int, float, str) for given in fix.arguments for a in given)
        assert bool(fix.targets) == (fix.kind != "recalibrate")


@pytest.mark.one_in(5)
@every_sick_model
def test_a_saved_report_has_the_same_fixes(name, tmp_path):
    torch.manual_seed(0)
    model, batch, loss_fn = SICK[name]()
    report = nndiag.check(model, batch, None, loss_fn)

    report.to_json(tmp_path / "report.json")

    assert nndiag.Report.from_json(tmp_path / "report.json").fixes == report.fixes


@pytest.mark.one_in(5)
@every_sick_model
def test_a_fix_runs_and_gives_the_same_from_the_same_seed(name, treated):
    model, batch, offered = treated[name]
    before = bits(model.state_dict())
    for fix in offered:
        once, again = (applied(fix, model, batch) for _ in range(2))

        assert bits(once.state_dict()) == bits(again.state_dict()), fix.code()
        output(once, batch)
    assert bits(model.state_dict()) == before


@pytest.mark.one_in(5)
@every_sick_model
def test_it_changes_no_more_than_it_says(name, treated):
    model, batch, offered = treated[name]
    before = model.state_dict()
    for fix in offered:
        result = applied(fix, model, batch)
        after = result.state_dict()
        shapes = {key: (value.shape, value.dtype) for key, value in after.items()}
        known = {key: (value.shape, value.dtype) for key, value in before.items()}

        assert known.items() <= shapes.items(), fix.code()
        if fix.kind in SCALING:
            assert list(result.parameters()) != []
            assert {name for name, _ in result.named_parameters()} == {
                name for name, _ in model.named_parameters()
            }
        elif fix.changes != "architecture":
            assert list(after) == list(before), fix.code()
            assert str(result) == str(model), fix.code()
        if fix.changes == "nothing":
            assert bits(after) == bits(before), fix.code()
            a, b = output(copy.deepcopy(model), batch), output(result, batch)
            assert bits({"": a}) == bits({"": b}), fix.code()


@pytest.mark.one_in(5)
@every_sick_model
def test_parameters_are_finite_afterwards(name, treated):
    model, batch, offered = treated[name]
    sick = {n for n, p in model.named_parameters() if not p.isfinite().all()}
    for fix in offered:
        result = applied(fix, model, batch)
        left = {n for n, p in result.named_parameters() if not p.isfinite().all()}

        assert left == (set() if fix.kind in ("reset", "fill-in") else left & sick)


@every_sick_model
def test_what_a_fix_says_is_a_short_sentence_and_its_lines_are_short(name, treated):
    for fix in treated[name][2]:
        assert fix.what.endswith(".")
        assert len(fix.what) <= 90
        assert fix.effect
        assert not fix.effect.endswith(".")
        assert all(len(line) <= 100 for line in fix.code().splitlines())


@every_sick_model
def test_what_changes_the_architecture_says_how_to_change_the_source(name, treated):
    for fix in treated[name][2]:
        # Scaling is better done to the data than by a layer, which is the change of the source.
        assert bool(fix.source) == (fix.changes == "architecture") or fix.kind in SCALING


# --- one by itself -------------------------------------------------------------------------------

TWO = ("0.weight", "1.weight")


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def a_fix(*actions):
    return Fix("redraw", "Re-initialise.", actions=actions)


def test_its_targets_and_arguments_are_those_of_its_actions():
    fix = a_fix(Action("draw-normal", TWO, (1.0, 4)), Action("set-zeros", ("0.bias", "0.weight")))

    assert fix.targets == ("0.weight", "1.weight", "0.bias")
    assert fix.arguments == ((1.0, 4), ())
    assert fix == eval(repr(fix), {"Fix": Fix, "Action": Action})
    assert hash(fix) == hash(replace(fix))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Action("set-ones", ("0.wieght",)), "no parameter called '0.wieght'. Did you mean '0.w"),
        (Action("swap", ("2",), ("ReLU",)), "Sequential has no module called '2'."),
        (Action("lsuv", ("head",)), "Sequential has no module called 'head'."),
    ],
)
def test_a_target_that_is_not_there_is_an_error_before_anything_changes(action, message):
    model = two_layers()
    before = facts(model)

    with pytest.raises(FixError) as raised:
        a_fix(Action("set-zeros", TWO), action).apply(model, torch.randn(8, 4))

    assert message in str(raised.value)
    assert facts(model) == before


@pytest.mark.parametrize("action", [Action("lsuv", ("0",)), Action("recalibrate")])
def test_what_looks_at_data_asks_for_it_before_anything_changes(action):
    model = two_layers()
    before = facts(model)
    fix = a_fix(Action("set-zeros", TWO), action)

    assert fix.needs_batch
    with pytest.raises(FixError, match=r"redraw needs data: pass the batch, apply\(model, batch"):
        fix.apply(model)
    assert facts(model) == before


def test_what_looks_at_no_data_needs_none():
    model = two_layers()

    a_fix(Action("set-zeros", TWO)).apply(model)

    assert not any(model.get_parameter(name).any() for name in TWO)


def test_advice_cannot_be_applied_and_has_no_lines_of_its_own():
    fix = advice("Clean the data.", source="x = x[x.isfinite().all(1)]")

    assert (fix.kind, fix.runnable, fix.targets, fix.code()) == ("advice", False, (), "")
    with pytest.raises(
        FixError, match=r"this is advice for a person and cannot be applied: Clean the data\."
    ):
        fix.apply(two_layers())


def test_a_verb_that_does_not_exist_is_an_error_that_names_the_nearest():
    with pytest.raises(
        FixError, match=r"no action is called 'set-zero'\. Did you mean 'set-zeros'"
    ):
        Action("set-zero", ("0.weight",))


def test_imports_are_written_where_the_lines_need_them():
    swap = a_fix(Action("swap", ("0",), ("LeakyReLU", 0.01)))
    zeros = a_fix(Action("set-zeros", ("0.bias",)))

    line = 'fixes.swap(model, "0", nn.LeakyReLU(0.01))'
    assert swap.code() == f"from nndiag import fixes\n{line}"
    assert swap.code(imports=False) == line
    assert zeros.code() == 'nn.init.zeros_(model.get_parameter("0.bias"))'


def test_safety_depends_on_whether_anything_was_learned():
    offered = [advice("x", changes=c) for c in ("nothing", "scale", "weights", "architecture")]

    assert [fix.safe(trained=False) for fix in offered] == [True, True, True, False]
    assert [fix.safe(trained=True) for fix in offered] == [True, False, False, False]


def test_actions_that_differ_in_their_targets_only_become_one():
    zeros, ones = Action("set-zeros", ("a",)), Action("set-ones", ("a",))
    drawn = [Action("draw-normal", (name,), (1.0, n)) for name, n in (("a", 2), ("b", 3), ("c", 2))]

    assert grouped([zeros, Action("set-zeros", ("b", "a")), ones]) == (
        Action("set-zeros", ("a", "b")), ones,
    )  # fmt: skip
    assert grouped(drawn) == (Action("draw-normal", ("a", "c"), (1.0, 2)), drawn[1])


gains = st.sampled_from([1.0, 2**0.5, 5 / 3, 0.75]) | st.floats(1e-3, 1e3).map(
    lambda gain: float(f"{gain:.6g}")
)


@given(gains, st.integers(1, 10**7))
def test_a_standard_deviation_is_written_as_it_is_computed(gain, fan_in):
    assert eval(written_std(gain, fan_in)) == std(gain, fan_in)
    assert std(gain, fan_in) == pytest.approx(gain / fan_in**0.5, rel=1e-9)


# --- the package ---------------------------------------------------------------------------------


def test_every_public_function_has_a_home_and_is_listed():
    assert set(fixes._HOME) == set(fixes.__all__) <= set(dir(fixes))
    for name, home in fixes._HOME.items():
        assert getattr(fixes, name).__module__ == home


def test_a_function_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'swop'"):
        fixes.swop  # noqa: B018 (reading it is what raises)
