"""The node classes of the contract's example workflow as specs: the real classes need torch, these tests do not."""

from __future__ import annotations

from typing import Any

from serve_app.graph.spec import Input, NodeSpec


def _combo(name: str, *choices: str) -> Input:
    return Input(name, "COMBO", choices=choices)


def _number(name: str, kind: str, low: float, high: float) -> Input:
    return Input(name, kind, options={"min": low, "max": high})


def _spec(class_type: str, inputs: list[Input], outputs: tuple[str, ...] = (), **members: Any) -> NodeSpec:
    return NodeSpec(class_type, tuple(inputs), outputs, outputs, (False,) * len(outputs), **members)


SPECS = {
    spec.class_type: spec
    for spec in [
        _spec(
            "CheckpointLoaderSimple",
            [Input("ckpt_name", "COMBO", folder="checkpoints")],
            ("MODEL", "CLIP", "VAE"),
        ),
        _spec("CLIPTextEncode", [Input("text", "STRING"), Input("clip", "CLIP")], ("CONDITIONING",)),
        _spec(
            "KSampler",
            [
                Input("model", "MODEL"),
                _number("seed", "INT", 0, 2**64 - 1),
                _number("steps", "INT", 1, 10_000),
                _number("cfg", "FLOAT", 0.0, 100.0),
                _combo("sampler_name", "euler", "heun"),
                _combo("scheduler", "normal", "karras"),
                Input("positive", "CONDITIONING"),
                Input("negative", "CONDITIONING"),
                Input("latent_image", "LATENT"),
                _number("denoise", "FLOAT", 0.0, 1.0),
            ],
            ("LATENT",),
        ),
        _spec(
            "EmptyLatentImage",
            [
                _number("width", "INT", 16, 16384),
                _number("height", "INT", 16, 16384),
                _number("batch_size", "INT", 1, 4096),
            ],
            ("LATENT",),
        ),
        _spec("VAEDecode", [Input("samples", "LATENT"), Input("vae", "VAE")], ("IMAGE",)),
        _spec(
            "LoadImage", [Input("image", "COMBO", folder="input", options={"image_upload": True})], ("IMAGE", "MASK")
        ),
        _spec("SaveImage", [Input("images", "IMAGE"), Input("filename_prefix", "STRING")], output_node=True),
    ]
}
