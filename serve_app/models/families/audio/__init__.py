"""Families of backbones that sample sounds alone."""
