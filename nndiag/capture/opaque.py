"""What fused calls hide, recomputed from what goes in and comes out of them.

Attention weights inside a fused kernel are recomputed for a sample of query rows; the gates of
LSTM, GRU and RNN for a sample of sequences. Neither touches the model or its random generators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nndiag import theory
from nndiag.measure import Pending, readable

# A softmax row whose largest entry is p has slope at most p (1 - p); 5 % of its maximum 1/4 is
# reached at p = 0.9873 (the same 5 % as for every other activation).
ONE_HOT = 0.5 + math.sqrt(0.25 - theory.SATURATED_SLOPE * 0.25)
# Masks are -inf, the smallest finite number, -1e9 or -1e4; real scores are not.
MASKED = -1e4
ROWS = 64
HEADS = 32
SEQUENCES = 32


def one_hot_rows(scores: torch.Tensor, dim: int) -> Pending:
    """Of the softmax rows over ``dim`` with at least two visible entries: how many are one-hot."""
    moved = readable(scores).movedim(dim, -1)
    return _count_rows(moved.reshape(-1, moved.shape[-1]))


@torch.no_grad()
def _count_rows(scores: torch.Tensor) -> Pending:
    visible = torch.isfinite(scores) & (scores > MASKED)
    judged = visible.sum(-1) >= 2
    safe = torch.where(visible, scores, torch.full_like(scores, -math.inf))
    top = torch.nan_to_num(torch.softmax(safe, -1), nan=0.0).amax(-1)
    counts = torch.stack([judged.sum(), (judged & (top > ONE_HOT)).sum()]).double()
    return Pending(counts, _read_rows)


def _read_rows(values: np.ndarray) -> dict[str, float]:
    return {"rows_count": float(values[0]), "one_hot_count": float(values[1])}


@torch.no_grad()
def attention_rows(op: str, bound: Mapping[str, Any]) -> tuple[Pending | None, str]:
    """Rows of the attention weights for a fixed sample of queries; or why they are not known."""
    if op == "scaled_dot_product_attention":
        query, key = bound["input"], bound["key"]
        mask = bound.get("attn_mask")
        scale = bound.get("scale")
        if query.dim() < 3 or query.is_nested or key.is_nested:
            return None, "its layout is not understood"
        if key.shape[:-2] != query.shape[:-2]:
            if key.dim() != 4 or query.shape[1] % key.shape[1]:
                return None, "queries and keys have other batch shapes"
            key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        return _sampled(query, key, mask, bool(bound.get("is_causal", False)), scale), ""
    query, key = bound["input"], bound["key"]
    if query.dim() != 3 or bound.get("bias_k") is not None or bound.get("add_zero_attn"):
        return None, "unbatched, or with added keys"
    heads = int(bound["num_heads"])
    weights, bias = bound.get("in_proj_weight"), bound.get("in_proj_bias")
    if weights is not None and not bound.get("use_separate_proj_weight"):
        wq, wk, _ = weights.chunk(3)
    else:
        wq, wk = bound["q_proj_weight"], bound["k_proj_weight"]
    bq, bk = (None, None) if bias is None else bias.chunk(3)[:2]
    q = F.linear(query.to(wq.dtype), wq, bq)
    k = F.linear(key.to(wk.dtype), wk, bk)
    length, batch, width = q.shape
    q = q.reshape(length, batch, heads, width // heads).permute(1, 2, 0, 3)
    k = k.reshape(k.shape[0], batch, heads, width // heads).permute(1, 2, 0, 3)
    mask = _combined(bound.get("attn_mask"), bound.get("key_padding_mask"), batch, heads, q, k)
    return _sampled(q, k, mask, False, None), ""


def _combined(
    mask: Any, padding: Any, batch: int, heads: int, q: torch.Tensor, k: torch.Tensor
) -> torch.Tensor | None:
    total = None
    if mask is not None:
        if mask.dim() == 3:
            mask = mask.reshape(batch, heads, *mask.shape[1:])
        total = _additive(mask, q)
        if mask.dtype == torch.bool:  # True means hidden here, visible for the fused kernel
            total = torch.zeros_like(total).masked_fill(mask, -math.inf)
    if padding is not None:
        hidden = padding if padding.dtype == torch.bool else padding == -math.inf
        extra = torch.zeros(batch, 1, 1, k.shape[2], dtype=q.dtype, device=q.device)
        extra = extra.masked_fill(hidden[:, None, None, :], -math.inf)
        total = extra if total is None else total + extra
    return total


def _additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        zeros = torch.zeros(mask.shape, dtype=torch.float32, device=like.device)
        return zeros.masked_fill(~mask, -math.inf)
    return mask.detach().float()


def _sampled(
    query: torch.Tensor, key: torch.Tensor, mask: Any, causal: bool, scale: Any
) -> Pending:
    q, k = query.detach().float(), key.detach().float()
    length, source = q.shape[-2], k.shape[-2]
    lead = q.shape[:-2]
    flat_q, flat_k = q.reshape(-1, *q.shape[-2:]), k.reshape(-1, *k.shape[-2:])
    heads = _spread(flat_q.shape[0], HEADS, q.device)
    rows = _spread(length, ROWS, q.device)
    scores = flat_q[heads][:, rows] @ flat_k[heads].transpose(-2, -1)
    scores = scores * (1 / math.sqrt(q.shape[-1]) if scale is None else float(scale))
    if mask is not None:
        full = _additive(mask, q).expand(*lead, length, source)
        scores = scores + full.reshape(-1, length, source)[heads][:, rows]
    if causal:
        ahead = torch.arange(source, device=q.device)[None, :] > rows[:, None]
        scores = scores.masked_fill(ahead, -math.inf)
    return _count_rows(scores.reshape(-1, source))


def _spread(size: int, most: int, device: torch.device) -> torch.Tensor:
    """A fixed sample of at most ``most`` of ``size`` positions, evenly spread with an odd offset."""
    if size <= most:
        return torch.arange(size, device=device)
    return (torch.arange(most, device=device) * size + size // 2) // most


@torch.no_grad()
def gates(op: str, args: Any, result: Any) -> tuple[Pending | None, str]:
    """Saturation of the gates of a recurrent call, or why they cannot be recomputed.

    Layer by layer: the layer is run alone on the same input (torch's own kernel, without dropout),
    which gives its hidden state at every step, and from those the gates' pre-activations follow:
    z_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh (torch.nn.LSTM, GRU, RNN documentation).
    """
    if op.endswith("_cell"):
        x, hidden, w_ih, w_hh, *biases = args
        h = hidden[0] if isinstance(hidden, (tuple, list)) else hidden
        b_ih, b_hh = (biases + [None, None])[:2]
        return _saturated([_gate_inputs(op[:-5], x, h, w_ih, w_hh, b_ih, b_hh)], op[:-5]), ""
    x, hx, weights, has_bias, layers, dropout, train, bidirectional, *rest = args
    if not rest or not isinstance(rest[0], bool) or x.dim() != 3:
        return None, "its gates are not recomputed for packed sequences"
    batch_first = rest[0]
    per = (4 if has_bias else 2) + (1 if _projected(weights, op, has_bias) else 0)
    if per not in (2, 4):
        return None, "its gates are not recomputed for an LSTM with projections"
    batch = 0 if batch_first else 1
    picked = _spread(x.shape[batch], SEQUENCES, x.device)
    x = x.detach().index_select(batch, picked)
    states = [s.detach().index_select(1, picked) for s in (hx if isinstance(hx, (tuple, list)) else [hx])]
    directions = 2 if bidirectional else 1
    kernel = getattr(torch._VF, op)
    found = []
    for layer in range(layers):
        first = layer * directions
        own = [w.detach() for w in weights[first * per : (first + directions) * per]]
        start = tuple(s[first : first + directions].contiguous() for s in states)
        hidden = start if op == "lstm" else start[0]
        out = kernel(x, hidden, own, has_bias, 1, 0.0, False, bidirectional, batch_first)[0]
        for d in range(directions):
            h = out.chunk(directions, -1)[d]
            found.append(_sequence_gates(op, x, h, start[0][d], own[d * per : (d + 1) * per], batch, d == 1))
        x = out
    why = ""
    if layers > 1 and dropout and train:
        why = "its gates beyond the first layer are recomputed without the dropout between layers"
    return _saturated(found, op), why


def _projected(weights: Any, op: str, has_bias: bool) -> bool:
    if op != "lstm" or len(weights) < 3:
        return False
    return bool(weights[1].shape[1] != weights[1].shape[0] // 4)


def _sequence_gates(
    op: str, x: torch.Tensor, h: torch.Tensor, first: torch.Tensor, own: Any, batch: int, backwards: bool
) -> list[torch.Tensor]:
    time = 1 - batch
    start = first.unsqueeze(time)
    steps = h.shape[time]
    if backwards:
        previous = torch.cat([h.narrow(time, 1, steps - 1), start], time)
    else:
        previous = torch.cat([start, h.narrow(time, 0, steps - 1)], time)
    w_ih, w_hh, *biases = own
    b_ih, b_hh = biases if biases else (None, None)
    return _gate_inputs(op, x, previous, w_ih, w_hh, b_ih, b_hh)


def _gate_inputs(
    op: str, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any
) -> list[torch.Tensor]:
    """Pre-activations of each gate: [sigmoid gates …, tanh candidate] by the order of torch."""
    a, b = F.linear(x.detach(), w_ih, b_ih), F.linear(h.detach(), w_hh, b_hh)
    if op == "gru":
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        return [ar + br, az + bz, an + torch.sigmoid(ar + br) * bn]
    if op == "lstm":
        i, f, g, o = (a + b).chunk(4, -1)
        return [i, f, o, g]
    return [a + b]


def _saturated(found: list[list[torch.Tensor]], op: str) -> Pending:
    names = {"lstm": ("input", "forget", "output", "candidate"), "gru": ("reset", "update", "candidate")}
    labels = names.get(op, ("hidden",))
    squash = theory.activation("sigmoid"), theory.activation("tanh")
    assert squash[0] is not None and squash[1] is not None
    limits = squash[0].flat[1][0], squash[1].flat[1][0]
    counts = []
    for k, label in enumerate(labels):
        limit = limits[1] if label in ("candidate", "hidden") else limits[0]
        total = sum((z[k].abs() > limit).sum() for z in found)
        counts += [torch.as_tensor(total).double(), torch.tensor(float(sum(z[k].numel() for z in found)))]
    vector = torch.stack([c.double().to(found[0][0].device) for c in counts])
    if op == "rnn_relu":
        vector = torch.zeros_like(vector)

    def read(values: np.ndarray) -> dict[str, float]:
        facts = {"saturated_gates_count": float(values[0::2].sum()), "gates_count": float(values[1::2].sum())}
        for k, label in enumerate(labels):
            facts[f"{label}_saturated_count"] = float(values[2 * k])
            facts[f"{label}_count"] = float(values[2 * k + 1])
        return facts

    return Pending(vector, read)
