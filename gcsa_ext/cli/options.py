"""Options and defaults that several verbs share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, unless there is none or the help already states it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError(text)
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse puts this name into its error message
    return parse


positive_int = _positive(int)
positive_float = _positive(float)


def add_manifest_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--manifest``, and ``--cache`` and ``--workers`` for the preparation of its clips."""
    parser.add_argument(
        "--manifest",
        type=Path,
        required=True,
        help="CSV file with the columns path, label (a class name or index), split (train, "
        "validation or test) and optionally start and end in seconds, speaker, and frame_labels (a text file "
        "with a label index a line); relative paths start at its folder",
    )
    parser.add_argument(
        "--cache", type=Path, help="folder for prepared clips (default: in the user's cache folder)"
    )
    parser.add_argument("--workers", type=positive_int, default=2, help="threads that prepare clips")


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint``, the network to use."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint, with or without suffix")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``; :func:`device_name` resolves its value."""
    parser.add_argument("--device", default="auto", help='as PyTorch names it; "auto": a GPU if there is one')


def device_name(option: str) -> str:
    """The device that ``--device`` asks for: "auto" is a GPU if there is one, else the CPU."""
    if option != "auto":
        return option
    return "cuda" if torch.cuda.is_available() else "cpu"


def cache_folder(name: str) -> Path:
    """``name`` in the user's cache folder, as the XDG base directory specification places it."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "gcsa-ext" / name
