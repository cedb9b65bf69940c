"""Parts in files of their own, in several files, in diffusers' names; and what a file says of its training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import Sd
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import places
from serve_app.models.kernels.packing import move_to
from serve_app.models.tokenizers.lexicon import Lexicon
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import ContinuousEdm, ContinuousV, Discrete
from serve_app.recipe.weights import Rounded
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents import latent_formats
from serve_app.store.models.catalog import Catalog
from serve_app.values import Texts
from tests.parity import families
from tests.unit.models.sample import cpu_weights, random_tensors

CPU = torch.device("cpu")
PREFIX = "model.diffusion_model."
L, G = "l.safetensors", "g.safetensors"


def bare(tensors):
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def diffusers(name):
    """Return a backbone's tensors under diffusers' names."""
    prefixes = families.UNETS[name].table()
    named = bare(families.unet(name)).items()
    tensors = {place.name: tensor for key, tensor in named for place in places(key, prefixes)}
    return {key.replace("class_embedding", "add_embedding"): tensor for key, tensor in tensors.items()}


def large_clip():
    """Return the larger encoder's tensors, deep enough to be taken for it without a prefix that says so."""
    tensors = families.open_clip("")
    layer = {name: tensor for name, tensor in tensors.items() if ".resblocks.0." in name}
    return tensors | {
        name.replace(".0.", f".{i}.", 1): tensor.clone() for i in range(3, 31) for name, tensor in layer.items()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    files = {
        "checkpoints/sdxl": families.unet("sdxl"),
        "diffusion_models/bare": bare(families.unet("sdxl")),
        "diffusion_models/diffusers": diffusers("sdxl"),
        "diffusers/folder/unet/diffusion_pytorch_model": diffusers("sdxl"),
        "diffusers/folder/text_encoder/model": families.clip_l("text_model."),
        "text_encoders/l": families.clip_l("text_model."),
        "text_encoders/g": large_clip(),
    }
    for name, tensors in files.items():
        path = root / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
    return root


@pytest.fixture(scope="module")
def weights(root):
    return cpu_weights(Catalog(root))


def loaded(root, name):
    return Checkpoint(root / f"{name}.safetensors").load("backbone")


@pytest.mark.parametrize(
    "name",
    ["diffusion_models/bare", "diffusion_models/diffusers", "diffusers/folder/unet/diffusion_pytorch_model"],
)
def test_a_backbone_of_its_own_file_is_that_of_the_whole_checkpoint(root, name):
    architecture, expected = loaded(root, "checkpoints/sdxl")
    ours, network = loaded(root, name)
    assert ours == architecture
    wanted = expected.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in network.state_dict().items())


def encoded(weights, recipe, text="a red fox"):
    with torch.inference_mode():
        (((cond, options),),) = weights.clip(recipe).encode([text])
    return cond, options["pooled_output"]


def test_two_text_encoders_go_together_in_either_order(weights):
    one = encoded(weights, Recipe("clip", "text_encoders", L, extra_files=(G,)))
    other = encoded(weights, Recipe("clip", "text_encoders", G, extra_files=(L,)))
    assert one[0].shape == (1, 77, 128)
    torch.testing.assert_close(one, other)


def test_two_text_encoders_that_do_not_go_together_are_refused_by_name(weights):
    with pytest.raises(ModelFileError, match=r"'l\.safetensors' hold CLIP-L and CLIP-L; .* are CLIP-L and CLIP-G"):
        weights.clip(Recipe("clip", "text_encoders", L, extra_files=(L,)))


def test_a_folder_in_diffusers_layout_gives_its_parts(weights):
    cond, _ = encoded(weights, Recipe("clip", "diffusers", "folder"))
    expected, _ = encoded(weights, Recipe("clip", "text_encoders", L))
    assert torch.equal(cond, expected)
    assert weights.backbone(Recipe("backbone", "diffusers", "folder")).latent_format is latent_formats.SDXL


def test_two_texts_for_an_encoder_that_reads_one_are_refused(weights):
    with pytest.raises(NodeError, match="the text encoder is CLIP-L, which reads one text, not several"):
        encoded(weights, Recipe("clip", "text_encoders", L), Texts(g="a", l="b"))


def test_the_larger_encoder_alone_reads_its_own_text_of_two(weights):
    recipe = Recipe("clip", "text_encoders", G)
    torch.testing.assert_close(encoded(weights, recipe, Texts(g="a fox", l="a hen")), encoded(weights, recipe, "a fox"))


def test_an_embedding_gives_each_encoder_its_own_vectors(tmp_path):
    (tmp_path / "embeddings").mkdir()
    both = {"clip_l": torch.ones(1, 64), "clip_g": torch.full((1, 64), 2.0)}
    save_file(both, tmp_path / "embeddings" / "both.safetensors")
    found = Lexicon(Catalog(tmp_path))
    for key, own in both.items():
        vectors = found.vectors("both", 64, key)
        assert vectors is not None
        assert torch.equal(vectors, own)


VECTORS = torch.arange(128.0).reshape(2, 64)


@pytest.mark.parametrize(
    "held",
    [
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(VECTORS)}, "name": "x", "step": 3},
        {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})},
        {"<x>": VECTORS, "other": torch.ones(1, 32)},
        [{"a": VECTORS[:1]}, {"b": torch.ones(1, 32)}, {"c": VECTORS[1:]}],
    ],
    ids=["web UI", "its first trainer", "diffusers", "a list"],
)
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_an_embedding_may_be_a_pickle_of_tensors(tmp_path, held, suffix):
    (tmp_path / "embeddings").mkdir()
    torch.save(held, tmp_path / "embeddings" / f"style{suffix}")
    vectors = Lexicon(Catalog(tmp_path)).vectors("style", 64)
    assert vectors is not None
    assert torch.equal(vectors, VECTORS)


def test_an_embedding_that_would_run_code_is_an_error_and_runs_none(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (ran,)

    (tmp_path / "embeddings").mkdir()
    torch.save({"*": VECTORS, "more": Evil()}, tmp_path / "embeddings" / "style.pt")
    with pytest.raises(ModelFileError, match=r"'style\.pt' holds more than tensors"):
        Lexicon(Catalog(tmp_path)).vectors("style", 64)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_rounded_weights_are_those_that_eight_bits_can_hold(weights, name):
    recipe = Recipe("backbone", "diffusion_models", "bare.safetensors")
    plain = weights.backbone(recipe)
    rounded = weights.backbone(recipe.with_patch(Rounded(name)))
    assert rounded.key != plain.key
    exact = families.unet("sdxl")[f"{PREFIX}input_blocks.0.0.bias"]
    bias = rounded.network.module.conv_in.bias
    assert torch.equal(bias, exact.to(getattr(torch, name)).float())


SD2 = Sd((64, 128), (1, 1), (1, 1), 1, 64, linear=True)
BIAS = f"{PREFIX}output_blocks.3.1.transformer_blocks.0.norm1.bias"


@pytest.mark.parametrize(("spread", "prediction"), [(0.08, "eps"), (0.1, "v_prediction")])
def test_sd_2_is_taken_to_predict_v_where_its_last_attentions_bias_is_spread(tmp_path, spread, prediction):
    bias = torch.tensor([spread, -spread]).repeat(32)
    save_file(random_tensors(SD2, torch.float32) | {BIAS: bias}, tmp_path / "sd2.safetensors")
    assert Checkpoint(tmp_path / "sd2.safetensors").training() == Discrete(prediction)


@pytest.mark.parametrize(
    ("marks", "training"),
    [
        ({}, Discrete()),
        ({"v_pred": 0.0}, Discrete("v_prediction")),
        ({"v_pred": 0.0, "ztsnr": 0.0}, Discrete("v_prediction", zsnr=True)),
        ({"edm_vpred.sigma_max": 80.0}, ContinuousEdm("v_prediction", 80.0, 0.002)),
        ({"edm_vpred.sigma_max": 80.0, "edm_vpred.sigma_min": 0.5}, ContinuousEdm("v_prediction", 80.0, 0.5)),
    ],
)
def test_sdxl_says_in_extra_tensors_what_it_predicts(tmp_path, marks, training):
    extra = {name: torch.tensor(value) for name, value in marks.items()}
    save_file(families.unet("sdxl") | extra, tmp_path / "sdxl.safetensors")
    assert Checkpoint(tmp_path / "sdxl.safetensors").training() == training


def test_a_file_in_eight_bits_is_read_as_the_numbers_it_holds(tmp_path):
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in families.unet("edit").items()}
    save_file(eight, tmp_path / "fp8.safetensors")
    _, network = Checkpoint(tmp_path / "fp8.safetensors").load("backbone")
    move_to(network, CPU, torch.float32)
    assert torch.equal(network.get_parameter("conv_in.bias"), eight[f"{PREFIX}input_blocks.0.0.bias"].float())


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("core.pixel_embedder.proj.weight", "PixelDiT"),
        ("clf.1.weight", "Stable Cascade"),
        ("patch_embedding_pose.weight", "Wan SCAIL"),
    ],
)
def test_a_family_that_is_not_supported_is_named(tmp_path, name, family):
    save_file({f"{PREFIX}{name}": torch.zeros(1)}, tmp_path / "other.safetensors")
    looks = rf"it looks like a diffusion network of {family}"
    found = rf"holds no diffusion network of a known layout \({looks}\); supported are .*Stable Diffusion"
    with pytest.raises(ModelFileError, match=found):
        Checkpoint(tmp_path / "other.safetensors").load("backbone")


def test_text_of_another_familys_encoder_is_refused_with_both_widths(weights):
    backbone = weights.backbone(Recipe("backbone", "checkpoints", "sdxl.safetensors"))
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.raises(NodeError, match="the conditioning is 768 wide, and this backbone reads text 128 wide"):
        backbone.inputs(torch.zeros(1, 77, 768), {}, "positive", Canvas(latents, latents))


def test_playground_is_refused_by_name(tmp_path):
    marks = {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    save_file(families.unet("sdxl") | marks, tmp_path / "p.safetensors")
    with pytest.raises(ModelFileError, match=r"'p\.safetensors' is Playground v2\.5"):
        Checkpoint(tmp_path / "p.safetensors").training()


def test_a_recipes_training_goes_before_the_files_and_shares_its_weights(weights):
    recipe = Recipe("backbone", "checkpoints", "sdxl.safetensors")
    patched = recipe.with_patch(Discrete("lcm")).with_patch(ContinuousV(500.0, 0.03))
    assert weights.levels(recipe).sigma_max == pytest.approx(14.6146, abs=1e-3)
    assert weights.levels(patched).sigma_max == pytest.approx(500, rel=1e-5)
    plain, other = weights.backbone(recipe), weights.backbone(patched)
    assert plain.key == other.key
    assert other.levels.sigma_max == pytest.approx(500, rel=1e-5)
