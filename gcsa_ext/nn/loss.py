"""The coarse-fine loss, of one classifier and of the two-modality network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gcsa_ext.nn.bimodal import BimodalOutput

Reduction = Literal["mean", "sum", "none"]

# Neutral | Happiness | Surprise | Other | Anger, Disgust, Fear, Sadness; indices in the order of ABAW's EXPR
# track.
ABAW_GROUPS: tuple[tuple[int, ...], ...] = ((0,), (4,), (6,), (7,), (1, 2, 3, 5))


class CoarseFineLoss(nn.Module):
    """Negative log-likelihood of the class and, with a smaller weight, of the coarse group it belongs to.

    ``L = -log p_y - coarse_weight * log p_G(y)`` with ``p_G = sum_{k in G} p_k``.

    arXiv 2503.11935 states that a coarse-fine granularity loss is used. This formula is this project's
    choice. The default groups are those of arXiv 2203.13052 (CFC-SP) for the eight ABAW classes.

    Class weights and label smoothing work as in :func:`torch.nn.functional.cross_entropy`, applied to
    ``c_k = -log p_k - coarse_weight * log p_G(k)`` in place of ``-log p_k``. With ``coarse_weight=0`` the
    result equals that of cross_entropy, except for a batch in which every target is ignored: the loss and its
    gradients are then 0, not NaN.

    Args:
        groups: the coarse groups; each of the classes 0 .. K-1 is in exactly one.
        coarse_weight: weight of the coarse term (lambda), at least 0.
        class_weight: (K,) weights of the classes, or None.
        label_smoothing: probability mass spread evenly over all classes, in [0, 1].
        ignore_index: target of a sample that does not count; its input may be NaN.
        reduction: "mean" (weighted by the targets' class weights), "sum" or "none".

    Raises:
        ValueError: the groups are no partition, a number is out of range, or a shape or dtype does not fit.
    """

    group_of_class: Tensor
    members: Tensor
    class_weight: Tensor | None

    def __init__(
        self,
        groups: Sequence[Sequence[int]] = ABAW_GROUPS,
        coarse_weight: float = 0.5,
        class_weight: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -1,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        classes = sorted(k for group in groups for k in group)
        if not classes or classes != list(range(len(classes))) or not all(len(group) for group in groups):
            raise ValueError(
                "groups must be non-empty and hold each class 0 .. K-1 exactly once, "
                f"got {[list(group) for group in groups]}"
            )
        if coarse_weight < 0:
            raise ValueError(f"coarse_weight must be at least 0, got {coarse_weight}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
        self.num_classes = len(classes)
        self.coarse_weight = coarse_weight
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.reduction = reduction
        members = torch.zeros(len(groups), self.num_classes, dtype=torch.bool)
        for index, group in enumerate(groups):
            members[index, list(group)] = True
        weight = None if class_weight is None else torch.as_tensor(class_weight, dtype=torch.float32)
        if weight is not None and weight.shape != (self.num_classes,):
            raise ValueError(f"class_weight must have shape ({self.num_classes},), got {tuple(weight.shape)}")
        # All three follow from the arguments, so a checkpoint need not contain them.
        self.register_buffer("members", members, persistent=False)  # (G, K)
        self.register_buffer("group_of_class", members.int().argmax(dim=0), persistent=False)  # (K,)
        self.register_buffer("class_weight", weight, persistent=False)

    def extra_repr(self) -> str:
        groups = [row.nonzero().flatten().tolist() for row in self.members]
        return (
            f"groups={groups}, coarse_weight={self.coarse_weight}, label_smoothing={self.label_smoothing}, "
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        )

    def forward(self, input: Tensor, target: Tensor, log_probabilities: bool = False) -> Tensor:
        """Compute the loss.

        Args:
            input: (N, K) logits or log-probabilities, floating point.
            target: (N,) int64, classes or `ignore_index`.
            log_probabilities: True if `input` is log-probabilities (the fused vector), False if it is logits.

        Returns:
            A scalar; (N,) with reduction "none", 0 where the target is ignored.

        Raises:
            ValueError: a shape or dtype does not fit.
            IndexError, RuntimeError: a target is neither a class nor `ignore_index` (raised by PyTorch).
        """
        if input.dim() != 2 or input.shape[1] != self.num_classes or not input.is_floating_point():
            raise ValueError(
                f"expected a floating-point input of shape (N, {self.num_classes}), "
                f"got {input.dtype} of shape {tuple(input.shape)}"
            )
        if target.shape != input.shape[:1] or target.dtype != torch.int64:
            raise ValueError(
                f"expected an int64 target of shape {tuple(input.shape[:1])}, "
                f"got {target.dtype} of shape {tuple(target.shape)}"
            )
        counted = target != self.ignore_index
        target = target.where(counted, torch.zeros_like(target))
        input = input.to(torch.promote_types(input.dtype, torch.float32))
        input = torch.where(counted[:, None], input, torch.zeros_like(input))
        log_p = input if log_probabilities else torch.log_softmax(input, dim=1)
        cost = -log_p  # (N, K)
        if self.coarse_weight:
            members = log_p[:, None, :].masked_fill(~self.members, -torch.inf)  # (N, G, K)
            cost = cost - self.coarse_weight * torch.logsumexp(members, dim=2)[:, self.group_of_class]

        weight = torch.ones_like(log_p[0]) if self.class_weight is None else self.class_weight.to(log_p.dtype)
        sample_weight = weight[target] * counted
        loss = cost.gather(1, target[:, None]).squeeze(1) * sample_weight
        if self.label_smoothing:
            spread = (cost * weight).mean(dim=1) * counted
            loss = (1.0 - self.label_smoothing) * loss + self.label_smoothing * spread
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        # If every target is ignored, 0 / tiny is 0 and still part of the autograd graph.
        return loss.sum() / sample_weight.sum().clamp(min=torch.finfo(loss.dtype).tiny)


class BimodalLoss(nn.Module):
    """The coarse-fine loss of the network: ``L(fused) + modality_weight * (L(visual) + L(audio))``.

    The term of a modality counts only the samples that have the modality, the fused term only samples that
    have at least one. The sum over the terms is this project's choice.

    Args:
        criterion: the loss L of each term.
        modality_weight: weight of the terms of the two modalities (mu), at least 0.

    Raises:
        ValueError: modality_weight is negative.
    """

    def __init__(self, criterion: CoarseFineLoss | None = None, modality_weight: float = 0.5) -> None:
        super().__init__()
        if modality_weight < 0:
            raise ValueError(f"modality_weight must be at least 0, got {modality_weight}")
        self.criterion = CoarseFineLoss() if criterion is None else criterion
        self.modality_weight = modality_weight

    def forward(self, output: BimodalOutput, target: Tensor) -> Tensor:
        """Compute the loss of a :class:`~gcsa_ext.nn.BimodalNet` output.

        Args:
            output: the network's output for N samples.
            target: (N,) int64, classes or the criterion's `ignore_index`.

        Returns:
            A scalar, or (N,) if the criterion's reduction is "none".
        """
        ignored = torch.full_like(target, self.criterion.ignore_index)
        fused_target = target.where(output.present.any(dim=1), ignored)
        loss: Tensor = self.criterion(output.log_probabilities, fused_target, log_probabilities=True)
        if self.modality_weight:
            visual = self.criterion(output.visual_logits, target.where(output.present[:, 0], ignored))
            audio = self.criterion(output.audio_logits, target.where(output.present[:, 1], ignored))
            loss = loss + self.modality_weight * (visual + audio)
        return loss
