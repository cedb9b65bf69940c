"""Files that ComfyUI makes of frames and sounds, and reads again: run by its own interpreter, in its directory.

    python comfyui_media.py ASKED.json OUT.npz

Kept are the files' bytes by name, and of windows of the first the frames and the sound, as window.images and so on.
"""

from __future__ import annotations

import io
import json
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

ASKED, OUT = sys.argv[1:3]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import folder_paths  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy_api.latest import IO, UI, InputImpl, Types  # type: ignore[import-not-found]  # noqa: E402


def main() -> None:
    asked = json.loads(Path(ASKED).read_text())
    sound = {"waveform": torch.tensor(asked["waveform"]), "sample_rate": 8000}
    parts = Types.VideoComponents(torch.tensor(asked["images"]), Fraction(asked["rate"]), sound)
    video = InputImpl.VideoFromComponents(parts)
    made: dict[str, Any] = {}
    for name, (container, codec) in asked["files"].items():
        buffer = io.BytesIO()
        video.save_to(buffer, format=Types.VideoContainer(container), codec=Types.VideoCodec(codec))
        made[name] = np.frombuffer(buffer.getvalue(), np.uint8)
    for index, (start, duration) in enumerate(asked["windows"]):
        file = InputImpl.VideoFromFile(io.BytesIO(made["mp4"].tobytes()), start_time=start, duration=duration)
        read = file.get_components()
        made |= {f"{index}.images": read.images.numpy(), f"{index}.waveform": read.audio["waveform"].numpy()}
        made |= {f"{index}.rate": np.array(float(read.frame_rate)), f"{index}.duration": np.array(file.get_duration())}
    folder_paths.set_output_directory(str(Path(OUT).parent))
    for format, quality in asked["sounds"].items():
        [shown] = UI.AudioSaveHelper.save_audio(
            sound, "x", IO.FolderType.output, None, format, *([quality] if quality else [])
        )
        made[format] = np.frombuffer(Path(OUT).with_name(shown["filename"]).read_bytes(), np.uint8)
    np.savez(OUT, **made)


main()
