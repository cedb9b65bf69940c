"""Recipes of the models that a configuration preloads."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.recipe.recipe import ENCODER_TYPE, Part, Recipe, encoders

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
