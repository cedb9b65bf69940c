"""Recipes: which file a part of a model comes from, and every change to it or to how it is sampled.

A MODEL, CLIP or VAE value is a recipe: a model file plus an ordered tuple of patches, a few hundred bytes. Only a
replica turns it into weights. This module imports no torch, so the control plane can carry recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

if TYPE_CHECKING:
    import torch

P = TypeVar("P")

Part: TypeAlias = Literal[
    "backbone", "clip", "vae", "upscaler", "controlnet", "model_patch", "clip_vision", "style_model"
]


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
class Lora:
    """A LoRA file of the folder "loras", applied at a strength.

    bypass: added to layers' outputs instead of the weights: merges, saved files and other changes do not include it,
    and it is not rounded with the weights.
    """

    name: str
    strength: float
    bypass: bool = False


@dataclass(frozen=True, slots=True)
class Towards:
    """Add the difference of another model's weights to those of the file, times a strength."""

    other: Recipe
    strength: float


HookChange: TypeAlias = "Lora | Towards"
"""The weight change of a hook, resolved for one part."""


@dataclass(frozen=True, slots=True)
class Keyframe:
    """A factor of a hook's strength from a share of the sampling on. steps: the minimum number of levels it lasts."""

    factor: float
    start_percent: float = 0.0
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Hook:
    """A LoRA of some conditioning entries alone, with strengths for the backbone and the text encoder.

    keyframes: by start_percent; without any the factor is 1. folder: of its file; a file of "checkpoints" is a whole
    model, and the LoRA is its difference.
    """

    name: str
    strength: float
    clip_strength: float
    keyframes: tuple[Keyframe, ...] = field(default=(), compare=False)
    folder: Literal["loras", "checkpoints"] = "loras"

    def change(self, part: Part, strength: float) -> HookChange:
        """Return its weight change at a strength."""
        if self.folder == "loras":
            return Lora(self.name, strength)
        return Towards(Recipe(part, self.folder, self.name), strength)


Hooks: TypeAlias = tuple[Hook, ...]
"""HOOKS: each hook once, whatever its keyframes."""


@dataclass(frozen=True, slots=True)
class ClipHooks:
    """Change a text encoder's weights by hooks.

    scheduled: follow their keyframes, so that a text becomes an entry for each range. passed_on: entries carry the
    hooks too.
    """

    hooks: Hooks
    scheduled: bool
    passed_on: bool


@dataclass(frozen=True, slots=True)
class Share:
    """The proportion in which tensors of two models are mixed: own times one's plus other times the other's.

    prefix: of the tensors' names in the published file; the longest that fits applies, "" fits all.
    """

    prefix: str
    own: float
    other: float


@dataclass(frozen=True, slots=True)
class Merge:
    """Mix in another recipe's weights; tensors that it lacks stay as they are."""

    other: Recipe
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply the weights and biases of layers. factors: pairs of a suffix of the layers' names and a factor."""

    factors: tuple[tuple[str, float], ...]


WeightChange: TypeAlias = Lora | Towards | Merge | Scale
"""Changes of a part's weights, whose order matters."""


@dataclass(frozen=True, slots=True)
class Discrete:
    """Training on a table of noise levels (ComfyUI's ModelSamplingDiscrete).

    prediction: "eps", "v_prediction", "lcm", "x0", "img_to_img" or "img_to_img_flow". zsnr: the top level has (almost)
    no signal left.
    even: betas grow by equal steps, as PixArt's do, and not by equal steps of their roots.
    """

    prediction: str = "eps"
    zsnr: bool = False
    even: bool = False


@dataclass(frozen=True, slots=True)
class ContinuousEdm:
    """Training on any noise level between two (ComfyUI's ModelSamplingContinuousEDM).

    prediction: "eps", "v_prediction", "edm" or "edm_playground_v2.5", which has latents of its own as well.
    """

    prediction: str
    sigma_max: float
    sigma_min: float


@dataclass(frozen=True, slots=True)
class ContinuousV:
    """As ContinuousEdm with v-prediction; the timestep is the level as an angle (ModelSamplingContinuousV)."""

    sigma_max: float
    sigma_min: float


@dataclass(frozen=True, slots=True)
class Flow:
    """Training on straight lines from image to noise, on levels 0…1 shifted towards noise (ModelSamplingDiscreteFlow).

    shift: above 0; 1 shifts nothing. multiplier: the timestep is the level times this.
    """

    shift: float
    multiplier: float = 1000.0


@dataclass(frozen=True, slots=True)
class FluxFlow:
    """As Flow with a shift of e^mu and a finer table; the timestep is the level itself (ModelSamplingFlux)."""

    mu: float


EightBit: TypeAlias = Literal["float8_e4m3fn", "float8_e5m2"]


@dataclass(frozen=True, slots=True)
class Rounded:
    """Weights rounded to an eight-bit dtype when they are loaded, and computed with in a wider one."""

    to: EightBit


DEFAULT_DTYPE = "default"


@dataclass(frozen=True, slots=True)
class ComputedIn:
    """The dtype of a backbone's weights and computation: fp32, fp16, bf16, or DEFAULT_DTYPE, as configured."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Streams:
    """Stream a backbone's weights to the GPU during each forward. share: of the weight budget that stays resident."""

    share: float


Training: TypeAlias = Discrete | ContinuousEdm | ContinuousV | Flow | FluxFlow
"""What a backbone predicts and on which noise levels: read from its file, or set by a patch."""


@dataclass(frozen=True, slots=True)
class HintKind:
    """The kind of hint given to a union ControlNet, by number; None: unspecified."""

    kind: int | None


@dataclass(frozen=True, slots=True)
class DiffControlNetBase:
    """The backbone to whose weights a diff ControlNet's file is added."""

    backbone: Recipe


@dataclass(frozen=True, slots=True)
class RescaleCfg:
    """Rescale the guided result to the positive's standard deviation; multiplier: 0…1, blend with the unscaled one."""

    multiplier: float


@dataclass(frozen=True, slots=True)
class RenormCfg:
    """Guide below a noise level alone, and limit the guided result's norm to a multiple of the positive's (0: none)."""

    below: float
    limit: float


@dataclass(frozen=True, slots=True)
class CfgZeroStar:
    """Scale the negative to be nearest to the positive before guiding away from it."""


@dataclass(frozen=True, slots=True)
class CfgNorm:
    """Clip the guided result's norm, per latent cell, to the positive's; then scale it by strength."""

    strength: float


@dataclass(frozen=True, slots=True)
class NoiseNorm:
    """Scale the guided noise, per latent cell, towards the norm of the positive's; strength: 0…1, 0 for none."""

    strength: float


@dataclass(frozen=True, slots=True)
class TangentialDamping:
    """Remove the negative's component orthogonal to the direction it shares with the positive (ComfyUI's TCFG)."""


@dataclass(frozen=True, slots=True)
class Mahiro:
    """Prefer the positive's own direction where guidance and negative agree."""


@dataclass(frozen=True, slots=True)
class AdaptiveProjection:
    """Scale guidance parallel to the positive by eta, limit its norm (0: no limit), and add momentum (APG)."""

    eta: float
    norm_threshold: float
    momentum: float


@dataclass(frozen=True, slots=True)
class FrequencyScaling:
    """Scale low and high frequencies of guidance; cutoff: number of low ones of each sign (FreSca)."""

    low: float
    high: float
    cutoff: int


@dataclass(frozen=True, slots=True)
class EpsilonScaling:
    """Divide the predicted noise after guidance by a factor."""

    factor: float


@dataclass(frozen=True, slots=True)
class TemporalRescaling:
    """Scale the score as if the variance of Gaussian data, sigma², were divided by k (TSR)."""

    k: float
    sigma: float


@dataclass(frozen=True, slots=True)
class CfgOverride:
    """Guide at another scale between two shares of the sampling."""

    scale: float
    start_percent: float
    end_percent: float


@dataclass(frozen=True, slots=True)
class PerturbedAttention:
    """Guide away from the positive without the middle's self-attention (PAG)."""

    scale: float


@dataclass(frozen=True, slots=True)
class SelfAttentionGuidance:
    """Guide away from the negative blurred where it attends most (SAG); blur: a Gaussian's sigma."""

    scale: float
    blur: float


@dataclass(frozen=True, slots=True)
class SkippedBlocks:
    """Blocks of a diffusion transformer that rows skip: double-stream and single-stream ones."""

    doubles: tuple[int, ...] = ()
    singles: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SkipLayerGuidance:
    """Guide away from the positive with some blocks skipped, between two shares of the sampling (SLG).

    rescaling: share by which the result is brought to the positive's standard deviation.
    """

    skipped: SkippedBlocks
    scale: float
    start_percent: float
    end_percent: float
    rescaling: float = 0.0


@dataclass(frozen=True, slots=True)
class WeakNegative:
    """Evaluate the negative with some blocks skipped, between two shares of the sampling."""

    skipped: SkippedBlocks
    start_percent: float
    end_percent: float


@dataclass(frozen=True, slots=True)
class NormalizedAttention:
    """Guide the positive's self-attention away from the negative's (NAG).

    tau: limit on its norm, as a multiple of the unguided one; alpha: blend with the unguided result.
    """

    scale: float
    alpha: float
    tau: float


@dataclass(frozen=True, slots=True)
class OperatedGuidance:
    """Apply a latent operation to guidance, as in `sampling/latents/latent_operations.py`."""

    operation: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class DifferentialDiffusion:
    """Denoise a cell only while its mask exceeds the remaining fraction of the schedule; strength: how sharply."""

    strength: float


@dataclass(frozen=True, slots=True)
class FreeU:
    """Amplify the backbone's features (b) and damp the low frequencies of skip connections (s), at two widths.

    adaptive: only where the features are large, as in FreeU's second version.
    """

    b1: float
    b2: float
    s1: float
    s2: float
    adaptive: bool = False


@dataclass(frozen=True, slots=True)
class HyperTile:
    """Restrict a UNet's wide self-attention to tiles.

    size: the minimum side of a tile in latent cells; choices: number of divisions that one is drawn from; depth: number
    of resolutions that are tiled; scaled: tiles grow with them.
    """

    size: int
    choices: int
    depth: int
    scaled: bool


@dataclass(frozen=True, slots=True)
class TokenMerging:
    """Merge a share of the queries of a UNet's widest self-attention into their most similar ones (ToMe)."""

    ratio: float


@dataclass(frozen=True, slots=True)
class DeepShrink:
    """Downscale a UNet's features from a block of its encoder on, between two shares of the sampling.

    after_skip: skip connections keep their size. down, up: names of resize methods.
    """

    block: int
    factor: float
    start_percent: float
    end_percent: float
    after_skip: bool
    down: str
    up: str


@dataclass(frozen=True, slots=True)
class EasyCache:
    """Reuse the network's residual of the step before while its input has changed little.

    threshold: the estimated relative change of the output up to which it is reused. whole: cache the guided result
    instead of each branch (LazyCache).
    """

    threshold: float
    start_percent: float
    end_percent: float
    whole: bool = False


@dataclass(frozen=True, slots=True)
class ReferenceMethod:
    """How reference latents are placed where a conditioning does not say; see `families/shared/references.py`."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class PackFunctions:
    """Functions of a node pack around and within a backbone; valid in one process, equal only to themselves.

    before, instead, after: change guidance, called from `sampling/guidance/guidance_patches.py`. both: the negative is
    evaluated at scale 1 too. mask: (mask (B,1,h,w), sigma, the run's sigmas, the model's levels) to the mask of that
    level. network: called in a family's forward for the recipe's rows, by ComfyUI's names. options: transformer options
    as packs see them.
    """

    before: tuple[Callable[[Any], Any], ...] = ()
    instead: Callable[[Any], Any] | None = None
    after: tuple[Callable[[Any, Any], Any], ...] = ()
    both: bool = False
    mask: Callable[[Any, float, Any, Any], Any] | None = None
    network: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ModelControl:
    """A model patch (folder "model_patches") that reads images and adds to the backbone's features on all rows.

    It acts on all noise levels. vae: encodes the images. image, inpaint_image: IMAGE (N,H,W,3) in 0…1, to follow and to
    paint into. mask: (N,H,W), 1 where to repaint. Each may be None. seen: image features, (N,P,D) each, from the first
    layers to the last.
    """

    recipe: Recipe
    vae: Recipe | None
    strength: float
    image: torch.Tensor | None = None
    inpaint_image: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    seen: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Grounding:
    """Texts with the boxes where they should appear, for a network of the folder "gligen".

    boxes: each a text's pooled output (1,D), and (height, width, y, x) in latent cells.
    """

    recipe: Recipe
    boxes: tuple[tuple[torch.Tensor, tuple[int, int, int, int]], ...]


GuidancePatch: TypeAlias = (
    RescaleCfg
    | RenormCfg
    | NoiseNorm
    | CfgZeroStar
    | CfgNorm
    | TangentialDamping
    | Mahiro
    | AdaptiveProjection
    | FrequencyScaling
    | EpsilonScaling
    | TemporalRescaling
    | CfgOverride
    | PerturbedAttention
    | SelfAttentionGuidance
    | SkipLayerGuidance
    | WeakNegative
    | NormalizedAttention
    | OperatedGuidance
)
"""Changes to how branches are combined, not to the network's weights."""

LayerPatch: TypeAlias = FreeU | HyperTile | TokenMerging | DeepShrink
"""Changes to what a network's layers compute, by row; weights stay."""

Patch: TypeAlias = (
    ClipSkip
    | ClipHooks
    | LoadedAs
    | T5Padding
    | WeightChange
    | Training
    | Rounded
    | ComputedIn
    | Streams
    | HintKind
    | DiffControlNetBase
    | GuidancePatch
    | LayerPatch
    | EasyCache
    | DifferentialDiffusion
    | ReferenceMethod
    | PackFunctions
    | ModelControl
)
"""Every kind of ordered change that a recipe can have."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one part of a model: which file, which part of it, which changes in which order.

    folder, name: the model file in the catalog, e.g. ("checkpoints", "sd15.safetensors"). extra_files: further files of
    the folder that belong to the same part, such as a second text encoder.
    """

    part: Part
    folder: str
    name: str
    patches: tuple[Patch, ...] = ()
    extra_files: tuple[str, ...] = ()

    def with_patch(self, patch: Patch) -> Recipe:
        """Return a recipe with one more change at the end."""
        return replace(self, patches=(*self.patches, patch))

    def with_lora(self, name: str, strength: float) -> Recipe:
        """Return a recipe with a LoRA at the end; the same recipe at strength 0."""
        return self.with_patch(Lora(name, strength)) if strength else self

    def with_bypass_lora(self, name: str, strength: float) -> Recipe:
        """Return a recipe with a bypass LoRA, which replaces an earlier one."""
        patches = tuple(patch for patch in self.patches if not (isinstance(patch, Lora) and patch.bypass))
        return replace(self, patches=(*patches, *([Lora(name, strength, bypass=True)] if strength else [])))

    def with_patches(self, patches: Iterable[Patch]) -> Recipe:
        """Return a recipe with more changes at the end."""
        return replace(self, patches=(*self.patches, *patches))

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files in their folder, without those of changes."""
        return (self.name, *self.extra_files)

    @property
    def loaded_as(self) -> str:
        """The type that its text encoders are loaded as; "" if unset."""
        said = self.last(LoadedAs)
        return "" if said is None else said.type

    @overload
    def all(self, kind: type[P]) -> tuple[P, ...]: ...
    @overload
    def all(self, kind: UnionType) -> tuple[Any, ...]: ...
    def all(self, kind: Any) -> tuple[Any, ...]:
        """Return its changes of a kind, in order."""
        return tuple(patch for patch in self.patches if isinstance(patch, kind))

    @overload
    def last(self, kind: type[P]) -> P | None: ...
    @overload
    def last(self, kind: UnionType) -> Any: ...
    def last(self, kind: Any) -> Any:
        """Return the last of its changes of a kind, the one in effect; None if there is none."""
        found = self.all(kind)
        return found[-1] if found else None


ENCODER_TYPE = "stable_diffusion"
"""Default type of text encoders."""


def encoders(type: str, name: str, *extra_files: str, folder: str = "text_encoders") -> Recipe:
    """Return the recipe of text encoders for a type. Files that do not suit it raise when they are opened."""
    recipe = Recipe("clip", folder, name, extra_files=extra_files)
    return recipe if type == ENCODER_TYPE else recipe.with_patch(LoadedAs(type))


def tiny_vae(name: str) -> Recipe:
    """Return the recipe of a tiny autoencoder, which is published as two files. name: their prefix ("taesd")."""
    encoder, decoder = (f"{name}_{half}.safetensors" for half in ("encoder", "decoder"))
    return Recipe("vae", "vae_approx", encoder, extra_files=(decoder,))


WARM_PARTS: Mapping[str, tuple[Part, ...]] = {
    "checkpoints": ("backbone", "clip", "vae"),
    "diffusion_models": ("backbone",),
    "unet_gguf": ("backbone",),
    "vae": ("vae",),
    "text_encoders": ("clip",),
    "clip_gguf": ("clip",),
}
"""The parts to preload, by folder."""

WARM_FORM = f"FOLDER/NAME, of {', '.join(WARM_PARTS)}; of text encoders also 'FOLDER/NAME + NAME as TYPE'"


def warm_recipes(model: str) -> tuple[Recipe, ...]:
    """Return the recipes of a preload setting, a text of WARM_FORM; none if it is invalid.

    Files of text encoders do not state their type or companions: only with the type and order of a workflow's loader
    does the recipe equal that of its jobs.
    """
    folder, _, rest = model.partition("/")
    parts = WARM_PARTS.get(folder, ())
    if parts != ("clip",):
        return tuple(Recipe(part, folder, rest) for part in parts if rest)
    named, said, kind = rest.rpartition(" as ")
    first, *extra_files = (named if said else rest).split(" + ")
    if not all((first, *extra_files)) or (said and not kind):
        return ()
    return (encoders(kind if said else ENCODER_TYPE, first, *extra_files, folder=folder),)
