"""A report in every format; one file a format, and neither torch nor a rule among them."""

__all__: list[str] = []
