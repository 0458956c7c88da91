"""The linear maps in a layer's parameters, each with its fans.

An initialisation needs the fans of one linear map: how many inputs a unit sums (fan_in), and how
many units an input reaches (fan_out). One parameter can hold several maps: an LSTM's weight those
of four gates, attention's those of query, key and value, a grouped convolution's one per group. If
such a weight were taken for one matrix, its fan_out would be too large by their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nndiag.batch import describe
from nndiag.capture.untouched import SavedState, untouched
from nndiag.errors import FixError

__all__ = [
    "CONVOLUTIONS",
    "DTYPES",
    "TRANSPOSED",
    "Matrix",
    "Parametrized",
    "assign",
    "bias_of",
    "layer_matrices",
    "layers",
    "matrices",
    "recurrences",
    "write",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Parametrized:
    """A weight made by ``torch.nn.utils.parametrize``: it can be assigned, not written to."""

    name: str
    whole: torch.Tensor
    """A copy, of which the matrices' values are views."""
    chain: parametrize.ParametrizationList


@dataclass(frozen=True, eq=False)
class Matrix:
    """A linear map in a parameter, or one for each group of a convolution."""

    name: str
    """The parameter's, and which part of it: ``decoder.lstm.weight_ih_l0[f]``."""
    value: torch.Tensor
    """A view: to write here is to write the parameter. Of a parametrized weight, a view of a copy,
    which ``write`` assigns."""
    fan_in: int
    """How many inputs one unit sums."""
    fan_out: int
    """How many units one input reaches."""
    unit_axis: int = 0
    """The axis of ``value`` along which the units lie; those of one group, if it is 1."""
    groups: int = 1
    """As many equal matrices lie along axis 0 of ``value``."""
    bias: torch.Tensor | None = None
    """A view of the units' biases, (units,); None where there is no such parameter."""
    padding: int | None = None
    """The row of an embedding that is zero (``padding_idx``)."""
    parametrized: Parametrized | None = None

    @property
    def units(self) -> int:
        """Of all groups together."""
        return self.value.shape[self.unit_axis] * (self.groups if self.unit_axis else 1)

    def arranged(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` of shape (units, inputs per unit), in the layout of ``value``."""
        if self.unit_axis == 0:
            return rows.reshape(self.value.shape)
        inputs = self.value.shape[0] // self.groups
        by_group = rows.reshape(self.groups, self.value.shape[1], inputs, -1)
        return by_group.transpose(1, 2).reshape(self.value.shape)


def matrices(target: torch.Tensor | nn.Module) -> tuple[Matrix, ...]:
    """Every linear map that ``target`` holds, in order of ``named_modules()``.

    A tensor is the weight of a linear layer or an ungrouped convolution, ``(out, in, *kernel)``. Of
    a module, all layers in it count: linear, bilinear, convolutions, embeddings, recurrent layers
    and cells (a matrix for each gate), attention (one for each projection). Normalisations, biases
    and parameters of other classes are passed over. A tied weight appears once, as what the first
    layer that holds it makes of it.

    Fans (He et al. 2015 section 2.2: n = k² c and n̂ = k² d for a k×k kernel, c channels in and d
    out): of a convolution, channels of the group times taps, whatever the stride.
    ``torch.nn.init`` overlooks the groups in fan_out. Of a transposed one, the taps that meet in a
    pixel, k²/stride², where torch takes the channels the wrong way round. Of an embedding fan_in is
    1, as one row is looked up.

    Raises:
        FixError: no weight there; or one that is empty, 1-D, lazy, meta, sparse, not floating
            point, computed by a hook, or parametrized without a ``right_inverse``.
    """
    if isinstance(target, torch.Tensor):
        _check_drawable("the tensor", target, least=2)
        taps = math.prod(target.shape[2:])
        fans = target.shape[1] * taps, target.shape[0] * taps
        return (Matrix("the tensor", target.detach(), *fans),)
    all_matrices = [m for name, layer in layers(target) for m in layer_matrices(name, layer)]
    if not all_matrices:
        kinds = sorted({type(module).__name__ for module in target.modules()})
        raise FixError(
            f"{type(target).__name__} holds no weight of a layer, only {', '.join(kinds[:6])}. "
            "Linear, bilinear, convolution, embedding, recurrent and attention layers have some; "
            "give any other weight as a tensor, (out, in, *kernel)."
        )
    by_storage: dict[tuple[torch.device, int], Matrix] = {}
    for matrix in all_matrices:
        by_storage.setdefault((matrix.value.device, matrix.value.data_ptr()), matrix)
    return tuple(by_storage.values())


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules with their names, without those that only compute parameters of others.

    Raises:
        FixError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise FixError(
            f"weights are drawn for a torch tensor, a layer or a model, not for {describe(model)}."
        )
    for name, module in model.named_modules():
        if "parametrizations" not in name.split("."):
            yield name, module


def layer_matrices(name: str, layer: nn.Module) -> Iterator[Matrix]:
    """The matrices in the parameters of one layer; none in what is not a layer.

    Raises:
        FixError: as :func:`matrices`.
    """
    if isinstance(layer, nn.Linear):
        yield from _stacked_matrices(name, layer, "weight", "bias")
    elif isinstance(layer, (nn.Bilinear, *CONVOLUTIONS, *TRANSPOSED)):
        value, parametrized = _weight(name, layer, "weight")
        taps = math.prod(value.shape[2:])
        axis, groups = 0, getattr(layer, "groups", 1)
        if isinstance(layer, nn.Bilinear):
            fans = value.shape[1] * value.shape[2], value.shape[0]
        elif isinstance(layer, TRANSPOSED):
            fan_in = value.shape[0] // groups * taps // math.prod(layer.stride)
            axis, fans = 1, (max(1, fan_in), value.shape[1] * taps)
        else:
            fans = value.shape[1] * taps, value.shape[0] // groups * taps
        yield Matrix(
            _full_name(name, "weight"),
            value,
            *fans,
            unit_axis=axis,
            groups=groups,
            bias=_bias(layer, "bias"),
            parametrized=parametrized,
        )
    elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        value, parametrized = _weight(name, layer, "weight")
        yield Matrix(
            _full_name(name, "weight"),
            value,
            fan_in=1,
            fan_out=value.shape[1],
            unit_axis=1,
            padding=layer.padding_idx,
            parametrized=parametrized,
        )
    elif isinstance(layer, nn.RNNBase):
        gates = _gates(layer)
        for end in recurrences(layer):
            yield from _stacked_matrices(name, layer, f"weight_ih_{end}", f"bias_ih_{end}", gates)
            yield from _stacked_matrices(name, layer, f"weight_hh_{end}", f"bias_hh_{end}", gates)
            if layer.proj_size:
                yield from _stacked_matrices(name, layer, f"weight_hr_{end}", None)
    elif isinstance(layer, nn.RNNCellBase):
        yield from _stacked_matrices(name, layer, "weight_ih", "bias_ih", _gates(layer))
        yield from _stacked_matrices(name, layer, "weight_hh", "bias_hh", _gates(layer))
    elif isinstance(layer, nn.MultiheadAttention):
        if layer.kdim == layer.vdim == layer.embed_dim:
            yield from _stacked_matrices(name, layer, "in_proj_weight", "in_proj_bias", "qkv")
        else:
            bias = _bias(layer, "in_proj_bias")
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            for part, b in zip("qkv", biases, strict=True):
                yield from _stacked_matrices(name, layer, f"{part}_proj_weight", b)


def recurrences(layer: nn.RNNBase) -> Iterator[str]:
    """The endings of its parameters' names: ``l0``, ``l0_reverse``, ``l1`` …"""
    for number in range(layer.num_layers):
        yield f"l{number}"
        if layer.bidirectional:
            yield f"l{number}_reverse"


def _gates(layer: nn.Module) -> str:
    """The gates' letters, in the order in which torch stacks them."""
    if isinstance(layer, (nn.LSTM, nn.LSTMCell)):
        return "ifgo"
    return "rzn" if isinstance(layer, (nn.GRU, nn.GRUCell)) else ""


def _stacked_matrices(
    name: str, layer: nn.Module, weight: str, bias: str | torch.Tensor | None, parts: str = ""
) -> Iterator[Matrix]:
    """The matrices (out, in) that are stacked in one weight."""
    value, parametrized = _weight(name, layer, weight)
    if isinstance(bias, str):
        bias = _bias(layer, bias)
    count = max(1, len(parts))
    biases = (None,) * count if bias is None else bias.chunk(count)
    for part, block, b in zip(parts or [""], value.chunk(count), biases, strict=True):
        label = _full_name(name, weight) + (f"[{part}]" if part else "")
        fans = block.shape[1], block.shape[0]
        yield Matrix(label, block, *fans, bias=b, parametrized=parametrized)


def _weight(
    name: str, layer: nn.Module, attribute: str
) -> tuple[torch.Tensor, Parametrized | None]:
    label = _full_name(name, attribute)
    if not parametrize.is_parametrized(layer, attribute):
        value = getattr(layer, attribute)
        _check_drawable(label, value, least=2, parameter=True)
        return value.detach(), None
    chain = layer.get_submodule(f"parametrizations.{attribute}")
    assert isinstance(chain, parametrize.ParametrizationList)
    one_way = [type(p).__name__ for p in chain if not hasattr(p, "right_inverse")]
    if one_way:
        raise FixError(
            f"{label} is made by the parametrization {one_way[0]}, which has no right_inverse: it "
            "cannot be assigned to. Give it one, or draw the weight before parametrizing it."
        )
    for key, original in chain.named_parameters():
        _check_drawable(f"{label} ({key})", original, least=0)
    with untouched(None, chain), torch.no_grad():  # spectral_norm iterates wherever it is read
        whole = chain().clone()
    _check_drawable(label, whole, least=2)
    return whole, Parametrized(label, whole, chain)


def _bias(layer: nn.Module, attribute: str) -> torch.Tensor | None:
    value = getattr(layer, attribute, None)
    return value.detach() if isinstance(value, nn.Parameter) else None


def bias_of(name: str, layer: nn.Module, attribute: str = "bias") -> torch.Tensor | None:
    """A view of the bias, to be written to.

    Raises:
        FixError: it is lazy, meta, not floating point, or made by a hook or a parametrization.
    """
    value = getattr(layer, attribute, None)
    if value is None:
        return None
    _check_drawable(_full_name(name, attribute), value, least=1, parameter=True)
    return torch.Tensor.detach(value)


def _full_name(name: str, attribute: str) -> str:
    return f"{name}.{attribute}" if name else attribute


def _check_drawable(label: str, value: torch.Tensor, least: int, parameter: bool = False) -> None:
    """Raise FixError if a tensor cannot be drawn; ``least``: how many axes it must have."""
    if is_lazy(value):
        raise FixError(
            f"{label} is not initialised yet: its layer is lazy. Run one forward with a real batch "
            "first."
        )
    what = f"{label} ({describe(value)})"
    if parameter and not isinstance(value, nn.Parameter):
        raise FixError(
            f"{what} is no parameter but computed anew at each call, as by the hooks of the old "
            "weight_norm, spectral_norm or pruning of torch.nn.utils: what is written there is "
            "lost. Use torch.nn.utils.parametrizations, or draw the weight before the hook."
        )
    if value.is_meta:
        raise FixError(
            f"{what} is on the meta device: it has a shape but no values. Materialise the model "
            "first, for example with model.to_empty(device='cpu')."
        )
    if value.dtype not in DTYPES or value.layout != torch.strided:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise FixError(f"{what} cannot be drawn: a weight is a dense tensor of {kinds}.")
    if value.dim() < least:
        raise FixError(
            f"{what} has no fans: a weight has at least two axes, (out, in, *kernel). Biases are "
            "set by positive_bias_, forget_bias_, class_prior_bias_ and data_bias_."
        )
    if value.numel() == 0:
        raise FixError(f"{what} is empty: there is nothing to draw. Give every axis a size.")


@torch.no_grad()
def write(targets: Sequence[Matrix], values: Callable[[Matrix], torch.Tensor]) -> None:
    """Set each matrix to its values; none of them if a parametrization refuses.

    Raises:
        FixError: a parametrization refused the values.
    """
    parametrized = [m for m in targets if m.parametrized is not None]
    for matrix in parametrized:
        _write_values(matrix, values(matrix))
    assign(parametrized)  # nothing else has been written when this fails
    for matrix in targets:
        if matrix.parametrized is None:
            _write_values(matrix, values(matrix))


def _write_values(matrix: Matrix, values: torch.Tensor) -> None:
    matrix.value.copy_(values)
    if matrix.padding is not None:
        matrix.value[matrix.padding] = 0


@torch.no_grad()
def assign(targets: Sequence[Matrix]) -> None:
    """Assign the written copies of parametrized weights to their parametrizations.

    Raises:
        FixError: a parametrization refused its values; all weights are as before then.
    """
    weights = {id(m.parametrized): m.parametrized for m in targets if m.parametrized is not None}
    if not weights:
        return
    before = SavedState(None, *(weight.chain for weight in weights.values()))
    for weight in weights.values():
        try:
            weight.chain.right_inverse(weight.whole.clone())
        except Exception as error:
            before.restore()
            kinds = ", ".join(type(p).__name__ for p in weight.chain)
            raise FixError(
                f"{weight.name} cannot be set: its parametrization {kinds} refused the values "
                f"({error}). Nothing was written; draw the weight before parametrizing it."
            ) from error
