"""How far chance takes the signal of healthy convolution chains, against the dense layers' band.

Remade by ``python -m tests.benchmarks.conv_band``; writes ``reports/calibration/conv-band.csv``.
For dense layers ln of the squared norm scatters with variance 5 Σ 1/n (Hanin & Nica 2020). What is
n for a convolution: its fan-in (channels times taps) or its channels? Here He-initialised ReLU
chains are drawn many times, and ln(rms of the last pre-activation / rms of the first) is held
against both. The fan-in's band is too narrow for 3x3 taps, the channels' holds throughout: the
rules use that.
"""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from nndiag import activations, theory

REPORT = Path(__file__).parents[2] / "reports" / "calibration" / "conv-band.csv"
DRAWS = 400


def once(channels: int, kernel: int, depth: int, size: int) -> float:
    """ln(rms of the last pre-activation / rms of the first), circular so that no tap is padding."""
    x = torch.randn(8, channels, size, size)
    first = last = math.nan
    for layer in range(depth):
        std = math.sqrt(2 / (channels * kernel**2))
        weight = torch.randn(channels, channels, kernel, kernel) * std
        pad = kernel // 2
        z = F.conv2d(F.pad(x, (pad,) * 4, mode="circular"), weight)
        last = z.square().mean().sqrt().item()
        first = last if layer == 0 else first
        x = torch.relu(z)
    return math.log(last / first)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    relu = activations.named("relu")
    assert relu is not None
    rows = []
    for channels, kernel in ((4, 3), (8, 3), (16, 3), (32, 3), (16, 1), (64, 1)):
        for depth in (4, 10):
            logs = np.array([once(channels, kernel, depth, 8) for _ in range(DRAWS)])
            fan_in = channels * kernel**2
            by_fan_in = theory.log_norm_band([fan_in] * (depth - 1), relu)
            by_channels = theory.log_norm_band([channels] * (depth - 1), relu)
            outside = [
                float(((logs < low) | (logs > high)).mean())
                for low, high in (by_fan_in, by_channels)
            ]
            rows.append(
                {
                    "channels": channels, "kernel": kernel, "depth": depth, "fan_in": fan_in,
                    "std_ln_rms": round(float(logs.std()), 3),
                    "lowest": round(float(logs.min()), 3), "highest": round(float(logs.max()), 3),
                    "band_low": round(by_channels[0], 3), "band_high": round(by_channels[1], 3),
                    "outside_fan_in_band": outside[0], "outside_channel_band": outside[1],
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    table["draws"], table["torch"] = DRAWS, torch.__version__
    table["date"] = date.today().isoformat()
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(REPORT, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
