"""The maths of sampling over torch: samplers, noise levels, guidance, latents. No network, no file."""
