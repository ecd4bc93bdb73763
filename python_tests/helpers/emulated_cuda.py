"""The CUDA kernels compiled for the CPU by a C++ compiler, against the headers in cuda_emulation/.

Run as a program: compiles them and prints where the module is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
EMULATION = HERE / "cuda_emulation"
SOURCES = HERE.parents[1] / "csrc"
KERNELS = SOURCES / "cuda"
NAME = "gcsa_ext_emulation"
KB = 1024
H200 = (0, 0, 132, 227 * KB)
"""Device, stream, multiprocessors and bytes of shared memory of a block, as launches on an H200 get them."""
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-ffp-contract=off")


def compiler() -> str | None:
    """The C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:24]


@functools.cache
def build() -> Path:
    """Compile the sources that have changed; returns the path of the module.

    Raises:
        RuntimeError: a source does not compile; the message is the compiler's.
    """
    cxx = compiler()
    assert cxx is not None
    folder = Path(tempfile.gettempdir()) / f"gcsa_ext-cuda-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    includes = (EMULATION, KERNELS, SOURCES, pybind11.get_include(), sysconfig.get_path("include"))
    command = [cxx, *FLAGS, *(f"-I{include}" for include in includes)]
    headers = [
        path.read_bytes()
        for root in (EMULATION, KERNELS, SOURCES / "params")
        for path in sorted(root.glob("*.h"))
    ]
    version = subprocess.run([cxx, "--version"], capture_output=True, check=True).stdout
    common = _hash(version, " ".join(map(str, command)).encode(), *headers)

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}-{_hash(common.encode(), source.read_bytes())}.o"
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                made = Path(temporary) / target.name
                _run([*command, "-x", "c++", "-c", source, "-o", made])
                made.rename(target)
        return target

    sources = [*EMULATION.glob("*.cpp"), *KERNELS.glob("*.cpp"), *KERNELS.glob("*.cu")]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compiled, sorted(sources)))
    module = folder / f"{NAME}-{_hash(*(path.name.encode() for path in objects))}.so"
    if not module.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / module.name
            _run([cxx, "-shared", *objects, "-o", made])
            made.rename(module)
    return module


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")


@functools.cache
def load() -> ModuleType:
    """The module: csrc/cuda/bindings.cpp, and shuffle_order(seed) of cuda_emulation/emulation.h."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(build()))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(build())
