"""TAESD beside ComfyUI's: golden/taesd.npz holds what it makes of the files of `taesd_cases`."""

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ModelFileError
from serve_app.models.families import Taesd
from serve_app.models.families.autoencoders.taesd import TinyVae
from serve_app.nodes.loaders.models import vae_loader
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents import latent_formats as formats
from serve_app.store.models.catalog import Catalog
from tests.parity.dit_cases import noise, weights
from tests.parity.figures import Figures
from tests.parity.mini15_cases import value
from tests.parity.taesd_cases import IMAGES, LATENTS, drawn, write
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("taesd")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write(root)
    return Catalog(root)


def test_a_taesd_decodes_and_encodes_as_comfyuis(catalog):
    recipe = vae_loader("taesdxl")
    vae = cpu_weights(catalog).vae(recipe)
    with torch.inference_mode():
        FIGURES.assert_agrees(vae.decode(value(LATENTS)), "decoded", 1e-5)
        FIGURES.assert_agrees(vae.encode(value(IMAGES)), "encoded", 1e-5)


@pytest.mark.parametrize(("name", "latents"), [("taesd3", formats.SD3), ("taef1", formats.FLUX)])
def test_one_of_sixteen_channels_is_found_by_its_name(tmp_path, name, latents):
    (tmp_path / "vae_approx").mkdir()
    tensors = {n: drawn(n, t.shape) for n, t in Taesd(latents).empty().state_dict().items()}
    for half in ("encoder", "decoder"):
        own = {n.removeprefix(f"{half}."): t for n, t in tensors.items() if n.startswith(half)}
        save_file(own, tmp_path / "vae_approx" / f"{name}_{half}.safetensors")
    catalog = Catalog(tmp_path)
    assert catalog.choices("vae") == [name, "pixel_space"]
    recipe = vae_loader(name)
    vae = cpu_weights(catalog).vae(recipe)
    assert vae.family == Taesd(latents)
    with torch.inference_mode():
        images = vae.decode(torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0)))
        assert images.shape == (1, 16, 24, 3)
        assert vae.encode(images).shape == (1, 16, 2, 3)


@torch.inference_mode()
def test_flux_2s_is_comfyuis(tmp_path):
    (tmp_path / "vae_approx").mkdir()
    tensors = weights({name: t.shape for name, t in Taesd(formats.FLUX2).empty().state_dict().items()})
    for half in ("encoder", "decoder"):
        own = {n.removeprefix(f"{half}."): t for n, t in tensors.items() if n.startswith(half)}
        save_file(own, tmp_path / "vae_approx" / f"taef2_{half}.safetensors")
    recipe = vae_loader("taef2")
    vae = cpu_weights(Catalog(tmp_path)).vae(recipe)
    assert vae.family == Taesd(formats.FLUX2)
    figures = Figures("taef2")
    network = TinyVae(formats.FLUX2)
    network.load_state_dict(tensors)
    figures.assert_agrees(network.decode(noise("taef2 latents", (2, 128, 2, 3))), "decoded", 1e-5)
    figures.assert_agrees(network.encode(noise("taef2 pixels", (2, 3, 32, 16))), "encoded", 1e-5)
    assert vae.decode(noise("taef2 latents", (2, 128, 2, 3))).shape == (2, 32, 48, 3)


def test_only_families_with_a_known_scale_are_taken(catalog):
    recipe = Recipe("vae", "vae_approx", "other_encoder.safetensors", extra_files=("other_decoder.safetensors",))
    with pytest.raises(ModelFileError, match="is no TAESD encoder for taesd or taesdxl or taesd3 or taef1 or taef2"):
        cpu_weights(catalog).vae(recipe)
