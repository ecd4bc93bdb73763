"""Label sets: order, lookup, coarse groups, maps between sets, and their form in JSON."""

import json
import pickle

import pytest

from gcsa_ext.corpora import ABAW, CREMA_D, EMOTIONS, IGNORE_INDEX, RAVDESS, LabelSet, label_set
from gcsa_ext.nn.loss import ABAW_GROUPS

READY = (ABAW, RAVDESS, CREMA_D)


def test_the_order_of_the_ready_sets() -> None:
    assert tuple(ABAW) == EMOTIONS
    assert (len(ABAW), ABAW[0], ABAW[4], ABAW[-1]) == (8, "Neutral", "Happiness", "Other")
    assert RAVDESS.classes == ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    assert [name[:3].upper() for name in CREMA_D] == ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]


def test_coarse_groups_are_indices_of_their_own_set() -> None:
    assert ABAW.group_indices == ABAW_GROUPS
    assert RAVDESS.group_indices == ((0, 1), (2,), (7,), (3, 4, 5, 6))
    assert CREMA_D.group_indices == ((4,), (3,), (0, 1, 2, 5))
    assert label_set(("yes", "no")).group_indices == ((0,), (1,))


@pytest.mark.parametrize("label", ["Fear", "fear", " FEAR".strip(), "3", 3])
def test_lookup_by_name_in_any_case_and_by_index(label: int | str) -> None:
    assert ABAW.lookup(label) == 3


@pytest.mark.parametrize("label", ["joy", "", "8", "-1", "1.5", 8, -1])
def test_lookup_of_an_unknown_class_names_the_known_ones(label: int | str) -> None:
    with pytest.raises(ValueError, match=rf"{label!r} is no class .*'ABAW'.*Neutral, Anger.*from 0 to 7"):
        ABAW.lookup(label)


def test_a_class_name_of_digits_comes_before_an_index() -> None:
    assert label_set(("1", "0")).lookup("0") == 1
    assert label_set(("1", "0")).lookup(0) == 0


@pytest.mark.parametrize(
    ("source", "name", "target", "expected"),
    [
        (RAVDESS, "calm", ABAW, "Neutral"),
        (RAVDESS, "angry", ABAW, "Anger"),
        (RAVDESS, "surprised", CREMA_D, None),
        (CREMA_D, "Happy", ABAW, "Happiness"),
        (CREMA_D, "Neutral", RAVDESS, "neutral"),
        (ABAW, "Other", RAVDESS, None),
        (ABAW, "Sadness", CREMA_D, "Sad"),
    ],
)
def test_conversion_is_by_name(source: LabelSet, name: str, target: LabelSet, expected: str | None) -> None:
    label = source.convert(source.lookup(name), target)
    assert label == (IGNORE_INDEX if expected is None else target.lookup(expected))
    assert source.convert(IGNORE_INDEX, target) == IGNORE_INDEX


def test_every_ready_set_maps_to_every_other_and_back() -> None:
    for source in READY:
        for target in READY:
            converted = {name: source.convert(label, target) for label, name in enumerate(source)}
            assert set(converted.values()) <= {IGNORE_INDEX, *range(len(target))}
            for name, label in converted.items():
                if label != IGNORE_INDEX and name != "calm":
                    assert source[target.convert(label, source)] == name


def test_conversion_without_a_map_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'RAVDESS' has no map to 'custom'; expected one of ABAW, CREMA-D"):
        RAVDESS.convert(0, label_set(("yes", "no")))
    with pytest.raises(ValueError, match="expected one of none"):
        label_set(("yes", "no")).convert(0, ABAW)
    with pytest.raises(ValueError, match="8 is no class"):
        RAVDESS.convert(8, ABAW)


def test_names_make_a_label_set() -> None:
    assert label_set(list(EMOTIONS)) is ABAW
    assert label_set(RAVDESS) is RAVDESS
    custom = label_set(["Neutral", "Anger"])
    assert (custom.name, custom.classes, custom.groups) == ("custom", ("Neutral", "Anger"), ())
    assert label_set(EMOTIONS[::-1]).groups == ()


@pytest.mark.parametrize("labels", [*READY, label_set(("yes", "no"))])
def test_a_label_set_survives_json_and_pickling(labels: LabelSet) -> None:
    assert LabelSet.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    assert pickle.loads(pickle.dumps(labels)) == labels
    assert len({labels, LabelSet.from_dict(labels.to_dict())}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "different names"),
        ({"classes": ["a", "A"]}, "different names"),
        ({"classes": ["a", ""]}, "different names"),
        ({"classes": [1, 2]}, "names and lists of names"),
        ({"groups": [["a"]]}, "exactly one group"),
        ({"groups": [["a", "b"], ["b"]]}, "exactly one group"),
        ({"groups": [["a", "b"], []]}, "exactly one group"),
        ({"groups": 3}, "names and lists of names"),
        ({"maps": {"ABAW": {"a": "Anger"}}}, "expected a, b"),
        ({"maps": ["ABAW"]}, "names and lists of names"),
        ({"surprise": 1}, "expected the keys"),
    ],
)
def test_a_bad_label_set_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSet.from_dict({**label_set(("a", "b")).to_dict(), **change})
