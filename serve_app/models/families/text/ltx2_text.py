"""LTX-2's text encoder: Gemma 3, all of whose states a projection in the checkpoint makes into a text.

Texts have no template and no weights. What the connectors of the network make of them is the network's. Sources: Gemma
2025, arXiv:2503.19786; HaCohen et al. 2026, arXiv:2601.03233; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer, Gemma3RMSNorm

from serve_app.errors import ModelFileError
from serve_app.images import resize, vision_pixels
from serve_app.models.families.family import Located
from serve_app.models.families.text.decoder import DecoderEncoder, DecoderText
from serve_app.models.families.text.sequences import Encoded, PromptFormat
from serve_app.models.families.text_family import Encoder, TextEnsemble, TextFamily, TextResources
from serve_app.models.families.vision.clip_vision import ClipVision
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.prompt import Weighted
from serve_app.models.tokenizers.sentencepiece import brought_pieces, sentence_pieces
from serve_app.sampling.transfer import to_device
from serve_app.values import GenerationRequest

START, PAD, END_OF_TURN = 2, 0, 106
TURN = "<start_of_turn>"
CHAT = f"{TURN}system\nYou are a helpful assistant.<end_of_turn>\n{TURN}user\n{{}}<end_of_turn>\n{TURN}model\n"
"""The template of texts to be answered."""
IMAGE_MARK, IMAGE = "<image_soft_token>", 262144
SEEN_SIDE, SEEN_PIXELS = 16, 896**2
"""An image becomes squares of this many vectors, of this many pixels before its middle is cut out."""
ILLUSTRATED = CHAT.replace(f"{{}}<end_of_turn>\n{TURN}", f"\n{IMAGE_MARK}{{}}<end_of_turn>\n\n{TURN}")
"""The template of texts about an image."""
_PROJECTOR = {
    "multi_modal_projector.mm_input_projection_weight": "projection",
    "multi_modal_projector.mm_soft_emb_norm": "projection_norm",
}
PROMPT_LEAST = 1024
"""Tokens of a text to be answered; a shorter one begins with padding, which the model reads, as in ComfyUI."""
WINDOW = 1024
EPS = 1e-6
SPREAD = 8.0
"""LTX-2.0's states fill this range."""
PREFIX = "text_embedding_projection."
_ONE, _VIDEO, _AUDIO = "aggregate_embed", "video_aggregate_embed", "audio_aggregate_embed"
LOADED_BY = "LTXAVTextEncoderLoader loads Gemma 3 with a checkpoint of LTX-2, which has the projection of its states"


@dataclass(frozen=True, slots=True)
class Gemma3Text(DecoderText):
    """Gemma 3, of any size. Five of six layers see a window. tower: what sees images; None: the file has none."""

    name = "Gemma 3"
    prefixes = ("text_encoders.gemma3_12b.transformer.", "")
    head_width = 256
    theta = 1e6
    stretch = 8.0
    window_theta = 1e4
    global_every = 6
    scaled = True
    stop = (END_OF_TURN,)
    vocabulary_name = "spiece_model"

    tower: ClipVision | None = None

    @property
    def window(self) -> int:
        return WINDOW

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        # Gemma 4 scales its layers' outputs.
        marks = ("self_attn.q_norm", "post_feedforward_layernorm")
        return all(f"layers.0.{mark}.weight" in inner.shapes for mark in marks) and (
            "layers.0.layer_scalar" not in inner.shapes
        )

    @classmethod
    def probe(cls, tensors: Tensors) -> Gemma3Text:
        found = super(Gemma3Text, cls).probe(tensors)
        return replace(found, tower=ClipVision.probe(tensors)) if tensors.has("vision_model.encoder.") else found

    def table(self, tensors: Tensors | None = None) -> Table:
        table = {**super(Gemma3Text, self).table(tensors), **_PROJECTOR}
        if self.tower is not None:
            table |= {theirs: f"tower.{ours}" for theirs, ours in self.tower.table().items()}
        return table

    def build(self) -> nn.Module:
        network = super(Gemma3Text, self).build()
        if self.tower is not None:
            network.tower = self.tower.build()
            network.projection = nn.Parameter(torch.empty(self.tower.width, self.width))
            network.projection_norm = Gemma3RMSNorm(self.tower.width, self.eps)
        return network

    def see(self, network: Any, image: Tensor) -> Tensor:
        """Return the vectors (N,D) of an image (1,H,W,3) in 0…1, as the first layer reads them, on its device."""
        tower = self.tower
        assert tower is not None
        scale = sqrt(SEEN_PIXELS / (image.shape[1] * image.shape[2]))
        height, width = (round(side * scale) for side in image.shape[1:3])
        pixels = vision_pixels(resize(image, width, height, "area"), tower.image_size, tower.mean, tower.spread)
        states = tower.see(network.tower, to_device(pixels, network.projection.device)).last_hidden_state
        squares = torch.unflatten(states.transpose(1, 2), 2, (tower.side, tower.side))
        pooled = avg_pool2d(squares, tower.side // SEEN_SIDE).flatten(2).transpose(1, 2)
        vectors: Tensor = network.projection_norm(pooled)[0] @ network.projection
        return vectors

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        taps = tuple(range(self.layers + 1))
        return PromptFormat("gemma3_12b", weighs=False, embeds=False, start=START, pad=PAD, masked=True, taps=taps)

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        config = Gemma3TextConfig(**self.sizes(), query_pre_attn_scalar=self.head)
        return lambda i: Gemma3DecoderLayer(config, i), Gemma3RMSNorm(self.width, self.eps)

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        model = brought_pieces(vocabulary, self.name, "gemma3.spiece.model", lexicon.vocabulary)
        return sentence_pieces(model, {"<end_of_turn>": END_OF_TURN, IMAGE_MARK: IMAGE})

    def encoder(self, network: Any, lexicon: TextResources) -> DecoderEncoder:
        raise ModelFileError(f"{self.title} alone encodes no texts; {LOADED_BY}")

    def states_encoder(self, network: Any, lexicon: TextResources) -> DecoderEncoder:
        """Return the encoder of all its states. Errors: ModelFileError if its tokeniser is missing."""
        return DecoderText.encoder(self, network, lexicon)


@dataclass(frozen=True, slots=True)
class Ltx2Projection(TextFamily):
    """What makes a text of a language model's states.

    read: their width, of all layers; made: a text's, for each stream; biases: whether there are, of each. One stream:
    LTX-2.0's, whose text both streams read.
    """

    name = "LTX-2's projection"

    read: int
    made: tuple[int, ...]
    biases: tuple[bool, ...]

    @property
    def key(self) -> str:
        return ""

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for number, whole in enumerate(files):
            tensors = whole.within(PREFIX) if whole.has(PREFIX) else None
            names = (_ONE,) if tensors is not None and f"{_ONE}.weight" in tensors.shapes else (_VIDEO, _AUDIO)
            if tensors is None or f"{names[0]}.weight" not in tensors.shapes:
                continue
            shapes = [tensors.shape(f"{name}.weight") for name in names]
            biases = tuple(f"{name}.bias" in tensors.shapes for name in names)
            yield Located(cls(shapes[0][1], tuple(shape[0] for shape in shapes), biases), tensors, number, PREFIX)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers, in the file and in the network."""
        return (_ONE,) if len(self.made) == 1 else (_VIDEO, _AUDIO)

    def table(self, tensors: Tensors | None = None) -> Table:
        return {name: name for name in self.names}

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> dict[str, str]:
        return {f"{PREFIX}{name}": f"{name}.weight" for name in self.names if f"{name}.weight" in parameters}

    def build(self) -> nn.Module:
        made = zip(self.names, self.made, self.biases, strict=True)
        return nn.ModuleDict({name: nn.Linear(self.read, width, bias=bias) for name, width, bias in made})

    def encoder(self, network: Any, lexicon: TextResources) -> Encoder:
        raise ModelFileError(f"the checkpoint of LTX-2 has no whole text encoder; {LOADED_BY}")

    def check(self, model: DecoderText) -> None:
        """Errors: ModelFileError for the states of a model that it does not read."""
        if (states := model.width * (model.layers + 1)) != self.read:
            raise ModelFileError(
                f"the text encoder has {model.layers + 1} states of {model.width}, {states:,} in all; the projection "
                f"reads {self.read:,}: LTX-2 goes with Gemma 3 12B, LTX-2.5 with Gemma 4 12B"
            )

    def entry(self, network: Any, encoded: Encoded, states: int) -> tuple[Tensor, dict[str, Any]]:
        """Return the conditioning of a text. states: how many each token has, side by side."""
        text = self.text(network, torch.stack(encoded.states.chunk(states, dim=-1))).float()
        return text[None], {}

    def text(self, network: Any, states: Tensor) -> Tensor:
        """Return a text (T,D) of the states of all layers (L,T,W)."""
        layers = states.permute(1, 2, 0)
        if len(self.made) == 1:
            mean, high, low = (of(layers, (0, 1)) for of in (_mean, torch.amax, torch.amin))
            one: Tensor = network[_ONE]((SPREAD * (layers - mean) / (high - low + EPS)).flatten(1))
            return one
        level = layers * torch.rsqrt(layers.square().mean(dim=1, keepdim=True) + EPS)
        flat, width = level.flatten(1), layers.shape[1]
        made = [network[name](flat * sqrt(size / width)) for name, size in zip(self.names, self.made, strict=True)]
        return torch.cat(made, dim=1)


def _mean(tensor: Tensor, over: tuple[int, ...]) -> Tensor:
    return tensor.mean(dim=over)


@dataclass(frozen=True, slots=True)
class Ltx2Text(TextEnsemble):
    """Gemma 3 and the projection of its states."""

    takes = {"Gemma 3": "gemma", "LTX-2's projection": "projection"}  # noqa: RUF012
    name = "LTX-2"
    types = ("ltxv",)

    gemma: Gemma3Text
    projection: Ltx2Projection

    @property
    def sees(self) -> bool:
        """Whether it sees images that texts are about."""
        return self.gemma.tower is not None

    def encoder(self, network: Any, lexicon: TextResources) -> Ltx2Encoder:
        self.projection.check(self.gemma)
        return Ltx2Encoder(self, network, lexicon)


class Ltx2Encoder(DecoderEncoder):
    """Both on their device. Texts are generated by Gemma 3 alone."""

    def __init__(self, family: Ltx2Text, network: Any, lexicon: TextResources) -> None:
        gemma = family.gemma.states_encoder(network["gemma"], lexicon)
        super().__init__(gemma.family, gemma.prompt_format, gemma.tokenizer, gemma.network, gemma.vectors)
        self._projected = family.projection
        self._projection = network["projection"]

    def prompt(self, request: GenerationRequest) -> Weighted:
        """Return the prompt's tokens, in the template unless it has turns of its own."""
        template = CHAT if request.image is None else ILLUSTRATED
        bare = request.text.startswith(TURN) or not request.use_template
        whole = request.text if bare else template.replace("{}", request.text)
        tokens = self.framed(whole)
        padded = [(PAD, 1.0)] * (PROMPT_LEAST - len(tokens)) + tokens
        at = next((at for at, (token, _) in enumerate(padded) if token == IMAGE), None)
        if request.image is None or at is None:
            return padded
        gemma = self.family
        assert isinstance(gemma, Gemma3Text)
        # The vectors of tokens are scaled later on, those of images are not.
        vectors = gemma.see(self.network, request.image[:1]) / gemma.width**0.5
        return [*padded[:at], *((vector, 1.0) for vector in vectors), *padded[at + 1 :]]

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        return self._projected.entry(self._projection, encoded, self.family.layers + 1)
