"""Model controls at work: networks of the folder "model_patches", which read a backbone's tokens and add to them.

A ControlNet answers before the backbone runs; these answer block by block, from what the backbone has made so far.
Others say what images are like in tokens of the text. Images are encoded once per run and size. Rows of many jobs that
are under the same network share its forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.models.control.control import Autoencoder
from serve_app.recipe import ModelControl
from serve_app.sampling.forward import to_batch
from serve_app.sampling.transfer import sent

if TYPE_CHECKING:
    from serve_app.models.families.family import Rows


@dataclass(frozen=True, slots=True, eq=False)
class ControlImages:
    """What a network is shown: the images of a `ModelControl`, and the VAE on its device, None where none is given."""

    autoencoder: Autoencoder | None
    image: Tensor | None = None
    inpaint_image: Tensor | None = None
    mask: Tensor | None = None
    seen: tuple[Tensor, ...] = ()

    @property
    def vae(self) -> Autoencoder:
        """The VAE, which every node gives that shows images."""
        assert self.autoencoder is not None, "images are shown without a VAE"
        return self.autoencoder

    @property
    def kept(self) -> Tensor | None:
        """Where the image is kept, (N,H,W,1): 1 there, 0 where it is to be made anew. None without a mask."""
        if self.mask is None:
            return None
        return 1 - self.mask.float().reshape(-1, *self.mask.shape[-2:], 1)


@dataclass(frozen=True, slots=True, eq=False)
class SomeRows:
    """Rows of a forward that are under one network. index: which, (R',). strength: (R',).

    read: what their images say, (B_i,n_i,F) for each piece of them.
    """

    index: Tensor
    strength: Tensor
    read: Sequence[Tensor]

    def add(self, tokens: Tensor, added: Tensor) -> None:
        """Add (R',n,D) to the first n tokens of the rows, in place. tokens: of all rows, (R,≥n,D)."""
        added = added * self.strength.view(-1, 1, 1).to(added.dtype)
        tokens[:, : added.shape[1]].index_add_(0, self.index, added.to(tokens.dtype))


class AtWork(ABC):
    """A network in one forward of a backbone. stack: which blocks of it, by its family's name for them."""

    @abstractmethod
    def before(self, stack: str, tokens: Tensor) -> None:
        """Take in what the first block of a stack is given, (R,≥n,D), the image's tokens first."""

    @abstractmethod
    def after(self, stack: str, number: int, tokens: Tensor) -> None:
        """Add to what a block has made, in place."""


class ModelPatchNetwork(nn.Module, ABC):
    """A network on its device."""

    @abstractmethod
    def check(self, name: str, shown: ControlImages, backbone: Any) -> None:
        """Errors: NodeError for images or a family's backbone that it does not go with. name: what errors call it."""

    @abstractmethod
    def read(self, shown: ControlImages, height: int, width: int) -> Tensor:
        """Return what images say for latents of height×width, as tokens (N,n,F); it holds for a whole run."""


class BlockwiseNetwork(ModelPatchNetwork):
    """A network that adds to what a backbone's blocks make."""

    @abstractmethod
    def at_work(self, rows: SomeRows, call: Any) -> AtWork:
        """Return it for one forward. call: what the family's backbone is given for all rows."""


class ModelPatch:
    """A network with the name of its file: what runs hold of it."""

    def __init__(self, name: str, network: ModelPatchNetwork) -> None:
        self.name = name
        self.network = network


@dataclass(frozen=True, slots=True, eq=False)
class ActiveModelControl:
    """One model control in one run."""

    patch: ModelPatch
    strength: float
    shown: ControlImages
    _read: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def read(self, height: int, width: int) -> Tensor:
        """Return what its images say for latents of a size; an area of a canvas is shown them whole."""
        if (height, width) not in self._read:
            self._read[height, width] = self.patch.network.read(self.shown, height, width)
        return self._read[height, width]


def activated(control: ModelControl, patch: ModelPatch, vae: Autoencoder | None, backbone: Any) -> ActiveModelControl:
    """Return a control as runs have it. backbone: the family's, that it acts on. Errors: NodeError as `check`."""
    shown = ControlImages(vae, control.image, control.inpaint_image, control.mask, control.seen)
    patch.network.check(patch.name, shown, backbone)
    return ActiveModelControl(patch, control.strength, shown)


def all_at_work(rows: Sequence[Rows], call: Any) -> list[AtWork]:
    """Return what acts on the rows of a forward, in the order in which it is to be asked.

    That is each row's own order; networks at the same place of it are asked once for all rows.
    """
    acting: list[AtWork] = []
    for place in range(max(len(r.controls) for r in rows)):
        under: dict[ModelPatch, list[tuple[int, ActiveModelControl, Rows]]] = {}
        first = 0
        for r in rows:
            if place < len(r.controls):
                control = r.controls[place]
                under.setdefault(control.patch, []).append((first, control, r))
            first += r.count
        for patch, some in under.items():
            device = some[0][2].x.device
            index = [first + i for first, _, r in some for i in range(r.count)]
            strength = [control.strength for _, control, r in some for _ in range(r.count)]
            read = [to_batch(control.read(*r.x.shape[-2:]), r.count) for _, control, r in some]
            of_rows = SomeRows(sent(torch.tensor(index), device), sent(torch.tensor(strength), device), read)
            assert isinstance(patch.network, BlockwiseNetwork), "check lets no other act on this backbone"
            acting.append(patch.network.at_work(of_rows, call))
    return acting


def text_tokens(row: Rows) -> list[Tensor]:
    """Return what the controls of rows say as tokens of their text, (B,n,W) each."""
    return [to_batch(control.read(*row.x.shape[-2:]), row.count) for control in row.controls]


def fitted(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image (N,H,W,C) of a size in pixels, by area, its middle where the proportions differ."""
    return resize(image.float(), width, height, "area", "center")


def one_image(latents: Tensor, name: str) -> Tensor:
    """Return a video autoencoder's latents (1,C,1,h,w) of an image as (1,C,h,w). Errors: NodeError for more frames."""
    if latents.shape[2] != 1:
        raise NodeError(f"{name} reads one image, and was shown a batch of them")
    return latents[:, :, 0]
