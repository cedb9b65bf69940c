"""A node class as data: what `nodes/protocol.py` reads off a class, and all the control plane knows of it.

Specs are made where node code may run (workers and replicas) and travel as JSON; validation needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Section: TypeAlias = Literal["required", "optional"]

OWN_KINDS = frozenset({"RUNTIME", "STORE"})
"""Hidden kinds that give a node capabilities of its replica; other servers do not know them."""
EXTRA_KINDS = frozenset({"EXTRA_PNGINFO", "AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG"})
"""Hidden kinds that are members of the submission's extra_data."""
HIDDEN_KINDS = OWN_KINDS | EXTRA_KINDS | {"PROMPT", "DYNPROMPT", "UNIQUE_ID"}
"""Every hidden kind that the server fills in; an input of any other has what the prompt gives it."""

EVERYTHING = "**"
"""Among a validator's arguments: it takes any other argument too."""


@dataclass(frozen=True, slots=True)
class Input:
    """One declared input of a node class.

    type: socket type ("MODEL", "INT", …), "COMBO" for a choice.
    choices: the allowed values of a fixed COMBO. folder: for a COMBO of files, the catalog folder that lists them
    ("checkpoints", …, or "input" for uploaded files); then choices is None and the list is read when it is needed.
    options: ComfyUI's option dict (default, min, max, step, multiline, lazy, …), JSON values only.
    """

    name: str
    type: str
    section: Section = "required"
    choices: tuple[Any, ...] | None = None
    folder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lazy(self) -> bool:
        """Whether what it links to is evaluated only once its node asks."""
        return bool(self.options.get("lazy"))

    @property
    def raw_link(self) -> bool:
        """Whether the node is given the link itself, as [node id, slot]."""
        return bool(self.options.get("rawLink"))


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node class, as the graph and scheduler floors see it.

    outputs, output_names, output_is_list: one entry a slot. hidden: input name -> hidden kind, one of
    HIDDEN_KINDS or a pack's own. runtime: the class asks for RUNTIME, so it runs on a replica
    that holds models. validator: the arguments that its VALIDATE_INPUTS takes, EVERYTHING for **kwargs; None without
    one. fingerprinted: it has IS_CHANGED. Both are code, which only a worker may run. described: the class as another
    server's /object_info has it, which clients are shown in place of what these members say; None for a class of ours.
    """

    class_type: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    output_is_list: tuple[bool, ...]
    hidden: Mapping[str, str] = field(default_factory=dict)
    output_node: bool = False
    input_is_list: bool = False
    not_idempotent: bool = False
    category: str = ""
    display_name: str = ""
    description: str = ""
    python_module: str = "nodes"
    output_tooltips: tuple[str, ...] = ()
    deprecated: bool = False
    experimental: bool = False
    api_node: bool = False
    validator: tuple[str, ...] | None = None
    fingerprinted: bool = False
    described: Mapping[str, Any] | None = None

    @property
    def hooked(self) -> bool:
        """Whether a worker has to run the class's own code before a job with it is accepted."""
        return self.fingerprinted or bool(self.validator)

    def validates(self, name: str) -> bool:
        """Whether VALIDATE_INPUTS takes this argument, so that it and not the spec bounds an input of that name."""
        return self.validator is not None and (name in self.validator or EVERYTHING in self.validator)

    @property
    def runtime(self) -> bool:
        """Whether the class asks for RUNTIME."""
        return "RUNTIME" in self.hidden.values()

    def input(self, name: str) -> Input | None:
        """Return the declared input of that name, or None."""
        return next((i for i in self.inputs if i.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict; `from_json` undoes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NodeSpec:
        """Rebuild a spec from `to_json`'s dict after a trip through JSON text."""
        inputs = tuple(
            Input(**{**i, "choices": None if i["choices"] is None else tuple(i["choices"])}) for i in data["inputs"]
        )
        slots = {k: tuple(data.get(k, ())) for k in ("outputs", "output_names", "output_is_list", "output_tooltips")}
        validator = None if data.get("validator") is None else tuple(data["validator"])
        return cls(**{**data, **slots, "inputs": inputs, "validator": validator})
