"""From texts to token ids, a file a tokeniser. Vocabularies come from installed packages or from the user's files.

None is fetched while the server runs: one that is absent is a `ModelFileError` that names what to install.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Tokenize: TypeAlias = Callable[[str], list[int]]
"""From a piece of text to its token ids, without any that start, end or pad a text."""
