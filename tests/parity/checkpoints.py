"""The deterministic model files the parity figures were made with, written once a machine and kept in its cache."""

import hashlib
import os
from pathlib import Path

from safetensors.torch import save_file

from tests.parity import make_checkpoint

_FOLDERS = {"lora": "loras", "controlnet": "controlnet"}


def models_dir(*names: str) -> Path:
    """Return a models directory that holds these files ("mini15", "sd15", "lora", …), writing what is missing."""
    # A change of the recipe is another directory, so a stale file is never taken for a new one.
    source = Path(make_checkpoint.__file__)
    digest = hashlib.sha256(source.read_bytes() + source.with_name("checkpoint_keys.json").read_bytes()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    models = cache / "serve_app" / "tests" / digest[:12]
    for name in names:
        path = models / _FOLDERS.get(name, "checkpoints") / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")
            save_file(make_checkpoint.MAKERS[name](), unfinished)
            unfinished.replace(path)
    return models
