"""ComfyUI's text encoders on small random weights: run by its own interpreter, in its directory.

    python comfyui_texts.py CASES.json FILES OUT.npz

A case names a module of comfy.text_encoders, what makes its encoder there and its tokeniser, the sizes it is built
with, files in FILES, and texts. Kept of each, by case and place in the list: `ids` with `weights`, `cond` (some of its
rows), and each option of the conditioning. Of each text that it is to generate: `tokens`, and the `text` in UTF-8.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from base64 import b64decode
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CASES, FILES, OUT = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.text_encoders.llama  # noqa: E402
import comfy.text_encoders.qwen3vl  # noqa: E402
import comfy.text_encoders.qwen_vl  # noqa: E402
import comfy.text_encoders.t5  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: E402

TURN = 151644
"""Qwen's token that begins a turn."""
UNREAD = ("logit_scale", "text_projection.weight", "model.lm_head.weight")
"""Weights that no conditioning is made of."""
TOWERS = ("visual.", "vision_model.", "multi_modal_projector.")
LOOKS = comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer
BROUGHT = ("spiece_model", "tekken_model")


def encoder(case: dict[str, Any]) -> tuple[Any, Any]:
    """Return a case's encoder with its weights, and its tokeniser."""
    module = importlib.import_module(f"comfy.text_encoders.{case['module']}")
    files = [load_file(Path(FILES) / "text_encoders" / f"{name}.safetensors") for name in case["files"]]
    data = {name: file.pop(name) for file in files for name in BROUGHT if name in file}
    made = getattr(module, case["clip"])
    if case["tower"] is not None and case["module"] == "lt":
        comfy.text_encoders.llama.GEMMA3_VISION_CONFIG.update(case["tower"])
    elif case["tower"] is not None:
        sizes = case["tower"]
        vision = comfy.text_encoders.qwen3vl
        for known in (*vision.QWEN3VL_VISION.values(), vision.QWEN3VL_VISION_COMMON):
            known.update({size: value for size, value in sizes.items() if size in known})
        comfy.text_encoders.llama.qwen_vl.Qwen2VLVisionTransformer = lambda **given: LOOKS(**{**given, **sizes})
    if case["called"] is not None:
        made = made(**case["called"])
    options = {f"{name}_model_config": sizes for name, sizes in case["sizes"].items()}
    if case["module"] == "lt":
        options["model_name"] = "gemma3_12b"
    clip = made(device="cpu", dtype=torch.float32, model_options=options)
    for file in files:
        missing, unexpected = clip.load_sd(file)
        # A tower that no file of the case has is not looked through.
        needed = [name for name in missing if case["tower"] is not None or not name.startswith(TOWERS)]
        # A file may be of one of several parts.
        needed = [name for name in needed if not any(name in other for other in files)]
        assert not [name for name in needed if name not in UNREAD], missing
        assert not [name for name in unexpected if not name.endswith("position_ids")], unexpected
    tokenizer_module: Any = importlib.import_module(
        f"comfy.text_encoders.{case.get('tokenizer_module', case['module'])}"
    )
    if case["module"] == "aura_t5":
        # Its tokeniser reads a file that comes with ComfyUI, and no other.
        made_of = partial(tokenizer_module.SPieceTokenizer, data["spiece_model"])
        tokenizer_module.SPieceTokenizer = SimpleNamespace(from_pretrained=lambda path, **given: made_of(**given))
    if case["module"] == "qwen35":
        whole_tokenizer(tokenizer_module, Path(FILES), case["ranks"])
    tokenizer = getattr(tokenizer_module, case["tokenizer"])
    return clip, tokenizer(embedding_directory=str(Path(FILES) / "embeddings"), tokenizer_data=data)


def whole_tokenizer(module: Any, folder: Path, ranks: str) -> None:
    """Give Qwen3.5's tokeniser its vocabulary, a large file that a copy of ComfyUI may lack.

    ranks: a file of lines with a byte string in base64 and its number.
    """
    there = Path(module.__file__).parent / "qwen35_tokenizer"
    if (there / "vocab.json").is_file():
        return
    made = folder / there.name
    made.mkdir()
    for name in ("merges.txt", "tokenizer_config.json"):
        (made / name).write_bytes((there / name).read_bytes())
    letters = bytes_to_unicode()
    pairs = (line.split() for line in Path(ranks).read_bytes().splitlines() if line)
    words = {"".join(letters[byte] for byte in b64decode(word)): int(rank) for word, rank in pairs}
    (made / "vocab.json").write_text(json.dumps(words))
    module.__file__ = str(folder / "qwen35.py")


def image(height: int, width: int) -> torch.Tensor:
    """Return an image (1,H,W,3), as `text_cases.image`."""
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(height * width))


def kept(tensor: torch.Tensor, case: dict[str, Any]) -> np.ndarray:
    """Return some of the rows and columns of a tensor (…,T,D)."""
    return tensor[..., :: case["every"], :: case["columns"]].float().numpy()


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for name, case in json.loads(Path(CASES).read_text()).items():
        clip, tokenizer = encoder(case)
        for i, text in enumerate(case["texts"]):
            texts = text if isinstance(text, dict) and "images" not in text else {"": text}
            tokens: dict[str, Any] = {}
            for key, one in texts.items():
                given: dict[str, Any] = {}
                if isinstance(one, dict):
                    given = {"images": [image(*sizes) for sizes in one["images"]], "llama_template": one["template"]}
                    one = one["text"]
                given |= case["told"]
                of_one = tokenizer.tokenize_with_weights(one, tokenizer_options=case["options"], **given)
                tokens |= {key: of_one[key]} if key else of_one
            if {"l", "g"} <= texts.keys():
                # As its node does.
                empty = tokenizer.tokenize_with_weights("")
                count = max(len(tokens["l"]), len(tokens["g"]))
                tokens |= {key: tokens[key] + empty[key] * (count - len(tokens[key])) for key in "lg"}
            for key, rows in tokens.items():
                whole = [(t if isinstance(t, int) else -1, w) for row in rows for t, w, *_ in row]
                arrays[f"{name}|{i}|ids|{key}"] = np.array([t for t, _ in whole], np.int32)
                arrays[f"{name}|{i}|weights|{key}"] = np.array([w for _, w in whole], np.float32)
            clip.reset_clip_options()
            if case["stop_at"] is not None:
                clip.set_clip_options({"layer": case["stop_at"]})
            with torch.inference_mode():
                cond, pooled, *more = clip.encode_token_weights(tokens)
            if case["turns"]:
                (of_text,) = tokens.values()
                starts = [at for at, (token, _) in enumerate(of_text[0]) if isinstance(token, int) and token == TURN]
                cond = cond[:, starts[case["turns"]] :]
                more = [{key: value for key, value in more[0].items() if not bool(value.all())}]
            arrays[f"{name}|{i}|cond"] = kept(cond, case)
            if pooled is not None:
                arrays[f"{name}|{i}|pooled_output"] = pooled.numpy()
            of_text = more[0] if more else {}
            for key, value in ((key, value) for key, value in of_text.items() if isinstance(value, torch.Tensor)):
                arrays[f"{name}|{i}|{key}"] = kept(value, case) if value.ndim > 2 else value.numpy()
        for i, asked in enumerate(case.get("generations", ())):
            clip.reset_clip_options()
            clip.set_clip_options({"layer": None, "execution_device": torch.device("cpu")})
            seen = {} if asked["image"] is None else {"image": image(*asked["image"])}
            tokens = tokenizer.tokenize_with_weights(asked["text"], min_length=1, **asked["modes"], **seen)
            with torch.inference_mode():
                generated = clip.generate(tokens, max_length=asked["max_tokens"], **asked["sampling"])
            arrays[f"{name}|{i}|tokens"] = np.array(generated, np.int32)
            arrays[f"{name}|{i}|text"] = np.frombuffer(tokenizer.decode(generated).encode(), np.uint8)
    np.savez_compressed(OUT, **arrays)  # type: ignore[arg-type]


main()
