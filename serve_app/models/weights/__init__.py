"""Weights of one replica: which are loaded, where they lie, and when they are evicted."""
