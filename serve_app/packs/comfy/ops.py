"""Building blocks of packs' own networks: `comfy.ops`, attention and `comfy.patcher_extension`.

Source: the facts of ComfyUI 0.33's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def optimized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: Any = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **options: Any,
) -> Tensor:
    """Return attention over heads of (B,N,H·d), as such; skip_reshape: of (B,H,N,d); skip_output_reshape: so too."""
    if not skip_reshape:
        q, k, v = (torch.unflatten(t, -1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if mask is not None:
        while mask.ndim < 4:
            mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(-2)


def wrap_attn(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an attention that calls the override in its `transformer_options`, if there is one, and not within it.

    An override is given the attention itself, then what that was called with.
    """

    @wraps(function)
    def attention(*given: Any, _inside_attn_wrapper: bool = False, **options: Any) -> Tensor:
        override = (options.get("transformer_options") or {}).get("optimized_attention_override")
        options["_inside_attn_wrapper"] = True
        if override is None or _inside_attn_wrapper:
            return function(*given, **options)
        made: Tensor = override(function, *given, **options)
        return made

    return attention


def optimized_attention_for_device(device: Any, mask: bool = False, small_input: bool = False) -> Any:
    """Return the attention for a device."""
    return optimized_attention


_KINDS = ("optimized_attention", "optimized_attention_masked", "attention_pytorch", "attention_basic")
ATTENTION: Mapping[str, Any] = {
    **dict.fromkeys((*_KINDS, "attention_sub_quad", "attention_split"), optimized_attention),
    "wrap_attn": wrap_attn,
    "optimized_attention_for_device": optimized_attention_for_device,
}
"""What `comfy.ldm.modules.attention` has."""


class _Uninitialised:
    """A layer whose weights are to be loaded, and are not drawn."""

    def reset_parameters(self) -> None:
        """Do nothing."""


def _layers(name: str, *, casts: bool) -> type:
    """Return layers as members of a class. casts: they compute in the dtype and on the device of their inputs."""
    kinds = ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "ConvTranspose1d", "ConvTranspose2d")

    def forward(self: Any, *given: Any, **options: Any) -> Any:
        usual = getattr(nn, type(self).__name__).forward
        x = given[0]
        if all(p.dtype == x.dtype and p.device == x.device for p in self.parameters()):
            return usual(self, *given, **options)
        cast = {name: p.to(x.device, x.dtype) for name, p in self.named_parameters()}
        return torch.func.functional_call(
            _Usual(self, usual), {f"layer.{n}": p for n, p in cast.items()}, given, options
        )

    body: dict[str, Any] = {"comfy_cast_weights": casts}
    made = {
        name: type(name, (_Uninitialised, getattr(nn, name)), {**body, "forward": forward} if casts else body)
        for name in kinds
    }
    made["Embedding"] = type("Embedding", (nn.Embedding,), dict(body))
    return type(name, (), made)


class _Usual(nn.Module):
    """A layer called by its class's own forward."""

    def __init__(self, layer: nn.Module, forward: Any) -> None:
        super().__init__()
        self.layer, self._forward = layer, forward

    def forward(self, *given: Any, **options: Any) -> Any:
        return self._forward(self.layer, *given, **options)


disable_weight_init = _layers("disable_weight_init", casts=False)
manual_cast = _layers("manual_cast", casts=True)


def cast_to(
    weight: Tensor | None, dtype: Any = None, device: Any = None, non_blocking: bool = False, copy: bool = False
) -> Tensor | None:
    """Return a weight in a dtype on a device."""
    return None if weight is None else weight.to(device, dtype, non_blocking=non_blocking, copy=copy)


def cast_to_input(weight: Tensor | None, input: Tensor, non_blocking: bool = False, copy: bool = True) -> Tensor | None:
    """Return a weight as an input is."""
    return cast_to(weight, input.dtype, input.device, non_blocking)


OPS: Mapping[str, Any] = {
    "disable_weight_init": disable_weight_init,
    "manual_cast": manual_cast,
    "cast_to": cast_to,
    "cast_to_input": cast_to_input,
}
"""What `comfy.ops` has."""


class WrappersMP:
    """Where wrappers go. Those within sampling are refused once the model is used."""

    OUTER_SAMPLE = "outer_sample"
    PREPARE_SAMPLING = "prepare_sampling"
    SAMPLER_SAMPLE = "sampler_sample"
    PREDICT_NOISE = "predict_noise"
    CALC_COND_BATCH = "calc_cond_batch"
    APPLY_MODEL = "apply_model"
    DIFFUSION_MODEL = "diffusion_model"


class CallbacksMP:
    """When callbacks are called."""

    ON_CLONE = "on_clone"
    ON_LOAD = "on_load_after"
    ON_DETACH = "on_detach_after"
    ON_CLEANUP = "on_cleanup"
    ON_PRE_RUN = "on_pre_run"
    ON_PREPARE_STATE = "on_prepare_state"


def add_wrapper_with_key(
    wrapper_type: str, key: str, wrapper: Any, options: dict[str, Any], is_model_options: bool = False
) -> None:
    """Put a wrapper into options."""
    within = options.setdefault("transformer_options", {}) if is_model_options else options
    within.setdefault("wrappers", {}).setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)


PATCHER_EXTENSION: Mapping[str, Any] = {
    "WrappersMP": WrappersMP,
    "CallbacksMP": CallbacksMP,
    "add_wrapper_with_key": add_wrapper_with_key,
}
"""What `comfy.patcher_extension` has."""
