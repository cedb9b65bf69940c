"""Guidance: which rows an evaluation asks for, and how the answers are combined."""
