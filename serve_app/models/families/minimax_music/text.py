"""The language model of MiniMax Music 3: a Qwen3 8B that writes a song in codes, of which its states are kept.

A frame is a code of the language model, and seven more by a small network that reads its state. Source: MiniMax 2026
(MiniMax Music 3); how codes are drawn is ComfyUI's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families.family import Located, marked
from serve_app.models.families.text.decoder import DecoderEncoder
from serve_app.models.families.text.generation import Generation, JointGeneration
from serve_app.models.families.text.qwen import Qwen3Text
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.layout import Place, Table, cut
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.byte_pairs import of_library
from serve_app.models.tokenizers.prompt import Token
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, GenerationRequest, Text

FIRST_CODE, CODES = 151675, 16384
"""The token of the first code of the language model, and how many there are."""
UNSAID = 151654
"""The token in the place of a song's words, to guide away from."""
MORE, MORE_CODES = 7, 1024
"""Further codes of a frame, and how many there are of each."""
MOST_TOKENS = 5000
_MARK = "model.audio_decoder.projection.weight"
_HEADS_INSIDE = 16
FORMAT = PromptFormat("minimax_music3", pad=151643, weighs=False, embeds=False)


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-6)


class _Layer(nn.Module):
    """A layer of the network of a frame's further codes, with the names of its file."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = _Norm(width), _Norm(width)
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names})
        gated = {name: nn.Linear(width, inside, bias=False) for name in ("gate_proj", "up_proj")}
        self.mlp = nn.ModuleDict({**gated, "down_proj": nn.Linear(inside, width, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        normed, attn, mlp = self.input_layernorm(x), self.self_attn, self.mlp
        q, k, v = (
            torch.unflatten(attn[name](normed), -1, (_HEADS_INSIDE, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        found = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attn["o_proj"](found.transpose(1, 2).flatten(2))
        normed = self.post_attention_layernorm(x)
        out: Tensor = x + mlp["down_proj"](silu(mlp["gate_proj"](normed)) * mlp["up_proj"](normed))
        return out


@dataclass(frozen=True, slots=True)
class MiniMaxMusic3Text(Qwen3Text):
    """A language model. inner_layers, inner_inside: of the network of further codes."""

    name = "MiniMax Music 3's language model"
    prefixes = ("",)
    first = "audio_decoder.projection.weight"
    stop = ()

    inner_layers: int = 4
    inner_inside: int = 6144

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for number, whole in enumerate(files):
            if (found := marked(whole, cls.prefixes, (_MARK,))) is not None:
                yield Located(cls.probe(found[1]), found[1], number, found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> MiniMaxMusic3Text:
        """Read the network's size off its tensors. Errors: ModelFileError for one with all of Qwen3's tokens."""
        inner = tensors.within("model.")
        if "embed_tokens_prefill.weight" not in inner.shapes or "lm_head_pruned.weight" not in inner.shapes:
            raise tensors.unsupported(
                "holds MiniMax Music 3's language model with tokens that no song has; supported is the pruned one, "
                "with 'model.embed_tokens_prefill.weight' and 'model.lm_head_pruned.weight'"
            )
        tokens, width = inner.shape("embed_tokens_prefill.weight")
        head = inner.shape("layers.0.self_attn.q_norm.weight")[0]
        heads = inner.shape("layers.0.self_attn.o_proj.weight")[1] // head
        if (fused := inner.shapes.get("layers.0.self_attn.qkv_proj.weight")) is not None:
            kv_heads = (fused[0] // head - heads) // 2
        else:
            kv_heads = inner.shape("layers.0.self_attn.k_proj.weight")[0] // head
        return cls(
            layers=inner.count("layers."),
            width=width,
            hidden_width=inner.shape("layers.0.mlp.down_proj.weight")[1],
            heads=heads,
            kv_heads=kv_heads,
            head=head,
            tokens=tokens,
            vocabulary_bytes=tensors.shapes.get("tokenizer_json", (0,))[0],
            inner_layers=inner.count("audio_decoder.layers."),
            inner_inside=inner.shape("audio_decoder.layers.0.mlp.down_proj.weight")[1],
        )

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return FORMAT

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {
            "model.embed_tokens_prefill": "embed_tokens",
            "model.embed_tokens_audio": "embed_codes",
            "model.audio_extra_embedding": "embed_more",
            "model.lm_head_pruned": "head",
            "model.audio_decoder": "more",
            "model.layers": "layers",
            "model.norm": "norm",
            "tokenizer_json": "vocabulary",
        }
        own = self.width // _HEADS_INSIDE
        stacks = (
            ("layers", self.layers, (self.heads, self.kv_heads, self.kv_heads), self.head, self.hidden_width),
            ("audio_decoder.layers", self.inner_layers, (_HEADS_INSIDE,) * 3, own, self.inner_inside),
        )
        for stack, count, heads, head, inside in stacks:
            for number in range(count):
                theirs = f"model.{stack}.{number}"
                ours = f"{stack.replace('audio_decoder', 'more')}.{number}"
                sizes = [of_one * head for of_one in heads]
                table[f"{theirs}.self_attn.qkv_proj"] = cut(ours + ".self_attn.", ("q_proj", "k_proj", "v_proj"), sizes)
                table[f"{theirs}.mlp.gate_up_proj"] = cut(ours + ".mlp.", ("gate_proj", "up_proj"), [inside] * 2)
        return table

    def build(self) -> nn.Module:
        network: Any = super(MiniMaxMusic3Text, self).build()
        network.embed_codes = nn.Embedding(CODES, self.width)
        network.embed_more = nn.Embedding(MORE * MORE_CODES, self.width)
        network.head = nn.Linear(self.width, CODES + 1, bias=False)
        more = nn.Module()
        more.projection = nn.Linear(self.width, self.width, bias=False)
        more.pos_embedding = nn.Embedding(16, self.width)
        more.audio_heads = nn.ModuleList(nn.Linear(self.width, MORE_CODES, bias=False) for _ in range(MORE))
        more.layers = nn.ModuleList(_Layer(self.width, self.inner_inside) for _ in range(self.inner_layers))
        more.norm = _Norm(self.width)
        network.more = more
        built: nn.Module = network
        return built

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        if vocabulary is None:
            raise ModelFileError(f"the file of {self.name} has no tokeniser, 'tokenizer_json'; a published file has it")
        return of_library(tokenizers.Tokenizer.from_str(vocabulary.decode()))

    def encoder(self, network: Any, lexicon: TextResources) -> MiniMaxMusic3Encoder:
        brought = network.get_buffer("vocabulary").cpu().numpy().tobytes() if self.vocabulary_bytes else None
        return MiniMaxMusic3Encoder(self, FORMAT, self.tokenizer(brought, lexicon), network, lexicon.vectors)


class MiniMaxMusic3Encoder(DecoderEncoder):
    """The language model on its device. It writes songs, and reads nothing else."""

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Refuse texts. Errors: NodeError."""
        raise NodeError(
            "MiniMax Music 3 reads what MiniMaxMusic3TextEncode makes of a caption and lyrics, and no texts"
        )

    def generation(self, request: GenerationRequest) -> Generation:
        """Return a new song. Errors: NodeError for a request of text, and for a prompt that is too long."""
        if request.guidance is None or request.sampling is None:
            raise NodeError("MiniMax Music 3's language model writes songs and no text: load Qwen3 or another one")
        prompt = [token for token, _ in self.framed(request.text)]
        return self.song(request, prompt)

    def song(self, request: GenerationRequest, prompt: Sequence[Token]) -> Song:
        """Return a new song of a prompt's tokens. Errors: NodeError for too many."""
        if len(prompt) > MOST_TOKENS:
            raise NodeError(
                f"caption and lyrics are {len(prompt):,} tokens; MiniMax Music 3 reads at most {MOST_TOKENS:,}"
            )
        unsaid = [prompt[0], *[UNSAID] * (len(prompt) - 3), *prompt[-2:]]
        return Song(self, request, (prompt, unsaid), self._table.device)

    def logits(self, states: Tensor) -> Tensor:
        """Return the states themselves, which a song keeps."""
        return states


class Song(JointGeneration):
    """A song being written: the states of its frames."""

    def __init__(
        self,
        by: MiniMaxMusic3Encoder,
        request: GenerationRequest,
        prompts: Sequence[Sequence[Token]],
        device: torch.device,
    ) -> None:
        super().__init__(request, prompts, device)
        sampling, guidance = request.sampling, request.guidance
        assert sampling is not None
        assert guidance is not None
        self._scale, self._top_k = guidance.scale, sampling.top_k
        self._network = by.network
        self._draws = torch.Generator(device).manual_seed(derived(sampling.seed, "ar"))
        self._frames: list[Tensor] = []
        self._ended = False

    @property
    def over(self) -> bool:
        return self._ended or len(self.tokens) >= self.request.max_tokens

    @property
    def result(self) -> Conditioning:
        """The states (1,frames,8·W), on the host; no frames of a song that ended before it began."""
        width = (MORE + 1) * self._network.embed_codes.embedding_dim
        states = torch.stack(self._frames).cpu()[None] if self._frames else torch.zeros(1, 0, width)
        return [(states, {})]

    def drawn(self, outputs: Sequence[Tensor]) -> Token | None:
        """Draw a frame from the states (1,W) of both prompts. Return what is read next; None at the song's end."""
        network, states = self._network, torch.cat(list(outputs))
        said, unsaid = network.head(states).float().split(1)
        guided = unsaid + (said - unsaid) * self._scale
        least = said.topk(self._top_k).values[..., -1:]
        code = likely(guided.masked_fill(said < least, -torch.inf), self._top_k, self._draws)
        if not int(code):
            self._ended = True
            return None
        first = network.embed_codes(code - 1).to(states)
        more, kept = self._further(states, first.expand_as(states))
        # The first frame of all is before the song's beginning.
        if self.tokens:
            self._frames.append(torch.cat([states[0], *kept]))
        following: Tensor = (first[0] + more) * (MORE + 1) ** -0.5
        return following

    def _further(self, states: Tensor, first: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Draw a frame's further codes. Return the sum (W,) of their embeddings, and the state (W,) before each."""
        network = self._network.more
        read = [network.projection(states), network.projection(first)]
        kept, total = [], torch.zeros_like(first[0])
        for number in range(MORE):
            x = torch.stack(read, dim=1)
            x = x + network.pos_embedding.weight[: x.shape[1]].to(x)
            for layer in network.layers:
                x = layer(x)
            last = network.norm(x)[:, -1]
            kept.append(last[0])
            said, unsaid = network.audio_heads[number](last).float().split(1)
            code = likely(unsaid + (said - unsaid) * self._scale, self._top_k, self._draws)
            embedded = self._network.embed_more(code + number * MORE_CODES).to(states)
            total = total + embedded[0]
            read.append(network.projection(embedded.expand_as(states)))
        return total, kept


def derived(seed: int, *parts: str) -> int:
    """Return the seed of a part of the work."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=8, person=b"minimax-ttm")
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + part.encode())
    return int.from_bytes(digest.digest(), "little") & ((1 << 63) - 1)


def likely(logits: Tensor, top_k: int, generator: torch.Generator) -> Tensor:
    """Return a code (1,) of the most likely ones. logits: (1,V) float32."""
    logits = logits.nan_to_num(nan=-1e9, posinf=1e9, neginf=-1e9)
    least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
    shares = logits.masked_fill(logits < least, -torch.inf).softmax(-1)
    return torch.multinomial(shares / shares.sum(dim=-1, keepdim=True), 1, generator=generator)[0]
