"""What a family of networks is: all that is particular to it, so that a new one is one file.

A subclass of one of the kinds below is a family; a value of it is one network of the family, of a size, as the names
and shapes of a file's tensors show it. `families/__init__.py` lists them; nothing else names one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.control.model_control import ActiveModelControl
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Shape, Tensors
from serve_app.models.forward import Bare
from serve_app.models.lora.layers import LoraSet
from serve_app.recipe import T5Padding, Training
from serve_app.sampling.forward import Canvas, Inputs
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.store.models.kinds import BACKBONE_PREFIXES
from serve_app.values import ClipVisionOutput, Conditioning, IllustratedText, Text, TokenizedText

Vectors: TypeAlias = Callable[[str, int, str], "Tensor | None"]
"""From an embedding's name and an encoder's width D and key to its vectors (N,D), or None if none fits."""


class Lexicon(Protocol):
    """What text encoders read beside their weights."""

    def vectors(self, name: str, width: int, key: str) -> Tensor | None:
        """Return an embedding's vectors, as `Vectors`."""
        ...

    def vocabulary(self, name: str) -> Path | None:
        """Return where a file of a tokeniser is, None if it is not there."""
        ...


class Located(NamedTuple):
    """A network found in files. tensors: of file number `file`, without the prefix of its names there.

    module: where they go in the network, "" or the name of a submodule with its dot.
    """

    family: Family
    tensors: Tensors
    file: int = 0
    prefix: str = ""
    module: str = ""


class File(Protocol):
    """An open model file."""

    @property
    def where(self) -> str: ...

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def tensor(self, name: str) -> Tensor: ...


class Family(ABC):
    """A family of networks; as a value, one of them."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float16,)
    """What it is run in on a GPU if nothing is set: the first that the GPU has, else float32."""

    @classmethod
    @abstractmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        """Yield the networks of the family in files. Errors: ModelFileError for one that cannot be used."""

    @abstractmethod
    def table(self, tensors: Tensors | None = None) -> Table:
        """Return where tensors that are named so go in the network; None: named as in the published single file."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network; in the context in which it is called, which may be that of the meta device."""

    def lora_names(self, parameters: Sequence[str]) -> Table:
        """Return layers' names in LoRA files -> what they change; none by default.

        That is a parameter of the network, or parts of a fused layer's that are parameters of their own.
        """
        return {}

    def empty(self) -> nn.Module:
        """Return the network on the meta device, holding no memory, ready for inference but for its tensors."""
        with torch.device("meta"):
            return self.build().eval().requires_grad_(False)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a network is asked for one piece of one run.

    x: (B,C,h,w) float32, scaled as the prediction wants it. sigma: their level; timestep: (B,), what the network is
    told of it. inputs: the family's own. loras, controls: what the recipe changes for these rows; layers: what layers
    do otherwise, as `sampling.layers` has it. exclusive: nothing shares their forward, and its outcome does not depend
    on earlier ones, to the bit. role: of their branch. functions: of node packs, as `PackFunctions.network`, in order.
    sigmas: the levels of the run, for functions.
    """

    x: Tensor
    sigma: float
    timestep: Tensor
    inputs: Any
    loras: LoraSet | None = None
    layers: tuple[Any, ...] = ()
    controls: tuple[ActiveModelControl, ...] = ()
    exclusive: bool = False
    role: str = "positive"
    functions: tuple[Mapping[str, Any], ...] = ()
    sigmas: Tensor | None = None

    @property
    def count(self) -> int:
        return self.x.shape[0]


class BackboneFamily(Family):
    """A family of diffusion networks. title: what errors call it."""

    title: ClassVar[str]
    marks: ClassVar[tuple[str, ...]]
    """Tensors of which each of its files has one."""
    latent_format: ClassVar[LatentFormat]
    keeps_clean: ClassVar[bool] = False
    """Whether it sees what a mask keeps without noise, at every level; by default at the level of the rest."""
    functions: ClassVar[frozenset[str]] = frozenset()
    """The functions of node packs that its forward runs, by ComfyUI's names."""
    text_prefixes: ClassVar[Mapping[str, str]] = {}
    """Under which prefixes its checkpoints keep text encoders, by their keys, where it is not the usual one."""
    vae_prefix: ClassVar[str] = "vae."
    """Under which its checkpoints keep the VAE."""

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        """Yield the network of the first file, as `Family.find`, where that has a mark and is recognised."""
        found = marked(files[0], BACKBONE_PREFIXES, cls.marks)
        if found is not None and cls.recognises(found[1]):
            prefix, tensors = found
            yield Located(cls.probe(tensors), tensors, prefix=prefix)

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        """Whether a backbone that has a mark is of this family, and of no other that has it too; by default it is."""
        return True

    @classmethod
    @abstractmethod
    def probe(cls, tensors: Tensors) -> BackboneFamily:
        """Return the network that a backbone's tensors are. Errors: ModelFileError for one of another build."""

    def saved_as(self) -> Mapping[str, str]:
        """Return what the metadata of a file says that ComfyUI saves; nothing by default."""
        return {}

    @abstractmethod
    def training(self, file: File, names: Mapping[str, str]) -> Training:
        """Return what a file's backbone predicts, and on which levels. names: the network's names -> the file's."""

    @abstractmethod
    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> Inputs:
        """Return what an entry of a conditioning tells the network, as `sampling.forward.Backbone.inputs`.

        trained_as: what `training` said of the file.
        """

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return what must be equal for pieces to share a forward: (C,h,w) by default."""
        return tuple(x.shape[1:])

    def cells(self, x: Tensor, inputs: Any) -> int:
        """Return how much work a piece's rows are, in latent cells.

        By default those of x (B,C,…), and of the inputs' `references` where a family looks at such.
        """
        return sum(latents[:, 0].numel() for latents in (x, *getattr(inputs, "references", ())))

    def filling(self, rows: Sequence[Rows], count: int) -> Rows | None:
        """Return so many rows that fill up a forward of these; None if it is to stay as it is, as by default.

        What the filling is answered does not matter.
        """
        return None

    def bare(self, network: Any, rows: Sequence[Rows]) -> Bare | None:
        """Return a forward with all that it is given prepared; None by default, where the host is needed in between."""
        return None

    def answers(self, made: Tensor, rows: Sequence[Rows]) -> list[Tensor]:
        """Return what each of the rows is answered, from what a bare forward of all gives, (R,…) float32."""
        return list(torch.split(made, [r.count for r in rows]))

    @abstractmethod
    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        """Return the network's output for each of the rows, from one forward. Their group keys are equal."""


class VaeFamily(Family):
    """A family of autoencoders between images and latents."""

    dtypes = (torch.bfloat16,)
    """In fp16 some published ones overflow."""

    frames: ClassVar[int] = 0
    """How many images of a video a latent covers, as in `LatentFormat`; 0 for an autoencoder of images alone."""

    latent_channels: int
    image_channels: int

    @property
    @abstractmethod
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""

    @abstractmethod
    def decode(self, network: Any, latents: Tensor) -> Tensor:
        """Return pixels (B,C,H,W) about −1…1 from latents (B,c,h,w), unscaled.

        Of a video: (B,C,F,H,W) from (B,c,T,h,w); all but the first latent stand for `frames` of the F images.
        """

    @abstractmethod
    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        """Return the mean latents of pixels."""


class VideoVaeFamily(VaeFamily):
    """A family of autoencoders of videos, which work through one from its first image on.

    A latent stands for `frames` images, the first for one.
    """

    @abstractmethod
    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield a video's images in order, (B,C,f,H,W) about −1…1, from its latents one by one, (B,c,1,h,w)."""

    @abstractmethod
    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield a video's mean latents in order, (B,c,1,h,w), from its images as `moments` divides them."""

    def moments(self, count: int) -> Iterator[slice]:
        """Yield which of so many images a latent stands for; what is over stands for none."""
        yield slice(0, 1)
        for first in range(1, count - self.frames + 1, self.frames):
            yield slice(first, first + self.frames)

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        return torch.cat(list(self.decode_frames(network, torch.split(latents, 1, 2))), 2)

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        moments = (pixels[:, :, moment] for moment in self.moments(pixels.shape[2]))
        return torch.cat(list(self.encode_frames(network, moments)), 2)


class VisionFamily(Family):
    """A family of image encoders. title: what errors call it.

    image_size: pixels along the sides of what it looks at. mean, spread: by which its channels are shifted and divided.
    """

    title: ClassVar[str]

    @property
    @abstractmethod
    def image_size(self) -> int: ...

    @property
    @abstractmethod
    def mean(self) -> Sequence[float]: ...

    @property
    @abstractmethod
    def spread(self) -> Sequence[float]: ...

    @abstractmethod
    def see(self, network: Any, pixels: Tensor) -> ClipVisionOutput:
        """Return what is seen in pixels (B,3,image_size,image_size), on their device."""


class StyleFamily(Family):
    """A family of networks that turn what is seen in images into tokens of a text. title: what errors call it.

    reads: width of the states that are seen, as `ClipVisionOutput.last_hidden_state`.
    """

    title: ClassVar[str]

    reads: int

    @abstractmethod
    def tokens(self, network: Any, states: Tensor) -> Tensor:
        """Return tokens (B,T,W) from states (B,N,reads)."""


@runtime_checkable
class Encoder(Protocol):
    """A text encoder on its device."""

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward. The conds and pooled outputs are float32 on its device.

        stop_at: the layer whose output is taken, counted from the end; None the usual one. padding: of T5's texts; None
        the usual. Errors: NodeError for texts or images that it does not read.
        """
        ...


@runtime_checkable
class TokenEncoder(Encoder, Protocol):
    """A text encoder whose tokens may be looked into, and exchanged."""

    def tokens(self, text: str) -> Mapping[str, list[list[tuple[Any, float, int]]]]:
        """Return a text's chunks by encoder: tokens or vectors, with weights and the number of their run, 0 of none."""
        ...


def own_text(text: Text, key: str) -> str:
    """Return which text is for the encoder that `Texts` knows by a key. Errors: NodeError if none is, or for images."""
    match text:
        case str():
            return text
        case IllustratedText():
            if text.images:
                raise NodeError(f"the text encoder '{key}' sees no images, and {len(text.images)} were given")
            return text.text
        case TokenizedText():
            raise NodeError(f"the text encoder '{key}' reads texts, not tokens that a node pack gives it")
    own: str | None = getattr(text, key, None)
    if own is None:
        raise NodeError(f"none of the texts is for the text encoder '{key}'")
    return own


class TextFamily(Family):
    """A family of text encoders, or of several that are read side by side. name: what errors call it.

    for_others: types of loaders that have it read for families that are not known here, and which those are.
    """

    name: ClassVar[str]
    for_others: ClassVar[Mapping[str, str]] = {}

    @property
    def title(self) -> str:
        """What errors call this one."""
        return self.name

    @property
    @abstractmethod
    def key(self) -> str:
        """What ComfyUI calls the encoder in names of tensors and files: "clip_l", "t5xxl" and so on."""

    def published(self, prefix: str) -> Table:
        """Return where the tensors of a file go in the network that has them under a prefix, "" for one of its own."""
        return self.table()

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> Mapping[str, str]:
        """Return layers' names in LoRA files, as `Family`. alone: no other encoder comes before it."""
        return {}

    def as_type(self, loaded_as: str) -> TextFamily:
        """Return the encoder as a loader's type reads it, "" where none says; the same for all types by default."""
        return self

    @abstractmethod
    def encoder(self, network: Any, lexicon: Lexicon) -> Encoder:
        """Return the encoder that a network is. Errors: ModelFileError if its tokeniser is not there."""


class TextEnsemble(TextFamily):
    """Text encoders that go together, as submodules of one network; a field for each.

    takes: their titles, with the names of the fields. name: of what reads them. types: the loaders' types they are for.
    partial: some of them will do, where a type asks for them; the fields of the others are None.
    """

    takes: ClassVar[Mapping[str, str]]
    types: ClassVar[tuple[str, ...]]
    partial: ClassVar[bool] = False

    @classmethod
    def fits(cls, titles: Sequence[str], loaded_as: str) -> bool:
        """Whether encoders of these titles are all of the ensemble, or as many as will do."""
        if len(set(titles)) != len(titles) or (loaded_as and loaded_as not in cls.types):
            return False
        return set(titles) <= cls.takes.keys() if cls.partial and loaded_as else set(titles) == cls.takes.keys()

    @property
    def key(self) -> str:
        return "".join(member.key for member in self.members.values())

    @property
    def members(self) -> Mapping[str, TextFamily]:
        """The encoders that are there, by the names of their submodules."""
        named = ((name, getattr(self, name)) for name in self.takes.values())
        return {name: family for name, family in named if family is not None}

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        """Yield nothing: the encoders are found one by one and then put together."""
        return iter(())

    def table(self, tensors: Tensors | None = None) -> Table:
        """Return nothing: each encoder has a table of its own."""
        return {}

    def build(self) -> nn.Module:
        return nn.ModuleDict({name: family.build() for name, family in self.members.items()})

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> Mapping[str, str]:
        names: dict[str, str] = {}
        for module, family in self.members.items():
            inside = [name.removeprefix(f"{module}.") for name in parameters if name.startswith(f"{module}.")]
            of_member = family.lora_names(inside, alone=not names)
            names |= {name: f"{module}.{parameter}" for name, parameter in of_member.items()}
        return names


def spec_of(architecture: str) -> dict[str, str]:
    """Return the metadata by which a file says its architecture. Source: Stability AI, Model Metadata Standard."""
    names = {"architecture": architecture, "sai_model_spec": "1.0.0", "implementation": "sgm", "title": "ComfyUI"}
    return {f"modelspec.{name}": value for name, value in names.items()}


def marked(whole: Tensors, prefixes: Iterable[str], marks: Iterable[str]) -> tuple[str, Tensors] | None:
    """Return the first prefix under which a file has one of the marks, and the tensors under it without it."""
    for prefix in prefixes:
        if any(prefix + mark in whole.shapes for mark in marks):
            return prefix, whole.within(prefix)
    return None
