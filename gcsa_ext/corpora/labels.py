"""The expression classes of the ABAW EXPR track, in the order of its annotation files."""

EMOTIONS: tuple[str, ...] = (
    "Neutral",
    "Anger",
    "Disgust",
    "Fear",
    "Happiness",
    "Sadness",
    "Surprise",
    "Other",
)
"""Class names; the position is the label (the header line of every Aff-Wild2 EXPR annotation file)."""

IGNORE_INDEX = -1
"""The label of a clip or frame that has no annotation; losses and metrics leave it out."""
