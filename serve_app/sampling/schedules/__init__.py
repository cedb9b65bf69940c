"""Noise levels: schedules, and which levels a model knows."""
