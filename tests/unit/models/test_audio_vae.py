"""Decoding sounds in tiles, from a GPU that fills what is copied to the host later."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor

from serve_app.models.audio_vae import AudioVae
from serve_app.models.tiling import Tiles
from serve_app.values import SoundTiling


def test_a_tile_is_read_once_the_caller_has_asked_for_more() -> None:
    pending: list[Tensor] = []
    made: list[Tensor] = []
    progress: list[tuple[int, int]] = []

    def decode(vae: AudioVae, latents: Tensor) -> Tensor:
        tile = torch.full((1, 1, 2 * latents.shape[-1]), torch.nan)
        pending.append(tile)
        return tile

    def reader() -> Tiles:
        whole: Tensor = yield from AudioVae.decode_tiled(
            object.__new__(AudioVae), torch.zeros(1, 4, 10), SoundTiling(4, 1)
        )
        made.append(whole)
        return whole

    with mock.patch.object(AudioVae, "decode", decode):
        for step in reader():
            progress.append(step)
            pending.pop().fill_(3.0)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    torch.testing.assert_close(made[0], torch.full((1, 1, 20), 3.0))
