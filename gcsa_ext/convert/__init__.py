"""Published attention modules inside a model: found, proved equal, and exchanged for the fused one."""

from gcsa_ext.convert.attention import from_module, replace_attention

__all__ = ["from_module", "replace_attention"]
