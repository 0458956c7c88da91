"""What holds of every awkward model, said once; then what is special to each."""

from __future__ import annotations

import models
import pytest
from oracle import look, plain, row, rows, same_numbers, values

every_model = pytest.mark.parametrize("name", models.AWKWARD)

# A forward hook that changes the output runs after every global one, so after ours too.
OTHER_TENSOR = {"hook-that-changes-the-output": {"0"}}


@every_model
def test_every_module_row_says_what_a_plain_hook_sees(name):
    case = models.make(name)
    snapshot = look(case.model, case.batch, case.loss_fn)
    seen = plain(*models.make(name))

    modules = [layer for layer in snapshot.layers if layer.kind != "function"]

    assert modules or name in ("vmapped", "jagged")
    for layer in modules:
        expected = seen.outputs["" if layer.name == "(root)" else layer.name]
        assert layer.shape == tuple(expected.shape), layer.name
        same_numbers(layer.output, expected, rel=1e-4)


@every_model
def test_every_module_row_has_the_gradient_of_plain_autograd_or_says_that_it_has_none(name):
    case = models.make(name)
    snapshot = look(case.model, case.batch, case.loss_fn)
    seen = plain(*models.make(name))

    for layer in snapshot.layers:
        if layer.kind == "function":
            continue
        expected = seen.gradients.get("" if layer.name == "(root)" else layer.name)
        if expected is None:
            assert layer.grad is None, layer.name
            assert any("gradient not observed" in reason for reason in layer.unseen), layer.name
        else:
            assert layer.grad is not None, layer.name
            same_numbers(layer.grad, expected, rel=1e-3)


@every_model
def test_parameters_have_the_gradients_of_a_plain_backward(name):
    case = models.make(name)
    snapshot = look(case.model, case.batch, case.loss_fn)
    seen = plain(*models.make(name))

    assert [p.name for p in snapshot.parameters] == list(seen.parameters)
    for parameter in snapshot.parameters:
        expected = seen.parameters[parameter.name]
        if expected is None:
            assert parameter.grad is None
        else:
            same_numbers(parameter.grad, expected, rel=1e-3)
            assert parameter.used


@every_model
def test_every_leaf_that_ran_has_a_row_or_is_said_not_to_be_observed(name):
    case = models.make(name)
    snapshot = look(case.model, case.batch, case.loss_fn)
    seen = plain(*models.make(name))

    leaves = {n for n, m in case.model.named_modules() if not list(m.children())}
    skipped = " ".join(snapshot.not_observed)
    for call in seen.outputs:
        if call.partition("@")[0] in leaves and "parametrizations" not in call:
            assert (call or "(root)") in rows(snapshot) or f"{call}: " in skipped


@every_model
def test_rows_are_unique_and_nodes_come_after_what_they_use(name):
    case = models.make(name)
    snapshot = look(case.model, case.batch, case.loss_fn)

    assert len(set(rows(snapshot))) == len(rows(snapshot))
    for index, node in enumerate(snapshot.nodes):
        assert all(source < index for source in node.inputs)
    for layer in snapshot.layers:
        assert 0 <= layer.node < len(snapshot.nodes)


@every_model
def test_the_same_seed_gives_the_same_numbers(name):
    case = models.make(name)
    first = look(case.model, case.batch, case.loss_fn)
    second = look(case.model, case.batch, case.loss_fn)

    assert first.loss == second.loss
    assert [layer.output.mean for layer in first.layers] == [
        layer.output.mean for layer in second.layers
    ]


@every_model
def test_nothing_of_ours_failed(name):
    case = models.make(name)
    snapshot = look(case.model, case.batch, case.loss_fn)

    assert not [line for line in snapshot.not_observed if "could not" in line]
    assert not [line for layer in snapshot.layers for line in layer.unseen if "could not" in line]
    assert snapshot.backward_error == ""


@every_model
def test_every_sample_is_counted_once(name):
    case = models.make(name)
    snapshot = look(case.model, case.batch, case.loss_fn)

    assert snapshot.samples == models.N
    assert {layer.output.samples for layer in snapshot.layers} <= {models.N}
