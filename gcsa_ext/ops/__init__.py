"""The operators as torch.library knows them (torch.ops.gcsa_ext.*), one file each; call them through
gcsa_ext.functional."""

from gcsa_ext.ops import channel_gate, conv2d_same, frequency_mask, gcsa, norm_gate

__all__ = ["channel_gate", "conv2d_same", "frequency_mask", "gcsa", "norm_gate"]
