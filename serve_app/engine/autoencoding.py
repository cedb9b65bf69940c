"""VAE encoding and decoding within the device's memory: whole batches, then smaller slices, at last tiles.

Where the device runs out of memory, slices of the batch become smaller, down to one image; then idle weights are
evicted; then the image is tiled, with smaller and smaller tiles. What fits is remembered, so that the next image of
that size begins there. A video is processed one latent frame at a time, so its memory does not grow with its length.
All of it runs in the engine's thread.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from dataclasses import dataclass

from torch import Tensor

from serve_app import log
from serve_app.engine.budget import Budget
from serve_app.engine.device_lost import is_out_of_memory
from serve_app.engine.memory import EvictableWeights, Memory, room_bytes
from serve_app.errors import DeviceMemoryError
from serve_app.models.tiling import Tiles
from serve_app.models.vae import SLICE_PIXELS, Vae, Work
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.transfer import to_host
from serve_app.values import Tiling

_log = log.get("engine")

PIXEL_BYTES = 2400
"""What a pixel is assumed to need before any was measured: half as much again as SDXL's VAE takes in bf16."""

TILES = {
    "decode": (Tiling(512, 128), Tiling(256, 64), Tiling(128, 32)),
    "encode": (Tiling(512, 64), Tiling(256, 64), Tiling(128, 32)),
}
"""The tilings that are tried, in order. The first are those of ComfyUI where it runs out of memory."""


TRIED_AGAIN = 100
"""After this many tiled runs an image is tried as a whole again: memory may have been freed."""


@dataclass(slots=True)
class _Found:
    """too_large: pixels of the smallest image that did not fit. tiling: index of the next of TILES. used: how often."""

    too_large: int
    tiling: int = 0
    used: int = 0


class Autoencoding:
    """Runs VAEs on one device. weights: idle ones make way for them; memory: the device's, if known."""

    def __init__(self, weights: EvictableWeights, memory: Memory | None = None) -> None:
        self.failures = 0
        """How often the device ran out of memory."""
        self.in_tiles = 0
        """How many works were tiled because of that."""
        self._weights = weights
        self._memory = memory
        self._budget = Budget(SLICE_PIXELS, PIXEL_BYTES)
        self._found: dict[tuple[Recipe, Work], _Found] = {}

    def whole(self, vae: Recipe, model: Vae, work: Work, batch: Tensor) -> Tensor:
        """Return what a VAE makes of a batch (B,…), of at least an image at once; on the host, as `to_host` has it.

        Errors: DeviceMemoryError where one image does not fit, at once where that is known.
        """
        key, pixels = (vae, work), model.pixels(work, batch)
        self._check_fits(key, pixels)
        model = self._in_room(key, model, pixels)
        while True:
            slice_pixels = self._slice_pixels(key)
            made = self._try(key, model, batch, slice_pixels, pixels)
            if isinstance(made, Tensor):
                return made
            if slice_pixels < 2 * pixels or len(batch) == 1:
                self._make_room(key, pixels, made)

    def by_latent_frames(self, vae: Recipe, model: Vae, work: Work, batch: Tensor) -> Tiles:
        """Return what a VAE makes of videos, moment by moment.

        Errors: DeviceMemoryError where a moment does not fit, at once where that is known.
        """
        key, pixels = (vae, work), model.pixels(work, batch)
        self._check_fits(key, pixels)
        model = self._in_room(key, model, pixels)
        while True:
            made = yield from _until_it_runs_out(model.by_latent_frames(work, batch))
            if isinstance(made, Tensor):
                return made
            self._ran_out()
            _log.warning("a moment of a video did not fit the device: vae=%s %s pixels=%d", vae.name, work, pixels)
            self._make_room(key, pixels, made)

    def tiled(self, vae: Recipe, model: Vae, work: Work, batch: Tensor) -> Tiles:
        """Return what a VAE makes of a batch of images that are too large, tile by tile.

        Errors: DeviceMemoryError where the smallest tiles do not fit.
        """
        tilings, found = TILES[work], self._found.setdefault((vae, work), _Found(0))
        # Tiles may run out of memory too, which no other device must wait for.
        model = model.alone
        found.used += 1
        self.in_tiles += 1
        if found.used >= TRIED_AGAIN:
            del self._found[vae, work]
        while True:
            tiling = tilings[found.tiling]
            tiles = (model.decode_tiled if work == "decode" else model.encode_tiled)(batch, tiling)
            made = yield from _until_it_runs_out(tiles)
            if isinstance(made, Tensor):
                return made
            self._ran_out()
            _log.warning("tiles of a VAE did not fit the device: vae=%s %s side=%d", vae.name, work, tiling.size)
            if tiling is tilings[-1]:
                raise DeviceMemoryError(f"tiles of {tiling.size}×{tiling.size} do not fit the device's memory: {made}")
            found.tiling = tilings.index(tiling) + 1

    def _in_room(self, key: tuple[Recipe, Work], model: Vae, pixels: int) -> Vae:
        """Return a VAE as this device's alone where others would compute with it, and a whole image might not fit one.

        The others wait for a device that runs out of memory, so the replica would end.
        """
        room = None if self._memory is None else room_bytes(self._memory, self._weights)
        return model if room is None or self._budget.expects(key, pixels) <= room else model.alone

    def _check_fits(self, key: tuple[Recipe, Work], pixels: int) -> None:
        """Errors: DeviceMemoryError where an image of `pixels` is known not to fit as a whole."""
        found = self._found.get(key)
        if found is not None and pixels >= found.too_large:
            raise DeviceMemoryError(f"{pixels:,} pixels do not fit the device's memory as one")

    def _make_room(self, key: tuple[Recipe, Work], pixels: int, figures: str) -> None:
        """Evict idle weights, so that the work is tried again. Errors: DeviceMemoryError where there are none."""
        if not self._weights.release():
            self._found[key] = _Found(pixels)
            raise DeviceMemoryError(f"{pixels:,} pixels do not fit the device's memory as one: {figures}")

    def _slice_pixels(self, key: Hashable) -> int:
        room = None if self._memory is None else room_bytes(self._memory, self._weights)
        return self._budget.limit(key, room)

    def _try(self, key: tuple[Recipe, Work], model: Vae, batch: Tensor, slice_pixels: int, pixels: int) -> Tensor | str:
        """Return what a VAE makes of a batch, or torch's words where the device runs out of memory."""
        (vae, work), held = key, 0
        taken_pixels = min(len(batch), max(1, slice_pixels // pixels)) * pixels
        if self._memory is not None:
            self._memory.watch()
            held = self._memory.allocated_bytes()
        try:
            made = to_host((model.decode if work == "decode" else model.encode)(batch, slice_pixels))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            figures = DeviceMemoryError.figures(error)
        else:
            self._budget.answered(key, taken_pixels, None if self._memory is None else self._memory.peak_bytes() - held)
            return made
        # Here the error is gone, and with it the tensors of the failed work.
        self._budget.failed(key, taken_pixels)
        self._ran_out()
        _log.warning("a VAE's work did not fit the device: vae=%s %s pixels=%d", vae.name, work, taken_pixels)
        return figures

    def _ran_out(self) -> None:
        self.failures += 1
        if self._memory is not None:
            self._memory.empty_with_replays()


def _until_it_runs_out(tiles: Tiles) -> Generator[tuple[int, int], None, Tensor | str]:
    """Return what tiles make, or torch's words where the device runs out of memory."""
    try:
        return (yield from tiles)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return DeviceMemoryError.figures(error)
