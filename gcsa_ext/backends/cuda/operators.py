"""The operators by the CUDA kernels."""

from __future__ import annotations

from gcsa_ext.backends.cuda import gates
from gcsa_ext.backends.gpu import Operators

_operators = Operators(gates)
channel_gate = _operators.channel_gate
channel_gate_backward = _operators.channel_gate_backward
norm_gate = _operators.norm_gate
norm_gate_backward = _operators.norm_gate_backward
gcsa = _operators.gcsa
gcsa_backward = _operators.gcsa_backward
