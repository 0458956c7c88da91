"""How hard the suite looks: ``make test`` at a part of the examples, ``make test-all`` at all.

What ``make test`` leaves out carries the marker ``exhaustive``; of the cases of a test with the
marker ``one_in(7)`` it runs every seventh, and the others are exhaustive.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings

ALL = 100  # examples of a law that names no number of its own, as in hypothesis
QUICK = 10
# Looking harder than the suite has time for: NNDIAG_LAWS=10 tries ten times as many examples.
TIMES = int(os.environ.get("NNDIAG_LAWS", "1"))
# Each test that was collected, and whether ``make test`` runs it.
LAID_OUT = pytest.StashKey[list[tuple[str, bool]]]()


def is_quick(config: pytest.Config) -> bool:
    """Whether these are the tests of ``make test``, and no others."""
    return config.getoption("markexpr") == "not exhaustive"


def tried(examples: int) -> settings:
    """How many examples of a law are looked at; ``make test`` looks at a tenth of them."""
    return settings(max_examples=max(1, examples * settings().max_examples * TIMES // ALL))


def left_out(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Cases that the marker ``one_in`` keeps out of ``make test``."""
    cases: Counter[str] = Counter()
    for item in items:
        if share := item.get_closest_marker("one_in"):
            function = item.nodeid.partition("[")[0]
            if cases[function] % share.args[0]:
                yield item
            cases[function] += 1


def looked_at_harder(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Tests of which ``make test`` tries few examples only: laws, and tests that call one."""
    for item in items:
        test, module = getattr(item, "obj", None), getattr(item, "module", None)
        names = getattr(getattr(test, "__code__", None), "co_names", ())
        if any(map(is_law, [test, *(getattr(module, name, None) for name in names)])):
            yield item


def is_law(value: object) -> bool:
    """Whether it tries examples; a test that calls ``given`` itself has a law inside."""
    return value is given or getattr(value, "is_hypothesis_test", None) is True
