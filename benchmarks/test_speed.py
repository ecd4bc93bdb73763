"""The cases for pytest-benchmark: ``pytest benchmarks``. Each contender is checked, then timed by itself."""

from __future__ import annotations

import pytest
from harness.case import Case
from harness.errors import error_of
from harness.suite import CASES
from pytest_benchmark.fixture import BenchmarkFixture

CONTENDERS = [
    pytest.param(case, name, id=f"{case}-{name}".replace(" ", "_"))
    for case in CASES
    for name in (*case.ours(), *case.peers())
]


@pytest.mark.filterwarnings("default")  # torch.compile warns of its own doings
@pytest.mark.timeout(600)
@pytest.mark.benchmark(min_rounds=5, max_time=0.5, warmup=True, warmup_iterations=2, disable_gc=True)
@pytest.mark.parametrize(("case", "name"), CONTENDERS)
def test_speed(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    benchmark.group = str(case)
    call = case.build(name)
    assert error_of(call, case.build(case.peer)) <= case.tolerance
    benchmark(call)
