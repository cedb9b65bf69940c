"""Levels and pixels of a job, counted from its graph and compared with its tenant's quotas."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.config.quotas import Quota
from serve_app.errors import InvalidGraphError
from serve_app.graph.job_size import within_quota
from serve_app.graph.parse import parse
from serve_app.limits import REFUSALS
from serve_app.nodes.registry import specs

SPECS = specs()


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def check(prompt: dict[str, Any], *outputs: str, **quota: int) -> None:
    within_quota(parse(prompt), outputs, SPECS, Quota.model_validate(quota))


SAMPLED = {
    "e": node("EmptyLatentImage", width=64, height=32, batch_size=3),
    "s": node("KSampler", steps=20, latent_image=["e", 0]),
    "s2": node("KSamplerAdvanced", steps=5, latent_image=["s", 0]),
    "apart": node("KSampler", steps=1000, latent_image=["e", 0]),
}
SIGMAS = {
    "e": node("EmptyLatentImage", width=64, height=32, batch_size=1),
    "sigmas": node("BasicScheduler", steps=8),
    "last": node("SplitSigmas", sigmas=["sigmas", 0], step=4),
    "more": node("ExtendIntermediateSigmas", sigmas=["last", 1], steps=2),
    "s": node("SamplerCustomAdvanced", sigmas=["last", 1], latent_image=["e", 0]),
    "s2": node("SamplerCustomAdvanced", sigmas=["more", 0], latent_image=["s", 0]),
}


LONGER = SAMPLED | {
    "d": node("PrimitiveFloat", value=0.25),
    "s": node("KSampler", steps=20, denoise=0.1, latent_image=["e", 0]),
    "s2": node("KSampler", steps=5, denoise=["d", 0], latent_image=["s", 0]),
}
OF_TABLES = SIGMAS | {"sigmas": node("AlignYourStepsScheduler", steps=8, denoise=0.5)}


@pytest.mark.parametrize(
    ("prompt", "steps"), [(SAMPLED, 25), (SIGMAS, 8 + 24), (LONGER, 200 + 20), (OF_TABLES, 8 + 24)]
)
def test_the_steps_of_all_samplers_that_outputs_need_are_counted(prompt: dict[str, Any], steps: int) -> None:
    check(prompt, "s2", steps_a_job=steps)
    before = REFUSALS["quotas.steps_a_job"]
    with pytest.raises(
        InvalidGraphError, match=f"is for {steps} or more; the quota 'steps_a_job' .* allows {steps - 1}"
    ):
        check(prompt, "s2", steps_a_job=steps - 1)
    assert REFUSALS["quotas.steps_a_job"] == before + 1


def test_the_pixels_of_whatever_is_made_by_a_width_and_a_height_are_counted() -> None:
    prompt = {**SAMPLED, "v": node("EmptyQwenImageLayeredLatentImage", width=16, height=16, layers=5, batch_size=2)}
    pixels = 64 * 32 * 3 + 16 * 16 * 5 * 2
    check(prompt, "s", "v", pixels_a_job=pixels)
    with pytest.raises(InvalidGraphError, match=f"{pixels:,} or more; the quota 'pixels_a_job'") as caught:
        check(prompt, "s", "v", pixels_a_job=pixels - 1)
    [problem] = caught.value.problems
    assert (problem.type, problem.node_id) == ("quota_exceeded", None)
    assert problem.extra == {"quota": "pixels_a_job", "limit": pixels - 1}


def test_the_pixels_of_what_is_repeated_and_enlarged_are_counted_where_they_are_known() -> None:
    prompt = {
        "e": node("EmptyImage", width=10, height=10, batch_size=2),
        "r": node("RepeatImageBatch", image=["e", 0], amount=4),
        "u": node("ImageScaleBy", image=["r", 0], scale_by=2.0),
    }
    pixels = 200 + 800 + 3200
    check(prompt, "u", pixels_a_job=pixels)
    with pytest.raises(InvalidGraphError, match=f"with scale_by of ImageScaleBy u the job is for {pixels:,} or more"):
        check(prompt, "u", pixels_a_job=pixels - 1)


def test_a_number_by_a_link_is_known_if_it_is_a_constant_and_else_refused() -> None:
    prompt = {
        "n": node("PrimitiveInt", value=30),
        "image": node("LoadImage", image="a.png"),
        "size": node("GetImageSize", image=["image", 0]),
        "e": node("EmptyLatentImage", width=["n", 0], height=10, batch_size=1),
        "e2": node("EmptyLatentImage", width=["size", 0], height=10, batch_size=1),
        "s": node("KSampler", steps=["n", 0], latent_image=["e", 0]),
        "s2": node("KSampler", steps=["size", 0], latent_image=["e2", 0]),
    }
    check(prompt, "s", steps_a_job=30, pixels_a_job=300)
    with pytest.raises(InvalidGraphError, match="steps of KSampler s the job is for 30"):
        check(prompt, "s", steps_a_job=29)
    with pytest.raises(InvalidGraphError, match="KSampler s2: its steps cannot be told before the job runs"):
        check(prompt, "s2", steps_a_job=10_000)
    with pytest.raises(InvalidGraphError, match="EmptyLatentImage e2: its width × height × batch_size cannot be told"):
        check(prompt, "s2", pixels_a_job=10**9)
    check(prompt, "s2", steps_a_job=None, pixels_a_job=None)  # type: ignore[arg-type]


def test_sigmas_that_no_steps_make_are_refused_and_negative_numbers_pay_nothing_back() -> None:
    prompt = {
        "e": node("EmptyLatentImage", width=-64, height=64, batch_size=1),
        "m": node("ManualSigmas", sigmas="1, 0.5, 0"),
        "s": node("SamplerCustomAdvanced", sigmas=["m", 0], latent_image=["e", 0]),
    }
    with pytest.raises(InvalidGraphError, match="SamplerCustomAdvanced s: its steps cannot be told"):
        check(prompt, "s", steps_a_job=100)
    check(prompt, "s", pixels_a_job=0)


def test_a_chain_that_multiplies_its_steps_without_end_is_refused_in_few_digits() -> None:
    chain = {"0": node("BasicScheduler", steps=10_000)}
    chain |= {str(n): node("ExtendIntermediateSigmas", sigmas=[str(n - 1), 0], steps=10**6) for n in range(1, 2000)}
    chain["s"] = node("SamplerCustomAdvanced", sigmas=["1999", 0], latent_image=["0", 0])
    with pytest.raises(InvalidGraphError, match="the job is for 1,000,000,000,000,000 or more"):
        check(chain, "s", steps_a_job=100)
