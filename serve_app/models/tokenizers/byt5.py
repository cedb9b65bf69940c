"""ByT5's tokeniser: the bytes of a text in UTF-8. Source: Xue et al. 2021, arXiv:2105.13626."""

from __future__ import annotations

END, PAD = 1, 0
"""The token after a text, and what fills what is left."""
_SPECIAL = 3
"""How many tokens come before those of bytes."""


def tokenize(text: str) -> list[int]:
    """Return a text's tokens."""
    return [byte + _SPECIAL for byte in text.encode()]
