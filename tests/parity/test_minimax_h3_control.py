"""The ControlNet of MiniMax H3 against ComfyUI's module, with the same weights, in float32; its hints by hand."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.control.dit_control_file import open_model_patch
from serve_app.models.control.minimax_h3_control import MiniMaxH3ControlNetwork
from serve_app.models.control.model_control import ActiveModelControl, ControlImages, ModelPatch
from serve_app.models.families import MiniMaxH3, Wan
from serve_app.models.families.autoencoders.minimax_h3 import PIXEL_MEANS
from serve_app.models.families.family import Rows
from serve_app.models.families.video.minimax_h3 import video_rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.nested_tensor import NestedTensor
from serve_app.recipe.training import AudioVideoFlow
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents.layout import LatentLayout
from tests.parity import minimax_h3_cases as cases
from tests.parity import minimax_h3_control_cases as controls
from tests.parity.figures import Figures, thinned
from tests.parity.test_minimax_h3 import rotated_int8

FIGURES = Figures("minimax_h3_control")
CPU = torch.device("cpu")
IMAGES = 5
"""Of a video of two latent frames."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with torch.inference_mode():
        yield tmp_path_factory.mktemp("control")
    backbone.cache_clear()
    patch.cache_clear()


@lru_cache
def backbone(folder: Path, name: str) -> tuple[MiniMaxH3, Any]:
    save_file(cases.file(name), path := folder / f"{name}.safetensors")
    family, network = Checkpoint(path).load("backbone")
    assert isinstance(family, MiniMaxH3)
    return family, network


@lru_cache
def patch(folder: Path, name: str) -> ModelPatch:
    save_file(controls.file(name), path := folder / f"{name}-control.safetensors", controls.SAID[name])
    return ModelPatch(path.name, open_model_patch(Checkpoint(path)).load(CPU, torch.float32))


def network(folder: Path, name: str) -> MiniMaxH3ControlNetwork:
    made = patch(folder, name).network
    assert isinstance(made, MiniMaxH3ControlNetwork)
    return made


class Read(ActiveModelControl):
    """A control whose hint is encoded already."""

    hint: Tensor

    def read(self, *size: int) -> Tensor:
        of: Any = self.patch.network
        assert tuple(size) == self.hint.shape[2:]
        rows = video_rows(self.hint)
        embedded: Tensor = of.control_proj_in(pad(rows, (0, of.control_proj_in.in_features - rows.shape[2])))
        return embedded


def rows_of(folder: Path, one: controls.Controlled, *, controlled: bool = True) -> tuple[Rows, LatentLayout]:
    case = controls.CASE_OF[one.case]
    a, family = cases.asked(case), backbone(folder, case.net)[0]
    samples = NestedTensor([a.video, a.sound])
    layout = LatentLayout.of(samples)
    x = layout.pack(samples)
    mask = None if a.mask is None else layout.pack(NestedTensor(a.mask))
    trained = AudioVideoFlow(case.shifts[0], sound_shift=case.shifts[1])
    inputs = family.inputs(a.text, a.options, "positive", Canvas(x, x, mask, cases.SEED, layout), CPU, trained)
    control = Read(patch(folder, case.net), one.strength, ControlImages(None))
    object.__setattr__(control, "hint", controls.hint(one))
    active = (control,) if controlled else ()
    level = torch.tensor([case.sigma * 1000])
    return Rows(x, case.sigma, level, inputs, controls=active, training=trained), layout


@pytest.mark.parametrize("one", controls.CONTROLLED, ids=lambda one: one.name)
def test_velocities_under_a_controlnet_are_comfyuis(folder: Path, one: controls.Controlled) -> None:
    family, module = backbone(folder, controls.CASE_OF[one.case].net)
    rows, layout = rows_of(folder, one)
    (velocity,) = family.forward(module, [rows])
    for part, name in zip(layout.parts(velocity), ("video", "sound"), strict=True):
        ours = torch.from_numpy(thinned(part.contiguous().numpy()))
        FIGURES.assert_agrees(ours, f"{one.name}|{name}", 1e-5)


def test_rows_under_a_controlnet_and_without_share_a_forward_and_change_no_other(folder: Path) -> None:
    one = next(one for one in controls.CONTROLLED if one.case == "frames and a mask")
    family, module = backbone(folder, "whole")
    rows = [rows_of(folder, one, controlled=controlled)[0] for controlled in (False, True, False)]
    apart = [family.forward(module, [row])[0] for row in rows]
    for ours, alone in zip(family.forward(module, rows), apart, strict=True):
        assert (ours - alone).norm() <= 1e-5 * alone.norm()
    assert (apart[0] - apart[1]).norm() > 1e-3 * apart[0].norm()


class Pixels:
    """A stand-in for the video autoencoder: of 24 equal channels, a cell is its pixels' first colour."""

    factor = 2

    def encode(self, images: Tensor) -> Tensor:
        """Refuse images that are no video."""
        raise NotImplementedError

    def by_latent_frames(self, work: str, images: Tensor) -> Generator[None, None, Tensor]:
        """Return latents (1,24,2,h,w) of 5 images."""
        assert len(images) == IMAGES
        yield
        cells = images[:: IMAGES - 1, :: self.factor, :: self.factor, 0]
        return cells.expand(1, 24, *cells.shape)


@pytest.mark.parametrize(("grey", "hole"), [(False, 0.0), (True, PIXEL_MEANS[0])])
def test_a_hint_has_the_video_the_mask_and_what_is_kept(folder: Path, grey: bool, hole: float) -> None:
    net = network(folder, "pruned")
    object.__setattr__(net.family, "grey", grey)
    eye = torch.eye(net.control_proj_in.in_features)
    reading = torch.nn.Linear(len(eye), len(eye))
    reading.load_state_dict({"weight": eye, "bias": torch.zeros(len(eye))})
    net.control_proj_in, before = reading, net.control_proj_in
    video, source = torch.full((3, 4, 4, 3), 0.25), torch.full((9, 4, 4, 3), 0.75)
    mask = torch.zeros(1, 4, 4)
    mask[..., :2] = 0.6
    try:
        cells = net.read(ControlImages(Pixels(), video, source, mask), (2, 2, 2)).view(2, 49, 2, 2)
        alone = net.read(ControlImages(Pixels(), mask=mask), (2, 2, 2)).view(2, 49, 2, 2)
    finally:
        net.control_proj_in = before
        object.__setattr__(net.family, "grey", False)
    kept = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert (cells[:, :24] == 0.25).all()
    assert torch.equal(cells[:, 24], kept.expand(2, 2, 2))
    torch.testing.assert_close(cells[:, 25:], (0.75 * kept + hole * (1 - kept)).expand(2, 24, 2, 2))
    assert not alone[:, :24].any()
    torch.testing.assert_close(alone[:, 25:], (hole * (1 - kept)).expand(2, 24, 2, 2))


def test_a_controlnet_is_refused_for_another_model_and_without_a_video(folder: Path) -> None:
    family, net = backbone(folder, "pruned")[0], network(folder, "pruned")
    shown = ControlImages(Pixels(), torch.zeros(1, 4, 4, 3))
    net.check("a", shown, family)
    with pytest.raises(NodeError, match="one of them is pruned and the other whole"):
        net.check("a", shown, backbone(folder, "whole")[0])
    with pytest.raises(NodeError, match="made for MiniMax H3, and the model is Wan"):
        net.check("a", shown, object.__new__(Wan))
    with pytest.raises(NodeError, match="follows a video: connect one, or a mask"):
        net.check("a", ControlImages(Pixels()), family)
    object.__setattr__(net.family, "after", (50,))
    try:
        with pytest.raises(NodeError, match="acts after block 50, and the model has 2 blocks"):
            net.check("a", shown, family)
    finally:
        object.__setattr__(net.family, "after", (0,))


def test_a_video_of_another_length_than_its_latents_is_refused(folder: Path) -> None:
    with pytest.raises(NodeError, match=r"becomes latents \(2, 2, 2\), and the video to make has \(3, 2, 2\)"):
        network(folder, "pruned").read(ControlImages(Pixels(), torch.zeros(1, 4, 4, 3)), (3, 2, 2))


@pytest.mark.parametrize("said", ["[0]", "[1, 0]", "[0, 0]", "0, 1", '["0", "1"]', "[1, 2]"])
def test_a_file_that_says_nonsense_of_where_it_acts_is_refused(said: str, tmp_path: Path) -> None:
    save_file(controls.file("whole"), path := tmp_path / "a.safetensors", {"control_blocks_places": said})
    with pytest.raises(ModelFileError, match="has 2 blocks, and says in 'control_blocks_places'"):
        open_model_patch(Checkpoint(path))


def test_blocks_are_spread_over_the_published_model_where_a_file_does_not_say(tmp_path: Path) -> None:
    save_file(controls.file("whole"), path := tmp_path / "a.safetensors")
    made = open_model_patch(Checkpoint(path)).load(CPU, torch.float32)
    assert made.family.after == (0, 25)


def test_a_file_in_int8_with_rotated_inputs_computes_about_what_the_whole_does(folder: Path) -> None:
    layers = ("control_blocks.0.attn.qkv_proj", "control_blocks.0.mlp.fc1", "control_blocks.0.after_proj")
    written = rotated_int8(controls.file("pruned"), layers)
    save_file(written, path := folder / "int8.safetensors", controls.SAID["pruned"])
    ours = open_model_patch(Checkpoint(path)).load(CPU, torch.float32).state_dict()
    stored = Checkpoint(path)
    for name, tensor in ours.items():
        if "attn" not in name and "ff" not in name and not name.endswith("after_proj.weight"):
            assert torch.equal(tensor, network(folder, "pruned").state_dict()[name]), name
    assert torch.equal(ours["control_blocks.0.after_proj.weight"], stored.tensor("control_blocks.0.after_proj.weight"))
    assert json.loads(bytes(written[f"{layers[0]}.comfy_quant"].tolist()))["convrot"]
