"""Whether unequal texts share a forward: by sizes of published networks, and in the forwards of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from serve_app.models.families import Flux, QwenImage, ZImage
from serve_app.models.families.dit.flux import FluxInputs
from serve_app.models.families.dit.qwen_image import QwenImageInputs
from serve_app.models.families.family import BackboneFamily
from serve_app.models.families.shared.one_stream import TextInputs
from serve_app.models.network import ForwardOptions, LoadedNetwork
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Piece

FAMILIES: dict[str, BackboneFamily] = {
    "flux": Flux(3072, 24, 19, 38, 4096, 768),
    "qwen": QwenImage(3072, 24, 60, 3584),
    "zimage": ZImage(3840, 30, 30, 2, 2560),
}


def keys(kind: str, side: int, texts: Sequence[int] = (60, 20), **changes: Any) -> list[Any]:
    """Return the group keys of rows of an image with texts of some lengths, on full-size weights."""
    module = FAMILIES[kind].empty().to(torch.bfloat16)
    options = {"options": ForwardOptions(splits_texts=True)}
    network = LoadedNetwork(kind, FAMILIES[kind], module, Discrete(), **(options | changes))
    found = []
    for length in texts:
        text = torch.empty(1, length, 8, device="meta")
        inputs: Any = {
            "flux": FluxInputs(text, torch.empty(1, 8), torch.empty(1)),
            "qwen": QwenImageInputs(text),
            "zimage": TextInputs(text),
        }[kind]
        x = torch.empty(1, 16, *((1,) if kind == "qwen" else ()), side // 8, side // 8)
        piece: Any = Piece.__new__(Piece)
        for name, value in {"x": x, "inputs": inputs, "layers": ()}.items():
            object.__setattr__(piece, name, value)
        found.append(network.group_key(piece))
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_unequal_texts_of_large_images_run_apart_and_of_small_ones_together(kind: str) -> None:
    for side, apart in ((256, False), (1536, True)):
        assert len(set(keys(kind, side))) == 1 + apart


@pytest.mark.parametrize("kind", FAMILIES)
def test_equal_texts_and_texts_padded_to_one_length_share_a_forward(kind: str) -> None:
    assert len(set(keys(kind, 1536, (60, 60)))) == 1


def test_texts_padded_to_one_length_share_a_forward() -> None:
    assert len(set(keys("zimage", 1536, (33, 60)))) == 1


@pytest.mark.parametrize("changes", [{"streamed": True}, {"options": ForwardOptions()}])
def test_a_streamed_network_and_a_device_whose_attention_takes_masks_run_texts_together(changes: Any) -> None:
    assert len(set(keys("qwen", 1536, **changes))) == 1
