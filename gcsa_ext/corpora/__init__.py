"""Corpora: label sets, manifests of clips, prepared clips, and the synthetic corpus.

Needs the extra ``[train]``: ``pip install ".[train]"``.
"""

from gcsa_ext.corpora.clips import (
    ClipBatch,
    ClipSample,
    ClipSettings,
    collate_clips,
    is_audible,
    make_sample,
    prepare_clip,
)
from gcsa_ext.corpora.dataset import ClipDataset
from gcsa_ext.corpora.labels import (
    ABAW,
    CREMA_D,
    EMOTIONS,
    IGNORE_INDEX,
    RAVDESS,
    LabelSet,
    label_set,
)
from gcsa_ext.corpora.manifest import SPLITS, Clip, ManifestError, read_manifest, write_manifest
from gcsa_ext.corpora.synthetic import FACE_OF, VOICE_OF, synthesize_clip, synthesize_corpus

__all__ = [
    "ABAW",
    "CREMA_D",
    "EMOTIONS",
    "FACE_OF",
    "IGNORE_INDEX",
    "RAVDESS",
    "SPLITS",
    "VOICE_OF",
    "Clip",
    "ClipBatch",
    "ClipDataset",
    "ClipSample",
    "ClipSettings",
    "LabelSet",
    "ManifestError",
    "collate_clips",
    "is_audible",
    "label_set",
    "make_sample",
    "prepare_clip",
    "read_manifest",
    "synthesize_clip",
    "synthesize_corpus",
    "write_manifest",
]
