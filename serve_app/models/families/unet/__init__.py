"""Families with Stable Diffusion's UNet."""
