"""The gradient of the loss at the network's outputs: on how many rows it is exactly zero."""

from __future__ import annotations

from typing import Any

import torch

from nndiag.batch import tensors_in

__all__ = ["MOST_VALUES", "OutputGradient"]

MOST_VALUES = 1_000_000
"""Larger outputs are not looked at."""


class OutputGradient:
    """Counts rows whose gradient is zero in every output; made before the loss is computed."""

    def __init__(self, output: Any) -> None:
        self._zero: list[torch.Tensor] = []
        self._handles = [
            x.register_hook(self._look)  # type: ignore[no-untyped-call]  # of torch
            for x in tensors_in(output)
            if x.requires_grad and x.dim() and 0 < x.numel() <= MOST_VALUES and not x.is_nested
        ]

    def _look(self, grad: torch.Tensor) -> None:
        with torch.no_grad():
            if grad.layout == torch.strided:
                self._zero.append(grad.reshape(len(grad), -1).abs().amax(1) == 0)

    def counted(self) -> tuple[int, int]:
        """Rows, and those whose gradient is zero; (0, 0) where that is not known."""
        for handle in self._handles:
            handle.remove()
        if not self._zero or len({len(part) for part in self._zero}) > 1:
            return 0, 0
        return len(self._zero[0]), int(torch.stack(self._zero).all(0).sum())
