"""Calls node classes with numbers as links may bring them, under small limits, and prints what each call allocated.

    python -m tests.unit.nodes.largest_numbers

Each class gets all its numbers at the declared maximum, and each number alone far outside its range, for each choice
that brings numbers. A JSON object for each call: {"class": …, "far": the number outside and its value, "tensor": bytes
of the largest tensor, "arrays": peak bytes of arrays and other objects, "ended": how}. Memory that the process cannot
have is refused to it, and a call that computes for longer than SECONDS ends as "endless".
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import resource
import signal
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve_app.config.limits import SizeLimits
from serve_app.execution.executing import Executing, enter
from serve_app.nodes.registry import BUILTIN
from serve_app.nodes.video.value import VideoComponents, VideoFromComponents
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.schedules.levels import TableLevels

VALUE_BYTES = 10_000
LIMITS = SizeLimits(
    value_bytes=VALUE_BYTES,
    task_bytes=VALUE_BYTES,
    text_characters=1000,
    shown_bytes=2000,
    graph_nodes=4,
    levels=100,
)
ADDRESS_BYTES = 1_000_000_000
"""More than the process has when it begins; what is allocated beyond it fails."""
LARGEST = 10**6
"""In place of a larger maximum, or of none."""
FAR = (10**6, 10**12, -(10**12))
"""Numbers outside their ranges: memory for the first can be had, a loop over the second does not end."""
SMALL = 16
"""What numbers in the range come to at most, where their ranges allow it."""
SECONDS = 5.0
"""Of the process's own time, for one call."""
IMAGE = torch.zeros(1, 8, 8, 3)
LATENT = {"samples": torch.zeros(1, 4, 8, 8)}
TEXT = [(torch.zeros(1, 4, 8), {})]
BOX = {"x": 0, "y": 0, "width": LARGEST, "height": LARGEST}
SOCKETS: Mapping[str, Any] = {
    "*": IMAGE,
    "ARRAY": [[1], [2]],
    "AUDIO": {"waveform": torch.zeros(1, 2, 1000), "sample_rate": 8000},
    "BOOLEAN": False,
    "BOUNDING_BOX": [[BOX]],
    "BOUNDING_BOXES": [],
    "COMFY_AUTOGROW_V3": {},
    "CLIP": Recipe("clip", "text_encoders", "a.safetensors"),
    "COLOR": "#ff0000",
    "COMFY_MATCHTYPE_V3": IMAGE,
    "CONDITIONING": TEXT,
    "CONTROL_NET": Recipe("controlnet", "controlnet", "a.safetensors"),
    "DICT": {"a": {"b": 1}},
    "FLOATS": [1.0],
    "IMAGE": IMAGE,
    "LATENT": LATENT,
    "LAYERS": {},
    "MASK": IMAGE[..., 0],
    "MODEL": Recipe("backbone", "checkpoints", "a.safetensors"),
    "SIGMAS": torch.tensor([10.0, 5.0, 1.0, 0.0]),
    "VAE": Recipe("vae", "vae", "a.safetensors"),
    "VIDEO": VideoFromComponents(VideoComponents(IMAGE.repeat(4, 1, 1, 1), Fraction(8))),
}
"""A small value of each type; of others, None."""


class Runtime:
    """What a node asks of models, answered small."""

    async def levels(self, model: Recipe) -> TableLevels:
        return TableLevels()

    async def family(self, vae: Recipe) -> Any:
        return SimpleNamespace(factor=8, frames=4, latent_channels=16)

    async def encode(self, vae: Recipe, images: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros(1, 16, 1, 8, 8)

    async def decode(self, vae: Recipe, latents: torch.Tensor, *_: Any) -> torch.Tensor:
        return IMAGE

    async def encode_text(self, clip: Recipe, text: Any) -> Any:
        return TEXT


NUMBERS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float}
SECTIONS = ("required", "optional")
HIDDEN: Mapping[str, Any] = {"RUNTIME": Runtime(), "UNIQUE_ID": "1", "PROMPT": {}, "EXTRA_PNGINFO": {}}


class EndlessError(BaseException):
    """A call has computed for too long. No node catches it."""


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation makes."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = (leaf.untyped_storage().nbytes() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        self.nbytes = max(self.nbytes, *sizes, 0)
        return made


def _is_number(declared: Any) -> bool:
    return isinstance(declared[0], str) and declared[0] in NUMBERS


def has_numbers(declared: Any) -> bool:
    """Whether an entry of INPUT_TYPES, or one that a choice of it brings, is a number."""
    return _is_number(declared) or any(
        has_numbers(brought)
        for option in _options(declared)
        for brought in option["inputs"].get("required", {}).values()
    )


def _options(declared: Any) -> list[dict[str, Any]]:
    return declared[1]["options"] if declared[0] == "COMFY_DYNAMICCOMBO_V3" else []


def of_numbers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the node classes with numbers among their inputs, by name, and these inputs."""
    for name, made in BUILTIN.items():
        types = made.INPUT_TYPES()  # type: ignore[attr-defined]
        inputs = {**types.get("required", {}), **types.get("optional", {})}
        if any(map(has_numbers, inputs.values())):
            yield name, types


def largest(declared: Any) -> Any:
    """Return the largest number, or a small value of another type."""
    kind, options = declared[0], declared[1] if len(declared) > 1 else {}
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options.get("options")
        return options.get("default", next(iter(choices), "") if isinstance(choices, list) else "")
    if _is_number(declared):
        return NUMBERS[kind](min(options.get("max", LARGEST), LARGEST))
    if kind == "STRING":
        return options.get("default") or "a"
    return SOCKETS.get(kind.split(",")[0])


def small(declared: Any) -> Any:
    """Return a small number within its range, or a small value of another type."""
    kind, options = declared[0], declared[1] if len(declared) > 1 else {}
    if not _is_number(declared):
        return largest(declared)
    least = options.get("min", 0)
    return NUMBERS[kind](max(least, min(options.get("default", least), options.get("max", SMALL), SMALL)))


def calls(types: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is far outside its range and a class's arguments, for each choice that brings inputs."""
    hidden = {name: HIDDEN.get(kind) for name, kind in types.get("hidden", {}).items()}
    for chosen in product(*([(name, one) for one in _options(declared)] for name, declared in _choosing(types))):
        keys = {name: one["key"] for name, one in chosen}
        brought = {(name, of): d for name, one in chosen for of, d in one["inputs"].get("required", {}).items()}
        inputs = {("", name): declared for name, declared in _plain(types)} | brought
        yield "", _arguments({place: largest(declared) for place, declared in inputs.items()}, keys) | hidden
        within = {place: small(declared) for place, declared in inputs.items()}
        for place, declared in inputs.items():
            for number in FAR if _is_number(declared) else ():
                far = {place: NUMBERS[declared[0]](number)}
                yield f"{place[1]} {number}", _arguments(within | far, keys) | hidden


def _arguments(values: Mapping[tuple[str, str], Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return arguments from values by (the choice that brings an input or "", its name), and the choices' keys."""
    made: dict[str, Any] = {name: {name: key} for name, key in keys.items()}
    for (choice, name), value in values.items():
        (made[choice] if choice else made)[name] = value
    return made


def _choosing(types: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, d) for section in SECTIONS for name, d in types.get(section, {}).items() if _options(d)]


def _plain(types: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section in SECTIONS:
        for name, declared in types.get(section, {}).items():
            known = str(declared[0]).split(",")[0] in (*NUMBERS, *SOCKETS)
            if not _options(declared) and (section == "required" or known):
                yield name, declared


def measured(node_class: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Call a class's function as a job does; return the bytes that it allocated, and how it ended."""
    if getattr(node_class, "INPUT_IS_LIST", False):
        given = {name: [value] for name, value in given.items()}
    largest_made = Largest()

    def call() -> None:
        enter(Executing("job", "1", limits=LIMITS))
        with largest_made:
            returned = getattr(node_class(), node_class.FUNCTION)(**given)
            if inspect.isawaitable(returned):
                asyncio.run(_awaited(returned))

    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        contextvars.copy_context().run(call)
        ended = "returned"
    except EndlessError:
        ended = "endless"
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return {"tensor": largest_made.nbytes, "arrays": tracemalloc.get_traced_memory()[1] - before, "ended": ended}


async def _awaited(returned: Any) -> Any:
    return await returned


def main() -> None:
    """Measure every class whose inputs can be given."""

    def stop(*_: Any) -> None:
        raise EndlessError

    signal.signal(signal.SIGVTALRM, stop)
    torch.set_num_threads(1)
    with Largest():
        torch.zeros(1) + 1  # the first such block imports much
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bytes_now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (bytes_now + ADDRESS_BYTES,) * 2)
    tracemalloc.start()
    for name, types in of_numbers():
        for far, call in calls(types):
            made = measured(BUILTIN[name], call)
            if made["arrays"] > VALUE_BYTES:  # what a first call imports is not what it makes
                made = measured(BUILTIN[name], call)
            print(json.dumps({"class": name, "far": far, **made}), flush=True)


if __name__ == "__main__":
    main()
