"""An autoencoder on strips of images makes what it makes of whole ones; ranks are threads here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve_app.models.families import VAES, HunyuanVideo15Vae, Ltx2Vae, Wan22Vae, WanVae
from serve_app.models.families.family import VideoVaeFamily
from serve_app.models.ranks.strips import Strips, strip_rows
from serve_app.models.vae import PieceWork, pieces
from tests.unit.engine.mixes import relative_error
from tests.unit.models.ranks.threads import Threads, on_ranks
from tests.unit.models.sample import by_own_names

SIZES = (2, 3, 4)
ROWS = 9
"""Of latents, which no number of ranks above divides but three."""
LAYERS, SPACE, TIME, ALL = ("res_x", 1), ("compress_space_res", 2), ("compress_time_res", 2), ("compress_all_res", 2)
LARGER = ("compress_all", 2)


def ltx(padding: str) -> Ltx2Vae:
    """Return a small autoencoder of LTX-2. padding: at the sides of images."""
    encoder, decoder = (LAYERS, SPACE, TIME, ALL, LAYERS, ALL), (LAYERS, LARGER, LARGER, LAYERS, LARGER)
    return Ltx2Vae(8, 8, 64, encoder, decoder, (False, True, True, False, True), 9, (padding, padding), causal=False)


FAMILIES: Mapping[str, VideoVaeFamily] = {
    "wan21": WanVae(8, latent_channels=4, image_channels=3),
    "wan22": Wan22Vae(8, 12, latent_channels=4, image_channels=3),
    "hunyuan15": HunyuanVideo15Vae(8, (8, 8, 16, 16, 32)),
    "ltx2": ltx("zeros"),
    "ltx2 reflected": ltx("reflect"),
}
"""Small networks of all families of which ranks have strips."""


@cache
def network(name: str) -> nn.Module:
    family = FAMILIES[name]
    built = family.build().eval().requires_grad_(False)
    built.load_state_dict(by_own_names(family))
    return built


def given(name: str, work: PieceWork, latent_frames: int) -> list[Tensor]:
    """Return the pieces of a video, by latent frames."""
    family, generator = FAMILIES[name], torch.Generator().manual_seed(1)
    decodes = work.startswith("decode")
    channels, scale = (family.latent_channels, 1) if decodes else (family.image_channels, family.factor)

    def piece(frames: int) -> Tensor:
        return torch.randn(1, channels, frames, ROWS * scale, 2 * scale, generator=generator)

    return [piece(1 if decodes or frame == 0 else family.frames) for frame in range(latent_frames)]


@pytest.mark.parametrize("size", [*SIZES[:2], *(pytest.param(size, marks=pytest.mark.long) for size in SIZES[2:])])
@pytest.mark.parametrize("work", ["decode_frames", "encode_frames"])
@pytest.mark.parametrize("name", FAMILIES)
def test_strips_of_a_video_are_those_of_the_whole(name: str, work: PieceWork, size: int) -> None:
    family, net, video = FAMILIES[name], network(name), given(name, work, 3)
    rows = strip_rows(ROWS, size)
    assert rows is not None

    def strips_made(ranks: Threads) -> list[Tensor]:
        strips, made = Strips(ranks, rows), []
        with torch.inference_mode():
            own = (strips.split(piece)[ranks.rank] for piece in video)
            steps = pieces(family, net, work, own)
            while True:
                with strips.working():
                    piece = next(steps, None)
                if piece is None:
                    return made
                made.append(piece)

    with torch.inference_mode():
        whole = list(pieces(family, net, work, video))
    joined = [torch.cat(strips, -2) for strips in zip(*on_ranks(size, strips_made), strict=True)]
    for ours, theirs in zip(joined, whole, strict=True):
        assert relative_error(ours, theirs) <= 1e-5


def test_all_families_of_which_ranks_have_strips_are_compared() -> None:
    assert {family for family in VAES if family.strips} == {type(family) for family in FAMILIES.values()}


def test_strips_have_the_rows_that_a_convolution_reads() -> None:
    assert strip_rows(9, 4) == [3, 2, 2, 2]
    assert strip_rows(7, 4) is None
    assert strip_rows(4, 2) == [2, 2]


def test_a_mode_outside_sees_nothing_of_what_ranks_do_together() -> None:
    """One that ends the work of a rank would leave the others waiting."""

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(f"{func} was seen")

    x = torch.ones(1, 1, 4, 4)

    def padded(ranks: Threads) -> Tensor:
        with Seen(), Strips(ranks, [2, 2]).working():
            return torch.nn.functional.pad(x[:, :, :2] * (ranks.rank + 1), (1, 1, 1, 1))

    above, below = on_ranks(2, padded)
    assert above[0, 0, :, 1].tolist() == [0, 1, 1, 2]
    assert below[0, 0, :, 1].tolist() == [1, 2, 2, 0]
