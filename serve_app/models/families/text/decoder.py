"""Language models, as text encoders and as generators of text. `qwen`, `gemma` and others are its families.

The layers are transformers'; positions, masks and the choice of states are here, so that rows of many texts, each of
its own length, share a forward. Source: Touvron et al. 2023, arXiv:2302.13971; Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from serve_app.errors import NodeError
from serve_app.models.families.family import Located, marked
from serve_app.models.families.text.generation import Cache, Generation, as_cache
from serve_app.models.families.text.sequences import PromptFormat, SequenceEncoder, embedded, from_the_end, whole_names
from serve_app.models.families.text_family import TextFamily, TextResources, Vectors
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.prompt import Token, Weighted
from serve_app.models.weights.dtypes import dtype_of
from serve_app.recipe.text import T5Padding
from serve_app.sampling.transfer import to_device
from serve_app.values import GenerationRequest

_ROOTS = ("model.", "model.language_model.")
_HEADS = ("lm_head", "model.lm_head")
_VOCABULARIES = ("spiece_model", "tekken_model", "tokenizer_json")
VOCABULARY = "vocabulary"
"""The buffer of a network with the bytes of its tokeniser's file."""

F = TypeVar("F", bound="DecoderText")
Rotation: TypeAlias = "tuple[Tensor, Tensor]"
"""Cosines and sines (…,T,head) of rotary positions."""


@dataclass(frozen=True, slots=True)
class DecoderText(TextFamily):
    """A language model.

    final_norm: it has the last norm; vocabulary_bytes: size of the tokeniser in the file, or 0; separate_head: the file
    has an output layer, not tied to the token embeddings. head_width: of a head where no norm's length shows it. theta:
    of rotary positions; eps: of norms. sections: frequencies of a head for each axis of an image; interleaved: the axes
    alternate. scaled: embeddings times √width. stretch: positions are divided by it. every `global_every`th layer sees
    all, where the others see a window; window_theta: theta of those. stop: tokens that end a generated text; empty: it
    cannot generate. turn: what a turn of a conversation begins with, where prompts of LTX-2 are written in turns.
    """

    prefixes: ClassVar[tuple[str, ...]]
    first: ClassVar[str] = "layers.0.self_attn.q_proj.weight"
    head_width: ClassVar[int] = 128
    theta: ClassVar[float]
    eps: ClassVar[float] = 1e-6
    sections: ClassVar[tuple[int, ...]] = ()
    interleaved: ClassVar[bool] = False
    scaled: ClassVar[bool] = False
    stretch: ClassVar[float] = 1.0
    window_theta: ClassVar[float] = 1e4
    global_every: ClassVar[int] = 1
    stop: ClassVar[tuple[int, ...]] = ()
    turn: ClassVar[str] = ""
    vocabulary_name: ClassVar[str] = "tokenizer_json"
    """Name of the tokeniser in saved files."""

    layers: int
    width: int
    hidden_width: int
    heads: int
    kv_heads: int
    head: int
    tokens: int
    final_norm: bool = True
    vocabulary_bytes: int = 0
    separate_head: bool = False
    prompt_format: PromptFormat | None = None

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for number, whole in enumerate(files):
            found = marked(whole, cls.prefixes, [root + cls.first for root in _ROOTS])
            if found is None or "embed_tokens.weight" not in (inner := cls.inner(found[1])).shapes:
                continue
            if cls.recognises(inner):
                prefix, tensors = found
                yield Located(cls.probe(tensors), tensors, number, prefix)

    @classmethod
    def inner(cls, tensors: Tensors) -> Tensors:
        """Return a file's tensors of the language model, their names as `recognises` takes them."""
        return next(tensors.within(root) for root in _ROOTS if root + cls.first in tensors.shapes)

    @classmethod
    @abstractmethod
    def recognises(cls, inner: Tensors) -> bool:
        """Whether the language model is of this kind. inner: its tensors, the names beginning with "layers."."""

    @classmethod
    def probe(cls: type[F], tensors: Tensors) -> F:
        """Read the network's size off its tensors. Errors: ModelFileError for another layout."""
        inner = cls.inner(tensors)
        tokens, width = inner.shape("embed_tokens.weight")
        attention = "layers.0.self_attn"
        head = inner.shapes.get(f"{attention}.q_norm.weight", (cls.head_width,))[0]
        return cls(
            layers=inner.count("layers."),
            width=width,
            hidden_width=inner.shape("layers.0.mlp.gate_proj.weight")[0],
            heads=inner.shape(f"{attention}.q_proj.weight")[0] // head,
            kv_heads=inner.shape(f"{attention}.k_proj.weight")[0] // head,
            head=head,
            tokens=tokens,
            final_norm="norm.weight" in inner.shapes,
            vocabulary_bytes=next((tensors.shapes[name][0] for name in _VOCABULARIES if name in tensors.shapes), 0),
            separate_head=bool(cls.stop) and any(f"{name}.weight" in tensors.shapes for name in _HEADS),
        )

    @property
    def key(self) -> str:
        return (self.prompt_format or self.prompt_format_for("")).key

    def published(self, prefix: str) -> Table:
        others = [name for name in _VOCABULARIES if name != self.vocabulary_name]
        return {theirs: ours for theirs, ours in self.table().items() if theirs not in others}

    @property
    def window(self) -> int:
        """Tokens that a layer sees, its own among them; 0 for all."""
        return 0

    @property
    def rotary(self) -> int:
        """How many numbers of a head are rotated by its position."""
        return self.head

    def sees_window(self, layer: int) -> bool:
        """Whether a layer, by its number, sees a window of the tokens only."""
        return self.window > 0 and (layer + 1) % self.global_every != 0

    def as_type(self: F, loaded_as: str) -> F:
        return replace(self, prompt_format=self.prompt_format_for(loaded_as))

    @abstractmethod
    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        """Return the prompt format of a loader's type. Errors: ModelFileError for an unsupported type."""

    def table(self, tensors: Tensors | None = None) -> Table:
        parts = ("embed_tokens", "layers", "norm")
        names = {root + part: part for root in reversed(_ROOTS) for part in parts}
        head = dict.fromkeys(_HEADS, "lm_head") if self.separate_head else {}
        return names | head | dict.fromkeys(_VOCABULARIES, VOCABULARY)

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> dict[str, str]:
        key = self.key
        names: dict[str, str] = {}
        for ours in parameters:
            layer, _, ending = ours.rpartition(".")
            if ending == "weight" and layer.startswith("layers."):
                names |= dict.fromkeys(
                    (*whole_names(key, f"model.{layer}"), f"lora_te_{layer.replace('.', '_')}"), ours
                )
        return names

    def build(self) -> nn.Module:
        network: nn.Module = self.language_model()
        if self.vocabulary_bytes:
            network.register_buffer(VOCABULARY, torch.empty(self.vocabulary_bytes, dtype=torch.uint8))
        return network

    def language_model(self) -> CausalLM:
        """Return the empty language model, without what else its file has."""
        return CausalLM(self, *self.parts())

    @abstractmethod
    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        """Return a factory of layers by number, and the final norm."""

    def sizes(self) -> dict[str, Any]:
        """Return the common arguments of transformers' decoder configurations."""
        return {
            "vocab_size": self.tokens,
            "hidden_size": self.width,
            "intermediate_size": self.hidden_width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "rms_norm_eps": self.eps,
            "attn_implementation": "sdpa",
        }

    @abstractmethod
    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        """Return the tokeniser. vocabulary: the tokeniser in the network's file. Errors: ModelFileError."""

    def encoder(self, network: Any, lexicon: TextResources) -> DecoderEncoder:
        brought = network.get_buffer(VOCABULARY).cpu().numpy().tobytes() if self.vocabulary_bytes else None
        prompt_format = self.prompt_format or self.prompt_format_for("")
        return DecoderEncoder(self, prompt_format, self.tokenizer(brought, lexicon), network, lexicon.vectors)


class CausalLM(nn.Module):
    """A language model. Its output layer for the next token is tied to the embeddings unless the file has its own."""

    def __init__(self, family: DecoderText, layer: Callable[[int], nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(family.tokens, family.width)
        self.layers = nn.ModuleList([layer(i) for i in range(family.layers)])
        self.norm = norm if family.final_norm else nn.Identity()
        self.sees_window = [family.sees_window(i) for i in range(family.layers)]
        if family.separate_head:
            self.lm_head = nn.Linear(family.width, family.tokens, bias=False)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotation: Rotation,
        last: int,
        cache: Cache | None = None,
        deeper: Sequence[Tensor] = (),
        near: tuple[Tensor | None, Rotation] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the states (N,T,D): the input of the first layer, and the output of each up to number `last`.

        x: (N,T,D); mask: (N,1,T,S), true where a row's token attends to another, None for all; rotation: cosines and
        sines (…,T,head). cache: keys and values of the S−T tokens before. deeper: additions to the outputs of the first
        layers, (N,T,D) each. near: mask and rotation of the layers that see a window, None for the same.
        """
        yield x
        for number, layer in enumerate(self.layers[:last]):
            seen, turned = near if near is not None and self.sees_window[number] else (mask, rotation)
            out = layer(x, attention_mask=seen, position_embeddings=turned, **as_cache(cache))
            x = out[0] if isinstance(out, tuple) else out
            if number < len(deeper):
                x = x + deeper[number]
            yield x


class DecoderEncoder(SequenceEncoder):
    """A language model on its device as a text encoder."""

    def __init__(
        self, family: DecoderText, prompt_format: PromptFormat, tokenizer: Tokenizer, network: Any, vectors: Vectors
    ) -> None:
        super().__init__(prompt_format, tokenizer, network.embed_tokens.weight, vectors)
        self.family = family
        self.network = network
        self.tokenizer = tokenizer
        self.vectors = vectors
        # Generation computes in another dtype than encoding, as in ComfyUI.
        self._generates_in = dtype_of("auto", "clip", self._table.device, (torch.bfloat16,))

    def forward(self, x: Tensor, seen: Tensor | None, stop_at: int | None) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None]
        return self.states(self.scaled(x), seen, positions, stop_at)

    def scaled(self, x: Tensor) -> Tensor:
        """Return token embeddings as the first layer reads them."""
        return x * self.family.width**0.5 if self.family.scaled else x

    def generation(self, request: GenerationRequest) -> Generation:
        """Return a new text generation. Errors: NodeError if the model cannot generate."""
        return self.begun(request, [token for token, _ in self.prompt(request)])

    def begun(self, request: GenerationRequest, prompt: Sequence[Token], positions: Tensor | None = None) -> Generation:
        """Return a new text generation of a prompt, as `Generation`. Errors: as `generation`."""
        if not self.family.stop:
            raise NodeError(
                f"{self.family.title} generates no text; load Qwen3, Qwen3-VL, Qwen3.5, Gemma 2, LTX-2's Gemma 3 or "
                "Gemma 4"
            )
        if not self.family.final_norm:
            raise NodeError(f"the file of {self.family.title} ends before the last layer and generates no text")
        stop, before = frozenset(self.family.stop), self.penalized(prompt)
        return Generation(request, prompt, stop, self.tokenizer.decode, self._table.device, before, positions)

    def penalized(self, prompt: Sequence[Token]) -> Sequence[int]:
        """Return the tokens of a prompt that penalties count, as in ComfyUI: few models' do."""
        return ()

    def prompt(self, request: GenerationRequest) -> Weighted:
        """Return the prompt's tokens. As in ComfyUI, most models have one template and one mode."""
        return self.framed(self.around(request.text, None), T5Padding(pads=0, length=1))

    def generate(self, generations: Sequence[Generation]) -> None:
        """Add a token to each text, in one forward; while some prompts are unread, only the first of those is read."""
        rows: Sequence[Generation] = [row for one in generations for row in one.rows]
        if (unread := next((row for row in rows if not row.cache), None)) is not None:
            rows = (unread,)
        lengths = [one.length for one in rows]
        unread_tokens = [one.unread for one in rows]
        x = self.scaled(embedded(self._table, unread_tokens, self.prompt_format.pad)).to(self._generates_in)
        count, most = x.shape[1], max(lengths)
        device = x.device
        by_axis = to_device(torch.stack([one.positions for one in rows], dim=1), device)
        positions = by_axis[0] if len(by_axis) == 1 else by_axis
        mask = None
        if count > 1:
            mask = torch.ones(count, count, dtype=torch.bool, device=device).tril()[None, None]
        elif min(lengths) != most:
            there = [torch.arange(most, device=device) >= most - length for length in lengths]
            mask = pad(torch.stack(there), (0, count), value=True)[:, None, None]
        cache = Cache([one.cache for one in rows])
        family = self.family
        rotation, near_rotation = self.turns(positions, x.dtype)
        near = None
        if near_rotation is not None:
            within = mask
            if (whole := most + count) > family.window:
                last = torch.ones(count, whole, dtype=torch.bool, device=device).triu(whole - count + 1 - family.window)
                within = last[None, None] if mask is None else mask & last
            near = within, near_rotation
        beside = self.beside(unread_tokens)
        for states in self.network(x, mask, rotation, family.layers, cache, near=near, **beside):
            last = states
        logits = self.logits(self.network.norm(last[:, -1]))
        for one, of_one, caches in zip(rows, torch.split(logits, 1), cache.grown(), strict=True):
            one.add(of_one, caches)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Rotation, Rotation | None]:
        """Return the rotations of positions, as `states` has them, and those of layers that see a window, if any do."""
        family = self.family
        shrunk = positions / family.stretch if family.stretch != 1 else positions
        whole = rotated(shrunk, family.rotary, family.theta, family.sections, dtype, family.interleaved)
        if not family.window:
            return whole, None
        return whole, rotated(positions, family.rotary, family.window_theta, (), dtype)

    def beside(self, rows: Sequence[Sequence[Token]]) -> dict[str, Any]:
        """Return what the network takes beside the vectors of rows of tokens; nothing by default."""
        return {}

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (N,V) of the next tokens from states (N,D)."""
        made: Tensor
        made = self.network.lm_head(states) if self.family.separate_head else linear(states, self._table.to(states))
        return made

    def states(
        self,
        x: Tensor,
        seen: Tensor | None,
        positions: Tensor,
        stop_at: int | None,
        deeper: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return the states that the prompt format takes. positions: (1 or N,T), or (axes,N,T) for images.

        deeper: as `CausalLM.forward`.
        """
        length, count = x.shape[1], self.family.layers
        mask = causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None, None]
        if seen is not None:
            mask = causal & seen[:, None, None]
            # A token whose whole past is masked attends to itself: a text of nothing but padding.
            mask = mask | (causal & ~mask.any(dim=-1, keepdim=True))
        taps = self.prompt_format.taps
        if len(taps) == 1 and stop_at is not None:
            back = from_the_end(stop_at, count)
            taps = () if back is None else (back,)
        wanted = [count + 1 + tap if tap < 0 else tap for tap in taps] or [count]
        rotation, near_rotation = self.turns(positions, x.dtype)
        near = None
        if near_rotation is not None:
            near = mask & torch.ones_like(causal).triu(1 - self.family.window), near_rotation
        states = self.network(x, mask, rotation, max(wanted), deeper=deeper, near=near)
        kept = {i: state for i, state in enumerate(states) if i in wanted}
        # A single tap by number is taken as it is; the last of several, or the default, is normalised.
        if count in kept and len(taps) != 1:
            kept[count] = self.network.norm(kept[count])
        return torch.cat([kept[i] for i in wanted], dim=-1)


def rotated(
    positions: Tensor, head: int, theta: float, sections: Sequence[int], dtype: torch.dtype, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (N,T,head) of rotary positions (N,T) or (axes,N,T).

    sections: number of frequencies for each axis, if there are several; interleaved: the axes alternate, and the first
    has the rest. Source: Wang et al. 2024, arXiv:2409.12191; Bai et al. 2025, arXiv:2511.21631.
    """
    frequencies = theta ** (-torch.arange(0, head, 2, device=positions.device, dtype=torch.float32) / head)
    angles = positions[..., None].float() * frequencies
    if positions.ndim > 2 and interleaved:
        mixed = angles[0].clone()
        for axis, count in enumerate(sections[1:], 1):
            turns = slice(axis, count * len(sections), len(sections))
            mixed[..., turns] = angles[axis][..., turns]
        angles = mixed
    elif positions.ndim > 2:
        parts = torch.split(angles, list(sections), dim=-1)
        angles = torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
