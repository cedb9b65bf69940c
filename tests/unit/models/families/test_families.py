"""Probing and naming, against the key lists of the published files (shapes only, no weights)."""

import json
from pathlib import Path

import pytest

from serve_app.errors import ModelFileError
from serve_app.models.families import AutoencoderKL, ClipText, Sd, Sdxl, SdxlRefiner, Unclip
from serve_app.models.families.family import BackboneFamily, VaeFamily
from serve_app.models.families.text_family import TextFamily
from serve_app.models.files.layout import translate
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.recipe import Part
from tests.unit.models.sample import SAMPLE, random_tensors

KEYS = json.loads((Path(__file__).parents[3] / "parity" / "checkpoint_keys.json").read_text())


def published(name, strip=""):
    return Tensors({key.removeprefix(strip): tuple(shape) for key, shape in KEYS[name].items()}, f"'{name}'")


def changed(name, **shapes):
    tensors = {key: tuple(shape) for key, shape in KEYS[name].items()}
    return Tensors(tensors | shapes, "'a.safetensors'")


SD15 = Sd((320, 640, 1280, 1280), (2, 2, 2, 2), (1, 1, 1, 0), 1, 768)
MINI15 = Sd((320, 640), (1, 1), (1, 1), 1, 768)
KL_F8 = AutoencoderKL((128, 256, 512, 512), 2, 4, 3, True)
SDXL = Sdxl((320, 640, 1280), (2, 2, 2), (0, 2, 10), 10, 2048, linear=True, vector_dim=2816)
CLIP_L = ClipText(12, 768, 3072, 77)


@pytest.mark.parametrize(
    ("name", "strip", "expected"),
    [
        ("unet_sd15", "", SD15),
        ("unet_mini", "", MINI15),
        ("unet_sdxl", "", SDXL),
        ("vae", "", KL_F8),
        ("clip_l", "transformer.text_model.", CLIP_L),
    ],
)
def test_an_architecture_is_read_off_the_published_names_and_shapes(name, strip, expected):
    assert type(expected).probe(published(name, strip)) == expected


@pytest.mark.parametrize(
    ("name", "strip", "family"),
    [
        ("unet_sd15", "", SD15),
        ("unet_mini", "", MINI15),
        ("unet_sdxl", "", SDXL),
        ("vae", "", KL_F8),
        ("clip_l", "transformer.text_model.", CLIP_L),
    ],
)
def test_every_published_tensor_has_one_place_of_its_size_in_the_network(name, strip, family):
    prefixes = family.table()
    places = {translate(key, prefixes): shape for key, shape in published(name, strip).shapes.items()}
    wanted = {key: tuple(parameter.shape) for key, parameter in family.empty().state_dict().items()}
    assert {key: (*shape, 1, 1)[: len(places[key])] for key, shape in wanted.items()} == places


def test_an_empty_network_takes_no_memory():
    assert all(parameter.is_meta for parameter in SD15.empty().parameters())


PARTS: dict[type, Part] = {BackboneFamily: "backbone", VaeFamily: "vae", TextFamily: "clip"}
UNUSUAL = [
    Sd((64,), (1,), (0,), 1, 32),
    Sd((32, 64, 96), (1, 2, 1), (0, 2, 1), 1, 48),
    Sd((32, 32), (3, 1), (1, 0), 3, 32),
    Sdxl((64, 128), (1, 1), (0, 2), 2, 64, linear=True, concat_channels=5, vector_dim=1536 + 64),
    SdxlRefiner((64, 128), (1, 1), (1, 0), 2, 64, linear=True, concat_channels=4, vector_dim=1280 + 64),
    AutoencoderKL((32, 64), 1, 4, 3, False),
    AutoencoderKL((32, 32, 64), 3, 8, 3, True),
    ClipText(3, 128, 96, 40),
    *SAMPLE,
]


@pytest.mark.parametrize("family", UNUSUAL, ids=str)
def test_any_width_and_depth_of_the_layout_is_read_back(family):
    [part] = (part for kind, part in PARTS.items() if isinstance(family, kind))
    shapes = {name: tuple(t.shape) for name, t in random_tensors(family).items()}
    assert find_part(part, [Tensors(shapes, "'unusual'")]).family == family


def test_linear_projections_around_attention_mean_heads_sixty_four_wide():
    linear = changed("unet_mini", **{"middle_block.1.proj_in.weight": (640, 640)})
    assert Sd.probe(linear).heads == (5, 10)
    assert MINI15.heads == (8, 8)


@pytest.mark.parametrize(("channels", "beside"), [(9, 5), (8, 4)])
def test_input_channels_beyond_the_latents_are_concatenated_to_x(channels, beside):
    found = Sd.probe(changed("unet_mini", **{"input_blocks.0.0.weight": (320, channels, 3, 3)}))
    assert found.concat_channels == beside


def test_a_backbone_of_unknown_input_channels_is_refused():
    with pytest.raises(ModelFileError, match="5 input channels for 4 latent ones"):
        Sd.probe(changed("unet_mini", **{"input_blocks.0.0.weight": (320, 5, 3, 3)}))


def test_the_width_of_the_vector_distinguishes_sdxl_its_refiner_and_unclip():
    def told(context_dim, width):
        attention = "transformer_blocks.0.attn2.to_k.weight"
        shapes = {f"middle_block.1.{attention}": (640, context_dim), "label_emb.0.0.weight": (1280, width)}
        return find_part("backbone", [changed("unet_mini", **shapes)]).family

    assert (type(told(2048, 2816)), type(told(1280, 2560))) == (Sdxl, SdxlRefiner)
    assert (told(2048, 2816).sizes, told(1280, 2560).sizes) == (6, 5)
    assert (type(told(1024, 1536)), type(told(1024, 2048))) == (Unclip, Unclip)
    with pytest.raises(ModelFileError, match="a vector input 768 wide, as video models are"):
        told(1024, 768)


def test_text_encoders_are_distinguished_by_their_depth_as_by_comfyui():
    def kind(layers):
        names = {f"text_model.encoder.layers.{i}.mlp.fc1.weight": (256, 64) for i in range(layers)}
        names |= {"text_model.embeddings.token_embedding.weight": (49408, 64)}
        names |= {"text_model.embeddings.position_embedding.weight": (77, 64)}
        return ClipText.probe(Tensors(names, "'a'")).kind

    assert [kind(layers) for layers in (12, 22, 23, 24, 30, 31, 32)] == ["l", "l", "h", "h", "h", "g", "g"]


def test_a_missing_tensor_is_named():
    with pytest.raises(
        ModelFileError, match=r"'a' holds no tensor 'input_blocks\.0\.0\.weight' \(it looks like .* of Flux\.1\)"
    ):
        Sd.probe(Tensors({"vector_in.in_layer.weight": (9, 3)}, "'a'"))


def test_a_text_encoder_of_another_vocabulary_is_refused():
    name = "embeddings.token_embedding.weight"
    with pytest.raises(ModelFileError, match="30000 tokens, not CLIP's 49408"):
        ClipText.probe(Tensors({name: (30000, 768)}, "'a'"))
