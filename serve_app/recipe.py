"""Recipes: which file a part of a model comes from, and everything that changes it or what is made with it.

A MODEL, CLIP or VAE value is a recipe: a model file plus an ordered tuple of patches, a few hundred bytes.
Only a replica turns it into weights. This module imports no torch, so the control plane can carry recipes.
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
    """What text encoders are loaded for, in the words of ComfyUI's loaders: "sd3", "flux", "lumina2" and so on."""

    type: str


@dataclass(frozen=True, slots=True)
class T5Padding:
    """How T5's texts are filled up: at least so many pads, and at least so many tokens in all."""

    pads: int
    length: int


@dataclass(frozen=True, slots=True)
class Lora:
    """Change weights by a file in the folder "loras", times a strength.

    bypass: what layers answer is changed and their weights are not: no other change sees it, nor does a merge or a file
    that is saved, and it is not rounded with the weights.
    """

    name: str
    strength: float
    bypass: bool = False


@dataclass(frozen=True, slots=True)
class Towards:
    """Change weights by what another model's differ from those of the file, times a strength."""

    other: Recipe
    strength: float


HookChange: TypeAlias = "Lora | Towards"
"""What a hook does to a part's weights."""


@dataclass(frozen=True, slots=True)
class Keyframe:
    """From a share of the sampling on, a factor of a hook's strength. steps: so many levels at least have it."""

    factor: float
    start_percent: float = 0.0
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Hook:
    """A LoRA of some entries of a conditioning alone, the backbone's at one strength and the text encoder's at another.

    keyframes: by start_percent; without any the factor is 1. folder: where its file is; what one of "checkpoints" has
    is whole models, of which the LoRA is what they differ by.
    """

    name: str
    strength: float
    clip_strength: float
    keyframes: tuple[Keyframe, ...] = field(default=(), compare=False)
    folder: Literal["loras", "checkpoints"] = "loras"

    def change(self, part: Part, strength: float) -> HookChange:
        """Return what it does to a part's weights at a strength."""
        if self.folder == "loras":
            return Lora(self.name, strength)
        return Towards(Recipe(part, self.folder, self.name), strength)


Hooks: TypeAlias = tuple[Hook, ...]
"""HOOKS: each once, whatever its keyframes."""


@dataclass(frozen=True, slots=True)
class ClipHooks:
    """Change a text encoder's weights by hooks.

    scheduled: as their keyframes say, so that a text has an entry for each range between them. passed_on: its entries
    have the hooks too.
    """

    hooks: Hooks
    scheduled: bool
    passed_on: bool


@dataclass(frozen=True, slots=True)
class Share:
    """How much of two models some tensors are made of: own times one's and other times the other's.

    prefix: how the tensors' names begin in the published file; the longest that fits counts, "" fits all.
    """

    prefix: str
    own: float
    other: float


@dataclass(frozen=True, slots=True)
class Merge:
    """Add another recipe's weights to those that there are so far; tensors that it lacks stay as they are."""

    other: Recipe
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply the weights and biases of layers. factors: how the layers' names end, and by what."""

    factors: tuple[tuple[str, float], ...]


WeightChange: TypeAlias = Lora | Towards | Merge | Scale
"""Changes of a part's weights, whose order counts."""


@dataclass(frozen=True, slots=True)
class Discrete:
    """Training on a table of noise levels (ComfyUI's ModelSamplingDiscrete).

    prediction: "eps", "v_prediction", "lcm", "x0" or "img_to_img". zsnr: the top level has (almost) no signal left.
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
    """As ContinuousEdm with v-prediction, but the network is told the level as an angle (ModelSamplingContinuousV)."""

    sigma_max: float
    sigma_min: float


@dataclass(frozen=True, slots=True)
class Flow:
    """Training on straight lines from image to noise, on levels 0…1 moved towards noise (ModelSamplingDiscreteFlow).

    shift: how far, above 0; 1 leaves them. multiplier: the network is told the level times this.
    """

    shift: float
    multiplier: float = 1000.0


@dataclass(frozen=True, slots=True)
class FluxFlow:
    """As Flow with a shift of e^mu, from a finer table; the network is told the level itself (ModelSamplingFlux)."""

    mu: float


EightBit: TypeAlias = Literal["float8_e4m3fn", "float8_e5m2"]


@dataclass(frozen=True, slots=True)
class Rounded:
    """Weights rounded to a dtype of eight bits when they are loaded, and then worked with in a wider one."""

    to: EightBit


DEFAULT_DTYPE = "default"


@dataclass(frozen=True, slots=True)
class ComputedIn:
    """A backbone's weights are held and worked with in a dtype: fp32, fp16, bf16, or DEFAULT_DTYPE, as configured."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Streams:
    """A backbone's weights come to a GPU as they run. share: of all that weights may take there, which they take."""

    share: float


Training: TypeAlias = Discrete | ContinuousEdm | ContinuousV | Flow | FluxFlow
"""What a backbone was trained to predict and on which levels: read off its file, or set by a patch."""


@dataclass(frozen=True, slots=True)
class HintKind:
    """Which kind of hint a ControlNet for several kinds is given, by its number; None leaves it open."""

    kind: int | None


@dataclass(frozen=True, slots=True)
class DiffControlNetBase:
    """A ControlNet's file, if it holds differences, is of this backbone's weights."""

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
    """Scale the negative to what is nearest to the positive before guiding away from it."""


@dataclass(frozen=True, slots=True)
class CfgNorm:
    """Clip the guided result's norm, per latent cell, to the positive's; then scale it by strength."""

    strength: float


@dataclass(frozen=True, slots=True)
class NoiseNorm:
    """Scale the guided noise, per latent cell, to the length of the positive's; strength: share of that, 0 for none."""

    strength: float


@dataclass(frozen=True, slots=True)
class TangentialDamping:
    """Remove the negative's component orthogonal to the direction it shares with the positive (ComfyUI's TCFG)."""


@dataclass(frozen=True, slots=True)
class Mahiro:
    """Prefer the positive's own direction where guidance and negative agree."""


@dataclass(frozen=True, slots=True)
class AdaptiveProjection:
    """Weigh guidance along the positive by eta, limit its norm (0: no limit), and let it run on by momentum (APG)."""

    eta: float
    norm_threshold: float
    momentum: float


@dataclass(frozen=True, slots=True)
class FrequencyScaling:
    """Multiply the low and the high frequencies of guidance; cutoff: how many of each sign are low (FreSca)."""

    low: float
    high: float
    cutoff: int


@dataclass(frozen=True, slots=True)
class EpsilonScaling:
    """Divide the noise that is predicted after guidance by a factor."""

    factor: float


@dataclass(frozen=True, slots=True)
class TemporalRescaling:
    """Scale the score by what a Gaussian of a variance sigma² would need to have it divided by k (TSR)."""

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
    """Lead away from the positive as it is where the middle's self-attention is left out (PAG)."""

    scale: float


@dataclass(frozen=True, slots=True)
class SelfAttentionGuidance:
    """Lead away from the negative as it is where what it attends to most is blurred (SAG); blur: a Gaussian's sigma."""

    scale: float
    blur: float


@dataclass(frozen=True, slots=True)
class SkippedBlocks:
    """Blocks of a diffusion transformer that rows pass by: of text and image apart, and of both as one stream."""

    doubles: tuple[int, ...] = ()
    singles: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SkipLayerGuidance:
    """Lead away from the positive as it is without some blocks, between two shares of the sampling (SLG).

    rescaling: share by which the result is brought to the positive's standard deviation.
    """

    skipped: SkippedBlocks
    scale: float
    start_percent: float
    end_percent: float
    rescaling: float = 0.0


@dataclass(frozen=True, slots=True)
class WeakNegative:
    """Make the negative without some blocks, between two shares of the sampling."""

    skipped: SkippedBlocks
    start_percent: float
    end_percent: float


@dataclass(frozen=True, slots=True)
class NormalizedAttention:
    """Lead the positive's self-attention away from the negative's (NAG).

    tau: how many times as long as before it may become; alpha: share of the result that is taken.
    """

    scale: float
    alpha: float
    tau: float


@dataclass(frozen=True, slots=True)
class OperatedGuidance:
    """Put guidance through an operation on latents, as `sampling/latents/latent_operations.py` has them."""

    operation: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class DifferentialDiffusion:
    """Denoise a cell only while its mask exceeds the remaining fraction of the schedule; strength: how sharply."""

    strength: float


@dataclass(frozen=True, slots=True)
class FreeU:
    """Amplify the backbone's coarse features (b) and damp the low frequencies of what skips it (s), at two widths.

    adaptive: where the features are large, as in FreeU's second version.
    """

    b1: float
    b2: float
    s1: float
    s2: float
    adaptive: bool = False


@dataclass(frozen=True, slots=True)
class HyperTile:
    """Let a UNet's wide self-attention look at tiles.

    size: the least side of a tile in latent cells; choices: of how many divisions one is drawn; depth: how many
    halvings of the latents' size are tiled; scaled: tiles grow with them.
    """

    size: int
    choices: int
    depth: int
    scaled: bool


@dataclass(frozen=True, slots=True)
class TokenMerging:
    """Merge a share of the queries of a UNet's widest self-attention into those they are most like (ToMe)."""

    ratio: float


@dataclass(frozen=True, slots=True)
class DeepShrink:
    """Make a UNet's features smaller from a block of its encoder on, between two shares of the sampling.

    after_skip: what skips to the decoder keeps its size. down, up: names of ways to resize.
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
    """Take what a network added to its input a step before, while little enough has changed since.

    threshold: the estimated change, as a share of the output, up to which it is. whole: what guidance comes to is taken
    instead of each branch (LazyCache).
    """

    threshold: float
    start_percent: float
    end_percent: float
    whole: bool = False


@dataclass(frozen=True, slots=True)
class ReferenceMethod:
    """How reference latents are placed where a conditioning does not say it; `families/references.py` has the names."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class PackFunctions:
    """Functions of a node pack around a backbone and within it. They are of one process; equal only to themselves.

    before, instead, after: change guidance as the patches of `sampling/guidance/guidance_patches.py` do, which call
    them. both: the negative is evaluated at scale 1 too. mask: (mask (B,1,h,w), sigma, the run's sigmas, the
    model's levels) to the mask of that level. network: what a family's forward runs for the recipe's rows, in
    ComfyUI's words. options: all of it as packs see it.
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
    """Show images to a network of the folder "model_patches", which adds to all rows of the backbone on all levels.

    vae: encodes the images. image, inpaint_image: IMAGE (N,H,W,3) in 0…1, what it follows and what it paints into.
    mask: (N,H,W), 1 where the image is to be made anew. None for what is not given. seen: in images, (N,P,D) each, from
    the first layers to the last.
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
    """Texts that are to be seen in boxes, by a network of the folder "gligen".

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
"""Changes to how branches are combined; they leave the network as it is, but where they look at it otherwise."""

LayerPatch: TypeAlias = FreeU | HyperTile | TokenMerging | DeepShrink
"""Changes to what a network's layers do, by row; they leave its weights as they are."""

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
"""Every kind of ordered change a recipe can carry."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one part of a model: which file, which part of it, which changes in which order.

    folder, name: the model file in the catalog, e.g. ("checkpoints", "sd15.safetensors"). beside: further files of the
    folder that belong to the same part, such as a second text encoder.
    """

    part: Part
    folder: str
    name: str
    patches: tuple[Patch, ...] = ()
    beside: tuple[str, ...] = ()

    def with_patch(self, patch: Patch) -> Recipe:
        """Return a new recipe with one more change at the end."""
        return replace(self, patches=(*self.patches, patch))

    def with_lora(self, name: str, strength: float) -> Recipe:
        """Return a new recipe with a LoRA at the end; at a strength of 0 there is nothing to add."""
        return self.with_patch(Lora(name, strength)) if strength else self

    def with_bypass_lora(self, name: str, strength: float) -> Recipe:
        """Return a new recipe with a LoRA beside its weights, in place of one that is there already."""
        patches = tuple(patch for patch in self.patches if not (isinstance(patch, Lora) and patch.bypass))
        return replace(self, patches=(*patches, *([Lora(name, strength, bypass=True)] if strength else [])))

    def with_patches(self, patches: Iterable[Patch]) -> Recipe:
        """Return a new recipe with more changes at the end."""
        return replace(self, patches=(*self.patches, *patches))

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files in their folder, without those of changes."""
        return (self.name, *self.beside)

    @property
    def loaded_as(self) -> str:
        """What its text encoders are loaded for; "" if nothing says it."""
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
        """Return the last of its changes of a kind, which is the one that counts; None if there is none."""
        found = self.all(kind)
        return found[-1] if found else None


ENCODER_TYPE = "stable_diffusion"
"""What text encoders are loaded for that nothing is said of."""


def encoders(type: str, name: str, *beside: str, folder: str = "text_encoders") -> Recipe:
    """Return the recipe of text encoders for a type. Whether the files suit it shows when they are opened."""
    recipe = Recipe("clip", folder, name, beside=beside)
    return recipe if type == ENCODER_TYPE else recipe.with_patch(LoadedAs(type))


def tiny_vae(name: str) -> Recipe:
    """Return the recipe of a small autoencoder, which is published as two files. name: how theirs begin ("taesd")."""
    encoder, decoder = (f"{name}_{half}.safetensors" for half in ("encoder", "decoder"))
    return Recipe("vae", "vae_approx", encoder, beside=(decoder,))


WARM_PARTS: Mapping[str, tuple[Part, ...]] = {
    "checkpoints": ("backbone", "clip", "vae"),
    "diffusion_models": ("backbone",),
    "unet_gguf": ("backbone",),
    "vae": ("vae",),
    "text_encoders": ("clip",),
    "clip_gguf": ("clip",),
}
"""What is loaded ahead of a folder's files."""

WARM_FORM = f"FOLDER/NAME, of {', '.join(WARM_PARTS)}; of text encoders also 'FOLDER/NAME + NAME as TYPE'"


def warm_recipes(model: str) -> tuple[Recipe, ...]:
    """Return the recipes that a text of WARM_FORM stands for; none if it is no such text.

    Files of text encoders do not say what they are for, nor which go together: a type and an order as in the loader
    that a workflow has are what makes the recipe that its jobs ask for.
    """
    folder, _, rest = model.partition("/")
    parts = WARM_PARTS.get(folder, ())
    if parts != ("clip",):
        return tuple(Recipe(part, folder, rest) for part in parts if rest)
    named, said, kind = rest.rpartition(" as ")
    first, *beside = (named if said else rest).split(" + ")
    if not all((first, *beside)) or (said and not kind):
        return ()
    return (encoders(kind if said else ENCODER_TYPE, first, *beside, folder=folder),)
