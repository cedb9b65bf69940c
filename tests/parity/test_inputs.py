"""SDXL's vector and the channels beside x, beside ComfyUI's.

golden/inputs.npz holds what the encode_adm methods of its SDXL and SDXLRefiner, and the concat_cond methods of its
inpainting and instruct-pix2pix models, answer for the random inputs in it.
"""

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.models.families import Sd, Sdxl, SdxlRefiner
from serve_app.recipe.training import ContinuousEdm, Discrete
from serve_app.sampling.forward import Canvas
from tests.parity.figures import Figures
from tests.parity.input_cases import CONCATS, VECTORS

TOLERANCE = 1e-6
VECTOR_TOLERANCE = 1e-5
"""Sines and cosines of angles up to 1024, which processors' libraries round differently: by 4e-6 between two tried."""
FIGURES = Figures("inputs")
CANVAS = Canvas(torch.zeros(1, 4, 64, 96), torch.zeros(1, 4, 64, 96))


def backbone(context_dim=768, family=Sd, **told):
    return family((320, 640), (2, 2), (0, 1), 1, context_dim, **told)


SDXL = backbone(2048, Sdxl, linear=True, vector_dim=2816)
REFINER = backbone(1280, SdxlRefiner, linear=True, vector_dim=2560)
INPAINT = backbone(concat_channels=5)
EDIT = backbone(concat_channels=4)
COSXL_EDIT = backbone(2048, Sdxl, linear=True, vector_dim=2816, concat_channels=4)


@pytest.mark.parametrize(("name", "role", "options"), VECTORS)
def test_the_vector_is_comfyuis(name, role, options):
    family = SDXL if name.startswith("sdxl") else REFINER
    told = family.vector({"pooled_output": FIGURES["pooled"], **options}, CANVAS, role)
    FIGURES.assert_agrees(told, name, VECTOR_TOLERANCE)


@pytest.mark.parametrize(("name", "options", "mask"), CONCATS)
def test_the_channels_concatenated_to_x_match_comfyui(name, options, mask):
    scaled = name == "edit|scaled"
    family = INPAINT if name.startswith("inpaint") else COSXL_EDIT if scaled else EDIT
    given = {option: FIGURES[held] for option, held in options.items()}
    run_mask = None if mask is None else FIGURES[mask]
    trained_as = ContinuousEdm("v_prediction", 80.0, 0.002) if scaled else Discrete()
    fed = family.concat(given, FIGURES["latents"], run_mask, trained_as)
    if options or family is INPAINT:
        FIGURES.assert_agrees(fed, name, TOLERANCE)
    else:
        assert torch.equal(fed, FIGURES[name])


@pytest.mark.parametrize(
    ("options", "given"),
    [({}, "no pooled output"), ({"pooled_output": torch.zeros(1, 768)}, "a pooled output 768 wide")],
)
def test_a_conditioning_of_another_familys_text_encoder_is_refused(options, given):
    with pytest.raises(NodeError, match=f"has {given}; this backbone reads one 1280 wide"):
        SDXL.vector(options, CANVAS, "positive")


def test_a_backbone_that_reads_text_alone_gets_no_other_conditioning():
    plain = backbone()
    assert plain.vector({}, CANVAS, "positive") is None
    assert plain.concat({}, FIGURES["latents"], None, Discrete()) is None
