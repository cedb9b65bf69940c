"""The nodes for latents, where the answer is known without ComfyUI."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.latent.batch import (
    latent_batch,
    latent_from_batch,
    rebatch_images,
    rebatch_latents,
    repeat_latent_batch,
)
from serve_app.nodes.latent.inpaint import vae_encode_for_inpaint
from serve_app.nodes.latent.latents import latent_upscale_by
from serve_app.nodes.latent.math import latent_interpolate, latent_operation_sharpen
from serve_app.nodes.latent.transform import latent_concat, latent_crop, latent_cut, latent_rotate
from serve_app.recipe.recipe import Recipe
from serve_app.values import Latent


def latent(batch: int, height: int = 3, width: int = 5, **members: Any) -> Latent:
    return {"samples": torch.randn(batch, 4, height, width), **members}


def test_a_batch_taken_apart_and_joined_again_is_the_batch() -> None:
    whole = latent(5, batch_index=[9, 3, 7, 1, 2])
    parts = [latent_from_batch(whole, start, 2) for start in (0, 2, 4)]
    joined = parts[0]
    for part in parts[1:]:
        joined = latent_batch(joined, part)
    assert torch.equal(joined["samples"], whole["samples"])
    assert joined["batch_index"] == whole["batch_index"]


def test_a_latent_taken_from_a_batch_does_not_keep_the_batch_in_memory() -> None:
    whole = latent(8, noise_mask=torch.rand(8, 1, 24, 40))
    part = latent_from_batch(whole, 3, 1)
    for name in ("samples", "noise_mask"):
        assert part[name].untyped_storage().nbytes() == part[name].numel() * 4


def test_every_repetition_has_noise_of_its_own() -> None:
    out = repeat_latent_batch(latent(3, batch_index=[4, 1, 7]), 4)
    assert len(set(out["batch_index"])) == 12
    assert out["batch_index"][:3] == [4, 1, 7]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_rebatching_keeps_order_noise_and_masks(size: int) -> None:
    batches = [latent(count, noise_mask=torch.rand(1, 1, 24, 40)) for count in (3, 1, 4)]
    out = rebatch_latents(batches, [size])
    assert all(batch["samples"].shape[0] == size for batch in out[:-1])
    assert torch.equal(torch.cat([b["samples"] for b in out]), torch.cat([b["samples"] for b in batches]))
    assert [i for batch in out for i in batch["batch_index"]] == list(range(8))
    masks = torch.cat([batch["noise_mask"] for batch in out])
    expected = torch.cat([b["noise_mask"].expand(len(b["samples"]), -1, -1, -1) for b in batches])
    assert torch.equal(masks, expected)


def test_masks_of_several_sizes_are_rebatched_at_the_size_of_the_latents() -> None:
    batches = [latent(1, noise_mask=torch.full((1, 1, 9, 9), 0.5)), latent(1)]
    (out,) = rebatch_latents(batches, [2])
    assert out["noise_mask"].shape == (2, 1, 24, 40)
    assert out["noise_mask"].mean(dim=(1, 2, 3)).tolist() == [0.5, 1.0]


def test_images_are_regrouped_in_order() -> None:
    images = [torch.rand(count, 2, 3, 3) for count in (2, 3)]
    out = rebatch_images(images, [2])
    assert [len(batch) for batch in out] == [2, 2, 1]
    assert torch.equal(torch.cat(out), torch.cat(images))


@pytest.mark.parametrize("rotation", ["90 degrees", "270 degrees"])
def test_four_quarter_turns_are_none(rotation: str) -> None:
    turned = [latent(2)]
    for _ in range(4):
        turned.append(latent_rotate(turned[-1], rotation))
    assert torch.equal(turned[0]["samples"], turned[4]["samples"])
    assert all(not torch.equal(a["samples"].mT, b["samples"]) for a, b in pairwise(turned))


def test_a_quarter_turn_is_clockwise() -> None:
    marked = {"samples": torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])}
    assert latent_rotate(marked, "90 degrees")["samples"].tolist() == [[[[3, 1], [4, 2]]]]


@pytest.mark.parametrize("dim", ["x", "y"])
def test_what_is_joined_can_be_cut_out_again(dim: str) -> None:
    first, second = latent(2, 4, 4), latent(2, 4, 4)
    joined = latent_concat(first, second, dim)
    assert torch.equal(latent_cut(joined, dim, 0, 4)["samples"], first["samples"])
    assert torch.equal(latent_cut(joined, dim, -4, 9)["samples"], second["samples"])


def test_a_crop_beyond_the_edge_is_moved_inside() -> None:
    whole = latent(1, 10, 12)
    out = latent_crop(whole, 64, 64, 8000, 8000)
    assert torch.equal(out["samples"], whole["samples"][:, :, 2:, 4:])


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_interpolation_ends_at_either_latent(batch: int) -> None:
    first, second = latent(batch), latent(1)
    for ratio, end in ((1.0, first), (0.0, second)):
        out = latent_interpolate(first, second, ratio)
        torch.testing.assert_close(out["samples"], end["samples"].expand(batch, -1, -1, -1))


def test_latents_never_vanish_by_scaling() -> None:
    out = latent_upscale_by(latent(1), "area", 0.01)
    assert out["samples"].shape == (1, 4, 1, 1)


def test_sharpening_latents_smaller_than_its_radius_is_refused_with_their_size() -> None:
    sharpen = latent_operation_sharpen(9, 1.0, 0.1)
    with pytest.raises(NodeError, match="sharpen_radius is 9 and the latents are 40×8"):
        sharpen(latent=torch.zeros(1, 4, 8, 40))


class Seen:
    """A runtime that keeps the images it is given."""

    images: torch.Tensor

    async def family(self, vae: Recipe) -> Any:
        return SimpleNamespace(factor=8)

    async def encode(self, vae: Recipe, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return torch.zeros(images.shape[0], 4, images.shape[1] // 8, images.shape[2] // 8)


async def test_the_vae_does_not_see_what_is_to_be_inpainted() -> None:
    images = torch.rand(2, 16, 24, 4)
    mask = torch.zeros(1, 16, 24)
    mask[:, 4:8, 10:12] = 0.8
    runtime = Seen()
    vae = Recipe("vae", "vae", "a")
    out = await vae_encode_for_inpaint(vae, images, mask, runtime, grow_mask_by=3)  # type: ignore[arg-type]
    hidden = mask[0] > 0
    torch.testing.assert_close(runtime.images[:, ~hidden], images[:, ~hidden, :3])
    assert torch.equal(runtime.images[:, hidden], torch.full((2, 8, 3), 0.5))
    grown = torch.zeros(1, 1, 16, 24)
    grown[..., 3:9, 9:13] = 1
    assert torch.equal(out["noise_mask"], grown)
