"""Workflows as the web page saves them, built node by node, and the classes they are made of."""

from __future__ import annotations

from typing import Any

CLASSES: dict[str, Any] = {
    "Load": {"input": {"required": {"file": [["a", "b"]]}}, "display_name": "Load Model"},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 7, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "name": [["euler", "heun"]],
            },
            "optional": {"note": ["STRING", {"default": "none"}], "bare": ["FLOAT"]},
        },
        "input_order": {"required": ["model", "seed", "steps", "name"], "optional": ["note", "bare"]},
    },
    "Patch": {"input": {"required": {"model": ["MODEL"], "strength": ["FLOAT", {"default": 1.0}]}}},
    "Join": {"input": {"required": {"one": ["IMAGE"], "two": ["MODEL"]}}},
    "Forced": {"input": {"required": {"text": ["STRING", {"forceInput": True}], "width": ["INT"], "height": ["INT"]}}},
    "Upload": {
        "input": {
            "required": {"image": [["x.png"], {"image_upload": True}]},
            "optional": {"channel": ["COMBO", {"options": ["red", "green"]}]},
        }
    },
    "Chosen": {"input": {"required": {"name": [["a", "b"], {"control_after_generate": True}], "size": ["INT"]}}},
    "Many": {"input": {"required": {"names": ["COMBO", {"options": ["a", "b"], "multiselect": True}]}}},
}


def node(
    node_id: int,
    kind: str,
    inputs: dict[str, tuple[str, int | None]] | None = None,
    makes: tuple[str, ...] = ("MODEL",),
    **keys: Any,
) -> dict[str, Any]:
    """Return a saved node. inputs: name -> (type, link id)."""
    slots = [{"name": name, "type": kind, "link": link} for name, (kind, link) in (inputs or {}).items()]
    return {"id": node_id, "type": kind, "inputs": slots, "outputs": [{"name": o, "type": o} for o in makes], **keys}


def workflow(*nodes: dict[str, Any], links: dict[int, tuple[int, int, int, int]], **keys: Any) -> dict[str, Any]:
    """Return a saved workflow. links: id -> (origin, slot, target, slot)."""
    return {"nodes": list(nodes), "links": [[link, *ends, "*"] for link, ends in links.items()], "version": 0.4, **keys}


def subgraph(
    name: str, *nodes: dict[str, Any], links: dict[int, tuple[int, int, int, int]], inputs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the definition of a subgraph, whose links are saved as objects; -10 and -20 are its ends."""
    keys = ("origin_id", "origin_slot", "target_id", "target_slot")
    saved = [{"id": link, **dict(zip(keys, ends, strict=True)), "type": "*"} for link, ends in links.items()]
    entries = [{"name": entry} for entry in inputs]
    return {"id": name, "name": name, "inputs": entries, "nodes": list(nodes), "links": saved}
