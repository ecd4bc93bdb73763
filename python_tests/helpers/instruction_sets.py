"""The instruction sets that the CPU kernels are compiled for, and which of them can run here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gcsa_ext

ISAS = ("baseline", "avx2", "avx512", "amx")
CPUINFO = Path("/proc/cpuinfo")


def skip_unless_it_runs(isa: str) -> None:
    """The answer is not gcsa_ext's: a kernel that gcsa_ext wrongly never selects would be skipped."""
    if isa not in gcsa_ext.info()["build"]["isas"]:
        pytest.skip(f"gcsa_ext was built for a processor architecture, or by a compiler, that has no {isa}")
    if CPUINFO.exists():
        flag = {"baseline": "", "avx2": "avx2", "avx512": "avx512dq", "amx": "amx_bf16"}[isa]
        runs = flag in CPUINFO.read_text()
    else:  # not Linux
        capabilities = {"baseline": "", "avx2": "AVX", "avx512": "AVX512"}
        runs = torch.backends.cpu.get_cpu_capability().startswith(capabilities[isa])
    if not runs:
        pytest.skip(f"this processor has no {isa} instructions, and gcsa_ext refuses to use their kernels")
