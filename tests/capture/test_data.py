"""The raw data are looked at once: numbers about each column, and what kind they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag.capture.data import MOST_COLUMNS, MOST_VALUES, columns_of
from nndiag.report import Report

X = torch.randn(200, 5, generator=torch.Generator().manual_seed(3)).double() * 3 + 2


def look(x, axis=1, multiplied=True):
    return columns_of(x, axis, len(x), multiplied)


def test_each_number_is_what_numpy_makes_of_the_column():
    seen, x = look(X), X.numpy()
    distance = np.abs(x - np.median(x, 0))

    assert (seen.rows, seen.columns, seen.samples) == (200, 5, 200)
    assert seen.mean == pytest.approx(x.mean(0))
    assert seen.std == pytest.approx(x.std(0))
    assert seen.median == pytest.approx(np.median(x, 0))
    assert seen.scale == pytest.approx(1.4826 * np.median(distance, 0))
    assert seen.min == pytest.approx(x.min(0))
    assert seen.inner_max == pytest.approx(np.sort(x, 0)[-2])
    assert seen.rms == pytest.approx(math.sqrt((x**2).mean()))
    assert seen.condition == pytest.approx(np.linalg.cond(x.T @ x))


def test_gaps_are_counted_and_left_out():
    x = X.clone()
    x[:50, 1] = math.nan
    x[0, 2] = math.inf
    x[:, 3] = math.nan
    seen = look(x)

    assert seen.missing == pytest.approx((0, 0.25, 1 / 200, 1, 0))
    assert seen.mean[1] == pytest.approx(float(X[50:, 1].mean()))
    assert math.isnan(seen.mean[3])
    assert math.isfinite(seen.rms)


def test_outliers_are_apart_from_the_rest():
    x = X.clone()
    x[7, 0] = 5000
    seen = look(x)

    assert seen.outliers == pytest.approx((1 / 200, 0, 0, 0, 0))
    assert seen.inner_std[0] < 4 < 300 < seen.std[0]
    assert seen.gap[0] > 100
    assert seen.highest[0] == 1 / 200


def test_the_columns_of_images_are_channels_and_of_sequences_the_last_axis():
    images, steps = torch.rand(8, 3, 10, 12), torch.rand(8, 10, 4)

    assert look(images).mean == pytest.approx(images.mean((0, 2, 3)).tolist())
    assert look(steps, 2).mean == pytest.approx(steps.mean((0, 1)).tolist())
    assert look(torch.rand(64)).columns == 1


def test_large_tensors_are_looked_at_in_part():
    wide, tall = torch.rand(600, 3000), torch.rand(50_000, 4)
    images = torch.rand(64, 3, 96, 96)

    assert look(wide).columns == 3000
    assert len(look(wide).at) == len(look(wide).mean) == MOST_COLUMNS
    for x in (wide, tall, images):
        seen = look(x)
        assert 250 <= seen.rows <= 4096
        assert seen.rows * len(seen.at) <= 2 * MOST_VALUES
        assert seen.rms == pytest.approx(float(x.square().mean().sqrt()), rel=0.03)


KINDS = {
    "ids": torch.randint(0, 900, (64, 7)),
    "one-hot": F.one_hot(torch.arange(64) % 5, 5).float(),
    "binary": (torch.randn(64, 5) > 0).float(),
    "bytes": torch.randint(0, 256, (64, 3, 6, 6)).float(),
    "counts": torch.poisson(torch.full((64, 5), 3.0)),
    "unit-range": torch.rand(64, 5),
    "standardised": (X - X.mean(0)) / X.std(0),
    "generic": X * 7,
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_knows_the_kind_of_data(kind):
    assert look(KINDS[kind], multiplied=False).kind == kind


def test_what_cannot_be_looked_at_has_no_numbers():
    assert look(torch.zeros(0, 4)) is None
    assert look(torch.zeros(4, 4, dtype=torch.complex64)) is None
    assert look(torch.zeros(4, 4).to_sparse()) is None


def test_the_numbers_are_in_the_snapshot_and_in_a_saved_report(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.lin = nn.Embedding(900, 5), nn.Linear(5, 2)

        def forward(self, ids, x):
            return self.lin(self.table(ids).mean(1) + x)

    batch = {"ids": KINDS["ids"], "x": X[:64].float()}
    before = {name: tensor.clone() for name, tensor in batch.items()}
    report = nndiag.check(Two(), batch, config=False)
    report.to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")

    assert {n: c.kind for n, c in report.snapshot.experiment.inputs.items()} == {
        "input.ids": "ids", "input.x": "generic",
    }  # fmt: skip
    assert repr(again.snapshot.experiment.inputs) == repr(report.snapshot.experiment.inputs)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


def test_what_a_recurrent_layer_reads_is_known_to_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(5, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(x / 10)[0]

    x = X.float().view(40, 5, 5)
    report = nndiag.check(Net(), x, config=False)
    facts = report.snapshot.by_name["rnn"].facts

    assert facts["read_rms"] == pytest.approx(float((x / 10).square().mean().sqrt()), rel=1e-3)
    assert facts["read_min"] == pytest.approx(float(x.min()) / 10)
