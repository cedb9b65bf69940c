"""Loading onto the honest card while eight jobs run on it: nothing waits, whatever is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.trajectory import Trajectory
from serve_app.models.families import Sd
from serve_app.models.families.family import VisionFamily
from serve_app.models.weights.upload import Ring
from serve_app.models.weights.weights import Weights
from serve_app.recipe.controls import DiffControlNetBase
from serve_app.recipe.recipe import Part, Recipe
from serve_app.recipe.weights import Lora, Merge, Rounded, Share, Towards
from serve_app.sampling.request import Sampled
from serve_app.store.models.catalog import Catalog
from tests.parity import control_files, dit_control_cases, tiled_cases
from tests.parity.dit_cases import weights
from tests.parity.figures import GOLDEN
from tests.parity.lora_cases import drawn
from tests.unit.engine.card import CARD, Card, Counts
from tests.unit.engine.card_order import CardCopies
from tests.unit.engine.card_runs import CardEngine, on_card
from tests.unit.engine.mixes import request
from tests.unit.models.sample import random_tensors, write_sample_checkpoint
from tests.unit.models.test_vision import VIT_L, named

BUFFER = 2**16
ATTENTION = "input_blocks_1_1_transformer_blocks_0"
KINDS: dict[str, dict[str, tuple[int, ...]]] = {
    "attn1_to_q": {"lora_up.weight": (32, 4), "lora_down.weight": (4, 32), "dora_scale": (32, 1)},
    "attn1_to_k": {"hada_w1_a": (32, 3), "hada_w1_b": (3, 32), "hada_w2_a": (32, 3), "hada_w2_b": (3, 32)},
    "attn1_to_v": {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)},
    "attn1_to_out_0": {"oft_blocks": (4, 8, 8), "alpha": ()},
    "attn2_to_q": {"oft_blocks": (2, 4, 8, 8)},
    "attn2_to_k": {"diff": (32, 64)},
    "attn2_to_v": {"a1.weight": (64, 4), "a2.weight": (4, 64), "b1.weight": (32, 4), "b2.weight": (4, 64)},
}
"""Layers of the backbone, each with a change of a kind of its own that is not of low rank."""


def loras() -> dict[str, dict[str, Tensor]]:
    """Return files of LoRAs: of low rank, of every other kind, and of a text encoder."""
    layers = [f"{ATTENTION}_{layer}" for layer in KINDS]
    inside = {layer: 64 if layer.endswith(("attn2_to_k", "attn2_to_v")) else 32 for layer in layers}
    thin = {f"lora_unet_{layer}.lora_up.weight": drawn(layer, 32, 4) for layer in layers}
    thin |= {f"lora_unet_{layer}.lora_down.weight": drawn(layer, 4, inside[layer]).half() for layer in layers}
    whole = {
        f"lora_unet_{ATTENTION}_{layer}.{name}": drawn(f"{layer}.{name}", *shape).abs() * 0.4
        for layer, tensors in KINDS.items()
        for name, shape in tensors.items()
    }
    of_text = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    text = {f"{of_text}.lora_up.weight": drawn("up", 256, 2), f"{of_text}.lora_down.weight": drawn("down", 2, 64)}
    return {"thin": thin, "again": {name: tensor / 2 for name, tensor in thin.items()}, "whole": whole, "text": text}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    folders = ("checkpoints", "loras", "controlnet", "model_patches", "upscale_models", "clip_vision", "style_models")
    for folder in folders:
        (root / folder).mkdir()
    write_sample_checkpoint(root / "checkpoints" / "sample.safetensors")
    save_file(random_tensors(Sd((32,), (1,), (1,), 1, 64)), root / "checkpoints" / "small.safetensors")
    for name in ("unet_sd1", "unet_sdxl"):
        control_files.write(root / "checkpoints", name)
    for name in ("sd1", "t2i_full", "control_lora"):
        control_files.write(root / "controlnet", name)
    difference = control_files.tensors("sd1") | {"difference": torch.zeros(())}
    save_file(difference, root / "controlnet" / "difference.safetensors")
    case = dit_control_cases.CASES[0]
    save_file(dit_control_cases.file(case), root / "controlnet" / "dit.safetensors")
    patch = json.loads((GOLDEN / "model_control_keys.json").read_text())["qwen_hint"]
    save_file(weights(patch), root / "model_patches" / "patch.safetensors")
    save_file(tiled_cases.esrgan(), root / "upscale_models" / "esrgan.safetensors")
    save_file(vision(VIT_L), root / "clip_vision" / "vit.safetensors")
    redux = {
        "redux_up.weight": (144, 32),
        "redux_up.bias": (144,),
        "redux_down.weight": (48, 144),
        "redux_down.bias": (48,),
    }
    save_file({name: drawn(name, *shape) for name, shape in redux.items()}, root / "style_models" / "redux.safetensors")
    for name, tensors in loras().items():
        save_file(tensors, root / "loras" / f"{name}.safetensors")
    return root


def vision(family: VisionFamily) -> dict[str, Tensor]:
    return {name: drawn(name, *shape) for name, shape in named(family).items()}


def of(part: Part, folder: str, name: str, *patches: Any) -> Recipe:
    return Recipe(part, folder, f"{name}.safetensors", patches)


SMALL = of("backbone", "checkpoints", "small")
CLIP = of("clip", "checkpoints", "sample")


def lora(name: str) -> Lora:
    return Lora(f"{name}.safetensors", 0.7)


LOADED: dict[str, Recipe] = {
    "a backbone": SMALL,
    "a backbone rounded to eight bits": SMALL.with_patch(Rounded("float8_e4m3fn")),
    "a text encoder": CLIP,
    "a VAE": of("vae", "checkpoints", "sample"),
    "a LoRA": SMALL.with_patch(lora("thin")),
    "two LoRAs": SMALL.with_patch(lora("thin")).with_patch(lora("again")),
    "LoRAs of every other kind": SMALL.with_patch(lora("whole")),
    "a LoRA of a text encoder": CLIP.with_patch(lora("text")),
    "a merge": SMALL.with_patch(Merge(SMALL.with_patch(lora("thin")), (Share("", 0.5, 0.5),))),
    "a model moved towards another": SMALL.with_patch(Towards(SMALL, 0.5)),
    "a ControlNet": of("controlnet", "controlnet", "sd1"),
    "a T2I-Adapter": of("controlnet", "controlnet", "t2i_full"),
    "a control-LoRA": of(
        "controlnet", "controlnet", "control_lora", DiffControlNetBase(of("backbone", "checkpoints", "unet_sdxl"))
    ),
    "a ControlNet of differences": of(
        "controlnet", "controlnet", "difference", DiffControlNetBase(of("backbone", "checkpoints", "unet_sd1"))
    ),
    "a ControlNet of a transformer": of("controlnet", "controlnet", "dit"),
    "a model patch": of("model_patch", "model_patches", "patch"),
    "an upscaler": of("upscaler", "upscale_models", "esrgan"),
    "an image encoder": of("clip_vision", "clip_vision", "vit"),
    "a style model": of("style_model", "style_models", "redux"),
}


class Loading:
    """Eight jobs on the card, and weights that are loaded meanwhile."""

    def __init__(self, root: Path) -> None:
        self.card = Card()
        self.engine = CardEngine(self.card)
        self._backbone = on_card(self.card)
        self.weights = Weights(Catalog(root), CARD, dtype="fp16", vae_dtype="fp16", budget_bytes=10**9)
        loader: Any = self.weights.loader
        loader.ring = Ring(CARD, CardCopies(self.card.order), BUFFER)

    def run(self, load: Callable[[], object]) -> Counts:
        """Load something while eight jobs run; return what was asked of the card by then."""
        began = Event()
        jobs = [self._job(seed, began) for seed in range(8)]
        assert began.wait(30)
        with torch.no_grad(), self.card.used():
            load()
        for job in jobs:
            job.result(30)
        self.engine.close()
        return self.card.counts

    def _job(self, seed: int, began: Event) -> Future[Sampled]:
        wanted = request(steps=4, seed=seed)
        return self.engine.submit(Trajectory(self._backbone, wanted, lambda done, steps: began.set()))


def test_weights_that_make_way_for_a_load_wait_for_no_forward_and_those_for_a_forward_go_back_to_the_device(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[int] = []
    loading = Loading(root)

    def emptied_by() -> None:
        emptied.append(loading.weights.counters.evictions)

    monkeypatch.setattr(torch._C, "_cuda_emptyCache", emptied_by, raising=False)
    one, other = SMALL, of("vae", "checkpoints", "sample")
    loading.weights.residency.budget_bytes = sum(loading.weights.needs.of(one).nbytes.values())

    def turns() -> None:
        for recipe in (one, other, one, other):
            hold = loading.weights.hold(loading.weights.needs.of(recipe))
            assert hold is not None
            with hold:
                loading.weights.load(hold)

    counts = loading.run(turns)
    assert loading.weights.counters.evictions == 3
    # Giving memory back makes the host wait for all that the device was asked for.
    assert (counts.stalls, emptied) == (0, []), counts.where
    with torch.no_grad(), loading.card.used():
        assert loading.weights.release() > 0
    assert emptied == [4]


@pytest.mark.parametrize("kind", LOADED)
def test_nothing_that_is_loaded_while_eight_jobs_run_waits_for_a_forward(root: Path, kind: str) -> None:
    loading = Loading(root)
    counts = loading.run(lambda: loading.weights.open(LOADED[kind]))
    assert (counts.to_card, counts.to_host, counts.waits) == (0, 0, 0), counts.where
    assert counts.copies > 0
    assert loading.card.order.early == []
