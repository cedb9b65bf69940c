"""Applies model patches: networks of the folder "model_patches" that read a backbone's tokens and add to them.

A ControlNet runs before the backbone; these run block by block, on the backbone's intermediate tokens. Others steer
what layers read, or add image features to the text's tokens. Images are encoded once per run and size. Rows of many
jobs with the same network share its forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.models.control.control import Autoencoder
from serve_app.recipe.controls import ModelControl
from serve_app.sampling.forward import to_batch
from serve_app.sampling.schedules.levels import Levels
from serve_app.sampling.transfer import to_device

if TYPE_CHECKING:
    from serve_app.models.families.family import Rows


@dataclass(frozen=True, slots=True, eq=False)
class ControlImages:
    """The inputs of a model patch: the images of a `ModelControl`, and its VAE on the device, or None."""

    autoencoder: Autoencoder | None
    image: Tensor | None = None
    inpaint_image: Tensor | None = None
    mask: Tensor | None = None
    seen: tuple[Tensor, ...] = ()

    @property
    def vae(self) -> Autoencoder:
        """The VAE, which every node that supplies images supplies too."""
        assert self.autoencoder is not None, "images are given without a VAE"
        return self.autoencoder

    @property
    def kept(self) -> Tensor | None:
        """Where to keep the image, (N,H,W,1): 0 where to repaint. None without a mask."""
        if self.mask is None:
            return None
        return 1 - self.mask.float().reshape(-1, *self.mask.shape[-2:], 1)


@dataclass(frozen=True, slots=True, eq=False)
class SomeRows:
    """Rows of a forward that share a network. index: their indices, (R'). strength: (R',).

    read: their images as tokens, (B_i,n_i,F) for each piece.
    """

    index: Tensor
    strength: Tensor
    read: Sequence[Tensor]

    def add(self, tokens: Tensor, added: Tensor) -> None:
        """Add (R',n,D) to the first n tokens of the rows, in place. tokens: of all rows, (R,≥n,D)."""
        added = added * self.strength.view(-1, 1, 1).to(added.dtype)
        tokens[:, : added.shape[1]].index_add_(0, self.index, added.to(tokens.dtype))


class AtWork(ABC):
    """A network in one forward of a backbone. stack: the blocks it acts on, by its family's name for them."""

    @abstractmethod
    def before(self, stack: str, tokens: Tensor) -> None:
        """Read the input of a stack's first block, (R,≥n,D), the image's tokens first."""

    @abstractmethod
    def after(self, stack: str, number: int, tokens: Tensor) -> None:
        """Add to the output of a block, in place."""


class InputsAtWork(AtWork):
    """A network that changes what layers of a backbone's blocks read."""

    def before(self, stack: str, tokens: Tensor) -> None:
        """Do nothing."""

    def after(self, stack: str, number: int, tokens: Tensor) -> None:
        """Do nothing."""

    @abstractmethod
    def places(self) -> Iterable[tuple[int, str]]:
        """Return the layers, as the number of a block and a name within it."""

    @abstractmethod
    def steered(self, place: tuple[int, str], tokens: Tensor) -> Tensor:
        """Return what a layer reads instead of tokens (R,n,D)."""


class ModelPatchNetwork(nn.Module, ABC):
    """A model patch on its device."""

    @abstractmethod
    def check(self, name: str, images: ControlImages, backbone: Any) -> None:
        """Errors: NodeError for unsuitable images or another family's backbone. name: of the patch, for errors."""

    @abstractmethod
    def read(self, images: ControlImages, size: Sequence[int]) -> Tensor:
        """Return the images encoded for latents of a size, as tokens (N,n,F); valid for a whole run.

        size: (height, width), of a video (frames, height, width).
        """

    def reading(self, images: ControlImages, size: Sequence[int]) -> Generator[Any, None, Tensor]:
        """Do what `read` does, and return its tokens; yield between long parts."""
        yield from ()
        return self.read(images, size)


class BlockwiseNetwork(ModelPatchNetwork):
    """A model patch that adds to the outputs of a backbone's blocks."""

    @abstractmethod
    def at_work(self, rows: SomeRows, call: Any) -> AtWork:
        """Return it for one forward. call: the inputs of the family's backbone for all rows."""


class ModelPatch:
    """A network with the name of its file."""

    def __init__(self, name: str, network: ModelPatchNetwork) -> None:
        self.name = name
        self.network = network


@dataclass(frozen=True, slots=True, eq=False)
class ActiveModelControl:
    """One model control in one run. It acts on noise levels from `first` down to `last`."""

    patch: ModelPatch
    strength: float
    images: ControlImages
    first: float = inf
    last: float = 0.0
    _read: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def read(self, *size: int) -> Tensor:
        """Return its images encoded for latents of a size; an area of a canvas gets whole images."""
        if size not in self._read:
            self._read[size] = self.patch.network.read(self.images, size)
        return self._read[size]

    def prepared(self, *size: int) -> Iterator[Any]:
        """Encode its images for latents of a size, which `read` then returns; yield between long parts."""
        if size not in self._read:
            self._read[size] = yield from self.patch.network.reading(self.images, size)

    def acts(self, sigma: float) -> bool:
        """Return whether it acts at a noise level."""
        return self.last <= sigma <= self.first


def activated(
    control: ModelControl, patch: ModelPatch, vae: Autoencoder | None, backbone: Any, levels: Levels
) -> ActiveModelControl:
    """Return a control bound to a run. backbone: the one that it acts on. Errors: NodeError as `check`."""
    images = ControlImages(vae, control.image, control.inpaint_image, control.mask, control.seen)
    patch.network.check(patch.name, images, backbone)
    first, last = levels.at_progress(control.start_percent), levels.at_progress(control.end_percent)
    return ActiveModelControl(patch, control.strength, images, first, last)


def all_at_work(rows: Sequence[Rows], call: Any, video: Sequence[int] = ()) -> list[AtWork]:
    """Return the networks active on the rows of a forward, in order of application.

    That is each row's own order; a network at the same position in several rows is run once for all of them. video: the
    size of all rows' latents, where their x does not have it.
    """
    acting: list[AtWork] = []
    for place in range(max(len(r.controls) for r in rows)):
        under: dict[ModelPatch, list[tuple[int, ActiveModelControl, Rows]]] = {}
        first = 0
        for r in rows:
            if place < len(r.controls) and r.controls[place].acts(r.sigma):
                control = r.controls[place]
                under.setdefault(control.patch, []).append((first, control, r))
            first += r.count
        for patch, some in under.items():
            device = some[0][2].x.device
            index = [first + i for first, _, r in some for i in range(r.count)]
            strength = [control.strength for _, control, r in some for _ in range(r.count)]
            read = [to_batch(control.read(*(video or r.x.shape[-2:])), r.count) for _, control, r in some]
            of_rows = SomeRows(to_device(torch.tensor(index), device), to_device(torch.tensor(strength), device), read)
            assert isinstance(patch.network, BlockwiseNetwork), "check lets no other act on this backbone"
            acting.append(patch.network.at_work(of_rows, call))
    return acting


@contextmanager
def steering(blocks: nn.ModuleList, acting: Sequence[AtWork]) -> Iterator[None]:
    """Let those networks that change layers' inputs do so in the blocks of a backbone, in order."""
    with ExitStack() as hooks:
        for network in acting:
            if isinstance(network, InputsAtWork):
                for number, name in network.places():
                    layer = blocks[number].get_submodule(name)
                    hooks.callback(layer.register_forward_pre_hook(_before(network, (number, name))).remove)
        yield


def _before(network: InputsAtWork, place: tuple[int, str]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def steer(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return network.steered(place, arguments[0]), *arguments[1:]

    return steer


def text_tokens(row: Rows) -> list[Tensor]:
    """Return the text tokens that rows' controls add, (B,n,W) each."""
    return [to_batch(control.read(*row.x.shape[-2:]), row.count) for control in row.controls]


def fitted(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image (N,H,W,C) resized by area to a size in pixels, cropped to the centre where proportions differ."""
    return resize(image.float(), width, height, "area", "center")


def one_image(latents: Tensor, name: str) -> Tensor:
    """Return a video autoencoder's latents (1,C,1,h,w) of an image as (1,C,h,w). Errors: NodeError for more frames."""
    if latents.shape[2] != 1:
        raise NodeError(f"{name} reads one image, and was given a batch")
    return latents[:, :, 0]
