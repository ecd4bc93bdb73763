"""A report of installed versions, the build, and the backends that can run here, or why one cannot."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import numpy
import torch

from gcsa_ext import backends, openmp

"""Operators that every backend has."""

OPTIONAL = (
    "av",
    "opencv-python-headless",
    "lightning",
    "torchmetrics",
    "matplotlib",
    "rich",
    "safetensors",
    "torchaudio",
)
"""Distributions of the extra [train], and torchaudio, with which the benchmarks compare."""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _isa() -> str:
    try:
        return backends.cpu.isa()
    except RuntimeError as error:
        return f"none: {error}"


def _waiting(variables: dict[str, str]) -> str:
    if not variables:
        return "spin for milliseconds, then sleep: OpenMP's default, slow beside busy processes"
    settings = ", ".join(f"{name}={value}" for name, value in variables.items())
    return f"{settings}, for all of torch in this process"


def info() -> dict[str, Any]:
    """Versions, build, instruction set, threads, and the reason why a backend cannot run.

    Returns:
        A dict that json can write: "versions" (None where not installed), "build" (None without the compiled
        module), "load_error", "isa", "threads", "openmp" (the environment variables that limit how long a
        waiting thread spins, as far as they are set), "forced_backend", "backends": {backend: {device type:
        the reason why it cannot run, or None if it can}}, and "proofs" of the kernels for GPUs in this
        process: whether they are "enabled", the list "passed", and "failed": {what was proved: the reason}.
    """
    extension = backends.native.extension
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    reasons = {
        backend: {
            device: backends.unsupported(backend, "channel_gate", torch.device(device), torch.float32)
            for device in devices
        }
        for backend in backends.ORDER
    }
    proofs = dict(backends.proof.results)
    return {
        "versions": {
            "gcsa-ext": _version("gcsa-ext"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "numpy": numpy.__version__,
            **{name: _version(name) for name in OPTIONAL},
        },
        "build": None if extension is None else dict(extension.build_info()),
        "load_error": backends.native.load_error,
        "isa": None if extension is None else _isa(),
        "threads": torch.get_num_threads(),
        "openmp": openmp.environment(),
        "forced_backend": backends.forced_backend(),
        "backends": reasons,
        "proofs": {
            "enabled": backends.proof.enabled,
            "passed": [str(subject) for subject, reason in proofs.items() if reason is None],
            "failed": {str(subject): reason for subject, reason in proofs.items() if reason is not None},
        },
    }


def _proof_lines(proofs: dict[str, Any]) -> list[str]:
    if not proofs["enabled"]:
        return ["proofs of kernels for GPUs", "  switched off: GCSA_EXT_PROOF=0"]
    outcomes = [f"  {subject}: passed" for subject in proofs["passed"]]
    outcomes += [f"  {subject}: failed: {reason}" for subject, reason in proofs["failed"].items()]
    return [
        "proofs of kernels for GPUs",
        *(outcomes or ["  none so far: the first use of an operator proves it"]),
    ]


def format_info() -> str:
    """`info()` as text for a person."""
    report = info()
    lines = ["versions"]
    lines += [f"  {name:24}{version or 'not installed'}" for name, version in report["versions"].items()]
    lines.append("compiled module")
    build = report["build"]
    if build is None:
        lines.append(f"  missing: {report['load_error']}")
    else:
        requested = os.environ.get("GCSA_EXT_CPU_ISA")
        lines += [
            f"  {'compiler':24}{build['compiler']}",
            f"  {'OpenMP':24}{'yes' if build['openmp'] else 'no: every operator runs on one thread'}",
            f"  {'CUDA kernels':24}{build['cuda'] or 'none: ' + build['cuda_missing']}",
            f"  {'instruction sets':24}{', '.join(build['isas'])}",
            f"  {'in use':24}{report['isa']}{f' (GCSA_EXT_CPU_ISA={requested})' if requested else ''}",
        ]
    lines += [
        f"{'threads':26}{report['threads']}",
        f"{'waiting threads':26}{_waiting(report['openmp'])}",
        "backends (best first)",
    ]
    for backend, devices in report["backends"].items():
        for device, reason in devices.items():
            state = "available" if reason is None else f"cannot run: {reason}"
            lines.append(f"  {backend + ' on ' + device:24}{state}")
    if forced := report["forced_backend"]:
        known = forced in backends.ORDER
        lines.append(f"  forced: {forced}{'' if known else ', which is none of them'}")
    lines += _proof_lines(report["proofs"])
    return "\n".join(lines)
