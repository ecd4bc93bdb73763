"""Runs python_tests/backends/test_gpu.py in other processes, also under NVIDIA's compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.machine import ROOT
from harness.processes import last_lines, run_limited

import gcsa_ext

SANITIZED = "gate or mask or band or attention_in_16_bits or sizes_of_the_map"
"""Of the tests on a GPU those that run under compute-sanitizer, which takes many times as long."""


def package_environment() -> dict[str, str]:
    """Environment of a process that, started in any folder, imports the same gcsa_ext as this one."""
    places = [str(Path(gcsa_ext.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, places))}


def pytest_command(*options: str) -> list[str]:
    """Runs the tests on a GPU. The source tree as current folder would hide the installed package."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
    ]
    # pytest-benchmark warns beside workers; warnings are errors in this project, but not for its users.
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark", "-W", "default"]
    if importlib.util.find_spec("pytest_timeout") is None:
        command += ["-o", "timeout=0"]
    folders = [str(ROOT / "python_tests" / name) for name in ("ops", "nn", "backends")]
    return [*command, *options, "-m", "gpu", *folders]


def run_tests(seconds: Callable[[], float], log: Path) -> dict[str, Any]:
    """Run the tests on a GPU in another process, on several workers where pytest-xdist is installed.

    Args:
        seconds: after so many they are stopped.
        log: the file for their output.
    """
    if importlib.util.find_spec("pytest") is None:
        return {"status": "not run: there is no pytest"}
    workers, limit = [], seconds()
    if importlib.util.find_spec("xdist") is not None:
        workers = ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 2))), "--dist", "loadgroup"]
    with tempfile.TemporaryDirectory() as elsewhere:
        status = run_limited(pytest_command(*workers), log, limit, package_environment(), elsewhere)
    found: dict[str, Any] = {"status": "passed", "output": last_lines(log, 40)}
    if status is None:
        found |= {"status": f"stopped after {limit:.0f} s", "unfinished": True}
    elif status != 0:
        found |= {"status": f"failed (exit status {status})"}
    return found if status == 0 else {**found, "failure": found["status"]}


def sanitize() -> int:
    """The operators' tests on the CUDA kernels, under memcheck and under racecheck."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        sys.exit("benchmarks/gpu.py: --sanitize needs compute-sanitizer, which comes with the CUDA toolkit")
    # Without torch's cache every tensor is one allocation, and an access beyond its end is seen.
    environment = {**package_environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tests = pytest_command("-o", "timeout=0", "-k", f"cuda and ({SANITIZED})")
    failed = 0
    for tool in ("memcheck", "racecheck"):
        print(f"compute-sanitizer --tool {tool}", flush=True)
        command = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "77", *tests]
        with tempfile.TemporaryDirectory() as elsewhere:
            failed |= subprocess.run(command, cwd=elsewhere, env=environment, check=False).returncode
    return 1 if failed else 0
