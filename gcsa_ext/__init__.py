"""Fast channel-spatial attention and audio-visual expression recognition for PyTorch.

`gcsa_ext.nn` has the modules, `gcsa_ext.functional` the operators beneath them, `gcsa_ext.reference` their
definition in plain PyTorch.
"""

from gcsa_ext import functional, nn, reference
from gcsa_ext.backends import use_backend
from gcsa_ext.convert import replace_attention
from gcsa_ext.info import format_info, info
from gcsa_ext.nn.attention import GCSA
from gcsa_ext.nn.masking import FrequencyMasking

__version__ = "0.1.0"

__all__ = [
    "GCSA",
    "FrequencyMasking",
    "__version__",
    "format_info",
    "functional",
    "info",
    "nn",
    "reference",
    "replace_attention",
    "use_backend",
]
