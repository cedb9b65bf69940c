from __future__ import annotations

from typing import Any

import pytest

from serve_app.config.pool import SHARED
from serve_app.errors import InvalidGraphError
from serve_app.graph.destination import destinations, own_signatures, plan_whole
from serve_app.graph.parse import parse
from serve_app.graph.plan import Pool
from tests.unit.graph.classes import SPECS, spec, wire

GPU = Pool("gpu", runtime=True)
THEIRS = Pool("comfyui", runtime=True, whole=True)
EAGER = Pool("eager", runtime=True, whole=True, prefers=("Samp*", "custom_nodes.Film*"))
FILM = {"Film": spec("Film", [], python_module="custom_nodes.FilmPack")}


def going(prompt: dict[str, Any], *pools: Pool, asked: str | None = None, **known: Any) -> list[str]:
    return destinations(parse(prompt), {SHARED: SPECS, **known}, pools, asked)


def film() -> dict[str, Any]:
    return wire() | {"film": {"class_type": "Film", "inputs": {}}}


def test_what_ours_have_goes_to_ours_first() -> None:
    assert going(wire(), GPU, THEIRS, comfyui=SPECS) == [SHARED, "comfyui"]
    assert going(wire(), THEIRS, GPU, comfyui=FILM) == [SHARED]


def test_any_other_goes_whole_to_a_pool_that_has_all_of_it() -> None:
    assert going(film(), GPU, THEIRS, comfyui={**SPECS, **FILM}) == ["comfyui"]


def test_a_preferred_class_or_pack_sends_it_there_first() -> None:
    assert going(wire(), GPU, EAGER, eager=SPECS) == ["eager", SHARED]
    assert going(film(), GPU, THEIRS, EAGER, comfyui={**SPECS, **FILM}, eager={**SPECS, **FILM}) == ["eager", "comfyui"]


def test_the_client_chooses() -> None:
    assert going(wire(), GPU, THEIRS, comfyui=SPECS, asked="comfyui") == ["comfyui"]
    assert going(wire(), GPU, EAGER, eager=SPECS, asked="gpu") == [SHARED]


def test_a_workflow_that_no_pool_can_run_is_refused_with_what_each_lacks() -> None:
    with pytest.raises(InvalidGraphError) as refused:
        going(film() | {"x": {"class_type": "Nobody", "inputs": {}}}, GPU, THEIRS, comfyui=FILM)
    problems = {problem.class_type: problem for problem in refused.value.problems}
    assert set(problems) == {"Film", "Nobody", *(node["class_type"] for node in wire().values())}
    assert "'Film' is lacked by gpu; pool comfyui has it" in problems["Film"].message
    assert "'Nobody' is lacked by gpu; comfyui; no pool has it" in problems["Nobody"].message
    assert problems["Film"].node_id == "film"
    assert problems["Film"].type == "missing_node_type"


def test_without_such_pools_validation_says_what_is_missing() -> None:
    assert going(film(), GPU) == [SHARED]


def test_a_whole_graph_is_one_task_whose_signatures_no_other_job_has() -> None:
    graph = parse(wire())
    one, other = (plan_whole(graph, ["9"], own_signatures(graph, name), "comfyui") for name in ("one", "other"))
    [task] = one.tasks
    assert (task.pool, set(task.nodes), task.targets, task.needs) == ("comfyui", set(wire()), ("9",), ())
    assert not set(one.signatures.values()) & set(other.signatures.values())
