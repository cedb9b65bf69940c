"""Text encoders of ACE-Step 1.5: Qwen3 0.6B reads descriptions and lyrics, a larger one writes codes of sound.

Of the lyrics, the network reads the tokens' embeddings alone. Source: Gong et al. 2026, arXiv:2602.00744; how a code is
drawn is ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from serve_app.errors import NodeError
from serve_app.models.families.ace_step.backbone import LYRICS
from serve_app.models.families.dit.anima import AnimaText
from serve_app.models.families.text.decoder import DecoderEncoder
from serve_app.models.families.text.generation import Generation, JointGeneration
from serve_app.models.families.text.qwen import WITH_CODES, Qwen3Text
from serve_app.models.families.text.sequences import PromptFormat, embedded
from serve_app.models.families.text_family import TextEnsemble, TextResources
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import qwen
from serve_app.models.tokenizers.prompt import Token
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, GenerationRequest, SongText, Text, TextGuidance, TokenSampling

FIRST_CODE, CODES = 151669, 64000
"""The token of the first code of sound, and how many there are."""
CODE = "<|audio_code_{}|>"
READING = PromptFormat("qwen3_06b", pad=qwen.PAD, weighs=False, masked=True)
WRITING = PromptFormat("qwen3_2b", pad=qwen.PAD, weighs=False, embeds=False)
_WIDTH_4B = 2560


@dataclass(frozen=True, slots=True)
class AceStepWriter(Qwen3Text):
    """A Qwen3 of 1.7B or 4B that has learnt codes of sound."""

    name = "ACE-Step 1.5's language model"
    prefixes = ("text_encoders.qwen3_2b.transformer.", "text_encoders.qwen3_4b.transformer.", "")
    stop = ()

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        return inner.shape("embed_tokens.weight")[0] == WITH_CODES

    @classmethod
    def probe(cls, tensors: Tensors) -> AceStepWriter:
        """Read the network's size off its tensors."""
        probed: AceStepWriter = super(Qwen3Text, cls).probe(tensors)
        return probed

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return replace(WRITING, key="qwen3_4b") if self.width == _WIDTH_4B else WRITING


@dataclass(frozen=True, slots=True)
class AceStepText(TextEnsemble):
    """Qwen3 0.6B, and the language model."""

    takes = {AnimaText.name: "reader", AceStepWriter.name: "writer"}  # noqa: RUF012
    name = "ACE-Step 1.5"
    types = ("ace",)

    reader: AnimaText
    writer: AceStepWriter

    def encoder(self, network: Any, lexicon: TextResources) -> AceStepTextEncoder:
        tokenizer = self.reader.tokenizer(None, lexicon)
        reader = _Reader(self.reader, READING, tokenizer, network["reader"], lexicon.vectors)
        writer = _Writer(self.writer, self.writer.prompt_format_for(""), tokenizer, network["writer"], lexicon.vectors)
        return AceStepTextEncoder(reader, writer)


class AceStepTextEncoder:
    """Both on their device."""

    def __init__(self, reader: _Reader, writer: _Writer) -> None:
        self.reader, self.writer = reader, writer

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each song, all in one forward; as `Encoder.encode`. The layer to stop at does nothing, as in ComfyUI.

        Errors: NodeError for a text that is no song.
        """
        songs = [text for text in texts if isinstance(text, SongText)]
        if len(songs) < len(texts):
            raise NodeError(
                "ACE-Step 1.5 reads a description of a song and its lyrics: encode them by TextEncodeAceStepAudio1.5"
            )
        encoded = self.reader.encode_rows([self.reader.row(song.description) for song in songs])
        return [
            [(one.states[None], {LYRICS: self.reader.looked_up(song.lyrics)})]
            for one, song in zip(encoded, songs, strict=True)
        ]

    def generation(self, request: GenerationRequest) -> Generation:
        """Return new codes of sound. Errors: NodeError for a request of text."""
        return self.writer.generation(request)

    def generate(self, generations: Sequence[Generation]) -> None:
        """Add a code to each, as `DecoderEncoder.generate`."""
        self.writer.generate(generations)


class _Reader(DecoderEncoder):
    """Qwen3 0.6B on its device."""

    def looked_up(self, text: str) -> Tensor:
        """Return the embeddings (1,T,D) of a text's tokens."""
        return embedded(self._table, [[token for token, _ in self.framed(text)]], self.prompt_format.pad)


class _Writer(DecoderEncoder):
    """The language model on its device. Its logits are of codes alone."""

    def generation(self, request: GenerationRequest) -> Generation:
        if request.guidance is None or request.sampling is None:
            raise NodeError(
                "ACE-Step 1.5's language model writes codes of sound and no text: load Qwen3 or another one for texts"
            )
        prompts = [request.text, request.guidance.away_from]
        rows = [[token for token, _ in self.framed(prompt)] for prompt in prompts]
        if request.guidance.scale == 1.0:
            rows = rows[:1]
        return CodeGeneration(request, request.guidance, request.sampling, rows, self.family.tokens, self._table.device)

    def logits(self, states: Tensor) -> Tensor:
        return linear(states, self._table[FIRST_CODE : FIRST_CODE + CODES].to(states))


class CodeGeneration(JointGeneration):
    """Codes being written, as many as were asked for. prompts: what is continued, and what is guided away from."""

    def __init__(
        self,
        request: GenerationRequest,
        guidance: TextGuidance,
        sampling: TokenSampling,
        prompts: Sequence[Sequence[Token]],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        super().__init__(request, prompts, device)
        self._guidance, self._sampling, self._vocabulary = guidance, sampling, vocabulary
        self._draws = torch.Generator(device).manual_seed(sampling.seed)

    @property
    def text(self) -> str:
        return written([token for token in self.tokens if isinstance(token, int)])

    def drawn(self, outputs: Sequence[Tensor]) -> int:
        guided, *others = outputs
        for away in others:
            guided = away + self._guidance.scale * (guided - away)
        return next_code(guided, self._sampling, self._vocabulary, self._draws) + FIRST_CODE


def written(tokens: Sequence[int]) -> str:
    """Return codes as the language model's vocabulary names them."""
    return "".join(CODE.format(token - FIRST_CODE) for token in tokens)


def next_code(logits: Tensor, sampling: TokenSampling, vocabulary: int, generator: torch.Generator) -> int:
    """Return a code. logits: (1,V) of codes; vocabulary: tokens of the language model, among which it is drawn.

    Tokens are kept by their probabilities before the temperature, unlike of a text.
    """
    lowest = torch.finfo(logits.dtype).min
    if sampling.top_k > 0:
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, lowest)
    if sampling.min_p > 0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True), lowest)
    if sampling.top_p < 1:
        descending, order = logits.sort(descending=True)
        # The first that goes beyond is kept.
        left_out = (descending.softmax(-1).cumsum(-1) > sampling.top_p).roll(1, -1)
        left_out[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(left_out).scatter(1, order, left_out), lowest)
    if sampling.temperature <= 0:
        return int(logits.argmax())
    whole = logits.new_full((1, vocabulary), lowest)
    whole[:, FIRST_CODE : FIRST_CODE + CODES] = logits / sampling.temperature
    return int(torch.multinomial(whole.softmax(-1), 1, generator=generator)) - FIRST_CODE
