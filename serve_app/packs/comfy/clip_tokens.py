"""Tokens for packs: the result of `CLIP.tokenize`, and encoders that take a pack's own tokens.

Source: the facts of ComfyUI 0.33's `sd1_clip.py` and `sdxl_clip.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from torch import Tensor

from serve_app.errors import NodeError
from serve_app.packs.missing import MissingNameError
from serve_app.values import Text, Texts, TokenizedText

Sections: TypeAlias = list[list[tuple[Any, ...]]]
"""Chunks of (token, weight), or (token, weight, number of its run)."""


class Tokens:
    """One encoder's tokens of a text, computed when they are first read.

    look: returns them; None for encoders whose tokens cannot be read.
    """

    def __init__(self, text: str, look: Callable[[], Sections | None]) -> None:
        self.text = text
        self._look = look

    def sections(self) -> Sections:
        """Return the tokens. Errors: MissingNameError if they cannot be read."""
        found = self._look()
        if found is None:
            raise MissingNameError("comfy.sd.CLIP.tokenize()[…][…]")
        return found

    def __len__(self) -> int:
        found = self._look()
        return 1 if found is None else len(found)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.sections())

    def __getitem__(self, index: Any) -> Any:
        return self.sections()[index]

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise MissingNameError("comfy.sd.CLIP.tokenize()[…].__setitem__")

    def __add__(self, other: Any) -> Any:
        """Return both as a list; for encoders whose tokens cannot be read, this text if the other is empty.

        An empty text is padding, which the encoder adds itself.
        """
        if self._look() is not None:
            return [*self, *other]
        if not isinstance(other, Tokens) or other.text:
            raise MissingNameError("comfy.sd.CLIP.tokenize()[…].__add__")
        return self


def text_of(tokens: Mapping[str, Any]) -> Text:
    """Return the text that tokens encode. Errors: NodeError for tokens that are no chunks."""
    if all(isinstance(section, Tokens) for section in tokens.values()):
        texts = {key: section.text for key, section in tokens.items()}
        if len(set(texts.values())) == 1:
            same: str = next(iter(texts.values()))
            return same
        try:
            return Texts(**texts)
        except TypeError:
            raise NodeError(f"texts for the encoders {', '.join(texts)} cannot differ") from None
    return TokenizedText({key: [_pairs(section) for section in of_key] for key, of_key in tokens.items()})


def _pairs(section: Any) -> list[tuple[Any, float]]:
    try:
        return [(token if isinstance(token, Tensor) else int(token), float(weight)) for token, weight, *_ in section]
    except (TypeError, ValueError) as error:
        raise NodeError(f"tokens are lists of (token, weight), cut into chunks; these are not: {error}") from error


class ClipModel:
    """The encoders of a CLIP, each under its name, `clip_l`, as packs give them tokens."""

    def __init__(self, keys: Sequence[str], encode: Callable[[Text], tuple[Tensor, Any]]) -> None:
        self._encode = encode
        for key in keys:
            setattr(self, f"clip_{key}", OneEncoder(key, encode))

    def reset_clip_options(self) -> None:
        """Do nothing: the CLIP has the hidden layer to stop at."""

    def set_clip_options(self, options: Any) -> None:
        """Do nothing: the runtime has the devices, and the CLIP the hidden layer to stop at."""

    def encode_token_weights(self, token_weight_pairs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return (cond, pooled) of tokens by encoder."""
        return self._encode(text_of(token_weight_pairs))


class OneEncoder:
    """One of a CLIP's encoders."""

    def __init__(self, key: str, encode: Callable[[Text], tuple[Tensor, Any]]) -> None:
        self._key = key
        self._encode = encode

    def encode_token_weights(self, token_weight_pairs: Sequence[Any]) -> tuple[Tensor, Any]:
        """Return (cond, pooled) of chunks of tokens."""
        return self._encode(TokenizedText({self._key: [_pairs(section) for section in token_weight_pairs]}))


class SD1ClipModel(ClipModel):
    """Of an SD 1.x, or of one encoder alone."""


class SD2ClipModel(SD1ClipModel):
    """Of an SD 2.x."""


class SDXLClipModel(ClipModel):
    """Of an SDXL."""


class SDXLRefinerClipModel(SD1ClipModel):
    """Of SDXL's refiner."""


class SDXLClipG(OneEncoder):
    """SDXL's larger encoder. None is one: those of an SDXL or a refiner are members of theirs."""


def model_of(keys: Sequence[str], encode: Callable[[Text], tuple[Tensor, Any]]) -> ClipModel:
    """Return the encoders of a CLIP, of the class that packs ask for."""
    kinds = {("g", "l"): SDXLClipModel, ("g",): SDXLRefinerClipModel, ("h",): SD2ClipModel}
    return kinds.get(tuple(sorted(keys)), SD1ClipModel)(keys, encode)


SDXL_CLIP: Mapping[str, Any] = {kind.__name__: kind for kind in (SDXLClipModel, SDXLRefinerClipModel, SDXLClipG)}
"""What `comfy.sdxl_clip` has."""
SD1_CLIP: Mapping[str, Any] = {"SD1ClipModel": SD1ClipModel}
"""What `comfy.sd1_clip` has."""
