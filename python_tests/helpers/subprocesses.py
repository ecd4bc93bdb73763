"""Python in a process of its own, with a time limit, so that a hang is a failure and not a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import gcsa_ext

ROOT = Path(gcsa_ext.__file__).resolve().parent.parent


def python(source: str, *, timeout: float = 60.0, path: Path = ROOT, **environment: str) -> str:
    """Run Python source in which gcsa_ext is found under `path`; returns what it prints."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GCSA_EXT_")}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={**inherited, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "2", **environment},
        cwd=path,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


def holds_in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether it does in a child of this process; an exception there is a no."""
    child = os.fork()
    if child == 0:
        holds = False
        try:
            holds = check()
        finally:
            os._exit(0 if holds else 1)
    return os.waitpid(child, 0)[1] == 0
