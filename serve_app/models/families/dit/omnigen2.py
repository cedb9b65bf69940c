"""OmniGen2: images from text and up to five reference images, with its text encoder.

Files have the names of diffusers' Lumina2Transformer2DModel, whose layers run it, with others for references. Source:
Wu et al. 2025, arXiv:2506.18871; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel, Lumina2TransformerBlock
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families.dit.lumina2 import AXES, MULTIPLE, THETA, inside
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import PATCH, grid, positions, to_tokens
from serve_app.models.families.shared.one_stream import OneStream, Stream, TextInputs
from serve_app.models.families.shared.references import scaled_references
from serve_app.models.families.text.decoder import DecoderEncoder, DecoderText
from serve_app.models.families.text.qwen_vl import QwenVlText
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.tokenizers import qwen
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Canvas
from serve_app.sampling.transfer import to_device

SHIFT = 2.6
TIMES = 1000.0
"""Scale of time in the network."""
MOST_REFERENCES = 5

EPS = 1e-5
_MODULES = (
    *("x_embedder", "ref_image_patch_embedder", "image_index_embedding", "time_caption_embed", "norm_out"),
    *("noise_refiner", "ref_image_refiner", "context_refiner"),
)

READING = PromptFormat(
    "qwen25_3b",
    template="<|im_start|>system\nYou are a helpful assistant that generates high-quality images based on user "
    "instructions.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n",
    embeds=False,
    pad=qwen.PAD,
    masked=True,
    returns_mask=True,
)


@dataclass(frozen=True, slots=True, eq=False)
class OmniGen2Inputs(TextInputs):
    """Conditioning inputs for B rows. references: (B,C,h,w) each, scaled."""

    references: tuple[Tensor, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of the references' tokens."""
        grids = [grid(*reference.shape[-2:]) for reference in self.references]
        return sum(rows * columns for rows, columns in grids)


@dataclass(frozen=True, slots=True)
class OmniGen2(OneStream):
    """A backbone. width: of a token; heads: of queries, shared: of keys and values."""

    title = "OmniGen2"
    dispatches = False
    trained_as = Flow(SHIFT, 1.0)
    theta = THETA
    stack: ClassVar[str] = "layers"
    """Files' name of the layers that read text and images together."""

    width: int
    heads: int
    shared: int
    layers: int
    refiners: int
    text_width: int
    latent_channels: int = 16

    @classmethod
    def probe(cls, tensors: Tensors) -> OmniGen2:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, fed = tensors.shape("x_embedder.weight")
        head = tensors.shape(f"{cls.stack}.0.attn.norm_q.weight")[0]
        keys = tensors.shape(f"{cls.stack}.0.attn.to_k.weight")[0]
        wide = tensors.shape(f"{cls.stack}.0.feed_forward.linear_1.weight")[0]
        if width % head or head % (2 * AXES) or keys % head or wide != inside(width):
            raise tensors.unsupported(
                f"has a backbone of {cls.title} {width} wide with heads of {head} and {wide} inside; supported are "
                f"heads of a multiple of {2 * AXES} and {inside(width)} inside"
            )
        return cls(
            width,
            width // head,
            keys // head,
            tensors.count(f"{cls.stack}."),
            tensors.count("noise_refiner."),
            tensors.shape("time_caption_embed.caption_embedder.1.weight")[1],
            fed // PATCH**2,
        )

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.width // self.heads // AXES,) * AXES

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def table(self, tensors: Tensors | None = None) -> Table:
        return {**{name: name for name in _MODULES}, self.stack: "layers"}

    def build(self) -> nn.Module:
        network = Lumina2Transformer2DModel(
            in_channels=self.latent_channels,
            hidden_size=self.width,
            num_layers=self.layers,
            num_refiner_layers=self.refiners,
            num_attention_heads=self.heads,
            num_kv_heads=self.shared,
            multiple_of=MULTIPLE,
            axes_dim_rope=self.axes,
            cap_feat_dim=self.text_width,
            norm_eps=EPS,
        )
        network.ref_image_patch_embedder = nn.Linear(self.latent_channels * PATCH**2, self.width)
        network.image_index_embedding = nn.Parameter(torch.zeros(MOST_REFERENCES, self.width))
        network.ref_image_refiner = nn.ModuleList(
            Lumina2TransformerBlock(self.width, self.heads, self.shared, MULTIPLE, None, EPS)
            for _ in range(self.refiners)
        )
        built: nn.Module = network
        return built

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> OmniGen2Inputs:
        """Return the text and the references: ComfyUI's options.

        Errors: NodeError for a conditioning of another family's text encoder, or for unsupported references.
        """
        text = super(OmniGen2, self).inputs(cond, options, role, canvas, device, trained_as).text
        references = scaled_references(options, self.latent_format, canvas.rows, device)
        if len(references) > MOST_REFERENCES:
            raise NodeError(
                f"{self.title} looks at {MOST_REFERENCES} reference latents at most, and {len(references)} were given"
            )
        return OmniGen2Inputs(text, references)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the powers of two that contain the numbers of cells and references' tokens; 0 for rows without any."""
        return super(OmniGen2, self).group_key(x, inputs), inputs.tokens.bit_length()

    def time(self, network: Any, time: Tensor) -> Tensor:
        embed = network.time_caption_embed
        made: Tensor = embed.timestep_embedder(embed.time_proj(time * TIMES).to(network.x_embedder.bias.dtype))
        return made

    def embedded_image(self, network: Any) -> tuple[nn.Module, Tensor | None]:
        return network.x_embedder, None

    def embedded_text(self, network: Any) -> tuple[nn.Module, Tensor | None]:
        return network.time_caption_embed.caption_embedder, None

    def text_at(self, count: int) -> Tensor:
        """Return the positions of a text's tokens, which move along all axes."""
        return torch.arange(float(count))[:, None].expand(-1, 3)

    def image_at(self, x: Tensor, inputs: Any) -> Tensor:
        return _in_turn(inputs.text.shape[1], (*inputs.references, x))[-1]

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the streams of rows, with references' if they have any: none of a group or all do."""
        given, inputs = super(OmniGen2, self).call_inputs(network, rows), [r.inputs for r in rows]
        if not inputs[0].references:
            return given
        dtype = network.x_embedder.weight.dtype
        cut = [[to_tokens(one.to(dtype), channels_last=True) for one in i.references] for i in inputs]
        at = [torch.cat(_in_turn(i.text.shape[1], i.references)) for i in inputs]
        which = torch.zeros(sum(r.count for r in rows), max(i.tokens for i in inputs), dtype=torch.long)
        row = 0
        for r, tokens in zip(rows, cut, strict=True):
            numbers = torch.repeat_interleave(torch.tensor([one.shape[1] for one in tokens]))
            which[row : row + r.count, : len(numbers)] = numbers
            row += r.count
        reference_tokens = self.token_inputs("references", [torch.cat(tokens, dim=1) for tokens in cut], at)
        return {**given, **reference_tokens, "which": to_device(which, rows[0].x.device)}

    def reference_tokens(self, network: Any, given: Inputs, time: Tensor) -> Stream | None:
        """Return the references, refined by layers of their own."""
        if "references" not in given:
            return None
        number = network.image_index_embedding[given["which"]]
        stream = self.stream(given, "references", lambda tokens: network.ref_image_patch_embedder(tokens) + number)
        for layer in network.ref_image_refiner:
            stream = stream.through(layer, time)
        return stream

    def last(self, network: Any, tokens: Tensor, time: Tensor) -> Tensor:
        made: Tensor = network.norm_out(tokens, time)
        return made


def _in_turn(first: int, images: Sequence[Tensor]) -> list[Tensor]:
    """Return the positions (n,3) of each image's tokens: one plane each, as far apart as an image has tokens a side.

    first: the first image's plane. images: (B,C,h,w) each.
    """
    placed: list[Tensor] = []
    for image in images:
        size = image.shape[-2:]
        placed.append(positions(size, first))
        first += max(grid(*size))
    return placed


@dataclass(frozen=True, slots=True)
class OmniGen2Text(QwenVlText):
    """Qwen2.5-VL 3B. It reads no images: its vision tower is unused."""

    name = "Qwen2.5-VL 3B"
    prefixes = ("text_encoders.qwen25_3b.transformer.", "")

    @classmethod
    def reads(cls, keys: int) -> bool:
        return not QwenVlText.reads(keys)

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return READING

    def build(self) -> nn.Module:
        return DecoderText.build(self)

    def encoder(self, network: Any, lexicon: TextResources) -> DecoderEncoder:
        return DecoderText.encoder(self, network, lexicon)
