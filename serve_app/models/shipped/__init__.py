"""The models that come with the package, in ComfyUI's folder layout: small enough to try everything without a download.

How they were made and what they can do: docs/model-card.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path

SHIPPED = Path(__file__).parent
"""A models directory."""

CHECKPOINT = "tiny.safetensors"


def provide(models: Path) -> list[Path]:
    """Copy into a models directory those files that it lacks, and return them."""
    provided = []
    for file in sorted(SHIPPED.glob("*/*.safetensors")):
        target = models / file.relative_to(SHIPPED)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            provided.append(target)
    return provided
