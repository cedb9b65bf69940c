"""Qwen2.5-VL 7B, Qwen-Image's text encoder, with its vision tower for the images to edit.

Source: Bai et al. 2025, arXiv:2502.13923; the templates are Qwen-Image's, arXiv:2508.02324.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from serve_app.errors import NodeError
from serve_app.models.families.text.decoder import DecoderEncoder, DecoderText
from serve_app.models.families.text.sequences import Encoded, PromptFormat, embedded
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer, qwen
from serve_app.models.tokenizers.prompt import Token, Weighted
from serve_app.recipe.text import T5Padding
from serve_app.sampling.transfer import to_device
from serve_app.values import EDIT_TEMPLATE, SEEN, Conditioning, IllustratedText, Text

_USER = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_EDITS = EDIT_TEMPLATE.replace("{}", f"{SEEN}{{}}")
_SYSTEM = "<|im_start|>system\n"

QWEN_IMAGE = PromptFormat(
    "qwen25_7b",
    template=f"{_SYSTEM}Describe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    f"relationships of the objects and background:{_USER}",
    embeds=False,
    weighs=False,
    pad=qwen.PAD,
    masked=True,
    returns_mask=True,
)
KEYS_3B = 256
"""Width of the keys of OmniGen2's model."""
IMAGE_PAD, IM_START, _USER_WORD, _NEW_LINE = 151655, 151644, 872, 198
_OWN_TEMPLATES = ("<|im_start|>", "<|start_header_id|>")

# Of the tower: side of a patch, patches of a token along one side, frames, width of a head, blocks with full attention.
_PATCH, _MERGED, _FRAMES, _HEAD, _WHOLE_EVERY = 14, 2, 2, 80, 8
_LEAST_PIXELS, _MOST_PIXELS = 3136, 12845056
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_SPREAD = (0.26862954, 0.26130258, 0.27577711)


class QwenVisionTower(NamedTuple):
    """The size of the vision tower."""

    layers: int
    width: int
    hidden_width: int


@dataclass(frozen=True, slots=True)
class QwenVlText(DecoderText):
    """Qwen2.5-VL. tower: None if the file has none, and the encoder then reads no images."""

    name = "Qwen2.5-VL"
    prefixes = ("text_encoders.qwen25_7b.transformer.", "")
    theta = 1e6
    sections = (16, 24, 24)

    tower: QwenVisionTower | None = None

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        bias = inner.shapes.get("layers.0.self_attn.k_proj.bias")
        return bias is not None and cls.reads(bias[0])

    @classmethod
    def reads(cls, keys: int) -> bool:
        """Whether a model with keys of this width is used in this way."""
        return keys != KEYS_3B

    @classmethod
    def probe(cls, tensors: Tensors) -> QwenVlText:
        found = super(QwenVlText, cls).probe(tensors)
        if not tensors.has("visual.blocks."):
            return found
        hidden_width, width = tensors.shape("visual.blocks.0.mlp.gate_proj.weight")
        return replace(found, tower=QwenVisionTower(tensors.count("visual.blocks."), width, hidden_width))

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return QWEN_IMAGE

    def table(self, tensors: Tensors | None = None) -> Table:
        return {**super(QwenVlText, self).table(tensors), "visual": "visual"}

    def build(self) -> nn.Module:
        network = super(QwenVlText, self).build()
        if self.tower is not None:
            network.visual = Qwen2_5_VisionTransformerPretrainedModel(self._vision(self.tower))
        return network

    def _vision(self, tower: QwenVisionTower) -> Any:
        return Qwen2_5_VLVisionConfig(
            depth=tower.layers,
            hidden_size=tower.width,
            intermediate_size=tower.hidden_width,
            num_heads=tower.width // _HEAD,
            out_hidden_size=self.width,
            patch_size=_PATCH,
            spatial_merge_size=_MERGED,
            temporal_patch_size=_FRAMES,
            fullatt_block_indexes=[*range(_WHOLE_EVERY - 1, tower.layers, _WHOLE_EVERY)],
            attn_implementation="sdpa",
        )

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        config = Qwen2Config(**self.sizes())
        return lambda i: Qwen2DecoderLayer(config, i), Qwen2RMSNorm(self.width, self.eps)

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        return qwen.tokenizer(lexicon.vocabulary)

    def encoder(self, network: Any, lexicon: TextResources) -> DecoderEncoder:
        tokenize = self.tokenizer(None, lexicon)
        return QwenVlEncoder(self, self.prompt_format or QWEN_IMAGE, tokenize, network, lexicon.vectors)


class QwenImageEncoder(DecoderEncoder):
    """A language model in Qwen-Image's template. States before the user's words are removed."""

    def around(self, text: str, template: str | None) -> str:
        """Return a text in a template, None: the default, unless it has one of its own."""
        return text if text.startswith(_OWN_TEMPLATES) else self.prompt_format.around(text, template)

    def before(self, tokens: Sequence[Any]) -> int:
        """Return how many of a text's leading tokens are removed."""
        return _before_words(tokens, len(tokens))

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        cut = self.before([token for token, _ in encoded.tokens])
        cond, options = super().entry(replace(encoded, states=encoded.states[cut:], seen=encoded.seen[cut:]))
        return cond, {} if bool(encoded.seen[cut:].all()) else options


class Seen(NamedTuple):
    """Features of an image: a vector for each token (N,D), row by row, and additions to the first layers, (N,D) each.

    rows, columns: of tokens.
    """

    vectors: Tensor
    rows: int
    columns: int
    deeper: Sequence[Tensor] = ()


class QwenVlEncoder(QwenImageEncoder):
    """Qwen2.5-VL on its device.

    unseen_at: position of masked tokens in a text with images, along each axis; None: where they stand.
    """

    unseen_at: ClassVar[int | None] = None

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, those without images in one forward, those with images one by one; as `Encoder.encode`."""
        illustrated = [isinstance(text, IllustratedText) and bool(text.images) for text in texts]
        plain = [self.row(text, padding) for text, seen in zip(texts, illustrated, strict=True) if not seen]
        encoded = iter(self.encode_rows(plain, stop_at) if plain else ())
        return [
            [
                self.illustrated(text, stop_at)
                if isinstance(text, IllustratedText) and seen
                else self.entry(next(encoded))
            ]
            for text, seen in zip(texts, illustrated, strict=True)
        ]

    def illustrated(self, text: IllustratedText, stop_at: int | None) -> tuple[Tensor, dict[str, Any]]:
        """Return the conditioning of a text with images, by default one image to edit.

        Errors: NodeError for a file without a tower.
        """
        return self.entry(self.seeing(replace(text, template=text.template or _EDITS), stop_at)[0])

    def seeing(self, text: IllustratedText, stop_at: int | None) -> tuple[Encoded, list[tuple[int, int]]]:
        """Encode a text with images; also return each image's span of tokens. Errors: NodeError without a tower."""
        return self.seen_among(self.framed(self.around(text.text, text.template)), text.images, stop_at)

    def seen_among(
        self, tokens: Weighted, pictures: Sequence[Tensor], stop_at: int | None
    ) -> tuple[Encoded, list[tuple[int, int]]]:
        """As `seeing`, of a text's tokens with a placeholder for each image."""
        images = iter(pictures)
        row: list[tuple[Token, float] | Seen] = []
        for token, weight in tokens:
            image = next(images, None) if isinstance(token, int) and token == IMAGE_PAD else None
            row.append((token, weight) if image is None else self.see(image))
        return self.spliced(row, stop_at)

    def spliced(
        self, row: Sequence[tuple[Token, float] | Seen], stop_at: int | None
    ) -> tuple[Encoded, list[tuple[int, int]]]:
        """Encode tokens with images among them; also return each image's span of tokens."""
        tokens, positions, images = laid_out(row)
        spans = [span for span, _ in images]
        x = embedded(self._table, [[token for token, _ in tokens]], self.prompt_format.pad)
        added = [torch.zeros_like(x) for _ in (images[0][1].deeper if images else ())]
        for (start, end), seen in images:
            for where, vectors in zip(added, seen.deeper, strict=True):
                where[0, start:end] = vectors
        real = torch.tensor(self.prompt_format.seen(tokens))
        if images and self.unseen_at is not None:
            positions = torch.where(real, positions, self.unseen_at)
        mask = None if bool(real.all()) else to_device(real, x.device)[None]
        states = self.states(x, mask, to_device(positions, x.device)[:, None], stop_at, added)[0].float()
        return Encoded(tokens, states, real), spans

    def see(self, image: Tensor) -> Seen:
        """Return the features of an image (1,H,W,3). Errors: as `looked`."""
        rows, columns, seen = self.looked(*patches(image[:1], _PATCH, _MEAN, _SPREAD))
        return Seen(seen.pooler_output, rows, columns)

    def looked(self, cut: Tensor, rows: int, columns: int) -> tuple[int, int, Any]:
        """Return rows and columns of tokens, and the tower's output for an image. Errors: NodeError without a tower."""
        if not hasattr(self.network, "visual"):
            raise NodeError("the text encoder's file has no part that sees images, 'visual.'; use one that has it")
        visual = self.network.visual
        if next(visual.rotary_pos_emb.buffers()).is_meta:
            # Its frequencies are in no file, and were not computed on the meta device.
            visual.rotary_pos_emb = type(visual.rotary_pos_emb)(visual.config)
        grid = to_device(torch.tensor([[1, rows, columns]]), self._table.device)
        return rows // _MERGED, columns // _MERGED, visual(to_device(cut, self._table.device), grid_thw=grid)


def laid_out(
    row: Sequence[tuple[Token, float] | Seen],
) -> tuple[Weighted, Tensor, list[tuple[tuple[int, int], Seen]]]:
    """Return tokens with the vectors of images among them, their positions (3,T), and each image's span of tokens.

    An image's tokens share their place in the text, and have one of their own in each column and row.
    """
    tokens: Weighted = []
    positions: list[tuple[int, int, int]] = []
    images: list[tuple[tuple[int, int], Seen]] = []
    at = 0
    for piece in row:
        if not isinstance(piece, Seen):
            tokens.append(piece)
            positions.append((at, at, at))
            at += 1
            continue
        images.append(((len(tokens), len(tokens) + len(piece.vectors)), piece))
        tokens += [(vector, 1.0) for vector in piece.vectors]
        positions += [(at, at + y, at + x) for y in range(piece.rows) for x in range(piece.columns)]
        at += max(piece.rows, piece.columns)
    return tokens, torch.tensor(positions).t(), images


def _before_words(tokens: Sequence[Any], length: int) -> int:
    """Return the number of tokens before the user's words: up to the second turn's "user" and its new line."""
    starts = [i for i, token in enumerate(tokens) if isinstance(token, int) and token == IM_START][:2]
    at = starts[-1] if starts else -1
    following = tokens[at + 1 : at + 3]
    if length > at + 3 and all(isinstance(token, int) for token in following):
        return at + 3 if following == [_USER_WORD, _NEW_LINE] else at
    return at


def patches(image: Tensor, patch: int, mean: Sequence[float], spread: Sequence[float]) -> tuple[Tensor, int, int]:
    """Return an image (1,H,W,3) in 0…1 as patches (N,3·2·patch²), grouped by token, and the rows and columns.

    Two frames of a video, (2,H,W,3), become the patches of one. Its sides become multiples of two patches, its number
    of pixels stays within bounds. mean, spread: of its channels.
    """
    height, width = image.shape[1:3]
    unit = patch * _MERGED
    rows, columns = (round(side / unit) for side in (height, width))
    if rows * columns * unit**2 > _MOST_PIXELS:
        shrunk = math.sqrt(height * width / _MOST_PIXELS)
        rows, columns = (max(1, math.floor(side / shrunk / unit)) for side in (height, width))
    elif rows * columns * unit**2 < _LEAST_PIXELS:
        grown = math.sqrt(_LEAST_PIXELS / (height * width))
        rows, columns = (math.ceil(side * grown / unit) for side in (height, width))
    planes = interpolate(
        image[:_FRAMES, ..., :3].movedim(-1, 1).float(), (rows * unit, columns * unit), mode="bilinear"
    )
    planes = (planes - torch.tensor(mean)[:, None, None]) / torch.tensor(spread)[:, None, None]
    # (frames, C, rows, 2, p, columns, 2, p) → (rows, columns, 2, 2, C, frames, p, p); a still is two equal frames.
    cut = planes.expand(_FRAMES, -1, -1, -1).reshape(_FRAMES, 3, rows, _MERGED, patch, columns, _MERGED, patch)
    cut = cut.permute(2, 5, 3, 6, 1, 0, 4, 7)
    return cut.reshape(rows * columns * _MERGED**2, -1), rows * _MERGED, columns * _MERGED
