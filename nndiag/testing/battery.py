"""What a building block has to satisfy, one property at a time.

A property is a function of the block in question, named as what it claims. It returns what it
measured (a trait: "bounded" may well be False) or None (a law), and raises AssertionError where a
law does not hold, or :class:`NotApplicable` where it makes no sense for this block.
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
    "parametrized",
    "raise_for",
    "told",
]

Block = TypeVar("Block")
Status = Literal["holds", "measured", "declared", "does not apply", "fails"]


class NotApplicable(Exception):
    """A property that makes no sense for a block; its text says why."""


@dataclass(frozen=True)
class Property(Generic[Block]):
    """A law or a trait of blocks of one kind."""

    name: str
    about: str
    run: Callable[[Block], Any]


@dataclass(frozen=True)
class Result:
    """What became of one property; ``value`` is what was measured, ``told`` why it fails."""

    name: str
    status: Status
    value: Any = None
    told: str = ""


@dataclass(frozen=True)
class Battery(Generic[Block]):
    """All properties of one kind of block."""

    kind: str
    properties: Mapping[str, Property[Block]]

    def results(
        self, block: Block, declared: Mapping[str, str], expect: Mapping[str, Any]
    ) -> list[Result]:
        """Every property's, in order."""
        return [self.result(name, block, declared, expect) for name in self.properties]

    def result(
        self, name: str, block: Block, declared: Mapping[str, str], expect: Mapping[str, Any]
    ) -> Result:
        """What is declared not to hold fails once it does hold, as a strict xfail."""
        try:
            value = self.properties[name].run(block)
        except NotApplicable as reason:
            return Result(name, "does not apply", told=str(reason))
        except Exception as error:  # a law that does not hold, or one of the block's own
            if name in declared:
                return Result(name, "declared", told=declared[name])
            is_law = isinstance(error, AssertionError)
            return Result(name, "fails", told=str(error) if is_law else f"it raises {told(error)}")
        if name in declared:
            why = f"it holds, though it is declared not to ({declared[name]}): take that out"
            return Result(name, "fails", value, why)
        if name in expect and not _as_expected(value, expect[name]):
            return Result(name, "fails", value, f"it is {value!r}, expected was {expect[name]!r}")
        return Result(name, "holds" if value is None else "measured", value)

    def checked(self, declared: object, expect: object) -> tuple[dict[str, str], dict[str, Any]]:
        """
        Raises:
            SettingsError: a property that does not exist, or a declaration without a reason.
        """
        found = []
        for given, what in ((declared, "declared"), (expect, "expect")):
            if given is not None and not isinstance(given, Mapping):
                raise SettingsError(f"{what} is {given!r}: give a mapping of properties.")
            for name in given or {}:
                if name not in self.properties:
                    raise SettingsError(
                        f"{what}[{name!r}]: no {self.kind} has such a property."
                        f"{did_you_mean(str(name), self.properties)} "
                        f"Legal are: {', '.join(self.properties)}."
                    )
            found.append(dict(given or {}))
        for name, reason in found[0].items():
            if not isinstance(reason, str) or not reason.strip():
                raise SettingsError(
                    f"declared[{name!r}] is {reason!r}. Write why it does not hold."
                )
        return found[0], found[1]

    def check(
        self, called: str, block: Block, declared: object = None, expect: object = None
    ) -> dict[str, Any]:
        """What was measured of a block, by the properties' names.

        Raises:
            FindingsError: laws that do not hold, or traits that are not as expected.
        """
        __tracebackhide__ = True
        results = self.results(block, *self.checked(declared, expect))
        raise_for(called, self, results)
        return {r.name: r.value for r in results if r.status == "measured"}


def battery(kind: str, functions: Iterable[Callable[[Block], Any]]) -> Battery[Block]:
    """Of functions, whose names and docstrings say what they claim."""
    found = {}
    for function in functions:
        name = function.__name__.strip("_").replace("_", "-")
        found[name] = Property(name, (function.__doc__ or "").strip(), function)
    return Battery(kind, found)


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
        lines.append(f"  {r.name}: {r.told}")
        lines.append(f"    ({of.properties[r.name].about.splitlines()[0]})")
    lines.append('What is meant: declared={"' + failed[0].name + '": "why it does not hold"}')
    raise FindingsError("\n".join(lines))


def must(hold: object, what: str) -> None:
    """Not ``assert``: ``python -O`` takes those out, and pytest adds lines to what they say.

    Raises:
        AssertionError: it does not hold; ``what`` says how.
    """
    if not hold:
        raise AssertionError(what)


def told(error: Exception) -> str:
    """An error in a line."""
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
        """What was measured."""
        import pytest

        __tracebackhide__ = True
        result = self._of.result(self.property, self._block(), self._declared, self._expect)
        if result.status == "does not apply":
            # Not a pass: nothing was looked at. The text is the property's own: why not.
            pytest.skip(result.told)
        if result.status == "declared":
            # The text is the user's reason, without which there is no declaration.
            pytest.xfail(result.told)
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
        raise SettingsError("there is nothing to check: give names and building blocks.")
    for given, what in ((declared, "declared"), (expect, "expect")):
        for name in given or {}:
            if name not in blocks:
                raise SettingsError(
                    f"{what}[{name!r}]: there is no such block.{did_you_mean(name, blocks)} "
                    f"Legal are: {', '.join(blocks)}."
                )
    cases = []
    for called, block in blocks.items():
        said = of.checked((declared or {}).get(called), (expect or {}).get(called))
        once = functools.cache(block)
        for name in of.properties:
            check = PropertyCheck(of, called, name, once, *said)
            cases.append(pytest.param(check, id=f"{called}-{name}"))
    return pytest.mark.parametrize("check", cases)
