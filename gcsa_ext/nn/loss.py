"""The coarse-fine loss, for one classifier and over the entire two-modality network."""

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

    That a coarse-fine granularity loss is used is stated by arXiv 2503.11935; this formula is this project's
    choice, and the default groups are those of arXiv 2203.13052 (CFC-SP) for the eight ABAW classes.

    Class weights and label smoothing mean what they mean in :func:`torch.nn.functional.cross_entropy`,
    applied to ``c_k = -log p_k - coarse_weight * log p_G(k)`` in place of ``-log p_k``; with
    ``coarse_weight=0`` the result is the same as that function's, but for a batch in which every target is
    ignored: that gives 0, with zero gradients, not NaN.

    Args:
        groups: the coarse groups, disjoint, together all classes 0 .. K-1.
        coarse_weight: weight of the coarse term (lambda), at least 0.
        class_weight: (K,) weights of the classes, or None.
        label_smoothing: probability mass spread evenly over all classes, in [0, 1].
        ignore_index: target of a sample that does not count; its input may even be NaN.
        reduction: "mean" (weighted by the targets' class weights), "sum" or "none".

    Raises:
        ValueError: groups that are no partition, a number out of range, or inputs of another shape or dtype.
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
        # All three follow from the arguments, so a checkpoint has no use for them.
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
            log_probabilities: `input` already is log-probabilities (the fused vector), not logits.

        Returns:
            A scalar; (N,) with reduction "none", 0 where the target is ignored.

        Raises:
            ValueError: another shape or dtype.
            IndexError, RuntimeError: a target that is no class and not `ignore_index` (from PyTorch's
                indexing).
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
        # With nothing to count, 0 / tiny keeps the result 0 and attached to the graph.
        return loss.sum() / sample_weight.sum().clamp(min=torch.finfo(loss.dtype).tiny)


class BimodalLoss(nn.Module):
    """The coarse-fine loss over the entire network: ``L(fused) + modality_weight * (L(visual) + L(audio))``.

    A modality's own term counts only the samples that have it, and the fused term only those that have any.
    The sum over the parts is this project's choice.

    Args:
        criterion: the loss of each part.
        modality_weight: weight of the two modalities' own losses (mu), at least 0.
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
            output: what the network returned for N samples.
            target: (N,) int64, classes or the criterion's `ignore_index`.

        Returns:
            A scalar, or (N,) where the criterion's reduction is "none".
        """
        ignored = torch.full_like(target, self.criterion.ignore_index)
        fused_target = target.where(output.present.any(dim=1), ignored)
        loss: Tensor = self.criterion(output.log_probabilities, fused_target, log_probabilities=True)
        if self.modality_weight:
            visual = self.criterion(output.visual_logits, target.where(output.present[:, 0], ignored))
            audio = self.criterion(output.audio_logits, target.where(output.present[:, 1], ignored))
            loss = loss + self.modality_weight * (visual + audio)
        return loss
