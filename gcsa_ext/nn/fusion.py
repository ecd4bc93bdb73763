"""Proportional decision fusion: one probability vector of the emotions from those of the modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

FusionRule = Literal["score", "class", "confidence"]

# The smallest weight of a modality: one with the score 0 still decides about a sample that has no other.
SMALLEST_SCORE = 1e-6


def class_f1(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """F1 score of each class, ``2 TP / (2 TP + FP + FN)``; 0 for a class in neither `predicted` nor `target`.

    Args:
        predicted: (N,) integers in [0, num_classes).
        target: (N,) integers in [0, num_classes).
        num_classes: K.

    Returns:
        (K,) float64.
    """
    confusion = torch.bincount(target * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes).double()
    occurrences = confusion.sum(dim=0) + confusion.sum(dim=1)
    return 2.0 * confusion.diagonal() / occurrences.clamp(min=1.0)


class ProportionalFusion(nn.Module):
    """Decision fusion by the proportional criterion: ``P = sum_m w_m p_m`` with ``p_m = softmax(logits_m)``.

    arXiv 2503.11935 states that the decisions are fused by a proportional criterion. These rules for the
    weights are this project's choice:

    * ``"score"``: ``w_m = s_m / sum_m s_m``, s_m the macro-F1 of modality m on the validation set.
    * ``"class"``: ``w_mk = s_mk / sum_m s_mk`` with the F1 of class k; P is then divided by its sum.
    * ``"confidence"``: per sample, ``w_m`` proportional to ``max_k p_mk``; needs no scores.

    The sums run over the modalities that a sample has. A sample that has none gets the uniform distribution.
    Everything is computed from logarithms, in float32 at least, so that no finite logit yields NaN.

    Args:
        num_classes: K.
        num_modalities: M.
        rule: the rule for the weights.

    Attributes:
        scores: (M,) buffer, the macro-F1 of each modality; 1 until set or fitted.
        class_scores: (M, K) buffer, the F1 of each modality and class; 1 until set or fitted.
    """

    scores: Tensor
    class_scores: Tensor

    def __init__(self, num_classes: int, num_modalities: int = 2, rule: FusionRule = "score") -> None:
        super().__init__()
        if num_classes < 1 or num_modalities < 1:
            raise ValueError(
                f"num_classes and num_modalities must be at least 1, got {num_classes} and {num_modalities}"
            )
        if rule not in get_args(FusionRule):
            raise ValueError(f"rule must be one of {', '.join(get_args(FusionRule))}, got {rule!r}")
        self.num_classes = num_classes
        self.num_modalities = num_modalities
        self.rule = rule
        self.register_buffer("scores", torch.ones(num_modalities))
        self.register_buffer("class_scores", torch.ones(num_modalities, num_classes))

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, num_modalities={self.num_modalities}, rule={self.rule!r}"

    @torch.no_grad()
    def set_scores(
        self, scores: Tensor | Sequence[float], class_scores: Tensor | Sequence[Sequence[float]] | None = None
    ) -> None:
        """Set the validation scores by hand.

        Args:
            scores: (M,) macro-F1 of each modality, finite and not negative.
            class_scores: (M, K) F1 of each modality and class; by default `scores` for every class.

        Raises:
            ValueError: a shape does not fit, or a score is negative, NaN or infinite.
        """
        macro = torch.as_tensor(scores, dtype=torch.float64)
        if macro.shape != self.scores.shape:
            raise ValueError(f"scores must have shape {tuple(self.scores.shape)}, got {tuple(macro.shape)}")
        if class_scores is None:
            per_class = macro[:, None].expand(self.class_scores.shape)
        else:
            per_class = torch.as_tensor(class_scores, dtype=torch.float64)
        if per_class.shape != self.class_scores.shape:
            raise ValueError(
                f"class_scores must have shape {tuple(self.class_scores.shape)}, got {tuple(per_class.shape)}"
            )
        for name, values in (("scores", macro), ("class_scores", per_class)):
            if not bool((torch.isfinite(values) & (values >= 0)).all()):
                raise ValueError(f"{name} must be finite and not negative, got {values.tolist()}")
        self.scores.copy_(macro)
        self.class_scores.copy_(per_class)

    @torch.no_grad()
    def fit(
        self,
        outputs: Sequence[Tensor],
        labels: Tensor,
        present: Tensor | None = None,
        ignore_index: int = -1,
    ) -> Tensor:
        """Score each modality on a validation set and keep the scores.

        Args:
            outputs: per modality (N, K) logits or probabilities; only the index of the largest matters.
            labels: (N,) integers; `ignore_index` where there is no label.
            present: (N, M) bool, False where a sample lacks the modality. The sample then does not count in
                the modality's score.
            ignore_index: the label of samples without a label.

        Returns:
            (M,) float64, the macro-F1 of each modality: the unweighted mean of its K per-class F1 scores.

        Raises:
            ValueError: the shapes do not fit each other, or no sample has a label.
        """
        self._check(outputs, present)
        if labels.shape != outputs[0].shape[:1]:
            raise ValueError(
                f"labels must have shape {tuple(outputs[0].shape[:1])}, got {tuple(labels.shape)}"
            )
        labelled = labels != ignore_index
        if not bool(labelled.any()):
            raise ValueError(
                f"none of the {labels.numel()} validation samples has a label: nothing to fit the fusion on"
            )
        per_class = []
        for modality, output in enumerate(outputs):
            rows = labelled if present is None else labelled & present[:, modality]
            per_class.append(class_f1(output[rows].argmax(dim=1), labels[rows], self.num_classes))
        class_scores = torch.stack(per_class)
        macro = class_scores.mean(dim=1)
        self.set_scores(macro, class_scores)
        return macro

    def forward(self, logits: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Fuse the modalities.

        Args:
            logits: per modality (N, K), floating point. Those of an absent modality are ignored: they may be
                NaN, and their gradient is 0.
            present: (N, M) bool, False where a sample lacks the modality; None: all samples have all.

        Returns:
            (N, K) log-probabilities, in float32 or the wider dtype of the logits.

        Raises:
            ValueError: the number of modalities or a shape does not fit.
        """
        self._check(logits, present)
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        stacked = torch.stack([x.to(dtype) for x in logits], dim=1)  # (N, M, K)
        if present is None:
            present = torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device)
        stacked = torch.where(present[:, :, None], stacked, torch.zeros_like(stacked))
        log_p = torch.log_softmax(stacked, dim=2)

        if self.rule == "confidence":
            log_weight = log_p.amax(dim=2, keepdim=True)  # (N, M, 1)
        else:
            scores = self.scores[:, None] if self.rule == "score" else self.class_scores
            log_weight = scores.to(dtype).clamp(min=SMALLEST_SCORE).log()[None]  # (1, M, 1 or K)
        # For a sample without any modality every log_p is uniform, and so is every mixture of them.
        counted = present | ~present.any(dim=1, keepdim=True)
        log_weight = torch.log_softmax(log_weight.masked_fill(~counted[:, :, None], -torch.inf), dim=1)
        fused = torch.logsumexp(log_weight + log_p, dim=1)
        # Under the other rules the probabilities of a sample already sum to 1.
        return torch.log_softmax(fused, dim=1) if self.rule == "class" else fused

    def _check(self, outputs: Sequence[Tensor], present: Tensor | None) -> None:
        if len(outputs) != self.num_modalities:
            raise ValueError(f"expected the outputs of {self.num_modalities} modalities, got {len(outputs)}")
        batch = outputs[0].shape[0] if outputs[0].dim() else 0
        for modality, output in enumerate(outputs):
            if output.shape != (batch, self.num_classes) or not output.is_floating_point():
                raise ValueError(
                    f"expected floating-point outputs of shape ({batch}, {self.num_classes}), "
                    f"got {output.dtype} of shape {tuple(output.shape)} for modality {modality}"
                )
        if present is not None and (
            present.shape != (batch, self.num_modalities) or present.dtype != torch.bool
        ):
            raise ValueError(
                f"present must be bool of shape ({batch}, {self.num_modalities}), "
                f"got {present.dtype} of shape {tuple(present.shape)}"
            )
