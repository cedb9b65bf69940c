"""The conditioning of Lotus: the empty text, as the text encoder of Stable Diffusion 2.1 has it.

Lotus reads no other, so its encoder is not needed. The numbers are that encoder's, of its start and its end token, as
ComfyUI 0.33.0's node has them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from serve_app.nodes.declare import node
from serve_app.nodes.sockets import CONDITIONING


@cache
def _empty_text() -> Tensor:
    empty: Tensor = load_file(Path(__file__).with_name("lotus.safetensors"))["cond"]
    return empty.float()


@node("LotusConditioning", category="model/conditioning/lotus", return_names=("conditioning",))
def lotus_conditioning() -> CONDITIONING:
    """The conditioning that Lotus' networks read."""
    return [(_empty_text(), {})]
