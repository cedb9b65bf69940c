"""Chooses what computes attention in this process: torch, or a package of faster kernels that round otherwise.

diffusers' dispatcher knows how each package is called. Networks call the dispatcher's default, torch's, which is
replaced by one that asks the package where that can compute the call: without a mask, in sixteen bits, for heads that
are narrow enough. Of families whose layers call torch, `dispatched` has them call that default. Sources: Shah et al.
2024, arXiv:2407.08608 (FlashAttention 3); Zhang et al. 2024, arXiv:2411.10958 (SageAttention 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    attention_backend,
    dispatch_attention_fn,
)
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from serve_app.models.ranks.sharding import Sharding

TORCH = "sdpa"
"""The name of torch's own attention."""
DTYPES = (torch.float16, torch.bfloat16)


class Package(NamedTuple):
    """A package of attention kernels. widest: of a head."""

    backend: AttentionBackendName
    widest: int


PACKAGES: dict[str, Package] = {
    "flash3": Package(AttentionBackendName._FLASH_3, 256),
    "sage": Package(AttentionBackendName.SAGE, 128),
}

_torch: Callable[..., Tensor] = _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE]


def use_attention(name: str) -> None:
    """Compute attention by a package from now on wherever it can, and by torch elsewhere; TORCH: everywhere."""
    chosen = _torch if name == TORCH else _by_package(PACKAGES[name])
    _AttentionBackendRegistry.register(AttentionBackendName.NATIVE)(chosen)


def dispatched() -> AbstractContextManager[object]:
    """Return a context in which layers that call torch's attention call the dispatcher's default."""
    return nullcontext() if _default() is _torch else _Dispatched()


@contextmanager
def uninterrupted(dispatches: bool) -> Iterator[None]:
    """Let no torch function mode outside see what runs inside, as `engine.stopping` would end it.

    dispatches: its layers call the dispatcher; those that call torch's attention do so too inside.
    """
    with torch._C.DisableTorchFunction():
        if dispatches:
            yield
        else:
            with torch._C._EnableTorchFunction(), _Dispatched(alone=True):
                yield


class _Dispatched(TorchFunctionMode):
    """Has attention of queries (R,H,n,d) be computed by the dispatcher's default, which takes them as (R,n,H,d).

    alone: modes outside see no operation.
    """

    def __init__(self, *, alone: bool = False) -> None:
        super().__init__()
        self._alone = alone

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options, computed = dict(kwargs or {}), _default()
        with torch._C.DisableTorchFunction() if self._alone else nullcontext():
            if func is scaled_dot_product_attention and len(args) == len("qkv") and computed is not _torch:
                mask = options.pop("attn_mask", None)
                query, key, value = (tensor.transpose(1, 2) for tensor in args)
                return computed(query, key, value, mask, **options).transpose(1, 2)
            return func(*args, **options)


def _default() -> Callable[..., Tensor]:
    """Return what the dispatcher computes attention by where no other is named."""
    computed: Callable[..., Tensor] = _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE]
    return computed


@contextmanager
def attention_over(
    sharding: Sharding | None,
    keys: Sharding | None = None,
    apart: Iterable[tuple[nn.Module, Sharding | None]] = (),
) -> Iterator[None]:
    """Let attention inside be over the tokens of all ranks, of which queries, keys and values are this rank's shards.

    sharding: of the tokens, as `Sharding.of_attention`; a mask is of all tokens, by `Sharding.mask`. keys: of keys and
    values, where those are of other tokens. apart: layers whose attention is over another sharding, or, with None, to
    keys that each rank has whole. One thread at a time computes attention.
    """
    if sharding is None:
        yield
        return
    computed = _default()
    over: list[Sharding | None] = [sharding]

    @wraps(_torch)
    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            found: Tensor = computed(q, k, v, mask, **options)
            return found

        if (by := over[-1]) is None:
            return attend(query, key, value, attn_mask)
        return by.attention(query, key, value, attn_mask, attend, keys if by is sharding else None)

    def leave(*_: Any) -> None:
        over.pop()

    with ExitStack() as hooks:
        for layer, other in apart:

            def enter(*_: Any, other: Sharding | None = other) -> None:
                over.append(other)

            hooks.callback(layer.register_forward_pre_hook(enter).remove)
            hooks.callback(layer.register_forward_hook(leave, always_call=True).remove)
        _AttentionBackendRegistry.register(AttentionBackendName.NATIVE)(attention)
        try:
            yield
        finally:
            _AttentionBackendRegistry.register(AttentionBackendName.NATIVE)(computed)


def reason_against(name: str, device: torch.device) -> str | None:
    """Return why a package does not compute attention on a device, in one line; None if it does."""
    if name == TORCH:
        return None
    q = torch.ones(1, 128, 2, 64, dtype=torch.bfloat16, device=device)
    try:
        with attention_backend(PACKAGES[name].backend):
            dispatch_attention_fn(q, q, q).sum().item()
    except Exception as error:
        # Whatever the package raises: it may be missing, built for another torch, or have no kernels for the card.
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None


def _by_package(package: Package) -> Callable[..., Tensor]:
    computed: Callable[..., Tensor] = _AttentionBackendRegistry._backends[package.backend]

    # The dispatcher reads the names of arguments off the signature.
    @wraps(_torch)
    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if attn_mask is None and _takes(package, query, key, value, options):
            return computed(query, key, value, scale=options.get("scale"))
        return _torch(query, key, value, attn_mask, **options)

    return attention


def _takes(package: Package, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether a package computes attention as torch would. Shapes: (R,n,H,d)."""
    kinds = {tensor.dtype for tensor in (query, key, value)}
    heads = {(tensor.shape[0], *tensor.shape[2:]) for tensor in (query, key, value)}
    plain = not options.get("dropout_p") and not options.get("is_causal") and not options.get("return_lse")
    narrow = query.shape[-1] <= package.widest and query.shape[-1] % 8 == 0
    return plain and narrow and len(kinds) == len(heads) == 1 and query.dtype in DTYPES
