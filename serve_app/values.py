"""The small values on links other than recipes, and the shapes of values with tensors.

This module imports no torch, so the control plane can carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from serve_app.nested_tensor import Samples
from serve_app.recipe.recipe import Recipe

if TYPE_CHECKING:
    import torch

PreviewMethod: TypeAlias = Literal["none", "auto", "latent2rgb", "taesd"]
"""How clients preview sampling: not at all, by a linear map of latents, or decoded by a tiny VAE.

auto is latent2rgb.
"""

Latent: TypeAlias = dict[str, Any]
"""LATENT: {"samples": (B,C,h,w), or (B,C,T,h,w) of a video's autoencoder, unscaled; optional "batch_index": list[int],
"noise_mask", and of empty ones "downscale_ratio_spacial": pixels that a cell of theirs covers along one side}. Of a
sound the samples are (B,C,T), and empty ones have "downscale_ratio_temporal": samples of it that one covers. A video
with its sound has NestedTensors of both as samples and noise_mask.
"""

Audio: TypeAlias = dict[str, Any]
"""AUDIO: {"waveform": (B,C,T) float32, usually in −1…1, "sample_rate": int}. None: the audio of a mute video."""

Conditioning: TypeAlias = "list[tuple[torch.Tensor, dict[str, Any]]]"
"""CONDITIONING: a list of (cond (1,T,D), options); options may hold "pooled_output" (1,D)."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipVisionOutput:
    """CLIP_VISION_OUTPUT: an image encoder's features of B images, float32.

    last_hidden_state, penultimate_hidden_states: (B,N,D), after the last layer and the one before. image_embeds: one
    vector for each image (B,P); for encoders without one, the last states. style_hidden_states: (B,2,N,D), after the
    20th and the 11th layer from the end, of SigLIP only; style models read these.
    """

    last_hidden_state: torch.Tensor
    penultimate_hidden_states: torch.Tensor
    image_embeds: torch.Tensor
    style_hidden_states: torch.Tensor | None = None

    @property
    def states(self) -> dict[str, torch.Tensor]:
        """Its tensors that are present, by name."""
        named = {of.name: getattr(self, of.name) for of in fields(self)}
        return {name: states for name, states in named.items() if states is not None}


@dataclass(frozen=True, slots=True)
class Texts:
    """Different texts for several text encoders; None: no text for that encoder.

    l: CLIP-L's; g: OpenCLIP bigG's; t5xxl: T5's; llama: Llama's; qwen25_7b: Qwen2.5-VL's. skip_empty: leave out an
    encoder whose text is empty.
    """

    l: str | None = None  # noqa: E741
    g: str | None = None
    t5xxl: str | None = None
    llama: str | None = None
    qwen25_7b: str | None = None
    skip_empty: bool = False


SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
"""The place of an image in a text that Qwen's models read."""

EDIT_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""The prompt template that Qwen-Image-Edit was trained with. Source: Wu et al. 2025, arXiv:2508.02324."""


@dataclass(frozen=True, slots=True, eq=False)
class IllustratedText:
    """A text with images (1,H,W,3) in 0…1 for the encoder, one for each <|image_pad|> of its template.

    template: the text replaces {} in it, if the encoder has templates; None: the encoder's own. placed: the model reads
    the images itself, and the conditioning says their positions instead of having their features; not for all encoders.
    """

    text: str
    images: tuple[torch.Tensor, ...]
    template: str | None = None
    placed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class InterleavedText:
    """Texts and images in the order in which the encoder reads them, each text tokenised by itself.

    An image is (1,H,W,3) in 0…1; of a video, two frames (2,H,W,3) that are read as one.
    """

    parts: tuple[str | torch.Tensor, ...]

    @property
    def texts(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def images(self) -> list[torch.Tensor]:
        return [part for part in self.parts if not isinstance(part, str)]


@dataclass(frozen=True, slots=True)
class SongText:
    """What a song is like, and its lyrics, as a model of songs reads them."""

    description: str
    lyrics: str


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """Tokens for CLIP's encoders, in chunks of their length: by encoder ("l", "h", "g"), with weights.

    A token is a number of the vocabulary or a vector (D,).
    """

    chunks: Mapping[str, Sequence[Sequence[tuple[Any, float]]]]


Text: TypeAlias = "str | Texts | IllustratedText | InterleavedText | SongText | TokenizedText"
"""Input of text encoders."""


@dataclass(frozen=True, slots=True)
class TokenSampling:
    """How the next token is sampled, in ComfyUI's parameters.

    top_k: number of most likely tokens kept, 0 for all; top_p: keep the most likely ones up to this total probability;
    min_p: keep those with this share of the highest probability. repetition_penalty divides, presence_penalty lowers
    the logits of tokens generated before, or, where a model counts so, of the last `penalty_window` ones, 0 for all.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    seed: int = 0
    penalty_window: int = 0


@dataclass(frozen=True, slots=True)
class TextGuidance:
    """Classifier-free guidance of each token, away from what would continue another prompt."""

    away_from: str
    scale: float


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt for a language model to continue.

    max_tokens: limit on the new tokens. sampling: None: greedy. thinking: the model may reason first; use_template: put
    the prompt into the chat template; system_prompt: what the model is told before it, "" for nothing. These apply only
    to models with such a mode. image: (B,H,W,3) in 0…1, which the model sees; some see the first alone.
    guidance: None: none. score: in ABC notation, of the music that is to be written, "" for music without one; None for
    text.
    """

    text: str
    max_tokens: int
    sampling: TokenSampling | None = None
    thinking: bool = False
    use_template: bool = True
    image: torch.Tensor | None = None
    system_prompt: str = ""
    guidance: TextGuidance | None = None
    score: str | None = None


@dataclass(frozen=True, slots=True)
class SamplerChoice:
    """SAMPLER: a sampler's name and the options that differ from its defaults.

    start: makes a node pack's sampler of (x, sigmas, seed, levels), as `samplers.evaluation.Sampler`; the name is then
    for messages only, and the options are the pack's.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    start: Callable[[Any, Any, int, Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """NOISE: a seed. added False: latents get no noise, and the seed is only for the sampler.

    draw: makes the noise of (samples, their batch_index) instead of the seed.
    """

    seed: int
    added: bool = True
    draw: Callable[[Samples, Any], Samples] | None = None


@dataclass(frozen=True, slots=True)
class Cfg:
    """Classifier-free guidance from "negative" to "positive"; at scale 1 the negative is not evaluated."""

    scale: float


@dataclass(frozen=True, slots=True)
class PartsCfg:
    """Classifier-free guidance of a latent of several parts: by `scale` of the first, by `others_scale` of the others.

    A latent of one part is guided as by `Cfg`.
    """

    scale: float
    others_scale: float


@dataclass(frozen=True, slots=True)
class DualCfg:
    """Guidance from "negative" to "middle" by middle_scale, and from there to "positive" by scale.

    nested: the second guides the result of the first instead of being added to it.
    """

    scale: float
    middle_scale: float
    nested: bool = False


@dataclass(frozen=True, slots=True)
class PerpNeg:
    """Guidance from "empty", away from the part of "negative" perpendicular to "positive".

    scale: of the whole guidance; negative_scale: of the negative.
    """

    scale: float
    negative_scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Guider:
    """GUIDER: a backbone, its conditionings by role ("positive", "negative", …), and how they are combined.

    negative_backbone: runs the negative branch; None: the same backbone.
    """

    backbone: Recipe
    conds: Mapping[str, Conditioning]
    rule: Cfg | PartsCfg | DualCfg | PerpNeg
    negative_backbone: Recipe | None = None


@dataclass(frozen=True, slots=True)
class Extraction:
    """How a LoRA is extracted from weights. rank: of its layers; whole: full matrices instead; biases: also those."""

    rank: int
    whole: bool = False
    biases: bool = True


@dataclass(frozen=True, slots=True)
class Tiling:
    """How large images are tiled for a VAE: sides of a tile and overlap in pixels.

    frames, shared_frames: length and overlap in images of a video; frames 0: whole length in each tile.
    """

    size: int
    overlap: int
    frames: int = 0
    shared_frames: int = 0


@dataclass(frozen=True, slots=True)
class SoundTiling:
    """How long sounds are cut for an audio VAE: length of a tile and of the overlap, in latents."""

    length: int
    overlap: int


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """One application of a ControlNet or T2I-Adapter, in the option "control" of a conditioning entry.

    hint: IMAGE (N,H,W,C) in 0…1. start_percent, end_percent: the share of the noise levels where it acts. previous: a
    further application; both act. vae: encodes the hint for networks that read latents. mask: (N,H,W), 1 where to
    repaint, for networks that read one.
    """

    recipe: Recipe
    hint: torch.Tensor
    strength: float
    start_percent: float = 0.0
    end_percent: float = 1.0
    previous: Control | None = None
    vae: Recipe | None = None
    mask: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """What is to be segmented in images (B,H,W,C) in 0…1, each by itself.

    conditioning: of texts that name it. boxes: of each image around it, (N,4), centre and size in 0…1, or None; (): of
    none. inside, outside: points (x, y) in 0…1 that are of it, and that are not. threshold: the least score of what a
    text names; refinements: how often a mask is drawn again.
    """

    finds: ClassVar[str] = "what texts, boxes and points show"
    finder: ClassVar[str] = "SAM 3.1"

    images: torch.Tensor
    conditioning: Conditioning | None
    boxes: Sequence[torch.Tensor | None]
    inside: Sequence[tuple[float, float]]
    outside: Sequence[tuple[float, float]]
    threshold: float
    refinements: int


@dataclass(frozen=True, slots=True, eq=False)
class ObjectSearch:
    """Images (B,H,W,C) in 0…1 in which objects of known kinds are to be found."""

    finds: ClassVar[str] = "objects of known kinds"
    finder: ClassVar[str] = "RT-DETR v4"

    images: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PoseSearch:
    """Unscaled latents (B,c,h,w) of images in which a person's pose is to be found. text: (1,T,D), as it was trained.

    done, total: of images, before these and in all, for the progress.
    """

    finds: ClassVar[str] = "poses"
    finder: ClassVar[str] = "SDPose"

    latents: torch.Tensor
    text: torch.Tensor
    done: int
    total: int


@dataclass(frozen=True, slots=True, eq=False)
class Detected:
    """What was segmented in an image. masks: (N,H,W), of 0 and 1; boxes: of what texts name, with scores, in pixels."""

    masks: torch.Tensor
    boxes: list[dict[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class Tracking:
    """What is to be followed through a video (B,H,W,C) in 0…1.

    conditioning: of texts that name it. initial: masks (N,h,w) of things in the first frame. threshold: the least score
    of what a text names; most: things at most, 0 for as many as can be; every: frames from one search to the next.
    """

    finds: ClassVar[str] = "what texts, boxes and points show"
    finder: ClassVar[str] = "SAM 3.1"

    images: torch.Tensor
    conditioning: Conditioning | None
    initial: torch.Tensor | None
    threshold: float
    most: int
    every: int


Search: TypeAlias = Detection | Tracking | ObjectSearch | PoseSearch
"""What is to be found in images by a network that comes as a MODEL."""
