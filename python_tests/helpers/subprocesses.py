"""Python in another process, with a time limit, so that a deadlock fails a test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import gcsa_ext

HELPERS = Path(__file__).parent
ROOT = Path(gcsa_ext.__file__).resolve().parent.parent


def python(source: str, *, timeout: float = 60.0, path: Path = ROOT, **environment: str) -> str:
    """Run Python source that can import gcsa_ext, from `path`, and these helpers; returns what it prints."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GCSA_EXT_")}
    paths = f"{path}{os.pathsep}{HELPERS}"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={
            **inherited,
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "2",
            **environment,
        },
        cwd=path,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


def holds_in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether `check` returns True in a fork of this process; False where it raises."""
    child = os.fork()
    if child == 0:
        holds = False
        try:
            holds = check()
        finally:
            os._exit(0 if holds else 1)
    return os.waitpid(child, 0)[1] == 0
