"""The nodes of conditioning for FLUX and models like it: the guidance scale, and reference images."""

from __future__ import annotations

from typing import Annotated

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, InputType
from serve_app.nodes.sockets import CONDITIONING, LATENT, MODEL
from serve_app.recipe.layers import ReferenceMethod
from serve_app.sampling.guidance.conditioning import with_more, with_options

METHODS = ["offset", "index", "uxo/uno", "index_timestep_zero"]


@node("FluxGuidance", category="model/conditioning/flux", function="append")
def flux_guidance(
    conditioning: CONDITIONING, guidance: Annotated[float, Float(3.5, min=0.0, max=100.0, step=0.1)]
) -> CONDITIONING:
    """How strongly a network that was distilled with guidance follows the text."""
    return with_options(conditioning, guidance=guidance)


@node(
    "FluxDisableGuidance",
    category="model/conditioning/flux",
    function="append",
    description="Leaves out what FLUX, and models like it, are told of guidance.",
)
def flux_disable_guidance(conditioning: CONDITIONING) -> CONDITIONING:
    """Tell the network of no guidance at all. Return the conditioning with a guidance of None."""
    return with_options(conditioning, guidance=None)


@node(
    "FluxKontextMultiReferenceLatentMethod",
    "Edit Model Reference Method",
    category="model/conditioning/flux",
    function="append",
    experimental=True,
)
def flux_kontext_multi_reference_latent_method(
    conditioning: CONDITIONING,
    reference_latents_method: Annotated[str, InputType("COMBO", {"options": METHODS, "advanced": True})],
) -> CONDITIONING:
    """Where a model that goes by images takes them to be.

    Return the conditioning with the method set; a network that does not know it refuses it.
    """
    method, _, _ = reference_latents_method.partition("/")
    return with_options(conditioning, reference_latents_method=method)


@node(
    "ReferenceLatent",
    "Set Reference Latent",
    category="model/conditioning",
    function="append",
    description="Gives a model that edits images one more latent to go by; several of these give several.",
)
def reference_latent(conditioning: CONDITIONING, latent: LATENT | None = None) -> CONDITIONING:
    """One more image to go by, as latents.

    Return the conditioning with the latent after those it has; without one, as it is.
    """
    if latent is None:
        return conditioning
    return with_more(conditioning, reference_latents=latent["samples"])


@node(
    "FluxKVCache",
    "Flux KV Cache",
    category="experimental",
    function="patch",
    experimental=True,
    description="Places reference images as models of FLUX's family with a cache of keys and values want them.",
)
def flux_kv_cache(model: MODEL) -> MODEL:
    """Give each reference image an index of its own and noise level 0, as models with a cache for references expect.

    ComfyUI keeps the references' keys and values of the first step for the others; here each step makes its own.

    Return the model's recipe with the method, which holds where a conditioning names none.
    """
    return model.with_patch(ReferenceMethod("index_timestep_zero"))
