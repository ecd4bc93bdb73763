"""The operators by Triton's kernels."""

from __future__ import annotations

from gcsa_ext.backends.gpu import Operators
from gcsa_ext.backends.triton import convolution, gates

_operators = Operators(gates, convolution)
channel_gate = _operators.channel_gate
channel_gate_backward = _operators.channel_gate_backward
norm_gate = _operators.norm_gate
norm_gate_backward = _operators.norm_gate_backward
gcsa = _operators.gcsa
gcsa_backward = _operators.gcsa_backward
