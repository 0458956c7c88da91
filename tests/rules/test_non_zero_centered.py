"""Units off zero: how far, against their spread, and what it does to the next layer's gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import nndiag
from nndiag import judge

NAME = "non-zero-centered"


def check(model, batch, **options):
    return nndiag.check(model, batch, config=False, **options)


def own(report):
    return [f for f in report.findings if f.rule == NAME]


def alone(model, batch, **options):
    return own(check(model, batch, select=NAME, **options))


def stack(depth, activation, width=48, norm=None, out=10):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation(), *([norm(width)] if norm else [])]
        nn.init.xavier_normal_(layers[-2 - bool(norm)].weight)
        nn.init.zeros_(layers[-2 - bool(norm)].bias)
    return nn.Sequential(*layers, nn.Linear(width, out))


def standard(activation, width=400):
    """One hidden activation of pre-activations that are N(0, 1) exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), activation, nn.Linear(width, 1))
    with torch.no_grad():
        model[0].bias.zero_()
        model[0].weight /= model[0].weight.norm(dim=1, keepdim=True)
    return model


# |mean| / std of φ(z) at z ~ N(0, 1), by quadrature.
STANDARD = {
    "relu": (nn.ReLU(), 0.683332),
    "leaky": (nn.LeakyReLU(0.01), 0.673328),
    "sigmoid": (nn.Sigmoid(), 2.400657),
    "softplus": (nn.Softplus(), 1.546929),
    "elu": (nn.ELU(), 0.203997),
    "gelu": (nn.GELU(), 0.479822),
    "silu": (nn.SiLU(), 0.369270),
    "selu": (nn.SELU(), 0.0),
    "tanh": (nn.Tanh(), 0.0),
    "softsign": (nn.Softsign(), 0.0),
    "hardtanh": (nn.Hardtanh(), 0.0),
}


class TestHowFar:
    @pytest.mark.parametrize("name", STANDARD)
    def test_the_distance_is_the_distributions(self, name):
        activation, expected = STANDARD[name]
        x = torch.randn(2000, 400, generator=torch.Generator().manual_seed(1))
        found = alone(standard(activation), x)
        if expected < 0.5:
            assert found == []
        else:
            assert found[0].evidence["ratio"] == pytest.approx(expected, rel=0.02)

    @pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid(), nn.Softplus()])
    def test_it_is_taken_unit_by_unit_over_the_units_that_vary(self, activation):
        torch.manual_seed(0)
        model, x = stack(1, lambda: activation), torch.randn(200, 48)
        with torch.no_grad():
            model[0].bias.uniform_(-2, 2)
            model[0].weight[:5] = 0.0
        [found] = alone(model, x)
        with torch.no_grad():
            h = model[:2](x).double()[:, 5:]
        ratio = (h.mean(0) ** 2).sum() / h.var(0, unbiased=False).sum()
        assert found.evidence["ratio"] == pytest.approx((ratio.item() - 1 / 199) ** 0.5, rel=1e-4)

    @pytest.mark.parametrize("shape", ["images", "sequence"])
    def test_channels_of_images_and_features_of_sequences_are_units(self, shape):
        torch.manual_seed(0)
        if shape == "images":
            model = nn.Sequential(
                nn.Conv2d(3, 12, 3), nn.Sigmoid(), nn.Conv2d(12, 12, 3), nn.Flatten(),
                nn.Linear(12 * 16, 1),
            )  # fmt: skip
            x, over = torch.randn(64, 3, 8, 8), (0, 2, 3)
        else:
            model = nn.Sequential(nn.Linear(6, 12), nn.Sigmoid(), nn.Linear(12, 1))
            x, over = torch.randn(64, 5, 6), (0, 1)
        [found] = alone(model, x)
        with torch.no_grad():
            h = model[:2](x).double()
        square = (h.mean(over) ** 2).sum() / h.var(over, unbiased=False).sum()
        assert found.evidence["ratio"] == pytest.approx((square.item() - 1 / 63) ** 0.5, rel=1e-4)
        assert found.layer == "1"

    def test_units_off_to_both_sides_do_not_cancel(self):
        torch.manual_seed(0)
        model, x = stack(1, nn.Tanh), torch.randn(256, 48)
        with torch.no_grad():
            model[0].bias[::2], model[0].bias[1::2] = 1.5, -1.5
            assert abs(model[:2](x).mean()) < 0.1
        [found] = alone(model, x)
        assert found.evidence["ratio"] > 1.5
        assert found.severity == "note"  # their gradients do not have one sign

    @pytest.mark.parametrize("samples", [4, 8, 32])
    def test_few_samples_are_off_zero_by_chance_alone(self, samples):
        for seed in range(5):
            torch.manual_seed(seed)
            assert alone(stack(2, nn.Tanh), torch.randn(samples, 48)) == []

    @pytest.mark.parametrize(("samples", "found"), [(1, False), (7, False), (8, True)])
    def test_a_spread_takes_eight_samples(self, samples, found):
        torch.manual_seed(0)
        x = torch.randn(samples, 7, 48)  # steps of a sequence are no samples
        assert bool(alone(stack(2, nn.Sigmoid), x)) == found

    def test_a_handful_of_stuck_units_does_not_decide(self):
        torch.manual_seed(0)
        model, x = stack(1, nn.Tanh), torch.randn(256, 48)
        with torch.no_grad():
            model[0].bias[:2] = 4.0
        assert alone(model, x) == []

    def test_the_condition_number_is_that_of_the_next_layers_input(self):
        x = torch.randn(8000, 100, generator=torch.Generator().manual_seed(1))
        model = standard(nn.Sigmoid(), 100)
        nn.init.eye_(model[0].weight)  # independent features
        [found] = alone(model, x, loss_fn=lambda out: out.mean())
        h = x.sigmoid().double().numpy()
        assert found.evidence["condition"] == pytest.approx(
            np.linalg.cond(h.T @ h / len(h)), rel=0.3
        )
        ratio = found.evidence["ratio"]
        assert found.evidence["condition"] == pytest.approx(1 + 100 * ratio**2)


def one_sign(model, x, y):
    """Rows of each weight whose gradients all have one sign, of those that have any."""
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    found = {}
    for name, p in model.named_parameters():
        if p.dim() > 1:
            g = p.grad.flatten(1)
            some = (g != 0).any(1)
            same = ((g >= 0).all(1) | (g <= 0).all(1)) & some
            found[name] = (same.sum().item(), some.sum().item())
    model.zero_grad(set_to_none=True)
    return found


class TestConsequence:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("samples", [32, 256, 1024])
    def test_the_share_of_one_signed_rows_is_autograds(self, seed, samples):
        torch.manual_seed(seed)
        model, x, y = stack(3, nn.Sigmoid), torch.randn(samples, 48), torch.arange(samples) % 10
        expected = one_sign(model, x, y)
        found = {f.layer: f for f in alone(model, x, target=y, loss_fn=F.cross_entropy)}
        for k, layer in enumerate(("1", "3", "5")):
            one, of = expected[f"{2 * k + 2}.weight"]
            if one >= of / 2:
                assert found[layer].severity == "warning"
                assert found[layer].evidence["one_sign"] == pytest.approx(one / of)
                assert f"of {one} of {of} units all have one sign" in found[layer].message
            elif layer in found:
                assert found[layer].severity == "note"
        assert found["5"].severity == "warning"

    @pytest.mark.parametrize("form", ["module", "call", "sequence", "convolution"])
    def test_a_sigmoid_stack_is_a_warning_in_every_form(self, form):
        class Calls(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(3))
                self.out = nn.Linear(48, 10)

            def forward(self, x):
                for layer in self.layers:
                    x = torch.sigmoid(layer(x))
                return self.out(x)

        for seed in range(2):
            torch.manual_seed(seed)
            model, x = stack(3, nn.Sigmoid), torch.randn(128, 48)
            if form == "call":
                model = Calls()
            elif form == "sequence":
                x = torch.randn(32, 6, 48)
            elif form == "convolution":
                model = nn.Sequential(
                    nn.Conv2d(3, 16, 3), nn.Sigmoid(), nn.Conv2d(16, 16, 3), nn.Sigmoid(),
                    nn.Flatten(), nn.Linear(16 * 16, 10),
                )  # fmt: skip
                x = torch.randn(128, 3, 8, 8)
            found = alone(model, x)
            assert "warning" in {f.severity for f in found}
            assert not check(model, x, select=NAME).ok

    def test_an_optimiser_whose_step_leads_down_makes_it_a_note(self):
        torch.manual_seed(0)
        d = load_digits()
        x = torch.tensor(d.data[:256], dtype=torch.float32) / 16
        y = torch.tensor(d.target[:256])
        model = nn.Sequential(
            nn.Linear(64, 50), nn.Sigmoid(), nn.Linear(50, 50), nn.Sigmoid(), nn.Linear(50, 10)
        )

        def severity(**given):
            found = own(check(model, x, target=y, loss_fn=F.cross_entropy, **given))
            return max((f.severity for f in found), key=["note", "warning"].index)

        assert severity() == "warning"
        assert severity(optimizer=torch.optim.SGD(model.parameters(), 0.1)) == "note"
        assert severity(optimizer=torch.optim.SGD(model.parameters(), 100.0)) == "warning"

    @pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Softplus, nn.GELU])
    def test_relu_and_its_kin_are_a_note_even_where_every_row_has_one_sign(self, activation):
        torch.manual_seed(0)
        model, x = stack(3, activation, out=1), 1 + torch.randn(128, 48).abs()
        found = alone(model, x, target=torch.zeros(128, 1), loss_fn=F.l1_loss)
        assert {f.severity for f in found} == {"note"}

    @pytest.mark.parametrize("activation", [nn.Tanh, nn.Softsign, nn.Hardtanh, nn.SELU])
    def test_centred_activations_are_quiet(self, activation):
        for seed in range(5):
            torch.manual_seed(seed)
            assert alone(stack(6, activation), torch.randn(128, 48)) == []

    def test_a_tanh_shifted_to_one_side_is_no_better_than_a_sigmoid(self):
        torch.manual_seed(0)
        model, x = stack(2, nn.Tanh), torch.randn(128, 48)
        nn.init.constant_(model[2].bias, 2.5)
        [found] = alone(model, x, target=torch.arange(128) % 10, loss_fn=F.cross_entropy)
        assert (found.layer, found.severity) == ("3", "warning")

    def test_without_gradients_there_is_no_consequence_and_no_warning(self):
        torch.manual_seed(0)
        model, x = stack(3, nn.Sigmoid), torch.randn(128, 48)
        assert "warning" in {f.severity for f in alone(model, x)}
        model.requires_grad_(False)
        assert [f.severity for f in alone(model, x)] == ["note"]

    def test_next_to_few_inputs_one_sign_is_no_rarity(self):
        for width, severities in ((7, {"note"}), (8, {"warning"})):
            torch.manual_seed(0)
            model = stack(1, nn.Sigmoid, width=width, out=1)
            x, y = torch.randn(256, width), torch.zeros(256, 1)
            assert {f.severity for f in alone(model, x, target=y, loss_fn=F.l1_loss)} == severities

    @pytest.mark.parametrize("seed", range(4))
    def test_a_single_sigmoid_among_tanh_is_named_and_leads_where_it_tells(self, seed):
        torch.manual_seed(seed)
        model, x, y = stack(6, nn.Tanh), torch.randn(128, 48), torch.arange(128) % 10
        assert own(check(model, x, target=y, loss_fn=F.cross_entropy)) == []
        model[5] = nn.Sigmoid()
        one, of = one_sign(model, x, y)["6.weight"]
        report = check(model, x, target=y, loss_fn=F.cross_entropy)
        [found] = [f for f in own(report) if f.layer == "5"]
        assert found.severity == ("warning" if one >= of / 2 else "note")
        if found.severity == "warning":
            assert report.findings[0] is found

    def test_normalised_outputs_are_no_alarm(self):
        for norm in (nn.BatchNorm1d, nn.LayerNorm):
            torch.manual_seed(0)
            model = stack(4, nn.Sigmoid, norm=norm)
            assert {f.severity for f in alone(model, torch.randn(128, 48))} <= {"note"}


class TestThresholds:
    """The measured numbers moved by hand to both sides of each threshold."""

    @staticmethod
    def snapshot(ratio=3.0, one=24, of=48):
        torch.manual_seed(0)
        model = stack(1, nn.Sigmoid)
        model[2] = nn.Linear(48, 48)
        snapshot = check(model, torch.randn(256, 48)).snapshot
        layers = list(snapshot.layers)
        output = layers[1].output
        units = replace(output.units, mean=np.full(48, ratio), m2=output.units.count * 1.0)
        layers[1] = replace(layers[1], output=replace(output, samples=10**9, units=units))
        parameters = tuple(
            replace(p, one_sign_rows=one, graded_rows=of) if p.name == "2.weight" else p
            for p in snapshot.parameters
        )
        return replace(snapshot, layers=tuple(layers), parameters=parameters)

    def severities(self, **numbers):
        judged = judge.judge(self.snapshot(**numbers), select=NAME)
        return [(f.severity, f.measure) for f in judged.findings]

    @pytest.mark.parametrize(("ratio", "found"), [(0.499, []), (0.501, [("warning", "one_sign")])])
    def test_half_a_standard_deviation(self, ratio, found):
        assert self.severities(ratio=ratio) == found

    @pytest.mark.parametrize(
        ("one", "found"), [(24, ("warning", "one_sign")), (23, ("note", "ratio"))]
    )
    def test_half_of_the_rows(self, one, found):
        assert self.severities(one=one) == [found]

    def test_none_is_below_zero(self):
        for name in ("ratio", "one_sign"):
            with pytest.raises(nndiag.errors.SettingsError, match="lies between 0 and"):
                judge.judge(self.snapshot(), NAME, thresholds={f"{NAME}.{name}": -0.1})

    def test_no_row_with_a_gradient_is_no_consequence(self):
        assert self.severities(one=0, of=0) == [("note", "ratio")]


class TestRoles:
    def test_gates_and_outputs_are_meant_to_be_positive(self):
        class Gate(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.out = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 1)

            def forward(self, x):
                return torch.sigmoid(self.out(self.a(x) * torch.sigmoid(self.b(x))))

        torch.manual_seed(0)
        assert alone(Gate(), torch.randn(128, 48)) == []
        output = nn.Sequential(nn.Linear(48, 8), nn.Sigmoid())
        assert alone(output, torch.randn(128, 48)) == []
        glu = nn.Sequential(nn.Linear(48, 96), nn.GLU(), nn.Linear(48, 4))
        assert alone(glu, torch.randn(128, 48)) == []

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
    def test_gates_of_recurrent_layers_are_not_judged(self, kind):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = kind(8, 16, batch_first=True), nn.Linear(16, 3)

            def forward(self, x):
                return self.out(self.rnn(x)[0][:, -1])

        torch.manual_seed(0)
        assert alone(Last(), torch.randn(32, 7, 8)) == []


def test_on_digits_sigmoids_are_a_warning_before_and_a_note_after_training():
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    x = (x - x.mean(0)) / (x.std(0) + 1.6)
    torch.manual_seed(0)
    model = stack(2, nn.Sigmoid, width=64)
    before = alone(model, (x[:512], y[:512]), loss_fn=F.cross_entropy)
    assert "warning" in {f.severity for f in before}
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(250):
        part = slice(step % 14 * 128, step % 14 * 128 + 128)
        optimiser.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimiser.step()
    assert (model(x).argmax(1) == y).double().mean() > 0.97
    after = alone(model, (x[:512], y[:512]), loss_fn=F.cross_entropy)
    assert [f.severity for f in after] == ["note"]


def test_a_layer_with_nan_is_not_judged():
    torch.manual_seed(0)
    model = stack(2, nn.Sigmoid)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    report = check(model, torch.randn(128, 48))
    assert own(report) == []
    assert [f.rule for f in report.findings if f.severity != "note"] == ["non-finite"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_weights_before_a_batchnorm_are_not_blamed_in_evaluation_mode_either(training, seed):
    torch.manual_seed(seed)
    layers, width = [], 32
    for _ in range(3):
        layers += [nn.Linear(width, 64), nn.BatchNorm1d(64), nn.Sigmoid()]
        width = 64
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    x = torch.randn(256, 32)
    for _ in range(30):
        model(x)
    model.train(training)
    y = torch.zeros(256, dtype=torch.long)  # one class: without BatchNorm all rows have one sign
    rep = nndiag.check(model, (x, y), loss_fn=nn.functional.cross_entropy, config=False)

    found = {f.layer: f.severity for f in rep.findings if f.rule == "non-zero-centered"}
    assert {found.get("2", "note"), found.get("5", "note")} == {"note"}


@pytest.mark.parametrize("samples", [1, 2, 7, 8])
def test_too_few_samples_are_said_so_and_not_judged(samples):
    torch.manual_seed(0)
    report = check(stack(3, nn.Sigmoid), torch.randn(samples, 48))

    reasons = [u.reason for u in report.unjudged if u.rule == "non-zero-centered"]
    if samples < 8:
        are = "sample is" if samples == 1 else "samples are"
        assert reasons == [f"{samples} {are} too few; give 8 or more"]
        assert not [f for f in report.findings if f.rule == "non-zero-centered"]
    else:
        assert reasons == []
