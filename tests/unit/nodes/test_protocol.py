from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.errors import NodeError
from serve_app.graph.spec import Input, NodeSpec
from serve_app.nodes.protocol import FolderChoice, spec_of
from serve_app.nodes.registry import BUILTIN, specs


class AnyType(str):
    """The trick packs use for an input that takes everything."""

    def __ne__(self, other: object) -> bool:
        return False


class Odd:
    RETURN_TYPES = ("IMAGE", AnyType("*"), ["a", "b"])
    OUTPUT_IS_LIST = (False, True, False)
    FUNCTION = "go"
    OUTPUT_NODE = True
    NOT_IDEMPOTENT = True
    CATEGORY = "odd/ones"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "mode": (["fast", 2], {"default": "fast"}),
                "mode3": ("COMBO", {"options": ["x", "y"], "tooltip": "t"}),
                "file": [FolderChoice("loras")],
            },
            "optional": {
                "any": (AnyType("*"), {"lazy": True, "check": lambda: 1, "pair": (1, 2), "bad": float("nan")})
            },
            "hidden": {"id": "UNIQUE_ID", "runtime": "RUNTIME"},
        }

    def go(self, **_: Any) -> tuple[()]:
        return ()


def test_a_class_becomes_data() -> None:
    spec = spec_of(Odd, "Odd", "An odd one")
    assert spec == NodeSpec(
        class_type="Odd",
        inputs=(
            Input("image", "IMAGE"),
            Input("mode", "COMBO", choices=("fast", 2), options={"default": "fast"}),
            Input("mode3", "COMBO", choices=("x", "y"), options={"tooltip": "t"}),
            Input("file", "COMBO", folder="loras"),
            Input("any", "*", "optional", options={"lazy": True, "pair": [1, 2]}),
        ),
        outputs=("IMAGE", "*", "COMBO"),
        output_names=("IMAGE", "*", "COMBO"),
        output_is_list=(False, True, False),
        hidden={"id": "UNIQUE_ID", "runtime": "RUNTIME"},
        output_node=True,
        not_idempotent=True,
        category="odd/ones",
        display_name="An odd one",
    )
    assert spec.runtime
    assert type(spec.outputs[1]) is str


def test_a_class_without_its_function_is_refused_by_name() -> None:
    class Broken:
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {}

    with pytest.raises(NodeError, match=r"Broken: .* FUNCTION is 'run'; it must name a method"):
        spec_of(Broken, "Broken")
    with pytest.raises(NodeError, match="INPUT_TYPES"):
        spec_of(int, "Int")


@pytest.mark.parametrize("class_type", sorted(BUILTIN))
def test_a_spec_survives_the_trip_through_json(class_type: str) -> None:
    spec = specs()[class_type]
    assert NodeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def shape(class_type: str) -> list[tuple[str, str]]:
    return [(i.name, i.type) for i in specs()[class_type].inputs]


@pytest.mark.parametrize(
    ("class_type", "inputs", "outputs", "category", "display_name"),
    [
        ("CheckpointLoaderSimple", "ckpt_name:COMBO", "MODEL CLIP VAE", "loaders", "Load Checkpoint"),
        ("VAELoader", "vae_name:COMBO", "VAE", "loaders", "Load VAE"),
        ("CLIPTextEncode", "text:STRING clip:CLIP", "CONDITIONING", "conditioning", "CLIP Text Encode (Prompt)"),
        ("CLIPSetLastLayer", "clip:CLIP stop_at_clip_layer:INT", "CLIP", "conditioning", "CLIP Set Last Layer"),
        ("EmptyLatentImage", "width:INT height:INT batch_size:INT", "LATENT", "latent", "Empty Latent Image"),
        (
            "KSampler",
            "model:MODEL seed:INT steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO positive:CONDITIONING "
            "negative:CONDITIONING latent_image:LATENT denoise:FLOAT",
            "LATENT",
            "sampling",
            "KSampler",
        ),
        (
            "KSamplerAdvanced",
            "model:MODEL add_noise:COMBO noise_seed:INT steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO "
            "positive:CONDITIONING negative:CONDITIONING latent_image:LATENT start_at_step:INT end_at_step:INT "
            "return_with_leftover_noise:COMBO",
            "LATENT",
            "sampling",
            "KSampler (Advanced)",
        ),
        ("VAEDecode", "samples:LATENT vae:VAE", "IMAGE", "latent", "VAE Decode"),
        ("VAEEncode", "pixels:IMAGE vae:VAE", "LATENT", "latent", "VAE Encode"),
        ("LoadImage", "image:COMBO", "IMAGE MASK", "image", "Load Image"),
        ("EmptyImage", "width:INT height:INT batch_size:INT color:INT", "IMAGE", "image", "EmptyImage"),
        (
            "ImageScale",
            "image:IMAGE upscale_method:COMBO width:INT height:INT crop:COMBO",
            "IMAGE",
            "image/upscaling",
            "Upscale Image",
        ),
        (
            "LatentUpscale",
            "samples:LATENT upscale_method:COMBO width:INT height:INT crop:COMBO",
            "LATENT",
            "latent",
            "Upscale Latent",
        ),
        ("SaveImage", "images:IMAGE filename_prefix:STRING", "", "image", "Save Image"),
        ("PreviewImage", "images:IMAGE", "", "image", "Preview Image"),
        ("SaveLatent", "samples:LATENT filename_prefix:STRING", "", "_for_testing", "SaveLatent"),
        ("LoadLatent", "latent:COMBO", "LATENT", "_for_testing", "LoadLatent"),
    ],
)
def test_built_in_classes_look_as_in_comfyui(
    class_type: str, inputs: str, outputs: str, category: str, display_name: str
) -> None:
    spec = specs()[class_type]
    assert [f"{i.name}:{i.type}" for i in spec.inputs] == inputs.split()
    assert all(i.section == "required" for i in spec.inputs)
    assert (" ".join(spec.outputs), spec.category, spec.display_name) == (outputs, category, display_name)
    assert spec.output_node is (not outputs)


def test_only_the_nodes_that_use_models_ask_for_the_runtime() -> None:
    asking = {name for name, spec in specs().items() if spec.runtime}
    assert {"CLIPTextEncode", "KSampler", "KSamplerAdvanced", "VAEDecode", "VAEEncode"} <= asking
    assert not {"CheckpointLoaderSimple", "LoraLoader", "EmptyLatentImage", "ImageScale", "SaveImage"} & asking
