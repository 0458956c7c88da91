"""Initialisation from data: LSUV, centred biases, and biases from class frequencies.

These measure the outputs of layers, which :mod:`nndiag.fixes.initialization` derives from theory.
One forward pass suffices: each layer is set at its first call, before its output is used. The pass
runs in the model's current mode and changes only weights or biases. Buffers (BatchNorm's running
statistics), modes, hooks, gradients and the global random generators are as before, and on an error
so are the parameters.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from nndiag.batch import batches, describe, detached
from nndiag.capture.eager import eager
from nndiag.capture.untouched import SavedState, untouched
from nndiag.errors import FixError, did_you_mean
from nndiag.fixes.initialization import Generator, haar
from nndiag.fixes.matrix import (
    CONVOLUTIONS,
    TRANSPOSED,
    Matrix,
    assign,
    bias_of,
    layer_matrices,
    write,
)
from nndiag.fixes.matrix import (
    layers as layers_of,
)
from nndiag.layout import as_double

__all__ = ["KINDS", "Again", "Settle", "class_prior_bias_", "data_bias_", "lsuv_"]

KINDS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)

Again = Callable[[], torch.Tensor]
Settle = Callable[[str, nn.Module, torch.Tensor, Again], torch.Tensor]
"""(name, layer, its output, function that runs it again) -> its output with the new parameters."""


def lsuv_(
    model: nn.Module,
    batch: Any,
    *,
    orthogonal: bool = True,
    tolerance: float = 0.1,
    attempts: int = 10,
    layers: Iterable[str] | None = None,
    generator: Generator = None,
) -> dict[str, float]:
    """Layer-sequential unit variance: Mishkin & Matas 2015 algorithm 1.

    Linear layers and convolutions start orthonormal (``orthogonal=False``: as they are) and are
    rescaled one after the other, in order of call, W ← W / √Var(output), until the variance is
    within the tolerance of 1, or after so many attempts. The variance is that of all values of the
    output together. One rescaling is exact where biases are zero or equal within the layer, as they
    should be here; they are left alone. Where the spread of the biases alone exceeds 1, no
    scale succeeds and the weights go to zero; the returned variance then stays above 1.

    Layers that did not run, or only inside ``nn.MultiheadAttention`` and recurrent layers, keep
    their weights. A layer called several times, or whose weight another shares, is scaled once, by
    the first call.

    Args:
        batch: what a DataLoader yields, as for :func:`nndiag.check`; of a stream, the first batch.
        layers: names of the layers to scale; None is all.
        tolerance: on the variance, as in the paper. (The authors' PyTorch code has it on the std.)

    Returns:
        The variance reached, by name of the layer, in order of call.

    Raises:
        FixError: an output's variance is zero or not finite; no such layer ran; a setting out of
            its range; or as :func:`nndiag.fixes.matrices`.
        BatchError: the batch does not fit the model.
    """
    if not 0 < tolerance < math.inf or attempts < 1:
        raise FixError(
            f"lsuv_: tolerance = {tolerance}, attempts = {attempts}, but the first must be a "
            "positive number and the second at least 1."
        )
    names = _names(model)
    if layers is not None:
        wanted = set(layers)
        if unknown := wanted - {*names.values()}:
            raise FixError(
                f"lsuv_: no linear layer or convolution is called {min(unknown)!r}."
                f"{did_you_mean(min(unknown), names.values())}"
            )
        names = {layer: name for layer, name in names.items() if name in wanted}
    scaled = {layer: next(layer_matrices(name, layer)) for layer, name in names.items()}
    reached: dict[str, float] = {}
    places: set[int] = set()
    final: dict[Matrix, torch.Tensor] = {}

    def scale(name: str, layer: nn.Module, output: torch.Tensor, again: Again) -> torch.Tensor:
        matrix = scaled[layer]
        if matrix.value.data_ptr() in places:  # a later call, or another layer's weight
            return output
        places.add(matrix.value.data_ptr())
        variance = _checked_variance(name, layer, output)
        for _ in range(attempts):
            if abs(variance - 1) < tolerance:
                break
            matrix.value.div_(math.sqrt(variance))
            assign([matrix])
            output = again()
            variance = _checked_variance(name, layer, output)
        reached[name] = variance
        final[matrix] = matrix.value.clone()
        return output

    with _generators_restored_on_error(generator):
        start = {m: haar(m, generator) for m in scaled.values()} if orthogonal else {}
        with untouched(None, model):
            write(tuple(start), start.__getitem__)
            _settle_layers(model, batch, names, scale)
        write(tuple(final), final.__getitem__)
    return reached


def _checked_variance(name: str, layer: nn.Module, output: torch.Tensor) -> float:
    variance = float(as_double(output.detach()).var(correction=0))
    if 0 < variance < math.inf:
        return variance
    if variance == 0:
        why = "all its values are equal, so no scale makes it 1. Weights or inputs may be zero"
    else:
        why = "inf or NaN entered the layer or came about in it"
    raise FixError(
        f"lsuv_: the output of {name} ({type(layer).__name__}, {describe(output)}) has variance "
        f"{variance:g} on this batch: {why}. The model is as it was. To find the cause, run "
        "nndiag.check(model, batch)."
    )


def data_bias_(model: nn.Module, batch: Any) -> dict[str, float]:
    """Centre each unit's pre-activations on a batch: Salimans & Kingma 2016 section 3.

    In order of call, each linear layer and convolution has the mean of its output over the batch
    (and over positions) taken from its bias, unit by unit, so that every ReLU is active on about
    half of the batch; likewise Kraehenbuehl et al. 2016 section 3.1. Weights are left alone: scale
    them before, with :func:`lsuv_` or by formula. Layers without a bias, that did not run, or whose
    bias was set at an earlier call, are passed over. Before BatchNorm a bias has no effect.

    Args:
        batch: what a DataLoader yields, as for :func:`nndiag.check`; of a stream, the first batch.

    Returns:
        The largest mean, in size, that was taken out, by name of the layer, in order of call.

    Raises:
        FixError: an output is not finite; no layer with a bias ran; or a bias cannot be set.
        BatchError: the batch does not fit the model.
    """
    names = _names(model)
    all_biases = {layer: bias_of(name, layer) for layer, name in names.items()}
    biases = {layer: bias for layer, bias in all_biases.items() if bias is not None}
    removed: dict[str, float] = {}
    final: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def centre(name: str, layer: nn.Module, output: torch.Tensor, again: Again) -> torch.Tensor:
        bias = biases[layer]
        if bias.data_ptr() in final:
            return output
        unit_axis = output.dim() - len(getattr(layer, "kernel_size", ())) - 1
        mean = as_double(output.detach()).movedim(unit_axis, 0).flatten(1).mean(1)
        if not mean.isfinite().all():
            raise FixError(
                f"data_bias_: the output of {name} ({type(layer).__name__}, {describe(output)}) "
                "has no finite mean on this batch. The model is as it was. To find where inf or "
                "NaN comes from, run nndiag.check(model, batch)."
            )
        bias.sub_(mean)
        removed[name] = float(mean.abs().max())
        final[bias.data_ptr()] = bias, bias.clone()
        return again()

    with untouched(None, model):
        _settle_layers(model, batch, {layer: names[layer] for layer in biases}, centre)
    for bias, values in final.values():
        bias.copy_(values)
    return removed


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """The layers to initialise, with their names."""
    layers = [(name, layer) for name, layer in layers_of(model) if isinstance(layer, KINDS)]
    return {layer: name or type(layer).__name__ for name, layer in layers}


@contextlib.contextmanager
def _generators_restored_on_error(generator: Generator) -> Iterator[None]:
    """Context that restores the random generators if an error is raised inside."""
    before = SavedState(None)
    state = None if generator is None else generator.get_state()
    try:
        yield
    except BaseException:
        before.restore()
        if generator is not None and state is not None:
            generator.set_state(state)
        raise


def _settle_layers(
    model: nn.Module, batch: Any, names: Mapping[nn.Module, str], settle: Settle
) -> None:
    """Run one forward and call ``settle`` at each call of one of the layers.

    Use it within :func:`untouched`, which removes the hooks again.
    """
    given = next(batches(batch, model))
    called: set[nn.Module] = set()

    def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        def again() -> torch.Tensor:
            torch.clear_autocast_cache()  # it holds the parameters as they were
            settled: torch.Tensor = layer.forward(*args, **kwargs)
            return settled

        called.add(layer)
        return settle(names[layer], layer, output, again)

    for layer in names:
        # Before the user's own hooks, which then see the output with the new parameters.
        layer.register_forward_hook(hook, prepend=True, with_kwargs=True)
    with torch.no_grad(), eager(), _no_fast_path():
        model(*detached(given.args), **detached(dict(given.kwargs)))
    if not called:
        raise FixError(
            f"none of the linear layers and convolutions of {type(model).__name__} ran: "
            f"{', '.join(names.values()) or 'there are none'}. The model is as it was."
        )


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Context without the fast path of Transformers in eval mode, which calls no layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@torch.no_grad()
def class_prior_bias_(
    head: nn.Module, target: torch.Tensor, classes: int | None = None
) -> nn.Module:
    """Bias of the output layer = log of the classes' frequencies in ``target``.

    Softmax of it gives just these frequencies, so with small weights the loss starts at the entropy
    of the labels and not at ln C: the network need not learn the class frequencies first. A head of
    one unit gets the log-odds of label 1 (Lin et al. 2017 section 3.3, there for rare objects).

    Args:
        head: a layer with a bias, a class for each unit.
        target: the labels of a representative sample, of any shape, as integers from 0.
        classes: how many there are; without it, as many as the head has units.

    Raises:
        FixError: the head has no bias or another number of units; labels that are no integers, out
            of range, or without any of some class, whose log-frequency would be -inf.
    """
    pairs = [(layer, bias_of(name, layer)) for name, layer in layers_of(head)]
    if len(pairs) != 1 or pairs[0][1] is None:
        raise FixError(
            f"class_prior_bias_: {type(head).__name__} is not a single layer with a bias. Give the "
            "output layer itself, such as model.fc."
        )
    bias = pairs[0][1]
    expected = max(2, bias.numel())
    if classes not in (None, expected):
        raise FixError(
            f"class_prior_bias_: classes = {classes}, but the head has {bias.numel()} units, which "
            f"is for {expected} classes."
        )
    if target.is_floating_point() or target.is_complex() or target.numel() == 0:
        raise FixError(
            f"class_prior_bias_: the labels are {describe(target)}, but must be integers, at least "
            "one. Of one-hot labels or probabilities, take target.argmax(1)."
        )
    labels = target.detach().flatten().to(device="cpu", dtype=torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= expected:
        raise FixError(
            f"class_prior_bias_: labels run from {low} to {high}, but {expected} classes have 0 to "
            f"{expected - 1}. Leave out those to be ignored: target[target >= 0]."
        )
    counts = labels.bincount(minlength=expected)
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise FixError(
            f"class_prior_bias_: no label is {', '.join(map(str, missing[:6]))}"
            f"{' …' if missing[6:] else ''}: {len(missing)} of {expected} classes have no "
            "frequency to take the logarithm of. Give more labels, such as those of the whole "
            "training set."
        )
    log = (counts.double() / labels.numel()).log()
    bias.copy_(log if bias.numel() > 1 else log[1] - log[0])
    return head
