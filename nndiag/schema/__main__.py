"""``python -m nndiag.schema``: write the schema of a saved report anew."""

from pathlib import Path

from nndiag.schema import FILE, current

Path(__file__).with_name(FILE).write_text(current(), encoding="utf-8")
