"""The families of networks that are known, in the order in which a file is taken for one: a family is a file here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serve_app.models.families.ace_step.backbone import AceStep15
from serve_app.models.families.ace_step.text import AceStepText, AceStepWriter
from serve_app.models.families.audio.stable_audio3 import StableAudio3
from serve_app.models.families.autoencoders.flux2 import Flux2Vae
from serve_app.models.families.autoencoders.kl import AutoencoderKL
from serve_app.models.families.autoencoders.kl_temporal import TemporalKL
from serve_app.models.families.autoencoders.ltx2 import Ltx2Vae
from serve_app.models.families.autoencoders.ltx2_audio import Ltx2AudioVae
from serve_app.models.families.autoencoders.ltx2_upscaler import Ltx2Upscaler
from serve_app.models.families.autoencoders.ltx25 import Ltx25Vae
from serve_app.models.families.autoencoders.minimax_h3 import MiniMaxH3Vae
from serve_app.models.families.autoencoders.minimax_h3_audio import MiniMaxH3AudioVae
from serve_app.models.families.autoencoders.oobleck import AceStep15Vae, StableAudioOpenVae, YuE2Vae
from serve_app.models.families.autoencoders.pixel_space import PixelSpace
from serve_app.models.families.autoencoders.qwen_image21 import QwenImage21Vae
from serve_app.models.families.autoencoders.same import SameVae
from serve_app.models.families.autoencoders.seedvr2 import SeedVr2Vae
from serve_app.models.families.autoencoders.taehv import TaeH3, Taehv
from serve_app.models.families.autoencoders.taesd import Taesd
from serve_app.models.families.autoencoders.wan import WanVae
from serve_app.models.families.autoencoders.wan22 import Wan22Vae
from serve_app.models.families.boogu.backbone import Boogu
from serve_app.models.families.boogu.text import BooguText
from serve_app.models.families.chroma_radiance.backbone import ChromaRadiance
from serve_app.models.families.dit.anima import Anima, AnimaText
from serve_app.models.families.dit.auraflow import AuraFlow, PileT5Text
from serve_app.models.families.dit.chroma import Chroma
from serve_app.models.families.dit.ernie_image import ErnieImage
from serve_app.models.families.dit.flux import Flux
from serve_app.models.families.dit.flux2 import Flux2
from serve_app.models.families.dit.flux3 import Flux3
from serve_app.models.families.dit.hidream import HiDream
from serve_app.models.families.dit.ideogram4 import Ideogram4
from serve_app.models.families.dit.krea2 import Krea2
from serve_app.models.families.dit.lumina2 import Lumina2
from serve_app.models.families.dit.omnigen2 import OmniGen2, OmniGen2Text
from serve_app.models.families.dit.pixart import PixArt, PixArtAlpha
from serve_app.models.families.dit.qwen_image import QwenImage
from serve_app.models.families.dit.qwen_image21 import QwenImage21
from serve_app.models.families.dit.sd3 import Sd3
from serve_app.models.families.dit.zimage import ZImage
from serve_app.models.families.family import (
    AudioVaeFamily,
    BackboneFamily,
    ImageModelFamily,
    LatentUpscalerFamily,
    StyleFamily,
    VaeFamily,
    VisionFamily,
)
from serve_app.models.families.hunyuan_video.backbone import HunyuanVideo, HunyuanVideo15
from serve_app.models.families.hunyuan_video.text import ByT5Text, HunyuanVideo15Text, HunyuanVideoText
from serve_app.models.families.hunyuan_video.vae import HunyuanVideoVae
from serve_app.models.families.hunyuan_video.vae15 import HunyuanVideo15Vae
from serve_app.models.families.kandinsky5.backbone import Kandinsky5, Kandinsky5Image
from serve_app.models.families.kandinsky5.text import Kandinsky5ImageText, Kandinsky5Text
from serve_app.models.families.longcat_image.backbone import LongCatImage
from serve_app.models.families.longcat_image.text import LongCatText
from serve_app.models.families.ltx_video.backbone import LtxVideo
from serve_app.models.families.ltx_video.vae import LtxVideoVae
from serve_app.models.families.mage_flow.backbone import MageFlow
from serve_app.models.families.mage_flow.text import MageFlowText
from serve_app.models.families.mage_flow.vae import MageFlowVae
from serve_app.models.families.minimax_music.backbone import MiniMaxMusic3
from serve_app.models.families.minimax_music.text import MiniMaxMusic3Text
from serve_app.models.families.minimax_music.vae import MiniMaxMusic3Vae
from serve_app.models.families.ovis_image.backbone import OvisImage
from serve_app.models.families.ovis_image.text import OvisText
from serve_app.models.families.sam3.backbone import Sam31
from serve_app.models.families.sam3.text import Sam3Text
from serve_app.models.families.text.clip import ClipText
from serve_app.models.families.text.flux_text import FluxText
from serve_app.models.families.text.gemma import Gemma2Text
from serve_app.models.families.text.gemma4 import Gemma4Text
from serve_app.models.families.text.hidream_text import HiDreamText
from serve_app.models.families.text.llama import LlamaText
from serve_app.models.families.text.ltx2_text import Gemma3Text, Ltx2Projection, Ltx2Text
from serve_app.models.families.text.ltx25_text import Ltx25Text
from serve_app.models.families.text.mistral import MinistralText, MistralText
from serve_app.models.families.text.qwen import (
    Flux3Text,
    Ideogram4Text,
    Krea2Text,
    MiniMaxH3Text,
    Qwen3Text,
    QwenImage21Text,
)
from serve_app.models.families.text.qwen35 import Qwen35Text
from serve_app.models.families.text.qwen_vl import QwenVlText
from serve_app.models.families.text.sd3_text import Sd3Text
from serve_app.models.families.text.t5 import T5Text, UMT5Text
from serve_app.models.families.text.t5gemma import T5GemmaText
from serve_app.models.families.text_family import TextEnsemble, TextFamily
from serve_app.models.families.unet.lotus import Lotus
from serve_app.models.families.unet.sd import Sd
from serve_app.models.families.unet.sdpose import SdPose
from serve_app.models.families.unet.sdxl import Sdxl, SdxlRefiner, SdxlText
from serve_app.models.families.unet.svd import Svd
from serve_app.models.families.unet.unclip import Unclip
from serve_app.models.families.unet.unet import Unet
from serve_app.models.families.video.ltx2 import Ltx2
from serve_app.models.families.video.minimax_h3 import MiniMaxH3
from serve_app.models.families.video.seedvr2 import SeedVr2
from serve_app.models.families.video.wan import Wan, Wan22
from serve_app.models.families.video.wan_animate2 import WanAnimate2
from serve_app.models.families.video.wan_causal import WanCausal
from serve_app.models.families.video.wan_scail import WanScail
from serve_app.models.families.vision.birefnet import BiRefNet
from serve_app.models.families.vision.clip_vision import ClipVision
from serve_app.models.families.vision.depth_anything3 import DepthAnything3
from serve_app.models.families.vision.film import Film
from serve_app.models.families.vision.moge import MoGe
from serve_app.models.families.vision.rife import Rife
from serve_app.models.families.vision.rt_detr import RtDetr4
from serve_app.models.families.vision.style_models import Redux, StyleAdapter
from serve_app.models.families.yue2.backbone import YuE2
from serve_app.models.families.yue2.text import YuE2Text

UNETS: Sequence[type[Unet]] = (Svd, Unclip, SdPose, Lotus, SdxlRefiner, Sdxl, Sd)
BACKBONES: Sequence[type[BackboneFamily]] = (
    *UNETS,
    # Before Flux.1, whose names some of its layers have.
    *(HunyuanVideo, HunyuanVideo15, OvisImage, LongCatImage),
    # Before Qwen-Image and OmniGen2, whose layers they have.
    *(MageFlow, Boogu),
    *(ZImage, Flux, Flux2, Chroma, Sd3, Lumina2, Krea2, QwenImage, QwenImage21, Anima, HiDream, AuraFlow, OmniGen2),
    *(PixArtAlpha, PixArt, WanScail, WanAnimate2, WanCausal, Wan, Wan22, Ltx2, MiniMaxH3, Flux3, Ideogram4, ErnieImage),
    *(SeedVr2, StableAudio3, AceStep15, MiniMaxMusic3, YuE2, Sam31, RtDetr4, Kandinsky5, Kandinsky5Image),
    ChromaRadiance,
    # After LTX-2, whose layers it has.
    LtxVideo,
)
VAES: Sequence[type[VaeFamily]] = (
    # Before LTX-2's, whose layers it has.
    *(SeedVr2Vae, LtxVideoVae),
    *(Flux2Vae, Ltx2Vae, Ltx25Vae, TemporalKL, AutoencoderKL, QwenImage21Vae, Wan22Vae, WanVae, MiniMaxH3Vae, Taesd),
    *(Taehv, TaeH3),
    PixelSpace,
    *(HunyuanVideo15Vae, HunyuanVideoVae, MageFlowVae),
)
AUDIO_VAES: Sequence[type[AudioVaeFamily]] = (
    *(Ltx2AudioVae, MiniMaxH3AudioVae, SameVae, AceStep15Vae, StableAudioOpenVae, MiniMaxMusic3Vae, YuE2Vae),
)
LATENT_UPSCALERS: Sequence[type[LatentUpscalerFamily]] = (Ltx2Upscaler,)
BACKGROUND_REMOVERS: Sequence[type[ImageModelFamily]] = (BiRefNet,)
DEPTH_ESTIMATORS: Sequence[type[ImageModelFamily]] = (DepthAnything3,)
FRAME_INTERPOLATORS: Sequence[type[ImageModelFamily]] = (Film, Rife)
GEOMETRY_ESTIMATORS: Sequence[type[ImageModelFamily]] = (MoGe,)
IMAGE_ENCODERS: Sequence[type[VisionFamily]] = (ClipVision,)
STYLE_MODELS: Sequence[type[StyleFamily]] = (Redux, StyleAdapter)
TEXT_ENCODERS: Sequence[type[TextFamily]] = (
    *(
        Sam3Text,
        ClipText,
        T5Text,
        UMT5Text,
        PileT5Text,
        Qwen35Text,
        ByT5Text,
        Qwen3Text,
        AnimaText,
        QwenVlText,
        OmniGen2Text,
        Gemma2Text,
        Gemma3Text,
        Gemma4Text,
        Ltx2Projection,
        MinistralText,
        MistralText,
        LlamaText,
        T5GemmaText,
        AceStepWriter,
        MiniMaxMusic3Text,
        YuE2Text,
    ),
)
TEXT_READERS: Sequence[type[TextFamily]] = (
    *(
        MiniMaxH3Text,
        Krea2Text,
        Flux3Text,
        Ideogram4Text,
        QwenImage21Text,
        LongCatText,
        MageFlowText,
        OvisText,
        BooguText,
    ),
)
"""Encoders that are found as one of the families above, and are another kind of it by the loader's type."""
UNSUPPORTED_TYPES: Mapping[str, tuple[type[TextFamily], str]] = {
    "joyimage": (Qwen3Text, "JoyImage"),
}
"""Loader types for which an encoder is read as by a family that is not supported."""
TEXT_ENSEMBLES: Sequence[type[TextEnsemble]] = (
    *(SdxlText, FluxText, Sd3Text, HiDreamText, Ltx2Text, Ltx25Text, HunyuanVideoText, HunyuanVideo15Text),
    AceStepText,
    *(Kandinsky5Text, Kandinsky5ImageText),
)
"""Encoders that go together, and are read side by side."""

__all__ = [
    "AUDIO_VAES",
    "BACKBONES",
    "BACKGROUND_REMOVERS",
    "DEPTH_ESTIMATORS",
    "FRAME_INTERPOLATORS",
    "GEOMETRY_ESTIMATORS",
    "IMAGE_ENCODERS",
    "LATENT_UPSCALERS",
    "STYLE_MODELS",
    "TEXT_ENCODERS",
    "TEXT_ENSEMBLES",
    "TEXT_READERS",
    "UNETS",
    "UNSUPPORTED_TYPES",
    "VAES",
    "AceStep15",
    "AceStep15Vae",
    "AceStepText",
    "AceStepWriter",
    "Anima",
    "AuraFlow",
    "AutoencoderKL",
    "BiRefNet",
    "Boogu",
    "Chroma",
    "ChromaRadiance",
    "ClipText",
    "ClipVision",
    "DepthAnything3",
    "ErnieImage",
    "Film",
    "Flux",
    "Flux2",
    "Flux2Vae",
    "Flux3",
    "Gemma3Text",
    "Gemma4Text",
    "HiDream",
    "HunyuanVideo",
    "HunyuanVideo15",
    "HunyuanVideo15Vae",
    "HunyuanVideoVae",
    "Ideogram4",
    "Kandinsky5",
    "Kandinsky5Image",
    "Krea2",
    "LongCatImage",
    "Lotus",
    "Ltx2",
    "Ltx2AudioVae",
    "Ltx2Projection",
    "Ltx2Text",
    "Ltx2Upscaler",
    "Ltx2Vae",
    "Ltx25Text",
    "Ltx25Vae",
    "LtxVideo",
    "LtxVideoVae",
    "Lumina2",
    "MageFlow",
    "MageFlowVae",
    "MiniMaxH3",
    "MiniMaxH3AudioVae",
    "MiniMaxH3Vae",
    "MiniMaxMusic3",
    "MiniMaxMusic3Text",
    "MiniMaxMusic3Vae",
    "MoGe",
    "OmniGen2",
    "OvisImage",
    "PixArt",
    "PixArtAlpha",
    "PixelSpace",
    "Qwen35Text",
    "QwenImage",
    "QwenImage21",
    "QwenImage21Vae",
    "Redux",
    "Rife",
    "RtDetr4",
    "Sam31",
    "SameVae",
    "Sd",
    "Sd3",
    "SdPose",
    "Sdxl",
    "SdxlRefiner",
    "SdxlText",
    "SeedVr2",
    "SeedVr2Vae",
    "StableAudio3",
    "StableAudioOpenVae",
    "StyleAdapter",
    "TaeH3",
    "Taehv",
    "Taesd",
    "Unclip",
    "Unet",
    "Wan",
    "Wan22",
    "Wan22Vae",
    "WanAnimate2",
    "WanCausal",
    "WanScail",
    "WanVae",
    "YuE2",
    "YuE2Text",
    "YuE2Vae",
    "ZImage",
]
