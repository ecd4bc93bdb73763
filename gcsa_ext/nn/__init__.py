"""Modules: attention, masking, backbones, fusion, loss, the two-modality network. They need torch alone."""

from gcsa_ext.nn.attention import GCSA, replace_attention
from gcsa_ext.nn.bimodal import BimodalNet, BimodalOutput
from gcsa_ext.nn.fusion import ProportionalFusion
from gcsa_ext.nn.loss import BimodalLoss, CoarseFineLoss
from gcsa_ext.nn.masking import FrequencyMasking, SpecAugment, TimeMasking
from gcsa_ext.nn.mcnn import MCNN
from gcsa_ext.nn.rhcnn import RHCNN

__all__ = [
    "GCSA",
    "MCNN",
    "RHCNN",
    "BimodalLoss",
    "BimodalNet",
    "BimodalOutput",
    "CoarseFineLoss",
    "FrequencyMasking",
    "ProportionalFusion",
    "SpecAugment",
    "TimeMasking",
    "replace_attention",
]
