"""What replicas are told to load ahead: the models of the next line, once, and nothing where it is no use."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from serve_app.graph.graph import Graph, Link, Node
from serve_app.recipe.recipe import Recipe, encoders
from serve_app.scheduler.core import prefetch
from serve_app.scheduler.core.dispatch import MIN_WORK_PER_LOAD
from serve_app.scheduler.core.events import CancelAsked, Command, ReplicaLost, TimePassed
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.core.model_files import MOST_LORAS, files_of, recipes_of
from serve_app.scheduler.core.prefetch import CANDIDATES
from serve_app.scheduler.protocol.messages import Message, Prefetch, ResidentWeights
from tests.unit.scheduler.core.test_dispatch import LOAD_S, STEP_S, Loaded, with_room
from tests.unit.scheduler.script import assigned, sent


def drawn(seed: Any) -> tuple[Graph, dict[str, str]]:
    """CheckpointLoaderSimple -> Sample -> Save with a model; seed: (number, model, steps)."""
    number, model, steps = seed
    nodes = {
        "1": Node("1", "CheckpointLoaderSimple", {"ckpt_name": f"sub/{model}.safetensors"}),
        "2": Node("2", "Sample", {"model": Link("1", 0), "steps": steps}),
        "3": Node("3", "Save", {"images": Link("2", 0)}),
    }
    return Graph(nodes), {"1": f"load-{model}", "2": f"sample-{number}", "3": f"save-{number}"}


def without_model(seed: Any) -> tuple[Graph, dict[str, str]]:
    """A picture that no model makes. seed: (number, anything, steps)."""
    nodes = {"2": Node("2", "Sample", {"steps": seed[2]}), "3": Node("3", "Save", {"images": Link("2", 0)})}
    return Graph(nodes), {"2": f"sample-{seed[0]}", "3": f"save-{seed[0]}"}


def with_lora(seed: Any) -> tuple[Graph, dict[str, str]]:
    """As `drawn`, with a LoRA on a model that is written "model+lora"."""
    graph, signatures = drawn((seed[0], seed[1].partition("+")[0], seed[2]))
    if not (lora := seed[1].partition("+")[2]):
        return graph, signatures
    inputs = {"lora_name": f"{lora}.safetensors", "strength_model": 1.0, "model": Link("1", 0)}
    sampler = Node("2", "Sample", {"model": Link("4", 0), "steps": seed[2]})
    nodes = {**graph.nodes, "4": Node("4", "LoraLoaderModelOnly", inputs), "2": sampler}
    return Graph(nodes), {**signatures, "4": f"load-{seed[1]}"}


def unnamed(seed: Any) -> tuple[Graph, dict[str, str]]:
    """As `drawn`, by a loader of which it is not known what it loads from its two files."""
    graph, signatures = drawn(seed)
    inputs = {"first": f"sub/{seed[1]}.safetensors", "second": "other.safetensors"}
    return Graph({**graph.nodes, "1": Node("1", "Load", inputs)}), signatures


class Named(Loaded):
    """A script of jobs whose loaders are known by name."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = drawn

    def told(self, commands: Sequence[Command] | None = None) -> list[tuple[str, tuple[Recipe, ...]]]:
        """Return which replicas were told to load what ahead."""
        messages: list[tuple[str, Message]] = sent(self.commands if commands is None else commands, Prefetch)
        return [(name, message.recipes) for name, message in messages if isinstance(message, Prefetch)]

    def busy(self, name: str, model: str) -> None:
        """A replica that holds a model and runs a job of it."""
        self.holding(name, model)
        assert self.submit(f"running on {name}", model) == [name]


def model(name: str) -> tuple[Recipe, ...]:
    return (Recipe("backbone", "checkpoints", f"sub/{name}.safetensors"),)


def test_a_busy_replica_prefetches_the_next_model_once() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("next", "b")
    script.submit("later", "c")
    script.submit("same", "b")
    assert script.told() == [("r1", model("b"))]
    [(_, message)] = sent(script.commands, Prefetch)
    assert message == Prefetch(model("b"), ("b.safetensors",))


def test_what_queued_jobs_need_is_to_be_spared() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("same", "a")
    assert script.told() == []
    script.submit("next", "b", number=-1)
    [(_, message)] = sent(script.commands, Prefetch)
    assert message == Prefetch(model("b"), ("a.safetensors", "b.safetensors"))


def test_a_replica_prefetches_nothing_while_its_own_models_queue_is_first() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("same", "a")
    script.submit("next", "b")
    assert script.told() == []
    assert script.finish("r1") == ["same"]
    assert script.told() == [("r1", model("b"))]


@pytest.mark.parametrize(
    ("room", "own_s", "told"),
    [(True, LOAD_S - 2, [("r1", "c")]), (True, LOAD_S - 1, []), (False, LOAD_S - 2, [])],
)
def test_a_replica_with_room_prefetches_another_model_once_its_own_queue_ends_before_the_load(
    room: bool, own_s: float, told: list[tuple[str, str]]
) -> None:
    script = Named()
    if room:
        with_room(script, "r1")
    else:
        script.holding("r1", "b")
    script.submit("running on r1", "b")
    script.submit("same", "b", steps=int(own_s / STEP_S))
    script.submit("next", "c")
    assert script.told() == [(name, model(file)) for name, file in told], "what runs takes a second more"


def test_it_prefetches_again_while_jobs_of_the_model_it_loaded_run() -> None:
    script = Named()
    with_room(script, "r1")
    script.submit("running on r1", "b")
    script.submit("same", "b", steps=1)
    script.machine.replicas["r1"].owed_s = MIN_WORK_PER_LOAD * LOAD_S
    script.submit("next", "c")
    assert script.told() == [("r1", model("c"))]


def test_tasks_without_a_model_are_not_a_queue_that_a_replica_stays_with() -> None:
    script = Named()
    with_room(script, "r1")
    script.graph = without_model
    assert script.submit("running on r1", "none") == ["r1"]
    script.submit("same", "none")
    script.machine.replicas["r1"].owed_s = MIN_WORK_PER_LOAD * LOAD_S
    script.graph = drawn
    script.submit("next", "c")
    assert script.told() == [("r1", model("c"))]


def test_no_mix_of_jobs_and_replicas_has_the_machine_fail() -> None:
    for seed in range(500):
        chance, script = random.Random(seed), Named()
        names = [f"r{number}" for number in range(chance.randint(1, 4))]
        for name in names:
            if chance.random() < 0.5:
                with_room(script, name)
            else:
                script.holding(name, "a")
        for number in range(chance.randint(3, 30)):
            name = chance.choice(names)
            if chance.random() < 0.6:
                script.graph = chance.choice([drawn, with_lora, without_model, unnamed])
                lora = chance.choice(["", "+x"]) if script.graph is with_lora else ""
                script.submit(f"j{number}", chance.choice("abcdef") + lora, steps=chance.randint(1, 20))
            elif len(script.machine.replicas[name].running) == 1:
                script.finish(name)
            script.machine.replicas[name].owed_s = chance.choice([0.0, LOAD_S, MIN_WORK_PER_LOAD * LOAD_S])


def test_a_prefetch_is_cancelled_where_another_replica_takes_the_queue() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("next", "b")
    script.replica("r2")
    assert script.started() == ["running on r1", "next"]
    assert script.told() == [("r1", model("b")), ("r1", ())]
    assert "b.safetensors" not in script.machine.replicas["r1"].files


def test_once_it_has_the_file_the_next_model_is_prefetched() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("next", "b")
    script.submit("later", "c")
    held = ("backbone checkpoints/sub/a.safetensors", "backbone checkpoints/sub/b.safetensors")
    assert script.told(script.report("r1", ResidentWeights(held))) == []
    assert script.finish("r1") == ["next"]
    assert script.told()[1:] == [("r1", model("c"))]
    assert script.machine.replicas["r1"].owed_s == MIN_WORK_PER_LOAD * LOAD_S, (
        "it works for what it is told, as for what it loads"
    )


def test_a_replica_whose_models_have_no_queue_prefetches_first() -> None:
    script = Named()
    script.busy("r1", "a")
    script.busy("r2", "b")
    script.submit("same", "a")
    script.submit("next", "c")
    assert script.told() == [("r2", model("c"))]


def test_each_replica_prefetches_one_model() -> None:
    script = Named()
    script.busy("r1", "a")
    script.busy("r2", "b")
    for name in ("c", "d", "e"):
        script.submit(name, name)
    assert script.told() == [("r1", model("c")), ("r2", model("d"))]


def test_a_plan_that_changes_is_called_off() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("next", "b")
    assert script.told(script.apply(CancelAsked("next"))) == [("r1", ())]
    script.submit("other", "c")
    assert script.told()[-1] == ("r1", model("c"))


def test_another_replica_prefetches_after_a_replica_is_lost() -> None:
    script = Named()
    script.busy("r1", "a")
    script.busy("r2", "b")
    script.submit("next", "c")
    assert script.told() == [("r1", model("c"))]
    script.apply(ReplicaLost("r1"))
    # What ran there is before the next in order, and its model is held nowhere any more.
    assert script.told()[-1] == ("r2", model("a"))


def test_nothing_is_prefetched_for_what_starts_at_once_or_is_loaded_somewhere() -> None:
    script = Named()
    script.replica("r1")
    assert script.submit("first", "a") == ["r1"]
    script.busy("r2", "b")
    script.submit("second", "b")
    assert script.told() == []


def lora(name: str, on: str) -> tuple[Recipe, ...]:
    return tuple(recipe.with_lora(f"{name}.safetensors", 1.0) for recipe in model(on))


class WithLoras(Named):
    """A script of jobs that may have a LoRA each."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = with_lora


def test_a_lora_of_the_next_task_is_prefetched_once_where_it_is_missing() -> None:
    script = WithLoras()
    script.busy("r1", "a")
    script.submit("next", "a+l")
    script.submit("later", "a+m")
    assert script.told() == [("r1", lora("l", "a"))]
    held = ("backbone checkpoints/sub/a.safetensors", "backbone checkpoints/sub/a.safetensors + l.safetensors 1")
    script.report("r1", ResidentWeights(held))
    assert script.finish("r1") == ["next"]
    assert script.told()[1:] == [("r1", lora("m", "a"))]
    script.report("r1", ResidentWeights((*held, "backbone checkpoints/sub/a.safetensors + m.safetensors 1")))
    script.submit("again", "a+m", number=-1)
    assert len(script.told()) == 2, "what is held is not told of"


def test_the_replica_that_is_expected_to_be_free_first_prefetches_the_lora() -> None:
    script = WithLoras()
    for name in ("r1", "r2", "r3"):
        script.holding(name, "a" if name != "r3" else "b")
    assert script.submit("long", "a", steps=50) == ["r1"]
    assert script.submit("short", "a", steps=10) == ["r2"]
    assert script.submit("other", "b", steps=1) == ["r3"]
    script.submit("next", "a+l")
    assert script.told() == [("r2", lora("l", "a"))]


def test_loras_of_a_queues_next_tasks_are_prefetched_where_each_is_expected_to_start() -> None:
    script = WithLoras()
    for number, steps in enumerate((50, 10, 30)):
        script.holding(f"r{number}", "a")
        assert script.submit(f"running {number}", "a", steps=steps) == [f"r{number}"]
    for name in ("a+first", "a", "a+third", "a+fourth"):
        script.submit(name, name)
    assert script.told() == [("r1", lora("first", "a")), ("r0", lora("third", "a"))]


def test_an_unknown_lora_makes_no_queue_of_its_own() -> None:
    script = WithLoras()
    script.busy("r1", "a")
    script.submit("next", "a+never seen")
    assert script.machine.backlog("gpu").waiting_s.keys() == {"a.safetensors"}


def test_a_replica_serves_its_own_queue_while_it_prefetches_for_another_but_not_for_long() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("next", "b")
    for name in ("own 1", "own 2", "own 3"):
        script.submit(name, "a")
    assert script.told() == [("r1", model("b"))]
    assert script.finish("r1") == ["own 1"]
    script.at_s += prefetch.OVERDUE * LOAD_S
    script.apply(TimePassed())
    assert script.finish("r1") == ["next"]


def test_a_long_queue_is_prefetched_for_by_one_more_replica_with_room() -> None:
    script = Named()
    script.holding("r1", "a")
    assert script.submit("running on r1", "a") == ["r1"]
    script.replica("r2")
    held = ("b", "x", "y")
    script.report("r2", ResidentWeights(tuple(f"backbone checkpoints/sub/{name}.safetensors" for name in held)))
    script.busy("r3", "c")
    assert script.submit("running on r2", "b") == ["r2"]
    script.submit("of a line that is done soon", "b", steps=1)
    script.submit("little", "a", steps=1)
    assert script.told() == []
    for number in range(3):
        script.submit(f"much {number}", "a", steps=int(prefetch.SPREAD * LOAD_S))
    assert script.told() == [("r3", model("a"))], "r2 has no room, as far as is known, and one is enough at a time"


@pytest.mark.parametrize(
    ("earlier", "told"),
    [(["x", "z"], []), (["xy", "z"], [("r1", model("b"))]), (["x", "", "z"], [("r1", model("b"))])],
)
def test_after_an_eviction_only_replicas_with_less_weights_prefetch(
    earlier: list[str], told: list[tuple[str, tuple[Recipe, ...]]]
) -> None:
    script = Named()
    script.replica("earlier")
    for held in earlier:
        script.report(
            "earlier", ResidentWeights(tuple(f"backbone checkpoints/sub/{name}.safetensors" for name in held))
        )
    script.apply(ReplicaLost("earlier"))
    script.busy("r1", "a")
    script.submit("next", "b")
    assert script.told() == told
    assert script.finish("r1") == ["next"]


def test_nothing_is_prefetched_where_loading_is_known_to_take_no_time() -> None:
    script = Named()
    script.machine = Machine(epoch=1, max_attempts=3)
    script.busy("r1", "a")
    script.submit("next", "b")
    assert script.told() == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Of which graphs it was asked what models they use."""
    asked = []

    def counting(graph: Graph, nodes: Any) -> tuple[Recipe, ...]:
        asked.append(graph)
        return recipes_of(graph, nodes)

    monkeypatch.setattr(prefetch, "recipes_of", counting)
    return asked


def test_a_graph_without_models_is_searched_once(asked: list[Graph]) -> None:
    script = Named()
    script.busy("r1", "a")
    script.graph = unnamed
    script.submit("of a loader that is not known", "a")
    script.graph = drawn
    for number in range(20):
        script.submit(f"later {number}", "a")
    assert (script.told(), len(asked)) == ([], 1)


def test_of_many_model_queues_few_are_looked_at(asked: list[Graph]) -> None:
    script = Named()
    for number in range(3 * CANDIDATES):
        script.busy(f"r{number}", f"held {number}")
    for number in range(200):
        script.submit(f"next {number}", f"model {number}")
    assert len(script.told()) == len(asked) == CANDIDATES
    assert not assigned(script.commands[-1:])


BACKBONE = Recipe("backbone", "checkpoints", "a.safetensors")
TEXT = Recipe("clip", "checkpoints", "a.safetensors")


@pytest.mark.parametrize(
    ("class_type", "inputs", "found"),
    [
        ("CheckpointLoaderSimple", {"ckpt_name": "a.safetensors"}, BACKBONE),
        ("UNETLoader", {"unet_name": "a.gguf", "weight_dtype": "default"},
         Recipe("backbone", "diffusion_models", "a.gguf")),
        ("UNETLoader", {"unet_name": "a.safetensors", "weight_dtype": "fp8_e4m3fn"}, None),
        ("VAELoader", {"vae_name": "a"}, Recipe("vae", "vae", "a")),
        ("CLIPLoader", {"clip_name": "t5", "type": "chroma"}, encoders("chroma", "t5")),
        ("DualCLIPLoader", {"clip_name1": "l", "clip_name2": "t5", "type": "flux"}, encoders("flux", "l", "t5")),
        ("TripleCLIPLoader", dict(zip(("clip_name1", "clip_name2", "clip_name3"), "lgt", strict=True)),
         encoders("sd3", "l", "g", "t")),
        ("CheckpointLoaderSimple", {"ckpt_name": Link("2", 0)}, None),
        ("KSampler", {"sampler_name": "euler"}, None),
    ],
)  # fmt: skip
def test_loaders_that_name_their_files_outright_say_which_models_they_load(
    class_type: str, inputs: dict[str, Any], found: Recipe | None
) -> None:
    graph = Graph({"1": Node("1", class_type, inputs), "2": Node("2", "Use", {"model": Link("1", 0)})})
    assert recipes_of(graph, ["1", "2"]) == (() if found is None else (found,))


def test_models_are_prefetched_with_their_loras() -> None:
    both = {"lora_name": "l.safetensors", "strength_model": 0.5, "strength_clip": 0, "model": Link("1", 0)}
    more = {"lora_name": "m.safetensors", "strength_model": Link("9", 0), "model": Link("2", 0)}
    graph = Graph({
        "1": Node("1", "CheckpointLoaderSimple", {"ckpt_name": "a.safetensors"}),
        "2": Node("2", "LoraLoader", {**both, "clip": Link("1", 1)}),
        "3": Node("3", "LoraLoaderModelOnly", more),
        "4": Node("4", "Encode", {"clip": Link("2", 1)}),
        "5": Node("5", "Sample", {"model": Link("3", 0), "texts": Link("4", 0)}),
        "6": Node("6", "Decode", {"vae": Link("1", 2), "latents": Link("5", 0), "seen by": Link("1", 3)}),
    })  # fmt: skip
    vae = Recipe("vae", "checkpoints", "a.safetensors")
    assert recipes_of(graph, graph.nodes) == (TEXT, BACKBONE.with_lora("l.safetensors", 0.5), vae)
    files = files_of(graph, graph.nodes)
    assert (files.all, files.whole) == (("a.safetensors", "l.safetensors", "m.safetensors"), ("a.safetensors",))


def test_a_chain_of_thousands_of_loras_is_not_prefetched() -> None:
    length = 5000
    nodes = {"0": Node("0", "UNETLoader", {"unet_name": "a.safetensors"})}
    for n in range(1, length + 1):
        lora = {"lora_name": "l.safetensors", "strength_model": 1.0, "model": Link(str(n - 1), 0)}
        nodes[str(n)] = Node(str(n), "LoraLoaderModelOnly", lora)
    for n in (length, MOST_LORAS):
        nodes[f"use {n}"] = Node(f"use {n}", "Use", {"model": Link(str(n), 0)})
    [recipe] = recipes_of(Graph(nodes), nodes)
    assert len(recipe.patches) == MOST_LORAS
