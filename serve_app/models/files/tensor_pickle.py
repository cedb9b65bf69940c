"""Reads PyTorch's own file format: pickles, if they contain nothing but tensors.

PyTorch's `weights_only` unpickler runs no code of the file's. Source: torch.load.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.nn import ParameterDict

from serve_app.errors import ModelFileError

# The class in which early textual inversion trainers store vectors; unpickling it only sets its members.
torch.serialization.add_safe_globals([ParameterDict])


def load_tensors(path: Path) -> Any:
    """Return a file's tensors, by name or in lists. Errors: ModelFileError for a file with anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"'{path.name}' holds more than tensors, which could run code; it is not opened"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelFileError(f"'{path.name}' cannot be read: {error}") from error
