"""Scores of predictions against labels, as the ABAW EXPR track counts them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gcsa_ext.corpora import IGNORE_INDEX
from gcsa_ext.extra import import_extra

classification = import_extra("torchmetrics.functional.classification")


@dataclass(frozen=True)
class Scores:
    """Scores of predicted classes.

    Attributes:
        macro_f1: unweighted mean of the K per-class F1 scores; a class that is neither labelled nor predicted
            counts as 0, as in the challenge.
        class_f1: F1 of each class.
        confusion: (K, K) int64, rows are labels, columns predictions.
        count: number of labelled samples.
    """

    macro_f1: float
    class_f1: tuple[float, ...]
    confusion: Tensor
    count: int


def score(predicted: Tensor, labels: Tensor, num_classes: int) -> Scores:
    """Score predictions.

    Args:
        predicted: (N,) integers in [0, num_classes), or (N, num_classes) logits or probabilities.
        labels: (N,) integers; -1 where there is no label.
        num_classes: K.
    """
    if predicted.dim() == 2:
        predicted = predicted.argmax(dim=1)
    labelled = labels != IGNORE_INDEX
    predicted, labels = predicted[labelled], labels[labelled]
    if not len(labels):
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        return Scores(0.0, (0.0,) * num_classes, empty, 0)
    class_f1 = classification.multiclass_f1_score(predicted, labels, num_classes, average=None)
    confusion = classification.multiclass_confusion_matrix(predicted, labels, num_classes)
    # The macro average of torchmetrics leaves out a class that is neither labelled nor predicted.
    return Scores(float(class_f1.mean()), tuple(class_f1.tolist()), confusion.cpu(), len(labels))
