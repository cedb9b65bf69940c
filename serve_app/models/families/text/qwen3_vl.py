"""Qwen3-VL's vision tower, and Qwen-Image 2.1's prompt format for texts and images.

Source: Bai et al. 2025, arXiv:2511.21631; the template is Qwen-Image 2.1's, the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from serve_app.models.families.text.qwen_vl import IM_START, QwenVlEncoder, Seen, patches
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import qwen
from serve_app.sampling.transfer import to_device
from serve_app.values import IllustratedText

QWEN_IMAGE_21 = PromptFormat(
    "qwen3vl_8b",
    template="<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    weighs=False,
    pad=qwen.PAD,
    masked=True,
    returns_mask=True,
    taps=(-1,),
)
_SEEN = "<image{}><|vision_start|><|image_pad|><|vision_end|>"

PATCH = 16
"""Side of a patch in pixels."""
_HEADS, _MERGED = 16, 2
HALVES = (0.5, 0.5, 0.5)
"""The mean and the deviation of an image's channels."""
_DEEPER: Mapping[int, tuple[int, ...]] = {24: (5, 11, 17), 27: (8, 16, 24)}
"""Layers of a tower whose outputs are added to the language model's first states, by its depth: 4B; 8B and 32B."""


class Qwen3VisionTower(NamedTuple):
    """The size of the vision tower. places: size of the learnt grid of positions."""

    layers: int
    width: int
    hidden_width: int
    places: int

    @classmethod
    def probe(cls, tensors: Tensors) -> Qwen3VisionTower | None:
        """Read the tower's size off a text encoder's tensors. Errors: ModelFileError for an unsupported variant."""
        for root in ("visual.", "model.visual."):
            if tensors.has(f"{root}deepstack_merger_list."):
                inner = tensors.within(root)
                layers = inner.count("blocks.")
                if layers not in _DEEPER:
                    known = " or ".join(map(str, _DEEPER))
                    raise tensors.unsupported(f"has a Qwen3-VL tower of {layers} layers; supported are {known}")
                hidden_width, width = inner.shape("blocks.0.mlp.linear_fc1.weight")
                return cls(layers, width, hidden_width, inner.shape("pos_embed.weight")[0])
        return None


def tower(sizes: Qwen3VisionTower, outside: int) -> nn.Module:
    """Return the network of a tower. outside: width of the language model's embeddings."""
    config = Qwen3VLVisionConfig(
        depth=sizes.layers,
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden_width,
        num_heads=_HEADS,
        patch_size=PATCH,
        spatial_merge_size=_MERGED,
        out_hidden_size=outside,
        num_position_embeddings=sizes.places,
        deepstack_visual_indexes=_DEEPER[sizes.layers],
        attn_implementation="sdpa",
    )
    made: nn.Module = Qwen3VLVisionModel(config)
    return made


class QwenImage21Encoder(QwenVlEncoder):
    """Qwen3-VL on its device in Qwen-Image 2.1's template. The system turn's states are removed."""

    def before(self, tokens: Sequence[Any]) -> int:
        starts = [i for i, token in enumerate(tokens) if isinstance(token, int) and token == IM_START][:2]
        return starts[1] if len(starts) > 1 else 0

    def illustrated(self, text: IllustratedText, stop_at: int | None) -> tuple[Tensor, dict[str, Any]]:
        """Return the conditioning of a text with images, which precede it as <image1> and so on.

        Where the model reads the images itself, "image_slots" has the token that each precedes. Errors: NodeError for a
        file without a tower.
        """
        if text.template is None:
            pictures = " ".join(_SEEN.format(i) for i in range(1, len(text.images) + 1))
            text = replace(text, template=self.prompt_format.template.replace("{}", f"{pictures}{{}}"))
        encoded, spans = self.seeing(text, stop_at)
        if not text.placed:
            return self.entry(encoded)
        kept = torch.ones(len(encoded.tokens), dtype=torch.bool)
        for start, end in spans:
            kept[start:end] = False
        cut = self.before([token for token, _ in encoded.tokens])
        slots = [int(kept[cut:start].sum()) for start, _ in spans]
        tokens = [token for token, stays in zip(encoded.tokens, kept.tolist(), strict=True) if stays]
        states = encoded.states[to_device(kept.nonzero()[:, 0], encoded.states.device)]
        cond, options = self.entry(replace(encoded, tokens=tokens, states=states, seen=encoded.seen[kept]))
        return cond, {**options, "image_slots": slots}

    def see(self, image: Tensor) -> Seen:
        rows, columns, seen = self.looked(*patches(image[:1], PATCH, HALVES, HALVES))
        return Seen(seen.pooler_output, rows, columns, seen.deepstack_features)
