"""benchmarks/report.py: which cases run, what is printed and written, how bars are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report
import torch
from harness import bars
from harness.bars import BARS, Bar
from harness.case import Call, Case
from harness.ceilings import Ceilings
from harness.operators import gcsa_case
from harness.suite import CASES

CASE = CASES[0]


def passed(**seconds: float) -> dict[str, Any]:
    """What report.run_case returns of a case whose contenders take so many seconds, "ours" among them."""
    return {
        "operation": CASE.operation,
        "failure": None,
        "times": {name: {"median": median, "rounds": 5} for name, median in seconds.items()},
        "ours": "ours",
        "peers": [name for name in seconds if name not in ("ours", "clone")],
        "dropped": {},
        "waited": 0.0,
        "rounds_on_separate_caches": 0,
    }


class QuickCeilings(Ceilings):
    """Known without measuring."""

    def measure(self, *_: Any, **__: Any) -> None:
        self.bandwidth = 1e10
        self.rate = {"torch.float32": 1e3}


class Broken(Case):
    def build(self, contender: str, dtype: torch.dtype | None = None) -> Call:
        raise RuntimeError("no such kernel")


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the report, on one small case and no bars unless the test has others, with further arguments."""
    monkeypatch.setattr(report, "CASES", (gcsa_case((1, 4, 2, 2)),))
    monkeypatch.setattr(report, "BARS", ())
    monkeypatch.setattr(report, "MEMORY_SHAPES", ((1, 2, 3, 4),))
    monkeypatch.setattr(report, "Ceilings", QuickCeilings)
    rows = [{"shape": [1, 2, 3, 4], "contender": "eager", "input": 10**6, "saved": 3 * 10**6, "peak": None}]
    monkeypatch.setattr(report.memory, "training_step", lambda shape: rows)

    def run(*arguments: str) -> int:
        threads = str(torch.get_num_threads())
        argv = ["report.py", "--seconds", "0.01", "--no-compile", "--threads", threads, *arguments]
        monkeypatch.setattr("sys.argv", argv)
        return report.main()

    return run


def test_the_whole_report(main: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert main("--json", str(file), "--machine", "a machine") == 0
    printed = capsys.readouterr().out
    assert "torch.compile left out (--compile none)" in printed
    assert "| 1x2x3x4 | eager | 1.0 | 3.00 x input |  |" in printed
    written = json.loads(file.read_text())
    assert (written["machine"], written["versions"]["torch"]) == ("a machine", torch.__version__)
    threads = torch.get_num_threads()
    expected = f"python benchmarks/report.py --seconds 0.01 --no-compile --threads {threads}"
    assert written["command"] == expected
    assert written["ceilings"]["bandwidth"] == 1e10
    (row,) = written["rows"]
    times = {name: time["median"] for name, time in row["times"].items()}
    assert set(times) == {
        f"{name}{layout}" for name in ("gcsa_ext", "eager") for layout in ("", " channels_last")
    }
    peers = {name: seconds for name, seconds in times.items() if name.startswith("eager")}
    assert row["best_peer"] == min(peers, key=peers.__getitem__)
    assert row["ratio"] == peers[row["best_peer"]] / times["gcsa_ext"]
    assert f"| **{row['ratio']:.2f}** (" in printed
    # at 4 positions the channel gate's 2 x 4 products and the convolutions' 2 x 49 x 4, twice for the sums
    assert (row["bound"], row["least_seconds"]) == ("flops", 4 * 2 * (2 * 4 + 2 * 49 * 4) / 1e3)
    assert written["memory"][0][0]["saved"] == 3 * 10**6


def test_memory_that_cannot_be_measured_is_a_failure(
    main: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(report.memory, "training_step", fail)
    assert main() == 1
    assert "| 1x2x3x4 | FAILED: RuntimeError: out of order" in capsys.readouterr().out


def test_an_exception_in_a_case_is_its_failure(
    main: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = gcsa_case((1, 4, 2, 2))
    missed = Bar("a bar that is missed", "at least", 1e9, "its peer", lambda: (1.0, ""))
    monkeypatch.setattr(report, "CASES", (Broken("a case that raises", (1,), good.make), good))
    monkeypatch.setattr(report, "BARS", (missed,))
    assert main("--only", "a") == 1  # in all their names
    printed = capsys.readouterr().out
    assert "| a case that raises | 1 | FAILED: RuntimeError: no such kernel" in printed
    assert "| GCSA eval forward N=1 | 1x4x2x2 | " in printed
    assert "0 of 1 met" in printed
    assert main("--only", "a bar") == 0


def test_a_wrong_result_of_ours_gets_no_figures(main: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good = gcsa_case((1, 4, 2, 2))

    def make(plain: bool) -> Any:
        function, inputs, grad = good.make(plain)
        return function if plain else (lambda x: function(x) + 1.0), inputs, grad

    found = report.run_case(Case("it", (1, 4, 2, 2), make), 0.0, "none", QuickCeilings())
    assert "allowed is 1.0e-04" in found["failure"] and found["times"] == {}


def test_selection() -> None:
    everything, all_bars = report.select(None, quick=False, bars_alone=False)
    assert (everything, all_bars) == (list(CASES), list(BARS))
    needed, all_bars = report.select(None, quick=False, bars_alone=True)
    assert all_bars == list(BARS)
    assert needed == [case for case in CASES if any(case in bar.cases for bar in BARS)] != list(CASES)
    assert report.select(None, quick=True, bars_alone=False)[1] == []
    named, wanted = report.select("gcsa EVAL forward 8x", quick=False, bars_alone=False)
    assert [case.operation for case in named] == ["GCSA eval forward"] * 4
    assert "GCSA eval forward geometric mean" in [bar.what for bar in wanted]
    assert report.select("no such thing", quick=False, bars_alone=False) == ([], [])


def test_what_is_listed(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--list") == 0
    assert capsys.readouterr().out == "GCSA eval forward N=1 1x4x2x2\n"
    assert main("--only", "no such thing") == 2
    assert capsys.readouterr().out == "no case or bar contains 'no such thing'\n"


def test_names_tell_bars_apart() -> None:
    assert len({bar.what for bar in BARS}) == len(BARS)


def test_a_bar_fails_with_its_case_and_with_its_measurement() -> None:
    results = {str(CASE): {**passed(), "failure": "error 1e9"}}
    bar = Bar("speed", "at least", 1.0, "its peer's", lambda result: (9.0, ""), (CASE,))
    assert bar.judge(results).failure == f"RuntimeError: {CASE.operation}: error 1e9"
    failing = Bar("x", "below", 1, "", lambda: (1 / 0, ""))
    assert failing.judge({}).failure == "ZeroDivisionError: division by zero"


def test_a_ratio_is_against_the_fastest_peer_or_the_named_ones() -> None:
    result = {**passed(ours=1.0, eager=4.0, compiled=3.0), "dropped": {"other": "broken"}}
    assert bars.ratio(result) == (3.0, "compiled 3e+03 ms, ours 1e+03 ms; without other")
    assert bars.ratio(result, ("eager",)) == (4.0, "eager 4e+03 ms, ours 1e+03 ms")
    assert bars.ratio(result, ("torchaudio",)) == (None, "no torchaudio")


def test_a_ratio_says_what_a_copy_would_reach_and_where_the_cores_were() -> None:
    result = {**passed(ours=2.0, torchaudio=6.0, clone=1.5), "rounds_on_separate_caches": 2}
    value, note = bars.ratio(result, ("torchaudio",))
    assert value == 3.0
    assert note.endswith("; a copy would have 4.00; cores apart in 2 of 5 rounds")
    assert bars.over_clone(result)[0] == pytest.approx(4 / 3)


def test_the_geometric_mean_of_ratios() -> None:
    assert bars.geometric_mean({"ratio": 2.0}, {"ratio": 8.0})[0] == pytest.approx(4.0)


def test_memory_bars_relate_ours_to_the_input_and_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, eager = {"saved": 20, "input": 10, "peak": 300}, {"saved": 60, "input": 10, "peak": 400}
    monkeypatch.setattr(bars.memory, "training_step", lambda shape: [ours, eager, {}])
    assert bars.saved((1,)) == (2.0, "eager 6.00")
    assert bars.peak((1,))[0] == 0.75
    ours["peak"] = None
    assert bars.peak((1,)) == (None, "this system does not tell a process's peak")


@pytest.mark.parametrize(("waited", "disturbed"), [(0.5, True), (0.05, False)])
def test_a_disturbed_case_shows_in_the_bar(waited: float, disturbed: bool) -> None:
    results = {str(CASE): {**passed(), "waited": waited}}
    bar = Bar("speed", "at least", 1.0, "its peer's", lambda result: (2.0, "found"), (CASE,))
    assert bar.judge(results).note == ("found; disturbed" if disturbed else "found")
