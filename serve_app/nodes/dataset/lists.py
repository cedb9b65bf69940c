"""The nodes of a dataset's lists: shuffled, merged, changed text by text, encoded, and sorted by size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.dataset.images import Seed, generator, one_by_one
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Int, Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, IMAGE, LATENT, RUNTIME, STRING, VAE, VIDEO
from serve_app.values import Conditioning, Latent

Line: TypeAlias = Annotated[str, Text(multiline=False)]
Affix: TypeAlias = Annotated[str, Text("", multiline=False)]
LinkedText: TypeAlias = Annotated[str, Text(forceInput=True, multiline=False)]
TRAINING = "model/training"


def _shuffled(seed: list[int], **lists: Sequence[Any]) -> tuple[list[Any], ...]:
    """Return lists in another order, the same of all. Errors: NodeError for lists of unequal lengths."""
    if len({len(one) for one in lists.values()}) != 1:
        lengths = ", ".join(f"{name} has {len(one)}" for name, one in lists.items())
        raise NodeError(f"{lengths} elements; they must be as many")
    order = generator(seed[0]).permutation(len(next(iter(lists.values())))).tolist()
    return tuple([one[place] for place in order] for one in lists.values())


@node(
    "TextToLowercase",
    "Convert Text to Lowercase (DEPRECATED)",
    category="text",
    function="change",
    return_names=("texts",),
    deprecated=True,
    experimental=True,
)
def text_to_lowercase(texts: Line) -> STRING:
    """A text, changed."""
    return texts.lower()


@node(
    "TextToUppercase",
    "Convert Text to Uppercase (DEPRECATED)",
    category="text",
    function="change",
    return_names=("texts",),
    deprecated=True,
    experimental=True,
)
def text_to_uppercase(texts: Line) -> STRING:
    """A text, changed."""
    return texts.upper()


@node(
    "StripWhitespace",
    "Strip Whitespace (DEPRECATED)",
    category="text",
    function="change",
    return_names=("texts",),
    deprecated=True,
    experimental=True,
)
def strip_whitespace(texts: Line) -> STRING:
    """A text, changed."""
    return texts.strip()


@node("TruncateText", "Truncate Text", category="text", function="change", return_names=("texts",), experimental=True)
def truncate_text(texts: Line, max_length: Annotated[int, Int(77, min=1, max=10000)]) -> STRING:
    """A text, changed."""
    return texts[:max_length]


@node(
    "AddTextPrefix",
    "Add Text Prefix (DEPRECATED)",
    category="text",
    function="change",
    return_names=("texts",),
    deprecated=True,
    experimental=True,
)
def add_text_prefix(texts: Line, prefix: Affix) -> STRING:
    """A text, changed."""
    return prefix + texts


@node(
    "AddTextSuffix",
    "Add Text Suffix (DEPRECATED)",
    category="text",
    function="change",
    return_names=("texts",),
    deprecated=True,
    experimental=True,
)
def add_text_suffix(texts: Line, suffix: Affix) -> STRING:
    """A text, changed."""
    return texts + suffix


@node(
    "ReplaceText",
    "Replace Text (DEPRECATED)",
    category="text",
    function="change",
    return_names=("texts",),
    deprecated=True,
    experimental=True,
)
def replace_text(texts: Line, find: Affix, replace: Affix) -> STRING:
    """A text, changed."""
    return texts.replace(find, replace)


@node(
    "ShuffleDataset",
    "Shuffle Images List",
    category="image/batch",
    function="shuffle",
    return_names=("images",),
    description="Shuffles lists as a seed says; what belongs together stays so.",
    experimental=True,
)
def shuffle_dataset(images: list[IMAGE], seed: list[Seed]) -> list[IMAGE]:
    """A list in another order."""
    return _shuffled(seed, images=one_by_one(images))[0]


@node(
    "ShuffleImageTextDataset",
    "Shuffle Pairs of Image-Text",
    category="image/batch",
    function="shuffle",
    return_names=("images", "texts"),
    description="Shuffles lists as a seed says; what belongs together stays so.",
    experimental=True,
)
def shuffle_image_text_dataset(
    images: list[IMAGE], texts: list[LinkedText], seed: list[Seed]
) -> tuple[list[IMAGE], list[STRING]]:
    """Lists in another order, the same of all. Errors: NodeError for lists of unequal lengths."""
    images, texts = _shuffled(seed, images=images, texts=texts)
    return images, texts


@node(
    "ShuffleVideoDataset",
    "Shuffle Videos List",
    category="video/batch",
    function="shuffle",
    return_names=("videos",),
    description="Shuffles lists as a seed says; what belongs together stays so.",
    experimental=True,
)
def shuffle_video_dataset(videos: list[VIDEO], seed: list[Seed]) -> list[VIDEO]:
    """A list in another order."""
    return _shuffled(seed, videos=videos)[0]


@node(
    "ShuffleVideoTextDataset",
    "Shuffle Pairs of Video-Text",
    category="dataset/video",
    function="shuffle",
    return_names=("videos", "texts"),
    description="Shuffles lists as a seed says; what belongs together stays so.",
    experimental=True,
)
def shuffle_video_text_dataset(
    videos: list[VIDEO], texts: list[Line], seed: list[Seed]
) -> tuple[list[VIDEO], list[STRING]]:
    """Lists in another order, the same of all. Errors: NodeError for lists of unequal lengths."""
    videos, texts = _shuffled(seed, videos=videos, texts=texts)
    return videos, texts


@node(
    "MergeImageLists",
    "Merge Image Lists (DEPRECATED)",
    category="image/batch",
    function="merge",
    return_names=("images",),
    deprecated=True,
    experimental=True,
)
def merge_image_lists(images: list[IMAGE]) -> list[IMAGE]:
    """What is linked, as one list."""
    return one_by_one(images)


@node(
    "MergeTextLists",
    "Merge Text Lists (DEPRECATED)",
    category="text",
    function="merge",
    return_names=("texts",),
    deprecated=True,
    experimental=True,
)
def merge_text_lists(texts: list[Line]) -> list[STRING]:
    """What is linked, as one list."""
    return texts


@node(
    "MakeTrainingDataset",
    "Make Training Dataset",
    category=TRAINING,
    function="encode",
    return_names=("latents", "conditioning"),
    experimental=True,
    description="Encodes images by a VAE and texts by a text encoder.",
)
async def make_training_dataset(
    images: list[IMAGE], vae: list[VAE], clip: list[CLIP], runtime: list[RUNTIME], texts: list[LinkedText] | None = None
) -> tuple[list[LATENT], list[CONDITIONING]]:
    """Images and their texts, encoded.

    Return both as lists; one text, or none, stands for all images. Errors: NodeError for other numbers.
    """
    told = texts or [""]
    told = told * len(images) if len(told) == 1 else told
    if len(told) != len(images):
        raise NodeError(f"there are {len(images)} images and {len(told)} texts; there must be as many, one or none")
    latents: list[Latent] = [{"samples": await runtime[0].encode(vae[0], image[..., :3])} for image in images]
    return latents, [await runtime[0].encode_text(clip[0], text) for text in told]


@node(
    "ResolutionBucket",
    "Resolution Bucket",
    category=TRAINING,
    function="sort",
    return_names=("latents", "conditioning"),
    experimental=True,
    description="Makes one batch of all latents of a size, and one conditioning of what belongs to them.",
)
def resolution_bucket(
    latents: list[LATENT], conditioning: list[CONDITIONING]
) -> tuple[list[LATENT], list[CONDITIONING]]:
    """Latents of one size as one batch each, with what belongs to them.

    Return the batches in the order of their first latents. Errors: NodeError where one has no entry.
    """
    if len(latents) != len(conditioning):
        raise NodeError(f"there are {len(latents)} latents and {len(conditioning)} conditionings; as many are needed")
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
