"""What is differentiated: the caller's loss in every form people write it in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag.errors import LossError

X, Y = torch.randn(64, 6), torch.randint(0, 3, (64,))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


class Named(nn.Module):
    """A model that returns a dict, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return {"hidden": x, "logits": self.body(x)}


class Detector(nn.Module):
    """A model that returns a dict of its losses, as torchvision's detectors do."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        out = self.body(x)
        return {"loss_classifier": out.exp().mean(), "loss_box": out.square().mean()}


def cross_entropy(output, target):
    return F.cross_entropy(output, target)


FORMS = {
    "tensor": cross_entropy,
    "tuple": lambda o, t: (F.cross_entropy(o, t), {"accuracy": 0.5}),
    "list": lambda o, t: [F.cross_entropy(o, t), o],
    "loss": lambda o, t: {"loss": F.cross_entropy(o, t), "extra": o.mean()},
    "total_loss": lambda o, t: {"ce": o.mean(), "total_loss": F.cross_entropy(o, t)},
    "one value": lambda o, t: F.cross_entropy(o, t)[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_found_in_what_people_return(form):
    report = nndiag.check(net(), X, Y, FORMS[form])

    expected = float(F.cross_entropy(net()(X), Y).detach())
    assert report.snapshot.loss.value == pytest.approx(expected, rel=1e-6)


def test_a_dict_of_losses_without_a_total_shows_the_line_to_write():
    def parts(output, target):
        return {"a": output.mean(), "b": output.square().mean()}

    with pytest.raises(LossError, match=r"sum\(your_loss\(output, target\)\.values\(\)\)"):
        nndiag.check(net(), X, Y, parts)


def test_a_loss_that_cannot_read_a_dict_shows_the_line_to_write():
    with pytest.raises(LossError) as caught:
        nndiag.check(Named(), X, Y, cross_entropy)

    line = "loss_fn=lambda output, target: cross_entropy(output['logits'], target)"
    assert line in str(caught.value)
    # The line does what it says.
    report = nndiag.check(Named(), X, Y, lambda output, target: cross_entropy(output["logits"], Y))
    assert report.snapshot.loss.kind == "loss_fn"


def test_a_target_that_is_a_dict_is_picked_from_too():
    with pytest.raises(LossError, match=r"cross_entropy\(output, target\['labels'\]\)"):
        nndiag.check(net(), X, {"labels": Y, "ids": Y}, cross_entropy)


def test_a_model_that_returns_its_losses_has_their_sum_for_a_loss():
    torch.manual_seed(0)
    model = Detector()

    loss = nndiag.check(model, X).snapshot.loss

    assert loss.kind == "output.loss"
    assert loss.value == pytest.approx(float(sum(model(X).values()).detach()), rel=1e-6)


def test_targets_without_a_loss_are_said_at_the_top():
    report = nndiag.check(net(), (X, Y))

    assert "Your targets were not used: pass loss_fn=" in report.verdict
    assert "your targets were not used" in " ".join(report.to_text().partition("\n\n")[0].split())


def test_without_targets_nothing_is_said_of_targets():
    report = nndiag.check(net(), X)

    assert "targets" not in report.verdict
    assert "targets were" not in report.to_text()


def test_a_frozen_model_runs_forward_only_and_its_loss_is_still_known():
    model = net().requires_grad_(False)

    report = nndiag.check(model, X, Y, cross_entropy)

    assert not report.snapshot.has_gradients
    expected = float(F.cross_entropy(model(X), Y))
    assert report.snapshot.loss.value == pytest.approx(expected, rel=1e-6)


def test_what_runs_in_the_loss_has_rows_of_its_own():
    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(4, 6)

        def forward(self, x):
            return self.encoder(x)

    torch.manual_seed(0)
    model = Coder()

    def reconstruction(code, x):
        return F.mse_loss(model.decoder(F.relu(code)), x)

    report = nndiag.check(model, X, X, reconstruction)

    rows = list(report.layers["layer"])
    assert rows == ["encoder", "decoder", "loss/relu", "loss/mse_loss"]
    decoder = report.snapshot.by_name["decoder"]
    assert decoder.grad is not None
    assert report.snapshot.never_called == ()
    # The decoder reads what the encoder wrote.
    ancestors = set()
    queue = [decoder.node]
    while queue:
        ancestors.add(node := queue.pop())
        queue += report.snapshot.nodes[node].inputs
    assert report.snapshot.by_name["encoder"].node in ancestors
