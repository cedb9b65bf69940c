"""What the ControlNet of MiniMax H3 is compared with ComfyUI's module on. As `minimax_h3_cases`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN
from tests.parity.minimax_h3_cases import CASES, SIZES, Case, drawn

CHANNELS = {"video": 24, "masked": 49}
"""Of a hint: of a video to follow alone, and with one to paint into."""
CONTROLS: Mapping[str, Sequence[int]] = {"whole": (0, 1), "pruned": (0,)}
"""After which of a network's blocks the ControlNet's act."""
SAID = {name: {"control_blocks_places": json.dumps(list(after))} for name, after in CONTROLS.items()}
"""What the metadata of files says."""
CASE_OF: Mapping[str, Case] = {case.name: case for case in CASES}


@dataclass(frozen=True)
class Controlled:
    """A forward of a case under a hint."""

    case: str
    hint: str = "video"
    strength: float = 0.8

    @property
    def name(self) -> str:
        return f"{self.case} {self.hint} {self.strength}"


CONTROLLED = (
    Controlled("whole"),
    Controlled("pruned", "masked"),
    Controlled("odd sides", strength=1.5),
    Controlled("frames", "masked"),
    Controlled("guides"),
    Controlled("references"),
    Controlled("frames and a mask", "masked"),
)


def sizes(name: str) -> dict[str, Any]:
    """Return ComfyUI's arguments of a ControlNet."""
    return {
        "injection_layers": CONTROLS[name],
        "hidden_size": SIZES["hidden_size"],
        "num_attention_heads": SIZES["num_attention_heads"],
        "attention_head_dim": SIZES["attention_head_dim"],
        "ffn_hidden_size": SIZES["ffn_hidden_size"],
        "time_embed_dim": {"whole": 24, "pruned": 8}[name],
        "use_adaln_curves": name == "pruned",
    }


def file(name: str) -> dict[str, Tensor]:
    """Return the tensors of a ControlNet's file, for the network of this name."""
    keys: dict[str, list[int]] = json.loads((GOLDEN / "minimax_h3_control_keys.json").read_text())[name]
    return drawn(keys)


def hint(controlled: Controlled) -> Tensor:
    """Return the latents of a hint."""
    video = CASE_OF[controlled.case].video
    return noise(f"{controlled.name} hint", (1, CHANNELS[controlled.hint], *video[1:]))
