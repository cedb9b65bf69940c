"""The jobs of a campaign, drawn from a seed: mixed innocents and poison, each with what has to come of it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

CHECKPOINT = "tiny.safetensors"
CARD = "card.png"
"""A picture in the input directory."""
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "ddim", "uni_pc", "lcm", "lms")
SCHEDULES = ("normal", "karras", "simple", "ddim_uniform")
TEXTS = ("a large red circle on the left, blue background", "a small yellow star at the top", "a green ring")
POISON = (
    "PoisonExit",
    "PoisonSegfault",
    "PoisonSystemExit",
    "PoisonSystemExitAsync",
    "PoisonKeyboardInterrupt",
    "PoisonKeyboardInterruptAsync",
    "PoisonBlockedLoop",
    "PoisonEndless",
    "PoisonMemory",
)
Outcome = Literal["success", "error", "cancelled"]
Door = Literal["jobs", "interrupt", "queue"]


@dataclass(frozen=True)
class Cancel:
    """A client's change of mind. after_s: since the job was accepted. door: which route it takes."""

    after_s: float
    door: Door


@dataclass(frozen=True)
class Job:
    """One submission. poison: the class that has to be named as the cause of its end. saves: files it has to leave.

    job_id: chosen by its client, or None for the server to choose.
    """

    kind: str
    prompt: dict[str, Any]
    job_id: str | None = None
    saves: int = 0
    poison: str | None = None
    cancel: Cancel | None = None
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> frozenset[Outcome]:
        """How it may end."""
        by_itself: Outcome = "error" if self.poison else "success"
        return frozenset({by_itself} if self.cancel is None else {by_itself, "cancelled"})


class Draw:
    """Draws jobs, the same ones from the same seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._count = 0

    def mixed(self, count: int, poison: Sequence[str]) -> list[Job]:
        """Return so many jobs with all of this poison at random places among them."""
        jobs = [self.innocent() for _ in range(count - len(poison))] + [self.poisoned(kind) for kind in poison]
        self._rng.shuffle(jobs)
        return jobs

    def innocent(self, cancel: Cancel | None = None) -> Job:
        """Return a job that has to succeed, or may be cancelled before."""
        draw = self._rng.choices(
            (self._txt2img, self._img2img, self._plain, self._preview, self._text, self._shaded, self._nap),
            (40, 12, 16, 4, 8, 14, 6),
        )[0]
        kind, prompt, saves = draw()
        keys = {"extra_data": {"strict": True}} if self._rng.random() < 0.03 else {}
        return Job(kind, prompt, self._job_id(), saves, cancel=cancel, keys=keys)

    def poisoned(self, kind: str) -> Job:
        """Return a job that ends by this poison, with or without innocent work of its own before it."""
        prompt = {"9": _node(kind, seed=self._fresh())}
        if self._rng.random() < 0.5:
            # Values that innocents make too, so that somebody may wait for what the dying replica makes.
            _, made, _ = self._txt2img()
            del made["6"]
            prompt |= {**made, "8": _node("PreviewImage", images=["5", 0])}
        return Job(kind, prompt, self._job_id(), poison=kind)

    def cancelled(self, longest_s: float) -> Job:
        """Return a job whose client cancels it at some moment, also before it starts or after it ended."""
        door: Door = self._rng.choices(("jobs", "interrupt", "queue"), (6, 2, 2))[0]
        after_s = self._rng.random() ** 2 * longest_s
        if self._rng.random() < 0.1:
            # Under an id of its own and by the door that always counts: what is not cancelled would never end.
            return Job("huge", self._huge(), self._uuid(), cancel=Cancel(after_s, "jobs"))
        return self.innocent(Cancel(after_s, door))

    def abandoned(self) -> Job:
        """Return a job whose node does not stop, which its client cancels while that runs."""
        cancel = Cancel(1.0 + 3.0 * self._rng.random(), "jobs")
        prompt = {"9": _node("PoisonEndless", seed=self._fresh())}
        return Job("abandoned", prompt, self._job_id(), poison="PoisonEndless", cancel=cancel)

    def plain(self) -> Job:
        """Return the cheapest job that saves a file."""
        kind, prompt, saves = self._plain()
        return Job(kind, prompt, self._uuid(), saves)

    def nap(self) -> Job:
        """Return a job that takes up to two seconds and nearly no processor, and saves nothing."""
        kind, prompt, saves = self._nap()
        return Job(kind, prompt, self._uuid(), saves)

    def batch(self, size: int) -> list[Job]:
        """Return jobs that succeed only if all of them run at the same time on one replica."""
        meeting = self._fresh()
        return [
            Job("meet", {"1": _node("ChaosMeet", seed=self._fresh(), meeting=meeting, expected=size)}, self._uuid())
            for _ in range(size)
        ]

    def fresh(self, size: int) -> list[Job]:
        """Return jobs that sample and share nothing with any other."""
        jobs = []
        for _ in range(size):
            kind, prompt, saves = self._txt2img()
            prompt["3"]["inputs"] |= {"seed": 1000 + self._fresh(), "steps": 8, "sampler_name": "euler", "cfg": 7.0}
            jobs.append(Job(kind, prompt, self._uuid(), saves))
        return jobs

    def _txt2img(self) -> tuple[str, dict[str, Any], int]:
        prompt = self._sampled(["4", 0], denoise=1.0)
        prompt["4"] = _node("EmptyLatentImage", width=64, height=64, batch_size=1)
        return "txt2img", prompt, 1

    def _huge(self) -> dict[str, Any]:
        """Return a job that does not end in a campaign's time, whose every forward takes minutes."""
        prompt = self._sampled(["4", 0], denoise=1.0)
        prompt["3"]["inputs"]["steps"] = 1000
        prompt["4"] = _node("EmptyLatentImage", width=8192, height=1024, batch_size=1)
        return prompt

    def _img2img(self) -> tuple[str, dict[str, Any], int]:
        prompt = self._sampled(["4", 0], denoise=0.6)
        prompt["4"] = _node("VAEEncode", pixels=["7", 0], vae=["1", 2])
        prompt["7"] = _node("LoadImage", image=CARD)
        return "img2img", prompt, 1

    def _sampled(self, latent: list[Any], denoise: float) -> dict[str, Any]:
        # Few seeds and texts: many jobs share some or all of their work.
        return {
            "1": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
            "2": _node("CLIPTextEncode", text=self._rng.choice(TEXTS), clip=["1", 1]),
            "3": _node(
                "KSampler",
                seed=self._rng.randrange(40),
                steps=self._rng.randint(2, 8),
                cfg=self._rng.choice((1.0, 7.0)),
                sampler_name=self._rng.choice(SAMPLERS),
                scheduler=self._rng.choice(SCHEDULES),
                denoise=denoise,
                model=["1", 0],
                positive=["2", 0],
                negative=["2", 0],
                latent_image=latent,
            ),
            "5": _node("VAEDecode", samples=["3", 0], vae=["1", 2]),
            "6": _node("SaveImage", images=["5", 0], filename_prefix="image"),
        }

    def _plain(self) -> tuple[str, dict[str, Any], int]:
        return "no-op", {"1": self._colour(), "6": _node("SaveImage", images=["1", 0], filename_prefix="plain")}, 1

    def _preview(self) -> tuple[str, dict[str, Any], int]:
        return "preview", {"1": self._colour(), "2": _node("PreviewImage", images=["1", 0])}, 0

    def _text(self) -> tuple[str, dict[str, Any], int]:
        return "text", {"1": _node("ChaosText", seed=self._fresh())}, 0

    def _nap(self) -> tuple[str, dict[str, Any], int]:
        return "nap", {"1": _node("ChaosNap", seed=self._fresh())}, 0

    def _shaded(self) -> tuple[str, dict[str, Any], int]:
        prompt = {
            "1": self._colour(),
            "2": _node("ChaosShade", seed=self._rng.randrange(50), image=["1", 0]),
            "6": _node("SaveImage", images=["2", 0], filename_prefix="shaded"),
            "7": _node("ChaosText", seed=self._fresh()),
        }
        return "two outputs", prompt, 1

    def _colour(self) -> dict[str, Any]:
        return _node("EmptyImage", width=64, height=64, batch_size=1, color=self._rng.randrange(2**24))

    def _fresh(self) -> int:
        self._count += 1
        return self._count

    def _job_id(self) -> str | None:
        return self._uuid() if self._rng.random() < 0.7 else None

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
