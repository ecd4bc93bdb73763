"""What the backends for GPUs share: the operators, from checked arguments to the launches of kernels.

A backend implements the protocol `Gates`, and `Operators` turns it into the functions that the backend
registers. Convolutions are torch's.
"""

from gcsa_ext.backends.gpu.launches import ChannelGate, Gates, Norm, NormGradients
from gcsa_ext.backends.gpu.operators import Operators

__all__ = ["ChannelGate", "Gates", "Norm", "NormGradients", "Operators"]
