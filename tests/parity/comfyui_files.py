"""What ComfyUI's nodes load of files of images: run by its own interpreter, in its directory.

    python comfyui_files.py ASKED.json FOLDER OUT.npz

Kept are, by a file's name, what LoadImage, LoadImageMask and data sets make of it: `images`, `mask`, the channels of
some, and `set`; nothing of what fails there. Bytes are kept where all of an array are such over 255.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ASKED, FOLDER, OUT = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import folder_paths  # noqa: E402
import nodes  # noqa: E402
import numpy as np  # noqa: E402
from comfy_extras.nodes_dataset import load_and_process_images  # type: ignore[import-not-found]  # noqa: E402


def short(tensor: Any) -> Any:
    array = tensor.numpy()
    levels = (array * 255).round().astype(np.uint8)
    return levels if np.array_equal(levels.astype(np.float32) / 255, array) else array


def main() -> None:
    asked = json.loads(Path(ASKED).read_text())
    folder_paths.set_input_directory(FOLDER)
    made: dict[str, Any] = {}
    for name in asked["files"]:
        try:
            images, mask = nodes.LoadImage().load_image(name)
            made |= {f"{name}|images": short(images), f"{name}|mask": short(mask)}
            for channel in asked["channels"].get(name, ()):
                made[f"{name}|{channel}"] = short(nodes.LoadImageMask().load_image_mask(name, channel)[0])
        except Exception as error:
            print(f"LoadImage fails on {name}: {type(error).__name__}: {error}", file=sys.stderr)
        try:
            made[f"{name}|set"] = short(load_and_process_images([name], FOLDER)[0])
        except Exception as error:
            print(f"data sets fail on {name}: {type(error).__name__}: {error}", file=sys.stderr)
    np.savez(OUT, **made)


main()
