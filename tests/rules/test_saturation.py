"""Saturation: by the slope in force, for hidden activations, attention rows and recurrent cells."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import nndiag
from nndiag.numbers import number

# Two-sided activations, as a module and as a call, and the pre-activation scale that saturates.
TWO_SIDED = {
    "sigmoid": (nn.Sigmoid(), lambda z: z.sigmoid_(), 40.0),
    "tanh": (nn.Tanh(), torch.tanh, 20.0),
    "hardtanh": (nn.Hardtanh(), lambda z: z.clamp(-1, 1), 10.0),
    "hardtanh wide": (nn.Hardtanh(-3, 3), lambda z: torch.clip(z, min=-3, max=3), 30.0),
    "hardsigmoid": (nn.Hardsigmoid(), F.hardsigmoid, 30.0),
    "softsign": (nn.Softsign(), F.softsign, 60.0),
    "erf": (None, torch.erf, 20.0),
}
SMOOTH = [
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Mish(), nn.Softplus(),
    nn.LogSigmoid(), nn.LeakyReLU(), nn.PReLU(),
]  # fmt: skip
HALF_FLAT = {
    "relu": F.relu,
    "hardswish": F.hardswish,
    "clamp": lambda z: z.clamp(min=0),
    "threshold": lambda z: F.threshold(z, 0.0, 0.0),
}


class Call(nn.Module):
    """A function between two layers, called in the forward."""

    def __init__(self, function, width=16):
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 4)
        self.function = function
        nn.init.zeros_(self.first.bias)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def through(function, scale=1.0, width=16):
    """A network whose hidden activation sees ``scale`` times the input."""
    torch.manual_seed(0)
    model = Call(function, width)
    nn.init.eye_(model.first.weight).data.mul_(scale)
    return model


def check(model, batch, **options):
    return nndiag.check(model, batch, config=False, **options)


def own(report):
    return [f for f in report.findings if f.rule == "saturation"]


def alone(model, batch, **options):
    return own(check(model, batch, select="saturation", **options))


def saturated(function, z):
    """Where the slope is under 5 % of its maximum, by autograd alone."""
    z = z.detach().double().clone().requires_grad_()
    [slope] = torch.autograd.grad(function(z * 1.0).sum(), z)
    grid = torch.linspace(-8, 8, 160_001, dtype=torch.float64, requires_grad=True)
    [slopes] = torch.autograd.grad(function(grid * 1.0).sum(), grid)
    return slope.abs() < 0.05 * slopes.abs().max()


class TestValues:
    @pytest.mark.parametrize("form", ["module", "call"])
    @pytest.mark.parametrize("name", TWO_SIDED)
    def test_the_share_is_the_share_of_slopes_under_a_twentieth_of_the_steepest(self, name, form):
        module, call, scale = TWO_SIDED[name]
        if module is None and form == "module":
            module = call  # torch has no module for it
        x = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
        [found] = alone(through(module if form == "module" else call, scale), x)

        expected = saturated(call, scale * x).double().mean().item()
        assert expected > 0.75
        assert found.severity == "warning"
        assert found.evidence["share"] == pytest.approx(expected, abs=2 / x.numel())
        assert found.evidence["input_std"] == pytest.approx((scale * x).std().item(), rel=1e-3)
        assert f"({number(found.evidence['share'], 'share')})" in found.message

    @pytest.mark.one_in(3)
    @pytest.mark.parametrize("name", TWO_SIDED)
    def test_at_unit_scale_none_of_them_is_reported(self, name):
        _, call, _ = TWO_SIDED[name]
        for seed in range(3):
            x = torch.randn(256, 16, generator=torch.Generator().manual_seed(seed))
            assert alone(through(call, 1.5), x) == []

    # Shares of N(0, s²) with a slope under 5 % of the maximum, by the normal distribution.
    @pytest.mark.parametrize("std", [0.5, 1.0, 2.0, 5.0, 10.0, 22.36])
    @pytest.mark.parametrize(("name", "edge"), [("tanh", 2.1783), ("sigmoid", 4.3565)])
    def test_normal_pre_activations_saturate_as_their_distribution_says(self, name, edge, std):
        x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
        report = check(through(getattr(torch, name), std), x, select="saturation")
        layer = report.snapshot.by_name[f"/{name}"]

        expected = math.erfc(edge / std / math.sqrt(2))
        assert layer.flat.share == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(x.numel()))
        assert bool(own(report)) == (expected >= 0.75)

    @pytest.mark.parametrize(("high", "found"), [(191, False), (192, True)])
    def test_three_quarters_of_the_values_are_reported_and_one_less_is_not(self, high, found):
        x = torch.zeros(256)
        x[:high] = 5.0
        x = x[torch.randperm(256, generator=torch.Generator().manual_seed(0))].reshape(32, 8)
        assert bool(alone(through(torch.tanh, width=8), x)) == found

    def test_another_threshold_is_another_verdict(self):
        x = torch.full((64, 8), 5.0)
        x[:32] = 0.0
        model = through(torch.tanh, width=8)
        assert alone(model, x) == []
        [found] = alone(model, x, thresholds={"saturation.share": 0.5})
        assert (found.measure, found.threshold, found.evidence["share"]) == ("share", 0.5, 0.5)

    def test_a_handful_of_values_is_no_share(self):
        report = check(through(torch.tanh, width=4), torch.full((7, 4), 9.0), select="saturation")
        assert own(report) == []
        [unjudged] = report.unjudged
        assert (unjudged.layer, unjudged.reason) == (
            "/tanh",
            "28 values are too few; give 32 or more",
        )

    def test_it_takes_a_value_to_judge(self):
        with pytest.raises(nndiag.errors.SettingsError, match="lies between 1 and"):
            alone(through(torch.tanh), torch.randn(4, 16), thresholds={"saturation.values": 0})

    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("activation", SMOOTH, ids=lambda a: type(a).__name__)
    @pytest.mark.parametrize("shift", [-30.0, 30.0])
    def test_smooth_one_sided_activations_are_never_saturated(self, activation, shift):
        model = through(activation)
        nn.init.constant_(model.first.bias, shift)
        assert alone(model, torch.randn(128, 16)) == []

    @pytest.mark.parametrize("name", HALF_FLAT)
    def test_what_is_flat_on_one_side_is_dead_relus_matter(self, name):
        model = through(HALF_FLAT[name])
        nn.init.constant_(model.first.bias, -30.0)
        report = check(model, torch.randn(128, 16))
        assert own(report) == []
        assert report.findings[0].rule == "dead-relu"

    @pytest.mark.parametrize(
        "call",
        [F.relu6, lambda z: z.clamp(0, 1), lambda z: F.hardtanh(z, 0.0, 1.0)],
        ids=["relu6", "clamp", "hardtanh"],
    )
    def test_of_a_bounded_rectifier_only_what_lies_at_its_upper_bound_counts(self, call):
        x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
        [found] = alone(through(call, 100.0), x)
        top = call(torch.tensor(1e6)).item()
        out = call(100.0 * x)
        expected = (out == top).sum().item() / (out > 0).sum().item()
        assert found.evidence["share"] == pytest.approx(expected, abs=1e-9)
        # Nine tenths of zeros are sparsity, not saturation.
        assert alone(through(call), x - 1.3) == []


class TestUnits:
    def saturating(self, units, of=64, samples=64):
        model = through(torch.sigmoid, width=of)
        with torch.no_grad():
            model.first.bias[:units] = 40.0
        x = torch.randn(samples, of, generator=torch.Generator().manual_seed(0))
        return check(model, x, select="saturation")

    @pytest.mark.parametrize(("units", "found"), [(25, False), (26, True), (40, True)])
    def test_more_than_two_fifths_of_the_units_always_saturated_are_reported(self, units, found):
        report = self.saturating(units)
        assert [f.measure for f in own(report)] == (["units"] if found else [])
        if found:
            [finding] = own(report)
            assert finding.evidence["units"] == units / 64
            assert f"{units} of 64 units are saturated on all 64 samples" in finding.message

    def test_exactly_two_fifths_are_not(self):
        assert own(self.saturating(4, of=10)) == []
        assert own(self.saturating(5, of=10)) != []

    @pytest.mark.parametrize(("samples", "found"), [(58, False), (59, True)])
    def test_few_samples_say_nothing_about_units(self, samples, found):
        assert bool(own(self.saturating(30, samples=samples))) == found

    def test_a_unit_that_is_open_on_one_sample_is_not_always_saturated(self):
        model = through(torch.sigmoid, width=10)
        x = torch.randn(64, 10) + 40.0 * (torch.arange(10) < 5)
        assert len(alone(model, x)) == 1
        x[17] = 0.0
        assert alone(model, x) == []

    def test_channels_of_a_convolution_and_features_of_a_sequence_are_units(self):
        conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 4))
        sequence = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        for model, x in ((conv, torch.randn(64, 3, 8, 8)), (sequence, torch.randn(64, 5, 6))):
            with torch.no_grad():
                model[0].bias[2:6] = 15.0
            [found] = alone(model, x)
            assert (found.layer, found.measure, found.evidence["units"]) == ("1", "units", 0.5)

    @pytest.mark.parametrize("seed", range(3))
    def test_a_fault_in_the_middle_is_found_there_and_leads(self, seed):
        torch.manual_seed(seed)
        layers = []
        for _ in range(6):
            layers += [nn.Linear(48, 48), nn.Tanh()]
            nn.init.xavier_normal_(layers[-2].weight)
        model = nn.Sequential(*layers, nn.Linear(48, 10))
        x = torch.randn(128, 48)
        assert check(model, x).ok
        with torch.no_grad():
            model[6].bias[:30] -= 10.0
        part = check(model, x)
        assert (part.findings[0].rule, part.findings[0].layer) == ("saturation", "7")
        with torch.no_grad():
            model[6].bias += 10.0
            model[6].bias[:30] += 10.0
        whole = check(model, x)
        assert (whole.findings[0].rule, whole.findings[0].layer) == ("saturation", "7")
        roots = [f for f in whole.findings if f.cause is None and f.severity != "note"]
        assert roots == [whole.findings[0]]


class Gated(nn.Module):
    """``use(sigmoid(40 a(x)), x)`` between two layers."""

    def __init__(self, use):
        super().__init__()
        self.a, self.b, self.use = nn.Linear(16, 16), nn.Linear(16, 4), use
        self.a.weight.data.mul_(40)

    def forward(self, x):
        return self.b(self.use(torch.sigmoid(self.a(x)), x))


class TestRoles:
    @pytest.mark.parametrize(
        "use",
        [
            lambda g, x: g * x,
            lambda g, x: (1 - g) * x,
            lambda g, x: torch.lerp(x, -x, g),
            lambda g, x: torch.addcmul(x, x, g),
            lambda g, x: torch.einsum("nc,nc->nc", g, x),
            lambda g, x: F.dropout(g, 0.1) * x,
            lambda g, x: x / (g + 1),
        ],
    )
    def test_a_gate_is_a_note_at_most(self, use):
        torch.manual_seed(0)
        report = check(Gated(use), torch.randn(128, 16), select="saturation")
        found = [f for f in own(report) if f.layer == "/sigmoid"]
        assert [f.severity for f in found] == ["note"]
        assert "It is a gate." in found[0].message
        assert report.ok

    def test_added_to_another_tensor_it_is_hidden_and_alarms(self):
        torch.manual_seed(0)
        [found] = alone(Gated(lambda g, x: g + x), torch.randn(128, 16))
        assert found.severity == "warning"

    @pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid()])
    def test_the_models_output_is_a_note_at_most(self, activation):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), activation)
        model[2].weight.data.mul_(100)
        [found] = alone(model, torch.randn(128, 16))
        assert (found.severity, found.layer) == ("note", "3")
        assert "It is the model's output." in found.message

    def test_so_is_the_activation_before_a_loss(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8), nn.Sigmoid())
        model[0].weight.data.mul_(60)
        x, y = torch.randn(128, 16), torch.rand(128, 8)
        assert [f.severity for f in alone(model, x, target=y, loss_fn=F.binary_cross_entropy)] == [
            "note"
        ]

    def test_clipping_the_input_has_no_weights_before_it_and_is_a_note(self):
        class Clipped(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Linear(16, 4)

            def forward(self, x):
                return self.body(x.clamp(-1, 1))

        black_and_white = torch.randn(128, 16).sign()
        [found] = alone(Clipped(), black_and_white)
        assert found.severity == "note"
        assert "No weights come before it." in found.message


def rows(scores):
    """Of the softmax rows with two visible keys at least: all, and the one-hot ones, naively."""
    seen = hot = 0
    for row in scores.reshape(-1, scores.shape[-1]).tolist():
        visible = [s for s in row if s > -1e4]
        if len(visible) < 2:
            continue
        top = max(visible)
        p = 1 / sum(math.exp(s - top) for s in visible)
        seen += 1
        # A softmax's slope at p is p (1 - p), at most 1/4.
        hot += p > 0.5 and p * (1 - p) < 0.05 * 0.25
    return seen, hot


class Attention(nn.Module):
    def __init__(self, how, gain=1.0, causal=False, width=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in "qkv")
        self.out, self.how, self.causal = nn.Linear(width, 4), how, causal
        self.q.weight.data.mul_(gain)

    def scores(self, x):
        q, k = self.q(x), self.k(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.causal:
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        return scores

    def forward(self, x):
        if self.how == "fused":
            y = F.scaled_dot_product_attention(
                self.q(x), self.k(x), self.v(x), is_causal=self.causal
            )
        elif self.how == "einsum":
            y = torch.einsum("bqk,bkd->bqd", self.scores(x).softmax(-1), self.v(x))
        else:
            y = F.dropout(F.softmax(self.scores(x), -1), 0.1) @ self.v(x)
        return self.out(y)


class Multihead(nn.Module):
    def __init__(self, gain=1.0, heads=2, width=16):
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.attend.in_proj_weight.data[:width] *= gain
        self.out = nn.Linear(width, 4)

    def forward(self, x, **masks):
        return self.out(self.attend(x, x, x, need_weights=False, **masks)[0])


class TestAttention:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("how", ["fused", "softmax", "einsum"])
    @pytest.mark.parametrize("seed", range(2))
    def test_one_hot_rows_are_counted_however_the_attention_is_written(self, how, causal, seed):
        torch.manual_seed(seed)
        model, x = Attention(how, 200, causal), torch.randn(8, 6, 16)
        [found] = alone(model, x)
        seen, hot = rows(model.scores(x))
        assert hot >= 0.75 * seen
        assert found.severity == "warning"
        assert found.evidence["rows"] == seen == 8 * (5 if causal else 6)
        assert found.evidence["share"] == pytest.approx(hot / seen)
        assert f"{hot} of {seen} attention rows are one-hot" in found.message

    @pytest.mark.parametrize("how", ["fused", "softmax", "einsum"])
    def test_attention_at_its_usual_scale_is_quiet(self, how):
        for seed in range(3):
            torch.manual_seed(seed)
            assert alone(Attention(how, causal=True), torch.randn(16, 8, 16)) == []

    @pytest.mark.parametrize("how", ["fused", "softmax"])
    def test_a_single_visible_key_does_not_count(self, how):
        torch.manual_seed(0)
        # One token; and two with a causal mask, of which the first sees only itself.
        assert alone(Attention(how), torch.randn(64, 1, 16)) == []
        report = check(Attention(how, causal=True), torch.randn(32, 2, 16), select="saturation")
        [layer] = [la for la in report.snapshot.layers if "rows_count" in la.facts]
        assert layer.facts["rows_count"] == 32
        assert own(report) == []

    @pytest.mark.parametrize(("batch", "judged"), [(15, False), (16, True)])
    def test_few_rows_are_no_evidence(self, batch, judged):
        torch.manual_seed(0)
        report = check(Attention("softmax", 1e3), torch.randn(batch, 2, 16), select="saturation")
        assert bool(own(report)) == judged
        reasons = [u.reason for u in report.unjudged]
        assert reasons == ([] if judged else ["30 rows are too few; give 32 or more"])

    @pytest.mark.parametrize("kind", ["boolean", "additive", "padding", "causal and padding"])
    @pytest.mark.parametrize("heads", [1, 2])
    def test_inside_nn_multiheadattention_rows_are_recomputed_from_q_and_k(self, kind, heads):
        torch.manual_seed(0)
        model, x = Multihead(400, heads), torch.randn(12, 7, 16)
        ahead = torch.ones(7, 7, dtype=torch.bool).triu(1)
        padded = torch.arange(7)[None, :] >= torch.tensor([7, 5, 2, 1, 6, 3] * 2)[:, None]
        masks = {
            "boolean": {"attn_mask": ahead},
            "additive": {"attn_mask": torch.zeros(7, 7).masked_fill(ahead, -math.inf)},
            "padding": {"key_padding_mask": padded},
            "causal and padding": {"attn_mask": ahead, "key_padding_mask": padded},
        }[kind]
        report = check(model, {"x": x, **masks}, select="saturation")
        layer = report.snapshot.by_name["attend"]

        w, b = model.attend.in_proj_weight, model.attend.in_proj_bias
        q, k = F.linear(x, w[:16], b[:16]), F.linear(x, w[16:32], b[16:32])
        split = (12, 7, heads, 16 // heads)
        q, k = (t.reshape(split).transpose(1, 2) for t in (q, k))
        scores = q @ k.transpose(-2, -1) / math.sqrt(16 // heads)
        if "attn_mask" in masks:
            scores = scores.masked_fill(ahead, -math.inf)
        if "key_padding_mask" in masks:
            scores = scores.masked_fill(padded[:, None, None, :], -math.inf)
        assert (layer.facts["rows_count"], layer.facts["one_hot_count"]) == rows(scores)
        assert [f.layer for f in own(report)] == ["attend"]

    def test_in_eval_mode_too(self):
        torch.manual_seed(0)
        x = torch.randn(8, 6, 16)
        assert [f.severity for f in alone(Multihead(300).eval(), x)] == ["warning"]
        assert alone(Multihead(1).eval(), x) == []

    def test_fewer_key_heads_than_query_heads_and_a_scale_of_its_own(self):
        class Grouped(nn.Module):
            def __init__(self):
                super().__init__()
                self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
                self.out = nn.Linear(32, 4)

            def heads(self, x):
                return (
                    layer(x).unflatten(-1, (-1, 8)).transpose(1, 2)
                    for layer in (self.q, self.k, self.v)
                )

            def forward(self, x):
                q, k, v = self.heads(x)
                y = F.scaled_dot_product_attention(q, k, v, scale=60.0, enable_gqa=True)
                return self.out(y.transpose(1, 2).flatten(2))

        torch.manual_seed(0)
        model, x = Grouped(), torch.randn(4, 5, 16)
        [found] = alone(model, x)
        q, k, _ = model.heads(x)
        scores = q @ k.repeat_interleave(2, 1).transpose(-2, -1) * 60.0
        seen, hot = rows(scores)
        assert (found.evidence["rows"], found.evidence["share"]) == (seen, hot / seen)

    def test_of_long_sequences_a_fixed_sample_of_rows_stands_for_all(self):
        torch.manual_seed(0)
        model, x = Attention("fused", 25), torch.randn(48, 200, 16)
        first, again = (check(model, x, select="saturation").snapshot for _ in range(2))
        facts = first.by_name["/scaled_dot_product_attention"].facts
        assert facts == again.by_name["/scaled_dot_product_attention"].facts
        assert facts["rows_count"] == 32 * 64  # heads times queries, of 48 times 200
        with torch.no_grad():
            p = model.scores(x).softmax(-1).amax(-1)
        share = ((p > 0.5) & (p * (1 - p) < 0.0125)).double().mean().item()
        assert 0.05 < share < 0.95
        error = 4 * math.sqrt(share * (1 - share) / facts["rows_count"])
        assert facts["one_hot_count"] / facts["rows_count"] == pytest.approx(share, abs=error)

    @pytest.mark.parametrize("how", ["fused", "softmax"])
    def test_its_projections_are_drawn_again_with_their_biases_at_zero(self, how):
        torch.manual_seed(0)
        [found] = alone(Attention(how, 200), torch.randn(8, 6, 16))
        [redraw] = [fix for fix in found.fixes if fix.kind == "redraw"]
        assert "nn.init.zeros_" in redraw.code()

    def test_the_sick_block_of_a_transformer_is_named_and_leads(self):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        model = nn.Sequential(nn.TransformerEncoder(block, 3), nn.Linear(32, 5))
        x = torch.randn(64, 6, 32)
        assert check(model, x).ok
        with torch.no_grad():
            model[0].layers[1].self_attn.in_proj_weight[:32] *= 200
        report = check(model, x)
        assert report.findings[0].rule == "saturation"
        assert report.findings[0].layer == "0.layers.1.self_attn"
        assert [f for f in report.findings[1:] if f.severity != "note" and f.cause is None] == []

    def test_a_softmax_that_feeds_a_layer_is_hidden_one_multiplied_in_a_gate(self):
        torch.manual_seed(0)
        x = 40 * torch.eye(16).repeat(8, 1)
        hidden, gate = through(lambda z: z.softmax(-1)), through(lambda z: z.softmax(-1) * z)
        drawn = through(lambda z: F.gumbel_softmax(z))
        output = nn.Sequential(nn.Linear(16, 16), nn.Softmax(-1))
        nn.init.eye_(output[0].weight)
        assert [f.severity for f in alone(hidden, x)] == ["warning"]
        for model in (gate, drawn, output):
            assert [f.severity for f in alone(model, x)] == ["note"]


GATES = {
    "LSTM": ["input", "forget", "candidate", "output"],
    "GRU": ["reset", "update", "candidate"],
}


def gate_inputs(kind, x, h, c, weights):
    """One step of a recurrent cell, written out; its gates' pre-activations by name."""
    w_ih, w_hh, b_ih, b_hh = weights
    a, b = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
    if kind == "RNN":
        return {"hidden": a + b}, torch.tanh(a + b), c
    if kind == "LSTM":
        z = dict(zip(GATES[kind], (a + b).chunk(4, -1), strict=True))
        c = z["forget"].sigmoid() * c + z["input"].sigmoid() * z["candidate"].tanh()
        return z, z["output"].sigmoid() * c.tanh(), c
    (ar, au, an), (br, bu, bn) = a.chunk(3, -1), b.chunk(3, -1)
    z = {"reset": ar + br, "update": au + bu, "candidate": an + (ar + br).sigmoid() * bn}
    u = z["update"].sigmoid()
    return z, (1 - u) * z["candidate"].tanh() + u * h, c


class Recurrent(nn.Module):
    def __init__(self, kind, gain=1.0, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(8, 8, batch_first=True, **options)
        self.out = nn.Linear(8 * (2 if options.get("bidirectional") else 1), 3)
        for p in self.rnn.parameters():
            p.data.mul_(gain)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


class TestRecurrentCells:
    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    @pytest.mark.parametrize(
        "options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "deep both ways"]
    )
    def test_gates_are_recomputed_as_the_cell_written_out_has_them(self, kind, options):
        torch.manual_seed(0)
        model, x = Recurrent(kind, 12.0, **options), torch.randn(16, 7, 8)
        report = check(model, x, select="saturation")
        facts = report.snapshot.by_name["rnn"].facts

        counts = {}
        with torch.no_grad():
            given = x
            for layer in range(options.get("num_layers", 1)):
                outputs = []
                for suffix in ("", "_reverse") if options else ("",):
                    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                    weights = [getattr(model.rnn, f"{n}_l{layer}{suffix}") for n in names]
                    h = c = torch.zeros(16, 8)
                    steps = range(7) if not suffix else range(6, -1, -1)
                    states = [h] * 7
                    for t in steps:
                        z, h, c = gate_inputs(kind, given[:, t], h, c, weights)
                        states[t] = h
                        for name, value in z.items():
                            edge = 2.1783 if name in ("candidate", "hidden") else 4.3565
                            sat, of = counts.get(name, (0, 0))
                            beyond = (value.abs() > edge).sum().item()
                            counts[name] = (sat + beyond, of + value.numel())
                    outputs.append(torch.stack(states, 1))
                given = torch.cat(outputs, -1)
        for name, (sat, of) in counts.items():
            assert facts[f"{name}_count"] == of
            assert facts[f"{name}_saturated_count"] == pytest.approx(sat, abs=2)

    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    @pytest.mark.parametrize("seed", range(2))
    def test_a_saturated_candidate_is_hidden_and_alarms(self, kind, seed):
        torch.manual_seed(seed)
        x = torch.randn(16, 7, 8)
        assert alone(Recurrent(kind), x) == []
        [found] = alone(Recurrent(kind, 100.0), x)
        assert (found.severity, found.layer) == ("warning", "rnn")
        name = "hidden" if kind == "RNN" else "candidate"
        assert found.evidence["share"] == found.evidence[f"{name}_saturated"]
        assert f"of the {name} values of this {kind}" in found.message

    def test_the_candidate_alarms_alone(self):
        torch.manual_seed(0)
        model = Recurrent("LSTM")
        with torch.no_grad():
            model.rnn.weight_ih_l0[16:24] *= 500  # input, forget, candidate, output
        [found] = alone(model, torch.randn(16, 7, 8))
        assert found.severity == "warning"
        assert found.evidence["candidate_saturated"] > 0.9
        assert found.evidence["forget_saturated"] < 0.1

    def test_a_gate_that_stays_open_is_a_note(self):
        torch.manual_seed(0)
        model = Recurrent("LSTM")
        with torch.no_grad():
            model.rnn.bias_ih_l0[8:16] = 30.0
        [found] = alone(model, torch.randn(16, 7, 8))
        assert found.severity == "note"
        assert "100 % of the forget values" in found.message
        assert "(a gate)" in found.message

    def test_cells_called_step_by_step_are_judged(self):
        class Loop(nn.Module):
            def __init__(self, gain):
                super().__init__()
                self.cell, self.out = nn.GRUCell(8, 8), nn.Linear(8, 3)
                for p in self.cell.parameters():
                    p.data.mul_(gain)

            def forward(self, x):
                h = x.new_zeros(len(x), 8)
                for t in range(x.shape[1]):
                    h = self.cell(x[:, t], h)
                return self.out(h)

        torch.manual_seed(0)
        x = torch.randn(32, 4, 8)
        assert alone(Loop(1.0), x) == []
        found = alone(Loop(100.0), x)
        assert [f.layer for f in found] == ["cell", "cell@2", "cell@3", "cell@4"]
        assert {f.severity for f in found} == {"warning"}

    def test_a_relu_rnn_has_nothing_that_saturates(self):
        torch.manual_seed(0)
        model = Recurrent("RNN", 3.0, nonlinearity="relu")
        assert alone(model, torch.randn(16, 7, 8)) == []

    def test_gates_of_packed_sequences_are_said_to_be_unseen(self):
        class Packed(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

            def forward(self, x):
                lengths = torch.tensor([4, 3, 2, 1])
                packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
                return self.out(self.rnn(packed)[1][0][0])

        report = check(Packed(), torch.randn(4, 4, 8), select="saturation")
        assert own(report) == []
        assert any("packed" in why for why in report.snapshot.by_name["rnn"].unseen)


class WrittenOut(nn.Module):
    """An LSTM's step as one writes it."""

    def __init__(self):
        super().__init__()
        self.x, self.h = nn.Linear(4, 64), nn.Linear(16, 64)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        h = c = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            i, f, g, o = (self.x(step) + self.h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class TestACellWrittenOut:
    def severities(self, part, value):
        """By the function, where this part of the gates' biases (i, f, g, o) has this value."""
        torch.manual_seed(0)
        model = WrittenOut()
        nn.init.constant_(model.x.bias[16 * part : 16 * part + 16], value)
        found = own(check(model, torch.randn(128, 6, 4), select="saturation"))
        return {f.layer.partition("/")[2]: f.severity for f in found if "@" not in f.layer}

    def test_its_candidate_is_hidden_and_alarms(self):
        found = self.severities(2, 30.0)
        assert "warning" in found.values()
        assert {n.partition("#")[0] for n, s in found.items() if s == "warning"} == {"tanh"}

    @pytest.mark.parametrize("part", [0, 1, 3])
    def test_its_gates_may_be_open_or_shut(self, part):
        for value in (-30.0, 30.0):
            assert set(self.severities(part, value).values()) <= {"note"}

    def test_its_state_sums_up_over_time_and_may_be_sure(self):
        torch.manual_seed(0)
        model = WrittenOut()
        nn.init.constant_(model.x.bias[:32], 30.0)  # keeps all there was, and takes all that comes
        nn.init.constant_(model.x.bias[32:48], 1.0)
        x = torch.randn(128, 12, 4) / 10
        report = check(model, x, select="saturation")
        notes = [f for f in own(report) if "tanh" in f.layer]
        assert notes
        assert report.ok


class TestHealth:
    @pytest.mark.one_in(7)
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
    @pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Softsign])
    def test_normalised_networks_are_quiet_whatever_their_weights(self, activation, norm, seed):
        torch.manual_seed(seed)
        layers = []
        for _ in range(8):
            layers += [nn.Linear(32, 32), norm(32), activation()]
            layers[-3].weight.data.mul_(100)
        assert alone(nn.Sequential(*layers, nn.Linear(32, 4)), torch.randn(64, 32)) == []

    def test_networks_trained_on_digits_are_quiet_and_one_with_too_large_a_step_is_not(self):
        x, y = (torch.as_tensor(v) for v in load_digits(return_X_y=True))
        x = ((x - x.mean(0)) / (x.std(0) + 1.6)).float()

        def trained(rate):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
            )
            optimiser = torch.optim.Adam(model.parameters(), rate)
            for step in range(200):
                part = slice(step % 14 * 128, step % 14 * 128 + 128)
                optimiser.zero_grad()
                F.cross_entropy(model(x[part]), y[part]).backward()
                optimiser.step()
            accuracy = (model(x).argmax(1) == y).double().mean().item()
            return accuracy, check(model, (x, y), loss_fn=F.cross_entropy)

        accuracy, good = trained(3e-3)
        assert accuracy > 0.97
        assert own(good) == []
        _, bad = trained(0.3)
        assert [f.severity for f in own(bad)] == ["warning", "warning"]

    def test_a_layer_with_nan_is_not_judged(self):
        model = through(torch.tanh, 20.0)
        with torch.no_grad():
            model.first.weight[0, 0] = math.nan
        report = check(model, torch.randn(64, 16))
        assert own(report) == []
        assert ("saturation", "/tanh") in [(u.rule, u.layer) for u in report.unjudged]
        assert [f.rule for f in report.findings if f.severity != "note"] == ["non-finite"]


class Sum(nn.Module):
    """Two layers whose outputs are added before a tanh."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.a(x) + self.b(x)))


@pytest.mark.parametrize("shifted", [(), ("a",), ("b",), ("a", "b")])
def test_biases_are_set_to_zero_where_those_of_any_layer_before_it_are_large(shifted):
    torch.manual_seed(0)
    model = Sum()
    for name in shifted:
        nn.init.constant_(getattr(model, name).bias, 9.0)
    if not shifted:  # saturated by its weights
        nn.init.normal_(model.a.weight, std=20.0)
    [found] = alone(model, torch.randn(256, 16))

    assert ("reset-bias" in [fix.kind for fix in found.fixes]) == bool(shifted)


def test_the_fixes_of_a_recurrent_layer_can_be_run():
    torch.manual_seed(0)
    [found] = alone(Recurrent("LSTM", 100.0), torch.randn(16, 7, 8))

    assert "redraw" in [fix.kind for fix in found.fixes if fix.runnable]
