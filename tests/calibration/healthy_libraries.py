"""Healthy networks of other libraries, with random weights as they come.

Their packages are the extra ``calibration``; ``RECIPES`` holds those of what is installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.cases import Subject

Recipe = Callable[[], Subject]

# name -> family, where it normalises, how it is made
RECIPES: dict[str, tuple[str, str, Recipe]] = {}
PACKAGES = ("monai", "torch-geometric", "x-transformers")
CLASSES = 10
VOCABULARY = 99


def make(name: str, seed: int) -> Subject:
    """The network of that name, drawn from ``seed``; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RECIPES[name][2]()


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def library(name: str) -> ModuleType:
    """Imported when a network of it is made: some warn, which would end the test suite."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


# -- MONAI: medical images -------------------------------------------------------------------------


def _classifier(size: int) -> Callable[[Callable[[], nn.Module]], Recipe]:
    return lambda build: (
        lambda: Subject(
            build(), torch.randn(32, 1, size, size), torch.randint(0, 4, (32,)), F.cross_entropy
        )
    )


def _segments(output: Any, target: Tensor) -> Tensor:
    if isinstance(output, list | tuple):
        output = output[0]
    return F.cross_entropy(output, target)


def _segmenter(size: int, n: int = 16) -> Callable[[Callable[[], nn.Module]], Recipe]:
    return lambda build: (
        lambda: Subject(
            build(),
            torch.randn(n, 1, size, size),
            torch.randint(0, 3, (n, size, size)),
            _segments,
        )
    )


if installed("monai"):

    def nets() -> ModuleType:
        return library("monai.networks.nets")

    flat = {"spatial_dims": 2, "in_channels": 1}

    def _vae_loss(output: tuple[Tensor, ...], x: Tensor) -> Tensor:
        image, mean, logvar, _ = output
        divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).mean()
        return F.mse_loss(image, x) + 1e-3 * divergence

    def _variational() -> Subject:
        x = torch.rand(32, 1, 32, 32)  # its output is a sigmoid's
        model = nets().VarAutoEncoder(
            2, (1, 32, 32), 1, latent_size=8, channels=(8, 16), strides=(2, 2)
        )
        return Subject(model, x, x, _vae_loss)

    def _rebuilder() -> Subject:
        x = torch.randn(32, 1, 32, 32)
        model = nets().AutoEncoder(2, 1, 1, channels=(8, 16, 32), strides=(2, 2, 2))
        return Subject(model, x, x, F.mse_loss)

    def _high_resolution() -> nn.Module:
        model = nets().HighResNet(**flat, out_channels=3)
        model.blocks[-1].adn = nn.Identity()  # it comes with a norm and a ReLU on the logits
        return model

    def _diffusion() -> Subject:
        model = nets().DiffusionModelUNet(
            2, 1, 1, num_res_blocks=1, channels=(8, 16), attention_levels=(False, True),
            norm_num_groups=4, num_head_channels=8,
        )  # fmt: skip
        x = torch.randn(16, 1, 16, 16)
        return Subject(model, (x, torch.randint(0, 1000, (16,))), torch.randn_like(x), F.mse_loss)

    classify, segment = _classifier(32), _segmenter(32)
    RECIPES |= {
        "monai-densenet": ("residual", "pre", classify(
            lambda: nets().DenseNet(**flat, out_channels=4, init_features=16, growth_rate=8,
                                  block_config=(3, 3)))),
        "monai-resnet": ("residual", "inside", classify(
            lambda: nets().ResNet("basic", [1, 1, 1, 1], [8, 16, 32, 64], spatial_dims=2,
                                n_input_channels=1, num_classes=4))),
        "monai-efficientnet": ("residual", "inside", _classifier(64)(
            lambda: nets().EfficientNetBN("efficientnet-b0", pretrained=False, **flat,
                                        num_classes=4))),
        "monai-unet-residual": ("u-net", "inside", segment(
            lambda: nets().UNet(**flat, out_channels=3, channels=(8, 16, 32), strides=(2, 2),
                              num_res_units=2))),
        "monai-unet-plain": ("u-net", "inside", segment(
            lambda: nets().BasicUNet(**flat, out_channels=3, features=(8, 8, 16, 16, 32, 8)))),
        "monai-dynunet": ("u-net", "inside", segment(
            lambda: nets().DynUNet(**flat, out_channels=3, kernel_size=[3, 3, 3], strides=[1, 2, 2],
                                 upsample_kernel_size=[2, 2], filters=[8, 16, 32],
                                 res_block=True))),
        "monai-segresnet": ("u-net", "pre", segment(
            lambda: nets().SegResNet(**flat, out_channels=3, init_filters=8, blocks_down=(1, 1, 1),
                                   blocks_up=(1, 1)))),
        "monai-attention-unet": ("u-net", "inside", segment(
            lambda: nets().AttentionUnet(**flat, out_channels=3, channels=(8, 16, 32),
                                       strides=(2, 2)))),
        "monai-vnet": ("u-net", "inside", segment(
            lambda: nets().VNet(**flat, out_channels=3))),
        "monai-highresnet": ("residual", "pre", segment(_high_resolution)),
        "monai-autoencoder": ("autoencoder", "inside", _rebuilder),
        "monai-vae": ("autoencoder", "inside", _variational),
        "monai-diffusion-unet": ("u-net", "pre", _diffusion),
    }  # fmt: skip


# -- PyTorch Geometric: graphs ---------------------------------------------------------------------


def _graph(build: Callable[[], nn.Module]) -> Recipe:
    """200 nodes, each with five random neighbours; a class for each node."""

    def make() -> Subject:
        source = torch.arange(200).repeat_interleave(5)
        edges = torch.stack([source, torch.randint(0, 200, (1000,))])
        edges = torch.cat([edges, edges.flip(0)], 1)
        batch = (torch.randn(200, 16), edges)
        return Subject(build(), batch, torch.randint(0, CLASSES, (200,)), F.cross_entropy)

    return make


if installed("torch_geometric"):

    def graphs() -> ModuleType:
        return library("torch_geometric.nn")

    RECIPES |= {
        "pyg-gcn": ("graph", "none", _graph(lambda: graphs().GCN(16, 32, 2, CLASSES))),
        "pyg-gcn-norm": ("graph", "inside", _graph(
            lambda: graphs().GCN(16, 32, 4, CLASSES, norm="layer_norm", dropout=0.1))),
        "pyg-sage": ("graph", "none", _graph(lambda: graphs().GraphSAGE(16, 32, 2, CLASSES))),
        "pyg-gin": ("graph", "inside", _graph(
            lambda: graphs().GIN(16, 32, 3, CLASSES, norm="batch_norm"))),
        "pyg-gat": ("graph", "none", _graph(
            lambda: graphs().GAT(16, 32, 2, CLASSES, heads=4, act="elu"))),
        "pyg-gat-v2": ("graph", "none", _graph(
            lambda: graphs().GAT(16, 32, 2, CLASSES, v2=True, heads=4, dropout=0.2))),
        "pyg-edge-cnn": ("graph", "none", _graph(lambda: graphs().EdgeCNN(16, 32, 2, CLASSES))),
        "pyg-jumping-knowledge": ("graph", "none", _graph(
            lambda: graphs().GCN(16, 32, 3, CLASSES, jk="cat"))),
    }  # fmt: skip


# -- x-transformers: what papers tried -------------------------------------------------------------


if installed("x_transformers"):

    def xt() -> ModuleType:
        return library("x_transformers")

    small: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}

    def _next(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), target)

    def _decoder(**options: Any) -> Recipe:
        def make() -> Subject:
            ids = torch.randint(5, VOCABULARY, (32, 17))
            layers = xt().Decoder(**small, **options)
            model = xt().TransformerWrapper(
                num_tokens=VOCABULARY, max_seq_len=16, attn_layers=layers
            )
            return Subject(model, ids[:, :-1], ids[:, 1:], _next)

        return make

    def _encoder(**options: Any) -> Recipe:
        def make() -> Subject:
            model = xt().TransformerWrapper(
                num_tokens=VOCABULARY, max_seq_len=16, attn_layers=xt().Encoder(**small, **options)
            )
            ids = torch.randint(5, VOCABULARY, (32, 16))
            return Subject(model, ids, ids, _next)

        return make

    def _pictures() -> Subject:
        model = xt().ViTransformerWrapper(
            image_size=32, patch_size=8, num_classes=4, attn_layers=xt().Encoder(**small)
        )
        return Subject(
            model, torch.randn(32, 3, 32, 32), torch.randint(0, 4, (32,)), F.cross_entropy
        )

    def _series() -> Subject:
        model = xt().ContinuousTransformerWrapper(
            dim_in=8, dim_out=8, max_seq_len=16, attn_layers=xt().Encoder(**small)
        )
        x = torch.randn(32, 16, 8)
        return Subject(model, x, torch.randn(32, 16, 8), F.mse_loss)

    RECIPES |= {
        "xt-decoder": ("transformer decoder", "pre", _decoder()),
        "xt-decoder-rotary-swiglu": ("transformer decoder", "pre", _decoder(
            rotary_pos_emb=True, use_rmsnorm=True, ff_glu=True, ff_swish=True, ff_no_bias=True)),
        "xt-decoder-alibi": ("transformer decoder", "pre", _decoder(alibi_pos_bias=True)),
        "xt-decoder-relu-squared": ("transformer decoder", "pre", _decoder(ff_relu_squared=True)),
        "xt-decoder-sandwich": ("transformer decoder", "both", _decoder(sandwich_norm=True)),
        "xt-decoder-qk-norm": ("transformer decoder", "pre", _decoder(attn_qk_norm=True)),
        "xt-decoder-gated-residual": ("transformer decoder", "pre", _decoder(gate_residual=True)),
        "xt-decoder-residual-attention": ("transformer decoder", "pre", _decoder(
            residual_attn=True)),
        "xt-decoder-one-kv-head": ("transformer decoder", "pre", _decoder(attn_one_kv_head=True)),
        "xt-encoder": ("transformer encoder", "pre", _encoder()),
        "xt-encoder-postnorm": ("transformer encoder", "post", _encoder(pre_norm=False)),
        "xt-encoder-macaron": ("transformer encoder", "pre", _encoder(macaron=True)),
        "xt-encoder-scale-norm": ("transformer encoder", "pre", _encoder(use_scalenorm=True)),
        "xt-encoder-t5-bias": ("transformer encoder", "pre", _encoder(rel_pos_bias=True)),
        "xt-vit": ("vision transformer", "pre", _pictures),
        "xt-continuous": ("time series", "pre", _series),
    }  # fmt: skip
