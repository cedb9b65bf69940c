"""Samplers: generators that yield the model evaluations they need."""
