"""`comfy.comfy_types` for node packs: the names that annotate V1 classes.

Source: the facts of ComfyUI 0.3.64's package of this name.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class IO(StrEnum):
    """Type names of sockets."""

    STRING = "STRING"
    IMAGE = "IMAGE"
    MASK = "MASK"
    LATENT = "LATENT"
    BOOLEAN = "BOOLEAN"
    INT = "INT"
    FLOAT = "FLOAT"
    COMBO = "COMBO"
    CONDITIONING = "CONDITIONING"
    SAMPLER = "SAMPLER"
    SIGMAS = "SIGMAS"
    GUIDER = "GUIDER"
    NOISE = "NOISE"
    CLIP = "CLIP"
    CONTROL_NET = "CONTROL_NET"
    VAE = "VAE"
    MODEL = "MODEL"
    LORA_MODEL = "LORA_MODEL"
    LOSS_MAP = "LOSS_MAP"
    CLIP_VISION = "CLIP_VISION"
    CLIP_VISION_OUTPUT = "CLIP_VISION_OUTPUT"
    STYLE_MODEL = "STYLE_MODEL"
    GLIGEN = "GLIGEN"
    UPSCALE_MODEL = "UPSCALE_MODEL"
    AUDIO = "AUDIO"
    WEBCAM = "WEBCAM"
    POINT = "POINT"
    FACE_ANALYSIS = "FACE_ANALYSIS"
    BBOX = "BBOX"
    SEGS = "SEGS"
    VIDEO = "VIDEO"
    ANY = "*"
    NUMBER = "FLOAT,INT"
    PRIMITIVE = "STRING,FLOAT,INT,BOOLEAN"

    def __str__(self) -> str:
        return str(self.value)

    def __ne__(self, other: object) -> bool:
        """Say that types differ unless one is "*" or they have a part in common: how sockets are compared."""
        if self.value == "*" or other == "*":
            return False
        if not isinstance(other, str):
            return True
        mine, others = frozenset(self.value.split(",")), frozenset(other.split(","))
        return not (mine <= others or others <= mine)

    __hash__ = str.__hash__


class ComfyNodeABC:
    """A base class that V1 classes may have; the protocol is theirs."""

    DESCRIPTION: str
    CATEGORY: str
    RETURN_TYPES: tuple[str, ...]
    FUNCTION: str


InputTypeDict = InputTypeOptions = HiddenInputTypeDict = FileLocator = dict[str, Any]
CheckLazyMixin = type("CheckLazyMixin", (), {"check_lazy_status": lambda self, **inputs: _missing(inputs)})


def _missing(inputs: dict[str, Any]) -> list[str]:
    return [name for name, value in inputs.items() if value is None]
