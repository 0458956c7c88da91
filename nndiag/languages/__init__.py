"""What nndiag says in other languages than English: ``zh.toml``, and the English of what has one.

The gallery's index and the rule pages' first paragraphs have a Simplified-Chinese edition.
"""

from __future__ import annotations

import functools
import importlib.resources
import sys
from typing import Any

LANGUAGES = ENGLISH, CHINESE = "en", "zh"


@functools.cache
def words(language: str) -> dict[str, Any]:
    """The translations into a language; for English only what templates share.

    Args:
        language: one of ``LANGUAGES``.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    text = (importlib.resources.files(__name__) / f"{language}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
