"""The types of V3 nodes, `comfy_api.latest.io`: inputs and outputs as objects, and the schema that holds them.

Source: the facts of ComfyUI 0.3.64's `comfy_api/latest/_io.py`; docs.comfy.org, "V3 migration".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any


class FolderType(StrEnum):
    """The areas of files."""

    input = "input"
    output = "output"
    temp = "temp"


class UploadType(StrEnum):
    """What a COMBO's button uploads, as its option on the wire."""

    image = "image_upload"
    audio = "audio_upload"
    video = "video_upload"
    model = "file_upload"


class NumberDisplay(StrEnum):
    """How a number is shown."""

    number = "number"
    slider = "slider"


class Hidden(StrEnum):
    """Inputs that the server fills in."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"
    auth_token_comfy_org = "AUTH_TOKEN_COMFY_ORG"
    api_key_comfy_org = "API_KEY_COMFY_ORG"


@dataclass
class RemoteOptions:
    """Choices that the page fetches by itself."""

    route: str
    refresh_button: bool
    control_after_refresh: str = "first"
    timeout: int | None = None
    max_retries: int | None = None
    refresh: int | None = None


WIRE_NAMES = {
    "display_mode": "display",
    "dynamic_prompts": "dynamicPrompts",
    "widget_type": "widgetType",
    "force_input": "forceInput",
    "raw_link": "rawLink",
}
"""Options whose name on the wire is another."""


class Input:
    """One input. options: whatever its kind of input allows, by Python name; None leaves an option out."""

    io_type = "*"
    positional: tuple[str, ...] = ()
    """Options that may follow the id without a name."""

    def __init__(
        self, id: str, *given: Any, optional: bool = False, extra_dict: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.id = id
        self.optional = optional
        self.options = {**dict(zip(self.positional, given, strict=False)), **options}
        self.extra_dict = dict(extra_dict or {})
        self.widget = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "options" not in self.__dict__:
            raise AttributeError(name)
        return self.options.get(name)

    def get_io_type(self) -> str:
        """Return the type on the wire."""
        return str(self.options.get("widget_type") or self.io_type)

    def as_dict(self) -> dict[str, Any]:
        """Return the options on the wire."""
        options: dict[str, Any] = {}
        for name, value in self.options.items():
            if isinstance(value, UploadType):
                options[value.value] = True
            elif isinstance(value, RemoteOptions):
                options[name] = {k: v for k, v in vars(value).items() if v is not None}
            elif value is not None:
                options[WIRE_NAMES.get(name, name)] = value.value if isinstance(value, Enum) else value
        return options | {name: value for name, value in self.extra_dict.items() if value is not None}


class WidgetInput(Input):
    """An input that may have a widget."""


class Output:
    """One output slot."""

    io_type = "*"

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
        **more: Any,
    ) -> None:
        self.id, self.display_name, self.tooltip, self.is_output_list = id, display_name, tooltip, is_output_list
        self.options = more


class ComfyType:
    """A type of value: `Input` and `Output` make inputs and outputs of it."""

    io_type: str = "*"
    Type: Any = Any
    Input: Any = Input
    Output: Any = Output


ComfyTypeI = ComfyTypeIO = ComfyType


def comfytype(io_type: str, **more: Any) -> Any:
    """Return a decorator that makes a class a type of value with this name."""

    def decorate(cls: type) -> Any:
        made = cls if issubclass(cls, ComfyType) else type(cls.__name__, (cls, ComfyType), {"__doc__": cls.__doc__})
        return _typed(made, io_type)

    return decorate


def _typed(made: Any, io_type: str) -> Any:
    made.io_type = io_type
    for name in ("Input", "Output"):
        part = getattr(made, name, None)
        if part is not None:
            setattr(made, name, type(name, (part,), {"io_type": io_type}))
    return made


def Custom(io_type: str) -> Any:
    """Return a type of value of this name."""
    return _typed(type(io_type, (ComfyType,), {}), io_type)


def _widget(name: str, io_type: str, *positional: str) -> Any:
    """Return a type with a widget. positional: options that may be given without a name, after the id."""
    made = type(name, (ComfyType,), {"Input": type("Input", (WidgetInput,), {"positional": positional})})
    return _typed(made, io_type)


_COMMON = ("display_name", "optional", "tooltip", "lazy")
Boolean = _widget("Boolean", "BOOLEAN", *_COMMON)
Int = _widget("Int", "INT", *_COMMON)
Float = _widget("Float", "FLOAT", *_COMMON)
String = _widget("String", "STRING", *_COMMON)
Combo = _widget("Combo", "COMBO", "options", *_COMMON)
MultiCombo = _widget("MultiCombo", "COMBO", "options", *_COMMON)
Webcam = _widget("Webcam", "WEBCAM", *_COMMON)


class _MultiComboInput(MultiCombo.Input):  # type: ignore[misc, name-defined]
    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "multiselect": True, "multi_select": True}


MultiCombo.Input = _MultiComboInput

TYPES = {
    "Image": "IMAGE",
    "WanCameraEmbedding": "WAN_CAMERA_EMBEDDING",
    "Mask": "MASK",
    "Latent": "LATENT",
    "Conditioning": "CONDITIONING",
    "Sampler": "SAMPLER",
    "Sigmas": "SIGMAS",
    "Noise": "NOISE",
    "Guider": "GUIDER",
    "Clip": "CLIP",
    "ControlNet": "CONTROL_NET",
    "Vae": "VAE",
    "Model": "MODEL",
    "ClipVision": "CLIP_VISION",
    "ClipVisionOutput": "CLIP_VISION_OUTPUT",
    "StyleModel": "STYLE_MODEL",
    "Gligen": "GLIGEN",
    "UpscaleModel": "UPSCALE_MODEL",
    "Audio": "AUDIO",
    "Video": "VIDEO",
    "SVG": "SVG",
    "LoraModel": "LORA_MODEL",
    "LossMap": "LOSS_MAP",
    "Voxel": "VOXEL",
    "Mesh": "MESH",
    "Hooks": "HOOKS",
    "HookKeyframes": "HOOK_KEYFRAMES",
    "TimestepsRange": "TIMESTEPS_RANGE",
    "LatentOperation": "LATENT_OPERATION",
    "FlowControl": "FLOW_CONTROL",
    "Accumulation": "ACCUMULATION",
    "Load3DCamera": "LOAD3D_CAMERA",
    "Load3D": "LOAD_3D",
    "Load3DAnimation": "LOAD_3D_ANIMATION",
    "Photomaker": "PHOTOMAKER",
    "Point": "POINT",
    "FaceAnalysis": "FACE_ANALYSIS",
    "BBOX": "BBOX",
    "SEGS": "SEGS",
    "AnyType": "*",
    "MODEL_PATCH": "MODEL_PATCH",
    "AudioEncoder": "AUDIO_ENCODER",
    "AudioEncoderOutput": "AUDIO_ENCODER_OUTPUT",
}
"""The types without a widget, by their Python names."""

globals().update({name: Custom(io_type) for name, io_type in TYPES.items()})


class MultiType:
    """Inputs that take more than one type."""

    io_type = "COMFY_MULTITYPED_V3"

    class Input(Input):
        """id: a name, or an input whose widget is offered as well. types: what a link may bring."""

        def __init__(self, id: Any, types: Sequence[Any], **options: Any) -> None:
            base = copy.copy(id) if isinstance(id, Input) else None
            inherited = {} if base is None else dict(base.options)
            given = {name: value for name, value in options.items() if value is not None}
            optional = bool(given.pop("optional", False) or (base is not None and base.optional))
            super().__init__(id if base is None else base.id, optional=optional, **{**inherited, **given})
            kinds = [*([base.get_io_type()] if base is not None else []), *(kind.io_type for kind in types)]
            self.options.setdefault("widget_type", kinds[0] if isinstance(base, WidgetInput) else None)
            self.kinds = ",".join(dict.fromkeys(kinds))

        def get_io_type(self) -> str:
            """Return all types, with commas between."""
            return self.kinds


@dataclass
class Schema:
    """What a V3 class declares of itself."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False
    search_aliases: list[str] | None = None
    price_badge: Any = None

    def __post_init__(self) -> None:
        self.inputs, self.outputs = list(self.inputs or ()), list(self.outputs or ())
        wanted = list(self.hidden or ())
        if self.is_output_node:
            wanted += [Hidden.prompt, Hidden.extra_pnginfo]
        if self.is_api_node:
            wanted += [Hidden.auth_token_comfy_org, Hidden.api_key_comfy_org]
        self.hidden = list(dict.fromkeys(wanted))
