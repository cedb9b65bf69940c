"""Values that are too large, or empty: refused before memory is taken where that is known, else before they travel."""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.execution.call import NodeResult
from serve_app.execution.execute import Execution
from serve_app.execution.executing import Executing, enter
from serve_app.execution.node_failure import NodeFailedError
from serve_app.execution.result_cache import ResultCache
from serve_app.execution.size import allow, allow_levels, check_results, size_of
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe
from tests.unit.nodes.one_replica import Node, OneReplica, task

LIMITS = SizeLimits(
    value_bytes=10_000_000, task_bytes=15_000_000, text_characters=1000, shown_bytes=2000, graph_nodes=4
)
IMAGE = torch.zeros(1, 64, 64, 3)
LATENT = {"samples": torch.zeros(1, 4, 8, 8)}
FAR = 16384
MARGINS = dict.fromkeys(("left", "top", "right", "bottom"), 10**6)
WHOLE = [[{"x": 0, "y": 0, "width": 64, "height": 64}]]
CROP = {"output_width": 512, "output_height": 512, "padding": 0}
PADDED = {"padding_color": "white", "interpolation": "area"}


def limited(function: Callable[[], Any]) -> Any:
    """Call it as a node of a job under LIMITS is called."""

    def call() -> Any:
        enter(Executing("job", "1", limits=LIMITS))
        return function()

    return contextvars.copy_context().run(call)


@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("EmptyImage", {"width": FAR, "height": FAR, "batch_size": 4096}),
        ("EmptyLatentImage", {"width": FAR, "height": FAR, "batch_size": 4096}),
        ("SolidMask", {"value": 1.0, "width": FAR * 1024, "height": FAR}),
        ("RepeatImageBatch", {"image": IMAGE.expand(4096, -1, -1, -1), "amount": 4096}),
        ("RepeatLatentBatch", {"samples": {"samples": LATENT["samples"].expand(10**7, -1, -1, -1)}, "amount": 64}),
        ("LatentUpscaleBy", {"samples": LATENT, "upscale_method": "nearest-exact", "scale_by": 10**5}),
        ("ImageScale", {"image": IMAGE, "upscale_method": "area", "width": 10**6, "height": 10**6, "crop": "disabled"}),
        ("ImageScaleBy", {"image": IMAGE, "upscale_method": "lanczos", "scale_by": 10.0**5}),
        ("ImagePadForOutpaint", MARGINS | {"image": IMAGE, "feathering": 0}),
        (
            "ResizeAndPadImage",
            PADDED | {"image": IMAGE, "target_width": 10**7, "target_height": 64},
        ),
        # Each crop would be within the limits, and all of them are not.
        ("CropByBBoxes", CROP | {"image": IMAGE.expand(4096, -1, -1, -1), "bboxes": WHOLE}),
        ("StringConcatenate", {"string_a": "a" * 600, "string_b": "b" * 600, "delimiter": ""}),
        ("StringReplace", {"string": "a" * 100, "find": "a", "replace": "b" * 100}),
        ("RegexReplace", {"string": "a" * 100, "regex_pattern": "a", "replace": "b" * 100}),
    ],
)
def test_a_node_refuses_a_value_over_the_limits_before_it_takes_the_memory(
    class_type: str, inputs: dict[str, Any]
) -> None:
    node = BUILTIN[class_type]()
    with pytest.raises(NodeError, match=r"limits\.\w+ of the configuration allows"):
        limited(lambda: getattr(node, node.FUNCTION)(**inputs))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("slot", "fits", "excess", "words"),
    [
        ("CONDITIONING", [(IMAGE, {})] * 1000, [(IMAGE, {})] * 1001, "CONDITIONING of 1,001 conditionings"),
        ("SIGMAS", torch.zeros(100_001), torch.zeros(100_002), "SIGMAS of 100,001 levels"),
        ("IMAGE", torch.zeros(16_384, 1, 1, 3), torch.zeros(16_385, 1, 1, 3), "IMAGE of 16,385 in a batch"),
        ("LATENT", {"samples": torch.zeros(1, 4, 1, 1)}, {"samples": torch.zeros(16_385, 4, 1, 1)}, "LATENT of 16,385"),
        ("MASK", torch.zeros(20_000, 1), torch.zeros(16_385, 1, 1), "MASK of 16,385"),
        ("AUDIO", {"sample_rate": 768_000}, {"sample_rate": 20_000_003}, "AUDIO of 20,000,003 Hz"),
    ],
)
def test_small_values_that_are_too_much_work_are_refused_from_any_node(
    slot: str, fits: Any, excess: Any, words: str
) -> None:
    most = SizeLimits()
    check_results([[fits]], [slot], most)
    with pytest.raises(NodeError, match=rf"it has made {words}.*; limits\.\w+ of the configuration allows"):
        check_results([[excess]], [slot], most)


def test_a_schedule_is_refused_where_its_denoise_comes_to_be_known() -> None:
    words = "steps 10 and denoise 1e-07 make a schedule of 100,000,000 levels; limits.levels of the configuration"
    scheduler = BUILTIN["BasicScheduler"]()
    with pytest.raises(NodeError, match=words):
        asyncio.run(scheduler.get_sigmas(None, "beta", 10, 1e-7, runtime=None))  # type: ignore[attr-defined]
    with pytest.raises(NodeError, match=words):
        allow_levels(10, 1e-7)


class OfVideos:
    """A runtime of a VAE of whose videos a latent stands for four images of 16×16 pixels."""

    async def family(self, vae: Recipe) -> Any:
        return SimpleNamespace(factor=16, frames=4)

    async def decode(self, vae: Recipe, latents: torch.Tensor, tiling: Any = None) -> torch.Tensor:
        return torch.zeros(1)


@pytest.mark.parametrize(("class_type", "more"), [("VAEDecode", {}), ("VAEDecodeTiled", {"tile_size": 64})])
def test_all_images_of_a_video_count_before_they_are_decoded(class_type: str, more: dict[str, Any]) -> None:
    vae, latents = Recipe("vae", "vae", "a"), torch.zeros(1, 48, 5, 14, 14)
    decode = BUILTIN[class_type]().decode(vae=vae, samples={"samples": latents}, runtime=OfVideos(), **more)
    with pytest.raises(NodeError, match="would make a tensor of 17×224×224×3"):
        limited(lambda: asyncio.run(decode))


@pytest.mark.parametrize(
    ("value", "least"),
    [
        ("a" * 5000, 5000),
        ("ö" * 5000, 10_000),
        (b"a" * 5000, 5000),
        (np.zeros(1000), 8000),
        (Image.new("RGB", (100, 100)), 30_000),
        ([{"samples": (torch.zeros(1000), {"a" * 5000})}], 9000),
        (list(range(1000)), 8000),
    ],
)
def test_text_arrays_and_images_count_however_nested(value: Any, least: int) -> None:
    assert least <= size_of(value) <= 4 * least + 1000
    shared = [value, value, [value]]
    assert size_of(shared) < size_of(value) + 1000


def test_what_a_replica_holds_of_text_is_bounded_by_its_budget() -> None:
    gone: list[str] = []
    held = ResultCache(1_000_000, gone.extend)
    for i in range(10):
        held.put(str(i), NodeResult((["a" * 300_000],)))
    assert gone == [str(i) for i in range(7)]


class Give(Node):
    """Whatever the test wants."""

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True
    inputs = ("what", "other")
    gives: ClassVar[dict[str, Any]] = {
        "tensor": (torch.zeros(3_000_000),),
        "several": ([torch.zeros(2_000_000)], [torch.zeros(2_000_000)]),
        "text": ("a" * 1001,),
        "empty": (torch.zeros(0, 8, 8, 3),),
        "shown": {"ui": {"text": ["a" * 3000]}, "result": (None,)},
        "fine": {"ui": {"text": ["a" * 1000]}, "result": (torch.zeros(1, 8, 8, 3),)},
    }

    def go(self, what: str, other: int = 0) -> Any:
        if what == "large":
            return (torch.zeros(2_000_000),)
        return self.gives[what]


class Bounded(Node):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"count": ("INT", {"min": 1, "max": 10})}}

    def go(self, count: int) -> tuple[int]:
        return (count,)


class Number(Node):
    inputs = ("value",)

    def go(self, value: int) -> tuple[int]:
        return (value,)


class Pair(Node):
    """A number, once something else is there."""

    inputs = ("value", "after")

    def go(self, value: int, after: Any) -> tuple[int]:
        return (value,)


class Asks(Node):
    """Makes a value of a requested size as built-in nodes do; counts how often it allocated memory."""

    RETURN_TYPES = ("IMAGE",)
    inputs = ("numbers",)
    taken = 0

    def go(self, numbers: int) -> tuple[torch.Tensor]:
        allow(numbers)
        type(self).taken += 1
        return (torch.zeros(numbers),)


class Several(Node):
    """A list of numbers."""

    OUTPUT_IS_LIST = (True,)
    inputs = ("values",)

    def go(self, values: Any) -> tuple[list[int]]:
        return (list(values),)


CLASSES: dict[str, type] = {
    "Asks": Asks,
    "Several": Several,
    "Pair": Pair,
    "Give": Give,
    "Bounded": Bounded,
    "Number": Number,
}


class Replica(OneReplica):
    classes = CLASSES

    async def fails(self, *targets: str, **nodes: Any) -> str:
        """Return why the graph fails, "" if it does not."""
        execution = Execution(task(CLASSES, *targets, **nodes), CLASSES, self.held, self, self, self.fetch, LIMITS)
        try:
            await execution.run()
        except NodeFailedError as error:
            return str(error.exception)
        return ""


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("tensor", r"has made values: 12,000,\d+ bytes; limits.value_bytes .* allows 10,000,000"),
        ("several", "limits.value_bytes"),
        ("text", "has made a text: 1,001 characters; limits.text_characters"),
        ("empty", "has made an empty IMAGE, of shape 0×8×8×3"),
        ("shown", "shows: .* limits.shown_bytes"),
        ("fine", ""),
    ],
)
async def test_what_a_node_has_made_is_measured_before_it_goes_anywhere(what: str, reason: str) -> None:
    replica = Replica()
    failure = await replica.fails("a", a=("Give", {"what": what}))
    assert bool(failure) == bool(reason)
    assert re.search(reason, failure)
    assert bool(replica.finished_nodes) == (not reason)


async def test_what_the_nodes_of_a_task_show_counts_together() -> None:
    nodes = {name: ("Give", {"what": "fine", "other": number}) for number, name in enumerate("ab")}
    assert await Replica().fails("a", **nodes) == ""
    assert re.search("with what was shown before.* limits.shown_bytes", await Replica().fails("a", "b", **nodes))


async def test_what_the_nodes_of_a_task_make_counts_together_and_once_if_it_is_passed_on() -> None:
    large = {name: ("Give", {"what": "large", "other": number}) for number, name in enumerate("abc")}
    passed = {f"p{i}": ("Number", {"value": [f"p{i - 1}" if i else "a", 0]}) for i in range(5)}
    assert await Replica().fails("a", "p4", a=large["a"], **passed) == ""
    assert "with the nodes before it" in await Replica().fails("a", "b", "c", **large)


async def test_a_node_asks_before_it_takes_memory_that_its_task_may_no_longer_have() -> None:
    nodes = {"a": ("Give", {"what": "large"}), "n": ("Number", {"value": ["a", 0]})}
    after = {"m": ("Pair", {"value": 2_000_000, "after": ["n", 0]}), "b": ("Asks", {"numbers": ["m", 0]})}
    Asks.taken = 0
    reason = await Replica().fails("a", "b", **nodes, **after)
    assert re.search(
        "would make a tensor of 2000000, with what the nodes before it have made: .* limits.task_bytes", reason
    )
    assert Asks.taken == 0
    assert await Replica().fails("b", b=("Asks", {"numbers": 2_000_000})) == ""


@pytest.mark.parametrize("number", [2_000_000, 1_000_000])
async def test_many_calls_of_one_node_are_stopped_once_they_have_made_too_much_together(number: int) -> None:
    many = {"s": ("Several", {"values": tuple(number + i for i in range(50))}), "b": ("Asks", {"numbers": ["s", 0]})}
    Asks.taken = 0
    assert re.search("has made values: .* limits.value_bytes|limits.task_bytes", await Replica().fails("b", **many))
    assert Asks.taken < 5


async def test_linked_numbers_outside_their_range_run_as_in_comfyui() -> None:
    for count in (0, 11):
        nodes = {"a": ("Number", {"value": count}), "b": ("Bounded", {"count": ["a", 0]})}
        assert await Replica().fails("b", **nodes) == ""
