"""What nndiag says in other languages than English: ``zh.toml``.

The first paragraphs of the rules' pages have a Simplified-Chinese edition.
"""

from __future__ import annotations

import functools
import importlib.resources
import sys
from typing import Any

__all__ = ["CHINESE", "ENGLISH", "LANGUAGES", "parsed", "words"]

LANGUAGES = ENGLISH, CHINESE = "en", "zh"


@functools.cache
def words(language: str) -> dict[str, Any]:
    """The translations into a language.

    Args:
        language: one of ``LANGUAGES`` but English, which the rules' docstrings hold.
    """
    text = (importlib.resources.files(__name__) / f"{language}.toml").read_text(encoding="utf-8")
    return parsed(text)


def parsed(text: str) -> dict[str, Any]:
    """What a TOML file says."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return tomllib.loads(text)
