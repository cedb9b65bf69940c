"""Lists which text encoders' vocabularies this installation has, and how the others are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from serve_app.models.tokenizers import llama, llama2, qwen, qwen35, t5
from serve_app.models.tokenizers.vocabularies import UserFile

_FILES: Mapping[str, tuple[Callable[[UserFile], Path | None], str]] = {
    "T5-XXL": (t5.vocabulary, t5.INSTALL),
    "Qwen": (qwen.vocabulary, qwen.INSTALL),
    "Qwen3.5": (qwen35.vocabulary, qwen.INSTALL),
    "Llama 3.1": (llama.vocabulary, llama.INSTALL),
    "Llama 2": (llama2.vocabulary, llama2.INSTALL),
}
"""Those that model files do not contain: how each is looked up, and the command that installs it."""


def installed(user_file: UserFile) -> Iterator[tuple[str, str]]:
    """Yield (text encoder, the command that installs its vocabulary), with "" for a vocabulary that is there."""
    yield "CLIP", ""
    for name, (look_up, install) in _FILES.items():
        yield name, "" if look_up(user_file) is not None else install
    # Their vocabularies are in the model files, in a form that takes this package to read.
    yield "UMT5-XXL and Gemma 2", "" if find_spec("sentencepiece") is not None else qwen.INSTALL
