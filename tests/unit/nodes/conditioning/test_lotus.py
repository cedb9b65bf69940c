"""The node of Lotus."""

from __future__ import annotations

from serve_app.nodes.conditioning.lotus import lotus_conditioning


def test_the_empty_text_of_stable_diffusion_21_is_two_tokens() -> None:
    """`LotusConditioning` needs no text encoder."""
    [(cond, options)] = lotus_conditioning()
    assert cond.shape == (1, 2, 1024)
    assert options == {}
    assert cond[0, 0, :3].tolist() == [-0.3134765625, -0.447509765625, -0.00823974609375]
