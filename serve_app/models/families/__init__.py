"""The families of networks that are known, in the order in which a file is taken for one: a family is a file here."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.models.families.anima import Anima, AnimaText
from serve_app.models.families.auraflow import AuraFlow, PileT5Text
from serve_app.models.families.autoencoder import AutoencoderKL
from serve_app.models.families.chroma import Chroma
from serve_app.models.families.clip import ClipText
from serve_app.models.families.clip_vision import ClipVision
from serve_app.models.families.family import (
    BackboneFamily,
    StyleFamily,
    TextEnsemble,
    TextFamily,
    VaeFamily,
    VisionFamily,
)
from serve_app.models.families.flux import Flux
from serve_app.models.families.flux2 import Flux2
from serve_app.models.families.flux2_vae import Flux2Vae
from serve_app.models.families.flux_text import FluxText
from serve_app.models.families.gemma import Gemma2Text
from serve_app.models.families.hidream import HiDream
from serve_app.models.families.hidream_text import HiDreamText
from serve_app.models.families.krea2 import Krea2
from serve_app.models.families.llama import LlamaText
from serve_app.models.families.lumina2 import Lumina2
from serve_app.models.families.mistral import MistralText
from serve_app.models.families.omnigen2 import OmniGen2, OmniGen2Text
from serve_app.models.families.pixart import PixArt, PixArtAlpha
from serve_app.models.families.qwen import Qwen3Text
from serve_app.models.families.qwen_image import QwenImage
from serve_app.models.families.qwen_image21 import QwenImage21
from serve_app.models.families.qwen_image21_vae import QwenImage21Vae
from serve_app.models.families.qwen_vl import QwenVlText
from serve_app.models.families.sd import Sd
from serve_app.models.families.sd3 import Sd3
from serve_app.models.families.sd3_text import Sd3Text
from serve_app.models.families.sdxl import Sdxl, SdxlRefiner, SdxlText
from serve_app.models.families.style_models import Redux, StyleAdapter
from serve_app.models.families.t5 import T5Text, UMT5Text
from serve_app.models.families.taesd import Taesd
from serve_app.models.families.unclip import Unclip
from serve_app.models.families.unet import Unet
from serve_app.models.families.wan import Wan, Wan22
from serve_app.models.families.wan22_vae import Wan22Vae
from serve_app.models.families.wan_vae import WanVae
from serve_app.models.families.zimage import ZImage

UNETS: Sequence[type[Unet]] = (Unclip, SdxlRefiner, Sdxl, Sd)
BACKBONES: Sequence[type[BackboneFamily]] = (
    *UNETS,
    *(ZImage, Flux, Flux2, Chroma, Sd3, Lumina2, Krea2, QwenImage, QwenImage21, Anima, HiDream, AuraFlow, OmniGen2),
    *(PixArtAlpha, PixArt, Wan, Wan22),
)
VAES: Sequence[type[VaeFamily]] = (Flux2Vae, AutoencoderKL, QwenImage21Vae, Wan22Vae, WanVae, Taesd)
IMAGE_ENCODERS: Sequence[type[VisionFamily]] = (ClipVision,)
STYLE_MODELS: Sequence[type[StyleFamily]] = (Redux, StyleAdapter)
TEXT_ENCODERS: Sequence[type[TextFamily]] = (
    *(
        ClipText,
        T5Text,
        UMT5Text,
        PileT5Text,
        Qwen3Text,
        AnimaText,
        QwenVlText,
        OmniGen2Text,
        Gemma2Text,
        MistralText,
        LlamaText,
    ),
)
TEXT_ENSEMBLES: Sequence[type[TextEnsemble]] = (SdxlText, FluxText, Sd3Text, HiDreamText)
"""Encoders that go together, and are read side by side."""

__all__ = [
    "BACKBONES",
    "IMAGE_ENCODERS",
    "STYLE_MODELS",
    "TEXT_ENCODERS",
    "TEXT_ENSEMBLES",
    "UNETS",
    "VAES",
    "Anima",
    "AuraFlow",
    "AutoencoderKL",
    "Chroma",
    "ClipText",
    "ClipVision",
    "Flux",
    "Flux2",
    "Flux2Vae",
    "HiDream",
    "Krea2",
    "Lumina2",
    "OmniGen2",
    "PixArt",
    "PixArtAlpha",
    "QwenImage",
    "QwenImage21",
    "QwenImage21Vae",
    "Redux",
    "Sd",
    "Sd3",
    "Sdxl",
    "SdxlRefiner",
    "SdxlText",
    "StyleAdapter",
    "Taesd",
    "Unclip",
    "Unet",
    "Wan",
    "Wan22",
    "Wan22Vae",
    "WanVae",
    "ZImage",
]
