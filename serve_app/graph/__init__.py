"""Workflows as data: node specs, graphs, validation, signatures and plans. Pure Python."""
