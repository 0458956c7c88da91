"""Values inside fused calls, recomputed from the inputs of the call.

Attention weights inside a fused kernel are recomputed for a sample of query rows; the gates of
LSTM, GRU and RNN for a sample of sequences. Neither touches the model or its random generators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nndiag import activations, ops
from nndiag.layout import Pending, as_double, readable, sample_positions

__all__ = [
    "HEADS",
    "MASKED",
    "ONE_HOT",
    "ROWS",
    "SEQUENCES",
    "attention_rows",
    "gates",
    "one_hot_rows",
    "reads",
]

# A softmax row whose largest entry is p has slope at most p (1 - p); 5 % of its maximum 1/4 is
# reached at p = 0.9873 (the same 5 % as for every other activation).
ONE_HOT = 0.5 + math.sqrt(0.25 - activations.SATURATED_SLOPE * 0.25)
# Masks add -inf, the smallest finite number, -1e9 or -1e4; real scores are not that low.
MASKED = -5e3
ROWS = 64
HEADS = 32
SEQUENCES = 32


@torch.no_grad()
def one_hot_rows(op: str, scores: torch.Tensor, dim: int) -> Pending:
    """How many softmax rows over ``dim`` have at least two visible entries, and are one-hot."""
    moved = readable(scores).movedim(dim, -1)
    return _count_rows(-moved if op == "softmin" else moved)


def _count_rows(scores: torch.Tensor, visible: torch.Tensor | None = None) -> Pending:
    """``visible``: which entries are not masked; None takes scores above ``MASKED``."""
    if visible is None:
        visible = scores > MASKED
    visible = visible & torch.isfinite(scores)
    judged = visible.sum(-1) >= 2
    top = scores.masked_fill(~visible, -math.inf).softmax(-1).nan_to_num(0.0).amax(-1)
    counts = torch.stack([judged.sum(), (judged & (top > ONE_HOT)).sum()])
    return Pending(as_double(counts), _read_rows)


def _read_rows(values: np.ndarray) -> dict[str, float]:
    return {"rows_count": float(values[0]), "one_hot_count": float(values[1])}


@torch.no_grad()
def attention_rows(op: str, bound: Mapping[str, Any]) -> tuple[Pending | None, str]:
    """Counts of attention rows, for a fixed sample of queries; or why they are not known."""
    query, key = bound["input"], bound["key"]
    if query.is_nested or key.is_nested:
        return None, "its attention weights: nested tensors are not looked into"
    with torch.autocast(query.device.type, enabled=False):
        if op == "scaled_dot_product_attention":
            return _fused_rows(query, key, bound), ""
        if bound.get("bias_k") is not None or bound.get("add_zero_attn"):
            return None, "its attention weights: keys are added inside the call"
        return _multi_head_rows(query, key, bound), ""


def _fused_rows(query: torch.Tensor, key: torch.Tensor, bound: Mapping[str, Any]) -> Pending:
    if query.dim() > 3 and key.shape[-3] != query.shape[-3]:  # grouped queries share a key's head
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    lead = np.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    query, key = query.expand(*lead, -1, -1), key.expand(*lead, -1, -1)
    mask = bound.get("attn_mask")
    if mask is not None and mask.dtype == torch.bool:  # True means visible
        mask = _additive_mask(~mask)
    causal = bool(bound.get("is_causal", False))
    return _sampled_rows(query, key, mask, causal, bound.get("scale"))


def _multi_head_rows(query: torch.Tensor, key: torch.Tensor, bound: Mapping[str, Any]) -> Pending:
    mask, padding = bound.get("attn_mask"), bound.get("key_padding_mask")
    if query.dim() == 2:  # unbatched
        query, key = query.unsqueeze(1), key.unsqueeze(1)
        padding = None if padding is None else padding.unsqueeze(0)
    heads = int(bound["num_heads"])
    weights, bias = bound.get("in_proj_weight"), bound.get("in_proj_bias")
    if bound.get("use_separate_proj_weight") or weights is None:
        wq, wk = bound["q_proj_weight"], bound["k_proj_weight"]
    else:
        wq, wk, _ = weights.chunk(3)
    bq, bk = (None, None) if bias is None else bias.chunk(3)[:2]
    q = _heads(F.linear(query.to(wq.dtype), wq, bq), heads)
    k = _heads(F.linear(key.to(wk.dtype), wk, bk), heads)
    combined = None
    if mask is not None:
        combined = _additive_mask(mask) if mask.dtype == torch.bool else mask  # True means hidden
        if mask.dim() == 3:
            combined = combined.reshape(*q.shape[:2], *mask.shape[1:])
    if padding is not None:
        extra = _additive_mask(padding) if padding.dtype == torch.bool else padding
        combined = extra[:, None, None] if combined is None else combined + extra[:, None, None]
    return _sampled_rows(q, k, combined, False, None)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(L, N, E) -> (N, heads, L, E / heads)."""
    return x.reshape(*x.shape[:2], heads, -1).permute(1, 2, 0, 3)


def _additive_mask(hidden: torch.Tensor) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device).masked_fill_(
        hidden, -math.inf
    )


def _sampled_rows(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: Any
) -> Pending:
    q, k = query.detach().float(), key.detach().float()
    length, source = q.shape[-2], k.shape[-2]
    lead = q.shape[:-2]
    heads = sample_positions((math.prod(lead),), HEADS, q.device)[0]
    rows = sample_positions((length,), ROWS, q.device)[0]
    q = q.reshape(-1, *q.shape[-2:])[heads][:, rows]
    k = k.reshape(-1, *k.shape[-2:])[heads]
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else float(scale))
    visible = torch.ones_like(scores, dtype=torch.bool)
    if mask is not None:
        full = mask.detach().float().expand(*lead, length, source)
        added = full.reshape(-1, length, source)[heads][:, rows]
        scores, visible = scores + added, added > MASKED
    if causal:
        visible = visible & (torch.arange(source, device=q.device) <= rows[:, None])
    return _count_rows(scores, visible)


@torch.no_grad()
def reads(x: torch.Tensor) -> Pending | None:
    """Numbers about what a recurrent call reads, of a sample of its rows; None for no tensor."""
    if x.dim() not in (2, 3) or not x.numel():
        return None
    rows = x.detach().reshape(-1, x.shape[-1])
    rows = as_double(rows[sample_positions((len(rows),), 16 * SEQUENCES, rows.device)[0]])
    finite = rows.isfinite()
    known = rows.where(finite, 0.0)
    count = finite.sum(0).clamp_min(1)
    mean = known.sum(0) / count
    std = ((known - mean).square().where(finite, 0.0).sum(0) / count).sqrt()
    times = (mean.abs() / std).where(std > 1e-6 * mean.abs(), 0.0).median()
    scales = std.where(std > 0, math.inf).amin(), std.amax()
    lost = (~finite).sum()
    square = (known.square().sum() / finite.sum().clamp_min(1)).sqrt()
    numbers = [square, known.amin(), known.amax(), times, *scales, lost]
    return Pending(torch.stack([n.double() for n in numbers]), _read_reads)


def _read_reads(values: np.ndarray) -> dict[str, float]:
    names = ("rms", "min", "max", "times", "least_std", "most_std", "nonfinite_count")
    return {f"read_{name}": float(v) for name, v in zip(names, values, strict=True)}


@torch.no_grad()
def gates(op: str, args: Sequence[Any]) -> tuple[Pending | None, str]:
    """Saturation of the gates of a recurrent call, or why they cannot be recomputed.

    Layer by layer: the layer is run alone on the same input (torch's own kernel, without dropout),
    which gives its hidden state at every step, and from those the gates' pre-activations follow:
    z_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh (torch.nn.LSTM, GRU, RNN documentation).
    """
    kind = op.removesuffix("_cell")
    if not ops.named(kind).gates:
        return None, ""
    with torch.autocast(args[0].device.type, enabled=False):
        if op.endswith("_cell"):
            x, hidden, *own = args
            h = hidden[0] if isinstance(hidden, (tuple, list)) else hidden
            return _saturated(kind, [_pre_activations(kind, x, h, own)]), ""
        return _layer_gates(kind, args)


def _layer_gates(kind: str, args: Sequence[Any]) -> tuple[Pending | None, str]:
    x, hx, weights, has_bias, layers, dropout, train, bidirectional, *rest = args
    if not rest or x.dim() != 3:  # a packed sequence, whose arguments are different
        return None, "its gates are not recomputed for packed sequences"
    per_direction = 4 if has_bias else 2
    directions = 2 if bidirectional else 1
    if len(weights) != per_direction * layers * directions:
        return None, "its gates are not recomputed for an LSTM with projections"
    batch = 0 if rest[0] else 1
    picked = sample_positions((x.shape[batch],), SEQUENCES, x.device)[0]
    flat_weights = [w.detach() for w in weights]
    x = x.detach().to(flat_weights[0].dtype).index_select(batch, picked)
    states = [
        s.detach().to(flat_weights[0].dtype).index_select(1, picked)
        for s in (hx if isinstance(hx, (tuple, list)) else [hx])
    ]
    kernel = getattr(torch._VF, kind)
    pre_activations = []
    for layer in range(layers):
        first = layer * directions
        layer_weights = flat_weights[first * per_direction : (first + directions) * per_direction]
        start = tuple(s[first : first + directions].contiguous() for s in states)
        hidden = start if kind == "lstm" else start[0]
        settings = (has_bias, 1, 0.0, False, bidirectional, bool(rest[0]))
        out = kernel(x, hidden, layer_weights, *settings)[0]
        for d, h in enumerate(out.chunk(directions, -1)):
            steps = h.shape[1 - batch]
            if d == 0:
                parts = [start[0][d].unsqueeze(1 - batch), h.narrow(1 - batch, 0, steps - 1)]
            else:  # runs from the end
                parts = [h.narrow(1 - batch, 1, steps - 1), start[0][d].unsqueeze(1 - batch)]
            before = torch.cat(parts, 1 - batch)
            pre_activations.append(
                _pre_activations(
                    kind, x, before, layer_weights[d * per_direction : (d + 1) * per_direction]
                )
            )
        x = out
    dropped = layers > 1 and dropout and train
    why = "its gates beyond the first layer are recomputed without the dropout between layers"
    return _saturated(kind, pre_activations), why if dropped else ""


def _pre_activations(
    kind: str, x: torch.Tensor, h: torch.Tensor, own: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """Pre-activations of each gate, in the order of its ``Op.gates``."""
    w_ih, w_hh, b_ih, b_hh = (*own, None, None)[:4]
    assert w_ih is not None
    assert w_hh is not None
    a = F.linear(x.detach().to(w_ih.dtype), w_ih, b_ih)
    b = F.linear(h.detach().to(w_hh.dtype), w_hh, b_hh)
    if kind == "gru":
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        return [ar + br, az + bz, an + torch.sigmoid(ar + br) * bn]
    if kind == "lstm":
        i, f, g, o = (a + b).chunk(4, -1)
        return [i, f, o, g]
    return [a + b]


def _saturated(kind: str, pre_activations: list[list[torch.Tensor]]) -> Pending:
    parts, labels = [], ops.named(kind).gates
    for label, *values in zip(labels, *pre_activations, strict=True):
        act = activations.named("tanh" if label in ("candidate", "hidden") else "sigmoid")
        assert act is not None
        edge = act.flat[1][0]
        parts.append(torch.stack([(z.abs() > edge).sum() for z in values]).sum())
    sizes = [sum(z[k].numel() for z in pre_activations) for k in range(len(parts))]

    def read(values: np.ndarray) -> dict[str, float]:
        facts = {
            "saturated_gates_count": float(values.sum()),
            "gates_count": float(sum(sizes)),
        }
        for label, value, size in zip(labels, values, sizes, strict=True):
            facts[f"{label}_saturated_count"] = float(value)
            facts[f"{label}_count"] = float(size)
        return facts

    return Pending(as_double(torch.stack(parts)), read)
