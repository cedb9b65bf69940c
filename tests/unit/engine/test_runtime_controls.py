"""Runs under ControlNets on a replica's engine and weights: together as alone, loaded at once, within the budget."""

import asyncio

import pytest
import torch

from serve_app.engine.runtime import EngineRuntime
from serve_app.errors import ModelFileError, NodeError
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Streams
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Control, Guider, Noise, SamplerChoice
from tests.parity import control_files
from tests.unit.models.sample import cpu_weights

CPU = torch.device("cpu")
UNET, XL = (Recipe("backbone", "checkpoints", f"unet_{family}.safetensors") for family in ("sd1", "sdxl"))
NET, OTHER, ADAPTER, LORA = (
    Recipe("controlnet", "controlnet", f"{name}.safetensors") for name in ("sd1", "other", "t2i_full", "control_lora")
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for folder in ("checkpoints", "controlnet"):
        (root / folder).mkdir()
    for name in ("unet_sd1", "unet_sdxl"):
        control_files.write(root / "checkpoints", name)
    path = control_files.write(root / "controlnet", "sd1")
    path.rename(path.with_stem("other"))
    for name in ("sd1", "t2i_full", "control_lora"):
        control_files.write(root / "controlnet", name)
    return Catalog(root)


def request(control, seed=1, backbone=UNET, sampler="euler", steps=3):
    width = 48 if backbone == UNET else 64
    options = {} if control is None else {"control": control}
    options["pooled_output"] = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
    text = torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed))
    return SamplingRequest(
        Guider(backbone, {"positive": [(text, options)], "negative": [(text.flip(1), options)]}, Cfg(4.0)),
        torch.zeros(1, 4, 8, 8),
        SamplerChoice(sampler),
        Steps("karras", steps),
        Noise(seed),
    )


def hint(seed):
    return control_files.image(f"hint {seed}", 1, 40, 40, 3)


def jobs():
    first = Control(NET, hint(1), 0.9)
    return [
        request(None, 1),
        request(first, 2, sampler="heun"),
        request(Control(OTHER, hint(2), 0.6, 0.2, 0.7, previous=first), 3, steps=5),
        request(Control(ADAPTER, hint(3), 0.8), 4, sampler="dpmpp_2m"),
    ]


async def sample(shared, wanted):
    done = await shared.bind(lambda done, steps: None).sample(wanted)
    return done.latents


async def test_jobs_under_different_controls_sampled_together_are_as_each_alone(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog))
    alone = [await sample(shared, job) for job in jobs()]
    apart = engine.counters.forwards
    together = await asyncio.gather(*(sample(shared, job) for job in jobs()))
    assert engine.counters.forwards - apart < apart / 2
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours - theirs).norm() / theirs.norm() <= 1e-5


async def test_a_control_that_acts_nowhere_changes_nothing(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog))
    plain, never = request(None), request(Control(NET, hint(1), 1.0, 0.6, 0.4))
    assert torch.equal(await sample(shared, plain), await sample(shared, never))
    assert not torch.equal(await sample(shared, plain), await sample(shared, request(Control(NET, hint(1), 1.0))))


async def test_jobs_whose_controlnets_do_not_fit_together_take_turns(engine, catalog):
    weights = cpu_weights(catalog)
    weights.control_net(NET)
    weights.backbone(UNET)
    pair_bytes = weights.resident_bytes
    shared = EngineRuntime(engine, cpu_weights(catalog, budget_bytes=pair_bytes))
    pairs = [request(Control(net, hint(seed), 1.0), seed) for seed, net in enumerate((NET, OTHER) * 2)]
    answers = asyncio.gather(*(sample(shared, job) for job in pairs))
    assert len(await asyncio.wait_for(answers, timeout=60)) == 4
    assert len(shared.resident()) == 2


async def test_a_run_gets_the_backbone_in_the_form_that_fits_with_its_controlnet(engine, catalog, monkeypatch):
    weights, asked = cpu_weights(catalog), []

    def fitted(backbone, *others, activation_bytes):
        asked.append((backbone, *others))
        return backbone.with_patch(Streams(0.5))

    wanted = await sample(EngineRuntime(engine, weights), request(Control(NET, hint(1), 1.0)))
    weights.release()
    monkeypatch.setattr(weights.needs, "fitted", fitted)
    assert torch.equal(await sample(EngineRuntime(engine, weights), request(Control(NET, hint(1), 1.0))), wanted)
    assert asked == [(UNET, NET)]
    # All that a run asks for is one backbone, and is there before it begins.
    assert weights.needs.of(UNET.with_patch(Streams(0.5)), NET).nbytes.keys() == weights.residency.resident.keys()


async def test_a_control_lora_steers_with_the_weights_of_the_jobs_own_backbone(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog))
    plain = await sample(shared, request(None, backbone=XL))
    under = await sample(shared, request(Control(LORA, hint(1), 1.0), backbone=XL))
    assert not torch.equal(plain, under)
    assert shared.resident() == (
        "controlnet controlnet/control_lora.safetensors",
        "backbone checkpoints/unet_sdxl.safetensors",
    )


async def test_a_run_under_a_controlnet_of_another_family_fails_and_leaves_the_room(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog, budget_bytes=1))
    with pytest.raises(NodeError, match="another family") as kept:
        await sample(shared, request(Control(NET, hint(1), 1.0), backbone=XL))
    assert (await asyncio.wait_for(sample(shared, request(None)), timeout=30)).shape == (1, 4, 8, 8)
    assert kept.value.__traceback__ is not None


async def test_a_missing_controlnet_is_named(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog))
    with pytest.raises(ModelFileError, match=r"'sd2\.safetensors' is not in"):
        await sample(shared, request(Control(Recipe("controlnet", "controlnet", "sd2.safetensors"), hint(1), 1.0)))
