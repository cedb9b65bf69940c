"""Several ranks draw what one process draws: processes over gloo, with every family of transformers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError, RankLostError, UnavailableError
from serve_app.models.families import (
    BACKBONES,
    Flux,
    Flux3,
    QwenImage,
    Unet,
    Wan,
    Wan22,
    WanAnimate2,
    WanScail,
    WanVae,
)
from serve_app.models.families.dit.anima import IDS
from serve_app.models.families.dit.hidream import STATES
from serve_app.models.families.family import BackboneFamily
from serve_app.models.families.video.seedvr2 import CONDITION
from serve_app.models.ranks.leader import Leader
from serve_app.models.weights.weights import Weights
from serve_app.nested_tensor import NestedTensor
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.sampling.request import SamplingRequest
from serve_app.values import ClipVisionOutput, Conditioning, Control, Tiling
from tests.parity import (
    ace_step_cases,
    dit_control_cases,
    ltx_cases,
    minimax_h3_cases,
    minimax_music_cases,
    qwen21_cases,
    seedvr2_cases,
    stable_audio3_cases,
    wan_cases,
    yue2_cases,
)
from tests.parity.dit_cases import LLAMA_STATES, POOLED_WIDTH, TEXT_WIDTH, noise, weights
from tests.parity.figures import GOLDEN
from tests.unit.engine.mixes import relative_error, request
from tests.unit.models.ranks.processes import drawn, in_engine, run_ranks, weights_of
from tests.unit.models.sample import by_own_names, random_tensors, write_sample_checkpoint

SIZES = (pytest.param(4, marks=pytest.mark.long), 3, 2)
"""Numbers of ranks. Four share tokens only, as three do."""
SEEN = 40
SMALL: Mapping[str, BackboneFamily] = {
    "flux4": Flux(128, 4, 2, 2, TEXT_WIDTH, POOLED_WIDTH),
    "qwen4": QwenImage(128, 4, 2, TEXT_WIDTH, method="index_timestep_zero"),
    "wan4": Wan(512, 2, 96, TEXT_WIDTH, 36, SEEN),
    "wan22": Wan22(256, 2, 96, TEXT_WIDTH, 48),
    "vace": Wan(256, 2, 96, TEXT_WIDTH, vace=1, vace_channels=96),
    "flux3": Flux3(64, 2, 2, 2, TEXT_WIDTH, flow_map=True),
    "qwen21": qwen21_cases.BACKBONE,
    "scail": WanScail(256, 2, 96, TEXT_WIDTH, 20),
    "animate2": WanAnimate2(256, 2, 96, TEXT_WIDTH, 36, SEEN),
}
"""Networks of which ComfyUI's or the authors' names are not needed; those with a 4 have four heads."""
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())
CONTROLLED = json.loads((GOLDEN / "dit_controlled_keys.json").read_text())
LTX = json.loads((GOLDEN / "ltx_keys.json").read_text())
NETWORKS = json.loads((GOLDEN / "networks_keys.json").read_text())
OF_NETWORKS = (
    *("longcat_image", "hunyuan_video", "hunyuan_video15", "mage_flow", "boogu", "kandinsky5", "kandinsky5_image"),
    *("ovis_image", "ltx_video", "chroma_radiance_linear", "chroma_radiance_conv"),
)
SOUNDS = ("stable_audio3", "ace_step", "minimax_music", "yue2")
WITHOUT_TOKENS = ("seedvr2", "animate2")
"""Transformers of which rows alone are divided."""
CHECKPOINTS = ("sample", "stable_audio3", "yue2", *ltx_cases.NETS)
TRANSFORMERS = (
    *("flux", "qwen", "flux2", "chroma", "krea2", "zimage", "lumina2", "sd35", "omnigen2", "anima", "hidream"),
    *("auraflow", "pixart", "ernie_image", "ideogram4", "flux3", "qwen21", "scail", *OF_NETWORKS, *SOUNDS),
)
BY_ROWS = (*WITHOUT_TOKENS, "sample")
NETS = (*TRANSFORMERS, *BY_ROWS)
"""Families of which rows are divided. Tokens of the transformers are sharded too; most have two heads."""
AXES = {
    "qwen4": (16, 1),
    "wan4": (16, 3),
    "wan22": (48, 3),
    "vace": (16, 3),
    "sample": (4,),
    "flux2": (128,),
    "krea2": (16, 1),
    "qwen": (16, 1),
    "anima": (16, 1),
    "auraflow": (4,),
    "pixart": (4,),
    "ernie_image": (128,),
    "ideogram4": (128,),
    "flux3": (128,),
    "qwen21": (64,),
    "scail": (16, 3),
    "mage_flow": (128,),
    "hunyuan_video": (16, 3),
    "hunyuan_video15": (32, 3),
    "kandinsky5": (16, 3),
    "ltx_video": (128, 3),
    "animate2": (16, 3),
    "seedvr2": (16, 3),
    "chroma_radiance_linear": (3,),
    "chroma_radiance_conv": (3,),
    "stable_audio3": (256,),
    "ace_step": (64,),
    "minimax_music": (128,),
    "yue2": (64,),
}
CELLS: Mapping[str, tuple[int, ...]] = {
    "sample": (8, 8),
    "chroma_radiance_linear": (14, 20),
    "chroma_radiance_conv": (32, 48),
    "stable_audio3": (stable_audio3_cases.LENGTH,),
    "ace_step": (ace_step_cases.LENGTH,),
    "minimax_music": (minimax_music_cases.LENGTH,),
    "yue2": (yue2_cases.CHUNKS[-1][1],),
}
"""Sizes of latents of nets where they are not six rows of ten."""
TEXTS: Mapping[str, int] = {
    **ltx_cases.TEXTS,
    "sample": 64,
    "qwen21": 32,
    "stable_audio3": stable_audio3_cases.TEXT,
    "ace_step": ace_step_cases.TEXT,
    "minimax_music": 8 * minimax_music_cases.STATE,
    "yue2": yue2_cases.KEPT,
    "seedvr2": seedvr2_cases.TEXT,
}
"""Widths of texts that are not as wide as most."""
LENGTHS: Mapping[str, int] = {"minimax_music": minimax_music_cases.FRAMES, "yue2": yue2_cases.CHUNKS[-1][3]}
"""Tokens of texts that are as long as a song."""
CONTROLNET = Recipe("controlnet", "controlnet", "flux_xlabs.safetensors")


def write_models(models: Path) -> None:
    """Write small files of each family, a LoRA and a ControlNet."""
    for folder in ("checkpoints", "diffusion_models", "loras", "controlnet", "vae"):
        (models / folder).mkdir(parents=True)
    write_sample_checkpoint(models / "checkpoints" / "sample.safetensors")
    keys = {**KEYS, **NETWORKS}
    files = {name: weights(keys[name]) for name in TRANSFORMERS if name not in (*SMALL, *SOUNDS)}
    for name, family in SMALL.items():
        files[name] = by_own_names(family) if name in ("flux4", "flux3") else random_tensors(family, torch.float32)
    files["qwen21"] = qwen21_cases.file_of(SMALL["qwen21"], qwen21_cases.drawn(SMALL["qwen21"]))
    files |= {"controlled": weights(CONTROLLED["flux"]), "h3": minimax_h3_cases.file("pruned")}
    for name, tensors in files.items():
        save_file(tensors, models / "diffusion_models" / f"{name}.safetensors", wan_cases.METADATA.get(name))
    save_file(random_tensors(WanVae(8, latent_channels=16, image_channels=3), torch.float32), models / "vae" / VAE.name)
    sounds = {
        "stable_audio3": _stable_audio3(),
        "ace_step": ace_step_cases.weights(_keys("ace_step")["net"]),
        "minimax_music": minimax_music_cases.weights(_keys("minimax_music")["net"]),
        "yue2": yue2_cases.file(_keys("yue2")),
        "seedvr2": seedvr2_cases.weights(_keys("seedvr2")["7b"]),
    }
    for name, tensors in sounds.items():
        folder = "checkpoints" if name in CHECKPOINTS else "diffusion_models"
        save_file(tensors, models / folder / f"{name}.safetensors")
    for name in ltx_cases.NETS:
        path = models / "checkpoints" / f"{name}.safetensors"
        save_file(ltx_cases.autoencoder_weights(LTX[name]), path, ltx_cases.metadata(name))
    case = dit_control_cases.Case("flux_xlabs")
    save_file(dit_control_cases.file(case), models / "controlnet" / CONTROLNET.name)
    layer = "single_transformer_blocks.1.proj_out"
    pair = {"lora_A": noise("down", (2, 128 * 5)) / 9, "lora_B": noise("up", (128, 2)) / 2}
    named = {f"transformer.{layer}.{name}.weight": one for name, one in pair.items()}
    save_file(named, models / "loras" / "l.safetensors")


def _keys(name: str) -> dict[str, Any]:
    """Return the shapes of the parts of a family's files."""
    keys: dict[str, Any] = json.loads((GOLDEN / f"{name}_keys.json").read_text())
    return keys


def _stable_audio3() -> dict[str, Tensor]:
    """Return a checkpoint's network and what embeds lengths."""
    keys, prefixes = _keys("stable_audio3"), {"net": "model.model.", "conditioners": "conditioner.conditioners."}
    parts = {part: stable_audio3_cases.weights(keys[part]) for part in prefixes}
    return {prefixes[part] + name: tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def text(net: str, seed: int, length: int, **options: Any) -> Conditioning:
    width, length = TEXTS.get(net, TEXT_WIDTH), LENGTHS.get(net, length)
    if net == "hidream":
        options[STATES] = noise(f"states {seed}", (1, LLAMA_STATES, length, TEXT_WIDTH))
    if net == "anima":
        options[IDS] = torch.arange(length + 2)[None] + seed
    options["pooled_output"] = noise(f"pooled {seed}", (1, 768 if net == "hunyuan_video" else POOLED_WIDTH))
    if net == "ace_step":
        options["conditioning_lyrics"] = noise(f"lyrics {seed}", (1, 9, width))
    if net == "yue2":
        options["yue2_chunks"] = yue2_cases.CHUNKS
    if net == "seedvr2":
        options[CONDITION] = noise("condition", (1, 17, 3, 6, 10))
    if net == "animate2":
        options["pose_video_latent"] = noise("pose", (1, 16, 2, 6, 10))
    return [(noise(f"text {seed}", (1, length, width)), options)]


def job(
    net: str, cfg: float = 1.0, *, rows: int = 1, words: int = 7, lora: float = 0, patch: Any = None, **options: Any
) -> SamplingRequest:
    """Return a job of two steps. cfg: 1 is without a negative. patch: of the recipe."""
    folder = "checkpoints" if net in CHECKPOINTS else "diffusion_models"
    recipe = Recipe("backbone", folder, f"{net}.safetensors", () if patch is None else (patch,))
    asked = {name: options.pop(name) for name in ("latents", "noise_mask") if name in options}
    return request(
        backbone=recipe.with_patch(Lora("l.safetensors", lora)) if lora else recipe,
        shape=(rows, *AXES.get(net, (16,)), *CELLS.get(net, (6, 10))),
        positive=text(net, 1, words, **options),
        negative=text(net, 2, 5, **{name: one for name, one in options.items() if not name.startswith("attention")}),
        cfg=cfg,
        schedule="simple",
        steps=2,
        seed=3,
        **asked,
    )


def _seen(width: int) -> ClipVisionOutput:
    features = noise("features", (1, 4, width))
    return ClipVisionOutput(features, features, features)


def cases(size: int) -> dict[str, list[SamplingRequest]]:
    """Return jobs that run together, by what they show on a number of ranks."""
    reference: dict[str, Any] = {"reference_latents": [noise("one", (1, 16, 4, 6)), noise("two", (1, 16, 5, 3))]}
    frames: dict[str, Any] = {"reference_latents": [one.unsqueeze(2) for one in reference["reference_latents"]]}
    seen = noise("seen", (1, 5, SEEN))
    image: dict[str, Any] = {
        "concat_latent_image": noise("image", (1, 16, 3, 6, 10)),
        "clip_vision_output": ClipVisionOutput(seen, seen, seen),
    }
    bias: dict[str, Any] = {"attention_mask": noise("bias", (1, 11, 11)), "attention_mask_img_shape": (2, 2)}
    half = torch.ones(1, 1, 6, 10)
    half[..., :4] = 0
    later = torch.ones(1, 1, 3, 6, 10)
    later[:, :, 0] = 0
    hint = noise("hint", (1, 48, 80, 3)).sigmoid()
    sound = NestedTensor([noise("video", (1, 128, 3, 2, 3)), noise("sound", (1, 8, 5, 16))])
    sounding = NestedTensor([noise(name, (1, *shape)) for name, shape in (("h3", (24, 7, 6, 8)), ("h3s", (32, 2, 13)))])
    first = {"resolved_frame_index": 0, "latent": noise("first", (1, 24, 1, 6, 8))}
    shown, poses = noise("shown", (1, 16, 1, 6, 10)), noise("poses", (1, 16, 3, 3, 5))
    glyphs: dict[str, Any] = {"conditioning_byt5small": noise("glyphs", (1, 3, 1472)), "clip_vision_output": _seen(40)}
    # Two rows: a rank has each, or more ranks share the tokens of both. Where tokens are not shared, a rank is idle.
    rows = {f"rows of {net}": [job(net, 3.0, words=5)] for net in (NETS if size == 2 else BY_ROWS)}
    texts = {f"texts of two lengths of {net}": [job(net), job(net, words=4)] for net in TRANSFORMERS}
    return {
        **{f"one row of {net}": [job(net)] for net in TRANSFORMERS},
        "four heads of flux": [job("flux4")],
        "references of qwen": [job("qwen4", 3.0, **frames)],
        "a video": [job("wan4", 3.0, **image)],
        "a video with sound of ltx23": [job("ltx23", latents=sound)],
        "a video with sound that begins with an image": [job("h3", latents=sounding, minimax_keyframes=[first])],
        **rows,
        **(texts if size > 2 else {}),
        "references of flux": [job("flux4", 3.0, lora=0.7, **reference)],
        "references of omnigen2": [job("omnigen2", **reference)],
        "references of qwen21": [job("qwen21", reference_latents=[noise("of 2.1", (1, 64, 4, 6))])],
        "references of boogu": [job("boogu", reference_latents=[noise("of boogu", (1, 16, 4, 6))])],
        "a sound like another of ace_step": [
            job("ace_step", reference_audio_timbre_latents=[noise("like", (1, 64, 101))])
        ],
        "a video of ltx_video of which a frame is kept": [job("ltx_video", noise_mask=later)],
        "references of flux3": [job("flux3", reference_latents=[noise("of 3", (1, 128, 4, 6))])],
        "an image to edit": [job("hidream", concat_latent_image=noise("edited", (1, 16, 6, 10)))],
        "texts of two lengths, with and without a LoRA": [job("flux4", words=3), job("flux4", words=9, lora=0.5)],
        "three rows and a mask": [job("flux4", rows=3, noise_mask=half)],
        "a bias of attention": [job("flux4", **bias)],
        "a ControlNet": [job("controlled", 3.0, control=Control(CONTROLNET, hint, 0.6))],
        "texts of two lengths": [job("qwen4"), job("qwen4", words=4)],
        "a video of which a frame is kept": [job("wan22", noise_mask=later)],
        "a video that follows another": [job("vace", vace_frames=[noise("vace", (1, 32, 3, 6, 10))])],
        "references of mage_flow": [job("mage_flow", reference_latents=[noise("of mage", (1, 128, 4, 6))])],
        "references and poses of scail": [job("scail", reference_latents=[shown], pose_video_latent=poses)],
        "a video of which images and glyphs are read": [job("hunyuan_video15", **glyphs)],
        "a video with sound of ltx2": [job("ltx2", latents=sound)],
        "a video with sound of h3": [job("h3", latents=sounding)],
        "a video with sound of ltx25": [job("ltx25", latents=sound)],
        "rows of a video with sound": [job("ltx23", 3.0, latents=sound)],
    }


class Case(NamedTuple):
    """error: the largest one beside one process. sent, exchanged, gathered: bytes that rank 0 sent, as `SentBytes`."""

    error: float
    sent: int
    exchanged: int
    gathered: int

    @property
    def by(self) -> str:
        """How ranks divided the forwards."""
        ways = {"Ulysses": self.exchanged, "gathered keys": self.gathered and not self.exchanged, "rows": self.sent}
        return next((way for way, used in ways.items() if used), "one rank")


def lead(models: Path, leader: Leader) -> dict[str, Case]:
    """Return what becomes of each case."""
    together, alone = weights_of(models, leader), weights_of(models, device=leader.group.device)
    made: dict[str, Callable[[Weights], list[Any]]] = {
        name: partial(drawn, jobs=jobs) for name, jobs in cases(leader.size).items()
    }
    found = {}
    for name, make in {**made, **AUTOENCODED}.items():
        before = replace(leader.sent)
        pairs = zip(make(together), make(alone), strict=True)
        error = max(relative_error(flat(ours), flat(theirs)) for ours, theirs in pairs)
        sent = leader.sent
        found[name] = Case(
            error, sent.sent - before.sent, sent.exchanged - before.exchanged, sent.gathered - before.gathered
        )
    return found


def lead_sharded(models: Path, leader: Leader) -> dict[str, Case]:
    """Return what becomes of each case where the ranks have backbones' weights in parts."""
    return lead(models, Leader(leader.group, shards_weights=True))


VAE = Recipe("vae", "vae", "wan.safetensors")
VIDEO = noise("video to decode", (1, 16, 3, 9, 4))
IMAGES = noise("images to encode", (9, 72, 32, 3)).sigmoid()


def decoded(weights: Weights) -> list[Tensor]:
    return [in_engine(weights, lambda runtime: runtime.decode(VAE, VIDEO))]


def encoded(weights: Weights) -> list[Tensor]:
    return [in_engine(weights, lambda runtime: runtime.encode(VAE, IMAGES))]


def tiled(weights: Weights) -> list[Tensor]:
    return [in_engine(weights, lambda runtime: runtime.decode(VAE, VIDEO[:, :, :1], Tiling(64, 8)))]


def abandoned(weights: Weights) -> list[Tensor]:
    """Return an image, after a video of which nobody waits for more than the first moment."""
    with weights.open(VAE) as hold:
        steps = weights.vae_of_ranks(VAE, hold).by_latent_frames("decode", VIDEO)
        next(steps)
        steps.close()
    return [*drawn(weights, [job("flux4")]), *decoded(weights)]


AUTOENCODED: Mapping[str, Callable[[Weights], list[Any]]] = {
    "a video decoded": decoded,
    "a video encoded": encoded,
    "an image decoded in tiles": tiled,
    "a video abandoned": abandoned,
}
"""What a VAE makes, of whose images ranks have strips."""


def flat(latents: Any) -> Tensor:
    """Return all numbers of latents."""
    parts = latents.unbind() if isinstance(latents, NestedTensor) else [latents]
    return torch.cat([part.flatten() for part in parts])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("ranks") / "models"
    write_models(models)
    return models


@pytest.fixture(scope="module", params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def found(models: Path, size: int) -> dict[str, Case]:
    cases: dict[str, Case] = run_ranks(models.parent, (size,), lead)[size]
    return cases


def test_several_ranks_draw_what_one_process_draws(found: dict[str, Case], size: int) -> None:
    errors = {name: case.error for name, case in found.items()}
    assert errors.keys() == cases(size).keys() | AUTOENCODED.keys()
    assert {name: error for name, error in errors.items() if not error <= 1e-5} == {}


@pytest.mark.long
def test_ranks_with_weights_in_parts_draw_what_one_process_draws(models: Path) -> None:
    found: dict[int, dict[str, Case]] = run_ranks(models.parent, (4, 3, 2), lead_sharded)
    errors = {(size, name): case.error for size, cases in found.items() for name, case in cases.items()}
    assert {case: error for case, error in errors.items() if not error <= 1e-5} == {}


@pytest.mark.parametrize("size", [2], indirect=True)
def test_each_rank_has_a_row_where_there_are_enough(found: dict[str, Case]) -> None:
    by_rows = [*(f"rows of {net}" for net in NETS), "references of flux", "a ControlNet", "a video"]
    assert {name: found[name].by for name in by_rows} == dict.fromkeys(by_rows, "rows")


def test_ranks_share_the_tokens_of_one_row(found: dict[str, Case]) -> None:
    alone = [name for name, case in found.items() if "rows of" not in name and case.by in ("rows", "one rank")]
    assert [name for name in alone if name.startswith(("one row", "four heads", "a video with sound"))] == []


def test_ranks_exchange_the_rows_beside_their_strips_of_images(found: dict[str, Case]) -> None:
    assert {name: found[name].by for name in AUTOENCODED} == dict.fromkeys(AUTOENCODED, "Ulysses")


ROWS_ONLY: Mapping[str, str] = {
    "SeedVr2": "its attention is within windows of the video, not over all tokens",
    "WanAnimate2": "its frames attend to others' tokens one by one",
    **dict.fromkeys(("RtDetr4", "Sam31"), "it samples nothing"),
}
"""Transformers whose tokens are not shared, and why."""


def test_the_tokens_of_every_other_transformer_can_be_shared() -> None:
    others = [family for family in BACKBONES if not issubclass(family, Unet)]
    heads = {
        family: inspect.signature(inspect.getattr_static(family, "sharded_heads").fget).return_annotation
        for family in others
    }
    assert {family.__name__ for family in others if heads[family] in ("None", "int | None")} == ROWS_ONLY.keys()


def faults(models: Path, leader: Leader) -> tuple[str, str, str]:
    """Return what is said of a model that another rank cannot load, and of a job whose other rank ends."""
    with pytest.raises(ModelFileError) as missing, leader.loading(Recipe("backbone", "diffusion_models", "none")):
        pass
    weights = weights_of(models, leader)
    drawn(weights, [job("flux4")])
    # No such order exists, so it ends who gets it.
    leader.group.order("forwards", ["nonsense"])
    with pytest.raises(UnavailableError) as lost:
        drawn(weights, [job("flux4")])
    with pytest.raises(RankLostError) as again:
        leader.group.hear("forwards", 1)
    return str(missing.value), str(lost.value), str(again.value)


def test_a_rank_that_cannot_load_is_an_error_of_the_load_and_one_that_ends_is_no_error_of_the_job(
    models: Path,
) -> None:
    missing, lost, again = run_ranks(models.parent, (2,), faults, by_network=True)[2]
    assert missing.startswith("'none' is not loaded on every device: rank 1: ")
    assert lost == "the engine has closed"
    assert again.startswith("another rank of this replica is lost: ")
