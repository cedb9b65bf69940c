"""Tiny autoencoders of videos beside ComfyUI's: golden/taehv.npz holds what it makes of the files of `taehv_cases`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ModelFileError
from serve_app.nodes.loaders.models import vae_loader
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from tests.parity.figures import MODULE_TOLERANCE, Figures, thinned
from tests.parity.taehv_cases import LAYOUTS, tensors
from tests.parity.taehv_files import FAMILIES, write
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("taehv")


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_decodes_and_encodes_as_comfyuis(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    layout, catalog = LAYOUTS[name], Catalog(tmp_path)
    assert catalog.choices("vae") == [f"{name}.safetensors", "pixel_space"]
    vae = cpu_weights(catalog).vae(vae_loader(f"{name}.safetensors"))
    assert vae.family == FAMILIES[name]
    assert type(vae.family) is type(FAMILIES[name])
    assert vae.factor == layout.factor
    for frames in (1, layout.latent_frames):
        latents = layout.latents(frames)
        images = vae.decode(latents)
        shape = FIGURES[f"{name} decoded {frames} shape"].tolist()
        assert list(images.shape) == (shape if frames > 1 else [2, 1, *shape[2:]])
        figure = f"{name} decoded {frames}"
        FIGURES.assert_agrees(torch.from_numpy(thinned(images.numpy())), figure, MODULE_TOLERANCE)
        first = (images[0, 0] * 255).to(torch.uint8)
        assert (vae.picture(latents).int() - first.int()).abs().max() <= 1
    for count in (1, layout.images):
        made = vae.encode(layout.pixels(count))
        assert list(made.shape) == FIGURES[f"{name} encoded {count} shape"].tolist()
        figure = f"{name} encoded {count}"
        FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), figure, MODULE_TOLERANCE)


def test_the_published_networks_have_the_size_of_their_files() -> None:
    """TAEHV's is 22.6 MB in sixteen bits."""
    count = sum(p.numel() for p in FAMILIES["taehv"].empty().parameters())
    assert count * 2 / 10**6 == pytest.approx(22.6, abs=0.1)


def test_a_file_that_folds_otherwise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    shapes = {key: t.shape for key, t in FAMILIES["lighttaew2_1"].empty().state_dict().items()}
    odd = tensors(LAYOUTS["lighttaew2_1"], shapes) | {"decoder.22.bias": torch.zeros(7)}
    save_file(odd, tmp_path / "vae" / "odd.safetensors")
    with pytest.raises(ModelFileError, match="tiny video autoencoder with 7 output channels"):
        cpu_weights(Catalog(tmp_path)).vae(Recipe("vae", "vae", "odd.safetensors"))
