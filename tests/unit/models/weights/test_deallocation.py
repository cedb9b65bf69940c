"""Freeing weights, in every mode of inference that they were made and are freed in."""

from __future__ import annotations

from itertools import product

import torch

from serve_app.models.weights.deallocation import free_tensors


def test_tensors_are_freed_whichever_mode_of_inference_they_were_made_in():
    for made, freed, packed in product((False, True), repeat=3):
        with torch.inference_mode(made):
            tensor = torch.ones(4, 4)
            tensor = tensor.to_mkldnn() if packed else tensor
        with torch.inference_mode(freed):
            free_tensors([tensor])
        assert tensor.numel() == 0, (made, freed, packed)
