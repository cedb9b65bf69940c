"""Files of PyTorch's own format: pickles, of which those that hold nothing but tensors are read.

PyTorch's `weights_only` unpickler runs no code of the file's. Source: torch.load.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.nn import ParameterDict

from serve_app.errors import ModelFileError

# How textual inversions of the first trainers hold their vectors; setting its members is all that reading it does.
torch.serialization.add_safe_globals([ParameterDict])


def load_tensors(path: Path) -> Any:
    """Return what a file holds: tensors, by name or in lists. Errors: ModelFileError for one with anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"'{path.name}' holds more than tensors, which could run code; it is not opened"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelFileError(f"'{path.name}' cannot be read: {error}") from error
