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
            "rounds_on_separate_caches": 1,
            "times": {"gcsa_ext": {"median": ours, "rounds": 9}, peer: {"median": its, "rounds": 9}},
        }
        for operation, shape, ours, peer, its in CASES
    ]
    rows.append({"operation": "one that fails", "shape": [1], "failure": "error 1e9"})
    return {
        "revision": "0123abc",
        "versions": {"torch": "2.11.0"},
        "date": "2026-01-31",
        "command": "python report.py",
        "rows": rows,
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


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter"
    expected = f"before\n{tables.BEGIN}\nnew\n{tables.END}\nafter"
    assert tables.between_markers(text, "new") == expected
    assert tables.between_markers(expected, "new") == expected


@pytest.mark.parametrize("order", ["", "b", "eb", "ebe", "bbe"])
def test_markers_that_are_no_pair(order: str) -> None:
    text = "".join({"b": tables.BEGIN, "e": tables.END}[letter] for letter in order)
    with pytest.raises(ValueError, match="expected one <!-- speed table begin -->"):
        tables.between_markers(text, "new")


def test_pages_are_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    pages = tmp_path / "docs" / "measurements"
    pages.mkdir(parents=True)
    for name in ("zen4", "index"):
        (pages / f"{name}.md").write_text("<!-- speed table begin -->\n<!-- speed table end -->\n")
    (tmp_path / "README.md").write_text(tables.BEGIN + tables.END)
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
