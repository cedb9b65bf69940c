"""Recipes: which file a part of a model comes from, and every change to it or to how it is sampled.

A MODEL, CLIP or VAE value is a recipe: a model file plus an ordered tuple of patches, a few hundred bytes. Only a
replica turns it into weights. Nothing here imports torch, so that the control plane can carry recipes.
"""
