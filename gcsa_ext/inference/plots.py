"""Pictures of results, as PNG files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gcsa_ext.atomic import whole_file
from gcsa_ext.extra import import_extra

if TYPE_CHECKING:
    from gcsa_ext.inference.rows import FramePrediction


def _figure(width: float, height: float) -> Any:
    """An empty figure drawn by Agg, which needs no display and touches no global state of pyplot."""
    figure = import_extra("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    import_extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def plot_confusion(path: str | Path, confusion: Tensor, classes: Sequence[str], title: str = "") -> Path:
    """Draw a confusion matrix. The numbers are counts, the shades are shares of the labelled class.

    Args:
        path: PNG file to write.
        confusion: (K, K) integers, rows are labels, columns predictions.
        classes: K names by index.
        title: above the picture.

    Returns:
        `path`.

    Raises:
        ValueError: the number of names is not that of the matrix's rows and columns.
    """
    count = len(classes)
    if confusion.shape != (count, count):
        raise ValueError(
            f"expected a confusion matrix of shape {(count, count)}, got {tuple(confusion.shape)}"
        )
    shares = confusion.double() / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    figure = _figure(1.5 + 0.7 * count, 1.0 + 0.7 * count)
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
    for row in range(count):
        for column in range(count):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(confusion[row, column])), ha="center", va="center", color=color)
    axes.set_xticks(range(count), classes, rotation=45, ha="right")
    axes.set_yticks(range(count), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled")
    axes.set_title(title)
    figure.colorbar(image, label="share of the labelled class", shrink=0.8)
    return _save(figure, path)


class Timeline:
    """Collects the predictions of a video for a picture. It keeps a bounded number of evenly spaced rows.

    Args:
        limit: largest number of rows to keep. More rows than a picture has columns cannot be seen.
    """

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit
        self.rows: list[FramePrediction] = []
        self._stride = 1
        self._seen = 0

    def observe(self, rows: Iterable[FramePrediction]) -> Iterator[FramePrediction]:
        """Keep some of the `rows`, which are in the order of time, and yield all of them."""
        for row in rows:
            if self._seen % self._stride == 0:
                self.rows.append(row)
            self._seen += 1
            if len(self.rows) >= self.limit:
                self.rows = self.rows[::2]
                self._stride *= 2
            yield row

    def plot(self, path: str | Path, classes: Sequence[str], title: str = "") -> Path:
        """Draw the probabilities over time. Bars below show when a face was found and when there was sound.

        Args:
            path: PNG file to write.
            classes: K names by index.
            title: above the picture.

        Returns:
            `path`.
        """
        times = [row.time for row in self.rows]
        figure = _figure(10.0, 4.5)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[8, 1])
        shares = [[row.probabilities[k] for row in self.rows] for k in range(len(classes))]
        colors = import_extra("matplotlib").colormaps["tab10"].colors
        upper.stackplot(times, shares, labels=classes, colors=colors[: len(classes)])
        upper.set_ylim(0.0, 1.0)
        upper.set_ylabel("probability")
        upper.set_title(title)
        upper.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        for position, found in enumerate(([row.audio for row in self.rows], [row.face for row in self.rows])):
            lower.fill_between(times, position + 0.1, position + 0.9, where=found, step="mid", color="0.4")
        lower.set_yticks([0.5, 1.5], ["sound", "face"])
        lower.set_ylim(0.0, 2.0)
        lower.set_xlabel("time / s")
        return _save(figure, path)


def _save(figure: Any, path: str | Path) -> Path:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return Path(path)
