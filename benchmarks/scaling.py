"""How GCSA's time grows with batch, channels and map: ``python benchmarks/scaling.py --help``.

Draws ours beside eager PyTorch, whichever of its two memory layouts is faster, in inference and in training.
Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness.case import EAGER, LAST, OURS
from harness.machine import description, write_json
from harness.operators import gcsa_case
from harness.timing import measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES: dict[str, tuple[tuple[int, ...], Callable[[int], tuple[int, int, int, int]], str]] = {
    "N": ((1, 2, 4, 8, 16, 32), lambda n: (n, 128, 28, 28), "batch N, at 128 channels, 28 x 28"),
    "C": ((16, 32, 64, 128, 256, 512), lambda c: (8, c, 28, 28), "channels C, at N = 8, 28 x 28"),
    "H": ((7, 14, 28, 56, 112), lambda h: (8, 64, h, h), "map H = W, at N = 8, 64 channels"),
}
"""What grows: its values, the shape (N, C, H, W) at each, and the words below the axis."""

PASSES = {"forward, inference": False, "forward + backward, training": True}
PEERS = (EAGER, EAGER + LAST)
CURVES = (("eager", "PyTorch", "#D55E00", "s"), ("ours", "gcsa_ext", "#0072B2", "o"))
"""Key of the times, label, colour (of Okabe and Ito's colour-blind-safe palette) and marker."""


def times(shape: tuple[int, int, int, int], training: bool, seconds: float) -> dict[str, float]:
    """Median seconds per call on (N, C, H, W), of "ours" and of "eager" (the faster layout), taking turns."""
    case = gcsa_case(shape, training, backward=training)
    spans = measure({name: case.build(name) for name in (OURS, *PEERS)}, seconds)
    median = {name: statistics.median(span) for name, span in spans.items()}
    return {"ours": median[OURS], "eager": min(median[name] for name in PEERS)}


def draw(found: dict[str, dict[str, list[dict[str, Any]]]], output: Path, note: str) -> None:
    """Save the picture.

    Args:
        found: points ("value", "ours", "eager", the last two in seconds), by pass and by what grows.
        output: a .png file.
        note: a line below the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, grid = plt.subplots(
            len(found), len(SIZES), figsize=(9, 5.6), sharey="row", squeeze=False, layout="constrained"
        )
        for row, (passed, curves) in zip(grid, found.items(), strict=True):
            for axes, (growing, points) in zip(row, curves.items(), strict=True):
                _panel(axes, points, SIZES[growing][2])
            row[0].set_ylabel(f"{passed}\nms per call")
        figure.supxlabel(note, fontsize=8, color="0.4")
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.set_dpi(100)
        figure.canvas.draw()
        picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        picture.quantize(64).save(output, optimize=True)  # 64 colours take a quarter of the bytes
        plt.close(figure)


def _panel(axes: Axes, points: list[dict[str, Any]], words: str) -> None:
    values = [point["value"] for point in points]
    for name, label, colour, marker in CURVES:
        milliseconds = [1e3 * point[name] for point in points]
        axes.plot(values, milliseconds, color=colour, marker=marker, markersize=4, linewidth=1.8)
        above = name == "eager"  # the label is where the other curve is not
        axes.annotate(
            label,
            (values[len(values) // 2], milliseconds[len(values) // 2]),
            xytext=(-6, 6) if above else (6, -6),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            color=colour,
            weight="bold",
        )
    last = points[-1]
    axes.annotate(
        f"{last['eager'] / last['ours']:.1f}x",
        (last["value"], (last["eager"] * last["ours"]) ** 0.5 * 1e3),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(words)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How GCSA's time grows with batch, channels and map.")
    picture = Path(__file__).parent / "assets" / "gcsa_scaling.png"
    parser.add_argument("--output", type=Path, default=picture, help="a .png file (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each of 34 points (default 1.5)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times there, or")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="draw the times found there")
    return parser.parse_args()


def main() -> None:
    """Measure and draw."""
    arguments = _arguments()
    if arguments.redraw:
        report = json.loads(arguments.redraw.read_text())
    else:
        torch.set_num_threads(arguments.threads)
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for passed, training in PASSES.items():
            for growing, (values, shape, _) in SIZES.items():
                for value in values:
                    print(f"{passed}, {growing} = {value}", file=sys.stderr, flush=True)
                    point = {"value": value, **times(shape(value), training, arguments.seconds)}
                    found.setdefault(passed, {}).setdefault(growing, []).append(point)
        version = torch.__version__.partition("+")[0]
        note = f"float32, {arguments.threads} threads; PyTorch {version} eager, the faster of both layouts"
        report = {**description(), "found": found, "note": note}
    if arguments.json:
        write_json(arguments.json, report)
    draw(report["found"], arguments.output, report["note"])


if __name__ == "__main__":
    main()
