"""Test and measure gcsa_ext on a GPU: ``python benchmarks/gpu.py``, 5 minutes on a bare machine.

If the gcsa_ext that Python imports has no CUDA kernels, and there is nvcc, they are built into build/ first.
Then the tests on a GPU run. Then the program measures how fast memory is copied and matrices are multiplied,
and times every operator and GCSA beside plain PyTorch (eager, eager channels_last, torch.compile). Contenders
take turns in one process, called directly and as a replayed CUDA graph. The most telling rows come first.

Every result is appended to results.jsonl at once, and report.md is written anew. A second call with the same
sources, GPU, driver and torch goes on where the first one stopped; other results are replaced. Parts that
failed are tried once more, after all others.

``--only TEXT`` measures the parts with TEXT in their name, for example ``--only channel_gate``. Where several
backends have kernels for the GPU, "gcsa_ext" is the chosen one, and "gcsa_ext cuda" (or triton) another.
report.md says by which backend an operator is faster.

``--sanitize`` instead runs the operators' tests on the CUDA kernels under NVIDIA's compute-sanitizer, which
finds accesses out of bounds (memcheck) and races in shared memory (racecheck).

``--dry-run`` runs the program on the CPU, with tiny maps and without tests, CUDA graphs, torch.compile and
memory. It shows whether the program works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("gcsa_ext") is None:
    sys.path.insert(0, str(ROOT))

from harness.case import COMPILED, EAGER, OURS, Call, Case, shape_name  # noqa: E402
from harness.ceilings import Ceilings  # noqa: E402
from harness.errors import in_one_line, relative_error  # noqa: E402
from harness.gpu_report import GRAPH, report  # noqa: E402
from harness.gpu_tests import package_environment, run_tests, sanitize  # noqa: E402
from harness.machine import revision, write  # noqa: E402
from harness.operators import (  # noqa: E402
    MAPS,
    channel_gate_case,
    frequency_mask_case,
    gcsa_case,
    norm_gate_case,
)
from harness.package import build  # noqa: E402
from harness.results import Part, Results, failure_of  # noqa: E402
from harness.run import Timed, run  # noqa: E402

from gcsa_ext import backends, info  # noqa: E402


def sources() -> str:
    """A hash of everything that the installed package is made of."""
    found = hashlib.sha256()
    files = [ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*"), *(ROOT / "gcsa_ext").rglob("*.py")]
    for file in sorted(file for file in files if file.is_file()):
        found.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def attention_cases(N: int, dtype: torch.dtype, training: bool, device: str) -> Iterator[Case]:
    for size in MAPS if device == "cuda" else ((16, 6, 5),):
        compiled = dtype == torch.bfloat16 and N > 1
        yield gcsa_case((N, *size), training, training, dtype, device, compiled=compiled)


def gate_cases(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[Case]:
    for backward in (False, True):
        compiled = dtype == torch.bfloat16
        yield channel_gate_case(shape, backward, dtype, device, compiled=compiled)
        yield norm_gate_case(shape, True, backward, dtype, device, compiled=compiled)


def mask_cases(dtype: torch.dtype, device: str) -> Iterator[Case]:
    shape = (2048, 1, 128, 1024) if device == "cuda" else (4, 1, 12, 40)
    for inplace, backward in ((False, False), (False, True), (True, False)):
        yield frequency_mask_case(shape, True, backward, inplace, dtype, device, compiled=not inplace)


def telling_cases(device: str) -> Iterator[Case]:
    """In bfloat16, attention and operators on maps that fill a GPU, and the attention of one image."""
    many, shape = (256, (256, 64, 56, 56)) if device == "cuda" else (2, (2, 16, 5, 6))
    yield from attention_cases(many, torch.bfloat16, True, device)
    yield from attention_cases(1, torch.bfloat16, False, device)
    yield from gate_cases(shape, torch.bfloat16, device)
    yield from mask_cases(torch.bfloat16, device)


def other_cases(device: str) -> Iterator[Case]:
    half, single = torch.bfloat16, torch.float32
    yield from attention_cases(8, half, False, device)
    yield from gate_cases((256, 64, 56, 56) if device == "cuda" else (2, 16, 5, 6), single, device)
    yield from mask_cases(single, device)
    for N in (1, 8):
        yield from attention_cases(N, single, False, device)
    if device == "cuda":
        for dtype in (half, single):
            yield from gate_cases((256, 128, 56, 56), dtype, device)
        yield from attention_cases(256, single, True, device)
        for size in MAPS[2:]:
            yield from gate_cases((256, *size), half, device)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def captured(call: Call) -> Timed:
    """The call as a CUDA graph; returns its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> tuple[torch.Tensor, ...]:
        graph.replay()
        return results

    return replay


def measure_row(case: Case, rounds: int, compilers: bool) -> dict[str, Any]:
    """Errors against float64, then times of all contenders in turn."""
    # cuDNN's search for the fastest convolution takes too long in float64.
    with torch.backends.cudnn.flags(benchmark=False):
        exact = [t.float() for t in case.build(EAGER, torch.float64)()]

    def ways(name: str, call: Call) -> dict[str, Timed]:
        return {name: call} | ({name + GRAPH: captured(call)} if case.device == "cuda" else {})

    found = run(
        case,
        [name for name in case.peers() if compilers or name != COMPILED] + case.ours(every_backend=True),
        error=lambda call: relative_error(call(), exact),
        allowed=lambda errors: 4 * errors.get(EAGER, 0.0) + 0.02,
        ways=ways,
        seconds=0.0,
        least_rounds=rounds,
        most_rounds=rounds,
        least_span=0.005,
        synchronize=synchronize,
    )
    times = found.pop("times")
    del found["spans"]
    seconds = {name: time["median"] for name, time in times.items()}
    return {**found, "seconds": seconds, "chosen": case.chosen_backend}


def measure_ceilings(device: str) -> dict[str, Any]:
    found = Ceilings()
    megabytes, size = (512, 8192) if device == "cuda" else (4, 256)
    found.measure(device, megabytes, size, synchronize)
    return asdict(found)


def training_memory(case: Case, contender: str) -> dict[str, Any]:
    """Bytes of a training step on the GPU beside inputs and weights: kept for the backward pass, and peak."""
    call = case.build(contender)
    (x,) = call.inputs
    for _ in range(2):  # the first step compiles, and libraries take their workspaces
        gc.collect()
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call.function(x)
        kept = torch.cuda.memory_allocated() - before - out.nbytes
        grads = torch.autograd.grad(out, [x, *call.parameters], torch.ones_like(out))
        peak = torch.cuda.max_memory_allocated() - before
        del out, grads
    return {"shape": case.shape, "contender": contender, "input": x.nbytes, "kept": kept, "peak": peak}


FIRST_STEP = """
import sys, time, torch
from gcsa_ext import GCSA
shape, dtype = eval(sys.argv[1]), getattr(torch, sys.argv[2])
module = GCSA(shape[1]).to("cuda", dtype)
x = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
torch.nn.functional.conv2d(x, module.spatial_attention[0].weight, padding=3).sum().backward()
torch.cuda.synchronize()
start = time.perf_counter()
module(x).sum().backward()
torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


def first_call(backend: str, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """Seconds of a process's first training step, without torch's start, when no kernel is compiled yet."""
    with tempfile.TemporaryDirectory() as cache:
        result = subprocess.run(
            [sys.executable, "-c", FIRST_STEP, repr(shape), dtype],
            env={**package_environment(), "TRITON_CACHE_DIR": cache, "GCSA_EXT_BACKEND": backend},
            cwd=cache,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    if result.returncode != 0:
        raise RuntimeError((result.stderr.strip().splitlines() or ["no output"])[-1])
    return {"seconds": float(result.stdout)}


def all_parts(
    arguments: argparse.Namespace, device: str, test_seconds: Callable[[], float]
) -> Iterator[Part]:
    """Correctness, ceilings, the most telling rows, memory, then the rest.

    Args:
        test_seconds: after how many seconds the tests are stopped.
    """
    rounds, on_gpu = arguments.rounds, device == "cuda"
    yield Part("info", "info", info)
    if on_gpu and not arguments.no_tests:
        yield Part("tests", "tests", partial(run_tests, test_seconds, arguments.out / "tests.txt"))
    yield Part("ceilings", "ceilings", partial(measure_ceilings, device))

    def row(case: Case) -> Part:
        name = f"{case} {str(case.dtype).removeprefix('torch.')}"
        compilers = on_gpu and not arguments.no_compile
        return Part("row", name, partial(measure_row, case, rounds, compilers))

    yield from map(row, telling_cases(device))
    for size in MAPS if on_gpu else ():
        case = gcsa_case((64, *size), True, True, torch.bfloat16, device)
        for contender in (EAGER, OURS):
            yield Part("memory", f"memory {size} {contender}", partial(training_memory, case, contender))
    for backend, shape, dtype in (
        ("triton", (8, 64, 56, 56), "float32"),
        ("cuda", (8, 64, 56, 56), "float32"),
        ("triton", (8, 512, 7, 7), "bfloat16"),
    ):
        if on_gpu and backends.unsupported(backend, "gcsa", torch.device(device), torch.float32) is None:
            name = f"first training step, nothing compiled, {backend} {dtype} {shape_name(shape)}"
            yield Part("first call", name, partial(first_call, backend, shape, dtype))
    yield from map(row, other_cases(device))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for the results")
    parser.add_argument("--minutes", type=float, default=4.5, help="start nothing new after this many")
    parser.add_argument("--rounds", type=int, default=7, help="of measuring each row")
    parser.add_argument("--only", default="", help="measure parts with this in their name, alone")
    parser.add_argument("--no-build", action="store_true", help="take gcsa_ext as it is found")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--sanitize", action="store_true", help="run tests under compute-sanitizer instead")
    parser.add_argument("--dry-run", action="store_true", help="tiny maps on the CPU: does the program work?")
    return parser.parse_args()


def start_again_with_cuda(seconds: float, start: float) -> str:
    """Build the CUDA kernels, unless they are built, and replace this process by one that imports them.

    Returns:
        Why they could not be built.
    """
    folder = ROOT / "build" / f"gpu-{sources()}"
    complete = folder / "complete"
    if not complete.exists():
        reason = build(ROOT, folder, "cmake.define.GCSA_EXT_CUDA=ON", seconds=0.5 * seconds)
        if reason is not None:
            return reason
        complete.touch()
    taken = time.monotonic() - start
    print(f"CUDA kernels are in {folder}, after {taken:.0f} s", flush=True)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    left = f"{(seconds - taken) / 60:.3f}"
    command = [sys.executable, __file__, *sys.argv[1:], "--no-build", "--minutes", left]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def main() -> int:
    start, arguments = time.monotonic(), _arguments()
    device = "cpu" if arguments.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu.py: torch.cuda.is_available() is False; --dry-run tries the program without a GPU"
        )
    seconds = 60 * arguments.minutes
    reason = backends.unsupported("cuda", "gcsa", torch.device("cuda"), torch.float32)
    if device == "cuda" and reason is not None and not arguments.no_build:
        reason = start_again_with_cuda(seconds, start)
    if arguments.sanitize:
        return sanitize()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True  # every contender's convolutions are the fastest that cuDNN has
    identity = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "a CPU",
        "driver": driver() if device == "cuda" else "none",
        "revision": revision(),
        "sources": sources(),
        "torch": torch.__version__,
        "CUDA kernels": reason or "built",
        "dry_run": arguments.dry_run,
    }
    results = Results(arguments.out / "results.jsonl", identity)

    def remaining() -> float:
        return seconds - (time.monotonic() - start)

    share = 0.8 if "tests" in results.records else 0.4  # the tests were stopped the first time
    parts = all_parts(arguments, device, lambda: share * remaining())
    left = results.missing([part for part in parts if arguments.only in part.name])
    while left and remaining() > 0:
        part = left.pop(0)
        try:
            found = part.measure()
        except Exception as error:  # the other parts are still worth measuring
            found = {"raised": in_one_line(error)}
        results.add(part, found)
        print(f"{part.name}: {failure_of(found) or found.get('seconds', 'done')}", flush=True)
        write(arguments.out / "report.md", report(identity, results, left))
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    text = report(identity, results, left)
    write(arguments.out / "report.md", text)
    print(text)
    return 1 if any(map(failure_of, results.records.values())) else 0


if __name__ == "__main__":
    raise SystemExit(main())
