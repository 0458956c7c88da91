"""Labels: how sick a network is, in one number, by plain torch. Nothing of nndiag in here.

Every measure takes a subject and gives a number that is larger the worse it is. They are naive on
purpose: whole tensors, a loop where a loop says it, so that a reader can check them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor, nn

from calibration.cases import Subject

HE = math.sqrt(2)
FLAT_SLOPE = 0.05  # of the steepest: what counts as saturated


@dataclass
class Seen:
    """One forward and backward: what named modules read and gave, call by call."""

    read: dict[str, list[Tensor]] = field(default_factory=dict)
    gave: dict[str, list[Tensor]] = field(default_factory=dict)
    loss: Tensor = field(default_factory=lambda: torch.tensor(math.nan))

    def all_of(self, name: str) -> Tensor:
        """Every call's output, the units last: (samples and positions, units)."""
        return torch.cat([_units_last(t) for t in self.gave[name]])


def look(subject: Subject, *names: str, backward: bool = True) -> Seen:
    model, batch, target, loss_fn = subject
    seen, hooks = Seen(), []
    for name in names:
        reads, gives = seen.read.setdefault(name, []), seen.gave.setdefault(name, [])

        def hook(_m: nn.Module, args: tuple[Tensor, ...], out: object, r=reads, g=gives) -> None:
            out = out[0] if isinstance(out, tuple) else out
            assert isinstance(out, Tensor)
            if out.requires_grad:
                out.retain_grad()
            r.append(args[0])
            g.append(out)

        hooks.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert loss_fn is not None
        seen.loss = loss_fn(model(batch), target)
    for h in hooks:
        h.remove()
    if backward and seen.loss.requires_grad:
        model.zero_grad(set_to_none=True)
        seen.loss.backward()
    return seen


def _units_last(t: Tensor) -> Tensor:
    t = t.detach()
    if t.dim() == 4:
        t = t.movedim(1, -1)
    return t.reshape(-1, t.shape[-1])


# -- activations -----------------------------------------------------------------------------------


def _slope(kind: str, z: Tensor) -> Tensor:
    """Relative to the steepest."""
    if kind == "tanh":
        return 1 - torch.tanh(z.double()) ** 2
    s = torch.sigmoid(z.double())
    return 4 * s * (1 - s)


def saturated_share(subject: Subject, place: str, kind: str = "tanh") -> float:
    """Share of pre-activations where the slope is under 5 % of the steepest."""
    z = look(subject, place, backward=False).all_of(place)
    return float((_slope(kind, z) < FLAT_SLOPE).double().mean())


def saturated_units(subject: Subject, place: str, kind: str = "tanh") -> float:
    """Share of units that are so on every sample."""
    z = look(subject, place, backward=False).all_of(place)
    return float((_slope(kind, z) < FLAT_SLOPE).all(0).double().mean())


def dead_share(subject: Subject, place: str) -> float:
    """Share of units that are not above zero on any sample or position."""
    z = look(subject, place, backward=False).all_of(place)
    return float((z <= 0).all(0).double().mean())


def candidate_saturated(subject: Subject, place: str) -> float:
    """Share of an LSTM's candidate values where tanh is flat, the cell stepped by hand."""
    if place == "cell.x":
        seen = look(subject, "cell.x", "cell.h", backward=False)
        pairs = zip(seen.gave["cell.x"], seen.gave["cell.h"], strict=True)
        z = torch.cat([(a + b).chunk(4, 1)[2] for a, b in pairs])
    else:
        lstm = subject.model.get_submodule(place)
        assert isinstance(lstm, nn.LSTM)
        x = look(subject, place, backward=False).read[place][0]
        h = c = torch.zeros(len(x), lstm.hidden_size)
        steps = []
        for step in x.unbind(1):
            gates = step @ lstm.weight_ih_l0.T + lstm.bias_ih_l0
            gates = gates + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            steps.append(g)
        z = torch.cat(steps)
    return float((_slope("tanh", z.detach()) < FLAT_SLOPE).double().mean())


def one_hot_rows(subject: Subject, place: str, heads: int, causal: bool) -> float:
    """Share of attention rows whose largest entry p has 4 p (1 - p) under 5 %.

    Rows with a single key to look at are left out.
    """
    seen = look(subject, place, backward=False)
    module = subject.model.get_submodule(place)
    if isinstance(module, nn.MultiheadAttention):
        assert module.in_proj_weight is not None
        qkv = seen.read[place][0] @ module.in_proj_weight.T + module.in_proj_bias
    else:
        qkv = seen.gave[place][0]
    q, k, _ = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.detach().chunk(3, -1))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores + torch.full_like(scores[0, 0], -math.inf).triu(1)
    p = scores.softmax(-1).amax(-1)[..., 1 if causal else 0 :]
    return float((4 * p * (1 - p) < FLAT_SLOPE).double().mean())


def one_sign_share(subject: Subject, after: str) -> float:
    """Share of a layer's units whose weight gradients all have one sign, of those with any."""
    look(subject)
    grad = subject.model.get_parameter(f"{after}.weight").grad
    assert grad is not None
    rows = grad.flatten(1)
    rows = rows[rows.abs().amax(1) > 0]
    return float(((rows > 0).all(1) | (rows < 0).all(1)).double().mean()) if len(rows) else 0.0


def drowned(subject: Subject, places: Sequence[str]) -> float:
    """Of what tells samples apart at the input, how many times less there is at a layer.

    Both as std across samples (rms over elements) over the std of all values; at the worst layer.
    """
    seen = look(subject, *places, backward=False)
    here = min(_tells_apart(seen.gave[place][0].detach()) for place in places)
    return min(_tells_apart(subject.batch), 1.0) / here if here else math.inf


def _tells_apart(t: Tensor) -> float:
    t = t.double().flatten(1)
    return float(t.var(0, correction=0).mean().sqrt() / t.std(correction=0))


def running_mean_shift(subject: Subject, norm: str) -> float:
    """The median channel's |batch mean - running mean|, in running standard deviations."""
    x, bn = _before_norm(subject, norm)
    return float(((x.mean(0) - bn.running_mean).abs() / bn.running_var.sqrt()).median())


def running_variance_ratio(subject: Subject, norm: str) -> float:
    """The factor between the median channel's batch variance and the running one, over one."""
    x, bn = _before_norm(subject, norm)
    ratio = float((x.var(0, correction=0) / bn.running_var).median())
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def statistics_off(subject: Subject, norms: Sequence[str], mean: float, variance: float) -> float:
    """The larger of both, each over its limit, at the worst of these layers."""
    return max(
        max(running_mean_shift(subject, norm) / mean,
            running_variance_ratio(subject, norm) / variance)
        for norm in norms
    )  # fmt: skip


def _before_norm(subject: Subject, norm: str) -> tuple[Tensor, nn.Module]:
    read = look(subject, norm, backward=False).read[norm][0]
    return _units_last(read), subject.model.get_submodule(norm)


# -- gradients -------------------------------------------------------------------------------------


def shrinks(subject: Subject, first: str, last: str) -> float:
    """By which factor the gradient's norm falls from the last pre-activation to the first."""
    factor = grows(subject, first, last)
    return 1 / factor if factor else math.inf


def grows(subject: Subject, first: str, last: str) -> float:
    seen = look(subject, first, last)
    a, b = seen.gave[first][0].grad, seen.gave[last][0].grad
    assert a is not None
    assert b is not None
    return float(a.double().norm() / b.double().norm())


def rounding(subject: Subject, places: Sequence[str]) -> float:
    """The format's smallest number over the rms of the gradient where it is not zero; at the worst
    layer that has one."""
    seen, found = look(subject, *places), []
    for place in places:
        grad = seen.gave[place][0].grad
        assert grad is not None
        left = grad[grad != 0].double()
        smallest = torch.finfo(grad.dtype).smallest_normal * torch.finfo(grad.dtype).eps
        found += [smallest / float(left.square().mean().sqrt())] if len(left) else []
    return max(found, default=math.inf)


def never_a_gradient(subject: Subject) -> float:
    """How many trainable parameters get none but zeros, now and after each of three updates."""
    model = subject.model
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    left = set(trainable)
    for _ in range(4):
        look(subject)
        left -= {n for n in left if trainable[n].grad is not None and trainable[n].grad.any()}
        with torch.no_grad():
            for p in trainable.values():
                if p.grad is not None:
                    p -= 0.01 * p.grad
    return len(left)


def frozen_between(subject: Subject, layers: Sequence[str]) -> float:
    """How many weight layers are frozen between trainable ones; 0 if most layers are."""
    trains = [subject.model.get_parameter(f"{name}").requires_grad for name in layers]
    if trains.count(False) > len(trains) / 2:
        return 0
    inner = trains[trains.index(True) : len(trains) - trains[::-1].index(True)]
    return inner.count(False)


# -- parameters ------------------------------------------------------------------------------------


def too_small(subject: Subject, layers: Sequence[str], gain: float) -> float:
    """By which factor weights are too small over a chain, to its worst layer.

    The first layer counts by itself (its input's scale is given), the others by their product.
    """
    return _worst([-off for off in _off(subject, layers, gain)])


def too_large(subject: Subject, layers: Sequence[str], gain: float) -> float:
    return _worst(_off(subject, layers, gain))


def _worst(offs: list[float]) -> float:
    total, reached = 0.0, max(offs[0], 0.0)
    for off in offs[1:]:
        total += off
        reached = max(reached, total)
    return math.exp(reached)


def _off(subject: Subject, layers: Sequence[str], gain: float) -> list[float]:
    """ln of how far each layer's weights are off gain / root(fan-in), and of what they do.

    What they do: the std of W x, without the bias, over gain times the rms of x. The smaller of the
    two, where they agree; trained weights of odd scale may well do what they should. In the first
    layer, whose input may have any scale, W x has to be off unit scale, too.
    """
    seen, offs = look(subject, *layers, backward=False), []
    for number, name in enumerate(layers):
        module = subject.model.get_submodule(name)
        weight = module.weight.detach().double()
        x = _read_by(module, seen.read[name])
        made = (x @ weight.flatten(1).T).std(correction=0)
        rms = weight.square().mean().sqrt()
        logs = [rms * math.sqrt(weight[0].numel()) / gain, made / gain / x.square().mean().sqrt()]
        logs += [made / gain] if number == 0 else []
        logs = [math.log(float(t)) for t in logs]
        agree = all(t > 0 for t in logs) or all(t < 0 for t in logs)
        offs.append(min(logs, key=abs) if agree else 0.0)
    return offs


def _read_by(module: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """What each output value is a weighted sum of, in rows; a convolution's zero padding too."""
    x = torch.cat([t.detach() for t in inputs]).double()
    if isinstance(module, nn.Conv2d):
        patches = nn.functional.unfold(x, module.kernel_size, padding=module.padding)
        x = patches.transpose(1, 2)
    return x.flatten(0, -2)


def kept_equal(subject: Subject, place: str) -> float:
    """Share of units that have another's weights, bias and gradients."""
    look(subject)
    model = subject.model
    parts = [model.get_parameter(f"{place}.weight"), model.get_parameter(f"{place}.bias")]
    rows = torch.cat([t.detach().flatten(1) if t.dim() > 1 else t.detach()[:, None]
                      for p in parts for t in (p, _grad(p))], 1)  # fmt: skip
    _, group, size = rows.unique(dim=0, return_inverse=True, return_counts=True)
    return float((size[group] > 1).double().mean())


def _grad(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def constant_share(subject: Subject, names: Sequence[str]) -> float:
    """Share of these weights that have the value of their tensor's first."""
    parameters = [subject.model.get_parameter(name).detach().flatten() for name in names]
    equal = sum(int((p == p[0]).sum()) for p in parameters)
    return equal / sum(p.numel() for p in parameters)


def nonfinite(subject: Subject) -> float:
    """How many values are NaN or infinite: input, parameters, modules' outputs, loss, gradients."""
    leaves = [name for name, m in subject.model.named_modules() if name and not [*m.children()]]
    seen = look(subject, *leaves)
    tensors = [subject.batch, seen.loss, *subject.model.parameters()]
    tensors += [t for outs in seen.gave.values() for t in outs]
    tensors += [t.grad for t in tensors if (t.is_leaf or t.retains_grad) and t.grad is not None]
    return sum(int((~torch.isfinite(t)).sum()) for t in tensors if t.is_floating_point())


# -- what chance does ------------------------------------------------------------------------------


def band(widths: Sequence[int], kind: str) -> tuple[float, float]:
    """Factors that chance alone explains in a network of these widths, at 99.9 %.

    Hanin & Nica 2020: ln of the squared norm is about N(-b/2, b), b = f·Σ1/width, where f is
    Var(φ²)/(E φ²)² at N(0, 1): 5 for ReLU.
    """
    b = _fluctuation(kind) * sum(1 / width for width in widths)
    reach = NormalDist().inv_cdf(0.9995) * math.sqrt(b) / 2
    return math.exp(min(-b / 4 - reach, 0.0)), math.exp(max(-b / 4 + reach, 0.0))


@functools.cache
def _fluctuation(kind: str) -> float:
    """By a plain sum over a fine grid."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2)
    weight /= weight.sum()
    square = {"relu": z.relu(), "tanh": z.tanh(), "sigmoid": z.sigmoid(), "identity": z,
              "leaky_relu": torch.nn.functional.leaky_relu(z, 0.2)}[kind] ** 2  # fmt: skip
    second = float((weight * square).sum())
    return float((weight * (square - second) ** 2).sum()) / second**2


def drawn(counts: Sequence[int]) -> float:
    """The factor by which the std of so many drawn weights, multiplied up, is off at 99.9 %."""
    return math.exp(3.29 * math.sqrt(sum(1 / (2 * n) for n in counts)))
