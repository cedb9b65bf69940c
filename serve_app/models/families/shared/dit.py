"""Shared parts of diffusion transformers: latents as tokens, rows of several lengths in one forward, positions, names.

Source of the networks: Peebles and Xie 2023, arXiv:2212.09748; of rotary positions: Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from serve_app.errors import NodeError
from serve_app.models.control.control import Controlled, Spread, control_residuals
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.one_call import OneCall
from serve_app.models.files.layout import Place, Table, reverse, translate
from serve_app.models.forward import Inputs
from serve_app.recipe.guidance import SkippedBlocks
from serve_app.sampling.transfer import to_device

PATCH = 2
"""Latent cells of a token along each side."""

DOUBLES, SINGLES = "doubles", "singles"
"""The kinds of block where a network has two: text and image apart, and both as one stream."""

TEXT_TOKENS, IMAGE_TOKENS, REFERENCE_TOKENS = range(3)
"""The streams of tokens that attend to each other, in their order."""

WHOLE_EPS = float(torch.finfo(torch.float32).eps)
"""Epsilon of the norms of queries and keys where the file's authors gave torch no number."""


class Transformer(OneCall):
    """A family of diffusion transformers whose forward is one capturable call."""

    steady: ClassVar[tuple[type, ...]] = (SkippedBlocks,)

    def lora_names(self, parameters: Sequence[str]) -> Table:
        """As `Family.lora_names`: by the published single file and by the network."""
        return lora_names(parameters, self.table())


def grid(height: int, width: int, patch: int = PATCH) -> tuple[int, int]:
    """Return the rows and columns of tokens of latents of a size in cells."""
    return -(-height // patch), -(-width // patch)


def whole_patches(latents: Tensor) -> Tensor:
    """Return latents (B,C,…,h,w) with even sides: an odd one is padded circularly."""
    height, width = latents.shape[-2:]
    if not height % PATCH and not width % PATCH:
        return latents
    beyond = (0, width % PATCH, 0, height % PATCH) + (0, 0) * (latents.ndim - 4)
    return pad(latents, beyond, mode="circular")


def to_tokens(latents: Tensor, *, channels_last: bool = False) -> Tensor:
    """Return latents (B,C,h,w) as tokens (B,n,4C), row by row, with odd sides padded by `whole_patches`.

    channels_last: in a token, the channels of one cell are contiguous; else the cells of one channel are.
    """
    batch, channels = latents.shape[:2]
    rows, columns = grid(*latents.shape[-2:])
    latents = whole_patches(latents)
    cut = latents.view(batch, channels, rows, PATCH, columns, PATCH)
    order = (0, 2, 4, 3, 5, 1) if channels_last else (0, 2, 4, 1, 3, 5)
    return cut.permute(order).reshape(batch, rows * columns, PATCH * PATCH * channels)


def from_tokens(tokens: Tensor, height: int, width: int, *, channels_last: bool = False) -> Tensor:
    """Return tokens (B,n,4C) as latents (B,C,height,width): the inverse of `to_tokens`."""
    batch, (rows, columns) = tokens.shape[0], grid(height, width)
    channels = tokens.shape[2] // PATCH**2
    if channels_last:
        cut = tokens.view(batch, rows, columns, PATCH, PATCH, channels).permute(0, 5, 1, 3, 2, 4)
    else:
        cut = tokens.view(batch, rows, columns, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return cut.reshape(batch, channels, rows * PATCH, columns * PATCH)[..., :height, :width]


def positions(size: Sequence[int], first: float = 0, y: int = 0, x: int = 0, *, patch: int = PATCH) -> Tensor:
    """Return the positions (n,3) of the tokens of latents of a size (h,w): `first`, the token's row and column.

    y, x: of the first row and column, in tokens.
    """
    height, width = size
    rows, columns = grid(height, width, patch)
    at = torch.empty(rows, columns, 3)
    at[..., 0] = first
    at[..., 1] = torch.arange(y, y + rows)[:, None]
    at[..., 2] = torch.arange(x, x + columns)
    return at.view(-1, 3)


def angles(at: Tensor, axes: Sequence[int], theta: float) -> Tensor:
    """Return the rotary angles of positions (…,3) for each pair of a head's numbers, (…,D/2), in radians, float64.

    axes: how many of a head's D numbers each coordinate rotates.
    """
    turned = []
    for axis, width in enumerate(axes):
        steps = torch.arange(0, width, 2, dtype=torch.float64, device=at.device) / width
        turned.append(at[..., axis, None].double() * theta**-steps)
    return torch.cat(turned, dim=-1)


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Return rows (B_i,T_i,…) as one (R,T,…), padded with zeros."""
    longest = max(row.shape[1] for row in rows)
    return torch.cat([pad(row, (0, 0) * (row.ndim - 2) + (0, longest - row.shape[1])) for row in rows])


def lengths(rows: Sequence[Tensor]) -> list[int]:
    """Return the length of each row of rows (B_i,T_i,…), R in all."""
    return [row.shape[1] for row in rows for _ in range(row.shape[0])]


def within(counts: Sequence[int], longest: int, device: torch.device) -> Tensor:
    """Return a mask (R,longest) of the places within each row's count."""
    return torch.arange(longest, device=device) < to_device(torch.tensor(counts), device)[:, None]


def thirds(width: int, *names: str) -> tuple[Place, ...]:
    """Return the places of a fused layer's outputs in several layers, each `width` wide, in order."""
    return tuple(Place(name, rows=(i * width, (i + 1) * width)) for i, name in enumerate(names))


class Passed(NamedTuple):
    """Name of a call's input: the rows that skip a block, (R,1,1)."""

    kind: str
    number: int


def passed(rows: Sequence[Rows]) -> dict[Any, Tensor]:
    """Return masks of rows that skip blocks, by Passed, for the blocks that any row skips."""
    device, made = rows[0].x.device, {}
    for kind in (DOUBLES, SINGLES):
        by_row = _passed(rows, kind)
        for number in sorted(set().union(*by_row)):
            which = to_device(torch.tensor([number in numbers for numbers in by_row]), device)
            made[Passed(kind, number)] = which[:, None, None]
    return made


def _passed(rows: Sequence[Rows], kind: str) -> list[set[int]]:
    """Return the blocks that each of R rows skips. kind: the field of SkippedBlocks with their numbers."""
    return [
        {number for patch in r.layers if isinstance(patch, SkippedBlocks) for number in getattr(patch, kind)}
        for r in rows
        for _ in range(r.count)
    ]


class Passing:
    """Applies skipped blocks of a kind. given: with the masks of `passed`."""

    def __init__(self, rows: Sequence[Rows], kind: str, given: Inputs) -> None:
        self._by_row = _passed(rows, kind)
        self._kind, self._given = kind, given

    def through(self, number: int, block: Callable[[], Any], *streams: Tensor) -> tuple[Any, ...]:
        """Return a block's output for streams (R,…); rows that skip it keep their input."""
        passing = [number in numbers for numbers in self._by_row]
        if all(passing):
            return streams
        made = block()
        made = made if isinstance(made, tuple) else (made,)
        if not any(passing):
            return made
        which = self._given[Passed(self._kind, number)]
        # A last block outputs no text.
        return tuple(None if m is None else torch.where(which, s, m) for s, m in zip(streams, made, strict=True))


class Answer(NamedTuple):
    """Name of a call's input: an output of ControlNets. spreads: where it is added; number: its index."""

    spreads: tuple[Spread, ...]
    number: int


def control_answers(rows: Sequence[Rows], x: Tensor, call: Callable[[], Any]) -> dict[Any, Tensor]:
    """Return the ControlNets' outputs for rows of x (R,C,…), by Answer. call: makes the ControlNets' input."""
    controlled = [Controlled(r.count, r.sigma, r.inputs.controls, r.exclusive) for r in rows]
    if not any(control.acts(row.sigma) for row in controlled for control in row.controls):
        return {}
    sums = control_residuals(controlled, call(), x)
    return {Answer(spreads, number): made for spreads, all_made in sums.items() for number, made in enumerate(all_made)}


def added_after(given: Inputs, kind: str, block: int) -> Iterator[Tensor]:
    """Yield the ControlNets' outputs to add after a block of a kind. given: with those of `control_answers`."""
    for spreads in dict.fromkeys(name.spreads for name in given if isinstance(name, Answer)):
        for spread in spreads:
            if spread.kind == kind and (number := spread.answer(block)) is not None:
                yield given[Answer(spreads, number)]


def attended(of_text: Tensor | None, more: int) -> Tensor | None:
    """Return a mask of real tokens of a text and of `more` that follow, (R,T+more), None if all are.

    of_text: of the text, (R,T), None if all are: attention is faster without a mask.
    """
    return None if of_text is None else pad(of_text, (0, more), value=True)


def by_heads(mask: Tensor | None) -> Tensor | None:
    """Return a mask of tokens (R,L) in the shape of multi-head attention, (R,1,1,L)."""
    return None if mask is None else mask[:, None, None]


def there(texts: Sequence[Tensor]) -> Tensor | None:
    """Return a mask of real tokens of texts (B_i,T_i,D), (R,T); None if all are."""
    counts = lengths(texts)
    return None if min(counts) == max(counts) else within(counts, max(counts), texts[0].device)


def by_token(first: Tensor, tokens: int, then: Tensor, more: int) -> Tensor:
    """Return modulations (R,D) repeated for a number of tokens, and others for those that follow, (R,tokens+more,D)."""
    return torch.cat([first[:, None].expand(-1, tokens, -1), then[:, None].expand(-1, more, -1)], dim=1)


def check_text(cond: Tensor, width: int, title: str) -> None:
    """Errors: NodeError for a text (N,T,D) of another family's encoder."""
    if cond.shape[-1] != width:
        raise NodeError(
            f"the conditioning is {cond.shape[-1]} wide, and {title} reads text {width} wide: they are of different "
            "families"
        )


def pooled_text(options: Mapping[str, Any], width: int, title: str) -> Tensor:
    """Return a conditioning's pooled text (N,P) float32, zeros without one.

    Errors: NodeError for a width that is too small.
    """
    pooled: Tensor | None = options.get("pooled_output")
    if pooled is None:
        return torch.zeros(1, width)
    if pooled.shape[-1] < width:
        raise NodeError(f"the conditioning has a pooled output {pooled.shape[-1]} wide; {title} reads one {width} wide")
    return pooled[:, :width].float()


def lora_names(parameters: Sequence[str], table: Table) -> dict[str, str | tuple[Place, ...]]:
    """Return layers' names in LoRA files -> the parameters that they change, of a fused layer several.

    table: of the published single file, whose names most trainers use; others use the network's.
    """
    to_file, known = reverse(table), set(parameters)
    names: dict[str, str | tuple[Place, ...]] = {}
    for theirs, fused in table.items():
        for leaf in ("weight", "bias"):
            changed = tuple(place._replace(name=f"{place.name}.{leaf}") for place in fused if isinstance(place, Place))
            if changed and all(place.name in known for place in changed):
                _name(names, f"{theirs}.{leaf}", changed)
    for ours in parameters:
        if (in_file := translate(ours, to_file)) is not None:
            _name(names, in_file, ours)
        layer, _, leaf = ours.rpartition(".")
        if leaf == "weight":
            flat = layer.replace(".", "_")
            prefixed = (f"{prefix}{layer}" for prefix in ("", "transformer.", "diffusion_model.", "base_model.model."))
            for name in (*prefixed, f"lora_transformer_{flat}", f"lora_unet_{flat}", f"lycoris_{flat}"):
                names.setdefault(name, ours)
    return names


def _name(names: dict[str, Any], theirs: str, changed: str | tuple[Place, ...]) -> None:
    """Add the names in LoRA files that derive from a parameter's name in the single file."""
    layer, _, leaf = theirs.rpartition(".")
    if leaf != "weight":
        names[f"diffusion_model.{theirs}"] = changed
        return
    flat = layer.replace(".", "_")
    for name in (layer, f"diffusion_model.{layer}", f"lora_unet_{flat}", f"lycoris_{flat}"):
        names[name] = changed
