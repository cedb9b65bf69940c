"""The server's own nodes as packs call them: from a thread, with ComfyUI's arguments, waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from serve_app.errors import CancelledJobError, NodeError
from serve_app.execution.executing import Executing, enter
from serve_app.nodes.registry import BUILTIN
from serve_app.packs.comfy.model_patcher import ModelPatcher
from serve_app.packs.library import common_ksampler, library, needs_models
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import Sampled, SamplingRequest, Steps
from serve_app.values import Noise


class Sum:
    """A node that awaits its models."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "add"
    waits: asyncio.Event | None = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"a": ("INT",), "b": ("INT",)}, "hidden": {"runtime": "RUNTIME"}}

    async def add(self, a: int, b: int, runtime: Any) -> tuple[int]:
        if self.waits is not None:
            await self.waits.wait()
        assert runtime == "the RUNTIME of this node"
        return (a + b,)


def in_thread(
    function: Callable[[], Any],
    stopped: threading.Event | None = None,
    hidden: Callable[[str], Any] = lambda kind: f"the {kind} of this node",
) -> Any:
    """Run a function as a pack's node runs: in a thread, while the loop goes on."""

    async def run() -> Any:
        call = Executing("job", "1", "Mine", stopped=stopped or threading.Event())

        def entered() -> Any:
            enter(Executing(call.job_id, call.node_id, stopped=call.stopped, hidden=hidden, loop=loop))
            return function()

        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(entered)

    return asyncio.run(run())


def test_a_node_that_awaits_its_models_is_called_and_waited_for() -> None:
    made = library({"Sum": Sum})["Sum"]
    assert in_thread(lambda: made().add(1, 2)) == (3,)  # type: ignore[attr-defined]
    assert in_thread(lambda: made().add(b=1, a=4)) == (5,)  # type: ignore[attr-defined]


def test_a_node_answers_as_a_v3_class_too() -> None:
    made = library({"Sum": Sum})["Sum"]
    output = in_thread(lambda: made.execute(1, 2))  # type: ignore[attr-defined]
    assert (output[0], output.result) == (3, (3,))


def test_a_subclass_may_call_what_it_overrides() -> None:
    made: Any = library({"Sum": Sum})["Sum"]

    class More(made):  # type: ignore[misc]
        def add(self, a: int, b: int) -> tuple[int]:
            return (10 * super().add(a, b)[0],)

    assert in_thread(lambda: More().add(1, 2)) == (30,)
    assert needs_models(More)


def test_arguments_that_a_node_does_not_take_are_named() -> None:
    made: Any = library({"Sum": Sum})["Sum"]
    with pytest.raises(NodeError, match="Sum was called with the argument 'c'; it takes a, b"):
        in_thread(lambda: made().add(1, c=2))
    with pytest.raises(NodeError, match="Sum was called with 3 arguments; it takes a, b"):
        in_thread(lambda: made().add(1, 2, 3))


def test_outside_a_node_there_are_no_models() -> None:
    made: Any = library({"Sum": Sum})["Sum"]
    with pytest.raises(NodeError, match="outside a running node, where it cannot get its RUNTIME"):
        made().add(1, 2)


def test_a_cancelled_job_ends_a_call_that_waits() -> None:
    class Endless(Sum):
        async def add(self, a: int, b: int, runtime: Any) -> tuple[int]:
            stopped.set()
            await asyncio.Event().wait()
            raise AssertionError

    stopped = threading.Event()
    made: Any = library({"Endless": Endless})["Endless"]
    with pytest.raises(CancelledJobError):
        in_thread(lambda: made().add(1, 2), stopped)


def test_a_call_from_a_loop_is_refused_because_it_would_stop_it() -> None:
    made: Any = library({"Sum": Sum})["Sum"]

    async def call() -> None:
        enter(Executing("job", "1", hidden=lambda kind: kind, loop=asyncio.get_running_loop()))
        made().add(1, 2)

    with pytest.raises(NodeError, match=r"asyncio\.to_thread"):
        asyncio.run(call())


def test_common_ksampler_samples_a_window_of_a_part_of_the_schedule() -> None:
    asked: list[SamplingRequest] = []

    class Models:
        async def sample(self, request: SamplingRequest) -> Sampled:
            asked.append(request)
            return Sampled(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2))

    model, latent = ModelPatcher.of(Recipe("backbone", "checkpoints", "a")), {"samples": torch.zeros(1, 4, 2, 2)}
    rest = (20, 7.0, "euler", "normal", [], [], latent)
    options: dict[str, Any] = {
        "denoise": 0.5,
        "disable_noise": True,
        "start_step": 3,
        "last_step": 9,
        "force_full_denoise": True,
    }
    (made,) = in_thread(lambda: common_ksampler(model, 5, *rest, **options), hidden=lambda kind: Models())
    assert torch.equal(made["samples"], torch.ones(1, 4, 2, 2))
    assert asked[0].sigmas == Steps("normal", 20, 0.5, 3, 9, True)
    assert (asked[0].noise, asked[0].guider.backbone) == (Noise(5, added=False), model.recipe)


@pytest.mark.parametrize(
    ("class_type", "function", "arguments"),
    [
        ("VAEDecode", "decode", "vae samples"),
        ("VAEEncode", "encode", "vae pixels"),
        ("CLIPTextEncode", "encode", "clip text"),
        ("ConditioningSetMask", "append", "conditioning mask set_cond_area strength"),
        ("ConditioningAverage", "addWeighted", "conditioning_to conditioning_from conditioning_to_strength"),
        ("LoadImageMask", "load_image_mask", "image channel"),
    ],
)
def test_nodes_that_packs_call_take_comfyuis_arguments_in_its_order(
    class_type: str, function: str, arguments: str
) -> None:
    taken = library(BUILTIN)[class_type]
    with pytest.raises(NodeError) as raised:
        getattr(taken(), function)(unknown=1)
    assert str(raised.value).endswith(f"it takes {', '.join(arguments.split())}")
