"""Runs python_tests/backends/test_gpu.py in processes of its own, also under NVIDIA's compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.machine import ROOT

import gcsa_ext

SANITIZED = "gate or mask or band or attention_in_16_bits or sizes_of_the_map"
"""Of the tests on a GPU those that run under compute-sanitizer, which takes many times as long."""


def package_environment() -> dict[str, str]:
    """For a process that is to find the gcsa_ext that this one has found, wherever it is started."""
    places = [str(Path(gcsa_ext.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, places))}


def pytest_command(*options: str) -> list[str]:
    """The tests on a GPU; to be run elsewhere than in the source tree, which would hide another gcsa_ext."""
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
    return [*command, *options, str(ROOT / "python_tests" / "backends" / "test_gpu.py")]


def run_tests(seconds: Callable[[], float], log: Path) -> dict[str, Any]:
    """The tests on a GPU in a process of their own, on several workers where pytest-xdist is there; their
    output goes into the file `log`."""
    if importlib.util.find_spec("pytest") is None:
        return {"status": "not run: there is no pytest"}
    workers, limit = [], seconds()
    if importlib.util.find_spec("xdist") is not None:
        workers = ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 2))), "--dist", "loadgroup"]
    with log.open("w") as output, tempfile.TemporaryDirectory() as elsewhere:
        process = subprocess.Popen(
            pytest_command(*workers),
            cwd=elsewhere,
            env=package_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
            failure = None if status == 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too, or they would disturb the measurements
            process.wait()
            failure = f"stopped after {limit:.0f} s"
    tail = log.read_text(errors="replace").strip().splitlines()[-40:]
    return {"status": "passed" if failure is None else failure, "failure": failure, "output": tail}


def sanitize() -> int:
    """The operators' tests on the CUDA kernels, under memcheck and under racecheck."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        sys.exit("benchmarks/gpu.py: --sanitize needs compute-sanitizer, which comes with the CUDA toolkit")
    # Memory of its own for every tensor, or an access beyond one would end in the next.
    environment = {**package_environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tests = pytest_command("-o", "timeout=0", "-k", f"cuda and ({SANITIZED})")
    failed = 0
    for tool in ("memcheck", "racecheck"):
        print(f"compute-sanitizer --tool {tool}", flush=True)
        command = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "77", *tests]
        with tempfile.TemporaryDirectory() as elsewhere:
            failed |= subprocess.run(command, cwd=elsewhere, env=environment, check=False).returncode
    return 1 if failed else 0
