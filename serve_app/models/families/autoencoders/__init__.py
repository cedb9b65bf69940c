"""Autoencoders between images or videos and latents."""
