"""What replicas are told to load ahead: the models of the next line, once, and nothing where it is no use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from serve_app.graph.graph import Graph, Link, Node
from serve_app.scheduler import ahead
from serve_app.scheduler.ahead import LOOKED_AT
from serve_app.scheduler.dispatch import PATIENCE
from serve_app.scheduler.machine import Machine
from serve_app.scheduler.messages import Message, Prefetch, Resident
from serve_app.scheduler.model_files import models_of
from serve_app.scheduler.stimuli import CancelAsked, Command, ReplicaLost
from tests.unit.scheduler.script import assigned, sent
from tests.unit.scheduler.test_dispatch import LOAD_S, Loaded


def drawn(seed: Any) -> tuple[Graph, dict[str, str]]:
    """CheckpointLoaderSimple -> Sample -> Save with a model; seed: (number, model, steps)."""
    number, model, steps = seed
    nodes = {
        "1": Node("1", "CheckpointLoaderSimple", {"ckpt_name": f"sub/{model}.safetensors"}),
        "2": Node("2", "Sample", {"model": Link("1", 0), "steps": steps}),
        "3": Node("3", "Save", {"images": Link("2", 0)}),
    }
    return Graph(nodes), {"1": f"load-{model}", "2": f"sample-{number}", "3": f"save-{number}"}


class Named(Loaded):
    """A script of jobs whose loaders are known by name."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = drawn

    def told(self, commands: Sequence[Command] | None = None) -> list[tuple[str, tuple[str, ...]]]:
        """Return which replicas were told to load what ahead."""
        messages: list[tuple[str, Message]] = sent(self.commands if commands is None else commands, Prefetch)
        return [(name, message.models) for name, message in messages if isinstance(message, Prefetch)]

    def busy(self, name: str, model: str) -> None:
        """A replica that holds a model and runs a job of it."""
        self.holding(name, model)
        assert self.submit(f"running on {name}", model) == [name]


def model(name: str) -> tuple[str, ...]:
    return (f"checkpoints/sub/{name}.safetensors",)


def test_a_busy_replica_is_told_once_of_the_next_model() -> None:
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


def test_a_replica_is_told_nothing_while_its_own_line_comes_before() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("same", "a")
    script.submit("next", "b")
    assert script.told() == []
    assert script.finish("r1") == ["same"]
    assert script.told() == [("r1", model("b"))]


def test_it_is_called_off_where_another_replica_takes_the_line() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("next", "b")
    script.replica("r2")
    assert script.started() == ["running on r1", "next"]
    assert script.told() == [("r1", model("b")), ("r1", ())]
    assert "b.safetensors" not in script.machine.replicas["r1"].files


def test_once_it_holds_the_file_its_job_is_as_any_other_and_the_next_is_told_of() -> None:
    script = Named()
    script.busy("r1", "a")
    script.submit("next", "b")
    script.submit("later", "c")
    held = ("backbone checkpoints/sub/a.safetensors", "backbone checkpoints/sub/b.safetensors")
    assert script.told(script.report("r1", Resident(held))) == []
    assert script.finish("r1") == ["next"]
    assert script.told()[1:] == [("r1", model("c"))]
    assert script.machine.replicas["r1"].owed_s == PATIENCE * LOAD_S, (
        "it works for what it is told, as for what it loads"
    )


def test_a_replica_without_a_line_of_its_own_is_told_first() -> None:
    script = Named()
    script.busy("r1", "a")
    script.busy("r2", "b")
    script.submit("same", "a")
    script.submit("next", "c")
    assert script.told() == [("r2", model("c"))]


def test_each_replica_is_told_of_one() -> None:
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
    assert script.told(script.feed(CancelAsked("next"))) == [("r1", ())]
    script.submit("other", "c")
    assert script.told()[-1] == ("r1", model("c"))


def test_where_the_told_replica_is_lost_another_is_told() -> None:
    script = Named()
    script.busy("r1", "a")
    script.busy("r2", "b")
    script.submit("next", "c")
    assert script.told() == [("r1", model("c"))]
    script.feed(ReplicaLost("r1"))
    # What ran there is before the next in order, and its model is held nowhere any more.
    assert script.told()[-1] == ("r2", model("a"))


def test_nothing_is_told_of_what_starts_at_once_or_of_what_some_replica_holds() -> None:
    script = Named()
    script.replica("r1")
    assert script.submit("first", "a") == ["r1"]
    script.busy("r2", "b")
    script.submit("second", "b")
    assert script.told() == []


@pytest.mark.parametrize(
    ("earlier", "told"),
    [(["x", "z"], []), (["xy", "z"], [("r1", model("b"))]), (["x", "", "z"], [("r1", model("b"))])],
)
def test_once_a_replica_has_let_weights_go_for_others_those_alone_are_told_that_hold_less_than_one_did(
    earlier: list[str], told: list[tuple[str, tuple[str, ...]]]
) -> None:
    script = Named()
    script.replica("earlier")
    for held in earlier:
        script.report("earlier", Resident(tuple(f"backbone checkpoints/sub/{name}.safetensors" for name in held)))
    script.feed(ReplicaLost("earlier"))
    script.busy("r1", "a")
    script.submit("next", "b")
    assert script.told() == told
    assert script.finish("r1") == ["next"]


def test_nothing_is_told_where_loading_takes_no_time_as_far_as_is_known() -> None:
    script = Named()
    script.machine = Machine(epoch=1, max_attempts=3)
    script.busy("r1", "a")
    script.submit("next", "b")
    assert script.told() == []


def test_of_many_lines_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counting(graph: Graph, nodes: Any) -> tuple[str, ...]:
        asked.append(graph)
        return models_of(graph, nodes)

    monkeypatch.setattr(ahead, "models_of", counting)
    script = Named()
    for number in range(3 * LOOKED_AT):
        script.busy(f"r{number}", f"held {number}")
    for number in range(200):
        script.submit(f"next {number}", f"model {number}")
    assert len(script.told()) == len(asked) == LOOKED_AT
    assert not assigned(script.commands[-1:])


@pytest.mark.parametrize(
    ("class_type", "inputs", "found"),
    [
        ("CheckpointLoaderSimple", {"ckpt_name": "a.safetensors"}, ("checkpoints/a.safetensors",)),
        ("UNETLoader", {"unet_name": "a.gguf", "weight_dtype": "default"}, ("diffusion_models/a.gguf",)),
        ("UNETLoader", {"unet_name": "a.safetensors", "weight_dtype": "fp8_e4m3fn"}, ()),
        ("VAELoader", {"vae_name": "a"}, ("vae/a",)),
        ("CLIPLoader", {"clip_name": "t5", "type": "chroma"}, ("text_encoders/t5 as chroma",)),
        ("DualCLIPLoader", {"clip_name1": "l", "clip_name2": "t5", "type": "flux"}, ("text_encoders/l + t5 as flux",)),
        ("TripleCLIPLoader", dict(zip(("clip_name1", "clip_name2", "clip_name3"), "lgt", strict=True)),
         ("text_encoders/l + g + t as sd3",)),
        ("CheckpointLoaderSimple", {"ckpt_name": Link("2", 0)}, ()),
        ("KSampler", {"sampler_name": "euler"}, ()),
    ],
)  # fmt: skip
def test_loaders_that_name_their_files_outright_say_which_models_they_load(
    class_type: str, inputs: dict[str, Any], found: tuple[str, ...]
) -> None:
    assert models_of(Graph({"1": Node("1", class_type, inputs)}), ["1"]) == found
