"""The weights of one replica: turns recipes into models, as its engine requests them.

`recipes` resolves a recipe to files, `loading` loads them, `residency` caches them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any

import torch

from serve_app import log
from serve_app.errors import DeviceMemoryError, NodeError
from serve_app.models.audio_vae import AudioVae
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.control.control import ControlNet
from serve_app.models.control.model_control import ModelPatch, activated
from serve_app.models.families.family import BackboneFamily, Family
from serve_app.models.families.text_family import Encoder
from serve_app.models.files import saving
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.safetensors_file import SafetensorsFile
from serve_app.models.image_model import ImageModel
from serve_app.models.kernels.cuda_graphs import replays_of
from serve_app.models.latent_upscaler import LatentUpscaler
from serve_app.models.lora import extraction
from serve_app.models.network import ForwardOptions, LoadedNetwork
from serve_app.models.text_encoder import Clip
from serve_app.models.tokenizers.lexicon import Lexicon
from serve_app.models.upscaler import Upscaler
from serve_app.models.vae import Vae
from serve_app.models.vision import ImageEncoder, StyleModel
from serve_app.models.weights.host_weights import HostWeights
from serve_app.models.weights.load_progress import LoadProgress
from serve_app.models.weights.loading import Loader, Stream, control_file
from serve_app.models.weights.needs import Needs
from serve_app.models.weights.recipes import Need, WeightFiles, of_weights, part_files
from serve_app.models.weights.residency import Hold, Residency, ResidentWeights
from serve_app.models.weights.sharded_blocks import ShardedBlocks
from serve_app.recipe.controls import DiffControlNetBase, ModelControl
from serve_app.recipe.layers import ReferenceMethod, ScaledPositions
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ClipSkip, T5Padding
from serve_app.recipe.training import Training
from serve_app.recipe.weights import Sharded, WeightChange
from serve_app.sampling.denoiser import trained
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.schedules.levels import Levels
from serve_app.store.models.catalog import Catalog
from serve_app.values import Extraction

MB = 1024**2
_log = log.get("models")


@dataclass(frozen=True, slots=True)
class LoadCounters:
    """Counters of loads and evictions since the replica began, and what is resident.

    seconds: spent loading. releases: evictions made for activations, not for other weights. host_bytes: in host memory,
    evicted or streamed; host_hits, host_misses: loads that found weights there, or did not. streamed_bytes: copied to
    the device during forwards.
    """

    loads: int = 0
    seconds: float = 0.0
    evictions: int = 0
    releases: int = 0
    resident_bytes: int = 0
    host_bytes: int = 0
    host_hits: int = 0
    host_misses: int = 0
    streamed_bytes: int = 0


class Weights:
    """The models of recipes on one device. Thread-safe; loading blocks the caller.

    dtype: of all parts but VAEs and upscalers, as `dtypes.dtype_of` reads it; vae_dtype: of VAEs. fp8_matmul,
    options: as `Loader`.
    budget_bytes: what is kept before the least recently used is evicted; on a GPU, a network of more streams.
    forwards_bytes: what forwards are left beside that; weights take less of the budget beside one that needs more.
    host_bytes: what is kept in host memory there, of those that were evicted or stream.
    A method that returns a model takes the open hold that keeps its weights; they are loaded if they are absent.
    Without one nothing keeps them, and the model is good until the next eviction.
    Errors: ConfigError for dtypes; of what reads files: ModelFileError.
    """

    def __init__(
        self,
        catalog: Catalog,
        device: torch.device,
        *,
        dtype: str,
        vae_dtype: str,
        budget_bytes: int,
        forwards_bytes: int = 0,
        host_bytes: int = 0,
        fp8_matmul: bool | None = False,
        options: ForwardOptions | None = None,
    ) -> None:
        self.device = device
        self._catalog = catalog
        self._ranks = None if options is None else options.ranks
        self.loader = Loader(device, dtype, vae_dtype, fp8_matmul, options)
        self._lexicon = Lexicon(catalog)
        self.residency = Residency(budget_bytes, forwards_bytes)
        self._weight_ranks = None if options is None else options.weight_ranks
        size = 1 if self._weight_ranks is None else self._weight_ranks.size
        self.needs = Needs(catalog, device, self.loader, self.residency, self._ranks, size)
        self.host = HostWeights(device, host_bytes, ring=self.loader.ring)
        self._lock = self.residency.lock
        # Held over a load; the other lock never is, so that whoever only asks does not wait for one.
        self._loading = Lock()
        # Held until evicted weights have left the device.
        self._leaving = Lock()

    def backbone(self, recipe: Recipe, hold: Hold | None = None) -> RecipeBackbone:
        """Return the recipe's backbone with its LoRAs, and with the networks that control it.

        Errors: NodeError for an incompatible control.
        """
        network, resident = self._model(recipe, LoadedNetwork, hold)
        training, references = recipe.last(Training), recipe.last(ReferenceMethod)
        controls = tuple(
            activated(
                control,
                self._model(control.recipe, ModelPatch, hold)[0],
                None if control.vae is None else self.vae(control.vae, hold),
                network.family,
                trained(training or network.trained_as)[0],
            )
            for control in recipe.all(ModelControl)
        )
        functions = recipe.all(PackFunctions)
        placed, whole = recipe.last(ScaledPositions), of_weights(recipe)
        return RecipeBackbone(
            network, training, resident.loras, references, placed, controls, functions=functions, recipe=whole
        )

    def levels(self, recipe: Recipe) -> Levels:
        """Return the noise levels of the recipe's backbone, without loading it."""
        return trained(self._training(recipe))[0]

    def family(self, recipe: Recipe) -> Family:
        """Return the family and size of the recipe's network, without loading it."""
        file, *beside = (Checkpoint(path) for path in part_files(self._catalog, recipe).paths)
        return file.family(recipe.part, beside, recipe.loaded_as)

    def latent_format(self, recipe: Recipe) -> LatentFormat:
        """Return the latent format of the recipe's backbone, without loading it."""
        family = self.family(recipe)
        assert isinstance(family, BackboneFamily)
        return family.format_of(self._training(recipe))

    def _training(self, recipe: Recipe) -> Training:
        set_by_patch: Training | None = recipe.last(Training)
        return set_by_patch or Checkpoint(part_files(self._catalog, recipe).paths[0]).training()

    def clip(self, recipe: Recipe, hold: Hold | None = None) -> Clip:
        """Return the recipe's text encoder, and how it is used."""
        skip = recipe.last(ClipSkip)
        stop_at = None if skip is None else skip.stop_at
        return Clip(self._model(recipe, Encoder, hold)[0], stop_at, recipe.last(T5Padding))

    def vae(self, recipe: Recipe, hold: Hold | None = None) -> Vae:
        """Return the recipe's VAE."""
        vae: Vae = self._model(recipe, Vae, hold)[0]
        return vae

    def vae_of_ranks(self, recipe: Recipe, hold: Hold | None = None) -> Vae:
        """Return the recipe's VAE as one that all ranks compute with, if there are several and they share it."""
        vae = self.vae(recipe, hold)
        return vae if self._ranks is None else self._ranks.vae(of_weights(recipe), vae)

    def audio_vae(self, recipe: Recipe, hold: Hold | None = None) -> AudioVae:
        """Return the recipe's audio VAE."""
        vae: AudioVae = self._model(recipe, AudioVae, hold)[0]
        return vae

    def image_encoder(self, recipe: Recipe, hold: Hold | None = None) -> ImageEncoder:
        """Return the recipe's image encoder."""
        encoder: ImageEncoder = self._model(recipe, ImageEncoder, hold)[0]
        return encoder

    def style_model(self, recipe: Recipe, hold: Hold | None = None) -> StyleModel:
        """Return the recipe's style model."""
        style: StyleModel = self._model(recipe, StyleModel, hold)[0]
        return style

    def upscaler(self, recipe: Recipe, hold: Hold | None = None) -> Upscaler:
        """Return the recipe's upscaler."""
        upscaler: Upscaler = self._model(recipe, Upscaler, hold)[0]
        return upscaler

    def latent_upscaler(self, recipe: Recipe, hold: Hold | None = None) -> LatentUpscaler:
        """Return the recipe's latent upscaler."""
        upscaler: LatentUpscaler = self._model(recipe, LatentUpscaler, hold)[0]
        return upscaler

    def image_model(self, recipe: Recipe, hold: Hold | None = None) -> ImageModel:
        """Return the recipe's network that reads images."""
        model: ImageModel = self._model(recipe, ImageModel, hold)[0]
        return model

    def control_net(self, recipe: Recipe, hold: Hold | None = None) -> ControlNet:
        """Return the ControlNet or T2I-Adapter of a recipe that `with_base` gave."""
        net: ControlNet = self._model(recipe, ControlNet, hold)[0]
        return net

    def model_patch(self, recipe: Recipe, hold: Hold | None = None) -> ModelPatch:
        """Return a network of a model patch's file."""
        patch: ModelPatch = self._model(recipe, ModelPatch, hold)[0]
        return patch

    def with_base(self, control_net: Recipe, backbone: Recipe) -> Recipe:
        """Return a ControlNet's recipe with the backbone whose weights its file changes, if any.

        backbone: the one that it controls, whose weights a control-LoRA changes. Errors: ModelFileError.
        """
        file = control_file(self._catalog, control_net)
        changed = control_net.last(DiffControlNetBase) if file.has_differences else None
        if file.needs_base:
            changed = DiffControlNetBase(backbone)
        own = tuple(patch for patch in control_net.patches if not isinstance(patch, DiffControlNetBase))
        return replace(control_net, patches=own if changed is None else (*own, changed))

    def remarks(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the warnings on a resident recipe: LoRAs or merges with tensors that fit nowhere."""
        if not recipe.all(WeightChange):
            return ()
        files, of_set = self.needs.files(recipe)
        return self.residency.remarks(files.key) + (() if of_set is None else self.residency.remarks(of_set.key))

    def encodes_hint(self, control_net: Recipe) -> bool:
        """Whether a ControlNet reads its hint as latents. Errors: ModelFileError."""
        return control_file(self._catalog, control_net).reads_latents

    def files(
        self,
        model: Recipe | None,
        clip: Recipe | None,
        vae: Recipe | None,
        metadata: Mapping[str, str],
        progress: saving.Progress,
    ) -> Mapping[str, SafetensorsFile]:
        """Return the files that parts of models are saved as, by the suffix of their names; as `saving`.

        With a model all parts go into one file. Nothing is loaded: tensors are read from the model files. Errors:
        ModelFileError.
        """
        if model is not None:
            return {"": saving.checkpoint_file(self._catalog, model, clip, vae, metadata, progress)}
        if clip is not None:
            return saving.text_files(self._catalog, clip, metadata, progress)
        return {} if vae is None else {"": saving.vae_file(self._catalog, vae, metadata, progress)}

    def saved_conditioning(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Return the tensors and the metadata of a file of the folder "embeddings". Errors: ModelFileError."""
        return self._lexicon.conditioning(name)

    def lora_metadata(self, name: str) -> Mapping[str, str]:
        """Return the metadata of a file of the folder "loras". Errors: ModelFileError."""
        return Checkpoint(self._catalog.path("loras", name)).metadata

    def lora_file(
        self, model: Recipe | None, clip: Recipe | None, asked: Extraction, progress: saving.Progress
    ) -> SafetensorsFile:
        """Return the LoRA extracted from a backbone's and text encoders' weights. Errors: ModelFileError."""
        return extraction.lora_file(self._catalog, model, clip, asked, self.device, progress)

    def hold(self, need: Need) -> Hold | None:
        """Return a hold that keeps all that is needed, and room for what is absent; None if that does not fit now.

        Never waits for a load.
        """
        with self._evicting() as residency:
            if not residency.fits(need):
                return None
            hold = Hold(need, self.residency)
            residency.expect(need.nbytes, hold)
            return hold

    def open(self, *recipes: Recipe) -> Hold:
        """Return a hold of recipes' weights, which are loaded by then, whether or not they fit the budget."""
        hold = Hold(Need({}, recipes), self.residency)
        try:
            self.load(hold)
        except BaseException:
            hold.close()
            raise
        return hold

    def hold_to_prefetch(self, need: Need, spared: Callable[[str], bool]) -> Hold | None:
        """Return a hold as `hold` does, for prefetched weights; None unless they fit beside all that may be needed.

        spared: whether idle weights of a name, as `resident` has it, stay.
        """
        with self._lock:
            if not self.residency.has_room_to_prefetch(need, spared):
                return None
            hold = Hold(need, self.residency)
            self.residency.expect(need.nbytes, hold)
            return hold

    def is_resident(self, key: Hashable) -> bool:
        """Whether weights are resident, by their key in a Need. Never waits for a load."""
        return self.residency.has(key)

    def is_loaded(self, hold: Hold) -> bool:
        """Whether all weights of a hold are resident. Never waits for a load."""
        with self._lock:
            return self.residency.has_all(hold.need)

    def load(self, hold: Hold) -> None:
        """Load the absent weights of a hold, with all that a first forward would wait for."""
        for recipe in hold.need.recipes:
            if (loras := self._loaded(recipe, hold).loras) is not None:
                for _ in loras.prepared():
                    pass

    def fits(self, need: Need) -> bool:
        """Whether all needed weights fit at once now, as `Residency.fits`."""
        with self._lock:
            return self.residency.fits(need)

    def resident(self) -> tuple[str, ...]:
        """Return "part folder/name" of resident weights, least recently used first. Never waits for a load."""
        return self.residency.names

    @property
    def resident_bytes(self) -> int:
        """Bytes of resident weights, merged LoRAs included. Never waits for a load."""
        return self.residency.nbytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes reserved for absent weights. Never waits for a load."""
        with self._lock:
            return self.residency.reserved_bytes

    @property
    def counters(self) -> LoadCounters:
        """Return counters of loads and evictions, and what is resident. Never waits for a load."""
        held, host = self.residency, self.host
        return LoadCounters(
            *(held.loads, held.seconds, held.evictions, held.releases, held.nbytes),
            *(host.nbytes, host.hits, host.misses, host.streamed.nbytes),
        )

    @property
    def load_under_way(self) -> LoadProgress | None:
        """How far the part is read that is loaded at the moment; None without one."""
        return self.loader.under_way

    def load_times(self) -> tuple[tuple[str, float], ...]:
        """Return weights loaded since the last call, named as in `resident`, with load times in seconds."""
        times = self.residency.times
        return tuple(times.popleft() for _ in range(len(times)))

    def release(self, nbytes: int | None = None) -> int:
        """Evict unused weights until nbytes are freed, or all of them; as `Residency.release`."""
        with self._evicting() as residency:
            freed = residency.release(nbytes)
        if freed and self.device.type == "cuda":
            # So that other streams can have it. What is evicted for a load has the load's own pool, and giving it back
            # to the device would wait for all forwards enqueued.
            torch.cuda.empty_cache()
        return freed

    def _model(self, recipe: Recipe, kind: Any, hold: Hold | None) -> tuple[Any, ResidentWeights]:
        """Return a recipe's model of a kind, and what is resident of it. hold: keeps it; None: nothing does."""
        if hold is None:
            with Hold(Need({}, (recipe,)), self.residency) as hold:
                return self._model(recipe, kind, hold)
        resident = self._loaded(recipe, hold)
        with self._lock:
            if resident.model is None:
                resident.model = resident.loaded.model(self._lexicon)
        if not isinstance(resident.model, kind):
            found = type(resident.model).__name__
            raise NodeError(f"'{recipe.name}' is loaded as {found}, and this node needs one loaded as {kind.__name__}")
        return resident.model, resident

    def _loaded(self, recipe: Recipe, hold: Hold) -> ResidentWeights:
        """Return what is resident of a recipe, kept by a hold; loaded if it is absent."""
        files, of_set = self.needs.files(recipe)
        resident = self._get(
            files.key, hold, partial(self.needs.device_bytes, recipe, files), partial(self._load, recipe, files)
        )
        if of_set is not None:
            load = partial(self._load_set, recipe, resident, of_set)
            resident = self._get(of_set.key, hold, partial(self.needs.set_bytes, recipe, files, of_set), load)
        return resident

    def _get(
        self, key: Hashable, hold: Hold, nbytes: Callable[[], int], load: Callable[[], ResidentWeights]
    ) -> ResidentWeights:
        with self._lock:
            if (resident := self.residency.get(key, hold)) is not None:
                return resident
        with self._loading:
            with self._lock:
                if (resident := self.residency.get(key, hold)) is not None:
                    return resident
            began, room = perf_counter(), nbytes()
            try:
                with self._evicting() as residency:
                    residency.expect({key: room}, hold)
                resident = self._in_room(load, room)
                with self._lock:
                    self.residency.put(key, resident, perf_counter() - began)
                return resident
            finally:
                with self._lock:
                    self.residency.give_up(key, hold)

    def _in_room(self, load: Callable[[], ResidentWeights], nbytes: int) -> ResidentWeights:
        """Load weights of `nbytes`; on out of memory, evict unused ones and retry.

        Errors: DeviceMemoryError.
        """
        while True:
            try:
                return load()
            except torch.OutOfMemoryError as error:
                said = DeviceMemoryError.figures(error)
            # Here the error is gone, and with it what was loaded by then.
            if not self.release():
                held_mb, needed_mb = self.resident_bytes / MB, nbytes / MB
                raise DeviceMemoryError(
                    f"weights of {needed_mb:,.0f} MB do not fit the device's memory besides {held_mb:,.0f} MB of "
                    "weights that are in use. " + said
                )

    def _load(self, recipe: Recipe, files: WeightFiles) -> ResidentWeights:
        with self._on_all_ranks(recipe):
            loaded = self.host.take(files.key)
            if loaded is None:
                loaded = self.loader.load(recipe, files, self._stream(recipe, files))
        streaming = loaded.streaming
        nbytes = self.needs.part_bytes(recipe, files) if streaming is None else streaming.nbytes
        _log.info("loaded %s: mb=%d held_mb=%d", loaded.name, nbytes >> 20, (self.resident_bytes + nbytes) >> 20)
        return ResidentWeights(loaded, loaded.name, nbytes, remarks=loaded.remarks)

    def _stream(self, recipe: Recipe, files: WeightFiles) -> Stream | None:
        """Return what moves the blocks of a part that is not to be whole on the device; None: it is."""
        if recipe.last(Sharded) is not None:
            assert self._weight_ranks is not None, "recipes are sharded on ranks alone"
            ranks = self._weight_ranks
            return lambda network, dtype, _: ShardedBlocks(network, dtype, ranks, self.device)
        room = self.needs.stream_bytes(recipe, files)
        return None if room is None else partial(self.host.stream, recipe.part, room)

    def _on_all_ranks(self, recipe: Recipe) -> AbstractContextManager[None]:
        """Have the other ranks load a recipe too, if there are any and they compute with it."""
        if self._ranks is None:
            return nullcontext()
        shared = recipe.part == "backbone" or (recipe.part == "vae" and self._ranks.shares(self.family(recipe)))
        return self._ranks.loading(of_weights(recipe)) if shared else nullcontext()

    def _load_set(self, recipe: Recipe, base: ResidentWeights, files: WeightFiles) -> ResidentWeights:
        """Return the LoRA set of a part: low-rank layers for a backbone, merged weights for a text encoder."""
        key = base.loaded.key
        with self._on_all_ranks(recipe):
            loras, name, remarks = self.loader.lora_set(recipe, base.loaded, files, self._has_room)
        if recipe.part == "backbone":
            return ResidentWeights(base.loaded, name, 0, key, loras, remarks)
        return ResidentWeights(self.loader.merged(base.loaded, loras), name, loras.merged_bytes, key, remarks=remarks)

    def _has_room(self, nbytes: int) -> bool:
        with self._lock:
            return self.residency.has_room(nbytes)

    @contextmanager
    def _evicting(self) -> Iterator[Residency]:
        """Give the residency to a caller that may evict. What it evicts has left the device once this ends."""
        with self._leaving:
            with self._lock:
                yield self.residency
                evicted = self.residency.evicted()
            # What was made of a part goes before the part.
            for resident in reversed(evicted):
                self._free(resident)

    def _free(self, resident: ResidentWeights) -> None:
        """Free evicted weights, whoever still has references to them; a part may go to host memory."""
        if (loras := resident.loras) is not None:
            for tensor in loras.read_in_place():
                replays_of(self.device).forget(tensor)
            loras.close()
            return
        if resident.base is None and isinstance(resident.model, LoadedNetwork):
            resident.model.close()
        if resident.base is not None or not self.host.keep(resident.loaded):
            resident.loaded.close()
