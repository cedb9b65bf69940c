"""`comfy.model_patcher` for node packs: a MODEL, which is a recipe, as an object that takes patches.

A pack gets a new one for each call of its node; the added patches become patches of the recipe when the value is
returned on a link (`values.py`). Source: the facts of ComfyUI 0.33's module of this name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partialmethod
from typing import Any

import torch

from serve_app.errors import NodeError
from serve_app.packs.comfy import model_options as options_of
from serve_app.packs.comfy.model_base import BaseModel, ModelSampling, class_of
from serve_app.packs.comfy.model_management import get_torch_device
from serve_app.packs.missing import MissingMemberError
from serve_app.packs.waiting import run_on_loop, runtime
from serve_app.recipe.layers import DifferentialDiffusion
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Training
from serve_app.recipe.weights import Lora
from serve_app.sampling.denoiser import trained


def without_functions(recipe: Recipe) -> Recipe:
    """Return a recipe without the functions of packs."""
    kept = tuple(patch for patch in recipe.patches if not isinstance(patch, PackFunctions))
    return Recipe(recipe.part, recipe.folder, recipe.name, kept, recipe.extra_files)


class ModelPatcher:
    """A MODEL. model_options: ComfyUI's, changed in place or by the methods.

    Made by a pack for a network of its own, it only keeps that network and its devices; made of another one's `model`
    it is that MODEL without added functions.
    """

    recipe: Recipe | None = None

    def __init__(
        self, model: Any, load_device: Any = None, offload_device: Any = None, size: int = 0, **options: Any
    ) -> None:
        self._model = model
        if isinstance(model, BaseModel) and model.recipe is not None:
            self.recipe = without_functions(model.recipe)
        self.load_device = get_torch_device() if load_device is None else load_device
        self.offload_device = torch.device("cpu") if offload_device is None else offload_device
        self.size = size
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.object_patches: dict[str, Any] = {}
        self.attachments: dict[str, Any] = {}
        self._before: list[Any] = list(options_of.leaves(self.model_options))

    @classmethod
    def of(cls, recipe: Recipe) -> ModelPatcher:
        """Convert a recipe of a backbone for packs."""
        made = cls(None)
        made.recipe = recipe
        functions = recipe.last(PackFunctions)
        if functions is not None:
            made.model_options = {"transformer_options": {}, **options_of.copied(dict(functions.options))}
        if recipe.last(DifferentialDiffusion) is not None:
            made.model_options.setdefault("denoise_mask_function", options_of.of_recipe)
        made._before = list(options_of.leaves(made.model_options))
        return made

    def plain(self) -> Recipe:
        """Convert to a recipe with the added patches.

        Errors: NodeError for a network of the pack's own; MissingNameError for what cannot be a patch of a recipe.
        """
        if self.recipe is None:
            raise NodeError("a node pack made this MODEL of a network of its own, which the server cannot sample with")
        recipe = self.recipe
        for name, value in self.object_patches.items():
            training = getattr(value, "training", None)
            if name != "model_sampling" or training is None:
                raise MissingMemberError(f"comfy.model_patcher.ModelPatcher.add_object_patch({name!r})")
            recipe = recipe.with_patch(training)
        if list(options_of.leaves(self.model_options)) == self._before:
            return recipe
        found = options_of.functions(self.model_options)
        bare = without_functions(recipe)
        return bare if found is None else bare.with_patch(found)

    def clone(self, *arguments: Any, **options: Any) -> ModelPatcher:
        """Return a copy; patches added to it do not change this one."""
        made = type(self)(self._model, self.load_device, self.offload_device, self.size)
        made.recipe, made._before = self.recipe, self._before
        made.model_options = options_of.copied(self.model_options)
        made.object_patches, made.attachments = dict(self.object_patches), dict(self.attachments)
        return made

    def is_clone(self, other: Any) -> bool:
        """Whether both have the same weights, apart from LoRAs."""
        if self.recipe is None:
            return getattr(other, "_model", None) is self._model
        theirs = getattr(other, "recipe", None)
        return theirs is not None and (theirs.folder, theirs.name) == (self.recipe.folder, self.recipe.name)

    @property
    def model(self) -> Any:
        """The model object for packs; a pack's own network is returned itself."""
        if self.recipe is None:
            return self._model
        if self._model is None:
            recipe, models = self.recipe, runtime("ModelPatcher.model")
            family = run_on_loop(models.family(recipe), "ModelPatcher.model")
            self._model = class_of(family)(family, self._levels, family.latent_format)
            self._model.recipe = self.plain_training()
        return self._model

    def _levels(self) -> Any:
        recipe = self.plain_training()
        training = recipe.last(Training)
        if training is not None:
            return trained(training)[0]
        return run_on_loop(runtime("ModelPatcher.model").levels(recipe), "ModelPatcher.model")

    def plain_training(self) -> Recipe:
        """Return the recipe with the added description of training, if any."""
        assert self.recipe is not None
        described = getattr(self.object_patches.get("model_sampling"), "training", None)
        return self.recipe if described is None else self.recipe.with_patch(described)

    # Functions --------------------------------------------------------------------------------------------------------

    def disable_model_cfg1_optimization(self) -> None:
        """Evaluate the negative at scale 1 too."""
        self.model_options["disable_cfg1_optimization"] = True

    def set_model_sampler_cfg_function(
        self, sampler_cfg_function: Any, disable_cfg1_optimization: bool = False
    ) -> None:
        """Set a replacement of guidance. A function of several arguments gets them one by one."""
        function = sampler_cfg_function
        if len(inspect.signature(function).parameters) == 3:
            function = _Spread(function)
        self.model_options["sampler_cfg_function"] = function
        if disable_cfg1_optimization:
            self.disable_model_cfg1_optimization()

    def set_model_sampler_post_cfg_function(
        self, post_cfg_function: Any, disable_cfg1_optimization: bool = False
    ) -> None:
        """Add a function after guidance."""
        options_of.set_model_options_post_cfg_function(self.model_options, post_cfg_function, disable_cfg1_optimization)

    def set_model_sampler_pre_cfg_function(
        self, pre_cfg_function: Any, disable_cfg1_optimization: bool = False
    ) -> None:
        """Add a function before guidance."""
        options_of.set_model_options_pre_cfg_function(self.model_options, pre_cfg_function, disable_cfg1_optimization)

    def set_model_unet_function_wrapper(self, unet_wrapper_function: Any) -> None:
        """Set a wrapper of the forward: refused when the model is used, as a forward is shared by many jobs."""
        self.model_options["model_function_wrapper"] = unet_wrapper_function

    def set_model_sampler_calc_cond_batch_function(self, sampler_calc_cond_batch_function: Any) -> None:
        """Set a function that evaluates the branches: refused when the model is used."""
        self.model_options["sampler_calc_cond_batch_function"] = sampler_calc_cond_batch_function

    def set_model_denoise_mask_function(self, denoise_mask_function: Any) -> None:
        """Set the function that makes the mask of a noise level."""
        self.model_options["denoise_mask_function"] = denoise_mask_function

    def set_model_patch(self, patch: Any, name: str) -> None:
        """Add a function within the network. Whether the model's family runs it shows when it is sampled."""
        transformer = dict(self.model_options.get("transformer_options", {}))
        patches = dict(transformer.get("patches", {}))
        patches[name] = [*patches.get(name, ()), patch]
        transformer["patches"] = patches
        self.model_options["transformer_options"] = transformer

    def set_model_patch_replace(
        self, patch: Any, name: str, block_name: str, number: int, transformer_index: int | None = None
    ) -> None:
        """Set what replaces a part of the network at one block."""
        options_of.set_model_options_patch_replace(
            self.model_options, patch, name, block_name, number, transformer_index
        )

    def set_model_attn1_replace(
        self, patch: Any, block_name: str, number: int, transformer_index: int | None = None
    ) -> None:
        """Set what replaces attention within the image at one block."""
        self.set_model_patch_replace(patch, "attn1", block_name, number, transformer_index)

    def set_model_attn2_replace(
        self, patch: Any, block_name: str, number: int, transformer_index: int | None = None
    ) -> None:
        """Set what replaces attention to the text at one block."""
        self.set_model_patch_replace(patch, "attn2", block_name, number, transformer_index)

    set_model_attn1_patch = partialmethod(set_model_patch, name="attn1_patch")
    set_model_attn2_patch = partialmethod(set_model_patch, name="attn2_patch")
    set_model_attn1_output_patch = partialmethod(set_model_patch, name="attn1_output_patch")
    set_model_attn2_output_patch = partialmethod(set_model_patch, name="attn2_output_patch")
    set_model_input_block_patch = partialmethod(set_model_patch, name="input_block_patch")
    set_model_input_block_patch_after_skip = partialmethod(set_model_patch, name="input_block_patch_after_skip")
    set_model_output_block_patch = partialmethod(set_model_patch, name="output_block_patch")
    set_model_middle_block_after_patch = partialmethod(set_model_patch, name="middle_block_after_patch")
    set_model_emb_patch = partialmethod(set_model_patch, name="emb_patch")
    set_model_double_block_patch = partialmethod(set_model_patch, name="double_block")
    set_model_post_input_patch = partialmethod(set_model_patch, name="post_input")
    set_model_noise_refiner_patch = partialmethod(set_model_patch, name="noise_refiner")
    set_model_forward_timestep_embed_patch = partialmethod(set_model_patch, name="forward_timestep_embed_patch")

    def add_patches(self, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> list[str]:
        """Add a LoRA of `comfy.lora.load_lora`, and return the keys that it may change.

        Errors: MissingMemberError for weights that a pack has made or changed itself.
        """
        if not isinstance(patches, LoadedLora) or strength_model != 1.0 or self.recipe is None:
            raise MissingMemberError("comfy.model_patcher.ModelPatcher.add_patches of a pack's own weights")
        if strength_patch:
            self.recipe = self.recipe.with_patch(Lora(patches.name, strength_patch))
        return list(patches)

    # Objects ----------------------------------------------------------------------------------------------------------

    def add_object_patch(self, name: str, obj: Any) -> None:
        """Put an object in place of one of the model's; of these, a described `model_sampling` can be a patch."""
        self.object_patches[name] = obj

    def get_model_object(self, name: str) -> Any:
        """Return an object of the model's, or its replacement. Errors: MissingNameError."""
        if name in self.object_patches:
            return self.object_patches[name]
        if name == "model_sampling" and self.recipe is not None:
            return ModelSampling(self._levels())
        found = self.model
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def model_dtype(self) -> torch.dtype:
        """Return the dtype of values that a model takes."""
        return torch.float32

    def model_size(self) -> int:
        """Return 0: memory is the runtime's to count."""
        return self.size

    def memory_required(self, input_shape: Any) -> int:
        """Return 0: memory is the runtime's to count."""
        return 0

    def set_attachments(self, key: str, attachment: Any) -> None:
        """Attach an object, for the pack only."""
        self.attachments[key] = attachment

    def get_attachment(self, key: str) -> Any:
        """Return an attached object, or None."""
        return self.attachments.get(key)

    def remove_attachments(self, key: str) -> None:
        """Remove an attached object."""
        self.attachments.pop(key, None)

    def current_loaded_device(self) -> Any:
        """Return where it works."""
        return self.load_device

    def cleanup(self) -> None:
        """Do nothing: weights are the runtime's."""

    detach = unpatch_model = pre_run = cleanup

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.model_patcher.ModelPatcher.{name}")


class LoadedLora(dict[str, Any]):
    """A LoRA's file as packs pass it from `comfy.lora` to `add_patches`. name: in the folder of LoRAs."""

    def __init__(self, name: str) -> None:
        super().__init__({name: None})
        self.name = name

    def items(self) -> Any:
        """Errors: MissingMemberError. What a file changes is read by the runtime alone."""
        raise MissingMemberError("comfy.lora.load_lora(…).items")

    values = items


class _Spread:
    """A guidance function of the old form with three arguments."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, told: Mapping[str, Any]) -> Any:
        return self._function(told["cond"], told["uncond"], told["cond_scale"])
