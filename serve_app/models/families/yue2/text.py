"""The language model of YuE 2: a Qwen3 that writes a song's score in ABC notation, then its sound in codes.

What is kept of a song are the keys and values of its tokens, which the network attends to. Source: M·A·P 2026 (YuE 2);
how a token is drawn is the published sampler's, as ComfyUI has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import tokenizers
import torch
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families.family import Located, marked
from serve_app.models.families.text.decoder import VOCABULARY, DecoderEncoder
from serve_app.models.families.text.generation import Generation, JointGeneration, KeysValues
from serve_app.models.families.text.qwen import Qwen3Text
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.models.families.yue2.backbone import CHUNKS, Chunk
from serve_app.models.files.layout import Place, Table, cut
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.byte_pairs import of_library
from serve_app.recipe.text import T5Padding
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, GenerationRequest, Text, TextGuidance, TokenSampling

BEGIN = 151643
"""What every prompt begins with; tokens of text are less."""
SCORE_START, SCORE_END, MUSIC_START, MUSIC_END = 151847, 151848, 151851, 151852
FIRST_CODE, CODES = 151853, 32768
"""The token of the first code of sound, and how many there are."""
CONTEXT, SCORE_CONTEXT = 24576, 4096
"""The most tokens of a song and of a score, with their prompts."""
FRAMES = "yue2_frames"
"""Option of a conditioning: the frames of its song."""
_MARK = "yue2_tokenizer_json"
FORMAT = PromptFormat("yue2", pad=BEGIN, weighs=False, embeds=False)


@dataclass(frozen=True, slots=True)
class YuE2Text(Qwen3Text):
    """A language model, its queries, keys and values one layer in its file, and its gates too."""

    name = "YuE 2's language model"
    prefixes = ("text_encoders.", "")
    first = "layers.0.self_attn.qkv_proj.weight"
    stop = ()
    vocabulary_name: ClassVar[str] = _MARK

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for number, whole in enumerate(files):
            if (found := marked(whole, cls.prefixes, (_MARK,))) is not None:
                yield Located(cls.probe(found[1]), found[1], number, found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> YuE2Text:
        """Read the network's size off its tensors."""
        inner = tensors.within("model.")
        tokens, width = inner.shape("embed_tokens.weight")
        head = inner.shape("layers.0.self_attn.q_norm.weight")[0]
        heads = inner.shape("layers.0.self_attn.o_proj.weight")[1] // head
        return cls(
            layers=inner.count("layers."),
            width=width,
            hidden_width=inner.shape("layers.0.mlp.down_proj.weight")[1],
            heads=heads,
            kv_heads=(inner.shape(cls.first)[0] // head - heads) // 2,
            head=head,
            tokens=tokens,
            vocabulary_bytes=tensors.shape(_MARK)[0],
            separate_head=True,
        )

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return FORMAT

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {**super(YuE2Text, self).table(tensors), _MARK: VOCABULARY}
        attended = [count * self.head for count in (self.heads, self.kv_heads, self.kv_heads)]
        for number in range(self.layers):
            theirs, ours = f"model.layers.{number}", f"layers.{number}"
            table[f"{theirs}.self_attn.qkv_proj"] = cut(f"{ours}.self_attn.", ("q_proj", "k_proj", "v_proj"), attended)
            table[f"{theirs}.mlp.gate_up_proj"] = cut(f"{ours}.mlp.", ("gate_proj", "up_proj"), [self.hidden_width] * 2)
        return table

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        if vocabulary is None:
            raise ModelFileError(f"the file of {self.name} has no tokeniser, '{_MARK}'; a published file has it")
        return of_library(tokenizers.Tokenizer.from_str(vocabulary.decode()))

    def encoder(self, network: Any, lexicon: TextResources) -> YuE2Encoder:
        brought = network.get_buffer(VOCABULARY).cpu().numpy().tobytes()
        return YuE2Encoder(self, FORMAT, self.tokenizer(brought, lexicon), network, lexicon.vectors)


class YuE2Encoder(DecoderEncoder):
    """The language model on its device. It writes scores and music, and reads nothing else."""

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Refuse texts. Errors: NodeError."""
        raise NodeError("YuE 2 samples what YuE2GenerateMusic writes of a style, lyrics and a score, and no texts")

    def generation(self, request: GenerationRequest) -> Generation:
        """Return a new score, or new music if the request has a score. Errors: NodeError for a request of text."""
        if request.guidance is None or request.sampling is None:
            raise NodeError("YuE 2's language model writes scores and music, and no text: load Qwen3 or another one")
        read, device = self.tokenizer.encode, self._table.device
        said, unsaid = ([BEGIN, *read(text)] for text in (request.text, request.guidance.away_from))
        if request.score is None:
            return Score(request, request.sampling, [*said, SCORE_START], self.tokenizer, device)
        # Without a score there is nothing between its two ends, and less where it is guided away from.
        score = read(request.score)
        said = [*said, SCORE_START, *score, SCORE_END, MUSIC_START]
        unsaid += [SCORE_START, *score, SCORE_END, MUSIC_START] if request.score else [MUSIC_START]
        return Music(request, request.sampling, request.guidance, (said, unsaid), device)


class _Writing(JointGeneration):
    """Tokens being written up to an end token.

    ends: the end token. of: the first token that may be written, and the one after the last. at_least: tokens before
    the end token may come.
    """

    ends: ClassVar[int]
    of: ClassVar[tuple[int, int]]
    at_least: ClassVar[int]

    def __init__(
        self,
        request: GenerationRequest,
        sampling: TokenSampling,
        prompts: Sequence[Sequence[int]],
        context: int,
        device: torch.device,
    ) -> None:
        longest = max(map(len, prompts))
        if longest + _AROUND > context:
            raise NodeError(
                f"style, lyrics and score are {longest:,} tokens; YuE 2's language model reads at most "
                f"{context - _AROUND:,} before it writes"
            )
        super().__init__(request, prompts, device)
        self._sampling, self._device = sampling, device
        self._draws = torch.Generator(device).manual_seed(sampling.seed)
        self._most = min(request.max_tokens, context - longest)
        self._ended = False

    @property
    def written(self) -> bool:
        """Whether the last token is drawn."""
        return self._ended or len(self.tokens) >= self._most

    @property
    def over(self) -> bool:
        return self.written

    @property
    def numbers(self) -> list[int]:
        """The tokens so far."""
        return [token for token in self.tokens if isinstance(token, int)]

    def next_of(self, logits: Tensor, surest: int) -> int | None:
        """Draw a token from logits (1,V), of which the `surest` most likely ones are kept; None at the end."""
        first, last = self.of
        barred = torch.ones_like(logits, dtype=torch.bool)
        barred[:, first:last] = False
        barred[:, self.ends] = len(self.tokens) < min(self.at_least, self._most)
        token = drawn_token(
            _penalized(logits, self._sampling, self.numbers), barred, self._sampling, surest, self._draws
        )
        self._ended = token == self.ends
        return None if self._ended else token


_AROUND = 5
"""Tokens that must be left after a prompt: a frame takes two positions, and has three about it."""


class Score(_Writing):
    """A score being written."""

    ends, of, at_least = SCORE_END, (0, BEGIN), 32

    def __init__(
        self,
        request: GenerationRequest,
        sampling: TokenSampling,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        device: torch.device,
    ) -> None:
        super().__init__(request, sampling, [prompt], SCORE_CONTEXT, device)
        self._tokenizer = tokenizer

    @property
    def text(self) -> str:
        return self._tokenizer.decode(self.numbers)

    def drawn(self, outputs: Sequence[Tensor]) -> int | None:
        return self.next_of(outputs[0].float(), 1)


class Music(_Writing):
    """Codes of a song's sound being written, and then read for their keys and values, a part of the song at once."""

    ends, of, at_least = MUSIC_END, (FIRST_CODE, FIRST_CODE + CODES), 200

    def __init__(
        self,
        request: GenerationRequest,
        sampling: TokenSampling,
        guidance: TextGuidance,
        prompts: Sequence[list[int]],
        device: torch.device,
    ) -> None:
        self._said, self._scale = prompts[0], guidance.scale
        super().__init__(request, sampling, prompts if guidance.scale != 1.0 else prompts[:1], CONTEXT, device)
        self._parts: list[_Part] | None = None

    @property
    def rows(self) -> Sequence[Generation]:
        """What is to be read next: the prompts, and then the parts of the song."""
        return super().rows if self._parts is None else [part for part in self._parts if not part.cache]

    @property
    def over(self) -> bool:
        return self._parts is not None and not self.rows

    def drawn(self, outputs: Sequence[Tensor]) -> int | None:
        """Draw a code. Without a score the model's own precision counts, and three codes are always kept."""
        guided, *others = outputs
        for away in others:
            guided = away + self._scale * (guided - away)
        return self.next_of(guided.float() if self.request.score else guided, 1 if self.request.score else 3)

    def draw(self) -> None:
        super().draw()
        if self.written and self._parts is None:
            for row in self._rows:
                row.cache = []
            codes = self.numbers
            self._parts = [
                _Part(self.request, [*self._said, *codes[start:end], MUSIC_END], self._device)
                for start, end in parts(len(codes), len(self._said))
            ]

    @property
    def result(self) -> Conditioning:
        """The keys and values (1,T,layers·2·H·D) of the song's parts, one after the other, on the host."""
        chunks: list[Chunk] = []
        at, count = 0, len(self._said) + 1
        for start, end in parts(len(self.tokens), len(self._said)):
            chunks.append((start, end, at, at + count + end - start))
            at = chunks[-1][3]
        kept = torch.cat([flat(part.cache).cpu() for part in self._parts or ()], dim=1)
        return [(kept, {CHUNKS: tuple(chunks), FRAMES: len(self.tokens)})]


class _Part(Generation):
    """A part of a song that is read for its keys and values."""

    def __init__(self, request: GenerationRequest, prompt: Sequence[int], device: torch.device) -> None:
        super().__init__(request, prompt, frozenset(), lambda tokens: "", device)

    def add(self, logits: Tensor, cache: list[KeysValues]) -> None:
        self.cache = cache


def parts(frames: int, prompt: int) -> list[tuple[int, int]]:
    """Return the first frame and end of each part of a song. prompt: the tokens before."""
    size = (CONTEXT - prompt - 3) // 2
    return [(start, min(start + size, frames)) for start in range(0, frames, size)]


def flat(cache: Sequence[KeysValues]) -> Tensor:
    """Return keys and values by layer, (1,H,T,D) each, as one (1,T,layers·2·H·D)."""
    both = torch.stack([torch.stack((keys, values)) for keys, values in cache])
    return both.permute(2, 4, 0, 1, 3, 5).flatten(2)


def _penalized(logits: Tensor, sampling: TokenSampling, before: Sequence[int]) -> Tensor:
    """Return logits (1,V), lower for each time that a token is among the last ones."""
    counts = Counter(before[-sampling.penalty_window :])
    if sampling.repetition_penalty == 1.0 or not counts:
        return logits
    at = to_device(torch.tensor(list(counts)), logits.device)
    times = to_device(torch.tensor(list(counts.values()), dtype=logits.dtype), logits.device)
    factor, found = sampling.repetition_penalty**times, logits[:, at]
    return logits.index_copy(1, at, torch.where(found < 0, found * factor, found / factor))


def drawn_token(
    logits: Tensor, barred: Tensor, sampling: TokenSampling, surest: int, generator: torch.Generator
) -> int:
    """Return a token drawn from logits (1,V). surest: how many of the most likely are kept, whatever `top_p` is."""
    logits = logits.masked_fill(barred, -inf)
    if sampling.temperature == 0:
        return int(logits.argmax())
    likely, tokens = (logits / sampling.temperature).topk(min(sampling.top_k, logits.shape[-1]))
    if sampling.top_p < 1.0:
        shares = likely.softmax(-1)
        left_out = shares.cumsum(-1) - shares > sampling.top_p
        left_out[:, :surest] = False
        likely = likely.masked_fill(left_out, -inf)
    return int(tokens.gather(1, torch.multinomial(likely.softmax(-1), 1, generator=generator)))
