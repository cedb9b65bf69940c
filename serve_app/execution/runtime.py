"""Protocols of the capabilities that nodes get as hidden inputs: RUNTIME (models) and STORE (files).

Nodes reach models through this module and nothing else; `engine/runtime.py` implements RUNTIME, `execution/files.py`
STORE. Both are bound to one node of one task, so progress, cancelling and file names need no further argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import Sampled, SamplingRequest
from serve_app.store.files.store import Area, Content, Pieces
from serve_app.values import (
    ClipVisionOutput,
    Conditioning,
    Extraction,
    GenerationRequest,
    Search,
    SoundTiling,
    Text,
    Tiling,
)

if TYPE_CHECKING:
    import torch

    from serve_app.sampling.latents.latents import LatentFormat
    from serve_app.sampling.schedules.levels import Levels


class Runtime(Protocol):
    """RUNTIME: operations of a replica's models. Every method may be awaited by many nodes at once; the engine batches.

    Errors: ModelFileError for a file that cannot be used, CancelledJobError once the job is cancelled.
    """

    async def encode_text(self, clip: Recipe, text: Text) -> Conditioning:
        """Return a text's conditioning. Errors: NodeError for texts or images that the encoder does not read."""
        ...

    async def tokens(self, clip: Recipe, text: str) -> Mapping[str, list[list[tuple[Any, float, int]]]] | None:
        """Return a text's chunks by encoder, "l", "h" or "g": (token or vector, weight, number of its run, 0 of none).

        None for encoders other than CLIP alone and SDXL's two.
        """
        ...

    async def generate_text(self, clip: Recipe, request: GenerationRequest) -> str:
        """Return what a language model generates after a text. Reports a progress value a token.

        Errors: NodeError for a text encoder that cannot generate.
        """
        ...

    async def write_song(self, clip: Recipe, request: GenerationRequest) -> Conditioning:
        """Return what is kept of a song that a language model writes; reports a progress value a frame.

        Errors: NodeError for a text encoder that writes none.
        """
        ...

    async def levels(self, backbone: Recipe) -> Levels:
        """Return the noise levels a backbone knows. Loads no weights."""
        ...

    async def latent_format(self, backbone: Recipe) -> LatentFormat:
        """Return how a backbone samples an autoencoder's latents. Loads no weights."""
        ...

    async def family(self, recipe: Recipe) -> Any:
        """Return the family and size of a recipe's network, a value of `models/families`. Loads no weights.

        A VAE's has `latent_channels`, `factor` (pixels a latent cell covers along one side) and `frames` (images of a
        video that one latent covers; 0 for a VAE of images alone). An audio VAE's has `rate` and `output_rate`.
        """
        ...

    async def own_texts(self, backbone: Recipe) -> Mapping[str, torch.Tensor]:
        """Return the texts (1,T,D) that a backbone's file holds, by role. Errors: NodeError for one without any."""
        ...

    async def most_cells(self) -> int | None:
        """Return how many cells one run's latents may have; None without a limit."""
        ...

    async def sample(self, request: SamplingRequest) -> Sampled:
        """Run a sampler. Reports a progress value a step."""
        ...

    async def decode(self, vae: Recipe, latents: torch.Tensor, tiling: Tiling | None = None) -> torch.Tensor:
        """Return images (B,H,W,C) float32 in 0…1 from unscaled latents (B,c,h,w).

        Of an autoencoder of videos (B,F,H,W,C) from (B,c,T,h,w). tiling: None works on the whole.
        """
        ...

    async def encode(self, vae: Recipe, images: torch.Tensor, tiling: Tiling | None = None) -> torch.Tensor:
        """Return unscaled latents (B,c,h,w) from images (B,H,W,C) in 0…1; of an autoencoder of videos (1,c,T,h,w).

        Sides are cropped to a multiple of the pixels that a cell covers, half on each side.
        """
        ...

    async def decode_audio(self, vae: Recipe, latents: torch.Tensor, tiling: SoundTiling | None = None) -> torch.Tensor:
        """Return sounds (B,C,T) float32 of an audio VAE's `output_rate` from latents (B,c,…).

        tiling: None works on the whole.

        Errors: NodeError for another kind of VAE, and for latents of another.
        """
        ...

    async def encode_audio(self, vae: Recipe, waveform: torch.Tensor) -> torch.Tensor:
        """Return latents (B,c,…) from sounds (B,C,T) of an audio VAE's `rate`. Errors: NodeError as `decode_audio`."""
        ...

    async def see(self, encoder: Recipe, images: torch.Tensor, *, crop: bool) -> ClipVisionOutput:
        """Return an image encoder's output for images (B,H,W,C) in 0…1. crop: center crop, else resize to a square.

        Errors: NodeError for images that are too long to be cropped.
        """
        ...

    async def see_pixels(self, encoder: Recipe, pixels: torch.Tensor) -> ClipVisionOutput:
        """Return an image encoder's output for preprocessed images (B,3,S,S).

        Errors: NodeError for another size than the encoder's.
        """
        ...

    async def style(self, style_model: Recipe, seen: ClipVisionOutput) -> torch.Tensor:
        """Return the text tokens (1,T,D) that a style model makes of an image encoder's output.

        Errors: NodeError for the output of another image encoder.
        """
        ...

    async def search(self, backbone: Recipe, request: Search) -> Any:
        """Return what a request asks to find. Reports a progress value an image.

        Of a Detection a list with a Detected for each image; of a Tracking SAM3_TRACK_DATA without "orig_size"; of an
        ObjectSearch for each image (labels (N,), boxes (N,4) as left, top, right, bottom in 0…1, scores (N,)), the
        surest first; of a PoseSearch heatmaps (B,K,h,w), float32.

        Errors: NodeError for a backbone that does not find such things.
        """
        ...

    async def lora_metadata(self, name: str) -> Mapping[str, str]:
        """Return the metadata of a LoRA's file; empty where its authors wrote none."""
        ...

    async def saved_conditioning(self, name: str) -> tuple[Mapping[str, torch.Tensor], Mapping[str, str]]:
        """Return the tensors and the metadata of a file of the folder "embeddings"."""
        ...

    async def upscale(self, upscaler: Recipe, images: torch.Tensor) -> torch.Tensor:
        """Return images (B,H·s,W·s,3) in 0…1; s is the upscaler's own scale. Reports a progress value a tile."""
        ...

    async def ask_image_model(
        self, model: Recipe, batches: Sequence[torch.Tensor], **asked: Any
    ) -> list[dict[str, torch.Tensor]]:
        """Return what a network makes of each batch of pixels (B,3,H,W), by name, float32. Reports progress per batch.

        asked: options of the network's family (`models/families/vision`).
        """
        ...

    async def upscale_latents(self, upscaler: Recipe, vae: Recipe, latents: torch.Tensor) -> torch.Tensor:
        """Return latents (B,c,T',h',w') enlarged by a latent upscaler. vae: the autoencoder whose latents they are.

        Errors: NodeError for latents of other channels, or a VAE whose latents have no statistics.
        """
        ...

    async def model_files(
        self, model: Recipe | None, clip: Recipe | None, vae: Recipe | None, metadata: Mapping[str, str]
    ) -> Mapping[str, Pieces]:
        """Return the safetensors files of saved parts of models, by the suffix of their names.

        With a model all parts are in one file; text encoders alone have a file each. Reports progress per tensor.
        Errors: ModelFileError for parts that cannot be saved.
        """
        ...

    async def lora_file(self, model: Recipe | None, clip: Recipe | None, asked: Extraction) -> Pieces:
        """Return the safetensors file of a LoRA extracted from weights, which may be differences of models.

        Reports progress per tensor. Errors: ModelFileError for parts that cannot be saved.
        """
        ...


Saved: TypeAlias = Content | Callable[[], bytes]
"""Content that a node saves. A function runs in the thread that stores its result, which saves another thread."""


class NodeStore(Protocol):
    """STORE: the files a node may read and write."""

    async def read(self, name: str) -> bytes:
        """Return a file's bytes. name: "sub/a.png", in the input area unless it ends " [output]" or " [temp]"."""
        ...

    async def below(self, folder: str) -> list[str]:
        """Return the paths of all files below a folder of the input area, counted from it, sorted."""
        ...

    async def save(
        self,
        area: Area,
        prefix: str,
        suffix: str,
        contents: Sequence[Saved],
        *,
        width: int = 0,
        height: int = 0,
        mark: str = "_",
    ) -> list[dict[str, Any]]:
        """Store the contents under ComfyUI's names and return [{"filename", "subfolder", "type"}] in order.

        Name: PREFIX_00001_SUFFIX (suffix with its dot; mark: what stands between it and the counter); the prefix may
        hold a subfolder and %width%, %height%, %year%, %month%, %day%, %hour%, %minute%, %second%; in `contents` order,
        %batch_num% is the index. Counters go on from the highest in the folder; a retry of the same node of the same
        job gets the same names again, so nothing is saved twice, and two replicas never get the same name. A suffix
        ".png|.txt" makes files that share a counter, in turn. Errors: NodeError for a prefix that leaves the area.
        """
        ...
