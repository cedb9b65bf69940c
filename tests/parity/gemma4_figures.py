"""Make golden/gemma4.npz and golden/gemma4_keys.json: what ComfyUI's Gemma 4 answer to `gemma4_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/gemma4_figures.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.text_encoders.gemma4 as gemma4  # noqa: E402
import comfy.text_encoders.lt  # noqa: E402

from tests.parity import gemma4_cases  # noqa: E402
from tests.parity.dit_cases import weights  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402

CPU = torch.device("cpu")


def variant(name: str) -> Any:
    """Return a model class of small sizes."""
    base = {"E2B": gemma4.Gemma4_E2B_Config, "12B": gemma4.Gemma4_12B_Config}[name]

    class Small(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            for key, value in gemma4_cases.SIZES[name].items():
                setattr(self, key, value)

    part, published = {
        "E2B": (gemma4.Gemma4Base, gemma4.Gemma4_E2B),
        "12B": (gemma4.Gemma4UnifiedBase, gemma4.Gemma4_12B),
    }[name]

    class Variant(part):  # type: ignore[misc, valid-type]
        tokenizer = published.tokenizer

        def __init__(self, config_dict: Any, dtype: Any, device: Any, operations: Any) -> None:
            torch.nn.Module.__init__(self)
            self._init_model(Small(), dtype, device, operations)

    return Variant


def main() -> None:
    figures: dict[str, Any] = {}
    keys: dict[str, dict[str, list[int]]] = {}
    data = {"tokenizer_json": gemma4_cases.tokenizer_tensor()}
    where = {"device": "cpu", "dtype": torch.float32}
    for name in gemma4_cases.SIZES:
        kind = variant(name)
        plain, padded = kind.tokenizer, comfy.text_encoders.lt.ltxav_gemma4_tokenizer(kind.tokenizer)
        clip = gemma4.gemma4_te(model_class=kind)(**where)
        transformer = clip.gemma4.transformer
        if name == "12B":
            clip = comfy.text_encoders.lt.ltxav_te(
                text_projection_type="dual_linear",
                text_encoder_model=gemma4.gemma4_text_encoder_model(kind),
                text_encoder_key="gemma4",
                video_projection_dim=gemma4_cases.PROJECTED["video"],
                audio_projection_dim=gemma4_cases.PROJECTED["audio"],
            )(**where)
            transformer = clip.gemma3_12b.transformer
        shapes = {key: list(value.shape) for key, value in transformer.state_dict().items()}
        if name == "12B":
            projection = clip.text_embedding_projection.state_dict()
            shapes |= {f"text_embedding_projection.{key}": list(value.shape) for key, value in projection.items()}
        keys[name] = shapes
        clip.load_sd(weights(shapes))
        for i, text in enumerate(gemma4_cases.TEXTS if name == "12B" else ()):
            clip.reset_clip_options()
            clip.set_clip_options({"execution_device": CPU})
            tokens = padded(tokenizer_data=data).tokenize_with_weights(text)
            figures[f"{name} ids {i}"] = np.array([t for t, _ in tokens["gemma4"][0] if t], np.int32)
            figures[f"{name} text {i}"] = thinned(clip.encode_token_weights(tokens)[0].numpy())
        for i, asked in enumerate(gemma4_cases.GENERATIONS[name]):
            tokenizer = (padded if asked["padded"] else plain)(tokenizer_data=data)
            seen = None if asked["image"] is None else gemma4_cases.image(*asked["image"])
            modes = {"skip_template": not asked["template"], "thinking": asked["thinking"]}
            tokens = tokenizer.tokenize_with_weights(asked["text"], image=seen, min_length=1, **modes)
            clip.reset_clip_options()
            clip.set_clip_options({"layer": None, "execution_device": CPU})
            given = asked["sampling"] or dict.fromkeys(gemma4_cases.USUAL, 1)
            made = clip.generate(
                tokens,
                do_sample=asked["sampling"] is not None,
                max_length=asked["tokens"],
                presence_penalty=0.0,
                **given,
            )
            figures[f"{name} generated {i}"] = np.array(made, np.int32)
            figures[f"{name} said {i}"] = np.frombuffer(tokenizer.decode(made).encode(), np.uint8)
    (GOLDEN / "gemma4_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "gemma4.npz", **figures)


with torch.inference_mode():
    main()
