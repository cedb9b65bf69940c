"""SAM 3.1 against ComfyUI's modules and nodes, with the same weights (golden/sam3.npz, by `sam3_figures`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate, pad

from serve_app.errors import NodeError
from serve_app.models.families import Wan
from serve_app.models.families.sam3.backbone import Sam31
from serve_app.models.families.sam3.detector import Prompt
from serve_app.models.families.sam3.prompts import CORNERS, INSIDE, NONE, OUTSIDE
from serve_app.models.families.sam3.text import Sam3Text, things
from serve_app.models.families.sam3.tracker import Masks, Tracker
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.kernels.packing import move_to
from serve_app.nodes.video.sam3 import sam3_detect, sam3_track_to_mask, sam3_video_track
from serve_app.nodes.video.wan_scail import scail2_colored_mask
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.kinds import refusal
from serve_app.values import Conditioning, Detection, Tracking
from tests.parity import sam3_cases as cases
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.unit.engine.card import CARD, Card

FIGURES = Figures("sam3")
KEYS = json.loads((GOLDEN / "sam3_keys.json").read_text())
MODEL = Recipe("backbone", "checkpoints", "sam3.1.safetensors")
CPU = torch.device("cpu")


@dataclass
class Runtime:
    """RUNTIME with a network that is in memory."""

    family: Any
    network: Any

    async def search(self, backbone: Recipe, request: Detection | Tracking) -> Any:
        self.family.check_search(request)
        return finished(self.family.searched(self.network, request))


def finished(work: Generator[tuple[int, int], None, Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loaded(tmp_path_factory.mktemp("sam3"), CPU)


def loaded(folder: Path, device: torch.device) -> Runtime:
    path = folder / MODEL.name
    save_file(cases.checkpoint(KEYS["net"]), path)
    family, network = Checkpoint(path).load("backbone")
    assert isinstance(family, Sam31)
    move_to(network, device, torch.float32)
    return Runtime(family, network)


@pytest.fixture(scope="module")
def seen(runtime: Runtime) -> Tensor:
    pixels = interpolate(cases.images(1).movedim(-1, 1), (1008, 1008), mode="bilinear")
    with torch.inference_mode():
        made: Tensor = runtime.network.vision.trunk(pixels)
    return made


def several() -> Conditioning:
    mask = cases.text("text")[1]
    two = [{"cond": cases.text(f"text {n}")[0], "attention_mask": mask, "max_detections": 1 + n} for n in range(2)]
    return [(cases.text("text")[0], {"sam3_multi_cond": two})]


@pytest.mark.parametrize("name", ["text", "text and box"])
@torch.inference_mode()
def test_the_detector_agrees(name: str, runtime: Runtime, seen: Tensor) -> None:
    tokens, counts = cases.text("text")
    box = torch.tensor([cases.BOX]) if "box" in name else None
    pyramid = runtime.network.vision.pyramid("convs", seen)
    made = runtime.network.detector(pyramid, Prompt(tokens, counts.bool()), box)
    boxes = FIGURES[f"{name}: boxes"]
    assert (made.boxes - boxes).norm() / boxes.norm() <= MODULE_TOLERANCE
    FIGURES.assert_agrees(made.scores, f"{name}: scores", MODULE_TOLERANCE)
    FIGURES.assert_agrees(torch.from_numpy(thinned(interpolated(made.masks))), f"{name}: masks", MODULE_TOLERANCE)


def interpolated(masks: Tensor) -> Any:
    return masks.numpy()


@pytest.mark.parametrize("name", ["points", "one point", "box"])
@torch.inference_mode()
def test_the_masks_of_prompts_agree(name: str, runtime: Runtime, seen: Tensor) -> None:
    kinds, places = [INSIDE, INSIDE, OUTSIDE], torch.tensor([cases.POINTS]) * 1008
    if name == "one point":
        kinds, places = kinds[:1], places[:, :1]
    prompt = pad(places, (0, 0, 0, 1)), torch.tensor([[*kinds, NONE]])
    if name == "box":
        x, y, w, h = cases.BOX
        corners = torch.tensor([[[x - w / 2, y - h / 2], [x + w / 2, y + h / 2]]]) * 1008
        prompt = pad(corners, (0, 0, 1, 0)), torch.tensor([[NONE, *CORNERS]])
    pyramid = runtime.network.vision.pyramid("interactive_convs", seen)
    made = runtime.network.tracker.drawn(pyramid, prompt, choose=name == "one point")
    FIGURES.assert_agrees(torch.from_numpy(thinned(made.large.numpy())), name, MODULE_TOLERANCE)


def test_things_are_detected_as_in_comfyui(runtime: Any) -> None:
    masks, found = asyncio.run(
        sam3_detect(MODEL, cases.images(1), cases.THRESHOLD, 2, True, runtime, conditioning=several())
    )
    differing = (masks != FIGURES["detected"]).float().mean()
    assert differing < 1e-3, f"{differing:.1e} of the masks' cells differ"
    ours = torch.tensor([[list(box.values()) for box in of] for of in found])
    assert (ours - FIGURES["found"]).abs().max() < 1e-2


@torch.inference_mode()
def test_a_card_finds_what_a_cpu_does_beside_a_box(runtime: Any, tmp_path: Path) -> None:
    boxes = [torch.tensor([cases.BOX])]
    request = Detection(cases.images(1), several(), boxes, (), (), cases.THRESHOLD, refinements=0)
    [ours] = finished(runtime.family.searched(runtime.network, request))
    with Card().used():
        on_card = loaded(tmp_path, CARD)
        [found] = finished(on_card.family.searched(on_card.network, request))
    assert ours.boxes
    assert torch.tensor([list(box.values()) for box in found.boxes]).allclose(
        torch.tensor([list(box.values()) for box in ours.boxes]), atol=1e-3
    )
    assert (found.masks != ours.masks).float().mean() < 1e-3


WAITS = 7
"""For a card in each image of a video, however many things there are: two for what is found, three for what is
followed, one for what of these is the same, and one for the masks."""


@pytest.mark.parametrize(
    "given", [pytest.param(0, id="found", marks=pytest.mark.long), pytest.param(1, id="given and found")]
)
@torch.inference_mode()
def test_a_card_follows_what_a_cpu_does_and_waits_as_often_for_many_things_as_for_one(
    given: int, runtime: Any, tmp_path: Path
) -> None:
    initial = cases.initial()[:given] if given else None
    request = Tracking(cases.images(cases.FRAMES), several(), initial, cases.THRESHOLD, 4, 1)
    ours = finished(runtime.family.searched(runtime.network, request))
    card = Card()
    with card.used():
        on_card = loaded(tmp_path, CARD)
        before = card.counts.copy()
        found = finished(on_card.family.searched(on_card.network, request))
        counts = card.counts.since(before)
    assert len(found["scores"]) > 2
    assert torch.tensor(found["scores"]).allclose(torch.tensor(ours["scores"]), atol=1e-3)
    assert (found["packed_masks"] != ours["packed_masks"]).float().mean() < 1e-3
    assert counts.stalls <= WAITS * cases.FRAMES, counts.where
    assert (counts.to_card, card.order.early) == (0, [])


@pytest.mark.parametrize(
    ("name", "initial", "texts"),
    [
        ("followed", True, False),
        pytest.param("found and followed", False, True, marks=pytest.mark.long),
    ],
)
def test_things_are_followed_as_in_comfyui(
    name: str, initial: bool, texts: bool, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []
    followed = Tracker.followed

    def noted(*given: Any) -> Masks:
        masks = followed(*given)
        drawn.append(torch.from_numpy(thinned(masks.large.numpy())))
        return masks

    monkeypatch.setattr(Tracker, "followed", noted)
    tracks = asyncio.run(
        sam3_video_track(
            cases.images(cases.FRAMES),
            MODEL,
            cases.THRESHOLD,
            4,
            1,
            runtime,
            initial_mask=cases.initial() if initial else None,
            conditioning=several() if texts else None,
        )
    )
    FIGURES.assert_agrees(torch.cat(drawn), name, MODULE_TOLERANCE)
    theirs = FIGURES[f"{name}: masks"]
    assert tracks["packed_masks"].shape == theirs.shape
    assert (tracks["packed_masks"] != theirs).float().mean() < 1e-3
    FIGURES.assert_agrees(torch.tensor(tracks["scores"]), f"{name}: scores", MODULE_TOLERANCE)
    FIGURES.assert_agrees(torch.from_numpy(thinned(sam3_track_to_mask(tracks, "1").numpy())), f"{name}: mask", 1e-3)
    for sort in ("none", "left_to_right", "area"):
        colored = scail2_colored_mask(tracks, "0,1", sort, True, cases.initial())
        ours = torch.stack([one.mean(dim=(0, 1, 2)) for one in colored])
        assert (ours - FIGURES[f"{name}: {sort}"]).abs().max() < 1e-3


async def test_texts_of_another_encoder_are_refused(runtime: Any) -> None:
    wide = [(torch.zeros(1, 4, 768), {})]
    with pytest.raises(NodeError, match="768 wide"):
        await sam3_detect(MODEL, cases.images(1), 0.5, 2, False, runtime, conditioning=wide)


def test_another_backbone_segments_nothing() -> None:
    request = Tracking(cases.images(1), None, cases.initial(), 0.5, 4, 1)
    with pytest.raises(NodeError, match="a backbone of Wan does not find"):
        Wan(128, 1, 48, 32).check_search(request)


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("a (red) cat", [("a (red) cat", 1)]),
        ("cat: 3", [("cat", 3)]),
        ("a (red) cat, dog : 2.4,, bird:0", [("a red cat", 1), ("dog", 2), ("bird", 1)]),
        ("", [("", 1)]),
    ],
)
def test_a_text_lists_things(text: str, listed: list[tuple[str, int]]) -> None:
    assert things(text) == listed


@torch.inference_mode()
def test_texts_agree(tmp_path: Path) -> None:
    path = tmp_path / MODEL.name
    save_file(cases.text_encoder(), path)
    family, network = Checkpoint(path).load("clip")
    assert isinstance(family, Sam3Text)
    move_to(network, CPU, torch.float32)
    encoder = family.encoder(network, cast(TextResources, SimpleNamespace(vectors=lambda *_: None)))
    [(cond, said)], [(one, of_one)] = encoder.encode(cases.TEXTS)
    first, second = said["sam3_multi_cond"]
    assert [text["max_detections"] for text in (first, second)] == [1, 2]
    assert torch.equal(first["cond"], cond)
    for made, name in ((cond, "text encoded"), (second["cond"], "second encoded"), (one, "one encoded")):
        FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), name, MODULE_TOLERANCE)
    FIGURES.assert_agrees(said["pooled_output"], "text pooled", MODULE_TOLERANCE)
    assert torch.equal(second["attention_mask"], FIGURES["second mask"])
    assert torch.equal(of_one["attention_mask"], FIGURES["one mask"])


def test_sam3_before_multiplex_is_refused() -> None:
    found = refusal("backbone", {"detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight": (3, 1)})
    assert found is not None
    assert "SAM 3, which is not supported" in found
