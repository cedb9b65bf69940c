"""The interface of families of text encoders, and of the encoders that they make.

A text encoder is a family like any other; several used side by side are one too (`TextEnsemble`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families.family import Family, Located
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, IllustratedText, InterleavedText, SongText, Text, TokenizedText

Vectors: TypeAlias = Callable[[str, int, str], "Tensor | None"]
"""From an embedding's name, an encoder's width D and its key to vectors (N,D), or None if none fits."""


class TextResources(Protocol):
    """Textual inversion embeddings and tokeniser vocabularies, which text encoders need beyond their weights."""

    def vectors(self, name: str, width: int, key: str) -> Tensor | None:
        """Return an embedding's vectors, as `Vectors`."""
        ...

    def vocabulary(self, name: str) -> Path | None:
        """Return the path of a tokeniser file, or None if it is missing."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A text encoder on its device."""

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward. The conds and pooled outputs are float32 on its device.

        stop_at: the layer whose output is taken, counted from the end; None: the default. padding: of T5's texts; None:
        the default. Errors: NodeError for texts or images that it cannot read.
        """
        ...


@runtime_checkable
class TokenEncoder(Encoder, Protocol):
    """A text encoder whose token sequence callers may inspect and replace."""

    def tokens(self, text: str) -> Mapping[str, list[list[tuple[Any, float, int]]]]:
        """Return a text's chunks by encoder: tokens or vectors, with weights and word numbers, 0 for padding."""
        ...


def own_text(text: Text, key: str) -> str:
    """Return the text for the encoder with a key in `Texts`. Errors: NodeError if there is none.

    Images beside it are left out, as in ComfyUI, because the encoder cannot see them.
    """
    match text:
        case str():
            return text
        case IllustratedText():
            return text.text
        case InterleavedText():
            raise NodeError(f"the text encoder '{key}' reads no texts with images among them; MiniMax H3's does")
        case SongText():
            raise NodeError(f"the text encoder '{key}' reads no songs; load ACE-Step's with the type 'ace'")
        case TokenizedText():
            raise NodeError(f"the text encoder '{key}' reads texts, not tokens that a node pack gives it")
    own: str | None = getattr(text, key, None)
    if own is None:
        raise NodeError(f"none of the texts is for the text encoder '{key}'")
    return own


class TextFamily(Family):
    """A family of text encoders, or of encoders used side by side. name: its name in errors.

    types: the loader types that are its own, of one in TEXT_READERS.
    """

    name: ClassVar[str]
    types: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        """Its name in errors."""
        return self.name

    @property
    @abstractmethod
    def key(self) -> str:
        """ComfyUI's name of the encoder in tensor and file names: "clip_l", "t5xxl" and so on."""

    def published(self, prefix: str) -> Table:
        """Return the mapping of a file's tensors into a network that has them under a prefix."""
        return self.table()

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> Mapping[str, str]:
        """Return layers' names in LoRA files, as `Family`. alone: it is the first encoder."""
        return {}

    @classmethod
    def replaces(cls, found: TextFamily, loaded_as: str) -> bool:
        """Whether one in TEXT_READERS is what an encoder found in files is, loaded as this type."""
        return loaded_as in cls.types

    def as_type(self, loaded_as: str) -> TextFamily:
        """Return this encoder as a loader's type configures it, "" for none; the same for all types by default."""
        return self

    @abstractmethod
    def encoder(self, network: Any, lexicon: TextResources) -> Encoder:
        """Return the encoder of a loaded network. Errors: ModelFileError if its tokeniser file is missing."""


class TextEnsemble(TextFamily):
    """Several text encoders as submodules of one network, one dataclass field for each.

    takes: their titles by field name. name: of the backbone that uses them. types: the loader types that make it.
    partial: a loader type may name only some of them; the other fields are None.
    """

    takes: ClassVar[Mapping[str, str]]
    types: ClassVar[tuple[str, ...]]
    partial: ClassVar[bool] = False

    @classmethod
    def fits(cls, titles: Sequence[str], loaded_as: str) -> bool:
        """Whether encoders of these titles make up the ensemble, or a sufficient part of it."""
        if len(set(titles)) != len(titles) or (loaded_as and loaded_as not in cls.types):
            return False
        return set(titles) <= cls.takes.keys() if cls.partial and loaded_as else set(titles) == cls.takes.keys()

    @property
    def key(self) -> str:
        return "".join(member.key for member in self.members.values())

    @property
    def members(self) -> Mapping[str, TextFamily]:
        """The encoders that are present, by submodule name."""
        named = ((name, getattr(self, name)) for name in self.takes.values())
        return {name: family for name, family in named if family is not None}

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        """Yield nothing: the encoders are found one by one and then combined."""
        return iter(())

    def table(self, tensors: Tensors | None = None) -> Table:
        """Return nothing: each encoder has a table of its own."""
        return {}

    def build(self) -> nn.Module:
        return nn.ModuleDict({name: family.build() for name, family in self.members.items()})

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> Mapping[str, str]:
        names: dict[str, str] = {}
        for module, family in self.members.items():
            inside = [name.removeprefix(f"{module}.") for name in parameters if name.startswith(f"{module}.")]
            of_member = family.lora_names(inside, alone=not names)
            names |= {name: f"{module}.{parameter}" for name, parameter in of_member.items()}
        return names
