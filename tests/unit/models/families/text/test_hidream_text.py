"""What HiDream's four text encoders say together, with tokenisers of letters in place of the vocabularies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from serve_app.errors import ModelFileError
from serve_app.models.families.text.clip import ClipText
from serve_app.models.families.text.hidream_text import HiDreamText, HiDreamTextEncoder
from serve_app.models.families.text.llama import LlamaText
from serve_app.models.families.text.t5 import T5Text
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer, llama
from serve_app.values import Texts
from tests.parity.text_cases import tensors

L = ClipText(layers=2, width=64, hidden_width=96, positions=77, projection=64)
G = replace(L, layers=32, kind="g")
T5 = T5Text(layers=1, width=32, hidden_width=48, heads=2, head_width=16, buckets=32, vocabulary=300)
LLAMA = LlamaText(layers=3, width=32, hidden_width=48, heads=1, kv_heads=1, head=128, tokens=128256)


class NoLexicon:
    """What encoders read beside their weights: nothing."""

    def vectors(self, name: str, width: int, key: str) -> None:
        """Return no vectors."""

    def vocabulary(self, name: str) -> None:
        """Return no file."""


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    torch.manual_seed(1)
    return {name: family.build().eval() for name, family in {"l": L, "g": G, "t5": T5, "llama": LLAMA}.items()}


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch, networks: dict[str, Any]) -> Any:
    letters = Tokenizer(lambda text: [2 + ord(letter) % 250 for letter in text], lambda ids: "")
    for name in ("t5", "llama"):
        monkeypatch.setattr(f"serve_app.models.tokenizers.{name}.tokenizer", lambda user_file: letters)

    def made(*members: str) -> HiDreamTextEncoder:
        families = {"l": L, "g": G, "t5": T5, "llama": LLAMA}
        ensemble = HiDreamText(**{name: families[name] for name in members})  # type: ignore[arg-type]
        return ensemble.encoder({name: networks[name] for name in members}, NoLexicon())

    return made


@torch.inference_mode()
def test_texts_of_any_length_get_together_what_each_gets_alone(encoder: Any) -> None:
    four = encoder("l", "g", "t5", "llama")
    texts = ["a (red:1.3) fox", "", "x" * 300, Texts(l="one", g="two", t5xxl="three", llama="(four:0.5)")]
    together = four.encode(texts)
    for text, [(cond, options)] in zip(texts, together, strict=True):
        [[(alone, of_alone)]] = four.encode([text])
        assert cond.shape == (1, 128, 32), "T5 reads so many tokens, no more and no fewer"
        assert torch.allclose(cond, alone, atol=1e-5)
        for name in ("pooled_output", "conditioning_llama3"):
            assert torch.allclose(options[name], of_alone[name], atol=1e-5), name
        assert options["pooled_output"].shape == (1, 128)
    lengths = [options["conditioning_llama3"].shape for [(_, options)] in together]
    assert lengths == [(1, 3, 128, 32), (1, 3, 128, 32), (1, 3, 301, 32), (1, 3, 128, 32)]


@torch.inference_mode()
def test_llama_says_every_layers_states_the_last_through_its_norm(encoder: Any, networks: dict[str, Any]) -> None:
    [[(_, options)]] = encoder("llama").encode(["fox"])
    network = networks["llama"]
    ids = torch.tensor([[llama.START, *(2 + ord(letter) % 250 for letter in "fox")]])
    positions = torch.arange(4)[None]
    frequencies = 5e5 ** (-torch.arange(0, 128, 2) / 128)
    angles = torch.cat([positions[..., None] * frequencies] * 2, dim=-1)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    *states, last = network(network.embed_tokens(ids), mask, (angles.cos(), angles.sin()), 3)
    wanted = torch.stack([*states[1:], network.norm(last)], dim=1)
    assert torch.allclose(options["conditioning_llama3"][:, :, :4], wanted, atol=1e-5)


@torch.inference_mode()
def test_the_pooled_output_of_clip_l_goes_through_its_projection(encoder: Any, networks: dict[str, Any]) -> None:
    [[(_, plain)]] = encoder("l").encode(["fox"])
    networks["l"].text_projection.weight.mul_(2)
    [[(_, doubled)]] = encoder("l").encode(["fox"])
    networks["l"].text_projection.weight.div_(2)
    assert torch.allclose(doubled["pooled_output"][:, :64], 2 * plain["pooled_output"][:, :64])
    assert not plain["pooled_output"][:, 64:].any(), "the other's is zeros"


@torch.inference_mode()
def test_an_encoder_that_is_not_there_says_zeros(encoder: Any) -> None:
    [[(cond, options)]] = encoder("g").encode(["fox"])
    assert cond.shape == (1, 128, 4096)
    assert options["conditioning_llama3"].shape == (1, 32, 1, 4096)
    assert not cond.any()
    assert not options["conditioning_llama3"].any()


def _found(loaded_as: str, *families: Any) -> Any:
    files = [Tensors({k: tuple(t.shape) for k, t in tensors(f).items()}, f"'{i}'") for i, f in enumerate(families)]
    return find_part("clip", files, loaded_as).family


def test_the_files_may_come_in_any_order_and_llama_alone_is_hidreams() -> None:
    assert isinstance(_found("hidream", LLAMA, T5, G, L), HiDreamText)
    assert isinstance(_found("hidream", L, G), HiDreamText)
    assert isinstance(_found("", LLAMA), HiDreamText)
    with pytest.raises(ModelFileError, match="which type 'flux' does not read together"):
        _found("flux", LLAMA, L)
