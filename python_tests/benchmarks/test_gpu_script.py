"""benchmarks/gpu.py without a GPU: the order of its parts, going on where it stopped, the report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gpu
import pytest
import torch
from harness import gpu_report, gpu_tests
from harness.ceilings import Ceilings
from harness.operators import norm_gate_case
from harness.results import Part, Results

Main = Callable[..., int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Main:
    """Runs the program on the CPU with further arguments; its files are in tmp_path."""

    def run(*arguments: str) -> int:
        argv = ["gpu.py", "--dry-run", "--rounds", "1", "--out", str(tmp_path), *arguments]
        monkeypatch.setattr("sys.argv", argv)
        return gpu.main()

    return run


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of the results file but the first."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()[1:]]


def test_without_a_gpu(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main() == 0
    assert "A dry run" in capsys.readouterr().out
    found = records(tmp_path)
    assert [record["kind"] for record in found[:3]] == ["info", "ceilings", "row"]
    rows = [record for record in found if record["kind"] == "row"]
    assert {row["operation"].split()[0] for row in rows} == {
        *("GCSA", "channel_gate", "norm_gate", "frequency_mask", "frequency_mask_")
    }
    for row in rows:
        assert row["dropped"] == {} and len(row["seconds"]) == len(row["errors"]) >= 2
        bound = 2.0**-6 if row["dtype"] == "torch.bfloat16" else 1e-5
        assert all(error < bound for name, error in row["errors"].items() if name.startswith("gcsa_ext")), row

    report = (tmp_path / "report.md").read_text()
    for name in ("measure_row", "measure_ceilings"):
        monkeypatch.setattr(gpu, name, lambda *_: pytest.fail("measured twice"))
    assert main() == 0
    assert records(tmp_path) == found and (tmp_path / "report.md").read_text() == report


def test_a_second_call_goes_on_where_the_first_stopped(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, measured = [0.0], []

    def measure_row(case: Any, *_: Any) -> dict[str, Any]:
        measured.append(str(case))
        clock[0] += 60.0
        return {"raised": "not yet"} if len(measured) == 1 else measure_one(case, 1, False)

    measure_one = gpu.measure_row
    monkeypatch.setattr(gpu, "measure_row", measure_row)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    assert main("--only", "norm_gate", "--minutes", "1.5") == 1
    assert len(records(tmp_path)) == 2
    assert "2 parts are left; the same command goes on with them." in (tmp_path / "report.md").read_text()
    assert main("--only", "norm_gate", "--minutes", "9") == 0
    assert len(measured) == 5 and len(set(measured)) == 2  # in two dtypes; the failed one comes again, last
    assert [record["name"] for record in records(tmp_path)][-1] == records(tmp_path)[0]["name"]
    assert "Failed" not in (tmp_path / "report.md").read_text()

    monkeypatch.setattr(gpu, "sources", lambda: "others")
    assert main("--only", "norm_gate", "--minutes", "0") == 0
    assert records(tmp_path) == []


def test_what_fails_leaves_the_rest_of_the_report(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure_row(case: Any, *arguments: Any) -> dict[str, Any]:
        if case.backward:
            raise RuntimeError("an illegal memory access\nand what follows")
        return measure_one(case, *arguments)

    measure_one = gpu.measure_row
    monkeypatch.setattr(gpu, "measure_row", measure_row)
    assert main("--only", "norm_gate") == 1
    found = records(tmp_path)
    assert [record.get("raised") for record in found] == [
        None,
        "RuntimeError: an illegal memory access",
        None,
        "RuntimeError: an illegal memory access",
    ]
    report = (tmp_path / "report.md").read_text()
    assert report.count(": RuntimeError: an illegal memory access") == 2


def test_only_what_is_asked_for_is_measured(main: Main, tmp_path: Path) -> None:
    assert main("--only", "frequency_mask_") == 0
    assert {row["operation"] for row in records(tmp_path)} == {"frequency_mask_ per sample forward"}


def test_parts_on_a_gpu_come_in_the_order_of_their_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.backends, "unsupported", lambda *_: None)
    arguments = SimpleNamespace(rounds=1, no_tests=False, no_compile=False, out=Path())
    parts = list(gpu.all_parts(arguments, "cuda", lambda: 1.0))
    kinds = list(dict.fromkeys(part.kind for part in parts))
    assert kinds == ["info", "tests", "ceilings", "row", "memory", "first call"]
    assert parts[3].name == "GCSA train forward + backward 256x64x56x56 bfloat16"
    assert len({part.name for part in parts}) == len(parts)
    assert max(i for i, part in enumerate(parts) if part.kind == "row") > kinds.index("first call") + 20


def row(name: str, shape: tuple[int, ...], seconds: dict[str, float], **others: Any) -> dict[str, Any]:
    """A record of a row; of bfloat16 and without figures that a test does not give."""
    plain = dict.fromkeys(key.removesuffix(" in a graph") for key in seconds)
    return {
        "operation": name,
        "name": f"{name} bfloat16",
        "shape": list(shape),
        "dtype": "torch.bfloat16",
        "backward": "backward" in name,
        "bytes": None,
        "flops": None,
        "errors": dict.fromkeys(plain, 0.001),
        "seconds": seconds,
        "dropped": {},
        "chosen": "triton",
        **others,
    }


def results(tmp_path: Path, **kinds: list[dict[str, Any]]) -> Results:
    found = Results(tmp_path / "results.jsonl", {})
    for kind, contents in kinds.items():
        for index, content in enumerate(contents):
            name = content.get("name", f"{kind} {index}")
            found.add(Part(kind.replace("_", " "), name, dict), content)
    return found


def test_results_are_continued_up_to_a_damaged_line(tmp_path: Path) -> None:
    parts = [Part("row", name, dict) for name in ("done", "failed", "unfinished", "untried")]
    found = results(tmp_path, row=[{"name": "done"}, {"name": "failed", "failure": "no"}])
    found.add(parts[2], {"failure": "stopped", "unfinished": True})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"kind": "row", "name": "untr')
    again = Results(tmp_path / "results.jsonl", {})
    assert again.records == found.records
    assert [part.name for part in again.missing(parts)] == ["unfinished", "untried", "failed"]
    again.add(parts[3], {})
    assert [record["name"] for record in records(tmp_path)] == [part.name for part in parts]
    assert Results(tmp_path / "results.jsonl", {"device": "another"}).records == {}


def test_the_report_reads_well(tmp_path: Path) -> None:
    seconds = {"eager": 4e-3, "torch.compile": 3e-3, "gcsa_ext": 2e-3, "gcsa_ext channels_last": 1e-3}
    seconds |= {"eager in a graph": 1e-3, "gcsa_ext in a graph": 5e-4, "gcsa_ext cuda": 5e-3}
    measured = row("GCSA train forward + backward", (8, 4, 5, 6), seconds, bytes=2e9, flops=1e9)
    measured["dropped"] = {"eager channels_last": "RuntimeError: no"}
    measured["errors"]["eager"] = 2e-3
    step = {"shape": [8, 4, 5, 6], "contender": "eager", "input": 10, "kept": 65, "peak": 100}
    found = results(
        tmp_path,
        tests=[{"status": "passed"}],
        ceilings=[{"bandwidth": 4e12, "rate": {"torch.bfloat16": 8e14}}],
        row=[measured],
        memory=[step, {**step, "contender": "gcsa_ext", "kept": 15, "peak": 52}, {"raised": "OutOfMemory"}],
        first_call=[{"name": "first training step, triton", "seconds": 12.5}],
    )
    identity = {"device": "a GPU", "driver": "1.2", "dry_run": False}
    text = gpu_report.report(identity, found, [Part("row", "another", dict)])
    assert text.startswith("# gcsa_ext on a GPU\n\ndevice a GPU, driver 1.2.\nTests: passed.\nCopy 4000 GB/s")
    speeds = "| GCSA train forward + backward | 8x4x5x6 | bfloat16 | 1 | torch.compile | 3 | **3.00** "
    assert speeds + "| 0.5 | eager | 1 | **2.00** | 2000 | 50% | 1.0e-03 | 2.0e-03 |" in text
    assert "- GCSA train forward + backward bfloat16 eager channels_last: RuntimeError: no" in text
    assert "- memory 2: OutOfMemory" in text
    assert "| 8x4x5x6 | eager | 6.50 | 10.00 |" in text
    assert "| GCSA train forward + backward bfloat16 | triton | triton 1, cuda 5 | triton |" in text
    assert "| **4** | at least 1.5 times eager's speed | yes |" in text
    assert (
        "| peak memory of a training step 8x4x5x6 | **0.52** | at most 0.5 times eager's | **no** |" in text
    )
    assert "| first training step, triton | **12.5** | at most 10 s | **no** |" in text
    assert "of the copy bandwidth" not in text  # of a small map, of which caches hold all
    assert "1 parts are left" in text


def test_every_limit_of_a_gpu_is_judged(tmp_path: Path) -> None:
    large, graph = (256, 64, 56, 56), " in a graph"
    seconds = {"gcsa_ext channels_last": 2e-3, "gcsa_ext": 3e-3, "eager": 5e-3, "eager channels_last": 4e-3}
    rows = [
        row("channel_gate forward", large, {"gcsa_ext": 1e-3}, bytes=3.3e9),
        row("norm_gate train forward", large, {"gcsa_ext": 1e-3}, bytes=3e9),
        row("GCSA train forward + backward", large, {**seconds, "torch.compile": 2.2e-3}, bytes=1.0),
        row("GCSA eval forward", (1, 64, 56, 56), {f"eager{graph}": 3e-5, f"gcsa_ext{graph}": 1e-5}),
    ]
    found = gpu_report.judge(results(tmp_path, row=rows, ceilings=[{"bandwidth": 4e12, "rate": {}}]))
    assert [(round(verdict.found, 3), verdict.limit, verdict.met) for verdict in found] == [
        (0.825, 0.8, True),
        (0.75, 0.8, False),
        (2.0, 1.5, True),
        (1.1, 1.15, False),
        (3.0, 2.0, True),
    ]


def test_every_backend_is_measured(emulated_cuda: ModuleType) -> None:
    """Of those that are not chosen, each forced in its turn; here the emulated one."""
    case = norm_gate_case((2, 16, 5, 6), True, True)
    assert case.ours(every_backend=True) == ["gcsa_ext", "gcsa_ext channels_last"]
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        for name in ("cpu", "cuda"):
            operators = getattr(gpu.backends, name).operators
            kernel = operators["norm_gate"]
            patched.setitem(operators, "norm_gate", lambda *a, n=name, k=kernel: calls.append(n) or k(*a))
        found = [case.build(name)() for name in ("gcsa_ext", "gcsa_ext cuda channels_last")]
    assert calls == ["cpu", "cuda"]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_backends_that_have_kernels_are_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    case = norm_gate_case((2, 16, 5, 6), True, True)
    kernels = ("cpu", "cuda")
    monkeypatch.setattr(gpu.backends, "unsupported", lambda name, *_: None if name in kernels else "no")
    names = ["gcsa_ext", "gcsa_ext cuda", "gcsa_ext channels_last", "gcsa_ext cuda channels_last"]
    assert case.ours(every_backend=True) == names


def test_ceilings_bound_a_row_by_arithmetic_or_memory() -> None:
    ceilings = Ceilings(1e12, {"torch.float32": 1e13})
    assert ceilings.least_time(1e10, 4e9, "torch.float32") == (4e-3, "bytes")
    assert ceilings.least_time(1e11, 4e9, "torch.float32") == (1e-2, "flops")
    assert ceilings.least_time(None, None, "torch.float32") == (0.0, "bytes")


def test_sanitizing_needs_the_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_tests.shutil, "which", lambda _: None)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--sanitize", "--no-build"])
    with pytest.raises(SystemExit, match="--sanitize needs compute-sanitizer"):
        gpu.main()
    commands: list[list[str]] = []
    statuses = iter([0, 77])
    monkeypatch.setattr(gpu_tests.shutil, "which", lambda _: "/bin/compute-sanitizer")
    monkeypatch.setattr(
        gpu_tests.subprocess,
        "run",
        lambda command, **_: commands.append(command) or SimpleNamespace(returncode=next(statuses)),
    )
    assert gpu.main() == 1
    assert [command[:3] for command in commands] == [
        ["/bin/compute-sanitizer", "--tool", tool] for tool in ("memcheck", "racecheck")
    ]


def test_missing_cuda_kernels_are_built_once_and_the_program_starts_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.backends, "unsupported", lambda name, *_: f"{name} was not built")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--minutes", "5"])
    built: list[tuple[Path, float]] = []

    def build(source: Path, folder: Path, *settings: str, seconds: float) -> None:
        assert source == tmp_path and settings == ("cmake.define.GCSA_EXT_CUDA=ON",)
        folder.mkdir(parents=True)
        built.append((folder, seconds))

    class ReplacedError(Exception):
        pass

    def execve(program: str, command: list[str], environment: dict[str, str]) -> None:
        assert environment["PYTHONPATH"].split(":")[0] == str(built[0][0])
        assert command[:6] == [program, gpu.__file__, "--minutes", "5", "--no-build", "--minutes"]
        assert 4.9 < float(command[6]) <= 5.0  # the last one counts
        raise ReplacedError

    monkeypatch.setattr(gpu, "build", build)
    monkeypatch.setattr(gpu.os, "execve", execve)
    for _ in range(2):
        with pytest.raises(ReplacedError):
            gpu.main()
    assert len(built) == 1 and built[0][1] == 150.0


def test_without_cuda_kernels_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "build", lambda *_, **__: "building failed: no compiler")
    assert gpu.start_again_with_cuda(60.0, 0.0) == "building failed: no compiler"


def test_the_tests_on_a_gpu_run_beside_the_source_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In another folder, with the gcsa_ext of this process, and with a limit on the time of all processes."""

    def run(program: str, seconds: float) -> dict[str, Any]:
        monkeypatch.setattr(gpu_tests, "pytest_command", lambda *_: [sys.executable, "-c", program])
        return gpu_tests.run_tests(lambda: seconds, tmp_path / "log")

    found = run("import gcsa_ext; print(gcsa_ext.__file__)", 60.0)
    assert found == {"status": "passed", "output": [gpu_tests.gcsa_ext.__file__]}
    assert run("raise SystemExit(3)", 60.0)["failure"] == "failed (exit status 3)"
    start = time.perf_counter()
    sleeping = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '100'])"
    found = run(sleeping, 1.0)
    assert found["failure"] == "stopped after 1 s" and found["unfinished"]
    assert time.perf_counter() - start < 50
    assert found["output"] in ([], ["begun"])


def test_it_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"is_available\(\) is False"):
        gpu.main()


def test_sources_are_told_apart_by_their_contents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("csrc", "gcsa_ext"):
        (tmp_path / folder).mkdir()
    (tmp_path / "CMakeLists.txt").write_text("a")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    found = {gpu.sources()}
    for file in ("csrc/a.cpp", "gcsa_ext/a.py", "CMakeLists.txt"):
        (tmp_path / file).write_text("other")
        found.add(gpu.sources())
    (tmp_path / "README.md").write_text("text")
    assert len(found) == 4 and gpu.sources() in found
