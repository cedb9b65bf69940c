"""A tiny Qwen-Image 2.1 whole: files under ComfyUI's names, and diffusers' pipeline with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from PIL import Image
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from serve_app.models.families.autoencoders.qwen_image21 import QwenImage21Vae
from serve_app.models.families.dit.qwen_image21 import QwenImage21
from serve_app.models.families.family import BackboneFamily, VaeFamily
from serve_app.models.families.text.qwen import Qwen3Text
from serve_app.models.families.text.qwen3_vl import Qwen3VisionTower
from serve_app.models.families.text.qwen_vl import patches
from serve_app.models.files.layout import reverse, translate
from serve_app.models.files.parts import as_type
from serve_app.models.tokenizers import qwen
from serve_app.models.tokenizers.vocabularies import no_file
from tests.parity import text_cases
from tests.parity.dit_cases import noise, weights

BACKBONE = QwenImage21(width=64, heads=2, layers=2, text_width=32)
VAE = QwenImage21Vae(width=8, decoder_width=16)
TEXT = Qwen3Text(3, 32, 48, 2, 1, 128, 151936, tower=Qwen3VisionTower(27, 64, 96, 49))
PAD = 151655
"""The token in whose place an image is."""


def file_of(family: BackboneFamily | VaeFamily, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's tensors under the names of the published file, with its fused layers and flat convolutions."""
    table = family.table()
    names = reverse(table)
    of_file: dict[str, Tensor] = {}
    for ours, tensor in drawn.items():
        theirs = translate(ours, names)
        assert theirs is not None
        of_file[theirs] = tensor.unsqueeze(2) if tensor.ndim == 4 and "resample" not in theirs else tensor
    for theirs, to in table.items():
        if not isinstance(to, str):
            parts = [of_file.pop(f"{place.name}.weight") for place in to]
            of_file[f"{theirs}.weight"] = torch.cat(parts)
    return of_file


def drawn(family: BackboneFamily | VaeFamily) -> dict[str, Tensor]:
    """Return a network's tensors, by its own names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in family.empty().state_dict().items()}
    made = weights(shapes)
    # It counts from one.
    return {name: t - 1 if name == "txt_in.text_norm.weight" else t for name, t in made.items()}


def text_file() -> dict[str, Tensor]:
    """Return the text encoder's tensors."""
    return text_cases.tensors(as_type(TEXT, "qwen_image"))


class Processor:
    """What turns texts and images into what transformers' Qwen3-VL is told; patches are checked elsewhere."""

    def __init__(self) -> None:
        self.tokenize = qwen.tokenizer(no_file)
        self.tokenizer = SimpleNamespace(encode=self.tokenize)

    def apply_chat_template(self, messages: Any, **options: Any) -> list[Sequence[int]]:
        (content,) = messages[0]["content"]
        return [self.tokenize(f"<|im_start|>system\n{content['text']}<|im_end|>\n")]

    def __call__(self, text: Sequence[str], images: Sequence[Image.Image] = (), **options: Any) -> Any:
        seen = [patches(pixels(image), 16, (0.5,) * 3, (0.5,) * 3) for image in images]
        counts = iter(rows * columns // 4 for _, rows, columns in seen)
        (whole,) = text
        ids = [i for token in self.tokenize(whole) for i in [token] * (next(counts) if token == PAD else 1)]
        told: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        told["attention_mask"] = torch.ones_like(told["input_ids"])
        told["mm_token_type_ids"] = (told["input_ids"] == PAD).long()
        if seen:
            told["pixel_values"] = torch.cat([cut for cut, _, _ in seen])
            told["image_grid_thw"] = torch.tensor([[1, rows, columns] for _, rows, columns in seen])
        inputs = SimpleNamespace(**told)
        inputs.to = lambda device: inputs
        return inputs


def pipeline() -> QwenImage21Pipeline:
    """Return diffusers' pipeline of the tiny networks."""
    transformer = QwenImage21Transformer2DModel(
        num_layers=BACKBONE.layers,
        attention_head_dim=32,
        num_attention_heads=BACKBONE.heads,
        context_in_dim=BACKBONE.text_width,
        axes_dims_rope=(4, 14, 14),
    )
    transformer.load_state_dict(drawn(BACKBONE))
    vae = AutoencoderKLQwenImage21(base_dim=VAE.width, decoder_base_dim=VAE.decoder_width)
    vae.load_state_dict(drawn(VAE))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    made = QwenImage21Pipeline(scheduler, vae.eval(), _text_encoder(), Processor(), transformer.eval())
    made.set_progress_bar_config(disable=True)
    return made


def _text_encoder() -> Any:
    tower = TEXT.tower
    assert tower is not None
    config = Qwen3VLConfig(
        text_config={
            **{key: value for key, value in TEXT.sizes().items() if key != "attn_implementation"},
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
        vision_config={
            "depth": tower.layers,
            "hidden_size": tower.width,
            "intermediate_size": tower.hidden_width,
            "out_hidden_size": TEXT.width,
            "num_position_embeddings": tower.places,
        },
    )
    encoder = Qwen3VLForConditionalGeneration(config).eval()
    prefixes = {"model.": "model.language_model.", "visual.": "model.visual."}
    renamed = {
        next(new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)): tensor
        for name, tensor in text_file().items()
    }
    missing, unexpected = encoder.load_state_dict(renamed, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return encoder


def picture(name: str, width: int, height: int) -> Image.Image:
    """Return a picture that the name stands for, with a transparent half."""
    made = (noise(name, (height, width, 4)).sigmoid() * 255).byte()
    made[..., 3] = 255
    made[:, : width // 2, 3] = 0
    return Image.fromarray(made.numpy(), "RGBA")


def pixels(image: Image.Image) -> Tensor:
    """Return a picture as an image (1,H,W,C) in 0…1."""
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]
