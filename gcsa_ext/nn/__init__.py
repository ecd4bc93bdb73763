"""Modules (first draft)."""

from gcsa_ext.nn.attention import GCSA
from gcsa_ext.nn.fusion import ProportionalFusion
from gcsa_ext.nn.loss import BimodalLoss, CoarseFineLoss
from gcsa_ext.nn.mcnn import MCNN
from gcsa_ext.nn.rhcnn import RHCNN

__all__ = ["GCSA", "MCNN", "RHCNN", "BimodalLoss", "CoarseFineLoss", "ProportionalFusion"]
