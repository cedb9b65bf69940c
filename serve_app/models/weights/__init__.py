"""Weights of one replica: loading, placement, streaming and eviction."""
