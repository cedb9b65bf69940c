"""Measures a checkpoint through the server's nodes and engine, and draws its contact sheet.

    python -m training.measure MODELS_DIRECTORY CHECKPOINT RESULTS.json SHEET.png

The judge is `classifier`, which is itself measured on the renderer's pictures first. Prompts are of scenes that were
kept from training; every picture has its own seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from training.classifier import NAMES as COLOUR_NAMES
from training.classifier import hollow, judge, nearest_colours, shape_shown
from training.control import placeless
from training.drawing import Wish, draw_all, through_vae
from training.inversion import FLAG, NAME
from training.scenes import (
    COLOURS,
    Array,
    Scene,
    deep_inside,
    draw_scene,
    full_caption,
    is_held_out,
    outline,
    render,
    single_scenes,
    where_shown,
)

PROMPTS = 200
PAIRS = 40
SHEET = (
    "a large red circle on the left, blue background",
    "a small yellow star at the top, purple background",
    "a large green triangle in the middle, black background",
    "a large blue ring on the right, yellow background",
    "a large black square at the bottom, green background",
    "a large purple star in the middle, yellow background",
    "a large yellow circle on the left and a small red square on the right, blue background",
    "a small blue triangle at the top and a large green ring at the bottom, red background",
)
SHEET_SEEDS = 4


def measure(models: Path, checkpoint: str) -> dict[str, Any]:
    """Return every figure of the model card, as shares 0…1."""
    random = Random("measure")
    singles = random.sample([scene for scene in single_scenes() if is_held_out(scene)], PROMPTS)
    pairs = _pairs(random)
    rendered = [render(scene, random) for scene in singles]
    results: dict[str, Any] = {"renderer": figures(rendered, singles)}
    results["renderer, through the VAE"] = figures(through_vae(models, checkpoint, rendered), singles)
    for cfg in (1.0, 5.0):
        wishes = [Wish(full_caption(scene), seed, cfg) for seed, scene in enumerate(singles)]
        results[f"cfg {cfg:g}"] = figures(draw_all(models, checkpoint, wishes), singles)
    wishes = [Wish(full_caption(scene), seed) for seed, scene in enumerate(pairs)]
    results["two things, cfg 5"] = figures(draw_all(models, checkpoint, wishes), pairs)
    results["negative prompt"] = negative_prompt(models, checkpoint, singles[:100])
    results["LoRA"] = outlined(models, checkpoint, [s for s in singles if deep_inside(s.things[0]).any()][:60])
    results["ControlNet"] = controlled(models, checkpoint, singles[:100])
    results["embedding"] = figures(
        draw_all(models, checkpoint, [Wish(f"embedding:{NAME}", s) for s in range(40)]), [FLAG] * 40
    )
    return results


def figures(pictures: Sequence[Array], scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the shares of pictures that show what was asked, and of things whose shape is the one asked for."""
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    shapes = [
        shape_shown(picture, thing) == thing.shape
        for picture, scene in zip(pictures, scenes, strict=True)
        for thing in scene.things
    ]
    return {
        "pictures": len(pictures),
        "thing in its colour at its place": _share([v.things_shown for v in verdicts]),
        "background in its colour": _share([v.background_shown for v in verdicts]),
        "both": _share([v.shown for v in verdicts]),
        "shape": _share(shapes),
        "mean share of thing pixels": float(np.mean([np.mean(v.things) for v in verdicts])),
        "mean share of background pixels": float(np.mean([v.background for v in verdicts])),
    }


def negative_prompt(models: Path, checkpoint: str, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return how often a background that no prompt asks for has a colour, with and without it as the negative prompt.

    For each scene the colour is the background that its picture has without a negative prompt.
    """
    texts = [full_caption(scene).rpartition(",")[0] for scene in scenes]
    plain = draw_all(models, checkpoint, [Wish(text, seed) for seed, text in enumerate(texts)])
    had = [background_of(picture, scene) for picture, scene in zip(plain, scenes, strict=True)]
    wishes = [
        Wish(text, seed, negative=f"{name} background")
        for seed, (text, name) in enumerate(zip(texts, had, strict=True))
    ]
    avoiding = draw_all(models, checkpoint, wishes)
    kept = [background_of(picture, scene) == name for picture, scene, name in zip(avoiding, scenes, had, strict=True)]
    found = [judge(picture, scene).things_shown for picture, scene in zip(avoiding, scenes, strict=True)]
    return {
        "pictures": len(scenes),
        "background kept though it is the negative prompt": _share(kept),
        "thing still shown": _share(found),
    }


def outlined(models: Path, checkpoint: str, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return how hollow the things are at strengths of the LoRA from 0 to 1, and whether they are still where asked."""
    shares: dict[str, float] = {"pictures": len(scenes)}
    for strength in (0.0, 0.5, 1.0):
        wishes = [Wish(full_caption(scene), seed, lora=strength) for seed, scene in enumerate(scenes)]
        pictures = draw_all(models, checkpoint, wishes)
        hollows = [hollow(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
        verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
        shares[f"hollow at strength {strength:g}"] = float(np.mean(hollows))
        shares[f"background in its colour at strength {strength:g}"] = _share([v.background_shown for v in verdicts])
    return shares


def controlled(models: Path, checkpoint: str, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return the figures of prompts that say neither place nor size, with an outline that shows them and without."""
    random = Random("controlled")
    texts = [placeless(scene, random) for scene in scenes]
    hints = [outline(scene) for scene in scenes]
    with_hint = [Wish(text, seed, hint=hint) for seed, (text, hint) in enumerate(zip(texts, hints, strict=True))]
    without = [Wish(text, seed) for seed, text in enumerate(texts)]
    return {
        "with the outline": figures(draw_all(models, checkpoint, with_hint), scenes),
        "without": figures(draw_all(models, checkpoint, without), scenes),
    }


def background_of(picture: Array, scene: Scene) -> str:
    """Return the colour of most of the card around where the scene's things are."""
    counts = np.bincount(nearest_colours(picture)[where_shown(scene)[1]], minlength=len(COLOUR_NAMES))
    return COLOUR_NAMES[int(counts[: len(COLOURS)].argmax())]


def contact_sheet(models: Path, checkpoint: str, path: Path) -> None:
    """Write a picture of SHEET's prompts, one a row of SHEET_SEEDS seeds."""
    wishes = [Wish(text, seed) for text in SHEET for seed in range(SHEET_SEEDS)]
    pictures = np.stack(draw_all(models, checkpoint, wishes))
    side = pictures.shape[1]
    # Two prompts a row, so that the sheet is wide rather than long.
    rows = pictures.reshape(len(SHEET) // 2, 2 * SHEET_SEEDS, side, side, 3).swapaxes(1, 2)
    sheet = rows.reshape(len(SHEET) // 2 * side, 2 * SHEET_SEEDS * side, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().astype(np.uint8)).save(path, optimize=True)


def _pairs(random: Random) -> list[Scene]:
    scenes = (draw_scene(random) for _ in iter(int, 1))
    pairs: list[Scene] = []
    while len(pairs) < PAIRS:
        if len((scene := next(scenes)).things) == 2:
            pairs.append(scene)
    return pairs


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("results", type=Path)
    parser.add_argument("sheet", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    contact_sheet(arguments.models, arguments.checkpoint, arguments.sheet)
    measured = measure(arguments.models, arguments.checkpoint)
    arguments.results.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))
