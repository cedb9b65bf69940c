"""Videos through the VAE nodes against ComfyUI's, with small autoencoders of Wan 2.1 and 2.2 in files, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.models.families import Wan22Vae, WanVae
from serve_app.models.families.family import VaeFamily
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents import latent_formats
from serve_app.store.models.catalog import Catalog
from tests.parity.dit_cases import noise, weights
from tests.parity.figures import GOLDEN, Figures, thinned
from tests.parity.video_cases import CASES, CELL, OPERATIONS, Case
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("videos")
KEYS = json.loads((GOLDEN / "video_keys.json").read_text())
FAMILIES = {
    "wan21": WanVae(8, latent_channels=16, image_channels=3),
    "wan22": Wan22Vae(8, 12, latent_channels=48, image_channels=3),
}
FORMATS = {"wan21": latent_formats.WAN, "wan22": latent_formats.WAN_22}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRuntime]:
    root: Path = tmp_path_factory.mktemp("models")
    (root / "vae").mkdir()
    for net, keys in KEYS.items():
        save_file(weights(keys), root / "vae" / f"{net}.safetensors")
    engine = Engine(MAX_CELLS, HostTimeline())
    yield EngineRuntime(engine, cpu_weights(Catalog(root)))
    engine.close()


def recipe(net: str) -> Recipe:
    return Recipe("vae", "vae", f"{net}.safetensors")


@pytest.mark.parametrize("net", KEYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_node_makes_of_a_video_what_it_makes_in_comfyui(runtime: EngineRuntime, net: str, case: Case) -> None:
    node: Any = BUILTIN[case.node]()
    bound = runtime.bind(lambda done, of: None)
    (made,) = await getattr(node, node.FUNCTION)(vae=recipe(net), runtime=bound, **case.given(net))
    tensor = made["samples"] if isinstance(made, dict) else made
    if isinstance(made, dict) and "noise_mask" in made:
        assert torch.equal(made["noise_mask"], FIGURES[f"{net} {case.name} mask"])
    assert list(tensor.shape) == FIGURES[f"{net} {case.name} shape"].tolist()
    FIGURES.assert_agrees(torch.from_numpy(thinned(tensor.numpy())), f"{net} {case.name}", TOLERANCE)


@pytest.mark.parametrize("net", KEYS)
async def test_a_file_says_to_nodes_what_its_latents_are(runtime: EngineRuntime, net: str) -> None:
    family: Any = await runtime.bind(lambda done, of: None).family(recipe(net))
    assert family == FAMILIES[net]
    assert (family.factor, family.frames) == (CELL[net], 4)
    assert family.latent_channels == FORMATS[net].channels


@pytest.mark.parametrize("net", KEYS)
def test_latents_go_to_a_backbone_as_in_comfyui(net: str) -> None:
    known = FORMATS[net]
    assert known.factor == CELL[net]
    FIGURES.assert_agrees(known.to_model(noise(f"{net} format", (1, known.channels, 2, 1, 1))), f"{net} format", 1e-6)


@pytest.mark.parametrize(("published", "millions"), [(WanVae(96, 16, 3), 126.89), (Wan22Vae(160, 256), 704.69)])
def test_the_published_networks_have_the_size_of_their_files(published: VaeFamily, millions: float) -> None:
    """253.8 MB and 1.41 GB in sixteen bits."""
    assert sum(p.numel() for p in published.empty().parameters()) / 10**6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(("name", "inputs"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_latents_of_a_video_are_changed_as_in_comfyui(name: str, inputs: dict[str, Any]) -> None:
    node = BUILTIN[name]()
    (made,) = getattr(node, node.FUNCTION)(**inputs)  # type: ignore[attr-defined]
    FIGURES.assert_agrees(made["samples"], name, 1e-6)
