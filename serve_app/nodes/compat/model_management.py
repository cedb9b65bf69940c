"""`comfy.model_management` for node packs: devices, memory, interruption. Models themselves stay with the runtime.

Source: the facts of ComfyUI 0.3.64's module of this name.
"""

from __future__ import annotations

from typing import Any, NoReturn

import psutil
import torch

from serve_app.errors import CancelledJobError, NodeError
from serve_app.nodes.executing import executing

OOM_EXCEPTION = torch.cuda.OutOfMemoryError


class InterruptProcessingException(CancelledJobError):
    """The job that the node runs for has been cancelled."""


def processing_interrupted() -> bool:
    """Whether nobody waits for the running node any more."""
    call = executing()
    return call is not None and call.stopped.is_set()


def throw_exception_if_processing_interrupted() -> None:
    """Errors: InterruptProcessingException once nobody waits for the running node."""
    if processing_interrupted():
        raise InterruptProcessingException("the job was cancelled")


def get_torch_device() -> torch.device:
    """Return the device for tensor work of nodes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


is_intel_xpu = is_directml_enabled = is_ascend_npu = is_mlu = xformers_enabled


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


def load_models_gpu(models: Any, *arguments: Any, **options: Any) -> NoReturn:
    """Errors: NodeError. A MODEL on a link is a recipe, and no object that a pack could load."""
    raise NodeError(
        "this node loads a model by hand, but a MODEL, CLIP or VAE here is a recipe that only the server's own nodes "
        "turn into weights; see docs/plugins.md"
    )


load_model_gpu = load_models_gpu
