"""Runs example workflows of node packs on this server and on a ComfyUI with the same packs, and compares the files.

    python -m tests.parity.packs_end_to_end COMFYUI_DIRECTORY COMFYUI_PYTHON PACKS_DIRECTORY [NAME_PART …]

The workflows are those of `pack_examples`. Both servers are real and asked over HTTP, one after the other. Of images
and films the largest and the mean difference are printed, in steps of 8 bits; films are decoded whole, and their sound.
PACKS_PYTHONPATH: where packages are that the packs need and ComfyUI's interpreter lacks.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import av
import gguf
import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.parity.checkpoints import models_dir
from tests.parity.pack_examples import Prompt, examples
from tests.parity.packs_beside import write_image_encoder, write_ipadapter
from tests.parity.tiled_cases import esrgan

Files: TypeAlias = dict[str, bytes]
PATIENCE_S = 900.0


def write_models(root: Path) -> None:
    """Write the model files that the workflows name."""
    made = models_dir("mini15", "lora", "controlnet")
    for folder in ("checkpoints", "loras", "controlnet"):
        (root / folder).mkdir(parents=True)
        for file in (made / folder).glob("*.safetensors"):
            (root / folder / file.name).symlink_to(file)
    (root / "upscale_models").mkdir()
    save_file(esrgan(), root / "upscale_models" / "esrgan.safetensors")
    write_backbone(made / "checkpoints" / "mini15.safetensors", root)
    write_ipadapter(root / "ipadapter" / "seen.safetensors", 768)
    write_image_encoder(root / "clip_vision" / "vit_l.safetensors")


def write_backbone(checkpoint: Path, root: Path) -> None:
    """Write the backbone of a checkpoint by itself, once as GGUF, matrices in blocks of eight bits."""
    prefix = "model.diffusion_model."
    backbone = {k.removeprefix(prefix): v for k, v in load_file(checkpoint).items() if k.startswith(prefix)}
    (root / "diffusion_models").mkdir()
    save_file(backbone, root / "diffusion_models" / "mini15.safetensors")
    file = gguf.GGUFWriter(root / "diffusion_models" / "mini15.gguf", "sd1")
    for name, tensor in backbone.items():
        blocks = tensor.ndim == 2 and tensor.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if blocks else gguf.GGMLQuantizationType.F16
        values = tensor.float().numpy()
        file.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def write_inputs(root: Path) -> None:
    """Write face.png, mask.png and clip.mp4: two seconds of moving colour, 16 frames a second, with a tone."""
    root.mkdir(parents=True)
    rows, columns = np.mgrid[0:96, 0:128]
    face = np.stack([2 * columns, 2 * rows, 255 - columns - rows], -1).clip(0, 255).astype(np.uint8)
    face[20:60, 40:90] = (230, 60, 40)
    Image.fromarray(face).save(root / "face.png")
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, :32, 0] = mask[:32, 32:, 1] = 255
    Image.fromarray(mask).save(root / "mask.png")
    with av.open(str(root / "clip.mp4"), "w") as film:
        video = film.add_stream("h264", rate=16, options={"crf": "12"})
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        sound = film.add_stream("aac", rate=44100, layout="mono")
        for number in range(32):
            film.mux(video.encode(av.VideoFrame.from_ndarray(np.roll(face, 4 * number, axis=1), format="rgb24")))
        film.mux(video.encode())
        wave = np.sin(np.arange(88200) * 2 * np.pi * 440 / 44100).astype(np.float32)[None] / 2
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.rate = 44100
        film.mux(sound.encode(frame))
        film.mux(sound.encode())


class Asked:
    """A server under /api, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api"

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self._url}{path}", timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def _with_defaults(self, class_type: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a node with what its page's widgets would begin with where the workflow says nothing."""
        info = json.loads(self.get(f"/object_info/{urllib.parse.quote(class_type)}")).get(class_type)
        if info is None:
            raise RuntimeError(f"there is no class {class_type}")
        defaults = {}
        for name, (kind, *options) in info["input"].get("required", {}).items():
            choices = kind if isinstance(kind, list) else (options or [{}])[0].get("options", [])
            given = (options or [{}])[0].get("default", choices[0] if choices else None)
            if given is not None:
                defaults[name] = given
        return {"class_type": class_type, "inputs": {**defaults, **inputs}}

    def run(self, prompt: Prompt) -> Files:
        """Return what a workflow leaves, by "node id/member/number.suffix". Errors: RuntimeError with why not."""
        whole = {node_id: self._with_defaults(**node) for node_id, node in prompt.items()}
        request = urllib.request.Request(f"{self._url}/prompt", json.dumps({"prompt": whole}).encode())
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                job = json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:2000]) from error
        entry = self._ended(job)
        while any("unfinished_batch" in shown and "gifs" not in shown for shown in entry["outputs"].values()):
            # VHS_BatchManager has queued the next batch, which ComfyUI runs under an id that nobody is told.
            while any(json.loads(self.get("/queue")).values()):
                time.sleep(0.5)
            entry = list(json.loads(self.get("/history")).values())[-1]
        status = entry["status"]
        if status["status_str"] != "success":
            errors = [told for kind, told in status["messages"] if kind == "execution_error"]
            raise RuntimeError(json.dumps(errors)[:3000])
        files = {}
        for node_id, shown in entry["outputs"].items():
            for member, values in shown.items():
                for number, file in enumerate(v for v in values if isinstance(v, Mapping) and "filename" in v):
                    query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
                    suffix = Path(file["filename"]).suffix
                    files[f"{node_id}/{member}/{number}{suffix}"] = self.get(f"/view?{query}")
        return files

    def _ended(self, job: str) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while not (entry := json.loads(self.get(f"/history/{job}"))):
            if time.monotonic() > until:
                raise RuntimeError("it takes too long")
            time.sleep(0.5)
        ended: dict[str, Any] = entry[job]
        return ended


@contextmanager
def serving(command: list[str], port: int, cwd: Path, log: Path, **environment: str) -> Iterator[Asked]:
    """Run a server until it answers, and end it afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    asked = Asked(port)
    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                asked.get("/object_info/KSampler")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the server does not answer: {log.read_text()[-3000:]}") from None
                time.sleep(1)
        yield asked
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()


def results(asked: Asked, prompts: Mapping[str, Prompt], side: str) -> dict[str, Files | str]:
    """Return the files of each workflow, or why there are none."""
    made: dict[str, Files | str] = {}
    for name, prompt in prompts.items():
        began = time.monotonic()
        try:
            made[name] = asked.run(prompt)
        except (RuntimeError, OSError) as error:
            made[name] = str(error)
        print(f"{side}: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return made


def decoded(content: bytes, name: str) -> tuple[np.ndarray, float]:
    """Return the frames (N,H,W,C) of an image or a film, all of them, and the seconds of its sound."""
    if name.endswith(".png"):
        return np.asarray(Image.open(io.BytesIO(content)))[None], 0.0
    with av.open(io.BytesIO(content)) as film:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    with av.open(io.BytesIO(content)) as film:
        if not film.streams.audio:
            return frames, 0.0
        heard = sum((frame.samples / frame.sample_rate for frame in film.decode(audio=0)), 0.0)
    return frames, heard


def lines(name: str, made: Files | str, expected: Files | str) -> Iterator[str]:
    """Yield what is to be said of one workflow: a line a file, or what failed on either side."""
    if isinstance(made, str) or isinstance(expected, str):
        yield f"{name}: here {made if isinstance(made, str) else 'it runs'}"
        yield f"{name}: ComfyUI {expected if isinstance(expected, str) else 'runs it'}"
        return
    if made.keys() != expected.keys():
        yield f"{name}: other files, {sorted(made)} for {sorted(expected)}"
    for file in sorted(made.keys() & expected.keys()):
        (mine, heard), (other, heard_there) = decoded(made[file], file), decoded(expected[file], file)
        sound = f", sound {heard:.2f} s for {heard_there:.2f} s" if heard or heard_there else ""
        if mine.shape != other.shape:
            yield f"{name} {file}: {mine.shape} for {other.shape}{sound}"
            continue
        error = np.abs(mine.astype(int) - other.astype(int))
        yield f"{name} {file} {mine.shape}: largest {error.max()}, mean {error.mean():.3f}{sound}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def theirs(directory: Path, python: Path, base: Path, port: int) -> AbstractContextManager[Asked]:
    """Run a ComfyUI whose folders are those of base."""
    command = [str(python), "main.py", "--cpu", "--port", str(port), "--base-directory", str(base)]
    packages = os.environ.get("PACKS_PYTHONPATH", "")
    return serving(command, port, directory, base / "log", PYTHONPATH=packages)


def ours(base: Path, port: int) -> AbstractContextManager[Asked]:
    """Run this server with the folders of base."""
    folders = ("models", "input", "output", "temp", "user")
    command = [sys.executable, "-m", "serve_app.cli", "up", "--port", str(port)]
    command += [argument for folder in folders for argument in (f"--{folder}-dir", str(base / folder))]
    command += ["--custom-nodes-dir", str(base / "custom_nodes"), "--database-url", f"sqlite:///{base}/jobs.db"]
    return serving(command, port, base, base / "log")


def folders_of(root: Path, side: str, packs: Path) -> Path:
    """Return a server's folders: models, inputs and packs that both have, and outputs of its own."""
    base = root / side
    for area in ("output", "temp", "user"):
        (base / area).mkdir(parents=True)
    for shared, at in (("models", root / "models"), ("input", root / "input"), ("custom_nodes", packs)):
        (base / shared).symlink_to(at)
    return base


def main(comfyui: Path, python: Path, packs: Path, parts: list[str]) -> None:
    """Run the workflows whose names hold one of the parts, or all, on both servers and print how they compare."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_models(root / "models")
        write_inputs(root / "input")
        prompts = {n: p for n, p in examples(root / "input").items() if not parts or any(part in n for part in parts)}
        with theirs(comfyui, python, folders_of(root, "theirs", packs), free_port()) as asked:
            expected = results(asked, prompts, "theirs")
        with ours(folders_of(root, "ours", packs), free_port()) as asked:
            made = results(asked, prompts, "ours")
        for name in prompts:
            print("\n".join(lines(name, made[name], expected[name])), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]), Path(sys.argv[3]).absolute(), sys.argv[4:])
