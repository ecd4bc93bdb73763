"""The two-modality expression network: face images and a spectrogram in, a probability vector out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gcsa_ext.nn.fusion import FusionRule, ProportionalFusion
from gcsa_ext.nn.masking import FrequencyMasking
from gcsa_ext.nn.mcnn import MCNN
from gcsa_ext.nn.rhcnn import RHCNN

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Trains in minutes on two CPU cores with 64 x 64 faces; 0.4 million weights.
    "small": {
        "visual": {"widths": [16, 32, 64], "depths": [1, 1, 1]},
        "audio": {"branch_width": 8, "widths": [16, 32, 64], "depths": [1, 1, 1]},
        "options": {"dropout": 0.3, "frequency_mask_param": 8},
    },
    # The size usual for face crops of 112 x 112 and more; 20 million weights.
    "base": {
        "visual": {"widths": [48, 96, 192, 384], "depths": [3, 3, 3, 3]},
        "audio": {"branch_width": 32, "widths": [64, 128, 256], "depths": [2, 2, 2]},
        "options": {"dropout": 0.3, "frequency_mask_param": 12},
    },
}


class BimodalOutput(NamedTuple):
    """What :class:`BimodalNet` returns for N samples and K classes.

    Attributes:
        visual_logits: (N, K), 0 for a sample without a picture.
        audio_logits: (N, K), 0 for a sample without sound.
        log_probabilities: (N, K), logarithm of the fused emotion probability vector.
        probabilities: (N, K), the fused emotion probability vector; rows sum to 1.
        present: (N, 2) bool, whether the sample had a picture and had sound.
    """

    visual_logits: Tensor
    audio_logits: Tensor
    log_probabilities: Tensor
    probabilities: Tensor
    present: Tensor


class BimodalNet(nn.Module):
    """Expression recognition from face images and sound, either of which may be missing.

    The visual backbone computes the features of every image, which are averaged over the images of a sample.
    The audio backbone computes the features of the spectrogram, in which random bands are masked in training.
    A layer norm and a linear classifier follow each backbone, and :class:`~gcsa_ext.nn.ProportionalFusion`
    combines the two results into one probability vector.

    Images that are masked out and modalities that are absent take no time and do not enter the statistics of
    batch norm. Under ``torch.compile``, which needs fixed shapes, they pass through the backbone, and their
    features are discarded.

    Args:
        visual: backbone with `in_channels` and `out_features`, (B, C, H, W) -> (B, out_features).
        audio: backbone with `in_channels` and `out_features`, (B, C, F, L) and a (B, L) mask -> (B,
            out_features).
        num_classes: K.
        fusion_rule: the rule of :class:`~gcsa_ext.nn.ProportionalFusion`.
        dropout: probability of zeroing a feature in front of the classifiers.
        frequency_mask_param: a masked band has fewer than this many mel bins; 0 turns masking off.
        frequency_masks: bands per spectrogram.
    """

    def __init__(
        self,
        visual: RHCNN,
        audio: MCNN,
        num_classes: int = 8,
        fusion_rule: FusionRule = "score",
        dropout: float = 0.0,
        frequency_mask_param: int = 8,
        frequency_masks: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.visual = visual
        self.audio = audio
        self.frequency_masking = FrequencyMasking(
            frequency_mask_param, iid_masks=True, num_masks=frequency_masks
        )
        # The two gates of each GCSA roughly halve their input. Without the layer norm the averaged features
        # would be small, and the classifiers would learn slowly.
        self.visual_classifier = nn.Sequential(
            nn.LayerNorm(visual.out_features),
            nn.Dropout(dropout),
            nn.Linear(visual.out_features, num_classes),
        )
        self.audio_classifier = nn.Sequential(
            nn.LayerNorm(audio.out_features), nn.Dropout(dropout), nn.Linear(audio.out_features, num_classes)
        )
        self.fusion = ProportionalFusion(num_classes, num_modalities=2, rule=fusion_rule)
        self._config: dict[str, Any] | None = None

    @classmethod
    def from_preset(cls, preset: str, num_classes: int = 8, **options: Any) -> BimodalNet:
        """Build a network of one of two sizes.

        Args:
            preset: "small" (0.4 million weights, for two CPU cores) or "base" (20 million weights).
            num_classes: K.
            options: any of `fusion_rule`, `dropout`, `frequency_mask_param`, `frequency_masks`.

        Raises:
            ValueError: the preset does not exist.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        parts = PRESETS[preset]
        return cls.from_config(
            {
                "visual": parts["visual"],
                "audio": parts["audio"],
                "num_classes": num_classes,
                **parts["options"],
                **options,
            }
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BimodalNet:
        """Build the network that :meth:`config` describes.

        Args:
            config: "visual" and "audio" are the arguments of :class:`RHCNN` and :class:`MCNN`, all other
                entries are arguments of this class. All values can be written as JSON.

        Raises:
            TypeError: an argument does not exist.
            ValueError: a value is out of range.
        """
        options = {key: value for key, value in config.items() if key not in ("visual", "audio")}
        model = cls(RHCNN(**config.get("visual", {})), MCNN(**config.get("audio", {})), **options)
        model._config = copy.deepcopy(dict(config))
        return model

    def config(self) -> dict[str, Any]:
        """The configuration with which :meth:`from_config` builds this network again.

        Raises:
            ValueError: the network was built by the constructor, from backbones whose arguments are unknown.
        """
        if self._config is None:
            raise ValueError("only a BimodalNet from from_preset or from_config knows its configuration")
        return copy.deepcopy(self._config)

    def forward(
        self,
        frames: Tensor | None = None,
        spectrogram: Tensor | None = None,
        frame_mask: Tensor | None = None,
        spectrogram_mask: Tensor | None = None,
        present: Tensor | None = None,
    ) -> BimodalOutput:
        """Classify N samples.

        Args:
            frames: (N, T, C, H, W) images, uint8 in [0, 255] or floating point in [0, 1]; None: no sample has
                images.
            spectrogram: (N, C, F, L) floating-point spectrograms; None: no sample has one.
            frame_mask: (N, T) bool, False for images to leave out; None: all images count.
            spectrogram_mask: (N, L) bool, False for the padding at the end; None: there is no padding.
            present: (N, 2) bool, False where a sample lacks its picture (column 0) or sound (column 1). A
                sample whose mask is False everywhere lacks the modality, too.

        Raises:
            ValueError: both modalities are None, the batch is empty, or a shape or dtype does not fit.
        """
        self._check(frames, spectrogram, frame_mask, spectrogram_mask, present)
        given = frames if frames is not None else spectrogram
        assert given is not None
        batch = given.shape[0]
        weight = self.visual_classifier[-1].weight
        assert isinstance(weight, Tensor)

        has = torch.ones(batch, 2, dtype=torch.bool, device=given.device) if present is None else present
        visual_logits = audio_logits = weight.new_zeros(batch, self.num_classes)
        has_picture = has_sound = torch.zeros_like(has[:, 0])
        if frames is not None:
            if frame_mask is None:
                frame_mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
            frame_mask = frame_mask & has[:, :1]
            has_picture = frame_mask.any(dim=1)
            visual_logits = self._classify_frames(frames, frame_mask, weight.dtype)
        if spectrogram is not None:
            if spectrogram_mask is None:
                shape = (batch, spectrogram.shape[3])
                spectrogram_mask = torch.ones(shape, dtype=torch.bool, device=spectrogram.device)
            spectrogram_mask = spectrogram_mask & has[:, 1:]
            has_sound = spectrogram_mask.any(dim=1)
            audio_logits = self._classify_spectrogram(spectrogram, spectrogram_mask, weight.dtype)
        has = torch.stack([has_picture, has_sound], dim=1)
        log_probabilities = self.fusion([visual_logits, audio_logits], has)
        return BimodalOutput(visual_logits, audio_logits, log_probabilities, log_probabilities.exp(), has)

    def _classify_frames(self, frames: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, T, C, H, W) images and their (N, T) mask -> (N, K) logits, 0 where no image counts."""
        batch, count = mask.shape
        selected = mask.flatten()
        images = frames.flatten(0, 1)
        if torch.compiler.is_compiling():
            images = torch.where(selected[:, None, None, None], images, torch.zeros_like(images))
            features = self.visual(_normalize(images, dtype))
        else:
            images = images[selected]
            if not len(images):
                return torch.zeros(batch, self.num_classes, dtype=dtype, device=frames.device)
            selected_features: Tensor = self.visual(_normalize(images, dtype))
            features = selected_features.new_zeros(batch * count, selected_features.shape[1])
            features = features.masked_scatter(selected[:, None], selected_features)
        weights = mask.to(features.dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        pooled = (features.unflatten(0, (batch, count)) * weights[:, :, None]).sum(dim=1)
        logits: Tensor = self.visual_classifier(pooled)
        return logits.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)

    def _classify_spectrogram(self, spectrogram: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, C, F, L) spectrograms and their (N, L) mask -> (N, K) logits, 0 where the mask is all False."""
        selected = mask.any(dim=1)
        logits: Tensor
        if torch.compiler.is_compiling():
            masked = self.frequency_masking(spectrogram.to(dtype))
            logits = self.audio_classifier(self.audio(masked, mask))
            return logits.masked_fill(~selected[:, None], 0.0)
        kept = spectrogram[selected].to(dtype)
        if not len(kept):
            return torch.zeros(len(spectrogram), self.num_classes, dtype=dtype, device=spectrogram.device)
        selected_logits: Tensor = self.audio_classifier(
            self.audio(self.frequency_masking(kept), mask[selected])
        )
        logits = selected_logits.new_zeros(len(spectrogram), self.num_classes)
        return logits.masked_scatter(selected[:, None], selected_logits)

    def _check(
        self,
        frames: Tensor | None,
        spectrogram: Tensor | None,
        frame_mask: Tensor | None,
        spectrogram_mask: Tensor | None,
        present: Tensor | None,
    ) -> None:
        if frames is None and spectrogram is None:
            raise ValueError("frames and spectrogram are both None: at least one of them must be given")
        if frames is not None:
            channels = self.visual.in_channels
            if frames.dim() != 5 or frames.shape[2] != channels or 0 in frames.shape:
                raise ValueError(
                    f"frames must have shape (N, T, {channels}, H, W), all at least 1, "
                    f"got {tuple(frames.shape)}"
                )
            if frames.dtype != torch.uint8 and not frames.is_floating_point():
                raise ValueError(f"frames must be uint8 or floating point, got {frames.dtype}")
        if spectrogram is not None:
            channels = self.audio.in_channels
            if spectrogram.dim() != 4 or spectrogram.shape[1] != channels or 0 in spectrogram.shape:
                raise ValueError(
                    f"spectrogram must have shape (N, {channels}, F, L), all at least 1, "
                    f"got {tuple(spectrogram.shape)}"
                )
            if not spectrogram.is_floating_point():
                raise ValueError(f"spectrogram must be floating point, got {spectrogram.dtype}")
        if frames is not None and spectrogram is not None and len(frames) != len(spectrogram):
            raise ValueError(
                f"frames of shape {tuple(frames.shape)} and spectrogram of shape {tuple(spectrogram.shape)} "
                "hold different numbers of samples"
            )
        batch = len(frames) if frames is not None else len(spectrogram) if spectrogram is not None else 0
        expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [("present", present, (batch, 2))]
        if frames is not None:
            expected.append(("frame_mask", frame_mask, tuple(frames.shape[:2])))
        if spectrogram is not None:
            expected.append(("spectrogram_mask", spectrogram_mask, (batch, spectrogram.shape[3])))
        for name, mask, shape in expected:
            if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
                raise ValueError(
                    f"{name} must be bool of shape {shape}, got {mask.dtype} of shape {tuple(mask.shape)}"
                )


def _normalize(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring uint8 in [0, 255] or floating point in [0, 1] to [-1, 1]."""
    images = images.to(dtype) / 255.0 if images.dtype == torch.uint8 else images.to(dtype)
    return images * 2.0 - 1.0
