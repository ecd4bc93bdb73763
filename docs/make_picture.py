"""Draw the picture of README.md, docs/picture.png, from what the package itself computes.

    gcsa-ext demo && python docs/make_picture.py

Left, a synthetic person whom the demo's training has not seen shows several emotions in turn, and the demo's
checkpoint judges every frame. Right, the speed table of README.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import av
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcsa_ext.corpora import synthesize_clip
from gcsa_ext.inference.checkpoint import Checkpoint, load_checkpoint
from gcsa_ext.inference.predictor import predict_video
from gcsa_ext.media import equal_interval_times, frames_at

ROOT = Path(__file__).parents[1]
EMOTIONS = ("Happiness", "Anger", "Surprise", "Sadness", "Neutral")
SECONDS = 3.2  # of each emotion
IDENTITY = 4102  # none of the demo's corpus
FACES = 10
COLORS = {
    "Neutral": "#a3adb8",
    "Anger": "#d1495b",
    "Disgust": "#8d6a9f",
    "Fear": "#5f5aa2",
    "Happiness": "#edae49",
    "Sadness": "#30638e",
    "Surprise": "#2a9d8f",
    "Other": "#d8d2c4",
}
OURS, PEER, TEXT = "#2a9d8f", "#d5dae0", "#24292f"


def concatenate(parts: list[Path], path: Path) -> None:
    """Copy the packets of clips with equal encodings into one file."""
    with av.open(str(path), "w") as out:
        tracks: dict[str, Any] = {}
        last = {"video": -math.inf, "audio": -math.inf}
        for number, part in enumerate(parts):
            with av.open(str(part)) as clip:
                if not tracks:  # all of them, before the first packet
                    tracks = {stream.type: out.add_stream_from_template(stream) for stream in clip.streams}
                for packet in clip.demux():
                    kind = packet.stream.type
                    shift = round(number * SECONDS / packet.time_base)
                    # The sound of a clip begins with a packet of padding, before the last clip's sound ends.
                    if packet.dts is None or packet.dts + shift <= last[kind]:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    last[kind] = packet.dts
                    packet.stream = tracks[kind]
                    out.mux(packet)


def draw_timeline(faces: list[Axes], timeline: Axes, video: Path, checkpoint: Checkpoint) -> None:
    """Faces at equal intervals, and below them the probabilities predicted for every frame."""
    rows = list(predict_video(video, checkpoint.model, checkpoint.settings, checkpoint.classes))
    end = rows[-1].time
    pictures, _ = frames_at(video, equal_interval_times(0.0, end, len(faces)))
    for axes, picture in zip(faces, pictures, strict=True):
        axes.imshow(picture)
        axes.axis("off")
    times = [row.time for row in rows]
    shares = [[row.probabilities[k] for row in rows] for k in range(len(checkpoint.classes))]
    colors = [COLORS[name] for name in checkpoint.classes]
    timeline.stackplot(times, shares, colors=colors, labels=checkpoint.classes)
    timeline.legend(
        loc="upper left",
        bbox_to_anchor=(-0.012, -0.1),
        ncols=8,
        frameon=False,
        fontsize=8.5,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    timeline.set(xlim=(0, end), ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="probability")
    timeline.text(1, -0.155, "time / s", transform=timeline.transAxes, ha="right", va="center")
    for number, emotion in enumerate(EMOTIONS):
        middle = (number + 0.5) * SECONDS
        row = min(rows, key=lambda row: abs(row.time - middle))
        index = checkpoint.classes.index(emotion)
        height = sum(row.probabilities[:index]) + row.probabilities[index] / 2
        timeline.text(middle, height, emotion, ha="center", va="center", color="white", weight="bold")
    for spine in timeline.spines.values():
        spine.set_visible(False)


def speed_table() -> str:
    """The speed table of README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("<!-- speed table begin -->")[2].partition("<!-- speed table end -->")[0].strip()


def speeds() -> list[tuple[str, str, float, float, float]]:
    """(operation, shape, milliseconds of gcsa_ext, of the fastest peer, ratio) of every row of the table."""
    rows = []
    for line in speed_table().splitlines()[2:]:
        name, shape, ours, _, peer, ratio = (cell.strip(" *") for cell in line.strip("|").split("|"))
        rows.append((name, shape, float(ours), float(peer), float(ratio)))
    return rows


def draw_speeds(axes: Axes) -> None:
    """The time per call of gcsa_ext as a share of the fastest peer's."""
    rows = speeds()
    for position, (name, shape, ours, peer, ratio) in enumerate(rows):
        name = name.replace(" forward + backward", "").replace(" forward", "")
        axes.text(0, position - 0.33, f"{name}, {shape}", va="center", color=TEXT, fontsize=9)
        axes.barh(position + 0.12, 1, height=0.42, color=PEER)
        axes.barh(position + 0.12, ours / peer, height=0.42, color=OURS)
        axes.text(
            0.985, position + 0.12, f"{peer:g} ms", ha="right", va="center", color="#57606a", fontsize=8.5
        )
        label = f"{ours:.3g} ms"
        axes.text(ours / peer + 0.015, position + 0.12, label, va="center", color=TEXT, fontsize=8.5)
        axes.text(1.03, position + 0.12, f"{ratio:.1f}x", va="center", color=OURS, weight="bold", fontsize=11)
    axes.set(xlim=(0, 1.17), ylim=(len(rows) - 0.4, -0.7))
    axes.axis("off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("gcsa-ext-demo/model.safetensors"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "picture.png")
    arguments = parser.parse_args()
    figure = Figure(figsize=(12.6, 4.5), facecolor="white")
    left, right = figure.add_gridspec(
        1, 2, width_ratios=[1.75, 1], left=0.045, right=0.99, top=0.9, bottom=0.11, wspace=0.06
    )
    faces_grid, timeline = left.subgridspec(2, 1, height_ratios=[1, 2.6], hspace=0.03)
    faces = [figure.add_subplot(cell) for cell in faces_grid.subgridspec(1, FACES, wspace=0.04)]
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            synthesize_clip(
                Path(folder) / f"{emotion}.mp4", IDENTITY, emotion, seed=1, seconds=SECONDS, size=160
            )
            for emotion in EMOTIONS
        ]
        video = Path(folder) / "video.mp4"
        concatenate(parts, video)
        draw_timeline(faces, figure.add_subplot(timeline), video, load_checkpoint(arguments.checkpoint))
    draw_speeds(figure.add_subplot(right))
    title = {"color": TEXT, "fontsize": 11.5, "weight": "bold", "va": "center"}
    figure.text(0.045, 0.95, "A drawn face that training has not seen: the emotion of every frame", **title)
    figure.text(0.656, 0.95, "Time per call: gcsa_ext beside the fastest peer", **title)
    # python_tests/test_docs.py compares the table in the picture with that of README.md.
    figure.savefig(arguments.out, dpi=120, metadata={"Description": speed_table()})


if __name__ == "__main__":
    main()
