from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidGraphError
from serve_app.graph.parse import parse
from serve_app.graph.plan import TASKS_LIMIT, WIDTH, Plan, Pool, TaskPlan, plan
from tests.unit.graph.classes import SPECS, wire

GPU = Pool("gpu", runtime=True)
CPU = Pool("cpu", runtime=False)


def cut(prompt: dict[str, Any], *pools: Pool, outputs: tuple[str, ...] = ("9",)) -> Plan:
    return plan(parse(prompt), SPECS, outputs, {}, pools)


def summary(made: Plan) -> list[tuple[str, set[str], set[str], set[str]]]:
    return [(task.pool, set(task.nodes), set(task.targets), set(task.needs)) for task in made.tasks]


def test_a_pool_that_takes_all_gets_the_whole_job_as_one_task() -> None:
    everything = set(wire())
    for pools in ((GPU,), (CPU, GPU), (GPU, CPU), (Pool("odd", True, ("Save",)), GPU)):
        assert summary(cut(wire(), *pools)) == [("gpu", everything, {"9"}, set())]


def test_nodes_no_output_needs_are_left_out() -> None:
    prompt = wire()
    prompt["lost"] = {"class_type": "Empty", "inputs": {}}
    assert set(cut(prompt, GPU).tasks[0].nodes) == set(wire())


def test_stages_split_over_pools_become_a_chain_of_tasks() -> None:
    text = Pool("text", True, ("Encode", "Loader"))
    unet = Pool("unet", True, ("Sampler", "Empty"))
    vae = Pool("vae", True, ("Decode", "Save"))
    assert summary(cut(wire(), text, unet, vae)) == [
        ("text", {"4", "6"}, {"4", "6"}, set()),
        ("unet", {"5", "3"}, {"3"}, {"4", "6"}),
        ("vae", {"8", "9"}, {"9"}, {"3", "4"}),
    ]


def test_a_node_without_a_model_is_placed_with_its_consumer_else_its_producer_else_in_the_first_pool() -> None:
    samplers = Pool("samplers", True, ("Sampler", "Encode", "Empty", "Loader"))
    rest = Pool("rest", True, ("Decode", "Scale", "Save", "Loader", "Empty"))
    prompt = wire()
    prompt["10"] = {"class_type": "Scale", "inputs": {"image": ["8", 0], "width": 8}}
    prompt["9"]["inputs"]["images"] = ["10", 0]
    made = cut(prompt, CPU, samplers, rest)
    pool_of = {node_id: task.pool for task in made.tasks for node_id in task.nodes}
    assert pool_of["5"] == "samplers"
    assert pool_of["10"] == pool_of["9"] == "rest"


def test_a_run_is_split_where_one_task_would_need_itself() -> None:
    prompt = {
        "a": {"class_type": "Encode", "inputs": {}},
        "b": {"class_type": "Scale", "inputs": {"image": ["a", 0]}},
        "c": {"class_type": "Decode", "inputs": {"samples": ["a", 0], "vae": ["b", 0]}},
    }
    gpu, cpu = Pool("gpu", True, ("Encode", "Decode")), Pool("cpu", False, ("Scale",))
    assert summary(cut(prompt, gpu, cpu, outputs=("c",))) == [
        ("gpu", {"a"}, {"a"}, set()),
        ("cpu", {"b"}, {"b"}, {"a"}),
        ("gpu", {"c"}, {"c"}, {"a", "b"}),
    ]


def test_an_early_node_waits_for_the_run_of_its_consumer() -> None:
    prompt = {
        "late": {"class_type": "Encode", "inputs": {}},
        "a": {"class_type": "Encode", "inputs": {}},
        "b": {"class_type": "Scale", "inputs": {"image": ["a", 0]}},
        "c": {"class_type": "Decode", "inputs": {"samples": ["late", 0], "vae": ["b", 0]}},
    }
    gpu, cpu = Pool("gpu", True, ("Encode", "Decode")), Pool("cpu", False, ("Scale",))
    made = cut(prompt, gpu, cpu, outputs=("c",))
    assert [set(task.nodes) for task in made.tasks] == [{"a"}, {"b"}, {"c", "late"}]


def test_an_output_of_an_early_node_does_not_wait_for_later_runs() -> None:
    prompt = {
        "a": {"class_type": "Encode", "inputs": {}},
        "early": {"class_type": "Decode", "inputs": {"samples": ["a", 0]}},
        "b": {"class_type": "Scale", "inputs": {"image": ["a", 0]}},
        "c": {"class_type": "Decode", "inputs": {"samples": ["b", 0]}},
    }
    gpu, cpu = Pool("gpu", True, ("Encode", "Decode")), Pool("cpu", False, ("Scale",))
    made = cut(prompt, gpu, cpu, outputs=("early", "c"))
    assert [set(task.nodes) for task in made.tasks] == [{"a", "early"}, {"b"}, {"c"}]


def test_nodes_that_no_pool_takes_are_all_named() -> None:
    with pytest.raises(InvalidGraphError) as caught:
        cut(wire(), CPU, Pool("odd", True, ("Encode",)))
    assert {problem.node_id for problem in caught.value.problems} == {"3", "8"}
    assert "needs one with models" in str(caught.value)
    assert "odd accepts Encode" in str(caught.value)


CLASSES = ["Encode", "Decode", "Scale", "Any", "Save"]
PATTERNS = st.lists(st.sampled_from([*CLASSES, "*", "?n*"]), min_size=1, max_size=3).map(tuple)
POOLS = st.lists(st.tuples(st.booleans(), PATTERNS), min_size=1, max_size=4).map(
    lambda rows: [*(Pool(f"p{i}", runtime, accepts) for i, (runtime, accepts) in enumerate(rows))]
)


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    prompt: dict[str, Any] = {}
    for i in range(draw(st.integers(1, 12))):
        sources = draw(st.lists(st.sampled_from(sorted(prompt)), max_size=3)) if prompt else []
        inputs = {f"i{k}": [source, 0] for k, source in enumerate(sources)}
        prompt[f"n{i:02}"] = {"class_type": draw(st.sampled_from(CLASSES)), "inputs": inputs}
    return prompt


@given(workflows(), POOLS, st.data())
def test_any_plan_runs_every_needed_node_once_and_each_task_after_what_it_needs(
    prompt: dict[str, Any], pools: list[Pool], data: st.DataObject
) -> None:
    graph = parse(prompt)
    outputs = tuple(data.draw(st.lists(st.sampled_from(sorted(prompt)), min_size=1, unique=True)))
    needed = set(graph.ancestors(outputs))
    try:
        made = plan(graph, SPECS, outputs, {}, [*pools, *data.draw(st.sampled_from([[], [GPU]]))])
    except InvalidGraphError as error:
        homeless = {problem.node_id for problem in error.problems}
    else:
        homeless = set()
        check(made, prompt, needed, outputs, {pool.name: pool for pool in [*pools, GPU]})
    for node_id in homeless:
        assert node_id in needed
        assert not any(takes(pool, prompt[node_id]["class_type"]) for pool in pools)


def takes(pool: Pool, class_type: str) -> bool:
    return (pool.runtime or not SPECS[class_type].runtime) and any(fnmatchcase(class_type, p) for p in pool.accepts)


def check(
    made: Plan, prompt: dict[str, Any], needed: set[str], outputs: tuple[str, ...], pools: dict[str, Pool]
) -> None:
    ran = [node_id for task in made.tasks for node_id in task.nodes]
    assert sorted(ran) == sorted(needed)
    task_of = {node_id: task for task in made.tasks for node_id in task.nodes}
    links = {(source, node_id) for node_id in needed for source, _ in prompt[node_id]["inputs"].values()}
    for number, task in enumerate(made.tasks):
        assert task.index == number
        assert all(takes(pools[task.pool], prompt[node_id]["class_type"]) for node_id in task.nodes)
        assert set(task.needs) == {a for a, b in links if task_of[b] is task and task_of[a] is not task}
        assert all(task_of[need].index < number for need in task.needs)
        wanted = {a for a, b in links if task_of[a] is task and task_of[b] is not task}
        assert set(task.targets) == wanted | (set(outputs) & set(task.nodes))
    if len(made.tasks) > 1:
        assert all(connected(task, links) for task in made.tasks)


def connected(task: TaskPlan, links: set[tuple[str, str]]) -> bool:
    inside = {(a, b) for a, b in links if a in task.nodes and b in task.nodes}
    seen, size = {task.nodes[0]}, 0
    while size != len(seen):
        size = len(seen)
        seen |= {x for a, b in inside if a in seen or b in seen for x in (a, b)}
    return seen == set(task.nodes)


def changing_pools(times: int) -> Plan:
    ids = [f"n{i}" for i in range(times)]
    prompt: dict[str, Any] = {ids[0]: {"class_type": "Encode", "inputs": {}}}
    for i, (source, node_id) in enumerate(pairwise(ids)):
        prompt[node_id] = {"class_type": "Scale" if i % 2 == 0 else "Decode", "inputs": {"image": [source, 0]}}
    gpu, cpu = Pool("gpu", True, ("Encode", "Decode")), Pool("cpu", False, ("Scale",))
    return cut(prompt, gpu, cpu, outputs=(ids[-1],))


def test_a_long_workflow_that_changes_pool_at_every_node_is_planned_up_to_a_limit() -> None:
    assert len(changing_pools(TASKS_LIMIT).tasks) == TASKS_LIMIT
    with pytest.raises(InvalidGraphError, match=f"cut into {TASKS_LIMIT + 1} tasks, and {TASKS_LIMIT} are allowed"):
        changing_pools(TASKS_LIMIT + 1)


def test_unconnected_runs_are_tasks_of_their_own_until_there_are_many_of_them() -> None:
    def many(runs: int) -> Plan:
        prompt: dict[str, Any] = {}
        for i in range(runs):
            prompt[f"a{i}"] = {"class_type": "Encode", "inputs": {}}
            prompt[f"b{i}"] = {"class_type": "Save", "inputs": {"images": [f"a{i}", 0]}}
        return cut(prompt, GPU, outputs=tuple(f"b{i}" for i in range(runs)))

    assert len(many(WIDTH).tasks) == WIDTH
    made = many(8000)
    assert len(made.tasks) == WIDTH
    assert {(len(task.nodes), len(task.targets)) for task in made.tasks} == {(250, 125)}
