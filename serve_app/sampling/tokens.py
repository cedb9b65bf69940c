"""The next token of a text, drawn from a language model's logits as ComfyUI draws it.

Source: Fan et al. 2018, arXiv:1805.04833 (top k); Holtzman et al. 2020, arXiv:1904.09751 (top p); Nguyen et al. 2024,
arXiv:2407.01082 (min p); Keskar et al. 2019, arXiv:1909.05858 (repetition penalty).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from serve_app.sampling.transfer import to_device
from serve_app.values import TokenSampling


def next_token(
    logits: Tensor, sampling: TokenSampling | None, before: Collection[int], generator: torch.Generator | None
) -> int:
    """Return a token. logits: (1,V); before: the tokens generated before; generator: draws, on the logits' device."""
    if sampling is None:
        return int(logits.argmax())
    logits = _penalized(logits, sampling, before)
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    tokens = None
    if sampling.top_k > 0:
        logits, tokens = logits.topk(min(sampling.top_k, logits.shape[-1]))
    lowest = torch.finfo(logits.dtype).min
    if sampling.min_p > 0.0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True), lowest)
    if sampling.top_p < 1.0:
        descending, order = logits.sort(descending=True)
        left_out = descending.softmax(-1).cumsum(-1) > sampling.top_p
        left_out[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(left_out).scatter(1, order, left_out), lowest)
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return int(drawn if tokens is None else tokens.gather(1, drawn))


def _penalized(logits: Tensor, sampling: TokenSampling, before: Collection[int]) -> Tensor:
    if not before or (sampling.repetition_penalty == 1.0 and not sampling.presence_penalty):
        return logits
    at = to_device(torch.tensor(sorted(set(before))), logits.device)
    of_these = logits[:, at]
    factor = sampling.repetition_penalty
    of_these = torch.where(of_these < 0, of_these * factor, of_these / factor) - sampling.presence_penalty
    return logits.index_copy(1, at, of_these)
