"""Modules (first draft)."""

from gcsa_ext.nn.attention import GCSA

__all__ = ["GCSA"]
