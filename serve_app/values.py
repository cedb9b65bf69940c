"""The light values that travel along links beside recipes, and the shapes of the values that hold tensors.

This module imports no torch, so the control plane can carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from serve_app.recipe import Recipe

if TYPE_CHECKING:
    import torch

PreviewMethod: TypeAlias = Literal["none", "auto", "latent2rgb", "taesd"]
"""How a client is shown what samplers have come to: not, by a linear map of latents, or decoded by a tiny VAE.

auto is latent2rgb.
"""

Latent: TypeAlias = dict[str, Any]
"""LATENT: {"samples": (B,C,h,w), or (B,C,T,h,w) of a video's autoencoder, unscaled; optional "batch_index": list[int],
"noise_mask", and of empty ones "downscale_ratio_spacial": pixels that a cell of theirs covers along one side}.
"""

Audio: TypeAlias = dict[str, Any]
"""AUDIO: {"waveform": (B,C,T) float32, usually in −1…1, "sample_rate": int}. None stands for that of a mute video."""

Conditioning: TypeAlias = "list[tuple[torch.Tensor, dict[str, Any]]]"
"""CONDITIONING: a list of (cond (1,T,D), options); options may hold "pooled_output" (1,D)."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipVisionOutput:
    """CLIP_VISION_OUTPUT: what an image encoder sees in B images, float32.

    last_hidden_state, penultimate_hidden_states: (B,N,D), after the last layer and after the one before. image_embeds:
    each image as one vector (B,P); of an encoder without one its last states. style_hidden_states: (B,2,N,D), after the
    20th and the 11th layer from the end, of SigLIP's alone; these are what style is read from.
    """

    last_hidden_state: torch.Tensor
    penultimate_hidden_states: torch.Tensor
    image_embeds: torch.Tensor
    style_hidden_states: torch.Tensor | None = None

    @property
    def states(self) -> dict[str, torch.Tensor]:
        """Those there are, by name."""
        named = {of.name: getattr(self, of.name) for of in fields(self)}
        return {name: states for name, states in named.items() if states is not None}


@dataclass(frozen=True, slots=True)
class Texts:
    """What several text encoders read, where it differs; None for one that there is no text for.

    l: CLIP-L's; g: OpenCLIP's bigG's; t5xxl: T5's; llama: Llama's. skip_empty: an encoder with an empty text is left
    out.
    """

    l: str | None = None  # noqa: E741
    g: str | None = None
    t5xxl: str | None = None
    llama: str | None = None
    skip_empty: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class IllustratedText:
    """A text with images (1,H,W,3) in 0…1 that the encoder sees, one for each <|image_pad|> of its template.

    template: what stands around the text, which takes the place of {}; None the encoder's usual. placed: the model is
    given the images itself, and is to be told where they stand in place of what is seen in them; not by all encoders.
    """

    text: str
    images: tuple[torch.Tensor, ...]
    template: str | None = None
    placed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """What CLIP's encoders read, cut into chunks: by encoder ("l", "h", "g") tokens of its length with weights.

    A token is a number of the vocabulary or a vector (D,).
    """

    chunks: Mapping[str, Sequence[Sequence[tuple[Any, float]]]]


Text: TypeAlias = "str | Texts | IllustratedText | TokenizedText"
"""What text encoders read."""


@dataclass(frozen=True, slots=True)
class TokenSampling:
    """How the next token is drawn, in ComfyUI's numbers.

    top_k: so many of the likeliest are left, 0 for all; top_p: those of which the likelier ones add up to no more than
    this share; min_p: those that have at least this share of the likeliest one's probability. repetition_penalty and
    presence_penalty: divides and lowers the logits of tokens that were generated before.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A text that a language model is asked to generate after another.

    max_tokens: where it is cut off. sampling: None takes the likeliest token each time. thinking: the model may reason
    first; use_template: the text stands within the model's template. Both only where a model knows of them.
    """

    text: str
    max_tokens: int
    sampling: TokenSampling | None = None
    thinking: bool = False
    use_template: bool = True


@dataclass(frozen=True, slots=True)
class SamplerChoice:
    """SAMPLER: a sampler's name and the options that differ from its defaults.

    start: makes a node pack's sampler of (x, sigmas, seed, levels), as `sampling.evaluation.Sampler`; the name is then
    for messages alone, and the options are the pack's.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    start: Callable[[Any, Any, int, Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """NOISE: a seed. added False: nothing is added to the latents, and the seed is the sampler's alone.

    draw: makes the noise of (latents (B,C,…), their batch_index) where it is not the seed's.
    """

    seed: int
    added: bool = True
    draw: Callable[[torch.Tensor, Any], torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Cfg:
    """Classifier-free guidance from "negative" to "positive"; at scale 1 the negative is not evaluated."""

    scale: float


@dataclass(frozen=True, slots=True)
class DualCfg:
    """Guidance from "negative" to "middle" by middle_scale, and from there to "positive" by scale.

    nested: the second guides what the first gives instead of being added to it.
    """

    scale: float
    middle_scale: float
    nested: bool = False


@dataclass(frozen=True, slots=True)
class PerpNeg:
    """Guidance from "empty", away from that part of "negative" which is perpendicular to "positive".

    scale: of all of it; negative_scale: of the negative.
    """

    scale: float
    negative_scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Guider:
    """GUIDER: a backbone, its conditionings by role ("positive", "negative", …), and how they are combined.

    negative_backbone: what answers for the negative, None if that is the backbone too.
    """

    backbone: Recipe
    conds: Mapping[str, Conditioning]
    rule: Cfg | DualCfg | PerpNeg
    negative_backbone: Recipe | None = None


@dataclass(frozen=True, slots=True)
class Extraction:
    """What of weights makes a LoRA. rank: of its layers; whole: they have all numbers instead; biases: and biases."""

    rank: int
    whole: bool = False
    biases: bool = True


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a large image is cut for the VAE: sides of a tile and what neighbours share, in pixels.

    frames, shared_frames: as much of a video in images of it; frames 0: all of it in each tile.
    """

    size: int
    overlap: int
    frames: int = 0
    shared_frames: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """One application of a ControlNet or T2I-Adapter, the option "control" of an entry of a conditioning.

    hint: IMAGE (N,H,W,C) in 0…1. start_percent, end_percent: the share of the noise levels it acts in. previous: the
    application beneath it; both act. vae: encodes the hint for networks that read latents. mask: (N,H,W), 1 where the
    image is to be made anew, for networks that read one.
    """

    recipe: Recipe
    hint: torch.Tensor
    strength: float
    start_percent: float = 0.0
    end_percent: float = 1.0
    previous: Control | None = None
    vae: Recipe | None = None
    mask: torch.Tensor | None = None
