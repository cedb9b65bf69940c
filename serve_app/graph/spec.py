"""Node classes as data: read from a class by `execution/protocol.py`, and used by the control plane.

Specs are made where node code may run (workers and replicas) and travel as JSON; validation needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

from serve_app.graph.nesting import Nesting

Section: TypeAlias = Literal["required", "optional"]
SECTIONS: tuple[Section, ...] = ("required", "optional")

MATCH_TYPE = "COMFY_MATCHTYPE_V3"
"""A type that the inputs and outputs of one template share, whichever of the allowed ones it is."""
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload")
"""Options by which a choice of files may be added to by its client."""

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
    choices: the allowed values of a fixed COMBO. folder: for a COMBO of files, or a text that names one, the catalog
    folder that lists them ("checkpoints", …, or "input" for uploaded files); then choices is None and the list is read
    when it is needed.
    options: ComfyUI's option dict (default, min, max, step, multiline, lazy, …), JSON values only.
    """

    name: str
    type: str
    section: Section = "required"
    choices: tuple[Any, ...] | None = None
    folder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def declared(cls, name: str, section: Section, config: Sequence[Any]) -> Input:
        """Return an input as its class declares it: [type or choices, options], JSON values only."""
        kind, options = config[0], dict(config[1]) if len(config) > 1 and config[1] else {}
        choices = kind if isinstance(kind, list) else None
        if kind == "COMBO" and isinstance(options.get("options"), list):
            choices = options.pop("options")
        type_ = "COMBO" if isinstance(kind, list) else str(kind)
        # A list that clients can upload to must be read after the upload; a text may name an upload too.
        uploads = any(options.get(option) is True for option in UPLOADS)
        if (choices is not None or type_ == "STRING") and uploads and options.get("image_folder", "input") == "input":
            return cls(name, type_, section, None, "input", options)
        return cls(name, type_, section, None if choices is None else tuple(choices), None, options)

    @property
    def takes(self) -> str:
        """The types of links that it accepts, separated by commas."""
        if self.type != MATCH_TYPE:
            return self.type
        template = self.options.get("template")
        return str(template.get("allowed_types") or "*") if isinstance(template, Mapping) else "*"

    @property
    def lazy(self) -> bool:
        """Whether its source is evaluated only when its node requests it."""
        return bool(self.options.get("lazy"))

    @property
    def raw_link(self) -> bool:
        """Whether the node gets the link itself, as [node id, slot]."""
        return bool(self.options.get("rawLink"))


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """The specification of one node class.

    outputs, output_names, output_is_list: one entry a slot; output_matchtypes: the template of one whose type is
    MATCH_TYPE, else None; empty where all are. hidden: input name -> hidden kind, one of HIDDEN_KINDS or a pack's own.
    accept_all_inputs: its function is given undeclared constants too. validator: the arguments that its VALIDATE_INPUTS
    takes, EVERYTHING for **kwargs; None without one. fingerprinted: it has IS_CHANGED. Both are code, which only a
    worker may run. described: the class in another server's /object_info, which clients get unchanged; None for a class
    of ours. nesting: of the dotted inputs of a spec that is opened for one node (`graph/dynamic.py`). lacks: names of
    ComfyUI's that its code can use and that are missing here, so that it cannot run here. models: its code can call
    nodes that use RUNTIME.
    """

    class_type: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    output_is_list: tuple[bool, ...]
    hidden: Mapping[str, str] = field(default_factory=dict)
    output_node: bool = False
    input_is_list: bool = False
    accept_all_inputs: bool = False
    not_idempotent: bool = False
    category: str = ""
    display_name: str = ""
    description: str = ""
    python_module: str = "nodes"
    output_tooltips: tuple[str | None, ...] = ()
    output_matchtypes: tuple[str | None, ...] = ()
    search_aliases: tuple[str, ...] = ()
    essentials_category: str | None = None
    price_badge: Mapping[str, Any] | None = None
    has_intermediate_output: bool = False
    dev_only: bool = False
    deprecated: bool = False
    experimental: bool = False
    api_node: bool = False
    validator: tuple[str, ...] | None = None
    fingerprinted: bool = False
    described: Mapping[str, Any] | None = None
    nesting: Nesting | None = None
    lacks: tuple[str, ...] = ()
    models: bool = False

    @property
    def needs_prevalidation(self) -> bool:
        """Whether the class has hooks that a worker must run before a job is accepted."""
        return self.fingerprinted or bool(self.validator)

    def validates(self, name: str) -> bool:
        """Whether VALIDATE_INPUTS takes this argument, so that it validates the input instead of the spec."""
        return self.validator is not None and (name in self.validator or EVERYTHING in self.validator)

    @property
    def runtime(self) -> bool:
        """Whether the class needs a replica with models."""
        return self.models or "RUNTIME" in self.hidden.values()

    def uses(self, name: str) -> bool:
        """Whether the class uses a constant of this name."""
        return self.accept_all_inputs or name in self.hidden or self.input(name) is not None

    def input(self, name: str) -> Input | None:
        """Return the declared input of that name, or None."""
        for declared in self.inputs:
            if declared.name == name:
                return declared
        return None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict that shares its values with the spec; `from_json` undoes it."""
        # `asdict` copies all that is nested, which takes the scheduler ten times as long when a replica joins.
        return {
            **{name: getattr(self, name) for name in _FIELDS},
            "inputs": tuple({name: getattr(each, name) for name in _INPUT_FIELDS} for each in self.inputs),
            "nesting": None if self.nesting is None else asdict(self.nesting),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NodeSpec:
        """Rebuild a spec from `to_json`'s dict after a trip through JSON text."""
        inputs = tuple(
            Input(**{**i, "choices": None if i["choices"] is None else tuple(i["choices"])}) for i in data["inputs"]
        )
        tuples = (
            "outputs",
            "output_names",
            "output_is_list",
            "output_tooltips",
            "output_matchtypes",
            "search_aliases",
            "lacks",
        )
        slots = {name: tuple(data.get(name, ())) for name in tuples}
        validator = None if data.get("validator") is None else tuple(data["validator"])
        return cls(**{**data, **slots, "inputs": inputs, "validator": validator})


_FIELDS = tuple(each.name for each in fields(NodeSpec))
_INPUT_FIELDS = tuple(each.name for each in fields(Input))
