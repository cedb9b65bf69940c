"""One entry of the section `pools`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from serve_app.config.comfyui import ComfyUIConfig
from serve_app.config.limits import LatentBounds
from serve_app.config.section import Seconds, Section
from serve_app.recipe.warm import WARM_FORM, warm_recipes

EVERY_CLASS = ("*",)
"""The patterns of a pool that takes nodes of every class."""
SHARED = "shared"
"""The destination of workflows whose nodes may be spread over pools; any other is a pool that takes them whole."""
LATENTS = {
    "cuda": LatentBounds(1_048_576, 400_000_000_000),
    "cpu": LatentBounds(131_072, 20_000_000_000),
}
"""The defaults of `latent_cells` and `latent_pairs` by device."""
Dtype = Literal["auto", "fp32", "fp16", "bf16"]
OPTIMIZATIONS = ("fast", "fp8_matmul", "attention", "compile", "step_cache")
"""A pool's settings for speed by which pictures differ."""
NOT_STRICT = frozenset({"attention", "compile", "step_cache"})
"""Those that strict jobs are refused with."""


def _warmable(models: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := [model for model in models if not warm_recipes(model)]:
        raise ValueError(f"{', '.join(wrong)} must be {WARM_FORM}")
    return models


class PoolConfig(Section):
    """A set of equal replicas: which node classes they run, their hardware, and their number."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
    accepts: tuple[str, ...] = EVERY_CLASS
    """Class-name patterns of the nodes it may run."""
    comfyui: ComfyUIConfig | None = None
    """The ComfyUI that runs as each replica: it takes whole workflows, one at a time, of all its classes."""
    prefers: tuple[str, ...] = ()
    """Class-name patterns of workflows that go to a ComfyUI even where other pools have all of their classes."""
    runtime: bool = True
    """Whether its replicas hold models; False for a CPU worker."""
    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    tasks_per_replica: Annotated[int, Field(ge=1)] = 16
    """Tasks one replica runs at once, so that they can share forwards."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs a replica; a fraction shares a card and bounds the memory the replica may take of it to the same share.

    auto is one for a pool that holds models, if the cluster has one as the application is deployed; pools share what
    there is. One that is asked for by a number and is not there is an error.
    """
    devices_per_replica: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    """How many devices compute each forward of a replica together, for a video that takes minutes on one.

    Each takes num_cpus, num_gpus (a whole one or none) and resources, and has the backbones' weights. To all others
    they are one replica, on the first device; that has everything else. If one is lost, all are replaced.

    auto: as many as `serve-app plan` finds worth it for the first backbone of `warm` at its family's usual size, of the
    GPUs that a host has and other pools leave. Without such a model, or a second GPU, one.
    """
    parallel: Literal["auto", "rows", "ulysses"] = "auto"
    """How those devices divide a forward. rows: by rows, such as a positive and its negative, or those of several jobs.

    auto: devices that are left over also divide the tokens of a row, in families that can: by Ulysses if they divide
    the attention heads, else by gathering keys and values. ulysses: never by gathering. Pictures differ by rounding.
    """
    shard_weights: Literal["auto"] | bool = False
    """Whether each of those devices has a part of a backbone's weights, and gathers each block's as it is needed.

    Not run on GPUs yet. auto: of backbones that would stream from host memory on one device, if their parts fit. Never
    with functions of node packs, model patches, GLIGEN, patches of layers such as FreeU, and Stable Video Diffusion.
    """
    spans_hosts: bool = False
    """Whether those devices may be on several hosts, for models of which a host has too few devices.

    Tensors and orders then go over the network of Ray, unencrypted; only who has the replica's key can give orders.
    """
    device: Literal["auto", "cpu"] = "auto"
    """Where its models are: auto is on its GPU, if it has one; cpu is on the CPU, whatever num_gpus reserves."""
    resources: Mapping[str, float] = {}
    hosts: Mapping[str, str] = {}
    """Labels of the hosts that may run it, as Ray's label_selector: {role: gpu}, or {role: "!gpu"} for any other."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads for tensor work; 0 is every core for models on a CPU, num_cpus for all else."""
    dtype: Dtype = "auto"
    """Of the backbone and text encoder: auto is fp32 on a CPU; on a GPU fp16 or bf16 by family, and fp32 for CLIP."""
    vae_dtype: Dtype = "auto"
    """auto is fp32 on a CPU, bf16 on a GPU that has it."""
    fast: bool = False
    """On a GPU, products of fp16 are summed in fp16: faster on GeForce cards, and less exact."""
    fp8_matmul: Literal["auto"] | bool = "auto"
    """Whether backbones' layers kept in fp8 multiply in it, on a GPU of compute capability 8.9 or above.

    auto: as ComfyUI, those of files that mark their layers, unless the mark forbids it. true: all but those that are
    forbidden, as ComfyUI with --fast fp8_matrix_mult. Inputs are rounded to fp8: other pictures than with false.
    """
    attention: Literal["sdpa", "flash3", "sage"] = "sdpa"
    """What computes attention in backbones: torch's own, FlashAttention 3 or SageAttention, in 16 bits on a GPU.

    Attention that the package does not compute, as with a mask or in wider heads, stays torch's. Other pictures.
    """
    compile: bool = False
    """Whether backbones' repeated blocks are compiled (torch.compile, inductor), each kind of block once.

    Other pictures, by rounding. Models that stream or are quantized, and families without a list of blocks, run as
    they are; the log says so.
    """
    step_cache: Annotated[float, Field(ge=0, le=3, allow_inf_nan=False)] = 0.0
    """The reuse_threshold of an EasyCache for each sampling whose workflow has none of its own; 0 is none.

    Steps in which the network's output would change by less, by estimate, reuse its last change. Other pictures.
    """
    graphs: bool = True
    """On a GPU, forwards of a shape that was seen twice are recorded as CUDA graphs; false runs each as it is."""
    weights_bytes: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Resident weights a replica keeps before it evicts the least recently used.

    auto is what its share of the card leaves beside its context, a reserve and its forwards; on a CPU half of what its
    process may use. More than the card has room for is an error.
    """
    host_bytes: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Pinned host memory of a replica: for weights evicted from its GPU, and for models that do not fit it.

    The first come back by copies, the second come block by block as the model runs. auto is half of `memory_bytes`, or
    where that is not said of its part of the host, by its share of the host's GPUs. What has no room in it is read from
    its files again: with 0 all that was evicted, and in every forward the blocks that stream. On a CPU there is none.
    """
    results_bytes: Annotated[int, Field(ge=0)] = 1024**3
    """Node results a replica keeps, likewise."""
    max_cells: Annotated[int, Field(ge=1)] = 131072
    """Latent cells in one forward, 64 pixels of an image each: 32 rows of 512×512, or 8 of 1024×1024.

    In half precision a cell takes about 16 KiB while SD 1.5 runs and 10 KiB with SDXL, so this much 2 GiB beside the
    weights; in single precision twice that. A job's evaluation has two rows an image, one without a negative. Where the
    device runs out of memory nevertheless, a replica goes on with less.
    """
    latent_cells: Annotated[int, Field(ge=0)] = 0
    """Cells of the latents that one sampler works on, its whole batch; one decoded or encoded image is held to it too.

    An image has a cell for 8×8 pixels. 0 is 1,048,576 on a GPU, which is 64 images of 1024×1024, and 131,072 on a CPU.
    """
    latent_pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs of cells that attend to each other in those latents: for each image or video the square of its cells.

    0 is 400e9 on a GPU, which is a video of 1280×720 and 165 frames, and 20e9 on a CPU, one of 640×640 and 81 frames.
    """
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory of its own that a replica's process may use before it is ended and replaced; 0 is 80 % of what there is.

    Leave room between this and what the host or container allows: it is looked at a few times a second. In a pool
    without GPU one that is set also makes a single allocation fail that goes far beyond it.
    """
    warm: Annotated[tuple[str, ...], pydantic.AfterValidator(_warmable)] = ()
    """Models that a replica loads as it starts, as checkpoints/sd15.safetensors; see WARM_FORM."""
    hang_s: Annotated[float, Field(gt=0)] = 10.0
    """How long a call may block a replica's event loop before the process is ended and replaced. Calls that block every
    thread, as importing a large extension does, do not count; `silence_s` bounds them.
    """
    node_time_s: Seconds | None = 1800.0
    """How long one call of a node may take that needs no models. Its job then ends in error."""
    runtime_node_time_s: Seconds | None = None
    """How long one call of a node may take that needs models, such as a sampler."""
    forward_time_s: Seconds = 1800.0
    """How long one forward of a model, or loading one, may take before the replica's process is ended and replaced, as
    after a computation that never returns on a broken device.
    """
    cancelled_time_s: Seconds = 60.0
    """How long the engine may compute a cancelled task before its replica hands its tasks back and is replaced. On a
    CPU cancelled work stops between two operations; on a GPU, enqueued work is finished.
    """
    stop_s: Seconds = 10.0
    """How long a node that was cancelled or took too long may go on before its process is ended and replaced."""
    finish_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """How long other tasks may go on in a replica that is ended because of a node beyond stop_s; it takes no more."""
    idle_s: Annotated[float, Field(ge=0)] = 60.0
    """How long a replica beyond min_replicas stays without work."""
    drain_s: Seconds = 30.0
    """Target time for a pool's replicas to drain their queue; more are started for a longer queue. It is estimated from
    measured step times per model; a second each until they are known.
    """

    @pydantic.model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if isinstance(given, dict) and "max_rows" in given:
            raise ValueError("max_rows is max_cells now: latent cells instead of rows; 32 rows of 512×512 are 131072")
        if isinstance(given, dict) and "batching" in given:
            raise ValueError("batching is no key any more; `strict: true` of the whole makes jobs share no forward")
        return given

    @property
    def gpus(self) -> float:
        """GPUs per replica; 0 for auto until `AppConfig.on` has resolved it."""
        return 0.0 if self.num_gpus == "auto" else self.num_gpus

    @property
    def devices(self) -> int:
        """Devices per replica; 1 for auto until `deployments.devices` has resolved it."""
        return 1 if self.devices_per_replica == "auto" else self.devices_per_replica

    @property
    def memory_fraction(self) -> float | None:
        """The share of a card's memory that one replica may take; None for all of it."""
        return self.gpus if 0 < self.gpus < 1 else None

    def latents(self, *, cuda: bool) -> LatentBounds:
        """Return its `latent_cells` and `latent_pairs` on a device."""
        default = LATENTS["cuda" if cuda else "cpu"]
        return LatentBounds(self.latent_cells or default.cells, self.latent_pairs or default.pairs)

    @property
    def optimizations(self) -> dict[str, str | bool | float]:
        """Its settings of OPTIMIZATIONS that are not the default, by key."""
        fields = type(self).model_fields
        return {key: value for key in OPTIMIZATIONS if (value := getattr(self, key)) != fields[key].default}

    @property
    def takes_a_gpu(self) -> bool:
        """Whether its replicas can use a GPU: they have models, and not on the CPU."""
        elsewhere = self.comfyui is not None and self.comfyui.url is not None
        return self.runtime and self.device != "cpu" and not elsewhere

    @property
    def slots(self) -> int:
        """Tasks one replica runs at once; a ComfyUI has one queue."""
        return self.tasks_per_replica if self.comfyui is None else 1

    @pydantic.model_validator(mode="after")
    def _devices_are_whole(self) -> PoolConfig:
        if self.devices_per_replica == 1:
            if self.parallel != "auto":
                raise ValueError(f"pool {self.name}: parallel is for a pool with devices_per_replica of 2 or more")
            if self.shard_weights:
                raise ValueError(f"pool {self.name}: shard_weights is for a pool with devices_per_replica of 2 or more")
            if self.spans_hosts:
                raise ValueError(f"pool {self.name}: spans_hosts is for a pool with devices_per_replica of 2 or more")
            return self
        if not self.runtime or self.comfyui is not None:
            raise ValueError(f"pool {self.name}: devices_per_replica is for a pool whose replicas hold models")
        if not self.num_cpus:
            raise ValueError(f"pool {self.name}: num_cpus is of each of devices_per_replica, and must be above 0")
        if self.gpus not in (0, 1):
            raise ValueError(
                f"pool {self.name}: num_gpus is of each of devices_per_replica {self.devices_per_replica}, so it is 0 "
                f"or 1, not {self.gpus:g}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _optimizes_models(self) -> PoolConfig:
        keys = ", ".join(sorted(self.optimizations.keys() & NOT_STRICT))
        if keys and not self.runtime:
            raise ValueError(f"pool {self.name}: {keys} is for a pool whose replicas hold models")
        if keys and self.comfyui is not None:
            raise ValueError(f"pool {self.name}: {keys} is not for a pool with comfyui; give comfyui.arguments")
        return self

    @pydantic.model_validator(mode="after")
    def _goes_with_comfyui(self) -> PoolConfig:
        if self.comfyui is None:
            if self.warm and not self.runtime:
                raise ValueError(f"pool {self.name}: warm is for a pool whose replicas hold models")
            if self.prefers:
                raise ValueError(f"pool {self.name}: prefers is for a pool with comfyui")
            return self
        if self.warm:
            raise ValueError(f"pool {self.name}: warm is not for a pool with comfyui, which loads its models itself")
        if self.accepts != EVERY_CLASS:
            raise ValueError(f"pool {self.name}: accepts is not for a pool with comfyui, whose classes are its own")
        if self.comfyui.url is not None and self.max_replicas != 1:
            raise ValueError(f"pool {self.name}: a ComfyUI with a url is one replica, not {self.max_replicas}")
        return self
