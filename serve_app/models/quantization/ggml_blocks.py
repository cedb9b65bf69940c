"""Weights in ggml's quantized blocks, as in GGUF files: neighbouring numbers of a row share scales.

Dequantized in torch. The layouts are those of ggml's `ggml-common.h`; the numbers are those of the `gguf` package, bit
for bit. Source of the formats: Gerganov and contributors, ggml; Kawrakow 2023, "k-quants", llama.cpp pull request 1684.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from serve_app.models.files.layout import Place, placed
from serve_app.models.quantization.eight_bit import in_eight_bits
from serve_app.models.quantization.quantized_linear import QuantizedWeight

Widen: TypeAlias = Callable[[Tensor], Tensor]
"""From blocks (N,bytes) uint8 to their numbers (N,size) float32."""


class BlockType(NamedTuple):
    """A kind of block: its number of weights and of bytes."""

    size: int
    nbytes: int
    widen: Widen


_CODES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Values of the sixteen codes of IQ4."""
_LOWER, _UPPER = struct.unpack("<2q", struct.pack("<16b", *_CODES))
"""Their bytes as two numbers, which kernels take as arguments."""


def _fields(packed: Tensor, bits: int) -> Tensor:
    """Return the bit fields of each byte of (…,k): (…,8/bits,k), the lowest first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    fields: Tensor = (packed.unsqueeze(-2) >> shifts[:, None]) & (2**bits - 1)
    return fields


def _half(two: Tensor) -> Tensor:
    """Return the half-precision number in two bytes (N,2), (N,1) float32."""
    return two.contiguous().view(torch.float16).float()


def _signed(packed: Tensor) -> Tensor:
    return packed.contiguous().view(torch.int8).float()


def _fifth_bits(packed: Tensor) -> Tensor:
    """Return the bits of four bytes (N,4) in the order of the numbers whose highest bit they are, (N,32)."""
    return _fields(packed, 1).transpose(1, 2).flatten(1)


def _scaled(numbers: Tensor, scales: Tensor) -> Tensor:
    """Return numbers (N,n) times scales (N,s), each for the next n/s of them."""
    return (numbers.view(*scales.shape, -1) * scales[..., None]).flatten(1)


def _spread(values: Tensor, size: int) -> Tensor:
    """Return values (N,s) repeated to (N,size)."""
    return values.repeat_interleave(size // values.shape[1], dim=1)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _signed(b[:, 2:])


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_fields(b[:, 2:], 4).flatten(1).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _fields(b[:, 4:], 4).flatten(1).float() + _half(b[:, 2:4])


def _q5_0(b: Tensor) -> Tensor:
    five = _fields(b[:, 6:], 4).flatten(1) | _fifth_bits(b[:, 2:6]) << 4
    return _half(b[:, :2]) * (five.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    five = _fields(b[:, 8:], 4).flatten(1) | _fifth_bits(b[:, 4:8]) << 4
    return _half(b[:, :2]) * five.float() + _half(b[:, 2:4])


def _two_bits(packed: Tensor) -> Tensor:
    """Return 256 numbers of two bits: each 32 bytes hold four times 32 of them."""
    return _fields(packed.view(-1, 2, 32), 2).flatten(1)


def _four_bits(packed: Tensor) -> Tensor:
    """Return 256 numbers of four bits: each 32 bytes hold twice 32 of them."""
    return _fields(packed.view(-1, 4, 32), 4).flatten(1)


def _q2_k(b: Tensor) -> Tensor:
    scales, low, d, least = b[:, :16], b[:, 16:80], _half(b[:, 80:82]), _half(b[:, 82:84])
    return _scaled(_two_bits(low).float(), d * (scales & 15)) - _spread(least * (scales >> 4), 256)


def _q3_k(b: Tensor) -> Tensor:
    high, low, scales, d = b[:, :32], b[:, 32:96], b[:, 96:108], _half(b[:, 108:110])
    six = _fields(scales[:, :8], 4).flatten(1) | _fields(scales[:, 8:], 2).flatten(1) << 4
    three = _two_bits(low).float() - 4 * (1 - _fields(high, 1).flatten(1).float())
    return _scaled(three, d * (six.float() - 32))


def _scales_and_leasts(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return eight six-bit scales and eight minimums (N,8) from twelve bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | (first >> 6) << 4], dim=1)
    leasts = torch.cat([second & 63, (third >> 4) | (second >> 6) << 4], dim=1)
    return scales, leasts


def _q4_k(b: Tensor) -> Tensor:
    scales, leasts = _scales_and_leasts(b[:, 4:16])
    numbers = _four_bits(b[:, 16:]).float()
    return _scaled(numbers, _half(b[:, :2]) * scales) - _spread(_half(b[:, 2:4]) * leasts, 256)


def _q5_k(b: Tensor) -> Tensor:
    scales, leasts = _scales_and_leasts(b[:, 4:16])
    five = _four_bits(b[:, 48:]) | _fields(b[:, 16:48], 1).flatten(1) << 4
    return _scaled(five.float(), _half(b[:, :2]) * scales) - _spread(_half(b[:, 2:4]) * leasts, 256)


def _q6_k(b: Tensor) -> Tensor:
    low, high, scales, d = b[:, :128], b[:, 128:192], b[:, 192:208], _half(b[:, 208:210])
    six = _fields(low.view(-1, 2, 64), 4).flatten(1) | _two_bits(high) << 4
    return _scaled(six.float() - 32, d * _signed(scales))


def _coded(codes: Tensor) -> Tensor:
    # Filled by kernels: a table from host memory would make the host wait in each forward.
    table = torch.full((2,), _LOWER, dtype=torch.int64, device=codes.device)
    table[1].fill_(_UPPER)
    return table.view(torch.int8)[codes.long()].float()


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _coded(_fields(b[:, 2:], 4).flatten(1))


def _iq4_xs(b: Tensor) -> Tensor:
    d, high, low = _half(b[:, :2]), b[:, 2:4], b[:, 4:8]
    six = _fields(low, 4).transpose(1, 2).flatten(1) | _fields(high, 2).transpose(1, 2).flatten(1) << 4
    codes = _fields(b[:, 8:].view(-1, 8, 16), 4).flatten(1)
    return _scaled(_coded(codes), d * (six.float() - 32))


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

    def wide(self) -> Tensor:
        return widened(self.stored, self.kind).view(self.shape)


def widened(stored: Tensor, kind: str) -> Tensor:
    """Return the numbers in blocks of a kind, flattened, float32."""
    known = TYPES[kind]
    return known.widen(stored.reshape(-1, known.nbytes)).flatten()
