"""What a node class declares, ComfyUI's as its clients are told of it and ours as a spec, to be compared.

Left out is what only the page reads: tooltips, aliases for its search, which inputs it folds; lists of files; and
samplers that ComfyUI has got later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.graph.spec import NodeSpec
from tests.parity.figures import LATER_SAMPLERS

WORDED_OTHERWISE = frozenset(
    {"BuildJsonPromptIdeogram", "ColorTransfer", "CustomCombo", "ModelAttentionBackend", "Painter"}
    | {"ResizeImageMaskNode", "SaveAudioAdvanced", "SaveImageAdvanced", "SaveVideo"}
    | {"DA3Inference", "DA3Render", "SeedVR2TemporalChunk"}
    | {"TextGenerate", "TextGenerateLTX2Prompt"}
)
"""Classes whose choices change with another input, are files, or what is installed.

Clients are told of them in other words.
"""
FOR_THE_PAGE = frozenset({"tooltip", "advanced", "options", "multiselect", "lazy"})


def theirs(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ComfyUI's class declares, from its part of /object_info."""
    inputs = [
        _input(section, name, *declared)
        for section in ("required", "optional")
        for name, declared in info["input"].get(section, {}).items()
    ]
    names = info["output_name"] or info["output"]
    return {
        "inputs": inputs,
        "outputs": list(info["output"]),
        "output_names": [name or kind for name, kind in zip(names, info["output"], strict=True)],
        "category": info["category"],
        "display_name": info["display_name"] or info["name"],
        **{flag: bool(info.get(flag)) for flag in ("output_node", "deprecated", "experimental")},
    }


def ours(spec: NodeSpec) -> dict[str, Any]:
    """Return what our class declares."""
    inputs = []
    for declared in spec.inputs:
        choices = None if declared.choices is None else [c for c in declared.choices if c not in LATER_SAMPLERS]
        kind = "COMBO" if choices is not None or declared.folder is not None else declared.type
        inputs.append([declared.section, declared.name, kind, choices, _options(declared.name, declared.options)])
    return {
        "inputs": inputs,
        "outputs": list(spec.outputs),
        "output_names": list(spec.output_names),
        "category": spec.category,
        "display_name": spec.display_name,
        **{flag: getattr(spec, flag) for flag in ("output_node", "deprecated", "experimental")},
    }


def _input(section: str, name: str, kind: Any, options: Mapping[str, Any] | None = None) -> list[Any]:
    options = options or {}
    choices = kind if isinstance(kind, list) else options.get("options")
    # Names of files and folders, which a class reads off the directories beside it.
    if choices is not None and (not choices or "image_upload" in options or name in ("latent", "vae_name", "folder")):
        choices = None
    return [section, name, "COMBO" if isinstance(kind, list) else kind, choices, _options(name, options)]


def _options(of: str, options: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if name not in FOR_THE_PAGE and value is not None}
    if kept.get("display_name") == of:
        del kept["display_name"]
    template = kept.get("template")
    if template is None or "input" not in template:
        return kept
    repeated = {
        section: {name: [kind, *(_options(name, one) for one in own)] for name, (kind, *own) in inputs.items()}
        for section, inputs in template["input"].items()
    }
    return kept | {"template": {**template, "input": repeated}}
