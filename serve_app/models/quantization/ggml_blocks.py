"""Weights in ggml's quantized blocks, as in GGUF files: neighbouring numbers of a row share scales.

Dequantized in torch. The layouts are those of ggml's `ggml-common.h`; the numbers are those of the `gguf` package, bit
for bit. Source of the formats: Gerganov and contributors, ggml; Kawrakow 2023, "k-quants", llama.cpp pull request 1684.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from serve_app.models.files.layout import Place, placed
from serve_app.models.quantization.eight_bit import in_eight_bits
from serve_app.models.quantization.quantized_linear import QuantizedWeight

Numbers: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""Whole numbers (N,…), their scales, and what is added after these or None, both float32 and broadcast to them."""


class BlockType(NamedTuple):
    """A kind of block: its number of weights and of bytes, and its numbers from blocks (N,bytes) uint8."""

    size: int
    nbytes: int
    numbers: Callable[[Tensor], Numbers]


_CODES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Values of the sixteen codes of IQ4."""


def _half(two: Tensor) -> Tensor:
    """Return the half-precision number in two bytes (N,2), (N,1) float32."""
    return two.contiguous().view(torch.float16).float()


def _fields(packed: Tensor, bits: int) -> Tensor:
    """Return the bit fields of each byte of (…,k): (…,8/bits,k), the lowest first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-2) >> shifts[:, None]).bitwise_and_(2**bits - 1)


def _halves(packed: Tensor) -> Tensor:
    """Return as `_fields` of four bits, in one pass for each half."""
    halves = packed.new_empty(*packed.shape[:-1], 2, packed.shape[-1])
    torch.bitwise_and(packed, 15, out=halves[..., 0, :])
    torch.bitwise_right_shift(packed, 4, out=halves[..., 1, :])
    return halves


def _in_place(packed: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the bit fields of bytes (…,k) without moving them, (…,8/bits,k), and the factors that do, (8/bits,1)."""
    firsts = torch.arange(0, 8, bits, device=packed.device)[:, None]
    masks = (2**bits - 1) * 2**firsts
    return packed.unsqueeze(-2) & masks.to(torch.uint8), torch.exp2(-firsts.float())


def _looked_up(packed: Tensor, bits: int, numbers: Sequence[int]) -> Tensor:
    """Return the numbers (…,8/bits,k) int8 that the bit fields of each byte of (…,k) stand for."""
    found = torch.index_select(_table(bits, tuple(numbers), packed.device), 0, packed.int().flatten())
    return found.view(*packed.shape, -1).transpose(-1, -2)


@lru_cache(maxsize=32)
def _table(bits: int, numbers: Sequence[int], device: torch.device) -> Tensor:
    """Return the numbers of the bit fields of all bytes, (256,8/bits) int8, the lowest field first."""
    fields = _fields(torch.arange(256, dtype=torch.uint8)[:, None], bits)[..., 0]
    # This copy is synchronous, so any stream that uses it later finds it complete.
    return torch.tensor(numbers, dtype=torch.int8)[fields.long()].to(device)


def _q8_0(b: Tensor) -> Numbers:
    return b[:, 2:].view(torch.int8), _half(b[:, :2]), None


def _q4_0(b: Tensor) -> Numbers:
    numbers, down = _in_place(b[:, 2:], 4)
    d = _half(b[:, :2])[..., None]
    return numbers, d * down, -8 * d


def _q4_1(b: Tensor) -> Numbers:
    numbers, down = _in_place(b[:, 4:], 4)
    return numbers, _half(b[:, :2])[..., None] * down, _half(b[:, 2:4])[..., None]


def _five(low: Tensor, fifth: Tensor) -> Tensor:
    """Return numbers of five bits from halves of bytes and from the fifth bits, in the same order."""
    return _halves(low).view(fifth.shape).bitwise_or_(fifth.view(torch.uint8))


def _fifth_bits(packed: Tensor) -> Tensor:
    """Return the bits of four bytes (N,4) as fifths of the numbers (N,2,16) that they belong to."""
    found = torch.index_select(_table(1, (0, 16), packed.device), 0, packed.int().flatten())
    return found.view(len(packed), 2, 16)


def _q5_0(b: Tensor) -> Numbers:
    d = _half(b[:, :2])[..., None]
    return _five(b[:, 6:], _fifth_bits(b[:, 2:6])), d, -16 * d


def _q5_1(b: Tensor) -> Numbers:
    return _five(b[:, 8:], _fifth_bits(b[:, 4:8])), _half(b[:, :2])[..., None], _half(b[:, 2:4])[..., None]


def _q2_k(b: Tensor) -> Numbers:
    scales, low, d, least = b[:, :16], b[:, 16:80], _half(b[:, 80:82]), _half(b[:, 82:84])
    # Each 32 bytes hold four times 32 numbers, of which 16 share a scale.
    numbers, down = _in_place(low.view(-1, 2, 32), 2)
    by_sixteen = (d * (scales & 15)).view(-1, 2, 4, 2, 1) * down[..., None]
    return torch.unflatten(numbers, -1, (2, 16)), by_sixteen, -(least * (scales >> 4)).view(-1, 2, 4, 2, 1)


def _q3_k(b: Tensor) -> Numbers:
    high, low, scales, d = b[:, :32], b[:, 32:96], b[:, 96:108], _half(b[:, 108:110])
    six = _fields(scales[:, :8], 4).flatten(1) | _fields(scales[:, 8:], 2).flatten(1) << 4
    # The four numbers of a byte of low bits, with the four high bits of the same numbers.
    at = low.view(-1, 2, 32).int().add_(_halves(high), alpha=256)
    numbers = torch.index_select(_threes(b.device), 0, at.flatten()).view(-1, 2, 32, 4).transpose(2, 3)
    return torch.unflatten(numbers, -1, (2, 16)), (d * (six.float() - 32)).view(-1, 2, 4, 2, 1), None


@lru_cache(maxsize=8)
def _threes(device: torch.device) -> Tensor:
    """Return the numbers (4096,4) int8 of all low bytes with any four high bits: 4 less where the high bit is 0."""
    at = torch.arange(4096)
    fields = [(at >> 2 * field & 3) - 4 * (1 - (at >> 8 + field & 1)) for field in range(4)]
    # This copy is synchronous, so any stream that uses it later finds it complete.
    return torch.stack(fields, dim=1).to(torch.int8).to(device)


def _scales_and_leasts(b: Tensor) -> tuple[Tensor, Tensor]:
    """Return eight scales and eight minimums (N,4,2,1) float32: of six bits in twelve bytes, times two halves."""
    packed = b[:, 4:16]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | (first >> 6) << 4], dim=1)
    leasts = torch.cat([second & 63, (third >> 4) | (second >> 6) << 4], dim=1)
    return (_half(b[:, :2]) * scales).view(-1, 4, 2, 1), (_half(b[:, 2:4]) * leasts).view(-1, 4, 2, 1)


def _q4_k(b: Tensor) -> Numbers:
    scales, leasts = _scales_and_leasts(b)
    # Each 32 bytes hold twice 32 numbers.
    numbers, down = _in_place(b[:, 16:].view(-1, 4, 32), 4)
    return numbers, scales * down, -leasts


def _q5_k(b: Tensor) -> Numbers:
    scales, leasts = _scales_and_leasts(b)
    fifth = _looked_up(b[:, 16:48], 1, (0, 16)).reshape(-1, 4, 2, 32)
    return _five(b[:, 48:].view(-1, 4, 32), fifth), scales, -leasts


def _q6_k(b: Tensor) -> Numbers:
    low, high, scales, d = b[:, :128], b[:, 128:192], b[:, 192:208], _half(b[:, 208:210])
    numbers = _halves(low.view(-1, 2, 64)).view(torch.int8).view(-1, 2, 4, 32)
    numbers.add_(_looked_up(high.view(-1, 2, 32), 2, (-32, -16, 0, 16)))
    return torch.unflatten(numbers, -1, (2, 16)), (d * scales.view(torch.int8)).view(-1, 2, 4, 2, 1), None


def _iq4_nl(b: Tensor) -> Numbers:
    return _looked_up(b[:, 2:], 4, _CODES), _half(b[:, :2])[..., None], None


def _iq4_xs(b: Tensor) -> Numbers:
    d, high, low = _half(b[:, :2]), b[:, 2:4], b[:, 4:8]
    six = _fields(low, 4).transpose(1, 2).flatten(1) | _fields(high, 2).transpose(1, 2).flatten(1) << 4
    return _looked_up(b[:, 8:].view(-1, 8, 16), 4, _CODES), (d * (six.float() - 32)).view(-1, 8, 1, 1), None


TYPES: Mapping[str, BlockType] = {
    "Q8_0": BlockType(32, 34, _q8_0),
    "Q4_0": BlockType(32, 18, _q4_0),
    "Q4_1": BlockType(32, 20, _q4_1),
    "Q5_0": BlockType(32, 22, _q5_0),
    "Q5_1": BlockType(32, 24, _q5_1),
    "Q2_K": BlockType(256, 84, _q2_k),
    "Q3_K": BlockType(256, 110, _q3_k),
    "Q4_K": BlockType(256, 144, _q4_k),
    "Q5_K": BlockType(256, 176, _q5_k),
    "Q6_K": BlockType(256, 210, _q6_k),
    "IQ4_NL": BlockType(32, 18, _iq4_nl),
    "IQ4_XS": BlockType(256, 136, _iq4_xs),
}
"""The kinds of block by ggml's names."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockWeight(QuantizedWeight):
    """A weight in blocks of a kind. stored: (out, bytes of a row) uint8."""

    stored: Tensor
    kind: str

    @property
    def shape(self) -> tuple[int, int]:
        kind = TYPES[self.kind]
        return self.stored.shape[0], self.stored.shape[1] // kind.nbytes * kind.size

    @property
    def nbytes(self) -> int:
        return self.stored.numel()

    def part(self, place: Place) -> BlockWeight:
        return replace(self, stored=placed(self.stored, place))

    def sent(self, send: Callable[[Tensor], Tensor]) -> BlockWeight:
        return replace(self, stored=send(self.stored))

    def holding(self, wide: Tensor) -> QuantizedWeight:
        return in_eight_bits(wide)

    def fill(self, out: Tensor) -> None:
        _fill(self.stored, self.kind, out)


def widened(stored: Tensor, kind: str) -> Tensor:
    """Return the numbers in blocks of a kind, flattened, float32."""
    known = TYPES[kind]
    out = torch.empty(stored.numel() // known.nbytes * known.size, device=stored.device)
    _fill(stored, kind, out)
    return out


def _fill(stored: Tensor, kind: str, out: Tensor) -> None:
    """Write the numbers in blocks of a kind to a contiguous tensor of any float dtype."""
    numbers, scales, added = TYPES[kind].numbers(stored.reshape(-1, TYPES[kind].nbytes))
    into = out.view(numbers.shape)
    # One pass each: they are computed in single precision, and rounded as they are written.
    if added is None:
        torch.mul(numbers, scales, out=into)
    else:
        torch.addcmul(added, numbers, scales, out=into)
