"""The harness gives numbers for every row of nndiag's, and no layer waits for the device.

How fast nndiag is, no test says: that is what reports/benchmarks is for.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from benchmarks import judging, linearity, memory, page, paired, plugin, tools
from benchmarks.elsewhere import Accelerator, Elsewhere, moved
from benchmarks.tools import TOOLS, Tool
from benchmarks.workloads import GOALS, RECIPES, Workload, make, tanh_chain

OURS = [name for name, tool in TOOLS.items() if tool.package == "nndiag" and name != "bare"]


# -- the harness -------------------------------------------------------------------------------


def test_every_row_of_ours_has_a_ratio_in_every_round():
    rows = paired.compare(make("tiny"), OURS, rounds=2, seconds=0)

    assert Counter(rows["tool"]) == {name: 2 for name in OURS}
    assert (rows[["cpu_ratio", "wall_ratio"]] > 0).all(axis=None)


def test_a_tool_that_is_not_there_costs_its_own_row_only(monkeypatch):
    @contextlib.contextmanager
    def attach(work: Workload):
        import no_such_package  # noqa: F401

        yield work.step

    monkeypatch.setitem(TOOLS, "absent", Tool(attach, "nothing", "no-such-package"))
    rows = paired.compare(make("tiny"), ["absent", "no-op hooks"], rounds=1, seconds=0)
    table = paired.summary(rows).set_index("tool")

    assert table["rounds"].to_dict() == {"absent": 0, "no-op hooks": 1}
    assert table["why_not"]["absent"] == "no-such-package is not installed"


def test_a_tool_that_fails_says_how(monkeypatch):
    @contextlib.contextmanager
    def attach(work: Workload):
        yield lambda: 1 / 0

    monkeypatch.setitem(TOOLS, "broken", Tool(attach, "nothing"))
    rows = paired.compare(make("tiny"), ["broken"], rounds=1, seconds=0)

    assert rows["why_not"].tolist() == ["ZeroDivisionError: division by zero"]


def test_the_summary_gives_median_and_quartiles():
    rounds = range(5)
    rows = pd.DataFrame({"tool": "a", "round": rounds, "cpu_ratio": [5.0, 1.0, 2.0, 4.0, 3.0]})
    rows = rows.assign(wall_ratio=1.0, cpu_seconds=0.2, bare_cpu_seconds=0.1)
    (row,) = paired.summary(rows).itertuples()

    assert (row.cpu_quartile_1, row.cpu_ratio, row.cpu_quartile_3) == (2, 3, 4)
    assert (row.cpu_ms, row.bare_cpu_ms) == (200, 100)


@pytest.mark.parametrize("name", OURS)
def test_a_step_leaves_no_hook_and_no_gradient(name):
    work = make("tiny")
    with TOOLS[name].attach(work) as step:
        step()

    assert not any(m._forward_hooks or m._backward_hooks for m in work.model.modules())
    assert all(p.grad is None for p in work.model.parameters())


def test_plain_hooks_see_every_leafs_output_and_its_gradient():
    work, seen = make("tiny"), []
    with tools.hooked(work, lambda tensor: seen.append(tuple(tensor.shape))):
        work.step()

    outputs = [(8, 4)] * 4 + [(8, 10)]
    assert seen == outputs + outputs[::-1]


def test_the_narrow_workload_is_as_deep_as_it_says():
    work = make("narrow")

    assert Counter(type(leaf) for leaf in work.leaves()) == {nn.Linear: 201, nn.Tanh: 200}
    assert set(RECIPES) == set(GOALS)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    size = pd.Series([1.0, 10.0, 100.0, 1000.0])

    assert linearity.exponent(size, 7 * size**power) == pytest.approx((power,) * 3)


@pytest.mark.exhaustive
def test_judging_is_held_against_the_bare_steps_beside_it():
    rows = judging.compare(rounds=1, seconds=0.0, depths=(2, 4))

    assert rows["network"].unique().tolist() == list(judging.NETWORKS)
    assert rows["layers"].tolist() == [2, 4] * len(judging.NETWORKS)
    assert rows["ratio"].tolist() == pytest.approx(rows["judging_cpu_ms"] / rows["bare_cpu_ms"])
    assert rows.set_index(["network", "layers"]).loc[("ReLU, every unit dead", 4), "findings"] > 4


def test_the_peak_is_what_a_step_holds_at_once():
    def step() -> None:
        torch.zeros(16, 2**20).add_(1)
        torch.zeros(16, 2**20).add_(1)

    if sys.platform != "linux":  # no other kernel has what is read and reset
        with pytest.raises((OSError, AttributeError)):
            memory.peak_of(step)
        return
    step()  # the first call in a process also loads torch's code for it
    assert memory.peak_of(step) == pytest.approx(64, abs=2)


# -- the page ----------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A report in which everything costs 1.2 times the bare step, but torchlens has a gap."""
    cells = [(workload, tool) for workload in RECIPES for tool in TOOLS if tool != "bare"]
    speed = pd.DataFrame(cells, columns=["workload", "tool"]).assign(
        rounds=3, cpu_ratio=1.2, cpu_quartile_1=1.1, cpu_quartile_3=1.3, wall_ratio=1.2,
        cpu_ms=12.0, bare_cpu_ms=10.0, why_not=None, threads=1, version="1.0", cpu="a CPU",
        cores=2, python="3", torch="2", date="today",
    )  # fmt: skip
    gap = (speed["tool"] == "torchlens") & (speed["workload"] == "gpt")
    speed.loc[gap, ["cpu_ratio", "why_not"]] = None, "it crashed"
    peaks = pd.DataFrame(cells, columns=["workload", "tool"]).assign(
        peak_mib=12.0, bare_mib=10.0, ratio=1.2, spread_mib=0.0, why_not=None,
        parameters_mib=2.0, processes=1,
    )  # fmt: skip
    growth = pd.DataFrame(
        [(what, size, size / 10) for what in linearity.TOOLS for size in (10, 100, 1000)],
        columns=["grows_with", "size", "extra_ms"],
    ).assign(bare_cpu_ms=1.0, extra_us_each=100.0)
    judging = pd.DataFrame(
        [(name, depth, depth / 10) for name in ("ReLU", "tanh") for depth in (50, 500, 2000)],
        columns=["network", "layers", "judging_cpu_ms"],
    ).assign(findings=3, rounds=3, bare_cpu_ms=10.0, ratio=1.2, ms_a_layer=0.1)
    session = pd.DataFrame([{"rounds": 3, "bare_cpu_ms": 500.0, "added_cpu_ms": 3.21,
                            "added_quartile_1": 1.0, "added_quartile_3": 6.0}])  # fmt: skip
    tables = {"speed": speed, "memory": peaks, "linearity": growth, "judging": judging,
              "plugin": session}  # fmt: skip
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def test_goals_are_judged_by_what_was_measured(tables):
    speed, peaks = pd.read_csv(tables / "speed.csv"), pd.read_csv(tables / "memory.csv")
    met = {(v.workload, v.what): v.met for v in page.judge(speed, peaks)}

    assert all(met[w, "statistics, time"] for w in RECIPES)  # 1.2 of at least 1.3
    assert not any(met[w, "statistics, peak memory"] for w in RECIPES)  # 1.2 of at most 1.15
    assert all(met[w, "whole check, peak memory"] for w in RECIPES)  # 12 of 10.3 and 2


def test_the_page_says_what_was_measured_missed_and_not_measured(tables):
    text = page.render(tables)

    assert "| mlp | statistics, time | ≤ 1.30 × | 1.20 × | met |" in text
    assert "| mlp | statistics, peak memory | ≤ 1.15 × | 1.20 × | **not met** |" in text
    assert "| no-op hooks | 1.20 (1.10–1.30) |" in text
    assert "- torchlens on gpt: it crashed" in text
    assert "exponent\n1.00 (1.00–1.00)" in text
    assert "| tanh | 1.00 (1.00–1.00) |" in text
    assert "| ReLU | 2,000 | 3 | 10.0 | 200.0 | 1.2 | 0.10 |" in text


def test_a_session_with_the_plugin_is_held_against_its_neighbours_without():
    rows = plugin.compare(rounds=2)

    assert (rows["bare_cpu_ms"] > 0).all()
    assert plugin.summary(rows)["rounds"].tolist() == [2]


def test_the_page_tells_what_the_plugin_costs(tables):
    text = " ".join(page.render(tables).split())
    assert "pays 3.2 ms for having the plugin installed (3 pairs" in text


def test_the_page_tells_of_a_card_where_one_was_measured(tables):
    assert "CUDA device" not in page.render(tables)

    cells = [(workload, tool) for workload in RECIPES for tool in ("no-op hooks", "nndiag check")]
    card = pd.DataFrame(cells, columns=["workload", "tool"]).assign(
        rounds=3, wall_ratio=12.5, wall_quartile_1=12.0, wall_quartile_3=13.0, bare_wall_ms=2.0,
        peak_mib=15.0, bare_mib=10.0, parameters_mib=2.0, card="a card", cuda="13.0", torch="2",
        date="today",
    )  # fmt: skip
    card.to_csv(tables / "cuda.csv", index=False)
    text = page.render(tables)

    assert "today: a card,\nCUDA 13.0, torch 2." in text
    assert "| nndiag check | 12.50 (12.00–13.00), 25 ms |" in text
    assert "| nndiag check | 1.50 (15.0 MiB) |" in text


# -- no layer waits for the device -------------------------------------------------------------


def elsewhere(depth: int) -> Workload:
    """A network whose widths differ, on the pretended accelerator."""
    layers: list[nn.Module] = []
    for width in range(depth):
        layers += [nn.Linear(8 + width, 9 + width), nn.BatchNorm1d(9 + width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(8 + depth, 3))
    x, target = torch.randn(64, 8), torch.randint(0, 3, (64,))
    return Workload(moved(model), Elsewhere(x), Elsewhere(target), F.cross_entropy, unit=1)


@pytest.mark.parametrize("depth", [2, 12])
def test_the_statistics_of_a_batch_wait_for_the_device_once(depth):
    with Accelerator() as device:
        work = elsewhere(depth)
        recorder = tools.record(work)
        while_running = dict(device.waits)
        layers = recorder.layers()
        in_all = dict(device.waits)

    assert not recorder.not_observed
    assert [layer.unseen for layer in layers] == [()] * (3 * depth + 1)
    assert while_running == {}
    assert in_all == {"to the host": 1}


def test_a_check_waits_no_more_often_for_more_layers():
    waits = []
    for depth in (2, 12):
        with Accelerator() as device:
            work = elsewhere(depth)
            report = nndiag.check(work.model, work.batch, loss_fn=F.cross_entropy, config=False)
        waits.append(device.waits)
        assert report.snapshot.has_gradients
        assert report.snapshot.has_step

    assert waits[0] == waits[1]


def test_the_pretended_accelerator_computes_what_the_cpu_computes():
    torch.manual_seed(0)
    here = tanh_chain(width=16, depth=2, batch=64)
    expected = tools.record(here).layers()
    with Accelerator():
        there = replace(
            here,
            model=moved(here.model),
            x=Elsewhere(here.x),
            target=Elsewhere(here.target),
        )
        found = tools.record(there).layers()

    for layer, like in zip(found, expected, strict=True):
        assert layer.output.mean == pytest.approx(like.output.mean, rel=1e-4, abs=1e-7)
        assert layer.grad.rms == pytest.approx(like.grad.rms, rel=1e-4)


WAITING = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool((x > 0).any()),
    "equal": lambda x: torch.equal(x, x),
    "an index of booleans": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "to the host": lambda x: x.cpu(),
    "copied to the host": lambda x: torch.empty(4).copy_(x),
    "a number to the device": lambda x: torch.ones(4).to(x.device),
}


@pytest.mark.parametrize("what", WAITING)
def test_the_pretended_accelerator_notices_who_waits(what):
    with Accelerator() as device:
        WAITING[what](Elsewhere(torch.randn(4)))

    assert device.waits.total() == 1


def test_arithmetic_does_not_wait():
    with Accelerator() as device:
        x = Elsewhere(torch.randn(4, 4))
        y = torch.where(torch.isfinite(x), x @ x, torch.full_like(x, 2.0)).sum(0)
        y += torch.arange(4, device=x.device)
        x[:, 1:3].mul_(y[1:3])

    assert isinstance(y, Elsewhere)
    assert not device.waits
