"""Public networks as their libraries make them: what is said of them, in ``public.csv``.

Remade by ``PYTHONPATH=tests python -m calibration.public_models``. Random weights as the library
draws them, in training mode, two images or sentences, no loss: what somebody sees who tries nndiag
on the first model at hand. Small pictures and configurations, where the architecture allows it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import nn

import nndiag
from calibration.healthy import quieten
from calibration.healthy_libraries import library
from nndiag.progress import silenced
from nndiag.report import Report

TABLE = Path(__file__).parents[2] / "reports" / "calibration" / "public.csv"
SAMPLES = 2
VOCABULARY = 200


class Public(NamedTuple):
    """A model of a library, and how it and its batch are made."""

    library: str
    name: str
    build: Callable[[], tuple[nn.Module, Any]]


# -- torchvision -----------------------------------------------------------------------------------

# Pixels -> names. Where the size is part of the model, it is built for it.
TORCHVISION = {
    64: """resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 mobilenet_v2
        mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet1_0 shufflenet_v2_x0_5
        shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 efficientnet_b0 efficientnet_b1
        efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny swin_t swin_v2_t vgg11
        vgg11_bn alexnet googlenet""",
    299: "inception_v3",
}
SEGMENTATION = "deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large fcn_resnet50"
VIDEO = "r3d_18 mc3_18 r2plus1d_18"


def _declare_torchvision_operators() -> None:
    """Beside a torch without CUDA, PyPI's wheel cannot load its operators, nor be imported.

    No network here uses them; they only have to be known by name.
    """
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _FRAGMENTS.append(torch.library.Library("torchvision", "FRAGMENT"))
            _FRAGMENTS[-1].define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")


_FRAGMENTS: list[torch.library.Library] = []  # what one declares is gone with it


def _torchvision(name: str, *shape: int, **options: Any) -> tuple[nn.Module, Any]:
    models = library("torchvision.models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.get_model(name, weights=None, **options)
    return model, torch.randn(SAMPLES, 3, *shape)


def torchvision_models() -> Iterator[Public]:
    made: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}
    for size, names in TORCHVISION.items():
        made |= {name: ((size, size), {}) for name in names.split()}
    made |= {name: ((64, 64), {"weights_backbone": None}) for name in SEGMENTATION.split()}
    made |= {name: ((8, 32, 32), {}) for name in VIDEO.split()}
    made["vit_b_16"] = (64, 64), {"image_size": 64}
    for name, (shape, options) in made.items():
        yield Public("torchvision", name, functools.partial(_torchvision, name, *shape, **options))


# -- timm ------------------------------------------------------------------------------------------

TIMM = {
    64: """cspresnet50 cspresnext50 cspdarknet53 darknet53 repvgg_a0 tresnet_m dm_nfnet_f0
        nf_resnet50 nf_regnet_b1 eca_nfnet_l0 resnet10t resnet26d seresnet50 ecaresnet26t
        resnetv2_50 resnest14d res2net50_26w_4s skresnet18 gcresnet33ts rexnet_100 regnety_002
        efficientnet_b0 tf_efficientnetv2_b0 mixnet_s mobilenetv3_small_100 mobilenetv4_conv_small
        mobileone_s0 mobilevitv2_050 fbnetc_100 ghostnet_100 ghostnetv2_100 hardcorenas_a lcnet_050
        tinynet_a hrnet_w18_small convnext_atto convnextv2_atto inception_next_tiny dla34 dpn48b
        edgenext_xx_small hgnetv2_b0 selecsls42 starnet_s1 repvit_m0_9 repghostnet_050 fastvit_t8
        poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18 pvt_v2_b0 xception41 vgg11
        efficientvit_b0 focalnet_tiny_srf""",
    224: """levit_128s efficientformer_l1 coat_tiny crossvit_tiny_240 convit_tiny visformer_tiny
        gcvit_xxtiny davit_tiny""",
}
# The pictures' size is a part of these: they are built for 64 pixels.
TIMM_SIZED = """vit_tiny_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 cait_xxs24_224
    beit_base_patch16_224 eva02_tiny_patch14_224 flexivit_small mixer_s32_224 gmlp_s16_224
    resmlp_12_224 xcit_nano_12_p16_224 vit_small_patch14_dinov2"""


def _timm(name: str, size: int, **options: Any) -> tuple[nn.Module, Any]:
    model = library("timm").create_model(name, pretrained=False, **options)
    return model, torch.randn(SAMPLES, 3, size, size)


def timm_models() -> Iterator[Public]:
    for size, names in TIMM.items():
        for name in names.split():
            own = 240 if name.endswith("240") else size
            yield Public("timm", name, functools.partial(_timm, name, own))
    for name in TIMM_SIZED.split():
        size = 70 if "patch14" in name else 64
        yield Public("timm", name, functools.partial(_timm, name, size, img_size=size))


# -- transformers ----------------------------------------------------------------------------------

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}
_PICTURE: dict[str, Any] = _SMALL | {"image_size": 32, "patch_size": 8}
_STAGES: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32]}
_SOUND: dict[str, Any] = _SMALL | {
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
}

# class -> what its configuration is told, and what it reads
SENTENCES: dict[str, dict[str, Any]] = {
    "BertModel": _SMALL,
    "RobertaModel": _SMALL,
    "ElectraModel": _SMALL | {"embedding_size": 64},
    "AlbertModel": _SMALL | {"embedding_size": 32},
    "DistilBertModel": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128,
                        "vocab_size": VOCABULARY},
    "DebertaV2Model": _SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "MPNetModel": _SMALL,
    "LongformerModel": _SMALL | {"attention_window": 8},
    "BigBirdModel": _SMALL | {"attention_type": "original_full"},
    "SqueezeBertModel": _SMALL | {"embedding_size": 64},
    "NystromformerModel": _SMALL | {"segment_means_seq_len": 16, "num_landmarks": 4},
    "FNetModel": _SMALL,
    "ConvBertModel": _SMALL | {"embedding_size": 64},
    "RoFormerModel": _SMALL,
    "CamembertModel": _SMALL,
    "MobileBertModel": _SMALL | {"embedding_size": 32, "intra_bottleneck_size": 32,
                                 "true_hidden_size": 32},
    "XLNetModel": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128,
                   "vocab_size": VOCABULARY},
    "FunnelModel": {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128,
                    "block_sizes": [1, 1], "vocab_size": VOCABULARY},
    "GPT2Model": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
    "GPTNeoModel": {"hidden_size": 64, "num_layers": 2, "num_heads": 4,
                    "attention_types": [[["global", "local"], 1]], "vocab_size": VOCABULARY},
    "GPTNeoXModel": _SMALL,
    "OPTModel": _SMALL | {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "BloomModel": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
    "LlamaModel": _SMALL,
    "MistralModel": _SMALL | {"num_key_value_heads": 2},
    "Qwen2Model": _SMALL | {"num_key_value_heads": 2},
    "GemmaModel": _SMALL | {"num_key_value_heads": 2, "head_dim": 16},
    "PhiModel": _SMALL,
    "FalconModel": _SMALL,
    "MambaModel": _SMALL | {"state_size": 8},
    "MixtralModel": _SMALL | {"num_key_value_heads": 2, "num_local_experts": 4},
}  # fmt: skip
SEQUENCES: dict[str, dict[str, Any]] = {
    "BartModel": _SEQ2SEQ,
    "MBartModel": _SEQ2SEQ,
    "PegasusModel": _SEQ2SEQ,
    "MarianModel": _SEQ2SEQ | {"decoder_vocab_size": VOCABULARY},
    "M2M100Model": _SEQ2SEQ,
    "BlenderbotSmallModel": _SEQ2SEQ,
    "LEDModel": _SEQ2SEQ | {"attention_window": 8},
    "T5Model": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
                "vocab_size": VOCABULARY},
}  # fmt: skip
PICTURES: dict[str, dict[str, Any]] = {
    "ViTModel": _PICTURE,
    "DeiTModel": _PICTURE,
    "BeitModel": _PICTURE,
    "Dinov2Model": _PICTURE,
    "ViTMAEModel": _PICTURE,
    "ViTMAEForPreTraining": _PICTURE | {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2,
                                        "decoder_num_attention_heads": 4,
                                        "decoder_intermediate_size": 64},
    "ViTForMaskedImageModeling": _PICTURE | {"encoder_stride": 8},
    "YolosModel": _PICTURE | {"image_size": [32, 32], "num_detection_tokens": 5},
    "SwinModel": {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
                  "num_heads": [2, 2], "window_size": 4},
    "ConvNextModel": _STAGES,
    "ConvNextV2Model": _STAGES,
    "RegNetModel": _STAGES | {"groups_width": 8, "embedding_size": 16},
    "ResNetModel": _STAGES | {"embedding_size": 16},
    "SegformerModel": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "PoolFormerModel": _STAGES,
    "MobileViTModel": {"image_size": 64},
}  # fmt: skip
SOUNDS: dict[str, dict[str, Any]] = {
    "Wav2Vec2Model": _SOUND,
    "HubertModel": _SOUND,
    "WavLMModel": _SOUND,
    "SEWModel": _SOUND | {"squeeze_factor": 1},
}


def _transformers(name: str, options: dict[str, Any], batch: dict[str, Any]) -> tuple[Any, Any]:
    transformers = library("transformers")
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**options)).train(), batch


def _words(length: int = 16) -> torch.Tensor:
    return torch.randint(5, VOCABULARY, (SAMPLES, length))


def _sentences(name: str) -> tuple[Any, Any]:
    return _transformers(name, SENTENCES[name], {"input_ids": _words()})


def _sequences(name: str) -> tuple[Any, Any]:
    words = {"input_ids": _words(), "decoder_input_ids": _words(8)}
    return _transformers(name, SEQUENCES[name], words)


def _pictures(name: str) -> tuple[Any, Any]:
    size = PICTURES[name].get("image_size", 64)
    size = size[0] if isinstance(size, list) else size
    pixels = {"pixel_values": torch.randn(SAMPLES, 3, size, size)}
    return _transformers(name, PICTURES[name], pixels)


def _sounds(name: str) -> tuple[Any, Any]:
    return _transformers(name, SOUNDS[name], {"input_values": torch.randn(SAMPLES, 2000)})


def _whisper() -> tuple[Any, Any]:
    options = _SEQ2SEQ | {"num_mel_bins": 20, "max_source_positions": 50, "bos_token_id": 1,
                          "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
    sound = {
        "input_features": torch.randn(SAMPLES, 20, 100), "decoder_input_ids": _words(8)
    }  # fmt: skip
    return _transformers("WhisperModel", options, sound)


def _clip() -> tuple[Any, Any]:
    text = _SMALL | {"projection_dim": 32, "max_position_embeddings": 32, "eos_token_id": 2}
    picture = {k: v for k, v in _PICTURE.items() if k != "vocab_size"} | {"projection_dim": 32}
    options = {"text_config": text, "vision_config": picture, "projection_dim": 32}
    both = {"input_ids": _words(), "pixel_values": torch.randn(SAMPLES, 3, 32, 32)}
    return _transformers("CLIPModel", options, both)


def _detr() -> tuple[Any, Any]:
    transformers = library("transformers")
    backbone = transformers.ResNetConfig(**_STAGES, embedding_size=16, out_features=["stage4"])
    options = {k: v for k, v in _SEQ2SEQ.items() if k not in ("vocab_size", "pad_token_id")} | {
        "backbone_config": backbone, "use_timm_backbone": False, "use_pretrained_backbone": False,
        "backbone": None, "num_queries": 5,
    }  # fmt: skip
    return _transformers("DetrModel", options, {"pixel_values": torch.randn(SAMPLES, 3, 64, 64)})


def _speech() -> tuple[Any, Any]:
    options = _SEQ2SEQ | {
        "hidden_size": 64, "num_mel_bins": 20, "speech_decoder_prenet_units": 32,
        "speech_decoder_postnet_units": 32, "speech_decoder_postnet_layers": 2,
        "encoder_max_relative_position": 16, "speaker_embedding_dim": 16,
    }  # fmt: skip
    batch = {
        "input_ids": _words(), "decoder_input_values": torch.randn(SAMPLES, 8, 20)
    }  # fmt: skip
    return _transformers("SpeechT5ForTextToSpeech", options, batch)


def transformers_models() -> Iterator[Public]:
    for table, build in (
        (SENTENCES, _sentences), (SEQUENCES, _sequences), (PICTURES, _pictures), (SOUNDS, _sounds),
    ):  # fmt: skip
        for name in table:
            yield Public("transformers", name, functools.partial(build, name))
    for name, make in {
        "WhisperModel": _whisper, "CLIPModel": _clip, "DetrModel": _detr,
        "SpeechT5ForTextToSpeech": _speech,
    }.items():  # fmt: skip
        yield Public("transformers", name, make)


# -- judged ----------------------------------------------------------------------------------------


def models() -> list[Public]:
    return [*torchvision_models(), *timm_models(), *transformers_models()]


def judged(model: Public) -> Report:
    with torch.random.fork_rng(devices=[]), silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about kernels and names to come; none is ours
        torch.manual_seed(0)
        network, batch = model.build()
        return nndiag.check(network, batch, config=False)


def row(model: Public, report: Report) -> dict[str, Any]:
    alarms = [f for f in report.findings if f.severity != "note"]
    roots = [f for f in alarms if f.cause is None]
    return {
        "library": model.library,
        "model": model.name,
        "parameters": len(report.snapshot.parameters),
        "alarms": len(alarms),
        "notes": len(report.findings) - len(alarms),
        "said": "; ".join(f"{f.severity} {f.rule} {f.layer}" for f in roots[:3]),
    }


def main(
    path: Annotated[Path, typer.Option(help="Where the table goes.")] = TABLE,
    only: Annotated[str, typer.Option(help="Models whose name holds this; writes nothing.")] = "",
) -> None:
    """Judge every public model, and publish what is said of it."""
    quieten()
    torch.set_num_threads(1)
    _declare_torchvision_operators()
    console = Console(stderr=True)
    chosen = [m for m in models() if only in m.name]
    rows = [row(m, judged(m)) for m in track(chosen, "judging", console=console)]
    table = pd.DataFrame(rows)
    alarmed = int((table["alarms"] > 0).sum())
    console.print(f"{alarmed} of {len(table)} public models alarmed")
    for library_name in ("torchvision", "timm", "transformers"):
        console.print(f"{library_name} {importlib.metadata.version(library_name)}")
    if only:
        print(table[table["alarms"] > 0].to_string() if alarmed else "no alarm")
    else:
        table.to_csv(path, index=False)


if __name__ == "__main__":
    typer.run(main)
