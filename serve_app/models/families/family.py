"""The interface of a family: everything particular to one architecture, so that adding one is adding one file.

A subclass of a class below is a family; an instance is one network of it, of the size that names and shapes of a file's
tensors imply. Only `families/__init__.py` lists families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.control.model_control import ActiveModelControl
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Shape, Tensors
from serve_app.models.forward import CapturableCall
from serve_app.models.kernels.in_place import in_place
from serve_app.models.lora.layers import LoraSet
from serve_app.models.unequal_texts import JointAttention
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Training
from serve_app.sampling.forward import Canvas, Injection, Inputs
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.store.models.kinds import BACKBONE_PREFIXES, ROLES
from serve_app.values import ClipVisionOutput, Search


class Located(NamedTuple):
    """A network found in files. tensors: those of file number `file`, with the prefix removed from their names.

    module: where they go in the network: "" or a submodule's name with its dot.
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
    """A family of networks; an instance is one network of it."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float16,)
    """Preferred compute dtypes on a GPU: the first that the GPU supports, else float32."""

    @classmethod
    @abstractmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        """Yield the networks of this family in files. Errors: ModelFileError for one that cannot be used."""

    def single(self, name: str) -> bool:
        """Whether a tensor of the network stays in float32, whatever the rest computes in; False by default."""
        return False

    @abstractmethod
    def table(self, tensors: Tensors | None = None) -> Table:
        """Return the mapping from tensor names in a file to the network's; None: names of the published single file."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network, on the default device of the caller's context, which may be meta."""

    def lora_names(self, parameters: Sequence[str]) -> Table:
        """Return a mapping from layers' names in LoRA files to the parameters they change; empty by default.

        A target may be a part of a fused layer.
        """
        return {}

    def empty(self) -> nn.Module:
        """Return the network on the meta device, in inference mode and without tensors."""
        with torch.device("meta"):
            return in_place(self.build()).eval().requires_grad_(False)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows that one piece of one run contributes to a batch.

    x: (B,C,h,w) float32, times c_in. sigma: their noise level; timestep: (B,), that level as the network reads it.
    inputs: the family's conditioning inputs. loras, controls: the recipe's changes for these rows; layers: patches of
    layers, as in `sampling.guidance.layers`. exclusive: they share no forward, and their outputs do not depend, to the
    bit, on earlier ones. role: of their branch. functions: of node packs, as `PackFunctions.network`, in order. sigmas:
    noise levels of the run, for functions. training: what a patch of the recipe sets; None: the file's. recipe: by
    which another rank finds the weights and LoRAs; None: it cannot. steps_left: of the run, with this one; 0: unknown.
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
    training: Training | None = None
    recipe: Recipe | None = None
    steps_left: int = 0

    @property
    def count(self) -> int:
        return self.x.shape[0]


class BackboneFamily(Family):
    """A family of diffusion networks. title: its name in errors, and of its files in `store/models/kinds.py`."""

    title: ClassVar[str]
    kind: ClassVar[str] = ""
    """The title of its files there, where that is another one."""
    latent_format: ClassVar[LatentFormat]
    rows_are_frames: ClassVar[bool] = False
    """Whether a run's rows are the frames of one video, which the network reads together."""
    keeps_clean: ClassVar[bool] = False
    """Whether masked-out latents reach the network without noise; by default they have the level of the rest."""
    dispatches: ClassVar[bool] = True
    """Whether its layers ask diffusers' dispatcher for attention, and not torch itself."""
    searches: ClassVar[tuple[type, ...]] = ()
    """What its networks are asked to find in images, of the kinds of `values.Search`."""
    functions: ClassVar[frozenset[str]] = frozenset()
    """Names of the node packs' functions that its forward calls, as ComfyUI names them."""
    text_prefixes: ClassVar[Mapping[str, str]] = {}
    """Prefixes of text encoders in its checkpoints, by encoder key, where they are unusual."""
    trained_as: ClassVar[Training]
    """What all files of the family were trained to predict, on which noise levels, if that is known."""
    vae_prefix: ClassVar[str] = "vae."
    """Prefix of the VAE in its checkpoints."""
    text_width: int
    """Width of a text's rows."""

    @property
    def sharded_heads(self) -> int | None:
        """The heads of its attention, if its forward can shard tokens over ranks (`ranks.sharding`); else None."""
        return None

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        """Yield the network of the first file, as `Family.find`, if that is of its kind and recognised."""
        found = cls.of_kind(files[0])
        if found is not None and cls.recognises(found[1]):
            prefix, tensors = found
            yield Located(cls.probe(tensors), tensors, prefix=prefix)

    @classmethod
    def of_kind(cls, whole: Tensors) -> tuple[str, Tensors] | None:
        """Return the prefix under which a file is of the family's kind, and the tensors under it without the prefix."""
        prefix = ROLES["backbone"].kind_of(cls.kind or cls.title).prefix(whole.shapes, BACKBONE_PREFIXES)
        return None if prefix is None else (prefix, whole.within(prefix))

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        """Whether a backbone of its kind is of this family and not of another of the same kind; True by default."""
        return True

    @classmethod
    @abstractmethod
    def probe(cls, tensors: Tensors) -> BackboneFamily:
        """Return the network that a backbone's tensors describe. Errors: ModelFileError for an unsupported variant."""

    def own_texts(self, network: Any) -> Mapping[str, Tensor]:
        """Return the texts (1,T,D) that its files hold, by role. Errors: NodeError for a family without any."""
        raise NodeError(f"a backbone of {self.title} has no texts of its own; one of SeedVR2 has them")

    def check_search(self, request: Search) -> None:
        """Errors: NodeError for a family that does not find such things, and for what it cannot search by."""
        if not isinstance(request, self.searches):
            raise NodeError(f"a backbone of {self.title} does not find {request.finds}; one of {request.finder} does")

    def searched(self, network: Any, request: Any) -> Generator[tuple[int, int], None, Any]:
        """Yield (images done, images in all), and return what is found, as `Runtime.search`.

        request: one that `check_search` allows.
        """
        raise NotImplementedError

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        """Return a conditioning of a text, cond (1,T,D) and options, without numbers, to count a forward's cost."""
        return torch.empty(1, tokens, self.text_width, device="meta"), {}

    def needed_options(self, latents: Any) -> Mapping[str, Any]:
        """Return the options without which it samples no such latents, without numbers; empty by default."""
        return {}

    def saved_as(self) -> Mapping[str, str]:
        """Return metadata that ComfyUI writes to saved files of this family; empty by default."""
        return {}

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        """Return what a file's backbone predicts, on which noise levels: `trained_as`, unless files say.

        names: the network's names -> the file's.
        """
        return self.trained_as

    def format_of(self, training: Training) -> LatentFormat:
        """Return its latents' format with a training, by default the same with all. Errors: NodeError."""
        return self.latent_format

    def injection(self, canvas: Canvas, training: Training) -> Injection | None:
        """Return what a run has in the place of what it keeps, as `sampling.forward.Backbone.injection`."""
        return None

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
        """Return an entry's conditioning inputs for the network, as `sampling.forward.Backbone.inputs`.

        trained_as: what `training` returned for the file.
        """

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return what must be equal for pieces to share a forward: (C,h,w) by default."""
        return tuple(x.shape[1:])

    def joint_attention(self, x: Tensor, inputs: Any) -> JointAttention | None:
        """Return how a row's text and image attend to each other; None, as by default, where lengths need no mask."""
        return None

    def cells(self, x: Tensor, inputs: Any) -> int:
        """Return the work of a piece's rows in latent cells.

        By default the cells of x (B,C,…) and of `inputs.references`, where a family has those.
        """
        return sum(latents[:, 0].numel() for latents in (x, *getattr(inputs, "references", ())))

    def kept_bytes(self, x: Tensor) -> int:
        """Return the bytes that a run of one row of x (B,C,…) keeps on a GPU from one forward to the next."""
        return 0

    def pad_rows(self, rows: Sequence[Rows], count: int) -> Rows | None:
        """Return `count` padding rows for a batch of these; None, as by default, if the batch is not padded.

        Their outputs are discarded.
        """
        return None

    def capturable_call(self, network: Any, rows: Sequence[Rows]) -> CapturableCall | None:
        """Return a forward with prepared inputs that a CUDA graph can capture; None by default: it needs the host."""
        return None

    def split_output(self, made: Tensor, rows: Sequence[Rows]) -> list[Tensor]:
        """Return each of the rows' outputs from the output (R,…) of a capturable call, float32."""
        return list(torch.split(made, [r.count for r in rows]))

    @abstractmethod
    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        """Run one forward and return the network's output for each of the rows. Their group keys are equal."""


class VaeFamily(Family):
    """A family of autoencoders between images and latents."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16,)
    """fp16 overflows in some published ones."""

    frames: ClassVar[int] = 0
    """Images that one latent frame covers, as in `LatentFormat`; 0 for an autoencoder of single images."""

    pixels_together: ClassVar[int] = 0
    """Pixels of as many images of a batch as are decoded at once, as each depends on its neighbours; 0: none does."""

    tiles_itself: ClassVar[bool] = False
    """Whether it works in tiles of its own, with which it was trained, so that others are not made."""

    fades_inside: ClassVar[bool] = False
    """Whether tiles, which are not cut in time then, fade along half a wave, and only where others are beside them."""

    strips: ClassVar[bool] = False
    """Whether ranks can have strips of an image's rows each (`ranks.strips`): it has convolutions, norms of single
    cells, and attention of all cells of a frame that lie row by row.
    """

    latent_channels: int
    image_channels: int

    @property
    @abstractmethod
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""

    @abstractmethod
    def decode(self, network: Any, latents: Tensor) -> Tensor:
        """Return pixels (B,C,H,W) about −1…1 from latents (B,c,h,w), unscaled.

        A video: (B,C,F,H,W) from (B,c,T,h,w); the first latent frame is one image, each other one `frames` images.
        """

    @abstractmethod
    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        """Return the mean latents of pixels."""

    def statistics(self, network: Any) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation (c,) by which latents are normalised, as the network has them.

        Errors: NodeError for an autoencoder that has none.
        """
        raise NodeError("the VAE has no statistics of its latents, which latent upscalers need; LTX-2's has them")


class VideoVaeFamily(VaeFamily):
    """A family of video autoencoders, which process a video piece by piece: by default causally, frame by frame.

    A latent frame covers `frames` images, the first one image, if the family does not say otherwise.
    """

    def images_of(self, latent_frames: int) -> int:
        """Return how many images a number of latent frames covers."""
        return (latent_frames - 1) * self.frames + 1

    @abstractmethod
    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield a video's images in order, (B,C,f,H,W) about −1…1, from its latents one by one, (B,c,1,h,w)."""

    @abstractmethod
    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield a video's mean latents in order, (B,c,t,h,w), from its images as `latent_frames` groups them."""

    def latent_frames(self, count: int) -> Iterator[slice]:
        """Yield the images encoded together, of `count`: by default those of a latent frame, without a remainder."""
        yield slice(0, 1)
        for first in range(1, count - self.frames + 1, self.frames):
            yield slice(first, first + self.frames)

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        return torch.cat(list(self.decode_frames(network, torch.split(latents, 1, 2))), 2)

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        latent_frames = (pixels[:, :, latent_frame] for latent_frame in self.latent_frames(pixels.shape[2]))
        return torch.cat(list(self.encode_frames(network, latent_frames)), 2)


class AudioVaeFamily(Family):
    """A family of autoencoders between sounds and latents. title: its name in errors.

    rate, output_rate: samples in a second of the sounds that it encodes and decodes. step: samples of a sound that are
    encoded together; a sound is cut to a multiple. channels: of a sound.
    """

    title: ClassVar[str]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)
    channels: ClassVar[int] = 2

    latent_axes: ClassVar[int] = 4
    """Axes of latents, with those of the batch and of channels."""

    rate: int
    step: ClassVar[int]
    latent_channels: int

    @property
    @abstractmethod
    def output_rate(self) -> int: ...

    @abstractmethod
    def decode(self, network: Any, latents: Tensor) -> Tensor:
        """Return sounds (B,C,T), usually in −1…1, from latents (B,c,…), unscaled."""

    @abstractmethod
    def encode(self, network: Any, waveform: Tensor) -> Tensor:
        """Return the mean latents of sounds (B,C,T) of `rate`."""


class LatentUpscalerFamily(Family):
    """A family of networks that enlarge the latents of an autoencoder. title: its name in errors."""

    title: ClassVar[str]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16,)

    latent_channels: int

    @abstractmethod
    def enlarged(self, network: Any, latents: Tensor) -> Tensor:
        """Return latents (B,c,T',h',w') from some (B,c,T,h,w), before normalisation both."""


class ImageModelFamily(Family):
    """A family of networks that read images and answer in tensors, such as depths. title: its name in errors."""

    title: ClassVar[str]

    @abstractmethod
    def answer(self, network: Any, pixels: Tensor, **asked: Any) -> Mapping[str, Tensor]:
        """Return what the network makes of pixels (B,3,H,W), as the family's nodes prepare them, on their device.

        asked: the nodes' options, by name.
        """


class VisionFamily(Family):
    """A family of image encoders. title: its name in errors.

    image_size: sides of its input in pixels. mean, spread: normalisation of its channels.
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
        """Return the features of pixels (B,3,image_size,image_size), on their device."""


class StyleFamily(Family):
    """A family of networks that map image features to text tokens. title: its name in errors.

    reads: width of the features, as `ClipVisionOutput.last_hidden_state`.
    """

    title: ClassVar[str]

    reads: int

    @abstractmethod
    def tokens(self, network: Any, states: Tensor) -> Tensor:
        """Return tokens (B,T,W) from states (B,N,reads)."""


def spec_of(architecture: str) -> dict[str, str]:
    """Return the metadata that states a file's architecture. Source: Stability AI, Model Metadata Standard."""
    names = {"architecture": architecture, "sai_model_spec": "1.0.0", "implementation": "sgm", "title": "ComfyUI"}
    return {f"modelspec.{name}": value for name, value in names.items()}


def marked(whole: Tensors, prefixes: Iterable[str], marks: Iterable[str]) -> tuple[str, Tensors] | None:
    """Return the first prefix under which a file has one of the marks, and the tensors under it without the prefix."""
    for prefix in prefixes:
        if any(prefix + mark in whole.shapes for mark in marks):
            return prefix, whole.within(prefix)
    return None
