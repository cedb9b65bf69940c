"""The types of V3 nodes, `comfy_api.latest.io`: inputs and outputs as objects, and the schema that holds them.

Those that stand for others, or for more than one type, are in `dynamic_io.py`.
Source: the facts of ComfyUI 0.33's `comfy_api/latest/_io.py`; docs.comfy.org, "V3 migration".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from types import MappingProxyType
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
    """The widget of a number."""

    number = "number"
    slider = "slider"
    gradient_slider = "gradientslider"


class ControlAfterGenerate(StrEnum):
    """How a value changes once a job is queued."""

    fixed = "fixed"
    increment = "increment"
    decrement = "decrement"
    randomize = "randomize"


class Hidden(StrEnum):
    """Inputs that the server fills in."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"
    auth_token_comfy_org = "AUTH_TOKEN_COMFY_ORG"
    api_key_comfy_org = "API_KEY_COMFY_ORG"
    comfy_usage_source = "COMFY_USAGE_SOURCE"


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
    positional: tuple[str, ...] = ("display_name", "optional", "tooltip", "lazy", "extra_dict", "raw_link", "advanced")
    """Options that may follow the id without a name."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """Options that are there unless they are given."""

    def __init__(self, id: str, *given: Any, **options: Any) -> None:
        named = {**dict(zip(self.positional, given, strict=False)), **options}
        self.id = id
        self.optional = bool(named.pop("optional", False))
        self.extra_dict = dict(named.pop("extra_dict", None) or {})
        self.options = {**self.defaults, **{name: value for name, value in named.items() if value is not None}}
        self.widget = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "options" not in self.__dict__:
            raise AttributeError(name)
        return self.options.get(name)

    def get_io_type(self) -> str:
        """Return the type on the wire."""
        return self.io_type

    def get_all(self) -> list[Input]:
        """Return it and whatever inputs it brings."""
        return [self]

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

    positional = (
        *("display_name", "optional", "tooltip", "lazy", "default", "socketless", "widget_type", "force_input"),
        *("extra_dict", "raw_link", "advanced"),
    )

    def get_io_type(self) -> str:
        """Return the type on the wire."""
        return str(self.options.get("widget_type") or self.io_type)


def section_dict(inputs: Sequence[Input]) -> dict[str, dict[str, Any]]:
    """Return inputs as INPUT_TYPES has them."""
    sections: dict[str, dict[str, Any]] = {"required": {}}
    for one in inputs:
        sections.setdefault("optional" if one.optional else "required", {})[one.id] = (one.get_io_type(), one.as_dict())
    return sections


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
        self.id, self.tooltip, self.is_output_list = id, tooltip, is_output_list
        self.display_name = display_name or id
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


def _widget(name: str, io_type: str, *positional: str, **defaults: Any) -> Any:
    """Return a type with a widget. positional: options that may be given without a name, after the id."""
    body = {"positional": positional, "defaults": MappingProxyType(defaults)}
    return _typed(type(name, (ComfyType,), {"Input": type("Input", (WidgetInput,), body)}), io_type)


_FRONT = ("display_name", "optional", "tooltip", "lazy")
_BACK = ("socketless", "force_input", "extra_dict", "raw_link", "advanced")
_LAST = ("extra_dict", "raw_link", "advanced")
_SHOWN = ("display_name", "optional", "tooltip", "socketless")
Boolean = _widget("Boolean", "BOOLEAN", *_FRONT, "default", "label_on", "label_off", *_BACK)
Int = _widget(
    *("Int", "INT", *_FRONT, "default", "min", "max", "step", "control_after_generate", "display_mode", *_BACK)
)
Float = _widget(
    *("Float", "FLOAT", *_FRONT, "default", "min", "max", "step", "round", "display_mode", "gradient_stops", *_BACK)
)
String = _widget(
    *("String", "STRING", *_FRONT, "multiline", "placeholder", "default", "dynamic_prompts", *_BACK), multiline=False
)
Webcam = _widget("Webcam", "WEBCAM", *_FRONT, "default", "socketless", *_LAST)
Color = _widget("Color", "COLOR", *_SHOWN, "advanced", "default", socketless=True, default="#ffffff")
Colors = _widget("Colors", "COLORS", *_SHOWN, "default", "advanced", socketless=True, default=[])
BoundingBox = _widget(
    *("BoundingBox", "BOUNDING_BOX", *_SHOWN, "default", "component", "force_input"),
    socketless=True,
    default={"x": 0, "y": 0, "width": 512, "height": 512},
)
BoundingBoxes = _widget("BoundingBoxes", "BOUNDING_BOXES", *_SHOWN, "default", "advanced", socketless=True, default=[])
Curve = _widget("Curve", "CURVE", *_SHOWN, "default", "advanced", socketless=True, default=[(0.0, 0.0), (1.0, 1.0)])
Range = _widget(
    *("Range", "RANGE", *_SHOWN, "default", "display", "gradient_stops", "show_midpoint", "midpoint_scale"),
    *("value_min", "value_max", "advanced"),
    socketless=True,
    default={"min": 0.0, "max": 1.0},
)
ImageCompare = _widget("ImageCompare", "IMAGECOMPARE", *_SHOWN, "advanced", socketless=True)
Combo = _widget(
    *("Combo", "COMBO", "options", *_FRONT, "default", "control_after_generate", "upload", "image_folder", "remote"),
    *("socketless", *_LAST),
    multiselect=False,
)
MultiCombo = _widget(
    *("MultiCombo", "COMBO", "options", *_FRONT, "default", "placeholder", "chip", "control_after_generate"),
    *("socketless", *_LAST),
    multiselect=True,
)


class _CurveInput(Curve.Input):  # type: ignore[misc, name-defined]
    def as_dict(self) -> dict[str, Any]:
        points = [list(point) for point in self.default]
        return {**super().as_dict(), "default": {"points": points, "interpolation": "monotone_cubic"}}


class _ComboInput(Combo.Input):  # type: ignore[misc, name-defined]
    def __init__(self, id: str, *given: Any, **options: Any) -> None:
        super().__init__(id, *given, **options)
        choices = self.options.get("options")
        if isinstance(choices, type) and issubclass(choices, Enum):
            self.options["options"] = [member.value for member in choices]


class _MultiComboInput(MultiCombo.Input):  # type: ignore[misc, name-defined]
    def as_dict(self) -> dict[str, Any]:
        options = super().as_dict()
        own = {name: options.pop(name) for name in ("placeholder", "chip") if name in options}
        return {**options, "multi_select": own}


Curve.Input, Combo.Input, MultiCombo.Input = _CurveInput, _ComboInput, _MultiComboInput

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
    "ModelPatch": "MODEL_PATCH",
    "BackgroundRemoval": "BACKGROUND_REMOVAL",
    "LatentUpscaleModel": "LATENT_UPSCALE_MODEL",
    "Splat": "SPLAT",
    "File3DAny": "FILE_3D",
    "File3DGLB": "FILE_3D_GLB",
    "File3DGLTF": "FILE_3D_GLTF",
    "File3DFBX": "FILE_3D_FBX",
    "File3DOBJ": "FILE_3D_OBJ",
    "File3DSTL": "FILE_3D_STL",
    "File3DUSDZ": "FILE_3D_USDZ",
    "File3DPLY": "FILE_3D_PLY",
    "File3DSPLAT": "FILE_3D_SPLAT",
    "File3DSPZ": "FILE_3D_SPZ",
    "File3DKSPLAT": "FILE_3D_KSPLAT",
    "File3DSplatAny": "FILE_3D_SPLAT_ANY",
    "File3DPointCloudAny": "FILE_3D_POINT_CLOUD_ANY",
    "Load3DModelInfo": "LOAD3D_MODEL_INFO",
    "Compositor": "COMPOSITOR",
    "Layers": "LAYERS",
    "Tracks": "TRACKS",
    "Dict": "DICT",
    "Array": "ARRAY",
    "Histogram": "HISTOGRAM",
    "AudioEncoder": "AUDIO_ENCODER",
    "AudioEncoderOutput": "AUDIO_ENCODER_OUTPUT",
}
"""The types without a widget, by their Python names."""

globals().update({name: Custom(io_type) for name, io_type in TYPES.items()})


@dataclass
class Schema:
    """A V3 class's schema."""

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
    accept_all_inputs: bool = False
    essentials_category: str | None = None
    has_intermediate_output: bool = False
    is_dev_only: bool = False

    def __post_init__(self) -> None:
        self.inputs, self.outputs = list(self.inputs or ()), list(self.outputs or ())
        wanted = list(self.hidden or ())
        if self.is_output_node:
            wanted += [Hidden.prompt, Hidden.extra_pnginfo]
        if self.is_api_node:
            wanted += [Hidden.auth_token_comfy_org, Hidden.api_key_comfy_org, Hidden.comfy_usage_source]
        self.hidden = list(dict.fromkeys(wanted))
