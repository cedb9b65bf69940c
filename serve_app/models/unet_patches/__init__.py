"""Patches of a UNet's layers, applied row by row."""
