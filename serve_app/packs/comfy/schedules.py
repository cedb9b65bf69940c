"""The schedules of `comfy.samplers` for node packs: the server's as functions, and those that packs add by name.

A name that a pack adds is known to what packs call, not to the server's own nodes.
Source: the facts of ComfyUI 0.33's module of this name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.schedules.schedules import Ends
from serve_app.sampling.schedules.sigmas import SCHEDULES, Schedule, beta, kl_optimal, linear_quadratic


class SchedulerHandler(NamedTuple):
    """A schedule. use_ms: whether it is given (model_sampling, steps), or else n, sigma_min and sigma_max by name."""

    handler: Callable[..., Tensor]
    use_ms: bool = True


def _of_model(schedule: Schedule) -> Callable[[Any, int], Tensor]:
    def sigmas(model_sampling: Any, steps: int) -> Tensor:
        """Return sigmas (steps + 1,) for a model's levels, the last 0."""
        return schedule(_levels(model_sampling), steps)

    return sigmas


def _levels(model_sampling: Any) -> Any:
    return getattr(model_sampling, "levels", model_sampling)


def beta_scheduler(model_sampling: Any, steps: int, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Return sigmas spaced as quantiles of a Beta distribution."""
    return _beta(_levels(model_sampling), steps, alpha, beta)


_beta = beta


def linear_quadratic_schedule(
    model_sampling: Any, steps: int, threshold_noise: float = 0.025, linear_steps: int | None = None
) -> Tensor:
    """Return sigmas of which the first half spends `threshold_noise`. Errors: NodeError for other linear_steps."""
    if linear_steps not in (None, steps // 2):
        raise NodeError(f"linear_steps is {linear_steps}; of {steps} steps {steps // 2} are linear")
    return linear_quadratic(_levels(model_sampling), steps, threshold_noise)


def kl_optimal_scheduler(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return sigmas equally spaced in their arctangent."""
    return kl_optimal(Ends(sigma_max, sigma_min), n)


HANDLERS: dict[str, SchedulerHandler] = {name: SchedulerHandler(_of_model(made)) for name, made in SCHEDULES.items()}
"""Every schedule by name; packs add theirs."""


def calculate_sigmas(model_sampling: Any, scheduler_name: str, steps: int) -> Tensor:
    """Return a schedule's sigmas (steps + 1,) for a model's levels. Errors: NodeError for an unknown name."""
    if scheduler_name not in HANDLERS:
        raise NodeError(f"schedule {scheduler_name!r} is unknown; there are {', '.join(HANDLERS)}")
    handler, use_ms = HANDLERS[scheduler_name]
    if use_ms:
        return handler(model_sampling, steps)
    low, high = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    return handler(n=steps, sigma_min=low, sigma_max=high)


NAMES: Mapping[str, Any] = {
    "SchedulerHandler": SchedulerHandler,
    "SCHEDULER_HANDLERS": HANDLERS,
    "calculate_sigmas": calculate_sigmas,
    "simple_scheduler": HANDLERS["simple"].handler,
    "ddim_scheduler": HANDLERS["ddim_uniform"].handler,
    "normal_scheduler": HANDLERS["normal"].handler,
    "beta_scheduler": beta_scheduler,
    "linear_quadratic_schedule": linear_quadratic_schedule,
    "kl_optimal_scheduler": kl_optimal_scheduler,
}
