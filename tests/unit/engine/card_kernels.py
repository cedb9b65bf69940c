"""Torch's operations on the card double: which are kernels, which make the host wait, and what computes them."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

FREE = {
    "detach", "alias", "lift_fresh", "is_pinned", "empty", "empty_strided", "empty_like", "new_empty",
    "new_empty_strided", "_reshape_alias", "view", "_unsafe_view", "resize_", "set_", "is_same_size", "record_stream",
}  # fmt: skip
"""Operations without a kernel, beside those that torch itself calls views."""

_WHOLE = {
    "linear", "conv2d", "conv1d", "scaled_dot_product_attention", "layer_norm", "group_norm", "softmax", "log_softmax",
    "rms_norm", "embedding", "silu", "gelu",
    *(f"upsample_{way}" for way in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *(f"{way}{axes}d" for axes in (1, 2, 3) for way in ("upsample_nearest", "_upsample_nearest_exact")),
    *(f"_upsample_{way}2d_aa" for way in ("bilinear", "bicubic")),
}  # fmt: skip
"""Operations that a card has a kernel for, though torch could take them apart."""

_WIDENED = {f"_upsample_{way}2d_aa" for way in ("bilinear", "bicubic")}
"""Operations that a card's kernels do in half precision and a CPU's do not: these do them on wider numbers."""

READS = {
    "_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim",
    "_linalg_check_errors",
}  # fmt: skip
"""Operations whose result the host has to wait for."""


@cache
def operation(func: Any) -> tuple[str, bool]:
    """Return an operation's name, and whether torch's own code takes it apart."""
    name = func.overloadpacket._qualified_op_name.rpartition("::")[2]
    return name, name not in _WHOLE and func._can_decompose()


def kernel_of(name: str, func: Any) -> Any:
    """Return what computes an operation: torch's own, or in single precision what a CPU takes long for."""
    if name == "_scaled_mm":
        return partial(_scaled_product, func)
    return partial(_widened, func) if name in _WIDENED else func


def _widened(func: Any, numbers: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return what an operation makes of numbers, in their dtype, computed in single precision."""
    made: Tensor = func(numbers.float(), *args, **kwargs)
    return made.to(numbers.dtype)


def _scaled_product(
    func: Any,
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """Return what `torch._scaled_mm` does, in single precision: a CPU takes seconds for each product of eight bits.

    Errors: those of a card, for what it cannot multiply.
    """
    assert scale_result is None, "the result has a scale"
    # A meta tensor that is no fake one is checked as a card's.
    given = [None if tensor is None else tensor.to("meta") for tensor in (a, b, scale_a, scale_b, bias)]
    func(*given, None, out_dtype, use_fast_accum)
    made = (a.float() @ b.float()) * scale_a * scale_b
    return (made if bias is None else made + bias).to(out_dtype or a.dtype)
