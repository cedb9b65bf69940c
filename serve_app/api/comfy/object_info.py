"""/object_info: every node class in ComfyUI's format.

Built from specs, so nothing of a class's code runs here. Lists of files are read at each request. COMBOs are written as
V1 lists, because clients read `input.required.NAME[0]` as a list; only COMBOs with a `multiselect` option, as all of V3
have, are written in V3's form. The members are those of a V3 class in ComfyUI 0.33.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.files.content import kind as kind_of
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.graph.spec import OWN_KINDS, Input, NodeSpec
from serve_app.service.service import Service

KINDS = {"image_upload": ("image", ""), "audio_upload": ("audio", "video"), "video_upload": ("video",)}
"""The kinds of files that an input lists, by its upload option; "" is for names without a known suffix."""

router = Routes()


@router.read("/object_info")
async def get_object_info(request: Request, service: Current) -> Response:
    """Describe every class. The answer is megabytes and rarely changes, so it has an ETag."""
    specs, choices = await _known(service)
    answer = await asyncio.to_thread(lambda: JsonResponse({name: info(spec, choices) for name, spec in specs.items()}))
    tag = f'"{hashlib.sha256(bytes(answer.body)).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    answer.headers.update(headers)
    return answer


@router.read("/object_info/{node_class}")
async def get_class_info(request: Request, service: Current) -> Response:
    """Describe one class; an unknown one gives {}."""
    name = request.path_params["node_class"]
    specs, choices = await _known(service, only=name)
    return JsonResponse({name: info(specs[name], choices)} if name in specs else {})


async def _known(
    service: Service, only: str | None = None
) -> tuple[Mapping[str, NodeSpec], Mapping[str, Sequence[str]]]:
    specs = await service.specs()
    shown = specs.values() if only is None else [specs[only]] if only in specs else []
    return specs, await service.choices(i.folder for spec in shown for i in spec.inputs if i.folder is not None)


def info(spec: NodeSpec, choices: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return one class in ComfyUI's format. choices: folder -> file names."""
    if spec.described is not None:
        return with_own_files(spec, spec.described, choices)
    inputs: dict[str, dict[str, Any]] = {"required": {}}
    for declared in spec.inputs:
        inputs.setdefault(declared.section, {})[declared.name] = config(declared, choices)
    hidden = {name: kind for name, kind in spec.hidden.items() if kind not in OWN_KINDS}
    if hidden:
        inputs["hidden"] = hidden
    return {
        "input": inputs,
        "input_order": {section: list(members) for section, members in inputs.items()},
        "is_input_list": spec.input_is_list,
        "output": list(spec.outputs),
        "output_is_list": list(spec.output_is_list),
        "output_name": list(spec.output_names),
        "output_tooltips": list(spec.output_tooltips) or [None] * len(spec.outputs),
        "output_matchtypes": list(spec.output_matchtypes) or None,
        "name": spec.class_type,
        "display_name": spec.display_name or spec.class_type,
        "description": spec.description,
        "python_module": spec.python_module,
        "category": spec.category,
        "output_node": spec.output_node,
        "deprecated": spec.deprecated,
        "experimental": spec.experimental,
        "dev_only": spec.dev_only,
        "api_node": spec.api_node,
        "price_badge": spec.price_badge,
        "search_aliases": list(spec.search_aliases) or None,
        "essentials_category": spec.essentials_category,
        "has_intermediate_output": spec.has_intermediate_output,
    }


def with_own_files(spec: NodeSpec, own: Mapping[str, Any], choices: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a class as the ComfyUI server that runs it describes it, with our files in place of that server's."""
    inputs = {section: dict(members) for section, members in own.get("input", {}).items()}
    for declared in spec.inputs:
        if declared.folder is not None and declared.name in inputs.get(declared.section, {}):
            files = list(choices.get(declared.folder, ()))
            options = {k: v for k, v in declared.options.items() if k != "options"}
            inputs[declared.section][declared.name] = [files, options] if options else [files]
    return {**own, "input": inputs}


def config(declared: Input, choices: Mapping[str, Sequence[str]]) -> list[Any]:
    """Return an input as [type or choices, options]; an input without options is a list of one."""
    kind: Any = declared.type
    listed: Sequence[Any] | None = declared.choices
    if declared.folder is not None:
        wanted = [kinds for upload, kinds in KINDS.items() if declared.options.get(upload) is True]
        listed = [name for name in choices.get(declared.folder, ()) if not wanted or kind_of(name) in wanted[0]]
    if "remote" in declared.options or listed is None or declared.type != "COMBO":
        pass  # the page fetches the choices from the route that the options name
    elif "multiselect" in declared.options:
        return [kind, {**declared.options, "options": list(listed)}]
    else:
        kind = list(listed)
    return [kind, dict(declared.options)] if declared.options else [kind]
