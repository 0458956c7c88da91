"""The actions that change a model, one verb each: a function, and code that does the same.

Both draw the same random numbers in the same order, because they make the same calls. A new verb is
one more entry in ``VERBS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nndiag.errors import FixError, did_you_mean
from nndiag.fixes import code
from nndiag.fixes.code import Of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["VERBS", "Action", "Argument", "Verb", "grouped", "std", "written_module", "written_std"]

Argument = int | float | str


@dataclass(frozen=True)
class Action:
    """One change of a model, as data.

    ``verb`` is a key of ``VERBS``, ``targets`` are the qualified names of the parameters or modules
    it changes, in this order, and ``arguments`` the verb's other arguments.
    """

    verb: str
    targets: tuple[str, ...] = ()
    arguments: tuple[Argument, ...] = ()

    def __post_init__(self) -> None:
        if self.verb not in VERBS:
            raise FixError(
                f"no action is called {self.verb!r}.{did_you_mean(self.verb, VERBS)} "
                f"Choose one of: {', '.join(VERBS)}."
            )

    @property
    def needs_batch(self) -> bool:
        return VERBS[self.verb].needs_batch

    @property
    def uses(self) -> tuple[str, ...]:
        """The names its lines need beside ``model`` and ``batch``: "torch", "nn", "fixes"."""
        return VERBS[self.verb].uses

    def check(self, model: nn.Module) -> None:
        """Check that the model has every target.

        Raises:
            FixError: a target is missing.
        """
        of = VERBS[self.verb].of
        for name in self.targets:
            try:
                model.get_parameter(name) if of == "parameter" else model.get_submodule(name)
            except AttributeError:
                named = model.named_parameters if of == "parameter" else model.named_modules
                raise FixError(
                    f"{type(model).__name__} has no {of} called {name!r}."
                    f"{did_you_mean(name, [known for known, _ in named()])}"
                ) from None

    def apply(self, model: nn.Module, batch: Any) -> None:
        VERBS[self.verb].apply(model, batch, self)

    def code(self) -> str:
        """Lines that change ``model`` as :meth:`apply` does."""
        return VERBS[self.verb].code(self)


def grouped(actions: Iterable[Action]) -> tuple[Action, ...]:
    """Merge actions that differ only in their targets, at the place of the first of them."""
    targets: dict[tuple[str, tuple[Argument, ...]], dict[str, None]] = {}
    for action in actions:
        known = targets.setdefault((action.verb, action.arguments), {})
        known.update(dict.fromkeys(action.targets))
    return tuple(Action(verb, (*names,), given) for (verb, given), names in targets.items())


@dataclass(frozen=True)
class Verb:
    """How an action is applied to a model, and how it is written as code."""

    apply: Callable[[nn.Module, Any, Action], None]
    code: Callable[[Action], str]
    of: Of
    uses: tuple[str, ...]
    needs_batch: bool = False


def std(gain: float, fan_in: int) -> float:
    """gain/√fan_in, computed bitwise as the code of :func:`written_std` does."""
    if gain == 1:
        return float(fan_in**-0.5)
    if _is_he(gain):
        return float((2 / fan_in) ** 0.5)
    return float(gain / fan_in**0.5)


def written_std(gain: float, fan_in: int) -> str:
    if gain == 1:
        return f"{fan_in} ** -0.5"
    if _is_he(gain):
        return f"(2 / {fan_in}) ** 0.5"
    return f"{gain!r} / {fan_in} ** 0.5"


def _is_he(gain: float) -> bool:
    return abs(gain * gain - 2) < 1e-12


# -- one target at a time --------------------------------------------------------------------------


def _each(of: Of, change: Callable[..., object], written: Callable[..., str], *uses: str) -> Verb:
    """A verb that makes one change to each of its parameters or modules.

    ``change`` takes the parameter or module, and the arguments. ``written`` takes the arguments and
    returns the code, with ``{}`` for the parameter or module.
    """

    def apply(model: nn.Module, batch: Any, action: Action) -> None:
        get = model.get_parameter if of == "parameter" else model.get_submodule
        for name in action.targets:
            change(get(name), *action.arguments)

    def lines(action: Action) -> str:
        return code.for_each(action.targets, written(*action.arguments), of)

    return Verb(apply, lines, of, uses)


def _draw_normal(p: Any, gain: float, fan_in: int) -> None:
    from torch import nn

    nn.init.normal_(p, std=std(gain, fan_in))


def _draw_xavier(module: Any) -> None:
    from nndiag import fixes

    fixes.xavier_uniform_(module)


def _draw_lecun(module: Any) -> None:
    from nndiag import fixes

    fixes.lecun_normal_(module)


def _set_zeros(p: Any) -> None:
    from torch import nn

    nn.init.zeros_(p)


def _set_ones(p: Any) -> None:
    from torch import nn

    nn.init.ones_(p)


def _rescale(w: Any, gain: float, fan_in: int) -> None:
    import torch

    with torch.no_grad():
        w.mul_(std(gain, fan_in) / w.float().square().mean().sqrt())


def _zero_nonfinite(p: Any) -> None:
    import torch

    with torch.no_grad():
        p[~p.isfinite()] = 0


def _unfreeze(thing: Any) -> None:
    thing.requires_grad_(True)


def _without_gradients(verb: Verb) -> Verb:
    """The verb with its code inside ``torch.no_grad()``, as its function has its own."""
    return Verb(
        verb.apply, lambda action: code.without_gradients(verb.code(action)), verb.of, ("torch",)
    )


# -- modules exchanged and inserted ----------------------------------------------------------------


def _surgery(name: str) -> Verb:
    """``fixes.NAME(model, "encoder.3", nn.KIND(...))``; arguments: KIND and its own arguments.

    Each target gets a new module.
    """

    def apply(model: nn.Module, batch: Any, action: Action) -> None:
        from torch import nn

        from nndiag.fixes import surgery

        kind, *options = action.arguments
        for target in action.targets:
            getattr(surgery, name)(model, target, getattr(nn, str(kind))(*options))

    def lines(action: Action) -> str:
        new = written_module(action.arguments)
        return code.for_each_name(action.targets, f"fixes.{name}(model, {{}}, {new})")

    return Verb(apply, lines, "module", ("nn", "fixes"))


def written_module(arguments: tuple[Argument, ...]) -> str:
    """``nn.BatchNorm1d(64)``."""
    kind, *options = arguments
    return f"nn.{kind}({', '.join(map(repr, options))})"


# -- the whole model, on a batch -------------------------------------------------------------------


def _lsuv(model: nn.Module, batch: Any, action: Action) -> None:
    from nndiag import fixes

    fixes.lsuv_(model, batch, orthogonal=False, layers=action.targets)


def _written_lsuv(action: Action) -> str:
    names = code.listed(action.targets)
    line = f"fixes.lsuv_(model, batch, orthogonal=False, layers={names})"
    if len(line) <= code.WIDE:
        return line
    return f"names = {names}\nfixes.lsuv_(model, batch, orthogonal=False, layers=names)"


def _recalibrate(model: nn.Module, batch: Any, action: Action) -> None:
    from nndiag import fixes

    fixes.recalibrate_(model, batch)


def _written_recalibrate(action: Action) -> str:
    return "fixes.recalibrate_(model, batch)  # better: a whole DataLoader"


def _standardize_input(model: nn.Module, batch: Any, action: Action) -> None:
    from nndiag import fixes

    fixes.standardize_input_(model, batch, action.targets)


def _written_standardize_input(action: Action) -> str:
    names = code.listed(action.targets)
    line = f"fixes.standardize_input_(model, batch, {names})"
    if len(line) <= code.WIDE:
        return line
    return f"names = {names}\nfixes.standardize_input_(model, batch, names)"


def _scale_output(model: nn.Module, batch: Any, action: Action) -> None:
    from nndiag import fixes

    mean, std = map(float, action.arguments)
    for name in action.targets:
        fixes.scale_output_(model, name, mean, std)


def _written_scale_output(action: Action) -> str:
    given = ", ".join(map(repr, action.arguments))
    return code.for_each_name(action.targets, f"fixes.scale_output_(model, {{}}, {given})")


VERBS = {
    # gain, fan_in: of the standard deviation gain/√fan_in
    "draw-normal": _each(
        "parameter",
        _draw_normal,
        lambda gain, fan_in: f"nn.init.normal_({{}}, std={written_std(gain, fan_in)})",
        "nn",
    ),
    "draw-xavier": _each("module", _draw_xavier, lambda: "fixes.xavier_uniform_({})", "fixes"),
    "draw-lecun": _each("module", _draw_lecun, lambda: "fixes.lecun_normal_({})", "fixes"),
    "set-zeros": _each("parameter", _set_zeros, lambda: "nn.init.zeros_({})", "nn"),
    "set-ones": _each("parameter", _set_ones, lambda: "nn.init.ones_({})", "nn"),
    # gain, fan_in: as in draw-normal
    "rescale": _without_gradients(
        _each(
            "parameter",
            _rescale,
            lambda gain, fan_in: (
                f"w = {{}}\nw.mul_({written_std(gain, fan_in)} / w.float().square().mean().sqrt())"
            ),
        )
    ),
    "zero-nonfinite": _without_gradients(
        _each("parameter", _zero_nonfinite, lambda: "{0}[~{0}.isfinite()] = 0")
    ),
    "unfreeze-parameter": _each("parameter", _unfreeze, lambda: "{}.requires_grad_(True)"),
    "unfreeze-module": _each("module", _unfreeze, lambda: "{}.requires_grad_(True)"),
    # a class of torch.nn, and its arguments
    "insert-before": _surgery("insert_before"),
    "insert-after": _surgery("insert_after"),
    "swap": _surgery("swap"),
    "standardize-input": Verb(
        _standardize_input, _written_standardize_input, "module", ("fixes",), needs_batch=True
    ),
    # mean, std: of the targets
    "scale-output": Verb(_scale_output, _written_scale_output, "module", ("fixes",)),
    "lsuv": Verb(_lsuv, _written_lsuv, "module", ("fixes",), needs_batch=True),
    "recalibrate": Verb(_recalibrate, _written_recalibrate, "module", ("fixes",), needs_batch=True),
}
