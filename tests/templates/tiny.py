"""Tiny model files under the names that official templates give them: the real layouts, random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from serve_app.graph.spec import NodeSpec
from serve_app.media.audio_file import encode
from serve_app.media.video_file import Style
from serve_app.models.control.dit_control import SideFamily
from serve_app.models.control.qwen_controlnet import QwenControlFamily, QwenFunControlFamily
from serve_app.models.control.qwen_diffsynth import QwenDiffSynth
from serve_app.models.control.uso import Uso
from serve_app.models.control.zimage_control import ZImageControl
from serve_app.models.families import (
    AutoencoderKL,
    ClipText,
    ClipVision,
    Redux,
    Sdxl,
    SdxlRefiner,
    StyleAdapter,
    Unclip,
)
from serve_app.models.families.ace_step.text import AceStepWriter
from serve_app.models.families.autoencoders.flux2 import Flux2Vae
from serve_app.models.families.autoencoders.kl_temporal import TemporalKL
from serve_app.models.families.autoencoders.qwen_image21 import QwenImage21Vae
from serve_app.models.families.autoencoders.wan import WanVae
from serve_app.models.families.autoencoders.wan22 import Wan22Vae
from serve_app.models.families.boogu.backbone import Boogu
from serve_app.models.families.dit.anima import Anima, AnimaText, LlmAdapter
from serve_app.models.families.dit.auraflow import PileT5Text
from serve_app.models.families.dit.ernie_image import ErnieImage
from serve_app.models.families.dit.flux import Flux
from serve_app.models.families.dit.flux2 import Flux2
from serve_app.models.families.dit.flux3 import Flux3
from serve_app.models.families.dit.hidream import HiDream
from serve_app.models.families.dit.ideogram4 import Ideogram4
from serve_app.models.families.dit.krea2 import Attention, Krea2
from serve_app.models.families.dit.omnigen2 import OmniGen2, OmniGen2Text
from serve_app.models.families.dit.qwen_image import NEGATIVE_INDEX, QwenImage
from serve_app.models.families.dit.qwen_image21 import QwenImage21
from serve_app.models.families.dit.sd3 import Sd3
from serve_app.models.families.dit.zimage import ZImage
from serve_app.models.families.family import BackboneFamily, Family, VaeFamily
from serve_app.models.families.hunyuan_video.text import ByT5Text
from serve_app.models.families.kandinsky5.backbone import Kandinsky5, Kandinsky5Image
from serve_app.models.families.shared.references import INDEX_TIMESTEP_ZERO
from serve_app.models.families.text.decoder import DecoderText
from serve_app.models.families.text.gemma import Gemma2Text
from serve_app.models.families.text.llama import LlamaText
from serve_app.models.families.text.ltx2_text import PREFIX, Gemma3Text
from serve_app.models.families.text.mistral import MINISTRAL_WIDTH, MinistralText, MistralText
from serve_app.models.families.text.qwen import WIDTH_OVIS, Qwen3Text, QwenImage21Text
from serve_app.models.families.text.qwen3_vl import Qwen3VisionTower as DeepTower
from serve_app.models.families.text.qwen_vl import QwenVisionTower, QwenVlText
from serve_app.models.families.text.t5 import T5Text, UMT5Text
from serve_app.models.families.text.t5gemma import T5GemmaText
from serve_app.models.families.text_family import TextFamily
from serve_app.models.families.unet.lotus import Lotus
from serve_app.models.families.unet.svd import Svd
from serve_app.models.families.video.wan import Wan, Wan22
from serve_app.models.families.video.wan_animate2 import WanAnimate2
from serve_app.models.families.video.wan_scail import WanScail
from serve_app.models.files.layout import reverse, translate
from serve_app.models.tokenizers import tekken
from serve_app.models.tokenizers.byte_pairs import byte_letters
from serve_app.nodes.video.value import VideoComponents, VideoFromComponents
from serve_app.store.models.catalog import FOLDERS
from tests.parity import (
    ace_step_cases,
    dit_cases,
    families,
    gemma4_cases,
    ltx_cases,
    ltx_workflows,
    minimax_h3_cases,
    minimax_h3_control_cases,
    minimax_music_cases,
    sam3_cases,
    stable_audio3_cases,
    vision_cases,
    wan_cases,
    yue2_cases,
)
from tests.parity.dit_cases import weights
from tests.parity.dit_control_keys import sd3_large
from tests.parity.figures import GOLDEN
from tests.parity.generation_cases import SEEING_QWEN35
from tests.parity.qwen21_cases import drawn, file_of
from tests.parity.seeing import cases as seeing_cases
from tests.parity.text_cases import bytes_of, llama2_pieces
from tests.parity.text_cases import tensors as text_tensors
from tests.parity.wan_workflows import few_steps

TEXT_WIDTH = 32
WIDE = 4096
"""Of a text where what is beside it is padded to this."""
QWEN3 = Qwen3Text(layers=27, width=TEXT_WIDTH, hidden_width=48, heads=2, kv_heads=1, head=128, tokens=151936)
QWEN3_VL = replace(QWEN3, layers=36)
QWEN3_VL_8B = QwenImage21Text(36, TEXT_WIDTH, 48, 1, 1, 128, 151936, tower=DeepTower(27, 64, 48, 48**2))
MISTRAL = MistralText(
    layers=30, width=TEXT_WIDTH, hidden_width=48, heads=1, kv_heads=1, head=128, tokens=tekken.TOKENS, final_norm=False
)
QWEN_VL = QwenVlText(
    layers=4,
    width=TEXT_WIDTH,
    hidden_width=48,
    heads=2,
    kv_heads=1,
    head=128,
    tokens=151936,
    tower=QwenVisionTower(1, 80, 96),
)
CLIP_L = ClipText(layers=3, width=64, hidden_width=96, positions=77)
CLIP_G = ClipText(layers=32, width=64, hidden_width=96, positions=77, kind="g", projection=64)
T5 = T5Text(layers=1, width=TEXT_WIDTH, hidden_width=48, heads=2, head_width=16, buckets=32, vocabulary=32128)
Z_IMAGE = ZImage(width=48, heads=3, layers=1, refiners=1, text_width=TEXT_WIDTH, time_width=64)
FLUX = Flux(width=32, heads=1, doubles=1, singles=1, text_width=TEXT_WIDTH, pooled_width=64)
SCHNELL = replace(FLUX, guided=False)
DEPTH, FILL = replace(FLUX, extra_channels=16), replace(FLUX, extra_channels=80)
KLEIN = Flux2(width=16, heads=1, doubles=1, singles=1, text_width=3 * TEXT_WIDTH)
FLUX2 = replace(KLEIN, guided=True)
FLUX3 = Flux3(width=32, heads=1, layers=1, singles=1, text_width=8 * TEXT_WIDTH)
MINISTRAL = MinistralText(2, MINISTRAL_WIDTH, 48, heads=1, kv_heads=1, head=128, tokens=tekken.TOKENS)
OVIS_TEXT = Qwen3Text(2, WIDTH_OVIS, 48, heads=1, kv_heads=1, head=128, tokens=151936)
"""Their widths say what they are; 0.8 and 0.6 GB."""
ERNIE_IMAGE = ErnieImage(width=128, layers=1, inside=48, text_width=MINISTRAL_WIDTH)
IDEOGRAM4 = Ideogram4(width=128, heads=1, layers=1, inside=48, text_width=13 * TEXT_WIDTH, modulation=16)
KREA2 = Krea2(Attention(32, 2, 1, 48), Attention(TEXT_WIDTH, 2, 2, 48), layers=1, states=12)
QWEN_IMAGE = QwenImage(width=32, heads=1, layers=1, text_width=TEXT_WIDTH)
QWEN_2511 = replace(QWEN_IMAGE, method=INDEX_TIMESTEP_ZERO)
QWEN_IMAGE_21 = QwenImage21(width=32, heads=1, layers=1, text_width=TEXT_WIDTH)
QWEN_LAYERED = replace(QWEN_IMAGE, method=NEGATIVE_INDEX, layered=True)
SD3 = Sd3(width=64, layers=1, text_width=WIDE, pooled_width=128, side=192, normed=True)
VAE = AutoencoderKL(channels=(32,) * 4, res_blocks=1, latent_channels=16, image_channels=3, quantized=False)
KL = AutoencoderKL(channels=(32,) * 4, res_blocks=1, latent_channels=32, image_channels=3, quantized=True)
SDXL = Sdxl((32, 64), (1, 1), (0, 1), 1, context_dim=128, linear=True, vector_dim=64 + 6 * 256)
REFINER = SdxlRefiner((32, 64), (1, 1), (0, 1), 1, context_dim=64, linear=True, vector_dim=64 + 5 * 256)
LOTUS = Lotus((32, 64), (1, 1), (0, 1), 1, context_dim=1024, linear=True, vector_dim=4)
UNCLIP = Unclip((32, 64), (1, 1), (0, 1), 1, context_dim=64, linear=True, vector_dim=2 * 768)
SDXL_VAE = AutoencoderKL(channels=(32,) * 4, res_blocks=1, latent_channels=4, image_channels=3, quantized=True)
SVD = Svd((64, 64), (1, 1), (1, 0), 1, context_dim=64, linear=True, concat_channels=4, vector_dim=768)
SVD_VAE = TemporalKL(channels=(32,) * 4, res_blocks=2, latent_channels=4, image_channels=3, quantized=False)
VIT_H = ClipVision(layers=32, width=32, hidden_width=48, side=16, patch=14, projection=64)
VIT_L = ClipVision(layers=24, width=32, hidden_width=48, side=16, patch=14, projection=768)
VIT_G = ClipVision(layers=48, width=32, hidden_width=48, side=16, patch=14, projection=64)
SIGLIP = ClipVision(layers=27, width=32, hidden_width=48, side=27, patch=14, siglip=True)
REDUX = Redux(reads=SIGLIP.width, hidden_width=48, writes=TEXT_WIDTH)
STYLE_ADAPTER = StyleAdapter(reads=VIT_L.width, hidden_width=48, layers=1, count=2, writes=64)
FLUX2_VAE = Flux2Vae(KL, decoder_channels=KL.channels)
WAN_VAE = WanVae(width=4, latent_channels=16, image_channels=3)
WAN_22_VAE = Wan22Vae(width=4, decoder_width=4)
QWEN_21_VAE = QwenImage21Vae(width=8, decoder_width=8)
ANIMA = Anima(width=64, heads=1, layers=1, lora_width=16, adapter=LlmAdapter(32, 1, 1, 1024, 32128))
ACE_READER = AnimaText(layers=1, width=1024, hidden_width=48, heads=1, kv_heads=1, head=128, tokens=151669)
ACE_WRITER = AceStepWriter(layers=1, width=TEXT_WIDTH, hidden_width=48, heads=1, kv_heads=1, head=128, tokens=217204)
QWEN3_06B = AnimaText(layers=1, width=1024, hidden_width=48, heads=1, kv_heads=1, head=128, tokens=151936)
"""Its width says what it is."""
HIDREAM = HiDream(128, doubles=1, singles=1, text_width=TEXT_WIDTH, states_width=TEXT_WIDTH, pooled_width=128)
OMNIGEN2 = OmniGen2(width=48, heads=1, shared=1, layers=1, refiners=1, text_width=TEXT_WIDTH)
QWEN_VL_3B = OmniGen2Text(layers=1, width=TEXT_WIDTH, hidden_width=48, heads=2, kv_heads=2, head=128, tokens=151936)
"""Two heads of keys, by which it is told from the 7B."""
LLAMA = LlamaText(layers=2, width=TEXT_WIDTH, hidden_width=48, heads=1, kv_heads=1, head=128, tokens=128256)
UMT5 = UMT5Text(2, TEXT_WIDTH, 48, heads=2, head_width=16, buckets=32, vocabulary=8192)
T5GEMMA = T5GemmaText(1, stable_audio3_cases.TEXT, 48, heads=1, kv_heads=1, vocabulary=8192)
WAN = Wan(width=128, layers=1, inside=48, text_width=TEXT_WIDTH)
WAN_I2V = replace(WAN, fed=36)
WAN_SEEING = replace(WAN_I2V, image_width=VIT_H.width)
WAN_FIRST_LAST = replace(WAN_SEEING, places=2 * (VIT_H.side**2 + 1))
WAN_FUN_CONTROL = replace(WAN_SEEING, fed=48)
WAN_22_FUN_CONTROL = replace(WAN, fed=52, reference_channels=16)
WAN_VACE = replace(WAN, vace=1, vace_channels=96)
WAN_CAMERA = replace(WAN_I2V, camera=24)
WAN_SCAIL = WanScail(width=128, layers=1, inside=48, text_width=TEXT_WIDTH, fed=20, image_width=VIT_H.width)
WAN_ANIMATE2 = WanAnimate2(width=128, layers=1, inside=48, text_width=TEXT_WIDTH, fed=36, image_width=VIT_H.width)
WAN_22_5B = Wan22(width=128, layers=1, inside=48, text_width=TEXT_WIDTH, fed=48)
WAN_22_5B_CONTROL = replace(WAN_22_5B, fed=148, reference_channels=48)
LLAVA = replace(LLAMA, tokens=128320)
POOLED = weights({"vector_in.in_layer.weight": (256, CLIP_L.width)})
"""The layer of HunyuanVideo that reads a pooled text, as wide as that is here."""
KANDINSKY5 = Kandinsky5(64, 64, 48, blocks=1, refiners=1, fed=33, text_width=TEXT_WIDTH, pooled_width=64, time_width=32)
KANDINSKY5_IMAGE = Kandinsky5Image(64, 64, 48, 1, 1, fed=16, text_width=TEXT_WIDTH, pooled_width=64, time_width=32)
BOOGU = Boogu(width=48, heads=1, shared=1, layers=1, refiners=1, text_width=TEXT_WIDTH, doubles=1)
PARITY_WIDTH = dit_cases.TEXT_WIDTH
"""Of the texts of networks that are those of the parity tests: files have layers joined that the network has apart."""
PARITY_T5 = replace(T5, width=PARITY_WIDTH)
BYT5 = ByT5Text(1, 1472, 48, heads=6, head_width=64, buckets=32, vocabulary=384)
GEMMA = Gemma2Text(2, PARITY_WIDTH, 48, 2, 1, 256, 256000)
PILE_T5 = PileT5Text(2, PARITY_WIDTH, 48, heads=2, head_width=16, buckets=32, vocabulary=32128)
SMALL_DECODER = Flux2Vae(replace(KL, channels=(64,) * 4), decoder_channels=KL.channels)

Tensors = Mapping[str, Tensor]


def whole(backbone: BackboneFamily, vae: VaeFamily, **texts: TextFamily) -> Tensors:
    """Return a checkpoint of all parts."""
    parts = {"model.diffusion_model.": network(backbone), "first_stage_model.": network(vae)}
    parts |= {f"text_encoders.{name}.transformer.": text_tensors(text) for name, text in texts.items()}
    return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}


GEMMA3 = Gemma3Text(7, 32, 48, 2, 1, 256, 256000)
PROJECTED = {
    "ltx2": {f"{PREFIX}aggregate_embed.weight": ltx_cases.TEXTS["ltx2"]},
    "ltx23": {f"{PREFIX}video_aggregate_embed.weight": 48, f"{PREFIX}audio_aggregate_embed.weight": 32},
}
"""The layers that make a text of the states, and how wide each stream's is."""


def of_parity(name: str) -> Tensors:
    """Return a network that the parity tests compare with ComfyUI's."""
    return weights(json.loads((GOLDEN / "dit_keys.json").read_text())[name])


PIXEL_SPACE = "pixel_space"
"""An autoencoder that has no file."""
TEXTS = ("txt_", "caption_projection.linear_1.")
"""What the layers that read texts are called."""


def of_networks(name: str, text_width: int = TEXT_WIDTH) -> Tensors:
    """Return a network that `tests.parity.networks` compares with ComfyUI's, for texts as wide as these here."""
    shapes = json.loads((GOLDEN / "networks_keys.json").read_text())[name]
    return weights(
        {
            name: tuple(text_width if name.startswith(TEXTS) and size == PARITY_WIDTH else size for size in shape)
            for name, shape in shapes.items()
        }
    )


FILES: Mapping[str, Callable[[], Tensors]] = {
    r"checkpoints/flux1-schnell.*": lambda: whole(SCHNELL, VAE, clip_l=CLIP_L, t5xxl=T5),
    r"checkpoints/flux1-dev.*": lambda: whole(FLUX, VAE, clip_l=CLIP_L, t5xxl=T5),
    r"checkpoints/sd3.5.*": lambda: sd3_checkpoint(),
    r"checkpoints/sdpose.*": lambda: sdpose_checkpoint(),
    r"diffusion_models/rt_detr.*": lambda: found("rt_detr"),
    r"checkpoints/svd.*": lambda: svd_checkpoint(),
    r"checkpoints/sd_xl_refiner.*": lambda: whole(REFINER, SDXL_VAE, clip_g=CLIP_G),
    r"checkpoints/unclip.*": lambda: unclip_checkpoint(),
    r"checkpoints/sd_xl.*": lambda: whole(SDXL, SDXL_VAE, clip_l=CLIP_L, clip_g=CLIP_G),
    r"clip_vision/clip_vision_g.*": lambda: single_file(VIT_G),
    r"clip_vision/clip_vision_l.*": lambda: single_file(VIT_L),
    r"clip_vision/clip_vision_h.*": lambda: single_file(VIT_H),
    r"clip_vision/sigclip.*": lambda: single_file(SIGLIP),
    r"style_models/flux1-redux.*": lambda: single_file(REDUX),
    r"style_models/t2iadapter_style.*": lambda: single_file(STYLE_ADAPTER),
    r"controlnet/Qwen-Image-InstantX-ControlNet-Inpainting.*": lambda: network(QwenControlFamily(QWEN_IMAGE, True)),
    r"controlnet/Qwen-Image-2512-Fun.*": lambda: network(QwenFunControlFamily(QWEN_IMAGE.width, 1, 1)),
    r"model_patches/Z-Image-Turbo-Fun-Controlnet-Union.*": lambda: network(ZImageControl(Z_IMAGE.width, 3, 1, 1)),
    r"model_patches/qwen_image_canny_diffsynth.*": lambda: single_file(QwenDiffSynth(QWEN_IMAGE.width, 1)),
    r"model_patches/uso-flux1.*": lambda: single_file(Uso(FLUX.width, (SIGLIP.width, SIGLIP.side**2), 4)),
    r"controlnet/sd3.5_large.*": lambda: weights(dict(sd3_large(SD3.width, SD3.pooled_width))),
    **{
        rf"diffusion_models/{name}\..*": partial(of_parity, name)
        for name in ("auraflow", "chroma", "lumina2", "pixart", "pixart_alpha")
    },
    r"diffusion_models/chroma-radiance.*": lambda: of_networks("chroma_radiance_conv"),
    r"diffusion_models/ovis_image.*": lambda: of_networks("ovis_image", WIDTH_OVIS),
    r"diffusion_models/longcat_image.*": lambda: of_networks("longcat_image"),
    r"diffusion_models/mage_flow.*": lambda: of_networks("mage_flow"),
    r"diffusion_models/lotus.*": lambda: network(LOTUS),
    r"diffusion_models/hunyuanvideo1\.5.*": lambda: of_networks("hunyuan_video15"),
    r"diffusion_models/hunyuan_video_t2v.*": lambda: {**of_networks("hunyuan_video"), **POOLED},
    r"diffusion_models/kandinsky5lite_t2i.*": lambda: network(KANDINSKY5_IMAGE),
    r"diffusion_models/kandinsky5.*": lambda: network(KANDINSKY5),
    r"diffusion_models/boogu.*": lambda: single_file(BOOGU),
    r"diffusion_models/z_image.*": lambda: network(Z_IMAGE),
    r"diffusion_models/flux1-schnell.*": lambda: network(SCHNELL),
    r"diffusion_models/flux1-fill.*": lambda: network(FILL),
    r"diffusion_models/flux1-(canny|depth).*": lambda: network(DEPTH),
    r"diffusion_models/flux1.*": lambda: network(FLUX),
    r"diffusion_models/flux2_dev.*": lambda: network(FLUX2),
    r"diffusion_models/flux-2-klein.*": lambda: network(KLEIN),
    r"diffusion_models/flux3-image-klein-base.*": lambda: network(FLUX3),
    r"diffusion_models/flux3-image-klein.*": lambda: network(replace(FLUX3, flow_map=True)),
    r"diffusion_models/ernie-image.*": lambda: network(ERNIE_IMAGE),
    r"diffusion_models/ideogram4.*": lambda: network(IDEOGRAM4),
    r"diffusion_models/wan2\.2_fun_camera.*": lambda: single_file(WAN_CAMERA),
    r"diffusion_models/fast.*h3.*": lambda: fast_h3(),
    r"diffusion_models/qwen_image_2\.1.*": lambda: file_of(QWEN_IMAGE_21, drawn(QWEN_IMAGE_21)),
    r"diffusion_models/anima.*": lambda: single_file(ANIMA),
    r"diffusion_models/hidream_i1.*": lambda: network(HIDREAM),
    r"diffusion_models/omnigen2.*": lambda: network(OMNIGEN2),
    r"diffusion_models/krea2.*": lambda: network(KREA2),
    r"diffusion_models/qwen_image_layered.*": lambda: network(QWEN_LAYERED),
    r"diffusion_models/qwen_image_edit_2511.*": lambda: network(QWEN_2511),
    r"diffusion_models/qwen_image.*": lambda: network(QWEN_IMAGE),
    r"diffusion_models/wan2\.1_t2v.*": lambda: single_file(WAN),
    r"diffusion_models/wan2\.1_i2v.*": lambda: single_file(WAN_SEEING),
    r"diffusion_models/wan2\.1_flf2v.*": lambda: single_file(WAN_FIRST_LAST),
    r"diffusion_models/wan2\.1_fun_inp.*": lambda: single_file(WAN_SEEING),
    r"diffusion_models/wan2\.1_fun_control.*": lambda: single_file(WAN_FUN_CONTROL),
    r"diffusion_models/wan2\.1_14B_SCAIL_2.*": lambda: single_file(WAN_SCAIL),
    r"diffusion_models/wan_animate_2.*": lambda: single_file(WAN_ANIMATE2),
    r"diffusion_models/wan2\.1_vace.*": lambda: single_file(WAN_VACE),
    r"diffusion_models/causal_forcing.*": lambda: single_file(WAN),
    r"diffusion_models/wan2\.2_t2v.*": lambda: single_file(WAN),
    r"diffusion_models/wan2\.2_(i2v|fun_inpaint)_.*_14B.*": lambda: single_file(WAN_I2V),
    r"diffusion_models/wan2\.2_fun_control_.*_14B.*": lambda: single_file(WAN_22_FUN_CONTROL),
    r"diffusion_models/wan2\.2_ti2v_5B.*": lambda: single_file(WAN_22_5B),
    r"diffusion_models/wan2\.2_fun_inpaint_5B.*": lambda: single_file(replace(WAN_22_5B, fed=100)),
    r"diffusion_models/wan2\.2_fun_control_5B.*": lambda: single_file(WAN_22_5B_CONTROL),
    r"diffusion_models/minimax_h3.*": lambda: minimax_h3_cases.file("pruned"),
    r"diffusion_models/seedvr2_(3b|7b).*": lambda: seedvr2("3b"),
    r"model_patches/minimax_h3_fun.*": lambda: minimax_h3_control_cases.file("pruned"),
    r"loras/minimax_h3.*": lambda: lora("diffusion_model.blocks.0.attn.qkv_proj", 768, 64),
    r"loras/([Ww]an_?2|wan_alpha|lightx2v).*": lambda: few_steps(WAN.width, WAN.inside),
    r"loras/Qwen-Image.*": lambda: lora("transformer_blocks.0.attn.to_q", 32, 32),
    r"loras/uso-flux1.*": lambda: lora("diffusion_model.double_blocks.0.img_attn.qkv", 96, 32),
    r"loras/anima.*": lambda: lora("diffusion_model.blocks.0.self_attn.q_proj", 64, 64),
    r"loras/krea2.*": lambda: lora("diffusion_model.blocks.0.attn.wq", 32, 32),
    r"loras/Flux_?2.*": lambda: lora("diffusion_model.double_blocks.0.img_attn.qkv", 48, 16),
    r"text_encoders/gemma_2.*": lambda: text_tensors(GEMMA),
    r"text_encoders/pile_t5.*": lambda: {**text_tensors(PILE_T5), "spiece_model": bytes_of(llama2_pieces())},
    r"text_encoders/t5xxl_48.*": lambda: text_tensors(PARITY_T5),
    r"text_encoders/byt5.*": lambda: text_tensors(BYT5),
    r"text_encoders/qwen_3_06b.*": lambda: many_tokens(QWEN3_06B),
    r"text_encoders/llava_llama3.*": lambda: text_tensors(LLAVA),
    r"text_encoders/llama_3.1.*": lambda: text_tensors(LLAMA),
    r"text_encoders/clip_g.*": lambda: text_tensors(CLIP_G),
    r"text_encoders/qwen_3_[48]b.*": lambda: text_tensors(QWEN3),
    r"text_encoders/qwen3\.5.*": lambda: text_tensors(SEEING_QWEN35),
    r"text_encoders/qwen3vl_32b_minimax_h3.*": lambda: minimax_h3_cases.file("text"),
    r"text_encoders/qwen3vl_8b.*": lambda: text_tensors(QWEN3_VL_8B),
    r"text_encoders/qwen3vl_4b.*": lambda: text_tensors(QWEN3_VL),
    r"text_encoders/qwen_2.5_vl_fp16.*": lambda: text_tensors(QWEN_VL_3B),
    r"text_encoders/qwen_2.5_vl_7b.*": lambda: text_tensors(QWEN_VL),
    r"text_encoders/ministral.*": lambda: many_tokens(MINISTRAL),
    r"text_encoders/ovis.*": lambda: many_tokens(OVIS_TEXT),
    r"text_encoders/mistral_3.*": lambda: text_tensors(MISTRAL),
    r"checkpoints/stable_audio_3.*": lambda: stable_audio3(),
    r"diffusion_models/minimax_music3.*": lambda: minimax_music3("net"),
    r"text_encoders/minimax_music3.*": lambda: minimax_music3("text"),
    r"vae/minimax_music3.*": lambda: minimax_music3("vae"),
    r"checkpoints/yue2.*": lambda: yue2_cases.file(json.loads((GOLDEN / "yue2_keys.json").read_text())),
    r"checkpoints/ace_step_1\.5.*": lambda: ace_step("aio"),
    r"diffusion_models/acestep_v1\.5.*": lambda: ace_step("net"),
    r"vae/ace_1\.5_vae.*": lambda: ace_step("ace"),
    r"text_encoders/qwen_0\.6b_ace15.*": lambda: many_tokens(ACE_READER),
    r"text_encoders/qwen_(1\.7|4)b_ace15.*": lambda: many_tokens(ACE_WRITER),
    r"checkpoints/sam3\.1.*": lambda: sam3_cases.checkpoint(json.loads((GOLDEN / "sam3_keys.json").read_text())["net"]),
    r"checkpoints/ltx-video-2b-v0\.9\.5.*": lambda: ltx_video("ltx_video_timed vae"),
    r"checkpoints/ltx-video.*": lambda: ltx_video("ltx_video vae"),
    r"text_encoders/t5gemma.*": lambda: {**single_file(T5GEMMA), "spiece_model": bytes_of(llama2_pieces())},
    r"text_encoders/qwen3.5_2b.*": lambda: {"unread": torch.zeros(1)},
    r"checkpoints/ltx-2\.3.*": lambda: ltx_checkpoint("ltx23"),
    r"checkpoints/ltx-2-19b.*": lambda: ltx_checkpoint("ltx2"),
    r"diffusion_models/ltx-2\.5.*": lambda: ltx_workflows.part("ltx25"),
    r"vae/ltx-2\.5-video-vae.*": lambda: ltx_workflows.part("vae 2.5"),
    r"vae/ltx-2\.5-audio-vae.*": lambda: ltx_workflows.part("ltx23 sounds"),
    r"text_encoders/gemma4-12b.*": lambda: gemma4("12B", PROJECTED["ltx23"]),
    r"text_encoders/gemma4_e2b.*": lambda: gemma4("E2B"),
    r"latent_upscale_models/ltx-2.*": lambda: ltx_workflows.upscaler()[0],
    r"geometry_estimation/depth_anything_3_mono.*": lambda: seeing("da3 mono"),
    r"geometry_estimation/moge_2.*": lambda: seeing("moge 2"),
    r"background_removal/birefnet.*": lambda: seeing("birefnet"),
    r"frame_interpolation/film_net.*": lambda: seeing("film"),
    r"frame_interpolation/rife.*": lambda: seeing("rife"),
    r"loras/ltx.*": lambda: lora("diffusion_model.transformer_blocks.0.attn1.to_q", 48, 48),
    r"loras/gemma-3.*": lambda: lora("text_encoders.gemma3_12b.transformer.model.layers.0.self_attn.q_proj", 512, 32),
    r"text_encoders/gemma_3_12B.*": lambda: text_tensors(GEMMA3),
    r"text_encoders/umt5_xxl.*": lambda: {**text_tensors(UMT5), "spiece_model": bytes_of(llama2_pieces())},
    r"text_encoders/clip_l.*": lambda: text_tensors(CLIP_L),
    r"text_encoders/t5xxl.*": lambda: text_tensors(T5),
    r"vae/qwen_image_2\.1_vae.*": lambda: file_of(QWEN_21_VAE, drawn(QWEN_21_VAE)),
    r"vae/mage_flow_vae.*": lambda: of_networks("mage_flow vae"),
    r"vae/hunyuanvideo15_vae.*": lambda: of_networks("hunyuan_video15 vae"),
    r"vae/(sdxl|vae-ft-mse).*": lambda: network(SDXL_VAE),
    r"vae/hunyuan_video_vae.*": lambda: of_networks("hunyuan_video vae"),
    r"vae/seedvr2.*": lambda: seedvr2("vae"),
    r"vae/minimax_h3_video_vae.*": lambda: minimax_h3_cases.file("vae"),
    r"vae/minimax_h3_audio_vae.*": lambda: minimax_h3_cases.file("audio_vae"),
    r"vae/ae\..*": lambda: network(VAE),
    r"vae/qwen_image_vae.*": lambda: single_file(WAN_VAE),
    r"vae/qwen_image_layered_vae.*": lambda: single_file(replace(WAN_VAE, image_channels=4)),
    r"vae/(wan_(alpha_)?2\.1_vae|Wan2_1_VAE).*": lambda: single_file(WAN_VAE),
    r"vae/wan2\.2_vae.*": lambda: single_file(WAN_22_VAE),
    r"vae/flux2-vae.*": lambda: network(FLUX2_VAE),
    r"vae/full_encoder_small_decoder.*": lambda: network(SMALL_DECODER),
}
"""What a file holds, by its folder and name; the first that fits."""
METADATA: Mapping[str, Callable[[], dict[str, str]]] = {
    r"checkpoints/ltx-2\.3.*": lambda: ltx_cases.metadata("ltx23"),
    r"checkpoints/ltx-2-19b.*": lambda: ltx_cases.metadata("ltx2"),
    r"(diffusion_models|vae)/ltx-2\.5.*": lambda: ltx_cases.metadata("ltx25"),
    r"latent_upscale_models/ltx-2.*": lambda: ltx_workflows.upscaler()[1],
    r"diffusion_models/wan_animate_2.*": lambda: wan_cases.METADATA["animate2"],
    r"diffusion_models/causal_forcing.*": lambda: wan_cases.METADATA["causal"],
    r"loras/ltx.*-ic-lora.*": lambda: {"reference_downscale_factor": "2"},
}
"""What a file's metadata says, where its authors write any."""


def ltx_checkpoint(net: str) -> Tensors:
    """Return a checkpoint of an edition of LTX-2, with the projection of its text encoder's states."""
    states = GEMMA3.width * (GEMMA3.layers + 1)
    return {
        **ltx_workflows.tensors(net),
        **{name: drawn_by_name(name, (width, states)) for name, width in PROJECTED[net].items()},
    }


def gemma4(name: str, projected: Mapping[str, int] | None = None) -> Tensors:
    """Return a Gemma 4 of the parity tests. projected: how wide its projections' texts are, by their names."""
    shapes = json.loads((GOLDEN / "gemma4_keys.json").read_text())[name]
    for layer, width in (projected or {}).items():
        shapes[layer][0] = shapes[f"{layer.removesuffix('weight')}bias"][0] = width
    return {**weights(shapes), "tokenizer_json": gemma4_cases.tokenizer_tensor()}


def stable_audio3() -> Tensors:
    """Return a checkpoint of Stable Audio 3 as published: with its autoencoder and what embeds lengths."""
    keys = json.loads((GOLDEN / "stable_audio3_keys.json").read_text())
    prefixes = {"net": "model.model.", "vae": "pretransform.model.", "conditioners": "conditioner.conditioners."}
    return {
        prefix + name: tensor
        for part, prefix in prefixes.items()
        for name, tensor in stable_audio3_cases.weights(keys[part]).items()
    }


def many_tokens(family: DecoderText | T5Text) -> Tensors:
    """Return an encoder in half precision, whose tokens have a thousand vectors in turn: to draw all takes long."""
    if isinstance(family, T5Text):
        table, tokens, few = "shared.weight", family.vocabulary, text_tensors(replace(family, vocabulary=1000))
    else:
        table, tokens, few = "model.embed_tokens.weight", family.tokens, text_tensors(replace(family, tokens=1000))
    # A tokeniser in the file is bytes.
    halves = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in few.items()}
    return halves | {table: halves[table][torch.arange(tokens) % len(halves[table])]}


def sd3_checkpoint() -> Tensors:
    """Return a checkpoint of SD 3.5, whose T5 is as wide as the texts that its network reads."""
    wide = {f"text_encoders.t5xxl.transformer.{name}": t for name, t in many_tokens(replace(T5, width=WIDE)).items()}
    return {**whole(SD3, VAE, clip_l=CLIP_L, clip_g=CLIP_G), **wide}


def ace_step(part: str) -> Tensors:
    """Return a part of ACE-Step 1.5 of the parity tests, for texts of 1,024 numbers; or all parts."""
    if part == "aio":
        parts = {"model.diffusion_model.": ace_step("net"), "vae.": ace_step("ace")}
        texts = {"qwen3_06b": ACE_READER, "qwen3_2b": ACE_WRITER}
        parts |= {f"text_encoders.{name}.transformer.": many_tokens(one) for name, one in texts.items()}
        return {prefix + name: tensor for prefix, of_one in parts.items() for name, tensor in of_one.items()}
    shapes = json.loads((GOLDEN / "ace_step_keys.json").read_text())[part]
    for name in ("encoder.text_projector.weight", "encoder.lyric_encoder.embed_tokens.weight"):
        if name in shapes:
            shapes[name][1] = ACE_READER.width
    return ace_step_cases.weights(shapes)


def minimax_music3(part: str) -> Tensors:
    """Return a part of MiniMax Music 3 of the parity tests, the network for states as narrow as the others'."""
    shapes = json.loads((GOLDEN / "minimax_music_keys.json").read_text())[part]
    if part == "vae":
        return minimax_music_cases.vae_file(shapes)
    if part == "net":
        shapes["latent_conditioners.0.weight"][1] = minimax_music_cases.SIZES["hidden_size"]
    beside = {"tokenizer_json": minimax_music_cases.tokenizer_tensor()} if part == "text" else {}
    return {**minimax_music_cases.weights(shapes), **beside}


def ltx_video(vae: str) -> Tensors:
    """Return a checkpoint of LTX-Video. vae: what `tests.parity.networks` calls its autoencoder."""
    parts = {"model.diffusion_model.": of_networks("ltx_video"), "vae.": of_networks(vae)}
    return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}


def seedvr2(name: str) -> Tensors:
    """Return a network of SeedVR2 that the parity tests compare with ComfyUI's, or its autoencoder."""
    return weights(json.loads((GOLDEN / "seedvr2_keys.json").read_text())[name])


def seeing(name: str) -> Tensors:
    """Return a network that looks at pictures, which the parity tests compare with ComfyUI's."""
    return seeing_cases.positive(seeing_cases.weights(json.loads((GOLDEN / "seeing_keys.json").read_text())[name]))


def found(name: str) -> Tensors:
    """Return a network that finds something in pictures, which the parity tests compare with ComfyUI's."""
    return seeing_cases.positive(seeing_cases.weights(json.loads((GOLDEN / "found_keys.json").read_text())[name]))


def sdpose_checkpoint() -> Tensors:
    """Return a checkpoint of SDPose with its autoencoder."""
    parts = {"model.diffusion_model.": found("sdpose"), "first_stage_model.": network(SDXL_VAE)}
    return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}


def svd_checkpoint() -> Tensors:
    """Return a checkpoint of Stable Video Diffusion with its image encoder."""
    parts = {
        "model.diffusion_model.": single_file(SVD),
        "first_stage_model.": single_file(SVD_VAE),
        "conditioner.embedders.0.open_clip.model.visual.": single_file(VIT_H),
    }
    return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}


def unclip_checkpoint() -> Tensors:
    """Return a checkpoint of SD 2.1 unCLIP with its image encoder."""
    seen = vision_cases.open_clip(dict(single_file(VIT_L)), "embedder.model.visual.")
    return {**whole(UNCLIP, SDXL_VAE), **families.open_clip("cond_stage_model.model."), **seen}


def fast_h3() -> Tensors:
    """Return a network of FastH3: MiniMax H3's with a gate in each block."""
    gate = "blocks.{}.attn.to_gate_compress.weight"
    gates = {gate.format(number): drawn_by_name(gate.format(number), (256, 64)) for number in range(2)}
    return minimax_h3_cases.file("pruned") | gates


def drawn_by_name(name: str, shape: tuple[int, ...]) -> Tensor:
    return weights({name: shape})[name]


def network(family: Family | SideFamily) -> Tensors:
    """Return a network's tensors under the names that diffusers gives them, which files may have too."""
    torch.manual_seed(1)
    return {name: tensor.contiguous() for name, tensor in family.build().state_dict().items()}


def single_file(family: Family | SideFamily) -> Tensors:
    """Return a network's tensors under the names of the published file, where none has others."""
    names = reverse(family.table())
    return {str(translate(name, names)): tensor for name, tensor in network(family).items()}


def letters() -> str:
    """Return a tokeniser in the library's format that knows bytes and no words."""
    tokenizer = Tokenizer(BPE(vocab={letter: byte for byte, letter in byte_letters().items()}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    text: str = tokenizer.to_str()
    return text


def lora(layer: str, outputs: int, inputs: int) -> Tensors:
    """Return a LoRA of one layer."""
    torch.manual_seed(2)
    return {f"{layer}.lora_B.weight": torch.randn(outputs, 2), f"{layer}.lora_A.weight": torch.randn(2, inputs)}


def write_inputs(folder: Path, prompt: Mapping[str, Any], specs: Mapping[str, NodeSpec]) -> None:
    """Write every image and video that a prompt reads: pictures with a transparent square, which is their mask."""
    picture = Image.effect_mandelbrot((256, 256), (-3, -2.5, 2, 2.5), 60).convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 255))
    picture.paste((0, 0, 0, 0), (64, 64, 160, 160))
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name in named(prompt, specs, {"input"}):
        assert kind == "input"
        if name.endswith(".mp4"):
            (folder / name).write_bytes(video())
        elif name.endswith(".mp3"):
            tone = torch.sin(torch.arange(2 * 16000) * 0.1).expand(2, -1)
            (folder / name).write_bytes(encode(tone, 16000, "mp3", "128k", {}))
        else:
            picture.save(folder / name, "PNG")


def video() -> bytes:
    """Return a file of more images than any template here makes, 64×64 and moving."""
    images = torch.rand(20, 8, 8, 3, generator=torch.Generator().manual_seed(3))
    images = images.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    return VideoFromComponents(VideoComponents(images, Fraction(16), None), 8).encoded(Style("mp4", "h264"))


def write(models: Path, prompt: Mapping[str, Any], specs: Mapping[str, NodeSpec]) -> None:
    """Write every model file that a prompt names. Errors: LookupError for one of which nothing is known here."""
    for folder, name in named(prompt, specs, FOLDERS):
        path = models / FOLDERS[folder][0] / name
        if path.exists():
            continue
        if name == PIXEL_SPACE:
            continue
        make = next((make for pattern, make in FILES.items() if re.fullmatch(pattern, f"{folder}/{name}")), None)
        if make is None:
            raise LookupError(f"no tiny file is known for {folder}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        said = next((of for pattern, of in METADATA.items() if re.fullmatch(pattern, f"{folder}/{name}")), None)
        save_file(dict(make()), path, None if said is None else said())
        if name.startswith(("llama", "llava")):
            (path.parent / "llama3.tokenizer.json").write_text(letters())


def named(
    prompt: Mapping[str, Any], specs: Mapping[str, NodeSpec], folders: Container[str]
) -> Iterator[tuple[str, str]]:
    """Yield folder and name of every file of some folders that a prompt names."""
    for node in prompt.values():
        for declared in specs[node["class_type"]].inputs:
            if (
                declared.folder is not None
                and declared.folder in folders
                and isinstance(name := node["inputs"].get(declared.name), str)
            ):
                yield declared.folder, name
