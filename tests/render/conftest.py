from __future__ import annotations

import pytest
import samples


@pytest.fixture(autouse=True)
def _sample_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    samples.use_sample_rules(monkeypatch)
