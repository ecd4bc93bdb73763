"""What the benchmarks do besides timing. That cases and peers agree is checked where they run."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bars
import cores
import crossover
import exactness
import gpu
import kept_spectra
import pytest
import report
import scaling
import slow_state
import torch
from bars import Bar, Measured
from cases import CASES, Call, Case, gcsa_case
from ceiling import Ceiling
from inside import Inside, Stopwatch, inside
from paired import measure, waited
from torch import Tensor, nn

from gcsa_ext import use_backend
from gcsa_ext.backends import cpu, native
from gcsa_ext.backends.triton import convolution as triton_convolution
from gcsa_ext.nn import GCSA


def passed(case: Case, **seconds: float) -> dict[str, Any]:
    """What report.run returns of a case whose contenders take so many seconds; "ours" must be one of them."""
    return {
        "operation": case.operation,
        "passed": True,
        "times": {name: {"median": median, "median_together": median} for name, median in seconds.items()},
        "together": [True],
        "ours": "ours",
        "peers": [name for name in seconds if name != "ours"],
        "dropped": {},
        "waited": 0.0,
        "alone": 1.0,
    }


def test_the_whole_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case = gcsa_case((1, 4, 2, 2))
    rows = [{"contender": "eager", "input": 10**6, "saved": 3 * 10**6, "peak": None}]
    monkeypatch.setattr(report, "CASES", (case,))
    monkeypatch.setattr(report, "BARS", ())
    monkeypatch.setattr(report, "NETWORKS", (case,))
    monkeypatch.setattr(report, "MEMORY_SHAPES", ((1, 2, 3, 4),))
    monkeypatch.setattr(report, "Ceiling", QuickCeiling)
    monkeypatch.setattr(report, "inside", lambda case: Inside(0.010, 0.008, 0.6, 0.25, 6.0, 3.0))
    monkeypatch.setattr(report.memory, "training_step", lambda shape: rows)
    threads, file = str(torch.get_num_threads()), tmp_path / "report.json"
    arguments = ["report.py", "--seconds", "0.01", "--no-compile", "--threads", threads, "--json", str(file)]
    monkeypatch.setattr("sys.argv", arguments)
    assert report.main() == 0
    printed = capsys.readouterr().out
    assert "| GCSA eval forward N=1 | 1x4x2x2 | 10 | 8 | 1.25 | 1.67 | 60 % | 3.00 | 2.00 |" in printed
    assert "| 1x2x3x4 | eager | 1.0 | 3.00 x input |  |" in printed
    assert json.loads(file.read_text())["memory"] == [rows]

    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(report, "inside", fail)
    monkeypatch.setattr(report.memory, "training_step", fail)
    assert report.main() == 1
    assert capsys.readouterr().out.count("FAILED: RuntimeError: out of order") == 2


class QuickCeiling(Ceiling):
    """Known without measuring."""

    def measure(self) -> None:
        self.bandwidth = 1.0
        self.rate = {torch.float32: 1.0}


def broken() -> Call:
    raise RuntimeError("no such kernel")


def test_names_tell_cases_and_bars_apart() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)
    assert len({str(bar) for bar in bars.BARS}) == len(bars.BARS)


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
def test_a_bar_compares(comparison: str, value: float, met: bool) -> None:
    bar = Bar("speed", "8x8", comparison, 2.0, "light", lambda: Measured(value, "of copper"), timed=False)
    row = bars.judge(bar, {})
    assert (row["measured"], row["met"], row["failure"]) == (value, met, None)
    cells = f"speed | 8x8 | **{value:.3g}x** (of copper) | {comparison} 2x light"
    assert bars.table([row]).splitlines()[2] == f"| {cells} | {'yes' if met else '**no**'} |"


def test_a_bar_that_cannot_be_measured_is_neither_met_nor_a_failure() -> None:
    row = bars.judge(
        Bar("memory", "", "at most", 1.0, "its peer", lambda: Measured(None, "not on the moon")), {}
    )
    assert (row["met"], row["failure"]) == (None, None)
    assert "not on the moon" in bars.table([row])


def test_a_bar_fails_with_its_case_and_with_its_measurement() -> None:
    case = CASES[0]
    results = {str(case): {"operation": "it", "passed": False, "failure": "error 1e9"}}
    bar = Bar("speed", "", "at least", 1.0, "its peer", lambda result: Measured(9.0), (case,))
    assert "error 1e9" in bars.judge(bar, results)["failure"]
    assert (
        "ZeroDivisionError"
        in bars.judge(Bar("x", "", "below", 1, "", lambda: Measured(1 / 0)), {})["failure"]
    )


def test_a_ratio_is_against_the_fastest_peer_or_the_named_ones() -> None:
    case = CASES[0]
    results = {str(case): {**passed(case, ours=1.0, eager=4.0, compiled=3.0), "dropped": {"other": "broken"}}}

    def measured(peers: tuple[str, ...]) -> dict[str, Any]:
        bar = Bar("speed", "", "at least", 3.5, "its peer", bars._versus(*peers), (case,))
        return bars.judge(bar, results)

    assert (measured(())["measured"], measured(())["met"]) == (3.0, False)
    assert "without other" in measured(())["note"]
    assert (measured(("eager",))["measured"], measured(("eager",))["met"]) == (4.0, True)
    assert measured(("torchaudio",))["measured"] is None


def test_a_ratio_tells_where_the_cores_were_apart() -> None:
    result = passed(CASES[0], ours=2.0, eager=6.0)
    result["together"] = [True, False, False]
    result["times"]["ours"]["median_together"] = 1.5
    assert bars._ratio(result).note.endswith("; cores apart in 2 of 3 rounds, 4x in the others")
    result |= {"ratio": 3.0, "best_peer": "eager"}
    assert bars._geometric_mean(result, result).note == "cores apart in 4 of 6 rounds, 4x in the others"
    result["together"] = [False]
    for times in result["times"].values():
        times["median_together"] = None
    assert bars._ratio(result).note.endswith("; cores apart in 1 of 1 rounds")
    assert bars._geometric_mean(result).note == "cores apart in 1 of 1 rounds"


def test_a_round_is_together_if_the_cores_were_before_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([5e-8, 6e-8, 3e-7, 5e-8, 5e-8])
    monkeypatch.setattr(cores, "round_trip", lambda _: next(seconds))
    trips = cores.RoundTrips()
    spans = measure({"nothing": lambda: None}, 0.0, most_rounds=4, least_rounds=4, between=trips)
    assert len(spans["nothing"]) == 4
    assert trips.together() == [True, False, False, True]
    assert cores.median_together([1.0, 9.0, 9.0, 3.0], trips.together()) == 2.0


def test_masking_shows_what_a_plain_copy_would_reach() -> None:
    found = bars._beside_clone(passed(CASES[0], ours=2.0, torchaudio=6.0, clone=1.5))
    assert (found.value, found.note) == (
        3.0,
        "torchaudio 6e+03 ms, ours 2e+03 ms, alone 1e+03; clone would be 4.00x",
    )
    assert bars._beside_clone(passed(CASES[0], ours=2.0, clone=1.5)).value is None


def test_a_disturbed_case_shows_in_the_bar() -> None:
    case = CASES[0]
    results = {str(case): {**passed(case, ours=1.0, eager=4.0), "waited": 0.5}}
    for timed in (True, False):
        bar = Bar("speed", "", "at least", 1.0, "its peer", lambda result: Measured(2.0), (case,), timed)
        assert ("disturbed" in bars.table([bars.judge(bar, results)])) == timed


def test_the_slower_convolution_counts_against_the_best_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks, asked = iter([90e9, 100e9, 95e9]), []

    def product_rate(*arguments: float) -> float:
        asked.append(arguments)
        return 85e9 if arguments[1] > arguments[2] else 70e9  # fewer inputs are slower

    stub = SimpleNamespace(
        fma_peak=lambda threads, seconds: next(peaks), convolution_product_rate=product_rate
    )
    monkeypatch.setattr(native, "extension", stub)
    found = bars._of_fma_peak((8, 64, 56, 48), seconds=0.25)
    assert found.value == pytest.approx(0.7)
    assert found.note == "64 to 16 channels 85 GFLOP/s, 16 to 64 channels 70 GFLOP/s, peak 100 GFLOP/s"
    threads = torch.get_num_threads()
    assert asked == [(8, 64, 16, 56, 48, 7, threads, 0.25), (8, 16, 64, 56, 48, 7, threads, 0.25)]

    monkeypatch.setattr(native, "extension", None)
    assert bars._of_fma_peak((8, 64, 56, 48)).value is None


def test_waiting_for_a_core_adds_up() -> None:
    before = waited()
    assert 0.0 <= before <= waited()


def test_selection() -> None:
    everything, all_bars = report.select(None, quick=False, bars_alone=False)
    assert (everything, all_bars) == (list(CASES), list(bars.BARS))
    needed, all_bars = report.select(None, quick=False, bars_alone=True)
    assert all_bars == list(bars.BARS)
    assert 0 < len(needed) < len(CASES)
    assert report.select(None, quick=True, bars_alone=False)[1] == []
    named, wanted = report.select("gcsa EVAL forward 8x", quick=False, bars_alone=False)
    assert [case.operation for case in named] == ["GCSA eval forward"] * 4
    assert "GCSA eval forward geometric mean" in map(str, wanted)
    assert report.select("no such thing", quick=False, bars_alone=False) == ([], [])


def test_an_exception_in_a_case_is_its_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = gcsa_case((1, 4, 2, 2))
    bad = Case("a case that raises", (1,), {"gcsa_ext": broken}, good.peers)
    missed = Bar("a bar", "that is missed", "at least", 1e9, "its peer", lambda: Measured(1.0))
    monkeypatch.setattr(report, "CASES", (bad, good))
    monkeypatch.setattr(report, "BARS", (missed,))
    monkeypatch.setattr(report, "Ceiling", QuickCeiling)
    threads = str(torch.get_num_threads())
    arguments = ["report.py", "--seconds", "0.01", "--no-compile", "--threads", threads, "--only"]

    monkeypatch.setattr("sys.argv", [*arguments, "a"])  # in all their names
    assert report.main() == 1
    printed = capsys.readouterr().out
    assert "| a case that raises | 1 | FAILED: RuntimeError: no such kernel" in printed
    assert "| GCSA eval forward N=1 | 1x4x2x2 | " in printed
    assert "0 of 1 bars met" in printed

    monkeypatch.setattr("sys.argv", [*arguments, "a bar"])
    assert report.main() == 0


def test_a_wrong_peer_is_left_out() -> None:
    case = gcsa_case((1, 4, 2, 2))
    right = next(iter(case.peers.values()))
    case.peers = {
        "right": right,
        "wrong": lambda: Call(lambda: torch.zeros(1, 4, 2, 2), ()),
        "broken": broken,
    }
    result = report.run(case, 0.01, "none")
    assert result["passed"] and result["peers"] == ["right"]
    assert set(result["dropped"]) == {"wrong", "broken"}


class Sleepy(nn.Module):
    """Takes its time before a GCSA, in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.gcsa = GCSA(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x.register_hook(lambda grad: time.sleep(0.05))
        time.sleep(0.05)
        return self.gcsa(x) * 2.0


def test_the_stopwatch_runs_inside_gcsa_alone() -> None:
    network = Sleepy()
    watch = Stopwatch(network)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    began = time.perf_counter()
    Call(network, (x,), torch.randn(2, 4, 3, 3), backward=True)()
    assert 0.0 < watch.seconds <= time.perf_counter() - began - 0.05
    assert watch.shapes == {network.gcsa: (2, 4, 3, 3)}
    watch.remove()
    watch.seconds = 0.0
    Call(network, (x,), torch.randn(2, 4, 3, 3), backward=True)()
    assert watch.seconds == 0.0


def test_limit_of_a_step() -> None:
    # 6 of 10 s are GCSA; ours takes 2 s for it, so that at best 6 s are left, but it is 8.
    found = Inside(10.0, 8.0, 0.6, 0.25, 6.0, 3.0)
    assert found.inside_ratio == pytest.approx(3.0)
    assert found.limit == pytest.approx(10 / 6)
    assert found.step_ratio == pytest.approx(10 / 8)
    assert found.loop_ratio == 2.0
    assert "60 %" in str(found)


@pytest.mark.parametrize("training", [False, True])
def test_inside_a_small_network(training: bool) -> None:
    case = next(
        case for case in CASES if case.operation.startswith(f"MCNN small {'train' if training else 'eval'}")
    )
    found = inside(case, 0.01)
    assert 0.0 < found.plain_share < 1.0 and 0.0 < found.our_share < 1.0
    assert found.plain_loop > 0.0 and found.our_loop > 0.0


@pytest.mark.parametrize("training", [False, True])
def test_errors_cover_the_result_and_every_gradient(training: bool) -> None:
    found = exactness.errors((2, 8, 5, 6), training)
    names = ["result without a graph", "result"]
    names += [f"gradient of {name}" for name in ("x", *(name for name, _ in GCSA(8).named_parameters()))]
    assert [error.tensor for error in found] == names
    assert all(0.0 <= error.ours < 1e-5 and 0.0 < error.eager < 1e-5 for error in found)


def test_errors_in_terms_of_what_is_allowed() -> None:
    assert exactness.Error("its peer", ours=3e-6, eager=1e-6).of_allowed == pytest.approx(2.0)
    assert exactness.Error("its peer", ours=1e-7, eager=1e-9).of_allowed == pytest.approx(0.1)


def test_slow_state_samples_every_shape_in_every_state() -> None:
    shapes = [(1, 4, 5, 5), (2, 8, 3, 3)]
    found = slow_state.samples(shapes, "gcsa_ext", True, 0.0)
    assert {state: len(row) for state, row in found.items()} == {"after": 2, "among": 2}
    assert set(slow_state.samples(shapes[:1], "eager", False, 0.0)) == {"alone"}
    assert all(sample.seconds > 0.0 and sample.waited >= 0.0 for row in found.values() for sample in row)


def test_slow_state_relates_each_state_to_a_process_alone() -> None:
    which = ("default", "eager", "8x8")
    alone, after, disturbed = (
        slow_state.Sample(0.001, 10.0, 1.0, 0.0),
        slow_state.Sample(0.003, 20.0, 2.0, 0.01),
        slow_state.Sample(0.1, 30.0, 99.0, 1.0),
    )
    found = {
        (*which, "alone"): [alone, disturbed],
        (*which, "after"): [after, after],
        (*which, "among"): [disturbed],
    }
    assert slow_state.table(found).splitlines()[2:] == [
        "| default | eager | 8x8 | alone | 1 (1) | 1.00 | 10 | 1 | 1 of 2 |",
        "| default | eager | 8x8 | after | 3 (3) | 3.00 | 20 | 2 | 0 of 2 |",
        "| default | eager | 8x8 | among | 100 (100) | 100.00 | 30 | 99 | 1 of 1 |",
    ]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_scaling_is_drawn(tmp_path: Path, suffix: str) -> None:
    found = {
        passed: {
            growing: [{"value": value, "ours": 1e-4 * value, "eager": 5e-4 * value} for value in values]
            for growing, (values, _, _) in scaling.SIZES.items()
        }
        for passed in scaling.PASSES
    }
    pictures = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for picture in pictures:
        scaling.draw(found, picture, "a note")
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].stat().st_size > 1000


def test_scaling_times_ours_and_eager() -> None:
    found = scaling.times((1, 4, 3, 3), training=True, seconds=0.0)
    assert found.keys() == {"ours", "eager"} and min(found.values()) > 0.0


def test_crossover_forces_the_transforms() -> None:
    asked = crossover.Shape(kernel=3, inputs=4, outputs=5, batch=2, size=6)
    rule = cpu.explain_convolution
    found = crossover.compare(asked, 0.0)
    assert found.ratio > 0.0 and found.rule == "direct"
    assert cpu.explain_convolution is rule
    wide = crossover.Shape(7, 16, 16, 1, 7)
    assert crossover.compare(wide, 0.0).rule == "fft"
    assert crossover.compare(wide, 0.0, torch.bfloat16, torch.channels_last).rule in ("fft", "amx", "direct")
    with use_backend("reference"), pytest.raises(RuntimeError, match="'reference' is forced"):
        crossover.compare(asked, 0.0)


def test_crossover_marks_where_the_rule_is_wrong() -> None:
    def shape(inputs: int, batch: int) -> crossover.Shape:
        return crossover.Shape(5, inputs, 4, batch, 7)

    found = {
        shape(4, 1): crossover.Found(2.0, "fft"),
        shape(4, 8): crossover.Found(0.5, "fft"),
        shape(16, 1): crossover.Found(0.95, "fft", disturbed=True),
        shape(16, 8): crossover.Found(2.0, "direct"),
        shape(64, 8): crossover.Found(0.5, "direct"),
    }
    lines = crossover.tables(found).splitlines()
    assert lines[:5] == [
        "| 5x5 | 1x7x7 | 8x7x7 |",
        "|---|--:|--:|",
        "| 4 to 4 | 2.00 | **0.50** |",
        "| 16 to 4 | 0.95 disturbed | **(2.00)** |",
        "| 64 to 4 |  | (0.50) |",
    ]
    assert "wrong by more than 10% for 2 of 5 shapes" in lines[-1]
    assert "at worst 2.00 times" in lines[-1]


def test_quick_crossover_has_few_shapes() -> None:
    everything, few = list(crossover.shapes(quick=False)), list(crossover.shapes(quick=True))
    assert len(set(everything)) == len(everything) == 320
    assert 0 < len(few) <= 12 and set(few) <= set(everything)


def test_the_gpu_report_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--dry-run", "--rounds", "1", "--out", str(tmp_path)])
    assert gpu.main() == 0
    assert "A dry run" in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())
    assert {row["operation"] for row in found["rows"]} == {
        *("GCSA train", "GCSA eval", "channel_gate", "norm_gate train", "frequency_mask", "frequency_mask_")
    }
    for row in found["rows"]:
        assert row["left_out"] == {} and len(row["seconds"]) == len(row["errors"]) >= 2
        bound = 2.0**-6 if row["dtype"] == "torch.bfloat16" else 1e-5
        assert all(error < bound for name, error in row["errors"].items() if name.startswith("gcsa_ext")), row
    assert len(found["convolutions"]) == 4
    assert all(case["error"] < 2.0**-6 for case in found["convolutions"])


def test_the_gpu_report_reads_well() -> None:
    seconds = {"eager": 4e-3, "torch.compile": 3e-3, "gcsa_ext": 2e-3, "gcsa_ext channels_last": 1e-3}
    seconds |= {"eager in a graph": 1e-3, "gcsa_ext in a graph": 5e-4}
    row = gpu.Row(
        "GCSA train", (8, 4, 5, 6), "torch.bfloat16", True, seconds, {"eager": 2e-3, "gcsa_ext": 1e-3}
    )
    row.left_out["eager channels_last"], row.chosen = "RuntimeError: no", "triton"
    row.seconds["gcsa_ext cuda"], row.errors["gcsa_ext cuda"] = 5e-3, 1e-3
    row.bytes_per_second, row.of_ceiling = 2e12, 0.5
    shape_class = triton_convolution.ShapeClass(torch.bfloat16, 7, 16, 64, 32)
    times = {"torch": 3e-5, "one launch": 2e-5}
    text = gpu.markdown(
        {
            "device": "a GPU",
            "dry_run": False,
            "tests": {"status": "passed"},
            "ceilings": gpu.Ceilings(4e12, {"torch.bfloat16": 8e14}),
            "rows": [row],
            "memory": [
                {"shape": (8, 4, 5, 6), "contender": "eager", "input": 10, "kept": 65, "peak": 100},
                {"shape": (8, 4, 5, 6), "contender": "gcsa_ext", "input": 10, "kept": 15, "peak": 52},
            ],
            "convolutions": [gpu.Convolution(repr(shape_class), (1, 16, 5, 6), times, 1e-3)],
            "first_call": {"triton float32 8x64x56x56": 12.5},
            "build": "building failed: no compiler",
            "failed": {"memory (64, 56, 56) eager": "OutOfMemoryError: too much"},
            "out_of_time": ["channel_gate forward float32 1x2x3x4"],
        }
    )
    assert "| GCSA train + backward | 8x4x5x6 | bfloat16 | 1 | torch.compile | 3 | **3.00** " in text
    assert "| 0.5 | eager | 1 | **2.00** | 2000 | 50% | 1.0e-03 | 2.0e-03 |" in text
    assert "- GCSA train (8, 4, 5, 6) eager channels_last: RuntimeError: no" in text
    assert "- channel_gate forward float32 1x2x3x4: out of time" in text
    assert "| 8x4x5x6 | eager | 6.50 | 10.00 |" in text
    assert "| operation | shape | dtype | gcsa_ext | gcsa_ext cuda |" in text
    assert "| GCSA train + backward | 8x4x5x6 | bfloat16 | 1 | 5 |" in text
    assert (
        "| GCSA forward + backward 8x4x5x6 torch.bfloat16: speed over eager's | 4 | at least 1.5 | PASS |"
        in text
    )
    assert "peak over eager's | 0.52 | at most 0.5 | FAIL |" in text
    first = "first training step, nothing compiled, triton float32 8x64x56x56: seconds"
    assert f"| {first} | 12.5 | at most 10 | FAIL |" in text
    assert "No CUDA kernels: building failed: no compiler." in text
    assert "- memory (64, 56, 56) eager: OutOfMemoryError: too much" in text
    assert "share of the copy bandwidth" not in text  # of a small map, of which caches hold all
    assert f"```python\n{shape_class!r},\n```" in text


def test_every_bar_of_a_gpu_is_judged() -> None:
    def row(operation: str, shape: tuple[int, ...], seconds: dict[str, float], bandwidth: float) -> gpu.Row:
        found = gpu.Row(operation, shape, "torch.bfloat16", operation == "GCSA train", seconds)
        found.bytes_per_second = bandwidth
        return found

    large, graph = (256, 64, 56, 56), " in a graph"
    rows = [
        row(operation, large, {"gcsa_ext": 1e-3}, bandwidth)
        for operation, bandwidth in (("channel_gate", 3.3e12), ("norm_gate train", 3e12))
    ]
    seconds = {
        "gcsa_ext channels_last": 2e-3,
        "eager": 5e-3,
        "eager channels_last": 4e-3,
        "torch.compile": 2.2e-3,
    }
    rows.append(row("GCSA train", large, seconds, 0.0))
    rows.append(row("GCSA eval", (1, 64, 56, 56), {f"eager{graph}": 3e-5, f"gcsa_ext{graph}": 1e-5}, 0.0))
    rows[2].bytes_per_second = rows[3].bytes_per_second = None
    report = {"rows": rows, "ceilings": gpu.Ceilings(4e12, {}), "memory": [], "first_call": {}}
    found = [(round(bar.found, 3), bar.bar, bar.met) for bar in gpu.bars(report)]
    assert found == [
        (0.825, 0.8, True),
        (0.75, 0.8, False),
        (2.0, 1.5, True),
        (1.1, 1.15, False),
        (3.0, 2.0, True),
    ]


def test_what_fails_on_a_gpu_leaves_the_rest_of_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an illegal memory access\nand what follows")

    measure_one, written = gpu.measure, []
    monkeypatch.setattr(
        gpu, "measure", lambda workload, *a: fail() if workload.backward else measure_one(workload, *a)
    )
    write = gpu.write
    monkeypatch.setattr(gpu, "write", lambda *a: written.append(write(*a)) or written[-1])
    argv = ["gpu.py", "--dry-run", "--rounds", "1", "--only", "norm_gate", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    assert gpu.main() == 1
    found = json.loads((tmp_path / "report.json").read_text())
    assert [row["backward"] for row in found["rows"]] == [False, False]
    assert set(found["failed"].values()) == {"RuntimeError: an illegal memory access"}
    assert len(written) == 5  # after each of four rows, and at the end


def test_preferences_between_backends_are_ready_to_paste() -> None:
    def row(operation: str, dtype: str, N: int, triton: float, cuda: float) -> gpu.Row:
        seconds = {"gcsa_ext": triton, "gcsa_ext cuda": cuda, "gcsa_ext cuda channels_last": 2 * cuda}
        if operation == "GCSA eval":
            seconds = {f"{name} in a graph": time for name, time in seconds.items()}
        return gpu.Row(operation, (N, 4, 5, 6), dtype, "train" in operation, seconds, chosen="triton")

    rows = [
        *(row("norm_gate", "torch.float32", N, 2.0, 1.0) for N in (1, 2)),
        *(row("norm_gate train", "torch.float32", N, 2.0, 1.0) for N in (1, 2)),
        *(row("GCSA eval", "torch.bfloat16", N, N, 4.0) for N in (1, 8)),
        *(row("GCSA eval", "torch.float32", N, 5.0, N) for N in (1, 8)),
        *(row("frequency_mask", "torch.float32", N, 1.0, 0.97) for N in (1, 8)),
        row("channel_gate", "torch.bfloat16", 1, 2.0, 1.0),
        row("channel_gate train", "torch.bfloat16", 1, 1.0, 2.0),  # forward and backward count, not forward
        *(row("channel_gate", "torch.float32", N, 2.0, 3.0 if N == 2 else 1.0) for N in (1, 2, 3)),
    ]
    lines = gpu.preferences(rows)
    chosen = []
    for line in lines:
        preference = eval(line, {"Preference": gpu.backends.Preference, "torch": torch, "math": math})[0]
        for dtype in (torch.float32, torch.bfloat16):
            taken = [N for N in (1, 2, 3, 8) if preference.takes((N, 4, 5, 6), dtype)]
            chosen += [(preference.operator, preference.backend, dtype, taken)] if taken else []
    assert chosen == [
        ("norm_gate", "cuda", torch.float32, [1, 2, 3, 8]),
        ("gcsa", "cuda", torch.bfloat16, [8]),
        ("gcsa", "cuda", torch.float32, [1]),
        ("channel_gate", "cuda", torch.float32, [1, 3]),
    ]


def test_the_gpu_report_may_leave_out_what_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    argv = ["gpu.py", "--dry-run", "--rounds", "1", "--only", "frequency_mask_", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    assert gpu.main() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {row["operation"] for row in report["rows"]} == {"frequency_mask_"}
    assert report["convolutions"] == report["memory"] == []


def test_the_gpu_report_measures_every_backend(emulated_cuda: ModuleType) -> None:
    """Of those that are not chosen, each forced in its turn; here the emulated one."""
    workload = gpu.norm_gate_workload((2, 16, 5, 6), torch.float32, True, "cpu")
    assert "gcsa_ext cuda" not in workload.contenders(False, "cpu")
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        for name in ("cpu", "cuda"):
            module = getattr(gpu.backends, name)
            kernel = module.norm_gate
            patched.setattr(module, "norm_gate", lambda *a, n=name, k=kernel: calls.append(n) or k(*a))
        found = [gpu.make_step(workload, name)() for name in ("gcsa_ext", "gcsa_ext cuda channels_last")]
    assert calls == ["cpu", "cuda"]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_sanitizing_needs_the_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--sanitize", "--no-build"])
    with pytest.raises(SystemExit, match="--sanitize needs compute-sanitizer"):
        gpu.main()
    commands: list[list[str]] = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(gpu.shutil, "which", lambda _: "/bin/compute-sanitizer")
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **_: commands.append(command) or done)
    assert gpu.main() == 0
    assert [command[:3] for command in commands] == [
        ["/bin/compute-sanitizer", "--tool", tool] for tool in ("memcheck", "racecheck")
    ]


def test_missing_cuda_kernels_are_built_and_the_program_starts_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.backends, "unsupported", lambda name, *_: f"{name} was not built")
    monkeypatch.setattr("sys.argv", ["gpu.py", "--minutes", "5"])
    calls: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        calls.append((command, env))
        return SimpleNamespace(returncode=0 if "pip" in command else 3, stdout="", stderr="")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu.main() == 3
    (pip, _), (again, environment) = calls
    folder = pip[pip.index("--target") + 1]
    assert environment["PYTHONPATH"].split(":")[0] == folder
    assert again[1:5] == [gpu.__file__, "--minutes", "5", "--no-build"]
    assert again[5] == "--minutes" and 4.9 < float(again[6]) <= 5.0  # the last one counts
    failed = SimpleNamespace(returncode=1, stdout="", stderr="many lines\nno compiler\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: failed)
    assert gpu.build_and_start_again(60.0, 0.0) == "building failed: many lines / no compiler"


def test_the_tests_on_a_gpu_run_beside_the_source_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In another folder, with the gcsa_ext of this process, and with a limit on the time of all processes."""
    monkeypatch.setattr(
        gpu, "pytest_command", lambda *_: [sys.executable, "-c", "import gcsa_ext; print(gcsa_ext.__file__)"]
    )
    found = gpu.run_tests(60.0, tmp_path / "log")
    assert found["status"] == "passed" and found["output"] == [gpu.gcsa_ext.__file__]
    sleeping = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '100'])"
    monkeypatch.setattr(gpu, "pytest_command", lambda *_: [sys.executable, "-c", sleeping])
    start = time.perf_counter()
    found = gpu.run_tests(1.0, tmp_path / "log")
    assert found["status"] == "stopped after 1 s" and time.perf_counter() - start < 20
    assert found["output"] in ([], ["begun"])


def test_the_gpu_report_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"is_available\(\) is False"):
        gpu.main()


def test_what_keeping_spectra_gains_is_printed() -> None:
    found = kept_spectra.Found(
        shape=(1, 8, 5, 5),
        kept={"warm": 2e-3, "cold": 4e-3},
        transformed={"warm": 3e-3, "cold": 5e-3},
        gain={"warm": 1.5, "cold": 1.25},
        weight_bytes=2_000_000,
        kept_bytes=30_000_000,
    )
    row = "| 1x8x5x5 | 2.0 | 30.0 | 3.00 | 2.00 | 1.50x | 5.00 | 4.00 | 1.25x |"
    assert kept_spectra.table([found]).splitlines()[2] == row


@pytest.mark.parametrize("shape", [(1, 64, 8, 9), (3, 20, 14, 9), (1, 256, 7, 7)])
def test_calls_that_keep_spectra_are_measured(shape: tuple[int, int, int, int]) -> None:
    """Of any weights, also those that are not kept otherwise; afterwards all is as before."""
    C = shape[1]
    limit = native.extension.keep_weights_up_to(0)
    assert native.extension.keep_weights_up_to(limit) == 0
    found = kept_spectra.compare(shape, 0.0, megabytes=1)
    assert native.extension.keep_weights_up_to(limit) == limit
    assert found.weight_bytes == 2 * 4 * C * (C // 4) * 49
    assert found.kept_bytes > found.weight_bytes
    for times in (found.kept, found.transformed, found.gain):
        assert set(times) == {"warm", "cold"} and min(times.values()) > 0.0


def test_keeping_spectra_needs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "extension", None)
    monkeypatch.setattr(native, "load_error", "no such file")
    with pytest.raises(RuntimeError, match="no such file"):
        kept_spectra.compare((1, 64, 6, 5), 0.0)
