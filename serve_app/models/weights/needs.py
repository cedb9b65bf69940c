"""What recipes need of one device: their files, and the bytes of each part and LoRA set. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Literal

import torch

from serve_app.models.weights.activations import Activations
from serve_app.models.weights.loading import Loader
from serve_app.models.weights.memory_plan import CELL_BYTES, Room, largest_forward, stream_share, weights_left
from serve_app.models.weights.recipes import Need, WeightFiles, part_files, set_files, unmerged, version
from serve_app.models.weights.residency import Residency
from serve_app.models.weights.sharded_blocks import shard_sizes
from serve_app.nested_tensor import Samples
from serve_app.recipe.controls import ModelControl
from serve_app.recipe.layers import LayerPatch
from serve_app.recipe.recipe import Part, Recipe
from serve_app.recipe.weights import Scale, Sharded, Streams
from serve_app.store.models.catalog import Catalog
from serve_app.values import Conditioning

if TYPE_CHECKING:
    from serve_app.models.ranks.leader import Leader

SIZES_KEPT = 1024
"""How many parts' and sets' sizes are cached; computing one opens files."""

STREAMED: frozenset[Part] = frozenset({"backbone", "clip"})
"""Parts that stream where they are too large."""


class Needs:
    """What recipes need. loader: knows sizes. residency: has the budget. Files seen for the first time are opened.

    ranks: that compute with this process. weight_ranks: how many have sharded backbones' weights together. Errors of
    all methods: ModelFileError.
    """

    def __init__(
        self,
        catalog: Catalog,
        device: torch.device,
        loader: Loader,
        residency: Residency,
        ranks: Leader | None = None,
        weight_ranks: int = 1,
    ) -> None:
        self._ranks, self._weight_ranks = ranks, weight_ranks
        self._catalog = catalog
        self._loader = loader
        self._device = device
        self._residency = residency
        self._activations = Activations(loader)
        self._sizes: dict[Hashable, int] = {}
        self._lock = Lock()

    def fitted(self, backbone: Recipe, *others: Recipe, activation_bytes: int = 0) -> Recipe:
        """Return a backbone's recipe for use with others at once: streaming if not all fit beside its forwards.

        With `shards_weights` of its ranks it is sharded: always, or for "auto" where it would stream and its parts fit.
        activation_bytes: of a forward.
        """
        shards = self._may_shard(backbone, others)
        if shards is True:
            return backbone.with_patch(Sharded())
        if self._device.type != "cuda":
            return backbone
        budget = self._residency.budget_bytes
        nbytes, beside = self._sizes_with(backbone, others)
        left = weights_left(budget, self._residency.forwards_bytes, activation_bytes)
        share = stream_share(nbytes, beside, budget, left)
        if share is None:
            return backbone
        sharded = backbone.with_patch(Sharded())
        if shards and self.device_bytes(sharded, self.files(sharded)[0]) <= share * budget:
            return sharded
        alone = stream_share(nbytes, 0, budget)
        return backbone if share == alone else backbone.with_patch(Streams(share))

    def _may_shard(self, backbone: Recipe, others: Sequence[Recipe]) -> bool | Literal["auto"]:
        """Return whether a backbone's weights are sharded; never where rank 0 alone could run its forwards."""
        if self._ranks is None or self._ranks.shards_weights is False:
            return False
        # GLIGEN is a model patch of the texts.
        if backbone.all(LayerPatch) or any(other.part == "model_patch" for other in others):
            return False
        if self._activations.are_together(backbone, part_files(self._catalog, backbone)):
            return False
        return self._ranks.shards_weights

    def expected(self, recipe: Recipe) -> Need:
        """Return what jobs will need of a recipe alone, before any has asked: backbones as `fitted`."""
        return self.of(self.fitted(recipe) if recipe.part == "backbone" else recipe)

    def room_with(self, backbone: Recipe, *others: Recipe) -> tuple[int, Callable[[int], int]]:
        """Return the bytes of the largest forward with a backbone and others at once: here, and by a card's bytes."""
        nbytes, beside = self._sizes_with(backbone, others)
        budget, forwards = self._residency.budget_bytes, self._residency.forwards_bytes

        def on_card(card_bytes: int) -> int:
            return Room.of(card_bytes, 0, forwards // CELL_BYTES).largest_forward(nbytes, beside)

        return largest_forward(nbytes, beside, budget, forwards), on_card

    def _sizes_with(self, backbone: Recipe, others: Sequence[Recipe]) -> tuple[int, int]:
        """Return the bytes of a backbone, and of others that are needed at once."""
        files = self.files(backbone)[0]
        beside = sum(self.of(backbone, *others).nbytes.values()) - self.device_bytes(backbone, files)
        return self.part_bytes(backbone, files), beside

    def activation_bytes(
        self, backbone: Recipe, latents: Samples, conds: Mapping[str, Conditioning], factor: int | None = None
    ) -> int:
        """Return what a forward of one of a run's rows takes of the GPU beside weights; 0 on a CPU.

        Of all rows where they go into one forward.

        latents, factor: as in a SamplingRequest.
        """
        if self._device.type != "cuda":
            return 0
        return self._activations.nbytes(backbone, part_files(self._catalog, backbone), latents, conds, factor)

    def of(self, *recipes: Recipe, activation_bytes: int = 0) -> Need:
        """Return the weights that these recipes need at once.

        activation_bytes: of the largest forward with them, as `activation_bytes`.
        """
        nbytes: dict[Hashable, int] = {}
        shown = (control for recipe in recipes for control in recipe.all(ModelControl))
        beside = (found for control in shown for found in (control.recipe, control.vae) if found is not None)
        wanted = tuple(dict.fromkeys((*recipes, *beside)))
        for recipe in wanted:
            files, of_set = self.files(recipe)
            nbytes[files.key] = self.device_bytes(recipe, files)
            if of_set is not None:
                nbytes[of_set.key] = self.set_bytes(recipe, files, of_set)
        return Need(nbytes, wanted, activation_bytes)

    def files(self, recipe: Recipe) -> tuple[WeightFiles, WeightFiles | None]:
        """Return the files of a recipe's part, and of the changes on top of it, if any.

        For a streamed text encoder all changes are merged in: there is no room for merged copies of layers.
        """
        files, changes = part_files(self._catalog, recipe), unmerged(recipe)
        if not changes:
            return files, None
        if recipe.part != "backbone" and self.stream_bytes(recipe, files) is not None:
            return part_files(self._catalog, recipe, whole=True), None
        return files, set_files(self._catalog, files.key, changes)

    def stream_bytes(self, recipe: Recipe, files: WeightFiles) -> int | None:
        """Return how much of a GPU a streaming part takes, by its recipe or as it is too large; else None."""
        if self._device.type != "cuda" or recipe.part not in STREAMED or recipe.last(Sharded) is not None:
            return None
        budget, said = self._residency.budget_bytes, recipe.last(Streams)
        share = stream_share(self.part_bytes(recipe, files), 0, budget) if said is None else said.share
        return None if share is None else int(budget * share)

    def device_bytes(self, recipe: Recipe, files: WeightFiles) -> int:
        """Return how much of the device a part takes, streaming, sharded or whole."""
        if recipe.last(Sharded) is not None:
            return self._size((files.key, self._weight_ranks), lambda: self._sharded_bytes(recipe, files))
        room = self.stream_bytes(recipe, files)
        return self.part_bytes(recipe, files) if room is None else room

    def _sharded_bytes(self, recipe: Recipe, files: WeightFiles) -> int:
        _, network = self._loader.outline(recipe, files)
        return shard_sizes(network, None, self._weight_ranks).device_bytes

    def part_bytes(self, recipe: Recipe, files: WeightFiles) -> int:
        """Return the bytes of a whole part."""
        return self._size(files.key, lambda: self._loader.nbytes(recipe, files))

    def set_bytes(self, recipe: Recipe, files: WeightFiles, of_set: WeightFiles) -> int:
        """Return the bytes that a set of LoRAs adds to a part."""
        # Strengths are ignored: they do not matter, and have no end of values.
        scaled = (end for change in unmerged(recipe) if isinstance(change, Scale) for end, _ in change.factors)
        size_key = (files.key, *map(version, of_set.paths), *scaled)
        return self._size(size_key, lambda: self._loader.lora_bytes(recipe, files, of_set))

    def _size(self, key: Hashable, measure: Callable[[], int]) -> int:
        if (size := self._sizes.get(key)) is None:
            size = measure()
            with self._lock:
                self._sizes[key] = size
                if len(self._sizes) > SIZES_KEPT:
                    del self._sizes[next(iter(self._sizes))]
        return size
