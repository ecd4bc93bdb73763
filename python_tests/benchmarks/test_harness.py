"""What the benchmarks share: the timer, the comparison of results, what disturbs, how cases are built."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import disturbances, machine, memory, package
from harness.case import EAGER, LAST, OURS, Call, Case
from harness.disturbances import Disturbances, waited
from harness.errors import error_of, relative_error
from harness.operators import channel_gate_case, frequency_mask_case, gcsa_case, norm_gate_case
from harness.run import run
from harness.suite import CASES, masking_case
from harness.timing import measure
from harness.verdicts import Verdict, table

SMALL = (
    channel_gate_case((2, 8, 3, 4), backward=True),
    norm_gate_case((2, 8, 3, 4), training=True, backward=True),
    frequency_mask_case((3, 1, 12, 5), iid=True, backward=True),
    frequency_mask_case((3, 1, 12, 5), iid=False, inplace=True),
    gcsa_case((2, 8, 5, 6), training=True, backward=True),
    gcsa_case((1, 8, 5, 6), dtype=torch.bfloat16, autocast=True),
    masking_case("FrequencyMasking", (3, 1, 12, 5), iid=True),
    masking_case("TimeMasking", (3, 1, 5, 12), iid=False, inplace=True),
    masking_case("SpecAugment", (3, 1, 12, 13), iid=True, mean=True),
)


def test_every_contender_is_called_once_per_round_in_changing_order() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    spans = measure(calls, 0.0, least_rounds=20, most_rounds=20, between=lambda: order.append("|"))
    warm_up, *rounds, end = "".join(order).split("|")
    assert set(warm_up) == set("abc") and end == ""
    assert len(rounds) == 20 and {"".join(sorted(turn)) for turn in rounds} == {"abc"}
    assert len(set(rounds)) > 2
    assert [len(span) for span in spans.values()] == [20] * 3


def test_rounds_end_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += 2.0

    assert measure({"": call}, 9.0) == {"": [2.0] * 5}
    assert measure({"": call}, 0.0, least_rounds=3) == {"": [2.0] * 3}
    assert measure({"": call}, 1e9, most_rounds=7) == {"": [2.0] * 7}


def test_short_calls_are_repeated_between_synchronisations(monkeypatch: pytest.MonkeyPatch) -> None:
    now, events = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += 0.5
        events.append("call")

    options = {"least_rounds": 1, "most_rounds": 1, "least_span": 4.0}
    found = measure({"": call}, 0.0, synchronize=lambda: events.append("wait"), **options)
    assert found == {"": [0.5]}
    assert events[-10:] == ["wait", *["call"] * 8, "wait"]


def test_errors_are_relative_to_the_size_of_each_tensor() -> None:
    large, small = torch.full((4,), 100.0), torch.full((4,), 1.0)
    assert relative_error([large + 1.0, small], [large, small]) == pytest.approx(0.01)
    # What is smaller than a tenth of the largest is compared on that scale.
    assert relative_error([large, small + 1.0], [large, small]) == pytest.approx(0.1)
    assert relative_error([large * torch.nan], [large]) == float("inf")
    assert relative_error([large[:3]], [large]) == float("inf")


def test_both_sides_of_a_comparison_draw_the_same_numbers() -> None:
    def draw() -> tuple[torch.Tensor, ...]:
        return (torch.rand(5),)

    assert error_of(draw, draw) == 0.0
    assert error_of(draw, lambda: (torch.rand(5) + torch.rand(5),)) > 0.1


def test_waiting_threads_are_added_up(tmp_path: Path) -> None:
    for thread, text in (("11", "7 1500000000 3\n"), ("12", "9 500000000 1\n")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    (tmp_path / "13" / "schedstat").mkdir(
        parents=True
    )  # cannot be read, like that of a thread that has ended
    assert waited(tmp_path) == 2.0
    assert waited(tmp_path / "none") == 0.0


def test_a_round_is_apart_if_the_cores_were_before_or_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([5e-8, 6e-8, 3e-7, 5e-8, None])
    monkeypatch.setattr(disturbances, "round_trip", lambda: next(seconds))
    waits, clock = iter([1.0, 4.0]), iter([10.0, 22.0])
    monkeypatch.setattr(disturbances, "waited", lambda: next(waits))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Disturbances()
    for _ in range(5):
        watch.between()
    assert watch.found() == {"waited": 0.25, "rounds_on_separate_caches": 2}


def test_one_thread_makes_no_round_trips(one_thread: None) -> None:
    assert disturbances.round_trip() is None


def test_names_tell_cases_apart() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_contenders_compute_the_same(case: Case) -> None:
    truth = case.build(case.peer)
    for name in [*case.ours(), *case.peers()]:
        if name != "torch.compile":
            found = error_of(case.build(name), truth)
            assert found <= case.tolerance, name
    assert (len(truth()) > 1) == case.backward


@pytest.mark.parametrize("case", SMALL[:5], ids=str)
def test_a_case_in_float64_is_its_own_oracle(case: Case) -> None:
    exact, single = case.build(EAGER, torch.float64)(), case.build(EAGER)()
    assert {t.dtype for t in exact} == {torch.float64}
    assert 0.0 <= relative_error(single, exact) < 1e-3
    assert relative_error(single[:1], [exact[0] + exact[0].abs().max()]) > 0.1


def test_channels_last_contenders_get_channels_last_maps_and_weights() -> None:
    call = gcsa_case((2, 8, 5, 6), True, True).build(EAGER + LAST)
    maps = [*call.inputs, call.grad, *(p for p in call.parameters if p.dim() == 4)]
    assert len(maps) == 4
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in maps)


def test_gradients_are_taken_of_inputs_where_a_case_says_so() -> None:
    forward, backward = (gcsa_case((1, 8, 2, 2), backward=needed).build(OURS) for needed in (False, True))
    assert not forward.inputs[0].requires_grad and len(forward()) == 1
    assert backward.inputs[0].requires_grad and len(backward()) == 2 + len(backward.parameters)
    case = gcsa_case((1, 8, 2, 2), backward=True, input_gradients=False)
    assert len(case.build(OURS)()) == 1 + len(backward.parameters)


def test_a_wrong_or_broken_contender_is_left_out() -> None:
    case, right = gcsa_case((1, 4, 2, 2)), Case.build

    class Faulty(Case):
        def build(self, contender: str, dtype: torch.dtype | None = None) -> Call:
            if contender == "broken":
                raise RuntimeError("no such kernel\nand what follows")
            call = right(self, OURS if contender == "wrong" else contender, dtype)
            if contender == "wrong":
                call.function = lambda x: torch.zeros(1, 4, 2, 2)
            return call

    def run_with(*contenders: str) -> dict[str, Any]:
        faulty, truth = Faulty("it", (1, 4, 2, 2), case.make), case.build(EAGER)
        return run(faulty, contenders, lambda call: error_of(call, truth), lambda errors: 1e-4, seconds=0.0)

    found = run_with(EAGER, OURS, "wrong", "broken")
    assert set(found["times"]) == {EAGER, OURS} and found["failure"] is None
    assert found["dropped"]["broken"] == "RuntimeError: no such kernel"
    assert "allowed is 1.0e-04" in found["dropped"]["wrong"]


def test_saved_bytes_leave_parameters_out_and_count_a_storage_once() -> None:
    weight = torch.nn.Linear(6, 6, bias=False)

    def square(x: torch.Tensor) -> torch.Tensor:
        y = weight(x)
        return y * y.view(-1, 2, 3).flatten(1)  # y's storage is saved twice

    class Squared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return square(x)

    x = torch.randn(5, 6, requires_grad=True)
    call = Call(Squared(), (x,), torch.randn(5, 6), backward=True)
    assert memory.saved_bytes(call) == 2 * x.nbytes  # x for the weight's gradient, and y


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_the_peak_of_a_step_is_at_least_its_gradients() -> None:
    shape = (4, 64, 56, 56)
    peak = memory.peak_bytes(shape, EAGER)
    assert peak is not None and 2 * 4 * 4 * 64 * 56 * 56 < peak < 10**9


@pytest.mark.parametrize(
    ("comparison", "value", "met"),
    [
        ("at least", 2.0, True),
        ("at least", 1.9, False),
        ("at most", 2.0, True),
        ("at most", 2.1, False),
        ("below", 1.9, True),
        ("below", 2.0, False),
    ],
)
def test_a_limit_is_met_or_missed(comparison: str, value: float, met: bool) -> None:
    verdict = Verdict("speed 8x8", value, comparison, 2.0, "times that of light", "of copper")
    assert verdict.met is met
    cells = f"speed 8x8 | **{value:.3g}** (of copper) | {comparison} 2 times that of light"
    lines = table([verdict]).splitlines()
    assert lines[2] == f"| {cells} | {'yes' if met else '**no**'} |"
    assert lines[-1] == f"{int(met)} of 1 met."
    unknown = Verdict("memory", None, "at most", 1.0)
    assert table([verdict, unknown]).endswith(f"{int(met)} of 1 met, 1 not measured.")


def test_what_cannot_be_measured_is_neither_met_nor_missed() -> None:
    verdict = Verdict("memory", None, "at most", 1.0, note="not on the moon")
    assert verdict.met is None and "not measured: not on the moon" in table([verdict])
    failed = Verdict("memory", None, "at most", 1.0, failure="OSError: no moon")
    assert failed.met is None and "FAILED: OSError: no moon" in table([failed])


@pytest.mark.parametrize(
    ("text", "zen5"),
    [
        ("vendor_id : AuthenticAMD\ncpu family : 26\n\nvendor_id : x\n", True),
        ("vendor_id : AuthenticAMD\ncpu family : 25\n", False),
        ("vendor_id : GenuineIntel\ncpu family : 26\n", False),
    ],
)
def test_a_zen5_is_known_by_its_family(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, zen5: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    assert machine.is_zen5() is zen5


def test_a_report_is_written_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    report = {"a": 1, "rows": [{"b": 2}, {"c": [3]}], "none": []}
    machine.write_json(file, report)
    assert file.read_text().splitlines() == [
        *("{", ' "a": 1,', ' "rows": [', '  {"b": 2},', '  {"c": [3]}', " ],", ' "none": []', "}")
    ]
    assert json.loads(file.read_text()) == report and list(tmp_path.iterdir()) == [file]


def test_why_a_build_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_pip(command: list[str], log: Path, seconds: float | None, *_: Any) -> int | None:
        assert command[-1] == "sources" and str(folder) in command and "--config-settings=a=b" in command
        log.write_text("many lines\nno compiler\n")
        return None if seconds == 1.0 else int(seconds or 0)

    folder = tmp_path / "cache" / "built"
    monkeypatch.setattr(package, "run_limited", run_pip)
    assert package.build(Path("sources"), folder, "a=b") is None
    assert package.build(Path("sources"), folder, "a=b", seconds=1.0) == "building took more than 1 s"
    reason = package.build(Path("sources"), folder, "a=b", seconds=2.0)
    assert reason == "building failed: many lines / no compiler"
