"""`comfy.model_base`, `comfy.model_sampling` and `comfy.latent_formats` for node packs: descriptions of a network.

Nothing here holds weights: a model is described by its family, its noise levels and its latents. Source: the facts of
ComfyUI 0.33's modules of these names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from math import inf
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nested_tensor import Samples
from serve_app.packs.comfy.model_management import get_torch_device
from serve_app.packs.missing import MissingMemberError
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import ContinuousEdm, ContinuousV, Discrete, Flow, FluxFlow, Training
from serve_app.sampling.denoiser import trained
from serve_app.sampling.guidance.guidance_patches import Branches
from serve_app.sampling.latents import latent_formats
from serve_app.sampling.latents.latents import LatentFormat as Latents
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.schedules.levels import Interpolation, Levels

ABOVE_ALL = 999999999.9
"""What stands for a level above all others."""


class ModelType(Enum):
    """A network's prediction type."""

    EPS = 1
    V_PREDICTION = 2
    V_PREDICTION_EDM = 3
    STABLE_CASCADE = 4
    EDM = 5
    FLOW = 6
    V_PREDICTION_CONTINUOUS = 7
    FLUX = 8
    IMG_TO_IMG = 9
    FLOW_COSMOS = 10
    IMG_TO_IMG_FLOW = 11
    V_PREDICTION_DDPM = 12


class ModelSampling:
    """A model's noise levels, in ComfyUI's interface."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels

    @property
    def sigmas(self) -> Tensor:
        return self.levels.sigmas

    @property
    def log_sigmas(self) -> Tensor:
        return self.levels.sigmas.log()

    @property
    def sigma_min(self) -> Tensor:
        return torch.tensor(self.levels.sigma_min)

    @property
    def sigma_max(self) -> Tensor:
        return torch.tensor(self.levels.sigma_max)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the network's timestep for each sigma."""
        return self.levels.timestep(sigma)

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the sigma of a timestep."""
        return self.levels.sigma(timestep)

    def percent_to_sigma(self, percent: float) -> float:
        """Return the level at a share of the sampling."""
        level = self.levels.at_progress(percent)
        return ABOVE_ALL if level == inf else level

    def noise_scaling(self, sigma: Any, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        """Return latents with noise at a level."""
        level = float(torch.as_tensor(sigma).flatten()[0])
        made = self.levels.start if max_denoise else self.levels.noised
        return value(made(latent_image, noise, level))

    def inverse_noise_scaling(self, sigma: Any, latent: Tensor) -> Tensor:
        """Return the final sample as latents."""
        return self.levels.unnoised(latent, float(torch.as_tensor(sigma).flatten()[0]))


class LatentFormat:
    """The scaling of a model's latents, in ComfyUI's interface."""

    def __init__(self, latents: Latents) -> None:
        self._latents = latents
        self.latent_channels = latents.channels
        self.latent_dimensions = 3 if latents.frames else 2
        self.spacial_downscale_ratio = latents.factor
        self.scale_factor, self.shift_factor = latents.scale, latents.shift
        self.latent_rgb_factors = None if latents.preview is None else [list(row) for row in latents.preview.rows]
        self.latent_rgb_factors_bias = None if latents.preview is None else list(latents.preview.offset)
        end = "" if latents.frames else "_decoder"
        self.taesd_decoder_name = f"{latents.tiny}{end}" if latents.tiny else None

    def process_in(self, latent: Tensor) -> Tensor:
        """Return an autoencoder's latents as the model samples them."""
        return self._latents.to_model(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        """Return sampled latents as the autoencoder has them."""
        return self._latents.from_model(latent)

    def accept(self, latent: Samples, factor: int | None = None) -> Samples:
        """Return latents with the model's channels where they are empty."""
        return self._latents.accept(latent, factor)


_PLAYGROUND_MEAN = (-1.6574, 1.886, -1.383, 2.5155)
_PLAYGROUND_SPREAD = (8.4927, 5.9022, 6.5498, 5.2299)
"""Source: the configuration of Playground 2.5's VAE; its latents are then halved."""

FORMATS: Mapping[str, Latents] = {
    "SD15": latent_formats.SD,
    "SDXL": latent_formats.SDXL,
    "SDXL_Playground_2_5": Latents(
        channels=4, scale=tuple(0.5 / spread for spread in _PLAYGROUND_SPREAD), shift=_PLAYGROUND_MEAN, tiny="taesdxl"
    ),
    "SD_X4": Latents(channels=4, scale=0.08333),
    "SC_Prior": Latents(channels=16, factor=42),
    "SC_B": Latents(channels=4, factor=4, scale=1 / 0.43),
    "SD3": latent_formats.SD3,
    "Flux": latent_formats.FLUX,
    "Flux2": latent_formats.FLUX2,
    "Wan21": latent_formats.WAN,
    "Wan22": latent_formats.WAN_22,
}
"""ComfyUI's classes of latent formats that packs make without a model."""


def _format_class(name: str, latents: Latents) -> type[LatentFormat]:
    def begin(self: LatentFormat) -> None:
        LatentFormat.__init__(self, latents)

    return type(name, (LatentFormat,), {"__init__": begin})


LATENT_FORMATS: Mapping[str, type[LatentFormat]] = {
    "LatentFormat": LatentFormat,
    **{name: _format_class(name, latents) for name, latents in FORMATS.items()},
}


def latent_format(latents: Latents) -> LatentFormat:
    """Return a model's latents, of ComfyUI's class where there is one."""
    known = next((name for name, of in FORMATS.items() if of == latents), None)
    return LatentFormat(latents) if known is None else LATENT_FORMATS[known]()  # type: ignore[call-arg]


SUPPORTED: Mapping[str, str] = {
    "SD15": "Stable Diffusion 1.x and 2.x",
    "SD20": "",
    "SDXL": "SDXL",
    "SDXLRefiner": "SDXL's refiner",
    "SD3": "Stable Diffusion 3",
    "Flux": "Flux.1",
    "FluxSchnell": "",
    "Flux2": "Flux.2",
    "Chroma": "Chroma",
    "Lumina2": "Lumina 2",
    "QwenImage": "Qwen-Image",
    "AuraFlow": "",
    "HiDream": "",
    "HunyuanVideo": "",
    "LTXV": "",
    "WAN21_T2V": "",
    "WAN21_I2V": "",
    "CosmosT2V": "",
    "CosmosI2V": "",
    "GenmoMochi": "",
    "HunyuanDiT": "",
    "HunyuanDiT1": "",
    "SVD_img2vid": "",
    "PixArtAlpha": "",
    "PixArtSigma": "",
    "HunyuanVideoI2V": "",
    "Cosmos": "",
    "SD21UnclipL": "",
    "SD21UnclipH": "",
    "SSD1B": "",
    "Segmind_Vega": "",
    "KOALA_700M": "",
    "KOALA_1B": "",
    "SDXL_instructpix2pix": "",
    "Stable_Zero123": "",
    "SD15_instructpix2pix": "",
    "LotusD": "",
    "StableAudio": "",
    "ACEStep": "",
    "Omnigen2": "",
    "HunyuanImage21": "",
    "Hunyuan3Dv2": "",
    "ZImage": "Z-Image",
    "Stable_Cascade_C": "",
    "Stable_Cascade_B": "",
}
"""ComfyUI's classes of `model_config`, and the title of the family that has it; none for those that are not here."""


class ModelConfig:
    """What a model is, without weights: `model_config`."""

    sampling_settings: Mapping[str, Any] = {}
    unet_extra_config: Mapping[str, Any] = {}

    def __init__(self, unet_config: Any = None, latent_format: Any = None) -> None:
        self.unet_config = {} if unet_config is None else unet_config
        if latent_format is not None:
            self.latent_format = latent_format


CONFIGS: Mapping[str, type[ModelConfig]] = {name: type(name, (ModelConfig,), {}) for name in SUPPORTED}


class BaseModel:
    """The model object for packs: `ModelPatcher.model`, and the model argument of their functions.

    branches: of the run, if any. recipe: its recipe, if it comes from a ModelPatcher.
    """

    recipe: Recipe | None = None

    def __init__(
        self, family: Any, levels: Callable[[], Levels], latents: Latents, branches: Branches | None = None
    ) -> None:
        self.branches = branches
        self.latent_format = latent_format(latents)
        self.device = get_torch_device()
        self._levels = levels
        width, vector = getattr(family, "context_dim", None), getattr(family, "vector_dim", 0)
        known = {"context_dim": width, "adm_in_channels": vector or None, "in_channels": latents.channels}
        config = {name: value for name, value in known.items() if value is not None}
        title = getattr(family, "title", None)
        kind = next((CONFIGS[name] for name, of in SUPPORTED.items() if of and of == title), ModelConfig)
        self.model_config = kind(config, self.latent_format)
        self.adm_channels = vector

    @property
    def model_sampling(self) -> ModelSampling:
        return ModelSampling(self._levels())

    @property
    def model_type(self) -> ModelType:
        """The model's prediction type, derived from its process only."""
        return ModelType.FLOW if isinstance(self._levels(), Interpolation) else ModelType.EPS

    @property
    def inner_model(self) -> BaseModel:
        """The model itself: samplers are given it wrapped."""
        return self

    def process_latent_in(self, latent: Tensor) -> Tensor:
        """Return an autoencoder's latents as the model samples them."""
        return self.latent_format.process_in(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        """Return sampled latents as the autoencoder has them."""
        return self.latent_format.process_out(latent)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.model_base.BaseModel.{name}")


KINDS: Mapping[str, str] = {
    "SDXL": "SDXL",
    "SDXLRefiner": "SDXL's refiner",
    "SDXL_instructpix2pix": "",
    "SD3": "Stable Diffusion 3",
    "Flux": "Flux.1",
    "Flux2": "Flux.2",
    "Chroma": "Chroma",
    "Lumina2": "Lumina 2",
    "QwenImage": "Qwen-Image",
    "HunyuanVideo": "",
    "WAN21": "",
    "LTXV": "",
    "Cosmos": "",
    "CosmosVideo": "",
    "PixArt": "",
    "AuraFlow": "",
    "HunyuanDiT": "",
    "GenmoMochi": "",
    "StableCascade_B": "",
    "StableCascade_C": "",
    "SD21UNCLIP": "",
    "SVD_img2vid": "",
    "Stable_Zero123": "",
}
"""ComfyUI's classes of models, and the title of the family that is one; none for those that are not here."""

CLASSES: Mapping[str, type[BaseModel]] = {name: type(name, (BaseModel,), {}) for name in KINDS}


def class_of(family: Any) -> type[BaseModel]:
    """Return ComfyUI's class for a family's network."""
    title = getattr(family, "title", None)
    return next((CLASSES[name] for name, of in KINDS.items() if of and of == title), BaseModel)


class EPS:
    """Of a class that describes training: the network predicts noise."""

    prediction = "eps"


class V_PREDICTION(EPS):
    """The network predicts v."""

    prediction = "v_prediction"


class X0(EPS):
    """The network predicts the image."""

    prediction = "x0"


class EDM(V_PREDICTION):
    """The network predicts what is missing of the image."""

    prediction = "edm"


class CONST:
    """The network predicts a flow's velocity."""

    prediction = "flow"


class _Described(ModelSampling):
    """Training described by hand: a class of this and of a prediction makes one, and `set_parameters` its numbers."""

    NUMBERS: tuple[str, ...] = ("shift", "multiplier")
    training: Training

    def __init__(self, model_config: Any = None, **options: Any) -> None:
        self.training = self._described(options)

    def _described(self, given: Mapping[str, Any]) -> Training:
        raise NotImplementedError

    @property
    def levels(self) -> Levels:  # type: ignore[override]
        return trained(self.training)[0]

    def set_parameters(self, *numbers: Any, **given: Any) -> None:
        """Set the numbers of the training, by name, or in the order of NUMBERS."""
        self.training = self._described({**dict(zip(self.NUMBERS, numbers, strict=False)), **given})


class ModelSamplingDiscrete(_Described):
    """A table of noise levels."""

    def __init__(self, model_config: Any = None, zsnr: bool | None = None) -> None:
        super().__init__(model_config, zsnr=bool(zsnr))

    def _described(self, given: Mapping[str, Any]) -> Training:
        return Discrete(getattr(self, "prediction", "eps"), zsnr=bool(given.get("zsnr", False)))

    def set_sigmas(self, sigmas: Tensor) -> None:
        """Errors: NodeError. A table is that of a kind of training."""
        raise NodeError("ModelSamplingDiscrete.set_sigmas of ComfyUI is not here: levels are those of a training")


class ModelSamplingDiscreteFlow(_Described):
    """A flow's levels, shifted."""

    def _described(self, given: Mapping[str, Any]) -> Training:
        return Flow(float(given.get("shift", 1.0)), float(given.get("multiplier", 1000)))


class ModelSamplingFlux(_Described):
    """A flow's levels, shifted by e^shift."""

    def _described(self, given: Mapping[str, Any]) -> Training:
        return FluxFlow(float(given.get("shift", 1.15)))


class ModelSamplingContinuousEDM(_Described):
    """Every level between two."""

    NUMBERS = ("sigma_min", "sigma_max")

    def _described(self, given: Mapping[str, Any]) -> Training:
        high, low = float(given.get("sigma_max", 120.0)), float(given.get("sigma_min", 0.002))
        return ContinuousEdm(getattr(self, "prediction", "v_prediction"), high, low)


class ModelSamplingContinuousV(_Described):
    """Every level between two, as an angle."""

    NUMBERS = ("sigma_min", "sigma_max")

    def _described(self, given: Mapping[str, Any]) -> Training:
        return ContinuousV(float(given.get("sigma_max", 500.0)), float(given.get("sigma_min", 0.03)))


class StableCascadeSampling(_Described):
    """Errors: MissingMemberError as it is made: Stable Cascade is not here."""

    def _described(self, given: Mapping[str, Any]) -> Training:
        raise MissingMemberError("comfy.model_sampling.StableCascadeSampling")


def time_snr_shift(alpha: float, t: Any) -> Any:
    """Return times moved towards noise."""
    return t if alpha == 1.0 else alpha * t / (1 + (alpha - 1) * t)


def flux_time_shift(mu: float, sigma: float, t: Any) -> Any:
    """Return times moved towards noise, by e^mu."""
    factor = torch.exp(torch.tensor(mu))
    return factor / (factor + (1 / t - 1) ** sigma)


MODEL_SAMPLING: Mapping[str, Any] = {
    "EPS": EPS,
    "V_PREDICTION": V_PREDICTION,
    "X0": X0,
    "EDM": EDM,
    "ModelSamplingContinuousEDM": ModelSamplingContinuousEDM,
    "ModelSamplingContinuousV": ModelSamplingContinuousV,
    "StableCascadeSampling": StableCascadeSampling,
    "CONST": CONST,
    "ModelSamplingDiscrete": ModelSamplingDiscrete,
    "ModelSamplingDiscreteFlow": ModelSamplingDiscreteFlow,
    "ModelSamplingFlux": ModelSamplingFlux,
    "time_snr_shift": time_snr_shift,
    "flux_time_shift": flux_time_shift,
}
