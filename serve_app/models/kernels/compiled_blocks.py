"""Runs the repeated blocks of a network compiled by torch.compile: each kind of block once for all that are equal.

Only blocks are compiled, not the network around them, so a compile takes seconds, and a network with another number of
equal blocks needs none. Sizes are symbolic: one compile serves one row and one serves more, of whatever resolution.
LoRA slots, masks of texts and other widths are further compiles. CUDA graphs record the compiled kernels like any
others, so inductor's own graphs stay off.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.streaming import streams

BACKEND = "inductor"

VARIANTS = 64
"""How many compiles of one kind of block are kept: by widths, masks and LoRA slots. Beyond them blocks run as is."""


_EMPTY = torch.empty(0)


class CompiledBlocks:
    """The repeated blocks of one network, as diffusers lists them; none where it lists none."""

    def __init__(self, network: nn.Module) -> None:
        kinds = {kind for module in network.modules() for kind in getattr(type(module), "_repeated_blocks", None) or ()}
        self._forwards = [(block, _forward(block)) for block in network.modules() if kinds & _names(type(block))]

    def __len__(self) -> int:
        return len(self._forwards)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the compiled blocks in place of the network's own inside the context."""
        try:
            for block, forward in self._forwards:
                block.__dict__["forward"] = forward
            yield
        finally:
            for block, _ in self._forwards:
                block.__dict__.pop("forward", None)


def reason_against(network: nn.Module) -> str | None:
    """Return why a network's blocks are not compiled, in a few words; None if they are."""
    if any(map(streams, network.modules())):
        return "some of its weights stream"
    if any(isinstance(layer, QuantizedLinear) for layer in network.modules()):
        return "its weights are quantized"
    return None if len(CompiledBlocks(network)) else "its family has no list of equal blocks"


def prepare_compiler(device: torch.device) -> str | None:
    """Set up compilation in this process; return why it cannot compile for a device, in one line, or None."""
    # They take a second to import, which only who compiles has to wait for.
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor
    import torch.fx.experimental._config as sizes
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    if not _is_private(folder := Path(cache_dir())):
        return f"others may write to its folder {folder}; set TORCHINDUCTOR_CACHE_DIR"
    dynamo.recompile_limit = VARIANTS
    # LoRA slots are added by hooks, which compiled code would otherwise leave out.
    dynamo.skip_nnmodule_hook_guards = False
    # Two sizes that are equal once, as rows and heads may be, are not taken for one.
    sizes.use_duck_shape = False
    # In this process, which a watchdog looks after, and not in others.
    inductor.compile_threads = 1
    dynamo.suppress_errors = False
    try:
        torch.compile(_trial, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:
        # Of the many ways in which there is no C++ compiler or no Triton.
        cause = getattr(error, "inner_exception", error)
        return f"{type(cause).__name__}: {cause}".partition("\n")[0]
    # A block that inductor fails on later runs as it is, with a warning.
    dynamo.suppress_errors = True
    return None


def _is_private(folder: Path) -> bool:
    """Whether only this user may write to a folder, whose compiled code is loaded; made if it is not there."""
    folder.mkdir(0o700, parents=True, exist_ok=True)
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + x


def _names(kind: type) -> set[str]:
    """Return the names of a class and its bases: blocks of a network may be of a subclass of the listed one."""
    return {base.__name__ for base in kind.__mro__}


@cache
def compiled_forward(kind: Any) -> Callable[..., Any]:
    """Return the compiled forward of a class of blocks."""
    compiled: Callable[..., Any] = torch.compile(kind.forward, dynamic=True, backend=BACKEND)
    return compiled


def _forward(block: nn.Module) -> Callable[..., Any]:
    kind: Any = type(block)
    compiled = compiled_forward(kind)

    def forward(*args: Any, **kwargs: Any) -> Any:
        # An operation for a torch function mode, as the one that ends cancelled work: it sees none in the block.
        _ = _EMPTY.shape
        with torch._C.DisableTorchFunction():
            return compiled(block, *args, **kwargs)

    return forward
