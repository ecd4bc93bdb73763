"""Published attention modules inside a model, fused where they stand."""

from gcsa_ext.convert.attention import (
    Attention,
    Report,
    from_module,
    replace_attention,
    restore_attention,
)

__all__ = ["Attention", "Report", "from_module", "replace_attention", "restore_attention"]
