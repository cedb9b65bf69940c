"""Kohya's deep shrink: a UNet's features are downscaled from one encoder block on, and upscaled again in the decoder.

A block is the first convolution, a residual block with the attention after it, or a downsampling; each has a skip
connection to the decoder. Source: Kohya's deep shrink, as ComfyUI has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from serve_app.images import resize
from serve_app.recipe.layers import DeepShrink

Size = tuple[int, int]


@contextmanager
def with_deep_shrink(network: Any, patch: DeepShrink) -> Iterator[None]:
    """Shrink features while the network runs. network: UNet2DConditionModel."""
    ends = list(_ends(network))
    if not 0 <= patch.block < len(ends):
        yield
        return
    begins = [*_begins(network), network.mid_block]
    skips: list[Size] = []

    def shrink_output(_module: Any, _given: Any, output: Any) -> Any:
        return _with_features(output, _shrunk(_features(output), patch))

    def shrink_input(_module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_shrunk(given[0], patch), *given[1:])

    def note(_module: Any, _given: Any, output: Any) -> None:
        skips.append(_size(_features(output)))

    def grow(_module: Any, _given: Any, output: Any) -> Any:
        x, wanted = _features(output), skips.pop()
        return output if _size(x) == wanted else _with_features(output, _resized(x, wanted, patch.up))

    def grow_to(_module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0], skips[-1])

    with ExitStack() as stack:
        hooks = []
        if patch.after_skip:
            hooks.append(begins[patch.block].register_forward_pre_hook(shrink_input))
        else:
            hooks.append(ends[patch.block].register_forward_hook(shrink_output))
        hooks += [end.register_forward_hook(note) for end in ends]
        hooks += [upsampler.register_forward_pre_hook(grow_to) for upsampler in _upsamplers(network)]
        hooks += [before.register_forward_hook(grow) for before in _before_joining(network)]
        for hook in hooks:
            stack.callback(hook.remove)
        yield


def _ends(network: Any) -> Iterator[Any]:
    """Yield the module that each block of the encoder ends with."""
    yield network.conv_in
    for level in network.down_blocks:
        yield from getattr(level, "attentions", level.resnets)
        yield from level.downsamplers or ()


def _begins(network: Any) -> Iterator[Any]:
    """Yield the module that each block of the encoder but the first begins with."""
    for level in network.down_blocks:
        yield from level.resnets
        yield from level.downsamplers or ()


def _before_joining(network: Any) -> Iterator[Any]:
    """Yield the module before each place in the decoder where skip features join, in order."""
    yield network.mid_block
    for level in network.up_blocks:
        # The output of a level's last block is upsampled first, or is the network's.
        yield from getattr(level, "attentions", level.resnets)[:-1]
        yield from level.upsamplers or ()


def _upsamplers(network: Any) -> Iterator[Any]:
    for level in network.up_blocks:
        yield from level.upsamplers or ()


def _features(output: Any) -> Tensor:
    features: Tensor = output[0] if isinstance(output, tuple) else output
    return features


def _with_features(output: Any, features: Tensor) -> Any:
    return (features, *output[1:]) if isinstance(output, tuple) else features


def _size(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


def _shrunk(x: Tensor, patch: DeepShrink) -> Tensor:
    height, width = (round(side * (1.0 / patch.factor)) for side in _size(x))
    return _resized(x, (height, width), patch.down)


def _resized(x: Tensor, size: Size, method: str) -> Tensor:
    return resize(x.movedim(1, -1), size[1], size[0], method).movedim(-1, 1)
