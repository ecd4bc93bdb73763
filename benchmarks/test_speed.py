"""The cases for pytest-benchmark: ``pytest benchmarks``. Each contender is checked, then timed by itself."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Build, Case
from paired import error_of
from pytest_benchmark.fixture import BenchmarkFixture

CONTENDERS = [
    pytest.param(case, name, build, id=f"{case}-{name}".replace(" ", "_"))
    for case in CASES
    for name, build in {**case.ours, **case.peers}.items()
]


@pytest.mark.filterwarnings("default")  # torch.compile warns of its own doings
@pytest.mark.timeout(600)
@pytest.mark.benchmark(min_rounds=5, max_time=0.5, warmup=True, warmup_iterations=2, disable_gc=True)
@pytest.mark.parametrize(("case", "name", "build"), CONTENDERS)
def test_speed(benchmark: BenchmarkFixture, case: Case, name: str, build: Build) -> None:
    torch._dynamo.reset()
    benchmark.group = str(case)
    truth = next(iter(case.peers.values()))()
    call = build()
    assert error_of(call, truth) <= case.tolerance
    benchmark(call)
