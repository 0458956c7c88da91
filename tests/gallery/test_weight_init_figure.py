"""The lecture's own figure: both spikes of a saturated tanh are drawn."""

from __future__ import annotations

import pytest
from bands import GALLERY
from gallery.page import read
from gallery.weight_init import experiment as weight_init
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch


def test_a_saturated_tanh_has_a_spike_at_each_end():
    figure = Figure()
    weight_init.draw(read(GALLERY / "weight_init"), figure)
    cells = [
        patch.get_data()
        for axes in figure.get_axes()
        for patch in axes.patches
        if isinstance(patch, StepPatch)
    ]
    assert len(cells) == len(weight_init.CASES) * weight_init.DEPTH
    for place, (shares, edges, _) in enumerate(cells):
        tanh = place < 3 * weight_init.DEPTH
        assert (edges[0], edges[-1]) == pytest.approx((-1, 1) if tanh else (0, 2.5), abs=1e-9)
        # what a ReLU lets through beyond the edge is left out, not piled up at it
        assert shares.sum() == pytest.approx(1, abs=1e-4) if tanh else shares[-1] < 0.05
        if weight_init.DEPTH <= place < 2 * weight_init.DEPTH:  # weights of 1.0
            assert shares[0] == pytest.approx(shares[-1], rel=0.05)
            assert shares[0] + shares[-1] > 0.9
