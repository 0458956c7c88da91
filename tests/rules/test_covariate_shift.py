"""covariate-shift: one virtual update, recomputed by hand; BatchNorm's statistics; the drift."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag import judge, rules
from nndiag.render import page
from nndiag.stats import Layer, Loss, Node, Shift, Snapshot, TensorStats

NAME = "covariate-shift"


def he(layer, times=1.0):
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.mul_(times)
    return layer


def mlp(depth=6, activation=nn.ReLU, width=48, init=he):
    layers = []
    for k in range(depth):
        layers += [init(nn.Linear(width if k else 16, width)), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def check(model, x, y=None, loss_fn=F.cross_entropy, select=NAME, **options):
    if y is None:
        torch.manual_seed(1)
        y = torch.randint(0, 10, (len(x),))
    return nndiag.check(model, (x, y), loss_fn=loss_fn, select=select, config=False, **options)


def warnings(rep):
    return [(f.layer, f.severity) for f in rep.findings if f.severity != "note"]


# -- the virtual update ------------------------------------------------------------------------


def by_hand(model, x, y, loss_fn=F.cross_entropy, step=0.01):
    """Move every parameter by 1 % of its norm against its gradient; look at all inputs again."""
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    loss_fn(before(x), y).backward()
    with torch.no_grad():
        for p, q in zip(before.parameters(), after.parameters(), strict=True):
            if p.grad is not None and p.grad.norm() > 0:
                q -= step * p.norm() / p.grad.norm() * p.grad
    shifts = {}
    with torch.no_grad():
        old, new = x, x
        for name, a, b in zip(dict(model.named_children()), before, after, strict=True):
            if isinstance(a, (nn.Linear, nn.Conv2d)):
                flat = [h.movedim(1, -1).reshape(-1, h.shape[1]).double() for h in (old, new)]
                means, variances = (
                    [h.mean(0) for h in flat],
                    [h.var(0, unbiased=False) for h in flat],
                )
                varied = variances[0].sqrt() > 1e-6 * flat[0].square().mean().sqrt()
                moved = (means[1] - means[0])[varied].square().mean()
                scale = variances[1][varied].mean() / variances[0][varied].mean()
                shifts[name] = (
                    math.sqrt(moved / variances[0][varied].mean()), 0.5 * math.log(scale)
                )  # fmt: skip
            old, new = a(old), b(new)
    return shifts


class TestTheVirtualUpdate:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("form", ["relu", "tanh", "conv"])
    def test_shifts_each_layers_inputs_as_recomputed_by_hand(self, seed, form):
        torch.manual_seed(seed)
        if form == "conv":
            layers = []
            for k in range(3):
                layers += [he(nn.Conv2d(8 if k else 3, 8, 3, padding=1)), nn.ReLU()]
            model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 10))
            x = torch.randn(32, 3, 6, 6)
        else:
            model = mlp(activation=nn.ReLU if form == "relu" else nn.Tanh)
            x = torch.randn(64, 16)
        y = torch.randint(0, 10, (len(x),))
        rep = check(model, x, y)
        for name, (mean, scale) in by_hand(model, x, y).items():
            shift = rep.snapshot.by_name[name].shift
            if name == "0":
                assert shift.mean == pytest.approx(0, abs=1e-6)
            assert shift.mean == pytest.approx(mean, rel=1e-3, abs=1e-6)
            assert shift.scale == pytest.approx(scale, rel=1e-2, abs=1e-4)

    @pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e3, 1e30])
    def test_is_of_fixed_relative_size_so_that_the_loss_has_no_scale(self, factor):
        torch.manual_seed(0)
        model, x = mlp(), torch.randn(64, 16)
        y = torch.randint(0, 10, (64,))
        plain = check(model, x, y).snapshot
        scaled = check(model, x, y, lambda out, t: factor * F.cross_entropy(out, t)).snapshot
        for a, b in zip(plain.layers, scaled.layers, strict=True):
            if a.shift is not None:
                assert b.shift.mean == pytest.approx(a.shift.mean, rel=1e-3, abs=1e-7)

    def test_is_undone_bitwise_also_with_dropout_and_batchnorm(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
        )
        before = {k: v.clone() for k, v in model.state_dict().items()}
        generator = torch.get_rng_state()
        torch.manual_seed(7)
        state = torch.get_rng_state()
        rep = nndiag.check(
            model, (torch.randn(64, 16, generator=torch.Generator().manual_seed(0)),
                    torch.arange(64) % 10),
            loss_fn=F.cross_entropy, select=NAME, config=False,
        )  # fmt: skip
        assert rep.snapshot.has_step
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        torch.set_rng_state(generator)

    def test_sees_the_same_dropout_masks_before_and_after(self):
        # Other masks would look like a shift: with a step of (almost) nothing there is none.
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(32, 10),
        )  # fmt: skip
        for p in model.parameters():
            p.requires_grad_(False)
        model[6].requires_grad_(True)  # only the last layer moves: nothing before it shifts
        rep = check(model, torch.randn(64, 16))
        for name in ("0", "3", "6"):
            assert rep.snapshot.by_name[name].shift.mean == 0

    def test_moves_no_parameter_of_zero_norm_or_zero_gradient(self):
        torch.manual_seed(0)
        model, x = mlp(3), torch.randn(64, 16)
        nn.init.zeros_(model[-1].weight)
        y = torch.randint(0, 10, (64,))
        rep = check(model, x, y)
        assert all(s == (0, 0) for s in by_hand(model, x, y).values())
        assert all(x.shift.mean == 0 for x in rep.snapshot.layers if x.shift is not None)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("depth", [2, 6, 12])
    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
    def test_is_never_more_than_a_note(self, seed, depth, activation):
        torch.manual_seed(seed)
        rep = check(mlp(depth, activation), torch.randn(64, 16))
        assert rep.ok
        assert len([f for f in rep.findings if f.measure == "shift"]) <= 1

    def test_names_the_layer_that_shifts_most_and_how_it_grows_with_depth(self):
        torch.manual_seed(0)
        model, x = mlp(10), torch.randn(64, 16)
        y = torch.randint(0, 10, (64,))
        rep = check(model, x, y)
        [found] = [f for f in rep.findings if f.measure == "shift"]
        shifts = {name: mean for name, (mean, _) in by_hand(model, x, y).items()}
        assert found.layer == max(shifts, key=shifts.get)
        assert found.evidence["shift"] == pytest.approx(max(shifts.values()), rel=1e-3)
        first = next(s for s in shifts.values() if s > 1e-9)
        assert found.evidence["amplification"] == pytest.approx(
            max(shifts.values()) / first, rel=1e-2
        )
        over = sum(s >= 0.5 for s in shifts.values())
        assert f"{over} of 11 layers move by more than 0.5" in found.message

    def test_is_made_where_the_gradients_have_all_but_vanished(self):
        torch.manual_seed(0)
        model = mlp(6, nn.Tanh)
        for layer in model[::2]:
            nn.init.xavier_normal_(layer.weight, 1e-7)  # gradients down to 1e-40

        report = check(model, torch.randn(64, 16))

        assert report.snapshot.has_step
        assert report.crashed == ()

    def test_leaves_out_units_that_do_not_vary_across_samples(self):
        torch.manual_seed(0)
        model, x = mlp(4), torch.randn(64, 16)
        with torch.no_grad():
            model[2].bias[:24] = -100.0  # half of the units behind it are dead
        y = torch.randint(0, 10, (64,))
        rep = check(model, x, y)
        assert rep.snapshot.by_name["4"].shift.units <= 24
        mean, _ = by_hand(model, x, y)["4"]
        assert rep.snapshot.by_name["4"].shift.mean == pytest.approx(mean, rel=1e-3)

    def test_is_not_made_where_nothing_learns_and_the_report_is_no_poorer_otherwise(self):
        torch.manual_seed(0)
        model = mlp().requires_grad_(False)
        rep = nndiag.check(model, torch.randn(64, 16), select=NAME, config=False)
        assert not rep.snapshot.has_step
        assert rep.ok

    def test_the_boundary_lies_at_half_a_standard_deviation(self):
        for shift, expected in ((0.49, 0), (0.51, 1)):
            stats = TensorStats(64, 640, 0, 0, 0, 0.0, 640.0, -1.0, 1.0)
            layer = Layer("a", "Linear", "linear", (64, 10), 1, stats, stats,
                          shift=Shift(shift, 0.0, 10))  # fmt: skip
            snapshot = Snapshot("Net", (layer,), (Node("input"), Node("linear", (0,), 0)), (),
                                {"input": stats}, Loss("loss_fn"), 64, 1, outputs=(1,))  # fmt: skip
            assert len(judge.judge(snapshot, NAME).findings) == expected


# -- BatchNorm in evaluation mode ---------------------------------------------------------------


def normalised(kind="dense", eval_mode=True):
    """A BatchNorm that has seen data like ``data(kind)``."""
    torch.manual_seed(0)
    if kind == "dense":
        model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    else:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                              nn.Linear(8 * 36, 10))  # fmt: skip
    for _ in range(60):
        model(data(kind))
    return model.train(not eval_mode)


def data(kind="dense", n=128):
    return torch.randn(n, 16) if kind == "dense" else torch.randn(n, 3, 8, 8)


class TestRunningStatistics:
    @pytest.mark.parametrize("kind", ["dense", "conv"])
    def test_that_fit_the_batch_are_quiet(self, kind):
        model = normalised(kind)
        for n in (8, 32, 256):
            assert check(model, data(kind, n)).ok

    @pytest.mark.parametrize("kind", ["dense", "conv"])
    @pytest.mark.parametrize("move", [lambda x: x + 20, lambda x: 8 * x, lambda x: x / 8])
    def test_that_do_not_are_a_warning_at_that_batchnorm(self, kind, move):
        model = normalised(kind)
        rep = check(model, move(data(kind)), select=None)
        roots = [(f.rule, f.layer) for f in rep.findings
                 if f.cause is None and f.severity != "note"]  # fmt: skip
        assert roots == [(NAME, "1")]

    @pytest.mark.parametrize(
        ("shift", "ratio", "expected"),
        [(1.9, 1.0, 0), (2.1, 1.0, 1), (-2.1, 1.0, 1), (0.0, 9.0, 0), (0.0, 11.0, 1),
         (0.0, 1 / 9, 0), (0.0, 1 / 11, 1)],
    )  # fmt: skip
    def test_the_boundaries_lie_at_two_deviations_and_a_factor_of_ten(self, shift, ratio, expected):
        model, x = normalised(), data()
        norm = model[1]
        with torch.no_grad():  # statistics that are off by exactly so much on every channel
            z = model[0](x)
            variance = z.var(0, unbiased=False) / ratio
            norm.running_var.copy_(variance)
            norm.running_mean.copy_(z.mean(0) - shift * variance.sqrt())
        rep = check(model, x)
        assert warnings(rep) == [("1", "warning")] * expected
        row = rep.snapshot.by_name["1"]
        assert row.facts["running_mean_shift"] == pytest.approx(abs(shift), abs=1e-3)
        assert row.facts["running_variance_ratio"] == pytest.approx(ratio, rel=1e-3)

    @pytest.mark.parametrize(
        ("shift", "ratio", "measure", "wrong"),
        [
            (4.0, 1.0, "running_mean", "its running mean is off by 4 standard deviations"),
            (0.0, 16.0, "running_variance", "its running variance is off by a factor 16"),
            (0.0, 1 / 16, "running_variance", "its running variance is off by a factor 16"),
            (4.0, 16.0, "running_mean", "its running mean is off by 4 standard deviations"),
        ],
    )
    def test_are_held_against_the_threshold_of_what_is_off(self, shift, ratio, measure, wrong):
        model, x = normalised(), data()
        norm = model[1]
        with torch.no_grad():
            z = model[0](x)
            variance = z.var(0, unbiased=False) / ratio
            norm.running_var.copy_(variance)
            norm.running_mean.copy_(z.mean(0) - shift * variance.sqrt())
        [found] = [f for f in check(model, x).findings if f.severity == "warning"]
        assert found.measure == measure
        assert found.threshold == {"running_mean": 2.0, "running_variance": 10.0}[measure]
        assert found.summary == f"1 will normalise wrongly: {wrong}."

    def test_it_is_the_median_channel_that_counts(self):
        model, x = normalised(), data()
        model[1].running_mean[:12] += 100  # 12 of 32 channels
        assert check(model, x).ok
        model[1].running_mean[:20] += 100
        assert warnings(check(model, x)) == [("1", "warning")]

    def test_that_never_saw_a_batch_are_a_note(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        rep = check(model.eval(), 10 * data())
        assert rep.ok
        [found] = [f for f in rep.findings if "running" in f.measure]
        assert "has not seen a single batch" in found.message
        assert found.evidence["batches_tracked"] == 0

    def test_are_not_used_in_training_mode_and_not_judged(self):
        assert check(normalised(eval_mode=False), 8 * data() + 20).ok

    def test_are_not_there_without_tracking(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32, track_running_stats=False), nn.Linear(32, 10)
        )
        assert check(model.eval(), 8 * data() + 20).ok

    def test_of_one_frozen_batchnorm_in_a_training_network_are_judged(self):
        model = normalised(eval_mode=False)
        model[1].eval()
        assert warnings(check(model, 8 * data() + 20)) == [("1", "warning")]

    @pytest.mark.parametrize("at", [0, 2, 4])
    def test_a_batchnorm_in_the_middle_leads_and_the_others_are_folded_under_it(self, at):
        torch.manual_seed(0)
        layers = []
        for k in range(6):
            layers += [nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        for _ in range(60):
            model(data("conv", 32))
        norm = model.eval()[3 * at + 1]
        norm.running_mean.add_(6 * norm.running_var.sqrt())
        rep = check(model, data("conv", 64), select=None)
        roots = [f for f in rep.findings if f.cause is None and f.severity != "note"]
        assert [(f.rule, f.layer) for f in roots] == [(NAME, str(3 * at + 1))]

    # -- the drift of scale ----------------------------------------------------------------------

    def test_of_a_stream_are_held_against_all_of_it(self):
        # Each half lies four standard deviations to one side: a loader sorted by class.
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        x, y = torch.randn(64, 16), torch.randint(0, 10, (64,))
        for _ in range(60):
            model(torch.cat([x + 4, x - 4]))
        model.eval()

        halves = [(x + 4, y), (x - 4, y)]
        report = nndiag.check(model, halves, loss_fn=F.cross_entropy, select=NAME, config=False)

        assert report.ok
        assert report.snapshot.by_name["1"].facts["running_mean_shift"] < 0.1


class TestDrift:
    @pytest.mark.parametrize(("each", "expected"), [(0.5, True), (2.0, True), (1.0, False)])
    def test_of_scale_along_a_chain_is_a_note_with_its_factor(self, each, expected):
        torch.manual_seed(0)
        model = mlp(8, init=lambda layer: he(layer, each))
        rep = check(model, torch.randn(64, 16))
        found = [f for f in rep.findings if f.measure == "drift"]
        assert bool(found) == expected
        with torch.no_grad():
            fed = [
                float(model[:k](torch.randn(64, 16)).square().mean().sqrt())
                for k in range(2, 17, 2)
            ]
        for f in found:
            assert f.severity == "note"
            assert f.evidence["drift"] == pytest.approx(max(fed) / min(fed), rel=0.3)

    def test_leaves_out_layers_that_read_nothing_but_zeros(self):
        torch.manual_seed(0)
        model = mlp(8, init=lambda layer: he(layer, 0.5))
        nn.init.constant_(model[12].bias, -100.0)  # all of its ReLU's outputs are zero
        rep = check(model, torch.randn(64, 16))
        [found] = [f for f in rep.findings if f.measure == "drift"]
        assert rep.snapshot.by_name["14"].input.rms == 0
        assert rep.crashed == ()
        assert 10 < found.evidence["drift"] < 100

    def test_ends_at_a_normalisation(self):
        torch.manual_seed(0)
        layers = []
        for k in range(8):
            layers += [he(nn.Linear(48 if k else 16, 48), 0.3), nn.LayerNorm(48), nn.ReLU()]
        rep = check(nn.Sequential(*layers, nn.Linear(48, 10)), torch.randn(64, 16))
        assert not [f for f in rep.findings if f.measure == "drift"]


def test_what_santurkar_et_al_measured_is_claimed_on_no_page():
    # BatchNorm does not lower this shift (2018, section 2): the page shows a number, no harm.
    text = page.page(rules.discover()[NAME])
    assert "Ioffe & Szegedy 2015" in text
    assert "Santurkar et al. 2018" in text
    assert "note at most" in text


def test_a_shift_is_reported_with_numbers_that_go_into_a_table():
    torch.manual_seed(0)
    rep = check(mlp(8), torch.randn(64, 16))
    for f in rep.findings:
        assert np.isfinite(list(f.evidence.values())).all()
