"""Families with a diffusion transformer, one file each."""
