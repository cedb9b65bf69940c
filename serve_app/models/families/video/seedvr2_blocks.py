"""The layers of SeedVR2's network: video and text attend to each other within windows of the video.

Windows are a share of a 720p video's sides; every other block's are moved by half a window. A text's output is the mean
of those of all windows. Source: Wang et al. 2025, arXiv:2506.05301; Wang et al. 2025, arXiv:2501.01320.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil, pi, sqrt
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, addcmul, nn
from torch.nn.functional import gelu, rms_norm, silu

from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.kernels.rotary import rotated

EPS = 1e-5
"""Of every norm."""
SHARES = (4, 3, 3)
"""Windows along the frames, rows and columns of a video."""
REFERENCE_CELLS = 45 * 80
"""Tokens of a frame of a 720p video, by which the sides of windows are found."""
MOST_FRAMES = 30
"""Latent frames beyond which windows grow no longer."""
THETA = 10000.0
FASTEST = 128
"""Half turns of the fastest pixel frequency from the middle of a window to its end."""

Window: TypeAlias = tuple[slice, slice, slice]
Size: TypeAlias = tuple[int, int, int]


class Group(NamedTuple):
    """The windows of one size. at: the tokens of each, (k,n); turns: of a window's tokens, as `turns_of` of (n,D/2)."""

    at: Tensor
    turns: Tensor


class Windows(NamedTuple):
    """How a video is cut. back: where each of its tokens is among those of all groups, (N,)."""

    groups: Sequence[Group]
    back: Tensor


class Streams(nn.Module):
    """A layer for the video and one for the text, or one for both."""

    def __init__(self, make: Callable[[], nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, make())

    def of(self, stream: str) -> nn.Module:
        found: nn.Module = getattr(self, stream if stream in self._modules else "all")
        return found


class Attention(nn.Module):
    """The attention of a block."""

    def __init__(self, width: int, heads: int, head: int, names: Sequence[str]) -> None:
        super().__init__()
        self.heads = heads
        self.proj_qkv = Streams(lambda: nn.Linear(width, 3 * heads * head, bias=False), names)
        self.proj_out = Streams(lambda: nn.Linear(heads * head, width), names)
        self.norm_q = Streams(lambda: nn.RMSNorm(head, eps=EPS), names)
        self.norm_k = Streams(lambda: nn.RMSNorm(head, eps=EPS), names)

    def forward(
        self, video: Tensor, text: Tensor, windows: Windows, text_turns: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what is found for a video (R,N,W) and a text (R,T,W). text_turns: None: the text has no positions."""
        of_video, of_text = self._heads(video, "vid"), self._heads(text, "txt")
        if text_turns is not None:
            of_text = (*rotated(of_text[0], of_text[1], text_turns), of_text[2])
        rows, tokens = text.shape[:2]
        found: list[Tensor] = []
        text_sum: Tensor | None = None
        for at, turns in windows.groups:
            count, length = at.shape
            q, k, v = (torch.unflatten(heads[:, at.flatten()], 1, (count, length)).flatten(0, 1) for heads in of_video)
            q, k = rotated(q, k, turns)
            whole = (
                torch.cat([own, beside[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)], dim=1)
                for own, beside in zip((q, k, v), of_text, strict=True)
            )
            made = torch.unflatten(attention_output(*whole), 0, (rows, count))
            found.append(made[:, :, :length].flatten(1, 2))
            of_group = made[:, :, length:].sum(1)
            text_sum = of_group if text_sum is None else text_sum + of_group
        assert text_sum is not None, "a video has a window"
        mean = text_sum / sum(group.at.shape[0] for group in windows.groups)
        out_video: Tensor = self.proj_out.of("vid")(torch.cat(found, dim=1)[:, windows.back])
        out_text: Tensor = self.proj_out.of("txt")(mean.view(rows, tokens, -1))
        return out_video, out_text

    def _heads(self, x: Tensor, stream: str) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = torch.unflatten(self.proj_qkv.of(stream)(x), -1, (3, self.heads, -1)).unbind(2)
        return self.norm_q.of(stream)(q), self.norm_k.of(stream)(k), v


class Feed(nn.Module):
    """A feed-forward layer, by SwiGLU if it is gated."""

    def __init__(self, width: int, inside: int, gated: bool) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, inside, bias=not gated)
        self.proj_in_gate = nn.Linear(width, inside, bias=False) if gated else None
        self.proj_out = nn.Linear(inside, width, bias=not gated)

    def forward(self, x: Tensor) -> Tensor:
        gate, inside = self.proj_in_gate, self.proj_in(x)
        out: Tensor = self.proj_out(gelu(inside, approximate="tanh") if gate is None else silu(gate(x)) * inside)
        return out


class Modulation(nn.Module):
    """What is added to the modulation of all blocks. parts: "attn" and "mlp", each with a shift, scale and gate."""

    def __init__(self, width: int, names: Sequence[str]) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.empty(width)))

    def entered(self, x: Tensor, part: str, time: Tensor) -> Tensor:
        """Return tokens as a part reads them. time: the part's shifts, scales and gates, (R,1,W,3)."""
        shift, scale = getattr(self, f"{part}_shift"), getattr(self, f"{part}_scale")
        return addcmul(time[..., 0] + shift, rms_norm(x, x.shape[-1:], eps=EPS), time[..., 1] + scale)

    def left(self, x: Tensor, made: Tensor, part: str, time: Tensor) -> Tensor:
        """Return tokens with what a part made of them."""
        return addcmul(x, made, time[..., 2] + getattr(self, f"{part}_gate"))


class Block(nn.Module):
    """A block of both streams. drops_text: its text is not read any more, and is not modulated either."""

    def __init__(
        self, width: int, heads: int, head: int, inside: int, *, gated: bool, apart: bool, drops_text: bool
    ) -> None:
        super().__init__()
        both = ("vid", "txt") if apart else ("all",)
        after = ("vid",) if apart and drops_text else both
        self.drops_text = drops_text
        self.attn = Attention(width, heads, head, both)
        self.mlp = Streams(lambda: Feed(width, inside, gated), after)
        parts = [f"{part}_{kind}" for part in ("attn", "mlp") for kind in ("shift", "scale", "gate")]
        self.ada = Streams(lambda: Modulation(width, parts), after)

    def forward(
        self, video: Tensor, text: Tensor, time: Tensor, windows: Windows, text_turns: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return both streams, (R,N,W) and (R,T,W). time: (R,W,2,3), of "attn" and "mlp"."""
        attn, mlp = (time[:, None, :, part] for part in (0, 1))
        of_video, of_text = self.ada.of("vid"), None if self.drops_text else self.ada.of("txt")
        assert isinstance(of_video, Modulation)
        read = rms_norm(text, text.shape[-1:], eps=EPS)
        if of_text is not None:
            assert isinstance(of_text, Modulation)
            read = of_text.entered(text, "attn", attn)
        found, found_text = self.attn(of_video.entered(video, "attn", attn), read, windows, text_turns)
        video = of_video.left(video, found, "attn", attn)
        video = of_video.left(video, self.mlp.of("vid")(of_video.entered(video, "mlp", mlp)), "mlp", mlp)
        if of_text is not None:
            text = of_text.left(text, found_text, "attn", attn)
            text = of_text.left(text, self.mlp.of("txt")(of_text.entered(text, "mlp", mlp)), "mlp", mlp)
        return video, text


class TimeEmbedding(nn.Module):
    """What makes a modulation of a time's sinusoids."""

    def __init__(self, waves: int, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(waves, width)
        self.proj_hid = nn.Linear(width, width)
        self.proj_out = nn.Linear(width, 6 * width)

    def forward(self, waves: Tensor) -> Tensor:
        out: Tensor = self.proj_out(silu(self.proj_hid(silu(self.proj_in(waves)))))
        return out


class Projection(nn.Module):
    """A layer at an end of the network."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


@lru_cache(maxsize=32)
def cut(size: Size, moved: bool) -> tuple[tuple[Size, tuple[tuple[int, int, int], ...]], ...]:
    """Return the windows of a video of a size in tokens: each window's size, and where those of it begin."""
    starts: dict[Size, list[tuple[int, int, int]]] = {}
    rows, columns = size[1:]
    scale = sqrt(REFERENCE_CELLS / (rows * columns))
    wanted = (min(size[0], MOST_FRAMES), round(rows * scale), round(columns * scale))
    sides = [ceil(side / share) for side, share in zip(wanted, SHARES, strict=True)]
    frames, down, across = (_spans(whole, side, moved) for whole, side in zip(size, sides, strict=True))
    for column in across:
        for row in down:
            for frame in frames:
                shape = (frame[1] - frame[0], row[1] - row[0], column[1] - column[0])
                starts.setdefault(shape, []).append((frame[0], row[0], column[0]))
    return tuple((shape, tuple(at)) for shape, at in starts.items())


def _spans(whole: int, side: int, moved: bool) -> list[tuple[int, int]]:
    """Return begin and end of the windows along an axis; moved ones begin half a window before the axis does."""
    moves = 0.5 if moved and side < whole else 0.0
    count = ceil((whole - moves) / side) + (1 if moves else 0)
    ends = (int((number - moves) * side) for number in range(count + 1))
    points = [min(max(end, 0), whole) for end in ends]
    return [(first, last) for first, last in pairwise(points) if last > first]


def tokens_of(size: Size, shape: Size, starts: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return the tokens (k,n) of the windows of a shape that begin at k places, of a video of a size."""
    _, rows, columns = size
    frames, down, across = (torch.arange(side) for side in shape)
    first = (frames[:, None, None] * rows + down[:, None]) * columns + across
    begins = torch.tensor([(t * rows + y) * columns + x for t, y, x in starts])
    return begins[:, None] + first.flatten()


def pixel_angles(shape: Size, head: int) -> Tensor:
    """Return the angles (n,D/2) of a window's tokens by their share of its sides, as the larger network has them."""
    frequencies = torch.linspace(1.0, FASTEST, head // 2 // 3 // 2) * pi
    return _angles([torch.linspace(-1, 1, side) for side in shape], frequencies, head)


def grid_angles(shape: Size, first: int, frequencies: Tensor, head: int) -> Tensor:
    """Return the angles (n,D/2) of a window's tokens by frame, row and column; frames are counted from `first`."""
    places = [torch.arange(side, device=frequencies.device).float() for side in shape]
    places[0] += first
    return _angles(places, frequencies, head)


def text_angles(tokens: int, frequencies: Tensor, head: int) -> Tensor:
    """Return the angles (T,D/2) of a text's tokens, each with its number along all axes."""
    turned = torch.arange(tokens, device=frequencies.device).float()[:, None] * frequencies
    return _filled(turned.repeat(1, 3), head)


def frequencies_of(head: int) -> Tensor:
    """Return the frequencies of an axis of the smaller network."""
    width = head // 3
    return 1.0 / THETA ** (torch.arange(0, width, 2)[: width // 2].float() / width)


def _angles(places: Sequence[Tensor], frequencies: Tensor, head: int) -> Tensor:
    frames, rows, columns = (place[:, None] * frequencies for place in places)
    whole = (len(frames), len(rows), len(columns), -1)
    axes = (frames[:, None, None].expand(whole), rows[:, None].expand(whole), columns.expand(whole))
    return _filled(torch.cat(axes, dim=-1).flatten(0, 2), head)


def _filled(angles: Tensor, head: int) -> Tensor:
    """Return angles with zeros for the pairs of a head that do not turn."""
    return torch.nn.functional.pad(angles, (0, head // 2 - angles.shape[-1]))
