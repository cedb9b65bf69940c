"""Node classes that sample, and that make SAMPLER, SIGMAS, NOISE and GUIDER."""
