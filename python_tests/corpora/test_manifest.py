"""Manifests: what is tolerated, and one clear line for each bad row."""

import pickle
from pathlib import Path

import pytest

from gcsa_ext.corpora import EMOTIONS, Clip, ManifestError, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "manifest.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_labels_by_name_and_by_index_and_optional_times(folder: Path) -> None:
    path = write(folder, "path,label,split,start,end\na.mp4,happiness,train,,\nb.mp4,0,Test,1.5,3\n")
    assert read_manifest(path) == [
        Clip(folder / "a.mp4", EMOTIONS.index("Happiness"), "train"),
        Clip(folder / "b.mp4", 0, "test", 1.5, 3.0),
    ]


def test_byte_order_mark_blank_lines_spaces_and_other_columns_do_no_harm(folder: Path) -> None:
    path = write(
        folder, "\n Label ,note,PATH,split\r\n\n fear ,hi, a.mp4 ,train\n,,,\n", encoding="utf-8-sig"
    )
    assert read_manifest(path) == [Clip(folder / "a.mp4", EMOTIONS.index("Fear"), "train")]


def test_absolute_paths_and_other_classes(folder: Path) -> None:
    path = write(folder, f"path,label,split\n{folder / 'a.mp4'},calm,validation\n")
    assert read_manifest(path, classes=("neutral", "Calm"))[0].label == 1


def test_labels_may_be_absent_for_prediction(folder: Path) -> None:
    clips = read_manifest(write(folder, "path\na.mp4\n"), require_labels=False)
    assert clips == [Clip(folder / "a.mp4", -1, "test")]
    clips = read_manifest(write(folder, "path,label\na.mp4,-1\nb.mp4,\n"), require_labels=False)
    assert [clip.label for clip in clips] == [-1, -1]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("c.mp4,Fear,train,,", ["'path'", "'c.mp4'", "expected a media file"]),
        (",Fear,train,,", ["'path'", "empty"]),
        ("a.mp4,Joy,train,,", ["'label'", "'Joy'", "Happiness"]),
        ("a.mp4,8,train,,", ["'label'", "'8'", "0 to 7"]),
        ("a.mp4,-2,train,,", ["'label'", "'-2'", "-1 for"]),
        ("a.mp4,,train,,", ["'label'", "''"]),
        ("a.mp4,Fear,dev,,", ["'split'", "'dev'", "train, validation, test"]),
        ("a.mp4,Fear", ["'split'", "''"]),
        ("a.mp4,Fear,train,soon,", ["'start'", "'soon'", "seconds"]),
        ("a.mp4,Fear,train,-1,", ["'start'", "'-1'"]),
        ("a.mp4,Fear,train,,nan", ["'end'", "'nan'"]),
        ("a.mp4,Fear,train,2,2", ["'end'", "'2'", "start < end"]),
        ("a.mp4,Fear,train,,0", ["'end'", "'0'"]),
    ],
)
def test_a_bad_row_is_named_with_column_value_and_expectation(
    folder: Path, row: str, expected: list[str]
) -> None:
    path = write(folder, f"path,label,split,start,end\na.mp4,Fear,train,,\n\n{row}\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert len(caught.value.problems) == 1
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for part in ("line 4", "column", "expected", *expected):
        assert part in message


def test_every_bad_row_is_reported_at_once(folder: Path) -> None:
    path = write(folder, "path,label,split\nc.mp4,Fear,train\na.mp4,Fear,train\na.mp4,Joy,train\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert [problem[:6] for problem in caught.value.problems] == ["line 2", "line 4"]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("path,label,split\n", "no clips"),
        ("path,label\na.mp4,Fear\n", "'split'"),
        ("a.mp4,Fear,train\n", "'path'"),
    ],
)
def test_empty_files_and_missing_columns(folder: Path, text: str, expected: str) -> None:
    with pytest.raises(ManifestError, match=f"{expected}.*expected"):
        read_manifest(write(folder, text))


def test_missing_and_unreadable_manifests(folder: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        read_manifest(folder / "none.csv")
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ManifestError, match="UTF-8"):
        read_manifest(folder / "binary.csv")


def test_a_manifest_that_is_written_reads_back_and_leaves_nothing_else(folder: Path) -> None:
    clips = [
        Clip(folder / "a.mp4", 3, "train", 0.25, 1.5),
        Clip(folder / "b.mp4", -1, "test"),
    ]
    path = folder / "lists" / "manifest.csv"
    write_manifest(path, clips)
    assert "../a.mp4,Fear,train,0.25,1.5" in path.read_text(encoding="utf-8")
    read = read_manifest(path)
    assert [(c.path.resolve(), c.label, c.split, c.start, c.end) for c in read] == [
        (c.path.resolve(), c.label, c.split, c.start, c.end) for c in clips
    ]
    assert [file.name for file in path.parent.iterdir()] == ["manifest.csv"]


def test_a_failed_write_keeps_the_old_manifest(folder: Path) -> None:
    path = folder / "manifest.csv"
    write_manifest(path, [Clip(folder / "a.mp4", 3, "train")])
    before = path.read_bytes()
    with pytest.raises(IndexError):
        write_manifest(path, [Clip(folder / "a.mp4", 99, "train")])
    assert path.read_bytes() == before
    assert sorted(file.name for file in folder.iterdir()) == ["a.mp4", "b.mp4", "manifest.csv"]
