"""Make golden/quantized.npz: weights as ComfyUI's kernels store them in few bits, and as they widen them again.

Run it in ComfyUI's environment: python tests/parity/quantized_figures.py. Of each format: `stored` (bytes), `scale` and
`wide`; of those with scales for blocks these as bytes, and of NVFP4 `second`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy_kitchen.tensor import (  # type: ignore[import-not-found]  # noqa: E402
    AsymW4A8Int8Layout,
    QuantizedTensor,
    TensorCoreFP8Layout,
    TensorCoreMXFP8Layout,
    TensorCoreNVFP4Layout,
    TensorWiseINT8Layout,
)

from tests.parity.dit_cases import noise  # noqa: E402

SHAPE = (24, 128)
FORMATS: dict[str, tuple[Any, dict[str, Any]]] = {
    "float8_e4m3fn": (TensorCoreFP8Layout, {}),
    "int8": (TensorWiseINT8Layout, {}),
    "int8_rows": (TensorWiseINT8Layout, {"per_channel": True}),
    "int8_convrot_64": (TensorWiseINT8Layout, {"per_channel": True, "convrot": True, "convrot_groupsize": 64}),
}


BLOCKS_SHAPE = (160, 192)
BLOCKS: dict[str, Any] = {"nvfp4": TensorCoreNVFP4Layout, "mxfp8": TensorCoreMXFP8Layout}

CODED = {"w4a8": {"convrot_groupsize": 64}, "w4a8_even": {"convrot_groupsize": 16, "group_size": 32, "codebook": False}}


def main() -> None:
    arrays: dict[str, Any] = {}
    for name, (layout, settings) in FORMATS.items():
        stored, parameters = layout.quantize(noise("quantized", SHAPE) / 10, **settings)
        wide = QuantizedTensor(stored, layout.__name__, parameters).dequantize()
        arrays |= {
            f"{name}|stored": stored.view(torch.int8).numpy(),
            f"{name}|scale": parameters.scale.numpy(),
            f"{name}|wide": wide.float().numpy(),
        }
    for name, layout in BLOCKS.items():
        stored, parameters = layout.quantize(noise("quantized", BLOCKS_SHAPE) / 10)
        wide = QuantizedTensor(stored, layout.__name__, parameters).dequantize()
        scale = parameters.block_scale if name == "nvfp4" else parameters.scale
        arrays |= {
            f"{name}|stored": stored.view(torch.uint8).numpy(),
            f"{name}|scale": scale.view(torch.uint8).numpy(),
            f"{name}|wide": wide.float().numpy(),
        }
        if name == "nvfp4":
            arrays[f"{name}|second"] = parameters.scale.numpy()
    for name, settings in CODED.items():
        stored, parameters = AsymW4A8Int8Layout.quantize(noise("quantized", SHAPE) / 10, **settings)
        arrays |= {
            f"{name}|stored": stored.view(torch.uint8).numpy(),
            f"{name}|scales": parameters.scale.view(torch.uint8).numpy(),
            f"{name}|channels": parameters.s_channel.numpy(),
            f"{name}|wide": AsymW4A8Int8Layout.dequantize(stored, parameters).float().numpy(),
        }
        if parameters.codebook is not None:
            arrays[f"{name}|table"] = parameters.codebook.numpy()
    np.savez_compressed(HERE / "golden" / "quantized.npz", **arrays)


main()
