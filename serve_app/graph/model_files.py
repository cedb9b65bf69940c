"""Checks before acceptance that model files have the parts that their loaders need.

Only for nodes that certainly run: a lazy input's source may never run. Knows no files: `refusal` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from serve_app.errors import Problem
from serve_app.graph.graph import Graph
from serve_app.graph.spec import NodeSpec
from serve_app.graph.validate import Validated, with_findings

Refusal = Callable[[str, str, str], "str | None"]
"""From a part ("backbone", "clip", …), a folder and a file's name to why the file cannot be that part."""

_CLIP, _CLIP_GGUF = (
    {f"clip_name{suffix}": ("clip", folder) for suffix in ("", "1", "2", "3", "4")}
    for folder in ("text_encoders", "clip_gguf")
)
LOADERS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "CheckpointLoaderSimple": {"ckpt_name": ("backbone", "checkpoints")},
    "CheckpointLoader": {"ckpt_name": ("backbone", "checkpoints")},
    "CreateHookModelAsLora": {"ckpt_name": ("backbone", "checkpoints")},
    "CreateHookModelAsLoraModelOnly": {"ckpt_name": ("backbone", "checkpoints")},
    "UNETLoader": {"unet_name": ("backbone", "diffusion_models")},
    **dict.fromkeys(("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "QuadrupleCLIPLoader"), _CLIP),
    "UnetLoaderGGUF": {"unet_name": ("backbone", "unet_gguf")},
    "UnetLoaderGGUFAdvanced": {"unet_name": ("backbone", "unet_gguf")},
    "DiffusionModelLoaderKJ": {"model_name": ("backbone", "diffusion_models")},
    "GGUFLoaderKJ": {"model_name": ("backbone", "unet_gguf")},
    **dict.fromkeys(
        ("CLIPLoaderGGUF", "DualCLIPLoaderGGUF", "TripleCLIPLoaderGGUF", "QuadrupleCLIPLoaderGGUF"), _CLIP_GGUF
    ),
    "VAELoader": {"vae_name": ("vae", "vae")},
    "LTXVAudioVAELoader": {"ckpt_name": ("audio_vae", "checkpoints")},
    "LTXAVTextEncoderLoader": {"text_encoder": ("clip", "text_encoders"), "ckpt_name": ("clip", "checkpoints")},
    "ControlNetLoader": {"control_net_name": ("controlnet", "controlnet")},
    "DiffControlNetLoader": {"control_net_name": ("controlnet", "controlnet")},
    "GLIGENLoader": {"gligen_name": ("model_patch", "gligen")},
    "ModelPatchLoader": {"name": ("model_patch", "model_patches")},
    "unCLIPCheckpointLoader": {"ckpt_name": ("backbone", "checkpoints")},
    "ImageOnlyCheckpointLoader": {"ckpt_name": ("backbone", "checkpoints")},
    "CLIPVisionLoader": {"clip_name": ("clip_vision", "clip_vision")},
    "LatentUpscaleModelLoader": {"model_name": ("latent_upscaler", "latent_upscale_models")},
    "LoadDA3Model": {"model_name": ("depth_estimator", "geometry_estimation")},
    "LoadMoGeModel": {"model_name": ("geometry_estimator", "geometry_estimation")},
    "LoadBackgroundRemovalModel": {"bg_removal_name": ("background_remover", "background_removal")},
    "FrameInterpolationModelLoader": {"model_name": ("frame_interpolator", "frame_interpolation")},
    "StyleModelLoader": {"style_model_name": ("style_model", "style_models")},
}
"""The loaders whose files are checked, and the part and folder of each of their inputs."""
_FIRST_SLOT = ("CheckpointLoaderSimple", "CheckpointLoader", "unCLIPCheckpointLoader", "ImageOnlyCheckpointLoader")
"""Loaders of several parts, which need the backbone only if the first output is linked."""


def with_known_files(validated: Validated, specs: Mapping[str, NodeSpec], refusal: Refusal) -> Validated:
    """Return it without the outputs that need model files of the wrong kind."""
    problems = list(_refused(validated, specs, refusal))
    return with_findings(validated, problems, {}) if problems else validated


def _refused(validated: Validated, specs: Mapping[str, NodeSpec], refusal: Refusal) -> Iterator[Problem]:
    graph = validated.graph
    for node_id, slots in _needed(graph, validated, specs).items():
        node = graph.nodes[node_id]
        if node.class_type in _FIRST_SLOT and 0 not in slots:
            continue
        for name, (part, folder) in LOADERS.get(node.class_type, {}).items():
            given = node.inputs.get(name)
            if not isinstance(given, str) or (reason := refusal(part, folder, given)) is None:
                continue
            extra = {"input_name": name, "received_value": given}
            message = f"{name} '{given}' {reason}"
            yield Problem("model_file_not_supported", message, node_id=node_id, class_type=node.class_type, extra=extra)


def _needed(graph: Graph, validated: Validated, specs: Mapping[str, NodeSpec]) -> dict[str, set[int]]:
    """Return the nodes that certainly run for the outputs, with their linked slots."""
    needed: dict[str, set[int]] = {}
    left = list(validated.outputs)
    seen: set[str] = set()
    while left:
        node_id = left.pop()
        needed.setdefault(node_id, set())
        if node_id in seen:
            continue
        seen.add(node_id)
        node = graph.nodes[node_id]
        spec = specs[node.class_type]
        for name, link in node.links():
            declared = spec.input(name)
            if declared is None or not declared.lazy:
                needed.setdefault(link.node_id, set()).add(link.slot)
                left.append(link.node_id)
    return needed
