"""Text generation by a language model, and its KV cache.

Each generation has its own cache, so that it joins and leaves a batch at any token. A forward changes none of them:
they grow after it, and a failed forward may be retried.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from serve_app.models.tokenizers.prompt import Token
from serve_app.sampling.tokens import next_token
from serve_app.values import GenerationRequest

KeysValues: TypeAlias = "tuple[Tensor, Tensor]"
"""Of one layer for one text: keys and values, (1,H,T,D) each.

Of a recurrent layer: the last inputs of its convolution, (1,C,K), and its state, (1,H,D,D).
"""

_ARGUMENT = "cache" if "cache" in signature(Qwen2DecoderLayer.forward).parameters else "past_key_values"
"""The cache argument of a layer in this version of transformers."""


class Cache:
    """The KV cache of a forward's texts, in the interface of transformers' layers. texts: of each, by layer."""

    def __init__(self, texts: Sequence[Sequence[KeysValues]]) -> None:
        self._texts = texts
        self._added: dict[int, KeysValues] = {}
        self._inputs: dict[int, Tensor] = {}
        self._states: dict[int, Tensor] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> KeysValues:
        """Return a layer's keys and values of all tokens (N,H,S,D). Shorter texts are padded on the left."""
        self._added[layer] = keys, values
        before = [text[layer] for text in self._texts if text]
        if not before:
            return keys, values
        return (
            torch.cat([_aligned([k for k, _ in before]), keys], dim=2),
            torch.cat([_aligned([v for _, v in before]), values], dim=2),
        )

    def get_conv_state(self, layer: int, *_: Any, **__: Any) -> Tensor | None:
        """Return the last inputs (N,C,K) of a recurrent layer's convolution, which the layer may replace in place."""
        before = [text[layer][0] for text in self._texts if text]
        if before:
            self._inputs[layer] = torch.cat(before)
        return self._inputs.get(layer)

    def update_conv_state(self, inputs: Tensor, layer: int, *_: Any, conv_kernel_size: int, **__: Any) -> Tensor:
        """Return a convolution's inputs with those before them, and keep the last ones."""
        before = self._inputs.get(layer)
        missing = max(0, conv_kernel_size - inputs.shape[-1])
        whole = pad(inputs, (missing, 0)) if before is None else torch.cat([before, inputs], dim=-1)
        self._inputs[layer] = whole[..., -conv_kernel_size:]
        return whole

    def get_recurrent_state(self, layer: int, *_: Any, **__: Any) -> Tensor | None:
        """Return the state (N,H,D,D) of a recurrent layer, None before the first token."""
        before = [text[layer][1] for text in self._texts if text]
        return torch.cat(before) if before else None

    def update_recurrent_state(self, state: Tensor, layer: int, *_: Any, **__: Any) -> None:
        """Keep a recurrent layer's state (N,H,D,D)."""
        self._states[layer] = state

    def is_recording_past(self, layer: int) -> bool:
        """Whether a layer may have to return to an earlier state; none has."""
        return False

    def get_recurrent_states_to_keep(self, layer: int) -> int:
        """Return how many states before the last a recurrent layer is to return."""
        return 0

    def increase_count(self, layer: int, *_: Any) -> None:
        """Count a token whose inputs a layer has put into `get_conv_state` itself; lengths are known without."""

    def grown(self) -> list[list[KeysValues]]:
        """Return each text's keys and values, by layer, including those that a forward added."""
        layers = range(len(self._added) + len(self._states))
        return [[self._of_text(i, text, layer) for layer in layers] for i, text in enumerate(self._texts)]

    def _of_text(self, i: int, text: Sequence[KeysValues], layer: int) -> KeysValues:
        row = slice(i, i + 1)
        if layer in self._states:
            return self._inputs[layer][row].clone(), self._states[layer][row].clone()
        keys, values = self._added[layer]
        return _joined(text[layer] if text else None, keys[row], values[row])


def as_cache(cache: Cache | None) -> dict[str, Cache]:
    """Return a layer's keyword arguments for a cache."""
    return {} if cache is None else {_ARGUMENT: cache}


def _aligned(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors (1,H,T_i,D) as rows (N,H,T,D), padded on the left."""
    longest = max(tensor.shape[2] for tensor in tensors)
    return torch.cat([pad(tensor, (0, 0, longest - tensor.shape[2], 0)) for tensor in tensors])


def _joined(before: KeysValues | None, keys: Tensor, values: Tensor) -> KeysValues:
    if before is None:
        return keys.clone(), values.clone()
    return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


class Generation:
    """A text being generated from a prompt. stop: tokens that end it; decode: from tokens to text.

    before: tokens that count for penalties as if they were generated.
    positions: of the prompt, (axes,T), None: one after another.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Sequence[Token],
        stop: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        device: torch.device,
        before: Sequence[int] = (),
        positions: Tensor | None = None,
    ) -> None:
        self.request = request
        self.tokens: list[Token] = []
        self.cache: list[KeysValues] = []
        self._prompt = prompt
        self._positions = torch.arange(len(prompt))[None] if positions is None else positions
        self._stop = stop
        self._decode = decode
        self._before = before
        sampling = request.sampling
        self._generator = None if sampling is None else torch.Generator(device).manual_seed(sampling.seed)

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return len(self._prompt) + len(self.tokens) - 1 if self.cache else 0

    @property
    def positions(self) -> Tensor:
        """Positions (axes,T) of the unread tokens, on the host."""
        if not self.cache:
            return self._positions
        return self._positions.max().reshape(1, 1) + len(self.tokens)

    @property
    def unread(self) -> Sequence[Token]:
        """Tokens to run next: the prompt, or the last token."""
        return self.tokens[-1:] if self.cache else self._prompt

    @property
    def over(self) -> bool:
        """Whether the text is complete."""
        return len(self.tokens) >= self.request.max_tokens or bool(self._stop.intersection(self.tokens[-1:]))

    @property
    def text(self) -> str:
        """The text so far."""
        return self._decode([token for token in self.tokens if isinstance(token, int)])

    @property
    def result(self) -> Any:
        """What is made of the tokens: the text."""
        return self.text

    @property
    def rows(self) -> Sequence[Generation]:
        """What a forward reads for its next token: itself, and others where several prompts are continued as one."""
        return (self,)

    def add(self, logits: Tensor, cache: list[KeysValues]) -> None:
        """Sample the next token. logits: (1,V); cache: including the unread tokens."""
        before = [*self._before, *(token for token in self.tokens if isinstance(token, int))]
        self.tokens.append(next_token(logits, self.request.sampling, before, self._generator))
        self.cache = cache


class JointGeneration(Generation, ABC):
    """Tokens that continue several prompts at once, each drawn from what the model says of all."""

    def __init__(self, request: GenerationRequest, prompts: Sequence[Sequence[Token]], device: torch.device) -> None:
        super().__init__(request, prompts[0], frozenset(), lambda tokens: "", device)
        self._rows = [_Row(self, prompt, device) for prompt in prompts]

    @property
    def rows(self) -> Sequence[Generation]:
        return self._rows

    @abstractmethod
    def drawn(self, outputs: Sequence[Tensor]) -> Token | None:
        """Return the next token for the output of each prompt, (1,…); None at the end."""

    def draw(self) -> None:
        """Draw the next token, once the model has read all rows."""
        outputs = [row.output for row in self._rows if row.output is not None]
        if len(outputs) < len(self._rows):
            return
        if (token := self.drawn(outputs)) is not None:
            self.tokens.append(token)
        for row in self._rows:
            row.output = None


class _Row(Generation):
    """A prompt that is continued by the tokens of a joint generation, and the model's last output for it."""

    def __init__(self, of: JointGeneration, prompt: Sequence[Token], device: torch.device) -> None:
        super().__init__(of.request, prompt, frozenset(), lambda tokens: "", device)
        self.tokens = of.tokens
        self.output: Tensor | None = None
        self._of = of

    def add(self, logits: Tensor, cache: list[KeysValues]) -> None:
        self.cache, self.output = cache, logits
        self._of.draw()
