"""The public models of torchvision, timm and transformers, and what is published of them."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from calibration import public_models


def published():
    return pd.read_csv(public_models.TABLE, keep_default_na=False)


def test_there_are_at_least_a_hundred_and_each_is_published():
    names = [(m.library, m.name) for m in public_models.models()]
    table = published()
    assert len(names) == len(set(names)) >= 100
    assert list(zip(table["library"], table["model"], strict=True)) == names


def test_at_most_two_of_them_alarm():
    table = published()
    assert (table["alarms"] > 0).sum() <= 2


@pytest.mark.parametrize("name", ["Dinov2Model", "LongformerModel", "DetrModel"])
def test_an_input_that_was_not_given_is_no_alarm(name):
    [model] = [m for m in public_models.transformers_models() if m.name == name]
    report = public_models.judged(model)
    assert report.ok
    assert any(f.rule == "no-gradient" for f in report.findings)
    assert math.isfinite(report.snapshot.loss.value)
