"""The build: what it links, which compilers take the sources, what it says of itself, its threads."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest
from subprocesses import python

from gcsa_ext import backends

_C = backends.native.extension
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's binary format or /proc")


@linux
def test_links_neither_torch_nor_cuda() -> None:
    readelf = shutil.which("readelf")
    assert readelf is not None, "readelf comes with binutils, which every compiler here needs"
    dynamic = subprocess.run([readelf, "-d", _C.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert any(name.startswith("libc.so") for name in needed), dynamic
    for name in needed:
        assert not re.match(r"lib(torch|c10|cuda|python|nv)", name), needed
    assert not re.search(r"\((RPATH|RUNPATH)\).*/", dynamic), "no path of the building machine"


X86_64 = {
    "baseline": (16, ()),
    "avx2": (32, ("-mavx2", "-mfma", "-mprfchw")),
    "avx512": (64, ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprfchw")),
}
AMX = ("-mamx-tile", "-mamx-bf16", "-mavx512bf16", "-DGCSA_EXT_MATRIX_REGISTERS")
X86_64["amx"] = (64, (*X86_64["avx512"][1], *AMX))
COMPILERS = [(compiler, isa) for compiler in ("g++", "g++-11", "clang++") for isa in X86_64]
COMPILERS += [("aarch64-linux-gnu-g++", "baseline")]


@pytest.mark.parametrize(("compiler", "isa"), COMPILERS)
def test_other_compilers_and_processors_take_the_sources(compiler: str, isa: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed: it would check that it takes the sources too")
    if not compiler.startswith("aarch64") and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{compiler} compiles for {platform.machine()} here, which has no {isa} of x86-64")
    folder = Path(__file__).parents[2] / "csrc"
    sources = [*sorted(folder.glob("cpu/**/*.cpp")), *sorted(folder.glob("memory/*.cpp"))]
    vector_bytes, flags = X86_64[isa]
    command = [
        compiler,
        "-std=c++17",
        f"-I{folder}",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        *flags,
    ]
    command += [f"-DGCSA_EXT_ISA={isa}", f"-DGCSA_EXT_VECTOR_BYTES={vector_bytes}", *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(sources) > 8


def test_build_info() -> None:
    info = _C.build_info()
    assert set(info) == {"compiler", "isas", "openmp", "cuda", "cuda_missing"}
    assert (info["cuda"] is None) != (info["cuda_missing"] is None)
    assert info["cuda"] is None or re.match(r"nvcc [\d.]+ for (sm_\d+ )+compute_\d+$", info["cuda"])
    assert re.match(r"(GNU|Clang|AppleClang) \d+\.", info["compiler"])
    assert info["isas"][0] == "baseline" and set(info["isas"]) <= {*X86_64}
    # Tests of an instruction set are skipped where the build lacks it. CMake must not lose one unnoticed.
    if platform.machine() in ("x86_64", "AMD64"):
        assert info["isas"][:3] == ["baseline", "avx2", "avx512"]
        compiler, version = re.match(r"(\w+) (\d+)\.", info["compiler"]).groups()
        if sys.platform == "linux" and compiler == "GNU" and int(version) >= 11:
            assert "amx" in info["isas"]
    assert isinstance(info["openmp"], bool)
    assert _C.cpu_isa() in info["isas"]


@linux
def test_one_openmp_runtime_and_one_pool_of_threads() -> None:
    """The kernels run on torch's threads and start no others."""
    if not _C.build_info()["openmp"]:
        pytest.skip("built by a compiler without OpenMP: the kernels have no threads that could be too many")
    if "Clang" in _C.build_info()["compiler"]:
        pytest.skip("built by Clang, whose OpenMP is another library than torch's, with threads of its own")
    printed = python(
        """
        import pathlib, re, torch, gcsa_ext
        maps = pathlib.Path("/proc/self/maps").read_text()
        lines = [line for line in maps.splitlines() if re.search(r"lib(g|i|)omp\\d*[-.]", line)]
        runtimes = {line.split()[-1] for line in lines}
        print(len(runtimes), sorted(runtimes))
        def threads():
            return len(list(pathlib.Path("/proc/self/task").iterdir()))
        torch.set_num_threads(3)
        x = torch.randn(8, 64, 56, 56)
        torch.relu(x).sum()  # starts torch's pool
        before = threads()
        for _ in range(3):
            gcsa_ext.functional.norm_gate(x, x, training=True)
        print(before, threads())
        """
    )
    runtimes, counts = printed.splitlines()
    assert runtimes.startswith("1 "), runtimes
    before, after = map(int, counts.split())
    assert after == before >= 3


def test_a_missing_nvcc_is_an_error_where_it_is_asked_for(tmp_path: Path) -> None:
    """The error says what to install. Without the request the build has no CUDA kernels."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None or shutil.which("make") is None:
        pytest.skip("the test runs CMake with make, and one of both is not installed")
    command = [cmake, "-G", "Unix Makefiles", "-S", str(Path(__file__).parents[2])]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    environment = {**os.environ, "CUDACXX": str(tmp_path / "nvcc")}
    for wanted in ("ON", "AUTO", "OFF"):
        folder = tmp_path / wanted
        call = [*command, "-B", str(folder), f"-DGCSA_EXT_CUDA={wanted}"]
        done = subprocess.run(call, capture_output=True, text=True, env=environment)
        if wanted == "ON":
            error = " ".join(done.stderr.split())
            assert done.returncode and "GCSA_EXT_CUDA=ON, but nvcc was not found" in error
            assert "Install the CUDA toolkit, version 11.8 or newer" in error
        else:
            assert done.returncode == 0, done.stderr
            assert "CUDA kernels: none" in done.stdout
