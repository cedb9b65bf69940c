"""What a job asks of the honest card beside its steps: how it begins and ends, its texts, its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve_app.engine.autoencoding import Autoencoding
from serve_app.engine.trajectory import Trajectory
from serve_app.models.families import ClipText, ClipVision, Taesd
from serve_app.models.families.text.hidream_text import HiDreamText
from serve_app.models.families.text.llama import LlamaText
from serve_app.models.families.text.sd3_text import Sd3Text
from serve_app.models.families.text.t5 import T5Text
from serve_app.models.families.unet.sdxl import SdxlText
from serve_app.models.quantization.half_precision_text import keep, round_weights
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.text_encoder import Clip
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.vae import Vae
from serve_app.models.vision import ImageEncoder
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latent_formats import SD
from tests.unit.engine import card_costs
from tests.unit.engine.card import CARD, Card
from tests.unit.engine.card_order import FORWARDS, UnorderedError
from tests.unit.engine.card_runs import on_card, tiny
from tests.unit.engine.mixes import conditioning, request

L = ClipText(layers=2, width=64, hidden_width=96, positions=77, projection=64)
G = replace(L, layers=3, kind="g")
T5 = T5Text(layers=1, width=32, hidden_width=48, heads=2, head_width=16, buckets=32, vocabulary=300)
LLAMA = LlamaText(layers=3, width=32, hidden_width=48, heads=1, kv_heads=1, head=128, tokens=128256)
VISION = ClipVision(layers=23, width=32, hidden_width=48, side=2, patch=8, projection=24)
VAE = Recipe("vae", "vae", "a")


class NoLexicon:
    """What encoders read beside their weights: nothing."""

    def vectors(self, name: str, width: int, key: str) -> None:
        """Return no vectors."""

    def vocabulary(self, name: str) -> None:
        """Return no file."""


class Alone:
    """What is beside a VAE's work: nothing."""

    reserved_bytes = 0

    def release(self, nbytes: int | None = None) -> int:
        """Let nothing go."""
        return 0


@pytest.fixture(autouse=True)
def _letters_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = Tokenizer(lambda text: [2 + ord(letter) % 250 for letter in text], lambda ids: "")
    for name in ("t5", "llama"):
        monkeypatch.setattr(f"serve_app.models.tokenizers.{name}.tokenizer", lambda user_file: letters)


Placed = Callable[[nn.Module], nn.Module]
Work = Callable[[], Any]


def encoded(place: Placed, family: Any, *texts: str) -> Work:
    torch.manual_seed(1)
    members = {"l": L, "g": G, "t5": T5, "llama": LLAMA}
    if isinstance(family, ClipText):
        network: Any = place(family.build().eval())
    else:
        network = {name: place(one.build().eval()) for name, one in members.items() if getattr(family, name, None)}
    clip = Clip(family.encoder(network, NoLexicon()))
    return lambda: [(cond, *tensors(options)) for entries in clip.encode(texts) for cond, options in entries]


def tensors(options: dict[str, Any]) -> list[Tensor]:
    return [value for value in options.values() if isinstance(value, Tensor)]


def seen(place: Placed) -> Work:
    torch.manual_seed(1)
    encoder = ImageEncoder(VISION, place(VISION.build().eval()))
    image = torch.rand(1, 20, 20, 3, generator=torch.Generator().manual_seed(2))
    return lambda: list(encoder.see([image], crop=True)[0].states.values())


def autoencoded(place: Placed, work: Any, rows: int) -> Work:
    torch.manual_seed(1)
    family = Taesd(SD)
    vae, own = Vae(family, place(family.build().eval().requires_grad_(False))), Autoencoding(Alone())
    generator = torch.Generator().manual_seed(rows)
    decodes = work == "decode"
    batch = torch.randn(rows, 4, 3, 5, generator=generator) if decodes else torch.rand(rows, 24, 40, 3)
    if rows > 1:
        return lambda: getattr(vae, work)(batch, 1).to("cpu", non_blocking=True)
    return lambda: own.whole(VAE, vae, work, batch)


def run(backbone: Any, **changes: Any) -> Trajectory:
    texts = {"positive": conditioning(1, 77), "negative": conditioning(2, 77)}
    return Trajectory(backbone, request(steps=1, seed=3, **texts, **changes))


def ends(backbone: Any) -> Work:
    trajectory = run(backbone)
    trajectory.start()

    def end() -> Any:
        trajectory.feed([piece.x * 0.5 for piece in trajectory.pieces])
        trajectory.advance()
        assert trajectory.result is not None
        return [trajectory.result.latents, trajectory.result.denoised]

    return end


def made(case: str, place: Placed, backbone: Any) -> Work:
    """Return what does the work of a case, with networks that were placed."""
    works: dict[str, Callable[[], Work]] = {
        "a run begins": lambda: run(backbone).start,
        "a run with a mask begins": lambda: run(backbone, noise_mask=torch.ones(1, 4, 4)).start,
        "a run ends": lambda: ends(backbone),
        "a text": lambda: encoded(place, L, "a fox"),
        "a weighted text": lambda: encoded(place, L, "a (fox:1.2)"),
        "four texts": lambda: encoded(place, L, "a fox", "a hen", "two hens", "no"),
        "a text of SDXL": lambda: encoded(place, SdxlText(l=L, g=G), "a fox"),
        "a text of SD 3 without CLIP-L": lambda: encoded(place, Sd3Text(g=G, t5=T5), "a fox"),
        "a text of HiDream": lambda: encoded(place, HiDreamText(l=L, g=G, t5=T5, llama=LLAMA), "a fox"),
        "an image is seen": lambda: seen(place),
        "an image is decoded": lambda: autoencoded(place, "decode", 1),
        "three images are decoded in slices": lambda: autoencoded(place, "decode", 3),
        "an image is encoded": lambda: autoencoded(place, "encode", 1),
    }
    return works[case]()


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [tensor for one in value for tensor in flat(one)]


@pytest.mark.parametrize("case", card_costs.JOBS)
def test_work_of_a_job_outside_its_steps_waits_for_no_copy(case: str) -> None:
    card = Card()
    with torch.inference_mode():
        wanted = flat(made(case, lambda network: network, tiny())())
        backbone = on_card(card)
        with card.used():
            work = made(case, card.settle, backbone)
            before = card.counts.copy()
            given = work()
            counts = card.counts.since(before)
    assert (counts.copies, counts.stalls) == card_costs.JOBS[case], counts.where
    assert len(flat(given)) == len(wanted)
    for ours, theirs in zip(flat(given), wanted, strict=True):
        assert torch.equal(ours, theirs)


def wide(network: nn.Module) -> nn.Module:
    """Return a network with the numbers that sixteen bits can hold."""
    round_weights(network, torch.float16)
    return network.float()


def kept(card: Card) -> Placed:
    def place(network: nn.Module) -> nn.Module:
        round_weights(network, torch.float16)
        staying = {id(parameter) for parameter in keep(network)}
        for parameter in network.parameters():
            if id(parameter) not in staying:
                parameter.data = parameter.data.float()
        for layer in network.modules():
            if isinstance(layer, QuantizedLinear):
                layer.move_to(card.place, CARD, torch.float32)
        return card.settle(network)

    return place


WIDENED = {"a text": 12 + 1, "a text of SDXL": 12 + 19 + 2, "a text of HiDream": 13 + 19 + 7 + 21 + 4}
"""What it costs that weights stay in sixteen bits, in kernels: each linear layer's once, and the rows of tables."""


@pytest.mark.parametrize("case", WIDENED)
def test_weights_of_sixteen_bits_cost_a_kernel_a_layer_and_give_the_same_bits(case: str) -> None:
    card = Card()
    kernels = []
    with torch.inference_mode():
        wanted = flat(made(case, wide, tiny())())
        for place in (lambda network: card.settle(wide(network)), kept(card)):
            with card.used():
                work = made(case, place, tiny())
                before = card.counts.copy()
                given = flat(work())
                counts = card.counts.since(before)
            assert (counts.copies, counts.stalls) == card_costs.JOBS[case], counts.where
            kernels.append(counts.kernels)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(given, wanted, strict=True))
    assert kernels[1] - kernels[0] == WIDENED[case]


def test_the_host_may_not_read_what_a_copy_has_yet_to_bring() -> None:
    card = Card()
    with card.used():
        brought = torch.ones(3).to(CARD).to("cpu", non_blocking=True)
        with pytest.raises(UnorderedError, match="yet to bring"):
            brought[1:] + 1
        card.order.wait(card.order.place(FORWARDS))
        assert (brought[1:] + 1).tolist() == [2, 2]
