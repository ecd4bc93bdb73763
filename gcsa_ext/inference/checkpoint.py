"""Checkpoints that stay loadable: weights in safetensors, everything else in readable JSON beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcsa_ext.atomic import whole_file
from gcsa_ext.corpora import ClipSettings, LabelSet, label_set
from gcsa_ext.extra import import_extra
from gcsa_ext.nn import BimodalNet

safetensors_torch = import_extra("safetensors.torch")
SafetensorError = import_extra("safetensors").SafetensorError

FORMAT = "gcsa-ext-checkpoint"
FORMAT_VERSION = 1
_SUFFIXES = (".safetensors", ".json")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message repeats the file, the cause and what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """A network with all that is needed to use it.

    Attributes:
        model: the network on the CPU, in eval mode.
        settings: how a clip becomes the network's input.
        labels: the label set of the network's classes.
        metadata: what the writer added, such as scores; plain JSON values.
    """

    model: BimodalNet
    settings: ClipSettings
    labels: LabelSet
    metadata: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names by index."""
        return self.labels.classes


def checkpoint_files(path: str | Path) -> tuple[Path, Path]:
    """The weights' file and the description's file of the checkpoint `path`, with or without a suffix."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in _SUFFIXES else path
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def save_checkpoint(
    path: str | Path,
    model: BimodalNet,
    settings: ClipSettings,
    classes: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Write ``<path>.safetensors`` and ``<path>.json``.

    Each is written under a temporary name and then renamed. The JSON, written last, holds the digest of the
    weights: whatever interrupts the two steps, a pair that does not belong together is never loaded.

    Args:
        path: with or without either suffix; folders are made.
        model: from :meth:`BimodalNet.from_preset` or :meth:`~BimodalNet.from_config`, on any device.
        settings: how clips became the network's input.
        classes: a label set, or K class names by index.
        metadata: more plain JSON values to keep.

    Returns:
        The two files' paths.

    Raises:
        ValueError: another number of classes than the network's, or a network without a configuration.
        TypeError: metadata that JSON cannot hold.
    """
    labels = label_set(classes)
    if len(labels) != model.num_classes:
        raise ValueError(
            f"{len(labels)} class names {labels.classes} were given "
            f"for a network of {model.num_classes} classes"
        )
    weights_file, description_file = checkpoint_files(path)
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()
    }
    weights = safetensors_torch.save(tensors, {"format": FORMAT})
    description = json.dumps(
        {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "classes": list(labels),
            "label_set": labels.to_dict(),
            "settings": settings.to_dict(),
            "model": model.config(),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "metadata": dict(metadata or {}),
        },
        indent=2,
    )
    with whole_file(weights_file) as temporary:
        temporary.write_bytes(weights)
    with whole_file(description_file) as temporary:
        temporary.write_text(description + "\n", encoding="utf-8")
    return weights_file, description_file


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote. No code of the file is run.

    gcsa-ext 0.1.0 wrote class names without a label set. The names of the ABAW classes then give that label
    set, other names a custom set without coarse groups and maps.

    Args:
        path: with or without either suffix.

    Raises:
        CheckpointError: a file is missing, unreadable, of another format or a newer version, or the two files
            or the weights and the network's configuration do not belong together.
    """
    weights_file, description_file = checkpoint_files(path)
    for file in (weights_file, description_file):
        if not file.is_file():
            raise CheckpointError(
                f"{file}: there is no such file; expected the checkpoint's two files "
                f"{weights_file.name} and {description_file.name} side by side"
            )
    description = _read_description(description_file)
    try:
        weights = weights_file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{weights_file}: it cannot be read ({error})") from error
    digest = hashlib.sha256(weights).hexdigest()
    if digest != description["weights_sha256"]:
        raise CheckpointError(
            f"{weights_file}: its SHA-256 is {digest}, but {description_file.name} was written for "
            f"weights with {description['weights_sha256']}; expected two files of one checkpoint"
        )
    try:
        settings = ClipSettings.from_dict(description["settings"])
        model = BimodalNet.from_config(description["model"])
        classes = tuple(description["classes"])
        if len(classes) != model.num_classes:
            raise ValueError(f"{len(classes)} class names for a network of {model.num_classes} classes")
        written = description.get("label_set")
        labels = label_set(classes) if written is None else LabelSet.from_dict(written)
        if labels.classes != classes:
            raise ValueError(f"the class names {classes} beside a label set of {labels.classes}")
        model.load_state_dict(safetensors_torch.load(weights))
    except (SafetensorError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{description_file}: its parts do not fit together, or not this gcsa-ext ({error})"
        ) from error
    return Checkpoint(model.eval(), settings, labels, description["metadata"])


def _read_description(file: Path) -> dict[str, Any]:
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: it cannot be read as JSON ({error})") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f'{file}: it is not a gcsa-ext checkpoint; expected "format": "{FORMAT}"')
    version = description.get("version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: its format version is {version!r}; this gcsa-ext reads 1 to {FORMAT_VERSION}, "
            "a newer one may be needed"
        )
    missing = sorted({"classes", "settings", "model", "weights_sha256", "metadata"} - set(description))
    if missing:
        raise CheckpointError(f"{file}: it lacks {', '.join(missing)}")
    return description
