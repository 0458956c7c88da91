"""Batteries: the properties that a building block is checked for, one at a time.

A property is a function of the block, named after its claim. A trait returns what it measures
("bounded" may be False). A law returns None, and raises AssertionError where it does not hold.
Both raise :class:`NotApplicable` where they make no sense for the block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from nndiag.errors import FindingsError, SettingsError, did_you_mean

if TYPE_CHECKING:
    import pytest

__all__ = [
    "Battery",
    "NotApplicable",
    "Property",
    "PropertyCheck",
    "Result",
    "Status",
    "battery",
    "must",
    "one_line",
    "parametrized",
    "raise_for",
]

Block = TypeVar("Block")
Status = Literal["holds", "measured", "declared", "does not apply", "fails"]


class NotApplicable(Exception):
    """The property makes no sense for this block; the text says why."""


@dataclass(frozen=True)
class Property(Generic[Block]):
    """A law or a trait of blocks of one kind."""

    name: str
    about: str
    run: Callable[[Block], Any]


@dataclass(frozen=True)
class Result:
    """The result of one property. ``value``: what was measured; ``reason``: of the status."""

    name: str
    status: Status
    value: Any = None
    reason: str = ""


@dataclass(frozen=True)
class Battery(Generic[Block]):
    """The properties of one kind of block."""

    kind: str
    properties: Mapping[str, Property[Block]]

    def results(
        self, block: Block, declared: Mapping[str, str], expect: Mapping[str, Any]
    ) -> list[Result]:
        """The result of every property, in order."""
        return [self.result(name, block, declared, expect) for name in self.properties]

    def result(
        self, name: str, block: Block, declared: Mapping[str, str], expect: Mapping[str, Any]
    ) -> Result:
        """The result of one property; one declared not to hold fails if it holds (strict xfail)."""
        try:
            value = self.properties[name].run(block)
        except NotApplicable as error:
            return Result(name, "does not apply", reason=str(error))
        except Exception as error:  # a law that does not hold, or an error of the block's own code
            if name in declared:
                return Result(name, "declared", reason=declared[name])
            is_law = isinstance(error, AssertionError)
            reason = str(error) if is_law else f"it raises {one_line(error)}"
            return Result(name, "fails", reason=reason)
        if name in declared:
            why = f"it holds, but is declared not to ({declared[name]}): remove the declaration"
            return Result(name, "fails", value, why)
        if name in expect and not _as_expected(value, expect[name]):
            return Result(name, "fails", value, f"it is {value!r}, expected {expect[name]!r}")
        return Result(name, "holds" if value is None else "measured", value)

    def checked(self, declared: object, expect: object) -> tuple[dict[str, str], dict[str, Any]]:
        """
        Raises:
            SettingsError: a property that does not exist, or a declaration without a reason.
        """
        mappings = []
        for given, what in ((declared, "declared"), (expect, "expect")):
            if given is not None and not isinstance(given, Mapping):
                raise SettingsError(f"{what} is {given!r}: give a dict of properties by name.")
            for name in given or {}:
                if name not in self.properties:
                    raise SettingsError(
                        f"{what}[{name!r}]: no {self.kind} has such a property."
                        f"{did_you_mean(str(name), self.properties)} "
                        f"Choose one of: {', '.join(self.properties)}."
                    )
            mappings.append(dict(given or {}))
        for name, reason in mappings[0].items():
            if not isinstance(reason, str) or not reason.strip():
                raise SettingsError(
                    f"declared[{name!r}] is {reason!r}. Write why it does not hold."
                )
        return mappings[0], mappings[1]

    def check(
        self, called: str, block: Block, declared: object = None, expect: object = None
    ) -> dict[str, Any]:
        """The measured traits of a block, by the names of the properties.

        Raises:
            FindingsError: laws that do not hold, or traits that are not as expected.
        """
        __tracebackhide__ = True
        results = self.results(block, *self.checked(declared, expect))
        raise_for(called, self, results)
        return {r.name: r.value for r in results if r.status == "measured"}


def battery(kind: str, functions: Iterable[Callable[[Block], Any]]) -> Battery[Block]:
    """A battery of functions, whose names and docstrings say what they claim."""
    properties = {}
    for function in functions:
        name = function.__name__.strip("_").replace("_", "-")
        properties[name] = Property(name, (function.__doc__ or "").strip(), function)
    return Battery(kind, properties)


def raise_for(called: str, of: Battery[Any], results: Sequence[Result]) -> None:
    """
    Raises:
        FindingsError: one of the results is a failure.
    """
    __tracebackhide__ = True
    failed = [r for r in results if r.status == "fails"]
    if not failed:
        return
    do = "does" if len(failed) == 1 else "do"
    article = "an" if of.kind[0] in "aeiou" else "a"
    what = f"{len(failed)} of {len(results)} properties of {article} {of.kind}"
    lines = [f"{called}: {what} {do} not hold"]
    for r in failed:
        lines.append(f"  {r.name}: {r.reason}")
        lines.append(f"    ({of.properties[r.name].about.splitlines()[0]})")
    lines.append('If that is intended: declared={"' + failed[0].name + '": "why it does not hold"}')
    raise FindingsError("\n".join(lines))


def must(hold: object, what: str) -> None:
    """Raise unless ``hold``. Not ``assert``, which ``python -O`` removes and pytest adds lines to.

    Raises:
        AssertionError: with the text ``what``.
    """
    if not hold:
        raise AssertionError(what)


def one_line(error: Exception) -> str:
    """The type of an error and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _as_expected(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(value, (int, float)):
        return bool(abs(value - wanted) <= 1e-3 * max(1.0, abs(wanted)))
    return bool(value == wanted)


class PropertyCheck:
    """``check()``: fails the test where a property of a block does not hold."""

    def __init__(self, of: Battery[Any], called: str, name: str, block: Callable[[], Any],
                 declared: Mapping[str, str], expect: Mapping[str, Any]) -> None:  # fmt: skip
        self._of, self._called, self.property, self._block = of, called, name, block
        self._declared, self._expect = declared, expect

    def __repr__(self) -> str:
        return f"<check of {self.property} of {self._called}>"

    def __call__(self) -> Any:
        """The measured value."""
        import pytest

        __tracebackhide__ = True
        result = self._of.result(self.property, self._block(), self._declared, self._expect)
        if result.status == "does not apply":
            # Not a pass: nothing was checked, for the reason that the property gives.
            pytest.skip(result.reason)
        if result.status == "declared":
            # The text is the reason that the user declared.
            pytest.xfail(result.reason)
        raise_for(self._called, self._of, [result])
        return result.value


def parametrized(
    of: Battery[Any],
    blocks: Mapping[str, Callable[[], Any]],
    declared: Mapping[str, Mapping[str, str]] | None,
    expect: Mapping[str, Mapping[str, Any]] | None,
) -> pytest.MarkDecorator:
    """A test for each block and property, over ``def test_blocks(check): check()``."""
    import pytest

    if not blocks:
        raise SettingsError("there is nothing to check: give a dict of names and building blocks.")
    for given, what in ((declared, "declared"), (expect, "expect")):
        for name in given or {}:
            if name not in blocks:
                raise SettingsError(
                    f"{what}[{name!r}]: there is no such block.{did_you_mean(name, blocks)} "
                    f"Choose one of: {', '.join(blocks)}."
                )
    cases = []
    for called, block in blocks.items():
        declarations = of.checked((declared or {}).get(called), (expect or {}).get(called))
        once = functools.cache(block)
        for name in of.properties:
            check = PropertyCheck(of, called, name, once, *declarations)
            cases.append(pytest.param(check, id=f"{called}-{name}"))
    return pytest.mark.parametrize("check", cases)
