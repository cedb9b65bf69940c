"""Packs that look at ComfyUI's modules before they use them: what they find there is what ComfyUI 0.33.0 has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import pytest
import torch

from serve_app.cli.packs import markdown_table, report_lines
from serve_app.errors import NodeError
from serve_app.execution.call import call
from serve_app.execution.executing import Executing
from serve_app.packs.loading import Packs, load_packs

PACK = """
    import comfy.controlnet, comfy.sample, comfy.samplers, folder_paths, nodes, server
    from comfy.k_diffusion.utils import FolderOfImages
    from comfy.ldm.modules.attention import wrap_attn, attention_pytorch
    from comfy.model_sampling import *
    from comfy_extras.nodes_lt import LTXVDurationPredictor
    from comfy_extras.nodes_mask import composite

    try:
        from comfy.samplers import a_name_of_another_version
    except ImportError:
        a_name_of_another_version = "not in this version"
    try:
        import comfy.module_of_another_version as module_of_another_version
    except ImportError:
        module_of_another_version = None

    if not hasattr(nodes, "FormatsOfPacks"):
        nodes.FormatsOfPacks = {"mine": 3}

    class Base:
        RETURN_TYPES = ("*",)
        FUNCTION = "go"
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

    class OfTheStandardLibrary(Base):
        def go(self):
            return ([len(str(server.uuid.uuid4())), server.json.loads("[1]"), folder_paths.os.path.join("a", "b")],)

    class OfOtherPackages(Base):
        def go(self):
            return ([comfy.samplers.torch.zeros(2).shape, server.web.Response, comfy.sample.comfy.samplers.KSampler],)

    class SetByThePack(Base):
        def go(self):
            return (nodes.FormatsOfPacks["mine"],)

    class SetAsItRuns(Base):
        def go(self):
            if not hasattr(comfy.sample, "prepare_noise_before"):
                comfy.sample.prepare_noise_before = comfy.sample.prepare_noise
                comfy.sample.prepare_noise = lambda latents, seed, *more: \\
                    2 * comfy.sample.prepare_noise_before(latents, seed, *more)
            import torch
            return (comfy.sample.prepare_noise(torch.zeros(1, 4, 2, 2), 1),)

    class OfAnotherVersion(Base):
        def go(self):
            return ([a_name_of_another_version, module_of_another_version],)

    class Types(Base):
        def go(self):
            return ([isinstance(3, comfy.controlnet.T2IAdapter), ".webp" in FolderOfImages.IMG_EXTENSIONS],)

    @wrap_attn
    def attention(q, k, v, heads, **options):
        return attention_pytorch(q, k, v, heads) + 1

    class Attention(Base):
        def go(self, q):
            inner = {"optimized_attention_override": lambda f, *given, **more: 10 * f(*given, **more)}
            return ([attention(q, q, q, 1), attention(q, q, q, 1, transformer_options=inner)],)

    class Composite(Base):
        def go(self, below, above):
            return (composite(below, above, 16, 8),)

    class Scales(Base):
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"method": (nodes.ImageScale.upscale_methods,),
                                 "crop": (nodes.LatentUpscale.crop_methods,)}}
        def go(self, method, crop):
            return (method,)

    class Legend:
        RETURN_TYPES = ()
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"text": ("STRING", {"default": "how to", "multiline": True})}}

    class Guides(LTXVDurationPredictor):
        @classmethod
        def define_schema(cls):
            return None

    class Lacks(Base):
        def go(self):
            return (reshape_sigma(1),)

    NODE_CLASS_MAPPINGS = {name: c for name, c in list(globals().items()) if isinstance(c, type)
                           and (issubclass(c, Base) and c is not Base or name in ("Legend", "Guides"))}
"""


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packs]:
    before, finders = dict(sys.modules), list(sys.meta_path)
    root = tmp_path_factory.mktemp("packs")
    (root / "one").mkdir()
    (root / "one" / "__init__.py").write_text(dedent(PACK))
    yield load_packs(root, root, dict.fromkeys(("input", "output", "temp"), root))  # type: ignore[arg-type]
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)
    sys.meta_path[:] = finders


async def value(packs: Packs, name: str, **inputs: Any) -> Any:
    given = {key: [one] for key, one in inputs.items()}
    (made,) = await call(packs.classes[name](), packs.specs[name], given, Executing("job", "1"))
    assert made.values is not None
    return made.values[0]


def test_no_class_lacks_what_comfyui_does_not_have_or_only_imports(packs: Packs) -> None:
    assert packs.failures == {}
    lacks = {name: spec.lacks for name, spec in packs.specs.items() if spec.lacks}
    assert lacks == {"Lacks": ("comfy.model_sampling.reshape_sigma",)}


async def test_what_comfyuis_modules_import_is_had_through_them(packs: Packs) -> None:
    assert await value(packs, "OfTheStandardLibrary") == [36, [1], "a/b"]
    shape, response, sampler = await value(packs, "OfOtherPackages")
    assert (tuple(shape), response.__name__) == ((2,), "Response")
    assert sampler is sys.modules["comfy.samplers"].KSampler


async def test_a_name_that_a_pack_sets_on_a_module_is_had_there(packs: Packs) -> None:
    assert await value(packs, "SetByThePack") == 3


async def test_a_function_that_a_pack_replaces_once_is_replaced_once(packs: Packs) -> None:
    once, again = await value(packs, "SetAsItRuns"), await value(packs, "SetAsItRuns")
    assert torch.equal(once, again)
    assert torch.equal(once, 2 * sys.modules["comfy.sample"].prepare_noise_before(torch.zeros(1, 4, 2, 2), 1))


async def test_a_name_or_module_of_another_version_is_not_there(packs: Packs) -> None:
    assert await value(packs, "OfAnotherVersion") == ["not in this version", None]
    assert not hasattr(sys.modules["nodes"], "a_name_of_nobodys")
    assert hasattr(sys.modules["comfy.samplers"], "KSamplerX0Inpaint")  # ComfyUI's own, which is missing here


@pytest.mark.parametrize(
    ("module", "name", "other"),
    [
        ("comfy_api.latest", "Caching", "comfy_api.v0_0_1"),
        ("comfy_execution.graph", "TopologicalSort", "comfy_execution.graph_utils"),
        ("comfy.comfy_types", "UnetParams", "comfy.comfy_types.node_typing"),
    ],
)
def test_modules_that_have_members_in_common_each_have_their_own_names(
    packs: Packs, module: str, name: str, other: str
) -> None:
    assert hasattr(sys.modules[module], name)
    assert not hasattr(sys.modules[other], name)


async def test_types_that_packs_ask_for_are_there(packs: Packs) -> None:
    assert await value(packs, "Types") == [False, True]


async def test_an_attention_of_a_packs_own_gives_way_to_an_override(packs: Packs) -> None:
    q = torch.ones(1, 2, 4)
    plain, overridden = await value(packs, "Attention", q=q)
    assert torch.allclose(plain, q + 1)
    assert torch.allclose(overridden, 10 * (q + 1))


async def test_composite_pastes_in_place_at_a_place_in_pixels(packs: Packs) -> None:
    below = torch.zeros(1, 1, 4, 4)
    made = await value(packs, "Composite", below=below, above=torch.ones(1, 1, 1, 1))
    assert made.data_ptr() == below.data_ptr()
    assert made.nonzero().tolist() == [[0, 0, 1, 2]]


def test_choices_that_comfyuis_classes_have_as_members_are_members_here(packs: Packs) -> None:
    choices = {given.name: given.choices for given in packs.specs["Scales"].inputs}
    assert "lanczos" in (choices["method"] or ())
    assert choices["crop"] == ("disabled", "center")


async def test_a_class_without_a_function_loads_and_says_so_if_it_is_to_run(packs: Packs) -> None:
    assert "Legend" in packs.specs
    with pytest.raises(NodeError, match="Legend has no FUNCTION"):
        await value(packs, "Legend", text="how to")


def test_a_class_that_is_left_out_is_named_with_the_reason(packs: Packs) -> None:
    reason = "it extends comfy_extras.nodes_lt.LTXVDurationPredictor of ComfyUI, which is not here"
    assert packs.left_out == {"one": {"Guides": reason}}
    shown = list(report_lines(packs))
    assert shown[1].split()[:3] == ["one", "12", "10"]
    assert f"Guides is left out: {reason}" in shown[2]
    assert f"Guides is left out: {reason} |" in list(markdown_table(packs))[2]
