"""ComfyUI's types as annotations, of a node's inputs without a widget and of its outputs, and the hidden inputs.

They are spelt as ComfyUI spells them: `image: IMAGE` is ("IMAGE", {}) in INPUT_TYPES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from torch import Tensor

from serve_app.execution.expansion import DynamicPrompt
from serve_app.execution.runtime import NodeStore, Runtime
from serve_app.nodes.inputs import InputType
from serve_app.nodes.video.value import Video
from serve_app.recipe.hooks import Hooks, Keyframe
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latent_operations import LatentOperation
from serve_app.values import Audio, ClipVisionOutput, Conditioning, Guider, Latent, Noise, SamplerChoice


@dataclass(frozen=True)
class Hidden:
    """In `Annotated`: a hidden input of this kind, which the server fills in."""

    kind: str

    def declared(self) -> str:
        """Return the entry of INPUT_TYPES."""
        return self.kind


DYNPROMPT: TypeAlias = Annotated[DynamicPrompt, Hidden("DYNPROMPT")]
EXTRA_PNGINFO: TypeAlias = Annotated[Any, Hidden("EXTRA_PNGINFO")]
PROMPT: TypeAlias = Annotated[Any, Hidden("PROMPT")]
RUNTIME: TypeAlias = Annotated[Runtime, Hidden("RUNTIME")]
STORE: TypeAlias = Annotated[NodeStore, Hidden("STORE")]
UNIQUE_ID: TypeAlias = Annotated[str, Hidden("UNIQUE_ID")]

ANY: TypeAlias = Annotated[Any, InputType("*")]
ARRAY: TypeAlias = Annotated[list[Any], InputType("ARRAY")]
AUDIO: TypeAlias = Annotated[Audio, InputType("AUDIO")]
BOOLEAN: TypeAlias = Annotated[bool, InputType("BOOLEAN")]
BOUNDING_BOX: TypeAlias = Annotated[Any, InputType("BOUNDING_BOX")]
CLIP: TypeAlias = Annotated[Recipe, InputType("CLIP")]
CLIP_VISION: TypeAlias = Annotated[Recipe, InputType("CLIP_VISION")]
CLIP_VISION_OUTPUT: TypeAlias = Annotated[ClipVisionOutput, InputType("CLIP_VISION_OUTPUT")]
COLOR: TypeAlias = Annotated[str, InputType("COLOR")]
CONDITIONING: TypeAlias = Annotated[Conditioning, InputType("CONDITIONING")]
CONTROL_NET: TypeAlias = Annotated[Recipe, InputType("CONTROL_NET")]
DICT: TypeAlias = Annotated[dict[str, Any], InputType("DICT")]
FLOAT: TypeAlias = Annotated[float, InputType("FLOAT")]
GLIGEN: TypeAlias = Annotated[Recipe, InputType("GLIGEN")]
GUIDER: TypeAlias = Annotated[Guider, InputType("GUIDER")]
HISTOGRAM: TypeAlias = Annotated[list[int], InputType("HISTOGRAM")]
HOOKS: TypeAlias = Annotated[Hooks, InputType("HOOKS")]
HOOK_KEYFRAMES: TypeAlias = Annotated[tuple[Keyframe, ...], InputType("HOOK_KEYFRAMES")]
IMAGE: TypeAlias = Annotated[Tensor, InputType("IMAGE")]
IC_LORA_PARAMETERS: TypeAlias = Annotated[dict[str, int], InputType("IC_LORA_PARAMETERS")]
INT: TypeAlias = Annotated[int, InputType("INT")]
LATENT: TypeAlias = Annotated[Latent, InputType("LATENT")]
JOINT_LATENT: TypeAlias = Annotated[Latent, InputType("LATENT", joint=True)]
"""LATENT for functions that also take one of several parts, a video with its sound for one."""
LATENT_OPERATION: TypeAlias = Annotated[LatentOperation, InputType("LATENT_OPERATION")]
LATENT_UPSCALE_MODEL: TypeAlias = Annotated[Recipe, InputType("LATENT_UPSCALE_MODEL")]
LAYERS: TypeAlias = Annotated[dict[str, Any], InputType("LAYERS")]
MASK: TypeAlias = Annotated[Tensor, InputType("MASK")]
MODEL: TypeAlias = Annotated[Recipe, InputType("MODEL")]
MODEL_PATCH: TypeAlias = Annotated[Recipe, InputType("MODEL_PATCH")]
NOISE: TypeAlias = Annotated[Noise, InputType("NOISE")]
SAMPLER: TypeAlias = Annotated[SamplerChoice, InputType("SAMPLER")]
SAM3_TRACK_DATA: TypeAlias = Annotated[dict[str, Any], InputType("SAM3_TRACK_DATA")]
"""What was followed through T images: "packed_masks" (T,N,h,w/8) uint8, bits of the masks of N things, None without
any; "n_frames": T; "scores": of each thing; "orig_size": (H,W) of the images.
"""
SIGMAS: TypeAlias = Annotated[Tensor, InputType("SIGMAS")]
STRING: TypeAlias = Annotated[str, InputType("STRING")]
STYLE_MODEL: TypeAlias = Annotated[Recipe, InputType("STYLE_MODEL")]
TIMESTEPS_RANGE: TypeAlias = Annotated[tuple[float, float], InputType("TIMESTEPS_RANGE")]
UPSCALE_MODEL: TypeAlias = Annotated[Recipe, InputType("UPSCALE_MODEL")]
VAE: TypeAlias = Annotated[Recipe, InputType("VAE")]
VIDEO: TypeAlias = Annotated[Video, InputType("VIDEO")]
