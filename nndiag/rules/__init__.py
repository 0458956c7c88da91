"""One file a rule; see :mod:`nndiag.rule` for what a rule is."""
