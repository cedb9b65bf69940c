"""The nodes that put a patch on a MODEL which changes guidance, inpainting or features, but no weights."""

from __future__ import annotations

from typing import Annotated

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, Float, Int
from serve_app.nodes.sockets import LATENT_OPERATION, MODEL
from serve_app.recipe.guidance import (
    AdaptiveProjection,
    CfgNorm,
    CfgZeroStar,
    EpsilonScaling,
    FrequencyScaling,
    Mahiro,
    NoiseNorm,
    OperatedGuidance,
    RenormCfg,
    RescaleCfg,
    TangentialDamping,
)
from serve_app.recipe.layers import DifferentialDiffusion, FreeU
from serve_app.recipe.weights import DEFAULT_DTYPE, ComputedIn

PATCHED_MODEL = ("patched_model",)


@node("RescaleCFG", category="model/patch", function="patch")
def rescale_cfg(model: MODEL, multiplier: Annotated[float, Float(0.7, min=0.0, max=1.0, step=0.01)]) -> MODEL:
    """Keep strong guidance from overexposing."""
    return model.with_patch(RescaleCfg(multiplier))


@node("CFGZeroStar", category="advanced/guidance", function="patch", return_names=PATCHED_MODEL)
def cfg_zero_star(model: MODEL) -> MODEL:
    """Guide away from a negative that is scaled to the positive."""
    return model.with_patch(CfgZeroStar())


@node("CFGNorm", category="advanced/guidance", function="patch", return_names=PATCHED_MODEL, experimental=True)
def cfg_norm(
    model: MODEL,
    strength: Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.01)],
    pre_cfg: Annotated[bool, Bool(False, tooltip="Scale the guided noise to the positive's, up too.")] = False,
) -> MODEL:
    """Keep guidance from making the latents longer than the positive's."""
    return model.with_patch(NoiseNorm(strength) if pre_cfg else CfgNorm(strength))


@node(
    "TCFG",
    "Tangential Damping CFG",
    category="advanced/guidance",
    function="patch",
    return_names=PATCHED_MODEL,
    description="Tangential damping (arXiv:2503.18137): of the negative, only what runs along the positive is kept.",
)
def tcfg(model: MODEL) -> MODEL:
    """Align the negative with the positive before guidance."""
    return model.with_patch(TangentialDamping())


@node("APG", "Adaptive Projected Guidance", category="model/sampling/custom", function="patch")
def apg(
    model: MODEL,
    eta: Annotated[
        float,
        Float(
            1.0,
            min=-10.0,
            max=10.0,
            step=0.01,
            tooltip="How much of the guidance that runs along the positive is kept; 1 keeps it as it is.",
        ),
    ],
    norm_threshold: Annotated[
        float, Float(5.0, min=0.0, max=50.0, step=0.1, tooltip="The most that guidance may measure; 0 sets no limit.")
    ],
    momentum: Annotated[
        float,
        Float(0.0, min=-5.0, max=1.0, step=0.01, tooltip="How much of the guidance before runs on; 0 none of it."),
    ],
) -> MODEL:
    """Weigh guidance by whether it runs along the positive."""
    return model.with_patch(AdaptiveProjection(eta, norm_threshold, momentum))


@node(
    "FreSca",
    category="experimental",
    function="patch",
    description="Scales what guidance adds by its frequency.",
    experimental=True,
)
def fresca(
    model: MODEL,
    scale_low: Annotated[
        float, Float(1.0, min=0, max=10, step=0.01, tooltip="What low frequencies are multiplied by.")
    ],
    scale_high: Annotated[
        float, Float(1.25, min=0, max=10, step=0.01, tooltip="What high frequencies are multiplied by.")
    ],
    freq_cutoff: Annotated[int, Int(20, min=1, max=10000, step=1, tooltip="How many frequencies about zero are low.")],
) -> MODEL:
    """Scale low and high frequencies of guidance."""
    return model.with_patch(FrequencyScaling(scale_low, scale_high, freq_cutoff))


@node("RenormCFG", category="model/patch", function="patch")
def renorm_cfg(
    model: MODEL,
    cfg_trunc: Annotated[float, Float(100, min=0.0, max=100.0, step=0.01, advanced=True)],
    renorm_cfg: Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.01, advanced=True)],
) -> MODEL:
    """Guide at low noise levels, and limit what guidance gives in length."""
    return model.with_patch(RenormCfg(cfg_trunc, renorm_cfg))


@node(
    "Mahiro",
    "Positive-Biased Guidance",
    category="experimental",
    function="patch",
    return_names=PATCHED_MODEL,
    description="Follows the positive's own direction the more, the less the negative resembles the guided image.",
    experimental=True,
)
def mahiro(model: MODEL) -> MODEL:
    """Guide towards the positive's direction rather than away from the negative."""
    return model.with_patch(Mahiro())


@node("Epsilon Scaling", category="model/patch/unet", function="patch")
def epsilon_scaling(
    model: MODEL, scaling_factor: Annotated[float, Float(1.005, min=0.5, max=1.5, step=0.001, display="number")]
) -> MODEL:
    """Scale the predicted noise."""
    return model.with_patch(EpsilonScaling(scaling_factor))


@node("DifferentialDiffusion", "Differential Diffusion", category="experimental", function="patch", experimental=True)
def differential_diffusion_patch(
    model: MODEL, strength: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)] = 1.0
) -> MODEL:
    """Read a mask as how early each place is let go."""
    return model.with_patch(DifferentialDiffusion(strength))


@node("ModelComputeDtype", category="advanced/debug", function="patch")
def model_compute_dtype(
    model: MODEL, dtype: Annotated[str, Choice([DEFAULT_DTYPE, "fp32", "fp16", "bf16"], advanced=True)]
) -> MODEL:
    """Hold and work with a model's weights in a dtype of its own."""
    return model.with_patch(ComputedIn(dtype))


@node("ModelAttentionBackend", category="model/patch", function="patch")
def attention_backend(
    model: MODEL, attention: Annotated[str, Choice(["pytorch attention", "comfy kitchen attention"])]
) -> MODEL:
    """Return the recipe as it is: the pool's `attention` says what attention its models run with."""
    return model


@node("TorchCompileModel", category="experimental", function="patch", experimental=True)
def torch_compile_model(
    model: MODEL, backend: Annotated[str, Choice(["inductor", "cudagraphs"], advanced=True)]
) -> MODEL:
    """Return the recipe as it is: the pool's `compile` and `graphs` say what is compiled and recorded."""
    return model


@node("LatentApplyOperationCFG", category="model/latent/advanced/operations", function="patch", experimental=True)
def latent_apply_operation_cfg(model: MODEL, operation: LATENT_OPERATION) -> MODEL:
    """Put what guidance adds through an operation on latents."""
    return model.with_patch(OperatedGuidance(operation))


@node("FreeU", category="model/patch/unet", function="patch")
def freeu(
    model: MODEL,
    b1: Annotated[float, Float(1.1, min=0.0, max=10.0, step=0.01)],
    b2: Annotated[float, Float(1.2, min=0.0, max=10.0, step=0.01)],
    s1: Annotated[float, Float(0.9, min=0.0, max=10.0, step=0.01)],
    s2: Annotated[float, Float(0.2, min=0.0, max=10.0, step=0.01)],
) -> MODEL:
    """Amplify coarse features and damp what skips them."""
    return model.with_patch(FreeU(b1, b2, s1, s2))


@node("FreeU_V2", category="model/patch/unet", function="patch")
def freeu_v2(
    model: MODEL,
    b1: Annotated[float, Float(1.3, min=0.0, max=10.0, step=0.01)],
    b2: Annotated[float, Float(1.4, min=0.0, max=10.0, step=0.01)],
    s1: Annotated[float, Float(0.9, min=0.0, max=10.0, step=0.01)],
    s2: Annotated[float, Float(0.2, min=0.0, max=10.0, step=0.01)],
) -> MODEL:
    """Amplify coarse features where they are large and damp what skips them."""
    return model.with_patch(FreeU(b1, b2, s1, s2, adaptive=True))
