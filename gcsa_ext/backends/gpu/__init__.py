"""What the backends for GPUs share: the operators, from checked arguments to the launches of kernels.

A backend implements the protocol `Gates` and, if it can, `Convolution`; `Operators` turns them into the
functions that the backend registers. Convolutions that no kernel of the backend computes are torch's.
"""

from gcsa_ext.backends.gpu.launches import Gates, Norm, NormGradients
from gcsa_ext.backends.gpu.maps import convolution_layout
from gcsa_ext.backends.gpu.operators import Operators

__all__ = ["Gates", "Norm", "NormGradients", "Operators", "convolution_layout"]
