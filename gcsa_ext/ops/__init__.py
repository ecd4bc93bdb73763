"""The operators as torch.library knows them (torch.ops.gcsa_ext.*), one file each; call them through
gcsa_ext.functional."""

from gcsa_ext.ops import channel_gate, frequency_mask, norm_gate

__all__ = ["channel_gate", "frequency_mask", "norm_gate"]
