"""The built site, read without a browser: its pages, their anchors and links."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/nndiag/nndiag/"


def builder() -> ModuleType:
    """``docs/build.py``, which is no package."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Page(HTMLParser):
    """One page's anchors, its links, and what it loads."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(given["href"])
        elif given.get("src"):
            self.loaded.append(given["src"])


def read(folder: Path) -> dict[Path, Page]:
    """Every page of a site."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        if "_static" not in path.parts:
            pages[path.resolve()] = page = Page()
            page.feed(path.read_text(encoding="utf-8"))
    return pages


def broken(pages: dict[Path, Page]) -> list[str]:
    """Links that lead nowhere: to no file, to no anchor, to no file of the repository."""
    faults = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                missing = not _in_repository(link)
            else:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                missing = not target.is_file() or bool(
                    parts.fragment
                    and target in pages
                    and unquote(parts.fragment) not in pages[target].anchors
                )
            if missing:
                faults.append(f"{path.name}: {link}")
    return faults


def _in_repository(link: str) -> bool:
    """Whether a link into the project's own repository names a file of it; True for others."""
    for kind in ("blob", "tree", "edit"):
        start = f"{REPOSITORY}{kind}/main/"
        if link.startswith(start):
            return (ROOT / unquote(urlsplit(link[len(start) :]).path)).exists()
    return link.startswith(("https://", "mailto:"))
