"""Traces of jobs to simulate: shaped like a public one of a production service, or made to show one thing.

The shape is that of `lora_request_trace.csv` in Alibaba's cluster-trace-v2026-GenAI (Lin et al., Understanding
Diffusion Model Serving in Production, SoCC 2025): 26,823 requests for images over 24 days, in which the figures here
were counted.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bench.virtual import Request
from bench.virtual_replica import Model

SHARES = (0.307, 0.150, 0.094, 0.079, 0.075, 0.043, 0.036, 0.030, 0.027, 0.027, 0.021, 0.009)
"""What of all requests the most popular checkpoints have; 75 others share the rest."""
CHECKPOINTS = 87
STEPS = ((30, 0.91), (40, 0.05), (28, 0.01), (50, 0.01), (20, 0.01), (100, 0.01))
"""How many steps, and what share of requests has them."""
WITH_LORA = 0.17
"""Which share of requests names a LoRA. Which ones is not in the trace; each checkpoint has 40 here."""
SESSION, PAUSE_S = 2.2, 100.0
"""How many requests for one checkpoint a user makes in a row, and the seconds between them, on average."""
SIZES = (Model("", 2.5, 8.0, 0.3), Model("", 7.0, 20.0, 0.8), Model("", 20.0, 40.0, 1.7))
"""Kinds of checkpoint: memory, loading, a step. Loading takes 2.6 … 22.7 … 42.0 s there, and a request 23 … 53 s (p10,
p50, p90, and p50, p90)."""
LORA = Model("", 0.2, 4.4)
"""Loading one takes 4.4 s there at the median."""


def production(
    jobs: int, slots: int, *, load: float, bursts: bool = True, seed: int = 0, tenants: int = 0
) -> list[Request]:
    """Return a trace that asks for so large a share of so many slots, without loading.

    bursts: one minute in twenty has five times the sessions of the others. tenants: among how many, of unequal size.
    """
    chance = random.Random(seed)
    checkpoints = [_named(SIZES[int(3 * _spread(n))], f"m{n}.safetensors") for n in range(CHECKPOINTS)]
    loras = [_named(LORA, f"l{n}.safetensors") for n in range(40 * CHECKPOINTS)]
    rest = CHECKPOINTS - len(SHARES)
    popular = list(itertools.accumulate([*SHARES, *[(1 - sum(SHARES)) / rest] * rest]))
    liked, large = _zipf(40), _zipf(tenants)
    steps, weights = zip(*STEPS, strict=True)
    sessions: list[list[Request]] = []
    count = 0
    while count < jobs:
        number = bisect(popular, chance.random() * popular[-1])
        model = checkpoints[number]
        lora = None
        if chance.random() < WITH_LORA:
            lora = loras[40 * number + bisect(liked, chance.random() * liked[-1])]
        asked = chance.choices(steps, weights)[0]
        length = 1 + round(chance.expovariate(1 / (SESSION - 1)))
        tenant = f"t{bisect(large, chance.random() * large[-1])}" if tenants else ""
        sessions.append([Request(0.0, model, asked, lora, tenant) for _ in range(length)])
        count += length
    span_s = sum(request.work_s for session in sessions for request in session) / (load * slots)
    starts_s = sorted(_moments(len(sessions), span_s, bursts, chance))
    timed = []
    for start_s, session in zip(starts_s, sessions, strict=True):
        at_s = start_s
        for request in session:
            timed.append(Request(at_s, request.model, request.steps, request.lora, request.tenant))
            at_s += chance.expovariate(1 / PAUSE_S)
    return sorted(timed, key=lambda request: request.at_s)[:jobs]


def four_models(jobs: int, slots: int, *, load: float, work_s: float = 5.0, seed: int = 0) -> list[Request]:
    """Return a trace of four models of the same size, asked for 4 : 3 : 2 : 1, at random moments.

    load: the share of the slots that is asked for; 0 if all jobs come at once.
    """
    chance = random.Random(seed)
    models = [Model(f"m{number}.safetensors", 7.0, 10.0, work_s / 20) for number in range(4)]
    rate = load * slots / work_s
    at_s = itertools.accumulate(chance.expovariate(rate) if load else 0.0 for _ in range(jobs))
    return [Request(moment_s, chance.choices(models, (4, 3, 2, 1))[0], 20) for moment_s in at_s]


def flood(
    slots: int, span_s: float, *, demands: Mapping[str, float], flooding: str, one_model: bool = False, seed: int = 0
) -> list[Request]:
    """Return what tenants ask for in a span of time, each as the production trace asks, of models of its own liking.

    demands: by tenant, what share of the slots it asks for, loading not counted. flooding: the one whose jobs come all
    at the beginning. one_model: each asks for one model alone.
    """
    requests: list[Request] = []
    for number, (tenant, share) in enumerate(sorted(demands.items())):
        jobs = int(1.3 * share * slots * span_s / (30 * 0.3)) + 10
        asked = production(jobs, 1, load=1.0, bursts=False, seed=seed + number)
        if one_model:
            asked = [replace(request, model=asked[0].model, lora=None) for request in asked]
        work_s = list(itertools.accumulate(request.work_s for request in asked))
        for request, done_s in zip(asked, work_s, strict=True):
            at_s = done_s / (share * slots)
            if at_s < span_s:
                requests.append(replace(request, at_s=0.0 if tenant == flooding else at_s, tenant=tenant))
    return sorted(requests, key=lambda request: request.at_s)


def _named(model: Model, name: str) -> Model:
    return Model(name, model.gb, model.load_s, model.step_s)


def _spread(number: int) -> float:
    """Return a number in 0…1 that looks random, so that popular models are of every size."""
    return number * 0.6180339887 % 1


def _zipf(count: int) -> list[float]:
    return list(itertools.accumulate(1 / (n + 1) for n in range(count)))


def _moments(count: int, span_s: float, bursts: bool, chance: random.Random) -> Iterator[float]:
    minutes = max(1, int(span_s / 60))
    weights: Sequence[float] = [5.0 if bursts and n % 20 == 10 else 1.0 for n in range(minutes)]
    for minute in chance.choices(range(minutes), weights, k=count):
        yield (minute + chance.random()) * span_s / minutes
