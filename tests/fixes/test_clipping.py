"""Clipping against torch's, by norm and by value, and what happens to numbers that are none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nndiag.errors import FixError
from nndiag.fixes.clipping import clip_grad_norm_, clip_grad_value_

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
seeds = st.integers(0, 2**32)


def with_grads(*grads):
    """A parameter for each gradient, which may be None."""
    found = []
    for grad in grads:
        found.append(nn.Parameter(torch.zeros(()) if grad is None else torch.zeros_like(grad)))
        found[-1].grad = None if grad is None else grad.clone()
    return found


def of(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


@st.composite
def gradients(draw, dtypes=tuple(DTYPES)):
    """Some gradients of one dtype, none of them tiny, some of them missing."""
    dtype, size = draw(st.sampled_from(dtypes)), draw(st.sampled_from([1.0, 30.0]))
    generator = torch.Generator().manual_seed(draw(seeds))
    return [
        None
        if draw(st.booleans()) and draw(st.booleans())
        else (torch.randn(shape, generator=generator, dtype=torch.float64) * size + 0.1).to(dtype)
        for shape in draw(st.lists(shapes, max_size=5))
    ]


# --- by norm -------------------------------------------------------------------------------------


@given(
    grads=gradients(),
    max_norm=st.sampled_from([0.5, 3.0, 100.0, math.inf]),
    norm_type=st.sampled_from([1.0, 2.0, 3.5, math.inf]),
)
def test_clipping_by_norm_is_torchs(grads, max_norm, norm_type):
    mine = with_grads(*grads)
    exact = with_grads(*(g if g is None else g.double() for g in grads))

    norm = clip_grad_norm_(mine, max_norm, norm_type)

    expected = nn.utils.clip_grad_norm_(exact, max_norm, norm_type)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    rel = {torch.float64: 1e-5, torch.float32: 2e-5}
    for a, b in zip(mine, exact, strict=True):
        if a.grad is not None:
            tolerance = rel.get(a.grad.dtype, torch.finfo(a.grad.dtype).eps)
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=tolerance, atol=1e-5)
        else:
            assert b.grad is None


@given(grads=gradients((torch.float64,)), share=st.floats(0.01, 0.99))
def test_over_the_threshold_the_norm_becomes_the_threshold_and_the_direction_stays(grads, share):
    parameters = with_grads(*grads)
    flat = torch.cat([of(dtype=torch.float64), *(g.flatten() for g in grads if g is not None)])
    norm = flat.norm().item()
    if norm == 0:
        return

    clip_grad_norm_(parameters, share * norm)

    clipped = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    assert clipped.norm().item() == pytest.approx(share * norm)
    assert torch.nn.functional.cosine_similarity(clipped, flat, 0).item() == pytest.approx(1.0)


@given(grads=gradients(), times=st.floats(1.001, 3))
def test_under_the_threshold_not_a_bit_changes(grads, times):
    parameters = with_grads(*grads)
    norm = clip_grad_norm_(parameters, math.inf).item()

    clip_grad_norm_(parameters, times * norm if norm else 1.0)

    for p, grad in zip(parameters, grads, strict=True):
        assert p.grad is None if grad is None else torch.equal(p.grad, grad)


def test_just_under_the_threshold_torch_shrinks_what_stays_here():
    mine, torchs = with_grads(of(3e-6, 4e-6)), with_grads(of(3e-6, 4e-6))

    clip_grad_norm_(mine, 5.5e-6)
    nn.utils.clip_grad_norm_(torchs, 5.5e-6)

    assert torch.equal(mine[0].grad, of(3e-6, 4e-6))
    assert torchs[0].grad.norm() < 4.7e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_no_number_changes_nothing_and_says_where(bad):
    grads = of(3.0, 4.0), of(1.0, bad, 2.0), of(bad)
    parameters = with_grads(*grads)

    with pytest.raises(FixError) as caught:
        clip_grad_norm_(parameters, 1.0)

    norm = "nan" if math.isnan(bad) else "inf"
    assert str(caught.value).startswith(
        f"clip_grad_norm_: the norm of the gradients is {norm}. 2 of 3 gradients have a norm "
        f"that is not finite, first number 1 (f32[3]): {norm}. Nothing was changed: scaling would "
        "make the other gradients wrong, too. Skip "
    )
    for p, grad in zip(parameters, grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=0, equal_nan=True)


def test_torch_spreads_a_nan_to_all_gradients_and_lets_an_infinity_erase_them():
    for bad, left in ((math.nan, [math.nan, math.nan]), (math.inf, [0.0, 0.0])):
        parameters = with_grads(of(3.0, 4.0), of(bad))

        nn.utils.clip_grad_norm_(parameters, 1.0)

        assert parameters[0].grad.tolist() == pytest.approx(left, nan_ok=True)


def test_a_norm_too_large_for_its_dtype_is_no_number_either():
    apart = with_grads(of(3e38), of(3e38))
    with pytest.raises(FixError, match=r"norm of the gradients is inf\. Nothing was changed"):
        clip_grad_norm_(apart, 1.0, norm_type=1)
    assert [p.grad.item() for p in apart] == [of(3e38).item()] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_of_half_precision_is_taken_in_single(dtype):
    ones = [torch.ones(37, 3, dtype=dtype) for _ in range(29)]
    large = [torch.full((100,), 1000.0, dtype=dtype)]  # its square is over float16's 65,504

    norm = clip_grad_norm_(with_grads(*ones), 1e9)

    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(math.sqrt(37 * 3 * 29), rel=1e-6)
    parameters = with_grads(*large)
    assert clip_grad_norm_(parameters, 10.0).item() == pytest.approx(1e4)
    torch.testing.assert_close(parameters[0].grad, torch.ones(100, dtype=dtype))


def test_gradients_of_several_dtypes_are_clipped_as_one():
    parameters = with_grads(of(3.0, dtype=torch.bfloat16), of(4.0, dtype=torch.float64))

    norm = clip_grad_norm_(parameters, 1.0)

    assert norm.item() == 5.0
    assert [p.grad.item() for p in parameters] == pytest.approx([0.6, 0.8], rel=4e-3)
    assert [p.grad.dtype for p in parameters] == [torch.bfloat16, torch.float64]


@pytest.mark.parametrize("parameters", [[], with_grads(None, None)], ids=["none", "no gradients"])
def test_without_gradients_the_norm_is_zero(parameters):
    assert clip_grad_norm_(parameters, 1.0).item() == 0.0
    clip_grad_value_(parameters, 1.0)


@pytest.mark.parametrize(
    "given_as",
    [lambda p: p, lambda p: iter([p]), lambda p: [p, p]],
    ids=["tensor", "generator", "twice"],
)
def test_a_parameter_counts_once_however_it_is_given(given_as):
    (parameter,) = with_grads(of(3.0, 4.0))

    assert clip_grad_norm_(given_as(parameter), 1.0).item() == 5.0
    torch.testing.assert_close(parameter.grad, of(0.6, 0.8))


def test_clipping_keeps_a_run_on_its_course_over_a_cliff():
    """One step at an exploding gradient moves by at most the learning rate times the threshold."""
    w = nn.Parameter(of(1.0, 1.0))
    optimizer = torch.optim.SGD([w], lr=0.1)
    (w**9).sum().mul(1e6).backward()

    clip_grad_norm_([w], 2.0)
    optimizer.step()

    assert (w.detach() - 1).norm().item() == pytest.approx(0.2, rel=1e-5)


# --- by value ------------------------------------------------------------------------------------


@given(grads=gradients(), clip_value=st.sampled_from([0.01, 1.0, 20.0, math.inf]))
def test_clipping_by_value_is_torchs(grads, clip_value):
    mine, torchs = with_grads(*grads), with_grads(*grads)

    clip_grad_value_(mine, clip_value)
    if any(grad is not None for grad in grads):  # else torch raises
        nn.utils.clip_grad_value_(torchs, clip_value)

    for a, b in zip(mine, torchs, strict=True):
        assert a.grad is b.grad is None or torch.equal(a.grad, b.grad)


def test_clipping_by_value_turns_the_direction():
    parameters = with_grads(of(30.0, 1.0))

    clip_grad_value_(parameters, 1.0)

    assert parameters[0].grad.tolist() == [1.0, 1.0]


def test_clipping_by_value_cuts_infinities_and_leaves_nan():
    parameters = with_grads(of(math.inf, -math.inf, math.nan))

    clip_grad_value_(parameters, 2.0)

    assert parameters[0].grad.tolist() == pytest.approx([2.0, -2.0, math.nan], nan_ok=True)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_thresholds_are_more_than_zero(value):
    parameters = with_grads(of(3.0, 4.0))

    for name, clip in {
        "clip_grad_norm_ got max_norm": lambda: clip_grad_norm_(parameters, value),
        "clip_grad_norm_ got norm_type": lambda: clip_grad_norm_(parameters, 1.0, value),
        "clip_grad_value_ got clip_value": lambda: clip_grad_value_(parameters, value),
    }.items():
        with pytest.raises(FixError, match=f"^{name}={value}: give a number above 0"):
            clip()
    assert parameters[0].grad.tolist() == [3.0, 4.0]
