"""The launches that the protocol `Gates` of gcsa_ext/backends/gpu/launches.py names, as one module."""

from gcsa_ext.backends.cuda.channel_gate import channel_gate, channel_gate_backward, takes_channel_gate
from gcsa_ext.backends.cuda.norm import batch_statistics, norm_backward, norm_forward

__all__ = [
    "batch_statistics",
    "channel_gate",
    "channel_gate_backward",
    "norm_backward",
    "norm_forward",
    "takes_channel_gate",
]
