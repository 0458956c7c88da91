"""What holds of every awkward model, said once; then what is special to each."""

from __future__ import annotations

import functools

import models
import pytest
from oracle import look, plain, rows, same_numbers

SCRIPTS = ("scripted", "traced")
every_model = pytest.mark.parametrize("name", models.AWKWARD)
# Scripts refuse the hooks that the oracle is made of: they have tests of their own.
hookable = pytest.mark.parametrize("name", [n for n in models.AWKWARD if n not in SCRIPTS])


@functools.cache
def watched(name):
    case = models.make(name)
    return look(case.model, case.batch, case.loss_fn)


@functools.cache
def hooked(name):
    return plain(*models.make(name))


@pytest.mark.one_in(3)
@hookable
def test_every_module_row_says_what_a_plain_hook_sees(name):
    snapshot, seen = watched(name), hooked(name)

    modules = [layer for layer in snapshot.layers if layer.kind != "function"]

    assert modules or name in ("vmapped", "jagged")
    for layer in modules:
        expected = seen.outputs["" if layer.name == "(root)" else layer.name]
        assert layer.shape == tuple(expected.shape), layer.name
        same_numbers(layer.output, expected, rel=1e-4)


@hookable
def test_every_module_row_has_the_gradient_of_plain_autograd_or_says_that_it_has_none(name):
    snapshot, seen = watched(name), hooked(name)

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
    snapshot, seen = watched(name), hooked(name)

    assert [p.name for p in snapshot.parameters] == list(seen.parameters)
    for parameter in snapshot.parameters:
        expected = seen.parameters[parameter.name]
        if expected is None:
            assert parameter.grad is None
        else:
            same_numbers(parameter.grad, expected, rel=1e-3)
            assert parameter.used


@hookable
def test_every_leaf_that_ran_has_a_row_or_is_said_not_to_be_observed(name):
    snapshot, seen = watched(name), hooked(name)

    leaves = {n for n, m in models.make(name).model.named_modules() if not list(m.children())}
    skipped = " ".join(snapshot.not_observed)
    for call in seen.outputs:
        if call.partition("@")[0] in leaves and "parametrizations" not in call:
            assert (call or "(root)") in rows(snapshot) or f"{call}: " in skipped


@every_model
def test_rows_are_unique_and_nodes_come_after_what_they_use(name):
    snapshot = watched(name)

    assert len(set(rows(snapshot))) == len(rows(snapshot))
    for index, node in enumerate(snapshot.nodes):
        assert all(source < index for source in node.inputs)
    for layer in snapshot.layers:
        assert 0 <= layer.node < len(snapshot.nodes)


@pytest.mark.one_in(7)
@every_model
def test_the_same_seed_gives_the_same_numbers(name):
    case = models.make(name)
    first, second = (look(case.model, case.batch, case.loss_fn) for _ in range(2))

    assert first.loss == second.loss
    assert [layer.output.mean for layer in first.layers] == [
        layer.output.mean for layer in second.layers
    ]


@every_model
def test_nothing_of_ours_failed(name):
    snapshot = watched(name)

    assert not [line for line in snapshot.not_observed if "could not" in line]
    assert not [line for layer in snapshot.layers for line in layer.unseen if "could not" in line]
    assert snapshot.backward_error == ""


@every_model
def test_every_sample_is_counted_once(name):
    snapshot = watched(name)

    assert snapshot.samples == models.N
    assert {layer.output.samples for layer in snapshot.layers} <= {models.N}
