"""Torch's side: watch a model run, say what happened as plain data, leave no trace."""

__all__: list[str] = []
