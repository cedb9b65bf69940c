"""Recipes made real: networks, their weights and files. No nodes, no HTTP."""
