"""The folders of a server of the differential fuzz: small models, images and the pack that shows values."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.parity.checkpoints import models_dir

PACK = Path(__file__).parent / "fuzz_pack"
IMAGES = {"a.png": (24, 32, 3), "b.png": (32, 24, 4)}
"""Images in the folder of uploads: height, width, channels."""


def prepare(home: Path, *, models: bool = True) -> Path:
    """Write the folders of one server; return where they are. models: with files of models."""
    for name in ("input", "output", "temp", "user", "custom_nodes"):
        (home / name).mkdir(parents=True)
    for folder in models_dir("mini15", "lora", "controlnet").iterdir() if models else ():
        (home / "models" / folder.name).mkdir(parents=True)
        for path in folder.glob("*.safetensors"):
            if path.stem in ("mini15", "lora", "controlnet"):
                (home / "models" / folder.name / path.name).symlink_to(path)
    draw = np.random.default_rng(1)
    for name, shape in IMAGES.items():
        Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8)).save(home / "input" / name)
    shutil.copytree(PACK, home / "custom_nodes" / "fuzz_pack")
    return home
