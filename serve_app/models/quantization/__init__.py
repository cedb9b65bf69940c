"""Weights of fewer bits than they are computed in, in the layouts of model files."""
