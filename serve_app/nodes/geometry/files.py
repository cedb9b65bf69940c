"""The node that saves surfaces."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.geometry.meshes import Mesh, to_glb
from serve_app.nodes.image.images import workflow_text
from serve_app.nodes.inputs import InputType, Text
from serve_app.nodes.sockets import EXTRA_PNGINFO, PROMPT, STORE

KINDS = ",".join(
    [
        "MESH",
        *(f"FILE_3D_{kind}" for kind in ("GLB", "GLTF", "OBJ", "FBX", "STL", "USDZ", "PLY", "SPLAT", "SPZ", "KSPLAT")),
        *("FILE_3D_SPLAT_ANY", "FILE_3D_POINT_CLOUD_ANY", "FILE_3D"),
    ]
)
"""What ComfyUI's class takes; no class here makes a file."""


@node(
    "SaveGLB",
    "Save 3D Model",
    category="3d",
    output_node=True,
    essentials_category="Basics",
    search_aliases=("export 3d model", "save mesh"),
)
async def save_glb(
    mesh: Annotated[Any, InputType(KINDS)],
    filename_prefix: Annotated[str, Text("3d/ComfyUI", multiline=False)],
    prompt: PROMPT,
    extra_pnginfo: EXTRA_PNGINFO,
    store: STORE,
) -> dict[str, Any]:
    """A surface to a file in GLB, with its workflow. Store it and show where. Errors: NodeError for anything else."""
    if not isinstance(mesh, Mesh):
        raise NodeError(f"mesh is a {type(mesh).__name__}; only surfaces of this server's own nodes are saved")
    content = await asyncio.to_thread(to_glb, mesh, workflow_text([prompt], [extra_pnginfo]))
    return {"ui": {"3d": await store.save("output", filename_prefix, ".glb", [content])}}
