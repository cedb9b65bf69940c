"""The nodes that name GGUF files, by the names and inputs of city96's ComfyUI-GGUF; they make recipes too."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, File
from serve_app.nodes.loaders.models import DUAL_TYPES, TYPES
from serve_app.nodes.sockets import CLIP, MODEL
from serve_app.recipe.recipe import Recipe, encoders

CATEGORY = "bootleg"
ENCODERS = "clip_gguf"
EncoderFile: TypeAlias = Annotated[str, File(ENCODERS)]
Dtype: TypeAlias = Annotated[str, Choice(["default", "target", "float32", "float16", "bfloat16"], default="default")]


@node("UnetLoaderGGUF", "Unet Loader (GGUF)", category=CATEGORY, function="load_unet")
def unet_loader_gguf(unet_name: Annotated[str, File("unet_gguf")]) -> MODEL:
    """A diffusion model in a GGUF file."""
    return Recipe("backbone", "unet_gguf", unet_name)


@node("UnetLoaderGGUFAdvanced", "Unet Loader (GGUF/Advanced)", category=CATEGORY, function="load_unet")
def unet_loader_gguf_advanced(
    unet_name: Annotated[str, File("unet_gguf")],
    dequant_dtype: Dtype,
    patch_dtype: Dtype,
    patch_on_device: Annotated[bool, Bool(False)],
) -> MODEL:
    """A diffusion model in a GGUF file. What else it is given is about memory and rounding, which are as configured."""
    return unet_loader_gguf(unet_name)


@node("CLIPLoaderGGUF", "CLIPLoader (GGUF)", category=CATEGORY, function="load_clip", required=("type",))
def clip_loader_gguf(clip_name: EncoderFile, type: Annotated[str, Choice(TYPES)] = TYPES[0]) -> CLIP:
    """A text encoder in a file of its own, GGUF or safetensors."""
    return encoders(type, clip_name, folder=ENCODERS)


@node("DualCLIPLoaderGGUF", "DualCLIPLoader (GGUF)", category=CATEGORY, function="load_clip")
def dual_clip_loader_gguf(
    clip_name1: EncoderFile, clip_name2: EncoderFile, type: Annotated[str, Choice(DUAL_TYPES)]
) -> CLIP:
    """Two text encoders that go together, each in a file of its own, GGUF or safetensors."""
    return encoders(type, clip_name1, clip_name2, folder=ENCODERS)


@node("TripleCLIPLoaderGGUF", "TripleCLIPLoader (GGUF)", category=CATEGORY, function="load_clip")
def triple_clip_loader_gguf(clip_name1: EncoderFile, clip_name2: EncoderFile, clip_name3: EncoderFile) -> CLIP:
    """SD 3's three text encoders, each in a file of its own, GGUF or safetensors."""
    return encoders("sd3", clip_name1, clip_name2, clip_name3, folder=ENCODERS)


@node("QuadrupleCLIPLoaderGGUF", "QuadrupleCLIPLoader (GGUF)", category=CATEGORY, function="load_clip")
def quadruple_clip_loader_gguf(
    clip_name1: EncoderFile, clip_name2: EncoderFile, clip_name3: EncoderFile, clip_name4: EncoderFile
) -> CLIP:
    """HiDream's four text encoders, each in a file of its own, GGUF or safetensors."""
    return encoders("hidream", clip_name1, clip_name2, clip_name3, clip_name4, folder=ENCODERS)
