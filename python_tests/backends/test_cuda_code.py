"""The machine code of the CUDA kernels in the compiled module: for which GPUs, and whether it spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gcsa_ext import backends

MAY_SPILL: dict[str, str] = {}
"""Kernels that may use local memory, by a piece of their names, and why that is better than not to."""


def cuobjdump() -> str | None:
    """The CUDA toolkit's, or the one that comes with Triton."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    beside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(beside) if beside.exists() else shutil.which("cuobjdump")


@pytest.fixture(scope="module")
def usage() -> dict[tuple[str, str], dict[str, int]]:
    """Of every kernel and architecture: registers and bytes of memory per thread."""
    extension = backends.native.extension
    build = extension.build_info()
    if build["cuda"] is None:
        pytest.skip(f"there is no CUDA code to look at: {build['cuda_missing']}")
    program = cuobjdump()
    if program is None:
        pytest.skip("cuobjdump, which reads the code, is neither in a CUDA toolkit here nor in Triton")
    command = [program, "--dump-resource-usage", extension.__file__]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, str], dict[str, int]] = {}
    architecture = ""
    for line, following in zip(printed.splitlines(), [*printed.splitlines()[1:], ""], strict=True):
        if match := re.match(r"arch = (sm_\d+)", line):
            architecture = match[1]
        if match := re.match(r" Function (\w+):", line):
            numbers = re.findall(r"(\w+):(\d+)", following)
            found[architecture, match[1]] = {name: int(value) for name, value in numbers}
    return found


def test_every_kernel_is_there_for_every_architecture(usage: dict[tuple[str, str], dict[str, int]]) -> None:
    promised = re.findall(r"sm_\d+", backends.native.extension.build_info()["cuda"])
    kernels = {architecture: {name for a, name in usage if a == architecture} for architecture in promised}
    assert set(kernels) == {architecture for architecture, _ in usage} and promised
    assert all(names == kernels[promised[0]] for names in kernels.values())
    assert len(kernels[promised[0]]) > 40


def test_kernels_keep_to_registers(usage: dict[tuple[str, str], dict[str, int]]) -> None:
    for (architecture, name), numbers in usage.items():
        if any(piece in name for piece in MAY_SPILL):
            continue
        assert numbers["STACK"] == numbers["LOCAL"] == 0, (architecture, name, numbers)
        assert numbers["REG"] > 0
