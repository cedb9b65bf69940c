"""That what is run on a GPU in one command runs: on a card that only claims to be one, where figures mean nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from math import isfinite
from pathlib import Path

import pytest
import torch

from bench.step_jobs import SMALL_JOBS
from tests.gpu import __main__ as command
from tests.gpu import measure
from tests.gpu.bench import Bench
from tests.gpu.beside import SAMPLERS
from tests.gpu.models import SMALL
from tests.gpu.predictions import PREDICTED
from tests.gpu.results import Failure, Figure, Results, Stage

ROOT = Path(__file__).parents[2]
BESIDE_COMFYUI = {"SD 1.5, euler, eight jobs over ComfyUI's speed", "SDXL, loaded by ComfyUI"}
"""What is measured where a ComfyUI is named."""
PART_S = 840.0
"""How long a part may take: a test has 15 minutes."""
SAME = 1e-5
"""How far a CPU's results may be from its own, where other kernels give them."""


def rehearsed(out: Path, *arguments: str, limit_s: float = 600) -> dict[str, float]:
    """Return the figures of a rehearsal by name. Errors: where any of it failed, or took longer."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--rehearse", "--out", out, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=limit_s,
    )
    assert ran.returncode == 0, ran.stdout
    return {row.name: row.value for row in Results(out).rows() if isinstance(row, Figure)}


@pytest.mark.long
def test_a_stage_runs_and_writes_what_it_measured_and_that_it_measured_nothing(tmp_path: Path) -> None:
    found = rehearsed(tmp_path / "rehearsed.jsonl", "card")
    assert round(found["context of another process"]) == 500
    assert found["SD 1.5, 16 rows in another order"] == 0
    assert "no figure means anything" in (tmp_path / "rehearsed.md").read_text()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, float]]:
    """Return what rehearses a part, once, and returns its figures."""
    folder = tmp_path_factory.mktemp("rehearsed")
    return cache(lambda part: rehearsed(folder / f"{part}.jsonl", part, limit_s=PART_S))


@pytest.mark.long
@pytest.mark.parametrize("part", command.PARTS)
def test_each_part_runs(parts: Callable[[str], dict[str, float]], part: str) -> None:
    found = parts(part)
    rows = (", 16 rows in another order", ", 2 rows alone and among 16")
    compared = [value for name, value in found.items() if ", off a CPU's" in name or name.endswith(rows)]
    assert max(compared, default=0) <= SAME
    assert all(isfinite(value) for name, value in found.items() if "attention by" not in name)


@pytest.mark.long
def test_all_that_was_predicted_is_measured(parts: Callable[[str], dict[str, float]]) -> None:
    found = {name for part in command.PARTS for name in parts(part)}
    assert set(PREDICTED) - found == BESIDE_COMFYUI


def beside_comfyui(out: Path, part: str) -> dict[str, float]:
    """Return the figures of a part that is rehearsed beside a ComfyUI."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    return rehearsed(out, part, "--comfyui", os.environ["COMFYUI_HOME"], "--comfyui-python", python)


@pytest.mark.comfyui
def test_comfyuis_modules_run_the_same_steps_beside(tmp_path: Path) -> None:
    found = beside_comfyui(tmp_path / "rehearsed.jsonl", "transformers")
    assert {title for title in SMALL_JOBS if f"{title}, over ComfyUI's speed" in found} == SMALL_JOBS.keys()


@pytest.mark.comfyui
def test_comfyui_samples_the_same_files_beside(tmp_path: Path) -> None:
    found = beside_comfyui(tmp_path / "rehearsed.jsonl", "jobs")
    assert set(found) >= BESIDE_COMFYUI
    for model in SMALL:
        assert found[f"{model.name}, euler, eight jobs over ComfyUI's speed"] > 0
        for sampler in SAMPLERS:
            assert found[f"{model.name}, {sampler}, one job over ComfyUI's speed"] > 0


def test_a_measure_that_fails_keeps_no_other_from_being_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(bench: Bench) -> Iterator[Figure]:
        yield Figure("before", 1.0, "s")
        raise torch.OutOfMemoryError("CUDA out of memory")

    def works(bench: Bench) -> Iterator[Figure]:
        yield Figure("after", 2.0, "s")

    monkeypatch.setattr(measure, "STAGES", {"stage": (fails, works)})
    found = [*measure.measured(Bench(torch.device("cpu"), small=True), "stage")]
    assert [row.name for row in found] == ["before", "fails", "after"]
    assert found[1] == Failure("fails", "OutOfMemoryError: CUDA out of memory")


def test_a_part_that_hangs_is_ended_and_the_next_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "measured.jsonl"
    monkeypatch.setattr(command, "PARTS", {"tests": 0.001})
    monkeypatch.setattr(command, "GRACE_S", 0.1)
    monkeypatch.setattr(command, "TESTS", ("timeit", "-n", "1", "import time; time.sleep(1000)"))
    assert command.main(["tests", "tests", "--minutes", "1", "--out", str(out)]) == 1
    assert Results(out).rows() == [Failure("tests", "ended after 0.001 minutes, as it hung")] * 2


def test_results_are_a_table_of_each_stage(tmp_path: Path) -> None:
    results = Results(tmp_path / "measured.jsonl")
    results.add(Stage("card", "a card", "2.13", rehearsed=False))
    results.add(Figure("copy", 2.5, "TB/s", "3.0 TB/s", "2"))
    results.add(Failure("of_rows", "RuntimeError: a\nb"))
    page = (tmp_path / "measured.md").read_text()
    assert "## card\n\na card, torch 2.13." in page
    assert page.endswith("| copy | 2.5 TB/s | 3.0 TB/s | 2 |\n| of_rows | **failed**: RuntimeError: a b | | |\n")


def test_the_goals_of_one_h100_are_beside_what_is_measured() -> None:
    goals = {name: goal for name, (_, goal) in PREDICTED.items()}
    assert goals["SD 1.5, image of 1 job"] == "0.22 s"
    assert goals["SD 1.5, euler, eight jobs over ComfyUI's speed"] == "3.5"
    assert goals["SDXL, images a second of 8 jobs"] == "1.5"
