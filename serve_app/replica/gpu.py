"""Finds a pool's GPU as its replica starts, and refuses a torch, driver or card that cannot run its models."""

from __future__ import annotations

import warnings
from importlib.metadata import requires

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from serve_app.errors import ConfigError
from serve_app.replica.host import driver_version


def gpu_of(pool: str) -> torch.device:
    """Return the GPU of this process, with its index, after a first kernel has run on it.

    Errors: ConfigError, which names the pool, if torch is too old, finds no GPU, or cannot use it.
    """
    _check_torch(pool)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    if not found:
        raise ConfigError(
            f"pool {pool}: torch {torch.__version__} finds no GPU here: {_reason([str(one.message) for one in said])}; "
            "`num_gpus: auto` takes one where there is one, and `device: cpu` computes on the CPU"
        )
    try:
        # Torch's own functions differ in whether they take a device without an index.
        device = torch.device("cuda", torch.cuda.current_device())
        torch.ones(1, device=device).sum().item()
    except Exception as error:
        # Also for the errors of torch's first use of CUDA, which have no class in common.
        raise ConfigError(
            f"pool {pool}: the GPU cannot be used (torch {torch.__version__}, driver {driver_version()}): "
            f"{str(error).partition(chr(10))[0]}"
        ) from None
    return device


def _check_torch(pool: str) -> None:
    """Errors: ConfigError if the installed torch is not one that this package requires."""
    # A vendor's build may be a pre-release, as 2.12.0a0 is.
    if not (required := required_torch()).contains(torch.__version__, prereleases=True):
        raise ConfigError(f"pool {pool}: torch {torch.__version__} is installed, and models on a GPU need {required}")


def required_torch() -> SpecifierSet:
    """Return which versions of torch this package requires, as pyproject.toml says."""
    requirements = {one.name: one.specifier for one in map(Requirement, requires("serve_app") or ())}
    return requirements["torch"]


def _reason(warned: list[str]) -> str:
    """Return why torch finds no GPU. warned: by torch, as it looked for one."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return "it was built without CUDA"
    said = next((text for text in warned if "CUDA" in text), "the process sees none")
    return f"{said.partition('. ')[0]} (driver {driver_version()})"
