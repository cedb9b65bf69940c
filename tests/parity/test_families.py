"""Networks of every family beside ComfyUI's, on the same tensors; see families.py."""

import pytest
import torch

from serve_app.models.families import ClipText, SdxlText
from serve_app.models.families.text.clip import TextEncoder
from serve_app.models.families.unet.sdxl import DualTextEncoder
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.text_encoder import Clip
from serve_app.values import Texts
from tests.parity import families
from tests.parity.families import LATER_ROWS, ROWS, SKIPS, TEXTS
from tests.parity.figures import Figures

TOLERANCE = 1e-5
FIGURES = Figures("families")


def no_vectors(name, width, kind="l"):
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    families.write(root)
    return root


def checkpoint(folder, name):
    return Checkpoint(folder / f"{name}.safetensors")


@pytest.mark.parametrize("name", families.UNETS)
def test_a_familys_backbone_answers_as_comfyuis(folder, name):
    architecture, network = checkpoint(folder, name).load("backbone")
    assert architecture == families.UNETS[name]
    x, timesteps, context, vector = families.unet_inputs(name)
    with torch.inference_mode():
        output = network(x, timesteps, context, class_labels=vector, return_dict=False)[0]
    FIGURES.assert_agrees(output, f"{name}|output", TOLERANCE)


def encoder(folder, name):
    return checkpoint(folder, name).load("clip")


def shown(cond):
    return cond[:, ROWS + (LATER_ROWS if cond.shape[1] > 77 else [])]


@pytest.mark.parametrize("skip", SKIPS)
def test_sd2s_text_encoder_answers_as_comfyuis(folder, skip):
    architecture, network = encoder(folder, "sd2")
    assert architecture == ClipText(3, 64, 256, 77, "h", 64)
    with torch.inference_mode():
        encoded = TextEncoder(architecture, network, no_vectors).encode(TEXTS, skip)
    for i, ((cond, options),) in enumerate(encoded):
        FIGURES.assert_agrees(shown(cond), f"h|{skip}|{i}", TOLERANCE)
        FIGURES.assert_agrees(options["pooled_output"], f"h|pooled|{i}", TOLERANCE)


@pytest.mark.parametrize("skip", SKIPS)
def test_sdxls_text_is_both_encoders_rows_side_by_side_and_the_larger_ones_pooled(folder, skip):
    clip = Clip(sdxl_encoder(folder), skip)
    with torch.inference_mode():
        encoded = clip.encode(TEXTS)
    for i, ((cond, options),) in enumerate(encoded):
        FIGURES.assert_agrees(shown(cond[..., :64]), f"l|{skip}|{i}", TOLERANCE)
        FIGURES.assert_agrees(shown(cond[..., 64:]), f"g|{skip}|{i}", TOLERANCE)
        FIGURES.assert_agrees(options["pooled_output"], f"g|pooled|{i}", TOLERANCE)


def sdxl_encoder(folder):
    architecture, network = encoder(folder, "sdxl")
    assert isinstance(architecture, SdxlText)
    return DualTextEncoder(
        TextEncoder(architecture.l, network["l"], no_vectors, paired=True),
        TextEncoder(architecture.g, network["g"], no_vectors, paired=True),
    )


@pytest.mark.parametrize(("g", "l"), [(0, 1), (3, 0), (0, 3)])
def test_two_texts_go_to_an_encoder_each_the_shorter_padded_with_empty_chunks(folder, g, l):  # noqa: E741
    with torch.inference_mode():
        (((cond, options),),) = sdxl_encoder(folder).encode([Texts(g=TEXTS[g], l=TEXTS[l])])
    for name, text, rows in (("l", l, cond[..., :64]), ("g", g, cond[..., 64:])):
        whole = FIGURES[f"{name}|None|{text}"].shape[1] > len(ROWS)
        FIGURES.assert_agrees(shown(rows) if whole else rows[:, ROWS], f"{name}|None|{text}", TOLERANCE)
        if not whole and cond.shape[1] > 77:
            FIGURES.assert_agrees(rows[:, [77 + row for row in ROWS]], f"{name}|None|2", TOLERANCE)
    FIGURES.assert_agrees(options["pooled_output"], f"g|pooled|{g}", TOLERANCE)


def test_the_refiner_reads_text_with_the_larger_encoder_alone(folder):
    architecture, network = encoder(folder, "refiner")
    assert architecture == ClipText(3, 64, 256, 77, "g", 64)
    with torch.inference_mode():
        encoded = TextEncoder(architecture, network, no_vectors).encode(TEXTS)
    for i, ((cond, options),) in enumerate(encoded):
        FIGURES.assert_agrees(shown(cond), f"g|None|{i}", TOLERANCE)
        FIGURES.assert_agrees(options["pooled_output"], f"g|pooled|{i}", TOLERANCE)
