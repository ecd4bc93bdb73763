"""benchmarks/tables.py: README.md and docs/measurements show what benchmarks/measurements has."""

from __future__ import annotations

from typing import Any

import pytest
import tables

CASES = [
    ("GCSA eval forward", [8, 64, 56, 56], 0.0025, "eager", 0.0125),
    ("GCSA eval forward", [1, 64, 7, 7], 5e-5, "torch.compile", 1e-4),
]


def report() -> dict[str, Any]:
    rows = [
        {
            "operation": operation,
            "shape": shape,
            "failure": None,
            "ours": "gcsa_ext",
            "best_peer": peer,
            "ratio": its / ours,
            "ratio_quartiles": [1.5, 6.0],
            "rounds_apart": 1,
            "times": {"gcsa_ext": {"median": ours, "rounds": 9}, peer: {"median": its, "rounds": 9}},
        }
        for operation, shape, ours, peer, its in CASES
    ]
    rows.append({"operation": "one that fails", "shape": [1], "failure": "error 1e9"})
    bar = {"what": "speed", "found": 4.66, "comparison": "at least", "limit": 4.5, "of": "times eager's"}
    step = {"shape": [8, 4, 5, 6], "contender": "eager", "input": 10, "saved": 65, "peak": 1.25e6}
    return {
        "revision": "0123abc",
        "versions": {"torch": "2.11.0"},
        "date": "2026-01-31",
        "command": "python report.py",
        "rows": rows,
        "bars": [{**bar, "failure": None, "met": True}, {**bar, "failure": "no", "met": None}],
        "memory": [[step, {**step, "contender": "gcsa_ext", "saved": 22.5, "peak": None}], "OSError: no"],
    }


def test_what_is_shown_is_what_was_measured() -> None:
    for file, text in tables.pages().items():
        assert file.read_text() == text, f"{file} differs: run python benchmarks/tables.py"


def test_the_table_of_the_readme_is_short() -> None:
    assert len(tables.README_ROWS) <= 8
    table = tables.short_speed_table(tables.load(tables.README_MACHINE))
    assert len(table.splitlines()) == 2 + len(tables.README_ROWS)


def test_named_cases_in_their_order() -> None:
    names = ["GCSA eval forward 1x64x7x7", "GCSA eval forward 8x64x56x56"]
    assert tables.short_speed_table(report(), names).splitlines() == [
        "| operation | shape | gcsa_ext ms | fastest peer | peer ms | ratio |",
        "|---|---|--:|---|--:|--:|",
        "| GCSA eval forward | 1x64x7x7 | 0.05 | torch.compile | 0.1 | **2.00** |",
        "| GCSA eval forward | 8x64x56x56 | 2.5 | eager | 12.5 | **5.00** |",
    ]
    with pytest.raises(KeyError, match="no such case"):
        tables.short_speed_table(report(), ["no such case"])


def test_all_cases_that_passed() -> None:
    lines = tables.speed_table(report()).splitlines()
    assert lines[0] == "Revision 0123abc, torch 2.11.0, 2026-01-31, `python report.py`:"
    assert lines[4:] == [
        "| GCSA eval forward | 8x64x56x56 | 2.5 | eager | 12.5 | **5.00** (1.50 to 6.00) | 1 of 9 |",
        "| GCSA eval forward | 1x64x7x7 | 0.05 | torch.compile | 0.1 | **2.00** (1.50 to 6.00) | 1 of 9 |",
    ]


def test_ratios_alone() -> None:
    without = report()
    without["rows"] = [{k: v for k, v in row.items() if k != "times"} for row in without["rows"]]
    assert tables.speed_table(without).splitlines()[2:] == [
        "| operation | shape | ratio |",
        "|---|---|--:|",
        "| GCSA eval forward | 8x64x56x56 | 5.00 |",
        "| GCSA eval forward | 1x64x7x7 | 2.00 |",
    ]


def test_limits_and_memory() -> None:
    assert tables.limits_table(report()).splitlines()[4:] == [
        "| speed | 4.66 | at least 4.5 times eager's | yes |",
        "| speed | failed | at least 4.5 times eager's | unknown |",
    ]
    assert tables.memory_table(report()).splitlines()[4:] == [
        "| 8x4x5x6 | eager | 6.50 | 1.2 |",
        "| 8x4x5x6 | gcsa_ext | 2.25 |  |",
    ]


def test_only_what_is_between_markers_changes() -> None:
    text = "before\n<!-- a begin -->\nold\n<!-- a end -->\n<!-- b begin -->\n<!-- b end -->\nafter"
    expected = "before\n<!-- a begin -->\nnew\n<!-- a end -->\n<!-- b begin -->\n<!-- b end -->\nafter"
    assert tables.between_markers(text, "a", "new") == expected
    assert tables.between_markers(expected, "a", "new") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- a begin -->",
        "<!-- a end --><!-- a begin -->",
        "<!-- a end --><!-- a begin --><!-- a end -->",
        "<!-- a begin --><!-- a begin --><!-- a end -->",
    ],
)
def test_markers_that_are_no_pair(text: str) -> None:
    with pytest.raises(ValueError, match="expected one <!-- a begin -->"):
        tables.between_markers(text, "a", "new")


def test_a_page_has_the_tables_that_it_has_markers_for() -> None:
    page = "".join(
        f"<!-- {kind} table begin -->\n<!-- {kind} table end -->\n" for kind in ("speed", "memory")
    )
    text = tables.page(page, report())
    assert tables.speed_table(report()) in text and tables.memory_table(report()) in text
    assert tables.limits_table(report()) not in text
    assert tables.page(text, report()) == text


def test_pages_are_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    pages = tmp_path / "docs" / "measurements"
    pages.mkdir(parents=True)
    for name in ("zen4", "index"):
        (pages / f"{name}.md").write_text("<!-- speed table begin -->\n<!-- speed table end -->\n")
    (tmp_path / "README.md").write_text("<!-- speed table begin -->\n<!-- speed table end -->\n")
    source = tables.ROOT / "benchmarks" / "measurements"
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "measurements").symlink_to(source)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    for written in ("README.md\ndocs/measurements/zen4.md\n", ""):  # the second time nothing differs
        assert tables.main() == 0
        assert capsys.readouterr().out == written
    assert "| GCSA eval forward | 8x64x56x56 |" in (tmp_path / "README.md").read_text()
    assert tables.speed_table(tables.load("zen4")) in (pages / "zen4.md").read_text()
    assert "GCSA" not in (pages / "index.md").read_text()  # of no machine
