"""How Sphinx builds the site. ``make docs`` runs it, on the folder that ``build.py`` prepares."""

import numpy
from sphinx.ext.napoleon import Config, GoogleDocstring

from nndiag import __version__, stats

project = "nndiag"
author = "nndiag contributors"
project_copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]

smartquotes = False  # it makes a dash of the two hyphens of an option

html_theme = "furo"
html_title = f"nndiag {__version__}"
html_theme_options = {
    "source_repository": "https://github.com/nndiag/nndiag/",
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": [],  # most pages are generated: there is no file to edit
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80

# Every name must lead somewhere (-n), but these are other projects', and nothing is fetched.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|np|numpy|pd|pandas|pytest|rich|pydantic)(\..*)?"),
    ("py:.*", r"(Module|Tensor|Parameter|DataFrame|ndarray|DataLoader|Generator|Optimizer)"),
    ("py:.*", r"(Target|Parametrized|Generator|Thing|Factory|Law|Optimizer)"),  # private aliases
    ("py:.*", r"nndiag\..*\.(Target|Parametrized|Generator|Thing|Factory|Law|Optimizer)"),
    ("py:.*", r"_pytest\..*"),
    ("py:.*", r"(Console|ConsoleOptions|RenderResult|RenderableType)"),
    ("py:.*", r"(collections|pathlib|typing|os|types|functools|dataclasses)\..*"),
    ("py:.*", r"(Any|Callable|Iterable|Iterator|Mapping|Sequence|Path|Literal|PathLike|Self)"),
    ("py:.*", r"(TypeError|ValueError|RuntimeError|KeyError|ImportError|OSError|AssertionError)"),
    ("py:.*", r"(str|int|float|bool|bytes|object|dict|list|tuple|set|frozenset|type|None)"),
]


# A saved report's arrays are annotated for JSON; a reader need only know that they are arrays.
stats.FloatArray = stats.BoolArray = numpy.ndarray


def google_sections(app, what, name, obj, options, lines):
    """``Args:`` and ``Raises:`` as fields.

    Not by napoleon's own hook: of a property's "Rules that raised: what they would have found"
    that makes a type and a text.
    """
    kind = "function" if what in ("property", "attribute") else what
    config = Config(napoleon_use_rtype=False)
    lines[:] = GoogleDocstring(lines, config, app, kind, name, obj, options).lines()


def no_factory(app, what, name, obj, options, signature, returns):
    """A dataclass's "<factory>" is no Python, and Sphinx then gives up on the types beside it."""
    return (signature and signature.replace("<factory>", "..."), returns)


def setup(app):
    app.connect("autodoc-process-docstring", google_sections)
    app.connect("autodoc-process-signature", no_factory)
