"""Chroma1-Radiance: its backbone."""
