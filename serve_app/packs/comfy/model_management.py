"""`comfy.model_management` for node packs: devices, memory, interruption. Models themselves stay with the runtime.

Source: the facts of ComfyUI 0.3.64's module of this name.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import psutil
import torch

from serve_app.errors import CancelledJobError
from serve_app.execution.executing import executing

OOM_EXCEPTION = torch.cuda.OutOfMemoryError


class InterruptProcessingException(CancelledJobError):
    """The job that the node runs for has been cancelled."""


def processing_interrupted() -> bool:
    """Whether the running node is cancelled."""
    call = executing()
    return call is not None and call.stopped.is_set()


def throw_exception_if_processing_interrupted() -> None:
    """Errors: InterruptProcessingException once the running node is cancelled."""
    if processing_interrupted():
        raise InterruptProcessingException("the job was cancelled")


def get_torch_device() -> torch.device:
    """Return the device for tensor work of nodes, a GPU with its index."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def intermediate_device() -> torch.device:
    """Return the device that values on links live on."""
    return torch.device("cpu")


unet_offload_device = vae_offload_device = text_encoder_offload_device = intermediate_device
vae_device = text_encoder_device = get_torch_device


def is_device_cpu(device: Any) -> bool:
    """Whether a device is the CPU."""
    return torch.device(device).type == "cpu"


def is_device_mps(device: Any) -> bool:
    """Whether a device is one of Apple's."""
    return torch.device(device).type == "mps"


def get_torch_device_name(device: Any) -> str:
    """Return a device's name as logs show it."""
    found = torch.device(device)
    return f"{found} {torch.cuda.get_device_name(found)}" if found.type == "cuda" else found.type


def get_autocast_device(dev: Any) -> str:
    """Return the kind of a device, as torch.autocast takes it."""
    return torch.device(dev).type


def intermediate_dtype() -> torch.dtype:
    """Return the dtype of values on links."""
    return torch.float32


def xformers_enabled() -> bool:
    """Whether attention is xFormers': never."""
    return False


def pytorch_attention_enabled() -> bool:
    """Whether attention is PyTorch's own: always."""
    return True


is_intel_xpu = is_directml_enabled = is_ascend_npu = is_mlu = is_ixuca = xformers_enabled
sage_attention_enabled = flash_attention_enabled = xformers_enabled


def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
    """Return the free bytes of a device, the default one for None; twice with `torch_free_too`."""
    device = get_torch_device() if dev is None else torch.device(dev)
    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    return (free, free) if torch_free_too else free


def get_total_memory(dev: Any = None, torch_total_too: bool = False) -> Any:
    """Return the bytes of a device, the default one for None; twice with `torch_total_too`."""
    device = get_torch_device() if dev is None else torch.device(dev)
    total = psutil.virtual_memory().total if device.type == "cpu" else torch.cuda.mem_get_info(device)[1]
    return (total, total) if torch_total_too else total


def soft_empty_cache(force: bool = False) -> None:
    """Give memory that no tensor uses back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unload_all_models() -> None:
    """Do nothing: weights are the runtime's, which lets the least recently used go."""


def load_models_gpu(models: Any, *arguments: Any, **options: Any) -> None:
    """Move networks of a pack's own to where they belong; the server's own weights are the runtime's to load."""
    for model in models:
        own = None if getattr(model, "recipe", None) is not None else getattr(model, "model", None)
        if isinstance(own, torch.nn.Module):
            own.to(model.load_device)


def load_model_gpu(model: Any) -> None:
    """Move one there, as `load_models_gpu`."""
    load_models_gpu([model])


def free_memory(memory_required: int, device: Any = None, keep_loaded: Any = (), **options: Any) -> list[Any]:
    """Do nothing: weights are the runtime's, which lets the least recently used go."""
    return []


def cleanup_models(*arguments: Any, **options: Any) -> None:
    """Do nothing, likewise."""


def loaded_models(only_currently_used: bool = False) -> list[Any]:
    """Return nothing: what is loaded is the runtime's affair."""
    return []


current_loaded_models: list[Any] = []


def should_use_fp16(device: Any = None, *arguments: Any, **options: Any) -> bool:
    """Whether half precision is fast on a device: on a GPU."""
    return torch.device(get_torch_device() if device is None else device).type == "cuda"


def should_use_bf16(device: Any = None, *arguments: Any, **options: Any) -> bool:
    """Whether bfloat16 is: on a GPU that has it."""
    return should_use_fp16(device) and torch.cuda.is_bf16_supported(including_emulation=False)


def unet_dtype(*arguments: Any, **options: Any) -> torch.dtype:
    """Return the dtype for a network of a pack's own."""
    return torch.float16 if should_use_fp16() else torch.float32


def unet_manual_cast(*arguments: Any, **options: Any) -> None:
    """Return no other dtype to work in than weights have."""


def vae_dtype(*arguments: Any, **options: Any) -> torch.dtype:
    """Return the dtype for an autoencoder of a pack's own."""
    return torch.bfloat16 if should_use_bf16() else torch.float32


def text_encoder_dtype(device: Any = None) -> torch.dtype:
    """Return the dtype for a text encoder of a pack's own."""
    return unet_dtype()


unet_inital_load_device = unet_initial_load_device = lambda *arguments: torch.device("cpu")


def cast_to(
    weight: torch.Tensor, dtype: Any = None, device: Any = None, non_blocking: bool = False, copy: bool = False
) -> torch.Tensor:
    """Return a tensor in a dtype on a device."""
    return weight.to(device=device, dtype=dtype, non_blocking=non_blocking, copy=copy)


def cast_to_device(tensor: torch.Tensor, device: Any, dtype: Any, copy: bool = False) -> torch.Tensor:
    """Return a tensor on a device in a dtype."""
    return cast_to(tensor, dtype, device, copy=copy)


def device_supports_non_blocking(device: Any) -> bool:
    """Whether copies to a device may go on while others are waited for."""
    return torch.device(device).type == "cuda"


def module_size(module: torch.nn.Module) -> int:
    """Return the bytes of a network's weights."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def dtype_size(dtype: torch.dtype) -> int:
    """Return the bytes of a number."""
    return dtype.itemsize


def raise_non_oom(error: BaseException) -> None:
    """Errors: the error itself, unless it says that the device is out of memory."""
    if not isinstance(error, OOM_EXCEPTION):
        raise error


class VRAMState(Enum):
    """How the memory of a GPU is used: as the runtime sees fit."""

    DISABLED = 0
    NO_VRAM = 1
    LOW_VRAM = 2
    NORMAL_VRAM = 3
    HIGH_VRAM = 4
    SHARED = 5


class CPUState(Enum):
    """What there is to compute on."""

    GPU = 0
    CPU = 1
    MPS = 2


vram_state = VRAMState.NORMAL_VRAM
cpu_state = CPUState.GPU if torch.cuda.is_available() else CPUState.CPU
XFORMERS_IS_AVAILABLE = False
