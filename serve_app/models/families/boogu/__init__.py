"""Boogu-Image: its backbone and its way to read texts."""
