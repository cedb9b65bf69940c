"""Make golden/sam3.npz and golden/sam3_keys.json: what ComfyUI's modules and nodes of SAM 3.1 answer.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/sam3_figures.py [PART…].
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
PARTS_ASKED = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu", "--use-pytorch-cross-attention"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.sam3.detector as detector  # noqa: E402
import comfy.ldm.sam3.sam as seeing  # noqa: E402
import comfy.ldm.sam3.tracker as tracker  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.text_encoders.sam3_clip as texts  # noqa: E402
import comfy.utils  # noqa: E402
import comfy_extras.nodes_sam3 as nodes  # noqa: E402
import comfy_extras.nodes_scail as scail  # noqa: E402

from tests.parity import sam3_cases as cases  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402

comfy.model_management.load_model_gpu = lambda *_: None


def cut(of: Any, **fixed: Any) -> Any:
    """Return a class with arguments that differ from its defaults."""
    return lambda *args, **named: of(*args, **{**named, **fixed})


def network(keys: dict[str, Any]) -> Any:
    """Return a network with weights drawn from their names, of which the shapes are kept."""
    seeing.ViTDet = cut(seeing.ViTDet, num_heads=cases.WIDTH // 64)
    detector.Transformer = cut(detector.Transformer, enc_layers=cases.LAYERS, dec_layers=2)
    detector.GeometryEncoder = cut(detector.GeometryEncoder, num_layers=cases.LAYERS)
    tracker.DecoupledMemoryTransformer = cut(tracker.DecoupledMemoryTransformer, num_layers=2, dim_ff=48)
    tracker.MemoryBackbone = cut(tracker.MemoryBackbone, channels=[4, 8, 12, 16])
    net = detector.SAM3Model(**cases.NET, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    keys["net"] = {key: list(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict(cases.weights(keys["net"]))
    return net.eval()


def result(made: Any) -> Any:
    return made.result if hasattr(made, "result") else made


def prompted(net: Any, model: Any) -> dict[str, Any]:
    """Return what the detector and the decoder of prompts find in one image."""
    figures: dict[str, Any] = {}
    pixels = torch.nn.functional.interpolate(cases.images(1).movedim(-1, 1), (1008, 1008), mode="bilinear")
    cond, mask = cases.text("text")
    for name, box in (("text", None), ("text and box", torch.tensor([[cases.BOX]]))):
        made = net(pixels, text_embeddings=cond, text_mask=mask, boxes=box)
        figures[f"{name}: boxes"] = made["boxes"][0].numpy()
        figures[f"{name}: scores"] = made["scores"][0].numpy()
        figures[f"{name}: masks"] = thinned(made["masks"][0].numpy())
    points = {
        "point_coords": torch.tensor([cases.POINTS]) * 1008,
        "point_labels": torch.tensor([[1, 1, 0]], dtype=torch.int32),
    }
    figures["points"] = thinned(net.forward_segment(pixels, point_inputs=points).numpy())
    one = {name: values[:, :1] for name, values in points.items()}
    figures["one point"] = thinned(net.forward_segment(pixels, point_inputs=one).numpy())
    x, y, w, h = cases.BOX
    corners = torch.tensor([[[x - w / 2, y - h / 2], [x + w / 2, y + h / 2]]]) * 1008
    figures["box"] = thinned(net.forward_segment(pixels, box_inputs=corners).numpy())
    return figures


def several() -> list[Any]:
    mask = cases.text("text")[1]
    two = [{"cond": cases.text(f"text {n}")[0], "attention_mask": mask, "max_detections": 1 + n} for n in range(2)]
    return [[cases.text("text")[0], {"sam3_multi_cond": two}]]


def detected(net: Any, model: Any) -> dict[str, Any]:
    masks, found = result(
        nodes.SAM3_Detect.execute(model, cases.images(1), several(), threshold=cases.THRESHOLD, individual_masks=True)
    )
    boxes = np.array([[list(box.values()) for box in of] for of in found], dtype=np.float32)
    return {"detected": masks.numpy().astype(np.uint8), "found": boxes}


def followed(name: str, net: Any, model: Any) -> dict[str, Any]:
    asked = {"initial_mask": cases.initial()} if name == "followed" else {"conditioning": several()}
    drawn: list[Any] = []
    propagated = net.tracker._forward_propagation

    def noted(*args: Any, **named: Any) -> Any:
        made = propagated(*args, **named)
        drawn.append(thinned(made[1].numpy()))
        return made

    net.tracker._forward_propagation = noted
    images = cases.images(cases.FRAMES)
    [made] = result(
        nodes.SAM3_VideoTrack.execute(images, model, **asked, detection_threshold=cases.THRESHOLD, max_objects=4)
    )
    figures: dict[str, Any] = {name: np.concatenate(drawn), f"{name}: masks": made["packed_masks"].numpy()}
    figures[f"{name}: scores"] = np.array(made["scores"], dtype=np.float32)
    for sort in ("none", "left_to_right", "area"):
        colored = result(scail.SCAIL2ColoredMask.execute(made, "0,1", sort, True, cases.initial()))
        figures[f"{name}: {sort}"] = np.stack([one.mean(dim=(0, 1, 2)).numpy() for one in colored])
    [mask_of] = result(nodes.SAM3_TrackToMask.execute(made, "1"))
    return {**figures, f"{name}: mask": thinned(mask_of.numpy())}


def read(net: Any, model: Any) -> dict[str, Any]:
    """Return what the text encoder makes of several things, and of one."""
    sizes = {"hidden_size": cases.WIDTH, "intermediate_size": 2 * cases.WIDTH, "num_attention_heads": 1}
    texts.SAM3_CLIP_CONFIG.update(**sizes, num_hidden_layers=2)
    encoder = texts.SAM3ClipModelWrapper(dtype=torch.float32)
    prefix = "detector.backbone.language_backbone."
    state = {name.removeprefix(prefix): tensor for name, tensor in cases.text_encoder().items()}
    state = comfy.utils.clip_text_transformers_convert(state, "encoder.", "sam3_clip.transformer.")
    # Which is not square, and of which nothing is read.
    encoder.load_state_dict({name: t for name, t in state.items() if "text_projection" not in name}, strict=False)
    tokenizer = texts.SAM3TokenizerWrapper()
    cond, pooled, several = encoder.encode_token_weights(tokenizer.tokenize_with_weights(cases.TEXTS[0]))
    figures = {"text encoded": thinned(cond.numpy()), "text pooled": pooled.numpy()}
    second = several["sam3_multi_cond"][1]
    figures |= {"second encoded": thinned(second["cond"].numpy()), "second mask": second["attention_mask"].numpy()}
    one, _, said = encoder.encode_token_weights(tokenizer.tokenize_with_weights(cases.TEXTS[1]))
    return figures | {"one encoded": thinned(one.numpy()), "one mask": said["attention_mask"].numpy()}


PARTS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "read": read,
    "prompted": prompted,
    "detected": detected,
    "followed": partial(followed, "followed"),
    "found and followed": partial(followed, "found and followed"),
}
"""What is made, by its name; each takes some seconds."""


@torch.inference_mode()
def main(parts: Sequence[str]) -> None:
    keys: dict[str, Any] = {}
    net = network(keys)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=net, get_dtype=lambda: torch.float32))
    path = GOLDEN / "sam3.npz"
    figures = dict(np.load(path)) if parts and path.exists() else {}
    for name in parts or PARTS:
        figures |= PARTS[name](net, model)
    (GOLDEN / "sam3_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(path, **figures)


main(PARTS_ASKED)
