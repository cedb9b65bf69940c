"""Makes the figures of golden/ by a ComfyUI beside us.

    python -m tests.parity.make_figures COMFYUI_DIRECTORY COMFYUI_PYTHON [FILE …]

What they are made of stands beside them, in golden/ and in the modules of cases. `beside` makes those of beside.npz.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.torch import save_file

from serve_app.nodes.registry import specs
from tests.parity import ltx_workflows as ltx_workflows_cases
from tests.parity import pixel_space_cases, taesd_cases, tiled_cases
from tests.parity import wan_workflows as wan_workflows_cases
from tests.parity.audio_cases import CASES as SOUNDS
from tests.parity.audio_cases import described, sound
from tests.parity.checkpoints import models_dir
from tests.parity.comfyui import ComfyUI
from tests.parity.declared import WORDED_OTHERWISE, theirs
from tests.parity.figures import FLOWS, GOLDEN, thinned
from tests.parity.file_cases import BY_CHANNEL, CHANNELS
from tests.parity.file_cases import FILES as IMAGE_FILES
from tests.parity.flow_cases import FLOW_CASES
from tests.parity.generation_cases import CASES as GENERATIONS
from tests.parity.image_cases import CASES as IMAGES
from tests.parity.image_cases import drawn
from tests.parity.media_cases import FILES, SOUND_FILES, VIDEO_RATE, VIDEO_SOUND, WINDOWS, video_images
from tests.parity.mini15_cases import MINI15, SD15
from tests.parity.network_figures import MAKERS as NETWORKS
from tests.parity.network_figures import maker
from tests.parity.networks.text_cases import NETWORK_TEXTS
from tests.parity.text_cases import CASES as TEXTS
from tests.parity.text_cases import TextCase, write


def _rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays as rows, the shorter ones filled up with NaN."""
    rows = np.full((len(arrays), max(array.size for array in arrays)), np.nan, np.float32)
    for row, array in zip(rows, arrays, strict=True):
        row[: array.size] = array.ravel()
    return rows


def _write(name: str, cases: Any, arrays: Mapping[str, Any]) -> None:
    text = json.dumps(cases)
    if isinstance(cases, list):
        text = "[\n" + ",\n".join(map(json.dumps, cases)) + "\n]"
    (GOLDEN / f"{name}.json").write_text(text + "\n")
    _save(name, arrays)


def _save(name: str, arrays: Mapping[str, Any]) -> None:
    np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


def samplers(comfyui: ComfyUI) -> None:
    """Make samplers.npz, and count the evaluations in samplers.json."""
    listed = json.loads((GOLDEN / "samplers.json").read_text())
    whole = {"start": None, "end": None, "full_denoise": True, "options": {}, "shape": [2, 4, 8, 8]}
    names = ("sampler", "schedule", "steps", "seed", "denoise")
    cases = [dict(zip(names, row, strict=False)) for row in listed]
    made = comfyui.samplers([{**whole, **case, "latents": float(case["denoise"] < 1)} for case in cases])
    arrays, counted = {}, []
    for row, figure in zip(listed, made, strict=True):
        key = "|".join(map(str, row[:5]))
        arrays |= {f"{key}|sigmas": figure["sigmas"], f"{key}|out": figure["out"]}
        counted.append([*row[:5], int(figure["evaluations"])])
    _write("samplers", counted, arrays)


def grid(comfyui: ComfyUI) -> None:
    """Make grid.npz, and count the evaluations in grid.json."""
    listed = json.loads((GOLDEN / "grid.json").read_text())
    names = ("sampler", "schedule", "steps", "seed", "denoise", "start", "end", "full_denoise", "options")
    cases = [dict(zip(names, row, strict=False)) for row in listed]
    made = comfyui.samplers([{**case, "shape": [1, 4, 4, 4], "latents": float(case["denoise"] < 1)} for case in cases])
    counted = [[*row[:9], int(figure["evaluations"])] for row, figure in zip(listed, made, strict=True)]
    _write("grid", counted, {part: _rows([figure[part] for figure in made]) for part in ("sigmas", "out")})


def flow_grid(comfyui: ComfyUI) -> None:
    """Make flow_grid.npz: the cases of grid.json on the levels of SD 3 and on those of FLUX."""
    names = ("sampler", "schedule", "steps", "seed", "denoise", "start", "end", "full_denoise", "options")
    listed = [dict(zip(names, row, strict=False)) for row in json.loads((GOLDEN / "grid.json").read_text())]
    arrays: dict[str, np.ndarray] = {}
    for kind, shift in FLOWS.items():
        made = comfyui.samplers(
            [{**case, kind: shift, "shape": [1, 4, 4, 4], "latents": float(case["denoise"] < 1)} for case in listed]
        )
        arrays |= {f"{kind}|{part}": _rows([figure[part] for figure in made]) for part in ("sigmas", "out")}
        arrays[f"{kind}|evaluations"] = np.array([int(figure["evaluations"]) for figure in made], np.int16)
    _save("flow_grid", arrays)


def sampler_options(comfyui: ComfyUI) -> None:
    """Make sampler_options.npz."""
    asked = json.loads((GOLDEN / "sampler_options.json").read_text())
    same = {"seed": 5, "shape": [1, 4, 4, 4], "latents": 0.3}
    made = comfyui.samplers(
        [
            {**same, "sampler": name, "options": options, "sigmas": asked["sigmas"][sigmas]}
            for name, options, sigmas in asked["cases"]
        ]
    )
    _write("sampler_options", asked, {part: _rows([figure[part] for figure in made]) for part in ("out", "denoised")})


def flow_runs(comfyui: ComfyUI) -> None:
    """Make flow_runs.npz: of large values every so many-th element."""
    with tempfile.TemporaryDirectory() as models:
        made = comfyui.workflows(FLOW_CASES, Path(models))
    _save("flow_runs", {name: thinned(array) for name, array in made.items()})


def wan_workflows(comfyui: ComfyUI) -> None:
    """Make wan_workflows.npz: of large values every so many-th element."""
    with TemporaryDirectory() as models:
        wan_workflows_cases.write(Path(models))
        made = comfyui.workflows(wan_workflows_cases.WORKFLOWS, Path(models))
    _save("wan_workflows", {name: thinned(array) for name, array in made.items()})


def ltx_workflows(comfyui: ComfyUI) -> None:
    """Make ltx_workflows.npz: of large values every so many-th element."""
    with TemporaryDirectory() as models:
        ltx_workflows_cases.write(Path(models))
        made = comfyui.workflows(ltx_workflows_cases.WORKFLOWS, Path(models))
    _save("ltx_workflows", {name: thinned(array) for name, array in made.items()})


def nodes(comfyui: ComfyUI) -> None:
    """Make nodes_latent.npz and nodes_image.npz, declared.json, and the names in node_classes.json."""
    latent = json.loads((GOLDEN / "nodes_latent.json").read_text())
    cases = [(case["node"], case["inputs"]) for case in latent]
    for node, inputs in IMAGES.values():
        described = {n: {"values": drawn(v).tolist()} if isinstance(v, tuple) else v for n, v in inputs.items()}
        cases.append((node, described))
    arrays, classes = comfyui.nodes(cases)
    made: dict[int, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        made.setdefault(int(name.partition(".")[0]), {})[name] = array
    for i, case in enumerate(latent):
        lists = {name: array.tolist() for name, array in made[i].items() if array.dtype.kind in "iu"}
        case |= {"lists": lists} if lists else {}
    floats = {name: array for i in range(len(latent)) for name, array in made[i].items() if array.dtype.kind == "f"}
    _write("nodes_latent", latent, floats)
    slots = {
        f"{name}|{key.split('.')[1]}": array
        for i, name in enumerate(IMAGES, len(latent))
        for key, array in made[i].items()
    }
    _save("nodes_image", slots)
    compared = (specs().keys() & classes) - WORDED_OTHERWISE
    declared = ",\n".join(f"{json.dumps(name)}: {json.dumps(theirs(classes[name]))}" for name in sorted(compared))
    (GOLDEN / "declared.json").write_text("{\n" + declared + "\n}\n")
    (GOLDEN / "node_classes.json").write_text(json.dumps(sorted(classes), indent=0) + "\n")


def texts(comfyui: ComfyUI) -> None:
    """Make texts.npz."""
    _save_texts("texts", TEXTS, comfyui)


def network_texts(comfyui: ComfyUI) -> None:
    """Make network_texts.npz."""
    _save_texts("network_texts", NETWORK_TEXTS, comfyui)


def _save_texts(name: str, cases: Mapping[str, TextCase], comfyui: ComfyUI) -> None:
    with TemporaryDirectory() as models:
        for case in cases.values():
            write(Path(models), case)
        _save(name, comfyui.texts({name: case.as_json() for name, case in cases.items()}, Path(models)))


def generations(comfyui: ComfyUI) -> None:
    """Make generations.npz."""
    with TemporaryDirectory() as models:
        for case in GENERATIONS.values():
            write(Path(models), case.encoder)
        _save("generations", comfyui.texts({name: case.as_json() for name, case in GENERATIONS.items()}, Path(models)))


def sounds(comfyui: ComfyUI) -> None:
    """Make nodes_audio.npz; torchaudio is to be beside ComfyUI."""
    made, _ = comfyui.nodes([(node, described(inputs)) for node, inputs in SOUNDS.values()])
    names = list(SOUNDS)
    keys = {key: key.partition(".") for key in made}
    _save("nodes_audio", {f"{names[int(i)]}|{slot}": made[key] for key, (i, _, slot) in keys.items()})


def media(comfyui: ComfyUI) -> None:
    """Make media.npz: files, and what is read from them."""
    asked = {"images": video_images().tolist(), "rate": VIDEO_RATE, "windows": WINDOWS, "files": FILES}
    waveform = sound(*VIDEO_SOUND)["waveform"]
    _save("media", comfyui.run("comfyui_media.py", {**asked, "waveform": waveform.tolist(), "sounds": SOUND_FILES}))


def files(comfyui: ComfyUI) -> None:
    """Make files.npz: files of images, and what is loaded of them."""
    with TemporaryDirectory() as folder:
        made = {name: make() for name, make in IMAGE_FILES.items()}
        for name, data in made.items():
            (Path(folder) / name).write_bytes(data)
        asked = {"files": list(made), "channels": dict.fromkeys(BY_CHANNEL, CHANNELS)}
        loaded = comfyui.run("comfyui_files.py", asked, Path(folder))
    _save("files", loaded | {f"{name}|file": np.frombuffer(data, np.uint8) for name, data in made.items()})


def mini15(comfyui: ComfyUI) -> None:
    """Make mini15.npz."""
    _save("mini15", comfyui.workflows(MINI15, models_dir("mini15")))


def sd15(comfyui: ComfyUI) -> None:
    """Make sd15.npz, of a file of 2.1 GB."""
    _save("sd15", comfyui.workflows(SD15, models_dir("sd15")))


def nodes_tiled(comfyui: ComfyUI) -> None:
    """Make nodes_tiled.npz."""
    with TemporaryDirectory() as folder:
        models = Path(folder)
        (models / "upscale_models").mkdir()
        save_file(tiled_cases.esrgan(), models / "upscale_models" / "esrgan.safetensors")
        (models / "checkpoints").symlink_to(models_dir("mini15") / "checkpoints")
        made = comfyui.workflows(tiled_cases.CASES, models)
    kept = {name: array[:, ::4, ::4] if name.startswith("decode") else array for name, array in made.items()}
    _save("nodes_tiled", kept | {"upscale": made["upscale"][:, :, tiled_cases.LAST_COLUMNS :]})


def taesd(comfyui: ComfyUI) -> None:
    """Make taesd.npz."""
    with TemporaryDirectory() as models:
        taesd_cases.write(Path(models))
        _save("taesd", comfyui.workflows(taesd_cases.CASES, Path(models)))


def pixel_space(comfyui: ComfyUI) -> None:
    """Make pixel_space.npz."""
    with TemporaryDirectory() as models:
        _save("pixel_space", comfyui.workflows(pixel_space_cases.CASES, Path(models)))


def _levels(comfyui: ComfyUI, given: Mapping[str, Any], asked: Any) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as folder:
        np.savez(Path(folder) / "given.npz", **given)
        return comfyui.run("comfyui_levels.py", asked, Path(folder))


def model_sampling(comfyui: ComfyUI) -> None:
    """Make model_sampling.npz, of the levels, inputs and answers of a network that are in it."""
    held = dict(np.load(GOLDEN / "model_sampling.npz"))
    given = {name: array for name, array in held.items() if name in ("x", "output") or name.endswith("|sigma")}
    names = [name.removesuffix("|sigma") for name in given if name.endswith("|sigma")]
    schedules = ("simple", "sgm_uniform", "karras", "normal", "beta", "ddim_uniform")
    made = _levels(comfyui, given, {"names": names, "schedules": schedules, "steps": 7})
    _save("model_sampling", given | made)


def conditioning(comfyui: ComfyUI) -> None:
    """Make conditioning.npz, of the masks that are in it."""
    masks = {name: array for name, array in np.load(GOLDEN / "conditioning.npz").items() if name.endswith("|mask")}
    cases = json.loads((GOLDEN / "conditioning.json").read_text())
    _save("conditioning", masks | _levels(comfyui, masks, {"cases": cases}))


_MAKERS = (
    *(mini15, sd15, nodes_tiled, taesd, pixel_space, model_sampling, conditioning),
    *(samplers, grid, flow_grid, flow_runs, sampler_options, wan_workflows, ltx_workflows),
    *(nodes, sounds, media, files, texts, network_texts, generations),
)
MAKERS: dict[str, Callable[[ComfyUI], None]] = {
    **{make.__name__: make for make in _MAKERS},
    **{name: maker(name) for name in NETWORKS},
}


def main(comfyui: ComfyUI, names: Sequence[str]) -> None:
    """Make the named files, or all."""
    for name in names or MAKERS:
        MAKERS[name](comfyui)
        print(name, flush=True)


if __name__ == "__main__":
    main(ComfyUI(Path(sys.argv[1]), Path(sys.argv[2])), sys.argv[3:])
