"""How often nndiag is right: labelled faults, healthy networks, and what is said of them."""
