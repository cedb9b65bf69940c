"""What a ComfyUI says of the official templates, by its own validation; run in its environment, on a CPU.

    python -P bench/templates_comfyui.py COMFYUI classes OUT.json
    python -P bench/templates_comfyui.py COMFYUI validate PROMPTS.json OUT.json

The first writes its classes as /object_info has them, the second what is wrong with each prompt, by its name. Model and
input files are taken to be there under every name that a prompt has; nothing is loaded. `python -m bench.templates`
runs both.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def object_info(nodes: Any) -> Iterator[tuple[str, Any]]:
    """Yield each class with what /object_info says of it."""
    for name, cls in nodes.NODE_CLASS_MAPPINGS.items():
        if hasattr(cls, "GET_NODE_INFO_V1"):
            yield name, cls.GET_NODE_INFO_V1()
            continue
        inputs = cls.INPUT_TYPES()
        yield (
            name,
            {
                "input": inputs,
                "input_order": {section: list(declared) for section, declared in inputs.items()},
                "output": list(cls.RETURN_TYPES),
                "output_node": bool(getattr(cls, "OUTPUT_NODE", False)),
            },
        )


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from texts(one)


def problems(validate: Callable[..., Any], folders: Any, prompt: Mapping[str, Any]) -> list[str]:
    """Return what ComfyUI's validation refuses a prompt for, in its words."""
    named = sorted(set(texts(prompt)))
    folders.get_filename_list = lambda folder: named
    folders.exists_annotated_filepath = lambda name: True
    valid, error, _, by_node = asyncio.run(validate("0", prompt, None))
    if valid:
        return []
    found = [f"{node['class_type']}: {one['details']}" for node in by_node.values() for one in node["errors"]]
    return found or [str(error["message"])]


def main(folder: str, task: str, *paths: str) -> None:
    """Do one of the two tasks."""
    sys.path.insert(0, folder)
    sys.argv = ["main.py", "--cpu", "--disable-api-nodes"]
    from comfy.options import enable_args_parsing

    enable_args_parsing()
    import execution  # type: ignore[import-not-found]
    import folder_paths
    import nodes
    import server  # type: ignore[import-not-found]

    async def load() -> None:
        server.PromptServer(asyncio.get_running_loop())
        await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)

    asyncio.run(load())
    if task == "classes":
        Path(paths[0]).write_text(json.dumps(dict(object_info(nodes)), default=str))
        return
    prompts = json.loads(Path(paths[0]).read_text())
    said = {name: problems(execution.validate_prompt, folder_paths, prompt) for name, prompt in prompts.items()}
    Path(paths[1]).write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
