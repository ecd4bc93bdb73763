"""Fast channel-spatial attention and audio-visual expression recognition for PyTorch.

`gcsa_ext.nn` has the modules, `gcsa_ext.functional` the operators that they call, and `gcsa_ext.reference`
the definitions of the operators in plain PyTorch.
"""

# ruff: noqa: E402 (a setting comes before the imports that need it)
import sys

from gcsa_ext import openmp

# libgomp reads its environment when torch is imported, which the imports below do.
openmp.limit_spinning()

from gcsa_ext import functional, nn, reference
from gcsa_ext.backends import use_backend
from gcsa_ext.convert import replace_attention, restore_attention
from gcsa_ext.deprecated import OldPaths
from gcsa_ext.info import format_info, info
from gcsa_ext.nn.attention import GCSA
from gcsa_ext.nn.masking import FrequencyMasking, SpecAugment, TimeMasking

__version__ = "0.2.0"

# In front of the file finder, which could find a folder that an older version has left behind.
sys.meta_path.insert(0, OldPaths())

__all__ = [
    "GCSA",
    "FrequencyMasking",
    "SpecAugment",
    "TimeMasking",
    "__version__",
    "format_info",
    "functional",
    "info",
    "nn",
    "reference",
    "replace_attention",
    "restore_attention",
    "use_backend",
]
