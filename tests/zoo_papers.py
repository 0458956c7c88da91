"""More healthy networks for the zoo: architectures as their papers describe them, made small.

Importing this adds them to ``zoo.RECIPES``; ``NAMES`` says which they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from zoo import CLASSES, VOCABULARY, Specimen, classify, images, labels, recipe, regress, tokens

_BEFORE = frozenset(zoo.RECIPES)


def _he(model: nn.Module) -> nn.Module:
    """He et al. 2015 for every convolution and linear layer; biases zero."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


# -- initialised with care, without normalisation --------------------------------------------------


@recipe
def he_conv_8() -> Specimen:
    """Simonyan & Zisserman 2015 at He's scale: eight convolutions, no normalisation."""
    layers: list[nn.Module] = []
    channels = 3
    for k, width in enumerate((16, 16, 24, 24, 32, 32, 48, 48)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if k % 2 else []
        channels = width
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 4, CLASSES))
    return classify(_he(model), images(64))


@recipe
def he_leaky_12() -> Specimen:
    model = zoo.mlp(12, lambda: nn.LeakyReLU(0.1), width=128)
    zoo._initialise(model, lambda w: nn.init.kaiming_normal_(w, a=0.1))
    return classify(model, torch.randn(128, 32))


@recipe
def orthogonal_relu_12() -> Specimen:
    model = zoo.mlp(12, nn.ReLU, width=128)
    zoo._initialise(model, lambda w: nn.init.orthogonal_(w, math.sqrt(2)))
    return classify(model, torch.randn(128, 32))


@recipe
def lsuv_gelu_10() -> Specimen:
    """Mishkin & Matas 2016: orthogonal, then each layer scaled so that its outputs have std 1."""
    model = zoo.mlp(10, nn.GELU, width=96)
    zoo._initialise(model, nn.init.orthogonal_)
    inputs = x = torch.randn(128, 32)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight /= layer(x).std()
            x = layer(x)
    return classify(model, inputs)


@recipe
def lecun_silu_6() -> Specimen:
    """Variance 1 / (fan-in · E[silu²]), the gain that SiLU itself asks for."""
    model = zoo.mlp(6, nn.SiLU, width=96)
    gain = 1 / math.sqrt(0.3557)  # E[silu(z)²] over a standard normal z
    zoo._initialise(model, lambda w: nn.init.normal_(w, std=gain / math.sqrt(w.shape[1])))
    nn.init.normal_(model[0].weight, std=1 / math.sqrt(32))
    return classify(model, torch.randn(128, 32))


@recipe
def delta_orthogonal_conv_12() -> Specimen:
    """Xiao et al. 2018: orthogonal in the middle tap, zero elsewhere; tanh."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, padding=1), nn.Tanh()]
    for _ in range(11):
        conv = nn.Conv2d(24, 24, 3, padding=1)
        nn.init.zeros_(conv.weight)
        nn.init.orthogonal_(conv.weight.data[:, :, 1, 1])
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.Tanh()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(24 * 16, 10))
    return classify(model, images(64, 16))


@recipe
def rezero() -> Specimen:
    """Bachlechner et al. 2020: each branch times a scalar that starts at zero; 24 blocks."""

    class Rezero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(32, 64), nn.Linear(64, CLASSES)
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(24))
            self.alpha = nn.Parameter(torch.zeros(24))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for k, layer in enumerate(self.layers):
                x = x + self.alpha[k] * F.relu(layer(x))
            return self.head(x)

    return classify(Rezero(), torch.randn(128, 32))


class StandardisedConv(nn.Conv2d):
    """Brock et al. 2021: weights standardised over their fan-in, times a learned gain."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, padding=padding)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        fan_in = self.weight[0].numel()
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(var * fan_in + 1e-4) * self.gain
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class NormaliserFreeBlock(nn.Module):
    def __init__(self, width: int, variance: float) -> None:
        super().__init__()
        self.conv1 = StandardisedConv(width, width, 3, 1)
        self.conv2 = StandardisedConv(width, width, 3, 1)
        self.skip_gain = nn.Parameter(torch.zeros(()))
        self.scale = 1 / math.sqrt(variance)

    def forward(self, x: Tensor) -> Tensor:
        gamma = 1.7139588594436646  # 1 / std of relu(z)
        y = self.conv1(F.relu(x * self.scale) * gamma)
        y = self.conv2(F.relu(y) * gamma)
        return x + 0.2 * y * self.skip_gain


@recipe
def normaliser_free_resnet() -> Specimen:
    blocks = [NormaliserFreeBlock(24, 1 + 0.04 * k) for k in range(5)]
    model = nn.Sequential(
        StandardisedConv(3, 24, 3, 1), *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, CLASSES),
    )  # fmt: skip
    return classify(model, images(64, 16))


class FixedUpdateLayer(nn.Module):
    """Huang et al. 2020 (T-Fixup): no LayerNorm; values and MLP times 0.67 N^-1/4."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.q, self.k, self.v, self.out, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.v, self.out, self.up, self.down):
            layer.weight.data *= 0.67 * depth**-0.25

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (f(x).view(n, t, 4, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        x = x + self.out(y)
        return x + self.down(F.relu(self.up(x)))


@recipe
def t_fixup() -> Specimen:
    class Model(nn.Module):
        def __init__(self, width: int = 32, depth: int = 6) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, width)
            nn.init.normal_(self.embed.weight, std=width**-0.5)
            self.embed.weight.data *= (9 * depth) ** -0.25
            self.layers = nn.ModuleList(FixedUpdateLayer(width, depth) for _ in range(depth))
            self.head = nn.Linear(width, CLASSES)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean(1))

    return classify(Model(), tokens(64, 20))


@recipe
def mup_mlp() -> Specimen:
    """Yang et al. 2021 (muP): hidden std 1/√fan-in, an output std of 1/fan-in, zero biases."""
    model = zoo.mlp(3, nn.ReLU, width=256)
    zoo._initialise(model, lambda w: nn.init.normal_(w, std=math.sqrt(2 / w.shape[1])))
    nn.init.normal_(model[-1].weight, std=1 / 256)
    return classify(model, torch.randn(128, 32))


# -- vision ----------------------------------------------------------------------------------------


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


@recipe
def squeezenet() -> Specimen:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2), nn.ReLU(), Fire(32, 8, 24), Fire(48, 8, 24), nn.MaxPool2d(3, 2),
        Fire(48, 12, 32), nn.Dropout(0.5), nn.Conv2d(64, CLASSES, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    return classify(_he(model), images(64))


def _conv_norm(inputs: int, outputs: int, kernel: int, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = _conv_norm(inputs, 16, 1)
        self.three = nn.Sequential(_conv_norm(inputs, 8, 1), _conv_norm(8, 16, 3))
        self.five = nn.Sequential(_conv_norm(inputs, 4, 1), _conv_norm(4, 8, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv_norm(inputs, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


@recipe
def inception() -> Specimen:
    model = nn.Sequential(
        _conv_norm(3, 24, 3), nn.MaxPool2d(2), Inception(24), Inception(48),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(48, CLASSES),
    )  # fmt: skip
    return classify(model, images(64))


class Shuffle(nn.Module):
    """ShuffleNet V2's unit: half of the channels pass, the others go on; then all are mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            _conv_norm(half, half, 1), nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half), _conv_norm(half, half, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, 1)
        out = torch.cat([kept, self.branch(worked)], 1)
        n, c, h, w = out.shape
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@recipe
def shufflenet() -> Specimen:
    model = nn.Sequential(
        _conv_norm(3, 32, 3, stride=2), *[Shuffle(32) for _ in range(4)],
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip
    return classify(model, images(64))


@recipe
def conv_mixer() -> Specimen:
    """Trockman & Kolter 2022."""

    class Residual(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    def block(width: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        return [
            Residual(nn.Sequential(depthwise, nn.GELU(), nn.BatchNorm2d(width))),
            nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width),
        ]  # fmt: skip

    model = nn.Sequential(
        nn.Conv2d(3, 32, 4, 4), nn.GELU(), nn.BatchNorm2d(32), *block(32), *block(32), *block(32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip
    return classify(model, images(64))


class Pyramid(nn.Module):
    """A detector's dense heads on a feature pyramid (Lin et al. 2017, RetinaNet)."""

    def __init__(self, width: int = 32, classes: int = 4, anchors: int = 3) -> None:
        super().__init__()
        self.stem = _conv_norm(3, 16, 3, stride=2)
        self.c3, self.c4 = zoo.ResidualBlock(16, 32, 2), zoo.ResidualBlock(32, 64, 2)
        self.lateral3, self.lateral4 = nn.Conv2d(32, width, 1), nn.Conv2d(64, width, 1)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        self.scores = self.tower(width, anchors * classes)
        self.boxes = self.tower(width, anchors * 4)
        nn.init.constant_(self.scores[-1].bias, -math.log((1 - 0.01) / 0.01))

    @staticmethod
    def tower(width: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        tower = nn.Sequential(*layers, nn.Conv2d(width, outputs, 3, padding=1))
        for layer in tower:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        return tower

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        c3 = self.c3(self.stem(x))
        p4 = self.lateral4(self.c4(c3))
        p3 = self.smooth(self.lateral3(c3) + F.interpolate(p4, scale_factor=2))
        return [self.scores(p) for p in (p3, p4)], [self.boxes(p) for p in (p3, p4)]


@recipe
def detector_pyramid() -> Specimen:
    def loss(output: tuple[list[Tensor], list[Tensor]], target: tuple[Any, Any]) -> Tensor:
        focal = boxes = torch.zeros(())
        for score, box, t, b in zip(*output, *target, strict=True):
            p = torch.sigmoid(score)
            entropy = F.binary_cross_entropy_with_logits(score, t, reduction="none")
            focal = focal + ((t - p).abs() ** 2 * entropy).sum() / t.sum().clamp(min=1)
            boxes = boxes + F.smooth_l1_loss(box, b)
        return focal + boxes

    sizes = ((12, 8), (12, 4))
    target = (
        [(torch.rand(16, c, s, s) < 0.02).float() for c, s in sizes],
        [torch.randn(16, 12, s, s) for _, s in sizes],
    )
    return Specimen(Pyramid(), images(16), target, loss)


class OneStage(nn.Module):
    """YOLO's form: one grid of boxes, objectness and classes; BatchNorm and LeakyReLU."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.1)]
        self.body, self.head = nn.Sequential(*layers), nn.Conv2d(64, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@recipe
def detector_one_stage() -> Specimen:
    def loss(out: Tensor, target: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        there, box, kind = target
        seen = there[:, 0] > 0
        return (
            F.binary_cross_entropy_with_logits(out[:, :1], there)
            + F.mse_loss(out[:, 1:5].movedim(1, -1)[seen], box.movedim(1, -1)[seen])
            + F.cross_entropy(out[:, 5:].movedim(1, -1)[seen], kind[seen])
        )

    there = (torch.rand(32, 1, 4, 4) < 0.2).float()
    target = (there, torch.randn(32, 4, 4, 4), torch.randint(0, 4, (32, 4, 4)))
    return Specimen(OneStage(), images(32), target, loss)


def _deconv_norm(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


@recipe
def keypoint_heatmaps() -> Specimen:
    """Xiao et al. 2018, simple baselines: a residual body, deconvolutions, one map a joint."""
    head = nn.Conv2d(16, 5, 1)
    nn.init.normal_(head.weight, std=0.001)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(
        _conv_norm(3, 16, 3, stride=2), zoo.ResidualBlock(16, 32, 2), zoo.ResidualBlock(32, 32, 1),
        _deconv_norm(32, 16), _deconv_norm(16, 16), head,
    )  # fmt: skip
    return regress(model, images(16), torch.rand(16, 5, 32, 32) ** 8)


@recipe
def super_resolution() -> Specimen:
    """Lim et al. 2017 (EDSR): residual blocks without normalisation, scaled by 0.1."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * self.conv2(F.relu(self.conv1(x)))

    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), *[Block(24) for _ in range(4)],
        nn.Conv2d(24, 96, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(24, 3, 3, padding=1),
    )  # fmt: skip
    return regress(model, images(16, 16), images(16, 32))


@recipe
def style_transfer() -> Specimen:
    """Johnson et al. 2016 with instance normalisation (Ulyanov et al. 2017)."""

    def conv(a: int, b: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [
            nn.ReflectionPad2d(kernel // 2), nn.Conv2d(a, b, kernel, stride),
            nn.InstanceNorm2d(b, affine=True), nn.ReLU(),
        ]  # fmt: skip

    model = nn.Sequential(
        *conv(3, 16, 5), *conv(16, 32, 3, 2), *conv(32, 32, 3), nn.Upsample(scale_factor=2),
        *conv(32, 16, 3), nn.ReflectionPad2d(2), nn.Conv2d(16, 3, 5),
    )  # fmt: skip
    return regress(model, images(16), images(16))


@recipe
def unet_without_norm() -> Specimen:
    """Ronneberger et al. 2015: no normalisation, He's scale."""

    class Plain(zoo.UNet):
        @staticmethod
        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(),
            )  # fmt: skip

    target = torch.randint(0, 2, (16, 32, 32))
    return Specimen(_he(Plain(12)), images(16), target, F.cross_entropy)


@recipe
def siamese_triplet() -> Specimen:
    """Schroff et al. 2015: one convolutional encoder, three images, a margin."""

    class Triplet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Sequential(
                _conv_norm(3, 16, 3, stride=2), _conv_norm(16, 32, 3, stride=2),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16),
            )  # fmt: skip

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            a, b, c = (F.normalize(self.encode(x), dim=1) for x in (a, b, c))
            return F.triplet_margin_loss(a, b, c, margin=0.5)

    a = images(48)
    return Specimen(Triplet(), (a, a + 0.3 * torch.randn_like(a), images(48)))


# -- sequences -------------------------------------------------------------------------------------


@recipe
def lstm_forget_bias() -> Specimen:
    """Jozefowicz et al. 2015: the forget gate's bias starts at one; orthogonal recurrence."""
    model = zoo.Recurrent(nn.LSTM, batch_first=True)
    for name, p in model.rnn.named_parameters():
        if "weight_hh" in name:
            for part in p.data.chunk(4):
                nn.init.orthogonal_(part)
        elif "weight_ih" in name:
            nn.init.xavier_uniform_(p)
        else:
            nn.init.zeros_(p)
            p.data[32:64] = 1.0 if "bias_ih" in name else 0.0
    return classify(model, tokens(64, 20))


@recipe
def rnn_identity() -> Specimen:
    """Le et al. 2015: a ReLU recurrence that starts as the identity."""
    model = zoo.Recurrent(nn.RNN, nonlinearity="relu", batch_first=True)
    nn.init.eye_(model.rnn.weight_hh_l0)
    nn.init.normal_(model.rnn.weight_ih_l0, std=0.01)
    nn.init.zeros_(model.rnn.bias_hh_l0)
    nn.init.zeros_(model.rnn.bias_ih_l0)
    return classify(model, tokens(64, 20))


@recipe
def rnn_tanh_orthogonal() -> Specimen:
    model = zoo.Recurrent(nn.RNN, batch_first=True)
    nn.init.orthogonal_(model.rnn.weight_hh_l0)
    return classify(model, tokens(64, 20))


@recipe
def seq2seq_attention() -> Specimen:
    """Bahdanau et al. 2015: a GRU reads, another writes and looks back at each step."""

    class Looking(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.source, self.goal = (nn.Embedding(VOCABULARY, width) for _ in range(2))
            self.reader = nn.GRU(width, width, batch_first=True, bidirectional=True)
            self.bridge, self.writer = (
                nn.Linear(2 * width, width),
                nn.GRUCell(3 * width, width),
            )
            self.keys, self.query = nn.Linear(2 * width, width), nn.Linear(width, width)
            self.energy, self.head = nn.Linear(width, 1), nn.Linear(width, VOCABULARY)

        def forward(self, source: Tensor, goal: Tensor) -> Tensor:
            memory, _ = self.reader(self.source(source))
            state, keys, out = torch.tanh(self.bridge(memory.mean(1))), self.keys(memory), []
            for word in self.goal(goal).unbind(1):
                energy = self.energy(torch.tanh(keys + self.query(state)[:, None]))
                seen = (energy.softmax(1) * memory).sum(1)
                state = self.writer(torch.cat([word, seen], 1), state)
                out.append(self.head(state))
            return torch.stack(out, 2)

    goal = tokens(32, 9)
    return Specimen(Looking(), (tokens(32, 12), goal[:, :-1]), goal[:, 1:], F.cross_entropy)


class GatedBlock(nn.Module):
    """WaveNet's: tanh times sigmoid of a dilated causal convolution, a residual and a skip."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.out, self.skip, self.dilation = (
            nn.Conv1d(width, width, 1),
            nn.Conv1d(width, width, 1),
            dilation,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.conv(F.pad(x, (self.dilation, 0))).chunk(2, 1)
        y = torch.tanh(a) * torch.sigmoid(b)
        return x + self.out(y), self.skip(y)


@recipe
def wavenet() -> Specimen:
    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, width)
            self.blocks = nn.ModuleList(GatedBlock(width, 2**k) for k in range(4))
            self.last = GatedBlock(width, 1)
            self.last.out = nn.Identity()  # nothing reads the last residual
            self.head = nn.Sequential(
                nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, VOCABULARY, 1)
            )

        def forward(self, ids: Tensor) -> Tensor:
            x, skips = self.embed(ids).transpose(1, 2), []
            for block in (*self.blocks, self.last):
                x, skip = block(x)
                skips.append(skip)
            return self.head(sum(skips))

    ids = tokens(32, 25)
    return Specimen(Net(), ids[:, :-1], ids[:, 1:], F.cross_entropy)


@recipe
def quasi_recurrent() -> Specimen:
    """Bradbury et al. 2017: convolutions make the gates, a loop only multiplies and adds."""

    class Quasi(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(VOCABULARY, width), nn.Conv1d(width, 3 * width, 2)
            self.head = nn.Linear(width, CLASSES)

        def forward(self, ids: Tensor) -> Tensor:
            z, f, o = self.conv(F.pad(self.embed(ids).transpose(1, 2), (1, 0))).chunk(3, 1)
            z, f, o = torch.tanh(z), torch.sigmoid(f), torch.sigmoid(o)
            state = torch.zeros_like(z[..., 0])
            for t in range(z.shape[-1]):
                state = f[..., t] * state + (1 - f[..., t]) * z[..., t]
            return self.head(o[..., -1] * state)

    return classify(Quasi(), tokens(64, 12))


@recipe
def diagonal_state_space() -> Specimen:
    """Gu et al. 2022 (S4D): complex diagonal states, applied as a long convolution."""

    class Layer(nn.Module):
        def __init__(self, width: int, states: int = 8) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.log_step = nn.Parameter(torch.rand(width) * 4.6 - 6.9)
            self.log_decay = nn.Parameter(torch.full((width, states), math.log(0.5)))
            self.frequency = nn.Parameter(math.pi * torch.arange(states).repeat(width, 1).float())
            self.c = nn.Parameter(torch.randn(width, states, 2) * 0.5**0.5)
            self.d, self.out = nn.Parameter(torch.randn(width)), nn.Linear(width, 2 * width)

        def forward(self, x: Tensor) -> Tensor:
            u = self.norm(x).transpose(1, 2)
            step, t = self.log_step.exp()[:, None], torch.arange(u.shape[-1])
            a = torch.complex(-self.log_decay.exp(), self.frequency) * step
            c = torch.view_as_complex(self.c) * (a.exp() - 1) / (a / step)
            kernel = 2 * (c[..., None] * (a[..., None] * t).exp()).sum(1).real
            n = 2 * u.shape[-1]
            y = torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(kernel, n), n)
            y = F.gelu(y[..., : u.shape[-1]] + self.d[:, None] * u).transpose(1, 2)
            return x + F.glu(self.out(y))

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, width), nn.Linear(width, CLASSES)
            self.layers = nn.ModuleList(Layer(width) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean(1))

    return classify(Net(), torch.randn(64, 40, 4))


@recipe
def linear_attention() -> Specimen:
    """Katharopoulos et al. 2020: elu + 1 in place of the softmax."""

    class Layer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            y = q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1)[..., None])
            x = x + self.out(y)
            return x + self.mlp(self.norm2(x))

    model = nn.Sequential(nn.Embedding(VOCABULARY, 32), Layer(32), Layer(32))
    head = nn.Sequential(nn.LayerNorm(32), nn.Flatten(), nn.Linear(32 * 12, CLASSES))
    return classify(nn.Sequential(model, head), tokens(64, 12))


@recipe
def gated_mlp() -> Specimen:
    """Liu et al. 2021 (gMLP): the gate over positions starts at 1 (weights near 0, bias 1)."""

    class Layer(nn.Module):
        def __init__(self, width: int, length: int) -> None:
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(width), nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(width, width)
            self.across = nn.Linear(length, length)
            nn.init.normal_(self.across.weight, std=1e-3)
            nn.init.ones_(self.across.bias)

        def forward(self, x: Tensor) -> Tensor:
            a, b = F.gelu(self.up(self.norm(x))).chunk(2, -1)
            b = self.across(self.inner(b).transpose(1, 2)).transpose(1, 2)
            return x + self.down(a * b)

    model = nn.Sequential(
        nn.Embedding(VOCABULARY, 32), Layer(32, 12), Layer(32, 12), Layer(32, 12),
        nn.LayerNorm(32), nn.Flatten(), nn.Linear(32 * 12, CLASSES),
    )  # fmt: skip
    return classify(model, tokens(64, 12))


@recipe
def fourier_mixing() -> Specimen:
    """Lee-Thorp et al. 2021 (FNet): a Fourier transform in place of attention, post-norm."""

    class Layer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(x + torch.fft.fft2(x).real)
            return self.norm2(x + self.mlp(x))

    model = nn.Sequential(
        nn.Embedding(VOCABULARY, 32), nn.LayerNorm(32), Layer(32), Layer(32), nn.Flatten(),
        nn.Linear(32 * 12, CLASSES),
    )  # fmt: skip
    return classify(model, tokens(64, 12))


@recipe
def perceiver() -> Specimen:
    """Jaegle et al. 2021: a few latents look at many inputs; one block's weights, thrice."""

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.latents = nn.Parameter(0.02 * torch.randn(8, width))
            self.read = nn.Linear(6, width)
            self.look = nn.MultiheadAttention(width, 4, batch_first=True)
            self.norm_x, self.norm_z = nn.LayerNorm(width), nn.LayerNorm(width)
            self.think = nn.TransformerEncoderLayer(
                width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm_x(self.read(x))
            z = self.latents.expand(len(x), -1, -1)
            for _ in range(3):
                z = z + self.look(self.norm_z(z), x, x, need_weights=False)[0]
                z = self.think(z)
            return self.head(self.norm(z.mean(1)))

    return classify(Net(), torch.randn(64, 50, 6))


@recipe
def universal_transformer() -> Specimen:
    """Dehghani et al. 2019: one layer's weights, four times."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(VOCABULARY, 32), nn.Linear(32, CLASSES)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, "gelu", batch_first=True)
            self.step = nn.Parameter(0.02 * torch.randn(4, 1, 1, 32))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            for step in self.step:
                x = self.layer(x + step)
            return self.head(x.mean(1))

    return classify(Net(), tokens(64, 16))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


@recipe
def gated_rms_mlp() -> Specimen:
    """Shazeer 2020 with Zhang & Sennrich 2019: SwiGLU behind RMSNorm, eight residual blocks."""

    class Net(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(32, width), nn.Linear(width, CLASSES)
            self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(8))
            self.blocks = nn.ModuleList(SwiGLU(width, 2 * width) for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for norm, block in zip(self.norms, self.blocks, strict=True):
                x = x + block(norm(x))
            return self.head(x)

    return classify(Net(), torch.randn(128, 32))


# -- sets, graphs, points --------------------------------------------------------------------------


@recipe
def deep_sets() -> Specimen:
    """Zaheer et al. 2017: each element by itself, their mean, then what is left."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.Sequential(nn.Linear(3, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU())
            self.all = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            return self.all(self.each(x).mean(1))

    return classify(Net(), torch.randn(128, 16, 3))


@recipe
def pointnet() -> Specimen:
    """Qi et al. 2017: shared layers with BatchNorm, the maximum over points."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for a, b in ((3, 32), (32, 64), (64, 128)):
                layers += [nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()]
            self.each = nn.Sequential(*layers)
            self.all = nn.Sequential(
                nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3),
                nn.Linear(64, CLASSES),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.all(self.each(x).amax(2))

    return classify(Net(), torch.randn(64, 3, 100))


@recipe
def set_transformer() -> Specimen:
    """Lee et al. 2019: attention among elements, pooling by attention of a learned seed."""

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.read = nn.Linear(3, width)
            layer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.seed = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
            self.pool = nn.MultiheadAttention(width, 4, batch_first=True)
            self.head = nn.Linear(width, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.encoder(self.read(x))
            return self.head(self.pool(self.seed.expand(len(x), -1, -1), x, x)[0][:, 0])

    return classify(Net(), torch.randn(64, 20, 3))


def _neighbours(nodes: int) -> Tensor:
    links = (torch.rand(nodes, nodes) < 6 / nodes).float()
    return ((links + links.t() + torch.eye(nodes)) > 0).float()


@recipe
def graph_attention() -> Specimen:
    """Veličković et al. 2018, by plain matrices."""

    class Layer(nn.Module):
        def __init__(self, inputs: int, outputs: int, heads: int) -> None:
            super().__init__()
            self.heads, self.lift = heads, nn.Linear(inputs, heads * outputs, bias=False)
            self.left, self.right = (nn.Parameter(torch.empty(heads, outputs)) for _ in range(2))
            for p in (self.lift.weight, self.left, self.right):
                nn.init.xavier_uniform_(p)

        def forward(self, x: Tensor, links: Tensor) -> Tensor:
            h = self.lift(x).view(len(x), self.heads, -1)
            a, b = (h * self.left).sum(-1), (h * self.right).sum(-1)
            energy = F.leaky_relu(a[:, None] + b[None], 0.2)
            share = energy.masked_fill(links[..., None] == 0, -1e9).softmax(1)
            return torch.einsum("ijh,jhc->ihc", share, h).flatten(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Layer(16, 8, 4), Layer(32, CLASSES, 1)

        def forward(self, x: Tensor, links: Tensor) -> Tensor:
            return self.second(F.elu(self.first(x, links)), links)

    batch = (torch.randn(200, 16), _neighbours(200))
    return Specimen(Net(), batch, labels(200), F.cross_entropy)


@recipe
def message_passing() -> Specimen:
    """Gilmer et al. 2017: messages by an MLP over edges, states by a GRU, three rounds."""

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(16, width), nn.Linear(width, CLASSES)
            self.message = nn.Sequential(
                nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width)
            )
            self.update = nn.GRUCell(width, width)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            source, goal = edges
            for _ in range(3):
                sent = self.message(torch.cat([h[source], h[goal]], 1))
                h = self.update(torch.zeros_like(h).index_add(0, goal, sent), h)
            return self.head(h)

    edges = _neighbours(200).nonzero().t()
    return Specimen(Net(), (torch.randn(200, 16), edges), labels(200), F.cross_entropy)


# -- generative, probabilistic ---------------------------------------------------------------------


class Coupling(nn.Module):
    """Dinh et al. 2017: half of the numbers scale and shift the others; starts as identity."""

    def __init__(self, width: int, flip: bool) -> None:
        super().__init__()
        half, self.flip = width // 2, flip
        self.net = nn.Sequential(
            nn.Linear(half, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * half)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        a, b = (b, a) if self.flip else (a, b)
        scale, shift = self.net(a).chunk(2, 1)
        scale = torch.tanh(scale)
        b = b * scale.exp() + shift
        return torch.cat((b, a) if self.flip else (a, b), 1), scale.sum(1)


@recipe
def normalizing_flow() -> Specimen:
    class Flow(nn.Module):
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.steps = nn.ModuleList(Coupling(width, flip=k % 2 == 1) for k in range(6))

        def forward(self, x: Tensor) -> Tensor:
            log_det = torch.zeros(len(x))
            for step in self.steps:
                x, change = step(x)
                log_det = log_det + change
            return 0.5 * (x**2).sum(1) - log_det

    return Specimen(Flow(), torch.randn(256, 8) * 1.5, torch.zeros(1), lambda nll, _: nll.mean())


class MaskedLinear(nn.Linear):
    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


@recipe
def masked_autoencoder_density() -> Specimen:
    """Germain et al. 2015 (MADE): masks make it autoregressive; the first output is a bias."""
    order = torch.arange(1, 13)
    hidden = torch.arange(96) % 11 + 1
    masks = (
        (hidden[:, None] >= order[None]).float(),
        (hidden[:, None] >= hidden[None]).float(),
        (order[:, None] > hidden[None]).float(),
    )
    model = nn.Sequential(
        MaskedLinear(masks[0]), nn.ReLU(), MaskedLinear(masks[1]), nn.ReLU(),
        MaskedLinear(masks[2]),
    )  # fmt: skip
    x = torch.randint(0, 2, (128, 12)).float()
    return Specimen(model, x, x, F.binary_cross_entropy_with_logits)


@recipe
def vector_quantised() -> Specimen:
    """van den Oord et al. 2017 (VQ-VAE): nearest code, gradient straight through."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Sequential(
                nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 4, 2, 1), nn.ReLU(),
                nn.Conv2d(16, 8, 1),
            )  # fmt: skip
            self.codes = nn.Embedding(24, 8)
            nn.init.uniform_(self.codes.weight, -1 / 24, 1 / 24)
            self.decode = nn.Sequential(
                nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 4, 2, 1),
                nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            z = self.encode(x)
            flat = z.movedim(1, -1)
            near = self.codes(torch.cdist(flat.reshape(-1, 8), self.codes.weight).argmin(1))
            q = near.view(flat.shape).movedim(-1, 1)
            commit = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
            return F.mse_loss(self.decode(z + (q - z).detach()), x) + commit

    return Specimen(Net(), images(16))


@recipe
def residual_gan_generator() -> Specimen:
    """Gulrajani et al. 2017: residual blocks that double the size, BatchNorm, tanh at the end."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv1(F.interpolate(F.relu(self.norm1(x)), scale_factor=2))
            return F.interpolate(x, scale_factor=2) + self.conv2(F.relu(self.norm2(y)))

    model = nn.Sequential(
        nn.Linear(32, 32 * 16), nn.Unflatten(1, (32, 4, 4)), Block(32), Block(32),
        nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1), nn.Tanh(),
    )  # fmt: skip
    return Specimen(model, torch.randn(64, 32))


@recipe
def style_generator() -> Specimen:
    """Karras et al. 2019: a mapping network, its output scales and shifts normalised maps."""

    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            mapping: list[nn.Module] = []
            for _ in range(4):
                mapping += [nn.Linear(32, 32), nn.LeakyReLU(0.2)]
            self.mapping = nn.Sequential(*mapping)
            for layer in self.mapping[::2]:
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)
            self.constant = nn.Parameter(torch.randn(1, width, 4, 4))
            self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
            self.styles = nn.ModuleList(nn.Linear(32, 2 * width) for _ in range(3))
            self.out = nn.Conv2d(width, 3, 1)

        def forward(self, z: Tensor) -> Tensor:
            w = self.mapping(F.normalize(z) * math.sqrt(32))
            x = self.constant.expand(len(z), -1, -1, -1)
            for conv, style in zip(self.convs, self.styles, strict=True):
                scale, shift = style(w)[:, :, None, None].chunk(2, 1)
                x = F.instance_norm(F.leaky_relu(conv(x), 0.2)) * (1 + scale) + shift
                x = F.interpolate(x, scale_factor=2)
            return self.out(x)

    return Specimen(Net(), torch.randn(64, 32))


@recipe
def neural_process() -> Specimen:
    """Garnelo et al. 2018, conditional: the mean over what is known, a guess for the rest."""

    class Net(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            relu = nn.ReLU
            self.encode = nn.Sequential(
                nn.Linear(2, width), relu(), nn.Linear(width, width), relu(),
                nn.Linear(width, width),
            )  # fmt: skip
            self.decode = nn.Sequential(
                nn.Linear(width + 1, width), relu(), nn.Linear(width, width), relu(),
                nn.Linear(width, 2),
            )  # fmt: skip

        def forward(self, known: Tensor, asked: Tensor) -> Tensor:
            r = self.encode(known).mean(1, keepdim=True).expand(-1, asked.shape[1], -1)
            return self.decode(torch.cat([r, asked], -1))

    def loss(out: Tensor, y: Tensor) -> Tensor:
        mean, width = out[..., :1], 0.1 + 0.9 * F.softplus(out[..., 1:])
        return (((y - mean) / width) ** 2 / 2 + width.log()).mean()

    x, phase = torch.rand(64, 20, 1) * 4 - 2, torch.rand(64, 1, 1) * 6
    y = torch.sin(2 * x + phase)
    batch = (torch.cat([x[:, :8], y[:, :8]], -1), x[:, 8:])
    return Specimen(Net(), batch, y[:, 8:], loss)


@recipe
def mixture_density() -> Specimen:
    """Bishop 1994: the parameters of a mixture of three Gaussians."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        share, mean, log_std = out.chunk(3, 1)
        z = (y - mean) * (-log_std).exp()
        return -torch.logsumexp(share.log_softmax(1) - log_std - z**2 / 2, 1).mean()

    model = nn.Sequential(
        nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 9)
    )
    x = torch.randn(256, 4)
    return Specimen(model, x, x[:, :1].sin() + 0.1 * torch.randn(256, 1), loss)


@recipe
def energy_based() -> Specimen:
    """Du & Mordatch 2019: one number for each image, swish; real against noise."""
    norm = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(
        norm(nn.Conv2d(1, 16, 3, 1, 1)), nn.SiLU(), norm(nn.Conv2d(16, 32, 4, 2, 1)), nn.SiLU(),
        norm(nn.Conv2d(32, 32, 4, 2, 1)), nn.SiLU(), nn.Flatten(), nn.Linear(32 * 16, 1),
    )  # fmt: skip

    def loss(energy: Tensor, real: Tensor) -> Tensor:
        e = energy.flatten()
        return torch.where(real, e, -e).mean() + 0.1 * e.square().mean()

    return Specimen(model, torch.randn(64, 1, 16, 16), torch.arange(64) < 32, loss)


# -- loops, dynamics, control ----------------------------------------------------------------------


@recipe
def neural_ode() -> Specimen:
    """Chen et al. 2018: one small field, followed by eight steps of Runge–Kutta."""

    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(16, width), nn.Linear(width, CLASSES)
            self.field = nn.Sequential(nn.Linear(width, 48), nn.Tanh(), nn.Linear(48, width))

        def forward(self, x: Tensor) -> Tensor:
            x, h = self.first(x), 1 / 8
            for _ in range(8):
                k1 = self.field(x)
                k2 = self.field(x + h / 2 * k1)
                k3 = self.field(x + h / 2 * k2)
                k4 = self.field(x + h * k3)
                x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return self.head(x)

    return classify(Net(), torch.randn(128, 16))


@recipe
def deep_equilibrium() -> Specimen:
    """Bai et al. 2019, unrolled: a contraction repeated with the input at every step."""

    class Net(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.inject, self.head = nn.Linear(16, width), nn.Linear(width, CLASSES)
            self.repeat = nn.utils.parametrizations.spectral_norm(nn.Linear(width, width))

        def forward(self, x: Tensor) -> Tensor:
            u = self.inject(x)
            z = torch.zeros_like(u)
            for _ in range(10):
                z = torch.tanh(0.9 * self.repeat(z) + u)
            return self.head(z)

    return classify(Net(), torch.randn(128, 16))


@recipe
def dueling_q_network() -> Specimen:
    """Wang et al. 2016 on Mnih's convolutions, He's scale."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see = nn.Sequential(
                nn.Conv2d(4, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
                nn.Conv2d(32, 32, 3, 1), nn.ReLU(), nn.Flatten(),
            )  # fmt: skip
            self.value = nn.Sequential(nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 1))
            self.gain = nn.Sequential(nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.see(x)
            gain = self.gain(x)
            return self.value(x) + gain - gain.mean(1, keepdim=True)

    def loss(q: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        action, value = target
        return F.smooth_l1_loss(q.gather(1, action[:, None])[:, 0], value)

    return Specimen(_he(Net()), torch.randn(64, 4, 32, 32), (labels(64, 4), torch.randn(64)), loss)


@recipe
def soft_actor() -> Specimen:
    """Haarnoja et al. 2018: a squashed Gaussian policy; its log std is kept within bounds."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
            self.mean, self.log_std = nn.Linear(128, 3), nn.Linear(128, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x)
            log_std = self.log_std(h).clamp(-20, 2)
            mean = self.mean(h)
            raw = mean + log_std.exp() * torch.randn_like(mean)
            log_p = -(((raw - mean) / log_std.exp()) ** 2 / 2 + log_std).sum(1)
            action = torch.tanh(raw)
            return action, log_p - torch.log(1 - action**2 + 1e-6).sum(1)

    def loss(output: tuple[Tensor, Tensor], wanted: Tensor) -> Tensor:
        action, log_p = output
        return (0.2 * log_p + ((action - wanted) ** 2).sum(1)).mean()

    return Specimen(Net(), torch.randn(256, 8), torch.rand(256, 3) * 2 - 1, loss)


# -- tables, recommenders --------------------------------------------------------------------------


@recipe
def deep_factorisation_machine() -> Specimen:
    """Guo et al. 2017: pairwise products of embeddings beside an MLP."""

    class Net(nn.Module):
        def __init__(self, sizes: tuple[int, ...] = (20, 30, 12, 7)) -> None:
            super().__init__()
            self.embeds = nn.ModuleList(nn.Embedding(n, 8) for n in sizes)
            self.linear = nn.ModuleList(nn.Embedding(n, 1) for n in sizes)
            for embed in (*self.embeds, *self.linear):
                nn.init.xavier_uniform_(embed.weight)
            self.deep = nn.Sequential(
                nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2),
                nn.Linear(64, 1),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            e = torch.stack([embed(x[:, k]) for k, embed in enumerate(self.embeds)], 1)
            wide = sum(linear(x[:, k]) for k, linear in enumerate(self.linear))
            pairs = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(1, keepdim=True)
            return (wide + pairs + self.deep(e.flatten(1))).squeeze(1)

    x = torch.stack([torch.randint(0, n, (256,)) for n in (20, 30, 12, 7)], 1)
    target = torch.randint(0, 2, (256,)).float()
    return Specimen(Net(), x, target, F.binary_cross_entropy_with_logits)


@recipe
def cross_network() -> Specimen:
    """Wang et al. 2021 (DCN V2): x0 times a linear map, added; beside a deep part."""

    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
            for layer in self.cross:
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
            self.deep = nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
            self.head = nn.Linear(width + 24, 1)

        def forward(self, x0: Tensor) -> Tensor:
            x = x0
            for layer in self.cross:
                x = x0 * layer(x) + x
            return self.head(torch.cat([x, self.deep(x0)], 1)).squeeze(1)

    target = torch.randint(0, 2, (256,)).float()
    return Specimen(Net(), torch.randn(256, 24), target, F.binary_cross_entropy_with_logits)


@recipe
def feature_tokens() -> Specimen:
    """Gorishniy et al. 2021 (FT-Transformer): each number becomes a token; a class token."""

    class Net(nn.Module):
        def __init__(self, columns: int = 10, width: int = 32) -> None:
            super().__init__()
            bound = width**-0.5
            self.weight, self.bias = (
                nn.Parameter(torch.empty(columns, width).uniform_(-bound, bound)) for _ in range(2)
            )
            self.token = nn.Parameter(torch.empty(1, 1, width).uniform_(-bound, bound))
            layer = nn.TransformerEncoderLayer(
                width, 4, 64, 0.1, "gelu", batch_first=True, norm_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x[..., None] * self.weight + self.bias
            x = self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
            return self.head(F.relu(self.norm(x[:, 0])))

    x = torch.randn(128, 10)
    return regress(Net(), x, x[:, :1] - x[:, 1:2])


@recipe
def periodic_embeddings() -> Specimen:
    """Gorishniy et al. 2022: sines and cosines of learned frequencies before an MLP."""

    class Net(nn.Module):
        def __init__(self, columns: int = 8, waves: int = 8) -> None:
            super().__init__()
            self.frequency = nn.Parameter(0.5 * torch.randn(columns, waves))
            self.mlp = nn.Sequential(
                nn.Linear(2 * columns * waves, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64),
                nn.ReLU(), nn.Linear(64, 1),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            angle = 2 * math.pi * x[..., None] * self.frequency
            return self.mlp(torch.cat([angle.sin(), angle.cos()], -1).flatten(1))

    x = torch.randn(128, 8)
    return regress(Net(), x, x[:, :1].sin())


# -- several experts, heads, towers ----------------------------------------------------------------


@recipe
def multi_gate_experts() -> Specimen:
    """Ma et al. 2018 (MMoE): shared experts, a soft gate and a head for each of two tasks."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(32, 48), nn.ReLU()) for _ in range(4)
            )
            self.gates = nn.ModuleList(nn.Linear(32, 4) for _ in range(2))
            self.heads = nn.ModuleList([nn.Linear(48, CLASSES), nn.Linear(48, 1)])

        def forward(self, x: Tensor) -> list[Tensor]:
            known = torch.stack([expert(x) for expert in self.experts], 1)
            mixed = [(gate(x).softmax(1)[..., None] * known).sum(1) for gate in self.gates]
            return [head(m) for head, m in zip(self.heads, mixed, strict=True)]

    def loss(output: list[Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(output[0], target[0]) + F.mse_loss(output[1], target[1])

    target = (labels(128), torch.randn(128, 1))
    return Specimen(Net(), torch.randn(128, 32), target, loss)


@recipe
def top_two_experts() -> Specimen:
    """Shazeer et al. 2017: two of four experts for each token, weights renormalised."""

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, width)
            self.router = nn.Linear(width, 4, bias=False)
            self.experts = nn.ModuleList(SwiGLU(width, 64) for _ in range(4))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            flat = self.norm(x).flatten(0, 1)
            weight, chosen = self.router(flat).softmax(-1).topk(2, -1)
            weight = weight / weight.sum(-1, keepdim=True)
            out = torch.zeros_like(flat)
            for k, expert in enumerate(self.experts):
                token, slot = (chosen == k).nonzero(as_tuple=True)
                out = out.index_add(0, token, expert(flat[token]) * weight[token, slot, None])
            return self.head((x + out.view_as(x)).mean(1))

    return classify(Net(), tokens(64, 12))


@recipe
def hypernetwork() -> Specimen:
    """Ha et al. 2017: a small network makes another's weights; its last layer is scaled so."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU())
            self.make = nn.Linear(32, 16 * 32 + 32)
            nn.init.normal_(self.make.weight, std=0.01)
            nn.init.normal_(self.make.bias, std=math.sqrt(2 / 16))
            self.head = nn.Linear(32, CLASSES)

        def forward(self, x: Tensor, about: Tensor) -> Tensor:
            made = self.make(self.body(about))
            weight, bias = made[:, :512].view(-1, 32, 16), made[:, 512:] * 0.1
            return self.head(F.relu(torch.bmm(weight, x[..., None])[..., 0] + bias))

    batch = (torch.randn(128, 16), torch.randn(128, 4))
    return Specimen(Net(), batch, labels(128), F.cross_entropy)


@recipe
def feature_wise_modulation() -> Specimen:
    """Perez et al. 2018 (FiLM): a question scales and shifts the maps of an image."""

    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.stem, self.embed = _conv_norm(3, width, 3, stride=2), nn.Embedding(20, 32)
            self.read = nn.GRU(32, 32, batch_first=True)
            self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(2))
            self.films = nn.ModuleList(nn.Linear(32, 2 * width) for _ in range(2))
            self.head = nn.Linear(width, CLASSES)

        def forward(self, x: Tensor, question: Tensor) -> Tensor:
            x, asked = self.stem(x), self.read(self.embed(question))[1][0]
            for conv, norm, film in zip(self.convs, self.norms, self.films, strict=True):
                scale, shift = film(asked)[:, :, None, None].chunk(2, 1)
                x = x + F.relu(norm(conv(x)) * (1 + scale) + shift)
            return self.head(x.amax((2, 3)))

    batch = (images(48, 16), torch.randint(0, 20, (48, 6)))
    return Specimen(Net(), batch, labels(48), F.cross_entropy)


@recipe
def momentum_contrast() -> Specimen:
    """He et al. 2020 (MoCo): keys from a frozen copy under no_grad, a queue of negatives."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = (
                nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2)
            )
            self.key.requires_grad_(False)
            self.key.load_state_dict(self.query.state_dict())
            self.register_buffer("queue", F.normalize(torch.randn(64, 32), dim=1))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            q = F.normalize(self.query(a), dim=1)
            with torch.no_grad():
                k = F.normalize(self.key(b), dim=1)
            scores = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.t()], 1) / 0.2
            return F.cross_entropy(scores, torch.zeros(len(a), dtype=torch.long))

    x = torch.randn(96, 32)
    return Specimen(Net(), (x, x + 0.2 * torch.randn_like(x)))


@recipe
def stochastic_depth() -> Specimen:
    """Huang et al. 2016: a residual network in which whole blocks drop out."""

    class Net(nn.Module):
        def __init__(self, width: int = 48, depth: int = 8) -> None:
            super().__init__()
            self.first = nn.Linear(32, width)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(),
                              nn.Linear(width, width))
                for _ in range(depth)
            )  # fmt: skip
            self.head = nn.Linear(width, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for k, block in enumerate(self.blocks):
                kept = 1 - 0.2 * k / len(self.blocks) if self.training else 1.0
                alive = (torch.rand(len(x), 1) < kept).float() / kept
                x = x + alive * block(x)
            return self.head(x)

    return classify(Net(), torch.randn(128, 32))


NAMES = tuple(name for name in zoo.RECIPES if name not in _BEFORE)
