"""benchmarks/busy.py: the whole script on a small map, its busy processes, and its table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import busy
import pytest

from gcsa_ext.openmp import VARIABLES


def test_the_whole_script() -> None:
    done = subprocess.run(
        [sys.executable, busy.__file__, "--quick", "--seconds", "0.001"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 1x8x7x7 |")]
    expected = [(str(count), setting) for count in busy.BUSY for setting in busy.SETTINGS]
    assert [tuple(row.split(" | ")[1:3]) for row in rows] == expected
    times = [cell for row in rows for cell in row.strip(" |").split(" | ")[3:]]
    assert len(times) == 5 * len(expected)
    assert all(float(time) > 0 for cell in times for time in cell.split(" / "))


def test_each_setting_is_the_environment_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("UNTOUCHED", "yes")
    seen = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        assert env["UNTOUCHED"] == "yes"
        seen.append({name: env[name] for name in VARIABLES if name in env})
        return subprocess.CompletedProcess(command, 0, stdout='{"a": [1.0]}')

    monkeypatch.setattr(subprocess, "run", run)
    for setting in busy.SETTINGS.values():
        assert busy.measure_elsewhere(setting, quick=True, seconds=0.1) == {"a": [1.0]}
    assert seen == [{}, {"GOMP_SPINCOUNT": "1000"}]


def cpu_ticks(pid: int) -> int:
    """The user time of a process, in ticks of the system's clock."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_busy_processes_compute_until_the_block_ends() -> None:
    with busy.busy_processes(2) as processes:
        while not all(cpu_ticks(process.pid) > 2 for process in processes):
            assert all(process.poll() is None for process in processes)
    assert all(process.returncode is not None for process in processes)


def test_busy_processes_end_with_their_parent() -> None:
    """Also where the parent is killed and cannot end them."""
    source = (
        "import os, signal, sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "import busy\n"
        "with busy.busy_processes(1) as (process,):\n"
        "    print(process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The busy process inherits standard output: the read ends when both processes have ended.
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -9 and int(done.stdout) > 0


def test_the_table_has_medians_and_means() -> None:
    shape = (1, 2, 3, 4)
    found = {
        setting: {
            busy.key(shape, count, name, threads): [0.001 * threads, 0.001 * threads, 0.004 * threads]
            for count in busy.BUSY
            for name in ("eager", "gcsa_ext")
            for threads in busy.THREADS
        }
        for setting in busy.SETTINGS
    }
    lines = busy.table(found, [shape]).splitlines()
    assert len(lines) == 2 + len(busy.BUSY) * len(busy.SETTINGS)
    assert lines[2] == (
        "| 1x2x3x4 | 0 | default | 1.00 / 2.00 | 2.00 / 4.00 | 1.00 / 2.00 | 2.00 / 4.00 | 2.00 / 2.00 |"
    )
