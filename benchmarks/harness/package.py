"""Builds a source tree of gcsa_ext into a folder, without touching the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.processes import last_lines, run_limited


def build(source: Path, folder: Path, *settings: str, seconds: float | None = None) -> str | None:
    """Compile `source` and install it into `folder`; the environment must have what its build needs.

    Intermediate files and the log are kept beside `folder`, so that a build that was stopped goes on.

    Args:
        settings: of pip's --config-settings.
        seconds: after so many the build is stopped.

    Returns:
        None, or why it failed.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
    command += ["--no-deps", "--upgrade", "--target", str(folder)]
    command += [f"--config-settings=build-dir={folder}.build", *(f"--config-settings={s}" for s in settings)]
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])  # for nvcc
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = Path(f"{folder}.log")
    status = run_limited([*command, str(source)], log, seconds, {**os.environ, "PATH": path})
    if status is None:
        return f"building took more than {seconds:.0f} s"
    return None if status == 0 else "building failed: " + " / ".join(last_lines(log, 8))
