"""A job's noise, drawn from its seed alone, so batching never changes it.

Initial noise is drawn on the CPU. Samplers' noise is drawn where ComfyUI draws it, so that a seed gives the same
picture: on the run's device, except Brownian paths of samplers that are not named after the GPU. Devices of one kind
draw equal noise. `levels` says how noise is added to latents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from itertools import islice
from math import prod, sqrt
from threading import Lock
from weakref import ref

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nested_tensor import NestedTensor, Samples, parts_of
from serve_app.sampling.draws import draws_of, thread
from serve_app.sampling.samplers.brownian import BrownianPath
from serve_app.sampling.samplers.evaluation import DrawnNoise
from serve_app.sampling.transfer import to_device
from serve_app.values import Noise

SEEDS = 2**64
"""Seeds are taken modulo this."""

MOST_DRAWN = 2**28
"""Limit on the numbers drawn for latents whose noise is further on in a seed's sequence.

4,096 images of 1024×1024 with four channels take some seconds of a CPU.
"""

AHEAD = 4
"""How many draws of a run are made in advance: about two forwards' worth."""


def noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Return unit-variance noise of a shape (B,C,h,w), float32 on the CPU.

    batch_index: position in the seed's sequence of each of the B latents; may repeat. None: the B are drawn at once,
    which for very small latents is another sequence. Source: ComfyUI's noise for a seed.
    """
    return _drawn(shape, torch.Generator().manual_seed(seed % SEEDS), batch_index)


def after_noise(
    shapes: Iterable[Sequence[int]], seed: int, batch_index: Sequence[int] | None = None
) -> torch.Generator:
    """Return the seed's generator after the noise of latents, from which layers draw in ComfyUI. shapes: of parts."""
    generator = torch.Generator().manual_seed(seed % SEEDS)
    for shape in shapes:
        _drawn(shape, generator, batch_index)
    return generator


def _drawn(shape: Sequence[int], generator: torch.Generator, batch_index: Sequence[int] | None) -> Tensor:
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator)
    count, wanted = max(batch_index) + 1, set(batch_index)
    if (values := count * prod(shape[1:])) > MOST_DRAWN:
        raise NodeError(
            f"the batch_index of latents has {max(batch_index):,}: the noise up to that is of {values:,} numbers, "
            f"and {MOST_DRAWN:,} are drawn at most"
        )
    drawn: dict[int, Tensor] = {}
    for index in range(count):
        of_one = torch.randn((1, *shape[1:]), generator=generator)
        if index in wanted:
            drawn[index] = of_one
    return torch.cat([drawn[index] for index in batch_index])


def drawn(given: Noise, samples: Samples, batch_index: Sequence[int] | None = None) -> Samples:
    """Return the numbers of a NOISE for samples, float32 on the CPU; zeros if it adds none. Errors: NodeError.

    The noise of several parts is drawn part after part, as in ComfyUI. batch_index: as `noise`.
    """
    parts = parts_of(samples)
    if given.draw is not None:
        own = parts_of(given.draw(samples, batch_index))
        if len(own) != len(parts) or not all(_fits(made, part) for made, part in zip(own, parts, strict=True)):
            of, to = (" and ".join("×".join(map(str, t.shape)) for t in tensors) for tensors in (own, parts))
            raise NodeError(f"a node pack made noise {of} for latents {to}; their shapes must agree")
        made = [part.to("cpu", torch.float32).expand_as(like) for part, like in zip(own, parts, strict=True)]
    elif given.added:
        generator = torch.Generator().manual_seed(given.seed % SEEDS)
        made = [_drawn(part.shape, generator, batch_index) for part in parts]
    else:
        made = [torch.zeros(part.shape) for part in parts]
    return NestedTensor(made) if isinstance(samples, NestedTensor) else made[0]


def _fits(made: Tensor, latents: Tensor) -> bool:
    return made.shape[1:] == latents.shape[1:] and made.shape[0] in (1, latents.shape[0])


def gaussian_noise(x: Tensor, _sigmas: Tensor, seed: int) -> DrawnNoise:
    """Return a source of independent noise shaped as x, drawn on its device."""
    generator = seeded(x.device, own_seed(x.device, seed))

    def draw(_sigma: float, _following: float) -> Tensor:
        return torch.randn(x.shape, generator=generator, device=x.device)

    return draw


def own_seed(device: torch.device, seed: int) -> int:
    """Return the seed for a run's sampler noise.

    On a CPU it is the run's seed plus one, as in ComfyUI: the run's own would repeat the initial noise of x.
    """
    return seed + 1 if device.type == "cpu" else seed


def seeded(device: torch.device, seed: int) -> torch.Generator:
    """Return a new generator of a device with a seed."""
    return torch.Generator(device).manual_seed(seed % SEEDS)


def brownian_noise(x: Tensor, sigmas: Tensor, seed: int, *, on_device: bool = False) -> BrownianNoise:
    """Return a source of increments of one Brownian path over sigma, shaped as x.

    A step and its stages share the path, and so do runs of other step counts between the same levels. on_device: the
    path is drawn on the device of x.
    """
    if on_device:
        return BrownianNoise(x, sigmas, seed, partial(seeded, x.device))
    return BrownianNoise(x, sigmas, seed)


class BrownianNoise:
    """The source that `brownian_noise` returns. For a GPU it can draw ahead of use.

    generator: of a seed, on the device where the path is drawn; default: on the CPU.
    """

    def __init__(
        self, x: Tensor, sigmas: Tensor, seed: int, generator: Callable[[int], torch.Generator] | None = None
    ) -> None:
        self._shape, self._device = x.shape, x.device
        self._sigmas, self._seed, self._generator = sigmas, seed, generator
        self._path: BrownianPath | None = None
        # Used by one thread at a time; the order of uses changes nothing.
        self._lock = Lock()
        self._draws = draws_of(x.device)
        self._thread: Executor | None = None
        self._ahead: deque[tuple[tuple[float, float], Future[Callable[[], Tensor]]]] = deque()
        self._expected: Iterator[tuple[float, float]] = iter(())

    def expect(self, pairs: Iterable[tuple[float, float]]) -> None:
        """Draw increments between these levels in the background, in this order, if they are for a GPU.

        A CPU would only do the same work earlier.
        """
        if self._device.type != "cpu":
            self._thread, self._expected = thread(), iter(pairs)
            self._draw_ahead(self._thread)

    def __call__(self, sigma: float, following: float) -> Tensor:
        hand_over = self._taken(sigma, following) or self.draw(sigma, following)
        if self._thread is not None:
            self._draw_ahead(self._thread)
        return hand_over()

    def _taken(self, sigma: float, following: float) -> Callable[[], Tensor] | None:
        """Take the increment drawn ahead between these levels. None: none was, or its memory was reclaimed."""
        if not self._ahead or self._ahead[0][0] != (sigma, following):
            return None
        try:
            return self._ahead.popleft()[1].result()
        except torch.OutOfMemoryError:
            return None

    def _draw_ahead(self, by: Executor) -> None:
        for pair in islice(self._expected, max(0, AHEAD - len(self._ahead))):
            self._ahead.append((pair, by.submit(_drawn_for, ref(self), pair)))

    def draw(self, sigma: float, following: float) -> Callable[[], Tensor]:
        with self._lock:
            return self._draws.made(lambda: to_device(self._between(sigma, following), self._device))

    def _between(self, sigma: float, following: float) -> Tensor:
        if self._path is None:
            levels = self._sigmas
            low, high = float(levels[levels > 0].min()), float(levels.max())
            self._path = BrownianPath(self._shape, low, high, self._seed % SEEDS, self._generator)
        return self._path.between(sigma, following) / sqrt(abs(following - sigma))


def _drawn_for(source: ref[BrownianNoise], pair: tuple[float, float]) -> Callable[[], Tensor]:
    """Draw for a run unless it has ended. Errors: ReferenceError, which nobody then awaits."""
    if (wanted := source()) is None:
        raise ReferenceError("the run has ended that the noise is of")
    return wanted.draw(*pair)
