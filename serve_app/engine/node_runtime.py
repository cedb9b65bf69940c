"""The RUNTIME of one node: checks the size of its work and passes it to the engine, batched where it may be.

Work so large that it could not be cancelled within a forward is refused before it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from serve_app.engine.text_generation import TEXTS_TOGETHER
from serve_app.errors import DeviceMemoryError, NodeError
from serve_app.limits import describe_levels, levels_of, refused
from serve_app.models.families.family import BackboneFamily, Family, VideoVaeFamily
from serve_app.models.files.safetensors_file import SafetensorsFile
from serve_app.models.image_model import ImageModel
from serve_app.models.vae import SLICE_PIXELS, Vae, Work, has_latent_frames
from serve_app.models.vision import ImageEncoder
from serve_app.nested_tensor import Samples, parts_of
from serve_app.recipe.context import ContextWindows
from serve_app.recipe.hooks import ClipHooks
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import T5Padding
from serve_app.sampling.guidance.conditioning import attended_latents, with_options, with_tensors
from serve_app.sampling.guidance.hooks import changes, clip_ranges
from serve_app.sampling.guidance.windows import longest_window
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.request import Sampled, SamplingRequest, Steps
from serve_app.sampling.schedules.levels import Levels
from serve_app.sampling.transfer import unpinned
from serve_app.values import (
    ClipVisionOutput,
    Conditioning,
    Extraction,
    GenerationRequest,
    IllustratedText,
    PreviewMethod,
    Search,
    SongText,
    SoundTiling,
    Text,
    Texts,
    Tiling,
    TokenizedText,
)

if TYPE_CHECKING:
    from serve_app.engine.run_state import StateFiles
    from serve_app.engine.runtime import EngineRuntime, Load, Loading
    from serve_app.engine.sampling_run import Show

IMAGES_TOGETHER = 16
"""The most images in one forward of an image encoder."""
PIXELS_A_CELL = 64
"""The pixels of a latent cell, by which the work of decoding is measured before the VAE is loaded."""


class NodeRuntime:
    """RUNTIME for one node, as serve_app.execution.runtime.Runtime describes it."""

    def __init__(
        self,
        shared: EngineRuntime,
        progress: Callable[[int, int], None],
        strict: bool,
        show: Show | None,
        previews: PreviewMethod,
        remark: Callable[[str], None],
        loading: Loading,
        states: Callable[[], StateFiles] | None = None,
    ) -> None:
        self._shared = shared
        self._states = states
        self._loading = loading
        self._weights = shared.weights
        self._progress, self._show, self._previews = progress, show, previews
        self._remark = remark
        self._strict = strict

    async def encode_text(self, clip: Recipe, text: Text) -> Conditioning:
        """Return the CONDITIONING of a text in the prompt syntax. Errors: NodeError for one that is too long.

        With hooks, there is one entry for each range of the sampling in which their strengths are constant.
        """
        self._check_text(text, clip.last(T5Padding))
        if (given := clip.last(ClipHooks)) is None:
            return await self._encode(clip, text)
        passed_on = {"hooks": given.hooks} if given.passed_on else {}
        if not given.scheduled:
            changed = clip.with_patches(changes(given.hooks, part="clip"))
            return with_options(await self._encode(changed, text), **passed_on)
        encoded: Conditioning = []
        for start, end, further in clip_ranges(given.hooks):
            of_range = await self._encode(clip.with_patches(further), text)
            encoded += with_options(of_range, clip_start_percent=start, clip_end_percent=end, **passed_on)
        return encoded

    async def tokens(self, clip: Recipe, text: str) -> Mapping[str, list[list[tuple[Any, float, int]]]] | None:
        """Return a text's tokens by encoder, in chunks; None for an encoder that does not expose them.

        Errors: NodeError for a text that is too long.
        """
        self._check_text(text)
        return await self._shared.use(clip, self._weights.clip, lambda model: model.tokens(text), self._loading)

    async def _encode(self, clip: Recipe, text: Text) -> Conditioning:
        encoded: Conditioning
        if self._strict:
            encoded = await self._shared.use(
                clip, self._weights.clip, lambda model: model.encode([text])[0], self._loading
            )
        else:
            encoded = await self._shared.use_together(
                clip,
                self._weights.clip,
                lambda model, texts: model.encode(texts),
                text,
                "text",
                most=TEXTS_TOGETHER,
                loading=self._loading,
            )
        for found in await asyncio.to_thread(self._weights.remarks, clip):
            self._remark(found)
        return with_tensors(encoded, unpinned)

    async def generate_text(self, clip: Recipe, request: GenerationRequest) -> str:
        """Return the text that a language model generates; reports each token.

        Errors: NodeError for a text that is too long, or would become so.
        """
        made = await self._generate(clip, request)
        if not isinstance(made, str):
            raise NodeError(f"'{clip.name}' writes songs and no text; load a language model such as Qwen3")
        return made

    async def write_song(self, clip: Recipe, request: GenerationRequest) -> Conditioning:
        """Return what is kept of a song; reports each frame. Errors: as `generate_text`."""
        made = await self._generate(clip, request)
        if isinstance(made, str):
            raise NodeError(
                f"'{clip.name}' writes text and no songs; load the language model of MiniMax Music 3 or YuE 2"
            )
        song: Conditioning = made
        return song

    async def _generate(self, clip: Recipe, request: GenerationRequest) -> Any:
        self._check_text(request.system_prompt + request.text)
        if request.guidance is not None:
            self._check_text(request.guidance.away_from)
        if request.max_tokens > (most := self._shared.limits.generated_tokens):
            refused("limits.generated_tokens")
            raise NodeError(
                f"max_length is {request.max_tokens}; limits.generated_tokens of the configuration allows {most}"
            )
        return await self._shared.generate_text(
            clip, request, self._progress, strict=self._strict, loading=self._loading
        )

    async def levels(self, backbone: Recipe) -> Levels:
        """Return the noise levels a backbone knows. Loads no weights."""
        return await asyncio.to_thread(self._weights.levels, backbone)

    async def latent_format(self, backbone: Recipe) -> LatentFormat:
        """Return how a backbone samples an autoencoder's latents. Loads no weights."""
        return await asyncio.to_thread(self._weights.latent_format, backbone)

    async def family(self, recipe: Recipe) -> Family:
        """Return the family and size of a recipe's network. Loads no weights."""
        return await asyncio.to_thread(self._weights.family, recipe)

    async def sample(self, request: SamplingRequest) -> Sampled:
        """Run a sampler; reports each step. Errors: NodeError for work that would take too long."""
        self._check_levels(request.sigmas)
        at_once = longest_window(request.guider.backbone.last(ContextWindows), request.latents)
        self._check_cells(at_once, request.factor)
        self._check_pairs(at_once, request.factor)
        self._check_attended(request)
        return await self._shared.sample(
            request,
            self._progress,
            strict=self._strict,
            show=self._show,
            previews=self._previews,
            remark=self._remark,
            loading=self._loading,
            state=None if self._states is None else self._states(),
        )

    async def decode(self, vae: Recipe, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
        """Return images (B,H,W,C) float32 in 0…1 from unscaled latents (B,c,h,w), or as `Vae.decode` has videos."""
        if tiling is not None:
            return await self._shared.use_tiled(
                vae,
                self._load_vae,
                lambda model: model.decode_tiled(latents, tiling),
                self._progress,
                self._loading,
            )
        self._check_cells(latents[:1])
        return await self._with_vae(vae, "decode", latents, latents[:1, 0].numel() * PIXELS_A_CELL)

    async def encode(self, vae: Recipe, images: Tensor, tiling: Tiling | None = None) -> Tensor:
        """Return unscaled latents (B,c,h,w) from images (B,H,W,C) in 0…1, or as `Vae.encode` has videos; cropped so."""
        if tiling is not None:
            return await self._shared.use_tiled(
                vae,
                self._load_vae,
                lambda model: model.encode_tiled(images, tiling),
                self._progress,
                self._loading,
            )
        self._check_cells(images[:1, ::8, ::8].movedim(-1, 1))
        return await self._with_vae(vae, "encode", images, images[:1, ..., 0].numel())

    async def decode_audio(self, vae: Recipe, latents: Tensor, tiling: SoundTiling | None = None) -> Tensor:
        """Return sounds (B,C,T) from latents (B,c,…)."""
        if tiling is not None:
            made = await self._shared.use_tiled(
                vae,
                self._weights.audio_vae,
                lambda model: model.decode_tiled(latents, tiling),
                self._progress,
                self._loading,
            )
            return await asyncio.to_thread(unpinned, made)
        self._check_cells(latents)
        made = await self._shared.use(vae, self._weights.audio_vae, lambda model: model.decode(latents), self._loading)
        return await asyncio.to_thread(unpinned, made)

    async def encode_audio(self, vae: Recipe, waveform: Tensor) -> Tensor:
        """Return latents (B,c,…) from sounds (B,C,T)."""
        made = await self._shared.use(vae, self._weights.audio_vae, lambda model: model.encode(waveform), self._loading)
        return await asyncio.to_thread(unpinned, made)

    async def see(self, encoder: Recipe, images: Tensor, *, crop: bool) -> ClipVisionOutput:
        """Return what an image encoder sees in images (B,H,W,C) in 0…1. crop: their middle, else all, squeezed."""
        return _joined([await self._see(encoder, part, crop) for part in torch.split(images, IMAGES_TOGETHER)])

    async def _see(self, encoder: Recipe, images: Tensor, crop: bool) -> ClipVisionOutput:
        load = self._weights.image_encoder
        if self._strict:
            seen = await self._shared.use(encoder, load, lambda model: model.see([images], crop=crop)[0], self._loading)
        else:
            seen = await self._shared.use_together(
                encoder,
                load,
                lambda model, batches: model.see(batches, crop=crop),
                images,
                ("see", crop),
                cost=len(images),
                most=IMAGES_TOGETHER,
                loading=self._loading,
            )
        return await asyncio.to_thread(_kept, seen)

    async def see_pixels(self, encoder: Recipe, pixels: Tensor) -> ClipVisionOutput:
        """Return what an image encoder sees in images that were made ready elsewhere, (B,3,S,S)."""
        parts = [
            await self._shared.use(
                encoder, self._weights.image_encoder, partial(ImageEncoder.see_pixels, pixels=part), self._loading
            )
            for part in torch.split(pixels, IMAGES_TOGETHER)
        ]
        return await asyncio.to_thread(_kept, _joined(parts))

    async def style(self, style_model: Recipe, seen: ClipVisionOutput) -> Tensor:
        """Return the tokens of a text (1,T,D) that a style model makes of what is seen in all images."""
        tokens = await self._shared.use(
            style_model, self._weights.style_model, lambda model: model.tokens(seen.last_hidden_state), self._loading
        )
        return unpinned(tokens)

    async def own_texts(self, backbone: Recipe) -> Mapping[str, Tensor]:
        """Return the texts that a backbone's file holds, by role."""
        texts = await self._shared.use(backbone, self._weights.backbone, lambda model: model.own_texts(), self._loading)
        return await asyncio.to_thread(lambda: {role: unpinned(text) for role, text in texts.items()})

    async def search(self, backbone: Recipe, request: Search) -> Any:
        """Return what a request asks to find; other work runs between two images.

        Errors: NodeError for a backbone that does not find such things, or texts of another encoder, before loading.
        """
        family = await self.family(backbone)
        assert isinstance(family, BackboneFamily)
        family.check_search(request)
        return await self._shared.use_tiled(
            backbone, self._weights.backbone, lambda model: model.searched(request), self._progress, self._loading
        )

    async def most_cells(self) -> int | None:
        """Return how many cells one run's latents may have."""
        return self._shared.latent_cells

    async def lora_metadata(self, name: str) -> Mapping[str, str]:
        """Return the metadata of a LoRA's file."""
        return await asyncio.to_thread(self._weights.lora_metadata, name)

    async def saved_conditioning(self, name: str) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        """Return the tensors and the metadata of a file of the folder "embeddings"."""
        return await asyncio.to_thread(self._weights.saved_conditioning, name)

    async def upscale(self, upscaler: Recipe, images: Tensor) -> Tensor:
        """Return images (B,H·s,W·s,3) in 0…1; s is the upscaler's own scale."""
        return await self._shared.use_tiled(
            upscaler, self._weights.upscaler, lambda model: model.upscale(images), self._progress, self._loading
        )

    async def ask_image_model(self, model: Recipe, batches: Sequence[Tensor], **asked: Any) -> list[dict[str, Tensor]]:
        """Return what a network makes of each batch of pixels (B,3,H,W), by name; reports a progress value a batch."""
        made = []
        for done, pixels in enumerate(batches, 1):
            work = partial(ImageModel.answer, pixels=pixels, **asked)
            found = await self._shared.use(model, self._weights.image_model, work, self._loading)
            kept = await asyncio.to_thread(lambda tensors: [unpinned(one) for one in tensors], found.values())
            made.append(dict(zip(found, kept, strict=True)))
            self._progress(done, len(batches))
        return made

    async def upscale_latents(self, upscaler: Recipe, vae: Recipe, latents: Tensor) -> Tensor:
        """Return latents (B,c,T',h',w') enlarged by a latent upscaler. vae: the autoencoder whose latents they are."""
        self._check_cells(latents)
        statistics = await self._shared.use(vae, self._weights.vae, lambda model: model.statistics(), self._loading)
        mean, deviation = await asyncio.to_thread(lambda: [unpinned(one) for one in statistics])
        made = await self._shared.use(
            upscaler,
            self._weights.latent_upscaler,
            lambda model: model.enlarged(latents, mean, deviation),
            self._loading,
        )
        return await asyncio.to_thread(unpinned, made)

    async def model_files(
        self, model: Recipe | None, clip: Recipe | None, vae: Recipe | None, metadata: Mapping[str, str]
    ) -> Mapping[str, SafetensorsFile]:
        """Return the files that parts of models are saved as, made from the model files, not from a device."""
        return await asyncio.to_thread(self._weights.files, model, clip, vae, metadata, self._progress_of_thread())

    async def lora_file(self, model: Recipe | None, clip: Recipe | None, asked: Extraction) -> SafetensorsFile:
        """Return the file of a LoRA that is extracted from weights."""
        return await asyncio.to_thread(self._weights.lora_file, model, clip, asked, self._progress_of_thread())

    def _progress_of_thread(self) -> Callable[[int, int], None]:
        """Return a function that reports progress from a thread other than the loop's."""
        loop = asyncio.get_running_loop()

        def progress(done: int, of: int) -> None:
            loop.call_soon_threadsafe(self._progress, done, of)

        return progress

    def _check_cells(self, latents: Samples, factor: int | None = None) -> None:
        """Refuse latents (B,C,…) whose forward would take too long, as a GPU does not stop one. Errors: NodeError.

        factor: pixels along a side of a cell, of empty latents; a model with smaller cells has more of these.
        """
        most, cells = self._shared.latent_cells, _cells(latents, factor)
        if most is not None and cells > most:
            raise NodeError(
                f"latents of shape {_shape(latents)} are {cells:,} cells at once; "
                f"latent_cells of this pool allows {most:,}"
            )

    def _check_pairs(self, latents: Samples, factor: int | None) -> None:
        """Refuse latents (B,C,…) with too many pairs of cells that attend to each other. Errors: NodeError."""
        most, cells = self._shared.latent_pairs, _cells(latents[:1], factor)
        if most is not None and (pairs := len(latents) * cells**2) > most:
            raise NodeError(
                f"{len(latents)} latents of {cells:,} cells each have {pairs:,} pairs of cells that attend to each "
                f"other; latent_pairs of this pool allows {most:,}"
            )

    def _check_levels(self, sigmas: Steps | Tensor) -> None:
        """Refuse a run of too many levels before its schedule is made. Errors: NodeError."""
        if isinstance(sigmas, Steps):
            what, levels = describe_levels(sigmas.count, sigmas.denoise), levels_of(sigmas.count, sigmas.denoise)
        else:
            what, levels = "sigmas are", sigmas.numel() - 1
        if (excess := self._shared.limits.excess("levels", levels, "levels")) is not None:
            raise NodeError(f"{what} {excess}")

    def _check_attended(self, request: SamplingRequest) -> None:
        """Refuse references and texts with which a forward would take too long. Errors: NodeError."""
        most, rows = self._shared.latent_cells, len(request.latents)
        for conditioning in request.guider.conds.values():
            for cond, options in conditioning:
                references = sum(latents[:1, 0].numel() for latents in attended_latents(options))
                attended = rows * references + cond.shape[1]
                if most is not None and attended > most:
                    raise NodeError(
                        f"{rows} latents with {references:,} cells of references each and {cond.shape[1]:,} tokens of "
                        f"text; latent_cells of this pool allows {most:,} beside the latents"
                    )

    def _check_text(self, text: Text, padding: T5Padding | None = None) -> None:
        """Refuse a text that is too long, before it is encoded in a batch with others. Errors: NodeError."""
        parts: list[str] = []
        tokens = 0 if padding is None else max(padding.pads, padding.length)
        match text:
            case str():
                parts = [text]
            case Texts():
                parts = [part for part in (text.l, text.g, text.t5xxl, text.llama) if part is not None]
            case SongText():
                parts = [text.description, text.lyrics]
            case TokenizedText():
                tokens = max([tokens, *(sum(map(len, of_one)) for of_one in text.chunks.values())])
            case _:
                # The pieces of an interleaved text are one text to the encoder.
                parts = [text.text if isinstance(text, IllustratedText) else "".join(text.texts)]
                seen = sum(image[..., 0].numel() for image in text.images) // PIXELS_A_CELL
                if (cells := self._shared.latent_cells) is not None and seen > cells:
                    raise NodeError(
                        f"a text has images of {seen:,} cells of {PIXELS_A_CELL} pixels; "
                        f"latent_cells of this pool allows {cells:,}"
                    )
        # A token has at least one byte.
        longest = max([tokens, *(len(part.encode(errors="replace")) for part in parts)])
        most = self._shared.limits
        if longest > (allowed := most.prompt_bytes):
            refused("limits.prompt_bytes")
            raise NodeError(
                f"a text has {longest:,} bytes or tokens; limits.prompt_bytes of the configuration allows {allowed:,}"
            )

    @property
    def _load_vae(self) -> Load[Vae]:
        """How a VAE is loaded: a strict job's picture is that of one device."""
        return self._weights.vae if self._strict else self._weights.vae_of_ranks

    async def _with_vae(self, vae: Recipe, work: Work, batch: Tensor, pixels: int) -> Tensor:
        """Run a VAE on a batch (B,…), together with batches of other nodes of its shape. pixels: of one image.

        The work is tiled where an image does not fit the device's memory.
        """
        shared, autoencoding = self._shared, self._shared.autoencoding

        def of_all(model: Vae, batches: list[Tensor]) -> list[Tensor]:
            whole = partial(autoencoding.whole, vae, model, work)
            # One batch of images would be a single video.
            apart = model.of_videos and work == "encode"
            return [whole(batch) for batch in batches] if apart else _in_one(whole, batches)

        try:
            # The family is read from the file, which is only opened where it matters.
            if has_latent_frames(work, batch) and isinstance(await self.family(vae), VideoVaeFamily):
                return await shared.use_tiled(
                    vae,
                    self._load_vae,
                    lambda model: autoencoding.by_latent_frames(vae, model, work, batch),
                    self._progress,
                    self._loading,
                )
            if self._strict:
                made = await shared.use(
                    vae,
                    self._load_vae,
                    lambda model: autoencoding.whole(vae, model, work, batch),
                    self._loading,
                )
            else:
                made = await shared.use_together(
                    vae,
                    self._load_vae,
                    of_all,
                    batch,
                    (work, batch.shape[1:], batch.dtype),
                    cost=len(batch) * pixels,
                    most=SLICE_PIXELS,
                    loading=self._loading,
                )
            # A view of a batch keeps all of it in memory, and callers keep their parts for different times.
            return await asyncio.to_thread(unpinned, made)
        except DeviceMemoryError:
            self._remark(f"'{vae.name}' {work}s in tiles here: the device has not the memory for a whole image")
        return await shared.use_tiled(
            vae,
            self._load_vae,
            lambda model: autoencoding.tiled(vae, model, work, batch),
            self._progress,
            self._loading,
        )


def _shape(latents: Samples) -> str:
    return " and ".join("×".join(map(str, part.shape)) for part in parts_of(latents))


def _cells(latents: Samples, factor: int | None) -> int:
    """Return how many cells latents (B,C,…) have, in all parts. factor: as `NodeRuntime._check_cells`'s."""
    cells = sum(part[:, 0].numel() for part in parts_of(latents))
    # A sound's factor is of its length.
    return cells if factor is None or latents.ndim == 3 else max(cells, cells * factor**2 // PIXELS_A_CELL)


def _joined(parts: Sequence[ClipVisionOutput]) -> ClipVisionOutput:
    """Return the outputs for several batches as one."""
    states = [part.states for part in parts]
    return ClipVisionOutput(**{name: torch.cat([of_part[name] for of_part in states]) for name in states[0]})


def _kept(seen: ClipVisionOutput) -> ClipVisionOutput:
    """Return an image encoder's output as `transfer.unpinned` does tensors."""
    return ClipVisionOutput(**{name: unpinned(states) for name, states in seen.states.items()})


def _in_one(work: Callable[[Tensor], Tensor], batches: list[Tensor]) -> list[Tensor]:
    """Return what work makes of batches (B_i,…) of one shape, joined and split again."""
    if len(batches) == 1:
        return [work(batches[0])]
    return list(torch.split(work(torch.cat(batches)), [len(batch) for batch in batches]))
