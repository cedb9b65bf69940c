"""`serve-app plan`: from the headers of files to what becomes of a job, and what it says of bad input."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.cli import main
from serve_app.models.families import Flux, Wan
from serve_app.models.families.family import Family
from serve_app.models.families.text.t5 import T5Text
from serve_app.models.files.layout import reverse, translate
from tests.parity import control_files, tiled_cases
from tests.templates import tiny
from tests.unit.models.sample import write_sample_checkpoint

NAMES = {"bf16": "BF16", "fp8": "F8_E4M3"}


def write(path: Path, family: Family, kind: str) -> Path:
    """Write a model file of full size without numbers, which takes no room: a header, and a hole behind it."""
    names, at = {} if isinstance(family, Flux) else reverse(family.table()), 0
    entries: dict[str, Any] = {}
    for ours, parameter in family.empty().state_dict().items():
        eight = kind == "fp8" and parameter.ndim == 2
        nbytes = prod(parameter.shape) * (1 if eight else 2)
        # Flux's published file has layers fused, diffusers' has the network's names.
        name = translate(ours, names) or ours
        dtype = NAMES[kind] if eight else "BF16"
        entries[name] = {"dtype": dtype, "shape": list(parameter.shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    return path


FLUX = Flux(3072, 24, 19, 38, 4096, 768)
WAN = Wan(5120, 40, 13824, 4096)
T5 = T5Text(layers=24, width=4096, hidden_width=10240, heads=64, head_width=64, buckets=32, vocabulary=32128)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = main(["plan", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out + output.err


def test_flux_in_fp8_takes_turns_with_its_text_encoder_or_streams_and_says_how_long_a_step_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flux, t5 = write(tmp_path / "flux.safetensors", FLUX, "fp8"), write(tmp_path / "t5.safetensors", T5, "bf16")
    status, text = run(capsys, flux, t5, "--gpu", "16G", "--ram", "32G")
    assert status == 0
    first, network, encoders, activations, evicted, step = text.splitlines()
    assert first == "Flux.1, 1024×1024: the parts take turns on the card"
    assert network == "  diffusion network: 11.9 GB, 11.9 GB on the card"
    assert encoders == "  text encoders: 9.5 GB, 9.5 GB on the card"
    assert re.fullmatch(r"  activations of one row: 0\.[5-9] GB", activations)
    assert evicted.startswith("  each new text reads 7.7 GB of evicted weights from files")
    assert re.fullmatch(r"a step takes about \d\.\d+ s, with a negative .* RTX 4070 Ti SUPER\)", step)
    status, text = run(capsys, flux, "--gpu", "8G", "--ram", "16G", "--json")
    made = json.loads(text)
    assert made["job"]["outcome"] == "streaming"
    assert 0 < made["job"]["backbone"]["file_bytes"] < made["job"]["backbone"]["streamed_bytes"]


def test_a_video_that_does_not_fit_says_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wan = write(tmp_path / "wan.safetensors", WAN, "fp8")
    size = ("--width", 1280, "--height", 720)
    assert run(capsys, wan, "--gpu", "8G", "--ram", "32G", *size)[0] == 0
    status, text = run(capsys, wan, "--gpu", "8G", "--ram", "32G", *size, "--frames", 161)
    assert status == 1
    assert "Wan, 1280×720, 161 frames: a forward does not fit the card" in text
    frames = re.search(r"what would fit: 1280×720, (\d+) frames or a card of 16 GB", text)
    assert frames is not None
    assert run(capsys, wan, "--gpu", "8G", "--ram", "32G", *size, "--frames", frames[1])[0] == 0


def test_a_video_whose_frames_are_rows_of_one_forward_is_counted_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svd = tmp_path / "svd.safetensors"
    save_file(dict(tiny.svd_checkpoint()), svd)
    asked = svd, "--gpu", "8G", "--ram", "16G", "--json"
    usual, fewer = (json.loads(run(capsys, *asked, *frames)[1]) for frames in ((), ("--frames", "7")))
    assert usual["size"] == {"width": 1024, "height": 576, "frames": 14, "samples": 0}
    assert 1.9 < usual["job"]["activation_bytes"] / fewer["job"]["activation_bytes"] < 2.1


def test_what_is_beside_the_network_is_in_the_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sample_checkpoint(tmp_path / "sd.safetensors")
    save_file({"a.lora_up.weight": torch.zeros(200, 10**5)}, tmp_path / "lora.safetensors")
    save_file(control_files.tensors("sd1"), tmp_path / "net.safetensors")
    save_file(tiled_cases.esrgan(), tmp_path / "esrgan.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in ("sd", "lora", "net", "esrgan")]
    alone, beside = (
        json.loads(run(capsys, *of, "--gpu", "24G", "--ram", "64G", "--json")[1])["job"] for of in (files[:1], files)
    )
    assert beside["added_bytes"] > 2 * 200 * 10**5 > 0 == alone["added_bytes"]
    assert beside["vae_bytes"] > alone["vae_bytes"]
    assert "LoRAs and ControlNets: 0." in run(capsys, *files, "--gpu", "24G", "--ram", "64G")[1]


def test_bad_input_is_an_error_that_names_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sd, text = tmp_path / "sd.safetensors", tmp_path / "text.safetensors"
    write_sample_checkpoint(sd)
    text.write_bytes(b"no header")
    card = ("--gpu", "24G", "--ram", "64G")
    wrong = {
        (sd, "--gpu", "24", "--ram", "64G"): "--gpu is '24'; give a size as 24G or 24576M",
        (sd, "--gpu", "24G", "--ram", "0G"): "--ram is '0G'; give a size as 24G or 24576M",
        (sd, "--gpu", "900M", "--ram", "64G"): "has no room beside the",
        (text, *card): "'text.safetensors' holds no diffusion network, text encoder, VAE, LoRA, ControlNet",
        ("absent", *card): "there is no file 'absent', and no model of that name in checkpoints, diffusion_models",
        (sd, sd, *card): "a job has one diffusion network, and these files have sd.safetensors, sd.safetensors",
        (sd, *card, "--frames", "81"): "--frames is 81, and Stable Diffusion 1.x and 2.x makes images; leave it out",
        (sd, *card, "--width", "4"): "the size is 4×512, and a cell of Stable Diffusion 1.x and 2.x is 8×8 pixels",
    }
    for arguments, said in wrong.items():
        status, printed = run(capsys, *arguments)
        assert status == 1
        assert said in printed


def test_a_plan_for_several_cards_says_how_they_divide_a_step_and_how_many_are_worth_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wan = write(tmp_path / "wan.safetensors", Wan(1536, 30, 8960, 4096), "bf16")
    status, text = run(capsys, wan, "--gpu", "80G", "--ram", "256G", "--devices", 4)
    assert status == 0, text
    assert re.search(r"  2: .* s, 2\.0 times as fast, by rows\n", text), text
    assert re.search(r"  4: .* times as fast, by rows and Ulysses, each sends \d\.\d GB\n", text), text
    assert text.rstrip().endswith("recommended: devices_per_replica: 4, parallel: auto")
    status, text = run(capsys, wan, "--gpu", "80G", "--ram", "256G", "--devices", 4, "--link", "string")
    assert (status, "--link is 'string'; allowed are nvlink, pcie5, pcie4, 100g" in text) == (1, True), text


def test_a_plan_with_sharded_weights_shards_those_that_would_stream_and_whose_parts_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wan = write(tmp_path / "wan.safetensors", Wan(5120, 12, 13824, 4096), "bf16")
    asked = [wan, "--gpu", "8G", "--ram", "64G", "--width", 256, "--height", 256, "--frames", 5, "--devices", 4]
    status, text = run(capsys, *asked, "--shard-weights")
    assert status == 0, text
    assert re.search(r"  3: .*, 2\.0 times as fast, by rows\n", text), text
    assert re.search(r"  4: .* by rows and Ulysses, weights sharded, each sends \d\.\d GB\n", text), text
    assert text.rstrip().endswith("recommended: devices_per_replica: 4, parallel: auto, shard_weights: auto")
    assert "sharded" not in run(capsys, *asked)[1]
