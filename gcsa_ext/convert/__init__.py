"""The exchange of published attention modules inside a model for the fused `GCSA` that equals it."""

from gcsa_ext.convert.attention import from_module, replace_attention

__all__ = ["from_module", "replace_attention"]
