"""Node classes that ComfyUI removed, and the ones that replace them in a workflow. Pure.

The web page offers to replace them; in a submitted prompt they are replaced without asking. Source: what ComfyUI 0.33.0
registers in `nodes_replacements`, and what its `node_replace_manager` does with it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve_app.graph.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Replacement:
    """One class for another.

    widgets: the old class's widgets in order, as saved workflows have their values. inputs: the new class's inputs ->
    the old one's of the same value; None where all have the old names. values: of further inputs of the new class.
    """

    old: str
    new: str
    widgets: Sequence[str] = ()
    inputs: Mapping[str, str] | None = None
    values: Mapping[str, Any] | None = None

    def shown(self) -> dict[str, Any]:
        """Return it as the page reads it."""
        mapped = [{"new_id": new, "old_id": old} for new, old in (self.inputs or {}).items()]
        mapped += [{"new_id": new, "set_value": value} for new, value in (self.values or {}).items()]
        return {
            "new_node_id": self.new,
            "old_node_id": self.old,
            "old_widget_ids": list(self.widgets) or None,
            "input_mapping": mapped or None,
            "output_mapping": None,
        }

    def applied(self, node: Node) -> Node:
        """Return the node of the new class that stands for one of the old."""
        if self.inputs is None:
            return replace(node, class_type=self.new)
        kept = {new: node.inputs[old] for new, old in self.inputs.items() if old in node.inputs}
        return replace(node, class_type=self.new, inputs={**kept, **(self.values or {})})


REPLACEMENTS: Mapping[str, Replacement] = {
    one.old: one
    for one in (
        Replacement(
            "ResizeImagesByLongerEdge",
            "ImageScaleToMaxDimension",
            widgets=("longer_edge",),
            inputs={"image": "images", "largest_size": "longer_edge"},
            values={"upscale_method": "lanczos"},
        ),
        Replacement("ImageBatch", "BatchImagesNode", inputs={"images.image0": "image1", "images.image1": "image2"}),
        Replacement(
            "ImageScaleBy",
            "ResizeImageMaskNode",
            widgets=("upscale_method", "scale_by"),
            inputs={"input": "image", "resize_type.multiplier": "scale_by", "scale_method": "upscale_method"},
            values={"resize_type": "scale by multiplier"},
        ),
        Replacement("T2IAdapterLoader", "ControlNetLoader", inputs={"control_net_name": "t2i_adapter_name"}),
        Replacement("Load3DAnimation", "Load3D"),
        Replacement("Preview3DAnimation", "Preview3D"),
        Replacement("SDV_img2vid_Conditioning", "SVD_img2vid_Conditioning"),
        Replacement("ConditioningAverage ", "ConditioningAverage"),
    )
}
"""By the class that went. Where it is still there, the page alone makes use of it."""


def replaced(graph: Graph, known: Container[str]) -> Graph:
    """Return the graph with every class that is not known, but what replaces it is, replaced."""
    found = {
        node_id: REPLACEMENTS[node.class_type].applied(node)
        for node_id, node in graph.nodes.items()
        if node.class_type not in known
        and node.class_type in REPLACEMENTS
        and REPLACEMENTS[node.class_type].new in known
    }
    return replace(graph, nodes={**graph.nodes, **found}) if found else graph
