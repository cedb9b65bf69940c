"""Kandinsky 5: its backbones and its way to read texts."""
