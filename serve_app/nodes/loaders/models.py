"""The nodes that name model files. They make recipes, not weights, so they run anywhere and cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, File
from serve_app.nodes.sockets import CLIP, MODEL, VAE
from serve_app.recipe.recipe import ENCODER_TYPE, Recipe, encoders, tiny_vae, tiny_video_vae
from serve_app.recipe.text import ClipSkip, ProjectedBy
from serve_app.recipe.training import Discrete
from serve_app.recipe.weights import EightBit, Rounded
from serve_app.store.models.catalog import TINY_VAES, is_tiny_video_vae

_CONFIGS: Mapping[str, Discrete | ClipSkip | None] = {
    "anything_v3.yaml": ClipSkip(-2),
    "v1-inference.yaml": None,
    "v1-inference_clip_skip_2.yaml": ClipSkip(-2),
    "v1-inference_clip_skip_2_fp16.yaml": ClipSkip(-2),
    "v1-inference_fp16.yaml": None,
    "v1-inpainting-inference.yaml": None,
    "v2-inference-v.yaml": Discrete("v_prediction"),
    "v2-inference-v_fp32.yaml": Discrete("v_prediction"),
    "v2-inference.yaml": None,
    "v2-inference_fp32.yaml": None,
    "v2-inpainting-inference.yaml": None,
}
"""ComfyUI's configurations, and what each of them changes."""

EIGHT_BIT: Mapping[str, EightBit] = {
    "fp8_e4m3fn": "float8_e4m3fn",
    "fp8_e4m3fn_fast": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
"""The formats that UNETLoader rounds to. The fast one differs on some GPUs alone, in how it multiplies."""

TYPES = (
    ENCODER_TYPE,
    "stable_cascade",
    "sd3",
    "stable_audio",
    "mochi",
    "ltxv",
    "pixart",
    "cosmos",
    "lumina2",
    "wan",
    "hidream",
    "chroma",
    "ace",
    "omnigen2",
    "qwen_image",
    "hunyuan_image",
    "flux2",
    "ovis",
    "longcat_image",
    "cogvideox",
    "lens",
    "pixeldit",
    "ideogram4",
    "boogu",
    "krea2",
    "joyimage",
    "mage",
    "minimax",
    "flux3",
)
DUAL_TYPES = (
    "sdxl",
    "sd3",
    "flux",
    "hunyuan_video",
    "hidream",
    "hunyuan_image",
    "hunyuan_video_15",
    "kandinsky5",
    "kandinsky5_image",
    "ltxv",
    "newbie",
    "ace",
)

CheckpointFile: TypeAlias = Annotated[str, File("checkpoints")]
EncoderFile: TypeAlias = Annotated[str, File("text_encoders")]
Device: TypeAlias = Annotated[str, Choice(["default", "cpu"], advanced=True)]


@node(
    "CheckpointLoaderSimple",
    "Load Checkpoint",
    category="model/loaders",
    function="load_checkpoint",
    description="Names a checkpoint: the diffusion model, text encoder and VAE in one file.",
)
def checkpoint_loader_simple(ckpt_name: CheckpointFile) -> tuple[MODEL, CLIP, VAE]:
    """One file with a backbone, a text encoder and a VAE."""
    return (
        Recipe("backbone", "checkpoints", ckpt_name),
        Recipe("clip", "checkpoints", ckpt_name),
        Recipe("vae", "checkpoints", ckpt_name),
    )


@node(
    "CheckpointLoader",
    "Load Checkpoint With Config (DEPRECATED)",
    category="model/loaders",
    function="load_checkpoint",
    deprecated=True,
)
def checkpoint_loader(
    config_name: Annotated[str, Choice(_CONFIGS)], ckpt_name: CheckpointFile
) -> tuple[MODEL, CLIP, VAE]:
    """A checkpoint with one of the configurations published for SD 1 and 2.

    The file is read for what it is; the configuration can change the prediction and the text encoder's layer.

    Return the recipes of the checkpoint's three parts.
    """
    backbone, clip, vae = checkpoint_loader_simple(ckpt_name)
    match _CONFIGS[config_name]:
        case Discrete() as training:
            backbone = backbone.with_patch(training)
        case ClipSkip() as skip:
            clip = clip.with_patch(skip)
    return backbone, clip, vae


@node(
    "DiffusersLoader",
    "Load Diffusers Model (DEPRECATED)",
    category="model/loaders",
    function="load_checkpoint",
    deprecated=True,
)
def diffusers_loader(model_path: Annotated[str, File("diffusers")]) -> tuple[MODEL, CLIP, VAE]:
    """A folder in the layout of the diffusers library, with a file for each part."""
    return (
        Recipe("backbone", "diffusers", model_path),
        Recipe("clip", "diffusers", model_path),
        Recipe("vae", "diffusers", model_path),
    )


@node("UNETLoader", "Load Diffusion Model", category="model/loaders", function="load_unet")
def unet_loader(
    unet_name: Annotated[str, File("diffusion_models")], weight_dtype: Annotated[str, Choice(["default", *EIGHT_BIT])]
) -> MODEL:
    """A diffusion model in a file of its own.

    Return the diffusion model's recipe. An eight-bit format rounds its weights.
    """
    recipe = Recipe("backbone", "diffusion_models", unet_name)
    return recipe if weight_dtype == "default" else recipe.with_patch(Rounded(EIGHT_BIT[weight_dtype]))


@node(
    "CLIPLoader",
    "Load CLIP",
    category="model/loaders",
    function="load_clip",
    description=(
        "Names a text encoder: clip-l for SD 1, clip-h for SD 2, clip-g for the SDXL refiner, or that of "
        "a family of transformers: the file says which network it is, the type how texts are read."
    ),
    required=("type",),
)
def clip_loader(
    clip_name: EncoderFile, type: Annotated[str, Choice(TYPES)] = "stable_diffusion", device: Device = "default"
) -> CLIP:
    """A text encoder in a file of its own."""
    return encoders(type, clip_name)


@node(
    "DualCLIPLoader",
    "Load CLIP (Dual)",
    category="model/loaders",
    function="load_clip",
    description=(
        "Names two text encoders, in either order. sdxl: clip-l, clip-g; sd3: any two of clip-l, clip-g, "
        "t5; flux: clip-l, t5."
    ),
)
def dual_clip_loader(
    clip_name1: EncoderFile,
    clip_name2: EncoderFile,
    type: Annotated[str, Choice(DUAL_TYPES)],
    device: Device = "default",
) -> CLIP:
    """Two text encoders that go together, in files of their own. Return the two encoders' recipe."""
    return encoders(type, clip_name1, clip_name2)


@node(
    "TripleCLIPLoader",
    "Load CLIP (Triple)",
    category="model/loaders",
    function="load_clip",
    description="Recipes:\nsd3: clip-l, clip-g, t5",
)
def triple_clip_loader(clip_name1: EncoderFile, clip_name2: EncoderFile, clip_name3: EncoderFile) -> CLIP:
    """SD 3's three text encoders, in files of their own. Return the three encoders' recipe."""
    return encoders("sd3", clip_name1, clip_name2, clip_name3)


@node(
    "QuadrupleCLIPLoader",
    "Load CLIP (Quadruple)",
    category="model/loaders",
    function="load_clip",
    description="Recipes:\nhidream: long clip-l, long clip-g, t5xxl, llama_8b_3.1_instruct",
)
def quadruple_clip_loader(
    clip_name1: EncoderFile, clip_name2: EncoderFile, clip_name3: EncoderFile, clip_name4: EncoderFile
) -> CLIP:
    """HiDream's four text encoders, in files of their own. Return the four encoders' recipe."""
    return encoders("hidream", clip_name1, clip_name2, clip_name3, clip_name4)


@node("VAELoader", "Load VAE", category="model/loaders", function="load_vae")
def vae_loader(vae_name: Annotated[str, File("vae")]) -> VAE:
    """A VAE in a file of its own, a TAESD in its two files, a TAEHV in its one, or pixels as they are."""
    if vae_name in TINY_VAES:
        return tiny_vae(vae_name)
    if is_tiny_video_vae(vae_name):
        return tiny_video_vae(vae_name)
    return Recipe("vae", "vae", vae_name)


@node(
    "LTXAVTextEncoderLoader",
    "Load LTXV Audio Text Encoder",
    category="model/loaders",
    description="Recipes:\nltxav: gemma 3 12B or matching gemma 4 model",
)
def ltxav_text_encoder_loader(text_encoder: EncoderFile, ckpt_name: CheckpointFile, device: Device) -> CLIP:
    """Gemma 3, and the projection of its states, which a checkpoint of LTX-2 has. The server chooses the device."""
    return encoders("ltxv", text_encoder).with_patch(ProjectedBy(ckpt_name))
