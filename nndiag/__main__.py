"""``python -m nndiag``."""

from nndiag.cli import main

if __name__ == "__main__":
    main()
