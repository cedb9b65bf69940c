"""Runs functions of node packs inside Stable Diffusion's UNet, for the rows whose recipes have them.

Rows with functions share forwards with others: common work runs once for all rows, and what a function changes is
recomputed for its rows alone, so the others' outputs are the same to the bit. A function is called once for each piece,
with ComfyUI's arguments: those of one branch. Source: the facts of ComfyUI's UNet and attention blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from serve_app.models.families.family import Rows
from serve_app.models.families.unet.unet_blocks import attention

Block: TypeAlias = "tuple[str, int]"
"""("input", "middle" or "output", number), as ComfyUI counts a UNet's blocks."""

FUNCTIONS = frozenset(
    (
        "attn1_patch",
        "attn1_replace",
        "attn1_output_patch",
        "attn2_patch",
        "attn2_replace",
        "attn2_output_patch",
        "input_block_patch",
        "input_block_patch_after_skip",
        "output_block_patch",
    )
)
"""The supported functions, by ComfyUI's names; those that end in _replace are its `patches_replace`."""


class BlockModules(NamedTuple):
    """The modules of a block in diffusers' network. first, last: those that its features enter and leave.

    transformer: its attention, with its number among those of the network; or None.
    """

    block: Block
    first: Any
    last: Any
    transformer: tuple[int, Any] | None


def places(network: Any) -> tuple[list[BlockModules], BlockModules, list[BlockModules]]:
    """Return a UNet2DConditionModel's input blocks, its middle and its output blocks, in the order they run."""
    count = 0

    def place(block: Block, resnet: Any, attention: Any | None) -> BlockModules:
        nonlocal count
        if attention is None:
            return BlockModules(block, resnet, resnet, None)
        count += 1
        return BlockModules(block, resnet, attention, (count - 1, attention))

    inputs = [place(("input", 0), network.conv_in, None)]
    for down in network.down_blocks:
        attentions = getattr(down, "attentions", None) or [None] * len(down.resnets)
        inputs += [
            place(("input", len(inputs) + i), *pair)
            for i, pair in enumerate(zip(down.resnets, attentions, strict=True))
        ]
        inputs += [place(("input", len(inputs)), module, None) for module in down.downsamplers or ()]
    middle = place(("middle", 0), network.mid_block.resnets[0], network.mid_block.attentions[0])
    outputs: list[BlockModules] = []
    for up in network.up_blocks:
        attentions = getattr(up, "attentions", None) or [None] * len(up.resnets)
        outputs += [
            place(("output", len(outputs) + i), *pair)
            for i, pair in enumerate(zip(up.resnets, attentions, strict=True))
        ]
    return inputs, middle, outputs


def transformers(network: Any) -> list[Any]:
    """Return a UNet2DConditionModel's transformers in the order in which they run."""
    inputs, middle, outputs = places(network)
    return [place.transformer[1] for place in (*inputs, middle, *outputs) if place.transformer is not None]


@dataclass(slots=True)
class _Span:
    """The rows of one piece, and their functions.

    text: number of their real text tokens. options: ComfyUI's transformer options.
    """

    rows: slice
    text: int
    functions: tuple[Mapping[str, Any], ...]
    options: dict[str, Any] = field(default_factory=dict)

    def patches(self, name: str) -> list[Callable[..., Any]]:
        return [function for given in self.functions for function in given.get("patches", {}).get(name, ())]

    def replacement(self, name: str, block: Block, index: int) -> Callable[..., Any] | None:
        """Return the replacement of the attention `name` of a transformer block: the last one set."""
        found = None
        for given in self.functions:
            places = given.get("patches_replace", {}).get(name, {})
            found = places.get((*block, index), places.get(block, found))
        return found

    def transformer_options(self, block: Block, **more: Any) -> dict[str, Any]:
        self.options |= {"block": block, **more}
        return self.options


@contextmanager
def with_functions(network: Any, rows: Sequence[Rows]) -> Iterator[None]:
    """Run the functions of the rows in forwards of the network, a UNet2DConditionModel."""
    if not any(row.functions for row in rows):
        yield
        return
    spans = _spans(rows)
    alone = not any(row.loras for row in rows)
    inputs, middle, outputs = places(network)
    names = {name for span in spans for name in FUNCTIONS if span.patches(name)}
    names |= {
        f"{n}_replace" for s in spans for given in s.functions for n, p in given.get("patches_replace", {}).items() if p
    }
    with ExitStack() as stack:
        if names & {"input_block_patch", "input_block_patch_after_skip"}:
            following = [*(place.first for place in inputs[1:]), middle.first]
            for place, after in zip(inputs, following, strict=True):
                hook = partial(_after_block, spans, place.block)
                stack.callback(place.last.register_forward_hook(hook).remove)
                skipped = partial(_after_skip, spans, place.block)
                stack.callback(after.register_forward_pre_hook(skipped).remove)
        if "output_block_patch" in names:
            reached = network.config.block_out_channels[-1]
            for place in outputs:
                hook = partial(_before_output, spans, place.block, reached)
                stack.callback(place.first.register_forward_pre_hook(hook).remove)
                reached = place.first.out_channels
        for place in (*inputs, middle, *outputs):
            if place.transformer is None:
                continue
            number, transformer = place.transformer
            for index, block in enumerate(transformer.transformer_blocks):
                for name in ("attn1", "attn2"):
                    module = getattr(block, name)
                    if names & {f"{name}_patch", f"{name}_replace", f"{name}_output_patch"}:
                        # An instance's own forward takes precedence over its class's.
                        module.__dict__["forward"] = _Attention(
                            module, module.forward, name, place.block, number, index, spans, alone
                        )
                        stack.callback(module.__dict__.pop, "forward", None)
        yield


def _spans(rows: Sequence[Rows]) -> list[_Span]:
    spans, stop = [], 0
    for row in rows:
        start, stop = stop, stop + row.count
        functions = tuple(_on_device(given, row.x.device) for given in row.functions)
        span = _Span(slice(start, stop), row.inputs.context.shape[1], functions)
        for given in row.functions:
            span.options |= {key: value for key, value in given.items() if key not in ("patches", "patches_replace")}
        span.options |= {
            "cond_or_uncond": [0 if row.role == "positive" else 1],
            "sigmas": torch.full((row.count,), row.sigma, device=row.x.device),
            "sample_sigmas": row.sigmas,
            "original_shape": list(row.x.shape),
            "transformer_index": 0,
        }
        spans.append(span)
    return spans


def _on_device(functions: Mapping[str, Any], device: torch.device) -> Mapping[str, Any]:
    """Return functions, those with a method `to` moved to a device."""
    patches = {name: [_moved(f, device) for f in given] for name, given in functions.get("patches", {}).items()}
    replaced = {
        name: {place: _moved(f, device) for place, f in given.items()}
        for name, given in functions.get("patches_replace", {}).items()
    }
    return {"patches": patches, "patches_replace": replaced}


def _moved(function: Any, device: torch.device) -> Any:
    return function.to(device) if hasattr(function, "to") else function


def _after_block(spans: Sequence[_Span], block: Block, _module: Any, _given: Any, output: Any) -> Any:
    """Return a block's features after the functions that follow it."""
    features: Tensor = output[0] if isinstance(output, tuple) else output
    changed = _changed(spans, "input_block_patch", block, features)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _after_skip(spans: Sequence[_Span], block: Block, _module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the features that go on from a block, but not to the decoder, after functions."""
    return (_changed(spans, "input_block_patch_after_skip", block, given[0]), *given[1:])


def _changed(spans: Sequence[_Span], name: str, block: Block, features: Tensor) -> Tensor:
    if not any(span.patches(name) for span in spans):
        return features
    parts = []
    for span in spans:
        part = features[span.rows]
        for function in span.patches(name):
            part = function(part, span.transformer_options(block))
        parts.append(part)
    return torch.cat(parts)


def _before_output(
    spans: Sequence[_Span], block: Block, width: int, _module: Any, given: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Return an output block's inputs, features and skip features concatenated, after functions.

    width: channels of the features.
    """
    joined, *others = given
    parts = []
    for span in spans:
        part = joined[span.rows]
        if functions := span.patches("output_block_patch"):
            features, skipped = part[:, :width], part[:, width:]
            for function in functions:
                features, skipped = function(features, skipped, span.transformer_options(block))
            part = torch.cat([features, skipped], dim=1)
        parts.append(part)
    return (torch.cat(parts), *others)


@dataclass(frozen=True, slots=True)
class _Attention:
    """The forward of one attention for all rows. name: "attn1" (self-attention) or "attn2" (to the text).

    usual: the forward without functions. number: of the transformer in the network; index: of the block in it. alone:
    no row has LoRAs, whose layers take all rows at once.
    """

    module: Any
    usual: Callable[..., Tensor]
    name: str
    block: Block
    number: int
    index: int
    spans: Sequence[_Span]
    alone: bool

    def __call__(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **given: Any) -> Tensor:
        touched = [self._touches(span) for span in self.spans]
        if not any(touched):
            return self.usual(hidden_states, encoder_hidden_states=encoder_hidden_states, **given)
        whole = None
        if not all(touched):
            # For all rows, as without functions: kernels' rounding depends on the batch size.
            whole = self.usual(hidden_states, encoder_hidden_states=encoder_hidden_states, **given)
        parts = []
        for span, changed in zip(self.spans, touched, strict=True):
            if changed or whole is None:
                text = None if encoder_hidden_states is None else encoder_hidden_states[span.rows, : span.text]
                parts.append(self._changed(span, hidden_states[span.rows], text, len(hidden_states)))
            else:
                parts.append(whole[span.rows])
        return torch.cat(parts)

    def _touches(self, span: _Span) -> bool:
        patches = span.patches(f"{self.name}_patch") or span.patches(f"{self.name}_output_patch")
        return bool(patches) or span.replacement(self.name, self.block, self.index) is not None

    def _changed(self, span: _Span, n: Tensor, text: Tensor | None, batch: int) -> Tensor:
        """Return the attention's output (B,N,D) for a span's rows."""
        heads = self.module.heads
        options = dict(
            span.transformer_options(self.block, block_index=self.index, transformer_index=self.number),
            n_heads=heads,
            dim_head=self.module.to_q.weight.shape[0] // heads,
            attn_precision=None,
        )
        context = value = text
        if patches := span.patches(f"{self.name}_patch"):
            context = value = n if text is None else text
            for function in patches:
                n, context, value = function(n, context, value, options)
        context = n if context is None else context
        value = context if value is None else value
        project = partial(self._projected, span, batch)
        q, k, v = project(self.module.to_q, n), project(self.module.to_k, context), project(self.module.to_v, value)
        replacement = span.replacement(self.name, self.block, self.index)
        out = attention(q, k, v, heads) if replacement is None else replacement(q, k, v, options)
        out = project(self.module.to_out[0], out)
        for function in span.patches(f"{self.name}_output_patch"):
            out = function(out, options)
        return out

    def _projected(self, span: _Span, batch: int, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return a layer's output for a span's rows. Layers with LoRAs know rows by their place in the batch."""
        if self.alone:
            return layer(x)
        rows = x.new_zeros(batch, *x.shape[1:])
        rows[span.rows] = x
        return layer(rows)[span.rows]
