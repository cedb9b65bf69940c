"""CLIP_VISION and CLIP_VISION_OUTPUT in a pack's hands: what it sees is what the server's own nodes see."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.execution.node_failure import NodeFailedError
from serve_app.models.families import ClipVision
from serve_app.packs.loading import Packs, load_packs
from tests.parity.dit_cases import weights
from tests.parity.stack import Stack

PACK = """
    import torch
    import comfy.clip_vision
    import folder_paths

    NODE_CLASS_MAPPINGS = {}

    def node(returns, **kinds):
        def made(function):
            class Made:
                RETURN_TYPES = (returns,)
                FUNCTION = "go"
                @classmethod
                def INPUT_TYPES(cls):
                    return {"required": {name: (kind,) for name, kind in kinds.items()}}
                def go(self, **given):
                    return (function(**given),)
            NODE_CLASS_MAPPINGS[function.__name__] = Made
            return function
        return made

    @node("CLIP_VISION_OUTPUT", clip_vision="CLIP_VISION", image="IMAGE")
    def Seen(clip_vision, image):
        assert clip_vision.image_size == 16
        return clip_vision.encode_image(image, crop=False)

    @node("CLIP_VISION_OUTPUT", clip_vision="CLIP_VISION", image="IMAGE")
    def SeenAsPixels(clip_vision, image):
        pixels = comfy.clip_vision.clip_preprocess(image.to(clip_vision.load_device), size=16, crop=False)
        made = comfy.clip_vision.Output()
        assert not hasattr(made, "image_embeds")
        names = ("last_hidden_state", "penultimate_hidden_states", "image_embeds")
        for name, states in zip(names, clip_vision.model(pixel_values=pixels, intermediate_output=-2)):
            made[name] = states
        return made

    @node("CLIP_VISION_OUTPUT", clip_vision="CLIP_VISION")
    def SeenTooLarge(clip_vision):
        return clip_vision.model(pixel_values=torch.zeros(1, 3, 32, 32))

    @node("CLIP_VISION_OUTPUT", image="IMAGE")
    def SeenByAFile(image):
        encoder = comfy.clip_vision.load(folder_paths.get_full_path("clip_vision", "vit.safetensors"))
        return encoder.encode_image(image, crop=False)

    @node("CLIP_VISION_OUTPUT", output="CLIP_VISION_OUTPUT")
    def Halved(output):
        made = comfy.clip_vision.Output()
        for name in ("last_hidden_state", "penultimate_hidden_states"):
            made[name] = output[name]
        made.image_embeds = output.image_embeds / 2
        return made

    @node("CLIP_VISION_OUTPUT", output="CLIP_VISION_OUTPUT")
    def Unfinished(output):
        return comfy.clip_vision.Output()

    @node("CLIP_VISION", clip_vision="CLIP_VISION")
    def Passed(clip_vision):
        return clip_vision

    @node("STRING", clip_vision="CLIP_VISION")
    def Reached(clip_vision):
        return str(clip_vision.dtype)
"""
ENCODER = ClipVision(layers=23, width=32, hidden_width=48, side=2, patch=8, projection=24)
NODES: dict[str, Any] = {
    "encoder": ("CLIPVisionLoader", {"clip_name": "vit.safetensors"}),
    "image": ("EmptyImage", {"width": 24, "height": 20, "batch_size": 1, "color": 0x336699}),
    "seen": ("CLIPVisionEncode", {"clip_vision": ["encoder", 0], "image": ["image", 0], "crop": "none"}),
}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Packs, Path]]:
    root = tmp_path_factory.mktemp("packs")
    modules, finders = dict(sys.modules), list(sys.meta_path)
    (root / "packs").mkdir()
    (root / "packs" / "mine.py").write_text(dedent(PACK))
    (root / "models" / "clip_vision").mkdir(parents=True)
    names = {
        name if name.startswith("visual_projection") else f"vision_model.{name}": tuple(tensor.shape)
        for name, tensor in ENCODER.empty().state_dict().items()
    }
    save_file(weights(names), root / "models" / "clip_vision" / "vit.safetensors")
    found = load_packs(root / "packs", root / "models", dict.fromkeys(("input", "output", "temp"), root))  # type: ignore[arg-type]
    assert found.failures == {}
    yield found, root
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)
    sys.meta_path[:] = finders


@pytest.fixture
async def stack(packs: tuple[Packs, Path]) -> AsyncIterator[Stack]:
    found, root = packs
    stack = Stack(root / "models", root / "files", found.classes)
    yield stack
    stack.engine.close()


@pytest.mark.parametrize(
    "node",
    [
        ("Seen", {"clip_vision": ["encoder", 0], "image": ["image", 0]}),
        ("Seen", {"clip_vision": ["passed", 0], "image": ["image", 0]}),
        ("SeenAsPixels", {"clip_vision": ["encoder", 0], "image": ["image", 0]}),
        ("SeenByAFile", {"image": ["image", 0]}),
    ],
)
async def test_a_pack_sees_what_the_servers_node_sees(stack: Stack, node: Any) -> None:
    passed = ("Passed", {"clip_vision": ["encoder", 0]})
    ours, theirs = [await stack.run(name, **NODES, passed=passed, mine=node) for name in ("seen", "mine")]
    for part in ("last_hidden_state", "penultimate_hidden_states", "image_embeds"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part))


async def test_what_a_pack_makes_of_it_goes_on(stack: Stack) -> None:
    ours = await stack.run("seen", **NODES)
    halved = await stack.run("mine", **NODES, mine=("Halved", {"output": ["seen", 0]}))
    assert torch.equal(halved.image_embeds, ours.image_embeds / 2)
    assert torch.equal(halved.last_hidden_state, ours.last_hidden_state)


def test_a_class_that_sees_needs_a_replica_with_models(packs: tuple[Packs, Path]) -> None:
    specs = packs[0].specs
    needing = {name: specs[name].models for name in ("Seen", "SeenByAFile", "Halved")}
    assert needing == {"Seen": True, "SeenByAFile": True, "Halved": False}


@pytest.mark.parametrize(
    ("node", "missing"),
    [
        (("Unfinished", {"output": ["seen", 0]}), "Output.last_hidden_state"),
        (("Reached", {"clip_vision": ["encoder", 0]}), "ClipVisionModel.dtype"),
    ],
)
async def test_what_is_not_here_is_named(stack: Stack, node: Any, missing: str) -> None:
    with pytest.raises(NodeFailedError, match=rf"comfy\.clip_vision\.{missing} of ComfyUI is not here"):
        await stack.run("mine", **NODES, mine=node)


async def test_pixels_of_another_size_are_refused(stack: Stack) -> None:
    with pytest.raises(NodeFailedError, match="the image encoder looks at B×3×16×16, and was given 1×3×32×32"):
        await stack.run("mine", **NODES, mine=("SeenTooLarge", {"clip_vision": ["encoder", 0]}))
