"""Flux.3 beside diffusers: its network under the authors' names, runs by levels, and its text encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux3_transformer_checkpoint_to_diffusers
from diffusers.models.transformers.transformer_flux3 import Flux3Transformer2DModel
from diffusers.modular_pipelines.flux3.before_denoise import _prepare_image_ids
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families.dit.flux3 import Flux3
from serve_app.models.families.text_family import TextFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import reverse, translate
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import qwen
from serve_app.models.tokenizers.lexicon import Lexicon
from serve_app.nodes.conditioning.flux3 import flux3_layout_prompt, reference_multi_latent
from serve_app.nodes.loaders.models import unet_loader
from serve_app.nodes.sampling.custom import random_noise, sampler_custom_advanced
from serve_app.nodes.sampling.guiders import basic_guider
from serve_app.nodes.sampling.samplers import ksampler_select
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.sampling.latents.latent_formats import FLUX2
from serve_app.sampling.schedules.levels import FlowLevels
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.kinds import BACKBONE_PREFIXES
from tests.parity.dit_cases import noise, weights
from tests.unit.engine import mixes
from tests.unit.models.sample import cpu_weights

TEXT_WIDTH = 8 * 32
NETS = {"base": Flux3(64, 2, 2, 2, TEXT_WIDTH), "distilled": Flux3(64, 2, 2, 2, TEXT_WIDTH, flow_map=True)}
LAYERS = 33
STEPS = 4
SIZE = (4, 6)


def file_of(net: str) -> dict[str, Tensor]:
    family = NETS[net]
    names = reverse({theirs: ours for theirs, ours in family.table().items() if isinstance(ours, str)})
    last = {"norm_out.linear.weight": "final_layer.image.adaLN_modulation.1.weight"}
    shapes = {ours: [*parameter.shape] for ours, parameter in family.empty().state_dict().items()}
    drawn: dict[str, Tensor] = weights(
        {last.get(ours) or str(translate(ours, names)): shape for ours, shape in shapes.items()}
    )
    return drawn


def named(tensors: Mapping[str, Tensor]) -> Tensors:
    return Tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "'a.safetensors'")


def oracle(net: str) -> Any:
    family = NETS[net]
    network = Flux3Transformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 8, 8, 8),
        flow_map=family.flow_map,
    )
    network.load_state_dict(convert_flux3_transformer_checkpoint_to_diffusers(file_of(net)))
    return network.eval()


def qwen3_vl() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    text = {**sizes, "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 151936, "rope_theta": 5e6}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
    }
    vision |= {"deepstack_visual_indexes": [0]}
    torch.manual_seed(5)
    made = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision)
    )
    with torch.no_grad():
        for parameter in made.model.language_model.layers.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return made.eval()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root: Path = tmp_path_factory.mktemp("models")
    (root / "diffusion_models").mkdir()
    for net in NETS:
        save_file(file_of(net), root / "diffusion_models" / f"{net}.safetensors")
    engine = Engine(mixes.MAX_CELLS, HostTimeline())
    yield EngineRuntime(engine, cpu_weights(Catalog(root))).bind(lambda done, steps: None)
    engine.close()


@pytest.mark.parametrize("prefix", BACKBONE_PREFIXES)
@pytest.mark.parametrize("net", NETS)
def test_a_file_of_either_layout_is_read_off_names_and_shapes(net: str, prefix: str) -> None:
    theirs = {**file_of(net), "repa_projectors.0.weight": torch.zeros(1)}
    for tensors in (theirs, convert_flux3_transformer_checkpoint_to_diffusers(dict(theirs))):
        found = find_part("backbone", [named({prefix + name: tensor for name, tensor in tensors.items()})])
        assert found.family == NETS[net]


def test_the_published_network_has_its_size_and_another_build_is_refused() -> None:
    published = Flux3(3072, 24, 5, 28, 20480).empty()
    assert sum(p.numel() for p in published.parameters()) / 1e9 == pytest.approx(5.54, abs=5e-3)
    changed = {**file_of("base"), "single_blocks.0.norm.key_norm.scale": torch.zeros(20)}
    with pytest.raises(ModelFileError, match="64 wide with heads of 20; supported are multiples of 8"):
        find_part("backbone", [named(changed)])


@pytest.mark.parametrize("references", [(), ((4, 6),), ((3, 5), (4, 2))])
@pytest.mark.parametrize("net", NETS)
async def test_a_run_makes_what_diffusers_makes(runtime: Any, net: str, references: tuple[Any, ...]) -> None:
    network, scheduler = oracle(net), FlowMatchEulerDiscreteScheduler(shift=6.93)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS))
    text, given = (
        noise("text", (1, 5, TEXT_WIDTH)),
        [noise(f"reference {size}", (1, 128, *size)) for size in references],
    )
    started = torch.randn(1, 128, *SIZE, generator=torch.manual_seed(3))
    x = started.flatten(2).transpose(1, 2)
    arguments = {
        "encoder_hidden_states": text,
        "txt_ids": torch.nn.functional.pad(torch.arange(5.0)[:, None], (3, 0)),
        "img_ids": _prepare_image_ids(*SIZE, 0.5),
    }
    if given:
        arguments["image_cond_hidden_states"] = torch.cat([one.flatten(2).transpose(1, 2) for one in given], dim=1)
        ids = [_prepare_image_ids(*size, 0.5, -1 - i) for i, size in enumerate(references)]
        arguments["image_cond_ids"] = torch.cat(ids)
    with torch.inference_mode():
        for i, t in enumerate(scheduler.timesteps):
            after = scheduler.timesteps[i + 1] if i + 1 < STEPS else torch.zeros(())
            ends = {"target_timestep": (after / 1000)[None]} if NETS[net].flow_map else {}
            [v] = network(hidden_states=x, timestep=(t / 1000)[None], return_dict=False, **arguments, **ends)
            [x] = scheduler.step(v, t, x, return_dict=False)
    theirs = x.transpose(1, 2).reshape(1, 128, *SIZE)

    model = unet_loader(f"{net}.safetensors", "default")
    scaled = [FLUX2.from_model(one) for one in given]
    cond = with_options([(text, {})], **({"reference_latents": scaled} if scaled else {}))
    made, _ = await sampler_custom_advanced(
        random_noise(3),
        basic_guider(model, cond),
        ksampler_select("euler"),
        scheduler.sigmas.float(),
        {"samples": torch.zeros(1, 128, *SIZE)},
        runtime,
    )
    assert mixes.relative_error(FLUX2.to_model(made["samples"]), theirs) <= 1e-4


def test_levels_are_those_of_diffusers_scheduler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.93)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS))
    levels = FlowLevels(6.93, 1.0)
    torch.testing.assert_close(levels.sigmas[[999, 749, 499, 249]], scheduler.sigmas[:-1].float())


def test_a_text_and_its_padding_are_encoded_as_by_diffusers(tmp_path: Path) -> None:
    texts = ["a red fox", "fox " * 150]
    tokenize, network = qwen.tokenizer(lambda name: None), qwen3_vl()
    language = network.model.language_model.state_dict()
    save_file({f"model.{name}": tensor for name, tensor in language.items()}, path := tmp_path / "qwen.safetensors")
    family, ours = Checkpoint(path).load("clip", loaded_as="flux3")
    assert isinstance(family, TextFamily)
    encoder: Any = family.as_type("flux3").encoder(ours, Lexicon(Catalog(tmp_path)))

    class Processor:
        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            return f"<|im_start|>user\n{messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"

        def tokenizer(self, text: str, max_length: int, padding: str = "", **options: Any) -> Any:
            ids = [*tokenize(text)]
            pads = max_length - len(ids) if padding else 0
            mask = [1] * len(ids) + [0] * pads
            return {"input_ids": torch.tensor([ids + [qwen.PAD] * pads]), "attention_mask": torch.tensor([mask])}

    for text in texts:
        [[(cond, options)]] = encoder.encode([text])
        with torch.inference_mode():
            theirs = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(network, Processor(), text)
        assert cond.shape == theirs.shape
        assert cond.shape[1] % 80 == 0
        assert "attention_mask" not in options
        assert mixes.relative_error(cond, theirs) <= 1e-5


def test_a_layout_is_written_after_the_prompt() -> None:
    elements = [{"type": "obj", "bbox": [1, 2, 3, 4], "desc": "a dress"}]
    assert flux3_layout_prompt("a <obj_1> ", elements) == (
        'a <obj_1> [{"id": "obj_1", "bbox": [1, 2, 3, 4], "desc": "a dress"}]'
    )
    assert flux3_layout_prompt("dye <obj_1> of <ref_image_1>", elements) == (
        'dye <obj_1> of <ref_image_1> [{"id": "obj_1", "from": "ref_image_1", "src_bbox": [1, 2, 3, 4], '
        '"tgt_bbox": [1, 2, 3, 4], "desc": "a dress"}]'
    )
    assert flux3_layout_prompt("a fox", []) == "a fox"
    with pytest.raises(NodeError, match="it must have a bbox of four numbers"):
        flux3_layout_prompt("a", [{"desc": "x"}])


async def test_references_reach_both_conditionings_and_the_first_gives_the_size() -> None:
    class Vae:
        async def encode(self, vae: Any, image: Tensor) -> Tensor:
            return torch.ones(1, 128, image.shape[1] // 16, image.shape[2] // 16)

    runtime: Any = Vae()
    cond: Any = [(torch.zeros(1, 2, 4), {})]
    images = {"image1": torch.rand(1, 50, 70, 3), "image0": torch.rand(1, 100, 200, 3)}
    vae: Any = object()
    scaling = {"scaling": "resize", "megapixels": 0.5}
    positive, negative, latent = await reference_multi_latent(cond, scaling, runtime, cond, vae, images)
    shapes = [tuple(one.shape[2:]) for one in positive[0][1]["reference_latents"]]
    assert shapes == [(32, 64), (38, 54)]
    assert len(negative[0][1]["reference_latents"]) == 2
    assert latent["samples"].shape == (1, 128, 32, 64)
    kept, _, _ = await reference_multi_latent(cond, {"scaling": "keep"}, runtime, None, vae, images)
    assert [tuple(one.shape[2:]) for one in kept[0][1]["reference_latents"]] == [(6, 12), (3, 4)]
    with pytest.raises(NodeError, match="2 images are given without a VAE"):
        await reference_multi_latent(cond, scaling, runtime, cond, None, images)
    with pytest.raises(NodeError, match="no image is given"):
        await reference_multi_latent(cond, scaling, runtime, cond, vae, None)
