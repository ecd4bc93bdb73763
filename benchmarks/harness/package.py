"""Builds a source tree of gcsa_ext into a folder of its own, without touching the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def build(source: Path, folder: Path, *settings: str, seconds: float | None = None) -> str | None:
    """Compile `source` and install it into `folder`; the environment must have what its build needs.

    The build's intermediate files stay beside `folder`, so that a build that was cut off goes on.

    Args:
        settings: of pip's --config-settings.
        seconds: after so many the build is cut off.

    Returns:
        None, or why it failed.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
    command += ["--no-deps", "--upgrade", "--target", str(folder)]
    command += [f"--config-settings=build-dir={folder}.build", *(f"--config-settings={s}" for s in settings)]
    nvcc = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    try:
        result = subprocess.run(
            [*command, str(source)],
            env={**os.environ, "PATH": nvcc},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"building took more than {seconds:.0f} s"
    lines = (result.stdout + result.stderr).strip().splitlines()
    return None if result.returncode == 0 else "building failed: " + " / ".join(lines[-8:])
