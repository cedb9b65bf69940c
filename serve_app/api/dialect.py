"""Which of two dialects the root speaks. By itself, so that who reads a configuration needs no routes."""

from __future__ import annotations

from typing import Literal, TypeAlias

Dialect: TypeAlias = Literal["contract", "comfy"]
ROOT_DIALECT: Dialect = "contract"
"""Whose routes the root has, of those that both dialects have, unless the configuration says otherwise."""
