"""Progress bars of one appearance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gcsa_ext.extra import import_extra

if TYPE_CHECKING:
    from rich.progress import Progress


def make_progress() -> Progress:
    """A rich progress display on standard error: description, bar, count, elapsed and remaining time.

    It is disabled in the processes that torchrun or Lightning started with a rank other than 0.
    """
    import_extra("rich")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0",
    )


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show one bar for as long as the context lasts. Yields the function ``report(done, total)``."""
    with make_progress() as progress:
        task = progress.add_task(description, total=None, note="")

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report
