"""The nodes of a dataset's lists: shuffled, merged, changed text by text, encoded, and sorted by size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.runtime import Runtime
from serve_app.nodes.dataset.images import SEED, generator, one_by_one
from serve_app.recipe import Recipe
from serve_app.values import Conditioning, Latent

TEXT = ("STRING", {"multiline": False})
DEFAULT_TEXT = ("STRING", {"default": "", "multiline": False})
LINKED_TEXT = ("STRING", {"forceInput": True, "multiline": False})
TRAINING = "model/training"


def _text_node(of: Callable[..., str], *, superseded: bool = True, **inputs: tuple[str, dict[str, Any]]) -> type:
    class ChangeText:
        """A text, changed."""

        RETURN_TYPES = ("STRING",)
        RETURN_NAMES = ("texts",)
        FUNCTION = "change"
        CATEGORY = "text"
        DEPRECATED = superseded
        EXPERIMENTAL = True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"texts": TEXT, **inputs}}

        def change(self, texts: str, **given: Any) -> tuple[str]:
            return (of(texts, **given),)

    return ChangeText


def _shuffle_node(
    category: str, inputs: Mapping[str, tuple[str, dict[str, Any]]], spread: Callable[[list[Any]], list[Any]] = list
) -> type:
    """Return a class that shuffles lists alike. spread: makes elements of what each list has."""

    class Shuffle:
        """Lists in another order, the same of all."""

        RETURN_TYPES = tuple(kind for kind, _ in inputs.values())
        RETURN_NAMES = tuple(inputs)
        OUTPUT_IS_LIST = (True,) * len(inputs)
        INPUT_IS_LIST = True
        FUNCTION = "shuffle"
        CATEGORY = category
        EXPERIMENTAL = True
        DESCRIPTION = "Shuffles lists as a seed says; what belongs together stays so."

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {**inputs, "seed": SEED}}

        def shuffle(self, seed: list[int], **given: list[Any]) -> tuple[list[Any], ...]:
            """Return the lists. Errors: NodeError for lists of unequal lengths."""
            lists = [spread(given[name]) for name in inputs]
            if len({len(one) for one in lists}) != 1:
                lengths = ", ".join(f"{name} has {len(one)}" for name, one in zip(inputs, lists, strict=True))
                raise NodeError(f"{lengths} elements; they must be as many")
            order = generator(seed[0]).permutation(len(lists[0])).tolist()
            return tuple([one[place] for place in order] for one in lists)

    return Shuffle


def _merge_node(name: str, kind: tuple[str, dict[str, Any]], category: str, spread: Callable[..., list[Any]]) -> type:
    class Merge:
        """What is linked, as one list."""

        RETURN_TYPES = (kind[0],)
        RETURN_NAMES = (name,)
        OUTPUT_IS_LIST = (True,)
        INPUT_IS_LIST = True
        FUNCTION = "merge"
        CATEGORY = category
        DEPRECATED = True
        EXPERIMENTAL = True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {name: kind}}

        def merge(self, **given: list[Any]) -> tuple[list[Any]]:
            return (spread(given[name]),)

    return Merge


class MakeTrainingDataset:
    """Images and their texts, encoded."""

    RETURN_TYPES = ("LATENT", "CONDITIONING")
    RETURN_NAMES = ("latents", "conditioning")
    OUTPUT_IS_LIST = (True, True)
    INPUT_IS_LIST = True
    FUNCTION = "encode"
    CATEGORY = TRAINING
    EXPERIMENTAL = True
    DESCRIPTION = "Encodes images by a VAE and texts by a text encoder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE", {}), "vae": ("VAE", {}), "clip": ("CLIP", {})},
            "optional": {"texts": LINKED_TEXT},
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(
        self,
        images: list[Tensor],
        vae: list[Recipe],
        clip: list[Recipe],
        runtime: list[Runtime],
        texts: list[str] | None = None,
    ) -> tuple[list[Latent], list[Conditioning]]:
        """Return both as lists; one text, or none, stands for all images. Errors: NodeError for other numbers."""
        told = texts or [""]
        told = told * len(images) if len(told) == 1 else told
        if len(told) != len(images):
            raise NodeError(f"there are {len(images)} images and {len(told)} texts; there must be as many, one or none")
        latents: list[Latent] = [{"samples": await runtime[0].encode(vae[0], image[..., :3])} for image in images]
        return latents, [await runtime[0].encode_text(clip[0], text) for text in told]


class ResolutionBucket:
    """Latents of one size as one batch each, with what belongs to them."""

    RETURN_TYPES = ("LATENT", "CONDITIONING")
    RETURN_NAMES = ("latents", "conditioning")
    OUTPUT_IS_LIST = (True, True)
    INPUT_IS_LIST = True
    FUNCTION = "sort"
    CATEGORY = TRAINING
    EXPERIMENTAL = True
    DESCRIPTION = "Makes one batch of all latents of a size, and one conditioning of what belongs to them."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latents": ("LATENT", {}), "conditioning": ("CONDITIONING", {})}}

    def sort(self, latents: list[Latent], conditioning: list[Conditioning]) -> tuple[list[Latent], list[Conditioning]]:
        """Return the batches in the order of their first latents. Errors: NodeError where one has no entry."""
        if len(latents) != len(conditioning):
            raise NodeError(
                f"there are {len(latents)} latents and {len(conditioning)} conditionings; as many are needed"
            )
        buckets: dict[tuple[int, ...], tuple[list[Tensor], Conditioning]] = {}
        for latent, entries in zip(latents, conditioning, strict=True):
            samples: Tensor = latent["samples"]
            if len(entries) < len(samples):
                raise NodeError(f"a batch has {len(samples)} latents and {len(entries)} entries of conditioning")
            for sample, entry in zip(samples, entries, strict=False):
                rows, of_rows = buckets.setdefault(tuple(sample.shape[-2:]), ([], []))
                rows.append(sample)
                of_rows.append(entry)
        batches: list[Latent] = [{"samples": torch.stack(rows)} for rows, _ in buckets.values()]
        return batches, [entries for _, entries in buckets.values()]


IMAGES = ("IMAGE", dict[str, Any]())
VIDEOS = ("VIDEO", dict[str, Any]())

NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "TextToLowercase": _text_node(str.lower),
    "TextToUppercase": _text_node(str.upper),
    "StripWhitespace": _text_node(str.strip),
    "TruncateText": _text_node(
        lambda text, max_length: text[:max_length],
        superseded=False,
        max_length=("INT", {"default": 77, "min": 1, "max": 10000}),
    ),
    "AddTextPrefix": _text_node(lambda text, prefix: prefix + text, prefix=DEFAULT_TEXT),
    "AddTextSuffix": _text_node(lambda text, suffix: text + suffix, suffix=DEFAULT_TEXT),
    "ReplaceText": _text_node(
        lambda text, find, replace: text.replace(find, replace), find=DEFAULT_TEXT, replace=DEFAULT_TEXT
    ),
    "ShuffleDataset": _shuffle_node("image/batch", {"images": IMAGES}, one_by_one),
    "ShuffleImageTextDataset": _shuffle_node("image/batch", {"images": IMAGES, "texts": LINKED_TEXT}),
    "ShuffleVideoDataset": _shuffle_node("video/batch", {"videos": VIDEOS}),
    "ShuffleVideoTextDataset": _shuffle_node("dataset/video", {"videos": VIDEOS, "texts": TEXT}),
    "MergeImageLists": _merge_node("images", IMAGES, "image/batch", one_by_one),
    "MergeTextLists": _merge_node("texts", TEXT, "text", list),
    "MakeTrainingDataset": MakeTrainingDataset,
    "ResolutionBucket": ResolutionBucket,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "TextToLowercase": "Convert Text to Lowercase (DEPRECATED)",
    "TextToUppercase": "Convert Text to Uppercase (DEPRECATED)",
    "StripWhitespace": "Strip Whitespace (DEPRECATED)",
    "TruncateText": "Truncate Text",
    "AddTextPrefix": "Add Text Prefix (DEPRECATED)",
    "AddTextSuffix": "Add Text Suffix (DEPRECATED)",
    "ReplaceText": "Replace Text (DEPRECATED)",
    "ShuffleDataset": "Shuffle Images List",
    "ShuffleImageTextDataset": "Shuffle Pairs of Image-Text",
    "ShuffleVideoDataset": "Shuffle Videos List",
    "ShuffleVideoTextDataset": "Shuffle Pairs of Video-Text",
    "MergeImageLists": "Merge Image Lists (DEPRECATED)",
    "MergeTextLists": "Merge Text Lists (DEPRECATED)",
    "MakeTrainingDataset": "Make Training Dataset",
    "ResolutionBucket": "Resolution Bucket",
}
