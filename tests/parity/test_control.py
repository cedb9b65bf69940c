"""ControlNets, control-LoRAs and T2I-Adapters of every layout against ComfyUI: relative error at most 1e-5.

The figures are what ComfyUI's `ControlNet.get_control`, `ControlLora` and `T2IAdapter` give for these files on two rows
at one level (its CPU, float32): what they add inside the backbone, one after another, every seventh number; and under
"|eps" what its UNetModel answers with it.
"""

import pytest
import torch

from serve_app.models.control.control import Controlled, activated
from serve_app.models.control.controlnet_file import ControlFile
from serve_app.models.families.unet.unet import UnetCall, arguments, residuals
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.recipe.controls import HintKind
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.denoiser import EPS
from serve_app.sampling.schedules.levels import TableLevels
from serve_app.values import Control
from tests.parity import control_files
from tests.parity.figures import Figures

FIGURES = Figures("control")
LEVELS = TableLevels()
TOLERANCE = 1e-5
ADAPTERS = ("t2i_full", "t2i_conv", "t2i_light", "t2i_xl")
CPU, FP32 = torch.device("cpu"), torch.float32
H1, H2 = control_files.image("h1", 1, 50, 70, 3), control_files.image("h2", 2, 64, 40, 3)


@pytest.fixture(scope="module", autouse=True)
def _inference():
    with torch.inference_mode():
        yield


class Bench:
    """Networks of these files, loaded once, and one evaluation of them."""

    def __init__(self, folder):
        self._folder = folder
        self._backbones, self._nets = {}, {}

    def backbone(self, family):
        if family not in self._backbones:
            path = control_files.write(self._folder, f"unet_{family}")
            architecture, network = Checkpoint(path).load("backbone")
            self._backbones[family] = architecture, network.float()
        return self._backbones[family]

    def net(self, name, family, stem=None):
        path = control_files.write(self._folder, name)
        path = path.rename(path.with_stem(stem)) if stem else path
        base = [Checkpoint(control_files.write(self._folder, f"unet_{family}"))]
        network = ControlFile(Checkpoint(path), base).load(CPU, FP32)
        return network.control_net(path.name, path.name)

    def added(self, family, nets, control, sigma, height, width, rows=2, architecture=None):
        """Return the arguments for the backbone, and the rest of what it is told."""
        told = control_files.told(family, sigma, height, width, rows)
        x, context, vector = told["x"], told["context"], told.get("vector")
        level = torch.full((rows,), sigma)
        architecture = architecture or self.backbone(family)[0]
        ((_, options),) = activated({"positive": [(context, {"control": control})]}, nets, architecture, LEVELS)[
            "positive"
        ]
        call = UnetCall(x * EPS.scaling(sigma).c_in, LEVELS.timestep(level), context, vector=vector)
        return arguments(residuals([Controlled(rows, sigma, options["control"])], call)), call

    def eps(self, family, arguments, call):
        network = self.backbone(family)[1]
        told = call.x, call.timestep, call.context
        return network(*told, class_labels=call.vector, return_dict=False, **arguments)[0]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("control"))


def flat(arguments, rows=2):
    added = list(arguments.get("down_intrablock_additional_residuals", ()))
    added += arguments.get("down_block_additional_residuals", ())
    if "mid_block_additional_residual" in arguments:
        added.append(arguments["mid_block_additional_residual"])
    return torch.cat([tensor[:rows].flatten() for tensor in added])[::7]


def recipe(name, *patches):
    return Recipe("controlnet", "controlnet", name, patches)


def agrees(bench, figure, family, control, nets, *, sigma=3.2, height=8, width=8, rows=2):
    arguments, call = bench.added(family, nets, control, sigma, height, width)
    FIGURES.assert_agrees(flat(arguments, rows), figure, TOLERANCE)
    FIGURES.assert_agrees(bench.eps(family, arguments, call), f"{figure}|eps", TOLERANCE)


@pytest.mark.parametrize("layout", ["", ".pth", ".diffusers"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_controlnet_of_any_layout_steers_as_in_comfyui(bench, family, layout):
    control = Control(recipe("net"), H1, 0.7)
    agrees(bench, family, family, control, {recipe("net"): bench.net(family + layout, family)})


def test_a_control_lora_changes_the_weights_of_its_backbone(bench):
    control = Control(recipe("net"), H1, 0.7)
    agrees(bench, "control_lora", "sdxl", control, {recipe("net"): bench.net("control_lora", "sdxl")})


def test_each_row_reads_a_hint_of_its_own(bench):
    nets = {recipe("net"): bench.net("sd1", "sd1")}
    agrees(bench, "sd1|two hints", "sd1", Control(recipe("net"), H2, 0.7), nets, height=8, width=6)


def test_a_shuffle_controlnet_says_the_same_everywhere(bench):
    nets = {recipe("net"): bench.net("sd1", "sd1", stem="control_sd1_shuffle")}
    agrees(bench, "sd1|shuffle", "sd1", Control(recipe("net"), H1, 0.7), nets)


@pytest.mark.parametrize("kind", [None, 0, 2])
def test_a_union_controlnet_is_given_the_kind_of_hint(bench, kind):
    net = bench.net("union.diffusers", "sdxl")
    named = recipe("net", HintKind(1), HintKind(kind))
    control = Control(named, H1, 1.0)
    arguments, _ = bench.added("union", {named: net}, control, 3.2, 4, 4, architecture=net.network.family)
    FIGURES.assert_agrees(flat(arguments), f"union|{kind}", TOLERANCE)


@pytest.mark.parametrize("size", ["", "|odd"])
@pytest.mark.parametrize("file", [*ADAPTERS, *(f"{name}.diffusers" for name in ADAPTERS if name != "t2i_light")])
def test_an_adapter_of_any_layout_steers_as_in_comfyui(bench, file, size):
    name = file.removesuffix(".diffusers")
    family = "sdxl" if name == "t2i_xl" else "sd1"
    height, width = (9, 7) if size else (8, 8)
    nets = {recipe("net"): bench.net(file, family)}
    # One hint has one set of features there, which torch then adds to every row.
    control = Control(recipe("net"), H1, 0.7)
    agrees(bench, name + size, family, control, nets, height=height, width=width, rows=1)


@pytest.mark.parametrize("sigma", [12.0, 3.2, 0.5])
def test_controls_of_a_chain_add_up_while_they_act(bench, sigma):
    nets = {recipe("net"): bench.net("sd1", "sd1"), recipe("t2i"): bench.net("t2i_full", "sd1")}
    first = Control(recipe("net"), H1, 0.7, 0.0, 0.5)
    second = Control(recipe("t2i"), H2, 0.5, previous=first)
    agrees(bench, f"chain|{sigma}", "sd1", Control(recipe("net"), H2, 0.4, 0.3, 1.0, second), nets, sigma=sigma)
