"""Label sets: the classes of a corpus, their order, their coarse groups and their counterparts in other sets.

A label is the index of a class in its label set. The order of the classes differs from corpus to corpus, so
labels are translated by class name, never by position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, overload

IGNORE_INDEX = -1
"""The label of a clip or frame that has no annotation; losses and metrics leave it out."""


@dataclass(frozen=True)
class LabelSet(Sequence[str]):
    """The classes of a corpus. A label set is the sequence of its class names.

    Attributes:
        name: of the set.
        classes: K class names; the position is the label.
        groups: coarse groups of classes for the coarse-fine loss, by class name, together all classes; empty
            if the classes have no meaningful coarse groups.
        maps: by the name of another label set, the counterpart of each class there; None for a class that has
            no counterpart.
        ignore_index: the label of what has no annotation, the same in every set.

    Raises:
        ValueError: no classes, a class name that is empty or occurs twice, groups that are no partition of
            the classes, or a map that lacks a class.
    """

    name: str
    classes: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...] = ()
    maps: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict, hash=False, repr=False)

    ignore_index: ClassVar[int] = IGNORE_INDEX

    def __post_init__(self) -> None:
        folded = [name.casefold() for name in self.classes]
        if not folded or "" in folded or len(set(folded)) < len(folded):
            raise ValueError(
                f"the classes of label set {self.name!r} are {self.classes}; expected different names, which "
                "upper and lower case do not tell apart"
            )
        grouped = [name for group in self.groups for name in group]
        if self.groups and (sorted(grouped) != sorted(self.classes) or not all(self.groups)):
            raise ValueError(
                f"the groups of label set {self.name!r} are {self.groups}; expected each of "
                f"{', '.join(self.classes)} in exactly one group"
            )
        for other, counterparts in self.maps.items():
            if set(counterparts) != set(self.classes):
                raise ValueError(
                    f"the map from label set {self.name!r} to {other!r} has the classes "
                    f"{', '.join(counterparts)}; expected {', '.join(self.classes)}"
                )

    def __len__(self) -> int:
        return len(self.classes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.classes[index]

    @property
    def group_indices(self) -> tuple[tuple[int, ...], ...]:
        """The coarse groups as labels; each class alone if there are no coarse groups."""
        groups = self.groups or tuple((name,) for name in self.classes)
        return tuple(tuple(self.classes.index(name) for name in group) for group in groups)

    def lookup(self, label: int | str) -> int:
        """The index of a class.

        Args:
            label: the name of a class in any case, or its index as a number or as decimal digits.

        Raises:
            ValueError: there is no such class.
        """
        if isinstance(label, str):
            folded = [name.casefold() for name in self.classes]
            if label.casefold() in folded:
                return folded.index(label.casefold())
        index = int(label) if not isinstance(label, str) or label.isdecimal() else -1
        if not 0 <= index < len(self.classes):
            raise ValueError(
                f"{label!r} is no class of label set {self.name!r}; expected one of "
                f"{', '.join(self.classes)}, or an index from 0 to {len(self.classes) - 1}"
            )
        return index

    def convert(self, label: int, other: "LabelSet") -> int:
        """Translate a label of this set into a label of another.

        Args:
            label: index of a class, or -1.
            other: the label set to translate to.

        Returns:
            The index of the class's counterpart in ``other``; -1 for -1 and for a class without counterpart.

        Raises:
            ValueError: there is no such class, or no map to ``other``.
        """
        if label == IGNORE_INDEX or other == self:
            return label
        if other.name not in self.maps:
            raise ValueError(
                f"label set {self.name!r} has no map to {other.name!r}; expected one of "
                f"{', '.join(self.maps) or 'none'}"
            )
        counterpart = self.maps[other.name][self.classes[self.lookup(label)]]
        return IGNORE_INDEX if counterpart is None else other.lookup(counterpart)

    def to_dict(self) -> dict[str, Any]:
        """The label set as plain JSON values."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "groups": [list(group) for group in self.groups],
            "maps": {other: dict(counterparts) for other, counterparts in self.maps.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LabelSet":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value is not what :meth:`to_dict` writes.
        """
        keys = {"name", "classes", "groups", "maps"}
        if not isinstance(values, Mapping) or set(values) != keys:
            raise ValueError(f"a label set is {values!r}; expected the keys {', '.join(sorted(keys))}")
        try:
            return cls(
                str(values["name"]),
                tuple(values["classes"]),
                tuple(tuple(group) for group in values["groups"]),
                {other: dict(counterparts) for other, counterparts in values["maps"].items()},
            )
        except (AttributeError, TypeError) as error:
            raise ValueError(f"a label set is {dict(values)!r}; expected names and lists of names") from error


def label_set(classes: Sequence[str]) -> LabelSet:
    """The label set of class names.

    Args:
        classes: a label set, or K class names by index.

    Returns:
        ``classes`` itself if it is a label set; :data:`ABAW` for the names of ABAW's classes in their order;
        otherwise a set named "custom" that has neither coarse groups nor maps.

    Raises:
        ValueError: no names, or names that are not different.
    """
    if isinstance(classes, LabelSet):
        return classes
    return ABAW if tuple(classes) == ABAW.classes else LabelSet("custom", tuple(classes))


_COUNTERPARTS: dict[str, tuple[str | None, ...]] = {
    "ABAW": ("Neutral", "Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"),
    "RAVDESS": ("neutral", "calm", "angry", "disgust", "fearful", "happy", "sad", "surprised", None),
    "CREMA-D": ("Neutral", "Neutral", "Anger", "Disgust", "Fear", "Happy", "Sad", None, None),
}
"""Classes at the same position are counterparts. Of several positions of a class the first one counts."""


def _maps(name: str) -> dict[str, dict[str, str | None]]:
    """The counterparts of the classes of one label set in each of the others."""
    return {
        other: {
            here: there
            for here, there in reversed([*zip(_COUNTERPARTS[name], counterparts, strict=True)])
            if here is not None
        }
        for other, counterparts in _COUNTERPARTS.items()
        if other != name
    }


ABAW = LabelSet(
    name="ABAW",
    classes=("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"),
    groups=(
        ("Neutral",),
        ("Happiness",),
        ("Surprise",),
        ("Other",),
        ("Anger", "Disgust", "Fear", "Sadness"),
    ),
    maps=_maps("ABAW"),
)
"""The classes of the ABAW EXPR track in the order of the header line of an Aff-Wild2 annotation file. The
coarse groups are those of arXiv 2203.13052 (CFC-SP)."""

RAVDESS = LabelSet(
    name="RAVDESS",
    classes=("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
    groups=(("neutral", "calm"), ("happy",), ("surprised",), ("sad", "angry", "fearful", "disgust")),
    maps=_maps("RAVDESS"),
)
"""The classes of RAVDESS in the order of the emotion field of its file names, 01 to 08. The coarse groups are
this project's choice, after those of :data:`ABAW`: calm was recorded as a second neutral condition."""

CREMA_D = LabelSet(
    name="CREMA-D",
    classes=("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad"),
    groups=(("Neutral",), ("Happy",), ("Anger", "Disgust", "Fear", "Sad")),
    maps=_maps("CREMA-D"),
)
"""The classes of CREMA-D in the order of the codes in its file names: ANG, DIS, FEA, HAP, NEU, SAD. The
coarse groups are this project's choice, after those of :data:`ABAW`."""

EMOTIONS: tuple[str, ...] = ABAW.classes
"""The names of :data:`ABAW`'s classes by index."""
