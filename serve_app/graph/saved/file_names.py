"""Substitution of %…% in file name prefixes, as the page does it: a time, or the value of another node's widget.

%date:yyyy-MM-dd% and %NODE.WIDGET%, NODE being what the node is called in the file's properties, or its title. What is
neither stays for the server. Rules: those of ComfyUI's frontend 1.58.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias

Lookup: TypeAlias = Callable[[str, str], Any]
"""From a node's name and a widget's to its value; LookupError if there is none."""

SAVES = frozenset(
    {"SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveAnimatedPNG", "SaveWEBM"}
    | {"SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced"}
    | {
        "VHS_VideoCombine",
        "SaveGaussianSplat",
        "SavePointCloud",
        "CLIPSave",
        "VAESave",
        "ModelSave",
        "LoraSave",
        "SaveLatent",
    }
)
"""The classes whose `filename_prefix` is written so."""

_TOKEN = re.compile(r"%([^%]+)%")
_TIME = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_UNFIT = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
_PARTS = {"d": "day", "M": "month", "h": "hour", "m": "minute", "s": "second"}


def file_name(kind: str, prefix: str, now: datetime, value: Lookup) -> str:
    """Return the `filename_prefix` that a node of a class is queued with."""

    def written(match: re.Match[str]) -> str:
        token = match[1]
        if token.startswith("date:"):
            return _TIME.sub(lambda part: _part(part[0], now), token.removeprefix("date:"))
        node, dot, widget = token.partition(".")
        if not dot or "." in widget:
            return match[0]
        try:
            return _UNFIT.sub("_", str(value(node, widget)))
        except LookupError:
            return match[0]

    return _TOKEN.sub(written, prefix) if kind in SAVES else prefix


def _part(token: str, now: datetime) -> str:
    if token[0] == "y":
        return {"yy": f"{now:%y}", "yyyy": f"{now:%Y}"}.get(token, token)
    return str(getattr(now, _PARTS[token[0]])).rjust(len(token), "0")
