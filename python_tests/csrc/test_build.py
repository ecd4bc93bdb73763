"""The compiled module: libraries, threads, memory, and errors instead of crashes on bad arguments."""

from __future__ import annotations

import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pybind11
import pytest
import torch
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


def test_a_result_is_hardly_larger_than_asked_for() -> None:
    """A result begins with large pages and ends with small ones: a map of 3.1 MB does not take 4."""
    _C.release_scratch()
    shape, stride = [8, 128, 28, 28], [128 * 28 * 28, 28 * 28, 28, 1]
    result = _C.empty(shape, torch.float32, False)
    assert result.dtype == torch.float32 and list(result.shape) == shape and list(result.stride()) == stride
    assert result.data_ptr() % mmap.PAGESIZE == 0
    bytes_ = result.fill_(1).nbytes
    kept = result[1:2, ::3]
    del result
    assert _C.release_scratch() == 0 and kept.eq(1).all()
    del kept
    assert bytes_ <= _C.release_scratch() < bytes_ + mmap.PAGESIZE


def test_memory_of_a_result_that_torch_refuses_is_released() -> None:
    def refuse(capsule: object) -> None:
        raise BufferError("no")

    _C.release_scratch()
    _C.use_torch({**backends.native._TORCH, "from_dlpack": refuse})
    try:
        with pytest.raises(BufferError, match="no"):
            _C.empty([1 << 20], torch.float32, False)
    finally:
        _C.use_torch(backends.native._TORCH)
    assert _C.release_scratch() == 4 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 96, 70, 41)], ids=str)
def test_a_new_tensor(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    found, expected = _C.empty(shape, dtype, channels_last), torch.empty(shape, memory_format=layout)
    assert found.shape == shape and found.dtype == dtype and found.stride() == expected.stride()
    assert not found.requires_grad


def test_a_new_tensor_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected float32"):
        _C.empty([4], torch.int32, False)


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


TENSOR = torch.ones(4096)
A = TENSOR.data_ptr()
MAP = {"dtype": 0, "channels_last": False, "batch": 1, "channels": 4, "positions": 4, "threads": 1}
CALLS: dict[str, dict[str, Any]] = {
    "channel_gate_forward": {
        **MAP, "hidden": 2, "groups": 2, "sigmoid": True, "x": A, "w1": A, "b1": A, "w2": A, "b2": A,
        "out": A,
    },
    "channel_gate_backward": {
        **MAP, "hidden": 2, "groups": 2, "sigmoid": True, "x": A, "w1": A, "b1": A, "w2": A, "b2": A,
        "grad_out": A, "grad_x": A, "grad_w1": A, "grad_b1": A, "grad_w2": A, "grad_b2": A,
    },
    "norm_gate_forward": {
        **MAP, "batch_statistics": True, "eps": 1e-5, "u": A, "z": A,
        "weight": A, "bias": A, "mean": A, "var": A,
        "out": A,
    },
    "norm_gate_backward": {
        **MAP, "batch_statistics": True, "eps": 1e-5, "u": A, "z": A,
        "weight": A, "bias": A, "mean": A, "var": A,
        "grad_out": A, "grad_u": A, "grad_z": A, "grad_weight": A, "grad_bias": A,
    },
    "frequency_mask": {
        "batch": 1, "bins": 4, "frames": 4, "threads": 1, "bands": 1, "shared": True, "element_size": 4,
        "value": 0, "start": A, "width": A, "input": A, "output": A,
    },
}  # fmt: skip
OPTIONAL = {"weight", "bias", "grad_x", "grad_u", "grad_z", "grad_weight", "grad_bias", "grad_w1"}
NONSENSE: dict[str, tuple[int, ...]] = {
    "dtype": (-1, 3, 99),
    "batch": (0, -1, -(2**40)),
    "channels": (0, -1, 3),  # 3 does not divide into 2 groups
    "positions": (0, -5),
    "threads": (0, -2),
    "hidden": (0, -1),
    "groups": (0, -2, 3),
    "bins": (0, -1),
    "frames": (0, -1),
    "bands": (0, -1),
    "element_size": (0, 1, 3, 16, -4),
}


def nonsense() -> list[tuple[str, str, int]]:
    cases = []
    for function, call in CALLS.items():
        for name in call:
            values: tuple[int, ...] = NONSENSE.get(name, ())
            if name == "channels" and "groups" not in call:
                values = values[:2]
            if call[name] == A and name not in OPTIONAL:
                values = (0,)
            cases += [(function, name, value) for value in values]
    return cases


@pytest.mark.parametrize(("function", "name", "value"), nonsense())
def test_nonsense_raises(function: str, name: str, value: int) -> None:
    call = {**CALLS[function], name: value}
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected "):
        getattr(_C, function)(*call.values())


@pytest.mark.parametrize("function", CALLS)
def test_wrong_types_raise(function: str) -> None:
    call = list(CALLS[function].values())
    for changed in ([None, *call[1:]], call[:-1], [*call, 1], [*call[:-1], -1], [*call[:-1], "address"]):
        with pytest.raises(TypeError):
            getattr(_C, function)(*changed)


def test_optional_addresses_may_be_null() -> None:
    for function in ("channel_gate_backward", "norm_gate_backward"):
        call = {name: 0 if name in OPTIONAL else value for name, value in CALLS[function].items()}
        call = {name: torch.ones(64).data_ptr() if value == A else value for name, value in call.items()}
        storage = {name: torch.ones(64) for name, value in CALLS[function].items() if value == A}
        call.update({name: t.data_ptr() for name, t in storage.items() if name not in OPTIONAL})
        getattr(_C, function)(*call.values())
        for name, tensor in storage.items():
            assert torch.equal(tensor, torch.ones(64)), name


def test_a_cache_line_takes_a_time_from_core_to_core() -> None:
    taken = _C.core_round_trip(0.01)
    assert taken > 1e-9  # infinite where there is one thread
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected "):
        _C.core_round_trip(0.0)


def test_measurements_check_their_arguments() -> None:
    shape = {"batch": 1, "inputs": 4, "outputs": 4, "height": 5, "width": 5, "kernel": 7, "threads": 1}
    for changed in ({"batch": 0}, {"inputs": 0}, {"height": 0}, {"kernel": 4}, {"threads": 0}):
        with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected "):
            _C.convolution_product_rate(*{**shape, **changed}.values(), 0.01)


def test_more_memory_than_there_is_raises() -> None:
    call = {**CALLS["channel_gate_forward"], "channels": 2**44, "hidden": 2}
    with pytest.raises((MemoryError, ValueError)):
        _C.channel_gate_forward(*call.values())
