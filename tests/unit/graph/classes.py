"""A few node classes as data, for the graph floor's tests: the text-to-image classes in small."""

from __future__ import annotations

from typing import Any

from serve_app.graph.graph import Graph
from serve_app.graph.parse import parse
from serve_app.graph.spec import Input, NodeSpec


def spec(name: str, inputs: list[Input], outputs: str = "", **more: Any) -> NodeSpec:
    kinds = tuple(outputs.split())
    return NodeSpec(name, tuple(inputs), kinds, kinds, (False,) * len(kinds), **more)


def number(name: str, kind: str = "INT", **options: Any) -> Input:
    return Input(name, kind, options=options)


RUNTIME = {"runtime": "RUNTIME"}
SPECS = {
    s.class_type: s
    for s in (
        spec("Loader", [Input("ckpt_name", "COMBO", folder="checkpoints")], "MODEL CLIP VAE"),
        spec("Encode", [Input("text", "STRING"), Input("clip", "CLIP")], "CONDITIONING", hidden=RUNTIME),
        spec("Empty", [number("width", min=16, max=1024), number("height", min=16, max=1024)], "LATENT"),
        spec(
            "Sampler",
            [
                Input("model", "MODEL"),
                number("seed", min=0, max=2**64 - 1),
                number("cfg", "FLOAT", min=0.0, max=100.0),
                Input("sampler", "COMBO", choices=("euler", "heun", "dpmpp_2m")),
                Input("positive", "CONDITIONING"),
                Input("negative", "CONDITIONING"),
                Input("latent", "LATENT"),
                Input("mask", "MASK", "optional"),
                Input("preview", "BOOLEAN", "optional"),
            ],
            "LATENT",
            hidden=RUNTIME,
        ),
        spec("Decode", [Input("samples", "LATENT"), Input("vae", "VAE")], "IMAGE", hidden=RUNTIME),
        spec("Load", [Input("image", "COMBO", folder="input")], "IMAGE MASK"),
        spec("Scale", [Input("image", "IMAGE"), number("width", min=0)], "IMAGE"),
        spec("Any", [Input("value", "*", "optional")], "*"),
        spec("Either", [Input("value", "IMAGE,FLOAT")], "IMAGE"),
        spec("Random", [number("seed")], "INT", not_idempotent=True),
        spec("Named", [number("seed")], "INT", hidden={"id": "UNIQUE_ID"}),
        spec("Save", [Input("images", "IMAGE"), Input("prefix", "STRING")], output_node=True),
    )
}

FOLDERS = {"checkpoints": ["dreamshaper.safetensors", "sd15.safetensors"], "input": ["cat.png"]}


def wire() -> dict[str, Any]:
    """A whole text-to-image workflow; its negative and positive link the same node."""
    return {
        "4": {"class_type": "Loader", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "5": {"class_type": "Empty", "inputs": {"width": 64, "height": 64}},
        "6": {"class_type": "Encode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
        "3": {
            "class_type": "Sampler",
            "inputs": {
                "model": ["4", 0],
                "seed": 7,
                "cfg": 8.0,
                "sampler": "euler",
                "positive": ["6", 0],
                "negative": [6, 0],
                "latent": ["5", 0],
            },
        },
        "8": {"class_type": "Decode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "Save", "inputs": {"images": ["8", 0], "prefix": "x"}},
    }


def graph(prompt: dict[str, Any] | None = None) -> Graph:
    return parse(wire() if prompt is None else prompt)
