"""The contracts of the operators torch.ops.gcsa_ext.*, one file each. Users call gcsa_ext.functional."""

from gcsa_ext.ops import channel_gate, conv2d_same, frequency_mask, gcsa, norm_gate

__all__ = ["channel_gate", "conv2d_same", "frequency_mask", "gcsa", "norm_gate"]
