"""SDXL, its refiner and CosXL: a UNet that also reads sizes and a pooled text, and two text encoders.

Source: Podell et al. 2023, arXiv:2307.01952, section 2.2 for these inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families.family import File, spec_of
from serve_app.models.families.shared.concat import EDIT_CHANNELS, image_to_edit, mask_and_image
from serve_app.models.families.text.clip import ClipText, TextEncoder
from serve_app.models.families.text_family import TextEnsemble, TextResources, own_text
from serve_app.models.families.unet.unclip import image_vector
from serve_app.models.families.unet.unet import CELL, SIZE_WIDTH, Unet, sinusoids
from serve_app.recipe.text import T5Padding
from serve_app.recipe.training import ContinuousEdm, Discrete, Training
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents.latent_formats import SDXL
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, Text, Texts, TokenizedText

AESTHETIC_SCORE = {"negative": 2.5}
"""The refiner's default score by branch; 6 for the others."""


@dataclass(frozen=True, slots=True)
class Sdxl(Unet):
    """A backbone of SDXL or CosXL."""

    title = "SDXL"
    latent_format = SDXL
    text_prefixes = {  # noqa: RUF012
        "clip_l": "conditioner.embedders.0.transformer.",
        "clip_g": "conditioner.embedders.1.model.",
    }
    sizes: ClassVar[int] = 6

    def saved_as(self) -> Mapping[str, str]:
        kind = "edit" if self.concat_channels == EDIT_CHANNELS else "base"
        return spec_of(f"stable-diffusion-xl-v1-{kind}")

    @classmethod
    def has_widths(cls, context_dim: int, vector_dim: int) -> bool:
        return vector_dim > 0

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        """Files state it by extra tensors. Errors: ModelFileError for Playground v2.5: it has its own latent format."""
        if {"edm_mean", "edm_std"} <= file.shapes.keys():
            raise ModelFileError(f"{file.where} is Playground v2.5, whose latents are not supported")
        if "edm_vpred.sigma_max" in file.shapes:
            low = float(file.tensor("edm_vpred.sigma_min")) if "edm_vpred.sigma_min" in file.shapes else 0.002
            return ContinuousEdm("v_prediction", float(file.tensor("edm_vpred.sigma_max")), low)
        if "v_pred" in file.shapes:
            return Discrete("v_prediction", zsnr="ztsnr" in file.shapes)
        return Discrete()

    def vector(self, options: Mapping[str, Any], canvas: Canvas, role: str) -> Tensor | None:
        """Return the pooled text with embedded sizes after it; the latents' size replaces missing options.

        Image features (unCLIP) replace the text. Errors: NodeError for a conditioning without a pooled text of the
        right width, or for another image encoder's features.
        """
        expected, (height, width) = self.vector_dim - self.sizes * SIZE_WIDTH, canvas.latents.shape[-2:]
        pooled: Tensor | None = options.get("pooled_output")
        if options.get("unclip_conditioning"):
            pooled = image_vector(options, expected, canvas.seed)[:, :expected]
        if pooled is None or pooled.shape[-1] != expected:
            given = "no pooled output" if pooled is None else f"a pooled output {pooled.shape[-1]} wide"
            raise NodeError(
                f"the conditioning has {given}; this backbone reads one {expected} wide, as SDXL's encoders give"
            )
        rows, columns = options.get("height", height * CELL), options.get("width", width * CELL)
        sizes = [rows, columns, options.get("crop_h", 0), options.get("crop_w", 0)]
        sizes += self._last_sizes(options, rows, columns, role)
        embedded = to_device(sinusoids(torch.tensor(sizes, dtype=torch.float32), SIZE_WIDTH).flatten(), pooled.device)
        return torch.cat([pooled.float(), embedded.expand(pooled.shape[0], -1)], dim=1)

    def _last_sizes(self, options: Mapping[str, Any], rows: float, columns: float, role: str) -> list[float]:
        return [options.get("target_height", rows), options.get("target_width", columns)]

    def concat(
        self, options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, trained_as: Training
    ) -> Tensor | None:
        if not self.concat_channels:
            return None
        if self.concat_channels == EDIT_CHANNELS:
            # CosXL's editing model was trained on scaled images.
            scaled_as = self.latent_format if isinstance(trained_as, ContinuousEdm) else None
            return image_to_edit(options, latents, scaled_as)
        return mask_and_image(options, latents, mask, self.latent_format)


@dataclass(frozen=True, slots=True)
class SdxlRefiner(Sdxl):
    """SDXL's refiner: it reads only the larger text encoder, and an aesthetic score instead of a target size."""

    title = "SDXL's refiner"
    text_prefixes = {"clip_g": "conditioner.embedders.0.model."}  # noqa: RUF012
    sizes: ClassVar[int] = 5

    def saved_as(self) -> Mapping[str, str]:
        return spec_of("stable-diffusion-xl-v1-refiner")

    @classmethod
    def has_widths(cls, context_dim: int, vector_dim: int) -> bool:
        # It reads one text encoder, so the pooled text is as wide as the text's rows.
        return vector_dim > 0 and vector_dim - cls.sizes * SIZE_WIDTH == context_dim

    def _last_sizes(self, options: Mapping[str, Any], rows: float, columns: float, role: str) -> list[float]:
        role = options.get("prompt_type", role)
        return [options.get("aesthetic_score", AESTHETIC_SCORE.get(role, 6))]


@dataclass(frozen=True, slots=True)
class SdxlText(TextEnsemble):
    """SDXL's two text encoders, side by side."""

    takes = {"CLIP-L": "l", "CLIP-G": "g"}  # noqa: RUF012
    name = "SDXL"
    types = ("sdxl",)

    l: ClipText  # noqa: E741
    g: ClipText

    def encoder(self, network: Any, lexicon: TextResources) -> DualTextEncoder:
        return DualTextEncoder(
            TextEncoder(self.l, network["l"], lexicon.vectors, paired=True),
            TextEncoder(self.g, network["g"], lexicon.vectors, paired=True),
        )


class DualTextEncoder:
    """SDXL's two text encoders: their rows concatenated, the pooled output bigG's. Source: arXiv:2307.01952."""

    def __init__(self, l: TextEncoder, g: TextEncoder) -> None:  # noqa: E741
        self._l, self._g = l, g

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward of each encoder; as `TextEncoder.encode`.

        Two texts of different lengths are padded with empty chunks. Tokens for one encoder alone give its rows.
        """
        if any(map(_for_one, texts)):
            return [self._alone(text, stop_at) for text in texts]
        l_chunks, g_chunks = [], []
        for text in texts:
            if isinstance(text, TokenizedText):
                l_chunks.append(self._l.chunks_of(text))
                g_chunks.append(self._g.chunks_of(text))
                continue
            of_l, of_g = self._l.chunks(own_text(text, "l")), self._g.chunks(own_text(text, "g"))
            if isinstance(text, Texts):
                of_l, of_g = self._l.padded(of_l, len(of_g)), self._g.padded(of_g, len(of_l))
            l_chunks.append(of_l)
            g_chunks.append(of_g)
        encoded: list[Conditioning] = []
        for (l_cond, _), (g_cond, pooled) in zip(
            self._l.encode_chunks(l_chunks, stop_at), self._g.encode_chunks(g_chunks, stop_at), strict=True
        ):
            # An embedding may have more vectors for one encoder than for the other.
            length = min(l_cond.shape[1], g_cond.shape[1])
            cond = torch.cat([l_cond[:, :length], g_cond[:, :length]], dim=2)
            encoded.append([(cond, {"pooled_output": pooled})])
        return encoded

    def _alone(self, text: Text, stop_at: int | None) -> Conditioning:
        if not _for_one(text):
            return self.encode([text], stop_at)[0]
        assert isinstance(text, TokenizedText)
        encoder = self._l if "l" in text.chunks else self._g
        [(cond, pooled)] = encoder.encode_chunks([encoder.chunks_of(text)], stop_at)
        return [(cond, {"pooled_output": pooled})]

    def tokens(self, text: str) -> dict[str, list[list[tuple[Any, float, int]]]]:
        """Return a text's chunks by encoder; as `TokenEncoder`."""
        return {**self._g.tokens(text), **self._l.tokens(text)}


def _for_one(text: Text) -> bool:
    """Whether a text is tokens for one encoder alone."""
    return isinstance(text, TokenizedText) and len(text.chunks) == 1
