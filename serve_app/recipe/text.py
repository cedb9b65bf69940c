"""Changes of text encoders: the layer they stop at, the type they are loaded as, their padding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClipSkip:
    """Stop the text encoder at a hidden layer. stop_at: −1 is the last layer, −2 the one before."""

    stop_at: int


@dataclass(frozen=True, slots=True)
class LoadedAs:
    """The type that text encoders are loaded as, as ComfyUI's loaders name it: "sd3", "flux", "lumina2" and so on."""

    type: str


@dataclass(frozen=True, slots=True)
class T5Padding:
    """Padding of T5's texts: a minimum number of pads, and a minimum length in tokens."""

    pads: int
    length: int


@dataclass(frozen=True, slots=True)
class ProjectedBy:
    """A checkpoint has the projection of the text encoder's states, as LTX-2's. name: in the folder checkpoints."""

    name: str
