"""Manifests: what is tolerated, and one clear line for each bad row."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from gcsa_ext.corpora import EMOTIONS, RAVDESS, Clip, ManifestError, read_manifest, write_manifest


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


def test_speaker_and_frame_labels_are_optional_columns(folder: Path) -> None:
    (folder / "frames.txt").write_text("3\n-1\n 7 \n\n", encoding="utf-8")
    header = "path,label,split,speaker,frame_labels\n"
    path = write(folder, f"{header}a.mp4,Fear,train, Anna ,frames.txt\nb.mp4,-1,test,,\n")
    assert read_manifest(path) == [
        Clip(folder / "a.mp4", 3, "train", speaker="Anna", frame_labels=(3, -1, 7)),
        Clip(folder / "b.mp4", -1, "test"),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ["'frames.txt' is no file", "one label per line"]),
        (b"0\n8\n", ["line 2", "'8'", "0 to 7", "-1"]),
        (b"0\n\n1\n", ["line 2", "''"]),
        (b"Neutral\n", ["line 1", "'Neutral'"]),
        (b"\xff\xfe\x00", ["cannot be read as text"]),
    ],
)
def test_bad_frame_labels_are_named(folder: Path, content: bytes | None, expected: list[str]) -> None:
    if content is not None:
        (folder / "frames.txt").write_bytes(content)
    path = write(folder, "path,label,split,frame_labels\na.mp4,Fear,train,frames.txt\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    for part in ("line 2", "'frame_labels'", "frames.txt", *expected):
        assert part in str(caught.value)


def test_labels_of_another_label_set(folder: Path) -> None:
    path = folder / "manifest.csv"
    clips = [Clip(folder / "a.mp4", 1, "train"), Clip(folder / "b.mp4", 7, "test")]
    write_manifest(path, clips, RAVDESS)
    assert "a.mp4,calm," in path.read_text(encoding="utf-8")
    assert read_manifest(path, RAVDESS) == clips
    with pytest.raises(ManifestError, match="'calm' is no class of label set 'ABAW'"):
        read_manifest(path)


def test_a_manifest_that_is_written_reads_back_and_leaves_nothing_else(folder: Path) -> None:
    clips = [
        Clip(folder / "a.mp4", 3, "train", 0.25, 1.5, "Anna"),
        Clip(folder / "b.mp4", -1, "test", frame_labels=(0, -1, 7)),
        Clip(folder / "b.mp4", -1, "test", frame_labels=()),
    ]
    path = folder / "lists" / "manifest.csv"
    write_manifest(path, clips)
    assert "../a.mp4,Fear,train,0.25,1.5" in path.read_text(encoding="utf-8")
    read = read_manifest(path)
    assert [replace(clip, path=clip.path.resolve()) for clip in read] == clips
    assert sorted(file.name for file in path.parent.iterdir()) == ["manifest-frame-labels", "manifest.csv"]
    label_files = list(path.parent.glob("manifest-frame-labels/*"))
    assert sorted(file.read_text(encoding="utf-8") for file in label_files) == ["", "0\n-1\n7\n"]


def test_a_failed_write_keeps_the_old_manifest(folder: Path) -> None:
    path = folder / "manifest.csv"
    write_manifest(path, [Clip(folder / "a.mp4", 3, "train")])
    before = path.read_bytes()
    with pytest.raises(IndexError):
        write_manifest(path, [Clip(folder / "a.mp4", 99, "train")])
    assert path.read_bytes() == before
    assert sorted(file.name for file in folder.iterdir()) == ["a.mp4", "b.mp4", "manifest.csv"]
