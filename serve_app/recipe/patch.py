"""Every kind of ordered change that a recipe can have."""

from __future__ import annotations

from typing import TypeAlias

from serve_app.recipe.context import ContextWindows, FirstFrames
from serve_app.recipe.controls import DiffControlNetBase, HintKind, ModelControl
from serve_app.recipe.guidance import GuidancePatch
from serve_app.recipe.hooks import ClipHooks
from serve_app.recipe.layers import DifferentialDiffusion, EasyCache, LayerPatch, ReferenceMethod, ScaledPositions
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.text import ClipSkip, LoadedAs, ProjectedBy, T5Padding
from serve_app.recipe.training import Training
from serve_app.recipe.weights import ComputedIn, Rounded, Sharded, Streams, WeightChange

Patch: TypeAlias = (
    ClipSkip
    | ClipHooks
    | LoadedAs
    | T5Padding
    | ProjectedBy
    | WeightChange
    | Training
    | Rounded
    | ComputedIn
    | Streams
    | Sharded
    | HintKind
    | DiffControlNetBase
    | GuidancePatch
    | LayerPatch
    | EasyCache
    | DifferentialDiffusion
    | ReferenceMethod
    | ScaledPositions
    | ContextWindows
    | FirstFrames
    | PackFunctions
    | ModelControl
)
"""Every kind of ordered change that a recipe can have."""
