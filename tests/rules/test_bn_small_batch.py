"""BatchNorm over so few samples that it computes something else than in evaluation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "bn-small-batch"


def net(norm=lambda c: nn.BatchNorm2d(c)):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 4)

    def forward(self, x):
        x = F.batch_norm(self.conv(x), None, None, training=True)
        return self.head(F.relu(x).flatten(1))


def found(model, samples, loss=True, **options):
    x, y = torch.randn(samples, 1, 8, 8), torch.arange(samples) % 4
    given = (x, y, F.cross_entropy) if loss else (x,)
    report = nndiag.check(model, *given, select=NAME, **options)
    return [f for f in report.findings if f.rule == NAME]


@pytest.mark.parametrize("model", [net(), Functional()], ids=["module", "functional"])
def test_a_batch_of_one_is_a_warning(model):
    [finding] = found(model, 1)

    assert finding.severity == "warning"
    assert "over 1 sample." in finding.message
    assert any("GroupNorm" in fix.what for fix in finding.fixes)


def test_without_a_loss_it_is_a_note_since_nobody_trains_on_it():
    assert [f.severity for f in found(net(), 1, loss=False)] == ["note"]


@pytest.mark.parametrize("samples", [2, 15])
def test_few_samples_are_a_note(samples):
    assert [f.severity for f in found(net(), samples)] == ["note"]


def test_from_the_threshold_on_nothing_is_said():
    assert found(net(), 16) == []
    assert found(net(), 16, thresholds={f"{NAME}.few": 17})


def test_running_averages_and_other_norms_do_not_look_at_the_batch():
    assert found(net().eval(), 1) == []
    assert found(net(lambda c: nn.GroupNorm(2, c)), 1) == []


def test_in_a_stream_the_size_of_a_batch_counts_and_not_the_sum():
    stream = [(torch.randn(1, 1, 8, 8), torch.tensor([k % 4])) for k in range(20)]

    report = nndiag.check(net(), stream, loss_fn=F.cross_entropy, select=NAME)

    assert [f.severity for f in report.findings] == ["warning"]
