"""`pixel_space` of VAELoader beside ComfyUI's: golden/pixel_space.npz holds what it makes of `pixel_space_cases`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.execution.runtime import Runtime
from serve_app.models.files import saving
from serve_app.nodes.loaders.models import vae_loader
from serve_app.nodes.registry import BUILTIN
from serve_app.store.models.catalog import Catalog
from tests.parity.figures import Figures
from tests.parity.mini15_cases import value
from tests.parity.pixel_space_cases import CASES
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("pixel_space")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    engine = Engine(MAX_CELLS, HostTimeline())
    catalog = Catalog(tmp_path_factory.mktemp("models"))
    yield EngineRuntime(engine, cpu_weights(catalog)).bind(lambda _done, _of: None)
    engine.close()


@pytest.mark.parametrize("name", CASES)
async def test_pixels_and_latents_are_each_other_as_in_comfyui(runtime: Runtime, name: str) -> None:
    nodes = CASES[name].nodes
    kind, inputs = nodes["k"]
    given = dict(inputs)
    for slot, link in inputs.items():
        if isinstance(link, list):
            of_link = nodes[link[0]]
            given[slot] = vae_loader("pixel_space") if slot == "vae" else value(of_link)
    if "samples" in given:
        given["samples"] = {"samples": given["samples"]}
    node = BUILTIN[kind]()
    (made,) = await getattr(node, node.FUNCTION)(**given, runtime=runtime)  # type: ignore[attr-defined]
    FIGURES.assert_agrees(made["samples"] if isinstance(made, dict) else made, name, 1e-6)


def test_a_saved_one_is_read_from_its_file(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    written = saving.vae_file(catalog, vae_loader("pixel_space"), {}, lambda _done, _of: None)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/own.safetensors").write_bytes(b"".join(written))
    weights = cpu_weights(catalog)
    assert weights.vae(vae_loader("own.safetensors")).family == weights.vae(vae_loader("pixel_space")).family
