"""Runs a command with a limit on its time and that of all processes that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_limited(
    command: Sequence[str],
    log: Path,
    seconds: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> int | None:
    """The exit status; None if the command was stopped after `seconds`. Its output goes into `log`."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # compilers and test workers, too
            process.wait()
            return None


def last_lines(log: Path, count: int) -> list[str]:
    return log.read_text(errors="replace").strip().splitlines()[-count:]
